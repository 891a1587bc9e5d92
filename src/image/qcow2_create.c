/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_create.c - a new qcow2 image, written so that it is none until all of it is there.
 *
 * Order.  The old sector 0 goes first (a regular file is emptied, a block device gets zeros
 * there) and is synced: whatever lies there from before is no image any more.  Then everything
 * but sector 0, a sync, then sector 0, a sync.  A crash leaves nothing that opens, or all of it.
 *
 * Layout, in clusters (qemu 7.2 leaves the same for images that need one refcount block):
 *   0          header, extensions, backing name
 *   1          refcount table
 *   1 + rt     refcount blocks
 *   ...        L1 table, L2 tables, data (the last two with preallocation only)
 */
#include "qcow2_create.h"

#include "qcow2_disk.h"

#include <inttypes.h>
#include <string.h>

#define SECTOR     ((size_t)512)
#define ZERO_BYTES ((size_t)1 << 20)

/* Where everything goes, in clusters. */
struct plan {
    struct qcow2_header h;
    struct qcow2_geo geo;
    uint64_t rt_clusters;
    uint64_t n_blocks;
    uint64_t l1_clusters;
    uint64_t n_l2; /* 0 without preallocation */
    uint64_t n_data;
    uint64_t total;
    uint64_t end; /* bytes of the file */
};

/* ---- what can be had ---- */

static bool
power_of_two(uint64_t v)
{
    return v && !(v & (v - 1));
}

static uint32_t
log2_of(uint64_t v)
{
    return (uint32_t)__builtin_ctzll(v);
}

static int
check_version(const char *path, const struct qm_qcow2_create *w, struct qmeld_error *err)
{
    const char *what = NULL;

    if (w->version != 2 && w->version != 3)
        return qm_fail(err, QMELD_USAGE, qm_in(path), "there is no qcow2 version %u: use 2 or 3",
                       w->version);
    if (w->version == 3)
        return 0;
    if (w->refcount_bits != 16)
        what = "refcounts of other than 16 bits";
    else if (w->lazy_refcounts)
        what = "lazy refcounts";
    else if (w->extended_l2)
        what = "extended L2 entries";
    else if (w->compression != QM_ZLIB)
        what = "compression other than zlib";
    if (!what)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(path), "version 2 has no %s: use version 3", what);
}

static int
check_backing(const char *path, const struct qm_qcow2_create *w, struct qmeld_error *err)
{
    const size_t name = w->backing_name ? strlen(w->backing_name) : 0;
    const size_t format = w->backing_format ? strlen(w->backing_format) : 0;

    if (name > QCOW2_MAX_BACKING_NAME)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "the backing file name has %zu bytes, %u are allowed: use a shorter path",
                       name, QCOW2_MAX_BACKING_NAME);
    if (format > QCOW2_MAX_BACKING_FORMAT)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "the backing format has %zu bytes, %u are allowed", format,
                       QCOW2_MAX_BACKING_FORMAT);
    if (name && w->prealloc != QM_PREALLOC_OFF && !w->extended_l2)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "preallocated clusters would hide the backing file: leave preallocation, "
                       "or use extended L2 entries");
    return 0;
}

static int
check_widths(const char *path, const struct qm_qcow2_create *w, struct qmeld_error *err)
{
    if (!power_of_two(w->cluster_size) || w->cluster_size < 1u << QCOW2_MIN_CLUSTER_BITS ||
        w->cluster_size > 1u << QCOW2_MAX_CLUSTER_BITS)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "cluster size %" PRIu64 " is not a power of two between 512 and 2097152",
                       w->cluster_size);
    if (w->extended_l2 && w->cluster_size < 16384)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "extended L2 entries need clusters of at least 16384 bytes, not %" PRIu64,
                       w->cluster_size);
    if (!power_of_two(w->refcount_bits) || w->refcount_bits > 64)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "refcounts of %u bits: use a power of two up to 64", w->refcount_bits);
    return 0;
}

/* ---- where it goes ---- */

static int
too_big(const char *path, const struct qm_qcow2_create *w, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_USAGE, qm_in(path),
                   "a virtual size of %" PRIu64 " bytes is too large for clusters of %" PRIu64
                   " bytes: use larger clusters or a smaller size",
                   w->size, w->cluster_size);
}

