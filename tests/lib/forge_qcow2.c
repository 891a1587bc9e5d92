/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_qcow2.c - lays out one qcow2 file after the specification.
 *
 * Order: L1, then clusters, then L2 tables, then snapshots and bitmaps, with every reference
 * counted as it is made; when all is counted, COPIED flags and refcounts are known and the
 * tables are written; the header last.  Written from the specification and the fact sheet of
 * this project, not from src/image.
 */
#include "forge_crypt.h"
#include "bytes.h"
#include "cleanup.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <unistd.h>
#include <zlib.h>
#include <zstd.h>

#define COPIED     (1ull << 63)
#define COMPRESSED (1ull << 62)

static int
write_at(struct qm_forge_image *im, const void *buf, size_t len, uint64_t off)
{
    return qm_forge_pwrite(im->fd, im->path, buf, len, off, im->err);
}

/* n clusters in a row, each with one reference.  *out is their offset. */
static int
allocate(struct qm_forge_image *im, uint64_t n, uint64_t *out)
{
    const uint64_t none = 0;
    const uint64_t one = 1;

    if (im->l->scatter)
        for (uint64_t gap = qm_forge_below(&im->random, 3); gap; gap--)
            if (!qm_vec_push(&im->refs, &none))
                return qm_fail_nomem(im->err, "refcounts");
    *out = im->refs.n * im->cs;
    for (; n; n--)
        if (!qm_vec_push(&im->refs, &one))
            return qm_fail_nomem(im->err, "refcounts");
    return 0;
}

/* Payloads in one cluster: a snapshot may refer to all of them once more. */
static uint64_t
max_packed(const struct qm_forge_image *im)
{
    const unsigned bits = im->l->refcount_bits;
    const uint64_t max = bits == 64 ? UINT64_MAX : (1ull << bits) - 1;

    return max / (1 + im->l->snapshots.n);
}

/* len bytes for a compressed payload, packed behind the last one where refcounts allow it */
static int
allocate_payload(struct qm_forge_image *im, uint64_t len, uint64_t *out)
{
    uint64_t at = im->packed_to;
    uint64_t cluster = at / im->cs;
    uint64_t room = im->refs.n * im->cs - at;
    uint64_t more;
    bool append;

    append = at % im->cs && im->refs.at[cluster] < max_packed(im) &&
             (len <= im->cs - at % im->cs || cluster == im->refs.n - 1);
    if (!append) {
        if (allocate(im, (len + im->cs - 1) / im->cs, out) < 0)
            return -1;
        im->packed_to = *out + len;
        return 0;
    }
    *out = at;
    im->refs.at[cluster]++;
    for (more = len > room ? (len - room + im->cs - 1) / im->cs : 0; more; more--)
        if (!qm_vec_push(&im->refs, &(uint64_t){1}))
            return qm_fail_nomem(im->err, "refcounts");
    im->packed_to = at + len;
    return 0;
}

/* Raw deflate; window bits as given.  Returns the length, 0 on failure. */
static size_t
deflate_some(const void *src, size_t len, int window, bool finish, void *out, size_t room)
{
    z_stream z = {0};
    size_t n = 0;

    if (deflateInit2(&z, 6, Z_DEFLATED, window, 9, Z_DEFAULT_STRATEGY) != Z_OK)
        return 0;
    z.next_in = (unsigned char *)(uintptr_t)src;
    z.avail_in = (uInt)len;
    z.next_out = out;
    z.avail_out = (uInt)room;
    if (deflate(&z, finish ? Z_FINISH : Z_SYNC_FLUSH) == (finish ? Z_STREAM_END : Z_OK))
        n = room - z.avail_out;
    deflateEnd(&z);
    return n;
}

static size_t
zstd_frames(const char *src, size_t len, char *out, size_t room)
{
    static const unsigned char skippable[] = {0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 'a', 'b', 'c'};
    size_t half = len / 2;
    size_t n = sizeof skippable;
    size_t k;

    memcpy(out, skippable, n);
    k = ZSTD_compress(out + n, room - n, src, half, 3);
    if (ZSTD_isError(k))
        return 0;
    n += k;
    k = ZSTD_compress(out + n, room - n, src + half, len - half, 3);
    return ZSTD_isError(k) ? 0 : n + k;
}

