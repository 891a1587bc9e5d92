/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * create.c - qmeld_create: a new image, with or without a backing file.
 *
 * Why.  Everything that can be wrong with the wish is found before the target is touched: the
 * options, the backing file (which must open, and must not have the target among its layers),
 * and whoever holds the target.
 */
#include "create.h"

#include "chain.h"
#include "lock.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

static int
parse_prealloc(const char *path, const char *name, enum qm_prealloc *out, struct qmeld_error *err)
{
    static const char *const names[] = {"off", "metadata", "falloc", "full"};

    *out = QM_PREALLOC_OFF;
    if (!name)
        return 0;
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (enum qm_prealloc)i;
            return 0;
        }
    return qm_fail(err, QMELD_USAGE, qm_in(path),
                   "preallocation \"%s\" is unknown: use off, metadata, falloc or full", name);
}

int
qm_create_compression(const char *path, const char *name, enum qm_compression *out,
                      struct qmeld_error *err)
{
    if (!name || strcmp(name, "zlib") == 0)
        *out = QM_ZLIB;
    else if (strcmp(name, "zstd") == 0)
        *out = QM_ZSTD;
    else
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "compression \"%s\" is unknown: use zlib or zstd", name);
    return 0;
}

int
qm_create_parse(const char *path, const struct qmeld_create_options *o, struct qm_qcow2_create *out,
                struct qmeld_error *err)
{
    *out = (struct qm_qcow2_create){
        .size = o->size,
        .version = o->version ? o->version : 3,
        .cluster_size = o->cluster_size ? o->cluster_size : 65536,
        .refcount_bits = o->refcount_bits ? o->refcount_bits : 16,
        .extended_l2 = o->extended_l2,
        .lazy_refcounts = o->lazy_refcounts,
        .backing_name = o->backing_name,
        .backing_format = o->backing_format,
    };
    if (qm_create_compression(path, o->compression, &out->compression, err) < 0)
        return -1;
    return parse_prealloc(path, o->preallocation, &out->prealloc, err);
}

/* ---- the backing file --------------------------------------------------------------------------
 */

static int
look_at_backing(const char *path, const struct qmeld_create_options *o,
                const struct qm_file *target, uint64_t *out_size, struct qmeld_error *err)
{
    struct qm_chain_options look = {.mode = QM_CHAIN_LOOK,
                                    .format = o->backing_format,
                                    .allow = o->allow_paths,
                                    .named = path,
                                    .keys = QM_KEYS_NONE};
    QM_FREE char *where = NULL;
    QM_FREE char *format = NULL;
    struct qm_chain *chain;
    int rc = 0;

    if (qm_backing_path(path, o->backing_name, &where, &format, err) < 0)
        return -1;
    if (qm_chain_open(where, &look, &chain, err) < 0)
        return -1;
    *out_size = chain->layers[chain->n - 1].img->size;
    for (size_t i = 0; i < chain->n && target; i++)
        if (qm_image_is_in(chain->layers[i].img, target))
            rc = qm_fail(err, QMELD_USAGE, qm_in(path),
                         "the image would overwrite its own backing file %s: choose another name",
                         chain->layers[i].path);
    qm_chain_close(chain);
    return rc;
}

static int
check_backing_options(const char *path, const struct qmeld_create_options *o,
                      struct qmeld_error *err)
{
    if (!o->backing_name) {
        if (o->backing_format)
            return qm_fail(err, QMELD_USAGE, qm_in(path),
                           "a backing format without a backing file: name the file, too");
        if (!o->has_size)
            return qm_fail(err, QMELD_USAGE, qm_in(path), "the image needs a size: give one");
        return 0;
    }
    if (!*o->backing_name)
        return qm_fail(err, QMELD_USAGE, qm_in(path), "the backing file name is empty");
    if (!o->backing_format || !*o->backing_format)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "a backing file without its format: name the format, too (a guest could "
                       "otherwise choose it)");
    if (o->unsafe_backing && !o->has_size)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "the size cannot be found without opening the backing file: give one");
    return 0;
}

/* ---- raw
 * ------------------------------------------------------------------------------------------- */

int
qm_create_raw_prealloc(const char *path, const char *name, enum qm_prealloc *out,
                       struct qmeld_error *err)
{
    if (parse_prealloc(path, name, out, err) < 0)
        return -1;
    if (*out == QM_PREALLOC_METADATA)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "a raw image has no metadata to preallocate: use falloc or full");
    return 0;
}

static int
check_raw(const char *path, const struct qmeld_create_options *o, enum qm_prealloc *out,
          struct qmeld_error *err)
{
    if (o->backing_name)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "a raw image has no backing file: use format qcow2");
    if (o->version || o->cluster_size || o->refcount_bits || o->compression || o->extended_l2 ||
        o->lazy_refcounts)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "these options are for qcow2 images: use format qcow2");
    if (o->size > QM_MAX_OFF - 511)
        return qm_fail(err, QMELD_USAGE, qm_in(path), "%" PRIu64 " bytes is no file size", o->size);
    return qm_create_raw_prealloc(path, o->preallocation, out, err);
}

