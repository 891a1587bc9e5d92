/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_compare.c - `qmeld compare`: do two images read the same? */
#include "progress.h"
#include "qemu_words.h"
#include "sandbox.h"
#include "secrets.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

static const char help[] =
    "qmeld compare - do two images read the same?\n"
    "\n"
    "    qmeld compare old.qcow2 new.qcow2\n"
    "    qmeld compare --all --output=json a.raw b.qcow2   every range that differs\n"
    "\n"
    "usage: qmeld compare [OPTIONS] IMAGE1 IMAGE2\n"
    "\n"
    "Each image is read with all its backing files.  What lies behind the end of the shorter one\n"
    "must be zeros in the other.  What both read from the same place of the same file is equal\n"
    "without being read, so that two overlays of one base cost what they themselves hold.  Takes\n"
    "no lock and writes nothing, and may be run beside a virtual machine.\n"
    "\n"
    "    -f FMT                     format of IMAGE1; found by content otherwise\n"
    "    -F FMT                     format of IMAGE2\n"
    "        --allow-path=PATH      a folder, file or nbd://HOST that names in images may lead\n"
    "                               to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one\n"
    "    -s, --strict               sizes and block status (allocated, zero) must be the same, "
    "too\n"
    "        --all                  look behind the first difference, and list all; json: at most\n"
    "                               100000 ranges, and how many there are\n" QM_CLI_SECRET_HELP
    "        --threads=N            read with N threads (as many as processors, at most 16)\n"
    "        --bandwidth=RATE       bytes a second at most; suffixes k, M, G; 0: no limit\n"
    "    -p                         a progress bar\n"
    "        --progress=auto|bar|json|none\n"
    "                               on stderr; auto: a bar if that is a terminal\n"
    "    -U, --force-share          accepted, and makes no difference, as no lock is taken\n"
    "    -T MODE                    a cache mode of qemu-img: accepted, and makes none either\n"
    "    -q, --quiet                the exit code tells; only errors are printed\n"
    "        --output=human|json\n"
    "        --no-sandbox           keep what the command does not need, to debug it\n"
    "    -h, --help                 this text\n"
    "\n"
    "Exit codes, as of qemu-img compare: 0 identical; 1 different; 2 an image cannot be opened, "
    "or\n"
    "wrong usage; 3 metadata cannot be read; 4 data cannot be read.\n";

enum { SAME = 0, DIFFERENT = 1, CANNOT_OPEN = 2, CANNOT_MAP = 3, CANNOT_READ = 4 };

/* More than anybody reads, and little memory. */
#define MAX_RANGES 100000u

enum {
    OPT_BACKING_FORMAT = QM_OPT_FIRST,
    OPT_ALL,
    OPT_THREADS,
    OPT_BANDWIDTH,
    OPT_PROGRESS,
};

struct request {
    const char *command;
    struct qmeld_compare_options options;
    enum qm_cli_progress_mode mode;
    struct qm_cli_progress progress;
    enum qm_cli_output output;
    bool all;
    bool quiet;
    struct json_object *ranges; /* json */
    uint64_t n_ranges;
};

/* ---- what comes ---- */

static int
show_progress(const struct qmeld_progress *now, void *opaque)
{
    struct request *request = opaque;

    qm_cli_progress_tick(&request->progress, now);
    return 0;
}

static int
take_range(uint64_t start, uint64_t length, void *opaque)
{
    struct request *request = opaque;

    request->n_ranges++;
    if (request->output == QM_OUTPUT_JSON) {
        struct json_object *o;

        if (request->n_ranges > MAX_RANGES)
            return 0;
        o = json_object_new_object();
        qm_cli_json_add_u64(o, "start", start);
        qm_cli_json_add_u64(o, "length", length);
        json_object_array_add(request->ranges, o);
        return !request->all;
    }
    if (request->all && !request->quiet) {
        qm_cli_progress_end(&request->progress);
        printf("Content mismatch at offset %" PRIu64 ", %" PRIu64 " bytes\n", start, length);
    }
    return !request->all;
}

