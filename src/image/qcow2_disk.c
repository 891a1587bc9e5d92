/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_disk.c - header, L2 entries and refcounts, from bytes to host form and back.
 *
 * Why.  Everything here is pure: the same bytes give the same answer, on every host, so that the
 * whole of it can be tested and fuzzed without a file.  The order of the header's checks is QEMU's
 * (7.2, block/qcow2.c, qcow2_do_open), so that the first defect named is the one QEMU names.
 */
#include "qcow2_disk.h"

#include "qcow2_salvage.h"

#include "cleanup.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>

#define ADVICE "the header is damaged, restore the image from a copy"

/* specification, "Header extensions": their payloads */
struct disk_bitmaps_ext {
    be32 n;
    be32 reserved;
    be64 dir_len;
    be64 dir_off;
};
static_assert(sizeof(struct disk_bitmaps_ext) == 24, "spec size");

struct disk_crypto_ext {
    be64 off;
    be64 len;
};
static_assert(sizeof(struct disk_crypto_ext) == 16, "spec size");

struct disk_feature {
    unsigned char type; /* 0: incompatible */
    unsigned char bit;
    char name[46];
};
static_assert(sizeof(struct disk_feature) == 48, "spec size");

#define CRYPT_NONE 0u
#define CRYPT_LUKS 2u

/* What every step of decoding works on. */
struct decoding {
    const char *file;
    const unsigned char *buf;
    unsigned flags;
    uint64_t cluster_size;
    bool has_crypto_ext;
    struct qcow2_header *h;
    struct qmeld_error *err;
};

#define FIELD(member)        offsetof(struct qcow2_disk_header, member)
#define CORRUPT(d, off, ...) qm_fail((d)->err, QMELD_CORRUPT, qm_at((d)->file, (off)), __VA_ARGS__)
#define UNSUPPORTED(d, off, ...)                                                                   \
    qm_fail((d)->err, QMELD_UNSUPPORTED, qm_at((d)->file, (off)), __VA_ARGS__)

size_t
qcow2_header_area(const void *first, size_t len)
{
    struct qcow2_disk_header raw;
    uint32_t bits;

    if (len < offsetof(struct qcow2_disk_header, size))
        return 512;
    memcpy(&raw, first, offsetof(struct qcow2_disk_header, size));
    bits = be32_get(&raw.cluster_bits);
    if (be32_get(&raw.magic) != QCOW2_MAGIC || bits < QCOW2_MIN_CLUSTER_BITS ||
        bits > QCOW2_MAX_CLUSTER_BITS)
        return 512;
    return (size_t)1 << bits;
}

/* ---- header ---- */

static void
load_fields(struct qcow2_header *h, const struct qcow2_disk_header *raw)
{
    h->version = be32_get(&raw->version);
    h->backing_off = be64_get(&raw->backing_off);
    h->backing_len = be32_get(&raw->backing_len);
    h->cluster_bits = be32_get(&raw->cluster_bits);
    h->size = be64_get(&raw->size);
    h->crypt_method = be32_get(&raw->crypt_method);
    h->l1_entries = be32_get(&raw->l1_entries);
    h->l1_off = be64_get(&raw->l1_off);
    h->reftable_off = be64_get(&raw->reftable_off);
    h->reftable_clusters = be32_get(&raw->reftable_clusters);
    h->n_snapshots = be32_get(&raw->n_snapshots);
    h->snapshots_off = be64_get(&raw->snapshots_off);
    if (h->version < 3) {
        h->refcount_order = 4;
        h->header_len = QCOW2_V2_HEADER_LEN;
        return;
    }
    h->incompatible = be64_get(&raw->incompatible);
    h->compatible = be64_get(&raw->compatible);
    h->autoclear = be64_get(&raw->autoclear);
    h->refcount_order = be32_get(&raw->refcount_order);
    h->header_len = be32_get(&raw->header_len);
    /* a header of 104 bytes ends before this field; then it is 0, zlib */
    if (h->header_len > FIELD(compression))
        h->compression = raw->compression;
}

