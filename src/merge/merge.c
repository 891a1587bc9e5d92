/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge.c - lock, check, count, journal; transfer and seal; settle; journal away.
 *
 * The states a merge can be found in, and what leads from one to the next:
 *
 *     (none) --journal created--> COPY --target finished--> SETTLE --journal removed--> (none)
 *
 * with PROTECT in front of COPY if others depend on layers that change (others.c).
 *
 * In COPY the chain's own files say the same as before, read from the top; in SETTLE the target alone
 * does, too.  Resuming repeats what may have been done: every step may be done twice.
 *
 * A merge with a way back (back.h) comes to more of them:
 *
 *     SETTLE --overlays kept--> HELD --finalize--> FINAL --> (none)
 *     SETTLE --overlays given up----------------->
 *     COPY, SETTLE, HELD --revert--> BACK --> (none)
 *
 * "The base" below is the layer whose name the merged disk has in the end; "the target" the layer that is merged into,
 * which may be one above it (promote.h).
 */
#include "merge_int.h"

#include "lock.h"
#include "qcow2_header.h"
#include "shadow.h"
#include "signpost.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- before the first write ---- */

/* A data file is a second file that goes with a layer: it is merged from and into, but the layer cannot lose it. */
static int
refuse_data_file(const struct qm_merge *m, size_t i, struct qmeld_error *err)
{
    const struct qm_layer *layer = &m->chain->layers[i];
    const enum qmeld_overlays overlays = m->settle_config.overlays;
    const bool goes = m->settle_config.reclaim || overlays == QMELD_OVERLAYS_DELETE ||
                      (overlays == QMELD_OVERLAYS_EMPTY && i == m->transfer.top);

    if (i == m->transfer.target && layer->img->cipher)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(layer->path),
                       "it is encrypted, and has an external data file, which together can only be "
                       "read: flatten the chain into a new image instead");
    if (!goes || i <= m->transfer.base || i > m->transfer.top)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(layer->path),
                   "its data is in an external data file (%.200s), which would stay: use "
                   "--overlays=keep or quarantine, and remove both files then",
                   layer->img->data->path);
}

/* The corrupt bit forbids writing (specification, "incompatible_features"), and a corrupt
 * source would be copied as if it were right. */
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
    return q->geo.data_file ? refuse_data_file(m, i, err) : 0;
}

/* The target and the middle layers hold, by themselves, neither the old nor the new view while
 * the merge runs: nobody may even read them.  Whose header is rewritten may not be opened.  Top, if
 * it gives up its clusters as the merge goes, or is the target: who reads it may hold its tables in memory. */
static int
lock_layers(const struct qm_merge *m, struct qmeld_error *err)
{
    const size_t base = m->transfer.base, top = m->transfer.top;
    const bool change_top = m->settle_config.overlays != QMELD_OVERLAYS_KEEP;
    const bool top_changes = m->settle_config.reclaim || m->transfer.target == top;

    for (size_t i = base; i < m->chain->n && i <= top + 1; i++) {
        enum qm_lock_role role = QM_LOCK_EXCLUSIVE;

        if (!m->chain->layers[i].img) /* removed already, by the run that was interrupted */
            continue;
        if (i == top && !top_changes)
            role = change_top ? QM_LOCK_WRITER : QM_LOCK_READER;
        else if (i > top)
            role = QM_LOCK_WRITER;
        if (refuse_layer(m, i, err) < 0 || qm_image_lock(m->chain->layers[i].img, role, err) < 0)
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
        if (m->moved_to[i])
            l->moved_to = strdup(m->moved_to[i]);
        if (!l->path || (m->moved_to[i] && !l->moved_to))
            return qm_fail_nomem(err, "the report");
    }
    return 0;
}

/* Guest bytes of the target that the child will see when it reads the target itself: up to its own
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
    t->hidden_end = qm_min(t->hidden_end, t->new_size);
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

/* Where another layer than the base becomes the merged one. */
static int
prepare_promotion(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    const struct qm_journal_layer *base = &intent->layers.at[intent->base];
    const struct qm_promote_config config = {.chain = m->chain,
                                             .base = intent->base,
                                             .target = intent->target,
                                             .base_path = base->path,
                                             .backing_name = base->backing_name,
                                             .backing_format =
                                                 base->backing_name ? (base - 1)->format : NULL};

    if (intent->target == intent->base)
        return 0;
    return qm_promote_check(&config, &m->promote, err);
}

