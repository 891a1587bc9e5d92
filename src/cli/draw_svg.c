/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * draw_svg.c - a chain as an SVG picture.
 *
 * A strip for each layer, the active layer on top, and one for what the top reads.  In a layer's strip
 * all that it holds is pale, and what the top reads of that is in full colour.  A column that holds
 * several things is filled from below, data first, by how much of it there is: but never by less
 * than can be seen.
 *
 * There are a handful of paths in each strip, one for each way to fill, so that a picture's length depends on
 * its columns and layers alone.
 */
#include "draw_svg.h"

#include "draw.h"
#include "markup.h"
#include "page.h"

#include <inttypes.h>
#include <string.h>

enum {
    MOST_COLUMNS = 1024, /* of a strip */
    LEAST_COLUMNS = 64,
    MOST_CELLS = 100000, /* of all strips, as long as each has a few: about 10 MiB at the worst */
    WIDTH = 1240,
    LEFT = 262, /* of the strips */
    STRIP = 952,
    ROW = 46, /* from one strip to the next */
    HIGH = 30,
    FIRST = 104, /* the uppermost strip */
    LEGEND = 70,
    VISIBLE = 3,     /* the least height of what is there */
    MAX_LABELS = 96, /* layers' numbers in the strip of the view */
    LABEL_ROOM = 22,
    NAME_ROOM = 30, /* columns of a name */
};

struct svg {
    const struct qm_picture *picture;
    unsigned top; /* of the strip that is drawn */
};

static double
x_of(const struct qm_picture *p, uint64_t offset)
{
    return (double)(offset - p->start) / (double)(p->end - p->start) * STRIP + LEFT;
}

/* ---- paths ---- */

/* What of a run goes into a path. */
struct wanted {
    unsigned kinds; /* bits 1 << enum qm_cell_kind */
    size_t first;   /* of these layers */
    size_t last;
};

enum {
    ZERO = 1 << QM_CELL_ZERO,
    PACKED = 1 << QM_CELL_COMPRESSED,
    DATA = 1 << QM_CELL_DATA,
    MANY = 1 << QM_CELL_MANY,
};

static bool
is_wanted(const struct wanted *wanted, const struct qm_part *part)
{
    return (wanted->kinds >> part->kind & 1) &&
           (part->kind == QM_CELL_MANY ||
            (part->layer >= wanted->first && part->layer <= wanted->last));
}

static void
put_box(double x0, double x1, double y, double height)
{
    if (x1 - x0 < 1)
        x1 = x0 + 1;
    printf("M%.2f %.2fH%.2fV%.2fH%.2fz", x0, y, x1, y + height, x0);
}

/* Parts in the order in which a column is filled from below: data, then the rest, lower layers first. */
static int
order_of(const struct qm_part *part)
{
    static const int by_kind[] = {
        [QM_CELL_DATA] = 0, [QM_CELL_COMPRESSED] = 1, [QM_CELL_MANY] = 2,
        [QM_CELL_ZERO] = 3, [QM_CELL_ABSENT] = 4,
    };

    return by_kind[part->kind];
}

static bool
is_before(const struct qm_part *a, const struct qm_part *b)
{
    return order_of(a) != order_of(b) ? order_of(a) < order_of(b) : a->layer < b->layer;
}

static void
sort_parts(struct qm_part *parts, unsigned n)
{
    for (unsigned i = 1; i < n; i++)
        for (unsigned k = i; k > 0 && is_before(&parts[k], &parts[k - 1]); k--) {
            const struct qm_part swap = parts[k];

            parts[k] = parts[k - 1];
            parts[k - 1] = swap;
        }
}

/* alone: as if the parts that are wanted were all there is, so that they begin at the bottom. */
static void
put_cell(const struct svg *svg, const struct qm_run *run, const struct wanted *wanted, bool alone)
{
    const double x0 = x_of(svg->picture, run->start);
    const double x1 = x_of(svg->picture, run->start + run->length);
    double y = svg->top + HIGH;
    struct qm_run sorted = *run;

    sort_parts(sorted.parts, sorted.n_parts);
    for (unsigned i = 0; i < sorted.n_parts; i++) {
        const struct qm_part *part = &sorted.parts[i];
        const bool take = is_wanted(wanted, part);
        double height = (double)part->bytes / (double)run->length * HIGH;

        if (part->kind == QM_CELL_ABSENT || (alone && !take))
            continue;
        if (height < VISIBLE)
            height = VISIBLE;
        if (height > y - svg->top)
            height = y - svg->top;
        y -= height;
        if (take && height > 0)
            put_box(x0, x1, y, height);
    }
}

