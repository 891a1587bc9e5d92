/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* plan_page.c - what a plan tells, in a page. */
#include "plan_page.h"

#include "markup.h"
#include "outcome.h"

#include <inttypes.h>

void
qm_plan_page_summary(const struct qmeld_plan_report *r)
{
    fputs("<p>", stdout);
    if (r->nothing_to_do)
        fputs("Nothing to do: the image has no backing file that it could be merged into.", stdout);
    else if (r->already_merged)
        fputs("Already merged: the base holds all of it.", stdout);
    else
        qm_markup_textf("%s of [%zu] to [%zu] into [%zu], going %s: %s of data copied, ",
                        r->resumed ? "The rest of an interrupted merge" : "A merge",
                        r->direction == QMELD_DIRECTION_UP ? r->base_layer + 1 : r->base_layer + 2,
                        r->top_layer + 1, r->target_layer + 1,
                        qm_cli_outcome_direction(r->direction), qm_cli_size(r->bytes_copied).text);
    if (!r->nothing_to_do && !r->already_merged)
        qm_markup_textf("%s become zeros. Nothing has been written.",
                        qm_cli_size(r->bytes_zeroed).text);
    fputs("</p>\n", stdout);
    for (size_t i = 0; i < r->n_obstacles; i++) {
        fputs("<p class=\"warn\">", stdout);
        qm_markup_textf("%s%s%s", r->obstacles[i].file, *r->obstacles[i].file ? ": " : "",
                        r->obstacles[i].what);
        fputs("</p>\n", stdout);
    }
    for (size_t i = 0; i < r->n_dependants; i++) {
        const struct qmeld_dependant *d = &r->dependants[i];

        fputs("<p class=\"warn\">", stdout);
        qm_markup_textf("%s%s%s %s [%zu]", d->path, d->snapshot_name ? ", snapshot " : "",
                        d->snapshot_name ? d->snapshot_name : "",
                        d->fate == QMELD_DEPENDANT_PROTECTED
                            ? "reads as before: it gets first what it reads through"
                            : "would read wrong data: it stands on",
                        d->layer + 1);
        fputs("</p>\n", stdout);
    }
}

static void
put_numbers(uint64_t before, uint64_t after)
{
    printf("<td class=\"number\">%" PRIu64 "</td><td class=\"number\">%" PRIu64
           "</td><td class=\"number\">",
           before, after);
    if (before != after)
        printf("%s%s", after > before ? "+" : "&#8722;",
               qm_cli_size(after > before ? after - before : before - after).text);
    fputs("</td>", stdout);
}

static void
put_files(const struct qmeld_plan_report *r)
{
    fputs("<h2>Files</h2>\n<div class=\"scroll\"><table id=\"files\"><thead><tr><th "
          "scope=\"col\">file</th>"
          "<th scope=\"col\">what becomes of it</th><th class=\"number\" scope=\"col\">length "
          "now</th>"
          "<th class=\"number\" scope=\"col\">then</th><th class=\"number\" scope=\"col\"></th>"
          "<th class=\"number\" scope=\"col\">on disk now</th><th class=\"number\" "
          "scope=\"col\">then</th>"
          "<th class=\"number\" scope=\"col\"></th></tr></thead><tbody>\n",
          stdout);
    for (size_t i = r->n_layers; i-- > 0;) {
        const struct qmeld_plan_layer *l = &r->layers[i];
        QM_CLI_FREE char *fate = qm_cli_outcome_future(r, i);

        printf("<tr data-fate=\"%s\"><th scope=\"row\">[%zu] ", qm_cli_outcome_fate(l->fate),
               i + 1);
        qm_markup_text(l->path);
        fputs("</th><td>", stdout);
        qm_markup_text(fate);
        fputs("</td>", stdout);
        put_numbers(l->old_length, l->new_length);
        put_numbers(l->old_allocated, l->new_allocated);
        fputs("</tr>\n", stdout);
    }
    fputs("</tbody></table></div>\n", stdout);
}

static void
put_row(const char *what, uint64_t bytes)
{
    if (bytes)
        printf("<tr><th scope=\"row\">%s</th><td class=\"number\">%" PRIu64
               "</td><td class=\"number\">%s</td></tr>\n",
               what, bytes, qm_cli_size(bytes).text);
}

static void
put_work(const struct qmeld_plan_report *r)
{
    fputs("<h2>Work</h2>\n<table id=\"work\"><tbody>\n", stdout);
    put_row("data read", r->bytes_read);
    put_row("data written", r->bytes_written);
    put_row("of it shared with the layers", r->bytes_shared);
    put_row("old content copied along", r->bytes_filled);
    put_row("become zeros", r->bytes_zeroed);
    put_row("skipped, as the base has them", r->bytes_skipped);
    put_row("metadata written", r->metadata_written);
    put_row("extra space at a time, at most", r->peak);
    for (size_t i = 0; i < r->n_rooms; i++) {
        const struct qmeld_plan_room *room = &r->rooms[i];

        if (room->peak == 0 && room->change == 0)
            continue;
        fputs("<tr><th scope=\"row\">free: ", stdout);
        qm_markup_textf("%s of %s", room->what, room->path);
        printf("</th><td class=\"number\">%" PRIu64 "</td><td class=\"number\">%s</td></tr>\n",
               room->room, qm_cli_size(room->room).text);
    }
    fputs("</tbody></table>\n", stdout);
}

/* docs/crash-safety.md, in the order in which it happens here. */
static void
put_steps(const struct qmeld_plan_report *r)
{
    bool child = false, gone = false;

    for (size_t i = 0; i < r->n_layers; i++) {
        child |= r->layers[i].fate == QMELD_FATE_REPOINTED;
        gone |= r->layers[i].fate == QMELD_FATE_DELETED ||
                r->layers[i].fate == QMELD_FATE_EMPTIED ||
                r->layers[i].fate == QMELD_FATE_QUARANTINED;
    }
    fputs("<h2>Steps</h2>\n<ol class=\"steps\">\n"
          "<li>Every layer is locked; a journal beside the base tells what is meant.</li>\n",
          stdout);
    printf("<li>Batch by batch, data go to places of [%zu] that the top of the chain does not "
           "read, and are synced; then the "
           "tables that lead to them are written, and synced.</li>\n",
           r->target_layer + 1);
    if (r->base_new_size != r->base_old_size)
        printf("<li>The virtual size grows to %s.</li>\n", qm_cli_size(r->base_new_size).text);
    if (r->direction == QMELD_DIRECTION_UP)
        printf("<li>[%zu] takes the backing file, the attributes and the name of [%zu].</li>\n",
               r->target_layer + 1, r->base_layer + 1);
    if (r->n_bitmaps)
        fputs("<li>Dirty bitmaps are brought up to date.</li>\n", stdout);
    if (child)
        printf("<li>The layer above gets [%zu] as its backing file, by one sector of its "
               "header.</li>\n",
               r->target_layer + 1);
    if (gone)
        fputs("<li>Merged layers meet the fate that is told above.</li>\n", stdout);
    fputs("<li>The journal goes.</li></ol>\n<p class=\"sub\">After each of them, and when it is "
          "cut off in the "
          "middle, the top of the chain reads the same; the same command again goes on.</p>\n",
          stdout);
}

void
qm_plan_page_details(const struct qmeld_plan_report *r)
{
    if (r->n_layers > 0)
        put_files(r);
    if (r->nothing_to_do || r->already_merged)
        return;
    put_work(r);
    put_steps(r);
}
