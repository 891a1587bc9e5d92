/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stopped_live.c - the same change, where the machine runs: QEMU merges, disk by disk, and what follows
 * is what follows for a stopped one.
 *
 * That is how a snapshot of a running machine is deleted.  A disk whose running chain has not the layer any
 * more was merged by an earlier call.
 */
#include "stopped.h"

#include "blockcommit.h"
#include "running.h"

#include <string.h>

/* The running chain of the disk still has the layer that is to be merged. */
static int
has_top(struct qm_stopped *s, const struct qm_change_disk *disk, bool *out, struct qmeld_error *err)
{
    const struct qm_domxml_disk *xml;
    QM_FREE char *text = NULL;
    struct qm_domxml *x;
    struct qm_fault fault;
    int rc = 0;

    *out = false;
    if (qm_session_xml(s->session, s->domain->ptr, 0, &text, &fault) < 0)
        return qm_session_fail(err, &fault, "read the machine's running definition");
    if (qm_domxml_parse(text, &x, err) < 0)
        return -1;
    xml = qm_domxml_find(x, disk->target);
    for (size_t i = 0; rc == 0 && xml && i < xml->layers.n && !*out; i++) {
        QM_FREE char *path = NULL;

        rc = qm_stopped_path(s, &xml->layers.at[i], &path, err);
        *out = rc == 0 && path && qm_change_find(disk, path) == disk->top;
    }
    qm_domxml_free(x);
    return rc;
}

static int
merge_disk(struct qm_stopped *s, const struct qm_change_disk *disk, struct qmeld_error *err)
{
    struct qm_live_commit request = *s->request;
    struct qm_live_report report = {.end = QM_LIVE_NOTHING};
    int rc;

    request.disk = disk->target;
    request.base = qm_change_base(disk)->path;
    request.top = disk->layers.at[disk->top].path;
    request.shallow = false;
    request.active = qm_change_top_is_active(disk);
    request.finish = request.active ? QM_LIVE_FINISH_PIVOT : QM_LIVE_FINISH_NONE;
    request.remove = false; /* until snapshots are right, too */
    request.wait = true;
    if (!request.bandwidth)
        request.bandwidth = request.offline.bandwidth; /* snapshot-delete has it there */
    request.settles_snapshots = true;
    request.keep_relative = false; /* the style is kept, and need not be relative */
    rc = qm_running_commit(&s->session, s->options, s->domain, &request, &report, err);
    for (size_t i = 0; i < report.notes.n; i++)
        qm_note(&s->report->notes, "%s", report.notes.at[i]);
    qm_blockcommit_report_free(&report);
    return rc;
}

int
qm_stopped_merge_live(struct qm_stopped *s, struct qmeld_error *err)
{
    if (!s->noted && qm_change_note(&s->change, err) < 0)
        return -1;
    s->noted = true;
    QM_VEC_EACH (disk, &s->change.disks) {
        bool left;

        if (has_top(s, disk, &left, err) < 0 || (left && merge_disk(s, disk, err) < 0))
            return -1;
    }
    return qm_stopped_finish(s, err);
}
