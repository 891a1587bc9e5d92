/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_refs.c - refcount blocks in memory: looked at, allocated, freed.  Their way to the disk is
 * in qcow2_refs_disk.c.
 *
 * A block that an allocation needs and that does not exist yet is placed in the very range it
 * describes, at the cluster where the allocation began.  So a block is never linked without
 * being counted itself, whichever of several new table entries reach the disk.  Only in front of
 * a long adjacent run do blocks sit together, counted by an earlier one; qm_refs_link
 * then syncs before it links a block that another one counts.
 *
 * The table is held whole (QEMU's limit: 8 MiB).  Blocks are held while they are dirty; clean
 * ones are dropped when they add up to more than CLEAN_BYTES.
 */
#include "qcow2_refs_int.h"

#include "qcow2_stage.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define CLEAN_BYTES (32u << 20)

static const char *
path(const struct qm_refs *r)
{
    return r->q->img.file->path;
}

/* ---- table and blocks ---- */

static int
read_table(struct qm_refs *r, struct qmeld_error *err)
{
    const uint64_t bytes = (uint64_t)r->q->hdr.reftable_clusters << r->q->geo.cluster_bits;
    QM_FREE be64 *disk = malloc(bytes);

    r->n_entries = r->disk_entries = bytes / sizeof(be64);
    r->table = calloc(r->n_entries, sizeof *r->table);
    r->blocks = calloc(r->n_entries, sizeof *r->blocks);
    if (!disk || !r->table || !r->blocks)
        return qm_fail_nomem(err, "the refcount table");
    if (qm_pread_padded(r->q->img.file, r->q->hdr.reftable_off, disk, bytes, err) < 0)
        return -1;
    for (uint64_t i = 0; i < r->n_entries; i++) {
        const uint64_t entry = be64_get(&disk[i]);
        const uint64_t off = entry & ~(uint64_t)511;

        if (off == 0)
            continue;
        if (off % qm_refs_cluster_size(r) != 0 || off > QM_MAX_OFF - qm_refs_cluster_size(r))
            return qm_fail(err, QMELD_CORRUPT,
                           qm_at(path(r), r->q->hdr.reftable_off + i * sizeof(be64)),
                           "refcount table entry %" PRIu64 " points at offset %#" PRIx64
                           ", which is no cluster: run `qmeld check --repair=all` on it",
                           i, off);
        r->table[i] = off;
        r->blocks[i].written = r->blocks[i].linked = true;
    }
    return 0;
}

int
qm_refs_open(struct qm_qcow2 *q, struct qm_refs **out, struct qmeld_error *err)
{
    struct qm_refs *r = calloc(1, sizeof *r);

    *out = NULL;
    if (!r)
        return qm_fail_nomem(err, "refcounts");
    r->q = q;
    r->per_block = 1ull << q->geo.refblock_bits;
    r->old_file_size = q->img.file->size;
    if (q->stage)
        r->floor = r->free_hint = q->stage->floor >> q->geo.cluster_bits;
    if (read_table(r, err) < 0) {
        qm_refs_close(r);
        return -1;
    }
    r->end_hint = r->n_entries * r->per_block;
    *out = r;
    return 0;
}

void
qm_refs_close(struct qm_refs *refs)
{
    if (!refs)
        return;
    for (uint64_t i = 0; refs->blocks && i < refs->n_entries; i++)
        free(refs->blocks[i].data);
    free(refs->blocks);
    free(refs->table);
    qm_vec_release(&refs->freed);
    qm_vec_release(&refs->moved);
    free(refs);
}

static void
drop_clean_blocks(struct qm_refs *r)
{
    for (uint64_t i = 0; i < r->n_entries; i++) {
        if (!r->blocks[i].data || r->blocks[i].dirty)
            continue;
        free(r->blocks[i].data);
        r->blocks[i].data = NULL;
    }
    r->clean_bytes = 0;
}

/* The block that counts `cluster`, loaded; NULL in *out if there is none. */
static int
load_block(struct qm_refs *r, uint64_t cluster, struct block **out, struct qmeld_error *err)
{
    const uint64_t idx = cluster / r->per_block;
    struct block *b;

    *out = NULL;
    if (idx >= r->n_entries || r->table[idx] == 0)
        return 0;
    b = &r->blocks[idx];
    if (!b->data) {
        if (r->clean_bytes > CLEAN_BYTES)
            drop_clean_blocks(r);
        b->data = malloc(qm_refs_cluster_size(r));
        if (!b->data)
            return qm_fail_nomem(err, "a refcount block");
        if (qm_qcow2_read_cluster(r->q, qm_host(r->table[idx]), b->data, err) < 0) {
            free(b->data);
            b->data = NULL;
            return -1;
        }
        r->clean_bytes += qm_refs_cluster_size(r);
    }
    *out = b;
    return 0;
}

static uint64_t
count_in(const struct qm_refs *r, const struct block *b, uint64_t cluster)
{
    return qcow2_refcount_get(b->data, r->q->geo.refcount_order, cluster % r->per_block);
}

static void
set_in(struct qm_refs *r, struct block *b, uint64_t cluster, uint64_t value)
{
    qcow2_refcount_put(b->data, r->q->geo.refcount_order, cluster % r->per_block, value);
    b->dirty = true;
    if (value > 0 && cluster >= r->end_hint)
        r->end_hint = cluster + 1;
}

int
qm_refs_get(struct qm_refs *refs, uint64_t cluster, uint64_t *out, struct qmeld_error *err)
{
    struct block *b;

    if (load_block(refs, cluster, &b, err) < 0)
        return -1;
    *out = b ? count_in(refs, b, cluster) : 0;
    return 0;
}

int
qm_refs_used(struct qm_refs *refs, uint64_t *out, struct qmeld_error *err)
{
    const uint64_t end = qm_div_up(refs->q->img.file->size, qm_refs_cluster_size(refs));
    uint64_t c = 0;

    *out = 0;
    while (c < end) {
        const uint64_t stop = qm_min(end, (c / refs->per_block + 1) * refs->per_block);
        struct block *b;

        if (load_block(refs, c, &b, err) < 0)
            return -1;
        for (; b && c < stop; c++)
            *out += count_in(refs, b, c) != 0;
        c = stop;
    }
    return 0;
}

/* ---- allocating ---- */

int
qm_refs_end_of_used(struct qm_refs *refs, uint64_t from, uint64_t n, uint64_t *out,
                    struct qmeld_error *err)
{
    const uint64_t end = qm_min(from + n, refs->n_entries * refs->per_block);
    uint64_t c = from;

    *out = from;
    while (c < end) {
        const uint64_t stop = qm_min(end, (c / refs->per_block + 1) * refs->per_block);
        struct block *b;

        if (load_block(refs, c, &b, err) < 0)
            return -1;
        for (; b && c < stop; c++)
            if (count_in(refs, b, c) != 0)
                *out = c + 1;
        c = stop;
    }
    return 0;
}

/* More entries in memory, so that entry idx exists; the disk follows in qm_refs_write. */
static int
grow_table(struct qm_refs *r, uint64_t idx, struct qmeld_error *err)
{
    const uint64_t per_cluster = qm_refs_cluster_size(r) / sizeof(be64);
    uint64_t want = idx + 1;
    uint64_t *table;
    struct block *blocks;

    want += want / 2 + per_cluster; /* so that it seldom happens */
    want = qm_div_up(want, per_cluster) * per_cluster;
    want = qm_min(want, QCOW2_MAX_REFTABLE_BYTES / sizeof(be64));
    if (idx >= want)
        return qm_fail(err, QMELD_NOSPACE, qm_in(path(r)),
                       "the refcount table would exceed %u bytes: the image file is too large for "
                       "its cluster size",
                       QCOW2_MAX_REFTABLE_BYTES);
    table = reallocarray(r->table, want, sizeof *table);
    if (!table)
        return qm_fail_nomem(err, "the refcount table");
    r->table = table;
    blocks = reallocarray(r->blocks, want, sizeof *blocks);
    if (!blocks)
        return qm_fail_nomem(err, "the refcount table");
    r->blocks = blocks;
    memset(table + r->n_entries, 0, (want - r->n_entries) * sizeof *table);
    memset(blocks + r->n_entries, 0, (want - r->n_entries) * sizeof *blocks);
    r->n_entries = want;
    return 0;
}

/* Makes the block number idx and puts it at `cluster`, a free one that this or an earlier
 * block counts. */
static int
add_block(struct qm_refs *r, uint64_t idx, uint64_t cluster, struct qmeld_error *err)
{
    struct block *b;

    if (cluster > (QCOW2_OFFSET_MASK >> r->q->geo.cluster_bits))
        return qm_fail(err, QMELD_NOSPACE, qm_in(path(r)),
                       "the image file is full: no qcow2 offset reaches further");
    if (idx >= r->n_entries && grow_table(r, idx, err) < 0)
        return -1;
    b = &r->blocks[idx];
    b->data = calloc(1, qm_refs_cluster_size(r));
    if (!b->data)
        return qm_fail_nomem(err, "a refcount block");
    b->dirty = true;
    r->table[idx] = cluster << r->q->geo.cluster_bits;
    r->new_blocks = true;
    if (load_block(r, cluster, &b, err) < 0)
        return -1;
    set_in(r, b, cluster, 1);
    return 0;
}

/* Block idx of a staged image must move before it changes. */
static bool
is_below(const struct qm_refs *r, uint64_t idx)
{
    return idx < r->n_entries && r->table[idx] != 0 &&
           r->table[idx] >> r->q->geo.cluster_bits < r->floor;
}

/* Block idx goes to `cluster`, a free one that this block, or one that may be changed, counts.  The cluster
 * it leaves is freed when nothing on disk points there any more (free_left). */
static int
move_block(struct qm_refs *r, uint64_t idx, uint64_t cluster, struct qmeld_error *err)
{
    const uint64_t old = r->table[idx] >> r->q->geo.cluster_bits;
    struct block *b;

    if (load_block(r, idx * r->per_block, &b, err) < 0)
        return -1;
    if (!qm_vec_push(&r->moved, &old))
        return qm_fail_nomem(err, "refcount blocks that move");
    r->table[idx] = cluster << r->q->geo.cluster_bits;
    b->dirty = true;
    b->written = b->linked = false;
    r->new_blocks = true;
    if (load_block(r, cluster, &b, err) < 0)
        return -1;
    set_in(r, b, cluster, 1);
    return 0;
}

/* First free cluster at or after `from`; its block may not exist yet. */
static int
next_free(struct qm_refs *r, uint64_t from, uint64_t *out, struct qmeld_error *err)
{
    for (;;) {
        const uint64_t stop = (from / r->per_block + 1) * r->per_block;
        struct block *b;

        if (load_block(r, from, &b, err) < 0)
            return -1;
        if (!b)
            break;
        for (; from < stop; from++) {
            if (count_in(r, b, from) == 0) {
                *out = from;
                return 0;
            }
        }
    }
    *out = from;
    return 0;
}

/* Takes [first, first + n) where all are free and have blocks. */
static int
take(struct qm_refs *r, uint64_t first, uint64_t n, struct qmeld_error *err)
{
    for (uint64_t c = first; c < first + n; c++) {
        struct block *b;

        if (load_block(r, c, &b, err) < 0)
            return -1;
        set_in(r, b, c, 1);
    }
    return 0;
}

int
qm_refs_free_run(struct qm_refs *r, uint64_t first, uint64_t want, uint64_t *out,
                 struct qmeld_error *err)
{
    uint64_t n = 0;

    while (n < want) {
        uint64_t count;
        struct block *b;

        if (load_block(r, first + n, &b, err) < 0)
            return -1;
        if (!b || is_below(r, (first + n) / r->per_block))
            break;
        count = count_in(r, b, first + n);
        if (count != 0)
            break;
        n++;
    }
    *out = n;
    return 0;
}

/* First free cluster from `from` on that has a block that may be changed; the block is added, or moves, to
 * the cluster it begins with if necessary. */
static int
next_countable(struct qm_refs *r, uint64_t from, uint64_t *out, struct qmeld_error *err)
{
    for (;;) {
        struct block *b;

        if (next_free(r, from, &from, err) < 0 || load_block(r, from, &b, err) < 0)
            return -1;
        if (b && !is_below(r, from / r->per_block))
            break;
        if ((b ? move_block(r, from / r->per_block, from, err)
               : add_block(r, from / r->per_block, from, err)) < 0)
            return -1;
    }
    *out = from;
    return 0;
}

/* As load_block, for who lowers a count. */
static int
own_block(struct qm_refs *r, uint64_t cluster, struct block **out, struct qmeld_error *err)
{
    const uint64_t idx = cluster / r->per_block;
    uint64_t to;

    if (is_below(r, idx)) {
        if (next_countable(r, r->free_hint, &to, err) < 0)
            return -1;
        if (is_below(r, idx)) { /* finding a place may have moved this very block */
            r->free_hint = to + 1;
            if (move_block(r, idx, to, err) < 0)
                return -1;
        }
    }
    return load_block(r, cluster, out, err);
}

int
qm_refs_alloc(struct qm_refs *refs, uint64_t want, host_off *out, uint64_t *out_n,
              struct qmeld_error *err)
{
    uint64_t first;

    if (next_countable(refs, refs->free_hint, &first, err) < 0 ||
        qm_refs_free_run(refs, first, want, out_n, err) < 0 || take(refs, first, *out_n, err) < 0)
        return -1;
    refs->free_hint = first + *out_n;
    *out = qm_host(first << refs->q->geo.cluster_bits);
    return 0;
}

int
qm_refs_alloc_at(struct qm_refs *refs, uint64_t cluster, bool *out, struct qmeld_error *err)
{
    uint64_t n;

    *out = false;
    if (cluster < refs->floor || qm_refs_free_run(refs, cluster, 1, &n, err) < 0)
        return cluster < refs->floor ? 0 : -1;
    if (n == 0)
        return 0;
    *out = true;
    if (refs->free_hint == cluster)
        refs->free_hint++;
    return take(refs, cluster, 1, err);
}

int
qm_refs_end(struct qm_refs *refs, uint64_t *out, struct qmeld_error *err)
{
    uint64_t c = qm_min(refs->end_hint, refs->n_entries * refs->per_block);

    while (c > 0) {
        struct block *b;

        if (load_block(refs, c - 1, &b, err) < 0)
            return -1;
        if (!b) {
            c = (c - 1) / refs->per_block * refs->per_block;
            continue;
        }
        if (count_in(refs, b, c - 1) != 0)
            break;
        c--;
    }
    refs->end_hint = c;
    *out = c << refs->q->geo.cluster_bits;
    return 0;
}

/* How many blocks are missing for the clusters [first, first + n). */
static uint64_t
missing_blocks(const struct qm_refs *r, uint64_t first, uint64_t n)
{
    uint64_t missing = 0;

    for (uint64_t i = first / r->per_block; i <= (first + n - 1) / r->per_block; i++)
        missing += i >= r->n_entries || r->table[i] == 0 || is_below(r, i);
    return missing;
}

/* At the end of the image: the blocks that are missing for the run, then the run. */
int
qm_refs_alloc_adjacent(struct qm_refs *refs, uint64_t n, host_off *out, struct qmeld_error *err)
{
    uint64_t first, end, blocks = 0;

    if (qm_refs_end(refs, &end, err) < 0 ||
        next_countable(refs, qm_max(refs->floor, end >> refs->q->geo.cluster_bits), &first, err) <
            0)
        return -1;
    while (missing_blocks(refs, first, blocks + n) > blocks)
        blocks = missing_blocks(refs, first, blocks + n);
    end = first + blocks + n;
    for (uint64_t i = first / refs->per_block; i <= (end - 1) / refs->per_block; i++) {
        const bool there = i < refs->n_entries && refs->table[i] != 0;

        if (there && !is_below(refs, i))
            continue;
        if ((there ? move_block(refs, i, first, err) : add_block(refs, i, first, err)) < 0)
            return -1;
        first++;
    }
    first = end - n;
    *out = qm_host(first << refs->q->geo.cluster_bits);
    return take(refs, first, n, err);
}

int
qm_refs_raise(struct qm_refs *refs, uint64_t cluster, struct qmeld_error *err)
{
    struct block *b;
    uint64_t count;

    if (qm_refs_get(refs, cluster, &count, err) < 0)
        return -1;
    assert(count > 0);
    if (count >= qcow2_refcount_max(refs->q->geo.refcount_order))
        return qm_fail(
            err, QMELD_NOSPACE, qm_at(path(refs), cluster << refs->q->geo.cluster_bits),
            "a refcount of %u bits cannot count another reference: flatten the image into "
            "a new one, whose refcounts have 16",
            1u << refs->q->geo.refcount_order);
    if (own_block(refs, cluster, &b, err) < 0)
        return -1;
    set_in(refs, b, cluster, count + 1);
    return 0;
}

/* ---- freeing ---- */

static int
note_freed(struct qm_refs *r, uint64_t cluster, struct qmeld_error *err)
{
    const struct run one = {cluster, 1};

    if (cluster < r->floor) /* the old header needs it */
        return 0;
    if (cluster < r->free_hint)
        r->free_hint = cluster;
    if (r->freed.n > 0 && qm_vec_last(&r->freed)->first + qm_vec_last(&r->freed)->n == cluster) {
        qm_vec_last(&r->freed)->n++;
        return 0;
    }
    return qm_vec_push(&r->freed, &one) ? 0 : qm_fail_nomem(err, "freed clusters");
}

int
qm_refs_lower(struct qm_refs *refs, uint64_t cluster, uint64_t to, struct qmeld_error *err)
{
    struct block *b;
    uint64_t count;

    if (qm_refs_get(refs, cluster, &count, err) < 0)
        return -1;
    if (count <= to)
        return 0;
    if (own_block(refs, cluster, &b, err) < 0)
        return -1;
    set_in(refs, b, cluster, to);
    return to == 0 ? note_freed(refs, cluster, err) : 0;
}

int
qm_refs_free(struct qm_refs *refs, host_off off, uint64_t len, struct qmeld_error *err)
{
    const uint32_t bits = refs->q->geo.cluster_bits;

    if (len == 0)
        return 0;
    for (uint64_t c = off.h >> bits; c <= (off.h + len - 1) >> bits; c++) {
        struct block *b;
        uint64_t count;

        if (own_block(refs, c, &b, err) < 0)
            return -1;
        count = b ? count_in(refs, b, c) : 0;
        if (count == 0)
            return qm_fail(err, QMELD_CORRUPT, qm_at(path(refs), c << bits),
                           "refcount of a cluster in use is 0: run `qmeld check --repair=all`");
        set_in(refs, b, c, count - 1);
        if (count == 1 && note_freed(refs, c, err) < 0)
            return -1;
    }
    return 0;
}
