/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * request.c - qmeld_commit, qmeld_resume, qmeld_status: what is meant, new or interrupted.
 *
 * The same command line again goes on with an interrupted merge.  "The same" is decided by its words
 * as the journal keeps them, not by what they mean now: after half a merge a chain may be shorter,
 * and "[3]" another layer.
 */
#include "request.h"

#include "rebase.h"

#include "qcow2.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

/* ---- journals in a directory ---- */

/* A journal, or a file that should be one. */
struct find {
    const char *path;
    struct qm_journal *j;       /* may be taken over (NULL is left then) */
    struct qmeld_error problem; /* if j is NULL: why it cannot be loaded */
};

/* Not 0 ends the search. */
typedef int found_fn(struct find *f, void *opaque, struct qmeld_error *err);

static bool
names_a_journal(const char *name)
{
    const size_t len = strlen(name);

    return name[0] == '.' && len > strlen("..qmeld") && strcmp(name + len - 6, ".qmeld") == 0;
}

static int
visit(const char *path, found_fn *fn, void *opaque, struct qmeld_error *err)
{
    struct find f = {.path = path};
    int rc;

    if (qm_journal_load(path, &f.j, &f.problem) == 0 && !f.j)
        return 0;
    rc = fn(&f, opaque, err);
    qm_journal_close(f.j);
    return rc;
}

static int
search(const char *dir, found_fn *fn, void *opaque, struct qmeld_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int rc = 0;

    if (!d)
        return qm_fail_sys(err, qm_in(dir), "cannot list the directory");
    while (rc == 0 && (e = readdir(d))) {
        QM_FREE char *path = NULL;

        if (!names_a_journal(e->d_name))
            continue;
        if (asprintf(&path, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", e->d_name) < 0) {
            path = NULL;
            rc = qm_fail_nomem(err, "a path");
            break;
        }
        rc = visit(path, fn, opaque, err);
    }
    closedir(d);
    return rc;
}

static char *
dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static bool
is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* Where the journal of a merge into a layer of this chain lies. */
static int
visit_chain(const struct qm_chain *chain, const char *active, const char *dir, found_fn *fn,
            void *opaque, struct qmeld_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < chain->n; i++) {
        QM_FREE char *journal = NULL;
        const struct qm_layer *l = &chain->layers[i];

        if (qm_journal_path(l->path, l->img->file->blockdev, active, dir, &journal, err) < 0)
            return -1;
        rc = visit(journal, fn, opaque, err);
    }
    return rc;
}

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
    bool exact;                        /* the journal found lies where one of this chain has to */
    struct qm_journal *found;
};

static bool
same_text(const char *a, const char *b)
{
    return a && b ? strcmp(a, b) == 0 : a == b;
}

static bool
same_request(const struct qm_intent *i, const struct qmeld_commit_options *o)
{
    return !i->rebase && same_text(i->base_arg, o->base) && same_text(i->top_arg, o->top) &&
           i->shallow == o->shallow && i->reclaim == o->reclaim && i->overlays == o->overlays &&
           i->keep_relative == o->keep_relative && i->atomic == o->atomic && i->undo == o->undo &&
           i->decompress == o->decompress;
}

static bool
is_meant(const struct qm_intent *i, const struct wanted *w)
{
    if (!w->rebase)
        return same_request(i, w->opts);
    return w->rebase->any && i->rebase && same_text(i->new_backing, w->rebase->backing) &&
           same_text(i->new_format, w->rebase->format);
}

/* By inode where both exist; the active layer itself may be gone (deleted as merged). */
static bool
same_file(const char *a, const char *b)
{
    QM_FREE char *full = qm_absolute_path(a);
    struct stat x, y;

    if (stat(a, &x) == 0 && stat(b, &y) == 0)
        return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    return full && strcmp(full, b) == 0;
}

/* A file that the interrupted merge changes, or leaves wrong by itself until it is finished, is one
 * of chain. */
static bool
touches(const struct qm_intent *i, const struct qm_chain *chain)
{
    for (size_t k = i->base; chain && k < i->layers.n && k <= i->top + 1; k++) {
        struct stat st;

        if (stat(i->layers.at[k].path, &st) < 0)
            continue;
        for (size_t n = 0; n < chain->n; n++) {
            const struct qm_file *f = chain->layers[n].img->file;

            if (f->blockdev ? S_ISBLK(st.st_mode) && st.st_rdev == f->dev
                            : st.st_dev == f->dev && st.st_ino == f->ino)
                return true;
        }
    }
    return false;
}

