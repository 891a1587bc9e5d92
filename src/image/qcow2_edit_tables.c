/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit_tables.c - L1 and L2 tables of an edited image, and their way to the disk.
 *
 * A batch's new entries are kept as a list, ascending.  An L2 table that exists and is ours alone
 * gets them in place: an entry never crosses a 512-byte sector, so it is never torn.  Entries that
 * lie near each other go in one write with those between them, which stay what they are.
 * A table that does not exist, or that an internal snapshot shares, is written to a new
 * cluster first and becomes live with its L1 entry.  New tables lie side by side and are written so;
 * behind the end the file had they are zeros already, and only the parts that are not are written: a
 * table of scattered clusters is one block of 64 KiB, not all of them.
 *
 * While an internal snapshot is edited, a table that the active view shares with it moves for both.  After the snapshot
 * alone had moved, the old table would have one reference, the active view's, whose COPIED flag would have to appear in the
 * same instant (specification, "L1 table entry"); a check would call what a crash leaves between the two corrupt.
 */
#include "qcow2_edit_int.h"

#include "qcow2_stage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define SLICE_BYTES 4096u
#define RUN_BYTES   (64u << 10) /* of a table that is live: one write at most */
#define NEAR_BYTES  4096u       /* entries no further apart go in one write */
#define TABLE_BYTES (1u << 20)  /* of new tables: one write, but one table at least */
#define BLOCK_BYTES 4096u       /* of a new table: written, or left a hole, as a whole */

/* ---- L1 ---- */

/* Moves the L1 table to where it has room for new_entries, at least one.  The virtual size stays. */
static int
grow_l1(struct qm_edit *e, uint64_t new_entries, struct qmeld_error *err)
{
    struct qcow2_header *hdr = &e->q->hdr;
    const host_off old = qm_host(hdr->l1_off);
    const uint64_t old_bytes = (uint64_t)hdr->l1_entries * sizeof(be64);
    const uint64_t n = qm_div_up(new_entries * sizeof(be64), e->geo->cluster_size);
    QM_FREE be64 *disk = calloc(n, e->geo->cluster_size);
    host_off at;

    if (new_entries * sizeof(be64) > QCOW2_MAX_L1_BYTES)
        return qm_fail(err, QMELD_NOSPACE, qm_in(e->q->img.file->path),
                       "the L1 table cannot grow that far: %" PRIu64
                       " bytes are too large a disk for clusters of %" PRIu64,
                       e->new_size, e->geo->cluster_size);
    if (!disk)
        return qm_fail_nomem(err, "the L1 table");
    for (uint32_t i = 0; i < e->l1_entries; i++)
        be64_put(&disk[i], e->l1[i]);
    if (qm_refs_alloc_adjacent(e->refs, n, &at, err) < 0 ||
        qm_pwrite(e->q->img.file, at.h, disk, n * e->geo->cluster_size, err) < 0 ||
        qm_refs_commit(e->refs, err) < 0)
        return -1;
    hdr->l1_off = at.h;
    hdr->l1_entries = (uint32_t)new_entries;
    /* COMMIT POINT: both L1 fields change in one sector */
    if (qm_header_store(e->q, err) < 0)
        return -1;
    return qm_refs_free(e->refs, old, old_bytes, err);
}

static int
load_l1(struct qm_edit *e, uint64_t want_entries, struct qmeld_error *err)
{
    const uint64_t room = qm_max(want_entries, e->q->hdr.l1_entries);

    e->l1_entries = e->q->hdr.l1_entries;
    e->l1 = calloc(room ? room : 1, sizeof *e->l1);
    if (!e->l1)
        return qm_fail_nomem(err, "the L1 table");
    return qm_qcow2_read_l1(e->q, e->q->hdr.l1_off, 0, e->l1_entries, e->l1, err);
}

