/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_int.h - what qcow2_bitmap.c and qcow2_bitmap_store.c share, and nobody else.
 *
 * Why.  Collecting marks and bringing them to disk are two things that share one object.
 */
#ifndef QM_QCOW2_BITMAP_INT_H
#define QM_QCOW2_BITMAP_INT_H

#include "qcow2_bitmap.h"

#define BITMAP_ALL_ONES ((uint64_t)1)        /* table entry: a cluster of ones, not stored */
#define BITMAP_WHOLE    ((unsigned char *)1) /* a piece that is marked throughout */

/* The marks of one enabled, valid bitmap. */
struct tracked {
    size_t idx;             /* in the list */
    uint64_t n_bits;        /* at the new size */
    uint64_t n_pieces;      /* of piece_bytes each */
    unsigned char **pieces; /* NULL: nothing marked */
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
    bool unsaved; /* something was marked since the last save */
    bool resumes; /* some bitmap is resumed */
    struct qm_bitmap_list list;
    bool *resumed; /* beside the list: in_use on disk, but trusted; its flags here say valid */
    QM_VEC(struct tracked) tracked; /* in the order of the list */
};

void qm_bitmaps_free(struct qm_bitmaps *b);

/* Forgets the marks: they are stored. */
void qm_bitmaps_forget_marks(struct qm_bitmaps *b);

/* Bits, and table entries, a bitmap has for a virtual size. */
uint64_t qm_bitmap_bits(const struct qm_bitmap *m, uint64_t size);
uint64_t qm_bitmap_entries(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t size);

/* The whole table as it is on disk: each entry 0, BITMAP_ALL_ONES or a cluster's offset. */
int qm_bitmap_read_table(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t *out,
                         struct qmeld_error *err) QM_CHECK;

/* Writes the flags of a directory entry in place; no sync. */
int qm_bitmap_write_flags(const struct qm_bitmaps *b, const struct qm_bitmap *m, uint32_t flags,
                          struct qmeld_error *err) QM_CHECK;

#endif
