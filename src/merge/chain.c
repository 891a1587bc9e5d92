/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * chain.c - from a path to open layers.
 *
 * Why this way.  A loop, not a recursion: QEMU opens backing files recursively and a chain that
 * loops, or is merely deep, takes it down (qemu 7.2 detects no loop on open).  Each
 * layer is settled in one order: open, is it here already, lock, only then look at its content.
 */
#include "keys.h"
#include "lock.h"
#include "nbd_name.h"
#include "qcow2.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/* Files of this machine are as many as they are; a server may make up one more for ever. */
#define MAX_EXPORTS 256u

/* Layers from the top down while the chain is being opened. */
struct opening {
    const struct qm_chain_options *opts;
    unsigned n_exports;
    struct qm_policy *policy;
    QM_VEC(struct qm_layer) layers;
    bool bottomless;
};

static void
release_layer(struct qm_layer *l)
{
    qm_image_close(l->img);
    free(l->path);
}

/* ---- one layer ---- */

/* The same error, told about a backing file: who refers to it is half of the answer. */
static int
blame_overlay(const struct opening *o, const char *path, struct qmeld_error *err)
{
    const struct qmeld_error was = *err;
    const char *above;

    if (o->layers.n == 0)
        return -1;
    above = qm_vec_last(&o->layers)->path;
    if (was.sys_errno == ENOENT)
        qm_fail(err, was.code, qm_in(path),
                "backing file of %.200s: %.200s: if it was moved, `qmeld rebase --unsafe -b NEW -F "
                "FORMAT "
                "%.200s` stores its new name",
                above, was.what, above);
    else
        qm_fail(err, was.code, qm_in(path), "backing file of %s: %s", above, was.what);
    err->sys_errno = was.sys_errno;
    err->has_off = was.has_off;
    err->off = was.off;
    return -1;
}

static int
open_file(const struct opening *o, const char *path, struct qm_file **out, struct qmeld_error *err)
{
    if (qm_file_open(path, out, err) == 0)
        return 0;
    if (err->sys_errno == EMFILE || err->sys_errno == ENFILE) {
        const int e = err->sys_errno;

        qm_fail(err, QMELD_IO, qm_in(path),
                "too many open files after %zu layers: raise the limit (%s)", o->layers.n,
                e == EMFILE ? "ulimit -n" : "sysctl fs.file-max");
        err->sys_errno = e;
        return -1;
    }
    return blame_overlay(o, path, err);
}

/* A file can be in a chain once: twice is a loop, as its own backing file comes again. */
static int
check_loop(const struct opening *o, const struct qm_file *file, const char *path,
           struct qmeld_error *err)
{
    QM_VEC_EACH (l, &o->layers) {
        if (qm_file_same(l->img->data, file) && l->img->data != l->img->file)
            return qm_fail(err, QMELD_CORRUPT, qm_in(path),
                           "a backing file, and the data file of %s: give one of them its right "
                           "name",
                           l->path);
        if (!qm_file_same(l->img->file, file))
            continue;
        return qm_fail(err, QMELD_CORRUPT, qm_in(qm_vec_last(&o->layers)->path),
                       "its backing file %s is %s, which lies above it: the chain is a loop; "
                       "give one of them its right backing file",
                       path, l->path);
    }
    return 0;
}

/* Raw by the header's word, qcow2 by content: writing "raw" into it would destroy it (QEMU does).
 */
static int
check_really_raw(const struct opening *o, const struct qm_file *file, struct qmeld_error *err)
{
    bool qcow2;

    if (qm_image_looks_like_qcow2(file, &qcow2, err) < 0)
        return -1;
    if (!qcow2)
        return 0;
    if (o->layers.n == 0)
        return qm_fail(err, QMELD_USAGE, qm_in(file->path),
                       "said to be raw but holds a qcow2 header: refused; if it is qcow2, say so");
    return qm_fail(
        err, QMELD_USAGE, qm_in(file->path),
        "said to be raw (as backing file of %s) but holds a qcow2 header: refused; if it "
        "is qcow2, mend the stored format: qemu-img rebase -u -b %s -F qcow2 %s",
        qm_vec_last(&o->layers)->path, file->path, qm_vec_last(&o->layers)->path);
}

/* ---- external data files ---- */

