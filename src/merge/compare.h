/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * compare.h - does the target read as a merge wants it to?
 *
 * Why.  The same question is asked three times: before a merge (is it done already?), before an
 * interrupted one goes on (is there what its journal claims?), and, if one wants to be sure of the
 * disk, after it (did the disk keep what was written?).  Plan and target are read side by side, up to the
 * first difference.
 *
 * Threads    One thread.
 * Ownership  All is borrowed.
 * Errors     0 or -1 with *err: what plan, map and files say; CANCELED on the callback's wish.
 */
#ifndef QM_COMPARE_H
#define QM_COMPARE_H

#include "plan.h"

struct qm_compare_config {
    struct qm_plan_config plan;  /* what is wanted */
    guest_off end;               /* before here */
    const struct qm_chain *have; /* where it is to read so: at layer have_top, with all below it */
    size_t have_top;             /* (not always the plan's chain: it may have been opened before) */
    uint64_t bandwidth;          /* bytes a second, 0: no limit */
    const char *phase;           /* for progress, which is told in bytes of the guest's disk */
    bool tell_all;               /* progress also of what takes no time */
    qmeld_progress_fn *progress; /* may be NULL */
    void *opaque;
};

struct qm_compare_result {
    bool equal;
    guest_off differs; /* the first byte that does, if not */
    uint64_t bytes;    /* so many were compared */
};

int qm_compare(const struct qm_compare_config *config, struct qm_compare_result *out,
               struct qmeld_error *err) QM_CHECK;

/* Does layer have_top read so?  The config's plan and end say nothing here. */
int qm_compare_wants(const struct qm_compare_config *config, const struct qm_wants *wants,
                     struct qm_compare_result *out, struct qmeld_error *err) QM_CHECK;

/* Do these moves, which nothing refers to yet, lie in the file of layer have_top?  OLD ones are compared with
 * what that layer reads as. */
int qm_compare_moves(const struct qm_compare_config *config, const struct qm_moves *moves,
                     struct qm_compare_result *out, struct qmeld_error *err) QM_CHECK;

#endif
