/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_header.c - the last strokes of a qcow2 file: bitmaps, refcounts, header; and the whole.
 */
#include "forge_crypt.h"
#include "bytes.h"
#include "cleanup.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <unistd.h>

struct area {
    struct qm_forge_image *im;
    unsigned char *at;
    size_t used;
};

static int
put(struct area *a, const void *bytes, size_t len)
{
    if (len > a->im->cs - a->used)
        return qm_fail(a->im->err, QMELD_USAGE, qm_in(a->im->path),
                       "the header does not fit its cluster: use a larger cluster");
    memcpy(a->at + a->used, bytes, len);
    a->used += len;
    return 0;
}

/* specification, "Header extensions": type, length, data, padded to 8 */
static int
put_extension(struct area *a, uint32_t type, const void *data, size_t len)
{
    static const char pad[8];
    be32 words[2];

    be32_put(&words[0], type);
    be32_put(&words[1], (uint32_t)len);
    if (put(a, words, sizeof words) < 0 || put(a, data, len) < 0)
        return -1;
    return put(a, pad, (8 - len % 8) % 8);
}

/* specification, "Feature name table" */
static int
put_feature_names(struct area *a)
{
    static const struct {
        unsigned char kind, bit;
        const char *name;
    } names[] = {
        {0, 0, "dirty bit"},        {0, 1, "corrupt bit"},         {0, 2, "external data file"},
        {0, 3, "compression type"}, {0, 4, "extended L2 entries"}, {1, 0, "lazy refcounts"},
        {2, 0, "bitmaps"},          {0, 40, "time travel"}};
    unsigned char table[sizeof names / sizeof *names][48];

    memset(table, 0, sizeof table);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        table[i][0] = names[i].kind;
        table[i][1] = names[i].bit;
        memcpy(table[i] + 2, names[i].name, strlen(names[i].name));
    }
    return put_extension(a, 0x6803f857, table, sizeof table);
}

/* The name to store for what is below, malloc'd. */
static char *
backing_name(const struct qm_forge *forge, const struct qm_forge_layer *l, const char *dir)
{
    const struct qm_forge_layer *below;
    QM_FREE char *real = realpath(dir, NULL);
    char *name = NULL;
    int n = -1;

    if (l->backing)
        return strdup(l->backing);
    if (l->below == QM_FORGE_NONE || !real)
        return strdup("");
    below = &forge->layers.at[l->below];
    if (l->style == QM_FORGE_RELATIVE)
        return strdup(below->file);
    if (l->style == QM_FORGE_ABSOLUTE)
        n = asprintf(&name, "%s/%s", real, below->file);
    else if (l->style == QM_FORGE_FILE)
        n = asprintf(&name, "file:%s/%s", real, below->file);
    else
        n = asprintf(&name,
                     "json:{\"driver\": \"%s\", \"file\": {\"driver\": \"file\", \"filename\": "
                     "\"%s/%s\"}}",
                     below->raw ? "raw" : "qcow2", real, below->file);
    return n < 0 ? NULL : name;
}

static const char *
backing_format(const struct qm_forge *forge, const struct qm_forge_layer *l)
{
    if (l->backing_format)
        return strcmp(l->backing_format, "none") ? l->backing_format : NULL;
    return l->below == QM_FORGE_NONE ? NULL : qm_forge_format(forge, l->below);
}

static int
put_extensions(struct area *a, const char *format)
{
    const struct qm_forge_layer *l = a->im->l;

    if (format && put_extension(a, 0xe2792aca, format, strlen(format)) < 0)
        return -1;
    if (l->data_file && put_extension(a, 0x44415441, l->data_file, strlen(l->data_file)) < 0)
        return -1;
    if (l->luks) {
        unsigned char ext[16];

        be64_put((be64 *)ext, a->im->crypto_off);
        be64_put((be64 *)(ext + 8), qm_forge_crypt_region(l));
        if (put_extension(a, 0x0537be77, ext, sizeof ext) < 0)
            return -1;
    }
    if (l->feature_table && put_feature_names(a) < 0)
        return -1;
    if (l->bitmaps.n) {
        unsigned char ext[24] = {0};

        be32_put((be32 *)ext, (uint32_t)l->bitmaps.n);
        be64_put((be64 *)(ext + 8), a->im->bitmap_dir_len);
        be64_put((be64 *)(ext + 16), a->im->bitmap_dir_off);
        if (put_extension(a, 0x23852875, ext, sizeof ext) < 0)
            return -1;
    }
    QM_VEC_EACH (ext, &l->exts) {
        if (put_extension(a, ext->type, ext->bytes, ext->len) < 0)
            return -1;
    }
    return put_extension(a, 0, "", 0);
}

