/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * draw.c - a chain as a picture of letters, or of blocks.
 *
 * A column stands for a power of two of bytes, so that the picture of a chain keeps its scale
 * from one run to the next.  A column that holds several things shows the rarest news: data
 * before zeros before nothing; a cluster alone in a terabyte is seen.
 */
#include "draw.h"

#include <inttypes.h>
#include <langinfo.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum {
    MIN_CELLS = 8,    /* narrower says nothing; the line then is wider than the terminal */
    MAX_CELLS = 4096, /* no terminal is wider */
    MAX_LABEL = 28,   /* columns of a name */
    TICK_CELLS = 10,  /* columns from one offset of the ruler to the next, at least */
};

/* What the legend has to explain. */
enum seen {
    SEEN_COMPRESSED,
    SEEN_ZERO,
    SEEN_ABSENT,
    SEEN_PAST_END,
    SEEN_MIXED,
    SEEN_PARTLY,
    SEEN_HIDDEN,
    N_SEEN,
};

struct cell {
    uint64_t bytes[QM_CELL_KINDS];
    uint64_t best;  /* bytes of the data that has most of it */
    uint32_t layer; /* whose that is */
};

struct strip {
    const struct qm_picture *picture;
    const struct qm_draw_style *style;
    size_t n_cells;
    size_t n_label; /* columns left of the cells */
    bool told[N_SEEN];
    struct cell *row;  /* the one that is drawn */
    struct cell *seen; /* of what the layer of this row has, what the top reads */
};

#define ALL_LAYERS SIZE_MAX

/* ---- cells ---- */

static void
put_part(struct cell *cell, const struct qm_part *part, uint64_t bytes)
{
    cell->bytes[part->kind] += bytes;
    if ((part->kind == QM_CELL_DATA || part->kind == QM_CELL_COMPRESSED) && bytes > cell->best) {
        cell->best = bytes;
        cell->layer = part->layer;
    }
}

static bool
is_of(const struct qm_part *part, size_t only)
{
    return only == ALL_LAYERS || part->kind == QM_CELL_MANY || part->layer == only;
}

/* only: a layer, whose parts are looked at (and those of which nobody knows whose they are). */
static void
fill(const struct strip *strip, const struct qm_runs *runs, size_t only, struct cell *cells)
{
    const uint64_t unit = strip->picture->grain, start = strip->picture->start;

    memset(cells, 0, strip->n_cells * sizeof *cells);
    for (size_t i = 0; i < runs->n; i++) {
        const struct qm_run *run = &runs->run[i];
        uint64_t at = run->start;
        const uint64_t end = run->start + run->length;

        for (size_t k = 0; run->n_parts > 1 && k < run->n_parts; k++)
            if (is_of(&run->parts[k], only))
                put_part(&cells[(at - start) / unit], &run->parts[k], run->parts[k].bytes);
        while (run->n_parts == 1 && is_of(&run->parts[0], only) && at < end) { /* many cells */
            const size_t cell = (at - start) / unit;
            const uint64_t next = end - at > unit - at % unit ? at + (unit - at % unit) : end;

            put_part(&cells[cell], &run->parts[0], next - at);
            at = next;
        }
    }
}

static enum qm_cell_kind
kind_of(const struct cell *cell)
{
    if (cell->bytes[QM_CELL_DATA] || cell->bytes[QM_CELL_MANY])
        return QM_CELL_DATA;
    if (cell->bytes[QM_CELL_COMPRESSED])
        return QM_CELL_COMPRESSED;
    return cell->bytes[QM_CELL_ZERO] ? QM_CELL_ZERO : QM_CELL_ABSENT;
}

static uint64_t
total_of(const struct cell *cell)
{
    uint64_t total = 0;

    for (size_t i = 0; i < QM_CELL_KINDS; i++)
        total += cell->bytes[i];
    return total;
}

/* ---- colours ---- */

/* Light and dark in turn, and no two of them alike for those who do not tell red from green: the colours of
 * page/chain.css, as near as 256 of them come. */
static const struct {
    unsigned char back, fore;
} colours[] = {{26, 231},  {215, 16}, {29, 231}, {117, 16},
               {130, 231}, {218, 16}, {97, 231}, {185, 16}};

static void
colour_on(const struct strip *strip, size_t layer, bool fill_back, bool dim)
{
    const size_t c = layer % (sizeof colours / sizeof *colours);

    if (!strip->style->colour)
        return;
    if (fill_back)
        printf("\033[48;5;%um\033[38;5;%um", colours[c].back, colours[c].fore);
    else
        printf("\033[%s38;5;%um", dim ? "2;" : "", colours[c].back);
}