static int
create_raw(struct qm_file *file, uint64_t size, enum qm_prealloc prealloc, struct qmeld_error *err)
{
    size = qm_align_up(size, 512); /* QEMU's block layer counts in sectors */
    if (!file->blockdev && qm_truncate(file, 0, err) < 0)
        return -1;
    if (qm_truncate(file, size, err) < 0)
        return -1;
    if (prealloc != QM_PREALLOC_OFF &&
        qm_preallocate(file, 0, size, prealloc == QM_PREALLOC_FULL, err) < 0)
        return -1;
    return qm_sync(file, err);
}

/* ---- all together
 * -------------------------------------------------------------------------------------- */

/* The existing target, locked against everybody; *out is NULL if there is none. */
static int
hold_target(const char *path, struct qm_file **out, struct qmeld_error *err)
{
    if (qm_file_open(path, out, err) < 0) {
        if (err->sys_errno != ENOENT)
            return -1;
        memset(err, 0, sizeof *err);
        *out = NULL;
        return 0;
    }
    if (qm_lock_take(*out, QM_LOCK_WRITER, err) < 0) {
        qm_file_close(*out);
        *out = NULL;
        return -1;
    }
    return 0;
}

/* file is held, by itself or through old. */
static int
fill(struct qm_file *file, const struct qm_qcow2_create *qcow2, uint64_t raw_size,
     enum qm_prealloc raw_prealloc, struct qmeld_error *err)
{
    return qcow2 ? qm_qcow2_create(file, qcow2, err)
                 : create_raw(file, raw_size, raw_prealloc, err);
}

/* old: what was found at path before, held; NULL: nothing was. */
static int
write_image(const char *path, const struct qm_file *old, const struct qm_qcow2_create *qcow2,
            uint64_t raw_size, enum qm_prealloc raw_prealloc, struct qmeld_error *err)
{
    struct qmeld_error unheard = {0};
    struct qm_file *file;
    int rc;

    if (qm_file_create(path, &file, err) < 0)
        return -1;
    if (old && !qm_file_same(old, file))
        rc = qm_fail(err, QMELD_STALE, qm_in(path),
                     "another file took this name a moment ago: run the command again");
    else
        rc = old ? 0 : qm_lock_take(file, QM_LOCK_WRITER, err);
    if (rc == 0) {
        rc = fill(file, qcow2, raw_size, raw_prealloc, err);
        /* What was there before is lost; what was not there is removed again.  If that fails,
         * half an image stays; the first error is what matters. */
        if (rc < 0 && (old || qm_unlink(path, &unheard) < 0))
            qm_err_disk(err, QMELD_DISK_OPEN);
    }
    if (rc < 0) {
        qm_file_close(file);
        return -1;
    }
    if (qm_file_finish(file, err) == 0 && qm_sync_dir_of(path, err) == 0)
        return 0;
    qm_err_disk(err, QMELD_DISK_NEW); /* the image itself is complete and durable */
    return -1;
}

static int
create(const char *path, const struct qmeld_create_options *o, bool raw, const struct qm_file *old,
       struct qmeld_error *err)
{
    struct qm_qcow2_create want;
    enum qm_prealloc prealloc;
    uint64_t backing_size = 0;

    if (raw) {
        if (check_raw(path, o, &prealloc, err) < 0)
            return -1;
        return write_image(path, old, NULL, o->size, prealloc, err);
    }
    if (qm_create_parse(path, o, &want, err) < 0)
        return -1;
    if (o->backing_name && !o->unsafe_backing &&
        look_at_backing(path, o, old, &backing_size, err) < 0)
        return -1;
    if (!o->has_size)
        want.size = backing_size;
    if (qm_qcow2_create_check(path, &want, err) < 0)
        return -1;
    return write_image(path, old, &want, 0, QM_PREALLOC_OFF, err);
}

int
qmeld_create(const char *path, const struct qmeld_create_options *opts, struct qmeld_error *err)
{
    const char *format = opts->format ? opts->format : "raw";
    const bool raw = strcmp(format, "raw") == 0;
    struct qm_file *old;
    int rc;

    memset(err, 0, sizeof *err);
    if (!raw && strcmp(format, "qcow2") != 0)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "format \"%s\" cannot be created here: use qcow2 or raw", format);
    if (check_backing_options(path, opts, err) < 0 || hold_target(path, &old, err) < 0)
        return -1;
    rc = create(path, opts, raw, old, err);
    qm_file_close(old);
    return rc;
}
