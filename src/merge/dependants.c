/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "dependants.h"

#include "dict.h"
#include "image_peek.h"
#include "leftover.h"
#include "nbd_name.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* A file, whatever its names. */
struct identity {
    dev_t dev; /* of a block device: its own */
    ino_t ino; /* 0: a block device; of an NBD export, which has no dev: of its name */
};

enum verdict { UNKNOWN, FOLLOWING, HARMLESS, HURT };

/* An image that has a backing name or a data file; or, with neither, one that ends a chain. */
struct node {
    char *path;
    struct identity self;
    bool has_backing, has_data; /* and it leads to a file that is there: */
    struct identity backing;
    struct identity data;
    char *backing_path;
    enum verdict verdict;
    size_t layer; /* HURT: what it reads through */
    bool direct;  /* HURT: it stands on that layer itself */
    struct node *next;
};

struct finding {
    const struct qm_dependants_config *cfg;
    pthread_mutex_t lock; /* of the rest, while files are looked at */
    QM_VEC(struct node *) nodes;
    struct qm_dict by_ino; /* struct node, a list of those with the same inode number */
    struct qm_dependants *out;
    bool no_memory;
};

/* ---- looking at a file ---- */

static bool
identify(const char *path, struct identity *out)
{
    QM_FREE char *export = qm_nbd_canonical(path);
    struct stat st;

    if (export) { /* as io_open.c has it; nobody connects for this */
        *out = (struct identity){.ino = qm_nbd_id(export)};
        return true;
    }
    if (stat(path, &st) < 0)
        return false;
    if (S_ISBLK(st.st_mode))
        *out = (struct identity){.dev = st.st_rdev};
    else
        *out = (struct identity){st.st_dev, st.st_ino};
    return S_ISBLK(st.st_mode) || S_ISREG(st.st_mode);
}

static bool
is_same(const struct identity *a, const struct identity *b)
{
    return a->dev == b->dev && a->ino == b->ino;
}

static void
free_node(struct node *n)
{
    if (!n)
        return;
    free(n->path);
    free(n->backing_path);
    free(n);
}

/* Where a name in the header leads.  One that leads nowhere here, or to another machine, is nobody's. */
static bool
follow(const char *image, const char *name, char **out_path, struct identity *out)
{
    struct qmeld_error unheard = {0};
    QM_FREE char *format = NULL;

    return name && qm_backing_path(image, name, out_path, &format, &unheard) == 0 &&
           identify(*out_path, out);
}

/* *out NULL: the file stands on nothing, and was not asked for (`end`).  An errno, or 0. */
static int
look(const char *path, bool end, struct node **out)
{
    struct qm_stand stand = {.backing_name = NULL};
    QM_FREE char *data = NULL;
    struct qm_peek file;
    struct node *n = NULL;
    int rc = qm_peek_open(path, &file);

    *out = NULL;
    if (rc != 0)
        return rc;
    rc = qm_image_stands_on(&file, &stand);
    if (rc == 0 && (end || stand.backing_name || stand.data_file)) {
        n = calloc(1, sizeof *n);
        rc = n && (n->path = strdup(path)) ? 0 : ENOMEM;
    }
    if (rc == 0 && n) {
        n->self = (struct identity){file.dev, file.ino};
        n->has_backing = follow(path, stand.backing_name, &n->backing_path, &n->backing);
        n->has_data = follow(path, stand.data_file, &data, &n->data);
        *out = QM_TAKE(n);
    }
    free_node(n);
    qm_stand_release(&stand);
    qm_peek_close(&file);
    return rc;
}

/* ---- all files ---- */

static bool
add_node(struct finding *f, struct node *n)
{
    if (!qm_vec_push(&f->nodes, &n))
        return false;
    n->next = qm_dict_get(&f->by_ino, n->self.ino);
    return qm_dict_put(&f->by_ino, n->self.ino, n);
}

/* What vanished, and links that lead nowhere or to something that is no file, are no images. */
static bool
is_nothing(int why)
{
    return why == ENOENT || why == ENOTDIR || why == EMEDIUMTYPE || why == ELOOP;
}

static void
note_unread(struct finding *f, const char *path, int why)
{
    struct qm_dependants *out = f->out;

    out->unread++;
    /* always the same one, whichever thread was first */
    if (out->unread_path && strcmp(out->unread_path, path) <= 0)
        return;
    free(out->unread_path);
    out->unread_path = strdup(path);
    out->unread_why = why;
}

