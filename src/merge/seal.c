/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "seal.h"

#include "qcow2_bitmap.h"
#include "qcow2_check.h"
#include "qcow2_edit.h"
#include "qcow2_header.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#define BATCH_REACH                                                                                \
    (32ull << 30) /* several times what a batch copies and shares, and tables for it */

struct qm_seal {
    struct qm_image *img;
    struct qm_file *file;
    uint64_t new_size;
    uint64_t raw_len;        /* raw: length the file needs at the end */
    struct qm_qcow2 *q;      /* NULL: the target is raw */
    struct qm_qcow2 *holder; /* whose header and refcounts it has: q, but for a snapshot */
    struct qm_refs *refs;
    struct qm_edit *edit;
    struct qm_bitmaps *bitmaps;
    const struct qm_bitmap_orders *orders;
};

/* ---- begin ---- */

static int
refuse_growth(const struct qm_seal *s, struct qmeld_error *err)
{
    if (s->new_size <= s->q->img.size || s->q->hdr.version >= 3 || s->q->hdr.n_snapshots == 0)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(s->file->path),
                   "it must grow from %" PRIu64 " to %" PRIu64
                   " bytes, which a version 2 image with internal snapshots cannot: delete the "
                   "snapshots, or upgrade it with `qemu-img amend -o compat=1.1`",
                   s->q->img.size, s->new_size);
}

/* Refcounts may have reached the disk without the length of the file that has their clusters.  A
 * check does not look there, so the file becomes as long as they say; a free tail is cut off
 * at the end.  How far a batch can have reached is bounded, and so is this. */
static int
cover_counted(struct qm_seal *s, struct qmeld_error *err)
{
    const uint64_t cs = s->q->geo.cluster_size;
    const uint64_t from = qm_div_up(s->file->size, cs);
    struct qm_refs *refs;
    uint64_t end;
    int rc;

    if (s->file->blockdev)
        return 0;
    if (qm_refs_open(s->holder, &refs, err) < 0)
        return -1;
    rc = qm_refs_end_of_used(refs, from, BATCH_REACH / cs, &end, err);
    qm_refs_close(refs);
    if (rc < 0 || end == from)
        return rc;
    return qm_truncate(s->file, end * cs, err);
}

/* What an interrupted batch took and never used. */
static int
mend_leaks(struct qm_seal *s, struct qmeld_error *err)
{
    return cover_counted(s, err) < 0 ? -1 : qm_qcow2_mend_leaks(s->holder, err);
}

/* Behind this the target reads zeros where it has nothing, on what it stands on now as on what it will. */
static uint64_t
size_below(const struct qm_seal_config *c)
{
    const uint64_t now = c->target > 0 ? c->chain->layers[c->target - 1].img->size : 0;
    const uint64_t then = c->base > 0 ? c->chain->layers[c->base - 1].img->size : 0;

    return qm_max(qm_max(now, then), c->below_size);
}

static int
refuse_data(const struct qm_seal *s, struct qmeld_error *err)
{
    const struct qm_file *data = s->img->data;

    if (data != s->file && data->blockdev && data->size < s->new_size)
        return qm_fail(err, QMELD_NOSPACE, qm_in(data->path),
                       "the data file is a block device of %" PRIu64
                       " bytes, the merged disk needs %" PRIu64 ": enlarge it by %" PRIu64,
                       (uint64_t)data->size, s->new_size, s->new_size - data->size);
    return 0;
}

static int
begin_bitmaps(struct qm_seal *s, const struct qm_seal_config *c, struct qmeld_error *err)
{
    if (c->holder || c->unchanged)
        return 0;
    return qm_bitmaps_begin(s->q, s->refs, s->new_size, c->trusted_bitmaps, s->orders, &s->bitmaps,
                            err);
}

static int
open_edit(struct qm_seal *s, const struct qm_seal_config *c, struct qmeld_error *err)
{
    const uint64_t below = size_below(c);

    return c->holder ? qm_edit_open_snapshot(s->q, c->holder, s->refs, below, &s->edit, err)
                     : qm_edit_open(s->q, s->refs, below, s->new_size, &s->edit, err);
}

