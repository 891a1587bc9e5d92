/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qcow2_fill.h"

#include "qcow2_refs.h"

#include <stdlib.h>

#define L1_AT_ONCE 4096u

struct fill {
    struct qm_qcow2 *q;
    struct qm_refs *refs;
    uint64_t have;   /* guest clusters with a host cluster of their own */
    uint64_t next;   /* guest clusters below are counted */
    uint64_t tables; /* L2 tables that are the active view's alone */
};

/* It can be written to as it is: nobody else refers to it. */
static int
is_own(const struct fill *f, uint64_t host, bool *out, struct qmeld_error *err)
{
    uint64_t count;

    if (qm_refs_get(f->refs, host >> f->q->geo.cluster_bits, &count, err) < 0)
        return -1;
    *out = count == 1;
    return 0;
}

static int
count_extent(struct fill *f, const struct qm_extent *ext, struct qmeld_error *err)
{
    const uint32_t bits = f->q->geo.cluster_bits;
    const uint64_t first = ext->guest.g >> bits, end = (ext->guest.g + ext->len - 1) >> bits;

    if (!ext->has_host || ext->kind == QM_COMPRESSED)
        return 0;
    for (uint64_t c = qm_max(first, f->next); c <= end; c++) {
        bool own;

        if (is_own(f, ext->host.h - (ext->guest.g - (first << bits)) + ((c - first) << bits), &own,
                   err) < 0)
            return -1;
        f->have += own;
        f->next = c + 1;
    }
    return 0;
}

static int
count_data(struct fill *f, struct qmeld_error *err)
{
    const uint64_t size = f->q->img.size;

    for (uint64_t at = 0; at < size;) {
        struct qm_extent ext;

        if (qm_image_next(&f->q->img, qm_guest(at), size - at, &ext, err) < 0 ||
            count_extent(f, &ext, err) < 0)
            return -1;
        at += ext.len;
    }
    return 0;
}

static int
count_tables(struct fill *f, uint64_t wanted, struct qmeld_error *err)
{
    const uint64_t n = qm_min(wanted, f->q->hdr.l1_entries);
    QM_FREE uint64_t *l1 = calloc(L1_AT_ONCE, sizeof *l1);

    if (!l1)
        return qm_fail_nomem(err, "the L1 table");
    for (uint64_t i = 0; i < n; i += L1_AT_ONCE) {
        const uint32_t part = (uint32_t)qm_min(n - i, L1_AT_ONCE);

        if (qm_qcow2_read_l1(f->q, f->q->hdr.l1_off, (uint32_t)i, part, l1, err) < 0)
            return -1;
        for (uint32_t k = 0; k < part; k++) {
            bool own = false;

            if ((l1[k] & QCOW2_OFFSET_MASK) != 0 &&
                is_own(f, l1[k] & QCOW2_OFFSET_MASK, &own, err) < 0)
                return -1;
            f->tables += own;
        }
    }
    return 0;
}

/* Clusters of the file, if `more` are taken beside those in use.  Refcount blocks count themselves, and the table
 * must have an entry for each: so the end moves until it covers what it needs. */
static uint64_t
end_with(const struct fill *f, uint64_t more, uint64_t used, uint64_t clusters)
{
    const struct qcow2_geo *g = &f->q->geo;
    const uint64_t per_block = 1ull << g->refblock_bits;
    const uint64_t blocks_now = qm_div_up(clusters, per_block);
    const uint64_t table_now = f->q->hdr.reftable_clusters;
    uint64_t end = qm_max(clusters, used + more), last = 0;

    while (end != last) {
        const uint64_t blocks = qm_max(qm_div_up(end, per_block), blocks_now);
        const uint64_t table = qm_div_up(blocks * sizeof(be64), g->cluster_size);

        last = end;
        end =
            qm_max(clusters, used + more + (blocks - blocks_now) + (table > table_now ? table : 0));
        end = qm_max(end, last); /* it only grows, so this ends */
    }
    return end;
}

static int
fill(struct fill *f, uint64_t *out, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &f->q->geo;
    const uint64_t wanted = qcow2_l1_needed(g, f->q->img.size);
    const uint64_t guest = qm_div_up(f->q->img.size, g->cluster_size);
    const uint64_t clusters = qm_div_up(f->q->img.file->size, g->cluster_size);
    uint64_t used, end;

    if (count_data(f, err) < 0 || count_tables(f, wanted, err) < 0 ||
        qm_refs_used(f->refs, &used, err) < 0)
        return -1;
    if (guest - f->have > QM_MAX_OFF >> (g->cluster_bits + 1)) {
        *out = UINT64_MAX;
        return 0;
    }
    end = end_with(f, guest - f->have + (wanted - f->tables), used, clusters);
    *out = end == clusters ? f->q->img.file->size : end << g->cluster_bits;
    return 0;
}

int
qm_qcow2_full_length(struct qm_qcow2 *q, uint64_t *out, struct qmeld_error *err)
{
    struct fill f = {.q = q};
    int rc;

    if (qm_refs_open(q, &f.refs, err) < 0)
        return -1;
    rc = fill(&f, out, err);
    qm_refs_close(f.refs);
    return rc;
}