static struct qm_edit *
new_edit(struct qm_qcow2 *q, struct qm_refs *refs, uint64_t below_size, uint64_t new_size)
{
    struct qm_edit *e = calloc(1, sizeof *e);

    if (!e)
        return NULL;
    e->q = q;
    e->refs = refs;
    e->geo = &q->geo;
    qm_pack_init(&e->pack, refs, e->geo);
    e->below_size = below_size;
    e->new_size = new_size;
    e->slice_off = UINT64_MAX;
    e->slice = malloc(SLICE_BYTES);
    if (e->slice)
        return e;
    qm_edit_close(e);
    return NULL;
}

int
qm_edit_open(struct qm_qcow2 *q, struct qm_refs *refs, uint64_t below_size, uint64_t new_size,
             struct qm_edit **out, struct qmeld_error *err)
{
    const uint64_t want = qcow2_l1_needed(&q->geo, new_size);
    struct qm_edit *e = new_edit(q, refs, below_size, new_size);

    *out = NULL;
    if (!e)
        return qm_fail_nomem(err, "an edit");
    if (load_l1(e, want, err) < 0 ||
        ((want > e->l1_entries || !qm_stage_may_write(q, q->hdr.l1_off)) &&
         grow_l1(e, qm_max(qm_max(want, e->l1_entries), 1), err) < 0)) {
        qm_edit_close(e);
        return -1;
    }
    e->l1_entries = q->hdr.l1_entries;
    *out = e;
    return 0;
}

/* It is written in place: by nobody but us, whatever refcounts of its tables say. */
static int
check_l1_alone(struct qm_edit *e, struct qmeld_error *err)
{
    const struct qcow2_header *hdr = &e->q->hdr;
    const uint64_t end = hdr->l1_off + (uint64_t)hdr->l1_entries * sizeof(be64);

    for (uint64_t off = hdr->l1_off; off < end; off += e->geo->cluster_size) {
        uint64_t count;

        if (qm_refs_get(e->refs, off >> e->geo->cluster_bits, &count, err) < 0)
            return -1;
        if (count != 1)
            return qm_fail(err, QMELD_CORRUPT, qm_at(e->q->img.file->path, off),
                           "the L1 table of an internal snapshot has a refcount of %" PRIu64
                           ", and must have 1: look at the image with check",
                           count);
    }
    return 0;
}

int
qm_edit_open_snapshot(struct qm_qcow2 *view, struct qm_qcow2 *holder, struct qm_refs *refs,
                      uint64_t below_size, struct qm_edit **out, struct qmeld_error *err)
{
    struct qm_edit *e = new_edit(view, refs, below_size, view->img.size);

    *out = NULL;
    if (!e)
        return qm_fail_nomem(err, "an edit");
    e->holder = holder;
    e->active_entries = holder->hdr.l1_entries;
    e->active = calloc(e->active_entries ? e->active_entries : 1, sizeof *e->active);
    if (!e->active) {
        qm_edit_close(e);
        return qm_fail_nomem(err, "the L1 table");
    }
    assert(!view->stage && qcow2_l1_needed(&view->geo, e->new_size) <= view->hdr.l1_entries);
    if (load_l1(e, 0, err) < 0 || check_l1_alone(e, err) < 0 ||
        qm_qcow2_read_l1(holder, holder->hdr.l1_off, 0, e->active_entries, e->active, err) < 0) {
        qm_edit_close(e);
        return -1;
    }
    *out = e;
    return 0;
}

void
qm_edit_decompress(struct qm_edit *e)
{
    e->decompress = true;
}

void
qm_edit_close(struct qm_edit *e)
{
    if (!e)
        return;
    qm_vec_release(&e->pending);
    qm_vec_release(&e->entries);
    qm_vec_release(&e->slots);
    qm_vec_release(&e->payloads);
    qm_vec_release(&e->moves.list);
    qm_vec_release(&e->tables);
    qm_vec_release(&e->frees);
    free(e->l1);
    free(e->active);
    free(e->slice);
    free(e);
}

/* ---- entries ---- */