static bool
has_any(const struct qm_runs *runs, const struct wanted *wanted)
{
    for (size_t i = 0; i < runs->n; i++)
        for (unsigned k = 0; k < runs->run[i].n_parts; k++)
            if (is_wanted(wanted, &runs->run[i].parts[k]))
                return true;
    return false;
}

static void
put_path(const struct svg *svg, const struct qm_runs *runs, struct wanted wanted, const char *style,
         int colour, bool alone)
{
    if (!has_any(runs, &wanted))
        return;
    printf("<path class=\"%s", style);
    if (colour >= 0)
        printf("%sc%d", *style ? " " : "", colour % QM_DRAW_PALETTE);
    fputs("\" d=\"", stdout);
    for (size_t i = 0; i < runs->n; i++) {
        const struct qm_run *run = &runs->run[i];

        if (run->n_parts > 1)
            put_cell(svg, run, &wanted, alone);
        else if (is_wanted(&wanted, &run->parts[0]))
            put_box(x_of(svg->picture, run->start), x_of(svg->picture, run->start + run->length),
                    svg->top, HIGH);
    }
    fputs("\"/>\n", stdout);
}

/* ---- strips ---- */

static void
put_track(const struct svg *svg, uint64_t size)
{
    const struct qm_picture *p = svg->picture;
    const uint64_t end = size < p->end ? size : p->end;

    if (end > p->start)
        printf("<rect class=\"track\" x=\"%d\" y=\"%u\" width=\"%.2f\" height=\"%d\"/>\n", LEFT,
               svg->top, x_of(p, end) - LEFT, HIGH);
}

/* The end of a long name says more than its beginning. */
static const char *
cut_name(const char *name, bool *cut)
{
    size_t n = 0;

    for (const char *s = name; *s; s++)
        n += (*s & 0xc0) != 0x80;
    *cut = n > NAME_ROOM;
    for (; *cut && n > NAME_ROOM - 1; n--)
        do
            name++;
        while ((*name & 0xc0) == 0x80);
    return name;
}

static uint64_t
data_of(const uint64_t *sum)
{
    return sum[QM_CELL_DATA] + sum[QM_CELL_COMPRESSED];
}

static void
put_layer_texts(const struct svg *svg, size_t i)
{
    const struct qm_picture_layer *l = &svg->picture->layers[i];
    bool cut;
    const char *name = cut_name(l->name, &cut);

    fputs("<title>", stdout);
    qm_markup_textf("[%zu] %s", i + 1, l->path);
    fputs("</title><desc>", stdout);
    qm_markup_textf("%s, %s; holds %" PRIu64 " bytes of data, %" PRIu64
                    " of them compressed, and %" PRIu64 " of zeros; the top reads %" PRIu64
                    " bytes of its data",
                    l->format, qm_cli_size(l->virtual_size).text, data_of(l->own.sum),
                    l->own.sum[QM_CELL_COMPRESSED], l->own.sum[QM_CELL_ZERO], data_of(l->seen));
    printf("</desc>\n<svg x=\"24\" y=\"%u\" width=\"%d\" height=\"%d\">"
           "<text class=\"name\" x=\"0\" y=\"13\">[%zu] ",
           svg->top, LEFT - 34, HIGH + 4, i + 1);
    if (cut)
        fputs("&#8230;", stdout);
    qm_markup_text(name);
    fputs("</text><text class=\"soft\" x=\"0\" y=\"28\">", stdout);
    qm_markup_textf("%s", l->format);
    if (l->virtual_size != svg->picture->layers[svg->picture->n_layers - 1].virtual_size)
        qm_markup_textf(" of %s", qm_cli_size(l->virtual_size).text);
    qm_markup_textf(": %s data, ", qm_cli_size(data_of(l->own.sum)).text);
    qm_markup_textf("%s seen", data_of(l->seen) == data_of(l->own.sum)
                                   ? "all"
                                   : qm_cli_size(data_of(l->seen)).text);
    fputs("</text></svg>\n", stdout);
}

