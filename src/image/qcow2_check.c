/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_check.c - check and repair of a qcow2 image: census, mend, census, ... until nothing is
 * left.
 *
 * Order of a repair, each step on a fresh census and durable before the next begins:
 *   1 entries without data at impossible places become zeros (only with "all")
 *   2 refcounts: in place, or a new structure if a used cluster has none (with "leaks": only
 *     lowered)
 *   3 COPIED flags (with "leaks": only if all else is right)
 *   4 snapshot table (only with "all")
 *   5 the dirty and corrupt bits are cleared, if nothing is wrong any more
 * The bits go last, so a crash before leaves an image that says itself that it needs repair, and
 * the same command goes on.
 *
 * Where this is more careful than QEMU: while an entry is damaged, the clusters it stood for look
 * leaked.  QEMU sets them free, and the next write is their end.  Here leaks stay as long as any
 * entry is damaged, so that somebody may still rescue what they hold.
 */
#include "qcow2_check.h"

#include "qcow2_header.h"
#include "qcow2_repair.h"

#include <inttypes.h>

struct repair {
    struct qm_qcow2 *q;
    enum qmeld_repair what;
    qmeld_finding_fn *fn;
    void *opaque;
    struct qm_census c; /* always of what is on disk now */
    bool wrote;
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
};

static int
look(struct repair *r, qmeld_finding_fn *fn, unsigned flags, struct qmeld_error *err)
{
    qm_census_release(&r->c);
    return qm_census_take(r->q, flags, fn, r->opaque, &r->c, err);
}

/* Between two mends. */
static int
look_again(struct repair *r, struct qmeld_error *err)
{
    return look(r, NULL, r->what == QMELD_REPAIR_ALL ? QM_CENSUS_DROP_EXTRA : 0, err);
}

/* Before the first write. */
static int
begin(struct repair *r, struct qmeld_error *err)
{
    if (r->wrote)
        return 0;
    r->wrote = true;
    return qm_header_before_write(r->q, err);
}

/* Corruptions that the refcounts do not show by themselves, and those that they do. */
static uint64_t
without_flags(const struct qm_census *c)
{
    return c->damaged + c->damaged_blocks + c->too_low;
}

static void
fixed(struct repair *r, uint64_t corruptions_before, uint64_t corruptions_now,
      uint64_t leaks_before)
{
    if (corruptions_before > corruptions_now)
        r->corruptions_fixed += corruptions_before - corruptions_now;
    if (leaks_before > r->c.leaks)
        r->leaks_fixed += leaks_before - r->c.leaks;
}

static int
mend_zeroable(struct repair *r, struct qmeld_error *err)
{
    const uint64_t before = r->c.damaged;

    if (r->what != QMELD_REPAIR_ALL || r->c.zeroable == 0 || r->q->geo.version < 3)
        return 0;
    if (begin(r, err) < 0 || qm_repair_zeroable(r->q, &r->c, err) < 0 || look_again(r, err) < 0)
        return -1;
    /* leaks may have appeared: what the odd entries seemed to use */
    fixed(r, before, r->c.damaged, 0);
    return 0;
}

static int
mend_rebuild(struct repair *r, struct qmeld_error *err)
{
    const uint64_t before = without_flags(&r->c), leaks = r->c.leaks;

    /* QEMU makes the file as long as a refcount block far out demands; a new structure leaves
     * such entries out instead. */
    if (r->c.incomplete ||
        (!r->c.needs_rebuild && !(r->c.outside_blocks && r->what == QMELD_REPAIR_ALL)))
        return 0;
    if (begin(r, err) < 0)
        return -1;
    /* once more if the file grew past references that led behind its end: they count now */
    for (int i = 0; i < 2 && (i == 0 || (r->c.needs_rebuild && !r->c.incomplete)); i++)
        if (qm_repair_rebuild(r->q, &r->c, err) < 0 || look_again(r, err) < 0)
            return -1;
    fixed(r, before, without_flags(&r->c), leaks);
    return 0;
}

