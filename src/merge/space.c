/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "space.h"

#include "qcow2.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

/* What a merge writes beside data, tables and refcounts: headers, a journal of at most 8 MiB, tables of an overlay that is
 * emptied, L1 tables of at most 32 MiB and a refcount table of 8 that moves while it grows; and what the
 * file system needs to keep account of it all. */
#define SIDE_BYTES (192ull << 20)

/* Blocks of no file system that we know are larger; a want may touch one more at either end. */
#define BLOCK 65536u

/* A refcount is 8 bytes at most, for a cluster of 512 at least. */
#define REFCOUNT_PART 64u

static uint64_t
sum(uint64_t a, uint64_t b)
{
    uint64_t r;

    return qm_add(a, b, &r) ? r : UINT64_MAX;
}

/* ---- at most ---- */

void
qm_space_begin(struct qm_space *s, const struct qm_image *target, uint64_t new_size)
{
    *s = (struct qm_space){.target = target, .new_size = new_size};
}

static void
add_table(struct qm_space *s, const struct qm_want *want)
{
    const struct qm_qcow2 *q = (const struct qm_qcow2 *)s->target;
    const uint64_t span = qcow2_l2_span(&q->geo), end = want->guest.g + want->len;
    const uint64_t from = qm_max(s->next_span, want->guest.g / span);

    if (from >= qm_div_up(end, span))
        return;
    s->next_span = qm_div_up(end, span);
    s->most = sum(s->most, (s->next_span - from) * q->geo.cluster_size);
}

/* Zeros cost clusters only where they cover one in part, or where version 2 has to write them. */
void
qm_space_add(struct qm_space *s, const struct qm_want *want)
{
    const uint64_t unit = s->target->cluster_size ? s->target->cluster_size : BLOCK;
    const bool table = s->target->cluster_size != 0;
    const struct qm_qcow2 *q = table ? (const struct qm_qcow2 *)s->target : NULL;
    const uint64_t end = qm_div_up(want->guest.g + want->len, unit);
    const uint64_t from = qm_max(s->next, want->guest.g / unit);
    uint64_t n;

    if (table)
        add_table(s, want);
    if (from >= end)
        return;
    s->next = end;
    n = want->from || (q && q->hdr.version < 3) ? end - from : qm_min(end - from, 2);
    s->most = sum(s->most, n > UINT64_MAX / unit ? UINT64_MAX : n * unit);
}

/* Tables of bitmaps and their bits, at the finest granularity, and entries of the directory. */
static uint64_t
most_of_bitmaps(const struct qm_space *s, const struct qm_qcow2 *q)
{
    const uint64_t one = sum(s->new_size / 512 / 8 * 2, 6 * q->geo.cluster_size + 2048);
    const uint64_t n = sum(q->hdr.has_bitmaps ? q->hdr.n_bitmaps : 0, s->new_bitmaps);

    return one > UINT64_MAX / qm_max(n, 1) ? UINT64_MAX : one * n;
}

#ifdef QM_TESTING
bool qm_space_never_ample;
#endif

static bool
is_ample_for(const struct qm_file *file, uint64_t bytes)
{
    struct qm_room rooms[QM_ROOM_KINDS];
    struct qmeld_error unheard = {0};
    uint64_t limit;
    size_t n;

    if (qm_room_find(file->fd, file->path, rooms, &n, &unheard) < 0 ||
        qm_room_forbids(file->fd, sum(file->size, bytes), &limit))
        return false;
    for (size_t i = 0; i < n; i++)
        if (rooms[i].bytes < bytes)
            return false;
    return true;
}

static bool
is_ample_beside(const char *journal)
{
    const char *slash = strrchr(journal, '/');
    QM_FREE char *dir = slash ? strndup(journal, (size_t)(slash - journal) + 1) : strdup(".");
    const int fd = dir ? open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC) : -1;
    struct qm_room rooms[QM_ROOM_KINDS];
    struct qmeld_error unheard = {0};
    size_t n;
    bool ample;

    if (fd < 0)
        return false;
    ample = qm_room_find(fd, journal, rooms, &n, &unheard) == 0 && rooms[0].bytes >= SIDE_BYTES;
    close(fd);
    return ample;
}

