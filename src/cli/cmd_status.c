/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_status.c - `qmeld status`: which merges are unfinished, what each file is worth meanwhile, and
 * which command finishes them.
 */
#include "changes.h"
#include "partials.h"
#include "sandbox.h"

#include <json-c/json.h>
#include <unistd.h>

static const char help[] =
    "qmeld status - what merge or flattening is unfinished, and what its files are worth "
    "meanwhile\n"
    "\n"
    "    qmeld status                             of all journals in this directory\n"
    "    qmeld status disk.qcow2                  of the chain that disk.qcow2 belongs to\n"
    "    qmeld status --journal-dir=/var/lib/qmeld /dev/vg0/disk\n"
    "\n"
    "usage: qmeld status [OPTIONS] [PATH...]\n"
    "\n"
    "PATH is a directory, whose journals are looked at; or a layer: then journals are sought\n"
    "beside it and beside the layers under it; or a journal (.NAME.qmeld), or the note of a "
    "stopped\n"
    "machine (.NAME.qmeld-domain), whose definition is to be put right; or an image that qmeld\n"
    "flatten has not completed, by its own name or that of its note (.NAME.qmeld-flatten).\n"
    "Takes no lock and writes nothing.\n"
    "\n"
    "        --journal-dir=DIR      look for the layers' journals there\n"
    "        --no-sandbox           keep what the command does not need, to debug it\n"
    "        --output=human|json\n"
    "    -h, --help                 this text\n"
    "\n"
    "Exit codes: 0 nothing is unfinished (what can still be taken back is shown, too); 1 a path\n"
    "could not be looked at; 2 wrong usage; 3 something is unfinished.\n";

struct request {
    const char *journal_dir;
    struct json_object *array; /* NULL: for people */
    size_t n_found;
    size_t n_unfinished;
};

/* What a layer is worth before the merge is finished. */
enum worth {
    READS_AS_BEFORE,
    WRONG,       /* the layer is between base and top */
    HALF,        /* the layer that is merged into, while bytes are copied */
    COMPLETE,    /* that, afterwards */
    REPLACEABLE, /* the base, when it was merged up into that */
    RENAMED,     /* the layer that took the base's name */
    GONE,        /* removed, as was asked for */
    BEING_GONE,  /* to be removed */
    ASIDE,       /* renamed, as was asked for */
    BEING_ASIDE, /* to be renamed */
};

/* Where the base is merged up into a layer of the range.  That reads the same at all times if nothing lies above it in
 * the range; what is below it, until the base's name leads to it. */
static enum worth
worth_going_up(const struct qmeld_unfinished *merge, size_t layer)
{
    const bool there = access(merge->layers[layer], F_OK) == 0;

    if (layer < merge->base_layer || layer > merge->top_layer)
        return READS_AS_BEFORE;
    if (layer == merge->base_layer && merge->complete)
        return merge->replaced ? COMPLETE : REPLACEABLE;
    if (merge->complete && layer == merge->target_layer)
        return there ? COMPLETE : RENAMED;
    if (merge->complete)
        return there ? BEING_GONE : GONE;
    if (layer < merge->target_layer || layer == merge->top_layer)
        return READS_AS_BEFORE;
    return layer == merge->target_layer ? HALF : WRONG;
}

static enum worth
worth_of(const struct qmeld_unfinished *merge, size_t layer)
{
    const bool merged = layer > merge->base_layer && layer <= merge->top_layer;

    if (merge->base_intact || merge->rebase)
        return READS_AS_BEFORE;
    if (merge->up)
        return worth_going_up(merge, layer);
    if (layer == merge->base_layer)
        return merge->complete ? COMPLETE : HALF;
    if (merged && merge->complete && merge->overlays == QMELD_OVERLAYS_DELETE)
        return access(merge->layers[layer], F_OK) == 0 ? BEING_GONE : GONE;
    if (merged && merge->complete && merge->moved_to[layer])
        return access(merge->layers[layer], F_OK) == 0 ? BEING_ASIDE : ASIDE;
    return merged && layer < merge->top_layer ? WRONG : READS_AS_BEFORE;
}

static double
percent(const struct qmeld_unfinished *merge)
{
    if (merge->complete || merge->size == 0)
        return merge->complete ? 100 : 0;
    return (double)merge->done / (double)merge->size * 100;
}

/* ---- for people ---- */

static const char *
sentence_of(const struct qmeld_unfinished *merge, size_t layer)
{
    switch (worth_of(merge, layer)) {
    case READS_AS_BEFORE:
        return layer + 1 == merge->n_layers
                   ? "reads as before; write nothing to it until the merge is finished"
                   : "reads as before";
    case WRONG:
        return "INVALID: reads wrong by itself";
    case HALF:
        return "half merged: reads wrong by itself";
    case COMPLETE:
        return "holds the merged data";
    case REPLACEABLE:
        return "reads as before; its name goes to the merged data";
    case RENAMED:
        return "holds the merged data; it is now";
    case GONE:
        return "deleted";
    case BEING_GONE:
        return "merged, to be deleted";
    case ASIDE:
        return "merged, and put aside as";
    case BEING_ASIDE:
        return "merged, to be put aside as";
    }
    return "";
}

