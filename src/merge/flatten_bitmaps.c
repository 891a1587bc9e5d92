/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten_bitmaps.c - the layers' persistent bitmaps go into the image that a flatten makes.
 *
 * Why.  Backups go on by them.  Which are put together is what a merge has for a base that lacks them (carry.h,
 * docs/decisions/0027-bitmaps.md); they are made with the image, empty and in_use, so that the header names them before
 * anything depends on it, and get their bits when all else is durable: in every run that gets so far, as bits only
 * become more.  The image gets its name, or its right to be read, after that.
 */
#include "flatten_int.h"

#include "map.h"

#include <string.h>

/* ---- what is asked ---- */

static struct qm_carry
carry_of(const struct qm_flatten *f, enum qmeld_bitmaps mode)
{
    const size_t top = f->chain->n - 1;
    const bool of_top = f->opts->bitmaps == QMELD_FLATTEN_BITMAPS_KEEP;

    return (struct qm_carry){.chain = f->chain,
                             .base = of_top && mode != QMELD_BITMAPS_DROP ? top : 0,
                             .top = top,
                             .target = QM_NO_LAYER,
                             .new_cluster = f->is_qcow2 ? f->create.cluster_size : 65536,
                             .mode = mode,
                             .new_size = qm_align_up(f->size, 512)};
}

static int
check_request(const struct qm_flatten *f, struct qmeld_error *err)
{
    const struct qmeld_flatten_options *o = f->opts;
    const struct qm_place at = qm_in(f->path);

    if (o->skip_broken_bitmaps && o->bitmaps != QMELD_FLATTEN_BITMAPS_KEEP)
        return qm_fail(err, QMELD_USAGE, at,
                       "--skip-broken-bitmaps goes with --bitmaps=keep: leave it out");
    if (o->bitmaps == QMELD_FLATTEN_BITMAPS_DROP)
        return 0;
    if (!f->is_qcow2)
        return qm_fail(err, QMELD_USAGE, at,
                       "a raw disk has no bitmaps: use format qcow2, or --bitmaps=drop");
    if (f->create.version < 3)
        return qm_fail(err, QMELD_USAGE, at,
                       "a qcow2 image of version 2 (compat 0.10) has no bitmaps: use version 3, or "
                       "--bitmaps=drop");
    if (o->snapshot)
        return qm_fail(err, QMELD_USAGE, at,
                       "bitmaps tell of what the image is now, not of its internal snapshot: "
                       "flatten that with --bitmaps=drop");
    if (o->share)
        return qm_fail(err, QMELD_USAGE, at,
                       "who writes to it meanwhile would change its bitmaps, too: leave out "
                       "--force-share, or use --bitmaps=drop");
    if (o->salvage)
        return qm_fail(err, QMELD_USAGE, at,
                       "bitmaps do not tell what is lost by salvaging: use --bitmaps=drop");
    return 0;
}

/* ---- plan ---- */

static int
refuse_broken(const struct qm_flatten *f, const struct qm_bitmap_order *o, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_USAGE, qm_in(f->chain->layers[o->layer].path),
                   "its bitmap \"%.100s\" was not closed cleanly, or is damaged, and says nothing: "
                   "leave such out with --skip-broken-bitmaps, or remove it with `qemu-img bitmap "
                   "--remove`",
                   o->name);
}

/* What qemu-img convert --bitmaps does (qemu 7.2, qemu-img.c, convert_copy_bitmaps).  f->orders has the names of all layers
 * as ones that are left; those of the top are another matter. */
static int
keep_those_of_top(struct qm_flatten *f, struct qmeld_error *err)
{
    const struct qm_carry carry = carry_of(f, QMELD_BITMAPS_MERGE);
    struct qm_bitmap_orders of_top;
    int rc = qm_carry_plan(&carry, &of_top, err);

    for (size_t i = 0; rc == 0 && i < of_top.list.n; i++) {
        struct qm_bitmap_order *o = &of_top.list.at[i];
        const struct qm_bitmap_order *all = qm_bitmap_order_of(&f->orders, o->name);

        if (o->broken && !f->opts->skip_broken_bitmaps) {
            rc = refuse_broken(f, o, err);
        } else if (all) {
            struct qm_bitmap_order *to = &f->orders.list.at[all - f->orders.list.at];
            const struct qm_bitmap_order left = *to;

            *to = *o;
            *o = left; /* each has its own name, still */
        }
    }
    qm_bitmap_orders_release(&of_top);
    return rc;
}

int
qm_flatten_bitmaps_plan(struct qm_flatten *f, struct qmeld_error *err)
{
    const bool empty = f->size == 0; /* a bitmap of no bits is none; nor does QEMU store one */
    const bool merge = f->opts->bitmaps == QMELD_FLATTEN_BITMAPS_MERGE && !empty;
    const struct qm_carry carry = carry_of(f, merge ? QMELD_BITMAPS_MERGE : QMELD_BITMAPS_DROP);

    if (check_request(f, err) < 0)
        return -1;
    if (f->opts->salvage) /* directories that nobody has checked */
        return 0;
    if (qm_carry_plan(&carry, &f->orders, err) < 0)
        return -1;
    return f->opts->bitmaps == QMELD_FLATTEN_BITMAPS_KEEP && !empty ? keep_those_of_top(f, err) : 0;
}

int
qm_flatten_bitmaps_tell(struct qm_flatten *f, struct qmeld_error *err)
{
    const struct qm_carry carry = carry_of(f, QMELD_BITMAPS_MERGE);

    if (f->orders.list.n == 0)
        return 0;
    return qm_carry_tell(&carry, &f->orders, &f->report->bitmaps, &f->report->n_bitmaps, err);
}

/* ---- the new image ---- */

/* What a failure leaves on the disk is the output's to say. */
static int
begin(struct qm_flatten *f, struct qm_refs **refs, struct qm_bitmaps **out, struct qmeld_error *err)
{
    *out = NULL;
    if (qm_refs_open(f->q, refs, err) < 0)
        return -1;
    return qm_bitmaps_begin(f->q, *refs, f->q->hdr.size, NULL, &f->orders, out, err);
}

int
qm_flatten_bitmaps_make(struct qm_flatten *f, struct qmeld_error *err)
{
    const enum qmeld_disk disk = err->disk;
    struct qm_refs *refs = NULL;
    struct qm_bitmaps *b;
    int rc;

    if (qm_carry_n_created(&f->orders) == 0)
        return 0;
    if (qm_bitmap_orders_check(f->q, &f->orders, f->q->hdr.size, err) < 0)
        return -1;
    rc = begin(f, &refs, &b, err);
    qm_bitmaps_abandon(b); /* they stay in_use */
    qm_refs_close(refs);
    err->disk = disk;
    return rc;
}

int
qm_flatten_bitmaps_fill(struct qm_flatten *f, struct qmeld_error *err)
{
    const struct qm_carry carry = carry_of(f, QMELD_BITMAPS_MERGE);
    const enum qmeld_disk disk = err->disk;
    struct qm_refs *refs = NULL;
    struct qm_bitmaps *b;
    int rc;

    if (qm_carry_n_created(&f->orders) == 0)
        return 0;
    rc = begin(f, &refs, &b, err);
    if (rc == 0)
        rc = qm_carry_import(&carry, &f->orders, b, err);
    if (rc == 0)
        rc = qm_bitmaps_end(QM_TAKE(b), err);
    qm_bitmaps_abandon(b);
    qm_refs_close(refs);
    err->disk = disk;
    return rc;
}