/* Refcount blocks count themselves and their table, so the numbers settle in a few rounds. */
static void
settle(struct plan *p)
{
    const uint64_t fixed = 1 + p->l1_clusters + p->n_l2 + p->n_data;
    uint64_t total;

    p->rt_clusters = p->n_blocks = 1;
    do {
        total = fixed + p->rt_clusters + p->n_blocks;
        p->n_blocks = qm_div_up(total, 1ull << p->geo.refblock_bits);
        p->rt_clusters = qm_div_up(p->n_blocks, p->geo.cluster_size / sizeof(be64));
        p->total = fixed + p->rt_clusters + p->n_blocks;
    } while (p->total != total);
}

static void
fill_header(struct qcow2_header *h, const struct qm_qcow2_create *w, uint64_t size)
{
    memset(h, 0, sizeof *h);
    h->version = w->version;
    h->cluster_bits = log2_of(w->cluster_size);
    h->size = size;
    h->refcount_order = log2_of(w->refcount_bits);
    h->header_len =
        w->version == 3 ? (uint32_t)sizeof(struct qcow2_disk_header) : QCOW2_V2_HEADER_LEN;
    h->compression = w->compression;
    if (w->compression != QM_ZLIB)
        h->incompatible |= QCOW2_INCOMPAT_COMPRESSION;
    if (w->extended_l2)
        h->incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
    if (w->lazy_refcounts)
        h->compatible |= QCOW2_COMPAT_LAZY;
}

static int
make_plan(const char *path, const struct qm_qcow2_create *w, struct plan *p,
          struct qmeld_error *err)
{
    const uint64_t cs = w->cluster_size;
    uint64_t l1;

    memset(p, 0, sizeof *p);
    if (w->size > QM_MAX_OFF - (SECTOR - 1))
        return too_big(path, w, err);
    fill_header(&p->h, w, qm_align_up(w->size, SECTOR));
    p->geo = qcow2_geo_of(&p->h);
    l1 = qcow2_l1_needed(&p->geo, p->h.size);
    if (l1 > QCOW2_MAX_L1_BYTES / sizeof(be64))
        return too_big(path, w, err);
    p->l1_clusters = qm_div_up(l1 * sizeof(be64), cs);
    if (w->prealloc != QM_PREALLOC_OFF) {
        p->n_l2 = l1;
        p->n_data = qm_div_up(p->h.size, cs);
    }
    settle(p);
    if (p->rt_clusters * cs > QCOW2_MAX_REFTABLE_BYTES ||
        p->total > (QCOW2_OFFSET_MASK >> p->h.cluster_bits))
        return too_big(path, w, err);
    p->h.reftable_off = cs;
    p->h.reftable_clusters = (uint32_t)p->rt_clusters;
    p->h.l1_entries = (uint32_t)l1;
    p->h.l1_off = l1 ? (1 + p->rt_clusters + p->n_blocks) * cs : 0;
    p->end = p->total * cs;
    if (!p->n_data && l1) /* QEMU does not fill the L1 table's last cluster */
        p->end = p->h.l1_off + l1 * sizeof(be64);
    return 0;
}

/* ---- the header cluster ---- */

struct header_bytes {
    unsigned char *buf; /* one cluster */
    size_t room;
    size_t len;
};

static bool
put(struct header_bytes *b, const void *data, size_t len)
{
    if (len > b->room - b->len)
        return false;
    memcpy(b->buf + b->len, data, len);
    b->len += len;
    return true;
}

static bool
put_ext(struct header_bytes *b, uint32_t type, const void *data, size_t len)
{
    static const char pad[8];
    struct qcow2_disk_ext head;

    be32_put(&head.type, type);
    be32_put(&head.len, (uint32_t)len);
    return put(b, &head, sizeof head) && (!len || put(b, data, len)) && put(b, pad, -len & 7);
}

