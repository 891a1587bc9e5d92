/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * revert.c - taking a merge back, or giving up that possibility.
 */
#include "merge_int.h"

#include "nbd_name.h"
#include "qcow2_header.h"

#include <string.h>
#include <unistd.h>

/* The old view is in the layers that were merged: all must be there, as they were. */
static int
check_old_layers(const struct qm_merge *m, enum qm_phase phase, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_trail trail = qm_journal_trail(m->journal);

    for (size_t i = intent->base; i < m->chain->n && i <= intent->top + 1; i++) {
        const struct qm_journal_layer *l = &intent->layers.at[i];
        /* the child lives on, and the header of a top that is to be emptied may have changed */
        const bool changes = i > intent->top ||
                             (i == intent->top && intent->overlays == QMELD_OVERLAYS_EMPTY) ||
                             qm_intent_guards_layer(intent, i);
        struct qm_journal_layer then = *l;

        if (i == intent->base) {
            then.size = trail.left.size;
            then.mtime_sec = trail.left.mtime_sec;
            then.mtime_nsec = trail.left.mtime_nsec;
        }
        if (qm_journal_same(&then, m->chain->layers[i].img,
                            i == intent->base ? phase == QM_PHASE_HELD : !changes, err) == 0)
            continue;
        /* beginning the merge anew, as one that is half done may be, would lose what was written to the base since */
        if (phase == QM_PHASE_HELD && err->code == QMELD_STALE)
            return qm_fail(err, QMELD_STALE, qm_in(l->path),
                           "it was written to, or replaced, since the merge was done, which cannot "
                           "be taken back any more: make it final with `qmeld finalize`");
        return -1;
    }
    return 0;
}

static int
check_all_there(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    for (size_t i = intent->base; i < intent->layers.n && i <= intent->top + 1; i++)
        if (!qm_nbd_is_name(intent->layers.at[i].path) &&
            access(intent->layers.at[i].path, F_OK) < 0)
            return qm_fail(
                err, QMELD_STALE, qm_in(intent->layers.at[i].path),
                "it is not there any more, and going back needs it: put it back, or finish "
                "the merge with `qmeld resume`");
    return 0;
}

/* Child, and a top that is to be emptied, get their old backing files again. */
static int
point_back(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    for (size_t i = intent->top; i < m->chain->n && i <= intent->top + 1; i++) {
        const struct qm_journal_layer *then = &intent->layers.at[i];
        struct qm_qcow2 *q = qm_qcow2_of(m->chain->layers[i].img);

        if (!q->hdr.backing_name || !then->backing_name ||
            strcmp(q->hdr.backing_name, then->backing_name) == 0)
            continue;
        if (qm_file_make_writable(q->img.file, err) < 0 || qm_header_before_write(q, err) < 0 ||
            qm_header_set_backing(q, then->backing_name, then->backing_format, err) < 0)
            return -1;
    }
    return 0;
}

/* From the top: who reads through the merged layers does so before the target changes under them. */
int
qm_merge_go_back(struct qm_merge *m, struct qmeld_error *err)
{
    const enum qm_phase phase = qm_journal_cursor(m->journal).phase;

    if (check_all_there(m, err) < 0 || qm_merge_take_over(m, false, err) < 0 ||
        check_old_layers(m, phase, err) < 0) {
        if (phase == QM_PHASE_HELD) /* what is done stays done */
            err->disk = QMELD_DISK_OLD;
        return -1;
    }
    if (qm_merge_advance(m, QM_PHASE_BACK, err) < 0 || point_back(m, err) < 0 ||
        qm_back_restore(&m->back, err) < 0)
        return -1;
    m->report->reverted = true;
    m->report->base_new_size = m->report->base_old_size;
    for (size_t i = 0; i < m->report->n_layers; i++)
        m->report->layers[i].fate = QMELD_FATE_UNTOUCHED;
    return qm_merge_remove_journal(m, err);
}

/* In PROTECT no layer has changed, so there is a way back whatever was asked for.  What others were given is what they
 * read. */
static int
leave_off(struct qm_merge *m, struct qmeld_error *err)
{
    if (qm_merge_take_over(m, true, err) < 0 || qm_merge_unprotect(m, err) < 0 ||
        (qm_journal_intent(m->journal)->back.kind == QM_WAY_KEEP &&
         qm_back_give_up(&m->back, err) < 0))
        return -1;
    m->report->reverted = true;
    m->report->base_new_size = m->report->base_old_size;
    for (size_t i = 0; i < m->report->n_layers; i++)
        m->report->layers[i].fate = QMELD_FATE_UNTOUCHED;
    return qm_merge_remove_journal(m, err);
}

int
qm_merge_revert(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    if (qm_journal_cursor(m->journal).phase == QM_PHASE_PROTECT)
        return leave_off(m, err);
    if (intent->back.kind == QM_WAY_NONE)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_journal_file(m->journal)),
                       "this merge was begun without --atomic or --undo and cannot be taken back: "
                       "finish it with `qmeld resume`");
    if (qm_journal_cursor(m->journal).phase == QM_PHASE_FINAL)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_journal_file(m->journal)),
                       "what going back needs is being given up already: finish it with "
                       "`qmeld resume`");
    return qm_merge_go_back(m, err);
}

/* Of a merge that is held only the target matters: overlays may have been removed since. */
static int
open_target(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_journal_layer *l = &intent->layers.at[intent->base];
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = l->format,
                                         .allow = (const char *const *)intent->allow.at,
                                         .single = true,
                                         .resumed = true,
                                         .keys = QM_KEYS_NONE};

    if (qm_chain_open(l->path, &how, &m->chain, err) < 0)
        return -1;
    m->back = (struct qm_back){.journal = m->journal, .target = m->chain->layers[0].img};
    return qm_journal_same(l, m->back.target, false, err);
}

int
qm_merge_finalize(struct qm_merge *m, struct qmeld_error *err)
{
    const enum qm_phase phase = qm_journal_cursor(m->journal).phase;
    const bool kept = qm_journal_intent(m->journal)->overlays == QMELD_OVERLAYS_KEEP;

    if (phase == QM_PHASE_FINAL && !kept)
        return qm_merge_resume(m, err);
    if (phase != QM_PHASE_HELD && phase != QM_PHASE_FINAL)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_journal_file(m->journal)),
                       "this merge is not done yet: finish it with `qmeld resume` first");
    /* A reader's lock keeps writers away, and a running machine that only reads the base need not be
     * stopped: what is given up nobody looks at. */
    if (qm_merge_tell(m, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN);
    if (open_target(m, err) < 0 || qm_journal_hold(m->journal, err) < 0 ||
        qm_merge_advance(m, QM_PHASE_FINAL, err) < 0 || qm_back_give_up(&m->back, err) < 0)
        return -1;
    return qm_merge_remove_journal(m, err);
}
