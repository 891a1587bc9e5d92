/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_count.h - how often each cluster of a file is referred to.
 *
 * Why.  A check counts every reference of an image and compares the counts with the refcounts on
 * disk.  Files are long and mostly counted once, so a counter takes one byte here, and only
 * neighbourhoods somebody refers to take any: memory follows the references, not the
 * length of the file.  Beside each counter stands one bit that says "the refcount on disk is 1":
 * that is all the COPIED flag of an entry has to be compared with.
 *
 * Threads    One thread.
 * Units      Cluster numbers.
 * Errors     0 or -1 with *err: NOMEM; UNSUPPORTED if the counters outgrow their budget.
 */
#ifndef QM_QCOW2_COUNT_H
#define QM_QCOW2_COUNT_H

#include "err.h"

#include <stddef.h>

#define QM_CHUNK_BITS 8
#define QM_CHUNK_LEN  (1u << QM_CHUNK_BITS)
#define QM_CHUNK_MASK (QM_CHUNK_LEN - 1)

/* Counters of 256 adjacent clusters. */
struct qm_chunk {
    uint8_t n[QM_CHUNK_LEN];         /* 255: and more[] on top of it */
    uint64_t one[QM_CHUNK_LEN / 64]; /* the refcount on disk is exactly 1 */
    uint64_t *more;                  /* NULL until a counter passes 255 */
};

struct qm_count {
    struct qm_chunk **chunks; /* NULL where nobody refers */
    uint64_t n_chunks;
    uint64_t max;    /* the greatest value the image's refcount width holds; counters stop there */
    unsigned narrow; /* what fits in n[]: the smaller of max and 255 */
    uint64_t bytes;
    uint64_t budget;
};

/* Counters for clusters [0, n_clusters).  Release in every case. */
int qm_count_init(struct qm_count *c, uint64_t n_clusters, uint64_t max, uint64_t budget,
                  struct qmeld_error *err) QM_CHECK;
void qm_count_release(struct qm_count *c);

/* The chunk of a cluster, made if there is none yet. */
int qm_count_touch(struct qm_count *c, uint64_t cluster, struct qm_chunk **out,
                   struct qmeld_error *err) QM_CHECK;

/* Adds `weight` references.  *out_lost: how many of them the refcount width cannot hold. */
int qm_count_add(struct qm_count *c, uint64_t cluster, uint64_t weight, uint64_t *out_lost,
                 struct qmeld_error *err) QM_CHECK;

/* Takes one reference away again, if there is one. */
void qm_count_drop(struct qm_count *c, uint64_t cluster);

/* 0 outside of the range, too. */
uint64_t qm_count_get(const struct qm_count *c, uint64_t cluster);

static inline struct qm_chunk *
qm_count_chunk(const struct qm_count *c, uint64_t cluster)
{
    const uint64_t i = cluster >> QM_CHUNK_BITS;

    return i < c->n_chunks ? c->chunks[i] : NULL;
}

/* What qm_count_add does, for the usual case; false: use that.  cluster is in the range. */
static inline bool
qm_count_bump(struct qm_count *c, uint64_t cluster, uint64_t weight)
{
    struct qm_chunk *chunk = c->chunks[cluster >> QM_CHUNK_BITS];
    uint8_t *n;

    if (!chunk)
        return false;
    n = &chunk->n[cluster & QM_CHUNK_MASK];
    if (weight > c->narrow - *n)
        return false;
    *n = (uint8_t)(*n + weight);
    return true;
}

/* True if the refcount on disk was noted as 1. */
static inline bool
qm_count_is_one(const struct qm_count *c, uint64_t cluster)
{
    const struct qm_chunk *chunk = qm_count_chunk(c, cluster);

    return chunk && (chunk->one[(cluster & QM_CHUNK_MASK) / 64] >> (cluster % 64) & 1);
}

static inline void
qm_chunk_note_one(struct qm_chunk *chunk, uint64_t cluster)
{
    chunk->one[(cluster & QM_CHUNK_MASK) / 64] |= 1ull << (cluster % 64);
}

#endif
