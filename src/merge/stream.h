/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stream.h - the bytes of a chain's view, in order, looked at by many threads on their way.
 *
 * Why.  Who writes a disk out anew wants to know of every part: is it zeros, what is its digest, which
 * layer does it come from.  Threads find that out, each for a chunk of its own; the caller gets
 * the chunks in the guest's order, so that what it does with them (where a cluster is placed, a digest
 * over all) depends on the images alone, never on which thread was faster.
 *
 * Calls      new; next until it says done, and for each chunk give_back or write, once; drain; free.
 * Threads    One thread calls; workers are inside.
 * Ownership  The chain is borrowed, and nobody else asks its images meanwhile.  A chunk belongs to the stream.
 * Units      Chunks begin at multiples of the chunk size.  Only one that is all zeros, or all shared and
 *            without leaves, can be longer than a chunk: then it is as long as a multiple of it, or reaches the end.
 * Errors     0 or -1 with *err: what map and images say; the first error of a worker.
 */
#ifndef QM_STREAM_H
#define QM_STREAM_H

#include "digest.h"
#include "map.h"
#include "move.h"
#include "qcow2_create.h"
#include "qcow2_pack.h"
#include "route.h"
#include "vec.h"

struct qm_stream;

/* Go on past what is lost: it reads as the pattern, over and over, from the disk's first byte on; without one, as zeros.
 * Spans tell what it was. */
struct qm_salvage {
    const unsigned char *fill; /* NULL: zeros */
    size_t fill_len;
};

struct qm_stream_config {
    const struct qm_chain *chain; /* the view is that of its uppermost layer */
    guest_off from;               /* where to begin; a multiple of the chunk size */
    uint64_t chunk;               /* bytes; a power of two, QM_STREAM_GRAIN at least */
    unsigned threads;             /* 0: as many as processors, at most 16 */
    bool keep_zeros; /* do not look for zeros: what is stored as data is given as data */
    uint64_t
        zero_most; /* how long one that is zeros may be, if longer than a chunk; 0: any length */
    enum qm_prealloc
        prealloc; /* what ZERO moves leave behind: OFF and METADATA holes, FALLOC space, FULL written zeros */
    uint64_t
        leaf; /* digests of leaves of this size; a power of two, the chunk's at most; 0: none */
    const struct qm_salvage *salvage; /* NULL: what cannot be read is an error */
    uint64_t
        deflate; /* clusters of this size are compressed, too; a power of two, the chunk's at most; 0: no */
    enum qm_compression type;
    int level; /* as of qm_codec_deflate */
    const struct qm_qcow2
        *pass_to;             /* with deflate: compressed clusters that this image takes as they are
                                      * are not made anew (qm_pack_may_pass); NULL: all are */
    struct qm_routes *routes; /* NULL: nothing is shared; borrowed.  Not with salvage or deflate */
    uint64_t share_most;      /* with routes: how long a chunk that is shared may be */
    uint64_t
        share_unit; /* with routes: aligned guest bytes that stay together in the target; 0: all do */
    struct qm_file *raw; /* NULL, or workers put what is not zeros there, at its own offset */
    guest_off raw_from;  /* but only from here on */
    qmeld_progress_fn *progress; /* may be NULL */
    void *opaque;
    const char *phase;
};

/* Zeros are looked for in units of this, aligned: what file systems allocate. */
#define QM_STREAM_GRAIN 4096u

struct qm_run {
    uint64_t off; /* in the chunk */
    uint64_t len;
    struct qm_route
        *route;    /* NULL, or the file it can be shared from: then nobody has looked for zeros */
    uint64_t host; /* there */
    size_t layer;  /* whose file that is */
};

struct qm_payload {
    uint32_t off;                /* in packed */
    uint32_t len;                /* 0: all zeros, or it does not get shorter */
    const struct qm_image *from; /* NULL, or it is passed on: packed has its sectors, whole */
    struct qm_extent ext;        /* there */
};

struct qm_chunk {
    guest_off guest;
    uint64_t len;
    bool zero;                  /* all of it: then bytes is NULL, too */
    const unsigned char *bytes; /* but of what is shared or passed on only if there are leaves */
    const unsigned char *packed;
    QM_VEC(struct qm_payload) payloads; /* of each cluster, unless zero, and if asked for */
    QM_VEC(struct qm_map_span) spans;   /* where it comes from, ascending, without gaps */
    QM_VEC(struct qm_run) runs;         /* what is not zeros, ascending, apart from each other */
    QM_VEC(struct qm_sha256)
    leaves; /* unless zero, and if asked for; the last may be of a shorter leaf */
};

int qm_stream_new(const struct qm_stream_config *config, struct qm_stream **out,
                  struct qmeld_error *err) QM_CHECK;

/* *out is NULL behind the end. */
int qm_stream_next(struct qm_stream *s, struct qm_chunk **out, struct qmeld_error *err) QM_CHECK;

void qm_stream_give_back(struct qm_stream *s, struct qm_chunk *chunk);

/* The moves, COPY and ZERO, are of this chunk's guest bytes, ascending, each COPY of one run; a worker does them in file, and gives the chunk back.
 * The list is empty afterwards. */
int qm_stream_write(struct qm_stream *s, struct qm_chunk *chunk, struct qm_file *file,
                    struct qm_moves *moves, struct qmeld_error *err) QM_CHECK;

/* Waits until all that was given to write is written (not durable). */
int qm_stream_drain(struct qm_stream *s, struct qmeld_error *err) QM_CHECK;

/* For who works long without asking for the next chunk. */
int qm_stream_tick(struct qm_stream *s, struct qmeld_error *err) QM_CHECK;

/* The progress callback asked to stop: it is the caller's part to do so. */
bool qm_stream_stopped(const struct qm_stream *s);

void qm_stream_free(struct qm_stream *s); /* NULL is fine */

#endif
