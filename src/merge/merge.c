/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge.c - lock, check, count, journal; transfer and seal; settle; journal away.
 *
 * The states a merge can be found in, and what leads from one to the next:
 *
 *     (none) --journal created--> COPY --target finished--> SETTLE --journal removed--> (none)
 *
 * In COPY the chain's own files say the same as before, read from the top; in SETTLE the target alone
 * does, too.  Resuming repeats what may have been done: every step may be done twice.
 *
 * A merge with a way back (back.h) comes to more of them:
 *
 *     SETTLE --overlays kept--> HELD --finalize--> FINAL --> (none)
 *     SETTLE --overlays given up----------------->
 *     COPY, SETTLE, HELD --revert--> BACK --> (none)
 */
#include "merge.h"

#include "lock.h"
#include "qcow2_header.h"
#include "shadow.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- before the first write ---- */

/* The corrupt bit forbids writing (specification, "incompatible_features"), and a corrupt
 * source would be copied as if it were right.  An overlay's internal snapshots read through
 * the layers below, which are about to change. */
static int
refuse_layer(const struct qm_merge *m, size_t i, struct qmeld_error *err)
{
    const struct qm_layer *layer = &m->chain->layers[i];
    const struct qm_qcow2 *q = qm_qcow2_of(layer->img);

    if (!q)
        return 0;
    if (q->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return qm_fail(err, QMELD_CORRUPT, qm_in(layer->path),
                       "the image is marked corrupt: run `qmeld check --repair=all` on it first");
    if (i > m->transfer.base && i <= m->transfer.top && q->hdr.n_snapshots > 0)
        return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                       "it has %" PRIu32
                       " internal snapshots, which would read other data after the merge: delete "
                       "them first (`qemu-img snapshot -d`)",
                       q->hdr.n_snapshots);
    return 0;
}

/* The base and the middle layers hold, by themselves, neither the old nor the new view while
 * the merge runs: nobody may even read them.  Whose header is rewritten may not be opened.  Top, if
 * it gives up its clusters as the merge goes: who reads it may hold its tables in memory. */
static int
lock_layers(const struct qm_merge *m, struct qmeld_error *err)
{
    const size_t base = m->transfer.base, top = m->transfer.top;
    const bool change_top = m->settle_config.overlays != QMELD_OVERLAYS_KEEP;
    const bool reclaim = m->settle_config.reclaim;

    for (size_t i = base; i < m->chain->n && i <= top + 1; i++) {
        enum qm_lock_role role = QM_LOCK_EXCLUSIVE;

        if (!m->chain->layers[i].img) /* removed already, by the run that was interrupted */
            continue;
        if (i == top && !reclaim)
            role = change_top ? QM_LOCK_WRITER : QM_LOCK_READER;
        else if (i > top)
            role = QM_LOCK_WRITER;
        if (refuse_layer(m, i, err) < 0 ||
            qm_lock_take(m->chain->layers[i].img->file, role, err) < 0)
            return -1;
    }
    return 0;
}

static int
list_layers(const struct qm_merge *m, struct qmeld_error *err)
{
    struct qmeld_commit_report *r = m->report;

    r->layers = calloc(m->chain->n, sizeof *r->layers);
    if (!r->layers)
        return qm_fail_nomem(err, "the report");
    for (size_t i = 0; i < m->chain->n; i++) {
        struct qmeld_commit_layer *l = &r->layers[r->n_layers++];

        l->fate = qm_settle_fate(&m->settle_config, i);
        l->path = strdup(m->chain->layers[i].path);
        if (l->fate == QMELD_FATE_QUARANTINED)
            l->moved_to = strdup(m->moved_to[i]);
        if (!l->path || (l->fate == QMELD_FATE_QUARANTINED && !l->moved_to))
            return qm_fail_nomem(err, "the report");
    }
    return 0;
}

/* Guest bytes of the base that the child will see when it reads the base itself: up to its own
 * end, or that of an internal snapshot taken before it was shrunk, to which it can be reverted. */
