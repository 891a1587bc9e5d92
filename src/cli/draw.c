/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * draw.c - a chain as a picture of letters.
 *
 * A column stands for a power of two of bytes, so that the picture of a chain keeps its scale
 * from one run to the next.  A column that holds several things shows the rarest news: data
 * before zeros before nothing; a cluster alone in a terabyte is seen.
 */
#include "draw.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum {
    MIN_CELLS = 8,    /* narrower says nothing; the line then is wider than the terminal */
    MAX_CELLS = 4096, /* no terminal is wider */
    MAX_LABEL = 28,   /* columns of a name */
    TICK_CELLS = 10,  /* columns from one offset of the ruler to the next, at least */
    ABSENT = '.',
    ZERO = '0',
};

/* What the legend has to explain. */
enum seen {
    SEEN_COMPRESSED,
    SEEN_ZERO,
    SEEN_ABSENT,
    SEEN_PAST_END,
    SEEN_MIXED,
    N_SEEN,
};

struct strip {
    uint64_t start;
    uint64_t length;
    uint64_t unit; /* bytes a cell stands for, a power of two */
    size_t n_cells;
    size_t n_label; /* columns left of the cells */
    size_t depth;
    bool seen[N_SEEN];
    /* the row being filled */
    char *cells;  /* n_cells + 1 */
    size_t layer; /* whose own content is walked; SIZE_MAX: the view of the top */
};

static int
rank(char cell)
{
    if (cell == ' ')
        return 0;
    if (cell == ABSENT)
        return 1;
    if (cell == ZERO)
        return 2;
    return cell >= 'a' ? 3 : 4;
}

/* Layer 0 is A; after Z it begins again, the rows tell which is meant. */
static char
letter_of(size_t layer, bool compressed)
{
    return (char)((compressed ? 'a' : 'A') + layer % 26);
}

static char
cell_of(const struct strip *strip, const struct qmeld_extent *extent)
{
    if (extent->data)
        return letter_of(strip->layer == SIZE_MAX ? strip->depth - 1 - extent->depth : strip->layer,
                         extent->compressed);
    return extent->present && extent->zero ? ZERO : ABSENT;
}

static int
paint(const struct qmeld_extent *extent, void *opaque)
{
    struct strip *strip = opaque;
    const char cell = cell_of(strip, extent);
    size_t first, last;

    if (extent->length == 0 || extent->start < strip->start)
        return 0;
    first = (extent->start - strip->start) / strip->unit;
    last = (extent->start - strip->start + (extent->length - 1)) / strip->unit;
    for (size_t i = first; i <= last && i < strip->n_cells; i++) {
        if (strip->cells[i] != ' ' && rank(strip->cells[i]) != rank(cell))
            strip->seen[SEEN_MIXED] = true;
        if (rank(cell) > rank(strip->cells[i]))
            strip->cells[i] = cell;
    }
    return 0;
}

static int
fill_row(struct strip *strip, struct qmeld_chain *chain, struct qmeld_error *err)
{
    memset(strip->cells, ' ', strip->n_cells);
    strip->cells[strip->n_cells] = '\0';
    if (qmeld_map(chain, strip->start, strip->length, paint, strip, err) < 0)
        return -1;
    for (size_t i = 0; i < strip->n_cells; i++) {
        static const enum seen kinds[] = {SEEN_PAST_END, SEEN_ABSENT, SEEN_ZERO, SEEN_COMPRESSED};
        const int kind = rank(strip->cells[i]);

        if (kind < 4) /* plain letters are always explained */
            strip->seen[kinds[kind]] = true;
    }
    return 0;
}

/* Columns of UTF-8 text on a terminal, near enough: one a character. */
static size_t
columns_of(const char *text)
{
    size_t n = 0;

    for (; *text; text++)
        n += (*text & 0xc0) != 0x80;
    return n;
}

static char *
name_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return qm_cli_quote(slash && slash[1] ? slash + 1 : path);
}

/* "[3] top.qcow2      ": the end of a long name says more than its beginning. */
static void
print_label(const struct strip *strip, size_t layer, const char *path)
{
    QM_CLI_FREE char *name = name_of(path);
    const char *shown = name;
    size_t n_columns = columns_of(name), room;
    bool cut = false;
    char number[32];

    snprintf(number, sizeof number, "[%zu] ", layer + 1);
    room = strip->n_label - 2 - strlen(number);
    while (n_columns + cut > room) { /* drops a character with all of its bytes */
        cut = true;
        do
            shown++;
        while ((*shown & 0xc0) == 0x80);
        n_columns--;
    }
    printf("%s%s%s%*s", number, cut ? "~" : "", shown, (int)(room + 2 - n_columns - cut), "");
}

static int
draw_layer(struct strip *strip, const struct qmeld_layer_info *info, size_t layer,
           struct qmeld_error *err)
{
    const struct qmeld_open_options options = {.format = info->format, .single = true};
    struct qmeld_chain *alone = NULL;
    int result;

    if (qmeld_chain_open(info->path, &options, &alone, err) < 0)
        return -1;
    strip->layer = layer;
    result = fill_row(strip, alone, err);
    qmeld_chain_close(alone);
    if (result < 0)
        return -1;
    print_label(strip, layer, info->path);
    puts(strip->cells);
    return 0;
}

/* "640K": a whole number of the largest unit that divides it; offsets of cells are round. */
static void
short_offset(uint64_t offset, char *out, size_t n_out)
{
    static const char units[] = " KMGTPE";
    unsigned unit = 0;

    while (offset && offset % 1024 == 0 && unit < 6) {
        offset /= 1024;
        unit++;
    }
    if (unit == 0)
        snprintf(out, n_out, "%" PRIu64, offset);
    else
        snprintf(out, n_out, "%" PRIu64 "%c", offset, units[unit]);
}

