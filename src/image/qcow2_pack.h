/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_pack.h - places for compressed clusters, byte after byte.
 *
 * Why.  A compressed cluster needs no cluster of its own: several share one, and one may begin in a cluster and end in
 * the next (specification, "Compressed Clusters Descriptor").  Each host cluster that it touches counts it once, so
 * what is shared is bounded by how far a refcount can count.
 *
 * Threads    One thread, that of the refcounts.
 * Ownership  The refcounts are borrowed.
 * Errors     0 or -1 with *err: what qm_refs_alloc says.
 */
#ifndef QM_QCOW2_PACK_H
#define QM_QCOW2_PACK_H

#include "qcow2_refs.h"

struct qm_pack {
    struct qm_refs *refs;
    uint32_t cluster_bits;
    uint32_t refcount_order;
    uint64_t at;    /* the next byte; 0: none, or at the end of a cluster */
    uint64_t count; /* refcount of the cluster that at lies in */
};

void qm_pack_init(struct qm_pack *p, struct qm_refs *refs, const struct qcow2_geo *geo);

/* Takes len bytes, at most a cluster's, and stages the refcounts.  Same calls, same places. */
int qm_pack_take(struct qm_pack *p, uint64_t len, host_off *out, struct qmeld_error *err) QM_CHECK;

/* False: an entry has no room for this offset (specification: 70 - cluster_bits bits of it, and of them the lower 56).
 * Ask before an entry is made. */
bool qm_pack_can_lead_to(const struct qcow2_geo *geo, host_off at);

#endif
