/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * transfer.h - walk the plan of a merge: to count it, to see whether it is done, to do it.
 *
 * Why.  The same plan is walked up to three times, and only the last walk writes.  The first
 * reads every table and inflates every compressed cluster of the sources, so that what cannot be
 * read is found while every file is as it was, and progress has a true total.  The second
 * tells a merge that was done already, up to the first difference.
 *
 * Threads    One thread calls; copy workers are inside.
 * Ownership  All is borrowed.
 * Errors     0 or -1 with *err; CANCELED on the progress callback's wish.
 */
#ifndef QM_TRANSFER_H
#define QM_TRANSFER_H

#include "back.h"
#include "compare.h"
#include "copy.h"
#include "reclaim.h"
#include "seal.h"
#include "sift.h"
#include "space.h"

struct qm_transfer {
    const struct qm_chain *chain;
    size_t base;
    size_t top;
    size_t target; /* as in plan.h; so the next three */
    uint64_t old_size;
    uint64_t new_size;
    uint64_t hidden_end;
    const struct qm_onto *onto; /* as in plan.h */
    struct qm_chain
        done;     /* the target over what it is to stand on; layers are the chain's, or onto's */
    bool give_up; /* --reclaim: layers give up what the base holds, batch by batch */
    struct qm_reclaim *reclaim; /* with give_up, from qm_transfer_grow on; borrowed */
    struct qm_back *back;       /* NULL: there is none, or nothing is written */
    guest_off from;             /* guest bytes below are in the base already */
    uint64_t total;             /* bytes to copy, from there on; qm_transfer_count sets it */
    struct qm_space space;      /* likewise */
    size_t new_bitmaps;         /* that the target gets beside its own */
    struct qm_copy_costs costs; /* of qm_transfer_run, in a dry run */
    bool looked;     /* everything that is to be read was read before, and is not for counting */
    bool verify;     /* what is written is to be read back */
    bool skip_equal; /* as in sift.h */
    bool detect_zeroes;
    bool resumed;     /* an earlier run may have written what this one finds there */
    bool decompress;  /* what is compressed is not passed on as it is */
    bool inflate_all; /* what is passed on is to be readable, too */
    const struct qmeld_commit_options *opts;
    struct qmeld_commit_report *report; /* bytes_* are added up here */
};

/* When all from chain to hidden_end is set. */
/* UNSUPPORTED: the layer may be read, but nothing can be merged into it.  Part of begin. */
int qm_transfer_check_target(const struct qm_layer *target, struct qmeld_error *err) QM_CHECK;

int qm_transfer_begin(struct qm_transfer *t, struct qmeld_error *err) QM_CHECK;
void qm_transfer_release(struct qm_transfer *t);

/* The plan of the whole merge. */
struct qm_plan_config qm_transfer_plan(const struct qm_transfer *t);

int qm_transfer_count(struct qm_transfer *t, struct qmeld_error *err) QM_CHECK;

/* *out: the base reads as wanted everywhere, and is not marked dirty.  Reads up to the first difference only. */
int qm_transfer_is_done(const struct qm_transfer *t, bool *out, struct qmeld_error *err) QM_CHECK;

/* *out: what is wanted before `done` (within the base's present size) is in the base.  A journal only
 * knows that it was: somebody may have put an older base back since. */
int qm_transfer_still_there(const struct qm_transfer *t, guest_off done, bool *out,
                            struct qmeld_error *err) QM_CHECK;

/* *out: whatever layers bottom .. top have by themselves is what the target reads as.  What they have given up already they do not
 * answer; bottom is above the target. */
int qm_transfer_holds(const struct qm_transfer *t, size_t bottom, bool *out,
                      struct qmeld_error *err) QM_CHECK;

/* After it: is all that is wanted what the base reads as, which is the active layer of `have`, opened anew? */
int qm_transfer_read_back(const struct qm_transfer *t, const struct qm_chain *have,
                          struct qm_compare_result *out, struct qmeld_error *err) QM_CHECK;

/* Says that what was written is not what the disk gave back. */
int qm_transfer_lost(const struct qm_transfer *t, guest_off at, struct qmeld_error *err);

/* Tells the target's bitmaps what lies before t->from: an earlier run wrote it. */
int qm_transfer_mark(const struct qm_transfer *t, struct qm_seal *seal, struct qmeld_error *err)
    QM_CHECK;

/* With give_up the base has its new size before anything is merged: what is given up must be readable in
 * it.  Zeros behind its old end, then the size, each durable; t->base_size is the new one then. */
int qm_transfer_grow(struct qm_transfer *t, struct qm_seal *seal, struct qmeld_error *err) QM_CHECK;

/* Batch by batch; after each the journal's cursor is advanced (NULL: nobody wants to know).  On the progress callback's wish
 * the batch is completed first: CANCELED then leaves nothing to repeat. */
int qm_transfer_run(struct qm_transfer *t, struct qm_seal *seal, struct qm_journal *journal,
                    struct qmeld_error *err) QM_CHECK;

/* ---- test builds only ---- */

struct qm_transfer_limits {
    uint64_t batch;        /* bytes of guest data that are copied */
    uint64_t batch_shared; /* and that are shared, by what is known beforehand */
    size_t batch_weight;   /* bytes of memory */
    unsigned batch_sec;    /* seconds */
    uint64_t step;         /* a long want is worked in steps of this; a power of two */
};

#ifdef QM_TESTING
extern struct qm_transfer_limits qm_transfer_limits;
#endif

#endif
