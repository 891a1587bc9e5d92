/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_commit.c - `qmeld commit`: merge layers down.
 *
 * The end of it is a report that says for every file what it is worth now, because the most
 * expensive mistake after a merge is to open a layer that has silently become wrong.
 */
#include "cli.h"
#include "progress.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <signal.h>
#include <string.h>

static const char help[] =
    "qmeld commit - merge the layers of a chain down into their base\n"
    "\n"
    "    qmeld commit top.qcow2                   everything into the bottom layer\n"
    "    qmeld commit --shallow top.qcow2         top.qcow2 into the layer under it\n"
    "    qmeld commit --base=[1] --top=[3] top.qcow2\n"
    "                                             layers 2 and 3 into 1; 4 then stands on 1\n"
    "    qmeld commit --overlays=delete top.qcow2 and remove what was merged\n"
    "\n"
    "usage: qmeld commit [OPTIONS] IMAGE\n"
    "\n"
    "IMAGE is the active layer, the one a virtual machine would use.  At every instant, even if\n"
    "the power fails, it reads as it did before.  The layers stay locked, with QEMU's own locks,\n"
    "until everything is on the disk; an image in use is refused.  If the merge is interrupted,\n"
    "the same command again finishes it.  Layers are named by path, or by [N] counted from the\n"
    "base, which is [1]; qmeld info shows the numbers.\n"
    "\n"
    "        --base=LAYER           merge into this one (the bottom layer)\n"
    "        --top=LAYER            merge from this one down (IMAGE)\n"
    "        --shallow              base is the layer under top\n"
    "        --overlays=keep        merged layers stay as they are (default); layers between\n"
    "                               base and top are then wrong if opened by themselves\n"
    "        --overlays=empty       top of the range is emptied, as qemu-img commit does\n"
    "        --overlays=delete      merged layers are removed, IMAGE too if it was merged\n"
    "        --keep-relative        refuse rather than store an absolute backing name\n"
    "        --bandwidth=RATE       bytes a second at most; suffixes k, M, G; 0: no limit\n"
    "        --threads=N            copy with N threads (as many as processors, at most 16)\n"
    "    -f, --format=FMT           format of IMAGE; found by content otherwise\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one; without\n"
    "                               it they are refused\n"
    "        --progress=auto|bar|json|none\n"
    "                               on stderr; auto: a bar if that is a terminal\n"
    "    -q, --quiet                no report, no bar; errors only\n"
    "        --output=human|json    form of the report\n"
    "    -h, --help                 this text\n"
    "\n"
    "SIGINT, SIGTERM and SIGHUP stop at the next point where every file is in order; a second\n"
    "one stops at once, which is safe too.\n"
    "\n"
    "Exit codes: 0 done, or nothing to do; 1 failed, images as they were; 2 refused or wrong\n"
    "usage, nothing touched; 3 stopped half-way, and 75 stopped by a signal: the same command\n"
    "again finishes.\n";

struct request {
    const char *path;
    struct qmeld_commit_options commit;
    struct qm_cli_progress progress;
    enum qm_cli_progress_mode mode;
    enum qm_cli_output output;
    bool quiet;
    bool began; /* the library has begun to work, not only to look at what is asked */
};

/* ---- stopping ---- */

static volatile sig_atomic_t stop_asked;

static void
ask_to_stop(int number)
{
    (void)number;
    stop_asked = 1;
}

static void
catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    /* RESETHAND: the second one kills.  RESTART: none of the library's calls has to end early. */
    struct sigaction action = {.sa_handler = ask_to_stop};
    struct sigaction before;

    action.sa_flags = (int)(SA_RESETHAND | SA_RESTART);
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN)
            (void)sigaction(numbers[i], &action, NULL); /* ignored: nohup, or a job in back */
    /* a reader of our progress that goes away is no reason to die in the middle */
    (void)signal(SIGPIPE, SIG_IGN);
}

static int
show_progress(const struct qmeld_progress *now, void *opaque)
{
    struct request *request = opaque;

    request->began = true;
    qm_cli_progress_tick(&request->progress, now);
    return stop_asked;
}

/* ---- the report ---- */

static const char *
fate_name(enum qmeld_fate fate)
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
    }
    return "unknown";
}

/* Indices of layers; SIZE_MAX: there is none. */
struct range {
    size_t base;
    size_t top; /* the highest layer that was merged */
};