/* specification, "Feature name table": what a program that lacks a feature can say */
static bool
put_features(struct header_bytes *b)
{
    static const struct {
        unsigned char type; /* 0 incompatible, 1 compatible, 2 autoclear */
        unsigned char bit;
        char name[46];
    } table[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},          {2, 1, "raw external data"},
    };
    static_assert(sizeof table[0] == 48, "spec size");

    return put_ext(b, QCOW2_EXT_FEATURES, table, sizeof table);
}

static int
build_header(const char *path, const struct plan *plan, const struct qm_qcow2_create *w,
             unsigned char *buf, struct qmeld_error *err)
{
    struct header_bytes b = {.buf = buf, .room = (size_t)w->cluster_size};
    struct qcow2_header h = plan->h; /* shallow; its strings and lists are empty */
    struct qcow2_disk_header disk;
    bool fits = true;

    memset(buf, 0, b.room);
    b.len = h.header_len;
    if (w->backing_name && w->backing_format)
        fits = put_ext(&b, QCOW2_EXT_BACKING_FORMAT, w->backing_format, strlen(w->backing_format));
    if (w->version == 3 && w->cluster_size > 4096) /* as QEMU: small headers have better use */
        fits = fits && put_features(&b);
    fits = fits && put_ext(&b, QCOW2_EXT_END, NULL, 0);
    if (w->backing_name && *w->backing_name) {
        h.backing_off = b.len;
        h.backing_len = (uint32_t)strlen(w->backing_name);
        fits = fits && put(&b, w->backing_name, h.backing_len);
    }
    if (!fits)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "the backing file name does not fit into a header of %" PRIu64
                       " bytes: use a shorter name or larger clusters",
                       w->cluster_size);
    memset(&disk, 0, sizeof disk);
    qcow2_header_encode(&h, &disk);
    memcpy(buf, &disk, h.header_len);
    return 0;
}

int
qm_qcow2_create_check(const char *path, const struct qm_qcow2_create *want, struct qmeld_error *err)
{
    QM_FREE unsigned char *buf = NULL;
    struct plan p;

    if (check_widths(path, want, err) < 0 || check_version(path, want, err) < 0 ||
        check_backing(path, want, err) < 0 || make_plan(path, want, &p, err) < 0)
        return -1;
    buf = malloc(want->cluster_size);
    if (!buf)
        return qm_fail_nomem(err, "the header cluster");
    return build_header(path, &p, want, buf, err);
}

/* ---- writing ---- */

static int
write_reftable(struct qm_file *file, const struct plan *p, struct qmeld_error *err)
{
    const uint64_t cs = p->geo.cluster_size;
    QM_FREE be64 *table = calloc(p->rt_clusters, cs);

    if (!table)
        return qm_fail_nomem(err, "the refcount table");
    for (uint64_t i = 0; i < p->n_blocks; i++)
        be64_put(&table[i], (1 + p->rt_clusters + i) * cs);
    return qm_pwrite(file, p->h.reftable_off, table, p->rt_clusters * cs, err);
}

/* Every cluster has refcount 1, so all blocks but the last are alike. */
static int
write_blocks(struct qm_file *file, const struct plan *p, struct qmeld_error *err)
{
    const uint64_t cs = p->geo.cluster_size;
    const uint64_t per_block = 1ull << p->geo.refblock_bits;
    const uint64_t in_last = p->total - (p->n_blocks - 1) * per_block;
    QM_FREE unsigned char *block = calloc(1, cs);

    if (!block)
        return qm_fail_nomem(err, "a refcount block");
    for (uint64_t i = 0; i < in_last; i++)
        qcow2_refcount_put(block, p->h.refcount_order, i, 1);
    if (qm_pwrite(file, (p->rt_clusters + p->n_blocks) * cs, block, cs, err) < 0)
        return -1;
    for (uint64_t i = in_last; i < per_block && p->n_blocks > 1; i++)
        qcow2_refcount_put(block, p->h.refcount_order, i, 1);
    for (uint64_t i = 0; i + 1 < p->n_blocks; i++)
        if (qm_pwrite(file, (1 + p->rt_clusters + i) * cs, block, cs, err) < 0)
            return -1;
    return 0;
}

/* n consecutive clusters from `first` on as table entries, in tables that lie one after another
 * from byte `at`; stride is the entry's length, whose second word, if any, stays 0. */
