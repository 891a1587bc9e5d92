/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * resume.c - going on with a merge that a journal tells of.
 */
#include "merge_int.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The base's name leads to the layer that it was moved up into, its file is no more. */
static bool
is_replaced(const struct qm_intent *intent)
{
    const struct qm_journal_layer *target = &intent->layers.at[intent->target];

    return intent->target > intent->base && qm_journal_path_now(target) != target->path;
}

/* Opens layer i of the list; it stays closed if it is gone as was meant. */
static int
open_one(struct qm_merge *m, const struct qm_intent *intent, size_t i, struct qmeld_error *err)
{
    const struct qm_journal_layer *l = &intent->layers.at[i];
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = l->format,
                                         .allow = (const char *const *)intent->allow.at,
                                         .named = qm_vec_last(&intent->layers)->path,
                                         .single = true,
                                         .resumed = true,
                                         .keys = QM_KEYS_IF_GIVEN,
                                         .secrets = m->opts->secrets};
    const bool goes = (intent->overlays == QMELD_OVERLAYS_DELETE ||
                       intent->overlays == QMELD_OVERLAYS_QUARANTINE) &&
                      i > intent->base && i <= intent->top && i != intent->target;
    const bool stays = i < intent->base || (i == intent->base && intent->target > i);
    struct qm_chain *one;

    if (i == intent->base && is_replaced(intent))
        return 0;
    if (qm_chain_open(qm_journal_path_now(l), &how, &one, err) < 0)
        return goes && err->sys_errno == ENOENT ? 0 : -1;
    m->chain->layers[i].img = QM_TAKE(one->layers[0].img);
    m->chain->layers[i].secret = one->layers[0].secret;
    qm_chain_close(one);
    return qm_journal_same(l, m->chain->layers[i].img, (goes && !intent->reclaim) || stays, err);
}

/* The layers as the journal lists them, each by itself: some headers name others by now, and
 * some files may be gone. */
