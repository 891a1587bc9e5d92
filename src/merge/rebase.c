/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "rebase.h"

#include "lock.h"
#include "qcow2_header.h"
#include "shadow.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* The batch in hand is completed before the wish to stop is granted, unless comparing takes so many ticks. */
#define PATIENCE 25u

static struct qm_layer *
image_of(const struct qm_rebase *r)
{
    return &r->chain->layers[r->chain->n - 1];
}

/* The name that is stored. */
static const char *
name_of(const struct qm_rebase *r)
{
    return r->relative ? r->relative : r->backing;
}

/* ---- opening ---- */

/* The corrupt bit forbids writing.  Internal snapshots read through the backing file, too, and nothing is copied
 * for them (docs/decisions/0006-no-snapshots-in-overlays.md). */
static int
check_image(const struct qm_rebase *r, struct qmeld_error *err)
{
    const struct qm_layer *l = image_of(r);
    const struct qm_qcow2 *q = qm_qcow2_of(l->img);

    if (!q)
        return qm_fail(err, QMELD_USAGE, qm_in(l->path),
                       "a raw image has no backing file: only qcow2 images can be rebased");
    if (q->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return qm_fail(err, QMELD_CORRUPT, qm_in(l->path),
                       "the image is marked corrupt: run `qmeld check --repair=all` on it first");
    if (q->geo.data_file && l->img->cipher && !r->opts->unsafe)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(l->path),
                       "it is encrypted, and has an external data file, which together can only be "
                       "read: flatten the chain into a new image instead");
    if (r->opts->unsafe)
        return 0;
    if (q->hdr.n_snapshots == 0)
        return qm_transfer_check_target(l, err);
    return qm_fail(
        err, QMELD_USAGE, qm_in(l->path),
        "it has %" PRIu32
        " internal snapshots, which would read other data on another backing file: delete "
        "them first (`qemu-img snapshot -d`)",
        q->hdr.n_snapshots);
}

int
qm_rebase_open(struct qm_rebase *r, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = r->format,
                                         .backing_format = r->opts->chain_format,
                                         .allow = r->opts->allow_paths,
                                         .single = r->opts->unsafe,
                                         .keys = r->opts->unsafe ? QM_KEYS_NONE : QM_KEYS_NEEDED,
                                         .secrets = r->opts->secrets,
                                         .opened = r->opened[0],
                                         .resumed = r->journal != NULL};

    return qm_chain_open(r->path, &how, &r->chain, err) < 0 ? -1 : check_image(r, err);
}

static int
check_no_loop(const struct qm_rebase *r, struct qmeld_error *err)
{
    for (size_t i = 0; i < r->onto->n; i++)
        if (qm_image_is_in(r->onto->layers[i].img, image_of(r)->img->file) ||
            qm_image_is_in(r->onto->layers[i].img, image_of(r)->img->data))
            return qm_fail(
                err, QMELD_USAGE, qm_in(r->path),
                "the new backing file stands on it, or is it: the chain would be a loop");
    return 0;
}

int
qm_rebase_open_onto(struct qm_rebase *r, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = r->backing_format,
                                         .backing_format = r->opts->chain_format,
                                         .allow = r->opts->allow_paths,
                                         .named = r->path,
                                         .secrets = r->opts->secrets,
                                         .opened = r->opened[1] ? r->opened[1] : r->chain};
    QM_FREE char *path = NULL;
    QM_FREE char *format = NULL;

    if (!r->backing)
        return 0;
    if (!r->backing_format)
        return qm_fail(err, QMELD_USAGE, qm_in(r->path),
                       "the new backing file needs a format, and guessing one lets a guest choose: "
                       "say -F raw or -F qcow2");
    if (r->opts->unsafe && !r->opts->keep_relative)
        return 0;
    if (qm_backing_path(r->path, r->backing, &path, &format, err) < 0)
        return -1;
    if (format && strcmp(format, r->backing_format) != 0)
        return qm_fail(err, QMELD_USAGE, qm_in(r->path),
                       "the name says driver \"%s\" and -F says \"%s\": make them agree", format,
                       r->backing_format);
    if (r->opts->keep_relative && !r->relative &&
        qm_backing_name_for(r->path, "relative", path, true, &r->relative, err) < 0)
        return -1;
    if (r->opts->unsafe)
        return 0;
    return qm_chain_open(path, &how, &r->onto, err) < 0 ? -1 : check_no_loop(r, err);
}

/* ---- progress: data that may have to be copied, and either was or need not be ---- */

