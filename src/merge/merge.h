/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge.h - how much a merge does between two commit points.
 *
 * Why.  Real batches are so large that a test's whole chain would fit one.  Test builds may
 * make them small, so that what happens from one batch to the next is seen, too.
 *
 * Units      Bytes.
 */
#ifndef QM_MERGE_H
#define QM_MERGE_H

#include <stddef.h>
#include <stdint.h>

struct qm_merge_limits {
    uint64_t batch;      /* guest data of one batch, about */
    size_t batch_weight; /* memory for its lists, about */
    uint64_t step;       /* of one want; power of two */
};

#ifdef QM_TESTING
extern struct qm_merge_limits qm_merge_limits;
#endif

#endif
