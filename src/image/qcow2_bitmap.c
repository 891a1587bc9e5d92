/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap.c - bitmaps marked in use, and marks on their way to them.
 *
 * Marks are kept apart from the stored bits: begin reads no bits, mark does no I/O, and end ORs
 * the two, cluster by cluster (qcow2_bitmap_store.c).  They are held in pieces that exist only
 * where something was marked; a piece that is marked throughout takes no memory, and where
 * memory would exceed its bound, pieces count as marked throughout: a backup then reads more than
 * it must, never less.
 */
#include "qcow2_bitmap_int.h"

#include "qcow2_stage.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_MARKS_BYTES ((uint64_t)128 << 20)
#define ENTRIES_AT_ONCE ((uint64_t)8192)

/* What is changed in place must belong to the bitmap alone. */
static int
check_alone(const struct qm_bitmaps *b, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    const uint32_t bits = b->q->geo.cluster_bits;

    for (uint64_t c = off >> bits; c <= (off + len - 1) >> bits; c++) {
        uint64_t count;

        if (qm_refs_get(b->refs, c, &count, err) < 0)
            return -1;
        if (count != 1)
            return qm_fail(err, QMELD_CORRUPT, qm_at(b->q->img.file->path, c << bits),
                           "a cluster of the bitmaps has refcount %" PRIu64
                           ": run `qmeld check --repair=all` on the image",
                           count);
    }
    return 0;
}

static int
check_table(const struct qm_bitmaps *b, const struct qm_bitmap *m, struct qmeld_error *err)
{
    QM_FREE uint64_t *some = calloc(ENTRIES_AT_ONCE, sizeof *some);

    if (!some)
        return qm_fail_nomem(err, "a bitmap table");
    if (check_alone(b, m->table.h, m->table_entries * sizeof(be64), err) < 0)
        return -1;
    for (uint64_t i = 0; i < m->table_entries; i += ENTRIES_AT_ONCE) {
        const uint64_t n = qm_min(ENTRIES_AT_ONCE, m->table_entries - i);

        if (qm_bitmap_read_entries(b->q, m, i, n, some, err) < 0)
            return -1;
        for (uint64_t k = 0; k < n; k++)
            if (some[k] > BITMAP_ALL_ONES &&
                check_alone(b, some[k], b->q->geo.cluster_size, err) < 0)
                return -1;
    }
    return 0;
}

/* ---- begin ---- */

/* qemu 7.2, block/qcow2-bitmap.c, qcow2_truncate_bitmaps_check: the same */
int
qm_bitmaps_let_grow(const struct qm_qcow2 *q, uint64_t new_size,
                    const struct qm_bitmap_orders *orders, struct qmeld_error *err)
{
    struct qm_bitmap_list all;
    int rc = 0;

    if (new_size <= q->hdr.size)
        return 0;
    if (qm_bitmap_list_read(q, &all, err) < 0)
        return -1;
    for (size_t i = 0; rc == 0 && i < all.list.n; i++) {
        const struct qm_bitmap_order *o = qm_bitmap_order_of(orders, all.list.at[i].name);

        if ((all.list.at[i].flags & QCOW2_BITMAP_IN_USE) && !(o && o->deed == QM_BITMAP_REMOVE))
            rc = qm_fail(err, QMELD_USAGE, qm_in(q->img.file->path),
                         "it must grow, and its bitmap \"%.100s\" was not closed cleanly and says "
                         "nothing: remove it with `qemu-img bitmap --remove` first",
                         all.list.at[i].name);
    }
    qm_bitmap_list_release(&all);
    return rc;
}

static int
check_growth(const struct qm_bitmaps *b, const struct qm_bitmap *m, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = b->q;

    /* One that is in_use may have a table of any length, and stays as it is (specification,
     * "in_use"; qemu 7.2, block/qcow2-bitmap.c, check_dir_entry).  A new merge does not come here
     * with one; one that was cut short must be able to go on. */
    if (b->new_size == b->old_size || (m->flags & QCOW2_BITMAP_IN_USE))
        return 0;
    if (qm_bitmap_entries(q, m, b->new_size) > QCOW2_MAX_BITMAP_BYTES / q->geo.cluster_size)
        return qm_fail(err, QMELD_USAGE, qm_in(q->img.file->path),
                       "bitmap \"%.100s\" is too fine for a virtual size of %" PRIu64
                       " bytes: remove it with `qemu-img bitmap --remove` first",
                       m->name, b->new_size);
    return 0;
}

