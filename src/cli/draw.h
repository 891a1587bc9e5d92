/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * draw.h - the picture of a chain, as letters, as SVG, as a page.
 *
 * Why.  People explain chains to each other in rows of letters and dots.  These draw them from the real
 * images: a row for what each layer itself holds, the active layer on top, and a row for which layer
 * the top's view takes its bytes from.
 *
 * Threads    One.
 * Ownership  Everything is borrowed.
 * Units      Bytes; width in terminal columns.
 * Errors     Of strip_columns: 0, or -1 with *err.  Drawing has none: what cannot be printed is seen by main, in stdout.
 */
#ifndef QM_DRAW_H
#define QM_DRAW_H

#include "picture.h"

enum {
    QM_DRAW_PIPE_WIDTH = 100,  /* columns where there is no terminal */
    QM_DRAW_PAGE_RUNS = 40000, /* runs of a page: that is about 3 MiB of text */
};

struct qm_draw_style {
    size_t width;
    bool blocks; /* the terminal knows Unicode; otherwise letters */
    bool colour;
};

/* What stdout is, and what the environment asks for: COLUMNS, NO_COLOR, TERM, the locale. */
struct qm_draw_style qm_draw_style_of_stdout(void);

/* How many columns are left for cells beside the layers' names; has_range: and what would move. */
int qm_draw_strip_columns(struct qmeld_chain *chain, bool has_range,
                          const struct qm_draw_style *style, size_t *out,
                          struct qmeld_error *err) QMELD_CHECK;

/* A picture of at most so many columns, on stdout. */
void qm_draw_strip(const struct qm_picture *picture, const struct qm_draw_style *style);

/* How many columns a picture should have, so that its length has a bound. */
size_t qm_draw_svg_columns(size_t n_layers);

/* A picture of that many columns at most, as a file of its own. */
void qm_draw_svg(const struct qm_picture *picture);

struct qmeld_plan_report;

/* A page that looks at it closer, of a picture with as many columns as it takes.  plan: NULL, or what a merge of the
 * picture's range comes to.  Afterwards the picture is as coarse as an SVG. */
void qm_draw_page(struct qm_picture *picture, const struct qmeld_plan_report *plan);

#endif
