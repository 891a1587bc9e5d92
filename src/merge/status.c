/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * status.c - qmeld_status: which merges are unfinished, as their journals tell it.
 */
#include "nbd_name.h"
#include "search.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct telling {
    const char *about; /* only merges with this layer; NULL: all */
    const char *told;  /* a directory whose journals were told of; NULL: none */
    bool any;
    QM_VEC(char *) seen; /* a journal may be found by its folder and by what leads to it */
    qmeld_unfinished_fn *fn;
    void *opaque;
};

static bool
concerns(const struct qm_intent *i, const char *path)
{
    QM_VEC_EACH (l, &i->layers)
        if (qm_path_same(path, l->path) || (l->moved_to && qm_path_same(path, l->moved_to)))
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
    out->fold = i->fold;
    out->active = i->layers.at[i->layers.n - 1].path;
    out->base = i->layers.at[i->base].path;
    out->top = i->layers.at[i->top].path;
    out->complete =
        c.phase != QM_PHASE_COPY && c.phase != QM_PHASE_BACK && c.phase != QM_PHASE_PROTECT;
    out->held = c.phase == QM_PHASE_HELD;
    out->protecting = c.phase == QM_PHASE_PROTECT;
    out->base_intact =
        out->protecting || (i->back.kind == QM_WAY_SWITCH && c.phase == QM_PHASE_COPY);
    out->reverting = c.phase == QM_PHASE_BACK;
    out->revertible = out->protecting || (i->back.kind != QM_WAY_NONE && c.phase != QM_PHASE_FINAL);
    out->done = c.done.g;
    out->size = i->new_size;
    out->overlays = i->overlays;
    out->reclaim = i->reclaim;
    out->n_layers = i->layers.n;
    out->base_layer = i->base;
    out->top_layer = i->top;
    out->target_layer = i->target;
    out->up = i->target > i->base;
    out->replaced =
        out->up && qm_journal_path_now(&i->layers.at[i->target]) != i->layers.at[i->target].path;
}

/* -1: no memory. */
static int
is_new(struct telling *t, const char *journal, bool *out, struct qmeld_error *err)
{
    char *copy;

    *out = false;
    QM_VEC_EACH (s, &t->seen)
        if (qm_path_same(*s, journal))
            return 0;
    copy = strdup(journal);
    if (!copy || !qm_vec_push(&t->seen, &copy)) {
        free(copy);
        return qm_fail_nomem(err, "the journals' names");
    }
    *out = true;
    return 0;
}

static int
tell(struct qm_found *f, void *opaque, struct qmeld_error *err)
{
    struct telling *t = opaque;
    struct qmeld_unfinished u = {.journal = f->path, .problem = f->j ? NULL : &f->problem};
    QM_FREE char *dir = qm_dir_of(f->path);
    QM_FREE const char **layers = NULL; /* and behind them their new names */
    bool fresh;

    if (t->told && dir && qm_path_same(dir, t->told))
        return 0;
    if (t->about &&
        !(f->j ? concerns(qm_journal_intent(f->j), t->about) : is_named_after(f->path, t->about)))
        return 0;
    if (is_new(t, f->path, &fresh, err) < 0)
        return -1;
    if (!fresh)
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
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK, .keys = QM_KEYS_NONE};
    struct qmeld_error unheard = {0};
    struct qm_chain *chain;
    int rc;

    if (qm_chain_open(path, &how, &chain, &unheard) < 0)
        return 0; /* it may be half done, with files gone */
    rc = qm_search_beside(chain, t->told, tell, t, err);
    qm_chain_close(chain);
    return rc;
}

static int
tell_of_path(const char *path, const char *journal_dir, struct telling *t, struct qmeld_error *err)
{
    const char *slash = strrchr(path, '/');
    QM_FREE char *own = qm_dir_of(path);
    int rc;

    if (!own)
        return qm_fail_nomem(err, "a path");
    if (qm_search_is_name(slash ? slash + 1 : path))
        return qm_search_one(path, tell, t, err);
    t->about = path;
    if (qm_search_dir(journal_dir ? journal_dir : own, tell, t, err) < 0)
        return -1;
    t->told = own;
    rc = journal_dir ? 0 : tell_of_chain(path, t, err);
    t->told = NULL;
    return rc;
}

static int
tell_all(const char *path, const char *journal_dir, struct telling *t, struct qmeld_error *err)
{
    struct stat st;

    if (qm_search_is_dir(path))
        return qm_search_dir(path, tell, t, err);
    if (tell_of_path(path, journal_dir, t, err) < 0)
        return -1;
    /* a layer may be gone by now, but then a merge removed it; a slip of the pen is no "nothing" */
    if (!t->any && !qm_nbd_is_name(path) && stat(path, &st) < 0)
        return qm_fail_sys(err, qm_in(path), "cannot look for unfinished merges of it");
    return 0;
}

int
qmeld_status(const char *path, const char *journal_dir, qmeld_unfinished_fn *fn, void *opaque,
             struct qmeld_error *err)
{
    struct telling t = {.fn = fn, .opaque = opaque};
    int rc;

    memset(err, 0, sizeof *err);
    rc = tell_all(path, journal_dir, &t, err);
    QM_VEC_EACH (s, &t.seen)
        free(*s);
    qm_vec_release(&t.seen);
    return rc;
}