static int
find_hidden_end(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_transfer *t = &m->transfer;
    const size_t child = t->top + 1;
    const struct qm_qcow2 *q;
    struct qm_snapshots snapshots;
    int rc;

    if (child >= m->chain->n)
        return 0;
    t->hidden_end = m->chain->layers[child].img->size;
    q = qm_qcow2_of(m->chain->layers[child].img);
    if (q) {
        rc = qm_qcow2_read_snapshots(q, &snapshots, err);
        QM_VEC_EACH (s, &snapshots.list)
            t->hidden_end = qm_max(t->hidden_end, s->disk_size);
        qm_snapshots_release(&snapshots);
        if (rc < 0)
            return -1;
    }
    t->hidden_end = qm_min(t->hidden_end, t->base_size);
    return 0;
}

static int
note_new_names(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    m->moved_to = calloc(intent->layers.n, sizeof *m->moved_to);
    if (!m->moved_to)
        return qm_fail_nomem(err, "the layers' names");
    for (size_t i = 0; i < intent->layers.n; i++)
        m->moved_to[i] = intent->layers.at[i].moved_to;
    m->settle_config.moved_to = m->moved_to;
    return 0;
}

/* Everything that can be refused, is refused here. */
static int
prepare(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    struct qm_transfer *t = &m->transfer;

    t->chain = m->chain;
    t->opts = m->opts;
    t->looked = m->looked;
    t->report = m->report;
    t->base = intent->base;
    t->top = intent->top;
    t->base_size = intent->base_size;
    t->new_size = intent->new_size;
    t->verify = !qm_shadow_now() && (intent->verify || m->opts->verify);
    t->give_up = intent->reclaim;
    m->report->reclaimed = intent->reclaim;
    m->report->base_old_size = t->base_size;
    m->report->base_new_size = t->new_size;
    if (t->give_up && m->chain->layers[t->base].img->size >= t->new_size)
        t->base_size = t->new_size; /* an earlier run has done that part */
    m->settle_config = (struct qm_settle_config){.chain = m->chain,
                                                 .base = t->base,
                                                 .top = t->top,
                                                 .overlays = intent->overlays,
                                                 .keep_relative = intent->keep_relative,
                                                 .reclaim = intent->reclaim};
    if (note_new_names(m, intent, err) < 0 || lock_layers(m, err) < 0 ||
        find_hidden_end(m, err) < 0 || qm_settle_check(&m->settle_config, &m->settle, err) < 0)
        return -1;
    return list_layers(m, err);
}

/* ---- reading back ---- */

/* The base is opened anew, so that nothing is believed that this process remembers; what the page cache remembers
 * is dropped.  The locks that are held keep everybody else out. */
static int
read_back(const struct qm_merge *m, const char *backing_format, struct qm_compare_result *out,
          struct qmeld_error *err)
{
    const struct qm_layer *base = &m->chain->layers[m->transfer.base];
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK,
                                         .format = base->img->ops->format,
                                         .backing_format = backing_format,
                                         .resumed = true};
    struct qm_chain *anew;
    int rc;

    qm_drop_cache(base->img->file, 0, 0);
    if (qm_chain_open(base->path, &how, &anew, err) < 0)
        return -1;
    rc = qm_back_adopt(&m->back, anew->layers[anew->n - 1].img, err);
    if (rc == 0)
        rc = qm_transfer_read_back(&m->transfer, anew, out, err);
    qm_chain_close(anew);
    if (rc == 0)
        m->report->bytes_verified += out->bytes;
    return rc;
}

/* If it is asked for; everything is durable. */
static int
verify(const struct qm_merge *m, const char *backing_format, struct qmeld_error *err)
{
    struct qm_compare_result found;

    if (!m->transfer.verify)
        return 0;
    if (read_back(m, backing_format, &found, err) < 0)
        return -1;
    /* what an earlier run gave up without reading back cannot be read back now */
    m->report->verified = found.equal && !(m->transfer.give_up && m->transfer.from.g > 0 &&
                                           !qm_journal_intent(m->journal)->verify);
    return found.equal ? 0 : qm_transfer_lost(&m->transfer, found.differs, err);
}

