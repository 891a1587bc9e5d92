/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * search.h - the journals that may have to do with an image.
 *
 * Why.  Who gives a merge command, or asks what is unfinished, names an image; the journal lies beside the base, which
 * need not be in that image's chain at the moment.  So it is looked for wherever it can be.
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err; what the callback returns, if that is not 0, ends the search and is returned.
 */
#ifndef QM_SEARCH_H
#define QM_SEARCH_H

#include "journal.h"

/* A journal, or a file that should be one. */
struct qm_found {
    const char *path;
    struct qm_journal *j;       /* may be taken over (NULL is left then) */
    struct qmeld_error problem; /* if j is NULL: why it cannot be loaded */
};

/* Not 0 ends the search. */
typedef int qm_found_fn(struct qm_found *f, void *opaque, struct qmeld_error *err);

/* The one at path; none there is no error. */
int qm_search_one(const char *path, qm_found_fn *fn, void *opaque, struct qmeld_error *err)
    QM_CHECK;

/* Those in a directory, and those that a file there leads to (signpost.h). */
int qm_search_dir(const char *dir, qm_found_fn *fn, void *opaque, struct qmeld_error *err) QM_CHECK;

/* That of a merge into a layer of this chain, where it has to lie (journal_dir may be NULL). */
int qm_search_chain(const struct qm_chain *chain, const char *active, const char *journal_dir,
                    qm_found_fn *fn, void *opaque, struct qmeld_error *err) QM_CHECK;

/* Those in all directories that hold a layer of the chain, but `own`: a base that is being replaced by the layer it
 * was moved up into (promote.h) is not in the chain, but that layer is, and lies beside it.  Directories that we
 * may not read are left out. */
int qm_search_beside(const struct qm_chain *chain, const char *own, qm_found_fn *fn, void *opaque,
                     struct qmeld_error *err) QM_CHECK;

/* "x/.NAME.qmeld" without "x/": a journal's name. */
bool qm_search_is_name(const char *name);

bool qm_search_is_dir(const char *path);

#endif
