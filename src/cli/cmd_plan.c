/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_plan.c - `qmeld plan`: what commit with the same options would do and cost. */
#include "draw.h"
#include "machines.h"
#include "merging.h"
#include "others_report.h"
#include "outcome.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>

static const char help[] =
    "qmeld plan - what `qmeld commit` with the same options would do, and cost\n"
    "\n"
    "    qmeld plan top.qcow2                     everything into the bottom layer\n"
    "    qmeld plan --overlays=delete top.qcow2   the same command with plan for commit\n"
    "    qmeld plan --format=html top.qcow2 > plan.html\n"
    "    qmeld plan --output=json top.qcow2 | jq .peak\n"
    "\n"
    "usage: qmeld plan [OPTIONS] IMAGE\n"
    "\n"
    "The merge is done with everything but the disk, so lengths of files are exact to the byte,\n"
    "and space to the block of the file system.  Nothing is written and no lock is taken: it\n"
    "works on read-only files, and beside a virtual machine (of which it then sees a moment).\n"
    "What commit would refuse is refused here, in the same words and with the same exit code;\n"
    "that an image is in use, or may not be written to, is only told.  Compressed clusters are\n"
    "inflated if commit would, to see that they can be read; other data is not read, unless\n"
    "to see that it is merged already, or for --skip-equal and --detect-zeroes.\n"
    "\n"
    "        --base=LAYER           as in commit, and so are the others\n"
    "        --top=LAYER\n"
    "        --shallow\n"
    "        --overlays=keep|empty|delete|quarantine\n"
    "        --direction=down|up|auto\n"
    "        --atomic\n"
    "        --undo\n"
    "        --reclaim\n"
    "        --decompress\n"
    "        --skip-equal\n"
    "        --detect-zeroes\n"
    "        --bitmaps=merge|keep|drop\n"
    "        --keep-relative\n"
    "        --journal-dir=DIR      space there counts, too\n"
    "        --format=html          print a page that shows the chain before and after\n"
    "    -f, --format=FMT\n"
    "    -b LAYER\n"
    "    -d\n"
    "    -t MODE\n"
    "    -r RATE\n"
    "    -p\n"
    "        --allow-path=PATH\n"
    "        --backing-format=FMT\n"
    "        --no-sandbox\n" QM_CLI_OTHERS_HELP QM_CLI_SECRET_HELP QM_CLI_MERGING_HELP "\n"
    "Exit codes: 0 commit can do it, or has nothing to do; 1 failed; 2 commit would refuse;\n"
    "75 stopped by a signal or at the deadline.\n";

/* ---- for people ---- */

static void
print_number(const char *what, uint64_t before, uint64_t after)
{
    printf("        %-12s %20" PRIu64, what, before);
    if (before == after)
        printf("    stays so\n");
    else
        printf("  -> %20" PRIu64 "    %c %s\n", after, after > before ? '+' : '-',
               qm_cli_size(after > before ? after - before : before - after).text);
}

static void
print_layers(const struct qmeld_plan_report *r)
{
    for (size_t i = r->n_layers; i-- > 0;) {
        const struct qmeld_plan_layer *l = &r->layers[i];
        QM_CLI_FREE char *path = qm_cli_quote(l->path);

        QM_CLI_FREE char *fate = qm_cli_outcome_future(r, i);
        QM_CLI_FREE char *shown = qm_cli_quote(fate);

        printf("  [%zu] %s: %s\n", i + 1, path, shown);
        if (l->nbd && l->fate != QMELD_FATE_UNTOUCHED)
            puts("      behind an NBD server, where nothing locks: see to it that nobody else has "
                 "it");
        if (l->fate == QMELD_FATE_UNTOUCHED || l->block_device ||
            (l->old_length == l->new_length && l->old_allocated == l->new_allocated &&
             i != r->target_layer))
            continue;
        print_number("file length", l->old_length, l->new_length);
        print_number("on disk", l->old_allocated, l->new_allocated);
    }
}