static int
no_data_file(const struct qm_layer *l, const char *name, struct qmeld_error *err)
{
    const struct qmeld_error was = *err;
    const char *slash = strrchr(l->path, '/');
    QM_FREE char *beside = NULL;
    struct stat st;

    if (*name != '/' && slash &&
        asprintf(&beside, "%.*s/%s", (int)(slash - l->path), l->path, name) >= 0 &&
        stat(beside, &st) == 0)
        qm_fail(err, QMELD_USAGE, qm_in(l->path),
                "its data file %.200s is not here, but %.200s is: names of data files are relative "
                "to the working directory, for QEMU, too: run this in the folder of the image",
                name, beside);
    else
        qm_fail(err, was.code, qm_in(l->path), "its data file %.200s: %.300s", name, was.what);
    err->sys_errno = was.sys_errno;
    return -1;
}

/* Nobody else in the chain may have these bytes. */
static int
check_data_alone(const struct qm_layer *layers, size_t n, const struct qm_layer *mine,
                 const struct qm_file *data, struct qmeld_error *err)
{
    if (qm_file_same(mine->img->file, data))
        return qm_fail(err, QMELD_CORRUPT, qm_in(mine->path),
                       "it says it is its own data file: its header is damaged, or forged");
    for (size_t i = 0; i < n; i++)
        if (&layers[i] != mine && qm_image_is_in(layers[i].img, data))
            return qm_fail(err, QMELD_CORRUPT, qm_in(mine->path),
                           "its data file %.200s is used by %.200s in the same chain: give one of "
                           "them its right name",
                           data->path, layers[i].path);
    return 0;
}

/* "nbd://x" is a file here. */
static char *
plain_path(const char *name)
{
    char *out;

    return asprintf(&out, "%s%s", qm_nbd_is_name(name) ? "./" : "", name) < 0 ? NULL : out;
}

/* Opens the data file of l, if it has one: a plain file name, relative to the working directory (qemu 7.2.22,
 * block/qcow2.c, qcow2_do_open, as it is since names of data files are not parsed any more). */
static int
open_data(const struct qm_policy *policy, const struct qm_layer *layers, size_t n,
          struct qm_layer *l, bool lock, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(l->img);
    const char *name = q ? q->hdr.data_file : NULL;
    QM_FREE char *path = NULL;
    struct qm_file *data;

    if (!q || !q->geo.data_file || l->img->data != l->img->file)
        return 0;
    if (!name || !*name)
        return qm_fail(
            err, QMELD_UNSUPPORTED, qm_in(l->path),
            "the guest's data is in an external data file, and the header does not say in "
            "which: store its name with `qemu-img amend -o data_file=`");
    if (qm_names_allowed(policy, QM_NAME_DATA, l->path, name, err) < 0)
        return -1;
    path = plain_path(name);
    if (!path)
        return qm_fail_nomem(err, "a path");
    if (qm_file_open(path, &data, err) < 0)
        return no_data_file(l, name, err);
    if (qm_policy_opened(policy, QM_NAME_DATA, l->path, path, data, "raw", err) < 0 ||
        check_data_alone(layers, n, l, data, err) < 0 ||
        (lock && (qm_lock_take(data, QM_LOCK_READER, err) < 0 || qm_file_refresh(data, err) < 0))) {
        qm_file_close(data);
        return -1;
    }
    l->img->data = data;
    return 0;
}

/* ---- a layer, whole ---- */

/* Its data, unless it is only looked at. */
static int
make_readable(const struct opening *o, struct qm_layer *l, bool lock, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(l->img);

    if (!q || o->opts->describe)
        return 0;
    if (open_data(o->policy, o->layers.at, o->layers.n, l, lock, err) < 0)
        return -1;
    return qm_qcow2_can_read(q, err);
}

/* Opens path as the next layer down; it is the user's word for the first one, and a header's for others.  Owns
 * nothing but what it adds. */
static int
add_layer(struct opening *o, const char *path, const char *format, struct qmeld_error *err)
{
    const bool lock = o->opts->mode != QM_CHAIN_LOOK, hold = o->opts->mode == QM_CHAIN_HOLD;
    const char *overlay = o->layers.n > 0 ? qm_vec_last(&o->layers)->path : NULL;
    struct qm_layer l = {.format_probed = !format};
    struct qm_file *file;

    if (qm_nbd_is_name(path) && ++o->n_exports > MAX_EXPORTS)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                       "more than %u layers of the chain lie behind NBD servers: merge fewer at a "
                       "time",
                       MAX_EXPORTS);
    if ((overlay && qm_names_allowed(o->policy, QM_NAME_BACKING, overlay, path, err) < 0) ||
        open_file(o, path, &file, err) < 0)
        return -1;
    if ((overlay &&
         qm_policy_opened(o->policy, QM_NAME_BACKING, overlay, path, file, format, err) < 0) ||
        check_loop(o, file, path, err) < 0)
        goto no_image;
    /* What was seen before the lock may be old by now: the length. */
    if (lock && (qm_lock_take(file, QM_LOCK_READER, err) < 0 || qm_file_refresh(file, err) < 0))
        goto no_image;
    if (hold && !o->opts->resumed && format && strcmp(format, "raw") == 0 &&
        check_really_raw(o, file, err) < 0)
        goto no_image;
    l.path = strdup(path);
    if (!l.path) {
        qm_fail_nomem(err, "the path of a layer");
        goto no_image;
    }
    if ((o->opts->salvage ? qm_image_open_damaged(file, format, o->opts->finding,
                                                  o->opts->finding_opaque, &l.img, err)
                          : qm_image_open(file, format, &l.img, err)) < 0) {
        free(l.path);
        goto no_image;
    }
    if (make_readable(o, &l, lock, err) < 0 || qm_keys_unlock(&l, o->opts, err) < 0) {
        release_layer(&l);
        return -1;
    }
    if (qm_vec_push(&o->layers, &l))
        return 0;
    release_layer(&l);
    return qm_fail_nomem(err, "a layer");
