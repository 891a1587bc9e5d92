/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fold.c - the public call fold: which increments go into the full.
 *
 * The merge is a commit, whose base and top follow from the chain as it is when all of it is held (request.c), so that
 * two folds at a time, or a backup that adds an increment meanwhile, cannot make it another one.  Its journal says
 * that it is a fold, and nothing else is taken for an interrupted one.
 */
#include "request.h"

/* The newest increment was merged itself, and has no name any more. */
static bool
is_gone(const struct qmeld_commit_report *report)
{
    const enum qmeld_fate fate =
        report->n_layers ? report->layers[report->n_layers - 1].fate : QMELD_FATE_UNTOUCHED;

    return fate == QMELD_FATE_DELETED || fate == QMELD_FATE_QUARANTINED;
}

/* An interrupted fold is finished in a turn of its own: the chain may have grown since, and more of it be
 * due.  What is told is the last turn in which there was something to do. */
static int
fold(const char *path, uint64_t keep, const struct qmeld_commit_options *opts,
     struct qmeld_commit_report *report, struct qmeld_error *err)
{
    struct qmeld_commit_report rest;
    int rc = qm_request_merge(path, &keep, opts, report, err);

    if (rc < 0 || !report->resumed || report->reverted || is_gone(report))
        return rc;
    rc = qm_request_merge(path, &keep, opts, &rest, err);
    if (rc < 0)
        qm_err_disk(err, QMELD_DISK_OPEN); /* the first turn is done, and the same call goes on */
    if (rest.nothing_to_do || rest.n_layers == 0) {
        qmeld_commit_report_free(&rest);
        return rc;
    }
    rest.resumed = true;
    rest.verified = rest.verified && report->verified;
    rest.bytes_verified += report->bytes_verified;
    qmeld_commit_report_free(report);
    *report = rest;
    return rc;
}

int
qmeld_fold(const char *path, size_t keep, const struct qmeld_commit_options *opts,
           struct qmeld_commit_report *report, struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct qmeld_commit_report own, *r = report ? report : &own;
    int rc;

    opts = opts ? opts : &defaults;
    *r = (struct qmeld_commit_report){.n_layers = 0};
    *err = (struct qmeld_error){.code = QMELD_OK};
    if (opts->base || opts->top || opts->shallow)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "what is folded follows from how many increments are kept: leave out base, "
                       "top and shallow");
    rc = fold(path, keep, opts, r, err);
    if (!report)
        qmeld_commit_report_free(r);
    return rc;
}
