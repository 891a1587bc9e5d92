/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_store.c - marks become stored bits, and bitmaps follow the image's size.
 *
 * QEMU writes a new table and a new directory for that.  Here bits, table entries and directory
 * are changed in place, so that the header need not name a new directory (its place may lie
 * outside sector 0, where no write could change it together with the virtual size).  Enabled
 * bitmaps are in_use by now: their bits mean nothing until the end.  Bitmaps that are not in_use
 * are changed only where that means nothing to a reader:
 *   - bits behind the bitmap's end, which must be 0 before the image grows past them;
 *   - a cluster that is "all ones" by its table entry, and becomes one of ones up to the old end.
 *
 * Steps; between any two of them the file is durable
 *   1 bits in place or into new clusters, whole new tables, refcounts
 *   2 table entries in place (8 aligned bytes each: the old or the new cluster)
 *   3 disabled bitmaps whose table changes length: in_use on
 *   4 new tables: offsets
 *   5 new tables: lengths (offset and length of an entry may lie in two sectors; the new table
 *     with the old length is a table, the old one with the new length might not be)
 *   6 virtual size in the header (bitmaps in_use may have tables of any length)
 *   7 in_use off
 *   8 old tables are freed
 * Without growth only 1, 2 and 7 do anything.  A crash before 2 leaves clusters that nothing
 * points at, between 3 and 7 bitmaps that a backup tool sees as inconsistent, never wrong bits.
 *
 * A save is 1 and 2 in between: enabled bitmaps are in_use then, and their bits only become more.
 *
 * A resumed run (qcow2_bitmap.h) finds one of these, each bitmap for itself:
 *   before 5   the old or the new table, with the old length: both hold at least the old bits,
 *              and nothing more up to the old end than marks.  Bits behind that end are cleared
 *              in memory and marked anew; a new table is made once more
 *   5 to 6     the new table with the new length, its bits as before: changed in place
 *   after 6    the size is new: nothing to grow, all bits are there, in_use is to be taken off
 * What the interrupted run allocated and no table names is leaked.
 *
 * In a staged image (qcow2_stage.h) what lies below the floor is replaced instead: the directory at the
 * beginning, clusters of bits and, with them, tables here.
 */
#include "qcow2_bitmap_int.h"

#include "qcow2_stage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A table entry to change in place. */
struct change {
    uint64_t at; /* in the file */
    uint64_t value;
};

/* A table that was moved. */
struct moved {
    size_t idx; /* in the list */
    host_off old_table;
    uint32_t old_entries;
    bool was_valid; /* not in_use before */
};

struct store {
    struct qm_bitmaps *b;
    uint64_t cs;
    bool grows;
    unsigned char *bits; /* one cluster of bits, and as it was */
    unsigned char *before;
    QM_VEC(struct change) changes;
    QM_VEC(struct moved) moved;
    QM_VEC(uint64_t) replaced; /* offsets of clusters of bits that a staged image wrote elsewhere */
};

/* ---- step 1: bits ---- */

/* Clears bits from `end` on in a cluster whose first bit is number `first` of the bitmap. */
static void
clear_from(const struct store *s, uint64_t first, uint64_t end)
{
    const uint64_t per = s->cs * 8;
    uint64_t bit;

    if (end >= first + per)
        return;
    bit = end > first ? end - first : 0;
    if (bit % 8) {
        s->bits[bit / 8] &= (unsigned char)((1u << bit % 8) - 1);
        bit = qm_align_up(bit, 8);
    }
    memset(s->bits + bit / 8, 0, s->cs - bit / 8);
}

/* ORs the marks of table entry i into s->bits; false: there are none. */
static bool
merge_marks(const struct store *s, const struct tracked *t, uint64_t i)
{
    const uint64_t bytes = s->b->piece_bytes;
    const uint64_t per = s->cs / bytes;
    bool any = false;

    for (uint64_t k = 0; t && k < per && i * per + k < t->n_pieces; k++) {
        const unsigned char *piece = t->pieces[i * per + k];
        unsigned char *to = s->bits + k * bytes;

        if (!piece)
            continue;
        any = true;
        if (piece == BITMAP_WHOLE) {
            memset(to, 0xff, bytes);
            continue;
        }
        for (uint64_t n = 0; n < bytes; n++)
            to[n] |= piece[n];
    }
    return any;
}

