/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * rehearse.c - will there be room?  The merge, done dry, tells to the block.
 */
#include "merge_int.h"

#include "shadow.h"

/* Everything from here to the end of the merge, dry.  m has been counted; what that found is not looked for
 * again. */
static int
rehearse(const struct qm_merge *m, const struct qm_intent *intent, const char *journal,
         struct qmeld_error *err)
{
    struct qmeld_commit_report unread = {.already_merged = m->report->already_merged};
    struct qmeld_commit_options opts = *m->opts;
    struct qm_merge dry = {.opts = &opts, .report = &unread, .opened = m->chain};
    const bool resumed = m->journal && qm_journal_cursor(m->journal).phase != QM_PHASE_PROTECT;
    struct qm_intent copy = {.base_arg = NULL};
    int rc = -1;

    opts.bandwidth = 0; /* that is for the merge: what is compared here is compared again */
    if (qm_merge_open_whole(&dry, intent, err) == 0 && qm_merge_prepare(&dry, intent, err) == 0) {
        dry.transfer.from = m->transfer.from;
        rc = m->journal ? qm_journal_load(journal, &dry.journal, err)
             : qm_intent_copy(intent, &copy, err) < 0
                 ? -1
                 : qm_journal_create(journal, &copy, &dry.journal, err);
    }
    if (rc == 0) {
        qm_merge_set_back(&dry);
        rc = resumed ? qm_back_enter(&dry.back, err) : 0;
    }
    if (rc == 0)
        rc = qm_merge_work(&dry, resumed, err);
    qm_merge_release(&dry);
    qmeld_commit_report_free(&unread);
    return rc;
}

static int
judge(const struct qm_merge *m, const struct qm_intent *intent, const char *journal,
      struct qmeld_error *err)
{
    struct qm_shadow *dry;
    int rc;

    if (qm_shadow_begin(false, &dry, err) < 0)
        return -1;
    rc = rehearse(m, intent, journal, err);
    if (rc == 0)
        rc = qm_shadow_finish(dry, err);
    if (rc == 0)
        rc = qm_space_judge(dry, err);
    qm_shadow_end(dry);
    return rc;
}

/* Where there is no room as asked: would there be if overlays were emptied on the way? */
static void
look_for_help(const struct qm_merge *m, const struct qm_intent *intent, const char *journal,
              struct qmeld_error *err)
{
    struct qmeld_error unheard = {0};
    struct qm_intent other;

    if (err->code != QMELD_NOSPACE || m->journal || intent->reclaim ||
        intent->overlays == QMELD_OVERLAYS_QUARANTINE ||
        qm_intent_copy(intent, &other, &unheard) < 0)
        return;
    other.reclaim = true;
    other.back.kind = QM_WAY_NONE;
    if (judge(m, &other, journal, &unheard) == 0)
        qm_space_recommend_reclaim(err);
    qm_intent_release(&other);
}

/* A dry run is somebody's who will judge by himself. */
int
qm_merge_check_room(const struct qm_merge *m, const struct qm_intent *intent, const char *journal,
                    struct qmeld_error *err)
{
    const struct qm_transfer *t = &m->transfer;
    const enum qmeld_disk disk = err->disk;
    bool ample;
    int rc;

    if (qm_shadow_now())
        return 0;
    qm_space_is_ample(&t->space, m->chain, t->base, t->top + 1, t->target, journal, &ample);
    /* what a merge with a way back writes elsewhere is not in the sum */
    if (ample && intent->back.kind == QM_WAY_NONE && intent->guarded.n == 0)
        return 0;
    rc = judge(m, intent, journal, err);
    err->disk = disk; /* dry: nothing has happened, however it ended */
    if (rc == 0)
        return 0;
    if (err->code != QMELD_NOMEM) {
        look_for_help(m, intent, journal, err);
        return -1;
    }
    *err = (struct qmeld_error){.disk = disk}; /* too much for a dry run is not so for the disk */
    return 0;
}
