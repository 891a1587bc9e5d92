/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * image.h - one image, seen as the guest bytes it answers for.
 *
 * Why.  Whatever the format, a layer of a chain does one thing: for a guest offset it says
 * "not mine", "zeros" or "here are the bytes".  Everything above this header works on those
 * answers (struct qm_extent) and knows no tables.
 *
 * Calls      qm_image_open; qm_image_next over ascending ranges; qm_extent_read for bytes;
 *            qm_image_close.
 * Threads    qm_image_next uses caches of the image: one thread at a time.  qm_extent_read
 *            may run in many threads, each with its own qm_codec.
 * Ownership  The image owns its file from a successful qm_image_open on, and its data file from the
 *            moment somebody sets it.
 * Units      Bytes.  size is the virtual size in bytes.
 * Errors     0 or -1 with *err: IO, CORRUPT, UNSUPPORTED, NOMEM, USAGE.
 */
#ifndef QM_IMAGE_H
#define QM_IMAGE_H

#include "addr.h"
#include "err.h"
#include "io.h"
#include "lock.h"

struct qm_image;
struct qm_codec;

enum qm_kind {
    QM_ABSENT,     /* this layer has nothing; look below */
    QM_ZERO,       /* reads as zeros, whatever is below */
    QM_DATA,       /* bytes in the file at .host, as they are */
    QM_COMPRESSED, /* part of a compressed cluster */
};

/* Salvage: what a layer has lost, and where the loss is. */
enum qm_lost {
    QM_LOST_NOTHING = 0,
    QM_LOST_TABLE,  /* a table that cannot be read, or makes no sense */
    QM_LOST_DATA,   /* bytes that cannot be read */
    QM_LOST_STREAM, /* a compressed cluster that does not inflate */
    QM_LOST_BELOW,  /* a backing file that is not there */
};

struct qm_extent {
    guest_off guest;
    uint64_t len;
    enum qm_kind kind;
    bool has_host; /* DATA and COMPRESSED always; ZERO if clusters are allocated for it; ABSENT if
                    * a subcluster is unallocated inside an allocated cluster */
    host_off host; /* DATA, ZERO, ABSENT: of .guest; COMPRESSED: of the payload's first byte */
    enum qm_lost lost; /* only from who goes on past losses (map.h, stream.h); .kind is ZERO then */
    /* COMPRESSED only: */
    uint32_t payload_len; /* bytes of file the payload may take, at most (sector granular) */
    uint32_t skip;        /* .guest lies so many bytes into the inflated cluster */
};

struct qm_image_ops {
    const char *format; /* "qcow2", "raw" */
    bool pad_data;      /* bytes of DATA extents past the file's end are zeros, not an error */
    int (*next)(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
                struct qmeld_error *err);
    /* NULL if the format has no compressed extents */
    int (*inflate)(const struct qm_image *img, const struct qm_extent *ext, struct qm_codec *codec,
                   void *cluster, struct qmeld_error *err);
    void (*forget)(struct qm_image *img);
    void (*free)(struct qm_image *img); /* all but the file */
};

struct qm_image {
    const struct qm_image_ops *ops;
    struct qm_file *file;
    struct qm_file
        *data;     /* what .host of DATA, ZERO and ABSENT extents is an offset in: file itself, or
                            * the external data file; COMPRESSED extents always lie in file */
    uint64_t size; /* virtual size; raw: file length rounded up to 512 (QEMU does) */
    uint64_t cluster_size; /* raw: 0 */
    char *backing_name;    /* as stored; NULL: none */
    char *backing_format;  /* as stored; NULL: none */
    struct qm_cipher
        *cipher; /* NULL: DATA extents are the guest's bytes as they are; else they are encrypted,
                            * and qm_extent_read alone knows what they read as (cipher.h) */
    bool below_lost; /* salvage: it had a backing file, and nobody knows which */
};

/* Opens file as format ("qcow2", "raw"); NULL: by content: qcow2 if it starts with the magic,
 * else raw.  An unknown format, and formats recognised by content that we cannot read (VMDK,
 * VDI, VHD, VHDX, QED, qcow1), are UNSUPPORTED with a sentence that names them.  On failure
 * the file still belongs to the caller. */
int qm_image_open(struct qm_file *file, const char *format, struct qm_image **out,
                  struct qmeld_error *err) QM_CHECK;

/* The same for who wants to save what can be read: of a damaged qcow2 header what reading does not need is told to fn (may
 * be NULL) and left out, and what a file that was cut off does not have is lost (CORRUPT from qm_image_next), where
 * others read zeros.  Such an image must never be written to. */
int qm_image_open_damaged(struct qm_file *file, const char *format, qmeld_finding_fn *fn,
                          void *opaque, struct qm_image **out, struct qmeld_error *err) QM_CHECK;

