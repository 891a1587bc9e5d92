/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * request.c - qmeld_commit, qmeld_resume and their like: what is meant, new or interrupted.
 *
 * The same command line again goes on with an interrupted merge.  "The same" is decided by its words
 * as the journal keeps them, not by what they mean now: after half a merge a chain may be shorter,
 * and "[3]" another layer.
 */
#include "request.h"

#include "clock.h"
#include "dependants.h"
#include "direction.h"
#include "qcow2.h"
#include "rebase.h"
#include "search.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- an interrupted merge that is meant ---- */

struct rebase_words {
    bool any;
    const char *backing;
    const char *format;
};

struct wanted {
    const char *active;           /* path as given */
    const struct qm_chain *chain; /* NULL: it cannot be opened, for a file is missing */
    const struct qmeld_commit_options *opts;
    const struct rebase_words *rebase; /* not NULL: a rebase is meant, or, without words, nothing */
    const uint64_t *keep;              /* not NULL: a fold is meant */
    bool exact;                        /* the journal found lies where one of this chain has to */
    struct qm_journal *found;
};

static bool
same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

/* A fold has neither base nor top. */
static bool
same_request(const struct qm_intent *i, const struct qmeld_commit_options *o)
{
    return !i->rebase && same_text(i->base_arg, o->base) && same_text(i->top_arg, o->top) &&
           i->shallow == o->shallow && i->reclaim == o->reclaim && i->overlays == o->overlays &&
           i->keep_relative == o->keep_relative && i->atomic == o->atomic && i->undo == o->undo &&
           i->decompress == o->decompress && i->direction == o->direction &&
           i->bitmaps_mode == o->bitmaps;
}

static bool
is_meant(const struct qm_intent *i, const struct wanted *w)
{
    if (!w->rebase)
        return !i->fold && same_request(i, w->opts);
    return w->rebase->any && i->rebase && same_text(i->new_backing, w->rebase->backing) &&
           same_text(i->new_format, w->rebase->format);
}

/* The number of the chain's layer whose file path leads to; the chain's n: none. */
static size_t
find_file(const struct qm_chain *chain, const char *path)
{
    size_t n = 0;

    while (n < chain->n && !qm_file_is_at(chain->layers[n].img->file, path))
        n++;
    return n;
}

/* A file that the interrupted merge changes, or leaves wrong by itself until it is finished, is one
 * of chain. */
static bool
touches(const struct qm_intent *i, const struct qm_chain *chain)
{
    for (size_t k = i->base; chain && k < i->layers.n && k <= i->top + 1; k++)
        if (find_file(chain, i->layers.at[k].path) < chain->n)
            return true;
    return false;
}

/* Does this fold have to be finished before the one that is meant?  Then *out_left increments are there
 * afterwards.  The chain may have grown since, by newer increments on what was the newest: a backup goes on when
 * a fold does not.  If that one is merged away itself, nothing may stand on it. */
static bool
is_fold_of(const struct qm_found *f, const struct wanted *w, uint64_t *out_left)
{
    const struct qm_intent *i = qm_journal_intent(f->j);
    const char *newest = i->layers.at[i->layers.n - 1].path;
    const struct qm_chain *chain = w->chain;
    size_t at;

    if (!w->keep || !i->fold || !same_request(i, w->opts))
        return false;
    *out_left = i->keep;
    if (qm_path_same(w->active, newest)) /* one that is held is done: it is meant, or another */
        return qm_journal_cursor(f->j).phase != QM_PHASE_HELD || *w->keep == i->keep;
    if (!chain || i->keep == 0 || qm_journal_cursor(f->j).phase == QM_PHASE_HELD)
        return false;
    at = find_file(chain, newest);
    *out_left += chain->n - 1 - at;
    return at < chain->n;
}

/* 1: it is to be gone on with, and taken over. */
static int
take_fold(struct qm_found *f, struct wanted *w, uint64_t left, struct qmeld_error *err)
{
    if (*w->keep > left)
        return qm_fail(err, QMELD_USAGE, qm_in(w->active),
                       "a fold of this chain is unfinished that leaves no more than %" PRIu64
                       " increments: finish it with `qmeld resume %s`, or keep no more than that",
                       left, f->path);
    w->found = QM_TAKE(f->j);
    return 1;
}

