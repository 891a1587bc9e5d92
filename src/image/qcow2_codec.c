/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_codec.c - inflate or deflate one compressed cluster.
 *
 * Why.  A payload's length is known to the sector only, and old writers were not strict, so what
 * counts as a good cluster is what QEMU takes (7.2, block/qcow2-threads.c): the cluster is filled
 * exactly.  One codec serves one thread and keeps its state and its areas between clusters.
 */
#include "image.h"
#include "qcow2_igzip.h"

#include <limits.h>
#include <zlib.h>
#include <zstd.h>
#include <zstd_errors.h>

struct area {
    void *at;
    size_t len;
};

struct qm_codec {
    z_stream inflater;
    bool has_inflater;
    z_stream deflater;
    int deflater_level;     /* 0: there is no deflater */
    struct qm_igzip *igzip; /* NULL until it is needed, and where there is no ISA-L */
    bool no_igzip;
    ZSTD_DCtx *zstd; /* NULL until the first zstd cluster */
    ZSTD_CCtx *zstd_out;
    struct area scratch;
    struct area cluster;
};

struct qm_codec *
qm_codec_new(void)
{
    return calloc(1, sizeof(struct qm_codec));
}

void
qm_codec_free(struct qm_codec *codec)
{
    if (!codec)
        return;
    if (codec->has_inflater)
        inflateEnd(&codec->inflater);
    if (codec->deflater_level)
        deflateEnd(&codec->deflater);
    qm_igzip_free(codec->igzip);
    ZSTD_freeDCtx(codec->zstd);
    ZSTD_freeCCtx(codec->zstd_out);
    free(codec->scratch.at);
    free(codec->cluster.at);
    free(codec);
}

static void *
ensure_area(struct area *a, size_t len)
{
    if (len > a->len) {
        free(a->at);
        a->at = malloc(len);
        a->len = a->at ? len : 0;
    }
    return a->at;
}

void *
qm_codec_scratch(struct qm_codec *codec, size_t len)
{
    return ensure_area(&codec->scratch, len);
}

void *
qm_codec_cluster(struct qm_codec *codec, size_t len)
{
    return ensure_area(&codec->cluster, len);
}

void
qm_codec_use_zlib(struct qm_codec *codec)
{
    codec->no_igzip = true;
}

/* ---- inflate ---- */

/* Raw deflate.  QEMU opens its window with -12, but as the output is one buffer, references
 * reach further back than a window there, too: -15 takes the same streams. */
static int
inflate_zlib(struct qm_codec *codec, const void *src, size_t src_len, void *out, size_t out_len)
{
    z_stream *z = &codec->inflater;
    int rc;

    if (src_len > UINT_MAX || out_len > UINT_MAX)
        return -1;
    if (codec->has_inflater ? inflateReset(z) != Z_OK : inflateInit2(z, -15) != Z_OK)
        return -1;
    codec->has_inflater = true;
    z->next_in = (Bytef *)(uintptr_t)src; /* zlib reads only, but its type does not say so */
    z->avail_in = (uInt)src_len;
    z->next_out = out;
    z->avail_out = (uInt)out_len;
    rc = inflate(z, Z_FINISH);
    /* Z_BUF_ERROR with a full buffer: a longer stream, or one without its end; QEMU takes both */
    return (rc == Z_STREAM_END || rc == Z_BUF_ERROR) && z->avail_out == 0 ? 0 : -1;
}

/* Frame after frame until the cluster is full; a frame that does not fit, or is cut, is an error.
 * Frames are inflated whole, not streamed: a stream's window is as large as the frame's header
 * claims (128 MiB), and the header is a stranger's. */
