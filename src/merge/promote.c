/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "promote.h"

#include "attrs.h"
#include "cipher.h"
#include "qcow2_header.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifdef QM_TESTING
unsigned qm_promote_held_names;
#else
#define qm_promote_held_names 0u
#endif

/* malloc'd; the target has this name beside the base's until it has that one */
static char *
name_for_a_moment(const char *base)
{
    const char *slash = strrchr(base, '/'), *name = slash ? slash + 1 : base;
    char *out;

    if (asprintf(&out, "%.*s.%s.qmeld-new", (int)(name - base), base, name) < 0)
        return NULL;
    return out;
}

/* ---- may it? ---- */

static int
refuse(const struct qm_layer *layer, struct qmeld_error *err, const char *why)
{
    return qm_fail(err, QMELD_USAGE, qm_in(layer->path), "%s: merge down (--direction=down)", why);
}

/* What the base has beside guest data is known by its name, and would be lost with its file. */
static int
refuse_base(const struct qm_layer *base, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(base->img);

    if (!q)
        return refuse(base, err,
                      "the base is raw, and its name has to stay a raw image's: it cannot move up");
    if (q->hdr.n_snapshots > 0)
        return refuse(base, err, "the base has internal snapshots, which cannot move up");
    if (q->hdr.has_bitmaps && q->hdr.n_bitmaps > 0)
        return refuse(base, err, "the base has persistent bitmaps, which cannot move up");
    if (q->geo.data_file)
        return refuse(base, err,
                      "the base's guest data is in an external data file, which cannot move up");
    if (q->hdr.compatible & ~QCOW2_COMPAT_LAZY ||
        q->hdr.header_len > sizeof(struct qcow2_disk_header))
        return refuse(base, err,
                      "the base's header says things that are not known here, and would be lost");
    QM_VEC_EACH (x, &q->hdr.exts)
        if (x->type != QCOW2_EXT_BACKING_FORMAT && x->type != QCOW2_EXT_FEATURES &&
            x->type != QCOW2_EXT_BITMAPS && x->type != QCOW2_EXT_CRYPTO)
            return refuse(base, err,
                          "the base's header has an extension that is not known here, and would be "
                          "lost");
    return 0;
}

/* Who could read the base must be able to read the file that will have its name; and what that has from its own life
 * must not come to light under another name. */
static int
refuse_target(const struct qm_layer *target, const struct qm_layer *base, struct qmeld_error *err)
{
    const struct qm_qcow2 *t = qm_qcow2_of(target->img), *b = qm_qcow2_of(base->img);
    const uint64_t states = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;

    if (!t)
        return refuse(target, err, "it is raw, and the base is not");
    if (t->hdr.has_bitmaps && t->hdr.n_bitmaps > 0)
        return refuse(target, err,
                      "it has persistent bitmaps, which would be the merged base's then");
    if (t->hdr.version > b->hdr.version)
        return refuse(target, err,
                      "it is a version 3 image and the base is version 2: who reads the base might "
                      "not be able to read it");
    if (t->geo.data_file)
        return refuse(target, err,
                      "its guest data is in an external data file, and the base's is not: who "
                      "reads the base might not find it");
    if (t->hdr.incompatible & ~b->hdr.incompatible & ~states)
        return refuse(target, err,
                      "it has features that the base has not (extended L2 entries, zstd): who "
                      "reads the base might not be able to read it");
    return 0;
}

/* The merged disk opens with what opens the base, or with nothing if that does. */
static int
refuse_encryption(const struct qm_layer *target, const struct qm_layer *base,
                  struct qmeld_error *err)
{
    const struct qmeld_secret *t = target->secret, *b = base->secret;

    if (!target->img->cipher && !base->img->cipher)
        return 0;
    if (!target->img->cipher)
        return refuse(target, err,
                      "the base is encrypted and it is not: the merged disk would lie open");
    if (!base->img->cipher)
        return refuse(target, err,
                      "it is encrypted and the base is not: who reads the base could not read it");
    if (!qm_cipher_may_write(target->img->cipher))
        return refuse(target, err, "its encryption (legacy AES) is read but not written");
    if (!t || !b || t->len != b->len || memcmp(t->data, b->data, t->len) != 0)
        return refuse(target, err,
                      "it opens with another passphrase than the base: who reads the base could "
                      "not read it");
    return 0;
}

static int
look(const char *path, struct stat *out, struct qmeld_error *err)
{
    return lstat(path, out) < 0 ? qm_fail_sys(err, qm_in(path), "cannot stat") : 0;
}

static int
refuse_file(const struct qm_layer *layer, unsigned own_names, struct qmeld_error *err)
{
    struct stat st;

    if (layer->img->file->blockdev)
        return refuse(layer, err,
                      "it is a block device or an NBD export, whose name cannot be changed");
    if (look(layer->path, &st, err) < 0)
        return -1;
    if (!S_ISREG(st.st_mode))
        return refuse(layer, err, "its name is a symbolic link, which another file cannot take");
    if (st.st_nlink > 1 + own_names + qm_promote_held_names)
        return refuse(layer, err,
                      "it has other names (hard links), which would lead to another image than its "
                      "own name then");
    return 0;
}

/* Zero if the kernel does not say. */
static uint64_t
mount_of(const char *path)
{
    struct statx stx;

    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_MNT_ID, &stx) < 0 ||
        !(stx.stx_mask & STATX_MNT_ID))
        return 0;
    return stx.stx_mnt_id;
}

/* A relative name of what lies below the base then leads there before and after; one rename is enough; and whoever looks
 * for the journal beside a layer of the chain finds it, whichever of the two is one at the moment. */