static int
tell(const struct qm_rebase *r)
{
    const uint64_t equal = r->costs.compared - qm_min(r->costs.compared, r->sums.bytes_copied);
    const struct qmeld_progress p = {
        .done_bytes = r->writing ? qm_min(r->transfer.total, r->copied + equal) : 0,
        .total_bytes = r->writing ? r->transfer.total : 0,
        .phase = r->writing ? "copy" : "count"};

    return r->opts->progress(&p, r->opts->opaque);
}

/* From copying, which completes what is in hand first. */
static int
hear_copy(const struct qmeld_progress *now, void *opaque)
{
    struct qm_rebase *r = opaque;

    r->copied = now->done_bytes;
    return tell(r);
}

/* From comparing. */
static int
hear_diff(const struct qmeld_progress *now, void *opaque)
{
    struct qm_rebase *r = opaque;

    (void)now;
    r->stops += tell(r) != 0;
    return r->stops > (r->writing ? PATIENCE : 0);
}

/* ---- before the first write ---- */

/* The image over its new backing file, for reading back. */
static int
set_up_done(struct qm_rebase *r, struct qmeld_error *err)
{
    struct qm_chain *done = &r->transfer.done;
    const size_t n = r->onto ? r->onto->n : 0;

    done->layers = calloc(n + 1, sizeof *done->layers);
    if (!done->layers)
        return qm_fail_nomem(err, "the chain");
    for (size_t i = 0; i < n; i++)
        done->layers[i] = r->onto->layers[i];
    done->layers[n] = *image_of(r);
    done->n = n + 1;
    return 0;
}

static void
set_up(struct qm_rebase *r)
{
    const struct qmeld_rebase_options *o = r->opts;
    const size_t image = r->chain->n - 1;
    const uint64_t size = image_of(r)->img->size;

    r->plan = (struct qm_onto){.chain = r->onto,
                               .threads = o->threads,
                               .bandwidth = o->bandwidth,
                               .progress = o->progress ? hear_diff : NULL,
                               .opaque = r,
                               .costs = &r->costs};
    r->copying = (struct qmeld_commit_options){.threads = o->threads,
                                               .bandwidth = o->bandwidth,
                                               .progress = o->progress ? hear_copy : NULL,
                                               .opaque = r};
    r->transfer = (struct qm_transfer){.chain = r->chain,
                                       .base = image,
                                       .top = image,
                                       .target = image,
                                       .old_size = size,
                                       .new_size = size,
                                       .onto = &r->plan,
                                       .verify = r->verify,
                                       .opts = &r->copying,
                                       .report = &r->sums};
}

/* What may have to be copied is read, as far as that needs no look at data. */
static int
count(struct qm_rebase *r, struct qmeld_error *err)
{
    int rc;

    r->plan.by_map = true;
    rc = qm_transfer_count(&r->transfer, err);
    r->plan.by_map = false;
    r->writing = true;
    return rc;
}

static int
rehearse(const struct qm_rebase *r, struct qmeld_error *err)
{
    struct qmeld_rebase_report unread = {0};
    struct qm_rebase dry = {.opts = r->opts,
                            .report = &unread,
                            .path = r->path,
                            .format = r->format,
                            .backing = r->backing,
                            .backing_format = r->backing_format,
                            .journal_path = r->journal_path,
                            .opened = {r->chain, r->onto}};
    int rc = r->journal ? qm_journal_load(r->journal_path, &dry.journal, err) : 0;

    if (rc == 0)
        rc = qm_rebase_open(&dry, err);
    if (rc == 0)
        rc = qm_rebase_open_onto(&dry, err);
    if (rc == 0)
        rc = qm_rebase_run(&dry, err);
    qm_rebase_release(&dry);
    qmeld_rebase_report_free(&unread);
    return rc;
}

/* As of merges (rehearse.c): only where it is not plain that there is room. */
static int
check_room(const struct qm_rebase *r, struct qmeld_error *err)
{
    const size_t image = r->chain->n - 1;
    const enum qmeld_disk disk = err->disk;
    struct qm_shadow *shadow;
    bool ample;
    int rc;

    if (qm_shadow_now())
        return 0;
    qm_space_is_ample(&r->transfer.space, r->chain, image, image, image, r->journal_path, &ample);
    if (ample)
        return 0;
    if (qm_shadow_begin(false, &shadow, err) < 0)
        return -1;
    rc = rehearse(r, err);
    if (rc == 0)
        rc = qm_shadow_finish(shadow, err);
    if (rc == 0)
        rc = qm_space_judge(shadow, err);
    qm_shadow_end(shadow);
    err->disk = disk;                         /* dry: nothing has happened, however it ended */
    if (rc < 0 && err->code == QMELD_NOMEM) { /* too much for a dry run is not so for the disk */
        *err = (struct qmeld_error){.disk = disk};
        return 0;
    }
    return rc;
}

