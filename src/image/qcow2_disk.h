/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_disk.h - the qcow2 format as bytes: structures, limits, decoding, encoding.
 *
 * Why.  Nothing undecoded leaves this module.  Each structure has one pure function that turns
 * bytes into host form and checks them, with each limit beside its reason.  No I/O and,
 * except for the strings of a header, no allocation.
 *
 * Source     The qcow2 specification (QEMU, docs/interop/qcow2.txt), sections named below;
 *            limits that are QEMU's, not the format's, say so.
 * Errors     Decoders that can fail return -1 with *err filled (CORRUPT or UNSUPPORTED); the
 *            file name in messages is the `file` argument.
 */
#ifndef QM_QCOW2_DISK_H
#define QM_QCOW2_DISK_H

#include "addr.h"
#include "bytes.h"
#include "err.h"
#include "vec.h"

#include <assert.h>
#include <stddef.h>

#define QCOW2_MAGIC            0x514649fbu /* "QFI\xfb" */
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21 /* QEMU's limit: 2 MiB */

#define QCOW2_INCOMPAT_DIRTY       (1ull << 0)
#define QCOW2_INCOMPAT_CORRUPT     (1ull << 1)
#define QCOW2_INCOMPAT_DATA_FILE   (1ull << 2)
#define QCOW2_INCOMPAT_COMPRESSION (1ull << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (1ull << 4)
#define QCOW2_INCOMPAT_KNOWN       0x1full
#define QCOW2_COMPAT_LAZY          (1ull << 0)
#define QCOW2_AUTOCLEAR_BITMAPS    (1ull << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA   (1ull << 1)
#define QCOW2_AUTOCLEAR_KNOWN      0x3ull

#define QCOW2_EXT_END            0x00000000u
#define QCOW2_EXT_BACKING_FORMAT 0xe2792acau
#define QCOW2_EXT_FEATURES       0x6803f857u
#define QCOW2_EXT_CRYPTO         0x0537be77u
#define QCOW2_EXT_BITMAPS        0x23852875u
#define QCOW2_EXT_DATA_FILE      0x44415441u

#define QCOW2_MAX_L1_BYTES       (32u << 20)    /* QEMU: 4 Mi entries; 2 EiB at 2 MiB clusters */
#define QCOW2_MAX_REFTABLE_BYTES (8u << 20)     /* QEMU */
#define QCOW2_MAX_SNAPSHOTS      65536u         /* QEMU */
#define QCOW2_MAX_SNAPSHOT_TABLE (64u << 20)    /* QEMU */
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024u          /* QEMU */
#define QCOW2_MAX_BACKING_NAME   1023u          /* specification, "Header" */
#define QCOW2_MAX_BACKING_FORMAT 15u            /* QEMU */
#define QCOW2_MAX_DATA_FILE_NAME 4096u          /* ours: a longer path cannot be opened */
#define QCOW2_MAX_EXTENSIONS     4096u          /* ours: a chain has 1,000 headers in memory */
#define QCOW2_MAX_BITMAPS        65535u         /* specification, "Bitmaps extension" */
#define QCOW2_MAX_BITMAP_DIR     67107840u      /* specification / QEMU */
#define QCOW2_MAX_BITMAP_BYTES   (512ull << 20) /* QEMU: clusters of one bitmap */
#define QCOW2_OFFSET_MASK        0x00fffffffffffe00ull /* bits 9-55 */
#define QCOW2_L2_STD_RESERVED    0x3f000000000001feull /* bits 1-8 and 56-61 */
#define QCOW2_COPIED             (1ull << 63)
#define QCOW2_COMPRESSED         (1ull << 62)
#define QCOW2_ZERO               (1ull << 0)
#define QCOW2_V2_HEADER_LEN      72u
#define QCOW2_V3_HEADER_LEN      104u /* the least; QEMU writes 112 */

/* specification, "Header" */
struct qcow2_disk_header {
    be32 magic;                /*   0 */
    be32 version;              /*   4 */
    be64 backing_off;          /*   8 */
    be32 backing_len;          /*  16 */
    be32 cluster_bits;         /*  20 */
    be64 size;                 /*  24 */
    be32 crypt_method;         /*  32 */
    be32 l1_entries;           /*  36 */
    be64 l1_off;               /*  40 */
    be64 reftable_off;         /*  48 */
    be32 reftable_clusters;    /* 56 */
    be32 n_snapshots;          /*  60 */
    be64 snapshots_off;        /*  64 */
    be64 incompatible;         /*  72, version 3 from here */
    be64 compatible;           /*  80 */
    be64 autoclear;            /*  88 */
    be32 refcount_order;       /*  96 */
    be32 header_len;           /* 100 */
    unsigned char compression; /* 104 */
    unsigned char pad[7];
};
static_assert(offsetof(struct qcow2_disk_header, size) == 24, "spec offset");
static_assert(offsetof(struct qcow2_disk_header, l1_off) == 40, "spec offset");
static_assert(offsetof(struct qcow2_disk_header, snapshots_off) == 64, "spec offset");
static_assert(offsetof(struct qcow2_disk_header, incompatible) == 72, "spec offset");
static_assert(offsetof(struct qcow2_disk_header, header_len) == 100, "spec offset");
static_assert(offsetof(struct qcow2_disk_header, compression) == 104, "spec offset");
static_assert(sizeof(struct qcow2_disk_header) == 112, "spec size");