static int
is_wanted(struct qm_found *f, void *opaque, struct qmeld_error *err)
{
    struct wanted *w = opaque;
    const struct qm_intent *i;
    uint64_t left;

    if (!f->j) { /* a stranger's, if it is not at our place; or the very one, of a chain that is half gone */
        const bool tell = w->exact || (!w->chain && f->problem.code == QMELD_IO);

        *err = tell ? f->problem : *err;
        return tell ? -1 : 0;
    }
    i = qm_journal_intent(f->j);
    if (is_fold_of(f, w, &left))
        return take_fold(f, w, left, err);
    if (qm_path_same(w->active, i->layers.at[i->layers.n - 1].path)) {
        if (!w->keep && is_meant(i, w)) {
            w->found = QM_TAKE(f->j);
            return 1;
        }
    } else if (!touches(i, w->chain)) {
        return 0;
    }
    if (qm_journal_cursor(f->j).phase == QM_PHASE_HELD)
        return qm_fail(err, QMELD_USAGE, qm_in(w->active),
                       "an earlier merge of this chain, into %s, can still be taken back: say "
                       "`qmeld finalize %s` first, or `qmeld revert` in the same way",
                       i->layers.at[i->base].path, f->path);
    return qm_fail(err, QMELD_USAGE, qm_in(w->active),
                   "%s %s, is unfinished: finish it first with `qmeld resume %s`",
                   i->rebase ? "a rebase in this chain, of"
                   : i->fold ? "a fold of this chain, into"
                             : "another merge of this chain, into",
                   i->layers.at[i->base].path, f->path);
}

/* Looks in the directories where a journal for this chain may lie. */
static int
find_interrupted(struct wanted *w, struct qmeld_error *err)
{
    const char *dir = w->opts->journal_dir;
    QM_FREE char *own = qm_dir_of(w->active);

    if (!own)
        return qm_fail_nomem(err, "a path");
    if (dir || qm_search_is_dir(own)) {
        const int rc = qm_search_dir(dir ? dir : own, is_wanted, w, err);

        if (rc != 0)
            return rc < 0 ? -1 : 0;
    }
    if (!w->chain)
        return 0;
    if (!dir) {
        const int rc = qm_search_beside(w->chain, own, is_wanted, w, err);

        if (rc != 0)
            return rc < 0 ? -1 : 0;
    }
    w->exact = true;
    return qm_search_chain(w->chain, w->active, dir, is_wanted, w, err) < 0 ? -1 : 0;
}

int
qm_request_find_rebase(const char *active, const struct qm_chain *chain, const char *backing,
                       const char *backing_format, const char *journal_dir, struct qm_journal **out,
                       struct qmeld_error *err)
{
    const struct qmeld_commit_options where = {.journal_dir = journal_dir};
    const struct rebase_words words = {true, backing, backing_format};
    struct wanted w = {.active = active, .chain = chain, .opts = &where, .rebase = &words};

    if (find_interrupted(&w, err) < 0)
        return -1;
    *out = w.found;
    return 0;
}

int
qm_request_check_finished(const struct qm_chain *chain, const char *journal_dir,
                          struct qmeld_error *err)
{
    const struct qmeld_commit_options where = {.journal_dir = journal_dir};
    const struct rebase_words nothing = {.any = false};
    struct wanted w = {.active = chain->layers[chain->n - 1].path,
                       .chain = chain,
                       .opts = &where,
                       .rebase = &nothing};

    return find_interrupted(&w, err);
}

/* ---- a new merge ---- */