static void
print_work(const struct qmeld_plan_report *r)
{
    printf("  work: %s of data read, %s written", qm_cli_size(r->bytes_read).text,
           qm_cli_size(r->bytes_written).text);
    if (r->bytes_shared)
        printf("; %s shared with the layers", qm_cli_size(r->bytes_shared).text);
    if (r->bytes_filled)
        printf(" (%s of them old content copied along)", qm_cli_size(r->bytes_filled).text);
    printf("; %s of metadata written", qm_cli_size(r->metadata_written).text);
    if (r->bytes_zeroed)
        printf("; %s become zeros", qm_cli_size(r->bytes_zeroed).text);
    if (r->bytes_zero_found)
        printf(" (%s of them are stored as data)", qm_cli_size(r->bytes_zero_found).text);
    if (r->bytes_skipped)
        printf("; %s skipped as the base has them", qm_cli_size(r->bytes_skipped).text);
    if (r->clusters_inflated)
        printf("; %" PRIu64 " compressed clusters inflated", r->clusters_inflated);
    putchar('\n');
}

static void
print_rooms(const struct qmeld_plan_report *r)
{
    for (size_t i = 0; i < r->n_rooms; i++) {
        const struct qmeld_plan_room *room = &r->rooms[i];
        QM_CLI_FREE char *path = qm_cli_quote(room->path);

        if (room->peak == 0 && room->change == 0)
            continue;
        printf("  space: at most %" PRIu64 " bytes (%s) more at a time; %s of %s has %s free\n",
               room->peak, qm_cli_size(room->peak).text, room->what, path,
               qm_cli_size(room->room).text);
    }
}

static void
print_modes(const struct qmeld_plan_report *r)
{
    for (size_t i = 0; i < r->n_modes; i++) {
        const struct qmeld_plan_mode *m = &r->modes[i];

        if (m->possible)
            printf("  %s: at most %" PRIu64 " bytes (%s) more at a time, %s%s of data written%s\n",
                   m->name, m->peak, qm_cli_size(m->peak).text, m->bound ? "at most " : "",
                   qm_cli_size(m->bytes_written).text,
                   m->fits ? "" : ": there is no room for that");
    }
}

static void
print_obstacles(const struct qmeld_plan_report *r)
{
    for (size_t i = 0; i < r->n_obstacles; i++)
        qm_cli_complain(&r->obstacles[i]);
    if (r->n_obstacles)
        fputs("qmeld: a commit would fail now for the above; the plan holds when it is mended\n",
              stderr);
}

static void
print_routes(const struct qmeld_plan_report *r)
{
    for (size_t i = r->n_layers; i-- > 0;) {
        const struct qmeld_plan_layer *l = &r->layers[i];
        QM_CLI_FREE char *path = qm_cli_quote(l->path);

        qm_cli_outcome_print_route(i + 1, path, l->bytes_shared, 0, l->bytes_copied, 0);
    }
}

static void
print_plan(const struct qmeld_plan_report *r, bool verbose)
{
    if (r->nothing_to_do) {
        puts("nothing to do: the image has no backing file that it could be merged into");
        return;
    }
    if (r->already_merged)
        puts("already merged: the base holds all of it");
    else if (r->direction == QMELD_DIRECTION_UP)
        printf("%s of [%zu]..[%zu] into [%zu], going up: nothing has been written\n",
               r->resumed ? "rest of an interrupted merge" : "merge", r->base_layer + 1,
               r->top_layer + 1, r->target_layer + 1);
    else
        printf("%s of [%zu]..[%zu] into [%zu]: nothing has been written\n",
               r->resumed ? "rest of an interrupted merge" : "merge", r->base_layer + 2,
               r->top_layer + 1, r->base_layer + 1);
    qm_cli_outcome_print_ways(r->direction, r->bytes_down, r->bytes_up);
    print_layers(r);
    qm_cli_outcome_print_bitmaps(stdout, "the base", r->bitmaps, r->n_bitmaps, false);
    if (!r->already_merged)
        print_work(r);
    if (verbose)
        print_routes(r);
    print_rooms(r);
    print_modes(r);
    qm_cli_others_print(stdout, r->dependants, r->n_dependants, true);
    if (r->bytes_protected > 0)
        printf("  to protect them: %s of data are copied\n", qm_cli_size(r->bytes_protected).text);
}

/* ---- for programs ---- */