static uint64_t
l1_of(const struct qm_edit *e, uint64_t idx)
{
    return idx >> e->geo->l2_bits;
}

/* Offset of the entry inside its table. */
static uint64_t
place_in_l2(const struct qm_edit *e, uint64_t idx)
{
    return (idx & ((1ull << e->geo->l2_bits) - 1)) * e->geo->l2_entry_len;
}

static host_off
l2_of(const struct qm_edit *e, uint64_t l1_idx)
{
    return qm_host(e->l1[l1_idx] & QCOW2_OFFSET_MASK);
}

int
qm_edit_get(struct qm_edit *e, uint64_t idx, uint64_t *out_word0, uint64_t *out_word1,
            bool *out_table, struct qmeld_error *err)
{
    const host_off l2 = l2_of(e, l1_of(e, idx));
    const uint64_t off = l2.h + place_in_l2(e, idx);
    const unsigned char *p;

    *out_word0 = *out_word1 = 0;
    *out_table = l2.h != 0;
    if (!*out_table)
        return 0;
    if (l2.h % e->geo->cluster_size != 0)
        return qm_fail(err, QMELD_CORRUPT, qm_at(e->q->img.file->path, e->q->hdr.l1_off),
                       "L1 entry %" PRIu64 " points at offset %#" PRIx64
                       ", which is no cluster: run `qmeld check --repair=all`",
                       l1_of(e, idx), l2.h);
    if (e->slice_off != qm_align_down(off, SLICE_BYTES)) {
        e->slice_off = UINT64_MAX;
        if (qm_pread_padded(e->q->img.file, qm_align_down(off, SLICE_BYTES), e->slice, SLICE_BYTES,
                            err) < 0)
            return -1;
        e->slice_off = qm_align_down(off, SLICE_BYTES);
    }
    p = e->slice + (off - e->slice_off);
    *out_word0 = be64_get((const be64 *)p);
    if (e->geo->extended_l2)
        *out_word1 = be64_get((const be64 *)p + 1);
    return 0;
}

int
qm_edit_may_leave(struct qm_edit *e, uint64_t idx, host_off host, struct qmeld_error *err)
{
    uint64_t word0, word1, l2;

    if (qm_qcow2_l2_entry(e->holder, idx, &word0, &word1, &l2, err) < 0)
        return -1;
    if (word0 & QCOW2_COMPRESSED || (word0 & QCOW2_OFFSET_MASK) != host.h)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(e->q->img.file->path),
                   "guest offset %#" PRIx64
                   ": an internal snapshot has a part of this cluster, which the "
                   "active view shares, and would need the rest: delete the snapshot first "
                   "(`qemu-img snapshot -d`)",
                   idx << e->geo->cluster_bits);
}

uint64_t
qm_edit_zero_run(const struct qm_edit *e, uint64_t idx, uint64_t end)
{
    uint64_t i = l1_of(e, idx);

    if (idx << e->geo->cluster_bits < e->below_size || e->l1[i] != 0)
        return 0;
    while (i < e->l1_entries && i << e->geo->l2_bits < end && e->l1[i] == 0)
        i++;
    return i << e->geo->l2_bits;
}

int
qm_edit_set(struct qm_edit *e, const struct qm_edit_entry *entry, struct qmeld_error *err)
{
    e->weight += sizeof *entry;
    return qm_vec_push(&e->entries, entry) ? 0 : qm_fail_nomem(err, "new L2 entries");
}

size_t
qm_edit_weight(const struct qm_edit *e)
{
    return e->weight + e->frees.n * sizeof *e->frees.at;
}

static void
put_entry(const struct qm_edit *e, unsigned char *p, const struct qm_edit_entry *x)
{
    be64_put((be64 *)p, x->word0);
    if (e->geo->extended_l2)
        be64_put((be64 *)p + 1, x->word1);
}

