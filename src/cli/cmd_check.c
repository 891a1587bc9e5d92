/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_check.c - `qmeld check`: is the metadata of one image sound?
 *
 * Text, JSON keys and exit codes are those of `qemu-img check`, for scripts test them.  That is
 * why wrong usage exits 1 here and not 2, which means corruption.
 */
#include "qemu_words.h"
#include "sandbox.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

enum {
    CHECK_SOUND = 0,
    CHECK_FAILED = 1, /* not, or not wholly, checked */
    CHECK_CORRUPT = 2,
    CHECK_LEAKS = 3,
    CHECK_NOT_CHECKABLE = 63,
};

static const char help[] =
    "qmeld check - check, and repair, the metadata of an image\n"
    "\n"
    "    qmeld check disk.qcow2\n"
    "    qmeld check --repair=leaks disk.qcow2    give back clusters nobody uses\n"
    "    qmeld check --repair=all disk.qcow2      and mend what is corrupt\n"
    "    qmeld check --report --extract-unreferenced=found disk.qcow2\n"
    "                                             what lies where it should not; save the rest\n"
    "\n"
    "usage: qmeld check [OPTIONS] IMAGE\n"
    "\n"
    "Counts references to every cluster of a qcow2 image and compares them with its refcounts,\n"
    "as qemu-img check does.  Findings go to stderr, the sum to stdout.  Only IMAGE itself is\n"
    "checked, not its backing files.  Without --repair nothing is locked or written; with it\n"
    "the image must not be in use.\n"
    "\n"
    "    -r, --repair=leaks|all   mend: leaks only, or whatever can be known\n"
    "        --report             list clusters that the disk names twice or that are metadata,\n"
    "                             too, and bytes of the file that nobody refers to\n"
    "        --extract-unreferenced=DIR\n"
    "                             and save those, a new file for each range, in this directory\n"
    "    -f, --format=FMT         format of IMAGE; found by content otherwise\n"
    "        --output=human|json  json: the keys of qemu-img check\n"
    "    -U, --force-share        accepted without --repair, and makes no difference, as no lock\n"
    "                             is taken then\n"
    "    -T MODE                  a cache mode of qemu-img: accepted, and makes none either\n"
    "    -q, --quiet              only the exit code\n"
    "        --no-sandbox         keep what the command does not need, to debug it\n"
    "    -h, --help               this text\n"
    "\n"
    "Exit codes: 0 sound; 1 could not be checked, or not repaired, or wrong usage; 2 corrupt;\n"
    "3 only leaked clusters; 63 the format has nothing to check (raw).\n";

struct request {
    const char *path;
    const char *format;
    enum qmeld_repair repair;
    enum qm_cli_output output;
    bool quiet;
    bool report;
    bool shares; /* -U */
    const char *extract_dir;
    struct json_object *anomalies; /* NULL: for people */
    uint64_t n_anomalies;
};

/* More than anybody reads, and little memory. */
#define MAX_ANOMALIES 100000u

static void
print_finding(const char *sentence, void *opaque)
{
    const struct request *request = opaque;
    QM_CLI_FREE char *shown = NULL;

    if (request->quiet)
        return;
    shown = qm_cli_quote(sentence);
    fprintf(stderr, "%s\n", shown);
}

static double
percent(uint64_t part, uint64_t whole)
{
    return whole ? (double)part * 100.0 / (double)whole : 0.0;
}

static void
print_human(const struct qmeld_check_result *r)
{
    if (r->leaks_fixed || r->corruptions_fixed)
        printf("The following inconsistencies were found and repaired:\n\n"
               "    %" PRIu64 " leaked clusters\n    %" PRIu64 " corruptions\n\n"
               "Double checking the fixed image now...\n",
               r->leaks_fixed, r->corruptions_fixed);
    if (!r->corruptions && !r->leaks && !r->check_errors)
        puts("No errors were found on the image.");
    if (r->corruptions)
        printf("\n%" PRIu64 " errors were found on the image.\n"
               "Data may be corrupted, or further writes to the image may corrupt it.\n",
               r->corruptions);
    if (r->leaks)
        printf("\n%" PRIu64 " leaked clusters were found on the image.\n"
               "This means waste of disk space, but no harm to data.\n",
               r->leaks);
    if (r->check_errors)
        printf("\n%" PRIu64 " internal errors have occurred during the check.\n", r->check_errors);
    if (r->total_clusters && r->allocated_clusters)
        printf("%" PRIu64 "/%" PRIu64 " = %.2f%% allocated, %.2f%% fragmented, "
               "%.2f%% compressed clusters\n",
               r->allocated_clusters, r->total_clusters,
               percent(r->allocated_clusters, r->total_clusters),
               percent(r->fragmented_clusters, r->allocated_clusters),
               percent(r->compressed_clusters, r->allocated_clusters));
    if (r->image_end_offset)
        printf("Image end offset: %" PRIu64 "\n", r->image_end_offset);
}

