/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lab.h - chains from recipes on a disk, and short questions about them.
 *
 * Why.  A test of the merge is a chain, a merge, and a few facts about the files that are left.
 * Here are the words for them; whatever does not hold fails the test.  All files lie in the
 * working directory (scratch.h).
 */
#ifndef QM_LAB_H
#define QM_LAB_H

#include "forge.h"
#include "qmeld.h"

struct qm_qcow2;

/* A file's bytes, or a guest's. */
struct qm_bytes {
    unsigned char *at;
    size_t len;
};

/* Writes the chain of a recipe.  Free with qm_forge_free. */
struct qm_forge *qm_lab_make(const char *recipe);

struct qm_bytes qm_lab_file(const char *path);                         /* as it lies there */
struct qm_bytes qm_lab_read(const char *path);                         /* as a guest reads it */
struct qm_bytes qm_lab_expect(const struct qm_forge *f, size_t layer); /* as it should */
void qm_lab_same(struct qm_bytes got, struct qm_bytes want, const char *what); /* frees both */

/* path reads as this layer (0 = the first row) was drawn. */
void qm_lab_reads_as(const char *path, const struct qm_forge *f, size_t layer);

/* path reads as zeros in [off, off + len). */
void qm_lab_zeros(const char *path, uint64_t off, uint64_t len);

/* No corruption, no leak. */
void qm_lab_clean(const char *path);

/* One image without what is below, drawn with a character a cell (one subcluster, say):
 *     . absent   ~ absent, a cluster allocated   0 zeros   = zeros, a cluster allocated
 *     D data     c compressed                                                                */
void qm_lab_looks(const char *path, uint64_t cell, const char *picture);

/* All that the internal snapshots of path refer to: their L1 and L2 tables, and the clusters these
 * point at, in order of reference. */
struct qm_bytes qm_lab_snapshots(const char *path);

/* Where in path the guest's byte lies; 0: nowhere. */
uint64_t qm_lab_host(const char *path, uint64_t guest);

/* qmeld_commit must succeed; its report, by value (the layers are freed). */
struct qmeld_commit_report qm_lab_commit(const char *path, const struct qmeld_commit_options *opts);

/* The image at path, qcow2, to be written; qm_image_close ends it. */
struct qm_qcow2 *qm_lab_open(const char *path);

/* Writes rubbish into a file. */
void qm_lab_soil(const char *path, uint64_t off, size_t len);

/* ---- what was done to the disk ---- */

/* Takes down all changes of files from now on (the hook of io.h). */
void qm_lab_watch(void);
void qm_lab_unwatch(void);

/* Bytes written (by writes, not holes) to a file, and how often it was synced. */
uint64_t qm_lab_written(const char *path);
size_t qm_lab_syncs(const char *path);

/* What was asked of the kernel for a file. */
struct qm_lab_io {
    size_t writes;
    uint64_t bytes_written;
    size_t shares; /* ranges of another file that it shares now */
    uint64_t bytes_shared;
    size_t syncs;
};
struct qm_lab_io qm_lab_io(const char *path);

/* Length of the write that starts at off of path; 0: none does.  Fails if there are two. */
uint64_t qm_lab_write_at(const char *path, uint64_t off);

/* No byte of path was written twice between start and end of the watch, except its header sector,
 * and the clusters named by letters (see below). */
void qm_lab_written_once(const char *path, const char *but);

/* The order of changes of one qcow2 file, one letter each by where it now belongs:
 *     H header   R refcount table   B refcount block   1 L1   2 L2   D data   ? else
 *     o hole or zeros   x discard   t length   U removed
 * and | for a sync.  Between two syncs the order does not matter: letters are sorted, and runs of
 * one letter count as one.  Changes of other files are not in it. */
const char *qm_lab_story(const char *path);

/* Files in the order in which they were changed: "base child mid", a name per run of changes.  What has a dot
 * in front (journals, directories) is left out. */
const char *qm_lab_files(void);

/* The last thing that happened to file a is a sync, and b was not touched before it. */
void qm_lab_durable_before(const char *a, const char *b);

/* ---- all in one ---- */

/* Merges into base, under watch: base then reads as the first row was drawn, and so does top still,
 * and a qcow2 base is clean. */
struct qmeld_commit_report qm_lab_merge(const struct qm_forge *f, const char *top, const char *base,
                                        const struct qmeld_commit_options *opts);

#endif
