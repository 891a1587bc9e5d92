/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_prealloc.c - QEMU's guess (qemu 7.2, block/qcow2-refcount.c,
 * qcow2_detect_metadata_preallocation), so that both print the same map.
 */
#include "qcow2_prealloc.h"

#include <stdlib.h>

#define TABLE_PART     512u         /* refcount table entries read at once */
#define MAX_BLOCK_READ (1ull << 30) /* a hostile table may name one block a million times */

struct count {
    const struct qm_qcow2 *q;
    uint64_t end;       /* clusters in the file */
    uint64_t threshold; /* so many with a refcount: preallocated */
    uint64_t used;      /* found with a refcount */
    void *block;
};

static bool
is_settled(const struct count *c)
{
    return c->used >= c->threshold;
}

/* Counts one refcount block; `first` is the cluster its entry 0 stands for. */
static int
count_block(struct count *c, uint64_t entry, uint64_t first, struct qmeld_error *err)
{
    const uint64_t n = qm_min(1ull << c->q->geo.refblock_bits, c->end - first);
    const host_off at = qm_host(entry & QCOW2_OFFSET_MASK);

    if (!at.h)
        return 0;
    if (qm_qcow2_read_cluster(c->q, at, c->block, err) < 0)
        return -1;
    for (uint64_t i = 0; i < n && !is_settled(c); i++)
        c->used += qcow2_refcount_get(c->block, c->q->geo.refcount_order, i) != 0;
    return 0;
}

static int
count_all(struct count *c, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = c->q;
    const uint64_t entries = q->hdr.reftable_clusters * q->geo.cluster_size / sizeof(be64);
    const uint64_t max_blocks = MAX_BLOCK_READ >> q->geo.cluster_bits;
    uint64_t blocks = 0;
    be64 part[TABLE_PART];

    for (uint64_t i = 0; i < entries && !is_settled(c); i++) {
        const uint64_t first = i << q->geo.refblock_bits, k = i % TABLE_PART;

        if (first >= c->end)
            break;
        if (k == 0 && qm_pread_padded(q->img.file, q->hdr.reftable_off + i * sizeof(be64), part,
                                      qm_min(TABLE_PART, entries - i) * sizeof(be64), err) < 0)
            return -1;
        if (!be64_get(&part[k]))
            continue;
        if (++blocks > max_blocks)
            return 0;
        if (count_block(c, be64_get(&part[k]), first, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_qcow2_is_preallocated(const struct qm_qcow2 *q, bool *out, struct qmeld_error *err)
{
    struct count c = {.q = q, .end = qm_div_up(q->img.file->size, q->geo.cluster_size)};
    QM_FREE void *block = NULL;
    uint64_t allocated, real;

    *out = false;
    if (qm_file_allocated(q->img.file, &allocated, err) < 0)
        return -1;
    real = allocated / q->geo.cluster_size;
    c.threshold = qm_max(real * 10 / 9, real + 2);
    if (c.threshold > c.end)
        return 0; /* not even if every cluster of the file were in use */
    block = c.block = malloc(q->geo.cluster_size);
    if (!block)
        return qm_fail_nomem(err, "a refcount block");
    if (count_all(&c, err) < 0)
        return -1;
    *out = is_settled(&c);
    return 0;
}