/* ---- the work ---- */

/* The journal is there from here on. */
static void
set_back(struct qm_merge *m)
{
    m->back = (struct qm_back){.journal = m->journal,
                               .target = m->chain->layers[m->transfer.base].img,
                               .plan = qm_transfer_plan(&m->transfer)};
}

static int
advance(struct qm_merge *m, enum qm_phase phase, struct qmeld_error *err)
{
    const struct qm_cursor to = {.phase = phase, .done = qm_journal_cursor(m->journal).done};

    return qm_journal_advance(m->journal, to, err);
}

static int
remove_journal(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_journal *j = QM_TAKE(m->journal);

    err->disk = QMELD_DISK_NEW;
    return qm_journal_remove(j, err);
}

/* FINAL */
static int
finish(struct qm_merge *m, struct qmeld_error *err)
{
    if (qm_settle_give_up(m->settle, err) < 0 || qm_back_give_up(&m->back, err) < 0)
        return -1;
    return remove_journal(m, err);
}

/* The merge ends here, for now; how the target looks tells later whether it was written to since. */
static int
hold(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_trail trail = qm_journal_trail(m->journal);

    if (qm_journal_look(m->back.target->file, &trail, err) < 0 ||
        qm_journal_set_trail(m->journal, &trail, err) < 0 || advance(m, QM_PHASE_HELD, err) < 0)
        return -1;
    m->report->held = true;
    return 0;
}

static int
settle(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    if (qm_back_switch_over(&m->back, err) < 0 || qm_settle_repoint(m->settle, err) < 0)
        return -1;
    if (intent->back.kind != QM_WAY_NONE && intent->overlays == QMELD_OVERLAYS_KEEP)
        return hold(m, err);
    if (intent->back.kind != QM_WAY_NONE && advance(m, QM_PHASE_FINAL, err) < 0)
        return -1;
    return finish(m, err);
}

static int
open_reclaim(struct qm_merge *m, bool resumed, struct qmeld_error *err)
{
    struct qm_transfer *t = &m->transfer;

    if (!t->give_up || m->reclaim)
        return 0;
    if (qm_reclaim_open(m->chain, t->base, t->top, resumed, &m->reclaim, err) < 0)
        return -1;
    t->reclaim = m->reclaim;
    return 0;
}

static int
work_in_batches(struct qm_merge *m, struct qm_seal *seal, bool resumed, struct qmeld_error *err)
{
    struct qm_transfer *t = &m->transfer;

    if (open_reclaim(m, false, err) < 0 || qm_transfer_grow(t, seal, err) < 0 ||
        (resumed && qm_transfer_mark(t, seal, err) < 0))
        return -1;
    return qm_transfer_run(t, seal, m->journal, err);
}

static int
transfer(struct qm_merge *m, bool resumed, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_seal_config config = {.chain = m->chain,
                                          .target = m->transfer.base,
                                          .new_size = m->transfer.new_size,
                                          .resumed = resumed,
                                          .trusted_bitmaps = resumed ? &intent->bitmaps : NULL};
    struct qm_seal *seal;

    if ((!resumed && qm_back_enter(&m->back, err) < 0) || qm_seal_begin(&config, &seal, err) < 0)
        return -1;
    m->transfer.back = &m->back;
    qm_err_disk(err, QMELD_DISK_OPEN); /* until the end of the merge, whatever fails */
    if (work_in_batches(m, seal, resumed, err) < 0) {
        qm_seal_abandon(seal);
        return -1;
    }
    return qm_seal_finish(seal, err);
}