void
qm_space_is_ample(const struct qm_space *s, const struct qm_chain *chain, size_t from, size_t to,
                  size_t target, const char *journal, bool *out)
{
    const bool qcow2 = s->target->cluster_size != 0;
    const struct qm_qcow2 *q = qcow2 ? (const struct qm_qcow2 *)s->target : NULL;
    uint64_t most = s->most;

    *out = false;
#ifdef QM_TESTING
    if (qm_space_never_ample)
        return;
#endif
    if (qcow2) {
        most = sum(most, sum(most / REFCOUNT_PART * 2, most_of_bitmaps(s, q)));
        /* refcounts that are made anew, or a device's end, are not foreseen here */
        if (q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY || s->target->file->blockdev)
            return;
    }
    most = sum(most, s->new_size > s->target->size && !qcow2 ? s->new_size - s->target->size : 0);
    for (size_t i = from; i <= to && i < chain->n; i++)
        if (chain->layers[i].img && !chain->layers[i].img->file->blockdev &&
            !is_ample_for(chain->layers[i].img->file, sum(SIDE_BYTES, i == target ? most : 0)))
            return;
    if (s->target->data != s->target->file &&
        (s->target->data->blockdev || !is_ample_for(s->target->data, sum(SIDE_BYTES, most))))
        return;
    *out = is_ample_beside(journal);
}

/* ---- exactly ---- */

static int
judge_purse(const struct qm_shadow *dry, const struct qm_shadow_purse *p, struct qmeld_error *err)
{
    uint64_t left = sum(p->room.bytes, 0);

    for (size_t i = 0; i < qm_shadow_n_files(dry); i++)
        if (qm_shadow_sum(dry, i)->dev == p->room.dev)
            left = sum(left, qm_shadow_sum(dry, i)->unseen);
    if (p->sure <= left || p->room.soft)
        return 0;
    return qm_fail(err, QMELD_NOSPACE, qm_in(p->path),
                   "the merge needs %" PRIu64 " bytes more here at a time, and %s has %" PRIu64
                   ": make room for %" PRIu64 " more",
                   p->sure, qm_room_name(p->room.kind), p->room.bytes, p->sure - left);
}

static int
judge_file(const struct qm_shadow_sum *f, struct qmeld_error *err)
{
    const char *why;
    uint64_t limit;
    int fd;

    if (f->blockdev && f->new_size > f->old_size)
        return qm_fail(err, QMELD_NOSPACE, qm_in(f->path),
                       "the %s has %" PRIu64 " bytes, %" PRIu64
                       " are needed: enlarge it by %" PRIu64,
                       f->kind, f->old_size, f->new_size, f->new_size - f->old_size);
    if (f->blockdev || f->reach == 0)
        return 0;
    fd = f->made ? -1 : open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    why = qm_room_forbids(fd, f->reach, &limit);
    if (fd >= 0)
        close(fd);
    if (!why)
        return 0;
    return qm_fail(err, QMELD_NOSPACE, qm_in(f->path),
                   "it would become %" PRIu64 " bytes long, and %s is %" PRIu64
                   ": raise the limit, or use another file system",
                   f->reach, why, limit);
}

int
qm_space_judge(const struct qm_shadow *dry, struct qmeld_error *err)
{
    for (size_t i = 0; i < qm_shadow_n_files(dry); i++)
        if (judge_file(qm_shadow_sum(dry, i), err) < 0)
            return -1;
    for (size_t i = 0; i < qm_shadow_n_purses(dry); i++)
        if (judge_purse(dry, qm_shadow_purse(dry, i), err) < 0)
            return -1;
    return 0;
}

void
qm_space_recommend_reclaim(struct qmeld_error *err)
{
    const size_t len = strlen(err->what);

    snprintf(err->what + len, sizeof err->what - len,
             ", or merge with --reclaim, which empties the overlays as it goes");
}