/* The numbered fields; offsets as in the specification, "Header". */
static void
fill_header(const struct qm_forge_image *im, unsigned char *h)
{
    const struct qm_forge_layer *l = im->l;
    uint64_t incompatible = l->incompatible;

    be32_put((be32 *)h, 0x514649fb);
    be32_put((be32 *)(h + 4), l->version);
    be32_put((be32 *)(h + 20), (uint32_t)__builtin_ctzll(im->cs));
    be64_put((be64 *)(h + 24), l->size);
    be32_put((be32 *)(h + 32), l->luks ? 2 : l->aes ? 1 : 0);
    be32_put((be32 *)(h + 36), (uint32_t)im->active.l1_entries);
    be64_put((be64 *)(h + 40), im->active.l1_off);
    be64_put((be64 *)(h + 48), im->reftable_off);
    be32_put((be32 *)(h + 56), (uint32_t)im->reftable_clusters);
    be32_put((be32 *)(h + 60), (uint32_t)l->snapshots.n);
    be64_put((be64 *)(h + 64), im->snapshots_off);
    if (l->version < 3)
        return;
    incompatible |= l->data_file ? 4 : 0;
    incompatible |= l->compression ? 8 : 0;
    incompatible |= l->extended_l2 ? 16 : 0;
    be64_put((be64 *)(h + 72), incompatible);
    be64_put((be64 *)(h + 80), l->compatible);
    be64_put((be64 *)(h + 88), l->autoclear | (l->bitmaps.n ? 1 : 0));
    be32_put((be32 *)(h + 96), (uint32_t)__builtin_ctz(l->refcount_bits));
    be32_put((be32 *)(h + 100), l->header_len);
    if (l->header_len > 104)
        h[104] = (unsigned char)l->compression;
    for (unsigned i = 112; i < l->header_len; i++)
        h[i] = (unsigned char)i; /* fields of the future: to be kept by who rewrites the header */
}

static int
write_header(struct qm_forge_image *im, const struct qm_forge *forge, const char *dir)
{
    QM_FREE unsigned char *cluster = calloc(1, im->cs);
    QM_FREE char *name = backing_name(forge, im->l, dir);
    const char *format = backing_format(forge, im->l);
    struct area a = {im, cluster, im->l->version < 3 ? 72 : (size_t)im->l->header_len};
    size_t name_off;

    if (!cluster || !name)
        return qm_fail_nomem(im->err, "a header");
    fill_header(im, cluster);
    if (put_extensions(&a, format) < 0)
        return -1;
    name_off = a.used;
    if (put(&a, name, strlen(name)) < 0)
        return -1;
    if (*name) {
        be64_put((be64 *)(cluster + 8), name_off);
        be32_put((be32 *)(cluster + 16), (uint32_t)strlen(name));
    }
    return qm_forge_pwrite(im->fd, im->path, cluster, (size_t)im->cs, 0, im->err);
}

static int
take(struct qm_forge_image *im, uint64_t n, uint64_t *out)
{
    *out = im->refs.n * im->cs;
    for (; n; n--)
        if (!qm_vec_push(&im->refs, &(uint64_t){1}))
            return qm_fail_nomem(im->err, "refcounts");
    return 0;
}

/* specification, "Bitmap table" and "Bitmap data": the bits of the recipe in the first cluster,
 * none after them. */
static int
put_bitmap_table(struct qm_forge_image *im, const struct qm_forge_bitmap *map, uint64_t *out_off,
                 uint64_t *out_entries)
{
    const uint64_t bits = (im->l->size + map->granularity - 1) / map->granularity;
    const uint64_t entries = ((bits + 7) / 8 + im->cs - 1) / im->cs;
    QM_FREE unsigned char *data = calloc(1, im->cs);
    uint64_t data_off;
    be64 entry;

    if (!data)
        return qm_fail_nomem(im->err, "a bitmap");
    *out_entries = entries;
    if (take(im, entries ? (entries * 8 + im->cs - 1) / im->cs : 1, out_off) < 0)
        return -1;
    if (!*map->bits || !entries)
        return 0;
    for (size_t i = 0; map->bits[i] && i < im->cs * 8; i++)
        if (map->bits[i] == '1')
            data[i / 8] |= (unsigned char)(1 << i % 8);
    if (take(im, 1, &data_off) < 0)
        return -1;
    be64_put(&entry, data_off);
    if (qm_forge_pwrite(im->fd, im->path, &entry, 8, *out_off, im->err) < 0)
        return -1;
    return qm_forge_pwrite(im->fd, im->path, data, (size_t)im->cs, data_off, im->err);
}

