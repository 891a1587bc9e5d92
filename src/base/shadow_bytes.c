/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shadow_bytes.c - the bytes of a shadow, and the blocks that they take.
 *
 * When holes are made among data that is being copied, the workers of the real thing may come to them late.
 * So the peak counts them when the file is next synced: that is the least lucky order.
 */
#include "shadow_int.h"

#include "io_int.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>

#define ENTRY_COST 48u /* of a page in the table of pages, at most */
#define MAX_HOLES  65536u

unsigned char qm_shadow_zeros[QM_SHADOW_PAGE];

/* ---- space ---- */

static int
look_at_blocks(const struct qm_file *file, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;
    int fd = -1;

    if (f->blocks || f->sum.blockdev)
        return 0;
    if (file->fd >= 0) {
        fd = fcntl(file->fd, F_DUPFD_CLOEXEC, 0);
        if (fd < 0)
            return qm_fail_sys(err, qm_in(file->path), "cannot open it once more");
    }
    if (qm_blocks_new(fd, f->block, f->sum.path, &f->blocks, err) < 0)
        return -1;
    f->sum.unseen = qm_blocks_unseen(f->blocks);
    return 0;
}

/* Blocks are asked for when the first of them changes. */
int
qm_shadow_need_blocks(struct qm_file *file, struct qmeld_error *err)
{
    file->shadow->changed = true;
    return look_at_blocks(file, err);
}

static void
account(struct qm_shadow_file *f, const struct qm_blocks_change *change)
{
    f->sum.new_bytes += (uint64_t)change->allocated;
    for (size_t i = 0; i < f->n_purses; i++) {
        struct qm_shadow_purse *p = &f->s->purses.at[f->purses[i]];

        /* quotas are charged for what a file has, shared or not */
        p->change += p->room.kind == QM_ROOM_DISK ? change->space : change->allocated;
        if (p->change > 0)
            p->peak = qm_max(p->peak, (uint64_t)p->change);
    }
}

static int
take(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;
    struct qm_blocks_change change = {0};

    if (qm_shadow_need_blocks(file, err) < 0)
        return -1;
    if (f->sum.blockdev)
        return 0;
    if (qm_blocks_write(f->blocks, off, len, &change, err) < 0)
        return -1;
    account(f, &change);
    return 0;
}

/* Up to the end, as io.c does it. */
static int
give(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;
    struct qm_blocks_change change = {0};

    if (off >= f->size || len == 0)
        return 0;
    if (qm_shadow_need_blocks(file, err) < 0)
        return -1;
    if (f->sum.blockdev)
        return 0;
    if (qm_blocks_punch(f->blocks, off, qm_min(len, f->size - off), &change, err) < 0)
        return -1;
    account(f, &change);
    return 0;
}

int
qm_shadow_apply_holes(struct qm_file *file, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;

    QM_VEC_EACH (h, &f->holes)
        if (give(file, h->off, h->len, err) < 0)
            return -1;
    qm_vec_clear(&f->holes);
    return 0;
}

/* A removed file's blocks are free when the last who has it open is done. */
int
qm_shadow_release(struct qm_shadow_file *f, struct qmeld_error *err)
{
    struct qm_blocks_change change = {0};

    if (!f->blocks || f->linked_elsewhere)
        return 0;
    if (qm_blocks_cut(f->blocks, 0, &change, err) < 0)
        return -1;
    account(f, &change);
    return 0;
}

static void
set_size(struct qm_file *file, uint64_t size)
{
    struct qm_shadow_file *f = file->shadow;

    f->size = size;
    file->size = size;
    f->sum.new_size = size;
}

static void
note_written(struct qm_file *file, uint64_t end)
{
    struct qm_shadow_file *f = file->shadow;

    f->sum.reach = qm_max(f->sum.reach, end);
    if (end > f->size)
        set_size(file, end);
}

/* ---- bytes ---- */

/* What page no reads as now. */
static int
read_page(const struct qm_file *file, uint64_t no, unsigned char *to, struct qmeld_error *err)
{
    const struct qm_shadow_file *f = file->shadow;
    const unsigned char *page = qm_dict_get(&f->pages, no);
    const uint64_t off = no * QM_SHADOW_PAGE;
    size_t got = 0;

    if (page) {
        memcpy(to, page, QM_SHADOW_PAGE);
        return 0;
    }
    if (off < f->end &&
        qm_io_read_some(file, off, to, (size_t)qm_min(QM_SHADOW_PAGE, f->end - off), &got, err) < 0)
        return -1;
    memset(to + got, 0, QM_SHADOW_PAGE - got);
    return 0;
}