/* src holds two clusters of pattern; returns the length of the payload, 0 on failure */
static size_t
make_payload(const struct qm_forge_image *im, const struct qm_forge_cell *cell, const char *src,
             char *out, size_t room)
{
    const enum qm_forge_stream kind = cell->stream;
    size_t len = (size_t)im->cs;
    size_t n;

    if (kind == QM_FORGE_STREAM_GARBAGE) {
        memset(out, 0xa5, 64); /* neither a deflate block type nor a zstd frame */
        return 64;
    }
    if (kind == QM_FORGE_STREAM_SHORT)
        len /= 2;
    if (kind == QM_FORGE_STREAM_LONG)
        len *= 2;
    if (im->l->compression && kind == QM_FORGE_STREAM_FRAMES) {
        n = zstd_frames(src, len, out, room);
    } else if (im->l->compression) {
        n = ZSTD_compress(out, room, src, len, 3);
        if (ZSTD_isError(n))
            n = 0;
    } else {
        int window = kind == QM_FORGE_STREAM_WRAPPED ? 12 : -12;

        n = deflate_some(src, len, kind == QM_FORGE_STREAM_WIDE ? -15 : window,
                         kind != QM_FORGE_STREAM_NOEND, out, room);
    }
    if (n && kind == QM_FORGE_STREAM_TRAILING) {
        memset(out + n, 0xa5, 40);
        n += 40;
    }
    return n;
}

/* specification, "Standard Cluster Descriptor" with bit 62: offset, and sectors beyond the first */
static uint64_t
compressed_entry(const struct qm_forge_image *im, uint64_t off, size_t len)
{
    unsigned x = 62 - ((unsigned)__builtin_ctzll(im->cs) - 8);
    uint64_t sectors = (off + len - 1) / 512 - off / 512;

    return COMPRESSED | sectors << x | off;
}

static int
put_compressed(struct qm_forge_image *im, const struct qm_forge_cell *cell, size_t who,
               uint64_t *entry)
{
    const uint64_t at = cell->index * im->cs;
    const size_t room = (size_t)im->cs * 2 + 1024;
    QM_FREE char *src = calloc(2, im->cs);
    QM_FREE char *out = malloc(room);
    uint64_t real = im->l->size / 512 * 512 - at;
    uint64_t off;
    size_t n;

    if (!src || !out)
        return qm_fail_nomem(im->err, "a cluster");
    if (cell->stream != QM_FORGE_STREAM_LONG && real > im->cs)
        real = im->cs;
    if (cell->stream == QM_FORGE_STREAM_LONG)
        real = im->cs * 2;
    qm_forge_pattern(cell->mark, who, at, src, (size_t)real);
    n = make_payload(im, cell, src, out, room);
    if (!n || (n >= im->cs && cell->stream != QM_FORGE_STREAM_LONG))
        return qm_fail(im->err, QMELD_USAGE, qm_in(im->path),
                       "cluster %" PRIu64 " cannot be compressed as asked", cell->index);
    if (allocate_payload(im, n, &off) < 0 || write_at(im, out, n, off) < 0)
        return -1;
    *entry = compressed_entry(im, off, n);
    return 0;
}

/* One cluster of bytes; what no reader may see carries the letter '!' . */
static int
put_data(struct qm_forge_image *im, const struct qm_forge_cell *cell, size_t who, uint64_t *entry)
{
    QM_FREE char *buf = malloc(im->cs);
    const uint64_t unit = im->cs / 32;
    const uint64_t at = cell->index * im->cs;
    char mark = cell->mark;

    if (!buf)
        return qm_fail_nomem(im->err, "a cluster");
    if (im->data_fd >= 0)
        *entry = at | COPIED; /* specification: host offset = guest offset; no refcounts there */
    else if (allocate(im, 1, entry) < 0)
        return -1;
    if (mark == '~' && !im->l->extended_l2) {
        if (!im->l->luks && !im->l->aes)
            return 0;
        memset(buf, 0, im->cs); /* which what is not written would not read as */
    } else
        qm_forge_pattern(isupper((unsigned char)mark) ? mark : '!', who, at, buf, (size_t)im->cs);
    for (uint64_t i = 0; mark == '#' && i < 32; i++)
        if (isupper((unsigned char)cell->sub[i]))
            qm_forge_pattern(cell->sub[i], who, at + i * unit, buf + i * unit, (size_t)unit);
    if (qm_forge_encrypt(im, at, *entry & ~COPIED, buf, (size_t)im->cs) < 0)
        return -1;
    if (im->data_fd >= 0)
        return qm_forge_pwrite(im->data_fd, im->path, buf, (size_t)im->cs, at, im->err);
    return write_at(im, buf, (size_t)im->cs, *entry);
}