static int
work(struct qm_merge *m, bool resumed, struct qmeld_error *err)
{
    const struct qm_cursor complete = {.phase = QM_PHASE_SETTLE,
                                       .done = qm_guest(m->transfer.new_size)};

    if ((!m->report->already_merged && transfer(m, resumed, err) < 0) ||
        verify(m, qm_journal_intent(m->journal)->backing_format, err) < 0 ||
        qm_journal_advance(m->journal, complete, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN);
    return settle(m, err);
}

/* A merge that failed before it changed anything leaves no journal. */
static int
give_up(struct qm_merge *m, const struct qmeld_error *err)
{
    struct qmeld_error unheard = {0};
    struct qm_journal *j;

    if (err->disk != QMELD_DISK_OLD || !m->journal)
        return -1;
    if (qm_journal_intent(m->journal)->back.kind == QM_WAY_KEEP &&
        qm_back_give_up(&m->back, &unheard) < 0)
        return -1; /* what was kept of nothing stays, with the journal that tells of it */
    j = QM_TAKE(m->journal);
    if (qm_journal_remove(j, &unheard) < 0)
        unheard.code =
            QMELD_OK; /* the first error is the one to tell; a journal of nothing is harmless */
    return -1;
}

static int
refuse_growth(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(m->chain->layers[m->transfer.base].img);

    return q ? qm_bitmaps_let_grow(q, m->transfer.new_size, err) : 0;
}

/* The last moment before something is written. */
static int
ask_guard(const struct qm_merge *m, struct qmeld_error *err)
{
    return m->opts->guard ? m->opts->guard(QMELD_MOMENT_LOCKED, m->opts->guard_opaque, err) : 0;
}

/* ---- will there be room? ---- */

/* The chain as the journal lists it, opened anew. */
static int open_whole(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err);

/* Everything from here to the end of the merge, dry.  m has been counted; what that found is not looked for
 * again. */
static int
rehearse(const struct qm_merge *m, const struct qm_intent *intent, const char *journal,
         struct qmeld_error *err)
{
    struct qmeld_commit_report unread = {.already_merged = m->report->already_merged};
    struct qm_merge dry = {.opts = m->opts, .report = &unread};
    struct qm_intent copy = {.base_arg = NULL};
    int rc = -1;

    if (open_whole(&dry, intent, err) == 0 && prepare(&dry, intent, err) == 0) {
        dry.transfer.from = m->transfer.from;
        rc = m->journal ? qm_journal_load(journal, &dry.journal, err)
             : qm_intent_copy(intent, &copy, err) < 0
                 ? -1
                 : qm_journal_create(journal, &copy, &dry.journal, err);
    }
    if (rc == 0) {
        set_back(&dry);
        rc = m->journal ? qm_back_enter(&dry.back, err) : 0;
    }
    if (rc == 0)
        rc = work(&dry, m->journal != NULL, err);
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
static int
check_room(const struct qm_merge *m, const struct qm_intent *intent, const char *journal,
           struct qmeld_error *err)
{
    const struct qm_transfer *t = &m->transfer;
    const enum qmeld_disk disk = err->disk;
    bool ample;
    int rc;

    if (qm_shadow_now())
        return 0;
    qm_space_is_ample(&t->space, m->chain, t->base, t->top + 1, journal, &ample);
    /* what a merge with a way back writes elsewhere is not in the sum */
    if (ample && intent->back.kind == QM_WAY_NONE)
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

int
qm_merge_begin(struct qm_merge *m, struct qm_intent *intent, const char *journal_path,
               struct qmeld_error *err)
{
    const struct qm_transfer *t = &m->transfer;
    bool done = m->report->already_merged;

    if (prepare(m, intent, err) < 0 || refuse_growth(m, err) < 0 ||
        (intent->reclaim && qm_reclaim_check(m->chain, t->base, t->top, err) < 0) ||
        qm_transfer_count(&m->transfer, err) < 0 ||
        (!m->looked && qm_transfer_is_done(&m->transfer, &done, err) < 0)) {
        qm_intent_release(intent);
        return -1;
    }
    m->report->already_merged = done;
    if (((!done || qm_settle_has_work(m->settle)) &&
         check_room(m, intent, journal_path, err) < 0) ||
        ask_guard(m, err) != 0) {
        qm_intent_release(intent);
        return -1;
    }
    /* whoever wrote it may have been killed before it was durable; overlays are to be given up now */
    if (done && qm_sync(m->chain->layers[m->transfer.base].img->file, err) < 0) {
        qm_intent_release(intent);
        return -1;
    }
    if (done && !qm_settle_has_work(m->settle)) {
        const int rc = verify(m, intent->backing_format, err);

        qm_intent_release(intent);
        return rc;
    }
    if (qm_journal_create(journal_path, intent, &m->journal, err) < 0)
        return -1;
    set_back(m);
    return work(m, false, err) < 0 ? give_up(m, err) : 0;
}

/* ---- going on ---- */

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
        const struct qm_journal_layer *l = &intent->layers.at[i];
        const struct qm_chain_options how = {
            .mode = QM_CHAIN_HOLD, .format = l->format, .single = true, .resumed = true};
        const bool goes = (intent->overlays == QMELD_OVERLAYS_DELETE ||
                           intent->overlays == QMELD_OVERLAYS_QUARANTINE) &&
                          i > intent->base && i <= intent->top;
        struct qm_chain *one;

        m->chain->layers[i].path = strdup(l->path);
        if (!m->chain->layers[i].path)
            return qm_fail_nomem(err, "the chain");
        if (i > intent->top + 1)
            continue;
        if (qm_chain_open(qm_journal_path_now(l), &how, &one, err) < 0) {
            if (goes && err->sys_errno == ENOENT)
                continue;
            return -1;
        }
        m->chain->layers[i].img = QM_TAKE(one->layers[0].img);
        qm_chain_close(one);
        if (qm_journal_same(l, m->chain->layers[i].img->file,
                            (goes && !intent->reclaim) || i < intent->base, err) < 0)
            return -1;
    }
    return 0;
}

static int
open_whole(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    const struct qm_journal_layer *active = &intent->layers.at[intent->layers.n - 1];
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = active->format,
                                         .backing_format = intent->backing_format,
                                         .resumed = true};

    if (qm_chain_open(active->path, &how, &m->chain, err) < 0)
        return -1;
    if (m->chain->n != intent->layers.n)
        return qm_fail(err, QMELD_STALE, qm_in(active->path),
                       "its chain has %zu layers, and had %zu when the unfinished merge began: put "
                       "the old files back",
                       m->chain->n, intent->layers.n);
    for (size_t i = 0; i < m->chain->n; i++) {
        const size_t changed_to = intent->reclaim ? intent->top : intent->base;
        const bool untouched = i < intent->base || i > changed_to;

        if (qm_journal_same(&intent->layers.at[i], m->chain->layers[i].img->file, untouched, err) <
            0)
            return -1;
    }
    return 0;
}