static int
mend_refcounts(struct repair *r, struct qmeld_error *err)
{
    const uint64_t before = without_flags(&r->c), leaks = r->c.leaks;
    unsigned what = 0;

    if (r->c.too_low && r->what == QMELD_REPAIR_ALL)
        what |= QM_REPAIR_RAISE;
    if (r->c.leaks && r->c.damaged == 0)
        what |= QM_REPAIR_LOWER;
    if (!what || r->c.needs_rebuild || r->c.incomplete)
        return 0;
    if (begin(r, err) < 0 || qm_repair_refcounts(r->q, &r->c, what, err) < 0 ||
        look_again(r, err) < 0)
        return -1;
    fixed(r, before, without_flags(&r->c), leaks);
    return 0;
}

/* QEMU: with -r leaks only if everything else is right, so that the refcounts can be believed. */
static bool
flags_wanted(const struct repair *r)
{
    const struct qm_census *c = &r->c;

    if (c->copied_wrong == 0 || c->incomplete)
        return false;
    return r->what == QMELD_REPAIR_ALL || (without_flags(c) + c->leaks + c->unreadable == 0);
}

static int
mend_flags(struct repair *r, struct qmeld_error *err)
{
    const uint64_t before = r->c.copied_wrong;

    if (!flags_wanted(r))
        return 0;
    if (begin(r, err) < 0 || qm_repair_copied(r->q, &r->c, err) < 0 || look_again(r, err) < 0)
        return -1;
    fixed(r, before, r->c.copied_wrong, 0);
    return 0;
}

static int
mend_snapshots(struct repair *r, struct qmeld_error *err)
{
    const uint64_t before = r->c.short_snapshots + r->c.long_snapshots;

    /* A new table needs clusters, and refcounts that say which are free. */
    if (r->what != QMELD_REPAIR_ALL || before == 0 || without_flags(&r->c) || r->c.unreadable)
        return 0;
    if (begin(r, err) < 0 || qm_repair_snapshots(r->q, &r->c, err) < 0 || look_again(r, err) < 0)
        return -1;
    fixed(r, before, r->c.short_snapshots + r->c.long_snapshots, 0);
    return 0;
}

static int
clear_bits(struct repair *r, struct qmeld_error *err)
{
    const uint64_t bits = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

    if (qm_census_corruptions(&r->c) || r->c.unreadable || !(r->q->hdr.incompatible & bits))
        return 0;
    if (begin(r, err) < 0)
        return -1;
    r->q->hdr.incompatible &= ~bits;
    return qm_header_store(r->q, err);
}

static int
mend(struct repair *r, struct qmeld_error *err)
{
    if (mend_zeroable(r, err) < 0)
        return -1;
    if (r->c.needs_rebuild && r->what == QMELD_REPAIR_LEAKS) {
        qm_census_say(&r->c, "refcounts are missing for clusters in use: nothing was repaired, "
                             "--repair=all makes them anew");
        r->c.unreadable++;
        return 0;
    }
    if (mend_rebuild(r, err) < 0 || mend_refcounts(r, err) < 0 || mend_flags(r, err) < 0 ||
        mend_snapshots(r, err) < 0)
        return -1;
    /* the file may have grown over refcounts that stood behind its end, where nobody looks */
    if (mend_refcounts(r, err) < 0)
        return -1;
    if (r->c.leaks && r->c.damaged)
        qm_census_say(&r->c, "leaks are kept: damaged entries may have stood for those clusters");
    return clear_bits(r, err);
}

static void
report(const struct repair *r, struct qmeld_check_result *out)
{
    const struct qm_census *c = &r->c;
    const struct qm_qcow2 *q = r->q;

    *out = (struct qmeld_check_result){
        .corruptions = qm_census_corruptions(c),
        .leaks = c->leaks,
        .check_errors = c->unreadable,
        .corruptions_fixed = r->corruptions_fixed,
        .leaks_fixed = r->leaks_fixed,
        .image_end_offset = (c->end_cluster + 1) << q->geo.cluster_bits,
        .total_clusters = qm_div_up(q->hdr.size, q->geo.cluster_size),
        .allocated_clusters = c->allocated,
        .fragmented_clusters = c->fragmented,
        .compressed_clusters = c->compressed,
    };
}

