/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "protect.h"

#include "lock.h"
#include "qcow2_check.h"
#include "qcow2_header.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- one image ---- */

static bool
is_file(const struct qm_file *file, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return false;
    if (file->blockdev)
        return S_ISBLK(st.st_mode) && st.st_rdev == file->dev;
    return st.st_dev == file->dev && st.st_ino == file->ino;
}

/* Alone, held as a writer.  opts: NULL if only its header is to change. */
static int
open_alone(const char *path, const struct qmeld_commit_options *opts, struct qm_chain **out,
           struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = "qcow2",
                                         .single = true,
                                         .resumed = true,
                                         .keys = opts ? QM_KEYS_NEEDED : QM_KEYS_NONE,
                                         .secrets = opts ? opts->secrets : NULL};

    if (qm_chain_open(path, &how, out, err) < 0)
        return -1;
    if (qm_image_lock((*out)->layers[0].img, QM_LOCK_WRITER, err) == 0)
        return 0;
    qm_chain_close(QM_TAKE(*out));
    return -1;
}

/* It is to be given bytes of the layer as qmeld reads it, so it has to read that in the same way. */
static int
check_format(const struct qm_layer *image, const struct qm_layer *below, const char *json_format,
             struct qmeld_error *err)
{
    const char *says = json_format ? json_format : image->img->backing_format;

    if (!says || strcmp(says, below->img->ops->format) == 0)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(image->path),
                   "it takes its backing file %.200s for %s, which is %s, and cannot be protected: "
                   "mend the stored format (qemu-img rebase -u), or remove the image",
                   below->path, says, below->img->ops->format);
}

static int
check_image(const struct qm_protect *p, const struct qm_layer *image, size_t layer,
            struct qmeld_error *err)
{
    const struct qm_layer *below = &p->chain->layers[layer];
    const struct qm_qcow2 *q = qm_qcow2_of(image->img);
    QM_FREE char *path = NULL;
    QM_FREE char *format = NULL;

    if (q->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return qm_fail(err, QMELD_CORRUPT, qm_in(image->path),
                       "the image is marked corrupt, and cannot be protected: run `qmeld check "
                       "--repair=all` on it first");
    if (image->img->backing_name &&
        qm_backing_path(image->path, image->img->backing_name, &path, &format, err) < 0)
        return -1;
    if (path && below->img->data != below->img->file && is_file(below->img->data, path))
        return qm_fail(err, QMELD_USAGE, qm_in(image->path),
                       "it stands on the data file of %.300s, which changes: it cannot be "
                       "protected, copy it first",
                       below->path);
    if (!path || !is_file(below->img->file, path))
        return qm_fail(err, QMELD_STALE, qm_in(image->path),
                       "it does not stand on %.300s any more, as it did when the merge began: put "
                       "the old image back, or remove it",
                       below->path);
    return check_format(image, below, format, err) < 0 ? -1 : qm_transfer_check_target(image, err);
}

int
qm_protect_note(const struct qm_protect *p, const char *path, size_t layer, struct qm_guarded *out,
                struct qmeld_error *err)
{
    struct qm_chain *alone;
    int rc;

    *out = (struct qm_guarded){.layer = layer};
    if (open_alone(path, p->opts, &alone, err) < 0)
        return -1;
    rc = check_image(p, &alone->layers[0], layer, err);
    if (rc == 0)
        rc = qm_journal_note(&alone->layers[0], &out->file, err);
    qm_chain_close(alone);
    if (rc < 0)
        qm_guarded_release(out);
    return rc;
}

int
qm_protect_note_own(const struct qm_protect *p, size_t layer, struct qm_guarded *out,
                    struct qmeld_error *err)
{
    const struct qm_layer *l = &p->chain->layers[layer];

