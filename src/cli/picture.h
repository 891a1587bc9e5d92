/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * picture.h - what all pictures of a chain show: strip, SVG and page.
 *
 * Why.  Who answers which bytes is asked of the chain once, here; who draws decides about colours and
 * letters only.  So no two pictures of a chain can tell different stories.
 *
 * Calls      qm_picture_take, look, qm_picture_release.
 * Threads    One; the chain is used meanwhile.
 * Ownership  The picture has copies of all it needs: the chain may be closed.
 * Units      Guest bytes, unless a name says otherwise.  Layers: 0 = base.
 * Errors     0, or -1 with *err, and then there is nothing to release.
 */
#ifndef QM_CLI_PICTURE_H
#define QM_CLI_PICTURE_H

#include "cli.h"
#include "runs.h"

/* Names are cut to so many bytes, and keep their end: images are hostile, pictures are bounded. */
enum { QM_PICTURE_NAME = 256 };

struct qm_picture_row {
    struct qm_runs runs;
    uint64_t sum[QM_CELL_KINDS]; /* exact, however coarse the runs are */
};

struct qm_picture_layer {
    char *name; /* of the file alone; made harmless, and cut */
    char *path; /* likewise */
    char format[32];
    uint64_t virtual_size;
    uint64_t allocated;
    uint64_t cluster_size;           /* 0: raw */
    struct qm_picture_row own;       /* what it holds itself */
    uint64_t seen[QM_CELL_KINDS];    /* of that, what the top reads */
    uint64_t merging[QM_CELL_KINDS]; /* with a range: what a merge takes from it */
};

struct qm_picture {
    uint64_t start; /* what is shown: [start, end) */
    uint64_t end;
    uint64_t
        grain; /* bytes of the smallest cell of all rows; runs shorter than that are put together */
    bool exact; /* nothing was put together */
    size_t n_layers;
    struct qm_picture_layer *layers;
    struct qm_picture_row view; /* who the top reads from */
    bool has_range;
    size_t base; /* of the range: what is merged into */
    size_t top;
    struct qm_picture_row
        merged; /* what the base holds after a merge, and where from: parts of other
                                   * layers than the base are what moves */
};

struct qm_picture_options {
    uint64_t start;
    uint64_t length;
    size_t
        columns; /* so many cells at most, each a power of two of bytes, and `start` goes down to one
                       * of them; 0: as fine as it is, as long as there are no more than... */
    size_t most_runs; /* ...so many runs in all rows (but 64 a row at least) */
    bool has_range;   /* these are set: what a merge would move is shown, too */
    size_t base;
    size_t top;
};

int qm_picture_take(struct qmeld_chain *chain, const struct qm_picture_options *options,
                    struct qm_picture *out, struct qmeld_error *err) QMELD_CHECK;
void qm_picture_release(struct qm_picture *picture);

/* The same with cells of a size that `columns` of them are enough. */
void qm_picture_coarsen(struct qm_picture *picture, size_t columns);

/* Of a path: the file's name as pictures show it.  The caller's. */
char *qm_picture_name(const char *path);

/* "640K": a whole number of the largest unit that divides it; offsets of cells are round. */
struct qm_cli_size qm_picture_offset(uint64_t offset);

#endif