static bool
has_marks(const struct store *s, const struct tracked *t, uint64_t i)
{
    const uint64_t per = s->cs / s->b->piece_bytes;

    for (uint64_t k = 0; t && k < per && i * per + k < t->n_pieces; k++)
        if (t->pieces[i * per + k])
            return true;
    return false;
}

/* Loads the bits that entry i stands for, old end observed, into s->bits and s->before. */
static int
load_bits(struct store *s, const struct qm_bitmap *m, uint64_t entry, uint64_t i,
          struct qmeld_error *err)
{
    if (entry <= BITMAP_ALL_ONES)
        memset(s->bits, entry == BITMAP_ALL_ONES ? 0xff : 0, s->cs);
    else if (qm_qcow2_read_cluster(s->b->q, qm_host(entry), s->bits, err) < 0)
        return -1;
    memcpy(s->before, s->bits, s->cs);
    if (s->grows)
        clear_from(s, i * s->cs * 8, qm_bitmap_bits(m, s->b->old_size));
    return 0;
}

/* Brings entry i of a table up to date; a new cluster's offset goes to table[i]. */
static int
store_entry(struct store *s, const struct qm_bitmap *m, const struct tracked *t, uint64_t *table,
            uint64_t i, struct qmeld_error *err)
{
    const uint64_t old_bits = qm_bitmap_bits(m, s->b->old_size);
    const uint64_t per = s->cs * 8;
    const bool tail = s->grows && old_bits > i * per && old_bits < (i + 1) * per;
    const bool stays = table[i] > BITMAP_ALL_ONES && qm_stage_may_write(s->b->q, table[i]);
    host_off at = qm_host(table[i]);
    uint64_t n;

    if (!has_marks(s, t, i) && !(tail && table[i]))
        return 0;
    if (load_bits(s, m, table[i], i, err) < 0)
        return -1;
    if (merge_marks(s, t, i)) /* whole pieces may reach behind the end */
        clear_from(s, i * per, t->n_bits);
    if (memcmp(s->bits, s->before, s->cs) == 0)
        return 0;
    if (!stays && table[i] > BITMAP_ALL_ONES && !qm_vec_push(&s->replaced, &table[i]))
        return qm_fail_nomem(err, "clusters of bits");
    if (!stays && qm_refs_alloc(s->b->refs, 1, &at, &n, err) < 0)
        return -1;
    table[i] = at.h;
    return qm_pwrite(s->b->q->img.file, at.h, s->bits, s->cs, err);
}

/* Notes the entries that differ from what is on disk. */
static int
note_changes(struct store *s, const struct qm_bitmap *m, const uint64_t *old, const uint64_t *table,
             struct qmeld_error *err)
{
    for (uint64_t i = 0; i < m->table_entries; i++) {
        const struct change c = {m->table.h + i * sizeof(be64), table[i]};

        if (table[i] != old[i] && !qm_vec_push(&s->changes, &c))
            return qm_fail_nomem(err, "changes of a bitmap table");
    }
    return 0;
}

/* Writes a table of another length to new clusters. */
static int
move_table(struct store *s, size_t idx, const uint64_t *table, uint64_t n, struct qmeld_error *err)
{
    struct qm_bitmap *m = &s->b->list.list.at[idx];
    const uint64_t clusters = qm_div_up(n * sizeof(be64), s->cs);
    const struct moved moved = {idx, m->table, m->table_entries, !(m->flags & QCOW2_BITMAP_IN_USE)};
    QM_FREE be64 *disk = calloc(clusters, s->cs);
    host_off at;

    if (!disk || !qm_vec_push(&s->moved, &moved))
        return qm_fail_nomem(err, "a bitmap table");
    for (uint64_t i = 0; i < n; i++)
        be64_put(&disk[i], table[i]);
    if (qm_refs_alloc_adjacent(s->b->refs, clusters, &at, err) < 0)
        return -1;
    m->table = at;
    m->table_entries = (uint32_t)n;
    return qm_pwrite(s->b->q->img.file, at.h, disk, clusters * s->cs, err);
}