/* specification, "Header extensions": type, length, data padded to 8 */
struct qcow2_disk_ext {
    be32 type;
    be32 len;
};

/* One header extension: where it is and what kind.  Data is at off + 8 in the header cluster. */
struct qcow2_ext {
    uint32_t type;
    uint32_t len;
    uint32_t off; /* of the type field, in the file */
};

/* The header in host form, checked. */
struct qcow2_header {
    uint32_t version;
    uint64_t backing_off; /* 0: none */
    uint32_t backing_len;
    uint32_t cluster_bits;
    uint64_t size; /* rounded down to 512, as QEMU does */
    uint32_t crypt_method;
    uint32_t l1_entries;
    uint64_t l1_off;
    uint64_t reftable_off;
    uint32_t reftable_clusters;
    uint32_t n_snapshots;
    uint64_t snapshots_off;
    uint64_t incompatible; /* 0 in version 2, as the next two */
    uint64_t compatible;
    uint64_t autoclear;
    uint32_t refcount_order; /* 4 in version 2 */
    uint32_t header_len;     /* 72 in version 2 */
    uint32_t compression;    /* enum qm_compression */
    /* from the extensions; strings owned, NUL-terminated */
    char *backing_name;   /* NULL: none */
    char *backing_format; /* NULL: none */
    char *data_file;      /* NULL: none */
    uint32_t ext_end;     /* offset of the end marker, or of the area's end if it has none */
    bool has_bitmaps;     /* the bitmaps extension is there, well formed, and autoclear bit 0 set */
    uint32_t n_bitmaps;
    uint64_t bitmap_dir_off;
    uint64_t bitmap_dir_len;
    uint64_t crypto_off; /* LUKS: where its header and key material are */
    uint64_t crypto_len;
    QM_VEC(struct qcow2_ext) exts; /* all but the end marker, in file order */
};

/* How much of the file the header may take, from its first 24 bytes or more; USAGE-free: anything
 * odd is found again by qcow2_header_decode.  At least 512, at most 2 MiB. */
size_t qcow2_header_area(const void *first, size_t len);

enum qcow2_decode_flags {
    QCOW2_DECODE_STRICT = 0,
    QCOW2_DECODE_FOR_CHECK = 1, /* what `qemu-img check` lets through: no refcount table, a snapshot
                                 * table that is not aligned */
    QCOW2_DECODE_SALVAGE =
        2, /* an L1 table that is too short for the disk; of qm_qcow2_open, see there */
};

/* Decodes and validates buf, the first len bytes of the file (the header area, zero padded if the
 * file is shorter), in QEMU's order of checks (qemu 7.2, block/qcow2.c, qcow2_do_open).  On
 * failure *out holds nothing.  Features we cannot handle yet (encryption, data files) decode. */
int qcow2_header_decode(const char *file, const void *buf, size_t len, unsigned flags,
                        struct qcow2_header *out, struct qmeld_error *err) QM_CHECK;
void qcow2_header_release(struct qcow2_header *h);

/* Encodes the fixed fields into buf, which holds the bytes that stand there now: what a header of
 * h->header_len bytes does not reach (an old version 3 header ends at 104, version 2 at 72)
 * and the padding stay. */
void qcow2_header_encode(const struct qcow2_header *h, struct qcow2_disk_header *buf);

/* What the tables of one image look like. */
struct qcow2_geo {
    uint32_t version;
    uint32_t cluster_bits;
    uint32_t refcount_order;
    bool extended_l2;
    bool data_file;
    /* derived */
    uint64_t cluster_size;
    uint32_t l2_entry_len;    /* 8 or 16 */
    uint32_t l2_bits;         /* log2 of entries in an L2 table */
    uint32_t subclusters;     /* units of a cluster: 32 or 1 */
    uint64_t subcluster_size; /* cluster_size / subclusters */
    uint64_t refblock_bits;   /* log2 of refcounts in a refcount block */
};

struct qcow2_geo qcow2_geo_of(const struct qcow2_header *h);

