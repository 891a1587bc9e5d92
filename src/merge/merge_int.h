/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_int.h - what the files that serve merge.h share: merge.c, others.c, rehearse.c, resume.c and revert.c.
 * Nobody else includes it.
 */
#ifndef QM_MERGE_INT_H
#define QM_MERGE_INT_H

#include "merge.h"

/* ---- merge.c ---- */

/* Everything that can be refused, is refused here; m->chain is open. */
int qm_merge_prepare(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
    QM_CHECK;

/* The last moment before something is written. */
int qm_merge_ask_guard(const struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* What is wanted of the base is read from the disk, as far as it can be, and compared. */
int qm_merge_read_back(const struct qm_merge *m, const char *backing_format,
                       struct qm_compare_result *out, struct qmeld_error *err) QM_CHECK;

/* The journal is there from here on. */
void qm_merge_set_back(struct qm_merge *m);

/* From COPY to the end. */
int qm_merge_work(struct qm_merge *m, bool resumed, struct qmeld_error *err) QM_CHECK;

/* From SETTLE to the end; from FINAL. */
int qm_merge_settle(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;
int qm_merge_finish(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

int qm_merge_advance(struct qm_merge *m, enum qm_phase phase, struct qmeld_error *err) QM_CHECK;
int qm_merge_remove_journal(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;
int qm_merge_open_reclaim(struct qm_merge *m, bool resumed, struct qmeld_error *err) QM_CHECK;

/* ---- others.c ---- */

/* Other images, and internal snapshots, that would read otherwise go to the report; USAGE, unless they can be broken,
 * or protected, which the intent then tells.  done: the base reads as it is to already. */
int qm_merge_meet_others(struct qm_merge *m, bool done, struct qm_intent *intent,
                         struct qmeld_error *err) QM_CHECK;

/* In PROTECT, before going on: USAGE if somebody reads through those layers of whom the journal does not tell. */
int qm_merge_meet_newcomers(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* In PROTECT, before going back: images that were being given what they need keep no leaks. */
int qm_merge_unprotect(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* From PROTECT to COPY. */
int qm_merge_protect(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* To the report, of whom the journal tells. */
int qm_merge_tell_protected(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* ---- rehearse.c ---- */

/* NOSPACE, with what would help, if the merge that is about to begin or go on cannot end. */
int qm_merge_check_room(const struct qm_merge *m, const struct qm_intent *intent,
                        const char *journal, struct qmeld_error *err) QM_CHECK;

/* ---- resume.c ---- */

/* The chain that the journal lists, opened by its headers; STALE if it has changed. */
int qm_merge_open_whole(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
    QM_CHECK;

/* For going on, or back: nobody else is at it, and nobody will be.  whole: by the chain's headers, or each
 * layer by itself. */
int qm_merge_take_over(struct qm_merge *m, bool whole, struct qmeld_error *err) QM_CHECK;

/* What the layers are worth goes to the report, without opening them. */
int qm_merge_tell(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* ---- revert.c ---- */

int qm_merge_go_back(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* Has somebody written to the target?  Its length and times tell: it is a file of this machine, and all in one. */
bool qm_merge_tells_by_look(const struct qm_image *target);

#endif
