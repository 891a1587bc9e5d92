/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * rebase.h - an overlay gets another backing file, and reads the same.
 *
 * Why.  What the overlay must hold by itself on the new chain (onto.h) goes into it batch by batch, as a
 * merge's data does into its base: each entry that is published says what the overlay reads there
 * anyway.  When all is durable, one sector of the header names the new backing file.  However often
 * that is begun, it comes to the same: what an earlier run has copied is the overlay's own by now.
 *
 * Calls      Zero it; set what stands first; qm_rebase_open, qm_rebase_open_onto, then run; release.
 * Threads    One thread; copying and comparing have workers inside.
 * Ownership  Owns what open and run find, and the journal it is given.
 * Errors     0 or -1 with *err; err->disk tells what is on disk.
 */
#ifndef QM_REBASE_H
#define QM_REBASE_H

#include "journal.h"
#include "transfer.h"

struct qm_rebase {
    /* set by the caller */
    const struct qmeld_rebase_options *opts;
    struct qmeld_rebase_report *report;
    const char *path;
    const char *format;         /* NULL: by content */
    const char *backing;        /* as it is to be stored; NULL: none */
    const char *backing_format; /* NULL: none */
    struct qm_journal *journal; /* of an interrupted run, or NULL */
    const char *journal_path;
    const struct qm_chain
        *opened[2]; /* NULL, or chains whose keys are taken: for chain, and for onto */
    /* found */
    struct qm_chain *chain; /* the image, and what it stands on now */
    struct qm_chain *onto;  /* what it is to stand on; NULL: nothing */
    char *relative;         /* keep_relative: what backing is then */
    struct qm_onto plan;
    struct qm_transfer transfer;
    struct qmeld_commit_options copying;
    struct qmeld_commit_report sums;
    struct qm_diff_costs costs;
    uint64_t copied; /* for progress */
    bool writing;
    bool verify;    /* opts or the journal say so */
    unsigned stops; /* how often the caller was heard to want an end */
};

/* The image with its chain, held as readers.  With opts->unsafe the image alone. */
int qm_rebase_open(struct qm_rebase *r, struct qmeld_error *err) QM_CHECK;

/* The new chain, likewise. */
int qm_rebase_open_onto(struct qm_rebase *r, struct qmeld_error *err) QM_CHECK;

int qm_rebase_run(struct qm_rebase *r, struct qmeld_error *err) QM_CHECK;

/* The whole of it, by a journal, which is taken over; layers and sums for a report of resume. */
int qm_rebase_resume(struct qm_journal *journal, const struct qmeld_commit_options *opts,
                     struct qmeld_commit_report *report, struct qmeld_error *err) QM_CHECK;

void qm_rebase_release(struct qm_rebase *r);

#endif
