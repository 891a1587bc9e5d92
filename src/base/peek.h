/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * peek.h - every file of some folders, and a few bytes of each.
 *
 * Why.  To find out who else reads a file, folders with many thousands of files are looked at, most of which are of
 * no interest.  So a file costs one open and one small read, by several threads, and nothing is ever opened that
 * could block or that opening changes: FIFOs, sockets, devices.
 *
 * Calls      qm_peek_each for folders; qm_peek_open, qm_peek_read, qm_peek_close for a file.
 * Threads    The callback runs in several threads at a time.
 * Links      A link to a file is that file; links to folders are not followed, except the folders that were named, so
 *            that no loop of links is walked.
 * Errors     qm_peek_open and qm_peek_read return an errno, or 0.
 */
#ifndef QM_PEEK_H
#define QM_PEEK_H

#include "err.h"

#include <sys/types.h>

/* ---- one file ---- */

struct qm_peek {
    int fd;
    dev_t dev;
    ino_t ino;
    uint64_t size; /* of the file */
};

/* Opens a regular file.  EMEDIUMTYPE: it is something else. */
int qm_peek_open(const char *path, struct qm_peek *out);

/* Up to len bytes at off; *out_len: so many are there. */
int qm_peek_read(const struct qm_peek *p, uint64_t off, void *buf, size_t len, size_t *out_len);
void qm_peek_close(struct qm_peek *p);

/* ---- all files ---- */

/* More than this is refused: who has so many files in a folder would wait for minutes, and knows which of them
 * count. */
#define QM_PEEK_MAX_FILES 1000000u

struct qm_peek_folder {
    const char *path;
    bool deep; /* with all folders below it; or it is a file */
};

/* path lives during the call.  why: 0, or why this path (a folder, then) cannot be looked at. */
typedef void qm_peek_fn(const char *path, int why, void *opaque);

/* Calls fn for every file in these folders, and for every folder below them that cannot be listed.  A folder that was
 * named and is not there, or cannot be listed, is an error if it is deep, and told to fn otherwise.
 * *out_files: how many. USAGE: too many files. */
int qm_peek_each(const struct qm_peek_folder *folders, size_t n, unsigned threads, qm_peek_fn *fn,
                 void *opaque, uint64_t *out_files, struct qmeld_error *err) QM_CHECK;

#endif