/* Where extensions end: QEMU takes them to fill the space up to the backing name. */
static uint64_t
ext_area_end(const struct decoding *d)
{
    return d->h->backing_off ? d->h->backing_off : d->cluster_size;
}

static int
check_start(const struct decoding *d)
{
    const struct qcow2_header *h = d->h;

    if (h->version < 2 || h->version > 3)
        return UNSUPPORTED(d, FIELD(version),
                           "qcow2 version %" PRIu32 " is unknown: only versions 2 and 3 exist here",
                           h->version);
    if (h->cluster_bits < QCOW2_MIN_CLUSTER_BITS || h->cluster_bits > QCOW2_MAX_CLUSTER_BITS)
        return UNSUPPORTED(d, FIELD(cluster_bits),
                           "cluster size 2^%" PRIu32 " is not between 512 bytes and 2 MiB: " ADVICE,
                           h->cluster_bits);
    if (h->version == 3 && h->header_len < QCOW2_V3_HEADER_LEN)
        return CORRUPT(d, FIELD(header_len), "header length %" PRIu32 " is less than %u: " ADVICE,
                       h->header_len, QCOW2_V3_HEADER_LEN);
    if (h->header_len > 1ull << h->cluster_bits)
        return CORRUPT(d, FIELD(header_len),
                       "header length %" PRIu32 " exceeds the cluster size: " ADVICE,
                       h->header_len);
    if (h->backing_off > 1ull << h->cluster_bits)
        return CORRUPT(d, FIELD(backing_off),
                       "backing file name at %" PRIu64 " lies outside the first cluster: " ADVICE,
                       h->backing_off);
    return 0;
}

/* The image's own name for an incompatible feature bit, or its number.  The name comes from
 * a stranger's file: what a terminal could obey is masked. */
static void
name_feature(const struct decoding *d, unsigned bit, char *out, size_t room)
{
    const uint64_t end = ext_area_end(d);
    uint64_t at = d->h->header_len;

    snprintf(out, room, "bit %u", bit);
    while (at + sizeof(struct qcow2_disk_ext) <= end) {
        struct qcow2_disk_ext ext;
        uint32_t len;

        memcpy(&ext, d->buf + at, sizeof ext);
        at += sizeof ext;
        len = be32_get(&ext.len);
        if (be32_get(&ext.type) == QCOW2_EXT_END || len > end - at)
            return;
        if (be32_get(&ext.type) == QCOW2_EXT_FEATURES)
            for (uint32_t i = 0; i + sizeof(struct disk_feature) <= len;
                 i += (uint32_t)sizeof(struct disk_feature)) {
                struct disk_feature f;

                memcpy(&f, d->buf + at + i, sizeof f);
                if (f.type != 0 || f.bit != bit || !f.name[0])
                    continue;
                snprintf(out, room, "%.*s", (int)sizeof f.name, f.name);
                for (char *c = out; *c; c++)
                    if (!isprint((unsigned char)*c))
                        *c = '?';
                return;
            }
        at += qm_align_up(len, 8);
    }
}

static int
refuse_features(const struct decoding *d)
{
    const uint64_t unknown = d->h->incompatible & ~QCOW2_INCOMPAT_KNOWN;
    char list[256] = "";
    size_t used = 0;

    for (unsigned bit = 0; bit < 64 && used + 64 < sizeof list; bit++) {
        char name[64];

        if (!(unknown >> bit & 1))
            continue;
        name_feature(d, bit, name, sizeof name);
        used += (size_t)snprintf(list + used, sizeof list - used, "%s%s", used ? ", " : "", name);
    }
    return UNSUPPORTED(d, FIELD(incompatible),
                       "the image needs a feature unknown here (%s): use the program that made it",
                       list);
}