    *out = (struct qm_guarded){.layer = layer - 1, .own = true};
    if (p->gone)
        return qm_fail(err, QMELD_USAGE, qm_in(l->path),
                       "it has internal snapshots, which would go with it: use --overlays=keep, or "
                       "delete them first (`qemu-img snapshot -d`)");
    if (p->up)
        return qm_fail(err, QMELD_USAGE, qm_in(l->path),
                       "it has internal snapshots, which can be protected only when the merge goes "
                       "down: say --direction=down");
    /* who reads it may have its tables in memory, and nobody else may write */
    if (qm_image_lock(l->img, QM_LOCK_EXCLUSIVE, err) < 0)
        return -1;
    return qm_journal_note(l, &out->file, err);
}

/* ---- views ---- */

/* The image on what it stands on.  Layers are borrowed. */
static int
view_now(const struct qm_protect *p, size_t layer, const struct qm_layer *image,
         struct qm_chain *out, struct qmeld_error *err)
{
    out->layers = calloc(layer + 2, sizeof *out->layers);
    if (!out->layers)
        return qm_fail_nomem(err, "the view of an image");
    memcpy(out->layers, p->chain->layers, (layer + 1) * sizeof *out->layers);
    out->layers[layer + 1] = *image;
    out->n = layer + 2;
    return 0;
}

/* What it will stand on: the base as it will be, and, where layers in the middle stay, they on that.  A top that is
 * pointed at the base: what reads otherwise there than on them it holds then, so it may stand on them until it is. */
static int
view_then(const struct qm_protect *p, const struct qm_guarded *g, struct qm_chain *out,
          struct qmeld_error *err)
{
    const struct qm_layer *layers = p->chain->layers;
    const uint64_t end = qm_max(layers[p->top].img->size, p->hidden_end);
    const bool moves = p->gone || (g->own && g->layer + 1 == p->top && p->top_moves);
    const size_t above = moves ? 0 : g->layer - p->base;

