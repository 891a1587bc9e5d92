/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_int.h - what the files qcow2_bitmap*.c share, and nobody else.
 *
 * Why.  Collecting marks and bringing them to disk are two things that share one object.
 */
#ifndef QM_QCOW2_BITMAP_INT_H
#define QM_QCOW2_BITMAP_INT_H

#include "qcow2_bitmap.h"

#define MAX_POINTER_BYTES ((uint64_t)64 << 20) /* of all pieces of all bitmaps that get marks */

#define BITMAP_WHOLE ((unsigned char *)1) /* a piece that is marked throughout */

/* The marks of one enabled, valid bitmap. */
struct tracked {
    size_t idx;             /* in the list */
    uint64_t n_bits;        /* at the new size */
    uint64_t n_pieces;      /* of piece_bytes each */
    unsigned char **pieces; /* NULL: nothing marked */
    bool marks;             /* told of what is written; false: of what it is given by name only */
};

struct qm_bitmaps {
    struct qm_qcow2 *q;
    struct qm_refs *refs;
    uint64_t old_size;
    uint64_t new_size;
    uint64_t piece_bytes; /* a cluster is a whole number of pieces */
    uint64_t marks_bytes; /* what the pieces take */
    bool in_use;          /* the enabled ones are marked so on disk */
    bool marked;
    bool unsaved;                          /* something was marked since the last save */
    bool resumes;                          /* some bitmap is resumed */
    const struct qm_bitmap_orders *orders; /* NULL: none */
    size_t *of_order;                      /* beside them: index in tracked, or SIZE_MAX */
    struct qm_bitmap_list list;
    bool *resumed; /* beside the list: in_use on disk, but trusted; its flags here say valid */
    QM_VEC(struct tracked) tracked; /* in the order of the list */
};

void qm_bitmaps_free(struct qm_bitmaps *b);

/* Forgets the marks: they are stored. */
void qm_bitmaps_forget_marks(struct qm_bitmaps *b);

/* Bytes of bits that are held as one. */
static inline uint64_t
qm_bitmap_piece_bytes(const struct qm_qcow2 *q)
{
    return qm_min(4096, q->geo.cluster_size);
}

/* Table entries a bitmap has for a virtual size. */
uint64_t qm_bitmap_entries(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t size);

/* The whole table as it is on disk. */
int qm_bitmap_read_table(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t *out,
                         struct qmeld_error *err) QM_CHECK;

/* For lists of names, sorted. */
int qm_bitmap_by_name(const void *a, const void *b);

/* Makes the bitmaps that b->orders say, with tables that have no bits yet, and in_use; removes those that are to go. The
 * directory is durable, and named by the header.  Nothing is done if the directory has and lacks what it is to. */
int qm_bitmap_rebuild_dir(struct qm_bitmaps *b, struct qmeld_error *err) QM_CHECK;

/* Writes the flags of a directory entry in place; no sync. */
int qm_bitmap_write_flags(const struct qm_bitmaps *b, const struct qm_bitmap *m, uint32_t flags,
                          struct qmeld_error *err) QM_CHECK;

#endif