static int
check_features(const struct decoding *d)
{
    const struct qcow2_header *h = d->h;
    const bool flagged = h->incompatible & QCOW2_INCOMPAT_COMPRESSION;

    if (h->compression > 1)
        return UNSUPPORTED(d, FIELD(compression),
                           "compression type %" PRIu32 " is unknown: only zlib and zstd exist here",
                           h->compression);
    if ((h->compression != 0) != flagged)
        return CORRUPT(d, FIELD(compression),
                       "compression type %" PRIu32
                       " contradicts the feature bit that announces it: " ADVICE,
                       h->compression);
    if (h->incompatible & ~QCOW2_INCOMPAT_KNOWN)
        return refuse_features(d);
    if ((h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) && h->cluster_bits < 14)
        return CORRUPT(d, FIELD(cluster_bits),
                       "subclusters of %u bytes are too small, 512 is the least: " ADVICE,
                       (1u << h->cluster_bits) / 32);
    if (h->refcount_order > 6)
        return CORRUPT(d, FIELD(refcount_order),
                       "refcounts of 2^%" PRIu32 " bits are too wide, 64 is the most: " ADVICE,
                       h->refcount_order);
    return 0;
}

/* A table the header names: bounded, aligned, addressable (QEMU's qcow2_validate_table). */
static int
check_table(const struct decoding *d, const char *what, uint64_t field, uint64_t off,
            uint64_t entries, uint64_t entry_len, uint64_t max_len)
{
    if (entries > max_len / entry_len)
        return CORRUPT(d, field,
                       "%s of %" PRIu64 " entries is too large, %" PRIu64 " is the most: " ADVICE,
                       what, entries, max_len / entry_len);
    if (off > QM_MAX_OFF - entries * entry_len || off % d->cluster_size)
        return CORRUPT(d, field, "%s at offset 0x%" PRIx64 " is not at a valid place: " ADVICE,
                       what, off);
    return 0;
}

static int
check_size(const struct decoding *d)
{
    struct qcow2_header *h = d->h;
    const struct qcow2_geo geo = qcow2_geo_of(h);
    const uint64_t needed = qcow2_l1_needed(&geo, h->size);

    /* as the L1 table is at most 4 Mi entries, this bounds the size, too: to 2 EiB */
    if (h->l1_entries < needed &&
        !((d->flags & QCOW2_DECODE_SALVAGE) && h->size <= QCOW2_SALVAGE_MAX))
        return CORRUPT(d, FIELD(l1_entries),
                       "L1 table of %" PRIu32 " entries is too small for the virtual size, "
                       "which needs %" PRIu64 ": " ADVICE,
                       h->l1_entries, needed);
    /* QEMU counts in sectors; a rest is cut off */
    h->size = qm_align_down(h->size, 512);
    return 0;
}

static int
check_tables(const struct decoding *d)
{
    const struct qcow2_header *h = d->h;
    const bool for_check = d->flags & QCOW2_DECODE_FOR_CHECK;

    if (h->reftable_clusters == 0 && !for_check)
        return CORRUPT(d, FIELD(reftable_clusters),
                       "there is no refcount table: repair it with check --repair=all");
    if (check_table(d, "refcount table", FIELD(reftable_off), h->reftable_off, h->reftable_clusters,
                    d->cluster_size, QCOW2_MAX_REFTABLE_BYTES) < 0)
        return -1;
    if (!for_check &&
        check_table(d, "snapshot table", FIELD(snapshots_off), h->snapshots_off, h->n_snapshots,
                    sizeof(struct qcow2_disk_snapshot),
                    sizeof(struct qcow2_disk_snapshot) * (uint64_t)QCOW2_MAX_SNAPSHOTS) < 0)
        return -1;
    if (check_table(d, "L1 table", FIELD(l1_off), h->l1_off, h->l1_entries, sizeof(be64),
                    QCOW2_MAX_L1_BYTES) < 0)
        return -1;
    if (check_size(d) < 0)
        return -1;
    if (h->crypt_method > CRYPT_LUKS)
        return UNSUPPORTED(d, FIELD(crypt_method),
                           "encryption method %" PRIu32 " is unknown: use the program that made it",
                           h->crypt_method);
    return 0;
}

