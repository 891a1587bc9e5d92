/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_refs_disk.c - staged refcounts on their way to the disk, and space on its way back.
 */
#include "qcow2_refs_int.h"

#include "qcow2_stage.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define WRITE_BYTES   (1u << 20) /* of blocks: one write, but one block at least */
#define WRITE_ENTRIES 512u       /* of the table, likewise */

/* ---- to the disk ---- */

static uint64_t
clusters_of_table(const struct qm_refs *r)
{
    return qm_div_up(r->n_entries * sizeof(be64), qm_refs_cluster_size(r));
}

static int
write_new_table(struct qm_refs *r, struct qmeld_error *err)
{
    const uint64_t bytes = r->new_table.n << r->q->geo.cluster_bits;
    QM_FREE be64 *disk = calloc(1, bytes);

    if (!disk)
        return qm_fail_nomem(err, "the refcount table");
    for (uint64_t i = 0; i < r->n_entries; i++)
        be64_put(&disk[i], r->table[i]);
    return qm_pwrite(r->q->img.file, r->new_table.first << r->q->geo.cluster_bits, disk, bytes,
                     err);
}

/* A place for the grown table.  Taking it may add blocks and so grow it once more. */
static int
place_table(struct qm_refs *r, struct qmeld_error *err)
{
    while (r->new_table.n < clusters_of_table(r)) {
        const uint64_t n = clusters_of_table(r);
        host_off at;

        if (r->new_table.n > 0 &&
            qm_refs_free(r, qm_host(r->new_table.first << r->q->geo.cluster_bits),
                         r->new_table.n << r->q->geo.cluster_bits, err) < 0)
            return -1;
        r->new_table.n = 0;
        if (qm_refs_alloc_adjacent(r, n, &at, err) < 0)
            return -1;
        r->new_table = (struct run){at.h >> r->q->geo.cluster_bits, n};
    }
    return 0;
}

/* Block i if it is dirty, and what lies behind it in the file and in the table; *out_n: how many. */
static int
write_blocks(struct qm_refs *r, uint64_t i, uint64_t *out_n, struct qmeld_error *err)
{
    const uint64_t cs = qm_refs_cluster_size(r), most = qm_max(WRITE_BYTES / cs, 1);
    QM_FREE unsigned char *buf = NULL;
    uint64_t n = 1;

    *out_n = 1;
    if (!r->blocks[i].dirty)
        return 0;
    while (n < most && i + n < r->n_entries && r->blocks[i + n].dirty &&
           r->table[i + n] == r->table[i] + n * cs)
        n++;
    if (n > 1 && !(buf = malloc(n * cs)))
        return qm_fail_nomem(err, "refcount blocks");
    for (uint64_t k = 0; n > 1 && k < n; k++)
        memcpy(buf + k * cs, r->blocks[i + k].data, cs);
    if (qm_pwrite(r->q->img.file, r->table[i], n > 1 ? buf : r->blocks[i].data, n * cs, err) < 0)
        return -1;
    for (uint64_t k = i; k < i + n; k++) {
        r->blocks[k].dirty = false;
        r->blocks[k].written = true;
    }
    r->clean_bytes += n * cs;
    *out_n = n;
    return 0;
}

int
qm_refs_write(struct qm_refs *refs, struct qmeld_error *err)
{
    const bool below = refs->q->hdr.reftable_off >> refs->q->geo.cluster_bits < refs->floor;

    if ((below || refs->n_entries > refs->disk_entries) && place_table(refs, err) < 0)
        return -1;
    for (uint64_t i = 0, n; i < refs->n_entries; i += n)
        if (write_blocks(refs, i, &n, err) < 0)
            return -1;
    refs->n_left = refs->moved.n;
    return refs->new_table.n > 0 ? write_new_table(refs, err) : 0;
}

/* COMMIT POINT: the header points at the grown table, in one sector (qm_header_store). */
static int
link_table(struct qm_refs *r, struct qmeld_error *err)
{
    const host_off old = qm_host(r->q->hdr.reftable_off);
    const uint64_t old_len = (uint64_t)r->q->hdr.reftable_clusters << r->q->geo.cluster_bits;

    r->q->hdr.reftable_off = r->new_table.first << r->q->geo.cluster_bits;
    r->q->hdr.reftable_clusters = (uint32_t)r->new_table.n;
    if (qm_header_store(r->q, err) < 0)
        return -1;
    r->disk_entries = (r->new_table.n << r->q->geo.cluster_bits) / sizeof(be64);
    r->new_table.n = 0;
    return qm_refs_free(r, old, old_len, err);
}

static bool
is_to_link(const struct qm_refs *r, uint64_t i)
{
    return r->table[i] != 0 && !r->blocks[i].linked && r->blocks[i].written;
}

static bool
counts_itself(const struct qm_refs *r, uint64_t i)
{
    return (r->table[i] >> r->q->geo.cluster_bits) / r->per_block == i;
}

/* Entries of the table that is in use, each an aligned eight bytes: never torn.  Neighbours that all
 * count themselves go in one write. */
static int
link_entries(struct qm_refs *r, struct qmeld_error *err)
{
    be64 entries[WRITE_ENTRIES];

    for (uint64_t i = 0, n; i < r->n_entries; i += n) {
        n = 1;
        if (!is_to_link(r, i))
            continue;
        if (!counts_itself(r, i) && qm_sync(r->q->img.file, err) < 0)
            return -1;
        be64_put(&entries[0], r->table[i]);
        for (; n < WRITE_ENTRIES && i + n < r->n_entries && is_to_link(r, i + n) &&
               counts_itself(r, i + n);
             n++)
            be64_put(&entries[n], r->table[i + n]);
        if (qm_pwrite(r->q->img.file, r->q->hdr.reftable_off + i * sizeof *entries, entries,
                      n * sizeof *entries, err) < 0)
            return -1;
    }
    return qm_sync(r->q->img.file, err);
}

