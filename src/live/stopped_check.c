/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stopped_check.c - whether a stopped machine's disks may be merged as planned.
 *
 * What can be refused must be refused before the first image changes: what somebody else reads through
 * the base, what libvirt would not let us put right afterwards, what a saved guest remembers.
 */
#include "stopped.h"

#include "defs.h"
#include "scan.h"
#include "snapshots.h"

#include <string.h>

int
qm_stopped_check_state(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qm_fault fault;
    bool active, saved;

    if (qm_session_is_active(s->session, s->domain->ptr, &active, &fault) < 0 ||
        qm_defs_has_saved(s->session, s->domain->ptr, &saved, &fault) < 0)
        return qm_session_fail(err, &fault, "ask for the machine's state");
    if (active)
        return qm_fail(err, QMELD_BUSY, qm_nowhere(), "domain \"%s\" was started: shut it down%s",
                       s->domain->name,
                       s->resumed ? ", the unfinished change is gone on with then"
                                  : ", or give the command again");
    if (saved && !s->change.update_saved)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "domain \"%s\" has a saved state, whose guest goes on with the chain as it "
                       "is: start it and shut it down, or give --managed-save=update",
                       s->domain->name);
    return 0;
}

/* ---- who else stands on these files ---- */

struct others {
    struct qm_stopped *s;
    const struct qm_change_disk **disks; /* for each file that is asked for */
    bool found;
    struct qmeld_error *err;
};

/* Of our own domain: the disk itself has these layers, snapshots and the saved state are put right. */
static bool
is_expected(const struct others *o, const struct qm_scan_mention *mention)
{
    const struct qm_change_disk *disk = o->disks[mention->file];

    if (strcmp(mention->uuid, o->s->domain->uuid) != 0)
        return false;
    switch (mention->where) {
    case QM_SCAN_SNAPSHOT:
    case QM_SCAN_SAVED:
        return true;
    case QM_SCAN_PERSISTENT:
        return strcmp(mention->target, disk->target) == 0;
    case QM_SCAN_LIVE:
        return o->s->live && strcmp(mention->target, disk->target) == 0;
    case QM_SCAN_HEADER:
        return qm_change_find(disk, mention->head) < disk->layers.n;
    }
    return false;
}

static int
take_mention(const struct qm_scan_mention *mention, void *opaque)
{
    struct others *o = opaque;

    if (is_expected(o, mention))
        return 0;
    o->found = true;
    (void)qm_fail(o->err, QMELD_USAGE, qm_nowhere(),
                  "domain \"%s\" %s%s%s%s%s: the merge would change what that one reads; undo that "
                  "use first",
                  mention->domain, qm_scan_where_name(mention->where), mention->head ? " " : "",
                  mention->head ? mention->head : "", mention->snapshot ? " " : "",
                  mention->snapshot ? mention->snapshot : "");
    return 1;
}

static int
check_others(struct qm_stopped *s, const struct qm_change_disk *disk, struct qmeld_error *err)
{
    const size_t n = disk->top - disk->base + 1;
    QM_FREE struct qm_domxml_source *sources = calloc(n, sizeof *sources);
    QM_FREE const struct qm_domxml_source **files = calloc(n, sizeof(*files));
    QM_FREE const struct qm_change_disk **disks = calloc(n, sizeof(*disks));
    struct others others = {.s = s, .disks = disks, .err = err};
    struct qm_scan scan = {.session = s->session,
                           .files = files,
                           .n_files = n,
                           .fn = take_mention,
                           .opaque = &others,
                           .notes = &s->report->notes};

    if (!sources || !files || !disks)
        return qm_fail_nomem(err, "looking for who uses the files");
    for (size_t i = 0; i < n; i++) {
        const struct qm_change_layer *l = &disk->layers.at[disk->base + i];

        sources[i] = (struct qm_domxml_source){
            .type = l->blockdev ? QM_SOURCE_BLOCK : QM_SOURCE_FILE, .path = l->path};
        files[i] = &sources[i];
        disks[i] = disk;
    }
    if (qm_scan_mentions(&scan, err) < 0 || others.found)
        return -1;
    if (!scan.incomplete)
        return 0;
    return qm_fail(
        err, QMELD_BUSY, qm_nowhere(), "not everybody could be asked who may stand on %s: %s",
        qm_change_base(disk)->path,
        s->report->notes.n ? s->report->notes.at[s->report->notes.n - 1] : "try again later");
}

/* ---- what can be put right afterwards ---- */

static int
check_definition(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qm_texts texts;
    int rc = 0;

    if (qm_stopped_texts(s, &texts, err) < 0)
        return -1;
    QM_VEC_EACH (disk, &s->change.disks) {
        QM_FREE char *trial = NULL;

        if (rc == 0)
            rc = qm_stopped_edit_disk(s, texts.persistent, disk, &trial, err);
    }
    qm_texts_free(&texts);
    return rc;
}

int
qm_stopped_check_plan(struct qm_stopped *s, struct qmeld_error *err)
{
    if (!s->live && qm_stopped_check_state(s, err) < 0)
        return -1;
    if (check_definition(s, err) < 0 || qm_snapshots_check(s, err) < 0)
        return -1;
    QM_VEC_EACH (disk, &s->change.disks) {
        if (check_others(s, disk, err) < 0)
            return -1;
    }
    return 0;
}
