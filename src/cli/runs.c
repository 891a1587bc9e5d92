/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * runs.c - what lies where in a row of a picture, in bounded memory.
 *
 * Invariants: runs ascend and do not overlap; one with a single part may have any length, one with
 * more lies within one cell; every run but the last ends at a cell's end, and the next begins there.
 */
#include "runs.h"

#include "cli.h"

#include <stdlib.h>
#include <string.h>

void
qm_runs_init(struct qm_runs *runs, size_t most, uint64_t grain)
{
    *runs = (struct qm_runs){.most = most < 4 ? 4 : most, .grain = grain ? grain : 1};
}

void
qm_runs_release(struct qm_runs *runs)
{
    free(runs->run);
    runs->run = NULL;
    runs->n = runs->n_room = 0;
}

static struct qm_run *
append(struct qm_runs *runs, uint64_t start)
{
    if (runs->n == runs->n_room) {
        const size_t room = runs->n_room ? runs->n_room * 2 : 64;
        struct qm_run *more = reallocarray(runs->run, room, sizeof *more);

        if (!more)
            qm_cli_no_memory();
        runs->run = more;
        runs->n_room = room;
    }
    runs->run[runs->n] = (struct qm_run){.start = start};
    return &runs->run[runs->n++];
}

static bool
is_same(const struct qm_part *a, const struct qm_part *b)
{
    return a->kind == b->kind && a->layer == b->layer;
}

/* Of those that are told apart. */
static size_t
smallest(const struct qm_run *run)
{
    size_t least = SIZE_MAX;

    for (size_t i = 0; i < run->n_parts; i++)
        if (run->parts[i].kind != QM_CELL_MANY &&
            (least == SIZE_MAX || run->parts[i].bytes < run->parts[least].bytes))
            least = i;
    return least;
}

/* When a cell is full of different things, the smallest ones become "many". */
static void
make_room(struct qm_run *run)
{
    size_t many = 0, least;

    while (many < run->n_parts && run->parts[many].kind != QM_CELL_MANY)
        many++;
    if (many == run->n_parts) {
        many = smallest(run);
        run->parts[many].kind = QM_CELL_MANY;
        run->parts[many].layer = 0;
    }
    least = smallest(run);
    run->parts[many].bytes += run->parts[least].bytes;
    run->parts[least] = run->parts[--run->n_parts];
}

static struct qm_part *
find_part(struct qm_run *run, const struct qm_part *like)
{
    for (size_t i = 0; i < run->n_parts; i++)
        if (is_same(&run->parts[i], like))
            return &run->parts[i];
    return NULL;
}

static void
put_part(struct qm_run *run, const struct qm_part *part)
{
    struct qm_part *same = find_part(run, part);

    run->length += part->bytes;
    if (!same && run->n_parts == QM_RUN_PARTS) {
        make_room(run);
        same = find_part(run, part); /* it may be what was made */
    }
    if (same)
        same->bytes += part->bytes;
    else
        run->parts[run->n_parts++] = *part;
}

/* The cell that holds off, which lies behind the last run's start and is not at a cell's start: what the last
 * run has of it is made a run of its own. */
static struct qm_run *
open_cell(struct qm_runs *runs, uint64_t off)
{
    struct qm_run *last = runs->n ? &runs->run[runs->n - 1] : NULL;
    const uint64_t cell = off & ~(runs->grain - 1);
    struct qm_part part;

    if (!last || last->start + last->length <= cell)
        return append(runs, off); /* begins within a cell, as the row does */
    if (last->start >= cell)
        return last;
    part = last->parts[0]; /* longer than its cell: it is all one */
    part.bytes = off - cell;
    last->length -= part.bytes;
    last->parts[0].bytes -= part.bytes;
    last = append(runs, cell);
    put_part(last, &part);
    return last;
}

static void
push(struct qm_runs *runs, uint64_t start, struct qm_part part)
{
    while (part.bytes) {
        struct qm_run *last = runs->n ? &runs->run[runs->n - 1] : NULL;
        const uint64_t into = start & (runs->grain - 1);
        struct qm_part now = part;

        if (last && last->n_parts == 1 && last->start + last->length == start &&
            is_same(&last->parts[0], &part)) {
            put_part(last, &part);
            return;
        }
        if (into == 0) {
            put_part(append(runs, start), &part);
            return;
        }
        if (now.bytes > runs->grain - into)
            now.bytes = runs->grain - into;
        put_part(open_cell(runs, start), &now);
        part.bytes -= now.bytes;
        start += now.bytes;
    }
}

void
qm_runs_coarsen(struct qm_runs *runs, uint64_t grain)
{
    struct qm_runs coarse = {.most = runs->most, .grain = grain};

    for (size_t i = 0; i < runs->n; i++) {
        uint64_t at = runs->run[i].start;

        for (size_t k = 0; k < runs->run[i].n_parts; k++) {
            push(&coarse, at, runs->run[i].parts[k]);
            at += runs->run[i].parts[k].bytes;
        }
    }
    qm_runs_release(runs);
    *runs = coarse;
}

void
qm_runs_add(struct qm_runs *runs, uint64_t start, uint64_t length, uint32_t layer,
            enum qm_cell_kind kind)
{
    const bool nobody = kind == QM_CELL_ABSENT || kind == QM_CELL_MANY;

    push(runs, start, (struct qm_part){length, nobody ? 0 : layer, (uint8_t)kind});
    while (runs->n > runs->most && runs->grain < UINT64_C(1) << 62)
        qm_runs_coarsen(runs, runs->grain << 1);
}