static int
find_range(const struct qm_merge *m, size_t *out_base, size_t *out_top, struct qmeld_error *err)
{
    const struct qmeld_commit_options *o = m->opts;
    struct qm_chain *chain = m->chain;

    *out_top = chain->n - 1;
    *out_base = 0;
    if (m->keep) {
        *out_top = *m->keep < chain->n ? chain->n - 1 - (size_t)*m->keep : 0;
        return 0;
    }
    if (o->top && qm_chain_find(chain, o->top, out_top, err) < 0)
        return -1;
    *out_base = o->shallow && *out_top > 0 ? *out_top - 1 : 0;
    if (!o->base)
        return 0;
    if (qm_chain_find(chain, o->base, out_base, err) < 0)
        return -1;
    if (o->shallow && *out_base + 1 != *out_top)
        return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[*out_base].path),
                       "it does not lie directly under the top %s: leave out --base or --shallow",
                       chain->layers[*out_top].path);
    if (*out_base >= *out_top)
        return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[*out_base].path),
                       "the base must lie below the top %s in the chain: `qmeld info` shows the "
                       "order",
                       chain->layers[*out_top].path);
    return 0;
}

static bool
copy_text(const char *from, char **to)
{
    *to = from ? strdup(from) : NULL;
    return *to || !from;
}

/* The name that layer i is to have in the end; none: it stays what it is. */
static int
note_new_name(const struct qm_intent *intent, size_t i, struct qm_journal_layer *l,
              struct qmeld_error *err)
{
    if (intent->target > intent->base && i == intent->target) {
        l->moved_to = strdup(intent->layers.at[intent->base].path);
        return l->moved_to ? 0 : qm_fail_nomem(err, "the journal");
    }
    if (intent->overlays == QMELD_OVERLAYS_QUARANTINE && i > intent->base && i <= intent->top)
        return qm_settle_new_name(l->path, &l->moved_to, err);
    return 0;
}

static int
make_intent(const struct qm_merge *m, size_t base, size_t top, size_t target_layer,
            struct qm_intent *out, struct qmeld_error *err)
{
    const struct qmeld_commit_options *o = m->opts;
    struct qm_image *target = m->chain->layers[target_layer].img;
    const uint64_t base_size = m->chain->layers[base].img->size;
    const struct qm_qcow2 *q = qm_qcow2_of(target);
    const struct qm_carry carry = {.chain = m->chain,
                                   .base = base,
                                   .top = top,
                                   .target = target_layer,
                                   .mode = o->bitmaps,
                                   .layers_stay = o->overlays != QMELD_OVERLAYS_DELETE,
                                   .new_size = qm_max(base_size, m->chain->layers[top].img->size)};

    *out = (struct qm_intent){.shallow = o->shallow,
                              .keep_relative = o->keep_relative,
                              .verify = o->verify,
                              .reclaim = o->reclaim,
                              .skip_equal = o->skip_equal,
                              .detect_zeroes = o->detect_zeroes,
                              .decompress = o->decompress,
                              .atomic = o->atomic,
                              .undo = o->undo,
                              .overlays = o->overlays,
                              .direction = o->direction,
                              .fold = m->keep != NULL,
                              .keep = m->keep ? *m->keep : 0,
                              .bitmaps_mode = o->bitmaps,
                              .base = base,
                              .top = top,
                              .target = target_layer,
                              .base_size = base_size,
                              .old_size = target->size,
                              .new_size = carry.new_size};
    if (!copy_text(o->base, &out->base_arg) || !copy_text(o->top, &out->top_arg) ||
        !copy_text(o->backing_format, &out->backing_format) ||
        !qm_intent_allow(out, o->allow_paths))
        return qm_fail_nomem(err, "the journal");
    for (size_t i = 0; i < m->chain->n; i++) {
        struct qm_journal_layer l;

        if (qm_journal_note(&m->chain->layers[i], &l, err) < 0)
            return -1;
        if (note_new_name(out, i, &l, err) < 0) {
            qm_journal_layer_release(&l);
            return -1;
        }
        if (!qm_vec_push(&out->layers, &l)) {
            qm_journal_layer_release(&l);
            return qm_fail_nomem(err, "the journal");
        }
    }
    if ((q && qm_bitmaps_valid_names(q, &out->bitmaps, err) < 0) ||
        qm_carry_plan(&carry, &out->orders, err) < 0)
        return -1;
    return qm_back_describe(target, o->atomic, o->undo, qm_carry_n_created(&out->orders) > 0,
                            &out->back, err);
}

/* An overlay that was cut to nothing looks like an empty raw disk: whoever folds by the thousand must not read of it that all is
 * well. */
