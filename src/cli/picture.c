/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * picture.c - what all pictures of a chain show: strip, SVG and page.
 *
 * Each layer is walked by itself, then the view of the top, then, with a range, that of the range's top.
 * All rows have cells of the same size in the end, so that they can be laid upon each other.
 */
#include "picture.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    SECTOR = 512,
    RUNS_A_ROW = 64, /* at least, however many layers there are */
    DEFAULT_UNIT = 65536,
};

/* ---- walking ---- */

struct walk {
    struct qm_picture *picture;
    struct qm_picture_row *row;
    size_t top;    /* depths count from here */
    size_t bottom; /* what lies below is not shown: nobody answers */
    uint64_t end;
    bool zero_past_end; /* a layer that has ended says zero */
    enum { TALLY_NONE, TALLY_SEEN, TALLY_MERGING } counts;
};

static enum qm_cell_kind
kind_of(const struct qmeld_extent *extent)
{
    if (extent->data)
        return extent->compressed ? QM_CELL_COMPRESSED : QM_CELL_DATA;
    return extent->present && extent->zero ? QM_CELL_ZERO : QM_CELL_ABSENT;
}

static void
put(struct walk *walk, uint64_t start, uint64_t length, size_t layer, enum qm_cell_kind kind)
{
    struct qm_picture *p = walk->picture;

    if (start >= walk->end)
        return;
    if (length > walk->end - start)
        length = walk->end - start;
    qm_runs_add(&walk->row->runs, start, length, (uint32_t)layer, kind);
    walk->row->sum[kind] += length;
    if (walk->counts == TALLY_SEEN)
        p->layers[layer].seen[kind] += length;
    if (walk->counts == TALLY_MERGING && layer > walk->bottom)
        p->layers[layer].merging[kind] += length;
}

static int
take_extent(const struct qmeld_extent *extent, void *opaque)
{
    struct walk *walk = opaque;
    const size_t layer = walk->top - extent->depth;
    enum qm_cell_kind kind = kind_of(extent);

    if (layer < walk->bottom)
        kind = QM_CELL_ABSENT;
    else if (walk->zero_past_end && !extent->present && layer > walk->bottom)
        kind = QM_CELL_ZERO;
    put(walk, extent->start, extent->length, layer, kind);
    return 0;
}

static int
walk_layers(struct walk *walk, struct qmeld_chain *chain, size_t bottom, uint64_t start,
            struct qmeld_error *err)
{
    const uint64_t length = walk->end > start ? walk->end - start : 0;

    if (length == 0)
        return 0;
    return qmeld_map_layers(chain, bottom, walk->top, start, length, take_extent, walk, err);
}

static int
take_own(struct qm_picture *p, struct qmeld_chain *chain, size_t layer, struct qmeld_error *err)
{
    struct walk walk = {
        .picture = p, .row = &p->layers[layer].own, .top = layer, .bottom = layer, .end = p->end};

    return walk_layers(&walk, chain, layer, p->start, err);
}

static int
take_view(struct qm_picture *p, struct qmeld_chain *chain, struct qmeld_error *err)
{
    struct walk walk = {
        .picture = p, .row = &p->view, .top = p->n_layers - 1, .end = p->end, .counts = TALLY_SEEN};

    return walk_layers(&walk, chain, 0, p->start, err);
}

/* Up to here the child sees the base's bytes when the range is gone (docs/decisions/0004): its own end, or that of a
 * snapshot that it can be reverted to. */
static int
find_hidden_end(const struct qm_picture *p, struct qmeld_chain *chain, uint64_t *out,
                struct qmeld_error *err)
{
    struct qmeld_layer_info child;

    *out = 0;
    if (p->top + 1 == p->n_layers)
        return 0;
    if (qmeld_chain_layer(chain, p->top + 1, &child, err) < 0)
        return -1;
    *out = child.virtual_size;
    for (size_t i = 0; i < child.n_snapshots; i++)
        if (child.snapshots[i].disk_size > *out)
            *out = child.snapshots[i].disk_size;
    return 0;
}