/* ---- the journal ---- */

static bool
copy_text(const char *from, char **to)
{
    *to = from ? strdup(from) : NULL;
    return *to || !from;
}

static int
describe(const struct qm_rebase *r, struct qm_intent *out, struct qmeld_error *err)
{
    const struct qm_transfer *t = &r->transfer;

    *out = (struct qm_intent){.rebase = true,
                              .keep_relative = r->opts->keep_relative,
                              .verify = r->opts->verify,
                              .base = t->base,
                              .top = t->top,
                              .target = t->target,
                              .base_size = t->old_size,
                              .old_size = t->old_size,
                              .new_size = t->new_size};
    if (!copy_text(name_of(r), &out->new_backing) ||
        !copy_text(r->backing ? r->backing_format : NULL, &out->new_format) ||
        !copy_text(r->opts->chain_format, &out->backing_format) ||
        !qm_intent_allow(out, r->opts->allow_paths))
        return qm_fail_nomem(err, "the journal");
    for (size_t i = 0; i < r->chain->n; i++) {
        struct qm_journal_layer l;

        if (qm_journal_note(&r->chain->layers[i], &l, err) < 0)
            return -1;
        if (!qm_vec_push(&out->layers, &l)) {
            qm_journal_layer_release(&l);
            return qm_fail_nomem(err, "the journal");
        }
    }
    return qm_bitmaps_valid_names(qm_qcow2_of(image_of(r)->img), &out->bitmaps, err);
}

static bool
same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* What was copied is what the image read through its old chain: that may not have changed, unless
 * the image does not stand on it any more. */
static int
check_old_chain(const struct qm_rebase *r, struct qmeld_error *err)
{
    const struct qm_intent *i = qm_journal_intent(r->journal);
    const char *old = qm_vec_last(&i->layers)->backing_name, *now = image_of(r)->img->backing_name;

    if (!same_text(old, now)) {
        if (same_text(i->new_backing, now))
            return 0;
        return qm_fail(err, QMELD_STALE, qm_in(r->path),
                       "it has got yet another backing file since its rebase began: remove the "
                       "journal %s and give the command again",
                       qm_journal_file(r->journal));
    }
    if (r->chain->n != i->layers.n)
        return qm_fail(
            err, QMELD_STALE, qm_in(r->path),
            "its chain has %zu layers, and had %zu when the unfinished rebase began: put "
            "the old files back",
            r->chain->n, i->layers.n);
    for (size_t k = 0; k < r->chain->n; k++)
        if (qm_journal_same(&i->layers.at[k], r->chain->layers[k].img, k + 1 < r->chain->n, err) <
            0)
            return -1;
    return 0;
}

static int
begin_journal(struct qm_rebase *r, struct qmeld_error *err)
{
    struct qm_intent intent;

    if (r->journal)
        return qm_journal_hold(r->journal, err);
    if (describe(r, &intent, err) < 0) {
        qm_intent_release(&intent);
        return -1;
    }
    return qm_journal_create(r->journal_path, &intent, &r->journal, err);
}

/* ---- the work ---- */