int
qm_shadow_read(const struct qm_file *file, uint64_t off, void *buf, size_t len, size_t *out_got,
               struct qmeld_error *err)
{
    const struct qm_shadow_file *f = file->shadow;
    unsigned char page[QM_SHADOW_PAGE];

    if (!f->changed)
        return qm_io_read_some(file, off, buf, len, out_got, err);
    *out_got = 0;
    if (off >= f->size)
        return 0;
    len = (size_t)qm_min(len, f->size - off);
    while (*out_got < len) {
        const uint64_t at = off + *out_got;
        const size_t n = (size_t)qm_min(len - *out_got, QM_SHADOW_PAGE - at % QM_SHADOW_PAGE);

        if (read_page(file, at / QM_SHADOW_PAGE, page, err) < 0)
            return -1;
        memcpy((char *)buf + *out_got, page + at % QM_SHADOW_PAGE, n);
        *out_got += n;
    }
    return 0;
}

static int
store_page(struct qm_shadow_file *f, uint64_t no, const unsigned char *from,
           struct qmeld_error *err)
{
    unsigned char *old = qm_dict_get(&f->pages, no), *new = qm_shadow_zeros;
    const bool empty = memcmp(from, qm_shadow_zeros, QM_SHADOW_PAGE) == 0;

    if (!empty) {
        new = old &&old != qm_shadow_zeros ? old : malloc(QM_SHADOW_PAGE);
        if (!new)
            return qm_fail_nomem(err, "a dry run");
        memcpy(new, from, QM_SHADOW_PAGE);
    }
    if (new == old)
        return 0;
    if (!qm_dict_put(&f->pages, no, new)) {
        if (!empty)
            free(new);
        return qm_fail_nomem(err, "a dry run");
    }
    f->s->bytes += (old ? 0 : ENTRY_COST) + (empty ? 0 : QM_SHADOW_PAGE);
    if (old && old != qm_shadow_zeros) {
        free(old);
        f->s->bytes -= QM_SHADOW_PAGE;
    }
    if (f->s->bytes <= QM_SHADOW_BYTES)
        return 0;
    return qm_fail(err, QMELD_NOMEM, qm_in(f->sum.path),
                   "a dry run would have to keep more than %" PRIu64
                   " MiB of its metadata in memory: plan fewer layers at a time",
                   (uint64_t)(QM_SHADOW_BYTES >> 20));
}

/* Lays bytes over the file; from NULL: zeros. */
static int
lay_over(struct qm_file *file, uint64_t off, const unsigned char *from, uint64_t len,
         struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;

    while (len > 0) {
        const uint64_t n = qm_min(len, QM_SHADOW_PAGE - off % QM_SHADOW_PAGE);
        unsigned char page[QM_SHADOW_PAGE] = {0};

        if (n < QM_SHADOW_PAGE && read_page(file, off / QM_SHADOW_PAGE, page, err) < 0)
            return -1;
        if (from)
            memcpy(page + off % QM_SHADOW_PAGE, from, n);
        else
            memset(page + off % QM_SHADOW_PAGE, 0, n);
        if (store_page(f, off / QM_SHADOW_PAGE, page, err) < 0)
            return -1;
        from = from ? from + n : NULL;
        off += n;
        len -= n;
    }
    return 0;
}

int
qm_shadow_write(struct qm_file *file, uint64_t off, const void *buf, size_t len,
                struct qmeld_error *err)
{
    if (take(file, off, len, err) < 0 || lay_over(file, off, buf, len, err) < 0)
        return -1;
    file->shadow->sum.metadata += len;
    note_written(file, off + len);
    return 0;
}

int
qm_shadow_data(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    if (take(file, off, len, err) < 0)
        return -1;
    note_written(file, off + len);
    return 0;
}

int
qm_shadow_share(struct qm_file *file, uint64_t off, const struct qm_file *from, uint64_t from_off,
                uint64_t len, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow, *g = from->shadow;
    struct qm_blocks_change change = {0};
    uint64_t freed;

    if (!g || f->block != g->block || (off | from_off | len) % f->block != 0) /* of tests only */
        return qm_shadow_data(file, off, len, err);
    if (qm_shadow_need_blocks(file, err) < 0 || look_at_blocks(from, err) < 0 ||
        qm_blocks_share(f->blocks, off, g->blocks, from_off, len, &change, &freed, err) < 0)
        return -1;
    account(f, &change);
    for (size_t i = 0; i < f->n_purses; i++)
        if (f->s->purses.at[f->purses[i]].room.kind == QM_ROOM_DISK)
            f->s->purses.at[f->purses[i]].replaced += freed;
    note_written(file, off + len);
    return 0;
}

