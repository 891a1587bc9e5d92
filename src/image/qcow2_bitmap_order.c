/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_order.c - bitmaps that are made or removed: a new directory takes the place of the old one.
 *
 *   1 the tables of new bitmaps, without bits; the directory, in which they are in_use; refcounts
 *   2 the header names the directory (qcow2_header_bitmaps.c)
 *   3 what only the old directory led to is freed
 * Each is durable before the next.  A crash leaves the old directory or the new one, and leaks; new bitmaps
 * are in_use, so that nobody believes them, until they have their bits (qcow2_bitmap_store.c).
 */
#include "qcow2_bitmap_int.h"

#include "qcow2_header.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MAX_GRANULARITY 31u
#define ENTRIES_AT_ONCE ((uint64_t)8192)

/* ---- orders ---- */

void
qm_bitmap_orders_release(struct qm_bitmap_orders *orders)
{
    QM_VEC_EACH (o, &orders->list)
        free(o->name);
    qm_vec_release(&orders->list);
}

static int
by_order(const void *name, const void *order)
{
    return strcmp(name, ((const struct qm_bitmap_order *)order)->name);
}

const struct qm_bitmap_order *
qm_bitmap_order_of(const struct qm_bitmap_orders *orders, const char *name)
{
    if (!orders || orders->list.n == 0)
        return NULL;
    return bsearch(name, orders->list.at, orders->list.n, sizeof *orders->list.at, by_order);
}

uint32_t
qm_bitmap_granularity_for(uint64_t cluster_size, uint32_t bits, uint64_t size)
{
    struct qm_bitmap m = {.granularity_bits = bits};

    while (m.granularity_bits < MAX_GRANULARITY &&
           qm_align_up(qm_div_up(qm_bitmap_bits(&m, size), 8), cluster_size) >
               QCOW2_MAX_BITMAP_BYTES)
        m.granularity_bits++;
    return m.granularity_bits;
}

/* ---- what the directory is to have ---- */

struct sums {
    struct qm_bitmap_list list; /* as it is */
    bool *found;                /* beside the orders: it is there */
    bool changes;               /* something is to be made or removed */
    uint64_t n;
    uint64_t len; /* of the new directory */
};

static uint64_t
entry_len(const char *name)
{
    return qm_align_up(sizeof(struct qcow2_disk_bitmap) + strlen(name), 8);
}

static bool
is_to_be_made(const struct sums *s, const struct qm_bitmap_order *o, size_t i)
{
    return o->deed == QM_BITMAP_CARRY && o->created && !s->found[i];
}

static bool
is_removed(const struct qm_bitmap_orders *orders, const char *name)
{
    const struct qm_bitmap_order *o = qm_bitmap_order_of(orders, name);

    return o && o->deed == QM_BITMAP_REMOVE;
}

static void
release(struct sums *s)
{
    qm_bitmap_list_release(&s->list);
    free(s->found);
}

/* Release *s in every case. */
static int
sum_up(const struct qm_qcow2 *q, const struct qm_bitmap_orders *orders, struct sums *s,
       struct qmeld_error *err)
{
    *s = (struct sums){.found = calloc(orders->list.n + 1, sizeof *s->found)};
    if (!s->found)
        return qm_fail_nomem(err, "bitmaps");
    if (qm_bitmap_list_read(q, &s->list, err) < 0)
        return -1;
    QM_VEC_EACH (m, &s->list.list) {
        const struct qm_bitmap_order *o = qm_bitmap_order_of(orders, m->name);

        if (o)
            s->found[o - orders->list.at] = true;
        if (o && o->deed == QM_BITMAP_REMOVE) {
            s->changes = true;
            continue;
        }
        s->n++;
        s->len += m->dir_len;
    }
    for (size_t i = 0; i < orders->list.n; i++) {
        if (!is_to_be_made(s, &orders->list.at[i], i))
            continue;
        s->changes = true;
        s->n++;
        s->len += entry_len(orders->list.at[i].name);
    }
    return 0;
}

/* ---- may it? ---- */

static int
check_limits(const struct qm_qcow2 *q, const struct sums *s, struct qmeld_error *err)
{
    if (s->n <= QCOW2_MAX_BITMAPS && s->len <= QCOW2_MAX_BITMAP_DIR)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
                   "it would have %" PRIu64 " bitmaps in a directory of %" PRIu64
                   " bytes, and the format ends at %u and %u: merge with --bitmaps=keep or "
                   "--bitmaps=drop",
                   s->n, s->len, QCOW2_MAX_BITMAPS, QCOW2_MAX_BITMAP_DIR);
}

