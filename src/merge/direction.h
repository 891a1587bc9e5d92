/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * direction.h - which layer of a range becomes the merged one.
 *
 * Why.  All of a range's visible data ends up in one file, so what has to be moved is what lies in the others: a
 * small base under a large overlay is moved up into that (--direction=up), if what the base has beside its data
 * allows it (promote.h).
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err: USAGE, and what the map says.
 */
#ifndef QM_DIRECTION_H
#define QM_DIRECTION_H

#include "chain.h"

struct qm_direction {
    size_t target; /* base: down */
    uint64_t
        bytes_down; /* of guest data that are moved this way, or that, into the layer that would be taken; both 0 */
    uint64_t bytes_up; /* if nothing but down was asked for or is possible by the options */
};

/* Layers base .. top are to be one.  UP: into the layer above base which has most of what is visible, of those that
 * can take the base's place; AUTO: likewise, if that moves less than going down and all that stands in the options lets
 * it, else down. */
int qm_direction_find(const struct qm_chain *chain, size_t base, size_t top,
                      const struct qmeld_commit_options *opts, struct qm_direction *out,
                      struct qmeld_error *err) QM_CHECK;

#endif