/* First entry behind i that belongs to another L2 table. */
static size_t
end_of_table(const struct qm_edit *e, size_t i)
{
    const uint64_t l1_idx = l1_of(e, e->entries.at[i].idx);

    while (i < e->entries.n && l1_of(e, e->entries.at[i].idx) == l1_idx)
        i++;
    return i;
}

/* ---- before the commit point ---- */

/* The active view has some of the tables that a snapshot leaves. */
static int
list_active_tables(struct qm_edit *e, struct qmeld_error *err)
{
    const size_t n = e->tables.n;

    for (size_t i = 0; i < n; i++) {
        struct qm_edit_table t = e->tables.at[i];

        if (t.old.h == 0 || t.l1_idx >= e->active_entries ||
            (e->active[t.l1_idx] & QCOW2_OFFSET_MASK) != t.old.h)
            continue;
        t.of_active = true;
        t.to = t.from;
        if (!qm_vec_push(&e->tables, &t))
            return qm_fail_nomem(err, "new L2 tables");
    }
    return 0;
}

/* Which tables have to be new. */
static int
list_tables(struct qm_edit *e, struct qmeld_error *err)
{
    for (size_t i = 0, end; i < e->entries.n; i = end) {
        struct qm_edit_table t = {.l1_idx = l1_of(e, e->entries.at[i].idx), .from = i};
        uint64_t count = 0;

        t.to = end = end_of_table(e, i);
        t.old = l2_of(e, t.l1_idx);
        if (t.old.h != 0 && qm_refs_get(e->refs, t.old.h >> e->geo->cluster_bits, &count, err) < 0)
            return -1;
        if (count == 1 && qm_stage_may_write(e->q, t.old.h))
            continue;
        if (!qm_vec_push(&e->tables, &t))
            return qm_fail_nomem(err, "new L2 tables");
    }
    return e->holder ? list_active_tables(e, err) : 0;
}

static int
place_tables(struct qm_edit *e, struct qmeld_error *err)
{
    for (size_t i = 0; i < e->tables.n;) {
        host_off at;
        uint64_t n;

        if (qm_refs_alloc(e->refs, e->tables.n - i, &at, &n, err) < 0)
            return -1;
        for (; n > 0; n--, at.h += e->geo->cluster_size)
            e->tables.at[i++].new = at;
    }
    return 0;
}

static int
make_table(const struct qm_edit *e, const struct qm_edit_table *t, unsigned char *out,
           struct qmeld_error *err)
{
    if (t->old.h != 0 && qm_qcow2_read_cluster(e->q, t->old, out, err) < 0)
        return -1;
    for (size_t i = t->from; i < t->to; i++)
        put_entry(e, out + place_in_l2(e, e->entries.at[i].idx), &e->entries.at[i]);
    return 0;
}

/* The blocks that are not zeros, each run in one write. */
static int
write_blocks(struct qm_edit *e, uint64_t off, const unsigned char *buf, uint64_t len,
             struct qmeld_error *err)
{
    static const unsigned char zeros[BLOCK_BYTES];
    uint64_t from = 0, to;

    while (from < len) {
        for (to = from; to < len; to += BLOCK_BYTES)
            if (memcmp(buf + to, zeros, qm_min(BLOCK_BYTES, len - to)) == 0)
                break;
        to = qm_min(to, len);
        if (to > from && qm_pwrite(e->q->img.file, off + from, buf + from, to - from, err) < 0)
            return -1;
        from = to == from ? from + BLOCK_BYTES : to;
    }
    return 0;
}

/* Adjacent new tables [from, to); virgin: the file never had anything there. */
static int
write_tables(struct qm_edit *e, size_t from, size_t to, bool virgin, struct qmeld_error *err)
{
    const uint64_t cs = e->geo->cluster_size, len = (to - from) * cs;
    const uint64_t off = e->tables.at[from].new.h;
    QM_FREE unsigned char *buf = calloc(to - from, cs);

    if (!buf)
        return qm_fail_nomem(err, "new L2 tables");
    for (size_t i = from; i < to; i++)
        if (make_table(e, &e->tables.at[i], buf + (i - from) * cs, err) < 0)
            return -1;
    if (virgin)
        return write_blocks(e, off, buf, len, err);
    return qm_pwrite(e->q->img.file, off, buf, len, err);
}