static int
begin_qcow2(struct qm_seal *s, const struct qm_seal_config *c, struct qmeld_error *err)
{
    if (refuse_growth(s, err) < 0 || refuse_data(s, err) < 0 ||
        (!c->holder && qm_qcow2_make_safe_to_write(s->q, err) < 0) ||
        (c->resumed && mend_leaks(s, err) < 0) || qm_refs_open(s->holder, &s->refs, err) < 0 ||
        begin_bitmaps(s, c, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN); /* what fails from here on leaves a changed header */
    if (qm_header_before_write(s->holder, err) < 0 || open_edit(s, c, err) < 0)
        return -1;
    if (c->decompress)
        qm_edit_decompress(s->edit);
    return 0;
}

static int
begin_raw(struct qm_seal *s, const struct qm_image *img, struct qmeld_error *err)
{
    /* A raw file that is no multiple of 512 long need not become one (it reads the same). */
    s->raw_len = s->new_size > img->size ? s->new_size : s->file->size;
    if (s->file->blockdev && s->raw_len > s->file->size)
        return qm_file_too_small(s->file, s->raw_len, err);
    return 0;
}

int
qm_seal_begin(const struct qm_seal_config *config, struct qm_seal **out, struct qmeld_error *err)
{
    struct qm_image *img = config->chain->layers[config->target].img;
    struct qm_seal *s = calloc(1, sizeof *s);
    int rc;

    *out = NULL;
    if (!s)
        return qm_fail_nomem(err, "the merge");
    s->img = img;
    s->file = img->file;
    s->new_size = config->new_size;
    s->q = qm_qcow2_of(img);
    s->holder = config->holder ? config->holder : s->q;
    s->orders = config->orders;
    assert(!config->holder || config->new_size == img->size);
    rc = qm_image_make_writable(img, err);
    if (rc == 0)
        rc = s->q ? begin_qcow2(s, config, err) : begin_raw(s, img, err);
    if (rc < 0) {
        qm_seal_abandon(s);
        return -1;
    }
    *out = s;
    return 0;
}

struct qm_bitmaps *
qm_seal_bitmaps(struct qm_seal *s)
{
    return s->bitmaps;
}

int
qm_seal_mark(struct qm_seal *s, guest_off from, uint64_t len, struct qmeld_error *err)
{
    return s->q ? qm_bitmaps_mark(s->bitmaps, from, len, err) : 0;
}

/* ---- batches ---- */

static int
want_raw(const struct qm_want *want, struct qm_moves *moves, struct qmeld_error *err)
{
    const struct qm_move m = {.kind = want->from ? QM_MOVE_COPY : QM_MOVE_ZERO,
                              .guest = want->guest,
                              .len = want->len,
                              .to = qm_host(want->guest.g),
                              .from = want->from,
                              .ext = want->ext,
                              .worth = want->from ? want->len : 0};

    return qm_vec_push(&moves->list, &m) ? 0 : qm_fail_nomem(err, "the list of moves");
}

int
qm_seal_want(struct qm_seal *s, const struct qm_want *want, bool asked, struct qm_moves *moves,
             struct qmeld_error *err)
{
    if (!s->q)
        return want_raw(want, moves, err);
    if (asked && qm_bitmaps_mark(s->bitmaps, want->guest, want->len, err) < 0)
        return -1;
    return qm_edit_want(s->edit, want, moves, err);
}

int
qm_seal_want_end(struct qm_seal *s, struct qm_moves *moves, struct qmeld_error *err)
{
    return s->q ? qm_edit_want_end(s->edit, moves, err) : 0;
}

int
qm_seal_is_bare(struct qm_seal *s, struct qm_moves *moves, bool *out, struct qmeld_error *err)
{
    *out = true;
    return s->q ? qm_edit_is_bare(s->edit, moves, out, err) : 0;
}

size_t
qm_seal_weight(const struct qm_seal *s)
{
    return s->q ? qm_edit_weight(s->edit) : 0;
}

int
qm_seal_prepare(struct qm_seal *s, struct qmeld_error *err)
{
    return s->q ? qm_edit_prepare(s->edit, err) : 0;
}

int
qm_seal_publish(struct qm_seal *s, bool release, struct qmeld_error *err)
{
    if (qm_image_sync(s->img, err) < 0)
        return -1;
    return s->q ? qm_edit_publish(s->edit, release, err) : 0;
}

/* ---- the size ---- */

/* As QEMU's data files are; so that one which is the guest's disk byte for byte stays that. */
static int
grow_data(const struct qm_seal *s, struct qmeld_error *err)
{
    struct qm_file *data = s->img->data;

    if (data == s->file || data->size >= s->new_size)
        return 0;
    return qm_truncate(data, s->new_size, err) < 0 ? -1 : qm_sync(data, err);
}

/* COMMIT POINT: the size grows in one sector.  Everything behind the old end is in place.  Bitmaps
 * have their bits, fit the size, and are in_use no more. */
static int
set_size(struct qm_seal *s, struct qmeld_error *err)
{
    struct qm_bitmaps *bitmaps = s->bitmaps;

    if (grow_data(s, err) < 0)
        return -1;
    s->bitmaps = NULL;
    if (bitmaps)
        return qm_bitmaps_end(bitmaps, err);
    if (s->new_size <= s->q->hdr.size)
        return 0;
    s->q->hdr.size = s->new_size;
    return qm_header_store(s->q, err);
}

static int
set_length(struct qm_seal *s, struct qmeld_error *err)
{
    if (s->file->size < s->raw_len && qm_truncate(s->file, s->raw_len, err) < 0)
        return -1;
    return qm_sync(s->file, err);
}

int
qm_seal_grow(struct qm_seal *s, struct qmeld_error *err)
{
    if (!s->q) {
        if (set_length(s, err) < 0)
            return -1;
        s->img->size = s->new_size;
        return 0;
    }
    if (set_size(s, err) < 0 || qm_qcow2_reload(s->q, err) < 0)
        return -1;
    /* those that are carried have all bits that came by name */
    return qm_bitmaps_begin(s->q, s->refs, s->new_size, NULL, s->orders, &s->bitmaps, err);
}

int
qm_seal_save(struct qm_seal *s, struct qmeld_error *err)
{
    return s->q ? qm_bitmaps_save(s->bitmaps, err) : 0;
}

/* ---- the end ---- */

static int
finish_qcow2(struct qm_seal *s, struct qmeld_error *err)
{
    bool changed;

    if (set_size(s, err) < 0 || qm_refs_commit(s->refs, err) < 0 ||
        qm_refs_trim(s->refs, &changed, err) < 0)
        return -1;
    if (changed && qm_sync(s->file, err) < 0) /* otherwise the commit was the last sync */
        return -1;
    return qm_qcow2_reload(s->holder, err);
}

int
qm_seal_finish(struct qm_seal *s, struct qmeld_error *err)
{
    const int rc = s->q ? finish_qcow2(s, err) : set_length(s, err);

    qm_seal_abandon(s);
    return rc;
}

void
qm_seal_abandon(struct qm_seal *s)
{
    if (!s)
        return;
    qm_bitmaps_abandon(s->bitmaps);
    qm_edit_close(s->edit);
    qm_refs_close(s->refs);
    free(s);
}