enum qm_chain_keys
qm_merge_keys(const struct qm_merge *m)
{
    const struct qmeld_commit_options *o = m->opts;

    return m->looked && o->direction == QMELD_DIRECTION_DOWN && !o->skip_equal && !o->detect_zeroes
               ? QM_KEYS_NONE
               : QM_KEYS_NEEDED;
}

/* Everything that can be refused, is refused here. */
int
qm_merge_prepare(struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    struct qm_transfer *t = &m->transfer;

    t->chain = m->chain;
    t->opts = m->opts;
    t->looked = m->looked;
    t->report = m->report;
    t->base = intent->base;
    t->top = intent->top;
    t->target = intent->target;
    t->old_size = intent->old_size;
    t->new_size = intent->new_size;
    t->verify = !qm_shadow_now() && (intent->verify || m->opts->verify);
    t->inflate_all = intent->verify || m->opts->verify;
    t->decompress = intent->decompress;
    t->give_up = intent->reclaim;
    t->skip_equal = intent->skip_equal;
    t->detect_zeroes = intent->detect_zeroes;
    m->report->reclaimed = intent->reclaim;
    m->report->base_old_size = intent->base_size;
    m->report->base_new_size = t->new_size;
    m->report->direction = t->target > t->base ? QMELD_DIRECTION_UP : QMELD_DIRECTION_DOWN;
    if (t->give_up && m->chain->layers[t->target].img->size >= t->new_size)
        t->old_size = t->new_size; /* an earlier run has done that part */
    m->settle_config = (struct qm_settle_config){.chain = m->chain,
                                                 .base = t->base,
                                                 .top = t->top,
                                                 .target = t->target,
                                                 .overlays = intent->overlays,
                                                 .keep_relative = intent->keep_relative,
                                                 .reclaim = intent->reclaim};
    m->carry = (struct qm_carry){.chain = m->chain,
                                 .base = t->base,
                                 .top = t->top,
                                 .target = t->target,
                                 .mode = intent->bitmaps_mode,
                                 .layers_stay = intent->overlays != QMELD_OVERLAYS_DELETE,
                                 .new_size = t->new_size};
    t->new_bitmaps = qm_carry_n_created(&intent->orders);
    if (note_new_names(m, intent, err) < 0 || lock_layers(m, err) < 0 ||
        find_hidden_end(m, err) < 0 || qm_transfer_begin(t, err) < 0 ||
        qm_settle_check(&m->settle_config, &m->settle, err) < 0 ||
        prepare_promotion(m, intent, err) < 0 ||
        qm_carry_tell(&m->carry, &intent->orders, &m->report->bitmaps, &m->report->n_bitmaps, err) <
            0)
        return -1;
    return list_layers(m, err);
}

/* ---- reading back ---- */

static const char *const *
allowed(const struct qm_merge *m)
{
    return m->journal ? (const char *const *)qm_journal_intent(m->journal)->allow.at
                      : m->opts->allow_paths;
}

/* The target is opened anew, so that nothing is believed that this process remembers; what the page cache remembers
 * is dropped.  The locks that are held keep everybody else out. */
int
qm_merge_read_back(const struct qm_merge *m, const char *backing_format,
                   struct qm_compare_result *out, struct qmeld_error *err)
{
    const struct qm_layer *target = &m->chain->layers[m->transfer.target];
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK,
                                         .format = target->img->ops->format,
                                         .backing_format = backing_format,
                                         .allow = allowed(m),
                                         .named = m->chain->layers[m->chain->n - 1].path,
                                         .opened = m->chain,
                                         .resumed = true};
    struct qm_chain *anew;
    int rc;

    qm_drop_cache(target->img->file, 0, 0);
    qm_drop_cache(target->img->data, 0, 0);
    if (qm_chain_open(target->img->file->path, &how, &anew, err) < 0)
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
    struct qm_compare_result found = {.equal = false};

    if (!m->transfer.verify)
        return 0;
    if (qm_merge_read_back(m, backing_format, &found, err) < 0)
        return -1;
    /* what an earlier run gave up without reading back cannot be read back now */
    m->report->verified = found.equal && !(m->transfer.give_up && m->transfer.from.g > 0 &&
                                           !qm_journal_intent(m->journal)->verify);
    return found.equal ? 0 : qm_transfer_lost(&m->transfer, found.differs, err);
}

/* ---- the work ---- */

/* The journal is there from here on. */
void
qm_merge_set_back(struct qm_merge *m)
{
    m->back = (struct qm_back){.journal = m->journal,
                               .target = m->chain->layers[m->transfer.target].img,
                               .plan = qm_transfer_plan(&m->transfer),
                               .progress = m->opts->progress,
                               .opaque = m->opts->opaque};
}