static void
put_layer(const struct svg *svg, size_t i)
{
    const struct qm_picture *p = svg->picture;
    const struct qm_picture_layer *l = &p->layers[i];
    const int colour = (int)(i % QM_DRAW_PALETTE);

    printf("<g class=\"strip\" role=\"img\" data-row=\"layer\" data-layer=\"%zu\">", i + 1);
    put_layer_texts(svg, i);
    put_track(svg, l->virtual_size);
    put_path(svg, &l->own.runs, (struct wanted){DATA | PACKED, i, i}, "pale", colour, false);
    put_path(svg, &l->own.runs, (struct wanted){ZERO, i, i}, "pale zero", -1, false);
    put_path(svg, &l->own.runs, (struct wanted){PACKED, i, i}, "pale packed", -1, false);
    put_path(svg, &p->view.runs, (struct wanted){DATA | PACKED, i, i}, "seen", colour, true);
    put_path(svg, &p->view.runs, (struct wanted){ZERO, i, i}, "seen zero", -1, true);
    put_path(svg, &p->view.runs, (struct wanted){PACKED, i, i}, "seen packed", -1, true);
    if (p->has_range && i > p->base && i <= p->top)
        put_path(svg, &p->merged.runs, (struct wanted){DATA | PACKED | ZERO, i, i}, "hatch", -1,
                 true);
    fputs("</g>\n", stdout);
}

/* The layers' numbers, where there is room. */
static void
put_numbers(const struct svg *svg, const struct qm_runs *runs)
{
    unsigned n = 0;

    for (size_t i = 0; i < runs->n && n < MAX_LABELS; i++) {
        const struct qm_run *run = &runs->run[i];
        const struct qm_part *part = &run->parts[0];
        const double x0 = x_of(svg->picture, run->start);
        const double x1 = x_of(svg->picture, run->start + run->length);

        if (run->n_parts > 1 || x1 - x0 < LABEL_ROOM || part->kind != QM_CELL_DATA)
            continue;
        printf("<text class=\"on %s\" x=\"%.2f\" y=\"%u\">%" PRIu32 "</text>\n",
               part->layer % 2 ? "on-light" : "on-dark", (x0 + x1) / 2, svg->top + HIGH / 2 + 4,
               part->layer + 1);
        n++;
    }
}

/* A strip whose colours tell whose bytes those are. */
static void
put_mixed(const struct svg *svg, const struct qm_runs *runs, size_t first, size_t last, bool alone)
{
    for (size_t i = first; i <= last; i++)
        put_path(svg, runs, (struct wanted){DATA | PACKED, i, i}, "seen",
                 (int)(i % QM_DRAW_PALETTE), alone);
    put_path(svg, runs, (struct wanted){PACKED, first, last}, "packed", -1, alone);
    put_path(svg, runs, (struct wanted){ZERO, first, last}, "zero", -1, alone);
    put_path(svg, runs, (struct wanted){MANY, 0, 0}, "many", -1, alone);
}

static void
put_caption(const struct svg *svg, const char *name, const char *soft)
{
    printf("<title>%s: %s</title><svg x=\"24\" y=\"%u\" width=\"%d\" height=\"%d\">"
           "<text class=\"name\" x=\"0\" y=\"13\">%s</text><text class=\"soft\" x=\"0\" "
           "y=\"28\">%s</text></svg>\n",
           name, soft, svg->top, LEFT - 34, HIGH + 4, name, soft);
}

static void
put_view(const struct svg *svg)
{
    const struct qm_picture *p = svg->picture;

    fputs("<g class=\"strip\" role=\"img\" data-row=\"view\">", stdout);
    put_caption(svg, "reads as", "who answers, from the top");
    put_track(svg, p->end);
    put_mixed(svg, &p->view.runs, 0, p->n_layers - 1, false);
    put_numbers(svg, &p->view.runs);
    fputs("</g>\n", stdout);
}

void
qm_draw_moves(const struct qm_picture *picture, uint64_t *out_data, uint64_t *out_zeros)
{
    *out_data = *out_zeros = 0;
    for (size_t i = picture->base + 1; picture->has_range && i <= picture->top; i++) {
        *out_data += data_of(picture->layers[i].merging);
        *out_zeros += picture->layers[i].merging[QM_CELL_ZERO];
    }
}