static int
refuse_places(const struct qm_layer *target, const struct qm_layer *base, struct qmeld_error *err)
{
    QM_FREE char *home = qm_dir_of(base->path), *other = qm_dir_of(target->path);
    struct stat h, o, b;

    if (!home || !other)
        return qm_fail_nomem(err, "a path");
    if (stat(home, &h) < 0)
        return qm_fail_sys(err, qm_in(home), "cannot stat");
    if (stat(other, &o) < 0)
        return qm_fail_sys(err, qm_in(other), "cannot stat");
    if (h.st_dev != o.st_dev || h.st_ino != o.st_ino)
        return refuse(target, err, "it does not lie in the base's directory");
    if (mount_of(home) != mount_of(base->path) || mount_of(home) != mount_of(target->path))
        return refuse(target, err, "it or the base is mounted by itself (a bind mount)");
    if (look(base->path, &b, err) < 0)
        return -1;
    if ((h.st_mode & S_ISVTX) && geteuid() != 0 && geteuid() != h.st_uid && geteuid() != b.st_uid)
        return refuse(base, err, "in a directory like this only its owner may replace it");
    return 0;
}

/* The name for a moment is left where an earlier run was cut short; 1 if the target has it. */
static unsigned
is_left(const struct qm_layer *target, const struct qm_layer *base)
{
    QM_FREE char *name = name_for_a_moment(base->path);
    struct stat st;

    return name && lstat(name, &st) == 0 && st.st_dev == target->img->file->dev &&
           st.st_ino == target->img->file->ino;
}

int
qm_promote_may(const struct qm_chain *chain, size_t base, size_t top, size_t target,
               uint64_t new_size, struct qmeld_error *err)
{
    const struct qm_layer *b = &chain->layers[base], *t = &chain->layers[target];

    if (refuse_base(b, err) < 0 || refuse_file(b, 0, err) < 0 || refuse_target(t, b, err) < 0 ||
        refuse_encryption(t, b, err) < 0 || refuse_file(t, is_left(t, b), err) < 0 ||
        refuse_places(t, b, err) < 0 || qm_attrs_check(t->img->file, b->img->file, err) < 0)
        return -1;
    if (t->img->size > new_size)
        return refuse(t, err, "its disk is longer than the merged one, and cannot be cut");
    if (target == top && top + 1 == chain->n && t->img->size < new_size)
        return refuse(b, err,
                      "its disk is longer than the active layer's, which would grow before the "
                      "merge is done");
    return 0;
}

/* ---- the steps ---- */

struct qm_promote {
    struct qm_promote_config cfg;
    struct qm_qcow2 *target;
    struct qm_file *base; /* NULL: its name is the target's already */
    char *moment;         /* the name for a moment */
};

static int
check(struct qm_promote *r, struct qmeld_error *err)
{
    struct qm_image *base = r->cfg.chain->layers[r->cfg.base].img;

    r->target = qm_qcow2_of(r->cfg.chain->layers[r->cfg.target].img);
    r->base = base ? base->file : NULL;
    r->moment = name_for_a_moment(r->cfg.base_path);
    if (!r->moment)
        return qm_fail_nomem(err, "a file name");
    assert(r->target); /* qm_promote_may, or the journal's reader */
    if (qm_file_make_writable(r->target->img.file, err) < 0)
        return -1;
    /* who may not write to the base shall not replace it either */
    if (r->base &&
        (qm_file_make_writable(r->base, err) < 0 || qm_names_may_change(r->cfg.base_path, err) < 0))
        return -1;
    return qm_header_backing_fits(r->target, r->cfg.backing_name, r->cfg.backing_format, err);
}

int
qm_promote_check(const struct qm_promote_config *config, struct qm_promote **out,
                 struct qmeld_error *err)
{
    struct qm_promote *r = calloc(1, sizeof *r);

    *out = NULL;
    if (!r)
        return qm_fail_nomem(err, "promoting a layer");
    r->cfg = *config;
    if (check(r, err) < 0) {
        qm_promote_free(r);
        return -1;
    }
    *out = r;
    return 0;
}

/* By the path it was opened by: its own, which is no link. */
static const char *
target_path(const struct qm_promote *r)
{
    return r->target->img.file->path;
}

int
qm_promote_try(const struct qm_promote *r, struct qmeld_error *err)
{
    return r->base ? qm_link_possible(target_path(r), r->moment, err) : 0;
}

/* Where the base's name leads to the target, and the name for a moment was not taken away by the rename. */
static int
clean_up(const struct qm_promote *r, struct qmeld_error *err)
{
    struct stat st;

    if (lstat(r->moment, &st) < 0 || st.st_ino != r->target->img.file->ino ||
        st.st_dev != r->target->img.file->dev)
        return 0;
    return qm_unlink(r->moment, err);
}

int
qm_promote_run(struct qm_promote *r, struct qmeld_error *err)
{
    /* COMMIT POINT S11: the target is durable, and answers by itself for all that the layers of the range below
     * it showed through it: it reads the same from either backing file. */
    if (qm_header_before_write(r->target, err) < 0 ||
        qm_header_set_backing(r->target, r->cfg.backing_name, r->cfg.backing_format, err) < 0)
        return -1;
    if (!r->base)
        return clean_up(r, err);
    if (qm_attrs_copy(r->target->img.file, r->base, err) < 0 ||
        qm_link(target_path(r), r->moment, err) < 0)
        return -1;
    /* COMMIT POINT S11: from here on the base's name leads to the target; nothing in the chain above it goes by that
     * name yet. */
    return qm_replace(r->moment, r->cfg.base_path, err);
}

void
qm_promote_free(struct qm_promote *r)
{
    if (!r)
        return;
    free(r->moment);
    free(r);
}
