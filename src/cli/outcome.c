/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "outcome.h"

#include "others_report.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdarg.h>

/* ---- success ---- */

const char *
qm_cli_outcome_fate(enum qmeld_fate fate)
{
    switch (fate) {
    case QMELD_FATE_MERGED_INTO:
        return "merged-into";
    case QMELD_FATE_UNTOUCHED:
        return "untouched";
    case QMELD_FATE_REDUNDANT:
        return "redundant";
    case QMELD_FATE_INVALID:
        return "invalid";
    case QMELD_FATE_EMPTIED:
        return "emptied";
    case QMELD_FATE_DELETED:
        return "deleted";
    case QMELD_FATE_REPOINTED:
        return "repointed";
    case QMELD_FATE_QUARANTINED:
        return "quarantined";
    case QMELD_FATE_REPLACED:
        return "replaced";
    }
    return "unknown";
}

static char *
say(const char *format, ...)
{
    va_list args;
    char *text;
    int n;

    va_start(args, format);
    n = vasprintf(&text, format, args);
    va_end(args);
    if (n < 0)
        qm_cli_no_memory();
    return text;
}

static char *
say_merged_into(const struct qmeld_plan_report *r, size_t i)
{
    const char *to = r->layers[i].moved_to;
    const bool grows = r->base_new_size != r->base_old_size;

    return say("will hold the merged data%s%s%s%s%s%s", to ? ", and be " : "", to ? to : "",
               grows ? ", grown from " : "", grows ? qm_cli_size(r->base_old_size).text : "",
               grows ? " to " : "", grows ? qm_cli_size(r->base_new_size).text : "");
}

char *
qm_cli_outcome_future(const struct qmeld_plan_report *r, size_t i)
{
    switch (r->layers[i].fate) {
    case QMELD_FATE_MERGED_INTO:
        return say_merged_into(r, i);
    case QMELD_FATE_UNTOUCHED:
        return say("untouched");
    case QMELD_FATE_REDUNDANT:
        return say("will read as before, and not be needed any more");
    case QMELD_FATE_INVALID:
        return say("will read wrong by itself, and not be needed any more");
    case QMELD_FATE_EMPTIED:
        return say("will be emptied, and read as before from [%zu]", r->base_layer + 1);
    case QMELD_FATE_DELETED:
        return say("will be deleted");
    case QMELD_FATE_QUARANTINED:
        return say("will be renamed to %s", r->layers[i].moved_to);
    case QMELD_FATE_REPLACED:
        return say("will be moved up; its name will lead to the merged data");
    case QMELD_FATE_REPOINTED:
        return say("will read as before, with [%zu] as its backing file", r->base_layer + 1);
    }
    return say("unknown");
}

const char *
qm_cli_outcome_direction(enum qmeld_direction direction)
{
    return direction == QMELD_DIRECTION_UP ? "up" : "down";
}

/* Both ways were thought of. */
void
qm_cli_outcome_print_ways(enum qmeld_direction taken, uint64_t down, uint64_t up)
{
    if (down || up)
        printf("  direction: %s; up there is %s of data to move, down %s\n",
               qm_cli_outcome_direction(taken), qm_cli_size(up).text, qm_cli_size(down).text);
}

/* ---- bitmaps ---- */

static const char *
bitmap_fate(enum qmeld_bitmap_fate fate)
{
    static const char *const names[] = {"merged", "created", "void", "removed", "left"};

    return (size_t)fate < sizeof names / sizeof *names ? names[fate] : "unknown";
}

static void
print_bitmap(FILE *out, const char *into, const struct qmeld_merged_bitmap *b)
{
    QM_CLI_FREE char *name = qm_cli_quote(b->name), *layer = qm_cli_quote(b->layer);
    const char *why = b->unreadable ? " says nothing (not closed cleanly, or damaged)" : " has it";

    fprintf(out, "  bitmap \"%s\": ", name);
    switch (b->fate) {
    case QMELD_BITMAP_MERGED:
    case QMELD_BITMAP_CREATED:
        fprintf(out, "%s %s, a bit for %s, %s\n",
                b->fate == QMELD_BITMAP_MERGED ? "merged into that of" : "made in", into,
                qm_cli_size(b->granularity).text, b->enabled ? "recording" : "not recording");
        return;
    case QMELD_BITMAP_VOID:
        fprintf(out,
                "that of %s%s, so that of the base is marked in use and says nothing any more: the "
                "next backup has to be a full one\n",
                layer, why);
        return;
    case QMELD_BITMAP_REMOVED:
        fprintf(out, "removed from the base, as asked\n");
        return;
    case QMELD_BITMAP_LEFT:
        break;
    }
    fprintf(out, "not carried into %s: %s%s\n", into, layer, why);
}