static int
track(struct qm_bitmaps *b, size_t idx, uint64_t *pointer_bytes, struct qmeld_error *err)
{
    const struct qm_bitmap *m = &b->list.list.at[idx];
    const struct qm_bitmap_order *o = qm_bitmap_order_of(b->orders, m->name);
    struct tracked t = {
        .n_bits = qm_bitmap_bits(m, b->new_size), .idx = idx, .marks = !o || o->marks};

    t.n_pieces = qm_div_up(t.n_bits, b->piece_bytes * 8);
    *pointer_bytes += t.n_pieces * sizeof *t.pieces;
    if (*pointer_bytes > MAX_POINTER_BYTES)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(b->q->img.file->path),
                       "the enabled bitmaps are too large to be kept up to date: disable or remove "
                       "some with `qemu-img bitmap`");
    t.pieces = calloc(t.n_pieces + 1, sizeof *t.pieces);
    if (!t.pieces || !qm_vec_push(&b->tracked, &t)) {
        free(t.pieces);
        return qm_fail_nomem(err, "bitmaps");
    }
    if (o)
        b->of_order[o - b->orders->list.at] = b->tracked.n - 1;
    return 0;
}

/* The lengths a table can have after a run to new_size that was cut short.  Once the header has the
 * new size, so has the table. */
static bool
fits_a_size(const struct qm_bitmaps *b, const struct qm_bitmap *m)
{
    return m->table_entries == qm_bitmap_entries(b->q, m, b->old_size) ||
           m->table_entries == qm_bitmap_entries(b->q, m, b->new_size);
}

/* Takes bitmaps that an earlier run left in_use as the valid ones they were before it. */
static int
resume(struct qm_bitmaps *b, const struct qm_bitmap_names *trusted, struct qmeld_error *err)
{
    QM_FREE char **names = NULL;
    const size_t n = trusted ? trusted->list.n : 0;

    b->resumed = calloc(b->list.list.n + 1, sizeof *b->resumed);
    names = calloc(n + 1, sizeof *names);
    if (!b->resumed || !names)
        return qm_fail_nomem(err, "bitmaps");
    if (n)
        memcpy(names, trusted->list.at, n * sizeof *names);
    qsort(names, n, sizeof *names, qm_bitmap_by_name);
    for (size_t i = 0; i < b->list.list.n; i++) {
        struct qm_bitmap *m = &b->list.list.at[i];
        const struct qm_bitmap_order *o = qm_bitmap_order_of(b->orders, m->name);
        const bool named = bsearch(&m->name, names, n, sizeof *names, qm_bitmap_by_name);

        if (!(m->flags & QCOW2_BITMAP_IN_USE) || !fits_a_size(b, m) ||
            !(o ? o->deed == QM_BITMAP_CARRY : named))
            continue;
        m->flags &= ~QCOW2_BITMAP_IN_USE;
        b->resumed[i] = b->resumes = true;
    }
    return 0;
}

/* What orders say of a bitmap, before anything is written to it. */
static void
apply_order(const struct qm_bitmaps *b, struct qm_bitmap *m)
{
    const struct qm_bitmap_order *o = qm_bitmap_order_of(b->orders, m->name);

    if (o && o->deed == QM_BITMAP_VOID)
        m->flags |= QCOW2_BITMAP_IN_USE;
    if (!o || o->deed != QM_BITMAP_CARRY)
        return;
    m->flags &= ~QCOW2_BITMAP_AUTO;
    m->flags |= o->enabled ? QCOW2_BITMAP_AUTO : 0;
}

static bool
is_carried(const struct qm_bitmaps *b, const struct qm_bitmap *m)
{
    const struct qm_bitmap_order *o = qm_bitmap_order_of(b->orders, m->name);

    return o && o->deed == QM_BITMAP_CARRY;
}

/* The directory of a staged image gets a new place, for flags and tables change in it. */
static int
move_dir(struct qm_bitmaps *b, struct qmeld_error *err)
{
    struct qcow2_header *h = &b->q->hdr;
    const uint64_t cs = b->q->geo.cluster_size, n = qm_div_up(h->bitmap_dir_len, cs);
    const host_off old = qm_host(h->bitmap_dir_off);
    QM_FREE unsigned char *dir = calloc(n, cs);
    host_off at;

    if (qm_stage_may_write(b->q, old.h))
        return 0;
    if (!dir)
        return qm_fail_nomem(err, "the bitmap directory");
    qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_pread(b->q->img.file, old.h, dir, h->bitmap_dir_len, err) < 0 ||
        qm_refs_alloc_adjacent(b->refs, n, &at, err) < 0 ||
        qm_pwrite(b->q->img.file, at.h, dir, n * cs, err) < 0 || qm_refs_commit(b->refs, err) < 0)
        return -1;
    h->bitmap_dir_off = at.h;
    if (qm_header_store(b->q, err) < 0)
        return -1;
    return qm_refs_free(b->refs, old, h->bitmap_dir_len, err);
}