no_image:
    qm_file_close(file);
    return -1;
}

/* ---- from a layer to the next ---- */

/* Who says what format the backing file has: the header, a json: name, the caller. */
static int
choose_format(const struct opening *o, const struct qm_layer *overlay, const char *path,
              const char *json_format, const char **out, struct qmeld_error *err)
{
    const char *stored = overlay->img->backing_format;

    if (stored && json_format && strcmp(stored, json_format) != 0)
        return qm_fail(err, QMELD_USAGE, qm_in(overlay->path),
                       "stores format \"%s\" for its backing file, but the name says driver "
                       "\"%s\": make them agree with qemu-img rebase -u",
                       stored, json_format);
    *out = stored ? stored : json_format ? json_format : o->opts->backing_format;
    if (!*out && o->opts->mode != QM_CHAIN_LOOK)
        return qm_fail(err, QMELD_USAGE, qm_in(overlay->path),
                       "stores no format for its backing file %s, and guessing one lets a guest "
                       "choose: say --backing-format=raw or --backing-format=qcow2",
                       path);
    return 0;
}

static int
add_backing(struct opening *o, struct qmeld_error *err)
{
    const struct qm_layer *overlay = qm_vec_last(&o->layers);
    QM_FREE char *path = NULL;
    QM_FREE char *json_format = NULL;
    const char *format;

    if (qm_backing_path(overlay->path, overlay->img->backing_name, &path, &json_format, err) < 0 ||
        choose_format(o, overlay, path, json_format, &format, err) < 0)
        return -1;
    return add_layer(o, path, format, err);
}

/* A name on the command line is a path, or one of those that QEMU has for exports: json:{} among them. */
static int
add_top(struct opening *o, const char *name, struct qmeld_error *err)
{
    QM_FREE char *path = NULL;
    QM_FREE char *format = NULL;

    if (strncmp(name, "json:", 5) != 0)
        return add_layer(o, name, o->opts->format, err);
    if (qm_backing_path("", name, &path, &format, err) < 0)
        return -1;
    if (format && o->opts->format && strcmp(format, o->opts->format) != 0)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "its name says driver \"%s\", and format \"%s\" is given: leave out one",
                       format, o->opts->format);
    return add_layer(o, path, o->opts->format ? o->opts->format : format, err);
}

/* What is missing, or cannot be read at all, is lost, if the rest is to be saved.  What the caller can put right by
 * an option is an error still, and so is what a converter can. */
static int
lose_backing(struct opening *o, struct qmeld_error *err)
{
    const struct qm_layer *overlay = qm_vec_last(&o->layers);
    char sentence[sizeof err->file + sizeof err->what + 64];

    if (!o->opts->salvage || (err->code != QMELD_IO && err->code != QMELD_CORRUPT))
        return -1;
    snprintf(sentence, sizeof sentence, "%s: what %s had below it is lost: %s", err->file,
             overlay->path, err->what);
    if (o->opts->finding)
        o->opts->finding(sentence, o->opts->finding_opaque);
    *err = (struct qmeld_error){.disk = err->disk};
    o->bottomless = true;
    return 0;
}

static int
add_all(struct opening *o, const char *path, struct qmeld_error *err)
{
    if (add_top(o, path, err) < 0)
        return -1;
    while (!o->opts->single && !o->bottomless && qm_vec_last(&o->layers)->img->backing_name)
        if (add_backing(o, err) < 0 && lose_backing(o, err) < 0)
            return -1;
    o->bottomless = o->bottomless || qm_vec_last(&o->layers)->img->below_lost;
    return 0;
}

/* ---- calls ---- */