/* Two lines: offsets, and ticks under their first digit. */
static void
print_ruler(const struct strip *strip)
{
    size_t step = TICK_CELLS, column = 0;
    char text[32];

    while (step & (step - 1)) /* a power of two keeps the offsets round */
        step++;
    printf("%*s", (int)strip->n_label, "");
    for (size_t i = 0; i < strip->n_cells; i += step) {
        short_offset(strip->start + i * strip->unit, text, sizeof text);
        if (i > 0 && i + strlen(text) > strip->n_cells)
            break;
        column += (size_t)printf("%*s%s", i > column ? (int)(i - column) : i > 0, "", text);
    }
    printf("\n%*s", (int)strip->n_label, "");
    for (size_t i = 0; i < strip->n_cells; i++)
        putchar(i % step == 0 ? '|' : '-');
    putchar('\n');
}

/* Only what the picture shows is explained. */
static void
print_legend(const struct strip *strip)
{
    const char last = letter_of(strip->depth > 26 ? 25 : strip->depth - 1, false);

    printf("\none column: %s (%" PRIu64 " bytes)\n", qm_cli_size(strip->unit).text, strip->unit);
    if (strip->depth > 1)
        printf("A-%c  data of [1]-[%zu]%s", last, strip->depth,
               strip->depth > 26 ? ", again from A after Z" : "");
    else
        printf("A    data");
    puts(strip->seen[SEEN_COMPRESSED] ? "; small letters: compressed" : "");
    if (strip->seen[SEEN_ZERO])
        puts("0    zeros");
    if (strip->seen[SEEN_ABSENT])
        puts(".    nothing here: the layer below answers; below the base, zeros");
    if (strip->seen[SEEN_PAST_END])
        puts("     blank: past the layer's end, and what lies below cannot be seen there");
    if (strip->seen[SEEN_MIXED])
        puts("     where a column holds several, data goes before zeros, zeros before nothing");
}

/* Begins at a whole column, so that the ruler shows round numbers. */
static void
choose_scale(struct strip *strip, uint64_t smallest, size_t columns)
{
    uint64_t before, cells;

    strip->unit = smallest;
    for (;;) {
        before = strip->start & (strip->unit - 1);
        cells = (before + (strip->length - 1)) / strip->unit + 1;
        if (cells <= columns)
            break;
        strip->unit <<= 1;
    }
    strip->start -= before;
    strip->length += before;
    strip->n_cells = (size_t)cells;
}

/* The width of the labels on a terminal of width columns, and the smallest cluster. */
static int
survey(struct strip *strip, struct qmeld_chain *chain, size_t width, uint64_t *smallest,
       struct qmeld_error *err)
{
    size_t widest = strlen("reads as");
    uint64_t cluster = UINT64_MAX;
    char number[32];

    for (size_t i = 0; i < strip->depth; i++) {
        struct qmeld_layer_info info;
        QM_CLI_FREE char *name = NULL;

        if (qmeld_chain_layer(chain, i, &info, err) < 0)
            return -1;
        name = name_of(info.path);
        if (columns_of(name) > widest)
            widest = columns_of(name);
        if (info.cluster_size && info.cluster_size < cluster)
            cluster = info.cluster_size;
    }
    *smallest = cluster == UINT64_MAX ? 65536 : cluster;
    if (widest > MAX_LABEL)
        widest = MAX_LABEL;
    if (widest > width / 3) /* the picture needs the room more than the name */
        widest = width / 3 > strlen("reads as") ? width / 3 : strlen("reads as");
    strip->n_label = (size_t)snprintf(number, sizeof number, "[%zu] ", strip->depth) + widest + 2;
    return 0;
}

static int
draw_rows(struct strip *strip, struct qmeld_chain *chain, struct qmeld_error *err)
{
    print_ruler(strip);
    for (size_t i = strip->depth; i-- > 0;) {
        struct qmeld_layer_info info;

        if (qmeld_chain_layer(chain, i, &info, err) < 0 || draw_layer(strip, &info, i, err) < 0)
            return -1;
    }
    strip->layer = SIZE_MAX;
    if (fill_row(strip, chain, err) < 0)
        return -1;
    printf("%*s", (int)strip->n_label, "");
    for (size_t i = 0; i < strip->n_cells; i++)
        putchar('-');
    printf("\n%-*s%s\n", (int)strip->n_label, "reads as", strip->cells);
    print_legend(strip);
    return 0;
}

int
qm_cli_draw_strip(struct qmeld_chain *chain, uint64_t start, uint64_t length, size_t width,
                  struct qmeld_error *err)
{
    struct strip strip = {.depth = qmeld_chain_depth(chain)};
    struct qmeld_layer_info top;
    size_t columns = MIN_CELLS;
    uint64_t smallest;
    int result;

    if (qmeld_chain_layer(chain, strip.depth - 1, &top, err) < 0 ||
        survey(&strip, chain, width, &smallest, err) < 0)
        return -1;
    strip.start = start < top.virtual_size ? start : top.virtual_size;
    strip.length = top.virtual_size - strip.start;
    if (strip.length > length)
        strip.length = length;
    if (width > strip.n_label + MIN_CELLS)
        columns = width - strip.n_label;
    if (strip.length == 0) {
        puts("there is nothing to draw: the image, or the part asked for, is empty");
        return 0;
    }
    choose_scale(&strip, smallest, columns < MAX_CELLS ? columns : MAX_CELLS);
    strip.cells = malloc(strip.n_cells + 1);
    if (!strip.cells) {
        *err = (struct qmeld_error){.code = QMELD_NOMEM, .what = "out of memory"};
        return -1;
    }
    result = draw_rows(&strip, chain, err);
    free(strip.cells);
    return result;
}
