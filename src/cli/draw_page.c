/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * draw_page.c - a chain as a page that one can look around in.
 *
 * The page is one file that asks for nothing: its policy forbids the network altogether, and lets only
 * the style and the script run that the program was built with, by their digests.  What it shows are
 * data, which are no script.  Without scripts it has the SVG picture, and the tables.
 */
#include "draw.h"
#include "draw_svg.h"
#include "markup.h"
#include "page.h"
#include "plan_page.h"

#include <inttypes.h>
#include <string.h>

/* ---- runs as numbers ---- */

static void
gather(const struct qm_runs *runs, uint64_t *all)
{
    for (size_t i = 0; i < runs->n; i++) {
        *all |= runs->run[i].start | runs->run[i].length;
        for (unsigned k = 0; k < runs->run[i].n_parts; k++)
            *all |= runs->run[i].parts[k].bytes;
    }
}

/* The largest unit in which all numbers of the page are whole. */
static uint64_t
unit_of(const struct qm_picture *p)
{
    uint64_t all = p->start | p->end | p->grain;

    for (size_t i = 0; i < p->n_layers; i++)
        gather(&p->layers[i].own.runs, &all);
    gather(&p->view.runs, &all);
    gather(&p->merged.runs, &all);
    return all & (~all + 1);
}

static uint64_t
code_of(const struct qm_part *part)
{
    return (uint64_t)part->kind + 8 * (uint64_t)part->layer;
}

static void
put_runs(const struct qm_runs *runs, uint64_t unit)
{
    putchar('[');
    for (size_t i = 0; i < runs->n; i++) {
        const struct qm_run *run = &runs->run[i];

        printf("%s%" PRIu64 ",", i ? "," : "", run->length / unit);
        if (run->n_parts == 1) {
            printf("%" PRIu64, code_of(&run->parts[0]));
            continue;
        }
        for (unsigned k = 0; k < run->n_parts; k++)
            printf("%c%" PRIu64 ",%" PRIu64, k ? ',' : '[', code_of(&run->parts[k]),
                   run->parts[k].bytes / unit);
        putchar(']');
    }
    putchar(']');
}

/* ---- charts ---- */

static uint64_t
data_of(const uint64_t *sum)
{
    return sum[QM_CELL_DATA] + sum[QM_CELL_COMPRESSED];
}

static void
put_label(size_t layer, const char *name)
{
    char number[32];

    snprintf(number, sizeof number, "[%zu] ", layer + 1);
    fputs("\"label\":", stdout);
    qm_markup_jsonf("%s%s", number, name);
}

static void
put_own_row(const struct qm_picture *p, size_t i, const char *mark)
{
    const struct qm_picture_layer *l = &p->layers[i];
    const uint64_t data = data_of(l->own.sum), seen = data_of(l->seen);
    const bool hatched = p->has_range && i > p->base && i <= p->top;

    printf("{\"row\":\"own\",\"layer\":%zu,", i);
    put_label(i, l->name);
    printf(",\"note\":\"%s, %s data, %s%s\",\"title\":", l->format, qm_cli_size(data).text,
           data == seen ? "all" : qm_cli_size(seen).text, " seen");
    qm_markup_jsonf("[%zu] %s", i + 1, l->path);
    if (hatched && mark)
        printf(",\"hatched\":true,\"mark\":\"%s\"", mark);
    else if (p->has_range && i == p->base && mark)
        fputs(",\"mark\":\"base\"", stdout);
    fputs("},\n", stdout);
}

static void
put_before(const struct qm_picture *p, const char *title)
{
    uint64_t data, zeros;

    fputs("{\"title\":", stdout);
    qm_markup_json(title);
    fputs(",\"rows\":[\n", stdout);
    for (size_t i = p->n_layers; i-- > 0;)
        put_own_row(p, i, "merged");
    fputs("{\"row\":\"view\",\"label\":\"reads as\",\"note\":\"who answers, from the top\"}",
          stdout);
    if (p->has_range) {
        qm_draw_moves(p, &data, &zeros);
        printf(",\n{\"row\":\"moves\",\"label\":\"goes to [%zu]\",\"note\":\"%s of data, ",
               p->base + 1, qm_cli_size(data).text);
        printf("%s of zeros\"}", qm_cli_size(zeros).text);
    }
    fputs("]}", stdout);
}