static int
transfer(struct qm_rebase *r, bool resumed, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(r->journal);
    const struct qm_chain *onto = r->onto;
    const struct qm_seal_config config = {.chain = r->chain,
                                          .target = r->transfer.target,
                                          .base = r->transfer.base,
                                          .below_size =
                                              onto ? onto->layers[onto->n - 1].img->size : 0,
                                          .new_size = r->transfer.new_size,
                                          .resumed = resumed,
                                          .trusted_bitmaps = resumed ? &intent->bitmaps : NULL};
    struct qm_seal *seal;

    if (qm_seal_begin(&config, &seal, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_transfer_run(&r->transfer, seal, r->journal, err) < 0) {
        qm_seal_abandon(seal);
        return -1;
    }
    return qm_seal_finish(seal, err);
}

/* COMMIT POINT: all that reads differently on the new chain is the image's own, durably. */
static int
point(struct qm_rebase *r, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(image_of(r)->img);

    qm_err_disk(err, QMELD_DISK_OPEN);
    return qm_header_before_write(q, err) < 0
               ? -1
               : qm_header_set_backing(q, name_of(r), r->backing ? r->backing_format : NULL, err);
}

/* *out_missing: what the uppermost layer of chain is still to get, first; len 0: nothing. */
static int
look_for_missing(const struct qm_rebase *r, const struct qm_chain *chain,
                 struct qm_want *out_missing, struct qmeld_error *err)
{
    struct qm_onto plan = r->plan;
    struct qm_onto_walk *w;
    bool done;
    int rc;

    plan.costs = NULL; /* this is not what the report's numbers are about */
    if (qm_onto_open(chain, chain->n - 1, &plan, &w, err) < 0)
        return -1;
    rc = qm_onto_next(w, out_missing, &done, err);
    qm_onto_close(w);
    if (rc == 0 && done)
        *out_missing = (struct qm_want){.len = 0};
    return rc;
}

/* The journal says that nothing is wanted any more; somebody may have put an older image back since. */
static int
check_complete(struct qm_rebase *r, struct qmeld_error *err)
{
    struct qm_want missing;

    if (look_for_missing(r, r->chain, &missing, err) < 0)
        return -1;
    r->report->verified =
        qm_journal_intent(r->journal)->verify; /* before the journal said that it is complete */
    if (missing.len == 0)
        return 0;
    return qm_fail(
        err, QMELD_STALE, qm_in(r->path),
        "it does not hold what its rebase had copied into it any more: put the right file "
        "back, or remove the journal %s and give the command again",
        qm_journal_file(r->journal));
}

/* Each batch was read back as it was published.  What the disk has of the image now, opened anew: does it read on the
 * new chain what it reads on the old one? */
static int
verify(struct qm_rebase *r, bool resumed, struct qmeld_error *err)
{
    const struct qm_layer *image = image_of(r);
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK,
                                         .format = image->img->ops->format,
                                         .backing_format = r->opts->chain_format,
                                         .allow = r->opts->allow_paths,
                                         .named = r->path,
                                         .opened = r->chain,
                                         .resumed = true};
    struct qm_chain *anew;
    struct qm_want missing;
    int rc;

    if (!r->verify)
        return 0;
    qm_drop_cache(image->img->file, 0, 0);
    qm_drop_cache(image->img->data, 0, 0);
    if (qm_chain_open(image->img->file->path, &how, &anew, err) < 0)
        return -1;
    rc = look_for_missing(r, anew, &missing, err);
    qm_chain_close(anew);
    if (rc < 0)
        return -1;
    if (missing.len > 0)
        return qm_transfer_lost(&r->transfer, missing.guest, err);
    r->report->verified = !resumed || qm_journal_intent(r->journal)->verify;
    return 0;
}

static int
copy(struct qm_rebase *r, bool resumed, struct qmeld_error *err)
{
    const struct qm_cursor complete = {.phase = QM_PHASE_SETTLE,
                                       .done = qm_guest(r->transfer.new_size)};

    if (qm_journal_cursor(r->journal).phase == QM_PHASE_SETTLE)
        return check_complete(r, err);
    return transfer(r, resumed, err) < 0 || verify(r, resumed, err) < 0
               ? -1
               : qm_journal_advance(r->journal, complete, err);
}

static int
work(struct qm_rebase *r, bool resumed, struct qmeld_error *err)
{
    struct qm_journal *j;

    if (copy(r, resumed, err) < 0 || point(r, err) < 0)
        return -1;
    err->disk = QMELD_DISK_NEW;
    j = QM_TAKE(r->journal);
    return qm_journal_remove(j, err);
}

/* What failed before it changed anything leaves no journal. */
static int
give_up(struct qm_rebase *r, bool resumed, const struct qmeld_error *err)
{
    struct qmeld_error unheard = {0};
    struct qm_journal *j;

    if (resumed || err->disk != QMELD_DISK_OLD || !r->journal)
        return -1;
    j = QM_TAKE(r->journal);
    if (qm_journal_remove(j, &unheard) < 0)
        unheard.code =
            QMELD_OK; /* the first error is the one to tell; a journal of nothing is harmless */
    return -1;
}

static int
copy_and_point(struct qm_rebase *r, struct qmeld_error *err)
{
    const bool resumed = r->journal != NULL;

    r->verify = !qm_shadow_now() &&
                (r->opts->verify || (r->journal != NULL && qm_journal_intent(r->journal)->verify));
    if (resumed && check_old_chain(r, err) < 0)
        return -1;
    set_up(r);
    if (set_up_done(r, err) < 0)
        return -1;
    if (count(r, err) < 0 || check_room(r, err) < 0 || begin_journal(r, err) < 0)
        return -1;
    return work(r, resumed, err) < 0 ? give_up(r, resumed, err) : 0;
}

