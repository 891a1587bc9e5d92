/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "kept.h"

#include "share.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>

#define AT_ONCE      (256ull << 20) /* kept ahead between two syncs */
#define TOLD_BYTES   (16ull << 20)  /* put back between two reports of progress */
#define WINDOW_BYTES (16ull << 20)
#define MODE         0600 /* it holds what a guest had */

struct qm_kept {
    struct qm_kept_config cfg;
    struct qm_file *file;
    struct qm_window window; /* of the target while keeping, of the file while restoring */
    struct qm_plan *plan;
    struct qm_want want; /* the rest of the one that the plan gave last; len 0: none */
    guest_off kept;
};

/* ---- open ---- */

static int
make_file(struct qm_kept *k, const char *path, struct qmeld_error *err)
{
    bool cloned = false;

    if (qm_kept_remove(path, err) < 0 || qm_file_create_new(path, MODE, &k->file, err) < 0 ||
        qm_clone(k->file, k->cfg.target, &cloned, err) < 0)
        return -1;
    if (!cloned)
        return 0;
    k->kept = qm_guest(UINT64_MAX);
    if (qm_sync(k->file, err) < 0)
        return -1;
    return qm_sync_dir_of(path, err);
}

/* A symbolic link that somebody has put in its place would have another file written to, or another one's bytes put
 * into the base. */
static int
open_file(struct qm_kept *k, const char *path, struct qmeld_error *err)
{
    struct stat st;

    if (qm_file_open(path, &k->file, err) < 0)
        return -1;
    if (lstat(path, &st) == 0 && (st.st_dev != k->file->dev || st.st_ino != k->file->ino))
        return qm_fail(err, QMELD_STALE, qm_in(path),
                       "it is a link to another file, not what the merge has kept: put that back");
    return qm_file_make_writable(k->file, err);
}

int
qm_kept_open(const struct qm_kept_config *config, struct qm_kept **out, struct qmeld_error *err)
{
    struct qm_kept *k = calloc(1, sizeof *k);
    int rc;

    *out = NULL;
    if (!k)
        return qm_fail_nomem(err, "what is kept of the base");
    k->cfg = *config;
    k->cfg.path = NULL; /* the file has its own */
    k->kept = config->kept;
    k->cfg.plan.from = qm_guest(0);
    if (k->kept.g == 0)
        rc = make_file(k, config->path, err);
    else
        rc = open_file(k, config->path, err);
    if (rc < 0) {
        qm_kept_close(k);
        return -1;
    }
    *out = k;
    return 0;
}

void
qm_kept_close(struct qm_kept *k)
{
    if (!k)
        return;
    qm_plan_close(k->plan);
    qm_window_release(&k->window);
    qm_file_close(k->file);
    free(k);
}

int
qm_kept_remove(const char *path, struct qmeld_error *err)
{
    struct stat st;

    if (lstat(path, &st) < 0 && errno == ENOENT)
        return 0;
    return qm_unlink(path, err);
}

/* ---- both ways ---- */

/* Data of `from` in [off, off + len) goes to the same place of `to`; with holes, so do they. */
static int
move_range(struct qm_kept *k, const struct qm_file *from, struct qm_file *to, uint64_t off,
           uint64_t len, bool holes, struct qmeld_error *err)
{
    while (len > 0) {
        uint64_t n = len;
        bool data = false;
        int rc = 0;

        if (off < from->size && qm_data_or_hole(from, off, &data, &n, err) < 0)
            return -1;
        n = qm_min(n, len);
        if (data) {
            n = qm_min(n, WINDOW_BYTES);
            rc = qm_window_write(&k->window, off, to, off, n, err);
        } else if (holes) {
            rc = qm_zero(to, off, n, false, err);
        }
        if (rc < 0)
            return -1;
        off += n;
        len -= n;
    }
    return 0;
}

/* The next piece of what the merge overwrites, at most `most` long and inside the old target; len 0: there is
 * no more. */
static int
next_piece(struct qm_kept *k, uint64_t most, guest_off *out, uint64_t *out_len,
           struct qmeld_error *err)
{
    bool asked, done;

    *out_len = 0;
    if (k->want.len == 0) {
        if (qm_plan_next(k->plan, &k->want, &asked, &done, err) < 0)
            return -1;
        if (done || k->want.guest.g >= k->cfg.file_size) { /* behind it nothing is overwritten */
            k->want.len = 0;
            return 0;
        }
        k->want.len = qm_min(k->want.len, k->cfg.file_size - k->want.guest.g);
    }
    *out = k->want.guest;
    *out_len = qm_min(k->want.len, most);
    k->want.guest.g += *out_len;
    k->want.len -= *out_len;
    return 0;
}

static int
open_plan(struct qm_kept *k, guest_off from, struct qmeld_error *err)
{
    struct qm_plan_config config = k->cfg.plan;

    if (k->plan)
        return 0;
    config.from = from;
    return qm_plan_open(&config, &k->plan, err);
}

/* ---- keep ---- */

int
qm_kept_ahead(struct qm_kept *k, guest_off end, guest_off *out_kept, struct qmeld_error *err)
{
    uint64_t kept = k->kept.g;

    *out_kept = k->kept;
    if (end.g <= kept)
        return 0;
    if (!k->window.file)
        qm_window_init(&k->window, k->cfg.target, WINDOW_BYTES);
    if (open_plan(k, k->kept, err) < 0)
        return -1;
    for (uint64_t sum = 0; sum < AT_ONCE || kept < end.g;) {
        guest_off at;
        uint64_t len;

        if (next_piece(k, AT_ONCE, &at, &len, err) < 0)
            return -1;
        kept = len ? at.g + len : UINT64_MAX;
        if (len == 0)
            break;
        if (move_range(k, k->cfg.target, k->file, at.g, len, false, err) < 0)
            return -1;
        sum += len;
    }
    if (qm_sync(k->file, err) < 0 ||
        (k->kept.g == 0 && qm_sync_dir_of(k->file->path, err) < 0)) /* the first time */
        return -1;
    *out_kept = k->kept = qm_guest(kept);
    return 0;
}

/* ---- put back ---- */

/* Phase "restore"; what it counts is how far of the disk. */
static int
tell(const struct qm_kept *k, uint64_t at, struct qmeld_error *err)
{
    const struct qmeld_progress now = {
        .done_bytes = at, .total_bytes = qm_min(k->kept.g, k->cfg.file_size), .phase = "restore"};

    if (!k->cfg.progress || k->cfg.progress(&now, k->cfg.opaque) == 0)
        return 0;
    return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
}

int
qm_kept_restore(struct qm_kept *k, struct qmeld_error *err)
{
    struct qm_file *target = k->cfg.target;
    uint64_t untold = 0;

    qm_window_init(&k->window, k->file, WINDOW_BYTES);
    if (open_plan(k, qm_guest(0), err) < 0)
        return -1;
    for (;;) {
        guest_off at;
        uint64_t len;

        if (next_piece(k, TOLD_BYTES, &at, &len, err) < 0)
            return -1;
        if (len == 0 || at.g >= k->kept.g)
            break;
        len = qm_min(len, k->kept.g - at.g); /* behind it nothing was overwritten */
        if (move_range(k, k->file, target, at.g, len, true, err) < 0)
            return -1;
        untold += len;
        if (untold >= TOLD_BYTES && tell(k, at.g + len, err) < 0)
            return -1;
        untold %= TOLD_BYTES;
    }
    if (!target->blockdev && target->size != k->cfg.file_size &&
        qm_truncate(target, k->cfg.file_size, err) < 0)
        return -1;
    return qm_sync(target, err);
}