static struct range
find_range(const struct qmeld_commit_report *report)
{
    struct range range = {SIZE_MAX, SIZE_MAX};

    for (size_t i = 0; i < report->n_layers; i++) {
        const enum qmeld_fate fate = report->layers[i].fate;

        if (fate == QMELD_FATE_MERGED_INTO)
            range.base = i;
        else if (fate != QMELD_FATE_UNTOUCHED && fate != QMELD_FATE_REPOINTED)
            range.top = i;
    }
    return range;
}

static void
print_fate(const struct qmeld_commit_report *report, const struct range *range, size_t i)
{
    switch (report->layers[i].fate) {
    case QMELD_FATE_MERGED_INTO:
        printf("holds the merged data now");
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
        printf("emptied: reads as before, from [%zu]", range->base + 1);
        break;
    case QMELD_FATE_DELETED:
        printf("deleted");
        break;
    case QMELD_FATE_REPOINTED:
        printf("reads as before; its backing file is [%zu] now", range->base + 1);
        break;
    }
}

static void
print_sum(const struct qmeld_commit_report *report)
{
    const double seconds = (double)report->seconds_x1000 / 1000;

    if (report->nothing_to_do) {
        puts("nothing to do: no layer above the base holds anything");
        return;
    }
    printf("merged: %s copied", qm_cli_size(report->bytes_copied).text);
    if (report->bytes_zeroed)
        printf(", %s zeroed", qm_cli_size(report->bytes_zeroed).text);
    if (report->bytes_filled)
        printf(", %s of old content copied along", qm_cli_size(report->bytes_filled).text);
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

static struct json_object *
report_json(const struct qmeld_commit_report *report, const struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object();
    struct json_object *layers = json_object_new_array();
    const char *result = "done";

    if (err)
        result = err->code == QMELD_CANCELED ? "stopped" : "failed";
    else if (report->nothing_to_do)
        result = "nothing-to-do";
    qm_cli_json_add(object, "result", json_object_new_string(result));
    if (err)
        qm_cli_json_add(object, "error", qm_cli_json_error(err));
    qm_cli_json_add_u64(object, "bytes-copied", report->bytes_copied);
    qm_cli_json_add_u64(object, "bytes-filled", report->bytes_filled);
    qm_cli_json_add_u64(object, "bytes-zeroed", report->bytes_zeroed);
    qm_cli_json_add_u64(object, "base-old-size", report->base_old_size);
    qm_cli_json_add_u64(object, "base-new-size", report->base_new_size);
    qm_cli_json_add_u64(object, "milliseconds", report->seconds_x1000);
    for (size_t i = 0; i < report->n_layers; i++) {
        struct json_object *layer = json_object_new_object();

        qm_cli_json_add_u64(layer, "layer", i + 1);
        qm_cli_json_add(layer, "filename", qm_cli_json_string(report->layers[i].path));
        qm_cli_json_add(layer, "fate", json_object_new_string(fate_name(report->layers[i].fate)));
        json_object_array_add(layers, layer);
    }
    qm_cli_json_add(object, "layers", layers);
    return object;
}

/* What the files are worth after a failure, for whoever has to go on now. */
static void
explain_failure(const struct request *request, const struct qmeld_error *err)
{
    QM_CLI_FREE char *path = qm_cli_quote(request->path);

    qm_cli_complain(err);
    switch (err->disk) {
    case QMELD_DISK_OLD:
        if (request->began)
            fprintf(stderr, "qmeld: %s: every layer is as it was\n", path);
        break;
    case QMELD_DISK_OPEN:
        fprintf(stderr,
                "qmeld: %s: the merge is half done; the image reads as before: the same command "
                "again finishes it\n",
                path);
        break;
    case QMELD_DISK_NEW:
        fprintf(stderr,
                "qmeld: %s: the merge itself is done and safe, only what came after it failed: "
                "the same command again tries that\n",
                path);
        break;
    }
}

/* ---- the command ---- */

static int
commit(struct request *request)
{
    struct qmeld_commit_report report = {0};
    struct qmeld_error err = {0};
    bool failed;

    catch_signals();
    request->commit.progress = show_progress;
    request->commit.opaque = request;
    qm_cli_progress_begin(&request->progress, request->mode);
    failed = qmeld_commit(request->path, &request->commit, &report, &err) < 0;
    qm_cli_progress_end(&request->progress);
    if (failed)
        explain_failure(request, &err);
    if (request->output == QM_OUTPUT_JSON) {
        qm_cli_json_print(report_json(&report, failed ? &err : NULL));
    } else if (!failed && !request->quiet) {
        print_sum(&report);
        print_layers(&report);
    }
    qmeld_commit_report_free(&report);
    return failed ? qm_cli_exit_code(&err) : QM_EXIT_DONE;
}

static bool
take_overlays(struct request *request, const char *arg)
{
    if (strcmp(arg, "keep") == 0)
        request->commit.overlays = QMELD_OVERLAYS_KEEP;
    else if (strcmp(arg, "empty") == 0)
        request->commit.overlays = QMELD_OVERLAYS_EMPTY;
    else if (strcmp(arg, "delete") == 0)
        request->commit.overlays = QMELD_OVERLAYS_DELETE;
    else {
        qm_cli_usage("commit", "--overlays is keep, empty or delete, not \"%s\"", arg);
        return false;
    }
    return true;
}

static bool
take_threads(struct request *request, const char *arg)
{
    uint64_t threads;

    if (!qm_cli_parse_number(arg, 1024, &threads)) {
        qm_cli_usage("commit", "--threads is a number, not \"%s\"", arg);
        return false;
    }
    request->commit.threads = (unsigned)threads;
    return true;
}

static bool
take_bandwidth(struct request *request, const char *arg)
{
    if (qm_cli_parse_size(arg, &request->commit.bandwidth))
        return true;
    qm_cli_usage("commit", "--bandwidth is a number of bytes a second, not \"%s\"", arg);
    return false;
}

static bool
take_progress(struct request *request, const char *arg)
{
    if (qm_cli_progress_parse(arg, &request->mode))
        return true;
    qm_cli_usage("commit", "--progress is auto, bar, json or none, not \"%s\"", arg);
    return false;
}

enum {
    OPT_BASE = QM_OPT_FIRST,
    OPT_TOP,
    OPT_SHALLOW,
    OPT_OVERLAYS,
    OPT_KEEP_RELATIVE,
    OPT_BANDWIDTH,
    OPT_THREADS,
    OPT_BACKING_FORMAT,
    OPT_PROGRESS,
};

/* False after a complaint. */
static bool
take_option(struct request *request, int c)
{
    struct qmeld_commit_options *commit_options = &request->commit;

    switch (c) {
    case OPT_BASE:
        commit_options->base = optarg;
        return true;
    case OPT_TOP:
        commit_options->top = optarg;
        return true;
    case OPT_SHALLOW:
        commit_options->shallow = true;
        return true;
    case OPT_OVERLAYS:
        return take_overlays(request, optarg);
    case OPT_KEEP_RELATIVE:
        commit_options->keep_relative = true;
        return true;
    case OPT_BANDWIDTH:
        return take_bandwidth(request, optarg);
    case OPT_THREADS:
        return take_threads(request, optarg);
    case 'f':
        commit_options->format = optarg;
        return true;
    case OPT_BACKING_FORMAT:
        commit_options->backing_format = optarg;
        return true;
    case OPT_PROGRESS:
        return take_progress(request, optarg);
    case 'q':
        request->quiet = true;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output("commit", optarg, &request->output);
    default:
        return false;
    }
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"base", required_argument, NULL, OPT_BASE},
        {"top", required_argument, NULL, OPT_TOP},
        {"shallow", no_argument, NULL, OPT_SHALLOW},
        {"overlays", required_argument, NULL, OPT_OVERLAYS},
        {"keep-relative", no_argument, NULL, OPT_KEEP_RELATIVE},
        {"bandwidth", required_argument, NULL, OPT_BANDWIDTH},
        {"threads", required_argument, NULL, OPT_THREADS},
        {"format", required_argument, NULL, 'f'},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"progress", required_argument, NULL, OPT_PROGRESS},
        {"quiet", no_argument, NULL, 'q'},
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {0};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":f:qh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&request, c))
            return QM_EXIT_REFUSED;
    }
    if (argc - optind != 1) {
        qm_cli_usage(argv[0], "one image is expected, %d were named", argc - optind);
        return QM_EXIT_REFUSED;
    }
    if (request.quiet && request.mode == QM_PROGRESS_AUTO)
        request.mode = QM_PROGRESS_NONE;
    request.path = argv[optind];
    return commit(&request);
}

const struct qm_cli_command qm_cli_commit = {"commit", help, run, true};