static void
print_problem(const struct qmeld_unfinished *merge)
{
    QM_CLI_FREE char *journal = qm_cli_quote(merge->journal);
    QM_CLI_FREE char *what = qm_cli_quote(merge->problem->what);

    printf("%s: %s\n", journal, what);
}

static const char *
title_of(const struct qmeld_unfinished *merge)
{
    if (merge->running)
        return "at work now";
    if (merge->reverting)
        return "being taken back";
    return merge->held ? "done, but not final" : "unfinished";
}

static void
print_merge(const struct qmeld_unfinished *merge)
{
    QM_CLI_FREE char *base = qm_cli_quote(merge->base);
    QM_CLI_FREE char *top = qm_cli_quote(merge->top);
    QM_CLI_FREE char *journal = qm_cli_shell_word(merge->journal);

    if (merge->rebase) {
        QM_CLI_FREE char *name = merge->new_backing ? qm_cli_quote(merge->new_backing) : NULL;

        printf("%s: the rebase of %s onto %s\n", title_of(merge), top, name ? name : "nothing");
    } else if (merge->up) {
        QM_CLI_FREE char *target = qm_cli_quote(merge->layers[merge->target_layer]);

        printf("%s: the merge of all from %s to %s into %s, which is to be %s\n", title_of(merge),
               base, top, target, base);
    } else if (merge->fold) {
        printf("%s: the fold of all up to %s into %s, which keeps %zu increments\n",
               title_of(merge), top, base, merge->n_layers - 1 - merge->top_layer);
    } else {
        printf("%s: the merge of %s down into %s\n", title_of(merge), top, base);
    }
    if (merge->rebase && merge->complete)
        puts("  all that is needed is copied; the header is still to be changed");
    else if (merge->rebase)
        puts("  what the image is to hold by itself is being copied");
    else if (merge->held)
        puts("  all is merged, and can be taken back until it is made final");
    else if (merge->reverting)
        puts("  the base is becoming again what it was before the merge");
    else if (merge->protecting)
        puts("  images beside the chain get what they read through it first; no layer has changed");
    else if (merge->complete)
        puts("  all data is merged; headers and overlays are still to be settled");
    else
        printf("  merged so far: %s of %s of the disk (%.0f %%)\n", qm_cli_size(merge->done).text,
               qm_cli_size(merge->size).text, percent(merge));
    for (size_t i = merge->n_layers; i-- > 0;) {
        const enum worth worth = worth_of(merge, i);
        QM_CLI_FREE char *path = qm_cli_quote(merge->layers[i]);
        QM_CLI_FREE char *now = worth == ASIDE || worth == BEING_ASIDE || worth == RENAMED
                                    ? qm_cli_quote(merge->moved_to[i])
                                    : NULL;

        printf("  [%zu] %s: %s%s%s\n", i + 1, path, sentence_of(merge, i), now ? " " : "",
               now ? now : "");
    }
    if (merge->reclaim)
        puts("  --reclaim: the merged layers have given up what is merged so far; it can only be "
             "finished");
    if (merge->running)
        return;
    if (merge->held)
        printf("  to make it final: qmeld finalize %s\n", journal);
    else
        printf("  to finish it: qmeld resume %s\n", journal);
    if (merge->revertible && !merge->reverting)
        printf("  to take it back: qmeld revert %s\n", journal);
}

/* ---- for programs ---- */

static const char *
word_of(enum worth worth)
{
    switch (worth) {
    case READS_AS_BEFORE:
        return "as-before";
    case WRONG:
        return "invalid";
    case HALF:
        return "half-merged";
    case COMPLETE:
        return "complete";
    case REPLACEABLE:
        return "to-be-replaced";
    case RENAMED:
        return "renamed";
    case GONE:
        return "deleted";
    case BEING_GONE:
        return "to-be-deleted";
    case ASIDE:
        return "quarantined";
    case BEING_ASIDE:
        return "to-be-quarantined";
    }
    return "unknown";
}

static struct json_object *
layers_json(const struct qmeld_unfinished *merge)
{
    struct json_object *layers = json_object_new_array();

    for (size_t i = 0; i < merge->n_layers; i++) {
        struct json_object *layer = json_object_new_object();

        qm_cli_json_add_u64(layer, "layer", i + 1);
        qm_cli_json_add(layer, "filename", qm_cli_json_string(merge->layers[i]));
        qm_cli_json_add(layer, "state", json_object_new_string(word_of(worth_of(merge, i))));
        if (merge->moved_to[i])
            qm_cli_json_add(layer, "moved-to", qm_cli_json_string(merge->moved_to[i]));
        json_object_array_add(layers, layer);
    }
    return layers;
}

