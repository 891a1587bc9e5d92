/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_rebuild.c - a new refcount structure for an image whose old one cannot be mended in place.
 *
 * New table and blocks go where no reference leads: behind the end of a regular file, so that
 * not even a cluster that merely looks free is overwritten; on a block device into the lowest gap
 * that is large enough.  They already describe the image as it will be: themselves used, the old
 * structure free.  So nothing leaks, and the switch is one sector of the header.
 */
#include "qcow2_repair.h"

#include "qcow2_header.h"

#include <inttypes.h>

struct rebuild {
    struct qm_qcow2 *q;
    struct qm_census *c;
    bool keep_leaks;  /* damaged entries may stand for leaked clusters: none is set free */
    uint64_t start;   /* first cluster of the new structure: the table, then the blocks */
    uint64_t n_table; /* clusters */
    uint64_t n_blocks;
    be64 *table;
    unsigned char *buf; /* a block being written */
    unsigned char *old; /* and the old one for the same clusters */
};

/* The new refcounts of the clusters of block idx, into r->buf; *out_used: one is not 0. */
static int
fill_block(struct rebuild *r, uint64_t idx, bool *out_used, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &r->q->geo;
    const uint64_t first = idx << g->refblock_bits, n = 1ull << g->refblock_bits;
    const uint64_t end = r->start + r->n_table + r->n_blocks;
    struct qm_refblock b = {0};
    bool known;

    *out_used = false;
    memset(r->buf, 0, g->cluster_size);
    if (first < r->c->n_clusters && r->keep_leaks &&
        qm_census_read_block(r->c, idx, r->c->n_clusters, r->old, &b, &known, err) < 0)
        return -1;
    for (uint64_t i = 0; i < n; i++) {
        uint64_t v = qm_count_get(&r->c->count, first + i);

        if (b.data && i < b.n)
            v = qm_max(v, qcow2_refcount_get(b.data, g->refcount_order, i));
        if (first + i >= r->start && first + i < end)
            v = 1;
        if (v == 0)
            continue;
        qcow2_refcount_put(r->buf, g->refcount_order, i, v);
        *out_used = true;
    }
    return 0;
}

/* The old table and blocks will be free: their references go. */
static void
forget_old(struct rebuild *r)
{
    const struct qcow2_geo *g = &r->q->geo;
    const uint64_t first = r->q->hdr.reftable_off >> g->cluster_bits;

    for (uint64_t k = 0; k < r->q->hdr.reftable_clusters; k++)
        qm_count_drop(&r->c->count, first + k);
    for (uint64_t i = 0; i < r->c->reftable_entries; i++) {
        const uint64_t entry = r->c->reftable[i];
        uint64_t off;

        /* exactly those that qm_census_count_blocks has counted */
        if (!(entry & QCOW2_REFTABLE_RESERVED) && qm_census_block(r->c, i, &off) && off != 0 &&
            off >> g->cluster_bits < r->c->n_clusters)
            qm_count_drop(&r->c->count, off >> g->cluster_bits);
    }
}

/* Where a gap of n clusters begins. */
static int
find_room(const struct rebuild *r, uint64_t n, uint64_t *out, struct qmeld_error *err)
{
    const uint32_t bits = r->q->geo.cluster_bits;
    uint64_t run = 0;

    *out = r->c->n_clusters;
    if (!r->q->img.file->blockdev) {
        /* not where entries of a file that was cut off lead: they read as zeros, and shall */
        QM_VEC_EACH (s, &r->c->outside.list)
            if (s->off >> bits < *out + n && (s->off + s->len) >> bits >= *out)
                *out = ((s->off + s->len) >> bits) + 1;
        return 0;
    }
    for (uint64_t k = 0; k < r->q->img.file->size >> r->q->geo.cluster_bits; k++) {
        run = qm_count_get(&r->c->count, k) ? 0 : run + 1;
        if (run == n) {
            *out = k + 1 - n;
            return 0;
        }
    }
    return qm_fail(err, QMELD_NOSPACE, qm_in(r->q->img.file->path),
                   "no room for new refcounts, %" PRIu64
                   " adjacent free clusters are needed: copy the image to a larger device first",
                   n);
}