static void
colour_off(const struct strip *strip)
{
    if (strip->style->colour)
        fputs("\033[0m", stdout);
}

/* ---- rows ---- */

/* Layer 0 is A; after Z it begins again, the rows tell which is meant. */
static char
letter_of(size_t layer, bool compressed)
{
    return (char)((compressed ? 'a' : 'A') + layer % 26);
}

static void
note_seen(struct strip *strip, const struct cell *cell)
{
    unsigned kinds = 0;

    kinds += cell->bytes[QM_CELL_ABSENT] > 0;
    kinds += cell->bytes[QM_CELL_ZERO] > 0;
    kinds += cell->bytes[QM_CELL_COMPRESSED] > 0;
    kinds += cell->bytes[QM_CELL_DATA] > 0;
    if (kinds > 1)
        strip->told[SEEN_MIXED] = true;
    if (kinds == 0)
        strip->told[SEEN_PAST_END] = true;
    else if (kind_of(cell) != QM_CELL_DATA)
        strip->told[kind_of(cell) == QM_CELL_COMPRESSED ? SEEN_COMPRESSED
                    : kind_of(cell) == QM_CELL_ZERO     ? SEEN_ZERO
                                                        : SEEN_ABSENT] = true;
}

static void
print_quiet(const struct strip *strip, enum qm_cell_kind kind)
{
    if (strip->style->colour)
        fputs("\033[2m", stdout);
    if (strip->style->blocks)
        fputs(kind == QM_CELL_ZERO ? "\u25e6" : "\u00b7", stdout);
    else
        putchar(kind == QM_CELL_ZERO ? '0' : '.');
    colour_off(strip);
}

static void
print_letters(struct strip *strip, bool of_view)
{
    for (size_t i = 0; i < strip->n_cells; i++) {
        const struct cell *cell = &strip->row[i];
        const enum qm_cell_kind kind = kind_of(cell);

        note_seen(strip, cell);
        if (total_of(cell) == 0) {
            putchar(' ');
        } else if (kind == QM_CELL_DATA || kind == QM_CELL_COMPRESSED) {
            colour_on(strip, cell->layer, of_view, false);
            putchar(letter_of(cell->layer, kind == QM_CELL_COMPRESSED));
            colour_off(strip);
        } else {
            print_quiet(strip, kind);
        }
    }
}