/* specification, "Bitmap directory" */
static int
put_bitmaps(struct qm_forge_image *im)
{
    unsigned char dir[65536] = {0};
    size_t used = 0;

    QM_VEC_EACH (map, &im->l->bitmaps) {
        const size_t len = (24 + strlen(map->name) + 7) / 8 * 8;
        uint64_t off;
        uint64_t entries = 0; /* gcc cannot see that a failure returns */

        if (used + len > sizeof dir)
            return qm_fail(im->err, QMELD_USAGE, qm_in(im->path), "too many bitmaps for a recipe");
        if (put_bitmap_table(im, map, &off, &entries) < 0)
            return -1;
        be64_put((be64 *)(dir + used), off);
        be32_put((be32 *)(dir + used + 8), (uint32_t)entries);
        be32_put((be32 *)(dir + used + 12), map->flags);
        dir[used + 16] = 1;
        dir[used + 17] = (unsigned char)__builtin_ctzll(map->granularity);
        be16_put((be16 *)(dir + used + 18), (uint16_t)strlen(map->name));
        memcpy(dir + used + 24, map->name, strlen(map->name));
        used += len;
    }
    if (!used)
        return 0;
    im->bitmap_dir_len = used;
    if (take(im, (used + im->cs - 1) / im->cs, &im->bitmap_dir_off) < 0)
        return -1;
    return qm_forge_pwrite(im->fd, im->path, dir, used, im->bitmap_dir_off, im->err);
}

/* specification, "Refcount block entries": below a byte, from the least significant bit */
static void
encode_refcount(unsigned char *block, uint64_t i, unsigned bits, uint64_t v)
{
    if (bits < 8) {
        block[i * bits / 8] |= (unsigned char)(v << (i * bits % 8));
        return;
    }
    for (unsigned k = 0; k < bits / 8; k++)
        block[i * bits / 8 + k] = (unsigned char)(v >> (bits - 8 - 8 * k));
}

/* Room for all refcounts, those of this room included.  A small image has table and first block
 * in clusters 1 and 2, where QEMU puts them; otherwise they go to the end. */
static int
place_refcounts(struct qm_forge_image *im, bool reserved)
{
    const uint64_t per_block = im->cs * 8 / im->l->refcount_bits;
    uint64_t old = reserved ? 1 : 0;
    uint64_t blocks = 1;
    uint64_t table = 1;
    uint64_t at;

    for (;;) {
        uint64_t total = im->refs.n + (blocks - old) + (reserved && table == 1 ? 0 : table);
        uint64_t want_blocks = (total + per_block - 1) / per_block;
        uint64_t want_table = (want_blocks * 8 + im->cs - 1) / im->cs;

        if (want_blocks <= blocks && want_table <= table)
            break;
        blocks = want_blocks > blocks ? want_blocks : blocks;
        table = want_table > table ? want_table : table;
    }
    im->reftable_clusters = table;
    im->reftable_off = im->cs;
    if (reserved && table > 1)
        im->refs.at[1] = 0; /* the place is too small: a free cluster */
    if ((!reserved || table > 1) && take(im, table, &im->reftable_off) < 0)
        return -1;
    for (uint64_t i = 0; i < blocks; i++) {
        at = 2 * im->cs;
        if (i >= old && take(im, 1, &at) < 0)
            return -1;
        if (!qm_vec_push(&im->refblocks, &at))
            return qm_fail_nomem(im->err, "refcounts");
    }
    return 0;
}

