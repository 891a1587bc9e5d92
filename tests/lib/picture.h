/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * picture.h - chains drawn inside a unit test: no files, no threads.
 *
 * Why.  What a chain reads as is a picture; a test that shows the picture needs no comment.
 *
 *     CHECK_MAP("..A.0"
 *               ".B..B"
 *               "CCCCC",      reads as
 *               "CBAC0");
 *
 * Rows are as long as the view, top layer first, one character a cluster of 64 KiB:
 *   . absent   0 zero   = zero with a cluster   A-Z data   a-z compressed   (blank) past the end
 * In the view '.' is: nobody answered.
 *
 * Ownership  A drawn chain is freed by qm_picture_free, not by qm_chain_close.
 * Errors     Fails the running cmocka test, with the view that was got.
 */
#ifndef QM_PICTURE_H
#define QM_PICTURE_H

#include "chain.h"

#define QM_PICTURE_CELL 65536u

#define CHECK_MAP(rows, view) qm_picture_check(rows, view, 0, SIZE_MAX, __FILE__, __LINE__)

/* Layers bottom..top only (0 = the last row). */
#define CHECK_MAP_RANGE(bottom, top, rows, view)                                                   \
    qm_picture_check(rows, view, bottom, top, __FILE__, __LINE__)

void qm_picture_check(const char *rows, const char *view, size_t bottom, size_t top,
                      const char *file, int line);

/* A chain of rows of `width` characters.  The images have no file: bytes cannot be read. */
struct qm_chain *qm_picture_chain(const char *rows, size_t width);
void qm_picture_free(struct qm_chain *chain);

/* How often a layer (0 = base) was asked for extents: what is not asked costs nothing. */
size_t qm_picture_asked(const struct qm_chain *chain, size_t layer);

#endif
