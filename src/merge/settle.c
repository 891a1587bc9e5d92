/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "settle.h"

#include "leftover.h"
#include "qcow2_check.h"
#include "qcow2_empty.h"
#include "qcow2_header.h"
#include "qcow2_unmap.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Nobody keeps so many; a directory in which every name is taken must not cost for ever. */
#define MAX_SET_ASIDE 1000u

/* A layer whose header is to name the base. */
struct repoint {
    struct qm_image *img;
    char *name; /* what it will say */
    const char *format;
};

struct qm_settle {
    struct qm_settle_config cfg;
    struct repoint repoints[2];
    size_t n_repoints;
};

static int
check_repoint(struct qm_settle *s, size_t idx, struct qmeld_error *err)
{
    const struct qm_layer *layer = &s->cfg.chain->layers[idx];
    const struct qm_layer *base =
        &s->cfg.chain->layers[s->cfg.base]; /* its name; and the file that has it: */
    const struct qm_layer *target = &s->cfg.chain->layers[s->cfg.target];
    struct repoint *r = &s->repoints[s->n_repoints++];

    r->img = layer->img;
    r->format = target->img->ops->format;
    if (qm_backing_name_for(layer->path, layer->img->backing_name, base->path, s->cfg.keep_relative,
                            &r->name, err) < 0 ||
        qm_header_backing_fits(qm_qcow2_of(layer->img), r->name, r->format, err) < 0)
        return -1;
    return qm_file_make_writable(layer->img->file, err);
}

static bool
names_go(const struct qm_settle_config *c)
{
    return c->overlays == QMELD_OVERLAYS_DELETE || c->overlays == QMELD_OVERLAYS_QUARANTINE;
}

static bool
is_emptied(const struct qm_settle_config *c, size_t layer)
{
    if (layer <= c->base || layer > c->top || names_go(c))
        return false;
    return c->reclaim || (c->overlays == QMELD_OVERLAYS_EMPTY && layer == c->top);
}

/* The layer above the range reads the base from now on; so does the top of the range if it is to
 * be emptied over middle layers, or it would read through to what they hold. */
static int
check_repoints(struct qm_settle *s, struct qmeld_error *err)
{
    const struct qm_settle_config *c = &s->cfg;

    if (c->top + 1 < c->chain->n && check_repoint(s, c->top + 1, err) < 0)
        return -1;
    if (is_emptied(c, c->top) && c->top > c->base + 1)
        return check_repoint(s, c->top, err);
    return 0;
}

