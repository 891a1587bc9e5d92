/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_count.c - sparse reference counters, one byte a cluster where that is enough.
 *
 * A counter that passes 255 gives its chunk a second array of wide counters; n[] then stays at
 * 255 and the rest is in more[].  So an image with hundreds of snapshots costs 9 bytes a cluster
 * where they share, and 1 elsewhere.
 */
#include "qcow2_count.h"

#include "addr.h"
#include "cleanup.h"

#include <inttypes.h>
#include <string.h>

int
qm_count_init(struct qm_count *c, uint64_t n_clusters, uint64_t max, uint64_t budget,
              struct qmeld_error *err)
{
    memset(c, 0, sizeof *c);
    c->n_chunks = qm_div_up(n_clusters, QM_CHUNK_LEN);
    c->max = max;
    c->narrow = (unsigned)qm_min(max, UINT8_MAX);
    c->budget = budget;
    /* calloc leaves pages that are never looked at to the kernel */
    c->chunks = calloc(c->n_chunks + 1, sizeof *c->chunks);
    if (!c->chunks)
        return qm_fail_nomem(err, "reference counters");
    return 0;
}

void
qm_count_release(struct qm_count *c)
{
    if (c->chunks) {
        for (uint64_t i = 0; i < c->n_chunks; i++) {
            if (c->chunks[i])
                free(c->chunks[i]->more);
            free(c->chunks[i]);
        }
    }
    free(c->chunks);
    memset(c, 0, sizeof *c);
}

static int
charge(struct qm_count *c, uint64_t bytes, struct qmeld_error *err)
{
    if (bytes > c->budget - c->bytes)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_nowhere(),
                       "references are scattered over so many clusters that counting them takes "
                       "more than %" PRIu64 " MiB, far more than an image of this size needs: it "
                       "was not checked, and should not be trusted",
                       c->budget >> 20);
    c->bytes += bytes;
    return 0;
}

int
qm_count_touch(struct qm_count *c, uint64_t cluster, struct qm_chunk **out, struct qmeld_error *err)
{
    struct qm_chunk **slot = &c->chunks[cluster >> QM_CHUNK_BITS];

    if (!*slot) {
        if (charge(c, sizeof **slot, err) < 0)
            return -1;
        *slot = calloc(1, sizeof **slot);
        if (!*slot)
            return qm_fail_nomem(err, "reference counters");
    }
    *out = *slot;
    return 0;
}

static int
widen(struct qm_count *c, struct qm_chunk *chunk, struct qmeld_error *err)
{
    if (chunk->more)
        return 0;
    if (charge(c, QM_CHUNK_LEN * sizeof *chunk->more, err) < 0)
        return -1;
    chunk->more = calloc(QM_CHUNK_LEN, sizeof *chunk->more);
    if (!chunk->more)
        return qm_fail_nomem(err, "reference counters");
    return 0;
}

int
qm_count_add(struct qm_count *c, uint64_t cluster, uint64_t weight, uint64_t *out_lost,
             struct qmeld_error *err)
{
    const uint64_t i = cluster & QM_CHUNK_MASK;
    struct qm_chunk *chunk = NULL;
    uint64_t now, sum;

    *out_lost = 0;
    if (qm_count_touch(c, cluster, &chunk, err) < 0)
        return -1;
    now = qm_count_get(c, cluster);
    if (weight > c->max - now)
        *out_lost = weight - (c->max - now);
    sum = now + (weight - *out_lost);
    if (sum > UINT8_MAX) {
        if (widen(c, chunk, err) < 0)
            return -1;
        chunk->more[i] = sum - UINT8_MAX;
    }
    chunk->n[i] = (uint8_t)qm_min(sum, UINT8_MAX);
    return 0;
}

void
qm_count_drop(struct qm_count *c, uint64_t cluster)
{
    struct qm_chunk *chunk = qm_count_chunk(c, cluster);
    const uint64_t i = cluster & QM_CHUNK_MASK;

    if (!chunk)
        return;
    if (chunk->more && chunk->more[i])
        chunk->more[i]--;
    else if (chunk->n[i])
        chunk->n[i]--;
}

uint64_t
qm_count_get(const struct qm_count *c, uint64_t cluster)
{
    const struct qm_chunk *chunk = qm_count_chunk(c, cluster);
    const uint64_t i = cluster & QM_CHUNK_MASK;

    if (!chunk)
        return 0;
    return chunk->n[i] + (chunk->more ? chunk->more[i] : 0);
}