static int
load(struct qm_bitmaps *b, const struct qm_bitmap_names *trusted, struct qmeld_error *err)
{
    const bool grows = b->new_size != b->old_size;
    uint64_t pointer_bytes = 0;

    if (qm_bitmap_list_read(b->q, &b->list, err) < 0 || resume(b, trusted, err) < 0 ||
        (b->q->hdr.has_bitmaps &&
         check_alone(b, b->q->hdr.bitmap_dir_off, b->q->hdr.bitmap_dir_len, err) < 0))
        return -1;
    for (size_t i = 0; i < b->list.list.n; i++) {
        struct qm_bitmap *m = &b->list.list.at[i];
        bool valid, tracked;

        if (m->extra_len && !(m->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))
            return qm_fail(err, QMELD_UNSUPPORTED, qm_in(b->q->img.file->path),
                           "bitmap \"%.100s\" has extra data: use the program that made it",
                           m->name);
        apply_order(b, m);
        valid = !(m->flags & QCOW2_BITMAP_IN_USE);
        tracked = valid && ((m->flags & QCOW2_BITMAP_AUTO) || is_carried(b, m));
        if (check_growth(b, m, err) < 0)
            return -1;
        if (valid && (tracked || grows || b->resumed[i]) && check_table(b, m, err) < 0)
            return -1;
        if (tracked && track(b, i, &pointer_bytes, err) < 0)
            return -1;
    }
    return 0;
}

static bool
is_tracked(const struct qm_bitmaps *b, size_t idx)
{
    size_t lo = 0, hi = b->tracked.n;

    while (lo < hi) {
        const size_t mid = lo + (hi - lo) / 2;

        if (b->tracked.at[mid].idx == idx)
            return true;
        if (b->tracked.at[mid].idx < idx)
            lo = mid + 1;
        else
            hi = mid;
    }
    return false;
}

/* Four aligned bytes: whatever else the sector holds stays, and no tear can cut them. */
int
qm_bitmap_write_flags(const struct qm_bitmaps *b, const struct qm_bitmap *m, uint32_t flags,
                      struct qmeld_error *err)
{
    be32 raw;

    be32_put(&raw, flags);
    return qm_pwrite(b->q->img.file,
                     b->q->hdr.bitmap_dir_off + m->dir_pos +
                         offsetof(struct qcow2_disk_bitmap, flags),
                     &raw, sizeof raw, err);
}

static int
set_in_use(struct qm_bitmaps *b, struct qmeld_error *err)
{
    bool wrote = false;

    QM_VEC_EACH (t, &b->tracked) {
        struct qm_bitmap *m = &b->list.list.at[t->idx];

        b->in_use = true;
        m->flags |= QCOW2_BITMAP_IN_USE;
    }
    for (size_t i = 0; i < b->list.list.n; i++) {
        const struct qm_bitmap *m = &b->list.list.at[i];
        const struct qm_bitmap_order *o = qm_bitmap_order_of(b->orders, m->name);

        if (!(o && o->deed == QM_BITMAP_VOID) && !is_tracked(b, i))
            continue;
        wrote = true;
        qm_err_disk(err, QMELD_DISK_OPEN); /* the first write that a failed merge leaves behind */
        if (qm_bitmap_write_flags(b, m, m->flags, err) < 0)
            return -1;
    }
    return wrote ? qm_sync(b->q->img.file, err) : 0;
}

static int
open_orders(struct qm_bitmaps *b, struct qmeld_error *err)
{
    const size_t n = b->orders ? b->orders->list.n : 0;

    b->of_order = n ? calloc(n, sizeof *b->of_order) : NULL;
    if (n && !b->of_order)
        return qm_fail_nomem(err, "bitmaps");
    for (size_t i = 0; i < n; i++)
        b->of_order[i] = SIZE_MAX;
    return 0;
}

int
qm_bitmaps_begin(struct qm_qcow2 *q, struct qm_refs *refs, uint64_t new_size,
                 const struct qm_bitmap_names *trusted, const struct qm_bitmap_orders *orders,
                 struct qm_bitmaps **out, struct qmeld_error *err)
{
    struct qm_bitmaps *b;

    *out = NULL;
    if (!q->hdr.has_bitmaps && !(orders && orders->list.n))
        return 0;
    b = calloc(1, sizeof *b);
    if (!b)
        return qm_fail_nomem(err, "bitmaps");
    b->q = q;
    b->refs = refs;
    b->orders = orders;
    b->old_size = q->hdr.size;
    b->new_size = qm_max(new_size, b->old_size);
    b->piece_bytes = qm_bitmap_piece_bytes(q);
    if (open_orders(b, err) < 0 || qm_bitmap_rebuild_dir(b, err) < 0 || load(b, trusted, err) < 0 ||
        move_dir(b, err) < 0 || set_in_use(b, err) < 0) {
        qm_bitmaps_free(b);
        return -1;
    }
    if (b->list.list.n == 0) { /* none was there, or all are removed */
        qm_bitmaps_free(b);
        return 0;
    }
    *out = b;
    return 0;
}

