/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/flatten.h - what a chain reads as, as a new image; and what of that is left unfinished.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Ownership  What callbacks are given lives during the call.
 * Disk       The layers are only read.  The new image has its name when it is complete and durable.
 */
#ifndef QMELD_FLATTEN_H
#define QMELD_FLATTEN_H

#include "create.h"
#include "merge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Takes the disk's bytes in order, zeros too.  Not 0: the flattening ends, QMELD_CANCELED. */
typedef int qmeld_bytes_fn(const void *bytes, size_t len, void *opaque);

/* What the new image gets of the layers' persistent dirty bitmaps. */
enum qmeld_flatten_bitmaps {
    QMELD_FLATTEN_BITMAPS_DROP = 0, /* none */
    QMELD_FLATTEN_BITMAPS_MERGE, /* one of each name that any layer has, with the bits of all, put together as a
                                     * merge with QMELD_BITMAPS_MERGE does it in a base that lacks them.  One that says
                                     * nothing in some layer (not closed cleanly, or damaged) is not made */
    QMELD_FLATTEN_BITMAPS_KEEP, /* those of path alone, as qemu-img convert --bitmaps has it; one that says
                                     * nothing is a reason to refuse */
};

struct qmeld_flatten_options {
    const char *format; /* of path; NULL: by content */
    const char
        *backing_format; /* of layers for which no overlay stores one; NULL: they are refused */
    const char *const *allow_paths; /* as in struct qmeld_open_options */
    const char *snapshot; /* ID or name of an internal snapshot of path; NULL: its active view */
    const struct qmeld_secrets *secrets; /* NULL: none; out is not encrypted */
    bool share; /* takes no lock: somebody may write meanwhile, and then what is
                                 * read was never the disk at any one time */
    const struct qmeld_create_options
        *target; /* format (NULL: raw), version, cluster_size, refcount_bits,
                                                * compression, extended_l2, lazy_refcounts, preallocation; the rest is refused */
    const char *
        compress; /* "zlib" or "zstd": data is stored compressed, where it gets shorter; NULL: it is not */
    int compress_level; /* zlib 1 to 9, zstd 1 to 19; 0: a good one, and compressed clusters of layers with the same
                         * cluster size and compression are passed on as they are, whatever is in them */
    bool
        salvage; /* goes on past what cannot be read: sectors, tables, compressed clusters, what a file that
                   * was cut off has not got, backing files that are not there; fields of headers that
                   * reading does not need may make no sense */
    qmeld_finding_fn
        *finding; /* with salvage, for what of headers and backing files that was; may be NULL */
    void *finding_opaque;
    const char *fill; /* what is lost reads as this, over and over; NULL: as zeros */
    const char
        *salvage_map; /* NULL, or a file to be written: what is lost, as GNU ddrescue notes it */
    bool keep_zeros;  /* zeros that are stored as data become data, not holes */
    enum qmeld_flatten_bitmaps bitmaps; /* but DROP, USAGE: out is not qcow2 of version 3, or
                                         * snapshot, share or salvage are asked for, too */
    bool skip_broken_bitmaps; /* with KEEP: those that say nothing are not made.  USAGE without */
    bool force;               /* what is called out may be replaced */
    bool restart;             /* what an interrupted run left is thrown away, not gone on with */
    const char *
        manifest; /* NULL, or a file to be written: of every byte where it is from, and digests of all
                           * (qmeld-manifest(5)) */
    uint64_t leaf; /* a digest for each so many bytes: a power of two, 4 KiB to 64 MiB; 0: 1 MiB */
    const char *const
        *command;         /* for the manifest: the command line, NULL-terminated; may be NULL */
    qmeld_bytes_fn *sink; /* takes the bytes, in place of out, which is NULL then */
    void *sink_opaque;
    unsigned threads;            /* 0: as many as there are processors, at most 16 */
    qmeld_progress_fn *progress; /* may be NULL; counts guest bytes, zeros too */
    void *opaque;
};

