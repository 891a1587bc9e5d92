/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_rebase.c - `qmeld rebase`: another backing file, the same content. */
#include "merging.h"
#include "outcome.h"
#include "qemu_words.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

static const char help[] =
    "qmeld rebase - give an image another backing file; it reads the same\n"
    "\n"
    "    qmeld rebase -b ../new/base.qcow2 -F qcow2 disk.qcow2\n"
    "    qmeld rebase --standalone disk.qcow2          no backing file at all: all is pulled in\n"
    "    qmeld rebase --unsafe -b base.raw -F raw disk.qcow2\n"
    "                                                  the name only: the file was moved, say\n"
    "\n"
    "usage: qmeld rebase [OPTIONS] -b NAME -F FMT IMAGE\n"
    "       qmeld rebase [OPTIONS] --standalone IMAGE\n"
    "\n"
    "Where IMAGE has nothing of its own it reads its backing file.  What reads differently on the\n"
    "new one is copied into IMAGE first; what both chains take from the same place of the same\n"
    "file, or as zeros, is not even read for that.  Then one sector of IMAGE's header names the\n"
    "new backing file.  At every instant, even if the power fails, IMAGE reads as it did before.\n"
    "All files are locked, with QEMU's own locks, until everything is on the disk.  If it is\n"
    "interrupted, the same command again goes on, and so does qmeld resume.  An image with\n"
    "internal snapshots is refused: they read through the backing file, too.\n"
    "\n"
    "    -b NAME                    the new backing file; stored as it is, so a relative name\n"
    "                               counts from the directory of IMAGE; \"\" is --standalone\n"
    "    -F FMT                     its format, which is stored\n"
    "        --standalone           no backing file\n"
    "    -u, --unsafe               change the header only: IMAGE will read whatever is there\n"
    "        --keep-relative        store a relative name, whichever NAME is, or refuse\n"
    "        --verify               read back what was written before it becomes IMAGE's, and\n"
    "                               compare IMAGE, from the disk, before its header is changed\n"
    "        --dry-run              write nothing; tell what would be copied, and the room it "
    "takes\n"
    "        --journal-dir=DIR      where the journal lies meanwhile (beside IMAGE)\n"
    "    -f, --format=FMT           format of IMAGE; found by content otherwise\n"
    "        --allow-path=PATH      a folder, file or nbd://HOST that names in images may lead\n"
    "                               to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one; without\n"
    "                               it they are refused\n" QM_CLI_SECRET_HELP
        QM_CLI_MERGING_SANDBOX_HELP
    "        --bandwidth=RATE       bytes a second at most, for comparing and for copying;\n"
    "                               suffixes k, M, G; 0: no limit\n"
    "        --threads=N            use N threads (as many as processors, at most 16)\n"
    "        --deadline=TIME        stop after so long, as a signal would do; seconds, or 30m,\n"
    "                               2h, 1d\n"
    "    -p                         a progress bar, unless -q\n"
    "    -t MODE                    a cache mode of qemu-img: accepted, and makes no difference\n"
    "    -T MODE                    likewise\n"
    "        --progress=auto|bar|json|none\n"
    "                               on stderr; auto: a bar if that is a terminal\n"
    "    -q, --quiet                no report, no bar; errors only\n"
    "        --output=human|json    form of the report\n"
    "    -h, --help                 this text\n"
    "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done; 1 failed, images as they were; 2 refused or wrong usage, nothing "
    "touched;\n"
    "3 stopped half-way, and 75 stopped by a signal or at the deadline: the same command again\n"
    "finishes.\n";

enum {
    OPT_STANDALONE = QM_OPT_MERGING_FIRST,
    OPT_KEEP_RELATIVE,
    OPT_DRY_RUN,
    OPT_BACKING_FORMAT,
};

struct request {
    struct qm_cli_merging merging;
    struct qmeld_rebase_options options;
    bool standalone;
};

/* ---- the report ---- */

