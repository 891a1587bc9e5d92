/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_pack.h - places for compressed clusters, side by side.
 *
 * Why.  A compressed cluster needs no cluster of its own: several share one, and one may begin in a cluster and end in
 * the next (specification, "Compressed Clusters Descriptor").  Each host cluster that it touches counts it once (as in
 * QEMU; 7.2, block/qcow2-refcount.c, update_refcount), so what is shared is bounded by how far a refcount can count.
 *
 * The area that is being filled is made of host clusters side by side, taken one by one.  One that cannot count another
 * payload, or has none that is free behind it, ends the area.
 *
 * A payload that we have made lies byte behind byte.  One that is passed on as it is begins at any byte, and its length
 * is known to the sector only.  So that no slack is added each time it is passed on, it keeps its place within a sector, and
 * whole sectors are moved: what lies adjacent, or in one sector, in the source is one run and stays as it is; runs follow
 * each other at sectors.
 *
 *     source   |..AAAAAA|AABBBBBB|BBBBBCCC|CC......|        |....DDDD|D.......|
 *     target                     |..AAAAAA|AABBBBBB|BBBBBCCC|CC......|....DDDD|D.......|
 *
 * Calls      init; take and pass in any order; cut when a batch ends.
 * Threads    One thread, that of the refcounts.
 * Ownership  Refcounts and geometry are borrowed.
 * Errors     0 or -1 with *err: what qm_refs_alloc says.
 */
#ifndef QM_QCOW2_PACK_H
#define QM_QCOW2_PACK_H

#include "qcow2_refs.h"

struct qm_pack {
    struct qm_refs *refs;
    const struct qcow2_geo *geo;
    uint64_t at;  /* the first byte of the area that is free */
    uint64_t end; /* of its clusters; 0: there is no area */
    /* the run that was passed on last: from NULL: none, or the next payload needs a new place */
    const struct qm_image *from;
    uint64_t run_start; /* there */
    uint64_t run_end;
    uint64_t run_to; /* where run_end came to */
};

void qm_pack_init(struct qm_pack *p, struct qm_refs *refs, const struct qcow2_geo *geo);

/* Takes len bytes, at most a cluster's, and stages the refcounts.  Same calls, same places. */
int qm_pack_take(struct qm_pack *p, uint64_t len, host_off *out, struct qmeld_error *err) QM_CHECK;

/* A payload that is passed on. */
struct qm_passed {
    host_off payload; /* what an entry is to lead to; it may be too far away (qcow2_l2_fits) */
    /* sectors that are to be copied; len 0: all of the payload's are among those of earlier calls */
    uint64_t source;
    uint64_t to;
    uint64_t len;
    bool joins; /* they lie behind those of the call before, in both files */
};

/* True if a payload of `from`, an extent of one whole guest cluster, may become one of `to`.  Those are left out that would not gain
 * by it, or that the file does not hold to its end, and the cluster that a disk ends in, as what it has behind that
 * end would be seen when the disk grows. */
bool qm_pack_may_pass(const struct qm_qcow2 *to, const struct qm_qcow2 *from,
                      const struct qm_extent *x);

int qm_pack_pass(struct qm_pack *p, const struct qm_image *from, const struct qm_extent *x,
                 struct qm_passed *out, struct qmeld_error *err) QM_CHECK;

/* From here on entries may lead to what was taken: no sector of it is written again. */
void qm_pack_cut(struct qm_pack *p);

#endif