static int
store_bitmap(struct store *s, size_t idx, const struct tracked *t, struct qmeld_error *err)
{
    const struct qm_bitmap *m = &s->b->list.list.at[idx];
    const uint64_t n = qm_bitmap_entries(s->b->q, m, s->b->new_size);
    QM_FREE uint64_t *table = calloc(qm_max(n, m->table_entries), sizeof *table);
    QM_FREE uint64_t *old = calloc(m->table_entries, sizeof *old);

    assert(n >= m->table_entries);
    if (!table || !old)
        return qm_fail_nomem(err, "a bitmap table");
    if (qm_bitmap_read_table(s->b->q, m, old, err) < 0)
        return -1;
    memcpy(table, old, m->table_entries * sizeof *table);
    for (uint64_t i = 0; i < n; i++)
        if (store_entry(s, m, t, table, i, err) < 0)
            return -1;
    if (n != m->table_entries || (n > 0 && !qm_stage_may_write(s->b->q, m->table.h)))
        return move_table(s, idx, table, n, err);
    return note_changes(s, m, old, table, err);
}

static int
store_all(struct store *s, struct qmeld_error *err)
{
    const struct tracked *t = s->b->tracked.at;
    const struct tracked *end = t + s->b->tracked.n;

    for (size_t i = 0; i < s->b->list.list.n; i++) {
        const bool tracked = t < end && t->idx == i;
        const bool valid = !(s->b->list.list.at[i].flags & QCOW2_BITMAP_IN_USE);

        if ((tracked || (valid && s->grows)) && store_bitmap(s, i, tracked ? t : NULL, err) < 0)
            return -1;
        t += tracked;
    }
    return qm_refs_commit(s->b->refs, err);
}

/* ---- steps 2 to 8 ---- */

static int
link_entries(struct store *s, struct qmeld_error *err)
{
    QM_VEC_EACH (c, &s->changes) {
        be64 raw;

        be64_put(&raw, c->value);
        if (qm_pwrite(s->b->q->img.file, c->at, &raw, sizeof raw, err) < 0)
            return -1;
    }
    return s->changes.n ? qm_sync(s->b->q->img.file, err) : 0;
}

static int
link_tables(struct store *s, struct qmeld_error *err)
{
    struct qm_file *file = s->b->q->img.file;
    const uint64_t dir = s->b->q->hdr.bitmap_dir_off;

    if (!s->moved.n)
        return 0;
    QM_VEC_EACH (v, &s->moved) {
        const struct qm_bitmap *m = &s->b->list.list.at[v->idx];

        if (v->was_valid && qm_bitmap_write_flags(s->b, m, m->flags | QCOW2_BITMAP_IN_USE, err) < 0)
            return -1;
    }
    if (qm_sync(file, err) < 0)
        return -1;
    QM_VEC_EACH (v, &s->moved) {
        const struct qm_bitmap *m = &s->b->list.list.at[v->idx];
        be64 off;

        be64_put(&off, m->table.h);
        if (qm_pwrite(file, dir + m->dir_pos + offsetof(struct qcow2_disk_bitmap, table_off), &off,
                      sizeof off, err) < 0)
            return -1;
    }
    if (qm_sync(file, err) < 0)
        return -1;
    QM_VEC_EACH (v, &s->moved) {
        const struct qm_bitmap *m = &s->b->list.list.at[v->idx];
        be32 n;

        be32_put(&n, m->table_entries);
        if (qm_pwrite(file, dir + m->dir_pos + offsetof(struct qcow2_disk_bitmap, table_entries),
                      &n, sizeof n, err) < 0)
            return -1;
    }
    return qm_sync(file, err);
}

static int
store_size(struct store *s, struct qmeld_error *err)
{
    struct qm_qcow2 *q = s->b->q;

    if (!s->grows)
        return 0;
    assert(qcow2_l1_needed(&q->geo, s->b->new_size) <= q->hdr.l1_entries);
    q->hdr.size = s->b->new_size;
    if (qm_header_store(q, err) < 0) /* COMMIT POINT: the image has its new size */
        return -1;
    return qm_qcow2_reload(q, err);
}