/* specification, "Extended L2 Entries": low half allocated, high half reads as zeros */
static uint64_t
subcluster_bitmap(const struct qm_forge_cell *cell)
{
    uint64_t word = 0;

    if (strchr("0=", cell->mark))
        return 0xffffffffull << 32;
    if (isupper((unsigned char)cell->mark))
        return 0xffffffffull;
    for (unsigned i = 0; cell->mark == '#' && i < 32; i++) {
        if (strchr("0=", cell->sub[i]))
            word |= 1ull << (32 + i);
        else if (isupper((unsigned char)cell->sub[i]))
            word |= 1ull << i;
    }
    return word;
}

static bool
needs_cluster(const struct qm_forge_cell *cell)
{
    if (cell->mark != '#')
        return cell->mark != '0';
    for (const char *s = cell->sub; *s; s++)
        if (isupper((unsigned char)*s) || strchr("=~", *s))
            return true;
    return false;
}

static void
add_reference(struct qm_forge_image *im, uint64_t entry)
{
    const unsigned x = 62 - ((unsigned)__builtin_ctzll(im->cs) - 8);
    uint64_t off = entry & 0x00fffffffffffe00ull;
    uint64_t len = im->cs;

    if (entry & COMPRESSED) {
        off = entry & ((1ull << x) - 1);
        len = (((entry & ~COMPRESSED) >> x) + 1) * 512 - off % 512;
    } else if (!off) {
        return;
    }
    for (uint64_t c = off / im->cs; c <= (off + len - 1) / im->cs; c++)
        im->refs.at[c]++;
}

/* The entry a snapshot shares with the active layer. */
static void
share_cell(struct qm_forge_image *im, const struct qm_forge_cell *cell, uint64_t *words)
{
    const struct qm_forge_cell *mine = qm_forge_cell_at(im->active.cells, cell->index);

    if (!mine)
        return;
    memcpy(words, im->active.entries + (mine - im->active.cells->at) * 2, 2 * sizeof *words);
    add_reference(im, words[0]);
}

static int
put_cell(struct qm_forge_image *im, const struct qm_forge_cell *cell, size_t who, uint64_t *words)
{
    if (cell->mark == '.')
        return 0;
    if (cell->mark == '^') {
        share_cell(im, cell, words);
        return 0;
    }
    if (islower((unsigned char)cell->mark))
        return put_compressed(im, cell, who, &words[0]);
    if (needs_cluster(cell) && put_data(im, cell, who, &words[0]) < 0)
        return -1;
    if (im->l->extended_l2)
        words[1] = subcluster_bitmap(cell);
    else if (strchr("0=", cell->mark))
        words[0] |= 1;
    return 0;
}

/* True if a snapshot has nothing but what the active layer has in this L1 entry's range: then
 * they share the L2 table, as after taking a snapshot. */
static bool
same_range(const struct qm_forge_image *im, const struct qm_forge_tree *snap, uint64_t l1_idx)
{
    const uint64_t from = l1_idx * im->l2_entries;
    const uint64_t to = from + im->l2_entries;

    QM_VEC_EACH (cell, im->active.cells) {
        const struct qm_forge_cell *its;

        if (cell->index < from || cell->index >= to)
            continue;
        its = qm_forge_cell_at(snap->cells, cell->index);
        if (!its || its->mark != '^')
            return false;
    }
    QM_VEC_EACH (cell, snap->cells) {
        if (cell->index >= from && cell->index < to && cell->mark != '^')
            return false;
    }
    return true;
}

/* Cells in the order they are laid down: as they come, or shuffled. */
static size_t *
order_of(struct qm_forge_image *im, size_t n)
{
    size_t *order = calloc(n + 1, sizeof *order);

    for (size_t i = 0; order && i < n; i++) {
        size_t k = im->l->scatter ? (size_t)qm_forge_below(&im->random, i + 1) : i;

        order[i] = order[k];
        order[k] = i;
    }
    return order;
}

int
qm_forge_build_tree(struct qm_forge_image *im, struct qm_forge_tree *t, uint64_t size)
{
    const bool is_snapshot = t != &im->active;
    const uint64_t span = im->l2_entries * im->cs;
    QM_FREE size_t *order = order_of(im, t->cells->n);

    t->l1_entries = (size + span - 1) / span + (is_snapshot ? 0 : im->l->l1_extra);
    t->l2_offs = calloc(t->l1_entries + 1, sizeof *t->l2_offs);
    t->entries = calloc(t->cells->n + 1, 2 * sizeof *t->entries);
    if (!t->l2_offs || !t->entries || !order)
        return qm_fail_nomem(im->err, "tables");
    if (t->l1_entries && allocate(im, (t->l1_entries * 8 + im->cs - 1) / im->cs, &t->l1_off) < 0)
        return -1;
    for (size_t i = 0; i < t->cells->n; i++) {
        size_t k = order[i];
        const struct qm_forge_cell *cell = &t->cells->at[k];
        uint64_t l1_idx = cell->index / im->l2_entries;

        if (put_cell(im, cell, t->who, t->entries + 2 * k) < 0)
            return -1;
        if (t->l2_offs[l1_idx] || cell->mark == '.')
            continue;
        if (is_snapshot && l1_idx < im->active.l1_entries && im->active.l2_offs[l1_idx] &&
            same_range(im, t, l1_idx)) {
            t->l2_offs[l1_idx] = im->active.l2_offs[l1_idx];
            im->refs.at[t->l2_offs[l1_idx] / im->cs]++;
        } else if (allocate(im, 1, &t->l2_offs[l1_idx]) < 0) {
            return -1;
        }
    }
    return 0;
}