static void
add_unless_zero(struct json_object *object, const char *key, uint64_t value)
{
    if (value)
        qm_cli_json_add_u64(object, key, value);
}

static void
print_json(const struct request *request, const struct qmeld_check_result *r)
{
    struct json_object *object = json_object_new_object();

    qm_cli_json_add(object, "filename", qm_cli_json_string(request->path));
    qm_cli_json_add(object, "format", json_object_new_string("qcow2")); /* the only one we check */
    qm_cli_json_add_u64(object, "check-errors", r->check_errors);
    add_unless_zero(object, "image-end-offset", r->image_end_offset);
    add_unless_zero(object, "corruptions", r->corruptions);
    add_unless_zero(object, "leaks", r->leaks);
    add_unless_zero(object, "corruptions-fixed", r->corruptions_fixed);
    add_unless_zero(object, "leaks-fixed", r->leaks_fixed);
    add_unless_zero(object, "total-clusters", r->total_clusters);
    add_unless_zero(object, "allocated-clusters", r->allocated_clusters);
    add_unless_zero(object, "fragmented-clusters", r->fragmented_clusters);
    add_unless_zero(object, "compressed-clusters", r->compressed_clusters);
    if (request->anomalies) {
        qm_cli_json_add_u64(object, "anomalies-found", request->n_anomalies);
        qm_cli_json_add(object, "anomalies", request->anomalies);
    }
    qm_cli_json_print(object);
}

/* ---- what is odd ---- */

static const char *
word_of(const struct qmeld_anomaly *a)
{
    switch (a->kind) {
    case QMELD_ANOMALY_UNREFERENCED:
        return a->counted ? "leaked" : "unreferenced";
    case QMELD_ANOMALY_TWICE:
        return "referenced-twice";
    case QMELD_ANOMALY_OVERLAP:
        return "overlaps-metadata";
    case QMELD_ANOMALY_PACKED:
        return "overlaps-compressed";
    }
    return "unknown";
}

static void
print_anomaly(const struct qmeld_anomaly *a)
{
    QM_CLI_FREE char *saved = a->saved ? qm_cli_quote(a->saved) : NULL;

    printf("offset %#" PRIx64 ", %" PRIu64 " bytes: %s", a->offset, a->length, word_of(a));
    if (a->has_guest)
        printf(", as %s for guest offset %#" PRIx64,
               a->table        ? "an L2 table"
               : a->compressed ? "compressed data"
                               : "data",
               a->guest);
    if (a->in_snapshot)
        printf(" of the internal snapshot number %" PRIu32, a->snapshot + 1);
    printf("%s%s\n", saved ? ", saved as " : "", saved ? saved : "");
}

static int
take_anomaly(const struct qmeld_anomaly *a, void *opaque)
{
    struct request *request = opaque;
    struct json_object *o;

    request->n_anomalies++;
    if (!request->anomalies) {
        if (!request->quiet)
            print_anomaly(a);
        return 0;
    }
    if (request->n_anomalies > MAX_ANOMALIES)
        return 0;
    o = json_object_new_object();
    qm_cli_json_add(o, "kind", json_object_new_string(word_of(a)));
    qm_cli_json_add_u64(o, "offset", a->offset);
    qm_cli_json_add_u64(o, "length", a->length);
    if (a->has_guest) {
        qm_cli_json_add_bool(o, "l2-table", a->table);
        qm_cli_json_add_u64(o, "guest-offset", a->guest);
    }
    if (a->compressed)
        qm_cli_json_add_bool(o, "compressed", true);
    if (a->in_snapshot)
        qm_cli_json_add_u64(o, "snapshot", a->snapshot + 1);
    if (a->saved)
        qm_cli_json_add(o, "saved", qm_cli_json_string(a->saved));
    json_object_array_add(request->anomalies, o);
    return 0;
}

/* False after the complaint. */
static bool
report(struct request *request)
{
    struct qmeld_error err;

    if (!request->report)
        return true;
    if (request->output == QM_OUTPUT_JSON)
        request->anomalies = json_object_new_array();
    if (qmeld_report(request->path, request->format, request->extract_dir, take_anomaly, request,
                     &err) == 0)
        return true;
    qm_cli_complain(&err);
    return false;
}

/* UNSUPPORTED has two meanings: a format without metadata, and a qcow2 image with a feature we
 * do not know.  Only the first is 63. */
