/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_model.c - whole chains, drawn by the fuzzer, mapped and merged against a model that is slow and simple.
 *
 * Input: options, three bytes; then a layer, its kind and its cells, one byte each; 255 ends a layer, and a second
 * byte says what the next one is.  The images are made by the forge, which shares no code with what is tested.
 *
 * The model asks, for each cell of 512 bytes, which layer from the top down has something there.  That is what the map
 * must say; what the forge paints is what must be read, before a merge and after it.
 */
#include "fuzz.h"

#include "forge.h"
#include "transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CELL       512u
#define MOST_CELLS 96u
#define MOST       6u

struct layer {
    unsigned kind;
    size_t n;
    char cells[MOST_CELLS + 1];
};

struct drawing {
    unsigned options[3];
    size_t n;
    struct layer layers[MOST]; /* 0 = top */
};

static bool
parse(const uint8_t *data, size_t len, struct drawing *d)
{
    static const char marks[] = "..AB0Cab=~D.";

    if (len < 5)
        return false;
    *d = (struct drawing){.options = {data[0], data[1], data[2]}};
    for (size_t i = 3; i + 1 < len && d->n < MOST; i++) {
        struct layer *l = &d->layers[d->n++];

        l->kind = data[i];
        for (i++; i < len && data[i] != 255 && l->n < MOST_CELLS; i++)
            l->cells[l->n++] = marks[data[i] % (sizeof marks - 1)];
        if (l->n == 0)
            l->cells[l->n++] = '.';
    }
    return d->n >= 2;
}

static bool
is_raw(const struct drawing *d, size_t i)
{
    return i + 1 == d->n && d->layers[i].kind % 4 == 3;
}

/* Cells that a kind of image has not. */
static char
mark(const struct drawing *d, size_t i, size_t cell)
{
    const struct layer *l = &d->layers[i];
    const char c = cell < l->n ? l->cells[cell] : '.';

    if (is_raw(d, i))
        return c == '=' || c == '~' ? '0' : c >= 'a' ? (char)(c - 'a' + 'A') : c;
    if (l->kind % 4 == 1) /* version 2 */
        return c == '0' || c == '=' || c == '~' ? 'E' : c;
    return c;
}

static void
draw(const struct drawing *d, FILE *out)
{
    static const char *const kinds[] = {"", " version=2", " compression=zstd", " refcount_bits=1"};

    fprintf(out, "all cluster=512 size=%uc\n", MOST_CELLS);
    for (size_t i = 0; i < d->n; i++) {
        const struct layer *l = &d->layers[i];

        fprintf(out, "l%zu | ", i);
        for (size_t k = 0; k < l->n; k++) {
            char c = mark(d, i, k);

            /* refcounts of one bit: nothing is shared */
            fputc(!is_raw(d, i) && l->kind % 4 == 3 && c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c,
                  out);
        }
        fprintf(out, "%s", is_raw(d, i) ? " format=raw" : kinds[l->kind % 4]);
        fprintf(out, " size=%zuc\n", l->kind & 4 ? l->n : MOST_CELLS);
    }
}

/* ---- the map ---- */

static size_t
cells_of(const struct drawing *d, size_t i)
{
    return d->layers[i].kind & 4 ? d->layers[i].n : MOST_CELLS;
}

/* Who answers: the uppermost that has an entry; a layer that ends before it hides all below it. */
static size_t
who(const struct drawing *d, size_t cell, char *out_mark)
{
    for (size_t i = 0; i < d->n; i++) {
        *out_mark = '.';
        if (cell >= cells_of(d, i))
            return i;
        *out_mark = mark(d, i, cell);
        if (*out_mark != '.' || i + 1 == d->n)
            return i;
    }
    return d->n;
}

struct mapped {
    const struct drawing *d;
    uint64_t end;
};