/* COPIED: the one reference is this one; never on compressed entries. */
static uint64_t
with_copied(const struct qm_forge_image *im, const struct qm_forge_tree *t, uint64_t entry)
{
    const uint64_t off = entry & 0x00fffffffffffe00ull;

    if (t != &im->active || entry & (COMPRESSED | COPIED) || !off)
        return entry;
    return im->refs.at[off / im->cs] == 1 ? entry | COPIED : entry;
}

int
qm_forge_write_tree(struct qm_forge_image *im, const struct qm_forge_tree *t)
{
    QM_FREE be64 *l1 = calloc(t->l1_entries + 1, sizeof *l1);

    if (!l1)
        return qm_fail_nomem(im->err, "an L1 table");
    for (uint64_t i = 0; i < t->l1_entries; i++)
        be64_put(&l1[i], with_copied(im, t, t->l2_offs[i]));
    if (write_at(im, l1, (size_t)t->l1_entries * 8, t->l1_off) < 0)
        return -1;
    for (size_t k = 0; k < t->cells->n; k++) {
        uint64_t index = t->cells->at[k].index;
        uint64_t table = t->l2_offs[index / im->l2_entries];
        be64 words[2];

        if (!table || (t != &im->active && index / im->l2_entries < im->active.l1_entries &&
                       table == im->active.l2_offs[index / im->l2_entries]))
            continue;
        be64_put(&words[0], with_copied(im, t, t->entries[2 * k]));
        be64_put(&words[1], t->entries[2 * k + 1]);
        if (write_at(im, words, (size_t)im->l2_entry_len,
                     table + index % im->l2_entries * im->l2_entry_len) < 0)
            return -1;
    }
    return 0;
}

/* Offset of the snapshot's entry in the table; the table's length for i = number of snapshots. */
static uint64_t
snapshot_at(const struct qm_forge_layer *l, size_t i)
{
    uint64_t off = 0;

    while (i--)
        off +=
            (40 + 24 + strlen(l->snapshots.at[i].id) + strlen(l->snapshots.at[i].name) + 7) / 8 * 8;
    return off;
}

/* specification, "Snapshots" */
int
qm_forge_put_snapshots(struct qm_forge_image *im)
{
    const struct qm_forge_layer *l = im->l;
    const uint64_t len = snapshot_at(l, l->snapshots.n);
    QM_FREE char *table = calloc(1, len + 1);

    if (!l->snapshots.n)
        return 0;
    if (!table)
        return qm_fail_nomem(im->err, "a snapshot table");
    for (size_t i = 0; i < l->snapshots.n; i++) {
        const struct qm_forge_snapshot *s = &l->snapshots.at[i];
        struct qm_forge_tree *t = &im->snaps[i];
        char *at = table + snapshot_at(l, i);

        t->cells = &s->cells;
        t->who = (i + 1) * QM_FORGE_MAX_LAYERS + im->active.who;
        if (qm_forge_build_tree(im, t, s->size) < 0)
            return -1;
        be64_put((be64 *)at, t->l1_off);
        be32_put((be32 *)(at + 8), (uint32_t)t->l1_entries);
        be16_put((be16 *)(at + 12), (uint16_t)strlen(s->id));
        be16_put((be16 *)(at + 14), (uint16_t)strlen(s->name));
        be32_put((be32 *)(at + 16), 1700000000); /* made then, whenever that is */
        be32_put((be32 *)(at + 36), 24);
        be64_put((be64 *)(at + 48), s->size);
        be64_put((be64 *)(at + 56), UINT64_MAX); /* icount: none */
        memcpy(at + 64, s->id, strlen(s->id));
        memcpy(at + 64 + strlen(s->id), s->name, strlen(s->name));
    }
    if (allocate(im, (len + im->cs - 1) / im->cs, &im->snapshots_off) < 0)
        return -1;
    return write_at(im, table, (size_t)len, im->snapshots_off);
}