static int
repair(struct repair *r, struct qmeld_error *err)
{
    uint64_t failed;

    if (mend(r, err) < 0) {
        if (r->wrote)
            qm_err_disk(err, QMELD_DISK_OPEN);
        return -1;
    }
    if (r->wrote)
        qm_image_forget(&r->q->img);
    else if (!r->c.long_snapshots)
        return 0;
    failed = r->c.unreadable;
    if (look(r, r->fn, 0, err) < 0) {
        if (r->wrote)
            qm_err_disk(err, QMELD_DISK_NEW); /* all is mended, only nobody can say so */
        return -1;
    }
    r->c.unreadable = qm_max(r->c.unreadable, failed);
    return 0;
}

static int
check(struct repair *r, struct qmeld_check_result *out, struct qmeld_error *err)
{
    if (look(r, r->fn, r->what == QMELD_REPAIR_ALL ? QM_CENSUS_DROP_EXTRA : 0, err) < 0)
        return -1;
    /* what could not be counted would be taken for free: then nothing is written */
    if (r->what != QMELD_REPAIR_NONE && !r->c.incomplete && repair(r, err) < 0)
        return -1;
    report(r, out);
    return 0;
}

int
qm_qcow2_check(struct qm_qcow2 *q, enum qmeld_repair repair, qmeld_finding_fn *fn, void *opaque,
               struct qmeld_check_result *out, struct qmeld_error *err)
{
    struct repair r = {.q = q, .what = repair, .fn = fn, .opaque = opaque};
    const int result = check(&r, out, err);

    qm_census_release(&r.c);
    return result;
}

int
qm_qcow2_mend_leaks(struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct qmeld_check_result found;

    if (qm_qcow2_check(q, QMELD_REPAIR_LEAKS, NULL, NULL, &found, err) == 0)
        return 0;
    if (err->disk == QMELD_DISK_NEW) /* mended, and nobody can say so */
        err->disk = QMELD_DISK_OPEN;
    return -1;
}

/* ---- before a merge ---- */

static int
refuse(const struct qm_qcow2 *q, const char *what, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_in(q->img.file->path),
                   "%s: look at it with check, mend it with check --repair=all", what);
}

static int
look_safe(struct repair *r, struct qmeld_error *err)
{
    const bool dirty = r->q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY;

    if (r->q->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return refuse(r->q, "the image is marked as corrupt", err);
    if (look_again(r, err) < 0)
        return -1;
    if (r->c.incomplete || r->c.unreadable)
        return refuse(r->q, "parts of the metadata cannot be checked", err);
    /* (a snapshot entry that lacks extra data is in nobody's way) */
    if (r->c.damaged || r->c.damaged_blocks)
        return refuse(r->q, "the metadata is damaged", err);
    /* Refcounts and flags of a dirty image are behind its tables; that is what the bit says
     * (specification, "Incompatible features", bit 0). */
    if (!dirty && (r->c.too_low || r->c.copied_wrong))
        return refuse(r->q, "refcounts are wrong", err);
    return 0;
}

static int
make_safe(struct repair *r, struct qmeld_error *err)
{
    if (look_safe(r, err) < 0)
        return -1;
    if (!(r->q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY))
        return 0;
    if (qm_file_make_writable(r->q->img.file, err) < 0 || mend(r, err) < 0)
        return -1;
    if (without_flags(&r->c) || r->c.copied_wrong ||
        (r->q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY))
        return refuse(r->q, "the refcounts could not be rebuilt", err);
    return qm_qcow2_reload(r->q, err);
}

int
qm_qcow2_make_safe_to_write(struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct repair r = {.q = q, .what = QMELD_REPAIR_ALL};
    const int result = make_safe(&r, err);

    if (r.wrote) /* whatever fails from here on leaves a repaired image */
        qm_err_disk(err, QMELD_DISK_OPEN);
    qm_census_release(&r.c);
    return result;
}

int
qm_qcow2_look_safe(struct qm_qcow2 *q, bool *out_shared, struct qmeld_error *err)
{
    struct repair r = {.q = q, .what = QMELD_REPAIR_ALL};
    const int result = look_safe(&r, err);

    *out_shared = r.c.shared && !(q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY);
    qm_census_release(&r.c);
    return result;
}