int
qm_merge_advance(struct qm_merge *m, enum qm_phase phase, struct qmeld_error *err)
{
    const struct qm_cursor to = {.phase = phase, .done = qm_journal_cursor(m->journal).done};

    return qm_journal_advance(m->journal, to, err);
}

int
qm_merge_remove_journal(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_journal *j = QM_TAKE(m->journal);

    err->disk = QMELD_DISK_NEW;
    return qm_journal_remove(j, err);
}

/* The very end.  What led to the journal goes after it: a hint that leads nowhere misleads nobody. */
static int
end(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    QM_FREE char *post = qm_signpost_place(intent, qm_journal_file(m->journal));

    if (qm_merge_remove_journal(m, err) < 0)
        return -1;
    qm_signpost_remove(post);
    return 0;
}

/* FINAL */
int
qm_merge_finish(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const bool go =
        intent->overlays == QMELD_OVERLAYS_DELETE || intent->overlays == QMELD_OVERLAYS_QUARANTINE;

    /* who stands on what goes; not before there is no way back */
    if (go && qm_protect_repoint(intent, err) < 0)
        return -1;
    qm_signpost_plant(intent, qm_journal_file(m->journal));
    if (qm_settle_give_up(m->settle, err) < 0 || qm_back_give_up(&m->back, err) < 0)
        return -1;
    qm_settle_mark_leftovers(m->settle);
    return end(m, err);
}

/* The merge ends here, for now; how the target looks tells later whether it was written to since. */
static int
hold(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_trail trail = qm_journal_trail(m->journal);

    if (qm_journal_look(m->back.target->file, &trail, err) < 0 ||
        qm_journal_set_trail(m->journal, &trail, err) < 0 ||
        qm_merge_advance(m, QM_PHASE_HELD, err) < 0)
        return -1;
    m->report->held = true;
    return 0;
}

int
qm_merge_settle(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);

    if (qm_back_switch_over(&m->back, err) < 0 ||
        (m->promote && qm_promote_run(m->promote, err) < 0) ||
        qm_settle_repoint(m->settle, err) < 0)
        return -1;
    if (intent->back.kind != QM_WAY_NONE && intent->overlays == QMELD_OVERLAYS_KEEP)
        return hold(m, err);
    if (intent->back.kind != QM_WAY_NONE && qm_merge_advance(m, QM_PHASE_FINAL, err) < 0)
        return -1;
    return qm_merge_finish(m, err);
}

int
qm_merge_open_reclaim(struct qm_merge *m, bool resumed, struct qmeld_error *err)
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

    t->resumed = resumed;
    if (qm_merge_open_reclaim(m, false, err) < 0 || qm_transfer_grow(t, seal, err) < 0 ||
        (resumed && qm_transfer_mark(t, seal, err) < 0))
        return -1;
    return qm_transfer_run(t, seal, m->journal, err);
}

/* So that who goes on after a stop in good order need not read what is there already, in each of its windows anew:
 * without this a merge longer than a few of them would never end.  What fails here only costs that reading. */
static void
note_stop(struct qm_merge *m)
{
    struct qm_image *target = m->chain->layers[m->transfer.target].img;
    struct qm_trail trail = qm_journal_trail(m->journal);
    struct qmeld_error unheard = {0};

    if (qm_journal_cursor(m->journal).phase != QM_PHASE_COPY || !qm_merge_tells_by_look(target))
        return;
    if (qm_image_sync(target, &unheard) < 0 ||
        qm_journal_look(target->file, &trail, &unheard) < 0 ||
        qm_journal_set_trail(m->journal, &trail, &unheard) < 0)
        unheard.code = QMELD_OK;
}

/* Before the cursor moves: a copy of the target that was taken then, and is put back later, has not what will be
 * below it. */
static int
forget_stop(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_trail trail = qm_journal_trail(m->journal);

    if (trail.left.mtime_sec == 0 && trail.left.mtime_nsec == 0)
        return 0;
    memset(&trail.left, 0, sizeof trail.left);
    return qm_journal_set_trail(m->journal, &trail, err);
}