/* If nothing was written to the image, what begin did is undone, as far as the disk lets us. */
void
qm_bitmaps_abandon(struct qm_bitmaps *b)
{
    struct qmeld_error unheard = {0};

    if (!b || !b->in_use || b->marked || (b->orders && b->orders->list.n))
        qm_bitmaps_free(b);
    else if (qm_bitmaps_stop(b, &unheard) < 0)
        return; /* in_use stays: a backup then takes everything */
}

void
qm_bitmaps_forget_marks(struct qm_bitmaps *b)
{
    QM_VEC_EACH (t, &b->tracked) {
        for (uint64_t i = 0; i < t->n_pieces; i++) {
            if (t->pieces[i] != BITMAP_WHOLE)
                free(t->pieces[i]);
            t->pieces[i] = NULL;
        }
    }
    b->marks_bytes = 0;
    b->unsaved = false;
}

void
qm_bitmaps_free(struct qm_bitmaps *b)
{
    if (!b)
        return;
    qm_bitmaps_forget_marks(b);
    QM_VEC_EACH (t, &b->tracked)
        free(t->pieces);
    qm_vec_release(&b->tracked);
    qm_bitmap_list_release(&b->list);
    free(b->resumed);
    free(b->of_order);
    free(b);
}

/* ---- mark
 * -----------------------------------------------------------------------------------------------
 */

static void
set_bits(unsigned char *bytes, uint64_t first, uint64_t end)
{
    for (; first < end && first % 8; first++)
        bytes[first / 8] |= (unsigned char)(1u << first % 8);
    if (end - first >= 8) {
        memset(bytes + first / 8, 0xff, (end - first) / 8);
        first += (end - first) / 8 * 8;
    }
    for (; first < end; first++)
        bytes[first / 8] |= (unsigned char)(1u << first % 8);
}

/* Marks bits [first, end) of a piece; when memory is short, all of it. */
static void
mark_piece(struct qm_bitmaps *b, unsigned char **piece, uint64_t first, uint64_t end)
{
    const bool whole = end - first >= b->piece_bytes * 8;

    if (*piece == BITMAP_WHOLE)
        return;
    if (!whole && !*piece && b->marks_bytes < MAX_MARKS_BYTES) {
        *piece = calloc(1, b->piece_bytes);
        b->marks_bytes += *piece ? b->piece_bytes : 0;
    }
    if (!whole && *piece) {
        set_bits(*piece, first, end);
        return;
    }
    b->marks_bytes -= *piece ? b->piece_bytes : 0;
    free(*piece);
    *piece = BITMAP_WHOLE;
}

static void
mark(struct qm_bitmaps *b, const struct tracked *t, guest_off from, uint64_t len)
{
    const uint32_t g = b->list.list.at[t->idx].granularity_bits;
    const uint64_t per = b->piece_bytes * 8;
    const uint64_t end = ((from.g + len - 1) >> g) + 1;
    uint64_t bit = from.g >> g;

    while (bit < end) {
        const uint64_t piece = bit / per;
        const uint64_t stop = qm_min(end, (piece + 1) * per);

        mark_piece(b, &t->pieces[piece], bit - piece * per, stop - piece * per);
        bit = stop;
    }
}

int
qm_bitmaps_mark(struct qm_bitmaps *b, guest_off from, uint64_t len, struct qmeld_error *err)
{
    (void)err; /* marking cannot fail; storing the marks can */
    if (!b || from.g >= b->new_size || len == 0)
        return 0;
    len = qm_min(len, b->new_size - from.g);
    b->marked = b->unsaved = true;
    QM_VEC_EACH (t, &b->tracked)
        if (t->marks)
            mark(b, t, from, len);
    return 0;
}

bool
qm_bitmaps_find(const struct qm_bitmaps *b, size_t order, size_t *out)
{
    *out = b && b->of_order ? b->of_order[order] : SIZE_MAX;
    return *out != SIZE_MAX;
}

void
qm_bitmaps_mark_in(struct qm_bitmaps *b, size_t bitmap, guest_off from, uint64_t len)
{
    if (from.g >= b->new_size || len == 0)
        return;
    b->marked = b->unsaved = true;
    mark(b, &b->tracked.at[bitmap], from, qm_min(len, b->new_size - from.g));
}