static int
write_entries(struct qm_file *file, const struct plan *p, uint64_t at, uint64_t first, uint64_t n,
              uint64_t stride, struct qmeld_error *err)
{
    const uint64_t cs = p->geo.cluster_size;
    const uint64_t per = cs / stride;
    QM_FREE unsigned char *buf = malloc(cs);

    if (!buf)
        return qm_fail_nomem(err, "a table");
    for (uint64_t done = 0; done < n; done += per, at += cs) {
        memset(buf, 0, cs);
        for (uint64_t i = 0; i < per && done + i < n; i++)
            be64_put((be64 *)(buf + i * stride), ((first + done + i) * cs) | QCOW2_COPIED);
        if (qm_pwrite(file, at, buf, cs, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_preallocate(struct qm_file *file, uint64_t off, uint64_t len, bool full, struct qmeld_error *err)
{
    QM_FREE unsigned char *zeros = NULL;
    bool done = false;

    if (!full && qm_reserve(file, off, len, &done, err) < 0)
        return -1;
    if (done || !len)
        return 0;
    zeros = calloc(1, ZERO_BYTES);
    if (!zeros)
        return qm_fail_nomem(err, "zeros");
    while (len) {
        const uint64_t n = qm_min(len, ZERO_BYTES);

        if (qm_pwrite(file, off, zeros, n, err) < 0)
            return -1;
        off += n;
        len -= n;
    }
    return 0;
}

static int
write_tables(struct qm_file *file, const struct plan *p, enum qm_prealloc prealloc,
             struct qmeld_error *err)
{
    const uint64_t cs = p->geo.cluster_size;
    const uint64_t l2 = 1 + p->rt_clusters + p->n_blocks + p->l1_clusters;
    const uint64_t data = l2 + p->n_l2;

    if (write_reftable(file, p, err) < 0 || write_blocks(file, p, err) < 0)
        return -1;
    if (prealloc == QM_PREALLOC_OFF)
        return qm_zero(file, p->h.l1_off, p->h.l1_entries * sizeof(be64), true, err);
    if (write_entries(file, p, p->h.l1_off, l2, p->n_l2, sizeof(be64), err) < 0 ||
        write_entries(file, p, l2 * cs, data, p->n_data, p->geo.l2_entry_len, err) < 0)
        return -1;
    if (qm_zero(file, data * cs, p->n_data * cs, true, err) < 0)
        return -1;
    if (prealloc == QM_PREALLOC_METADATA)
        return 0;
    return qm_preallocate(file, data * cs, p->n_data * cs, prealloc == QM_PREALLOC_FULL, err);
}

int
qm_qcow2_create(struct qm_file *file, const struct qm_qcow2_create *want, struct qmeld_error *err)
{
    QM_FREE unsigned char *header = NULL;
    static const unsigned char none[SECTOR];
    struct plan p;

    if (qm_qcow2_create_check(file->path, want, err) < 0 ||
        make_plan(file->path, want, &p, err) < 0)
        return -1;
    if (file->blockdev && p.end > file->size)
        return qm_fail(err, QMELD_NOSPACE, qm_in(file->path),
                       "the %s has %" PRIu64 " bytes, the image's tables need %" PRIu64
                       ": give it a larger one",
                       qm_file_kind(file), file->size, p.end);
    header = malloc(want->cluster_size);
    if (!header)
        return qm_fail_nomem(err, "the header cluster");
    if (build_header(file->path, &p, want, header, err) < 0)
        return -1;
    if (file->blockdev ? qm_pwrite(file, 0, none, sizeof none, err) < 0
                       : qm_truncate(file, 0, err) < 0)
        return -1;
    if (qm_sync(file, err) < 0)
        return -1;
    if (write_tables(file, &p, want->prealloc, err) < 0)
        return -1;
    if (want->cluster_size > SECTOR &&
        qm_pwrite(file, SECTOR, header + SECTOR, want->cluster_size - SECTOR, err) < 0)
        return -1;
    if (qm_sync(file, err) < 0)
        return -1;
    if (qm_pwrite(file, 0, header, SECTOR, err) < 0) /* COMMIT POINT: now it is an image */
        return -1;
    return qm_sync(file, err);
}