int
qm_chain_open(const char *path, const struct qm_chain_options *opts, struct qm_chain **out,
              struct qmeld_error *err)
{
    struct opening o = {.opts = opts};
    struct qm_chain *chain;

    *out = NULL;
    if (qm_policy_new(opts->allow, &o.policy, err) < 0 ||
        qm_policy_named(o.policy, path, err) < 0 ||
        (opts->named && qm_policy_named(o.policy, opts->named, err) < 0) ||
        add_all(&o, path, err) < 0)
        goto fail;
    chain = calloc(1, sizeof *chain);
    if (!chain) {
        qm_fail_nomem(err, "a chain");
        goto fail;
    }
    for (size_t i = 0; i < o.layers.n / 2; i++) { /* the base is layer 0 */
        const struct qm_layer l = o.layers.at[i];

        o.layers.at[i] = o.layers.at[o.layers.n - 1 - i];
        o.layers.at[o.layers.n - 1 - i] = l;
    }
    chain->layers = o.layers.at;
    chain->n = o.layers.n;
    chain->bottomless = o.bottomless;
    chain->policy = o.policy;
    *out = chain;
    return 0;
fail:
    QM_VEC_EACH (l, &o.layers)
        release_layer(l);
    qm_policy_free(o.policy);
    qm_vec_release(&o.layers);
    return -1;
}

void
qm_chain_close(struct qm_chain *chain)
{
    if (!chain)
        return;
    for (size_t i = 0; i < chain->n; i++)
        release_layer(&chain->layers[i]);
    free(chain->layers);
    qm_policy_free(chain->policy);
    free(chain);
}

int
qm_chain_make_readable(struct qm_chain *chain, struct qmeld_error *err)
{
    for (size_t i = chain->n; i-- > 0;) {
        const struct qm_qcow2 *q = qm_qcow2_of(chain->layers[i].img);

        if (q &&
            (open_data(chain->policy, chain->layers, chain->n, &chain->layers[i], false, err) < 0 ||
             qm_qcow2_can_read(q, err) < 0))
            return -1;
    }
    return 0;
}

size_t
qm_chain_files(const struct qm_chain *chain, const struct qm_file **out)
{
    size_t n = chain->n;

    for (size_t i = 0; out && i < chain->n; i++)
        out[i] = chain->layers[i].img->file;
    for (size_t i = 0; i < chain->n; i++) {
        const struct qm_image *img = chain->layers[i].img;

        if (img->data == img->file)
            continue;
        if (out)
            out[n] = img->data;
        n++;
    }
    return n;
}

/* ---- finding a layer ---- */

/* The name as the overlay of layer i has it, or as one would write it there. */
static bool
is_backing_of(const struct qm_chain *chain, size_t i, const char *name)
{
    const struct qm_layer *overlay = &chain->layers[i + 1];
    const char *stored = overlay->img->backing_name;
    struct qmeld_error ignored = {0};
    QM_FREE char *path = NULL;
    QM_FREE char *format = NULL;

    if (stored && strcmp(stored, name) == 0)
        return true;
    return qm_backing_path(overlay->path, name, &path, &format, &ignored) == 0 &&
           qm_file_is_at(chain->layers[i].img->file, path);
}

static bool
parse_index(const char *name, size_t *out)
{
    char close = '\0', extra;
    unsigned n;

    if (name[0] != '[' || name[1] < '0' || name[1] > '9' || strlen(name) > 10 ||
        sscanf(name, "[%u%c%c", &n, &close, &extra) != 2 || close != ']')
        return false;
    *out = n;
    return true;
}

int
qm_chain_find(const struct qm_chain *chain, const char *name, size_t *out, struct qmeld_error *err)
{
    size_t found = SIZE_MAX, index;

    if (parse_index(name, &index)) {
        if (index < 1 || index > chain->n)
            return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[chain->n - 1].path),
                           "no layer %s: the layers are [1] (base) to [%zu]", name, chain->n);
        *out = index - 1;
        return 0;
    }
    for (size_t i = 0; i < chain->n; i++) {
        if (!qm_file_is_at(chain->layers[i].img->file, name) &&
            strcmp(chain->layers[i].path, name) != 0 &&
            (i + 1 == chain->n || !is_backing_of(chain, i, name)))
            continue;
        if (found != SIZE_MAX)
            return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[chain->n - 1].path),
                           "\"%s\" names two layers, [%zu] and [%zu]: say which by number", name,
                           found + 1, i + 1);
        found = i;
    }
    if (found == SIZE_MAX)
        return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[chain->n - 1].path),
                       "no layer \"%s\": qmeld info lists them", name);
    *out = found;
    return 0;
}