static struct json_object *
merge_json(const struct qmeld_unfinished *merge)
{
    static const char *const overlays[] = {"keep", "empty", "delete", "quarantine"};
    struct json_object *object = json_object_new_object();

    qm_cli_json_add(object, "journal", qm_cli_json_string(merge->journal));
    if (merge->problem) {
        qm_cli_json_add(object, "error", qm_cli_json_error(merge->problem));
        return object;
    }
    qm_cli_json_add_bool(object, "running", merge->running);
    qm_cli_json_add(object, "work",
                    json_object_new_string(merge->rebase ? "rebase"
                                           : merge->fold ? "fold"
                                                         : "merge"));
    if (merge->rebase)
        qm_cli_json_add(object, "new-backing", qm_cli_json_string(merge->new_backing));
    qm_cli_json_add(object, "active", qm_cli_json_string(merge->active));
    qm_cli_json_add(object, "base", qm_cli_json_string(merge->base));
    qm_cli_json_add(object, "top", qm_cli_json_string(merge->top));
    qm_cli_json_add(object, "overlays", json_object_new_string(overlays[merge->overlays]));
    qm_cli_json_add_bool(object, "reclaim", merge->reclaim);
    qm_cli_json_add(object, "direction", json_object_new_string(merge->up ? "up" : "down"));
    qm_cli_json_add_u64(object, "target-layer", merge->target_layer + 1);
    qm_cli_json_add_bool(object, "complete", merge->complete);
    qm_cli_json_add_bool(object, "held", merge->held);
    qm_cli_json_add_bool(object, "revertible", merge->revertible);
    qm_cli_json_add_bool(object, "reverting", merge->reverting);
    qm_cli_json_add_bool(object, "protecting", merge->protecting);
    qm_cli_json_add_u64(object, "done", merge->done);
    qm_cli_json_add_u64(object, "size", merge->size);
    qm_cli_json_add(object, "layers", layers_json(merge));
    return object;
}

/* ---- the command ---- */

static int
show(const struct qmeld_unfinished *merge, void *opaque)
{
    struct request *request = opaque;

    request->n_found++;
    request->n_unfinished += merge->problem || !merge->held;
    if (request->array)
        json_object_array_add(request->array, merge_json(merge));
    else if (merge->problem)
        print_problem(merge);
    else
        print_merge(merge);
    return 0;
}

/* What is noted of domains. */
static int
show_changes(struct request *request, const char *path, struct qmeld_error *err)
{
    struct qm_cli_changes changes;
    int result = qm_cli_changes_find(path, request->journal_dir, &changes, err);

    for (size_t i = 0; i < changes.n; i++) {
        request->n_found++;
        request->n_unfinished++;
        if (request->array)
            json_object_array_add(request->array, qm_cli_change_json(&changes.list[i]));
        else
            qm_cli_change_print(&changes.list[i]);
    }
    qm_cli_changes_release(&changes);
    return result;
}

static int
show_all(struct request *request, const char *path, struct qmeld_error *err)
{
    const size_t before = request->n_found;

    if (qm_cli_partials_show(path, request->array, &request->n_found, &request->n_unfinished, err) <
        0)
        return -1;
    if (request->n_found > before && qm_cli_partials_own(path))
        return 0;
    if (show_changes(request, path, err) < 0)
        return -1;
    return qm_cli_names_a_note(path) ? 0
                                     : qmeld_status(path, request->journal_dir, show, request, err);
}

static int
status(struct request *request, char **paths, int n_paths)
{
    int code = QM_EXIT_DONE;

    for (int i = 0; i < n_paths; i++) {
        QM_CLI_FREE char *path = qm_cli_quote(paths[i]);
        const size_t before = request->n_found;
        struct qmeld_error err;

        if (show_all(request, paths[i], &err) < 0) {
            qm_cli_complain(&err);
            code = QM_EXIT_FAILED;
        } else if (!request->array && request->n_found == before) {
            printf("%s: nothing is unfinished\n", path);
        }
    }
    if (request->array)
        qm_cli_json_print(request->array);
    if (code != QM_EXIT_DONE)
        return code;
    return request->n_unfinished ? QM_EXIT_OPEN : QM_EXIT_DONE;
}

static int
run(int argc, char **argv)
{
    enum { OPT_JOURNAL_DIR = QM_OPT_FIRST };
    static const struct option options[] = {
        {"journal-dir", required_argument, NULL, OPT_JOURNAL_DIR},
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    static char here[] = ".";
    char *default_paths[] = {here};
    struct request request = {0};
    enum qm_cli_output output = QM_OUTPUT_HUMAN;
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":h", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (c == OPT_JOURNAL_DIR)
            request.journal_dir = optarg;
        else if (c != QM_OPT_OUTPUT || !qm_cli_parse_output("status", optarg, &output))
            return QM_EXIT_REFUSED;
    }
    qm_cli_sandbox_enter(
        QM_SANDBOX_READS); /* chains are opened, of which journals tell: servers, too */
    if (output == QM_OUTPUT_JSON)
        request.array = json_object_new_array();
    if (optind == argc)
        return status(&request, default_paths, 1);
    return status(&request, argv + optind, argc - optind);
}

const struct qm_cli_command qm_cli_status = {"status", help, "path...", run, false};
