/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap.h - persistent dirty bitmaps of an image that is being written.
 *
 * Why.  A backup tool trusts a bitmap to name every block that changed.  Who writes guest data
 * into an image must therefore mark it in every bitmap that is enabled and valid, and must
 * keep the others as they are.  (specification, "Bitmaps"; QEMU does the same on commit.)
 *
 * Calls      begin before the first write to the image, mark for every guest range that is
 *            written, end after everything else is durable and before the size in the header grows.
 * Crash      Between begin and end the enabled bitmaps are marked in_use on disk: readers know
 *            that they cannot be trusted.  Disabled ones are touched only while the image
 *            grows past what their tables can hold: for a moment in end they are in_use, too.
 * Resume     A run that was cut short anywhere is made good by begin, every mark of the work from
 *            its start, and end; that run may be cut short in turn.  Whoever resumes must
 *            know which bitmaps were valid when the work began (qm_bitmaps_valid_names, kept
 *            durable before begin), and that nobody else has written to the image since: an
 *            in_use bitmap does not tell whose it is.
 * Threads    One thread.
 * Errors     0 or -1 with *err: CORRUPT, NOSPACE, IO, USAGE (a bitmap stands in the way of
 *            growing).
 */
#ifndef QM_QCOW2_BITMAP_H
#define QM_QCOW2_BITMAP_H

#include "qcow2_refs.h"

struct qm_bitmaps;

struct qm_bitmap_names {
    QM_VEC(char *) list; /* each its own, malloc'd */
};

/* Host form of one directory entry. */
struct qm_bitmap {
    char *name;
    host_off table;
    uint32_t table_entries;
    uint32_t flags; /* QCOW2_BITMAP_* */
    uint32_t granularity_bits;
    uint64_t dir_pos; /* of its entry, in bytes into the directory */
};

struct qm_bitmap_list {
    QM_VEC(struct qm_bitmap) list;
};

/* Reads and checks the directory; empty if the image has no valid bitmaps extension. */
int qm_bitmap_list_read(const struct qm_qcow2 *q, struct qm_bitmap_list *out,
                        struct qmeld_error *err) QM_CHECK;
void qm_bitmap_list_release(struct qm_bitmap_list *l);

/* The bitmaps that are not in_use, enabled or disabled, in the order of the directory; none if
 * the image has no bitmaps.  On failure *out is empty. */
int qm_bitmaps_valid_names(const struct qm_qcow2 *q, struct qm_bitmap_names *out,
                           struct qmeld_error *err) QM_CHECK;
void qm_bitmap_names_release(struct qm_bitmap_names *names);

/* USAGE if the image is to grow beside a bitmap that is in_use (QEMU refuses that, too).  For a new
 * merge; one that goes on has left them so itself. */
int qm_bitmaps_let_grow(const struct qm_qcow2 *q, uint64_t new_size, struct qmeld_error *err)
    QM_CHECK;

/* Loads the enabled, valid bitmaps and marks them in_use on disk, durable.  new_size is the
 * virtual size the image will have at the end.  Bitmaps that are in_use already stay as they are,
 * also if that differs - but for those named in `trusted` (NULL: none), which count as valid:
 * an earlier run with the same new_size was cut short, and its end left them so.  One whose table
 * no such run can have left stays in_use.  USAGE, nothing changed: a bitmap cannot be that long.
 * *out is NULL if the image has no bitmaps at all. */
int qm_bitmaps_begin(struct qm_qcow2 *q, struct qm_refs *refs, uint64_t new_size,
                     const struct qm_bitmap_names *trusted, struct qm_bitmaps **out,
                     struct qmeld_error *err) QM_CHECK;

/* bitmaps may be NULL, here and below. */
int qm_bitmaps_mark(struct qm_bitmaps *b, guest_off from, uint64_t len, struct qmeld_error *err)
    QM_CHECK;

/* Stores the marks made so far, durable, while the bitmaps stay in_use: whoever resumes need not make
 * them again.  Not while the image has yet to grow. */
int qm_bitmaps_save(struct qm_bitmaps *b, struct qmeld_error *err) QM_CHECK;

/* Stores the marks, fits all valid bitmaps to new_size, writes new_size to the header (if it
 * differs; the L1 table must have room), takes in_use off, and frees what old tables took. Durable.
 * Frees b in every case. */
int qm_bitmaps_end(struct qm_bitmaps *b, struct qmeld_error *err) QM_CHECK;

/* The work stops here, at the old size: bitmaps are stored with the marks they have, which name at
 * least what was written, and are valid.  Frees b in every case.  For a merge that ends early
 * with nothing written behind the old end that anybody could read.  If a trusted bitmap was in_use,
 * the earlier run may have written what this one has not marked: all stay in_use, nothing is
 * stored. */
int qm_bitmaps_stop(struct qm_bitmaps *b, struct qmeld_error *err) QM_CHECK;

/* Frees; bitmaps stay in_use on disk if anything was marked or a trusted one was in_use, otherwise
 * they are valid again if that can be written. */
void qm_bitmaps_abandon(struct qm_bitmaps *b);

#endif