static void
take_file(const char *path, int why, void *opaque)
{
    struct finding *f = opaque;
    struct node *n = NULL;

    if (why == 0)
        why = look(path, false, &n);
    if (why == 0 && !n)
        return;
    pthread_mutex_lock(&f->lock);
    if (why == ENOMEM || (n && !add_node(f, n)))
        f->no_memory = true;
    else if (why != 0 && !is_nothing(why))
        note_unread(f, path, why);
    pthread_mutex_unlock(&f->lock);
}

static int
by_path(const void *a, const void *b)
{
    return strcmp((*(struct node *const *)a)->path, (*(struct node *const *)b)->path);
}

/* The folders of layer's file: of where its name leads if it is a link, and of its name, which is listed first. */
static bool
add_folders_of(const struct qm_layer *layer, struct qm_peek_folder *folders, size_t *n)
{
    QM_FREE char *real = realpath(layer->path, NULL);

    if (layer->img->file->blockdev)
        return true;
    if (real && (folders[*n].path = qm_dir_of(real)))
        ++*n;
    folders[*n].path = qm_dir_of(layer->path);
    return folders[*n].path && ++*n;
}

static int
look_at_all(struct finding *f, struct qmeld_error *err)
{
    const struct qm_dependants_config *c = f->cfg;
    struct qm_peek_folder *folders = calloc(c->n_scan + 2 * c->chain->n + 1, sizeof *folders);
    size_t n = 0;
    bool good = folders != NULL;
    int rc;

    for (; good && n < c->n_scan; n++)
        folders[n] = (struct qm_peek_folder){.path = c->scan[n], .deep = true};
    for (size_t i = 0; good && i < c->chain->n; i++)
        good = add_folders_of(&c->chain->layers[i], folders, &n);
    rc = good ? qm_peek_each(folders, n, c->threads, take_file, f, &f->out->files, err) : -1;
    for (size_t i = c->n_scan; i < n; i++)
        free((char *)folders[i].path);
    free(folders);
    if (!good || f->no_memory)
        return qm_fail_nomem(err, "looking for other images");
    if (rc == 0 && f->nodes.n > 0)
        qsort(f->nodes.at, f->nodes.n, sizeof *f->nodes.at, by_path);
    return rc;
}

/* ---- from an image down ---- */

static bool
is_file(const struct qm_file *file, const struct identity *id)
{
    return file->dev == id->dev && file->ino == id->ino;
}

/* The layer of the chain that this file is, or holds the data of; SIZE_MAX: none. */
static size_t
layer_of(const struct finding *f, const struct identity *id)
{
    const struct qm_chain *chain = f->cfg->chain;

    for (size_t i = 0; i < chain->n; i++) {
        const struct qm_image *img = chain->layers[i].img;

        /* a data file that is the disk byte for byte may be somebody's raw backing file, and anybody's data file */
        if (img && (is_file(img->file, id) || is_file(img->data, id)))
            return i;
    }
    return SIZE_MAX;
}

/* The image that n stands on, looked at now if it lies elsewhere; of its names, the one that n has for it. */
static int
find_next(struct finding *f, const struct node *n, struct node **out, struct qmeld_error *err)
{
    struct node *other = NULL;
    int why;

    *out = NULL;
    for (struct node *k = qm_dict_get(&f->by_ino, n->backing.ino); k; k = k->next) {
        if (!is_same(&k->self, &n->backing))
            continue;
        if (strcmp(k->path, n->backing_path) == 0) {
            *out = k;
            return 0;
        }
        other = k;
    }
    why = look(n->backing_path, true, out);
    if (why == ENOMEM || (*out && !add_node(f, *out)))
        return qm_fail_nomem(err, "looking for other images");
    if (why != 0 && !is_nothing(why))
        note_unread(f, n->backing_path, why);
    if (!*out)
        *out = other;
    return 0;
}

/* Everything on the way from n gets its verdict. */
static int
judge(struct finding *f, struct node *n, struct qmeld_error *err)
{
    QM_VEC(struct node *) way = {.at = NULL};
    enum verdict verdict = HARMLESS;
    size_t layer = SIZE_MAX;
    int rc = 0;

    while (n && n->verdict == UNKNOWN) {
        n->verdict = FOLLOWING;
        if (!qm_vec_push(&way, &n)) {
            rc = qm_fail_nomem(err, "looking for other images");
            break;
        }
        if (!n->has_backing)
            break;
        layer = layer_of(f, &n->backing);
        if (layer != SIZE_MAX) {
            n->direct = true;
            verdict = f->cfg->hurt[layer] ? HURT : HARMLESS;
            break;
        }
        rc = find_next(f, n, &n, err);
        if (rc < 0)
            break;
        if (n &&
            n->verdict == HURT) { /* one that is being followed is a loop: nobody can open it */
            verdict = HURT;
            layer = n->layer;
        }
    }
    QM_VEC_EACH (k, &way) {
        (*k)->verdict = verdict;
        (*k)->layer = layer;
    }
    qm_vec_release(&way);
    return rc;
}