static uint64_t
pointers_of(const struct qm_qcow2 *q, uint32_t granularity_bits, uint64_t size)
{
    const struct qm_bitmap m = {.granularity_bits = granularity_bits};

    return (qm_bitmap_bits(&m, size) / (qm_bitmap_piece_bytes(q) * 8) + 1) * sizeof(void *);
}

/* As qm_bitmaps_begin will find it. */
static int
check_memory(const struct qm_qcow2 *q, const struct qm_bitmap_orders *orders, const struct sums *s,
             uint64_t new_size, struct qmeld_error *err)
{
    uint64_t bytes = 0;

    QM_VEC_EACH (m, &s->list.list) {
        const struct qm_bitmap_order *o = qm_bitmap_order_of(orders, m->name);

        if (m->extra_len && !(m->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE))
            return qm_fail(err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
                           "bitmap \"%.100s\" has extra data: use the program that made it",
                           m->name);
        if (o ? o->deed == QM_BITMAP_CARRY : (m->flags & QCOW2_BITMAP_AUTO) != 0)
            bytes += pointers_of(q, m->granularity_bits, new_size);
    }
    for (size_t i = 0; i < orders->list.n; i++)
        if (is_to_be_made(s, &orders->list.at[i], i))
            bytes += pointers_of(q, orders->list.at[i].granularity_bits, new_size);
    if (bytes <= MAX_POINTER_BYTES)
        return 0;
    return qm_fail(
        err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
        "with those of the layers its bitmaps are too large to be kept up to date: remove "
        "some with `qemu-img bitmap --remove`, or merge with --bitmaps=keep or "
        "--bitmaps=drop");
}

int
qm_bitmap_orders_check(const struct qm_qcow2 *q, const struct qm_bitmap_orders *orders,
                       uint64_t new_size, struct qmeld_error *err)
{
    struct sums s;
    int rc = 0;

    if (orders->list.n == 0)
        return 0;
    rc = sum_up(q, orders, &s, err);
    if (rc == 0)
        rc = check_limits(q, &s, err);
    if (rc == 0)
        rc = check_memory(q, orders, &s, new_size, err);
    if (rc == 0 && s.changes && s.n > 0 && !q->stage)
        rc = qm_header_bitmaps_fit(q, NULL, err);
    release(&s);
    return rc;
}

/* ---- the new directory ---- */

/* A table of zeros; of the length that the bitmap has in the end, which one that is in_use may have at once. */
static int
make_table(const struct qm_bitmaps *b, const struct qm_bitmap_order *o,
           struct qcow2_disk_bitmap *raw, struct qmeld_error *err)
{
    const struct qm_bitmap m = {.granularity_bits = o->granularity_bits};
    const uint64_t cs = b->q->geo.cluster_size;
    const uint64_t entries = qm_max(1, qm_bitmap_entries(b->q, &m, b->new_size));
    const uint64_t clusters = qm_div_up(entries * sizeof(be64), cs);
    QM_FREE unsigned char *zeros = calloc(1, cs);
    host_off at;

    if (!zeros)
        return qm_fail_nomem(err, "a bitmap table");
    if (qm_refs_alloc_adjacent(b->refs, clusters, &at, err) < 0)
        return -1;
    for (uint64_t i = 0; i < clusters; i++)
        if (qm_pwrite(b->q->img.file, at.h + i * cs, zeros, cs, err) < 0)
            return -1;
    memset(raw, 0, sizeof *raw);
    be64_put(&raw->table_off, at.h);
    be32_put(&raw->table_entries, (uint32_t)entries);
    be32_put(&raw->flags, QCOW2_BITMAP_IN_USE | (o->enabled ? QCOW2_BITMAP_AUTO : 0));
    raw->type = 1;
    raw->granularity_bits = (unsigned char)o->granularity_bits;
    be16_put(&raw->name_len, (uint16_t)strlen(o->name));
    return 0;
}

/* The old entries as they are, then the new ones. */
static int
compose(const struct qm_bitmaps *b, const struct sums *s, unsigned char *out,
        struct qmeld_error *err)
{
    const struct qcow2_header *h = &b->q->hdr;
    QM_FREE unsigned char *old = malloc(h->bitmap_dir_len + 1);
    uint64_t at = 0;

