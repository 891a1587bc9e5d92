/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockcommit.h"

#include "domain.h"
#include "module.h"
#include "running.h"

#include <stdlib.h>
#include <string.h>

/* The request's callback, asked between calls: nothing is known of progress then. */
static bool
is_stopped(void *opaque)
{
    const struct qm_live_commit *request = opaque;
    const struct qmeld_progress now = {.phase = "copy"};

    return request->progress && request->progress(&now, request->opaque) != 0;
}

int
qm_blockcommit(const struct qm_live_commit *request, struct qm_live_report *report,
               struct qmeld_error *err)
{
    const struct qm_session_options options = {
        .uri = request->uri, .stop = is_stopped, .opaque = (void *)request};
    struct qm_session *session;
    struct qm_domain domain = {0};
    struct qm_fault fault;
    bool active;
    int result;

    memset(report, 0, sizeof *report);
    memset(err, 0, sizeof *err);
    if (qm_session_open(&options, &session, err) < 0)
        return -1;
    result = qm_domain_find(session, request->domain, &domain, err);
    if (result == 0 && qm_session_is_active(session, domain.ptr, &active, &fault) < 0)
        result = qm_session_fail(err, &fault, "ask whether the machine runs");
    if (result == 0)
        report->running = active;
    if (result == 0 && !(report->domain = strdup(domain.name)))
        result = qm_fail_nomem(err, "merging");
    if (result == 0 && active)
        result = qm_running_commit(&session, &options, &domain, request, report, err);
    else if (result == 0)
        result = qm_fail(err, QMELD_USAGE, qm_nowhere(),
                         "domain \"%s\" is not running: merge its images with qmeld commit",
                         domain.name);
    qm_domain_free(&domain);
    qm_session_close(session);
    return result;
}

void
qm_blockcommit_report_free(struct qm_live_report *report)
{
    for (size_t i = 0; i < report->n_files; i++)
        free(report->files[i].path);
    free(report->files);
    free(report->domain);
    free(report->disk);
    free(report->base);
    free(report->top);
    qm_notes_free(&report->notes);
    if (qm_lib)
        qm_lib->commit_report_free(&report->merge);
    memset(report, 0, sizeof *report);
}