/* The layers that are left in the chain, and the merged one, whose colours tell where its bytes are from. */
static void
put_after(const struct qm_picture *p, const struct qmeld_plan_report *plan)
{
    const struct qmeld_plan_layer *target = &plan->layers[plan->target_layer];
    QM_CLI_FREE char *name = qm_picture_name(target->moved_to ? target->moved_to : target->path);
    const uint64_t *sum = p->merged.sum;

    fputs(",\n{\"title\":\"After\",\"rows\":[\n", stdout);
    for (size_t i = p->n_layers; i-- > p->top + 1;)
        put_own_row(p, i, NULL);
    fputs("{\"row\":\"merged\",", stdout);
    put_label(p->base, name);
    printf(",\"note\":\"%s of data, ", qm_cli_size(data_of(sum)).text);
    printf("file of %s\",\"mark\":\"base\"},\n", qm_cli_size(target->new_length).text);
    for (size_t i = p->base; i-- > 0;)
        put_own_row(p, i, NULL);
    fputs("{\"row\":\"view\",\"label\":\"reads as\",\"note\":\"as before, byte for byte\"}]}",
          stdout);
}

static void
put_data(const struct qm_picture *p, const struct qmeld_plan_report *plan)
{
    const uint64_t unit = unit_of(p);

    printf("{\"version\":1,\"unit\":%" PRIu64 ",\"start\":%" PRIu64 ",\"end\":%" PRIu64
           ",\"grain\":%" PRIu64 ",\"exact\":%s,\n\"range\":",
           unit, p->start / unit, p->end / unit, p->grain / unit, p->exact ? "true" : "false");
    if (p->has_range)
        printf("{\"base\":%zu,\"top\":%zu}", p->base, p->top);
    else
        fputs("null", stdout);
    fputs(",\n\"layers\":[", stdout);
    for (size_t i = 0; i < p->n_layers; i++) {
        printf("%s{\"name\":", i ? ",\n" : "");
        qm_markup_json(p->layers[i].name);
        putchar('}');
    }
    fputs("],\n\"own\":[", stdout);
    for (size_t i = 0; i < p->n_layers; i++) {
        fputs(i ? ",\n" : "", stdout);
        put_runs(&p->layers[i].own.runs, unit);
    }
    fputs("],\n\"view\":", stdout);
    put_runs(&p->view.runs, unit);
    fputs(",\n\"merged\":", stdout);
    if (p->has_range)
        put_runs(&p->merged.runs, unit);
    else
        fputs("null", stdout);
    fputs(",\n\"charts\":[", stdout);
    put_before(p, plan && p->has_range ? "Before" : "");
    if (plan && p->has_range)
        put_after(p, plan);
    fputs("]}", stdout);
}

/* ---- the page ---- */

static void
put_head(const struct qm_picture *p, const char *what)
{
    const struct qm_picture_layer *top = &p->layers[p->n_layers - 1];

    fputs("<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n", stdout);
    printf("<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; base-uri "
           "'none'; "
           "form-action 'none'; style-src '%s' '%s'; script-src '%s'\">\n",
           qm_page_chain_css_digest, qm_page_page_css_digest, qm_page_page_js_digest);
    fputs("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n"
          "<meta name=\"generator\" content=\"qmeld\">\n<title>",
          stdout);
    qm_markup_textf("%s: %s", top->name, what);
    printf("</title>\n<style>%s</style>\n<style>%s</style>\n</head>\n<body>\n<header><h1>",
           qm_page_chain_css, qm_page_page_css);
    qm_markup_text(top->name);
    fputs("</h1>\n<p class=\"sub\">", stdout);
    qm_markup_textf("%s: ", what);
    if (p->n_layers > 1)
        qm_markup_textf("a chain of %zu layers, ", p->n_layers);
    qm_markup_textf("a disk of %s", qm_cli_size(top->virtual_size).text);
    if (p->start > 0 || p->end < top->virtual_size)
        qm_markup_textf("; shown: bytes %" PRIu64 " to %" PRIu64, p->start, p->end);
    fputs("</p>\n", stdout);
    if (!p->exact)
        printf(
            "<p class=\"sub\">There are more pieces than a page can hold: they are put together in "
            "columns of %s, which tell how much of what they hold. <code>-s</code> and "
            "<code>-l</code> of <code>qmeld map</code> look closer.</p>\n",
            qm_cli_size(p->grain).text);
    fputs("</header>\n", stdout);
}

static void
put_controls(void)
{
    fputs("<div class=\"bar\"><div class=\"buttons\">"
          "<button id=\"out\" type=\"button\" aria-label=\"zoom out\">&#8722;</button>"
          "<button id=\"in\" type=\"button\" aria-label=\"zoom in\">+</button>"
          "<button id=\"all\" type=\"button\">all</button></div>"
          "<svg id=\"overview\" height=\"22\" role=\"img\" aria-label=\"what is in sight, of the "
          "whole\"></svg>"
          "<div id=\"sight\"></div></div>\n"
          "<main id=\"charts\"></main>\n"
          "<div id=\"tip\" hidden></div><div id=\"said\" role=\"status\" "
          "aria-live=\"polite\"></div>\n",
          stdout);
}

