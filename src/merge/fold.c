/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fold.c - the public call fold: which increments go into the full.
 *
 * Counting is all that is done here; the merge is a commit.  A layer is named by its path, not by its
 * number: if another process has folded the chain since it was counted, that path is gone from it, and
 * commit refuses.
 */
#include "chain.h"

#include <stdlib.h>
#include <string.h>

/* The unfinished fold of this chain, if there is one. */
struct unfinished {
    const struct qmeld_commit_options *opts;
    char *journal; /* NULL: none */
    bool lost;     /* no memory for it */
};

/* Others are left to commit, which refuses. */
static int
take(const struct qmeld_unfinished *merge, void *opaque)
{
    struct unfinished *u = opaque;

    if (merge->problem || merge->rebase || merge->held || merge->reverting ||
        merge->base_layer != 0 || merge->overlays != u->opts->overlays ||
        merge->reclaim != u->opts->reclaim)
        return 0;
    u->journal = strdup(merge->journal);
    u->lost = !u->journal;
    return 1;
}

/* An interrupted fold is finished first: the chain may be shorter by then. */
static int
finish_old(const char *path, const struct qmeld_commit_options *opts,
           struct qmeld_commit_report *report, struct qmeld_error *err)
{
    struct unfinished u = {.opts = opts};
    struct qmeld_error unheard;
    int rc;

    if (qmeld_status(path, opts->journal_dir, take, &u, &unheard) < 0 &&
        unheard.code != QMELD_CANCELED) {
        *err = unheard;
        return -1;
    }
    if (u.lost)
        return qm_fail_nomem(err, "the path of a journal");
    if (!u.journal)
        return 0;
    rc = qmeld_resume(u.journal, opts, report, err);
    free(u.journal);
    return rc;
}

/* *out_base, *out_top: paths of layers, malloc'd; NULL: nothing is to be folded. */
static int
choose(const char *path, size_t keep, const struct qmeld_commit_options *opts, char **out_base,
       char **out_top, struct qmeld_error *err)
{
    const struct qm_chain_options how = {
        .mode = QM_CHAIN_LOOK, .format = opts->format, .backing_format = opts->backing_format};
    struct qm_chain *chain;
    int rc = 0;

    *out_base = *out_top = NULL;
    if (qm_chain_open(path, &how, &chain, err) < 0)
        return -1;
    if (chain->n - 1 > keep) {
        *out_base = strdup(chain->layers[0].path);
        *out_top = strdup(chain->layers[chain->n - 1 - keep].path);
        if (!*out_base || !*out_top)
            rc = qm_fail_nomem(err, "the path of a layer");
    }
    qm_chain_close(chain);
    return rc;
}

static int
fold(const char *path, size_t keep, const struct qmeld_commit_options *opts,
     struct qmeld_commit_report *report, struct qmeld_error *err)
{
    struct qmeld_commit_options chosen = *opts;
    QM_FREE char *base = NULL;
    QM_FREE char *top = NULL;

    if (opts->base || opts->top || opts->shallow)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "what is folded follows from how many increments are kept: leave out base, "
                       "top and shallow");
    if (finish_old(path, opts, report, err) < 0 || choose(path, keep, opts, &base, &top, err) < 0)
        return -1;
    if (!top) {
        report->nothing_to_do = !report->resumed;
        return 0;
    }
    qmeld_commit_report_free(report);
    chosen.base = base;
    chosen.top = top;
    return qmeld_commit(path, &chosen, report, err);
}

int
qmeld_fold(const char *path, size_t keep, const struct qmeld_commit_options *opts,
           struct qmeld_commit_report *report, struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct qmeld_commit_report own, *r = report ? report : &own;
    int rc;

    memset(err, 0, sizeof *err);
    memset(r, 0, sizeof *r);
    rc = fold(path, keep, opts ? opts : &defaults, r, err);
    if (!report)
        qmeld_commit_report_free(r);
    return rc;
}
