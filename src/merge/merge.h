/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge.h - one merge, from its request or from its journal to its end.
 *
 * Why.  A merge may begin with a command line or go on from a journal; from the moment the
 * journal exists both are the same.  merge.c knows that common part; request.c, which
 * comes before it, finds out what is meant.
 *
 * Threads    One thread.
 * Ownership  The merge owns chain, journal and whatever hangs on them: qm_merge_release.
 * Errors     0 or -1 with *err; err->disk tells what is on disk.
 */
#ifndef QM_MERGE_H
#define QM_MERGE_H

#include "carry.h"
#include "journal.h"
#include "promote.h"
#include "protect.h"
#include "settle.h"
#include "transfer.h"

struct qm_merge {
    const struct qmeld_commit_options *opts;
    struct qmeld_commit_report *report;
    const uint64_t *keep; /* of a fold: so many increments stay; NULL: opts say base and top */
    bool looked; /* in a dry run that follows another: nothing is inflated or compared again, and
                  * report->already_merged is right */
    struct qmeld_error
        refused; /* in a dry run for who wants to know everything: it would be, for the sake of
                                 * others (others.c); code OK: no */
    const struct qm_chain *opened; /* NULL, or a chain whose keys are taken; borrowed */
    struct qm_chain *chain;
    struct qm_journal *journal;
    struct qm_transfer transfer;
    struct qm_back back;
    const char **moved_to;      /* each layer's new name, of the intent; NULL: it stays */
    struct qm_reclaim *reclaim; /* with --reclaim, once its layers may be written */
    struct qm_settle_config settle_config;
    struct qm_settle *settle;
    struct qm_promote *promote; /* if the target is not the base */
    struct qm_carry carry;
};

/* How a merge opens what is encrypted: a dry run that follows another does without, where no plan depends on
 * bytes. */
enum qm_chain_keys qm_merge_keys(const struct qm_merge *m);

/* A new merge of layers base .. top of m->chain (held) into one of them: locks, checks, counts, writes
 * the journal of `intent` (taken over), and does it. */
int qm_merge_begin(struct qm_merge *m, struct qm_intent *intent, const char *journal_path,
                   struct qmeld_error *err) QM_CHECK;

/* Goes on where m->journal says; opens the chain by it. */
int qm_merge_resume(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* Takes back what m->journal tells of.  USAGE: it has no way back, or not any more. */
int qm_merge_revert(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

/* Gives up the way back of a merge that is held. */
int qm_merge_finalize(struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

void qm_merge_release(struct qm_merge *m);

#endif