    out->n = p->top + 1 + above;
    out->layers = calloc(out->n, sizeof *out->layers);
    if (!out->layers)
        return qm_fail_nomem(err, "the view of an image");
    memcpy(out->layers, layers, (p->top + 1) * sizeof *out->layers);
    for (size_t i = p->base + 1; i <= p->top; i++)
        out->layers[i].hides_to =
            end; /* behind it the base keeps its tail, whatever they have there */
    for (size_t i = 0; i < above; i++) {
        out->layers[p->top + 1 + i] = layers[p->base + 1 + i];
        out->layers[p->top + 1 + i].given_up = p->emptied;
    }
    return 0;
}

static uint64_t
size_of(const struct qm_protect *p, const struct qm_chain *view)
{
    uint64_t size = 0;

    for (size_t i = p->base; i < view->n; i++)
        size = qm_max(size, view->layers[i].img->size);
    return size;
}

/* ---- giving it what it needs ---- */

static int
hear(const struct qmeld_progress *now, void *opaque)
{
    const struct qm_protect *p = opaque;
    struct qmeld_progress told = *now;

    if (strcmp(now->phase, "copy") == 0)
        told.phase = "protect";
    return p->opts->progress(&told, p->opts->opaque);
}

/* holder: NULL, or the target is a snapshot of its.  mend: leaks of an earlier run, also one that was taken back, are
 * ours. */
static int
transfer(struct qm_chain *now, struct qm_transfer *t, uint64_t below, struct qm_qcow2 *holder,
         bool mend, struct qmeld_error *err)
{
    const struct qm_seal_config config = {.chain = now,
                                          .target = t->target,
                                          .base = t->target,
                                          .below_size = below,
                                          .new_size = t->new_size,
                                          .holder = holder,
                                          .unchanged = true,
                                          .resumed = mend};
    struct qm_seal *seal;

    if (qm_seal_begin(&config, &seal, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN);
    if (qm_transfer_run(t, seal, NULL, err) < 0) {
        qm_seal_abandon(seal);
        return -1;
    }
    return qm_seal_finish(seal, err);
}

/* The uppermost layer of now is given what it would read otherwise on then. */
static int
fill(struct qm_protect *p, struct qm_chain *now, struct qm_chain *then, struct qm_qcow2 *holder,
     bool mend, struct qmeld_error *err)
{
    const size_t image = now->n - 1;
    const uint64_t size = now->layers[image].img->size;
    struct qmeld_commit_report sums = {0};
    const struct qmeld_commit_options opts = {.threads = p->opts->threads,
                                              .bandwidth = p->opts->bandwidth,
                                              .progress = p->opts->progress ? hear : NULL,
                                              .opaque = p};
    struct qm_onto onto = {.chain = then,
                           .by_map = true,
                           .threads = opts.threads,
                           .bandwidth = opts.bandwidth,
                           .progress = opts.progress,
                           .opaque = opts.opaque};
    struct qm_transfer t = {.chain = now,
                            .base = image,
                            .top = image,
                            .target = image,
                            .old_size = size,
                            .new_size = size,
                            .onto = &onto,
                            .opts = &opts,
                            .report = &sums};
    int rc = qm_transfer_count(&t, err);

    onto.by_map = false;
    if (rc == 0)
        rc = transfer(now, &t, size_of(p, then), holder, mend, err);
    p->bytes += sums.bytes_copied;
    return rc;
}

/* What the image's own clusters are, or, with s, those of that snapshot. */
static int
protect_view(struct qm_protect *p, const struct qm_guarded *g, const struct qm_layer *image,
             const struct qm_snapshot *s, bool mend, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(image->img), *snapshot = NULL;
    struct qm_chain now = {.n = 0}, then = {.n = 0};
    struct qm_layer layer = *image;
    int rc = s ? qm_qcow2_open_snapshot(q, s, &snapshot, err) : 0;

    if (snapshot)
        layer.img = &snapshot->img;
    if (rc == 0)
        rc = view_now(p, g->layer, &layer, &now, err);
    if (rc == 0)
        rc = view_then(p, g, &then, err);
    if (rc == 0)
        rc = fill(p, &now, &then, s ? q : NULL, mend, err);
    free(now.layers);
    free(then.layers);
    qm_qcow2_close_snapshot(snapshot);
    return rc;
}

static int
protect_snapshots(struct qm_protect *p, const struct qm_guarded *g, const struct qm_layer *image,
                  struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(image->img);
    struct qm_snapshots all;
    int rc;

    if (q->hdr.n_snapshots == 0)
        return 0;
    if (qm_qcow2_make_safe_to_write(q, err) < 0)
        return -1;
    rc = qm_qcow2_read_snapshots(q, &all, err);
    for (size_t i = 0; rc == 0 && i < all.list.n; i++)
        rc = protect_view(p, g, image, &all.list.at[i], i == 0, err);
    qm_snapshots_release(&all);
    return rc;
}

static int
protect_open(struct qm_protect *p, const struct qm_guarded *g, struct qm_chain *alone,
             struct qmeld_error *err)
{
    const struct qm_layer *image = &alone->layers[0];

    if (qm_journal_same(&g->file, image->img, false, err) < 0 ||
        check_image(p, image, g->layer, err) < 0 ||
        qm_file_make_writable(image->img->file, err) < 0 || protect_snapshots(p, g, image, err) < 0)
        return -1;
    return protect_view(p, g, image, NULL, true, err);
}

/* The chain has it open. */
static int
protect_own(struct qm_protect *p, const struct qm_guarded *g, struct qmeld_error *err)
{
    const struct qm_layer *image = &p->chain->layers[g->layer + 1];

    if (!qm_qcow2_of(image->img))
        return qm_fail(err, QMELD_STALE, qm_in(image->path),
                       "it is no qcow2 image any more: put the old one back");
    if (qm_image_lock(image->img, QM_LOCK_EXCLUSIVE, err) < 0 ||
        qm_image_make_writable(image->img, err) < 0)
        return -1;
    return protect_snapshots(p, g, image, err);
}

/* What is done to one of these images, which is open alone, and held as a writer. */
typedef int protect_fn(struct qm_protect *p, const struct qm_guarded *g, struct qm_chain *alone,
                       struct qmeld_error *err);

/* *out_gone: it is not there, and nothing is done. */
static int
with_image(struct qm_protect *p, const struct qm_guarded *g,
           const struct qmeld_commit_options *opts, protect_fn *fn, bool *out_gone,
           struct qmeld_error *err)
{
    const enum qmeld_disk disk = err->disk;
    struct qm_chain *alone;
    int rc = open_alone(g->file.path, opts, &alone, err);

    *out_gone = rc < 0 && err->sys_errno == ENOENT;
    if (*out_gone) {
        *err = (struct qmeld_error){.disk = disk};
        return 0;
    }
    if (rc < 0)
        return -1;
    rc = fn(p, g, alone, err);
    qm_chain_close(alone);
    return rc;
}

/* One that is not there may have been removed, and need nothing; or renamed, or its file system is not mounted. */
static int
protect_image(struct qm_protect *p, const struct qm_guarded *g, struct qmeld_error *err)
{
    bool gone;

    if (with_image(p, g, p->opts, protect_open, &gone, err) < 0)
        return -1;
    return !gone ? 0
                 : qm_fail(err, QMELD_USAGE, qm_in(g->file.path),
                           "it is to get what it reads through the chain, and is not there: put it "
                           "back; or, if it is gone for good, take the merge back (`qmeld "
                           "revert`), as no layer has changed so far, and begin again");
}

int
qm_protect_run(struct qm_protect *p, struct qmeld_error *err)
{
    QM_VEC_EACH (g, &p->intent->guarded)
        if ((g->own ? protect_own(p, g, err) : protect_image(p, g, err)) < 0)
            return -1;
    return 0;
}

static int
tidy(struct qm_protect *p, const struct qm_guarded *g, struct qm_chain *alone,
     struct qmeld_error *err)
{
    struct qm_image *img = alone->layers[0].img;

    (void)p;
    return qm_journal_same(&g->file, img, false, err) < 0 || qm_image_make_writable(img, err) < 0
               ? -1
               : qm_qcow2_mend_leaks(qm_qcow2_of(img), err);
}

static int
tidy_own(const struct qm_protect *p, const struct qm_guarded *g, struct qmeld_error *err)
{
    struct qm_image *img = p->chain->layers[g->layer + 1].img;

    return qm_image_lock(img, QM_LOCK_EXCLUSIVE, err) < 0 || qm_image_make_writable(img, err) < 0
               ? -1
               : qm_qcow2_mend_leaks(qm_qcow2_of(img), err);
}

int
qm_protect_tidy(struct qm_protect *p, struct qmeld_error *err)
{
    bool gone; /* then it leaves nothing */

    QM_VEC_EACH (g, &p->intent->guarded)
        if ((g->own ? tidy_own(p, g, err) : with_image(p, g, NULL, tidy, &gone, err)) < 0)
            return -1;
    return 0;
}

/* ---- another backing file ---- */

static int
point(struct qm_protect *p, const struct qm_guarded *g, struct qm_chain *alone,
      struct qmeld_error *err)
{
    const struct qm_layer *image = &alone->layers[0];
    const struct qm_journal_layer *base = &p->intent->layers.at[p->intent->base];
    struct qm_qcow2 *q = qm_qcow2_of(image->img);
    QM_FREE char *name = NULL;

    if (qm_journal_same(&g->file, image->img, false, err) < 0 ||
        qm_backing_name_for(image->path, g->file.backing_name, base->path, false, &name, err) < 0)
        return -1;
    if (image->img->backing_name && strcmp(image->img->backing_name, name) == 0)
        return 0; /* by the run that was interrupted */
    /* COMMIT POINT: the image holds what reads differently on the base, and the base is complete */
    return qm_file_make_writable(image->img->file, err) < 0 || qm_header_before_write(q, err) < 0
               ? -1
               : qm_header_set_backing(q, name, p->intent->layers.at[p->intent->target].format,
                                       err);
}

int
qm_protect_repoint(const struct qm_intent *intent, struct qmeld_error *err)
{
    struct qm_protect p = {.intent = intent};
    bool gone; /* whoever removed it does not need it */

    QM_VEC_EACH (g, &intent->guarded)
        if (!g->own && g->layer != intent->base && with_image(&p, g, NULL, point, &gone, err) < 0)
            return -1;
    return 0;
}
