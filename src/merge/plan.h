/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * plan.h - what a merge of layers into a target must do.
 *
 * Why.  The map says who answers; the plan says what follows for the target: keep, copy, zero.
 * Layers above the target come down into it, and what layers of the range below it answer is pulled up:
 * the target stands on what is below base when all is done, and has to answer for them by itself.
 * It writes nothing and looks at nothing but the map, so counting the cost and doing the
 * work are two walks over the same plan.  (A target that only gets another backing file: onto.h, which may
 * have to compare bytes.)
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
#include "onto.h"

struct qm_plan_config {
    const struct qm_chain *chain;
    const struct qm_onto
        *onto; /* not NULL: no merge.  target, the chain's uppermost layer, is to stand on
                                 * this; base and top are target, too */
    size_t
        base; /* layers base .. top become one, which reads as the view of top over what is below base */
    size_t top;
    size_t target;       /* the one: base, or, if the base is to move up, a layer above it */
    guest_off from;      /* where to begin */
    uint64_t old_size;   /* virtual size of the target before; beyond it its content is stale */
    uint64_t new_size;   /* and after */
    uint64_t hidden_end; /* the top ends before its child, or before one of the child's internal
                          * snapshots, and hides the target's bytes up to here: they must read
                          * as zeros when the child reads the target itself.  0: no such bytes */
};

struct qm_plan;

int qm_plan_open(const struct qm_plan_config *config, struct qm_plan **out, struct qmeld_error *err)
    QM_CHECK;

/* The next guest range that must change in the target, ascending.  *out_asked: a layer asked
 * for it; otherwise it only is to be zero because the target grows over it.
 *
 * What is pulled up reads the same before and after, whoever reads the target: it is what the target,
 * which has nothing there, reads from below. */
int qm_plan_next(struct qm_plan *plan, struct qm_want *out, bool *out_asked, bool *out_done,
                 struct qmeld_error *err) QM_CHECK;

void qm_plan_close(struct qm_plan *plan); /* NULL is fine */

#endif
