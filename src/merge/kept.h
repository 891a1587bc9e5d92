/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * kept.h - the bytes that a merge overwrites in a raw target, kept so that they can be put back.
 *
 * Why.  A raw file has no tables that could be switched, so with --undo what is about to be overwritten is
 * first copied to a file of its own, at the same offsets, and made durable.  Where the file system
 * can share blocks that is one clone of the whole target, which costs nothing.  Which ranges those are the plan
 * tells, then and later: it depends on the overlays alone, and they do not change.
 *
 * Calls      open; ahead before anything is written; or restore; close.
 * Threads    One thread.
 * Ownership  The chain in config and the target are borrowed.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_KEPT_H
#define QM_KEPT_H

#include "plan.h"

struct qm_kept;

struct qm_kept_config {
    struct qm_plan_config plan; /* of the whole merge: from is 0 */
    struct qm_file *target;
    const char *path;            /* of the file that keeps */
    uint64_t file_size;          /* of the target before the merge */
    guest_off kept;              /* how far an earlier run came; 0: a file is made anew */
    qmeld_progress_fn *progress; /* of restore; NULL: nobody listens */
    void *opaque;
};

int qm_kept_open(const struct qm_kept_config *config, struct qm_kept **out, struct qmeld_error *err)
    QM_CHECK;
void qm_kept_close(struct qm_kept *k); /* the file stays; NULL is fine */

/* What the merge overwrites below `end` is to be kept, durably; *out_kept: that is so below it. */
int qm_kept_ahead(struct qm_kept *k, guest_off end, guest_off *out_kept, struct qmeld_error *err)
    QM_CHECK;

/* The target gets back its bytes, holes and length; durable.  May be done twice, and be stopped (CANCELED). */
int qm_kept_restore(struct qm_kept *k, struct qmeld_error *err) QM_CHECK;

/* Removes the file, durably; that there is none is fine. */
int qm_kept_remove(const char *path, struct qmeld_error *err) QM_CHECK;

#endif