static void
put_moves(const struct svg *svg)
{
    const struct qm_picture *p = svg->picture;
    uint64_t data, zeros;
    char name[64], soft[160];

    qm_draw_moves(p, &data, &zeros);
    snprintf(name, sizeof name, "goes to [%zu]", p->base + 1);
    snprintf(soft, sizeof soft, "%s of data, %s of zeros", qm_cli_size(data).text,
             qm_cli_size(zeros).text);
    fputs("<g class=\"strip\" role=\"img\" data-row=\"moves\">", stdout);
    put_caption(svg, name, soft);
    put_track(svg, p->end);
    put_mixed(svg, &p->merged.runs, p->base + 1, p->top, true);
    put_path(svg, &p->merged.runs, (struct wanted){DATA | PACKED | ZERO, p->base + 1, p->top},
             "hatch", -1, false);
    fputs("</g>\n", stdout);
}

/* ---- around them ---- */

static unsigned
strip_of(const struct qm_picture *p, size_t layer)
{
    return FIRST + (unsigned)(p->n_layers - 1 - layer) * ROW;
}

static void
put_ruler(const struct qm_picture *p, unsigned bottom)
{
    uint64_t step = 1;

    while ((p->end - p->start) / step >= 12 && step < UINT64_C(1) << 62)
        step <<= 1;
    for (uint64_t at = (p->start + step - 1) / step * step; at < p->end && at >= p->start;
         at += step) {
        const double x = x_of(p, at);

        printf("<path class=\"tick\" d=\"M%.2f %d V%u\"/>", x, FIRST - 14, bottom);
        if (x < LEFT + STRIP - 30)
            printf("<text class=\"soft\" x=\"%.2f\" y=\"%d\">%s</text>\n", x + 4, FIRST - 6,
                   qm_picture_offset(at).text);
        if (at > UINT64_MAX - step)
            break;
    }
}

/* From the layers of the range down to the base. */
static void
put_range(const struct qm_picture *p)
{
    const unsigned top = strip_of(p, p->top) + 6, low = strip_of(p, p->base + 1) + HIGH - 6;
    const unsigned base = strip_of(p, p->base) + HIGH / 2;

    printf("<path class=\"range\" d=\"M16 %uH9V%uH12M9 %uH16\"/>"
           "<path class=\"range-head\" d=\"M11 %ul9 5l-9 5z\"/>\n",
           top, base, low, base - 5);
}

static void
put_key(unsigned *x, unsigned y, const char *styles, const char *text, unsigned width)
{
    char one[32];

    printf("<rect class=\"track swatch\" x=\"%u\" y=\"%u\" width=\"26\" height=\"14\"/>", *x, y);
    while (sscanf(styles, "%31[^|]", one) == 1) {
        printf("<rect class=\"swatch %s\" x=\"%u\" y=\"%u\" width=\"26\" height=\"14\"/>", one, *x,
               y);
        styles += strlen(one);
        styles += *styles == '|';
    }
    printf("<text class=\"soft\" x=\"%u\" y=\"%u\">%s</text>\n", *x + 33, y + 11, text);
    *x += width;
}

static void
put_legend(const struct qm_picture *p, unsigned y)
{
    unsigned x = LEFT;
    char text[160];

    put_key(&x, y, "c0", "data", 84);
    put_key(&x, y, "c0 pale", "data that layers above hide", 210);
    put_key(&x, y, "c0|packed", "compressed", 122);
    put_key(&x, y, "zero", "zeros", 92);
    put_key(&x, y, "", "nothing: below answers", 182);
    if (p->has_range)
        put_key(&x, y, "c1|hatch", "a merge moves it", 150);
    snprintf(text, sizeof text, "one column: %s%s", qm_cli_size(p->grain).text,
             p->exact ? "" : "; where it holds several things, it is filled from below");
    printf("<text class=\"soft\" x=\"%d\" y=\"%u\">%s</text>\n", LEFT, y + 36, text);
}