int
qm_shadow_hole(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;
    const struct qm_shadow_hole h = {off, len};

    if (len == 0)
        return 0;
    if (!qm_vec_push(&f->holes, &h))
        return qm_fail_nomem(err, "a dry run");
    return f->holes.n >= MAX_HOLES ? qm_shadow_apply_holes(file, err) : 0;
}

/* Only what the file has, or was given, needs to be made zeros. */
int
qm_shadow_zero(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;
    const uint64_t end = qm_min(off + len, f->size), real = qm_min(end, f->end);

    if (give(file, off, len, err) < 0 ||
        (off < real && lay_over(file, off, NULL, real - off, err) < 0))
        return -1;
    QM_DICT_EACH (e, &f->pages) {
        const uint64_t at = e->key * QM_SHADOW_PAGE, a = qm_max(at, off),
                       b = qm_min(at + QM_SHADOW_PAGE, end);

        if (a < b && e->value != qm_shadow_zeros)
            memset((unsigned char *)e->value + (a - at), 0, b - a);
    }
    return 0;
}

int
qm_shadow_discard(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    return give(file, off, len, err);
}

int
qm_shadow_truncate(struct qm_file *file, uint64_t size, struct qmeld_error *err)
{
    struct qm_shadow_file *f = file->shadow;
    struct qm_blocks_change change = {0};

    if (qm_shadow_need_blocks(file, err) < 0 || qm_shadow_apply_holes(file, err) < 0)
        return -1;
    if (size < f->size) {
        QM_DICT_EACH (e, &f->pages) { /* what is cut off comes back as zeros */
            const uint64_t at = e->key * QM_SHADOW_PAGE;

            if (at + QM_SHADOW_PAGE > size && e->value != qm_shadow_zeros)
                memset((unsigned char *)e->value + (qm_max(at, size) - at), 0,
                       at + QM_SHADOW_PAGE - qm_max(at, size));
        }
        f->end = qm_min(f->end, size);
        if (f->blocks && qm_blocks_cut(f->blocks, size, &change, err) < 0)
            return -1;
        account(f, &change);
    } else {
        f->sum.reach = qm_max(f->sum.reach, size);
    }
    set_size(file, size);
    return 0;
}

int
qm_shadow_reserve(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    return take(file, off, len, err);
}

int
qm_shadow_sync(struct qm_file *file, struct qmeld_error *err)
{
    struct qm_shadow *s = file->shadow->s;

    if (qm_shadow_apply_holes(file, err) < 0)
        return -1;
    QM_VEC_EACH (p, &s->purses)
        if (p->change > 0 && (uint64_t)p->change > p->replaced)
            p->sure = qm_max(p->sure, (uint64_t)p->change - p->replaced);
    return 0;
}

void
qm_shadow_ask(const struct qm_file *file, uint64_t off, bool *out_touched, bool *out_data,
              uint64_t *out_len)
{
    const struct qm_shadow_file *f = file->shadow;

    *out_touched = false;
    *out_len = f->size - off;
    if (f->blocks)
        qm_blocks_ask(f->blocks, off, out_touched, out_data, out_len);
    *out_len = qm_min(*out_len, f->size - off);
    if (*out_touched)
        return;
    if (off < f->end) {
        *out_len = qm_min(*out_len, f->end - off);
        return;
    }
    *out_touched = true;
    *out_data = false;
}

void
qm_shadow_may_share(const struct qm_file *file)
{
    const struct qm_shadow_file *f = file->shadow;

    for (size_t i = 0; i < f->n_purses; i++)
        f->s->purses.at[f->purses[i]].room.soft = true;
}

bool
qm_shadow_is_changed(const struct qm_file *file)
{
    return file->shadow->changed;
}

/* What is left of all purses. */
uint64_t
qm_shadow_room(const struct qm_file *file)
{
    const struct qm_shadow_file *f = file->shadow;
    uint64_t room = f->s->frugal ? 0 : UINT64_MAX;

    for (size_t i = 0; i < f->n_purses; i++) {
        const struct qm_shadow_purse *p = &f->s->purses.at[f->purses[i]];
        const uint64_t taken = p->change > 0 ? (uint64_t)p->change : 0;
        const uint64_t given = p->change < 0 ? (uint64_t)-p->change : 0;

        room = qm_min(room, p->room.bytes - qm_min(taken, p->room.bytes) + given);
    }
    return room;
}

uint64_t
qm_shadow_allocated(const struct qm_file *file)
{
    return file->shadow->sum.new_bytes;
}