/* Guest bytes one L2 table stands for. */
static inline uint64_t
qcow2_l2_span(const struct qcow2_geo *g)
{
    return g->cluster_size << g->l2_bits;
}

/* L1 entries needed for a virtual size. */
uint64_t qcow2_l1_needed(const struct qcow2_geo *g, uint64_t size);

/* specification, "Cluster mapping": one L2 entry in host form.  alloc and zero have one bit a
 * subcluster (bit 0 = the first); images without extended L2 entries use bit 0 only. */
enum qcow2_l2_kind { QCOW2_L2_STANDARD, QCOW2_L2_COMPRESSED };
struct qcow2_l2 {
    enum qcow2_l2_kind kind;
    bool copied;          /* refcount is exactly 1, if the image tells the truth */
    bool has_host;        /* STANDARD: a host cluster is set */
    host_off host;        /* STANDARD: cluster; COMPRESSED: first byte of the payload */
    uint32_t alloc;       /* STANDARD: subclusters that are data in the host cluster */
    uint32_t zero;        /* STANDARD: subclusters that read as zeros */
    uint32_t payload_len; /* COMPRESSED: bytes up to the end of the last sector */
};

enum qcow2_l2_verdict {
    QCOW2_L2_OK,
    QCOW2_L2_UNALIGNED,  /* host offset not cluster aligned */
    QCOW2_L2_ZERO_IN_V2, /* zero flag in a version 2 image */
    QCOW2_L2_BAD_BITMAP, /* alloc and zero of one subcluster, or alloc without a cluster */
    QCOW2_L2_MISPLACED,  /* only from qcow2_l2_check_place */
};

/* Decodes; *out is filled as far as it goes even where the verdict is not OK.  word1 is
 * ignored without extended L2 entries, and of compressed ones.  Reserved bits are ignored, as
 * QEMU does on reading; who checks looks at them by himself. */
enum qcow2_l2_verdict qcow2_l2_decode(const struct qcow2_geo *g, uint64_t word0, uint64_t word1,
                                      struct qcow2_l2 *out);

/* With an external data file a cluster lies at its guest offset, and is never compressed (qemu 7.2,
 * block/qcow2-cluster.c, qcow2_get_host_offset): MISPLACED, or OK; always OK without. */
enum qcow2_l2_verdict qcow2_l2_check_place(const struct qcow2_geo *g, const struct qcow2_l2 *e,
                                           uint64_t guest_cluster);

/* True if the host offset of a COMPRESSED entry has room in it. */
bool qcow2_l2_fits(const struct qcow2_geo *g, const struct qcow2_l2 *e);

/* Encodes a STANDARD or COMPRESSED entry. */
void qcow2_l2_encode(const struct qcow2_geo *g, const struct qcow2_l2 *e, uint64_t *out_word0,
                     uint64_t *out_word1);

/* specification, "Refcounts": value of entry idx of a refcount block, and setting it.  Sub-byte
 * widths start at the least significant bit (QEMU). */
uint64_t qcow2_refcount_get(const void *block, uint32_t order, uint64_t idx);
void qcow2_refcount_put(void *block, uint32_t order, uint64_t idx, uint64_t value);
static inline uint64_t
qcow2_refcount_max(uint32_t order)
{
    return order == 6 ? UINT64_MAX >> 1 /* QEMU keeps them signed */ : (1ull << (1u << order)) - 1;
}

/* specification, "Snapshots" */
struct qcow2_disk_snapshot {
    be64 l1_off;     /*  0 */
    be32 l1_entries; /*  8 */
    be16 id_len;     /* 12 */
    be16 name_len;   /* 14 */
    be32 date_sec;   /* 16 */
    be32 date_nsec;  /* 20 */
    be64 vm_clock;   /* 24 */
    be32 vm_state;   /* 32 */
    be32 extra_len;  /* 36 */
};
static_assert(sizeof(struct qcow2_disk_snapshot) == 40, "spec size");

/* specification, "Bitmap directory" */
struct qcow2_disk_bitmap {
    be64 table_off;     /*  0 */
    be32 table_entries; /*  8 */
    be32 flags;         /* 12 */
    unsigned char type; /* 16 */
    unsigned char granularity_bits;
    be16 name_len;  /* 18 */
    be32 extra_len; /* 20 */
};
static_assert(sizeof(struct qcow2_disk_bitmap) == 24, "spec size");
#define QCOW2_BITMAP_IN_USE (1u << 0)
#define QCOW2_BITMAP_AUTO   (1u << 1)
#define QCOW2_BITMAP_EXTRA_COMPATIBLE                                                              \
    (1u << 2) /* beside extra data: who does not know that may use the bitmap all the same */

#endif
