/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stopped.h - merging layers of disks whose machine is stopped.
 *
 * Why.  libvirt refuses that; without it the images are merged by us, and then nobody but us tells
 * libvirt.  So the merge is one part of a longer whole:
 *
 *     plan -> note -> merge disk 1 -> merge disk 2 -> ... -> definitions -> snapshots -> saved state
 *          -> noted as settled -> files removed -> notes removed
 *
 * From the first merge to the notes' end every merge's layers stay locked, with QEMU's locks, so the
 * machine cannot be started in between.  After a crash it can: its chain reads as before, always, and
 * what its guest then writes is merged, too, when the change is gone on with.
 *
 * Calls      qm_stopped_commit or qm_stopped_delete for a new change, which end an unfinished one if it is
 *            the same; qm_stopped_resume by its note.
 * Threads    As session.h.
 * Errors     0 or -1 with *err; err->disk OPEN: a note tells what was meant, and the same call goes on.
 */
#ifndef QM_STOPPED_H
#define QM_STOPPED_H

#include "change.h"
#include "domain.h"
#include "texts.h"

/* One run of it. */
struct qm_stopped {
    /* given */
    struct qm_session *session;
    const struct qm_session_options *options; /* how it was opened */
    struct qm_domain *domain;
    const struct qm_live_commit *request;
    struct qm_live_report *report;
    bool live; /* the machine runs: QEMU merges */
    /* planned, or read from a note */
    struct qm_change change;
    bool resumed;      /* an unfinished change is gone on with */
    bool noted;        /* the notes are durable */
    char *planned;     /* the kept definition that the plan was made by */
    QM_VEC(int) locks; /* descriptors that hold virtlockd's byte */
    const struct qm_domxml_snap_disk
        *planning; /* of stopped_plan.c: the snapshot's disk it is at */
};

int qm_stopped_commit(struct qm_session *session, struct qm_domain *domain,
                      const struct qm_live_commit *request, struct qm_live_report *report,
                      struct qmeld_error *err) QM_CHECK;

/* Deletes an external snapshot: its layers are merged into those under them, and removed.  Of a machine
 * that runs (report->running), too: *session may be another one then. */
int qm_stopped_delete(struct qm_session **session, const struct qm_session_options *options,
                      struct qm_domain *domain, const char *snapshot,
                      const struct qm_live_commit *request, struct qm_live_report *report,
                      struct qmeld_error *err) QM_CHECK;

/* request: of it only uri (another than the note's; NULL: that), progress, and what is for stopped
 * machines count. */
int qm_stopped_resume(const char *note, const struct qm_live_commit *request,
                      struct qm_live_report *report, struct qmeld_error *err) QM_CHECK;

/* ---- stopped_plan.c ---- */

/* From the request, or for a snapshot, to s->change.  No disk in it: there is nothing to do. */
int qm_stopped_plan(struct qm_stopped *s, const char *snapshot, struct qmeld_error *err) QM_CHECK;

/* Opens the chain of a disk by its headers, without locks, and lists its layers in out->layers. */
int qm_stopped_read_chain(const char *active, const char *format, struct qm_change_disk *out,
                          struct qmeld_error *err) QM_CHECK;

/* ---- stopped_check.c ---- */

/* The machine may be changed now: it does not run, has no saved state or one that is updated, too. */
int qm_stopped_check_state(struct qm_stopped *s, struct qmeld_error *err) QM_CHECK;

/* Refuses a plan that would spoil something, or could not be ended. */
int qm_stopped_check_plan(struct qm_stopped *s, struct qmeld_error *err) QM_CHECK;

/* ---- stopped_unfinished.c ---- */

/* Finds a change of the machine that was begun with the same words, and takes it over: s->resumed, s->noted.  Fills
 * s->planned.  USAGE: another one is unfinished. */
int qm_stopped_find_unfinished(struct qm_stopped *s, const char *words, struct qmeld_error *err)
    QM_CHECK;

/* ---- stopped_live.c ---- */

/* All of it, where the machine runs. */
int qm_stopped_merge_live(struct qm_stopped *s, struct qmeld_error *err) QM_CHECK;

/* ---- finish.c ---- */

/* All that comes after the merges; from the change alone, and may be done twice. */
int qm_stopped_finish(struct qm_stopped *s, struct qmeld_error *err) QM_CHECK;

/* ---- what they share: sources.c ---- */

/* The path that a source leads to; a volume's is asked for.  malloc'd; *out NULL: it has none. */
int qm_stopped_path(struct qm_stopped *s, const struct qm_domxml_source *source, char **out,
                    struct qmeld_error *err) QM_CHECK;

/* For the edits of domxml.h. */
struct qm_stopped_role {
    struct qm_stopped *s;
    const struct qm_change_disk *disk;
    bool failed; /* a volume could not be asked for */
    struct qmeld_error err;
};
struct qm_domxml_edit qm_stopped_edit(struct qm_stopped_role *role);

/* The <disk> as it has to be; *out NULL: it is right. */
int qm_stopped_edit_disk(struct qm_stopped *s, const char *kept, const struct qm_change_disk *disk,
                         char **out, struct qmeld_error *err) QM_CHECK;

/* The machine's definitions as they are now, with a sentence on failure. */
int qm_stopped_texts(struct qm_stopped *s, struct qm_texts *out, struct qmeld_error *err) QM_CHECK;

#endif