/* The journal knows what was in the base; if an older base was put back since, the merge
 * must begin again. */
static int
find_start(struct qm_merge *m, guest_off done, struct qmeld_error *err)
{
    bool there;

    done.g = qm_min(done.g, m->chain->layers[m->transfer.base].img->size);
    if (qm_transfer_still_there(&m->transfer, done, &there, err) < 0)
        return -1;
    if (!there && m->transfer.give_up)
        return qm_fail(
            err, QMELD_STALE, qm_in(m->chain->layers[m->transfer.base].path),
            "it does not hold what was merged into it any more, and the layers above have "
            "given that up: put the merged file back");
    m->transfer.from = there ? done : qm_guest(0);
    return qm_journal_advance(
        m->journal, (struct qm_cursor){.phase = QM_PHASE_COPY, .done = m->transfer.from}, err);
}

/* Before the last copies are given up: is all of it in the base?  Where some of them are gone or
 * emptied already, that cannot be told any more. */
static int
check_complete(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_transfer *t = &m->transfer;
    struct qm_compare_result found;

    m->report->verified = intent->verify; /* before the journal said so */
    if (m->settle_config.overlays == QMELD_OVERLAYS_EMPTY || t->give_up)
        return 0;
    for (size_t i = t->base + 1; i <= t->top; i++)
        if (!m->chain->layers[i].img)
            return 0;
    if (t->verify ? read_back(m, intent->backing_format, &found, err) < 0
                  : qm_transfer_still_there(t, qm_guest(UINT64_MAX), &found.equal, err) < 0)
        return -1;
    m->report->verified = t->verify && found.equal;
    if (found.equal)
        return 0;
    return qm_fail(
        err, QMELD_STALE, qm_in(m->chain->layers[t->base].path),
        "it does not hold what was merged into it any more: put the merged file back, or "
        "remove the journal %s and give the merge command again",
        qm_journal_file(m->journal));
}