/* The base after a merge: what the range's top reads from the range; behind its end what the base has, but
 * zeros where a child would see it. */
static int
take_merged(struct qm_picture *p, struct qmeld_chain *chain, struct qmeld_error *err)
{
    struct walk walk = {.picture = p,
                        .row = &p->merged,
                        .top = p->top,
                        .bottom = p->base,
                        .zero_past_end = p->base > 0,
                        .counts = TALLY_MERGING};
    const uint64_t top_end = p->layers[p->top].virtual_size;
    const uint64_t base_end = p->layers[p->base].virtual_size;
    uint64_t at, hidden;

    walk.end = p->end;
    if (walk_layers(&walk, chain, 0, p->start, err) < 0 ||
        find_hidden_end(p, chain, &hidden, err) < 0)
        return -1;
    if (hidden > base_end)
        hidden = base_end;
    at = top_end > p->start ? top_end : p->start;
    if (hidden > at && at < p->end) {
        walk.end = hidden < p->end ? hidden : p->end;
        put(&walk, at, hidden - at, p->top, QM_CELL_ZERO);
        at = walk.end;
    }
    walk.end = base_end < p->end ? base_end : p->end;
    walk.top = p->base;
    return walk_layers(&walk, chain, p->base, at, err);
}

/* ---- names and numbers ---- */

/* Cut between characters; "..." in front says so. */
static char *
harmless(const char *text)
{
    char *quoted = qm_cli_quote(text);
    const size_t length = strlen(quoted);
    size_t from;

    if (length <= QM_PICTURE_NAME)
        return quoted;
    from = length - (QM_PICTURE_NAME - 3);
    while ((quoted[from] & 0xc0) == 0x80)
        from++;
    memcpy(quoted, "...", 3);
    memmove(quoted + 3, quoted + from, length - from + 1);
    return quoted;
}

char *
qm_picture_name(const char *path)
{
    const char *slash = strrchr(path, '/');

    return harmless(slash && slash[1] ? slash + 1 : path);
}

static int
describe(struct qm_picture_layer *layer, struct qmeld_chain *chain, size_t i,
         struct qmeld_error *err)
{
    struct qmeld_layer_info info;

    if (qmeld_chain_layer(chain, i, &info, err) < 0)
        return -1;
    layer->name = qm_picture_name(info.path);
    layer->path = harmless(info.path);
    snprintf(layer->format, sizeof layer->format, "%s", info.format);
    layer->virtual_size = info.virtual_size;
    layer->allocated = info.allocated;
    layer->cluster_size = info.cluster_size;
    return 0;
}

/* ---- cells ---- */

static uint64_t
smallest_cluster(const struct qm_picture *p)
{
    uint64_t smallest = UINT64_MAX;

    for (size_t i = 0; i < p->n_layers; i++)
        if (p->layers[i].cluster_size && p->layers[i].cluster_size < smallest)
            smallest = p->layers[i].cluster_size;
    return smallest == UINT64_MAX ? DEFAULT_UNIT : smallest;
}

static uint64_t
cells_of(uint64_t start, uint64_t end, uint64_t unit)
{
    return end > start ? (end - 1) / unit - start / unit + 1 : 0;
}

static uint64_t
unit_for(const struct qm_picture *p, uint64_t unit, size_t columns)
{
    while (cells_of(p->start, p->end, unit) > columns && unit < UINT64_C(1) << 62)
        unit <<= 1;
    return unit;
}

typedef void each_row(struct qm_picture_row *row, struct qm_picture *p);

static void
for_rows(struct qm_picture *p, each_row *call)
{
    for (size_t i = 0; i < p->n_layers; i++)
        call(&p->layers[i].own, p);
    call(&p->view, p);
    call(&p->merged, p);
}

static void
find_grain(struct qm_picture_row *row, struct qm_picture *p)
{
    if (row->runs.grain > p->grain)
        p->grain = row->runs.grain;
}