struct qmeld_flatten_report {
    uint64_t size;       /* of the disk */
    uint64_t bytes_data; /* of that, what is stored as data; by this run */
    uint64_t
        bytes_shared; /* of those, in blocks that a layer's file has, too: they take no space */
    uint64_t bytes_passed; /* likewise, in compressed clusters that are a layer's, as they are */
    uint64_t bytes_compressed; /* what all compressed clusters take */
    bool resumed;              /* an interrupted run was gone on with, from guest byte resumed_at */
    uint64_t resumed_at;
    uint64_t bytes_lost; /* with salvage */
    uint64_t ranges_lost;
    char sha256[65];      /* with a manifest: of the disk's bytes, hexadecimal; else empty */
    char merkle_root[65]; /* likewise, of the tree over its leaves */
    uint64_t seconds_x1000;
    size_t
        n_bitmaps; /* of all layers, sorted by name: CREATED in the new image, or LEFT; none after a failure, with
                       * salvage, and, with DROP, of layers whose bitmaps cannot be read */
    struct qmeld_merged_bitmap *bitmaps;
};

/* Writes what path reads as, through all its layers, to a new image without any backing file.  The layers are only
 * read, and locked as a reader locks them.  out has its name when it is complete and durable: until
 * then the file is called .NAME.qmeld-partial, and the same call goes on with it.  A block device is written to as it
 * is.  out is NULL if opts->sink takes the bytes (USAGE: both, or neither).  opts may be NULL.
 * report may be NULL; otherwise release it with qmeld_flatten_report_free, also after a failure. */
QMELD_API int qmeld_flatten(const char *path, const char *out,
                            const struct qmeld_flatten_options *opts,
                            struct qmeld_flatten_report *report,
                            struct qmeld_error *err) QMELD_CHECK;

/* Frees what it points at, not the struct; NULL is fine. */
QMELD_API void qmeld_flatten_report_free(struct qmeld_flatten_report *report);

/* What an interrupted flatten left; everything is the callee's. */
struct qmeld_partial {
    const char *out;     /* the image's name, when it is complete */
    const char *note;    /* NULL: there is none, and nobody goes on with what is in partial */
    const char *partial; /* what the image is called until then; NULL: no such file is there */
    const struct qmeld_error *problem; /* NULL, or why the note cannot be gone by */
    const char *image;                 /* what is flattened; NULL: unknown */
    const char *manifest;              /* NULL: none is asked for, or unknown */
    bool running;                      /* a process is at work on it now */
    bool complete;                     /* it has its name; what comes after is left to do */
    uint64_t done;                     /* guest bytes that are in it, durably, counted from 0 */
    uint64_t size;                     /* of the disk; 0: unknown */
};

/* Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_partial_fn(const struct qmeld_partial *partial, void *opaque);

/* Tells of each that lies in path, a directory; or of that of one image, by its name, that of its note, or the one it has
 * until it is complete.  Takes no lock and writes nothing. */
QMELD_API int qmeld_partials(const char *path, qmeld_partial_fn *fn, void *opaque,
                             struct qmeld_error *err) QMELD_CHECK;

/* Goes on with one (path as above) as qmeld_flatten does when it is called again: what is to be done is in the note.  Of how,
 * which may be NULL, threads, secrets, progress, opaque and command count.  USAGE: there is no note, or it lies in a directory
 * of another user's, or to which everybody may write.  STALE: what it reads has changed.  report as above. */
QMELD_API int qmeld_flatten_resume(const char *path, const struct qmeld_flatten_options *how,
                                   struct qmeld_flatten_report *report,
                                   struct qmeld_error *err) QMELD_CHECK;

/* Removes what it left, note and file; of its manifest, too.  USAGE: there is nothing, or the image is complete.  BUSY: it is
 * at work. */
QMELD_API int qmeld_flatten_abandon(const char *path, struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