static struct json_object *
layers_json(const struct qmeld_plan_report *r)
{
    struct json_object *layers = json_object_new_array();

    for (size_t i = 0; i < r->n_layers; i++) {
        const struct qmeld_plan_layer *l = &r->layers[i];
        struct json_object *o = json_object_new_object();

        qm_cli_json_add_u64(o, "layer", i + 1);
        qm_cli_json_add(o, "filename", qm_cli_json_string(l->path));
        qm_cli_json_add(o, "fate", json_object_new_string(qm_cli_outcome_fate(l->fate)));
        if (l->moved_to)
            qm_cli_json_add(o, "moved-to", qm_cli_json_string(l->moved_to));
        qm_cli_json_add_bool(o, "nbd", l->nbd);
        qm_cli_json_add_u64(o, "old-length", l->old_length);
        qm_cli_json_add_u64(o, "new-length", l->new_length);
        qm_cli_json_add_u64(o, "old-allocated", l->old_allocated);
        qm_cli_json_add_u64(o, "new-allocated", l->new_allocated);
        qm_cli_json_add_u64(o, "bytes-shared", l->bytes_shared);
        qm_cli_json_add_u64(o, "bytes-copied", l->bytes_copied);
        json_object_array_add(layers, o);
    }
    return layers;
}

static struct json_object *
rooms_json(const struct qmeld_plan_report *r)
{
    struct json_object *rooms = json_object_new_array();

    for (size_t i = 0; i < r->n_rooms; i++) {
        struct json_object *o = json_object_new_object();

        qm_cli_json_add(o, "filename", qm_cli_json_string(r->rooms[i].path));
        qm_cli_json_add(o, "what", json_object_new_string(r->rooms[i].what));
        qm_cli_json_add_u64(o, "room", r->rooms[i].room);
        qm_cli_json_add_u64(o, "peak", r->rooms[i].peak);
        qm_cli_json_add_u64(o, "need", r->rooms[i].need);
        qm_cli_json_add(o, "change", json_object_new_int64(r->rooms[i].change));
        json_object_array_add(rooms, o);
    }
    return rooms;
}

static struct json_object *
modes_json(const struct qmeld_plan_report *r)
{
    struct json_object *modes = json_object_new_array();

    for (size_t i = 0; i < r->n_modes; i++) {
        const struct qmeld_plan_mode *m = &r->modes[i];
        struct json_object *o = json_object_new_object();

        qm_cli_json_add(o, "mode", json_object_new_string(m->name));
        qm_cli_json_add_bool(o, "possible", m->possible);
        if (m->possible) {
            qm_cli_json_add_bool(o, "bound", m->bound);
            qm_cli_json_add_bool(o, "fits", m->fits);
            qm_cli_json_add_u64(o, "bytes-read", m->bytes_read);
            qm_cli_json_add_u64(o, "bytes-written", m->bytes_written);
            qm_cli_json_add_u64(o, "peak", m->peak);
            qm_cli_json_add_u64(o, "new-length", m->new_length);
        } else {
            qm_cli_json_add(o, "refused", qm_cli_json_string(m->refused));
        }
        json_object_array_add(modes, o);
    }
    return modes;
}

static const char *
result_name(const struct qmeld_plan_report *r)
{
    if (r->nothing_to_do)
        return "nothing-to-do";
    return r->already_merged ? "already-merged" : "to-do";
}

static struct json_object *
plan_json(const struct qmeld_plan_report *r, const struct qmeld_error *err)
{
    struct json_object *o = json_object_new_object();
    struct json_object *obstacles = json_object_new_array();

    qm_cli_json_add(o, "result", json_object_new_string(err ? "refused" : result_name(r)));
    if (err)
        qm_cli_json_add(o, "error", qm_cli_json_error(err));
    if (r->complete) {
        qm_cli_json_add_bool(o, "resumed", r->resumed);
        qm_cli_json_add(o, "direction",
                        json_object_new_string(qm_cli_outcome_direction(r->direction)));
        if (r->bytes_down || r->bytes_up) {
            qm_cli_json_add_u64(o, "bytes-down", r->bytes_down);
            qm_cli_json_add_u64(o, "bytes-up", r->bytes_up);
        }
        qm_cli_json_add_u64(o, "target-layer", r->target_layer + 1);
        qm_cli_json_add_u64(o, "base-layer", r->base_layer + 1);
        qm_cli_json_add_u64(o, "top-layer", r->top_layer + 1);
        qm_cli_json_add_u64(o, "base-old-size", r->base_old_size);
        qm_cli_json_add_u64(o, "base-new-size", r->base_new_size);
        qm_cli_json_add_u64(o, "bytes-copied", r->bytes_copied);
        qm_cli_json_add_u64(o, "bytes-filled", r->bytes_filled);
        qm_cli_json_add_u64(o, "bytes-zeroed", r->bytes_zeroed);
        qm_cli_json_add_u64(o, "bytes-shared", r->bytes_shared);
        qm_cli_json_add_u64(o, "bytes-zero-found", r->bytes_zero_found);
        qm_cli_json_add_u64(o, "bytes-skipped", r->bytes_skipped);
        qm_cli_json_add_u64(o, "bytes-protected", r->bytes_protected);
        qm_cli_json_add_u64(o, "bytes-read", r->bytes_read);
        qm_cli_json_add_u64(o, "bytes-written", r->bytes_written);
        qm_cli_json_add_u64(o, "metadata-written", r->metadata_written);
        qm_cli_json_add_u64(o, "clusters-inflated", r->clusters_inflated);
        qm_cli_json_add_u64(o, "peak", r->peak);
        qm_cli_json_add(o, "layers", layers_json(r));
        qm_cli_json_add(o, "bitmaps", qm_cli_outcome_bitmaps_json(r->bitmaps, r->n_bitmaps));
        qm_cli_json_add(o, "space", rooms_json(r));
        qm_cli_json_add(o, "modes", modes_json(r));
        qm_cli_json_add(o, "dependants", qm_cli_others_json(r->dependants, r->n_dependants));
        qm_cli_json_add_u64(o, "files-scanned", r->files_scanned);
        qm_cli_json_add_u64(o, "files-unread", r->files_unread);
    }
    for (size_t i = 0; i < r->n_obstacles; i++)
        json_object_array_add(obstacles, qm_cli_json_error(&r->obstacles[i]));
    qm_cli_json_add(o, "obstacles", obstacles);
    return o;
}

