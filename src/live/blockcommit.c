/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "blockcommit.h"

#include "domain.h"
#include "module.h"
#include "running.h"
#include "stopped.h"

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

/* What both calls begin with: the hypervisor asked, the domain found. */
static int
begin(const struct qm_session_options *options, const char *name, struct qm_session **session,
      struct qm_domain *domain, struct qm_live_report *report, struct qmeld_error *err)
{
    struct qm_fault fault;
    bool active = false;

    memset(report, 0, sizeof *report);
    memset(err, 0, sizeof *err);
    if (qm_session_open(options, session, err) < 0 ||
        qm_domain_find(*session, name, domain, err) < 0)
        return -1;
    if (qm_session_is_active(*session, domain->ptr, &active, &fault) < 0)
        return qm_session_fail(err, &fault, "ask whether the machine runs");
    report->running = active;
    report->domain = strdup(domain->name);
    return report->domain ? 0 : qm_fail_nomem(err, "merging");
}

int
qm_blockcommit(const struct qm_live_commit *request, struct qm_live_report *report,
               struct qmeld_error *err)
{
    const struct qm_session_options options = {
        .uri = request->uri, .stop = is_stopped, .opaque = (void *)(uintptr_t)request};
    struct qm_session *session = NULL;
    struct qm_domain domain = {0};
    int result = begin(&options, request->domain, &session, &domain, report, err);

    if (result == 0 && !report->running)
        result = qm_stopped_commit(session, &domain, request, report, err);
    else if (result == 0 && request->all_disks)
        result = qm_fail(err, QMELD_USAGE, qm_nowhere(),
                         "domain \"%s\" runs, and QEMU merges its disks one by one: name a disk",
                         domain.name);
    else if (result == 0)
        result = qm_running_commit(&session, &options, &domain, request, report, err);
    qm_domain_free(&domain);
    qm_session_close(session);
    return result;
}

int
qm_snapshot_delete(const struct qm_live_commit *request, const char *snapshot,
                   struct qm_live_report *report, struct qmeld_error *err)
{
    const struct qm_session_options options = {
        .uri = request->uri, .stop = is_stopped, .opaque = (void *)(uintptr_t)request};
    struct qm_session *session = NULL;
    struct qm_domain domain = {0};
    int result = begin(&options, request->domain, &session, &domain, report, err);

    if (result == 0)
        result = qm_stopped_delete(&session, &options, &domain, snapshot, request, report, err);
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
