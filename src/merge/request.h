/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * request.h - a commit as it was asked for.
 *
 * Why.  Whoever wants to know what a commit would do, asks for the very same one, dry.  And whoever
 * changes a chain in another way must know what is unfinished there.
 *
 * Threads    One thread.
 * Ownership  m is the caller's: qm_merge_release.
 * Errors     0 or -1 with *err; err->disk tells what is on disk.
 */
#ifndef QM_REQUEST_H
#define QM_REQUEST_H

#include "merge.h"

/* Finds out what m->opts mean for the chain whose active layer is path, or which interrupted merge,
 * and does it. */
int qm_request_commit(const char *path, struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* qmeld_commit; with keep, one turn of qmeld_fold: an interrupted fold is gone on with, or a new one done. */
int qm_request_merge(const char *path, const uint64_t *keep,
                     const struct qmeld_commit_options *opts, struct qmeld_commit_report *report,
                     struct qmeld_error *err) QM_CHECK;

/* The journal of an interrupted rebase of active onto this backing file, NULL if there is none; it is the
 * caller's.  Any other unfinished change of the chain is USAGE. */
int qm_request_find_rebase(const char *active, const struct qm_chain *chain, const char *backing,
                           const char *backing_format, const char *journal_dir,
                           struct qm_journal **out, struct qmeld_error *err) QM_CHECK;

/* USAGE: something in this chain is unfinished. */
int qm_request_check_finished(const struct qm_chain *chain, const char *journal_dir,
                              struct qmeld_error *err) QM_CHECK;

#endif