/* What is behind `end`, the file's, is zeros when it becomes longer. */
static int
write_new_tables(struct qm_edit *e, uint64_t end, struct qmeld_error *err)
{
    const uint64_t cs = e->geo->cluster_size;
    const size_t most = qm_max(TABLE_BYTES / cs, 1);

    for (size_t i = 0, n; i < e->tables.n; i += n) {
        const struct qm_edit_table *t = &e->tables.at[i];
        const bool virgin = t->new.h >= end && !e->q->img.file->blockdev;

        for (n = 1; n < most && i + n < e->tables.n; n++)
            if (t[n].new.h != t[n - 1].new.h + cs || (t[n].new.h >= end) != (t->new.h >= end))
                break;
        if (write_tables(e, i, i + n, virgin, err) < 0)
            return -1;
    }
    return 0;
}

/* A cluster that ends in zeros may never be written to its end; a reader would not mind, but a
 * check calls an entry that points behind the file's end corrupt.  Whoever still copies
 * writes below host_end, so this cannot cut anything off. */
static int
reach(struct qm_edit *e, uint64_t end, struct qmeld_error *err)
{
    return end > e->q->img.file->size ? qm_truncate(e->q->img.file, end, err) : 0;
}

int
qm_edit_prepare(struct qm_edit *e, struct qmeld_error *err)
{
    uint64_t end, tables_end = 0;

    if (reach(e, e->host_end, err) < 0)
        return -1;
    end = e->q->img.file->size;
    if (list_tables(e, err) < 0 || place_tables(e, err) < 0)
        return -1;
    QM_VEC_EACH (t, &e->tables)
        tables_end = qm_max(tables_end, t->new.h + e->geo->cluster_size);
    if (reach(e, tables_end, err) < 0 || write_new_tables(e, end, err) < 0)
        return -1;
    return qm_refs_write(e->refs, err);
}

/* ---- the commit point ---- */

/* How many of the entries [from, to) of one live table go in one write. */
static size_t
count_near(const struct qm_edit *e, size_t from, size_t to)
{
    const uint64_t first = place_in_l2(e, e->entries.at[from].idx);
    uint64_t last = first;
    size_t n = 1;

    for (; from + n < to; n++) {
        const uint64_t next = place_in_l2(e, e->entries.at[from + n].idx);

        if (next - last > NEAR_BYTES || next + e->geo->l2_entry_len - first > RUN_BYTES)
            break;
        last = next;
    }
    return n;
}

/* Entries [from, to) of one live table.  What stands between them is written as it is. */
static int
write_in_place(struct qm_edit *e, host_off l2, size_t from, size_t to, struct qmeld_error *err)
{
    const size_t len = e->geo->l2_entry_len;
    QM_FREE unsigned char *buf = malloc(RUN_BYTES);

    if (!buf)
        return qm_fail_nomem(err, "L2 entries");
    while (from < to) {
        const size_t n = count_near(e, from, to);
        const uint64_t first = place_in_l2(e, e->entries.at[from].idx);
        const uint64_t bytes = place_in_l2(e, e->entries.at[from + n - 1].idx) + len - first;

        assert((l2.h + first) % len == 0); /* S5: no entry in two sectors */
        if (bytes > n * len && qm_pread_padded(e->q->img.file, l2.h + first, buf, bytes, err) < 0)
            return -1;
        for (size_t i = from; i < from + n; i++)
            put_entry(e, buf + (place_in_l2(e, e->entries.at[i].idx) - first), &e->entries.at[i]);
        if (qm_pwrite(e->q->img.file, l2.h + first, buf, bytes, err) < 0)
            return -1;
        from += n;
    }
    return 0;
}

/* The L1 entries of the new tables [i, end), of the table l1 at l1_off; near ones in one write, with those between
 * them. */