void
qm_cli_outcome_print_bitmaps(FILE *out, const char *into, const struct qmeld_merged_bitmap *bitmaps,
                             size_t n, bool only_lost)
{
    for (size_t i = 0; i < n; i++)
        if (!only_lost || bitmaps[i].unreadable)
            print_bitmap(out, into, &bitmaps[i]);
}

struct json_object *
qm_cli_outcome_bitmaps_json(const struct qmeld_merged_bitmap *bitmaps, size_t n)
{
    struct json_object *all = json_object_new_array();

    for (size_t i = 0; i < n; i++) {
        const struct qmeld_merged_bitmap *b = &bitmaps[i];
        struct json_object *o = json_object_new_object();

        qm_cli_json_add(o, "name", qm_cli_json_string(b->name));
        qm_cli_json_add(o, "fate", json_object_new_string(bitmap_fate(b->fate)));
        qm_cli_json_add(o, "filename", qm_cli_json_string(b->layer));
        qm_cli_json_add_bool(o, "unreadable", b->unreadable);
        if (b->granularity) {
            qm_cli_json_add_u64(o, "granularity", b->granularity);
            qm_cli_json_add_bool(o, "recording", b->enabled);
        }
        json_object_array_add(all, o);
    }
    return all;
}

/* ---- layers ---- */

/* Indices of layers; SIZE_MAX: there is none. */
struct range {
    size_t base; /* the layer whose name leads to the merged data */
    size_t top;  /* the highest layer that was merged */
};

static struct range
find_range(const struct qmeld_commit_report *report)
{
    struct range range = {SIZE_MAX, SIZE_MAX};

    for (size_t i = 0; i < report->n_layers; i++) {
        const enum qmeld_fate fate = report->layers[i].fate;

        if (fate == QMELD_FATE_REPLACED ||
            (fate == QMELD_FATE_MERGED_INTO && range.base == SIZE_MAX))
            range.base = i;
        else if (fate != QMELD_FATE_UNTOUCHED && fate != QMELD_FATE_REPOINTED)
            range.top = i;
    }
    return range;
}

static void
print_target(const char *moved_to)
{
    QM_CLI_FREE char *now = moved_to ? qm_cli_quote(moved_to) : NULL;

    printf("holds the merged data now");
    if (now)
        printf(", and its name is %s now", now);
}

static void
print_fate(const struct qmeld_commit_report *report, const struct range *range, size_t i)
{
    switch (report->layers[i].fate) {
    case QMELD_FATE_MERGED_INTO:
        print_target(report->layers[i].moved_to);
        if (report->base_new_size != report->base_old_size)
            printf("; grown from %s to %s", qm_cli_size(report->base_old_size).text,
                   qm_cli_size(report->base_new_size).text);
        break;
    case QMELD_FATE_UNTOUCHED:
        printf("untouched");
        break;
    case QMELD_FATE_REDUNDANT:
        if (i + 1 == report->n_layers)
            printf("reads as before; all of it is in [%zu] now: use that, then this can go",
                   range->base + 1);
        else
            printf("reads as before; the chain goes past it now: can be deleted");
        break;
    case QMELD_FATE_INVALID:
        /* a top that was kept still stands on it: deleting this one alone would break that one */
        if (range->top != SIZE_MAX && report->layers[range->top].fate == QMELD_FATE_REDUNDANT)
            printf("INVALID: reads wrong by itself; delete it together with [%zu]", range->top + 1);
        else
            printf("INVALID: reads wrong by itself; this chain does not need it: delete it");
        break;
    case QMELD_FATE_EMPTIED:
        if (i == range->top)
            printf("emptied: reads as before, from [%zu]", range->base + 1);
        else
            printf("emptied: reads what is below it; the chain goes past it now: can be deleted");
        break;
    case QMELD_FATE_DELETED:
        printf("deleted");
        break;
    case QMELD_FATE_QUARANTINED: {
        QM_CLI_FREE char *now = qm_cli_quote(report->layers[i].moved_to);

        printf("merged, and put aside: its file is %s now", now);
        break;
    }
    case QMELD_FATE_REPLACED:
        printf("moved up: its name leads to the merged data now");
        break;
    case QMELD_FATE_REPOINTED:
        if (report->rebased)
            printf("reads as before, on its new backing file");
        else
            printf("reads as before; its backing file is [%zu] now", range->base + 1);
        break;
    }
}

