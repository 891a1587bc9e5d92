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
    uint32_t extra_len; /* of data that we do not know */
    uint64_t dir_pos;   /* of its entry, in bytes into the directory; and how long that is */
    uint64_t dir_len;
};

/* Closed cleanly, and nothing beside it that forbids who does not know that to use it (specification, "Bitmap directory",
 * flags). */
static inline bool
qm_bitmap_is_valid(const struct qm_bitmap *m)
{
    return !(m->flags & QCOW2_BITMAP_IN_USE) &&
           (m->extra_len == 0 || (m->flags & QCOW2_BITMAP_EXTRA_COMPATIBLE));
}

struct qm_bitmap_list {
    QM_VEC(struct qm_bitmap) list;
};

/* Reads and checks the directory; empty if the image has no valid bitmaps extension. */
int qm_bitmap_list_read(const struct qm_qcow2 *q, struct qm_bitmap_list *out,
                        struct qmeld_error *err) QM_CHECK;
void qm_bitmap_list_release(struct qm_bitmap_list *l);

/* ---- one bitmap, read ---- */

#define BITMAP_ALL_ONES ((uint64_t)1) /* table entry: a cluster of ones, not stored */

/* Bits that a bitmap has for a virtual size. */
uint64_t qm_bitmap_bits(const struct qm_bitmap *m, uint64_t size);

/* Entries [first, first + n) of its table, checked: 0, BITMAP_ALL_ONES or a cluster's offset. */
int qm_bitmap_read_entries(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t first,
                           uint64_t n, uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* Of a valid one: called for each run of bits that are set, as guest bytes, ascending, within the virtual size. */
typedef int qm_bitmap_run_fn(guest_off from, uint64_t len, void *opaque, struct qmeld_error *err);
int qm_bitmap_each_run(const struct qm_qcow2 *q, const struct qm_bitmap *m, qm_bitmap_run_fn *fn,
                       void *opaque, struct qmeld_error *err) QM_CHECK;

/* CORRUPT if its table cannot be read, or leads where the file has nothing; the bits are not read. */
int qm_bitmap_check_table(const struct qm_qcow2 *q, const struct qm_bitmap *m,
                          struct qmeld_error *err) QM_CHECK;

/* The bitmaps that are not in_use, enabled or disabled, in the order of the directory; none if
 * the image has no bitmaps.  On failure *out is empty. */
int qm_bitmaps_valid_names(const struct qm_qcow2 *q, struct qm_bitmap_names *out,
                           struct qmeld_error *err) QM_CHECK;
void qm_bitmap_names_release(struct qm_bitmap_names *names);

/* ---- what is to become of the bitmaps of an image, beside being told of writes ---- */

enum qm_bitmap_deed {
    QM_BITMAP_CARRY,  /* made if it is not there; gets bits by qm_bitmaps_mark_in */
    QM_BITMAP_VOID,   /* in_use from the first write on, and in the end */
    QM_BITMAP_REMOVE, /* taken out of the directory */
    QM_BITMAP_LEAVE,  /* nothing */
};

struct qm_bitmap_order {
    char *name; /* own */
    enum qm_bitmap_deed deed;
    bool created; /* CARRY: it was not there when the work began */
    bool enabled; /* CARRY: the auto flag it is to have in the end */
    bool marks;   /* CARRY: it is told of what is written (it had the flag when the work began) */
    uint32_t granularity_bits; /* of one that is made */
    size_t layer;              /* the caller's: which layer of the chain is the reason */
    bool broken;               /* likewise: because what it has there says nothing */
};

/* Sorted by name, no name twice. */
struct qm_bitmap_orders {
    QM_VEC(struct qm_bitmap_order) list;
};

void qm_bitmap_orders_release(struct qm_bitmap_orders *orders);

/* The order for this name; NULL: none. */
const struct qm_bitmap_order *qm_bitmap_order_of(const struct qm_bitmap_orders *orders,
                                                 const char *name);

/* Can they be obeyed in an image that will have this size?  Nothing is written.  USAGE, UNSUPPORTED, NOSPACE. */
int qm_bitmap_orders_check(const struct qm_qcow2 *q, const struct qm_bitmap_orders *orders,
                           uint64_t new_size, struct qmeld_error *err) QM_CHECK;

/* The finest granularity, from `bits` on, that the format allows for this virtual size and clusters of so many bytes. */
uint32_t qm_bitmap_granularity_for(uint64_t cluster_size, uint32_t bits, uint64_t size);

/* USAGE if the image is to grow beside a bitmap that is in_use (QEMU refuses that, too).  For a new
 * merge; one that goes on has left them so itself.  Not beside those that orders (NULL: none) remove. */
int qm_bitmaps_let_grow(const struct qm_qcow2 *q, uint64_t new_size,
                        const struct qm_bitmap_orders *orders, struct qmeld_error *err) QM_CHECK;

/* Loads the enabled, valid bitmaps and marks them in_use on disk, durable.  new_size is the
 * virtual size the image will have at the end.  Bitmaps that are in_use already stay as they are,
 * also if that differs - but for those named in `trusted` (NULL: none), which count as valid:
 * an earlier run with the same new_size was cut short, and its end left them so.  One whose table
 * no such run can have left stays in_use.  USAGE, nothing changed: a bitmap cannot be that long.
 * *out is NULL if the image has no bitmaps at all.
 *
 * orders (borrowed; NULL: none) are obeyed, and a trusted name is whatever they carry.  Whoever gives orders
 * must give them again when he resumes, and what he marked by name, too.  If the image is abandoned, bitmaps that are
 * carried stay in_use. */
int qm_bitmaps_begin(struct qm_qcow2 *q, struct qm_refs *refs, uint64_t new_size,
                     const struct qm_bitmap_names *trusted, const struct qm_bitmap_orders *orders,
                     struct qm_bitmaps **out, struct qmeld_error *err) QM_CHECK;

/* *out: for qm_bitmaps_mark_in, of the bitmap that this order is about; false: it gets no marks.  b may be NULL. */
bool qm_bitmaps_find(const struct qm_bitmaps *b, size_t order, size_t *out);
void qm_bitmaps_mark_in(struct qm_bitmaps *b, size_t bitmap, guest_off from, uint64_t len);

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
