/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* draw_svg.h - what the page has in common with the SVG picture. */
#ifndef QM_DRAW_SVG_H
#define QM_DRAW_SVG_H

#include "picture.h"

enum { QM_DRAW_PALETTE = 8 }; /* colours, c0 to c7 in chain.css */

/* The patterns that chain.css names. */
void qm_draw_svg_patterns(void);

/* The same as qm_draw_svg, as an element of a page that has chain.css. */
void qm_draw_svg_element(const struct qm_picture *picture);

/* Data that a merge of the picture's range moves, and what it makes zeros. */
void qm_draw_moves(const struct qm_picture *picture, uint64_t *out_data, uint64_t *out_zeros);

#endif
