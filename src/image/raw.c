/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw.c - a file or block device that is the guest's disk, byte for byte.
 *
 * Why.  Its only structure is which parts are holes.  The run found last is kept: sweeps
 * ask for one window after the other, and one answer of the file system covers many windows.
 */
#include "raw.h"

#include <inttypes.h>

struct qm_raw {
    struct qm_image img; /* first */
    /* the run found last; empty at the beginning */
    uint64_t run_from;
    uint64_t run_to;
    bool run_data;
};

static int
find_run(struct qm_raw *raw, uint64_t from, struct qmeld_error *err)
{
    uint64_t len;
    bool data;

    if (from >= raw->run_from && from < raw->run_to)
        return 0;
    if (qm_data_or_hole(raw->img.file, from, &data, &len, err) < 0)
        return -1;
    raw->run_from = from;
    raw->run_to = from + len;
    raw->run_data = data;
    return 0;
}

/* Holes are ZERO with a place: QEMU's map prints it. */
static int
next(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
     struct qmeld_error *err)
{
    struct qm_raw *raw = (struct qm_raw *)img;

    *out = (struct qm_extent){
        .guest = from, .len = len, .kind = QM_ZERO, .has_host = true, .host = qm_host(from.g)};
    if (from.g >= img->file->size) /* up to the next sector boundary */
        return 0;
    if (find_run(raw, from.g, err) < 0)
        return -1;
    out->len = qm_min(len, raw->run_to - from.g);
    if (raw->run_data)
        out->kind = QM_DATA;
    return 0;
}

static void
forget(struct qm_image *img)
{
    struct qm_raw *raw = (struct qm_raw *)img;

    raw->run_from = raw->run_to = 0;
}

static void
raw_free(struct qm_image *img)
{
    free(img);
}

static const struct qm_image_ops raw_ops = {
    .format = "raw",
    .next = next,
    .forget = forget,
    .free = raw_free,
};

int
qm_raw_open(struct qm_file *file, struct qm_image **out, struct qmeld_error *err)
{
    struct qm_raw *raw;

    if (file->size > QM_MAX_OFF - 511)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file->path),
                       "%" PRIu64 " bytes are more than a disk can have: is this the right file?",
                       (uint64_t)file->size);
    raw = calloc(1, sizeof *raw);
    if (!raw)
        return qm_fail_nomem(err, "a raw image");
    raw->img.ops = &raw_ops;
    raw->img.file = raw->img.data = file;
    raw->img.size = qm_align_up(file->size, 512);
    *out = &raw->img;
    return 0;
}