static int
refuse_empty(const struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_layer *only = &m->chain->layers[0];

    if (m->chain->n > 1 || m->opts->format || qm_qcow2_of(only->img) || only->img->file->size > 0)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(only->path),
                   "the file is empty: if it was an overlay its content is lost; if an empty raw "
                   "disk is meant there is nothing to do, and -f raw says so");
}

static int
begin(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    QM_FREE char *journal = NULL;
    struct qm_intent intent = {.base_arg = NULL};
    const struct qm_layer *named; /* whose name the merged disk has, and the journal */
    struct qm_direction way;
    size_t base, top;

    if (find_range(m, &base, &top, err) < 0)
        return -1;
    m->report->base_old_size = m->report->base_new_size = m->chain->layers[base].img->size;
    if (base == top) {
        m->transfer.base = m->transfer.top = m->transfer.target = base;
        m->report->nothing_to_do = true;
        return refuse_empty(m, err);
    }
    if (m->opts->reclaim && m->opts->overlays == QMELD_OVERLAYS_QUARANTINE)
        return qm_fail(
            err, QMELD_USAGE, qm_in(path),
            "quarantine would keep files whose data --reclaim has given up: leave one of "
            "them out");
    if (m->opts->reclaim && (m->opts->atomic || m->opts->undo))
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "what --reclaim gives up cannot be brought back: leave out either that or "
                       "--atomic and --undo");
    if (m->opts->files_go && m->opts->protect)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "images that stand on files which the caller removes later cannot be "
                       "protected: let the merge remove them (--overlays=delete), or keep them");
    if (m->opts->protect && (m->opts->force || m->opts->no_scan))
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "--protect protects whoever is found: leave out either that or --force and "
                       "--no-scan");
    if (qm_direction_find(m->chain, base, top, m->opts, &way, err) < 0)
        return -1;
    m->report->bytes_down = way.bytes_down;
    m->report->bytes_up = way.bytes_up;
    named = &m->chain->layers[base];
    if (qm_journal_check_place(named->img->file, m->chain->layers[m->chain->n - 1].img->file,
                               m->opts->journal_dir, err) < 0 ||
        qm_journal_path(named->path, named->img->file->blockdev, path, m->opts->journal_dir,
                        &journal, err) < 0)
        return -1;
    if (make_intent(m, base, top, way.target, &intent, err) < 0) {
        qm_intent_release(&intent);
        return -1;
    }
    return qm_merge_begin(m, &intent, journal, err);
}

int
qm_request_commit(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = m->opts->format,
                                         .backing_format = m->opts->backing_format,
                                         .allow = m->opts->allow_paths,
                                         .named = m->opts->base,
                                         .keys = qm_merge_keys(m),
                                         .secrets = m->opts->secrets};
    const struct qm_chain_options look = {.mode = QM_CHAIN_LOOK,
                                          .format = m->opts->format,
                                          .backing_format = m->opts->backing_format,
                                          .allow = m->opts->allow_paths,
                                          .named = m->opts->base,
                                          .keys = QM_KEYS_NONE};
    struct wanted w = {.active = path, .opts = m->opts, .keep = m->keep};
    struct qmeld_error first = {0}, unheard = {0};
    const int rc = qm_chain_open(path, &how, &m->chain, &first);

    if (rc < 0 && first.code == QMELD_BUSY) {
        *err = first; /* it names who is at work */
        return -1;
    }
    /* An interrupted merge may be why: a file is gone, or a raw base looks like qcow2.  Then a chain
     * that is good enough to look for its journal will do. */
    if (rc < 0 && qm_chain_open(path, &look, &m->chain, &unheard) < 0)
        m->chain = NULL;
    w.chain = m->chain;
    if (find_interrupted(&w, err) < 0)
        return -1;
    if (w.found) {
        qm_chain_close(QM_TAKE(m->chain)); /* its locks, too: the journal knows the layers better */
        m->journal = w.found;
        if (qm_journal_cursor(m->journal).phase == QM_PHASE_BACK)
            return qm_fail(err, QMELD_USAGE, qm_in(path),
                           "an earlier merge of this chain is being taken back: finish that with "
                           "`qmeld resume %s`",
                           qm_journal_file(m->journal));
        return qm_merge_resume(m, err);
    }
    if (rc < 0) {
        *err = first;
        return -1;
    }
    return begin(path, m, err);
}