static int
open_listed(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    m->chain = calloc(1, sizeof *m->chain);
    if (!m->chain || !(m->chain->layers = calloc(intent->layers.n, sizeof *m->chain->layers)))
        return qm_fail_nomem(err, "the chain");
    m->chain->n = intent->layers.n;
    for (size_t i = 0; i < m->chain->n; i++) {
        m->chain->layers[i].path = strdup(intent->layers.at[i].path);
        if (!m->chain->layers[i].path)
            return qm_fail_nomem(err, "the chain");
        if (i <= intent->top + 1 && open_one(m, intent, i, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_merge_open_whole(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    const struct qm_journal_layer *active = &intent->layers.at[intent->layers.n - 1];
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = active->format,
                                         .backing_format = intent->backing_format,
                                         .allow = (const char *const *)intent->allow.at,
                                         .named = intent->layers.at[intent->base].path,
                                         .resumed = true,
                                         .keys = qm_merge_keys(m),
                                         .secrets = m->opts->secrets,
                                         .opened = m->opened};

    if (qm_chain_open(active->path, &how, &m->chain, err) < 0)
        return -1;
    if (m->chain->n != intent->layers.n)
        return qm_fail(err, QMELD_STALE, qm_in(active->path),
                       "its chain has %zu layers, and had %zu when the unfinished merge began: put "
                       "the old files back",
                       m->chain->n, intent->layers.n);
    for (size_t i = 0; i < m->chain->n; i++) {
        const bool in_range = i >= intent->base && i <= intent->top;
        const bool untouched = i != intent->target && !(in_range && intent->reclaim) &&
                               !qm_intent_guards_layer(intent, i);

        if (qm_journal_same(&intent->layers.at[i], m->chain->layers[i].img, untouched, err) < 0)
            return -1;
    }
    return 0;
}

bool
qm_merge_tells_by_look(const struct qm_image *target)
{
    return target->data == target->file && !target->file->blockdev &&
           qm_file_is_local(target->file);
}

/* A device says nothing about when it was written to. */
static bool
layers_tell_by_look(const struct qm_merge *m)
{
    const struct qm_transfer *t = &m->transfer;

    for (size_t i = t->base; i <= t->top; i++)
        if (!qm_merge_tells_by_look(m->chain->layers[i].img))
            return false;
    return true;
}

/* The target looks as the last run left it when it was stopped: nobody has written to it.  Nor to a layer, as far as
 * that can be told: otherwise what they hold now has to be looked for in it. */
static int
is_as_left(const struct qm_merge *m, bool *out, struct qmeld_error *err)
{
    const struct qm_image *target = m->chain->layers[m->transfer.target].img;
    const struct qm_trail then = qm_journal_trail(m->journal);
    struct qm_trail now = {.left = {.size = 0}};

    *out = false;
    if (!layers_tell_by_look(m) ||
        (then.left.mtime_sec == 0 && then.left.mtime_nsec == 0)) /* nothing was noted */
        return 0;
    if (qm_journal_look(target->file, &now, err) < 0)
        return -1;
    *out = then.left.size == now.left.size && then.left.mtime_sec == now.left.mtime_sec &&
           then.left.mtime_nsec == now.left.mtime_nsec;
    return 0;
}

/* The journal knows what was in the base; if an older base was put back since, the merge
 * must begin again. */
static int
find_start(struct qm_merge *m, guest_off done, struct qmeld_error *err)
{
    bool there;

    done.g = qm_min(done.g, m->chain->layers[m->transfer.target].img->size);
    if (is_as_left(m, &there, err) < 0 ||
        (!there && qm_transfer_still_there(&m->transfer, done, &there, err) < 0))
        return -1;
    if (!there && m->transfer.give_up)
        return qm_fail(
            err, QMELD_STALE, qm_in(m->chain->layers[m->transfer.target].path),
            "it does not hold what was merged into it any more, and the layers above have "
            "given that up: put the merged file back");
    m->transfer.from = there ? done : qm_guest(0);
    return qm_journal_advance(
        m->journal, (struct qm_cursor){.phase = QM_PHASE_COPY, .done = m->transfer.from}, err);
}

/* Layers that are emptied change by that, so how they look does not tell whether a guest has written to them meanwhile, as
 * it may: the active layer reads right.  What they still answer must be in the base, or emptying them loses it.  Of a range of
 * which only the top is emptied, layers below it answer with what is older than the base. */
static int
check_emptied(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_transfer *t = &m->transfer;
    const size_t bottom = t->give_up ? t->target + 1 : t->top;
    bool there;

    if (bottom > t->top)
        return 0;
    for (size_t i = t->base; i <= t->top; i++)
        if (!m->chain->layers[i].img)
            return 0;
    if (qm_transfer_holds(t, bottom, &there, err) < 0)
        return -1;
    if (there)
        return 0;
    return qm_fail(
        err, QMELD_STALE, qm_in(m->chain->layers[t->top].path),
        "it holds what %s has not got, so one of them was written to since they were merged: "
        "remove the journal %s and give the merge command again, which merges that, too; or "
        "put the old files back",
        m->chain->layers[t->target].path, qm_journal_file(m->journal));
}

/* Before the last copies are given up: is all of it in the base?  Where some of them are gone
 * already, that cannot be told any more. */
static int
check_complete(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_transfer *t = &m->transfer;
    struct qm_compare_result found;

    m->report->verified = intent->verify; /* before the journal said so */
    if (m->settle_config.overlays == QMELD_OVERLAYS_EMPTY || t->give_up)
        return check_emptied(m, err);
    for (size_t i = t->base; i <= t->top; i++)
        if (!m->chain->layers[i].img)
            return 0;
    if (t->verify ? qm_merge_read_back(m, intent->backing_format, &found, err) < 0
                  : qm_transfer_still_there(t, qm_guest(UINT64_MAX), &found.equal, err) < 0)
        return -1;
    m->report->verified = t->verify && found.equal;
    if (found.equal)
        return 0;
    return qm_fail(
        err, QMELD_STALE, qm_in(m->chain->layers[t->target].path),
        "it does not hold what was merged into it any more: put the merged file back, or "
        "remove the journal %s and give the merge command again",
        qm_journal_file(m->journal));
}

/* What the interrupted run was about to give up: its space may be needed at once.  In the same order,
 * as it may have come anywhere. */
static int
give_up_again(struct qm_merge *m, struct qmeld_error *err)
{
    if (qm_merge_open_reclaim(m, true, err) < 0)
        return -1;
    return m->reclaim ? qm_reclaim_until(m->reclaim, m->transfer.from, err) : 0;
}

/* For going on, or back: nobody else is at it, and nobody will be. */
int
qm_merge_take_over(struct qm_merge *m, bool whole, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_journal_is_held(m->journal)) /* said plainer than by the locks on the layers */
        return qm_fail(err, QMELD_BUSY, qm_in(qm_journal_file(m->journal)),
                       "another process is at work on this merge: wait for it");
    if ((whole ? qm_merge_open_whole(m, intent, err) : open_listed(m, intent, err)) < 0 ||
        qm_merge_prepare(m, intent, err) < 0 || qm_journal_hold(m->journal, err) < 0 ||
        qm_merge_ask_guard(m, err) != 0)
        return -1;
    qm_merge_set_back(m);
    return 0;
}

static int
resume_copy(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const guest_off done =
        intent->already ? qm_guest(intent->new_size) : qm_journal_cursor(m->journal).done;

    if (qm_merge_take_over(m, true, err) < 0 || qm_back_enter(&m->back, err) < 0 ||
        find_start(m, done, err) < 0)
        return -1;
    /* only bitmaps were left to be changed, and still are */
    m->report->already_merged = intent->already && m->transfer.from.g >= intent->new_size;
    if (give_up_again(m, err) < 0 || qm_transfer_count(&m->transfer, err) < 0 ||
        qm_merge_check_room(m, qm_journal_intent(m->journal), qm_journal_file(m->journal), err) < 0)
        return -1;
    return qm_merge_work(m, true, err);
}

/* No layer has changed: what is left to do is the whole merge. */
static int
resume_protect(struct qm_merge *m, struct qmeld_error *err)
{
    if (qm_merge_take_over(m, true, err) < 0 || qm_merge_meet_newcomers(m, err) < 0 ||
        qm_transfer_count(&m->transfer, err) < 0 ||
        qm_merge_check_room(m, qm_journal_intent(m->journal), qm_journal_file(m->journal), err) < 0)
        return -1;
    return qm_merge_work(m, false, err);
}

/* What the layers are worth, without opening them. */
int
qm_merge_tell(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_settle_config config = {.base = intent->base,
                                            .top = intent->top,
                                            .target = intent->target,
                                            .overlays = intent->overlays};
    struct qmeld_commit_report *r = m->report;

    r->base_old_size = intent->base_size;
    r->base_new_size = intent->new_size;
    r->layers = calloc(intent->layers.n, sizeof *r->layers);
    if (!r->layers)
        return qm_fail_nomem(err, "the report");
    QM_VEC_EACH (l, &intent->layers) {
        struct qmeld_commit_layer *out = &r->layers[r->n_layers];

        out->fate = qm_settle_fate(&config, r->n_layers++);
        out->path = strdup(l->path);
        if (!out->path)
            return qm_fail_nomem(err, "the report");
    }
    return 0;
}

/* A merge that is held is done - as long as nobody wrote to a layer that was merged, which he may want
 * to merge again. */
static int
tell_held(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    for (size_t i = intent->base + 1; i <= intent->top; i++)
        if (!qm_intent_guards_layer(intent, i) && qm_journal_changed(&intent->layers.at[i]))
            return qm_fail(err, QMELD_USAGE, qm_in(intent->layers.at[i].path),
                           "it has changed since it was merged, and that merge can still be taken "
                           "back: say `qmeld finalize %s` first, or `qmeld revert` in the same way",
                           qm_journal_file(m->journal));
    m->report->held = m->report->already_merged = true;
    return qm_merge_tell(m, err);
}

int
qm_merge_resume(struct qm_merge *m, struct qmeld_error *err)
{
    const enum qm_phase phase = qm_journal_cursor(m->journal).phase;
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    m->transfer.base =
        intent->base; /* for who tells what this is, where nothing is to be prepared */
    m->transfer.top = intent->top;
    m->transfer.target = intent->target;
    if (phase == QM_PHASE_HELD)
        return tell_held(m, err);
    m->report->resumed = true;
    if (qm_merge_tell_protected(m, err) < 0)
        return -1;
    if (phase == QM_PHASE_PROTECT)
        return resume_protect(m, err);
    if (phase == QM_PHASE_BACK)
        return qm_merge_go_back(m, err);
    if (phase == QM_PHASE_COPY)
        return resume_copy(m, err);
    if (phase == QM_PHASE_FINAL && qm_journal_intent(m->journal)->overlays == QMELD_OVERLAYS_KEEP)
        return qm_merge_finalize(m, err); /* it was held: overlays may be gone since */
    if (qm_merge_take_over(m, false, err) < 0)
        return -1;
    if (phase == QM_PHASE_FINAL) /* with a way back, layers are emptied only here */
        return intent->overlays == QMELD_OVERLAYS_EMPTY && check_emptied(m, err) < 0
                   ? -1
                   : qm_merge_finish(m, err);
    if (qm_back_adopt(&m->back, m->back.target, err) < 0 || check_complete(m, err) < 0)
        return -1;
    return qm_merge_settle(m, err);
}
