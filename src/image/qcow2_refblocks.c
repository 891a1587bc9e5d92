/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_refblocks.c - the census's view of the refcounts on disk: read, count, compare.
 *
 * Why a file of its own.  References come from everywhere; refcounts from one table and its blocks,
 * read here in bulk, twice: first one bit a cluster (is it 1?), which the COPIED flags are compared
 * with as they pass by, and at the end, block by block, against the counters.  Keeping the blocks
 * in memory instead would cost up to 8 bytes for every cluster of the file.
 */
#include "qcow2_census.h"

#include <inttypes.h>

/* Refcounts are compared in slices that share a chunk of counters; small blocks of wide refcounts
 * hold fewer entries than that. */
static uint64_t
slice_len(const struct qm_census *c)
{
    return qm_min(QM_CHUNK_LEN, 1ull << c->q->geo.refblock_bits);
}

bool
qm_census_block(const struct qm_census *c, uint64_t idx, uint64_t *out_off)
{
    const uint64_t entry = idx < c->reftable_entries ? c->reftable[idx] : 0;

    /* bits 9-63 are the offset; QEMU masks the reserved bits and goes on */
    *out_off = entry & ~QCOW2_REFTABLE_RESERVED;
    return *out_off % c->q->geo.cluster_size == 0 &&
           *out_off <= QM_MAX_OFF - c->q->geo.cluster_size;
}

int
qm_census_read_block(const struct qm_census *c, uint64_t idx, uint64_t n_clusters,
                     unsigned char *buf, struct qm_refblock *out, bool *out_known,
                     struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    uint64_t off;

    *out = (struct qm_refblock){.first = idx << g->refblock_bits};
    out->n = qm_min(n_clusters - out->first, 1ull << g->refblock_bits);
    *out_known = qm_census_block(c, idx, &off);
    if (!*out_known || off == 0 || off >= c->file_len)
        return 0;
    out->data = buf;
    return qm_pread_padded(c->q->img.file, off, buf, qm_div_up(out->n << g->refcount_order, 8),
                           err);
}

/* True if n refcounts from entry i on are all 0.  i is a multiple of 64: whole bytes. */
static bool
all_zero(const struct qm_census *c, const struct qm_refblock *b, uint64_t i, uint64_t n)
{
    const uint32_t order = c->q->geo.refcount_order;
    const unsigned char *p = b->data + (i << order >> 3);
    const uint64_t len = qm_div_up(n << order, 8);

    /* bits past n in the last byte belong to clusters past the end: a slow look if set */
    return qm_is_zero(p, len);
}

/* The usual width, without a call for each entry. */
static void
note_ones_16(struct qm_chunk *chunk, uint64_t at, const unsigned char *p, uint64_t n)
{
    for (uint64_t k = 0; k < n; k += 64) {
        uint64_t ones = 0;

        for (unsigned bit = 0; bit < 64; bit++)
            ones |= (uint64_t)(p[2 * (k + bit)] == 0 && p[2 * (k + bit) + 1] == 1) << bit;
        chunk->one[(at + k) / 64] = ones;
    }
}

static int
note_ones(struct qm_census *c, const struct qm_refblock *b, struct qmeld_error *err)
{
    const uint64_t slice = slice_len(c);

    for (uint64_t i = 0; i < b->n; i += slice) {
        const uint64_t n = qm_min(slice, b->n - i);
        struct qm_chunk *chunk;

        if (all_zero(c, b, i, n))
            continue;
        if (qm_count_touch(&c->count, b->first + i, &chunk, err) < 0)
            return -1;
        if (c->q->geo.refcount_order == 4 && n % 64 == 0)
            note_ones_16(chunk, (b->first + i) & QM_CHUNK_MASK, b->data + 2 * i, n);
        else
            for (uint64_t k = i; k < i + n; k++)
                if (qcow2_refcount_get(b->data, c->q->geo.refcount_order, k) == 1)
                    qm_chunk_note_one(chunk, b->first + k);
    }
    return 0;
}