static int
transfer(struct qm_merge *m, bool resumed, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    const struct qm_seal_config config = {.chain = m->chain,
                                          .target = m->transfer.target,
                                          .base = m->transfer.base,
                                          .new_size = m->transfer.new_size,
                                          .resumed = resumed,
                                          .decompress = intent->decompress,
                                          .orders = &intent->orders,
                                          .trusted_bitmaps = resumed ? &intent->bitmaps : NULL};
    struct qm_seal *seal;

    if (forget_stop(m, err) < 0 || (!resumed && qm_back_enter(&m->back, err) < 0) ||
        qm_seal_begin(&config, &seal, err) < 0)
        return -1;
    m->transfer.back = &m->back;
    qm_err_disk(err, QMELD_DISK_OPEN); /* until the end of the merge, whatever fails */
    if (qm_carry_import(&m->carry, &intent->orders, qm_seal_bitmaps(seal), err) < 0 ||
        (!m->report->already_merged && work_in_batches(m, seal, resumed, err) < 0)) {
        qm_seal_abandon(seal);
        if (err->code == QMELD_CANCELED)
            note_stop(m);
        return -1;
    }
    return qm_seal_finish(seal, err);
}

/* Where the target had all data before, its bitmaps may still lack what layers have. */
static bool
has_to_write(const struct qm_merge *m)
{
    return !m->report->already_merged || qm_carry_has_work(&qm_journal_intent(m->journal)->orders);
}

int
qm_merge_work(struct qm_merge *m, bool resumed, struct qmeld_error *err)
{
    const struct qm_cursor complete = {.phase = QM_PHASE_SETTLE,
                                       .done = qm_guest(m->transfer.new_size)};

    if (qm_merge_protect(m, err) < 0 || (has_to_write(m) && transfer(m, resumed, err) < 0) ||
        verify(m, qm_journal_intent(m->journal)->backing_format, err) < 0 ||
        qm_journal_advance(m->journal, complete, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN);
    return qm_merge_settle(m, err);
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
refuse_growth(const struct qm_merge *m, const struct qm_intent *intent, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(m->chain->layers[m->transfer.target].img);

    return q ? qm_bitmaps_let_grow(q, m->transfer.new_size, &intent->orders, err) : 0;
}

/* The last moment before something is written. */
int
qm_merge_ask_guard(const struct qm_merge *m, struct qmeld_error *err)
{
    return m->opts->guard ? m->opts->guard(QMELD_MOMENT_LOCKED, m->opts->guard_opaque, err) : 0;
}

int
qm_merge_begin(struct qm_merge *m, struct qm_intent *intent, const char *journal_path,
               struct qmeld_error *err)
{
    const struct qm_transfer *t = &m->transfer;
    const bool carries = qm_carry_has_work(&intent->orders);
    bool done = m->report->already_merged;

    if (qm_merge_prepare(m, intent, err) < 0 || refuse_growth(m, intent, err) < 0 ||
        qm_carry_check(&m->carry, &intent->orders, err) < 0 ||
        (intent->reclaim && qm_reclaim_check(m->chain, t->base, t->top, err) < 0) ||
        qm_transfer_count(&m->transfer, err) < 0 ||
        (!m->looked && qm_transfer_is_done(&m->transfer, &done, err) < 0)) {
        qm_intent_release(intent);
        return -1;
    }
    m->report->already_merged = intent->already = done;
    if (((!done || qm_settle_has_work(m->settle) || m->opts->files_go) &&
         qm_merge_meet_others(m, done, intent, err) < 0) ||
        ((!done || carries || qm_settle_has_work(m->settle)) &&
         qm_merge_check_room(m, intent, journal_path, err) < 0) ||
        qm_merge_ask_guard(m, err) != 0) {
        qm_intent_release(intent);
        return -1;
    }
    /* whoever wrote it may have been killed before it was durable; overlays are to be given up now */
    if (done && qm_image_sync(m->chain->layers[m->transfer.target].img, err) < 0) {
        qm_intent_release(intent);
        return -1;
    }
    if (done && !carries && !qm_settle_has_work(m->settle)) {
        const int rc = verify(m, intent->backing_format, err);

        qm_intent_release(intent);
        return rc;
    }
    if (qm_journal_create(journal_path, intent, &m->journal, err) < 0)
        return -1;
    qm_merge_set_back(m);
    if ((m->promote && qm_promote_try(m->promote, err) < 0) || qm_merge_work(m, false, err) < 0)
        return give_up(m, err);
    return 0;
}

void
qm_merge_release(struct qm_merge *m)
{
    qm_settle_free(m->settle);
    qm_promote_free(m->promote);
    qm_reclaim_free(m->reclaim);
    qm_back_release(&m->back);
    qm_transfer_release(&m->transfer);
    qm_journal_close(m->journal);
    qm_chain_close(m->chain);
    free(m->moved_to);
}
