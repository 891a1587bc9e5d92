/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * picture.h - a chain without files, drawn as text.
 *
 * Why.  Most facts about maps and plans are facts about which layer has what.  A picture says
 * that at a glance, and costs no file:
 *
 *     ..A.0       the top        one character per cell of guest space
 *     .B..B
 *     CCCCC       the base
 *
 *     .  nothing   0  zeros   A-Z  data   a-z  a compressed cell
 *
 * A row may be shorter than another: the layer is.  Data of cell i lies at host offset
 * i * cell.  Cells of one kind are answered as one run, compressed ones singly.
 *
 * Ownership  The rows are borrowed until qm_picture_close.
 */
#ifndef QM_PICTURE_H
#define QM_PICTURE_H

#include "chain.h"
#include "map.h"

/* rows[0] is the top.  Aborts when memory is out. */
struct qm_chain *qm_picture_open(const char *const *rows, size_t n_rows, uint64_t cell);
void qm_picture_close(struct qm_chain *chain);

/* How often a layer (0 = base) has been asked for an extent. */
size_t qm_picture_asked(const struct qm_chain *chain, size_t layer);

/* Questions for [off, ...) of a layer fail from now on, as over a damaged table. */
void qm_picture_break(struct qm_chain *chain, size_t layer, size_t cell);

/* The character that answers for a span's cell: of its layer's row, '0' past a layer's end, '.'
 * where nobody answers.  Fails the test if the span's extent is not what that row says. */
char qm_picture_answer(const struct qm_chain *chain, const struct qm_map_span *span);

#endif