static void
print_sum(const struct qmeld_commit_report *report)
{
    const double seconds = (double)report->seconds_x1000 / 1000;

    if (report->nothing_to_do) {
        puts("nothing to do: the image has no backing file that it could be merged into");
        return;
    }
    if (report->reverted) {
        puts("taken back: every layer is what it was before the merge");
        return;
    }
    if (report->rebased) {
        printf("resumed: the image has its new backing file; %s copied\n",
               qm_cli_size(report->bytes_copied).text);
        return;
    }
    if (report->already_merged) {
        printf("already merged: the base held all of it%s\n",
               report->verified ? "; it was read back from the disk and compared" : "");
        return;
    }
    printf("%s%s: %s copied", report->resumed ? "resumed, and merged" : "merged",
           report->direction == QMELD_DIRECTION_UP ? " up" : "",
           qm_cli_size(report->bytes_copied).text);
    if (report->bytes_shared)
        printf(" (%s of it shared, not read and written)", qm_cli_size(report->bytes_shared).text);
    if (report->bytes_offloaded)
        printf(" (%s of it by the file system)", qm_cli_size(report->bytes_offloaded).text);
    if (report->bytes_zeroed)
        printf(", %s zeroed", qm_cli_size(report->bytes_zeroed).text);
    if (report->bytes_zero_found)
        printf(" (%s of them were stored as data)", qm_cli_size(report->bytes_zero_found).text);
    if (report->bytes_skipped)
        printf(", %s skipped as the base had them", qm_cli_size(report->bytes_skipped).text);
    if (report->bytes_filled)
        printf(", %s of old content copied along", qm_cli_size(report->bytes_filled).text);
    if (report->verified)
        printf(", read back and compared");
    printf(", in %.*f s", seconds < 10 ? 2 : 0, seconds);
    if (report->seconds_x1000 >= 1000 && report->bytes_copied) /* less is mostly waiting for sync */
        printf(" (%s/s)", qm_cli_size((uint64_t)((double)report->bytes_copied / seconds)).text);
    putchar('\n');
}

static void
print_layers(const struct qmeld_commit_report *report)
{
    const struct range range = find_range(report);

    for (size_t i = report->n_layers; i-- > 0;) {
        QM_CLI_FREE char *path = qm_cli_quote(report->layers[i].path ? report->layers[i].path : "");

        printf("  [%zu] %s: ", i + 1, path);
        print_fate(report, &range, i);
        putchar('\n');
    }
}

void
qm_cli_outcome_print_route(size_t i, const char *path, uint64_t shared, uint64_t offloaded,
                           uint64_t copied, uint64_t past_cache)
{
    const struct {
        uint64_t bytes;
        const char *how;
    } ways[] = {
        {shared, "shared (reflink)"}, {offloaded, "copied by the file system"}, {copied, "copied"}};
    const char *before = "";

    if (shared + offloaded + copied == 0)
        return;
    printf("  [%zu] %s -> base: ", i, path);
    for (size_t k = 0; k < sizeof ways / sizeof *ways; k++) {
        if (ways[k].bytes == 0)
            continue;
        printf("%s%s %s", before, qm_cli_size(ways[k].bytes).text, ways[k].how);
        before = ", ";
    }
    if (past_cache)
        printf(" (%s of it past the page cache)", qm_cli_size(past_cache).text);
    putchar('\n');
}

void
qm_cli_outcome_print_routes(const struct qmeld_commit_report *report)
{
    for (size_t i = report->n_layers; i-- > 0;) {
        const struct qmeld_commit_layer *l = &report->layers[i];
        QM_CLI_FREE char *path = qm_cli_quote(l->path ? l->path : "");

        qm_cli_outcome_print_route(i + 1, path, l->bytes_shared, l->bytes_offloaded,
                                   l->bytes_copied, l->bytes_past_cache);
    }
}

void
qm_cli_outcome_print(const struct qmeld_commit_report *report, bool verbose)
{
    print_sum(report);
    if (verbose)
        qm_cli_outcome_print_routes(report);
    qm_cli_outcome_print_ways(report->direction, report->bytes_down, report->bytes_up);
    print_layers(report);
    if (!report->reverted)
        qm_cli_outcome_print_bitmaps(stdout, "the base", report->bitmaps, report->n_bitmaps, false);
    qm_cli_others_print(stdout, report->dependants, report->n_dependants, false);
    if (report->reclaimed && !report->nothing_to_do)
        puts("--reclaim: the merged layers gave up their data as the merge went; there is no way "
             "back");
    if (report->held)
        puts("qmeld revert can take this back; qmeld finalize gives up the space that needs");
}