/* What the interrupted run was about to give up: its space may be needed at once.  In the same order,
 * as it may have come anywhere. */
static int
give_up_again(struct qm_merge *m, struct qmeld_error *err)
{
    if (open_reclaim(m, true, err) < 0)
        return -1;
    return m->reclaim ? qm_reclaim_until(m->reclaim, m->transfer.from, err) : 0;
}

/* For going on, or back: nobody else is at it, and nobody will be. */
static int
take_over(struct qm_merge *m, bool whole, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_journal_is_held(m->journal)) /* said plainer than by the locks on the layers */
        return qm_fail(err, QMELD_BUSY, qm_in(qm_journal_file(m->journal)),
                       "another process is at work on this merge: wait for it");
    if ((whole ? open_whole(m, intent, err) : open_listed(m, intent, err)) < 0 ||
        prepare(m, intent, err) < 0 || qm_journal_hold(m->journal, err) < 0 ||
        ask_guard(m, err) != 0)
        return -1;
    set_back(m);
    return 0;
}

static int
resume_copy(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_cursor cursor = qm_journal_cursor(m->journal);

    if (take_over(m, true, err) < 0 || qm_back_enter(&m->back, err) < 0 ||
        find_start(m, cursor.done, err) < 0 || give_up_again(m, err) < 0 ||
        qm_transfer_count(&m->transfer, err) < 0 ||
        check_room(m, qm_journal_intent(m->journal), qm_journal_file(m->journal), err) < 0)
        return -1;
    return work(m, true, err);
}

/* What the layers are worth, without opening them. */
static int
tell(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_settle_config config = {
        .base = intent->base, .top = intent->top, .overlays = intent->overlays};
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
        if (qm_journal_changed(&intent->layers.at[i]))
            return qm_fail(err, QMELD_USAGE, qm_in(intent->layers.at[i].path),
                           "it has changed since it was merged, and that merge can still be taken "
                           "back: say `qmeld finalize %s` first, or `qmeld revert` in the same way",
                           qm_journal_file(m->journal));
    m->report->held = m->report->already_merged = true;
    return tell(m, err);
}

static int go_back(struct qm_merge *m, struct qmeld_error *err);

int
qm_merge_resume(struct qm_merge *m, struct qmeld_error *err)
{
    const enum qm_phase phase = qm_journal_cursor(m->journal).phase;

    if (phase == QM_PHASE_HELD)
        return tell_held(m, err);
    m->report->resumed = true;
    if (phase == QM_PHASE_BACK)
        return go_back(m, err);
    if (phase == QM_PHASE_COPY)
        return resume_copy(m, err);
    if (take_over(m, false, err) < 0)
        return -1;
    if (phase == QM_PHASE_FINAL)
        return finish(m, err);
    if (qm_back_adopt(&m->back, m->back.target, err) < 0 || check_complete(m, err) < 0)
        return -1;
    return settle(m, err);
}

/* ---- back ---- */