    if (!old)
        return qm_fail_nomem(err, "the bitmap directory");
    if (h->has_bitmaps &&
        qm_pread_padded(b->q->img.file, h->bitmap_dir_off, old, h->bitmap_dir_len, err) < 0)
        return -1;
    QM_VEC_EACH (m, &s->list.list) {
        if (is_removed(b->orders, m->name))
            continue;
        memcpy(out + at, old + m->dir_pos, m->dir_len);
        at += m->dir_len;
    }
    for (size_t i = 0; i < b->orders->list.n; i++) {
        const struct qm_bitmap_order *o = &b->orders->list.at[i];
        struct qcow2_disk_bitmap raw;

        if (!is_to_be_made(s, o, i))
            continue;
        if (make_table(b, o, &raw, err) < 0)
            return -1;
        memcpy(out + at, &raw, sizeof raw);
        memcpy(out + at + sizeof raw, o->name, strlen(o->name));
        at += entry_len(o->name);
    }
    return 0;
}

static int
write_dir(struct qm_bitmaps *b, const struct sums *s, struct qm_header_bitmaps *out,
          struct qmeld_error *err)
{
    const uint64_t cs = b->q->geo.cluster_size, clusters = qm_div_up(s->len, cs);
    QM_FREE unsigned char *dir = calloc(clusters + 1, cs);
    host_off at;

    *out = (struct qm_header_bitmaps){.n = 0};
    if (s->n == 0)
        return 0;
    if (!dir)
        return qm_fail_nomem(err, "the bitmap directory");
    if (compose(b, s, dir, err) < 0 || qm_refs_alloc_adjacent(b->refs, clusters, &at, err) < 0 ||
        qm_pwrite(b->q->img.file, at.h, dir, clusters * cs, err) < 0 ||
        qm_refs_commit(b->refs, err) < 0)
        return -1;
    *out = (struct qm_header_bitmaps){.n = (uint32_t)s->n, .dir_off = at.h, .dir_len = s->len};
    return 0;
}

/* Bits and table of a bitmap that no directory names any more. */
static int
free_bitmap(const struct qm_bitmaps *b, const struct qm_bitmap *m, struct qmeld_error *err)
{
    QM_FREE uint64_t *some = calloc(ENTRIES_AT_ONCE, sizeof *some);

    if (!some)
        return qm_fail_nomem(err, "a bitmap table");
    for (uint64_t i = 0; i < m->table_entries; i += ENTRIES_AT_ONCE) {
        const uint64_t n = qm_min(ENTRIES_AT_ONCE, m->table_entries - i);

        if (qm_bitmap_read_entries(b->q, m, i, n, some, err) < 0)
            return -1;
        for (uint64_t k = 0; k < n; k++)
            if (some[k] > BITMAP_ALL_ONES &&
                qm_refs_free(b->refs, qm_host(some[k]), b->q->geo.cluster_size, err) < 0)
                return -1;
    }
    return qm_refs_free(b->refs, m->table, m->table_entries * sizeof(be64), err);
}

static int
replace(struct qm_bitmaps *b, const struct sums *s, struct qmeld_error *err)
{
    const struct qcow2_header was = b->q->hdr; /* its numbers; strings go with a reload */
    struct qm_header_bitmaps to;

    qm_err_disk(err, QMELD_DISK_OPEN);
    if (write_dir(b, s, &to, err) < 0 || qm_header_set_bitmaps(b->q, &to, err) < 0)
        return -1;
    if (was.has_bitmaps &&
        qm_refs_free(b->refs, qm_host(was.bitmap_dir_off), was.bitmap_dir_len, err) < 0)
        return -1;
    QM_VEC_EACH (m, &s->list.list)
        if (is_removed(b->orders, m->name) && free_bitmap(b, m, err) < 0)
            return -1;
    return qm_refs_commit(b->refs, err);
}

int
qm_bitmap_rebuild_dir(struct qm_bitmaps *b, struct qmeld_error *err)
{
    struct sums s;
    int rc;

    if (!b->orders || b->orders->list.n == 0)
        return 0;
    rc = sum_up(b->q, b->orders, &s, err);
    if (rc == 0 && s.changes)
        rc = replace(b, &s, err);
    release(&s);
    return rc;
}