static void
put_key(const char *styles, const char *text)
{
    char one[32];

    fputs("<li><svg width=\"26\" height=\"14\" aria-hidden=\"true\">"
          "<rect class=\"track\" width=\"26\" height=\"14\"/>",
          stdout);
    while (sscanf(styles, "%31[^|]", one) == 1) {
        printf("<rect class=\"%s\" width=\"26\" height=\"14\"/>", one);
        styles += strlen(one);
        styles += *styles == '|';
    }
    printf("</svg>%s</li>\n", text);
}

static void
put_legend(const struct qm_picture *p)
{
    fputs("<ul class=\"legend\" aria-label=\"legend\">\n", stdout);
    put_key("c0", "data; a colour for each layer");
    put_key("c0 pale", "hidden by layers above");
    put_key("c0|packed", "compressed");
    put_key("zero", "zeros");
    put_key("", "nothing: the layer below answers");
    put_key("many", "several, too many to tell");
    if (p->has_range)
        put_key("c1|hatch", "a merge moves it");
    fputs("<li>a column that holds several things is filled from below by how much of it they "
          "are</li></ul>\n",
          stdout);
}

static void
put_size(uint64_t bytes)
{
    printf("<td class=\"number\">%s</td>", qm_cli_size(bytes).text);
}

static void
put_layers(const struct qm_picture *p)
{
    fputs("<h2>Layers</h2>\n<div class=\"scroll\"><table><thead><tr><th scope=\"col\">layer</th>"
          "<th scope=\"col\">format</th><th class=\"number\" scope=\"col\">virtual size</th>"
          "<th class=\"number\" scope=\"col\">on disk</th><th class=\"number\" scope=\"col\">data "
          "here</th>"
          "<th class=\"number\" scope=\"col\">compressed</th><th class=\"number\" "
          "scope=\"col\">zeros</th>"
          "<th class=\"number\" scope=\"col\">data seen</th></tr></thead><tbody>\n",
          stdout);
    for (size_t i = p->n_layers; i-- > 0;) {
        const struct qm_picture_layer *l = &p->layers[i];

        printf("<tr><th scope=\"row\">[%zu] ", i + 1);
        qm_markup_text(l->path);
        fputs("</th><td>", stdout);
        qm_markup_text(l->format);
        fputs("</td>", stdout);
        put_size(l->virtual_size);
        put_size(l->allocated);
        put_size(data_of(l->own.sum));
        put_size(l->own.sum[QM_CELL_COMPRESSED]);
        put_size(l->own.sum[QM_CELL_ZERO]);
        put_size(data_of(l->seen));
        fputs("</tr>\n", stdout);
    }
    fputs("</tbody></table></div>\n", stdout);
}

static void
put_keys(void)
{
    fputs("<details class=\"keys\"><summary>Keys and mouse</summary>\n"
          "<p>Wheel, <kbd>+</kbd> <kbd>-</kbd>: zoom; <kbd>0</kbd>: all of it; drag, "
          "<kbd>Shift</kbd> and "
          "wheel, <kbd>&#8592;</kbd> <kbd>&#8594;</kbd>: move; double click: closer.</p>\n"
          "<p>On a strip, which <kbd>Tab</kbd> reaches: <kbd>&#8592;</kbd> <kbd>&#8594;</kbd> go "
          "from piece to "
          "piece and tell it, <kbd>&#8593;</kbd> <kbd>&#8595;</kbd> from layer to layer, "
          "<kbd>Enter</kbd> looks "
          "at the piece, <kbd>Shift</kbd> with an arrow, <kbd>Home</kbd>, <kbd>End</kbd>, "
          "<kbd>Page</kbd> keys "
          "move, <kbd>Esc</kbd> lets go.</p></details>\n",
          stdout);
}

void
qm_draw_page(struct qm_picture *picture, const struct qmeld_plan_report *plan)
{
    const bool some = picture->start < picture->end;

    put_head(picture, plan ? "what a merge would do" : "which layer answers which bytes");
    fputs("<svg id=\"patterns\" aria-hidden=\"true\"><defs>", stdout);
    qm_draw_svg_patterns();
    fputs("</defs></svg>\n", stdout);
    if (plan)
        qm_plan_page_summary(plan);
    if (some) {
        put_controls();
        put_legend(picture);
    } else {
        fputs("<p>There is nothing to draw: the image, or the part asked for, is empty.</p>\n",
              stdout);
    }
    if (plan)
        qm_plan_page_details(plan);
    put_layers(picture);
    put_keys();
    if (some) {
        fputs("<script type=\"application/json\" id=\"data\">", stdout);
        put_data(picture, plan);
        qm_picture_coarsen(picture, qm_draw_svg_columns(picture->n_layers));
        fputs("</script>\n<noscript><div class=\"still\">", stdout);
        qm_draw_svg_element(picture);
        printf("</div></noscript>\n<script>%s</script>\n", qm_page_page_js);
    }
    fputs("</body>\n</html>\n", stdout);
}