static int
write_l1_entries(struct qm_edit *e, size_t i, size_t end, const uint64_t *l1, uint64_t l1_off,
                 struct qmeld_error *err)
{
    const uint64_t near = NEAR_BYTES / sizeof(be64), room = RUN_BYTES / sizeof(be64);
    const struct qm_edit_table *t = e->tables.at;
    QM_FREE be64 *buf = malloc(RUN_BYTES);

    if (!buf)
        return qm_fail_nomem(err, "L1 entries");
    while (i < end) {
        const uint64_t first = t[i].l1_idx;
        uint64_t n = 0;

        do {
            while (first + n < t[i].l1_idx) {
                be64_put(&buf[n], l1[first + n]);
                n++;
            }
            be64_put(&buf[n++], t[i++].new.h | QCOW2_COPIED);
        } while (i < end && t[i].l1_idx - t[i - 1].l1_idx <= near && t[i].l1_idx - first < room);
        if (qm_pwrite(e->q->img.file, l1_off + first * sizeof *buf, buf, n * sizeof *buf, err) < 0)
            return -1;
    }
    return 0;
}

static int
write_all_l1_entries(struct qm_edit *e, struct qmeld_error *err)
{
    size_t n = e->tables.n;

    while (n > 0 && e->tables.at[n - 1].of_active)
        n--;
    if (write_l1_entries(e, 0, n, e->l1, e->q->hdr.l1_off, err) < 0)
        return -1;
    return n < e->tables.n
               ? write_l1_entries(e, n, e->tables.n, e->active, e->holder->hdr.l1_off, err)
               : 0;
}

static int
note_tables(struct qm_edit *e, struct qmeld_error *err)
{
    QM_VEC_EACH (t, &e->tables) {
        const struct qm_edit_free old = {.off = t->old, .len = e->geo->cluster_size};

        (t->of_active ? e->active : e->l1)[t->l1_idx] = t->new.h | QCOW2_COPIED;
        if (t->old.h != 0 && !qm_vec_push(&e->frees, &old))
            return qm_fail_nomem(err, "clusters to free");
    }
    qm_vec_clear(&e->tables);
    return 0;
}

static int
release_frees(struct qm_edit *e, struct qmeld_error *err)
{
    QM_VEC_EACH (f, &e->frees) {
        if (qm_refs_free(e->refs, f->off, f->len, err) < 0)
            return -1;
    }
    qm_vec_clear(&e->frees);
    e->weight = 0;
    return 0;
}

int
qm_edit_publish(struct qm_edit *e, bool release, struct qmeld_error *err)
{
    const bool writes =
        e->entries.n > 0 || e->tables.n > 0; /* otherwise the caller's sync was it */
    size_t t = 0;

    assert(e->host_end <= e->q->img.file->size); /* S2: no entry points behind the file's end */
    if (qm_refs_link(e->refs, err) < 0)
        return -1;
    /* COMMIT POINT of the batch, S1: from here on guest clusters read in the new way, each by
     * itself, by one aligned write of its entry (or of the L1 entry above it). */
    for (size_t i = 0, end; i < e->entries.n; i = end) {
        const uint64_t l1_idx = l1_of(e, e->entries.at[i].idx);

        end = end_of_table(e, i);
        if (t < e->tables.n && e->tables.at[t].l1_idx == l1_idx)
            t++;
        else if (write_in_place(e, l2_of(e, l1_idx), i, end, err) < 0)
            return -1;
    }
    if (write_all_l1_entries(e, err) < 0)
        return -1;
    if ((writes && qm_sync(e->q->img.file, err) < 0) || note_tables(e, err) < 0 ||
        (release && release_frees(e, err) < 0))
        return -1;
    qm_vec_clear(&e->entries);
    e->slice_off = UINT64_MAX;
    qm_image_forget(&e->q->img);
    if (e->holder)
        qm_image_forget(&e->holder->img);
    return 0;
}
