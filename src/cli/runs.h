/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * runs.h - what lies where in a row of a picture, in bounded memory.
 *
 * Why.  An image may have ten million extents, a picture a few thousand columns.  A row of runs
 * keeps what it is told exactly as long as that is little; when it becomes too much, neighbours
 * are put together in cells of a power of two of bytes, which know how many bytes of what are in
 * them, but not where.  Who draws never sees the difference between a large image and a
 * busy one.
 *
 * Calls      init, add in ascending order, perhaps coarsen, look at run[0..n), release.
 * Threads    One.
 * Ownership  The runs belong to the row.
 * Units      Guest bytes.
 * Errors     Without memory the process ends, as for all text of the program.
 */
#ifndef QM_CLI_RUNS_H
#define QM_CLI_RUNS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum qm_cell_kind {
    QM_CELL_ABSENT = 0, /* nobody has an entry */
    QM_CELL_ZERO,
    QM_CELL_COMPRESSED,
    QM_CELL_DATA,
    QM_CELL_MANY, /* of a cell with more than it can tell apart: the rest of it */
    QM_CELL_KINDS,
};

struct qm_part {
    uint64_t bytes;
    uint32_t layer; /* 0 = base: who answers; 0 for ABSENT and MANY */
    uint8_t kind;   /* enum qm_cell_kind */
};

enum { QM_RUN_PARTS = 6 };

struct qm_run {
    uint64_t start;
    uint64_t length;
    unsigned n_parts; /* 1: all of it is that; more: a cell, whose parts may lie anywhere in it */
    struct qm_part parts[QM_RUN_PARTS];
};

struct qm_runs {
    struct qm_run *run;
    size_t n;
    size_t n_room;
    size_t most;    /* of runs; at least 4 */
    uint64_t grain; /* bytes of a cell, a power of two: smaller is put together */
};

void qm_runs_init(struct qm_runs *runs, size_t most, uint64_t grain);
void qm_runs_release(struct qm_runs *runs);

/* What begins where the last one ended is so; length 0 adds nothing.  The grain
 * grows when there are too many runs. */
void qm_runs_add(struct qm_runs *runs, uint64_t start, uint64_t length, uint32_t layer,
                 enum qm_cell_kind kind);

/* Puts together what is smaller than that; grain is at least the one there is. */
void qm_runs_coarsen(struct qm_runs *runs, uint64_t grain);

#endif