static int
load_table(struct qm_census *c, struct qmeld_error *err)
{
    const struct qcow2_header *h = &c->q->hdr;
    const uint64_t len = (uint64_t)h->reftable_clusters << h->cluster_bits; /* <= 8 MiB */
    be64 *raw;

    c->reftable = malloc(len + sizeof *raw);
    if (!c->reftable)
        return qm_fail_nomem(err, "the refcount table");
    raw = (be64 *)c->reftable;
    if (qm_pread_padded(c->q->img.file, h->reftable_off, raw, len, err) < 0)
        return -1;
    c->reftable_entries = len / sizeof *raw;
    for (uint64_t i = 0; i < c->reftable_entries; i++)
        c->reftable[i] = be64_get(&raw[i]);
    return 0;
}

int
qm_census_load_refcounts(struct qm_census *c, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    QM_FREE unsigned char *buf = malloc(g->cluster_size);

    if (!buf)
        return qm_fail_nomem(err, "a refcount block");
    if (load_table(c, err) < 0)
        return -1;
    for (uint64_t i = 0; i < c->reftable_entries; i++) {
        struct qm_refblock b;
        bool known;

        if (i << g->refblock_bits >= c->file_clusters)
            break;
        if (qm_census_read_block(c, i, c->file_clusters, buf, &b, &known, err) < 0)
            return -1;
        if (b.data && note_ones(c, &b, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_census_disk_refcount(const struct qm_census *c, uint64_t cluster, bool *out_known, uint64_t *out,
                        struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    const uint64_t bit = (cluster & ((1ull << g->refblock_bits) - 1)) << g->refcount_order;
    unsigned char buf[8] = {0};
    uint64_t off;

    *out = 0;
    *out_known = qm_census_block(c, cluster >> g->refblock_bits, &off);
    if (!*out_known || off == 0)
        return 0;
    /* the bytes of this entry; narrower ones share theirs with neighbours */
    if (qm_pread_padded(c->q->img.file, off + bit / 8, buf,
                        g->refcount_order < 3 ? 1 : 1u << (g->refcount_order - 3), err) < 0)
        return -1;
    *out = qcow2_refcount_get(buf, g->refcount_order, bit % 8 >> g->refcount_order);
    return 0;
}

/* ---- the blocks as clusters ---- */

static void
bad_entry(struct qm_census *c, uint64_t idx, const char *what)
{
    qm_census_say(c, "refcount table entry %" PRIu64 " (0x%016" PRIx64 ") %s", idx,
                  c->reftable[idx], what);
    c->damaged_blocks++;
}

static int
count_block(struct qm_census *c, uint64_t idx, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    uint64_t off, n;

    if (c->reftable[idx] & QCOW2_REFTABLE_RESERVED) {
        bad_entry(c, idx, "has reserved bits set");
        c->needs_rebuild = true;
        return 0;
    }
    if (!qm_census_block(c, idx, &off) && off % g->cluster_size) {
        bad_entry(c, idx, "does not point at a cluster");
        c->needs_rebuild = true;
        return 0;
    }
    if (off == 0)
        return 0;
    if (off >> g->cluster_bits >= c->n_clusters) {
        /* reads as zeros; whether that is too little, the comparison tells */
        bad_entry(c, idx, "points behind the end of the file");
        c->outside_blocks++;
        return 0;
    }
    if (qm_census_count_metadata(c, off, g->cluster_size, 1, err) < 0)
        return -1;
    n = qm_count_get(&c->count, off >> g->cluster_bits);
    if (n != 1) {
        qm_census_say(c, "refcount block %" PRIu64 " at 0x%" PRIx64 " is used %" PRIu64 " times",
                      idx, off, n);
        c->damaged_blocks++;
        c->needs_rebuild = true;
    }
    return 0;
}

int
qm_census_count_blocks(struct qm_census *c, struct qmeld_error *err)
{
    for (uint64_t i = 0; i < c->reftable_entries; i++)
        if (c->reftable[i] && count_block(c, i, err) < 0)
            return -1;
    return 0;
}

/* ---- comparison ---- */

/* Neighbours with the same disagreement become one finding. */
struct run {
    uint64_t first;
    uint64_t n;
    uint64_t disk;
    uint64_t counted;
};

static void
end_run(const struct qm_census *c, struct run *r)
{
    const char *what = r->disk > r->counted ? "leaked" : "refcount too low";

    if (r->n == 1)
        qm_census_say(c, "cluster %" PRIu64 ": %s: refcount %" PRIu64 ", references %" PRIu64,
                      r->first, what, r->disk, r->counted);
    else if (r->n > 1)
        qm_census_say(
            c, "clusters %" PRIu64 " to %" PRIu64 ": %s: refcount %" PRIu64 ", references %" PRIu64,
            r->first, r->first + r->n - 1, what, r->disk, r->counted);
    r->n = 0;
}

static void
mismatch(struct qm_census *c, struct run *r, uint64_t cluster, uint64_t disk, uint64_t counted)
{
    if (disk > counted)
        c->leaks++;
    else
        c->too_low++;
    if (disk == 0)
        c->needs_rebuild = true;
    if (r->n && (cluster != r->first + r->n || disk != r->disk || counted != r->counted))
        end_run(c, r);
    if (!r->n)
        *r = (struct run){.first = cluster, .disk = disk, .counted = counted};
    r->n++;
}

/* The common case at the speed of memory: 16 bit refcounts, all as counted. */
static bool
same_16(const struct qm_chunk *chunk, const unsigned char *p, uint64_t i, uint64_t n)
{
    const uint8_t *counted = &chunk->n[i];
    unsigned diff = 0;

    if (chunk->more)
        return false;
    for (uint64_t k = 0; k < n; k++)
        diff |= (unsigned)p[2 * k] | (unsigned)(p[2 * k + 1] ^ counted[k]);
    return diff == 0;
}

static void
compare_slice(struct qm_census *c, const struct qm_refblock *b, uint64_t i, uint64_t n,
              struct run *r)
{
    const uint32_t order = c->q->geo.refcount_order;
    const uint64_t first = b->first + i;
    const struct qm_chunk *chunk = qm_count_chunk(&c->count, first);

    if (!chunk && (!b->data || all_zero(c, b, i, n)))
        return;
    if (chunk && b->data && order == 4 &&
        same_16(chunk, b->data + 2 * i, first & QM_CHUNK_MASK, n)) {
        for (uint64_t k = n; k-- > 0;)
            if (chunk->n[(first & QM_CHUNK_MASK) + k]) {
                c->end_cluster = first + k;
                break;
            }
        return;
    }
    for (uint64_t k = 0; k < n; k++) {
        const uint64_t counted = qm_count_get(&c->count, first + k);
        const uint64_t disk = b->data ? qcow2_refcount_get(b->data, order, i + k) : 0;

        if (counted || disk)
            c->end_cluster = first + k;
        if (counted != disk)
            mismatch(c, r, first + k, disk, counted);
    }
}

static void
compare_block(struct qm_census *c, const struct qm_refblock *b, struct run *r)
{
    const uint64_t slice = slice_len(c);

    for (uint64_t i = 0; i < b->n; i += slice)
        compare_slice(c, b, i, qm_min(slice, b->n - i), r);
}

int
qm_census_compare(struct qm_census *c, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    QM_FREE unsigned char *buf = malloc(g->cluster_size);
    struct run r = {0};

    if (!buf)
        return qm_fail_nomem(err, "a refcount block");
    for (uint64_t i = 0; i << g->refblock_bits < c->n_clusters; i++) {
        struct qm_refblock b;
        bool known;

        if (qm_census_read_block(c, i, c->n_clusters, buf, &b, &known, err) < 0)
            return -1;
        if (known) {
            compare_block(c, &b, &r);
            continue;
        }
        end_run(c, &r);
        qm_census_say(c, "refcounts of clusters %" PRIu64 " to %" PRIu64 " cannot be read", b.first,
                      b.first + b.n - 1);
        c->unreadable += b.n;
    }
    end_run(c, &r);
    return 0;
}