static void
print_human(const struct qmeld_rebase_report *r, bool dry, bool unsafe)
{
    QM_CLI_FREE char *name = r->stored ? qm_cli_quote(r->stored) : NULL;

    printf("%s%s %s%s%s", r->resumed ? "resumed, and " : "", dry ? "would be rebased" : "rebased",
           name ? "onto " : "onto nothing", name ? name : "", unsafe ? " (the name only)\n" : "");
    if (unsafe)
        return;
    printf(": %s copied, %s compared, %s shared\n", qm_cli_size(r->bytes_copied).text,
           qm_cli_size(r->bytes_compared).text, qm_cli_size(r->bytes_shared).text);
    if (r->verified)
        printf("read back and compared: %s\n", qm_cli_size(r->bytes_verified).text);
    if (dry)
        printf("length of the file: %" PRIu64 " now, then %" PRIu64 "; extra space: %s\n",
               r->old_length, r->new_length, qm_cli_size(r->peak).text);
}

static void
print_json(const struct request *request, const struct qmeld_rebase_report *r,
           const struct qmeld_error *err)
{
    struct json_object *o = json_object_new_object();
    const char *result =
        request->options.dry_run && !err ? "would-be-done" : qm_cli_result_word(err);

    qm_cli_json_add(o, "result", json_object_new_string(result));
    if (err)
        qm_cli_json_add(o, "error", qm_cli_json_error(err));
    else
        qm_cli_json_add(o, "backing-filename", qm_cli_json_string(r->stored));
    qm_cli_json_add_bool(o, "resumed", r->resumed);
    qm_cli_json_add_u64(o, "bytes-copied", r->bytes_copied);
    qm_cli_json_add_u64(o, "bytes-compared", r->bytes_compared);
    qm_cli_json_add_u64(o, "bytes-shared", r->bytes_shared);
    qm_cli_json_add_u64(o, "old-length", r->old_length);
    qm_cli_json_add_u64(o, "new-length", r->new_length);
    qm_cli_json_add_bool(o, "verified", r->verified);
    qm_cli_json_add_u64(o, "bytes-verified", r->bytes_verified);
    if (request->options.dry_run)
        qm_cli_json_add_u64(o, "peak", r->peak);
    qm_cli_json_add_u64(o, "milliseconds", r->seconds_x1000);
    qm_cli_json_print(o);
}

/* The new chain is known when IMAGE's folder and its journal have been looked at: whatever could be behind a server
 * there leaves connections possible. */
static void
confine(const struct request *request, const char *path)
{
    const struct qmeld_rebase_options *o = &request->options;
    const struct qmeld_open_options open = {
        .format = o->format, .backing_format = o->chain_format, .allow_paths = o->allow_paths};
    const struct qmeld_open_options new = {.format = o->backing_format,
                                           .backing_format = o->chain_format,
                                           .allow_paths = o->allow_paths};
    const char *slash = strrchr(path, '/');
    QM_CLI_FREE char *where = NULL;

    qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    if (!qm_cli_sandbox_peek(path, &open))
        return;
    if (o->backing && !o->unsafe) {
        if (strchr(o->backing, ':') ||
            asprintf(&where, "%.*s%s", *o->backing == '/' || !slash ? 0 : (int)(slash + 1 - path),
                     path, o->backing) < 0) {
            where = NULL;
            return;
        }
        if (!qm_cli_sandbox_peek(where, &new))
            return;
    }
    qm_cli_sandbox_opened(o->secrets ? QM_SANDBOX_OPENS_CODE : QM_SANDBOX_OPENS_FILES);
}

static int
rebase(struct request *request, const char *path)
{
    struct qm_cli_merging *merging = &request->merging;
    struct qmeld_rebase_options *o = &request->options;
    struct qmeld_rebase_report report;
    struct qmeld_error err;
    int rc;

    qm_cli_merging_begin(merging);
    o->secrets = merging->options.secrets;
    o->threads = merging->options.threads;
    o->bandwidth = merging->options.bandwidth;
    o->verify = merging->options.verify;
    o->journal_dir = merging->options.journal_dir;
    o->progress = merging->options.progress;
    confine(request, path);
    o->opaque = merging->options.opaque;
    qm_cli_progress_begin(&merging->progress, merging->mode);
    rc = qmeld_rebase(path, o, &report, &err);
    if (rc == 0)
        qm_cli_progress_full(&merging->progress);
    qm_cli_progress_end(&merging->progress);
    if (merging->output == QM_OUTPUT_JSON)
        print_json(request, &report, rc < 0 ? &err : NULL);
    else if (rc == 0 && !merging->quiet && (o->dry_run || !qm_cli_is_qmeld_img()))
        print_human(&report, o->dry_run, o->unsafe);
    if (rc < 0)
        qm_cli_merging_explain(merging, path, false, &err);
    else if (o->verify && !report.verified && !o->dry_run)
        fputs("qmeld: not all was read back: an earlier run, without --verify, had copied a part "
              "of it\n",
              stderr);
    qmeld_rebase_report_free(&report);
    return rc < 0 ? qm_cli_exit_code(&err) : QM_EXIT_DONE;
}

