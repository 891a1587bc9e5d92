/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * rebase_call.c - the public call rebase: new, interrupted, or dry.
 */
#include "clock.h"
#include "rebase.h"
#include "request.h"
#include "shadow.h"

#include <stdlib.h>
#include <string.h>

/* Both chains, as they stand, are held; then nothing in them may be unfinished but this very rebase. */
static int
rebase(struct qm_rebase *r, struct qmeld_error *err)
{
    const struct qm_layer *image;
    QM_FREE char *journal = NULL;
    const char *stored;

    if (qm_rebase_open(r, err) < 0 || qm_rebase_open_onto(r, err) < 0)
        return -1;
    stored = r->relative ? r->relative : r->backing;
    image = &r->chain->layers[r->chain->n - 1];
    if (qm_request_find_rebase(r->path, r->chain, stored, r->backing ? r->backing_format : NULL,
                               r->opts->journal_dir, &r->journal, err) < 0 ||
        (r->onto && qm_request_check_finished(r->onto, r->opts->journal_dir, err) < 0))
        return -1;
    if (qm_journal_check_place(image->img->file, image->img->file, r->opts->journal_dir, err) < 0)
        return -1;
    if (qm_journal_path(r->path, image->img->file->blockdev, r->path, r->opts->journal_dir,
                        &journal, err) < 0)
        return -1;
    r->journal_path = r->journal ? qm_journal_file(r->journal) : journal;
    return qm_rebase_run(r, err);
}

static int
run(const char *path, const struct qmeld_rebase_options *opts, struct qmeld_rebase_report *report,
    struct qmeld_error *err)
{
    struct qm_rebase r = {.opts = opts,
                          .report = report,
                          .path = path,
                          .format = opts->format,
                          .backing = opts->backing,
                          .backing_format = opts->backing_format};
    const int rc = rebase(&r, err);

    qm_rebase_release(&r);
    return rc;
}

static int
run_dry(const char *path, const struct qmeld_rebase_options *opts,
        struct qmeld_rebase_report *report, struct qmeld_error *err)
{
    struct qm_shadow *shadow;
    int rc;

    if (qm_shadow_begin(false, &shadow, err) < 0)
        return -1;
    rc = run(path, opts, report, err);
    err->disk = QMELD_DISK_OLD;
    if (rc == 0)
        rc = qm_shadow_finish(shadow, err);
    if (rc == 0)
        report->peak = qm_shadow_peak(shadow);
    if (rc == 0)
        rc = qm_space_judge(shadow, err);
    qm_shadow_end(shadow);
    return rc;
}

int
qmeld_rebase(const char *path, const struct qmeld_rebase_options *opts,
             struct qmeld_rebase_report *report, struct qmeld_error *err)
{
    static const struct qmeld_rebase_options defaults;
    struct qmeld_rebase_report own, *r = report ? report : &own;
    const uint64_t begun_ms = qm_clock_ms();
    int rc;

    memset(err, 0, sizeof *err);
    memset(r, 0, sizeof *r);
    opts = opts ? opts : &defaults;
    rc = opts->dry_run ? run_dry(path, opts, r, err) : run(path, opts, r, err);
    r->seconds_x1000 = qm_clock_ms() - begun_ms;
    if (!report)
        qmeld_rebase_report_free(r);
    return rc;
}

void
qmeld_rebase_report_free(struct qmeld_rebase_report *report)
{
    free(report->stored);
    report->stored = NULL;
}