/* ---- the list ---- */

void
qm_dependant_release(struct qmeld_dependant *d)
{
    free(d->path);
    free(d->snapshot_id);
    free(d->snapshot_name);
    *d = (struct qmeld_dependant){.path = NULL};
}

static bool
copy_text(const char *from, char **to)
{
    *to = from ? strdup(from) : NULL;
    return *to || !from;
}

bool
qm_dependant_copy(const struct qmeld_dependant *from, struct qmeld_dependant *out)
{
    *out = *from;
    out->path = out->snapshot_id = out->snapshot_name = NULL;
    if (copy_text(from->path, &out->path) && copy_text(from->snapshot_id, &out->snapshot_id) &&
        copy_text(from->snapshot_name, &out->snapshot_name))
        return true;
    qm_dependant_release(out);
    return false;
}

/* "./x" is x to everybody else. */
static const char *
plain(const char *path)
{
    return strncmp(path, "./", 2) == 0 && path[2] != '/' ? path + 2 : path;
}

static int
add(struct finding *f, const struct node *n, enum qmeld_dependant_kind kind, size_t layer,
    struct qmeld_error *err)
{
    struct qmeld_dependant d = {.kind = kind, .layer = layer, .fate = QMELD_DEPENDANT_BROKEN};

    d.path = strdup(plain(n->path));
    if (d.path && qm_vec_push(&f->out->list, &d))
        return 0;
    free(d.path);
    return qm_fail_nomem(err, "looking for other images");
}

/* The same file by another name was told already. */
static bool
is_told(const struct finding *f, const struct node *n, size_t before)
{
    for (const struct node *k = qm_dict_get(&f->by_ino, n->self.ino); k; k = k->next)
        if (k != n && is_same(&k->self, &n->self) && k->verdict == HURT)
            for (size_t i = 0; i < before; i++)
                if (f->nodes.at[i] == k)
                    return true;
    return false;
}

static int
tell(struct finding *f, size_t i, struct qmeld_error *err)
{
    const struct node *n = f->nodes.at[i];
    const size_t data = n->has_data ? layer_of(f, &n->data) : SIZE_MAX;

    if (layer_of(f, &n->self) != SIZE_MAX)
        return 0;
    if (data != SIZE_MAX && f->cfg->hurt[data])
        return add(f, n, QMELD_DEPENDANT_DATA_FILE, data, err);
    if (n->verdict != HURT || is_told(f, n, i))
        return 0;
    /* of an earlier merge; the name of one that was put aside is believed only where it is all there is */
    if (qm_leftover_is(n->path) || (qm_aside_is(n->path) && !qm_leftover_can_tell(n->path)))
        return 0;
    return add(f, n, n->direct ? QMELD_DEPENDANT_OVERLAY : QMELD_DEPENDANT_DEEPER, n->layer, err);
}

int
qm_dependants_find(const struct qm_dependants_config *config, struct qm_dependants *out,
                   struct qmeld_error *err)
{
    struct finding f = {.cfg = config, .out = out};
    int rc;

    *out = (struct qm_dependants){.files = 0};
    pthread_mutex_init(&f.lock, NULL);
    rc = look_at_all(&f, err);
    /* who is followed may add images that nobody listed; they are judged with those that led there */
    for (size_t i = 0; rc == 0 && i < f.nodes.n; i++)
        rc = judge(&f, f.nodes.at[i], err);
    if (rc == 0 && f.nodes.n > 0)
        qsort(f.nodes.at, f.nodes.n, sizeof *f.nodes.at, by_path);
    for (size_t i = 0; rc == 0 && i < f.nodes.n; i++)
        rc = tell(&f, i, err);
    QM_VEC_EACH (n, &f.nodes)
        free_node(*n);
    qm_vec_release(&f.nodes);
    qm_dict_release(&f.by_ino);
    pthread_mutex_destroy(&f.lock);
    return rc;
}

void
qm_dependants_release(struct qm_dependants *d)
{
    QM_VEC_EACH (k, &d->list)
        qm_dependant_release(k);
    qm_vec_release(&d->list);
    free(d->unread_path);
    *d = (struct qm_dependants){.files = 0};
}