static int
exit_code_of_failure(const struct request *request, const struct qmeld_error *err)
{
    const struct qmeld_open_options options = {.format = request->format, .single = true};
    struct qmeld_chain *chain = NULL;
    struct qmeld_layer_info layer;
    struct qmeld_error ignored;
    int code = CHECK_FAILED;

    if (err->code != QMELD_UNSUPPORTED ||
        qmeld_chain_open(request->path, &options, &chain, &ignored) < 0)
        return code;
    if (qmeld_chain_layer(chain, 0, &layer, &ignored) == 0 && strcmp(layer.format, "raw") == 0)
        code = CHECK_NOT_CHECKABLE;
    qmeld_chain_close(chain);
    return code;
}

static int
check(struct request *request)
{
    struct qmeld_check_result result = {0};
    struct qmeld_error err;
    bool reported;

    if (qmeld_check(request->path, request->format, request->repair, print_finding, request,
                    &result, &err) < 0) {
        qm_cli_complain(&err);
        return exit_code_of_failure(request, &err);
    }
    reported = report(request);
    if (request->output == QM_OUTPUT_JSON)
        print_json(request, &result);
    else if (!request->quiet)
        print_human(&result);
    if (result.check_errors || !reported)
        return CHECK_FAILED;
    if (result.corruptions)
        return CHECK_CORRUPT;
    return result.leaks ? CHECK_LEAKS : CHECK_SOUND;
}

static bool
parse_repair(const char *command, const char *arg, enum qmeld_repair *out)
{
    if (strcmp(arg, "leaks") == 0)
        *out = QMELD_REPAIR_LEAKS;
    else if (strcmp(arg, "all") == 0)
        *out = QMELD_REPAIR_ALL;
    else {
        qm_cli_usage(command, "--repair is leaks or all, not \"%s\"", arg);
        return false;
    }
    return true;
}

static void
confine(const struct request *request)
{
    const bool writes = request->repair != QMELD_REPAIR_NONE || request->extract_dir;

    qm_cli_sandbox_enter(writes ? QM_SANDBOX_WRITES : QM_SANDBOX_READS);
    qm_cli_sandbox_peek(request->path,
                        &(struct qmeld_open_options){.format = request->format, .single = true});
    qm_cli_sandbox_opened(QM_SANDBOX_OPENS_FILES);
}

enum { OPT_REPORT = QM_OPT_FIRST, OPT_EXTRACT };

/* False after a complaint. */
static bool
take_option(struct request *request, int c)
{
    bool past_cache; /* of -T, which makes no difference */

    switch (c) {
    case 'r':
        return parse_repair(qm_cli_check.name, optarg, &request->repair);
    case 'f':
        request->format = optarg;
        return true;
    case 'q':
        request->quiet = true;
        return true;
    case 'T':
        return qm_cli_parse_cache(qm_cli_check.name, c, optarg, &past_cache);
    case 'U':
        request->shares = true;
        return true;
    case OPT_EXTRACT:
        request->extract_dir = optarg;
        request->report = true;
        return true;
    case OPT_REPORT:
        request->report = true;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output(qm_cli_check.name, optarg, &request->output);
    case QM_OPT_OBJECT:
    case QM_OPT_IMAGE_OPTS:
        return qm_cli_refuse_qemu_option(qm_cli_check.name, c);
    default:
        return false;
    }
}

static bool
check_request(const struct request *request, int n_images)
{
    if (n_images != 1)
        qm_cli_expected(qm_cli_check.name, "one image is expected", n_images);
    else if (request->report && request->repair != QMELD_REPAIR_NONE)
        qm_cli_usage(qm_cli_check.name,
                     "what is odd is to be looked at before it is mended: leave out one");
    else if (request->shares && request->repair != QMELD_REPAIR_NONE)
        qm_cli_usage(
            qm_cli_check.name,
            "-U would change an image that somebody uses: stop who does, and leave it out");
    else
        return true;
    return false;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"repair", required_argument, NULL, 'r'},
        {"format", required_argument, NULL, 'f'},
        {"quiet", no_argument, NULL, 'q'},
        {"report", no_argument, NULL, OPT_REPORT},
        {"extract-unreferenced", required_argument, NULL, OPT_EXTRACT},
        {"force-share", no_argument, NULL, 'U'},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {0};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":r:f:T:Uqh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return CHECK_SOUND;
        }
        if (!take_option(&request, c))
            return CHECK_FAILED;
    }
    if (!check_request(&request, argc - optind))
        return CHECK_FAILED;
    request.path = argv[optind];
    confine(&request);
    return check(&request);
}

const struct qm_cli_command qm_cli_check = {"check", help, "image", run, false};