/* COMMIT POINT: the bitmaps are what they claim to be. */
static int
clear_in_use(struct store *s, struct qmeld_error *err)
{
    const struct qm_bitmaps *b = s->b;

    QM_VEC_EACH (t, &b->tracked) {
        const struct qm_bitmap *m = &b->list.list.at[t->idx];

        if (qm_bitmap_write_flags(b, m, m->flags & ~QCOW2_BITMAP_IN_USE, err) < 0)
            return -1;
    }
    QM_VEC_EACH (v, &s->moved) {
        const struct qm_bitmap *m = &b->list.list.at[v->idx];

        if (v->was_valid && qm_bitmap_write_flags(b, m, m->flags, err) < 0)
            return -1;
    }
    for (size_t i = 0; i < b->list.list.n; i++) { /* disabled ones that need not move any more */
        const struct qm_bitmap *m = &b->list.list.at[i];

        if (b->resumed[i] && qm_bitmap_write_flags(b, m, m->flags & ~QCOW2_BITMAP_IN_USE, err) < 0)
            return -1;
    }
    return b->tracked.n || s->moved.n || b->resumes ? qm_sync(b->q->img.file, err) : 0;
}

static int
free_tables(struct store *s, struct qmeld_error *err)
{
    QM_VEC_EACH (v, &s->moved) {
        if (qm_refs_free(s->b->refs, v->old_table, v->old_entries * sizeof(be64), err) < 0)
            return -1;
    }
    QM_VEC_EACH (off, &s->replaced) {
        if (qm_refs_free(s->b->refs, qm_host(*off), s->cs, err) < 0)
            return -1;
    }
    return s->moved.n || s->replaced.n ? qm_refs_commit(s->b->refs, err) : 0;
}

static int
open_store(struct store *s, struct qm_bitmaps *b, struct qmeld_error *err)
{
    *s = (struct store){.b = b, .cs = b->q->geo.cluster_size, .grows = b->new_size > b->old_size};
    s->bits = malloc(s->cs);
    s->before = malloc(s->cs);
    return s->bits && s->before ? 0 : qm_fail_nomem(err, "a cluster of bits");
}

static void
close_store(struct store *s)
{
    free(s->bits);
    free(s->before);
    qm_vec_release(&s->changes);
    qm_vec_release(&s->moved);
    qm_vec_release(&s->replaced);
}

int
qm_bitmaps_save(struct qm_bitmaps *b, struct qmeld_error *err)
{
    struct store s;
    int rc = -1;

    if (!b || !b->unsaved)
        return 0;
    assert(b->new_size == b->old_size);
    if (open_store(&s, b, err) == 0 && store_all(&s, err) == 0 && link_entries(&s, err) == 0)
        rc = free_tables(&s, err);
    close_store(&s);
    if (rc == 0)
        qm_bitmaps_forget_marks(b);
    return rc;
}

int
qm_bitmaps_end(struct qm_bitmaps *b, struct qmeld_error *err)
{
    struct store s;
    int rc = -1;

    if (!b)
        return 0;
    if (open_store(&s, b, err) == 0 && store_all(&s, err) == 0 && link_entries(&s, err) == 0 &&
        link_tables(&s, err) == 0 && store_size(&s, err) == 0 && clear_in_use(&s, err) == 0)
        rc = free_tables(&s, err);
    close_store(&s);
    qm_bitmaps_free(b);
    return rc;
}

int
qm_bitmaps_stop(struct qm_bitmaps *b, struct qmeld_error *err)
{
    if (!b)
        return 0;
    if (b->resumes) {
        qm_bitmaps_free(b);
        return 0;
    }
    b->new_size = b->old_size;
    QM_VEC_EACH (t, &b->tracked)
        t->n_bits = qm_bitmap_bits(&b->list.list.at[t->idx], b->old_size);
    return qm_bitmaps_end(b, err);
}