/* The old view is in the layers that were merged: all must be there, as they were. */
static int
check_old_layers(const struct qm_merge *m, enum qm_phase phase, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_trail trail = qm_journal_trail(m->journal);

    for (size_t i = intent->base; i < m->chain->n && i <= intent->top + 1; i++) {
        const struct qm_journal_layer *l = &intent->layers.at[i];
        /* the child lives on, and the header of a top that is to be emptied may have changed */
        const bool changes =
            i > intent->top || (i == intent->top && intent->overlays == QMELD_OVERLAYS_EMPTY);
        struct qm_journal_layer then = *l;

        if (!m->chain->layers[i].img)
            return qm_fail(err, QMELD_STALE, qm_in(l->path),
                           "it is not there any more, and going back needs it");
        if (i == intent->base) {
            then.size = trail.left.size;
            then.mtime_sec = trail.left.mtime_sec;
            then.mtime_nsec = trail.left.mtime_nsec;
        }
        if (qm_journal_same(&then, m->chain->layers[i].img->file,
                            i == intent->base ? phase == QM_PHASE_HELD : !changes, err) < 0)
            return -1;
    }
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
static int
go_back(struct qm_merge *m, struct qmeld_error *err)
{
    const enum qm_phase phase = qm_journal_cursor(m->journal).phase;

    if (take_over(m, false, err) < 0 || check_old_layers(m, phase, err) < 0 ||
        advance(m, QM_PHASE_BACK, err) < 0 || point_back(m, err) < 0 ||
        qm_back_restore(&m->back, err) < 0)
        return -1;
    m->report->reverted = true;
    m->report->base_new_size = m->report->base_old_size;
    for (size_t i = 0; i < m->report->n_layers; i++)
        m->report->layers[i].fate = QMELD_FATE_UNTOUCHED;
    return remove_journal(m, err);
}

int
qm_merge_revert(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    if (intent->back.kind == QM_WAY_NONE)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_journal_file(m->journal)),
                       "this merge was begun without --atomic or --undo and cannot be taken back: "
                       "finish it with `qmeld resume`");
    if (qm_journal_cursor(m->journal).phase == QM_PHASE_FINAL)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_journal_file(m->journal)),
                       "what going back needs is being given up already: finish it with "
                       "`qmeld resume`");
    return go_back(m, err);
}

/* Of a merge that is held only the target matters: overlays may have been removed since. */
static int
open_target(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_journal_layer *l = &intent->layers.at[intent->base];
    const struct qm_chain_options how = {
        .mode = QM_CHAIN_HOLD, .format = l->format, .single = true, .resumed = true};

    if (qm_chain_open(l->path, &how, &m->chain, err) < 0)
        return -1;
    m->back = (struct qm_back){.journal = m->journal, .target = m->chain->layers[0].img};
    return qm_journal_same(l, m->back.target->file, false, err);
}

int
qm_merge_finalize(struct qm_merge *m, struct qmeld_error *err)
{
    const enum qm_phase phase = qm_journal_cursor(m->journal).phase;

    if (phase == QM_PHASE_FINAL)
        return qm_merge_resume(m, err);
    if (phase != QM_PHASE_HELD)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_journal_file(m->journal)),
                       "this merge is not done yet: finish it with `qmeld resume` first");
    /* A reader's lock keeps writers away, and a running machine that only reads the base need not be
     * stopped: what is given up nobody looks at. */
    if (tell(m, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN);
    if (open_target(m, err) < 0 || qm_journal_hold(m->journal, err) < 0 ||
        advance(m, QM_PHASE_FINAL, err) < 0 || qm_back_give_up(&m->back, err) < 0)
        return -1;
    return remove_journal(m, err);
}

void
qm_merge_release(struct qm_merge *m)
{
    qm_settle_free(m->settle);
    qm_reclaim_free(m->reclaim);
    qm_back_release(&m->back);
    qm_journal_close(m->journal);
    qm_chain_close(m->chain);
    free(m->moved_to);
}