static int
inflate_zstd(struct qm_codec *codec, const void *src, size_t src_len, void *out, size_t out_len)
{
    const unsigned char *in = src;
    size_t done = 0;

    if (!codec->zstd)
        codec->zstd = ZSTD_createDCtx();
    if (!codec->zstd)
        return -1;
    while (done < out_len) {
        const size_t frame = ZSTD_findFrameCompressedSize(in, src_len);
        size_t got;

        if (ZSTD_isError(frame) || frame == 0)
            return -1;
        got = ZSTD_decompressDCtx(codec->zstd, (char *)out + done, out_len - done, in, frame);
        if (ZSTD_isError(got))
            return -1;
        done += got;
        in += frame;
        src_len -= frame;
    }
    return 0;
}

int
qm_codec_inflate(struct qm_codec *codec, enum qm_compression type, const void *src, size_t src_len,
                 void *out, size_t out_len)
{
    switch (type) {
    case QM_ZLIB:
        return inflate_zlib(codec, src, src_len, out, out_len);
    case QM_ZSTD:
        return inflate_zstd(codec, src, src_len, out, out_len);
    }
    return -1;
}

/* ---- deflate ---- */

/* NULL: zlib it is. */
static struct qm_igzip *
ensure_igzip(struct qm_codec *codec)
{
    if (!codec->igzip && !codec->no_igzip) {
        codec->igzip = qm_igzip_new();
        codec->no_igzip = !codec->igzip;
    }
    return codec->no_igzip ? NULL : codec->igzip;
}

static int
deflate_zlib(struct qm_codec *codec, int level, const void *src, size_t src_len, void *out,
             size_t out_cap, size_t *out_len)
{
    z_stream *z = &codec->deflater;

    if (src_len > UINT_MAX || out_cap > UINT_MAX)
        return 0;
    if (codec->deflater_level != level) {
        if (codec->deflater_level)
            deflateEnd(z);
        codec->deflater_level = 0;
        *z = (z_stream){0};
        if (deflateInit2(z, level, Z_DEFLATED, -QM_DEFLATE_WINDOW_BITS, MAX_MEM_LEVEL,
                         Z_DEFAULT_STRATEGY) != Z_OK)
            return -1;
        codec->deflater_level = level;
    } else if (deflateReset(z) != Z_OK) {
        return -1;
    }
    z->next_in = (Bytef *)(uintptr_t)src;
    z->avail_in = (uInt)src_len;
    z->next_out = out;
    z->avail_out = (uInt)out_cap;
    if (deflate(z, Z_FINISH) == Z_STREAM_END)
        *out_len = out_cap - z->avail_out;
    return 0;
}

static int
deflate_zstd(struct qm_codec *codec, int level, const void *src, size_t src_len, void *out,
             size_t out_cap, size_t *out_len)
{
    size_t n;

    if (!codec->zstd_out)
        codec->zstd_out = ZSTD_createCCtx();
    if (!codec->zstd_out)
        return -1;
    n = ZSTD_compressCCtx(codec->zstd_out, out, out_cap, src, src_len, level);
    if (!ZSTD_isError(n))
        *out_len = n;
    return ZSTD_getErrorCode(n) == ZSTD_error_memory_allocation ? -1 : 0;
}

int
qm_codec_level_max(enum qm_compression type)
{
    return type == QM_ZSTD ? 19 : 9; /* zstd: above, a context takes hundreds of MiB */
}

int
qm_codec_deflate(struct qm_codec *codec, enum qm_compression type, int level, const void *src,
                 size_t src_len, void *out, size_t out_cap, size_t *out_len)
{
    struct qm_igzip *igzip;

    *out_len = 0;
    if (type == QM_ZSTD)
        return deflate_zstd(codec, level ? level : QM_CODEC_ZSTD_LEVEL, src, src_len, out, out_cap,
                            out_len);
    if (level == 0)
        level = QM_CODEC_ZLIB_LEVEL;
    igzip = level <= QM_IGZIP_LEVEL_MAX ? ensure_igzip(codec) : NULL;
    if (igzip && qm_igzip_deflate(igzip, level, src, src_len, out, out_cap, out_len) == 0)
        return 0;
    return deflate_zlib(codec, level, src, src_len, out, out_cap, out_len);
}