static int
check_extent(const struct qmeld_extent *e, void *opaque)
{
    struct mapped *m = opaque;

    qm_fuzz_must(e->start == m->end && e->length > 0, "extents have no gaps");
    m->end += e->length;
    for (uint64_t at = e->start; at < e->start + e->length; at += CELL) {
        char c;
        const size_t i = who(m->d, at / CELL, &c);
        const bool data = (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');

        if (data)
            qm_fuzz_must(e->data && !e->zero && e->depth == i, "the uppermost layer answers");
        else if (c == '0' || c == '=')
            qm_fuzz_must(e->zero || is_raw(m->d, i), "zeros are zeros");
        if (data && !is_raw(m->d, i))
            qm_fuzz_must(e->compressed == (c >= 'a') || m->d->layers[i].kind % 4 == 3,
                         "compressed is what was drawn so");
    }
    return 0;
}

static void
check_map(const struct drawing *d)
{
    struct mapped m = {.d = d};
    struct qmeld_chain *chain;
    struct qmeld_error err;

    qm_fuzz_must(qmeld_chain_open("l0", NULL, &chain, &err) == 0, err.what);
    qm_fuzz_must(qmeld_chain_depth(chain) == d->n, "all layers are there");
    qm_fuzz_must(qmeld_map(chain, 0, UINT64_MAX, check_extent, &m, &err) == 0, err.what);
    qm_fuzz_must(m.end == cells_of(d, 0) * CELL, "to the end");
    qmeld_chain_close(chain);
}

/* ---- the bytes ---- */

static void
check_reads(const char *name, const char *want, uint64_t end, const char *what)
{
    const struct qm_fuzz_view a = qm_fuzz_view(name, NULL, end), b = qm_fuzz_view(want, "raw", end);

    qm_fuzz_must(a.reads && b.reads, what);
    qm_fuzz_must(a.size >= b.size && a.sum == b.sum, what);
}

static void
check_merge(const struct drawing *d, const struct qm_forge *f)
{
    char base[24], top[24], file[24];
    const size_t top_row = d->options[1] % (d->n - 1); /* above the lowest */
    const size_t base_row = top_row + 1 + d->options[2] % (d->n - 1 - top_row);
    struct qmeld_commit_options opts = {.base = base, .top = top, .threads = 1};
    struct qmeld_commit_report report;
    struct qmeld_error err;
    int rc;

    snprintf(base, sizeof base, "[%zu]", d->n - base_row);
    snprintf(top, sizeof top, "[%zu]", d->n - top_row);
    snprintf(file, sizeof file, "l%zu", base_row);
    opts.atomic = d->options[0] & 1;
    opts.skip_equal = d->options[0] & 2;
    opts.detect_zeroes = d->options[0] & 4;
    opts.decompress = d->options[0] & 8;
    opts.verify = d->options[0] & 16;
    opts.backing_format = "qcow2";
    qm_transfer_limits.batch = 512ull << (d->options[0] >> 5);
    qm_fuzz_must(qm_forge_expect(f, top_row, "want", &err) == 0, err.what);
    rc = qmeld_commit("l0", &opts, &report, &err);
    qmeld_commit_report_free(&report);
    check_reads("l0", "first", UINT64_MAX, "the active layer reads as it did");
    qm_fuzz_must(rc == 0 || (err.code != QMELD_CORRUPT && err.disk == QMELD_DISK_OLD), err.what);
    if (rc == 0)
        check_reads(file, "want", cells_of(d, top_row) * CELL, "base reads as top was drawn");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static struct drawing d;
    struct qm_forge *f = NULL;
    struct qmeld_error err;
    char *text = NULL;
    size_t n;
    FILE *out;

    if (!parse(data, len, &d))
        return 0;
    out = open_memstream(&text, &n);
    qm_fuzz_must(out, "memory");
    draw(&d, out);
    fclose(out);
    qm_fuzz_folder();
    qm_fuzz_must(qm_forge_parse(text, "drawing", &f, &err) == 0, err.what);
    qm_fuzz_must(qm_forge_write(f, ".", &err) == 0, err.what);
    qm_fuzz_must(qm_forge_expect(f, 0, "first", &err) == 0, err.what);
    check_reads("l0", "first", UINT64_MAX, "what was drawn is read");
    check_map(&d);
    check_merge(&d, f);
    qm_forge_free(f);
    free(text);
    qm_fuzz_clean();
    return 0;
}