static void
put_head(const struct qm_picture *p)
{
    const struct qm_picture_layer *top = &p->layers[p->n_layers - 1];
    bool cut;
    const char *name = cut_name(top->name, &cut);

    fputs("<text class=\"big\" x=\"24\" y=\"38\">", stdout);
    if (cut)
        fputs("&#8230;", stdout);
    qm_markup_text(name);
    fputs("</text><text class=\"soft\" x=\"24\" y=\"58\">", stdout);
    if (p->n_layers > 1)
        qm_markup_textf("a chain of %zu layers, ", p->n_layers);
    qm_markup_textf("%s", qm_cli_size(top->virtual_size).text);
    if (p->start > 0 || p->end < top->virtual_size)
        qm_markup_textf("; shown: %" PRIu64 " to %" PRIu64, p->start, p->end);
    fputs("</text>\n", stdout);
}

void
qm_draw_svg_patterns(void)
{
    fputs("<pattern id=\"zeros\" width=\"10\" height=\"10\" patternUnits=\"userSpaceOnUse\">"
          "<rect class=\"zero-ground\" width=\"10\" height=\"10\"/>"
          "<ellipse class=\"zero-ring\" cx=\"5\" cy=\"5\" rx=\"2\" ry=\"3\"/></pattern>\n"
          "<pattern id=\"packed\" width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\">"
          "<rect class=\"packed-dot\" x=\"2\" y=\"2\" width=\"2.4\" height=\"2.4\"/></pattern>\n"
          "<pattern id=\"hatch\" width=\"9\" height=\"9\" patternUnits=\"userSpaceOnUse\" "
          "patternTransform=\"rotate(45)\"><path class=\"hatch-edge\" d=\"M3 0V9\"/>"
          "<path class=\"hatch-line\" d=\"M3 0V9\"/></pattern>\n",
          stdout);
}

static void
put_all(const struct qm_picture *p, const char *css)
{
    const unsigned below = strip_of(p, 0) + ROW + 10;
    const unsigned end = below + ROW * (p->has_range ? 2u : 1u), height = end + LEGEND;
    struct svg svg = {.picture = p};

    printf("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %u\" width=\"%d\" "
           "height=\"%u\" "
           "role=\"group\" aria-labelledby=\"chain-title chain-desc\" data-start=\"%" PRIu64
           "\" data-end=\"%" PRIu64 "\" data-grain=\"%" PRIu64
           "\" data-left=\"%d\" data-strip=\"%d\">\n",
           WIDTH, height, WIDTH, height, p->start, p->end, p->grain, LEFT, STRIP);
    fputs("<title id=\"chain-title\">", stdout);
    qm_markup_textf("Which layer answers for %s", p->layers[p->n_layers - 1].name);
    fputs("</title>\n<desc id=\"chain-desc\">", stdout);
    qm_markup_textf(
        "A strip for each of %zu layers, from the active one down to the base, and one for "
        "what the top reads; from left to right %" PRIu64 " bytes of the disk",
        p->n_layers, p->end - p->start);
    fputs("</desc>\n", stdout);
    if (css)
        printf("<style>%s</style>\n", css);
    fputs("<defs>", stdout);
    qm_draw_svg_patterns();
    printf("</defs>\n<rect class=\"paper\" width=\"%d\" height=\"%u\"/>\n", WIDTH, height);
    put_head(p);
    if (p->start < p->end) {
        put_ruler(p, end - (ROW - HIGH));
        for (size_t i = p->n_layers; i-- > 0;) {
            svg.top = strip_of(p, i);
            put_layer(&svg, i);
        }
        svg.top = below;
        put_view(&svg);
        svg.top = below + ROW;
        if (p->has_range) {
            put_moves(&svg);
            put_range(p);
        }
        put_legend(p, end + 8);
    }
    fputs("</svg>\n", stdout);
}

size_t
qm_draw_svg_columns(size_t n_layers)
{
    const size_t columns = MOST_CELLS / n_layers;

    return columns > MOST_COLUMNS    ? MOST_COLUMNS
           : columns < LEAST_COLUMNS ? LEAST_COLUMNS
                                     : columns;
}

void
qm_draw_svg_element(const struct qm_picture *picture)
{
    put_all(picture, NULL);
}

void
qm_draw_svg(const struct qm_picture *picture)
{
    fputs("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n", stdout);
    put_all(picture, qm_page_chain_css);
}