/* ---- the answer ---- */

/* The words of qemu-img compare. */
static void
print_human(const struct request *request, const struct qmeld_compare_report *r)
{
    switch (r->difference) {
    case QMELD_DIFFERENT_SIZE:
        puts("Strict mode: Image size mismatch!");
        return;
    case QMELD_DIFFERENT_STATUS:
        printf("Strict mode: Offset %" PRIu64 " block status mismatch!\n", r->offset);
        return;
    case QMELD_DIFFERENT_CONTENT:
        if (r->size_a != r->size_b && r->offset >= (r->size_a < r->size_b ? r->size_a : r->size_b))
            puts("Warning: Image size mismatch!");
        if (!request->all)
            printf("Content mismatch at offset %" PRIu64 "!\n", r->offset);
        else
            printf("%" PRIu64 " bytes in %" PRIu64 " ranges differ.\n", r->bytes_different,
                   request->n_ranges);
        return;
    case QMELD_SAME:
        break;
    }
    if (r->size_a != r->size_b)
        puts("Warning: Image size mismatch!");
    puts("Images are identical.");
}

static void
print_json(const struct request *request, char *const *paths, const struct qmeld_compare_report *r)
{
    static const char *const names[] = {"none", "size", "block-status", "content"};
    struct json_object *o = json_object_new_object();

    qm_cli_json_add(o, "image1", qm_cli_json_string(paths[0]));
    qm_cli_json_add(o, "image2", qm_cli_json_string(paths[1]));
    qm_cli_json_add_bool(o, "identical", r->difference == QMELD_SAME);
    qm_cli_json_add(o, "difference", json_object_new_string(names[r->difference]));
    if (r->difference == QMELD_DIFFERENT_STATUS || r->difference == QMELD_DIFFERENT_CONTENT)
        qm_cli_json_add_u64(o, "offset", r->offset);
    qm_cli_json_add_u64(o, "virtual-size1", r->size_a);
    qm_cli_json_add_u64(o, "virtual-size2", r->size_b);
    qm_cli_json_add_bool(o, "all", request->all);
    if (request->all) {
        qm_cli_json_add_u64(o, "different-bytes", r->bytes_different);
        qm_cli_json_add_u64(o, "different-ranges", request->n_ranges);
        qm_cli_json_add_bool(o, "truncated", request->n_ranges > MAX_RANGES);
    }
    qm_cli_json_add(o, "ranges", json_object_get(request->ranges));
    qm_cli_json_add_u64(o, "bytes-read", r->bytes_read);
    qm_cli_json_add_u64(o, "bytes-shared", r->bytes_shared);
    qm_cli_json_print(o);
}

static int
compare(struct request *request, char *const *paths)
{
    const bool ranges = request->all || request->output == QM_OUTPUT_JSON;
    struct qmeld_compare_report report;
    struct qmeld_error err;
    int rc;

    request->ranges = json_object_new_array();
    request->options.progress = show_progress;
    request->options.opaque = request;
    qm_cli_progress_begin(&request->progress, request->quiet ? QM_PROGRESS_NONE : request->mode);
    rc = qmeld_compare(paths[0], paths[1], &request->options, ranges ? take_range : NULL, request,
                       &report, &err);
    if (rc == 0)
        qm_cli_progress_full(&request->progress);
    qm_cli_progress_end(&request->progress);
    if (rc == 0) {
        if (request->output == QM_OUTPUT_JSON)
            print_json(request, paths, &report);
        else if (!request->quiet)
            print_human(request, &report);
    }
    json_object_put(request->ranges);
    if (rc == 0)
        return report.difference == QMELD_SAME ? SAME : DIFFERENT;
    qm_cli_complain(&err);
    return report.failed_at == 2 ? CANNOT_READ : report.failed_at == 1 ? CANNOT_MAP : CANNOT_OPEN;
}