static void
make_even(struct qm_picture_row *row, struct qm_picture *p)
{
    if (row->runs.grain < p->grain)
        qm_runs_coarsen(&row->runs, p->grain);
}

static void
ask_exact(struct qm_picture_row *row, struct qm_picture *p)
{
    for (size_t i = 0; i < row->runs.n && p->exact; i++)
        p->exact = row->runs.run[i].n_parts == 1;
}

void
qm_picture_coarsen(struct qm_picture *picture, size_t columns)
{
    picture->grain = unit_for(picture, picture->grain, columns);
    for_rows(picture, make_even);
    for_rows(picture, ask_exact);
}

/* ---- the whole ---- */

static void
begin_rows(struct qm_picture *p, const struct qm_picture_options *options)
{
    const size_t n_rows = p->n_layers + 1 + p->has_range;
    size_t most = options->columns ? options->columns + 1 : options->most_runs / n_rows;

    p->grain = SECTOR;
    if (options->columns) {
        p->grain = unit_for(p, smallest_cluster(p), options->columns);
        p->start &= ~(p->grain - 1);
    }
    if (most < RUNS_A_ROW)
        most = RUNS_A_ROW;
    for (size_t i = 0; i < p->n_layers; i++)
        qm_runs_init(&p->layers[i].own.runs, most, p->grain);
    qm_runs_init(&p->view.runs, most, p->grain);
    qm_runs_init(&p->merged.runs, most, p->grain);
}

/* Layers that are longer than the top are shown as far as it goes. */
static void
clip(struct qm_picture *p, const struct qm_picture_options *options)
{
    const uint64_t end = p->layers[p->n_layers - 1].virtual_size;

    p->start = options->start < end ? options->start : end;
    p->end = options->length < end - p->start ? p->start + options->length : end;
}

static int
take_rows(struct qm_picture *p, struct qmeld_chain *chain, const struct qm_picture_options *options,
          struct qmeld_error *err)
{
    for (size_t i = 0; i < p->n_layers; i++)
        if (describe(&p->layers[i], chain, i, err) < 0)
            return -1;
    clip(p, options);
    begin_rows(p, options);
    for (size_t i = 0; i < p->n_layers; i++)
        if (take_own(p, chain, i, err) < 0)
            return -1;
    if (take_view(p, chain, err) < 0 || (p->has_range && take_merged(p, chain, err) < 0))
        return -1;
    for_rows(p, find_grain);
    for_rows(p, make_even);
    p->exact = true;
    for_rows(p, ask_exact);
    return 0;
}

int
qm_picture_take(struct qmeld_chain *chain, const struct qm_picture_options *options,
                struct qm_picture *out, struct qmeld_error *err)
{
    *out = (struct qm_picture){.n_layers = qmeld_chain_depth(chain),
                               .has_range = options->has_range,
                               .base = options->base,
                               .top = options->top};
    out->layers = calloc(out->n_layers, sizeof *out->layers);
    if (!out->layers)
        qm_cli_no_memory();
    if (take_rows(out, chain, options, err) == 0)
        return 0;
    qm_picture_release(out);
    return -1;
}

static void
release_row(struct qm_picture_row *row, struct qm_picture *p)
{
    (void)p;
    qm_runs_release(&row->runs);
}

void
qm_picture_release(struct qm_picture *picture)
{
    for_rows(picture, release_row);
    for (size_t i = 0; i < picture->n_layers; i++) {
        free(picture->layers[i].name);
        free(picture->layers[i].path);
    }
    free(picture->layers);
    *picture = (struct qm_picture){0};
}

struct qm_cli_size
qm_picture_offset(uint64_t offset)
{
    static const char units[] = " KMGTPE";
    struct qm_cli_size size;
    unsigned unit = 0;

    while (offset && offset % 1024 == 0 && unit < 6) {
        offset /= 1024;
        unit++;
    }
    snprintf(size.text, sizeof size.text, "%" PRIu64 "%.*s", offset, unit > 0, units + unit);
    return size;
}