/* A string of an image: ends at its first NUL, if it has one (QEMU reads it as a C string). */
static int
take_string(const struct decoding *d, uint64_t off, uint32_t len, char **out)
{
    free(*out);
    *out = strndup((const char *)d->buf + off, len);
    if (!*out)
        return qm_fail_nomem(d->err, "a name in the header");
    if (!**out) {
        free(*out);
        *out = NULL;
    }
    return 0;
}

static int
take_crypto(struct decoding *d, const struct qcow2_ext *e)
{
    struct disk_crypto_ext raw;

    if (d->h->crypt_method != CRYPT_LUKS)
        return CORRUPT(d, e->off, "encryption extension in an image without LUKS: " ADVICE);
    if (e->len != sizeof raw)
        return CORRUPT(d, e->off, "encryption extension of %" PRIu32 " bytes, not 16: " ADVICE,
                       e->len);
    memcpy(&raw, d->buf + e->off + sizeof(struct qcow2_disk_ext), sizeof raw);
    if (be64_get(&raw.off) % d->cluster_size)
        return CORRUPT(d, e->off, "encryption header is not cluster aligned: " ADVICE);
    d->has_crypto_ext = true;
    d->h->crypto_off = be64_get(&raw.off);
    d->h->crypto_len = be64_get(&raw.len);
    return 0;
}