/* ---- the command ---- */

/* The chain as it is, with what the plan would move. */
static int
draw_page(const char *path, const struct qmeld_commit_options *options,
          const struct qmeld_plan_report *report, struct qmeld_error *err)
{
    const struct qmeld_open_options how = {.format = options->format,
                                           .backing_format = options->backing_format,
                                           .secrets = options->secrets,
                                           .allow_paths = options->allow_paths};
    struct qm_picture_options what = {.length = UINT64_MAX, .most_runs = QM_DRAW_PAGE_RUNS};
    struct qmeld_chain *chain = NULL;
    struct qm_picture picture;
    int result;

    if (qmeld_chain_open(path, &how, &chain, err) < 0)
        return -1;
    /* of a finished merge nothing moves any more */
    what.has_range = !report->nothing_to_do && !report->already_merged &&
                     report->base_layer < report->top_layer &&
                     report->n_layers == qmeld_chain_depth(chain);
    what.base = report->base_layer;
    what.top = report->top_layer;
    result = qm_picture_take(chain, &what, &picture, err);
    qmeld_chain_close(chain);
    if (result < 0)
        return -1;
    qm_draw_page(&picture, report);
    qm_picture_release(&picture);
    return 0;
}

static int
run(int argc, char **argv)
{
    struct qm_cli_merging merging;
    struct qmeld_plan_report report;
    struct qmeld_error err;
    int rc, code = qm_cli_commit_options(argc, argv, help, &merging);

    if (code >= 0)
        return code;
    if (merging.page && merging.output == QM_OUTPUT_JSON) {
        qm_cli_usage(argv[0], "--format=html is for people, --output=json for programs: choose");
        return QM_EXIT_REFUSED;
    }
    qm_cli_machines_ask(&merging); /* a machine that runs is told of by its locks */
    qm_cli_merging_confine(&merging, argv[optind], QM_SANDBOX_READS);
    qm_cli_merging_begin(&merging);
    qm_cli_progress_begin(&merging.progress, merging.mode);
    rc = qmeld_plan(argv[optind], &merging.options, &report, &err);
    qm_cli_progress_end(&merging.progress);
    if (merging.page && report.complete && !merging.quiet) {
        struct qmeld_error drawn;

        if (draw_page(argv[optind], &merging.options, &report, &drawn) < 0 && rc == 0) {
            err = drawn;
            rc = -1;
        }
    } else if (merging.output == QM_OUTPUT_JSON)
        qm_cli_json_print(plan_json(&report, rc < 0 ? &err : NULL));
    else if (report.complete && !merging.quiet)
        print_plan(&report, merging.verbose);
    qm_cli_others_print_unread(merging.quiet ? 0 : report.files_unread, NULL, 0);
    if (merging.output != QM_OUTPUT_JSON)
        print_obstacles(&report);
    code = rc < 0 ? qm_cli_fail(&err) : QM_EXIT_DONE;
    qmeld_plan_report_free(&report);
    return code;
}

const struct qm_cli_command qm_cli_plan = {"plan", help, "image", run, false};