/* ---- options ---- */

/* False after a complaint. */
static bool
take_number(struct request *request, int c)
{
    uint64_t threads;

    if (c == OPT_BANDWIDTH) {
        if (qm_cli_parse_size(optarg, &request->options.bandwidth))
            return true;
        qm_cli_usage(request->command, "--bandwidth is a number of bytes a second, not \"%s\"",
                     optarg);
        return false;
    }
    if (!qm_cli_parse_number(optarg, 1024, &threads)) {
        qm_cli_usage(request->command, "--threads is a number up to 1024, not \"%s\"", optarg);
        return false;
    }
    request->options.threads = (unsigned)threads;
    return true;
}

static bool
take_option(struct request *request, int c)
{
    bool past_cache; /* of -T, which makes no difference */

    switch (c) {
    case 'f':
        request->options.format_a = optarg;
        return true;
    case 'F':
        request->options.format_b = optarg;
        return true;
    case OPT_BACKING_FORMAT:
        request->options.backing_format = optarg;
        return true;
    case 's':
        request->options.strict = true;
        return true;
    case OPT_ALL:
        request->all = true;
        return true;
    case 'p':
        request->mode = QM_PROGRESS_BAR;
        return true;
    case OPT_PROGRESS:
        if (qm_cli_progress_parse(optarg, &request->mode))
            return true;
        qm_cli_usage(request->command, "--progress is auto, bar, json or none, not \"%s\"", optarg);
        return false;
    case 'q':
        request->quiet = true;
        return true;
    case 'T':
        return qm_cli_parse_cache(request->command, c, optarg, &past_cache);
    case 'U':
        return true;
    case QM_OPT_OBJECT:
    case QM_OPT_IMAGE_OPTS:
        return qm_cli_refuse_qemu_option(request->command, c);
    case QM_OPT_SECRET:
    case QM_OPT_SECRET_FD:
        if (!qm_cli_secrets_take(request->command, c))
            return false;
        request->options.secrets = qm_cli_secrets();
        return true;
    case OPT_THREADS:
    case OPT_BANDWIDTH:
        return take_number(request, c);
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output(request->command, optarg, &request->output);
    default:
        return false;
    }
}

static void
confine(const struct request *request, char *const *images)
{
    struct qmeld_open_options open = {.format = request->options.format_a,
                                      .backing_format = request->options.backing_format,
                                      .allow_paths = request->options.allow_paths};

    qm_cli_sandbox_enter(QM_SANDBOX_READS);
    qm_cli_sandbox_peek(images[0], &open);
    open.format = request->options.format_b;
    qm_cli_sandbox_peek(images[1], &open);
    qm_cli_sandbox_opened(QM_SANDBOX_OPENS_FILES);
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        QM_CLI_ALLOW_PATH_OPTION,
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"strict", no_argument, NULL, 's'},
        {"all", no_argument, NULL, OPT_ALL},
        {"threads", required_argument, NULL, OPT_THREADS},
        {"bandwidth", required_argument, NULL, OPT_BANDWIDTH},
        {"progress", required_argument, NULL, OPT_PROGRESS},
        {"quiet", no_argument, NULL, 'q'},
        {"force-share", no_argument, NULL, 'U'},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_SECRET_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {.command = argv[0]};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":f:F:T:Uspqh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return SAME;
        }
        if (!take_option(&request, c))
            return CANNOT_OPEN;
    }
    if (argc - optind != 2) {
        qm_cli_expected(argv[0], "two images are expected", argc - optind);
        return CANNOT_OPEN;
    }
    request.options.allow_paths = qm_cli_allow_paths();
    confine(&request, argv + optind);
    return compare(&request, argv + optind);
}

const struct qm_cli_command qm_cli_compare = {"compare", help, "image image", run, false};