static int
load_journal(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    if (qm_journal_load(path, &m->journal, err) < 0)
        return -1;
    if (!m->journal)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "no journal of an unfinished merge: `qmeld status` finds those");
    return 0;
}

static int
resume(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    if (load_journal(path, m, err) < 0)
        return -1;
    if (qm_journal_intent(m->journal)->rebase)
        return qm_rebase_resume(QM_TAKE(m->journal), m->opts, m->report, err);
    return qm_merge_resume(m, err);
}

static int
revert(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    return load_journal(path, m, err) < 0 ? -1 : qm_merge_revert(m, err);
}

static int
finalize(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    return load_journal(path, m, err) < 0 ? -1 : qm_merge_finalize(m, err);
}

/* ---- the calls ---- */

/* What commit and resume have around them: a clean report and error, the time, an end. */
static int
run_keeping(const uint64_t *keep,
            int (*fn)(const char *path, struct qm_merge *m, struct qmeld_error *err),
            const char *path, const struct qmeld_commit_options *opts,
            struct qmeld_commit_report *report, struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct qmeld_commit_report own, *r = report ? report : &own;
    struct qm_merge m = {.opts = opts ? opts : &defaults, .report = r, .keep = keep};
    const uint64_t begun_ms = qm_clock_ms();
    int rc;

    memset(r, 0, sizeof *r);
    memset(err, 0, sizeof *err);
    rc = fn(path, &m, err);
    if (rc == 0 && m.opts->guard &&
        m.opts->guard(QMELD_MOMENT_DONE, m.opts->guard_opaque, err) != 0) {
        qm_err_disk(err, QMELD_DISK_NEW);
        rc = -1;
    }
    r->seconds_x1000 = qm_clock_ms() - begun_ms;
    qm_merge_release(&m);
    if (!report)
        qmeld_commit_report_free(r);
    return rc;
}

static int
run(int (*fn)(const char *path, struct qm_merge *m, struct qmeld_error *err), const char *path,
    const struct qmeld_commit_options *opts, struct qmeld_commit_report *report,
    struct qmeld_error *err)
{
    return run_keeping(NULL, fn, path, opts, report, err);
}

int
qm_request_merge(const char *path, const uint64_t *keep, const struct qmeld_commit_options *opts,
                 struct qmeld_commit_report *report, struct qmeld_error *err)
{
    return run_keeping(keep, qm_request_commit, path, opts, report, err);
}

int
qmeld_commit(const char *path, const struct qmeld_commit_options *opts,
             struct qmeld_commit_report *report, struct qmeld_error *err)
{
    return run(qm_request_commit, path, opts, report, err);
}

int
qmeld_resume(const char *journal, const struct qmeld_commit_options *opts,
             struct qmeld_commit_report *report, struct qmeld_error *err)
{
    return run(resume, journal, opts, report, err);
}

int
qmeld_revert(const char *journal, const struct qmeld_commit_options *opts,
             struct qmeld_commit_report *report, struct qmeld_error *err)
{
    return run(revert, journal, opts, report, err);
}

int
qmeld_finalize(const char *journal, const struct qmeld_commit_options *opts,
               struct qmeld_commit_report *report, struct qmeld_error *err)
{
    return run(finalize, journal, opts, report, err);
}

void
qmeld_commit_report_free(struct qmeld_commit_report *report)
{
    for (size_t i = 0; i < report->n_layers; i++) {
        free(report->layers[i].path);
        free(report->layers[i].moved_to);
    }
    for (size_t i = 0; i < report->n_dependants; i++)
        qm_dependant_release(&report->dependants[i]);
    free(report->layers);
    free(report->dependants);
    free(report->unread);
    report->layers = NULL;
    report->dependants = NULL;
    report->unread = NULL;
    report->n_layers = report->n_dependants = 0;
    qm_carry_told_free(report->bitmaps, report->n_bitmaps);
    report->bitmaps = NULL;
    report->n_bitmaps = 0;
}
