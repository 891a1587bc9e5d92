/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * back.h - the way back of a merge, for both kinds of target.
 *
 * Why.  With --atomic a qcow2 base is merged into beside itself (qcow2_stage.h), with --undo what is
 * overwritten in a raw one is kept (kept.h).  What that means at each step of a merge is said here, so
 * that the merge need not ask which it is; without a way back every step is nothing.
 *
 *     describe      before the journal: what must be known to go back
 *     enter         before the target is read or written; a journal is there
 *     switch_over   the target is complete and durable: it becomes what readers see
 *     give_up       there is no way back from here
 *     restore       the target is again what it was
 *
 * Threads    One thread.
 * Ownership  Journal, target and plan's chain are borrowed; qm_back_release.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_BACK_H
#define QM_BACK_H

#include "journal.h"
#include "kept.h"

struct qm_back {
    struct qm_journal *journal;
    struct qm_image *target;
    struct qm_plan_config plan;  /* of the whole merge */
    qmeld_progress_fn *progress; /* of restore, which it may stop; NULL: nobody listens */
    void *opaque;
    /* set by enter */
    struct qm_stage stage;
    struct qm_kept *kept; /* NULL: nothing is kept */
};

/* For a merge into target with these options; bitmaps: it gets its first ones, perhaps.  USAGE: no such way back for this
 * target.  NOSPACE: none if bitmaps are added to its header. */
int qm_back_describe(struct qm_image *target, bool atomic, bool undo, bool bitmaps,
                     struct qm_way_back *out, struct qmeld_error *err) QM_CHECK;

int qm_back_enter(struct qm_back *b, struct qmeld_error *err) QM_CHECK;

/* img, the target opened once more or the very one, gets its tables as the journal knows them: for who
 * only reads. */
int qm_back_adopt(const struct qm_back *b, struct qm_image *img, struct qmeld_error *err) QM_CHECK;

/* What is overwritten below `end` can be brought back. */
int qm_back_ahead(struct qm_back *b, guest_off end, struct qmeld_error *err) QM_CHECK;

int qm_back_switch_over(struct qm_back *b, struct qmeld_error *err) QM_CHECK;
int qm_back_give_up(struct qm_back *b, struct qmeld_error *err) QM_CHECK;
int qm_back_restore(struct qm_back *b, struct qmeld_error *err) QM_CHECK;

void qm_back_release(struct qm_back *b);

#endif