/* ---- options ---- */

/* False after a complaint. */
static bool
take_option(struct request *request, int c)
{
    struct qmeld_rebase_options *o = &request->options;
    bool past_cache; /* data goes through the cache, whatever is asked: it is durable in the end */

    switch (c) {
    case 'b':
        o->backing = optarg;
        return true;
    case 'F':
        o->backing_format = optarg;
        return true;
    case 'u':
        o->unsafe = true;
        return true;
    case 'p':
        request->merging.bar = true;
        return true;
    case 't':
    case 'T':
        return qm_cli_parse_cache(request->merging.command, c, optarg, &past_cache);
    case 'U':
        qm_cli_usage(
            request->merging.command,
            "-U would change an image that somebody uses: stop who does, and leave it out");
        return false;
    case QM_OPT_OBJECT:
    case QM_OPT_IMAGE_OPTS:
        return qm_cli_refuse_qemu_option(request->merging.command, c);
    case 'f':
        o->format = optarg;
        return true;
    case OPT_STANDALONE:
        request->standalone = true;
        return true;
    case OPT_KEEP_RELATIVE:
        o->keep_relative = true;
        return true;
    case OPT_DRY_RUN:
        o->dry_run = true;
        return true;
    case OPT_BACKING_FORMAT:
        o->chain_format = optarg;
        return true;
    default:
        return qm_cli_merging_take(&request->merging, c);
    }
}

static bool
check_request(struct request *request)
{
    struct qmeld_rebase_options *o = &request->options;
    const char *command = request->merging.command;

    if (!o->backing && !request->standalone) {
        qm_cli_usage(command, "the new backing file is to be named with -b, or --standalone given");
        return false;
    }
    if (o->backing && *o->backing && request->standalone) {
        qm_cli_usage(command, "--standalone is without a backing file: leave out that or -b");
        return false;
    }
    if (!o->backing || !*o->backing)
        o->backing = o->backing_format = NULL;
    if (o->unsafe && request->merging.options.verify) {
        qm_cli_usage(command,
                     "--unsafe writes nothing that could be read back: leave out --verify");
        return false;
    }
    if (o->backing && !o->backing_format) {
        qm_cli_usage(command, "the format of the new backing file is to be given with -F");
        return false;
    }
    return true;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"standalone", no_argument, NULL, OPT_STANDALONE},
        {"unsafe", no_argument, NULL, 'u'},
        {"keep-relative", no_argument, NULL, OPT_KEEP_RELATIVE},
        {"dry-run", no_argument, NULL, OPT_DRY_RUN},
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        QM_CLI_ALLOW_PATH_OPTION,
        QM_CLI_SANDBOX_OPTION,
        {"format", required_argument, NULL, 'f'},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"bandwidth", required_argument, NULL, QM_OPT_BANDWIDTH},
        {"threads", required_argument, NULL, QM_OPT_THREADS},
        {"verify", no_argument, NULL, QM_OPT_VERIFY},
        {"deadline", required_argument, NULL, QM_OPT_DEADLINE},
        {"progress", required_argument, NULL, QM_OPT_PROGRESS},
        {"quiet", no_argument, NULL, 'q'},
        {"force-share", no_argument, NULL, 'U'},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_SECRET_OPTIONS,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {.merging = {.command = argv[0], .rebase = true}};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":b:F:f:t:T:Uuphq", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&request, c))
            return QM_EXIT_REFUSED;
    }
    if (argc - optind != 1) {
        qm_cli_expected(argv[0], "one image is expected", argc - optind);
        return QM_EXIT_REFUSED;
    }
    request.options.allow_paths = qm_cli_allow_paths();
    return check_request(&request) ? rebase(&request, argv[optind]) : QM_EXIT_REFUSED;
}

const struct qm_cli_command qm_cli_rebase = {"rebase", help, "image", run, true};
