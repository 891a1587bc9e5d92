/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * plan.h - what a merge of layers into a target must do.
 *
 * Why.  The map says who answers; the plan says what follows for the target: keep, copy, zero.
 * It writes nothing and looks at nothing but the map, so counting the cost and doing the
 * work are two walks over the same plan.
 *
 * Calls      qm_plan_open; qm_plan_next until done; qm_plan_close.
 * Threads    One thread.
 * Ownership  The chain is borrowed.
 * Errors     What the map says.
 */
#ifndef QM_PLAN_H
#define QM_PLAN_H

#include "map.h"
#include "move.h"

struct qm_plan_config {
    const struct qm_chain *chain;
    size_t base; /* the target; the layers base + 1 .. top are merged into it */
    size_t top;
    guest_off from;      /* where to begin */
    uint64_t base_size;  /* virtual size of the target before; beyond it its content is stale */
    uint64_t new_size;   /* and after */
    uint64_t hidden_end; /* the top ends before its child, or before one of the child's internal
                          * snapshots, and hides the target's bytes up to here: they must read
                          * as zeros when the child reads the target itself.  0: no such bytes */
};

struct qm_plan;

int qm_plan_open(const struct qm_plan_config *config, struct qm_plan **out, struct qmeld_error *err)
    QM_CHECK;

/* The next guest range that must change in the target, ascending.  *out_asked: a layer asked
 * for it; otherwise it only is to be zero because the target grows over it. */
int qm_plan_next(struct qm_plan *plan, struct qm_want *out, bool *out_asked, bool *out_done,
                 struct qmeld_error *err) QM_CHECK;

void qm_plan_close(struct qm_plan *plan); /* NULL is fine */

#endif