/* How much of the column is data; all of it hidden by layers above; compressed. */
static void
print_blocks(struct strip *strip, size_t layer)
{
    static const char *const heights[] = {"\u2581", "\u2582", "\u2583", "\u2584",
                                          "\u2585", "\u2586", "\u2587", "\u2588"};

    for (size_t i = 0; i < strip->n_cells; i++) {
        const struct cell *cell = &strip->row[i];
        const uint64_t total = total_of(cell);
        const uint64_t some = cell->bytes[QM_CELL_DATA] + cell->bytes[QM_CELL_COMPRESSED];
        const bool hidden = kind_of(&strip->seen[i]) < QM_CELL_COMPRESSED;

        note_seen(strip, cell);
        if (some == 0 || total == 0) {
            if (total == 0)
                putchar(' ');
            else
                print_quiet(strip, kind_of(cell));
            continue;
        }
        colour_on(strip, layer, false, hidden);
        if (hidden)
            fputs("\u2591", stdout);
        else if (kind_of(cell) == QM_CELL_COMPRESSED)
            fputs("\u2592", stdout);
        else
            fputs(heights[some / (total / 8 + 1) > 7 ? 7 : some / (total / 8 + 1)], stdout);
        colour_off(strip);
        strip->told[SEEN_HIDDEN] |= hidden;
        strip->told[SEEN_PARTLY] |= !hidden && some < total;
    }
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

/* "[3] top.qcow2      ": the end of a long name says more than its beginning. */
static void
print_label(const struct strip *strip, size_t layer)
{
    const char *name = strip->picture->layers[layer].name, *shown = name;
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

static void
draw_layer(struct strip *strip, size_t layer)
{
    const struct qm_picture *p = strip->picture;

    fill(strip, &p->layers[layer].own.runs, ALL_LAYERS, strip->row);
    print_label(strip, layer);
    if (strip->style->blocks) {
        fill(strip, &p->view.runs, layer, strip->seen);
        print_blocks(strip, layer);
    } else {
        print_letters(strip, false);
    }
    putchar('\n');
}

/* Two lines: offsets, and ticks under their first digit. */
static void
print_ruler(const struct strip *strip)
{
    const struct qm_picture *p = strip->picture;
    size_t step = TICK_CELLS, column = 0;

    while (step & (step - 1)) /* a power of two keeps the offsets round */
        step++;
    printf("%*s", (int)strip->n_label, "");
    for (size_t i = 0; i < strip->n_cells; i += step) {
        const struct qm_cli_size text = qm_picture_offset(p->start + i * p->grain);

        if (i > 0 && i + strlen(text.text) > strip->n_cells)
            break;
        column += (size_t)printf("%*s%s", i > column ? (int)(i - column) : i > 0, "", text.text);
    }
    printf("\n%*s", (int)strip->n_label, "");
    for (size_t i = 0; i < strip->n_cells; i++)
        fputs(!strip->style->blocks ? (i % step ? "-" : "|")
              : i % step            ? "\u2500"
                                    : "\u252c",
              stdout);
    putchar('\n');
}

static void
print_rule(const struct strip *strip)
{
    printf("%*s", (int)strip->n_label, "");
    for (size_t i = 0; i < strip->n_cells; i++)
        fputs(strip->style->blocks ? "\u2500" : "-", stdout);
    putchar('\n');
}

static void
draw_view(struct strip *strip)
{
    fill(strip, &strip->picture->view.runs, ALL_LAYERS, strip->row);
    printf("%-*s", (int)strip->n_label, "reads as");
    print_letters(strip, true);
    putchar('\n');
}

/* What is the base's own already stays where it is: it is not drawn. */
static void
draw_moves(struct strip *strip)
{
    const struct qm_picture *p = strip->picture;
    char label[48];

    memset(strip->row, 0, strip->n_cells * sizeof *strip->row);
    fill(strip, &p->merged.runs, ALL_LAYERS, strip->row);
    fill(strip, &p->merged.runs, p->base, strip->seen);
    for (size_t i = 0; i < strip->n_cells; i++) {
        struct cell *cell = &strip->row[i];
        uint64_t stays = 0;

        for (size_t k = QM_CELL_ZERO; k < QM_CELL_MANY; k++) {
            stays += strip->seen[i].bytes[k];
            cell->bytes[k] -= strip->seen[i].bytes[k];
        }
        cell->bytes[QM_CELL_ABSENT] += stays;
    }
    snprintf(label, sizeof label, "goes to [%zu]", p->base + 1);
    printf("%-*s", (int)strip->n_label, label);
    print_letters(strip, true);
    putchar('\n');
}

/* ---- legend ---- */

static void
print_blocks_legend(const struct strip *strip)
{
    if (strip->told[SEEN_PARTLY])
        puts("\u2581 to \u2588  data: how much of the column it is");
    else
        puts("\u2588       data");
    if (strip->told[SEEN_COMPRESSED])
        puts("\u2592       compressed data");
    if (strip->told[SEEN_HIDDEN])
        puts("\u2591       data that is hidden by layers above");
    if (strip->told[SEEN_ZERO])
        puts("\u25e6       zeros");
}

/* Only what the picture shows is explained. */
static void
print_legend(const struct strip *strip)
{
    const struct qm_picture *p = strip->picture;
    const size_t depth = p->n_layers;
    const char *pad = strip->style->blocks ? "   " : "";

    printf("\none column: %s (%" PRIu64 " bytes)\n", qm_cli_size(p->grain).text, p->grain);
    if (strip->style->blocks)
        print_blocks_legend(strip);
    if (depth > 1)
        printf("A-%c%s  data of [1]-[%zu]%s", letter_of(depth > 26 ? 25 : depth - 1, false), pad,
               depth, depth > 26 ? ", again from A after Z" : "");
    else
        printf("A%s    data", pad);
    puts(strip->told[SEEN_COMPRESSED] ? "; small letters: compressed" : "");
    if (strip->told[SEEN_ZERO] && !strip->style->blocks)
        puts("0    zeros");
    if (strip->told[SEEN_ABSENT])
        printf("%s%s    nothing here: the layer below answers; below the base, zeros\n",
               strip->style->blocks ? "\u00b7" : ".", pad);
    if (strip->told[SEEN_PAST_END])
        printf("%s     blank: past the layer's end, and what lies below cannot be seen there\n",
               pad);
    if (strip->told[SEEN_MIXED])
        printf(
            "%s     where a column holds several, data goes before zeros, zeros before nothing\n",
            pad);
}

static void
print_range(const struct strip *strip)
{
    const struct qm_picture *p = strip->picture;
    uint64_t data = 0, zeros = 0;

    for (size_t i = p->base + 1; i <= p->top; i++) {
        data += p->layers[i].merging[QM_CELL_DATA] + p->layers[i].merging[QM_CELL_COMPRESSED];
        zeros += p->layers[i].merging[QM_CELL_ZERO];
    }
    printf("\na merge of [%zu]..[%zu] into [%zu] moves %s (%" PRIu64
           " bytes) of data, and %s (%" PRIu64 " bytes) of zeros\n",
           p->base + 2, p->top + 1, p->base + 1, qm_cli_size(data).text, data,
           qm_cli_size(zeros).text, zeros);
}

/* ---- the whole ---- */

/* Room left of the cells, on a terminal of that width. */
static size_t
label_columns(size_t depth, size_t widest, bool has_range, size_t width)
{
    const size_t least = strlen("reads as");
    size_t columns, moves;
    char text[48];

    if (widest < least)
        widest = least;
    if (widest > MAX_LABEL)
        widest = MAX_LABEL;
    if (widest > width / 3) /* the picture needs the room more than the name */
        widest = width / 3 > least ? width / 3 : least;
    columns = (size_t)snprintf(text, sizeof text, "[%zu] ", depth) + widest + 2;
    moves = (size_t)snprintf(text, sizeof text, "goes to [%zu]", depth) + 2;
    return has_range && columns < moves ? moves : columns;
}

int
qm_draw_strip_columns(struct qmeld_chain *chain, bool has_range, const struct qm_draw_style *style,
                      size_t *out, struct qmeld_error *err)
{
    const size_t depth = qmeld_chain_depth(chain);
    size_t widest = 0, label;

    for (size_t i = 0; i < depth; i++) {
        struct qmeld_layer_info info;
        QM_CLI_FREE char *name = NULL;

        if (qmeld_chain_layer(chain, i, &info, err) < 0)
            return -1;
        name = qm_picture_name(info.path);
        if (columns_of(name) > widest)
            widest = columns_of(name);
    }
    label = label_columns(depth, widest, has_range, style->width);
    *out = style->width > label + MIN_CELLS ? style->width - label : MIN_CELLS;
    if (*out > MAX_CELLS)
        *out = MAX_CELLS;
    return 0;
}

void
qm_draw_strip(const struct qm_picture *picture, const struct qm_draw_style *style)
{
    struct strip strip = {.picture = picture, .style = style};
    size_t widest = 0;

    if (picture->start >= picture->end) {
        puts("there is nothing to draw: the image, or the part asked for, is empty");
        return;
    }
    for (size_t i = 0; i < picture->n_layers; i++)
        if (columns_of(picture->layers[i].name) > widest)
            widest = columns_of(picture->layers[i].name);
    strip.n_label = label_columns(picture->n_layers, widest, picture->has_range, style->width);
    strip.n_cells =
        (size_t)((picture->end - 1) / picture->grain - picture->start / picture->grain + 1);
    strip.row = calloc(strip.n_cells, 2 * sizeof *strip.row);
    if (!strip.row)
        qm_cli_no_memory();
    strip.seen = strip.row + strip.n_cells;
    print_ruler(&strip);
    for (size_t i = picture->n_layers; i-- > 0;)
        draw_layer(&strip, i);
    print_rule(&strip);
    draw_view(&strip);
    if (picture->has_range)
        draw_moves(&strip);
    print_legend(&strip);
    if (picture->has_range)
        print_range(&strip);
    free(strip.row);
}

static size_t
terminal_width(void)
{
    const char *columns = getenv("COLUMNS");
    struct winsize size;
    uint64_t width;

    if (columns && qm_cli_parse_number(columns, 10000, &width) && width > 0)
        return (size_t)width;
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0)
        return size.ws_col;
    return QM_DRAW_PIPE_WIDTH;
}

struct qm_draw_style
qm_draw_style_of_stdout(void)
{
    const char *no_colour = getenv("NO_COLOR"), *term = getenv("TERM");
    const bool plain = no_colour && *no_colour; /* no-color.org */
    const locale_t locale = newlocale(LC_CTYPE_MASK, "", (locale_t)0);
    struct qm_draw_style style = {.width = terminal_width()};

    style.blocks = !plain && locale && strcmp(nl_langinfo_l(CODESET, locale), "UTF-8") == 0;
    style.colour = !plain && isatty(STDOUT_FILENO) && term && *term && strcmp(term, "dumb") != 0;
    if (locale)
        freelocale(locale);
    return style;
}