static int
is_wanted(struct find *f, void *opaque, struct qmeld_error *err)
{
    struct wanted *w = opaque;
    const struct qm_intent *i;

    if (!f->j) { /* a stranger's, if it is not at our place; or the very one, of a chain that is half gone */
        const bool tell = w->exact || (!w->chain && f->problem.code == QMELD_IO);

        *err = tell ? f->problem : *err;
        return tell ? -1 : 0;
    }
    i = qm_journal_intent(f->j);
    if (same_file(w->active, i->layers.at[i->layers.n - 1].path)) {
        if (is_meant(i, w)) {
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
                   i->rebase ? "a rebase in this chain, of" : "another merge of this chain, into",
                   i->layers.at[i->base].path, f->path);
}

/* Looks in the directories where a journal for this chain may lie. */
static int
find_interrupted(struct wanted *w, struct qmeld_error *err)
{
    const char *dir = w->opts->journal_dir;
    QM_FREE char *own = dir_of(w->active);

    if (!own)
        return qm_fail_nomem(err, "a path");
    if (dir || is_dir(own)) {
        const int rc = search(dir ? dir : own, is_wanted, w, err);

        if (rc != 0)
            return rc < 0 ? -1 : 0;
    }
    w->exact = true;
    return w->chain && visit_chain(w->chain, w->active, dir, is_wanted, w, err) < 0 ? -1 : 0;
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

static int
make_intent(const struct qm_merge *m, size_t base, size_t top, struct qm_intent *out,
            struct qmeld_error *err)
{
    const struct qmeld_commit_options *o = m->opts;
    struct qm_image *target = m->chain->layers[base].img;
    const struct qm_qcow2 *q = qm_qcow2_of(target);

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
                              .base = base,
                              .top = top,
                              .target = base,
                              .base_size = target->size,
                              .old_size = target->size,
                              .new_size = qm_max(target->size, m->chain->layers[top].img->size)};
    if (!copy_text(o->base, &out->base_arg) || !copy_text(o->top, &out->top_arg) ||
        !copy_text(o->backing_format, &out->backing_format))
        return qm_fail_nomem(err, "the journal");
    for (size_t i = 0; i < m->chain->n; i++) {
        struct qm_journal_layer l;

        if (qm_journal_note(&m->chain->layers[i], &l, err) < 0)
            return -1;
        if (o->overlays == QMELD_OVERLAYS_QUARANTINE && i > base && i <= top &&
            qm_settle_new_name(l.path, &l.moved_to, err) < 0) {
            qm_journal_layer_release(&l);
            return -1;
        }
        if (!qm_vec_push(&out->layers, &l)) {
            qm_journal_layer_release(&l);
            return qm_fail_nomem(err, "the journal");
        }
    }
    if (q && qm_bitmaps_valid_names(q, &out->bitmaps, err) < 0)
        return -1;
    return qm_back_describe(target, o->atomic, o->undo, &out->back, err);
}

static int
begin(const char *path, struct qm_merge *m, struct qmeld_error *err)
{
    QM_FREE char *journal = NULL;
    struct qm_intent intent = {.base_arg = NULL};
    const struct qm_layer *target;
    size_t base, top;

    if (find_range(m, &base, &top, err) < 0)
        return -1;
    m->report->base_old_size = m->report->base_new_size = m->chain->layers[base].img->size;
    if (base == top) {
        m->transfer.base = m->transfer.top = base;
        m->report->nothing_to_do = true;
        return 0;
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
    target = &m->chain->layers[base];
    if (qm_journal_path(target->path, target->img->file->blockdev, path, m->opts->journal_dir,
                        &journal, err) < 0)
        return -1;
    if (make_intent(m, base, top, &intent, err) < 0) {
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
                                         .backing_format = m->opts->backing_format};
    const struct qm_chain_options look = {.mode = QM_CHAIN_LOOK,
                                          .format = m->opts->format,
                                          .backing_format = m->opts->backing_format};
    struct wanted w = {.active = path, .opts = m->opts};
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
run(int (*fn)(const char *path, struct qm_merge *m, struct qmeld_error *err), const char *path,
    const struct qmeld_commit_options *opts, struct qmeld_commit_report *report,
    struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct qmeld_commit_report own, *r = report ? report : &own;
    struct qm_merge m = {.opts = opts ? opts : &defaults, .report = r};
    struct timespec begun, ended;
    int rc;

    memset(r, 0, sizeof *r);
    memset(err, 0, sizeof *err);
    clock_gettime(CLOCK_MONOTONIC, &begun);
    rc = fn(path, &m, err);
    if (rc == 0 && m.opts->guard &&
        m.opts->guard(QMELD_MOMENT_DONE, m.opts->guard_opaque, err) != 0) {
        qm_err_disk(err, QMELD_DISK_NEW);
        rc = -1;
    }
    clock_gettime(CLOCK_MONOTONIC, &ended);
    r->seconds_x1000 = (uint64_t)((ended.tv_sec - begun.tv_sec) * 1000 +
                                  (ended.tv_nsec - begun.tv_nsec) / 1000000);
    qm_merge_release(&m);
    if (!report)
        qmeld_commit_report_free(r);
    return rc;
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
    free(report->layers);
    report->layers = NULL;
    report->n_layers = 0;
}

/* ---- status ---- */

struct telling {
    const char *about; /* only merges with this layer; NULL: all */
    const char *told;  /* a directory whose journals were told of; NULL: none */
    bool any;
    qmeld_unfinished_fn *fn;
    void *opaque;
};

static bool
concerns(const struct qm_intent *i, const char *path)
{
    QM_VEC_EACH (l, &i->layers)
        if (same_file(path, l->path) || (l->moved_to && same_file(path, l->moved_to)))
            return true;
    return false;
}

/* The journal at path is that of a merge into about, by its name. */
static bool
is_named_after(const char *path, const char *about)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const char *file = strrchr(about, '/') ? strrchr(about, '/') + 1 : about;

    return strncmp(name + 1, file, strlen(file)) == 0 &&
           strcmp(name + 1 + strlen(file), ".qmeld") == 0;
}

static void
describe(const struct qm_journal *j, struct qmeld_unfinished *out)
{
    const struct qm_intent *i = qm_journal_intent(j);
    const struct qm_cursor c = qm_journal_cursor(j);

    out->running = qm_journal_is_held(j);
    out->rebase = i->rebase;
    out->new_backing = i->new_backing;
    out->active = i->layers.at[i->layers.n - 1].path;
    out->base = i->layers.at[i->base].path;
    out->top = i->layers.at[i->top].path;
    out->complete = c.phase != QM_PHASE_COPY && c.phase != QM_PHASE_BACK;
    out->held = c.phase == QM_PHASE_HELD;
    out->base_intact = i->back.kind == QM_WAY_SWITCH && c.phase == QM_PHASE_COPY;
    out->reverting = c.phase == QM_PHASE_BACK;
    out->revertible = i->back.kind != QM_WAY_NONE && c.phase != QM_PHASE_FINAL;
    out->done = c.done.g;
    out->size = i->new_size;
    out->overlays = i->overlays;
    out->reclaim = i->reclaim;
    out->n_layers = i->layers.n;
    out->base_layer = i->base;
    out->top_layer = i->top;
}

static int
tell(struct find *f, void *opaque, struct qmeld_error *err)
{
    struct telling *t = opaque;
    struct qmeld_unfinished u = {.journal = f->path, .problem = f->j ? NULL : &f->problem};
    QM_FREE char *dir = dir_of(f->path);
    QM_FREE const char **layers = NULL; /* and behind them their new names */

    if (t->told && dir && same_file(dir, t->told))
        return 0;
    if (t->about &&
        !(f->j ? concerns(qm_journal_intent(f->j), t->about) : is_named_after(f->path, t->about)))
        return 0;
    if (f->j) {
        const struct qm_intent *i = qm_journal_intent(f->j);

        describe(f->j, &u);
        u.layers = layers = calloc(i->layers.n, 2 * sizeof *layers);
        if (!layers)
            return qm_fail_nomem(err, "the layers' names");
        u.moved_to = layers + i->layers.n;
        for (size_t k = 0; k < i->layers.n; k++) {
            layers[k] = i->layers.at[k].path;
            layers[i->layers.n + k] = i->layers.at[k].moved_to;
        }
    }
    t->any = true;
    if (t->fn(&u, t->opaque) != 0)
        return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
    return 0;
}

/* Of a layer whose base lies elsewhere. */
static int
tell_of_chain(const char *path, struct telling *t, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK};
    struct qmeld_error unheard = {0};
    struct qm_chain *chain;
    int rc;

    if (qm_chain_open(path, &how, &chain, &unheard) < 0)
        return 0; /* it may be half done, with files gone */
    rc = visit_chain(chain, path, NULL, tell, t, err);
    qm_chain_close(chain);
    return rc;
}

static int
tell_of_path(const char *path, const char *journal_dir, struct telling *t, struct qmeld_error *err)
{
    const char *slash = strrchr(path, '/');
    QM_FREE char *own = dir_of(path);
    int rc;

    if (!own)
        return qm_fail_nomem(err, "a path");
    if (names_a_journal(slash ? slash + 1 : path))
        return visit(path, tell, t, err);
    t->about = path;
    if (search(journal_dir ? journal_dir : own, tell, t, err) < 0)
        return -1;
    t->told = own;
    rc = journal_dir ? 0 : tell_of_chain(path, t, err);
    t->told = NULL;
    return rc;
}

int
qmeld_status(const char *path, const char *journal_dir, qmeld_unfinished_fn *fn, void *opaque,
             struct qmeld_error *err)
{
    struct telling t = {.fn = fn, .opaque = opaque};
    struct stat st;

    memset(err, 0, sizeof *err);
    if (is_dir(path))
        return search(path, tell, &t, err);
    if (tell_of_path(path, journal_dir, &t, err) < 0)
        return -1;
    /* a layer may be gone by now, but then a merge removed it; a slip of the pen is no "nothing" */
    if (!t.any && stat(path, &st) < 0)
        return qm_fail_sys(err, qm_in(path), "cannot look for unfinished merges of it");
    return 0;
}