int
qm_rebase_run(struct qm_rebase *r, struct qmeld_error *err)
{
    struct qm_file *file = image_of(r)->img->file;
    struct qmeld_rebase_report *report = r->report;
    int rc;

    report->resumed = r->journal != NULL;
    report->old_length = file->size;
    if (r->journal)
        qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_image_lock(image_of(r)->img, QM_LOCK_WRITER, err) < 0 ||
        qm_header_backing_fits(qm_qcow2_of(image_of(r)->img), name_of(r),
                               r->backing ? r->backing_format : NULL, err) < 0 ||
        qm_image_make_writable(image_of(r)->img, err) < 0)
        return -1;
    rc = r->opts->unsafe ? point(r, err) : copy_and_point(r, err);
    report->bytes_copied = r->sums.bytes_copied;
    report->bytes_verified = r->sums.bytes_verified;
    report->bytes_compared = r->costs.bytes_read;
    report->bytes_shared = r->costs.same_by_map;
    report->new_length = file->size;
    if (rc == 0 && !copy_text(name_of(r), &report->stored))
        return qm_fail_nomem(err, "the report");
    return rc;
}

void
qm_rebase_release(struct qm_rebase *r)
{
    qm_journal_close(r->journal);
    qm_transfer_release(&r->transfer);
    qm_chain_close(r->onto);
    qm_chain_close(r->chain);
    free(r->relative);
}

/* ---- by its journal ---- */

static int
tell_layers(const struct qm_rebase *r, struct qmeld_commit_report *report, struct qmeld_error *err)
{
    report->bytes_copied = r->sums.bytes_copied;
    report->bytes_filled = r->sums.bytes_filled;
    report->verified = r->report->verified;
    report->bytes_verified = r->report->bytes_verified;
    report->base_old_size = report->base_new_size = image_of(r)->img->size;
    report->layers = calloc(r->chain->n, sizeof *report->layers);
    if (!report->layers)
        return qm_fail_nomem(err, "the report");
    for (size_t i = 0; i < r->chain->n; i++) {
        struct qmeld_commit_layer *l = &report->layers[report->n_layers++];

        l->fate = i + 1 < r->chain->n ? QMELD_FATE_UNTOUCHED : QMELD_FATE_REPOINTED;
        l->path = strdup(r->chain->layers[i].path);
        if (!l->path)
            return qm_fail_nomem(err, "the report");
    }
    return 0;
}

/* intent outlives the journal. */
static int
resume(struct qm_journal *journal, const struct qm_intent *intent,
       const struct qmeld_commit_options *opts, struct qmeld_commit_report *report,
       struct qmeld_error *err)
{
    const struct qm_journal_layer *image = qm_vec_last(&intent->layers);
    const struct qmeld_rebase_options how = {.chain_format = intent->backing_format,
                                             .allow_paths = (const char *const *)intent->allow.at,
                                             .verify = opts->verify,
                                             .secrets = opts->secrets,
                                             .threads = opts->threads,
                                             .bandwidth = opts->bandwidth,
                                             .progress = opts->progress,
                                             .opaque = opts->opaque};
    QM_FREE char *place = strdup(qm_journal_file(journal));
    struct qmeld_rebase_report unread = {0};
    struct qm_rebase r = {.opts = &how,
                          .report = &unread,
                          .path = image->path,
                          .format = image->format,
                          .backing = intent->new_backing,
                          .backing_format = intent->new_format,
                          .journal = journal,
                          .journal_path = place};
    int rc = place ? 0 : qm_fail_nomem(err, "the journal");

    if (rc == 0 && qm_journal_is_held(journal))
        rc = qm_fail(err, QMELD_BUSY, qm_in(place),
                     "another process is at work on this rebase: wait for it");
    if (rc == 0)
        rc = qm_rebase_open(&r, err);
    if (rc == 0)
        rc = qm_rebase_open_onto(&r, err);
    if (rc == 0)
        rc = qm_rebase_run(&r, err);
    if (rc == 0)
        rc = tell_layers(&r, report, err);
    qm_rebase_release(&r);
    qmeld_rebase_report_free(&unread);
    return rc;
}

int
qm_rebase_resume(struct qm_journal *journal, const struct qmeld_commit_options *opts,
                 struct qmeld_commit_report *report, struct qmeld_error *err)
{
    struct qm_intent intent;
    int rc;

    report->resumed = report->rebased = true;
    qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_intent_copy(qm_journal_intent(journal), &intent, err) < 0) {
        qm_journal_close(journal);
        return -1;
    }
    rc = resume(journal, &intent, opts, report, err);
    qm_intent_release(&intent);
    return rc;
}