/* The clusters that blocks have left: nothing durable points there any more.  Freeing them may make more
 * blocks move, whose turn is the next. */
static int
free_left(struct qm_refs *r, struct qmeld_error *err)
{
    const size_t n = r->n_left;

    r->n_left = 0;
    for (size_t i = 0; i < n; i++)
        if (qm_refs_free(r, qm_host(r->moved.at[i] << r->q->geo.cluster_bits),
                         qm_refs_cluster_size(r), err) < 0)
            return -1;
    if (n > 0)
        memmove(r->moved.at, r->moved.at + n, (r->moved.n - n) * sizeof *r->moved.at);
    r->moved.n -= n;
    return 0;
}

int
qm_refs_link(struct qm_refs *refs, struct qmeld_error *err)
{
    if (!refs->new_blocks && refs->new_table.n == 0)
        return 0;
    if ((refs->new_table.n > 0 ? link_table(refs, err) : link_entries(refs, err)) < 0)
        return -1;
    refs->new_blocks = false;
    for (uint64_t i = 0; i < refs->n_entries; i++) {
        struct block *b = &refs->blocks[i];

        b->linked = b->linked || b->written;
        refs->new_blocks = refs->new_blocks || (refs->table[i] != 0 && !b->linked);
    }
    return free_left(refs, err);
}

static bool
is_dirty(const struct qm_refs *r)
{
    for (uint64_t i = 0; i < r->n_entries; i++)
        if (r->blocks[i].dirty)
            return true;
    return false;
}

int
qm_refs_commit(struct qm_refs *refs, struct qmeld_error *err)
{
    do {
        if (qm_refs_write(refs, err) < 0 || qm_sync(refs->q->img.file, err) < 0 ||
            qm_refs_link(refs, err) < 0)
            return -1;
    } while (refs->floor && is_dirty(refs)); /* each block moves once, so this ends */
    return 0;
}

/* ---- giving space back ---- */

static int
by_first(const void *a, const void *b)
{
    const struct run *x = a, *y = b;

    return x->first < y->first ? -1 : x->first > y->first;
}

/* Discards what is still free of one freed run. */
static int
discard_run(struct qm_refs *r, const struct run *run, struct qmeld_error *err)
{
    const uint32_t bits = r->q->geo.cluster_bits;
    uint64_t c = run->first;

    while (c < run->first + run->n) {
        uint64_t n = 0;

        if (qm_refs_free_run(r, c, run->first + run->n - c, &n, err) < 0)
            return -1;
        if (n > 0 && qm_discard(r->q->img.file, c << bits, n << bits, err) < 0)
            return -1;
        c += n + 1;
    }
    return 0;
}

int
qm_refs_discard(struct qm_refs *refs, struct qmeld_error *err)
{
    size_t n = 0;

    if (refs->freed.n > 0)
        qsort(refs->freed.at, refs->freed.n, sizeof *refs->freed.at, by_first);
    QM_VEC_EACH (run, &refs->freed) { /* joined: a hole costs a call */
        struct run *last = n > 0 ? &refs->freed.at[n - 1] : NULL;

        if (last && run->first <= last->first + last->n)
            last->n = qm_max(last->n, run->first + run->n - last->first);
        else
            refs->freed.at[n++] = *run;
    }
    for (size_t i = 0; i < n; i++)
        if (discard_run(refs, &refs->freed.at[i], err) < 0)
            return -1;
    qm_vec_clear(&refs->freed);
    return 0;
}

int
qm_refs_trim(struct qm_refs *refs, bool *out_changed, struct qmeld_error *err)
{
    const bool holes = refs->freed.n > 0;
    const uint32_t bits = refs->q->geo.cluster_bits;
    struct qm_file *file = refs->q->img.file;
    uint64_t end, keep = refs->floor ? refs->floor << bits : refs->old_file_size;

    if (qm_refs_end(refs, &end, err) < 0)
        return -1;
    /* Free space behind the end is cut off only if it was made or freed here: what a file had
     * behind its last cluster before, is not ours. */
    if (refs->freed.n > 0)
        qsort(refs->freed.at, refs->freed.n, sizeof *refs->freed.at, by_first);
    for (size_t i = refs->freed.n; i-- > 0;) {
        const struct run *run = &refs->freed.at[i];

        if ((run->first + run->n) << bits < keep)
            break;
        keep = qm_min(keep, run->first << bits);
    }
    keep = qm_max(keep, end);
    if (qm_refs_discard(refs, err) < 0)
        return -1;
    if (out_changed)
        *out_changed = holes || (!file->blockdev && file->size > keep);
    if (!file->blockdev && file->size > keep)
        return qm_truncate(file, keep, err);
    return 0;
}

int
qm_refs_discard_free(struct qm_refs *refs, uint64_t end, struct qmeld_error *err)
{
    const uint32_t bits = refs->q->geo.cluster_bits;
    const uint64_t stop =
        qm_min(end, qm_div_up(refs->q->img.file->size, qm_refs_cluster_size(refs)));
    uint64_t from = 0;

    for (uint64_t c = 0; c <= stop; c++) {
        uint64_t count = 1;

        if (c < stop && qm_refs_get(refs, c, &count, err) < 0)
            return -1;
        if (count == 0)
            continue;
        if (c > from && qm_discard(refs->q->img.file, from << bits, (c - from) << bits, err) < 0)
            return -1;
        from = c + 1;
    }
    return 0;
}