struct json_object *
qm_cli_outcome_json(const struct qmeld_commit_report *report, const struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object();
    struct json_object *layers = json_object_new_array();
    const char *result = qm_cli_result_word(err);

    if (!err && report->reverted)
        result = "reverted";
    else if (!err && report->nothing_to_do)
        result = "nothing-to-do";
    else if (!err && report->already_merged)
        result = "already-merged";
    qm_cli_json_add(object, "result", json_object_new_string(result));
    if (err)
        qm_cli_json_add(object, "error", qm_cli_json_error(err));
    qm_cli_json_add_bool(object, "resumed", report->resumed);
    if (report->rebased)
        qm_cli_json_add_bool(object, "rebased", true);
    qm_cli_json_add(object, "direction",
                    json_object_new_string(qm_cli_outcome_direction(report->direction)));
    if (report->bytes_down || report->bytes_up) {
        qm_cli_json_add_u64(object, "bytes-down", report->bytes_down);
        qm_cli_json_add_u64(object, "bytes-up", report->bytes_up);
    }
    qm_cli_json_add_bool(object, "reclaimed", report->reclaimed);
    qm_cli_json_add_bool(object, "held", report->held);
    qm_cli_json_add_u64(object, "bytes-copied", report->bytes_copied);
    qm_cli_json_add_u64(object, "bytes-filled", report->bytes_filled);
    qm_cli_json_add_u64(object, "bytes-zeroed", report->bytes_zeroed);
    qm_cli_json_add_u64(object, "bytes-shared", report->bytes_shared);
    qm_cli_json_add_u64(object, "bytes-offloaded", report->bytes_offloaded);
    qm_cli_json_add_u64(object, "bytes-zero-found", report->bytes_zero_found);
    qm_cli_json_add_u64(object, "bytes-skipped", report->bytes_skipped);
    qm_cli_json_add_bool(object, "verified", report->verified);
    qm_cli_json_add_u64(object, "bytes-verified", report->bytes_verified);
    qm_cli_json_add_u64(object, "base-old-size", report->base_old_size);
    qm_cli_json_add_u64(object, "base-new-size", report->base_new_size);
    qm_cli_json_add_u64(object, "milliseconds", report->seconds_x1000);
    for (size_t i = 0; i < report->n_layers; i++) {
        struct json_object *layer = json_object_new_object();

        qm_cli_json_add_u64(layer, "layer", i + 1);
        qm_cli_json_add(layer, "filename", qm_cli_json_string(report->layers[i].path));
        qm_cli_json_add(layer, "fate",
                        json_object_new_string(qm_cli_outcome_fate(report->layers[i].fate)));
        qm_cli_json_add_u64(layer, "bytes-shared", report->layers[i].bytes_shared);
        qm_cli_json_add_u64(layer, "bytes-offloaded", report->layers[i].bytes_offloaded);
        qm_cli_json_add_u64(layer, "bytes-copied", report->layers[i].bytes_copied);
        qm_cli_json_add_u64(layer, "bytes-past-cache", report->layers[i].bytes_past_cache);
        if (report->layers[i].moved_to)
            qm_cli_json_add(layer, "moved-to", qm_cli_json_string(report->layers[i].moved_to));
        json_object_array_add(layers, layer);
    }
    qm_cli_json_add(object, "layers", layers);
    qm_cli_json_add(object, "bitmaps",
                    qm_cli_outcome_bitmaps_json(report->bitmaps, report->n_bitmaps));
    qm_cli_json_add(object, "dependants",
                    qm_cli_others_json(report->dependants, report->n_dependants));
    qm_cli_json_add_u64(object, "bytes-protected", report->bytes_protected);
    qm_cli_json_add_u64(object, "files-scanned", report->files_scanned);
    qm_cli_json_add_u64(object, "files-unread", report->files_unread);
    return object;
}

/* ---- failure ---- */

static void
explain_half_done(const struct qm_cli_failure *f, const char *path)
{
    QM_CLI_FREE char *journal = f->journal ? qm_cli_shell_word(f->journal) : NULL;

    fprintf(stderr, "qmeld: %s: the %s is half done; the active layer reads as before: ", path,
            f->rebase ? "rebase" : "merge");
    if (f->err->code == QMELD_STALE && journal)
        fprintf(
            stderr,
            "nothing was done now; if that change was meant, remove the journal %s and give the "
            "%s command again, which begins anew\n",
            journal, f->rebase ? "rebase" : "merge");
    else if (journal)
        fprintf(stderr, "the same command again finishes it, and so does `qmeld resume %s`\n",
                journal);
    else
        fputs("the same command again finishes it\n", stderr);
}

void
qm_cli_outcome_explain(const struct qm_cli_failure *failure)
{
    QM_CLI_FREE char *path = qm_cli_quote(failure->path);

    if (failure->err->code == QMELD_CANCELED && failure->deadline)
        fprintf(stderr, "qmeld: %s: stopped, because the time of --deadline is over\n", path);
    else
        qm_cli_complain(failure->err);
    switch (failure->err->disk) {
    case QMELD_DISK_OLD:
        if (failure->began)
            fprintf(stderr, "qmeld: %s: every layer is as it was\n", path);
        break;
    case QMELD_DISK_OPEN:
        explain_half_done(failure, path);
        break;
    case QMELD_DISK_NEW:
        fprintf(stderr,
                "qmeld: %s: the %s itself is done and safe, only what came after it failed: "
                "the same command again tries that\n",
                path, failure->rebase ? "rebase" : "merge");
        break;
    }
}