/* How many blocks there will be, with the new structure where it is planned now. */
static int
count_blocks(struct rebuild *r, uint64_t n_idx, struct qmeld_error *err)
{
    uint64_t n = 0;

    for (uint64_t i = 0; i < n_idx; i++) {
        bool used;

        if (fill_block(r, i, &used, err) < 0)
            return -1;
        n += used;
    }
    r->n_blocks = qm_max(n, r->n_blocks);
    return 0;
}

/* The new structure needs refcounts itself: its size grows until it covers itself. */
static int
plan_place(struct rebuild *r, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &r->q->geo;

    for (;;) {
        const uint64_t before = r->n_table + r->n_blocks;
        uint64_t end, n_idx;

        if (find_room(r, qm_max(before, 1), &r->start, err) < 0)
            return -1;
        end = qm_max(r->start + before, r->c->n_clusters);
        n_idx = ((end - 1) >> g->refblock_bits) + 1;
        r->n_table = qm_max(r->n_table, qm_div_up(n_idx * sizeof(be64), g->cluster_size));
        if (r->n_table << g->cluster_bits > QCOW2_MAX_REFTABLE_BYTES)
            return qm_fail(err, QMELD_NOSPACE, qm_in(r->q->img.file->path),
                           "the file is too long for refcounts of this cluster size: cut off what "
                           "lies behind cluster %" PRIu64 " first",
                           r->c->end_cluster);
        if (count_blocks(r, n_idx, err) < 0)
            return -1;
        if (before && r->n_table + r->n_blocks == before)
            return 0;
    }
}

static int
write_blocks(struct rebuild *r, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &r->q->geo;
    const uint64_t end = qm_max(r->start + r->n_table + r->n_blocks, r->c->n_clusters);
    uint64_t next = r->start + r->n_table;

    for (uint64_t i = 0; i << g->refblock_bits < end; i++) {
        bool used;

        if (fill_block(r, i, &used, err) < 0)
            return -1;
        if (!used)
            continue;
        if (next == r->start + r->n_table + r->n_blocks)
            return qm_fail(err, QMELD_STALE, qm_in(r->q->img.file->path),
                           "the refcounts changed while they were rebuilt: see who else writes");
        if (qm_pwrite(r->q->img.file, next << g->cluster_bits, r->buf, g->cluster_size, err) < 0)
            return -1;
        be64_put(&r->table[i], next++ << g->cluster_bits);
    }
    return 0;
}

static int
build(struct rebuild *r, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &r->q->geo;
    struct qm_file *file = r->q->img.file;

    if (plan_place(r, err) < 0)
        return -1;
    r->table = calloc(r->n_table, g->cluster_size);
    if (!r->table)
        return qm_fail_nomem(err, "a refcount table");
    if (write_blocks(r, err) < 0 ||
        qm_pwrite(file, r->start << g->cluster_bits, r->table, r->n_table << g->cluster_bits, err) <
            0 ||
        qm_sync(file, err) < 0)
        return -1;
    r->q->hdr.reftable_off = r->start << g->cluster_bits;
    r->q->hdr.reftable_clusters = (uint32_t)r->n_table;
    return qm_header_store(r->q, err); /* COMMIT POINT: the new refcounts are the refcounts */
}

int
qm_repair_rebuild(struct qm_qcow2 *q, struct qm_census *c, struct qmeld_error *err)
{
    struct rebuild r = {.q = q, .c = c, .keep_leaks = c->damaged > 0};
    int result;

    assert(!c->incomplete);
    if (c->outside_lost)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
                       "too many references lead behind the end of the file: it cannot be mended");
    r.buf = malloc(q->geo.cluster_size);
    r.old = malloc(q->geo.cluster_size);
    if (!r.buf || !r.old) {
        result = qm_fail_nomem(err, "refcount blocks");
    } else {
        /* With damage about, the old structure's clusters stay counted, and leak.  On a block
         * device the new one may not be put over it, so it leaks until the next pass. */
        if (!r.keep_leaks && !q->img.file->blockdev)
            forget_old(&r);
        result = build(&r, err);
    }
    free(r.table);
    free(r.buf);
    free(r.old);
    return result;
}