/* Closes image and file (read-only or after an error).  NULL is fine. */
void qm_image_close(struct qm_image *img);

/* file is the image's file, or its data file. */
bool qm_image_is_in(const struct qm_image *img, const struct qm_file *file);

/* What is done to an image is done to its data file, too: these are qm_lock_take, qm_file_make_writable and
 * qm_sync of both, data first: what entries point at is durable before they can be. */
int qm_image_lock(struct qm_image *img, enum qm_lock_role role, struct qmeld_error *err) QM_CHECK;
int qm_image_make_writable(struct qm_image *img, struct qmeld_error *err) QM_CHECK;
int qm_image_sync(struct qm_image *img, struct qmeld_error *err) QM_CHECK;

/* True if the first bytes of the file are a qcow2 header. */
int qm_image_looks_like_qcow2(const struct qm_file *file, bool *out, struct qmeld_error *err)
    QM_CHECK;

/* *out becomes "qcow2" or "raw", by content.  What has the signature of another format is refused, UNSUPPORTED, with
 * the command that converts it. */
int qm_image_probe(const struct qm_file *file, const char **out, struct qmeld_error *err) QM_CHECK;

/* The extent at `from`: starts there, 1 <= out->len <= len, neighbours of one kind joined as far
 * as that costs no further table.  from + len <= img->size, len > 0.  Cheap where the image
 * has no table: an ABSENT run over unallocated tables is returned whole. */
int qm_image_next(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
                  struct qmeld_error *err) QM_CHECK;

/* Forget cached tables: somebody (we, usually) changed them on disk. */
void qm_image_forget(struct qm_image *img);

/* Copies the bytes of ext (whole: ext->len) to buf, decrypted; not for ABSENT.  codec is only used
 * for COMPRESSED and may be NULL otherwise.  qcow2: bytes past the file's end read as zeros (QEMU
 * does); raw: a file that ends before an extent it had is IO. */
int qm_extent_read(const struct qm_image *img, const struct qm_extent *ext, struct qm_codec *codec,
                   void *buf, struct qmeld_error *err) QM_CHECK;

/* Decrypts in place what was read from img->data at the place of ext, which is DATA and whole sectors; nothing if the
 * image is not encrypted. */
int qm_extent_decrypt(const struct qm_image *img, const struct qm_extent *ext, void *buf,
                      struct qmeld_error *err) QM_CHECK;

/* ext reduced to its part [skip, skip + len) */
struct qm_extent qm_extent_part(const struct qm_extent *ext, uint64_t skip, uint64_t len);

/* ---- codec: one thread's state for inflating and deflating clusters ---- */

enum qm_compression { QM_ZLIB = 0, QM_ZSTD = 1 }; /* the values of the qcow2 header */

/* NULL when memory is out. */
struct qm_codec *qm_codec_new(void);
void qm_codec_free(struct qm_codec *codec); /* NULL is fine */

/* Inflates src into exactly out_len bytes.  Tolerates what QEMU tolerates (a longer stream,
 * trailing bytes, several zstd frames) and refuses what it refuses (a shorter stream):
 * -1 without an error text, as only the caller knows the place. */
int qm_codec_inflate(struct qm_codec *codec, enum qm_compression type, const void *src,
                     size_t src_len, void *out, size_t out_len) QM_CHECK;

/* ZLIB: 1 to 9 as in zlib; 1 to 3 are done by ISA-L where it is built in: ten times as fast, and
 * about as small.  ZSTD: 1 to 19.  0: what QM_CODEC_*_LEVEL say. */
#define QM_CODEC_ZLIB_LEVEL 2
#define QM_CODEC_ZSTD_LEVEL 3

/* The highest level of a type. */
int qm_codec_level_max(enum qm_compression type);

/* Deflates a cluster so that QEMU can read it: raw deflate with a window of 4 KiB, or one zstd frame
 * that tells its size.  0: *out_len bytes are in out, or *out_len is 0, as it does not become
 * shorter than out_cap, which is no failure: store it plain.  -1: out of memory.  The bytes depend
 * on the level, the build and the versions of the libraries, and on nothing else. */
int qm_codec_deflate(struct qm_codec *codec, enum qm_compression type, int level, const void *src,
                     size_t src_len, void *out, size_t out_cap, size_t *out_len) QM_CHECK;

/* From here on zlib alone, which is the reference: for tests. */
void qm_codec_use_zlib(struct qm_codec *codec);

/* A payload area for inflate, at least len bytes, owned by the codec; NULL: out of memory. */
void *qm_codec_scratch(struct qm_codec *codec, size_t len);

/* A cluster area beside it, likewise. */
void *qm_codec_cluster(struct qm_codec *codec, size_t len);

#endif