/* The merged files are to lose their names. */
static int
check_names(const struct qm_settle *s, struct qmeld_error *err)
{
    for (size_t i = s->cfg.base + 1; i <= s->cfg.top; i++) {
        const struct qm_layer *layer = &s->cfg.chain->layers[i];

        if (!layer->img)
            continue;
        if (layer->img->file->blockdev)
            return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                           "%s %s cannot be %s: use --overlays=keep or empty",
                           qm_file_is_local(layer->img->file) ? "a" : "an",
                           qm_file_kind(layer->img->file),
                           s->cfg.overlays == QMELD_OVERLAYS_DELETE ? "deleted" : "renamed");
        if (qm_names_may_change(layer->path, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_settle_new_name(const char *path, char **out, struct qmeld_error *err)
{
    for (unsigned n = 0; n < MAX_SET_ASIDE; n++) {
        struct stat st;

        *out = qm_aside_name(path, n);
        if (!*out)
            return qm_fail_nomem(err, "a file name");
        if (lstat(*out, &st) < 0 && errno == ENOENT)
            return 0;
        free(*out);
        *out = NULL;
        if (errno == ENAMETOOLONG)
            return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                           "with .merged behind it the name is too long for the file system: use "
                           "another --overlays than quarantine");
    }
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                   "all names from .merged to .merged.%u are taken: remove what is not needed any "
                   "more",
                   MAX_SET_ASIDE - 1);
}

int
qm_settle_check(const struct qm_settle_config *config, struct qm_settle **out,
                struct qmeld_error *err)
{
    struct qm_settle *s = calloc(1, sizeof *s);
    int rc;

    *out = NULL;
    if (!s)
        return qm_fail_nomem(err, "settling the overlays");
    s->cfg = *config;
    rc = check_repoints(s, err);
    if (rc == 0 && names_go(config))
        rc = check_names(s, err);
    for (size_t i = config->base + 1; rc == 0 && i <= config->top; i++)
        if (is_emptied(config, i))
            rc = qm_image_make_writable(config->chain->layers[i].img, err);
    if (rc < 0) {
        qm_settle_free(s);
        return -1;
    }
    *out = s;
    return 0;
}

/* Virtual size of a layer as it is now; of raw, the file's own. */
static uint64_t __attribute__((unused)) /* without asserts */
guest_end(const struct qm_settle_config *c, size_t layer)
{
    struct qm_image *img = c->chain->layers[layer].img;
    const struct qm_qcow2 *q = qm_qcow2_of(img);

    return q ? q->hdr.size : qm_align_up(img->file->size, 512);
}

bool
qm_settle_has_work(const struct qm_settle *s)
{
    return s->n_repoints > 0 || s->cfg.reclaim || s->cfg.overlays != QMELD_OVERLAYS_KEEP;
}

/* Emptying that was cut short leaves clusters that nothing refers to any more; what was given up on
 * the way, a long file of holes. */
static int
empty(const struct qm_settle *s, size_t layer, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(s->cfg.chain->layers[layer].img);

    if (qm_header_before_write(q, err) < 0 || qm_qcow2_empty(q, err) < 0)
        return -1;
    if (s->cfg.reclaim)
        return qm_qcow2_give_back(q, err);
    return qm_qcow2_mend_leaks(q, err);
}

/* A target above its base has two names by now, and keeps the base's. */
static int
drop_old_name(const struct qm_settle *s, struct qmeld_error *err)
{
    const struct qm_layer *target = &s->cfg.chain->layers[s->cfg.target];
    const char *base = s->cfg.chain->layers[s->cfg.base].path;
    const struct qm_file *file = target->img->file;
    struct stat st;

    if (file->shadow) /* it has both names there, too, but the disk does not know */
        return qm_unlink(target->path, err);
    if (lstat(base, &st) < 0 || st.st_dev != file->dev || st.st_ino != file->ino)
        return qm_fail(
            err, QMELD_STALE, qm_in(base),
            "its name does not lead to the merged file any more: put that back, it is %.300s",
            target->path);
    if (lstat(target->path, &st) < 0)
        return errno == ENOENT ? 0 /* by the run that was interrupted */
                               : qm_fail_sys(err, qm_in(target->path), "cannot stat");
    /* since then its name may have been given to another file, which is nobody's business here */
    return st.st_dev == file->dev && st.st_ino == file->ino ? qm_unlink(target->path, err) : 0;
}

/* Layer by layer, from the top: no file without its backing. */
static int
put_away(struct qm_settle *s, struct qmeld_error *err)
{
    for (size_t i = s->cfg.top; i > s->cfg.base; i--) {
        const struct qm_layer *layer = &s->cfg.chain->layers[i];
        const char *to = s->cfg.overlays == QMELD_OVERLAYS_QUARANTINE ? s->cfg.moved_to[i] : NULL;

        if (i == s->cfg.target) {
            if (drop_old_name(s, err) < 0)
                return -1;
            continue;
        }
        if (!layer->img || (to && strcmp(layer->img->file->path, to) == 0))
            continue; /* by the run that was interrupted */
        if ((to ? qm_rename(layer->path, to, err) : qm_unlink(layer->path, err)) < 0)
            return -1;
    }
    return 0;
}

int
qm_settle_repoint(struct qm_settle *s, struct qmeld_error *err)
{
    __attribute__((unused)) const struct qm_layer *layers = s->cfg.chain->layers; /* asserts only */

    /* COMMIT POINT S7: the base is durable and reads as the backing file did. */
    assert(!layers[s->cfg.top].img ||
           guest_end(&s->cfg, s->cfg.target) >= layers[s->cfg.top].img->size);
    for (size_t i = 0; i < s->n_repoints; i++) {
        const struct repoint *r = &s->repoints[i];
        struct qm_qcow2 *q = qm_qcow2_of(r->img);

        if (qm_header_before_write(q, err) < 0 ||
            qm_header_set_backing(q, r->name, r->format, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_settle_give_up(struct qm_settle *s, struct qmeld_error *err)
{
    for (size_t i = s->cfg.base + 1; i <= s->cfg.top; i++)
        if (is_emptied(&s->cfg, i) && empty(s, i, err) < 0)
            return -1;
    return names_go(&s->cfg) ? put_away(s, err) : 0;
}

void
qm_settle_mark_leftovers(const struct qm_settle *s)
{
    const struct qm_settle_config *c = &s->cfg;

    for (size_t i = c->base + 1; i <= c->top; i++) {
        const struct qm_image *img = c->chain->layers[i].img;
        const enum qmeld_fate fate = qm_settle_fate(c, i);
        const bool left = i < c->top ? fate == QMELD_FATE_INVALID || fate == QMELD_FATE_EMPTIED
                                     : fate == QMELD_FATE_REDUNDANT && c->top + 1 < c->chain->n;

        if (img && fate == QMELD_FATE_QUARANTINED)
            qm_leftover_mark(c->moved_to[i]);
        else if (img && left)
            qm_leftover_mark(c->chain->layers[i].path);
    }
}

void
qm_settle_free(struct qm_settle *s)
{
    if (!s)
        return;
    for (size_t i = 0; i < s->n_repoints; i++)
        free(s->repoints[i].name);
    free(s);
}

enum qmeld_fate
qm_settle_fate(const struct qm_settle_config *config, size_t layer)
{
    if (layer == config->target)
        return QMELD_FATE_MERGED_INTO;
    if (layer == config->base)
        return QMELD_FATE_REPLACED;
    if (layer == config->top + 1)
        return QMELD_FATE_REPOINTED;
    if (layer < config->base || layer > config->top)
        return QMELD_FATE_UNTOUCHED;
    if (names_go(config))
        return config->overlays == QMELD_OVERLAYS_DELETE ? QMELD_FATE_DELETED
                                                         : QMELD_FATE_QUARANTINED;
    if (is_emptied(config, layer))
        return QMELD_FATE_EMPTIED;
    return layer < config->top ? QMELD_FATE_INVALID : QMELD_FATE_REDUNDANT;
}