static int
take_bitmaps(const struct decoding *d, const struct qcow2_ext *e)
{
    struct qcow2_header *h = d->h;
    struct disk_bitmaps_ext raw;

    if (e->len != sizeof raw)
        return CORRUPT(d, e->off, "bitmaps extension of %" PRIu32 " bytes, not 24: " ADVICE,
                       e->len);
    /* Some program that does not know bitmaps has written since: they are void (specification,
     * "Bitmaps extension"), and so is whatever stands here. */
    if (!(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
        return 0;
    memcpy(&raw, d->buf + e->off + sizeof(struct qcow2_disk_ext), sizeof raw);
    h->n_bitmaps = be32_get(&raw.n);
    h->bitmap_dir_len = be64_get(&raw.dir_len);
    h->bitmap_dir_off = be64_get(&raw.dir_off);
    if (be32_get(&raw.reserved) != 0)
        return CORRUPT(d, e->off, "bitmaps extension: reserved field is not zero: " ADVICE);
    if (h->n_bitmaps == 0 || h->n_bitmaps > QCOW2_MAX_BITMAPS)
        return CORRUPT(d, e->off, "bitmaps extension: %" PRIu32 " bitmaps, not 1 to %u: " ADVICE,
                       h->n_bitmaps, QCOW2_MAX_BITMAPS);
    if (h->bitmap_dir_off % d->cluster_size || h->bitmap_dir_off > QM_MAX_OFF)
        return CORRUPT(d, e->off,
                       "bitmaps extension: directory at 0x%" PRIx64
                       " is not at a valid place: " ADVICE,
                       h->bitmap_dir_off);
    if (h->bitmap_dir_len > QCOW2_MAX_BITMAP_DIR)
        return CORRUPT(d, e->off,
                       "bitmaps extension: directory of %" PRIu64 " bytes is too large: " ADVICE,
                       h->bitmap_dir_len);
    h->has_bitmaps = true;
    return 0;
}

static int
take_ext(struct decoding *d, const struct qcow2_ext *e)
{
    const uint64_t data = (uint64_t)e->off + sizeof(struct qcow2_disk_ext);

    if (d->h->exts.n == QCOW2_MAX_EXTENSIONS)
        return UNSUPPORTED(d, e->off, "more than %u header extensions: " ADVICE,
                           QCOW2_MAX_EXTENSIONS);
    if (!qm_vec_push(&d->h->exts, e))
        return qm_fail_nomem(d->err, "header extensions");
    switch (e->type) {
    case QCOW2_EXT_BACKING_FORMAT:
        if (e->len > QCOW2_MAX_BACKING_FORMAT)
            return CORRUPT(d, e->off,
                           "backing format of %" PRIu32 " bytes, %u is the most: " ADVICE, e->len,
                           QCOW2_MAX_BACKING_FORMAT);
        return take_string(d, data, e->len, &d->h->backing_format);
    case QCOW2_EXT_DATA_FILE:
        if (e->len > QCOW2_MAX_DATA_FILE_NAME)
            return UNSUPPORTED(
                d, e->off, "external data file name of %" PRIu32 " bytes, %u is the most: " ADVICE,
                e->len, QCOW2_MAX_DATA_FILE_NAME);
        return take_string(d, data, e->len, &d->h->data_file);
    case QCOW2_EXT_CRYPTO:
        return take_crypto(d, e);
    case QCOW2_EXT_BITMAPS:
        return take_bitmaps(d, e);
    default: /* kept as it is by everybody who rewrites the header */
        return 0;
    }
}

static int
decode_exts(struct decoding *d)
{
    const uint64_t end = ext_area_end(d);
    uint64_t at = d->h->header_len;

    while (at < end) {
        struct qcow2_ext e = {.off = (uint32_t)at};
        struct qcow2_disk_ext raw = {0};

        /* the last one may be cut off by the end of the area, which is an error below */
        memcpy(&raw, d->buf + at, qm_min(sizeof raw, d->cluster_size - at));
        e.type = be32_get(&raw.type);
        e.len = be32_get(&raw.len);
        at += sizeof raw;
        if (at > end || e.len > end - at)
            return CORRUPT(d, e.off,
                           "header extension 0x%08" PRIx32 " of %" PRIu32
                           " bytes does not fit into the header: " ADVICE,
                           e.type, e.len);
        if (e.type == QCOW2_EXT_END) {
            d->h->ext_end = e.off;
            return 0;
        }
        if (take_ext(d, &e) < 0)
            return -1;
        at += qm_align_up(e.len, 8);
    }
    d->h->ext_end = (uint32_t)qm_min(at, qm_max(end, d->h->header_len));
    return 0;
}

static int
check_exts(const struct decoding *d)
{
    const struct qcow2_header *h = d->h;

    if (h->crypt_method == CRYPT_LUKS && !d->has_crypto_ext)
        return CORRUPT(d, FIELD(crypt_method), "LUKS image without an encryption header: " ADVICE);
    if ((h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA) && !(h->incompatible & QCOW2_INCOMPAT_DATA_FILE))
        return CORRUPT(d, FIELD(autoclear),
                       "the header promises a raw external data file but has none: " ADVICE);
    return 0;
}

static int
decode_backing_name(const struct decoding *d)
{
    const struct qcow2_header *h = d->h;

    if (!h->backing_off)
        return 0;
    if (h->backing_len > QCOW2_MAX_BACKING_NAME ||
        h->backing_len > d->cluster_size - h->backing_off)
        return CORRUPT(d, FIELD(backing_len),
                       "backing file name of %" PRIu32 " bytes is too long: " ADVICE,
                       h->backing_len);
    return take_string(d, h->backing_off, h->backing_len, &d->h->backing_name);
}

static int
decode_all(struct decoding *d)
{
    struct qcow2_disk_header raw;

    memcpy(&raw, d->buf, sizeof raw);
    if (be32_get(&raw.magic) != QCOW2_MAGIC)
        return CORRUPT(d, 0, "this is no qcow2 image: give the right format");
    load_fields(d->h, &raw);
    if (check_start(d) < 0)
        return -1;
    d->cluster_size = 1ull << d->h->cluster_bits;
    if (check_features(d) < 0 || check_tables(d) < 0 || decode_exts(d) < 0 || check_exts(d) < 0)
        return -1;
    return decode_backing_name(d);
}

int
qcow2_header_decode(const char *file, const void *buf, size_t len, unsigned flags,
                    struct qcow2_header *out, struct qmeld_error *err)
{
    struct decoding d = {.file = file, .buf = buf, .flags = flags, .h = out, .err = err};

    memset(out, 0, sizeof *out);
    if (len < sizeof(struct qcow2_disk_header) || len < qcow2_header_area(buf, len))
        return CORRUPT(&d, 0, "the file ends inside the qcow2 header: " ADVICE);
    if (decode_all(&d) < 0) {
        qcow2_header_release(out);
        return -1;
    }
    return 0;
}

void
qcow2_header_release(struct qcow2_header *h)
{
    free(h->backing_name);
    free(h->backing_format);
    free(h->data_file);
    qm_vec_release(&h->exts);
    memset(h, 0, sizeof *h);
}

void
qcow2_header_encode(const struct qcow2_header *h, struct qcow2_disk_header *buf)
{
    be32_put(&buf->magic, QCOW2_MAGIC);
    be32_put(&buf->version, h->version);
    be64_put(&buf->backing_off, h->backing_off);
    be32_put(&buf->backing_len, h->backing_len);
    be32_put(&buf->cluster_bits, h->cluster_bits);
    be64_put(&buf->size, h->size);
    be32_put(&buf->crypt_method, h->crypt_method);
    be32_put(&buf->l1_entries, h->l1_entries);
    be64_put(&buf->l1_off, h->l1_off);
    be64_put(&buf->reftable_off, h->reftable_off);
    be32_put(&buf->reftable_clusters, h->reftable_clusters);
    be32_put(&buf->n_snapshots, h->n_snapshots);
    be64_put(&buf->snapshots_off, h->snapshots_off);
    if (h->version < 3)
        return;
    be64_put(&buf->incompatible, h->incompatible);
    be64_put(&buf->compatible, h->compatible);
    be64_put(&buf->autoclear, h->autoclear);
    be32_put(&buf->refcount_order, h->refcount_order);
    be32_put(&buf->header_len, h->header_len);
    if (h->header_len > FIELD(compression)) /* behind a shorter header stands something else */
        buf->compression = (unsigned char)h->compression;
}

/* ---- geometry ---- */

struct qcow2_geo
qcow2_geo_of(const struct qcow2_header *h)
{
    const bool extended = h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2;
    struct qcow2_geo g = {
        .version = h->version,
        .cluster_bits = h->cluster_bits,
        .refcount_order = h->refcount_order,
        .extended_l2 = extended,
        .data_file = h->incompatible & QCOW2_INCOMPAT_DATA_FILE,
        .cluster_size = 1ull << h->cluster_bits,
        .l2_entry_len = extended ? 16 : 8,
        .l2_bits = h->cluster_bits - (extended ? 4 : 3),
        .subclusters = extended ? 32 : 1,
        .refblock_bits = h->cluster_bits + 3 - h->refcount_order,
    };

    g.subcluster_size = g.cluster_size / g.subclusters;
    return g;
}

uint64_t
qcow2_l1_needed(const struct qcow2_geo *g, uint64_t size)
{
    return qm_div_up(size, qcow2_l2_span(g));
}

/* ---- L2 entries ---- */

/* specification, "Compressed Clusters Descriptor": bits of the offset */
static uint32_t
offset_bits(const struct qcow2_geo *g)
{
    return 70 - g->cluster_bits;
}

static void
decode_compressed(const struct qcow2_geo *g, uint64_t word0, struct qcow2_l2 *out)
{
    const uint32_t x = offset_bits(g);
    const uint64_t sectors = (word0 >> x & ((1ull << (62 - x)) - 1)) + 1;

    out->kind = QCOW2_L2_COMPRESSED;
    out->has_host = true;
    out->host = qm_host(word0 & ((1ull << x) - 1));
    out->payload_len = (uint32_t)(sectors * 512 - out->host.h % 512);
}

enum qcow2_l2_verdict
qcow2_l2_decode(const struct qcow2_geo *g, uint64_t word0, uint64_t word1, struct qcow2_l2 *out)
{
    *out = (struct qcow2_l2){.kind = QCOW2_L2_STANDARD, .copied = word0 & QCOW2_COPIED};
    if (word0 & QCOW2_COMPRESSED) {
        decode_compressed(g, word0, out);
        return QCOW2_L2_OK;
    }
    out->host = qm_host(word0 & QCOW2_OFFSET_MASK);
    out->has_host = out->host.h != 0;
    if (g->extended_l2) {
        /* an external data file may use its cluster 0, then only COPIED tells */
        out->has_host |= g->data_file && out->copied;
        out->alloc = (uint32_t)word1;
        out->zero = (uint32_t)(word1 >> 32);
        if ((out->alloc & out->zero) || (out->alloc && !out->has_host))
            return QCOW2_L2_BAD_BITMAP;
    } else if (word0 & QCOW2_ZERO) {
        out->zero = 1;
        if (g->version < 3)
            return QCOW2_L2_ZERO_IN_V2;
    } else {
        out->has_host |= g->data_file && out->copied;
        out->alloc = out->has_host;
    }
    return out->host.h & (g->cluster_size - 1) ? QCOW2_L2_UNALIGNED : QCOW2_L2_OK;
}

enum qcow2_l2_verdict
qcow2_l2_check_place(const struct qcow2_geo *g, const struct qcow2_l2 *e, uint64_t guest_cluster)
{
    if (!g->data_file || !e->has_host)
        return QCOW2_L2_OK;
    return e->kind == QCOW2_L2_STANDARD && e->host.h == guest_cluster << g->cluster_bits
               ? QCOW2_L2_OK
               : QCOW2_L2_MISPLACED;
}

bool
qcow2_l2_fits(const struct qcow2_geo *g, const struct qcow2_l2 *e)
{
    /* an offset has 56 bits at most (specification, "Cluster mapping"; qemu 7.2, QCOW_MAX_CLUSTER_OFFSET) */
    return e->host.h < 1ull << qm_min(offset_bits(g), 56);
}

void
qcow2_l2_encode(const struct qcow2_geo *g, const struct qcow2_l2 *e, uint64_t *out_word0,
                uint64_t *out_word1)
{
    const uint64_t copied = e->copied ? QCOW2_COPIED : 0;

    *out_word1 = 0;
    if (e->kind == QCOW2_L2_COMPRESSED) {
        const uint32_t x = offset_bits(g);
        const uint64_t more = (e->host.h % 512 + e->payload_len - 1) / 512;

        assert(e->payload_len > 0 && e->host.h < 1ull << x && more < 1ull << (62 - x));
        *out_word0 = QCOW2_COMPRESSED | copied | more << x | e->host.h;
        return;
    }
    assert(!e->has_host || !(e->host.h & ~QCOW2_OFFSET_MASK));
    *out_word0 = (e->has_host ? e->host.h : 0) | copied;
    if (g->extended_l2)
        *out_word1 = (uint64_t)e->zero << 32 | e->alloc;
    else if (e->zero)
        *out_word0 |= QCOW2_ZERO;
}

/* ---- refcounts ---- */

uint64_t
qcow2_refcount_get(const void *block, uint32_t order, uint64_t idx)
{
    const unsigned char *b = block;

    if (order < 3) {
        const unsigned width = 1u << order;
        const unsigned shift = (unsigned)(idx * width % 8);

        return (unsigned)b[idx * width / 8] >> shift & ((1u << width) - 1);
    }
    switch (order) {
    case 3:
        return b[idx];
    case 4:
        return be16_get((const be16 *)b + idx);
    case 5:
        return be32_get((const be32 *)b + idx);
    default:
        return be64_get((const be64 *)b + idx);
    }
}

void
qcow2_refcount_put(void *block, uint32_t order, uint64_t idx, uint64_t value)
{
    unsigned char *b = block;

    if (order < 3) {
        const unsigned width = 1u << order;
        const unsigned shift = (unsigned)(idx * width % 8);
        const unsigned mask = ((1u << width) - 1) << shift;
        unsigned char *p = &b[idx * width / 8];

        *p = (unsigned char)((*p & ~mask) | ((unsigned)value << shift & mask));
        return;
    }
    switch (order) {
    case 3:
        b[idx] = (unsigned char)value;
        break;
    case 4:
        be16_put((be16 *)b + idx, (uint16_t)value);
        break;
    case 5:
        be32_put((be32 *)b + idx, (uint32_t)value);
        break;
    default:
        be64_put((be64 *)b + idx, value);
    }
}