static int
write_refcounts(struct qm_forge_image *im)
{
    const unsigned bits = im->l->refcount_bits;
    const uint64_t per_block = im->cs * 8 / bits;
    QM_FREE unsigned char *block = malloc(im->cs);
    be64 entry;

    if (!block)
        return qm_fail_nomem(im->err, "refcounts");
    for (size_t i = 0; i < im->refblocks.n; i++) {
        memset(block, 0, im->cs);
        for (uint64_t k = 0; k < per_block && i * per_block + k < im->refs.n; k++) {
            uint64_t v = im->refs.at[i * per_block + k];

            if (bits < 64 && v >> bits)
                return qm_fail(im->err, QMELD_USAGE, qm_in(im->path),
                               "a refcount of %" PRIu64 " needs more than refcount_bits=%u", v,
                               bits);
            encode_refcount(block, k, bits, v);
        }
        be64_put(&entry, im->refblocks.at[i]);
        if (qm_forge_pwrite(im->fd, im->path, block, (size_t)im->cs, im->refblocks.at[i], im->err) <
                0 ||
            qm_forge_pwrite(im->fd, im->path, &entry, 8, im->reftable_off + 8 * i, im->err) < 0)
            return -1;
    }
    return 0;
}

static int
build(struct qm_forge_image *im, const struct qm_forge *forge, const char *dir)
{
    const bool reserved = !im->l->scatter;
    uint64_t off;

    if (take(im, reserved ? 3 : 1, &off) < 0 ||
        take(im, (qm_forge_crypt_region(im->l) + im->cs - 1) / im->cs, &im->crypto_off) < 0)
        return -1;
    im->active.cells = &im->l->cells;
    if (qm_forge_build_tree(im, &im->active, im->l->size) < 0 || qm_forge_put_snapshots(im) < 0 ||
        put_bitmaps(im) < 0 || place_refcounts(im, reserved) < 0)
        return -1;
    if (ftruncate(im->fd, (off_t)(im->refs.n * im->cs)) < 0)
        return qm_fail_sys(im->err, qm_in(im->path), "cannot set the length");
    if (qm_forge_write_tree(im, &im->active) < 0)
        return -1;
    for (size_t i = 0; i < im->l->snapshots.n; i++)
        if (qm_forge_write_tree(im, &im->snaps[i]) < 0)
            return -1;
    if (write_refcounts(im) < 0 || qm_forge_write_luks(im) < 0 || write_header(im, forge, dir) < 0)
        return -1;
    QM_VEC_EACH (damage, &im->l->damages) {
        if (qm_forge_damage(im, damage, forge->name) < 0)
            return -1;
    }
    return 0;
}

static void
release_tree(struct qm_forge_tree *t)
{
    free(t->l2_offs);
    free(t->entries);
}

static int
open_files(struct qm_forge_image *im, const char *dir)
{
    QM_FREE char *data = NULL;

    im->fd = open(im->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (im->fd < 0)
        return qm_fail_sys(im->err, qm_in(im->path), "cannot create");
    if (!im->l->data_file)
        return 0;
    if (asprintf(&data, "%s/%s", dir, im->l->data_file) < 0) {
        data = NULL;
        return qm_fail_nomem(im->err, "a path");
    }
    im->data_fd = open(data, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (im->data_fd < 0 || ftruncate(im->data_fd, (off_t)im->l->size) < 0)
        return qm_fail_sys(im->err, qm_in(data), "cannot create");
    return 0;
}

int
qm_forge_write_qcow2(const struct qm_forge *forge, size_t layer, const char *dir, const char *path,
                     struct qmeld_error *err)
{
    const struct qm_forge_layer *l = &forge->layers.at[layer];
    struct qm_forge_image im = {.l = l, .path = path, .fd = -1, .data_fd = -1, .err = err};
    int r;

    im.cs = l->cluster;
    im.l2_entry_len = l->extended_l2 ? 16 : 8;
    im.l2_entries = im.cs / im.l2_entry_len;
    im.random = l->scatter;
    im.active.who = layer;
    im.snaps = calloc(l->snapshots.n + 1, sizeof *im.snaps);
    r = im.snaps ? open_files(&im, dir) : qm_fail_nomem(err, "snapshots");
    if (r == 0)
        r = build(&im, forge, dir);
    for (size_t i = 0; im.snaps && i < l->snapshots.n; i++)
        release_tree(&im.snaps[i]);
    free(im.snaps);
    release_tree(&im.active);
    qm_vec_release(&im.refs);
    qm_vec_release(&im.refblocks);
    if (im.data_fd >= 0 && close(im.data_fd) < 0 && r == 0)
        r = qm_fail_sys(err, qm_in(path), "cannot close the data file");
    if (im.fd >= 0 && close(im.fd) < 0 && r == 0)
        r = qm_fail_sys(err, qm_in(path), "cannot close");
    return r;
}
