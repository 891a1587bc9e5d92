/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_flatten.c - `qmeld flatten`: what a chain reads as becomes one image. */
#include "create_options.h"
#include "outcome.h"
#include "partials.h"
#include "sandbox.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char help[] =
    "qmeld flatten - write what an image reads as, through all its layers, to a new image\n"
    "\n"
    "    qmeld flatten top.qcow2 disk.raw\n"
    "    qmeld flatten -O qcow2 --cluster-size=128k top.qcow2 disk.qcow2\n"
    "    qmeld flatten --snapshot=monday top.qcow2 monday.raw\n"
    "    qmeld flatten top.qcow2 - | ssh host 'cat >disk.raw'\n"
    "\n"
    "usage: qmeld flatten [OPTIONS] IMAGE OUT\n"
    "\n"
    "IMAGE is any layer of a chain: what a virtual machine would see of it.  All layers are only\n"
    "read, and locked as a reader locks them, so that a machine that writes to one is refused.\n"
    "OUT is a file, a block device, or - for standard output, which gets a raw disk.  A file has\n"
    "its name when it is complete and on the disk; until then it is called .OUT.qmeld-partial,\n"
    "and the same command goes on with it.\n"
    "\n"
    "    -O, --to=raw|qcow2           format of OUT (raw)\n"
    "    -s, --snapshot=NAME|ID       an internal snapshot of IMAGE, in place of what it is now\n"
    "        --compat=1.1|0.10        qcow2 version 3 or 2 (also v3, v2)\n"
    "        --cluster-size=SIZE      512 to 2M (64k)\n"
    "        --refcount-bits=N        1, 2, 4, 8, 16, 32 or 64 (16)\n"
    "        --compression-type=TYPE  zlib or zstd: what guests' own compressed writes will be\n"
    "        --extended-l2=on|off     32 subclusters in a cluster\n"
    "        --lazy-refcounts=on|off  refcounts written late; repaired after a crash\n"
    "        --preallocation=MODE     off, metadata (qcow2), falloc or full: what reads as zeros\n"
    "                                 has its place in OUT, too, its space, or written zeros; not\n"
    "                                 with --compress\n"
    "    -o KEY=VALUE[,KEY=VALUE...]  the same, by the names qemu-img uses\n"
    "    -c, --compress=TYPE[:LEVEL]  store data compressed: zlib, levels 1 to 9 (2), or zstd, 1 "
    "to\n"
    "                                 19 (3); -c is --compress=zlib.  Without a level, clusters\n"
    "                                 that are stored so in a layer are passed on as they are\n"
    "        --bitmaps=drop           OUT gets no persistent bitmaps (default)\n"
    "        --bitmaps=merge          it gets those of all layers, one of each name; qcow2 only\n"
    "        --bitmaps=keep           it gets those of IMAGE, as with qemu-img convert --bitmaps\n"
    "        --skip-broken-bitmaps    with keep: but those that were not closed cleanly, or are\n"
    "                                 damaged; otherwise they are a reason to refuse\n"
    "        --no-detect-zeroes       zeros that are stored as data stay data; otherwise they\n"
    "                                 become holes\n"
    "        --manifest=FILE          also write where every byte is from, and SHA-256 of the "
    "disk,\n"
    "                                 of its leaves and of every input file; see qmeld verify\n"
    "        --leaf=SIZE              a digest for each so many bytes: 4k to 64M (1M)\n"
    "        --salvage                go on past what cannot be read, or makes no sense: sectors,\n"
    "                                 tables, compressed clusters, fields of headers, backing "
    "files\n"
    "                                 that are not there; it reads as zeros, and is "
    "listed\n"
    "                                 in the manifest\n"
    "        --fill=TEXT              it reads as TEXT, over and over\n"
    "        --salvage-map=FILE       it is listed here, too, as ddrescue does\n"
    "        --force                  replace OUT, when the new one is complete; write to a\n"
    "                                 block device\n"
    "        --restart                begin anew where an earlier run was interrupted\n"
    "    -f, --format=FMT             format of IMAGE; found by content otherwise\n"
    "        --allow-path=PATH        a folder, file or nbd://HOST that names in images may lead\n"
    "                                 to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT     format of layers for which no overlay stores one; without\n"
    "                                 it they are refused\n"
    "    -U, --force-share            take no lock: IMAGE may be in use, and what is read is then\n"
    "                                 of no single moment\n"
    "        --secret=[IMAGE=]FILE    passphrase of encrypted layers, or of that one: all bytes "
    "of\n"
    "                                 FILE, as they are; OUT is not encrypted\n"
    "        --secret-fd=[IMAGE=]N    the same, read from descriptor N\n"
    "        --threads=N              use N threads (as many as processors, at most 16)\n"
    "        --deadline=TIME          stop after so long, as a signal would do; seconds, or 30m,\n"
    "                                 2h, 1d\n"
    "        --progress=auto|bar|json|none\n"
    "                                 on stderr; auto: a bar if that is a terminal\n"
    "    -q, --quiet                  no report, no bar; errors only\n"
    "        --output=human|json      form of the report\n"
    "        --no-sandbox             keep what the command does not need, to debug it\n"
    "    -h, --help                   this text\n"
    "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done; 1 failed, 2 refused or wrong usage: nothing is left behind; 3 stopped\n"
    "half-way, and 75 stopped by a signal or at the deadline: the same command again goes on;\n"
    "4 done with --salvage, and something is lost.\n";

enum {
    OPT_COMPRESS = QM_OPT_MERGING_FIRST,
    OPT_SKIP_BROKEN,
    OPT_NO_DETECT_ZEROES,
    OPT_MANIFEST,
    OPT_LEAF,
    OPT_SALVAGE,
    OPT_FILL,
    OPT_SALVAGE_MAP,
    OPT_FORCE,
    OPT_RESTART,
    OPT_BACKING_FORMAT,
    OPT_CREATE, /* the first of those with names in create_names */
};

static const char *const create_names[] = {"compat",           "cluster_size", "refcount_bits",
                                           "compression_type", "extended_l2",  "lazy_refcounts",
                                           "preallocation"};

struct request {
    const char *image;
    const char *out;
    struct qmeld_flatten_options flatten;
    struct qmeld_create_options target;
    struct qm_cli_merging merging; /* for what it knows of threads, signals and progress */
    bool to_stdout;
    int failed; /* errno of standard output */
};

/* ---- options ---- */

/* "zstd", "zlib:6"; arg is argv's own, which may be written to. */
static bool
take_compress(struct request *r, char *arg)
{
    char *colon = strchr(arg, ':');
    uint64_t level = 0;

    if (colon && (!qm_cli_parse_number(colon + 1, 99, &level) || level == 0)) {
        qm_cli_usage("flatten", "the level of compression is a number from 1 on, not \"%s\"",
                     colon + 1);
        return false;
    }
    if (colon)
        *colon = '\0';
    r->flatten.compress = arg;
    r->flatten.compress_level = (int)level;
    return true;
}

static bool
take_bitmaps(struct request *r, const char *arg)
{
    static const char *const names[] = {"drop", "merge", "keep"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(arg, names[i]) != 0)
            continue;
        r->flatten.bitmaps = (enum qmeld_flatten_bitmaps)i;
        return true;
    }
    qm_cli_usage("flatten", "--bitmaps is merge, keep or drop, not \"%s\"", arg);
    return false;
}

/* False after a complaint. */
static bool
take_option(struct request *r, int c)
{
    switch (c) {
    case 'O':
        r->target.format = optarg;
        return true;
    case 's':
        r->flatten.snapshot = optarg;
        return true;
    case 'o':
        return qm_cli_create_apply_list("flatten", &r->target, optarg);
    case 'c':
        r->flatten.compress = "zlib";
        return true;
    case OPT_COMPRESS:
        return take_compress(r, optarg);
    case QM_OPT_BITMAPS:
        return take_bitmaps(r, optarg);
    case OPT_SKIP_BROKEN:
        r->flatten.skip_broken_bitmaps = true;
        return true;
    case OPT_NO_DETECT_ZEROES:
        r->flatten.keep_zeros = true;
        return true;
    case OPT_MANIFEST:
        r->flatten.manifest = optarg;
        return true;
    case OPT_LEAF:
        if (qm_cli_parse_size(optarg, &r->flatten.leaf) && r->flatten.leaf > 0)
            return true;
        qm_cli_usage("flatten", "--leaf is a size, not \"%s\"", optarg);
        return false;
    case OPT_SALVAGE:
        r->flatten.salvage = true;
        return true;
    case OPT_FILL:
        r->flatten.fill = optarg;
        return true;
    case OPT_SALVAGE_MAP:
        r->flatten.salvage_map = optarg;
        return true;
    case OPT_FORCE:
        r->flatten.force = true;
        return true;
    case OPT_RESTART:
        r->flatten.restart = true;
        return true;
    case 'f':
        r->flatten.format = optarg;
        return true;
    case OPT_BACKING_FORMAT:
        r->flatten.backing_format = optarg;
        return true;
    case 'U':
        r->flatten.share = true;
        return true;
    default:
        if (c >= OPT_CREATE)
            return qm_cli_create_apply("flatten", &r->target, create_names[c - OPT_CREATE], optarg);
        return qm_cli_merging_take(&r->merging, c);
    }
}

static bool
take_operands(struct request *r, int n, char **operands)
{
    if (n != 2) {
        qm_cli_expected("flatten", "an image and a name for the new one are expected", n);
        return false;
    }
    r->image = operands[0];
    r->out = operands[1];
    r->to_stdout = strcmp(r->out, "-") == 0;
    if (r->to_stdout && r->merging.output == QM_OUTPUT_JSON) {
        qm_cli_usage("flatten", "standard output gets the disk: there is no place for a report");
        return false;
    }
    return true;
}

/* -1, or an exit code. */
static int
take_options(struct request *r, int argc, char **argv)
{
    static const struct option options[] = {
        {"to", required_argument, NULL, 'O'},
        {"snapshot", required_argument, NULL, 's'},
        {"compat", required_argument, NULL, OPT_CREATE},
        {"cluster-size", required_argument, NULL, OPT_CREATE + 1},
        {"refcount-bits", required_argument, NULL, OPT_CREATE + 2},
        {"compression-type", required_argument, NULL, OPT_CREATE + 3},
        {"extended-l2", required_argument, NULL, OPT_CREATE + 4},
        {"lazy-refcounts", required_argument, NULL, OPT_CREATE + 5},
        {"preallocation", required_argument, NULL, OPT_CREATE + 6},
        {"compress", required_argument, NULL, OPT_COMPRESS},
        {"bitmaps", required_argument, NULL, QM_OPT_BITMAPS},
        {"skip-broken-bitmaps", no_argument, NULL, OPT_SKIP_BROKEN},
        {"no-detect-zeroes", no_argument, NULL, OPT_NO_DETECT_ZEROES},
        {"manifest", required_argument, NULL, OPT_MANIFEST},
        {"leaf", required_argument, NULL, OPT_LEAF},
        {"salvage", no_argument, NULL, OPT_SALVAGE},
        {"fill", required_argument, NULL, OPT_FILL},
        {"salvage-map", required_argument, NULL, OPT_SALVAGE_MAP},
        {"force", no_argument, NULL, OPT_FORCE},
        {"restart", no_argument, NULL, OPT_RESTART},
        QM_CLI_ALLOW_PATH_OPTION,
        {"format", required_argument, NULL, 'f'},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"force-share", no_argument, NULL, 'U'},
        {"threads", required_argument, NULL, QM_OPT_THREADS},
        {"deadline", required_argument, NULL, QM_OPT_DEADLINE},
        {"progress", required_argument, NULL, QM_OPT_PROGRESS},
        {"quiet", no_argument, NULL, 'q'},
        QM_CLI_SECRET_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    int c;

    r->merging.command = argv[0];
    while ((c = qm_cli_getopt(argc, argv, ":O:s:o:f:cUqh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(r, c))
            return QM_EXIT_REFUSED;
    }
    r->flatten.allow_paths = qm_cli_allow_paths();
    return take_operands(r, argc - optind, argv + optind) ? -1 : QM_EXIT_REFUSED;
}

/* ---- the work ---- */

static int
write_stdout(const void *bytes, size_t len, void *opaque)
{
    struct request *r = opaque;

    while (len > 0) {
        const ssize_t n = write(STDOUT_FILENO, bytes, len);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            r->failed = errno;
            return -1;
        }
        bytes = (const char *)bytes + n;
        len -= (size_t)n;
    }
    return 0;
}

static void
print_report(const struct request *r, const struct qmeld_flatten_report *report)
{
    QM_CLI_FREE char *out = qm_cli_quote(r->out);

    printf("%s: %s, %s of it data, in %" PRIu64 ".%03" PRIu64 " s", out,
           qm_cli_size(report->size).text, qm_cli_size(report->bytes_data).text,
           report->seconds_x1000 / 1000, report->seconds_x1000 % 1000);
    if (report->bytes_shared)
        printf(", %s shared", qm_cli_size(report->bytes_shared).text);
    if (report->bytes_passed)
        printf(", %s passed on", qm_cli_size(report->bytes_passed).text);
    if (report->bytes_compressed)
        printf(", compressed to %s", qm_cli_size(report->bytes_compressed).text);
    if (report->resumed)
        printf("; gone on with at %s", qm_cli_size(report->resumed_at).text);
    printf("\n");
    qm_cli_outcome_print_bitmaps(stdout, "the new image", report->bitmaps, report->n_bitmaps,
                                 false);
    if (report->sha256[0])
        printf("SHA-256 %s\nMerkle root %s\n", report->sha256, report->merkle_root);
}

static void
print_json(const struct request *r, const struct qmeld_flatten_report *report,
           const struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object();

    qm_cli_json_add(object, "filename", qm_cli_json_string(r->out));
    qm_cli_json_add(object, "result", qm_cli_json_string(qm_cli_result_word(err)));
    if (err)
        qm_cli_json_add(object, "error", qm_cli_json_error(err));
    qm_cli_json_add_u64(object, "virtual-size", report->size);
    qm_cli_json_add_u64(object, "bytes-data", report->bytes_data);
    qm_cli_json_add_u64(object, "bytes-shared", report->bytes_shared);
    qm_cli_json_add_u64(object, "bytes-passed", report->bytes_passed);
    qm_cli_json_add_u64(object, "bytes-compressed", report->bytes_compressed);
    if (r->flatten.salvage) {
        qm_cli_json_add_u64(object, "bytes-lost", report->bytes_lost);
        qm_cli_json_add_u64(object, "ranges-lost", report->ranges_lost);
    }
    qm_cli_json_add(object, "bitmaps",
                    qm_cli_outcome_bitmaps_json(report->bitmaps, report->n_bitmaps));
    qm_cli_json_add_bool(object, "resumed", report->resumed);
    if (report->resumed)
        qm_cli_json_add_u64(object, "resumed-at", report->resumed_at);
    if (report->sha256[0]) {
        qm_cli_json_add(object, "sha256", qm_cli_json_string(report->sha256));
        qm_cli_json_add(object, "merkle-root", qm_cli_json_string(report->merkle_root));
    }
    qm_cli_json_add_u64(object, "milliseconds", report->seconds_x1000);
    qm_cli_json_print(object);
}

static int
explain(const struct request *r, const struct qmeld_error *err)
{
    QM_CLI_FREE char *out = qm_cli_quote(r->out);

    if (r->failed) {
        fprintf(stderr, "qmeld: standard output: cannot write: %s\n", strerror(r->failed));
        return QM_EXIT_FAILED;
    }
    qm_cli_complain(err);
    if (err->disk == QMELD_DISK_OPEN && err->code != QMELD_BUSY)
        fprintf(stderr, "qmeld: %s: not complete: the same command again goes on with it\n", out);
    return qm_cli_exit_code(err);
}

/* For the manifest: options are taken apart in argv itself.  NULL: no memory; then it is not told. */
static char **
copy_words(int n, char **words)
{
    char **copy = calloc((size_t)n + 1, sizeof *copy);

    for (int i = 0; copy && i < n; i++)
        copy[i] = strdup(words[i]);
    return copy;
}

static void
free_words(char **words)
{
    for (size_t i = 0; words && words[i]; i++)
        free(words[i]);
    free(words);
}

static void
tell_finding(const char *sentence, void *opaque)
{
    QM_CLI_FREE char *shown = qm_cli_quote(sentence);

    (void)opaque;
    fprintf(stderr, "qmeld: %s\n", shown);
}

/* To what is out a server's export, the new image is opened after the layers. */
static void
confine(const struct request *r)
{
    const struct qmeld_open_options open = {.format = r->flatten.format,
                                            .backing_format = r->flatten.backing_format,
                                            .allow_paths = r->flatten.allow_paths};

    qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    qm_cli_sandbox_peek(r->image, &open);
    if (!r->out || !strstr(r->out, "nbd"))
        qm_cli_sandbox_opened(r->flatten.manifest || r->flatten.secrets ? QM_SANDBOX_OPENS_CODE
                                                                        : QM_SANDBOX_OPENS_FILES);
}

static int
run(int argc, char **argv)
{
    struct request r = {.flatten = {.target = &r.target}};
    struct qmeld_flatten_report report;
    struct qmeld_error err;
    char **command = copy_words(argc + 1, argv - 1); /* main's: the program's name is in front */
    int code = take_options(&r, argc, argv);

    if (code >= 0) {
        free_words(command);
        return code;
    }
    r.flatten.command = (const char *const *)command;
    qm_cli_merging_begin(&r.merging);
    r.flatten.secrets = r.merging.options.secrets;
    r.flatten.finding = tell_finding;
    r.flatten.threads = r.merging.options.threads;
    r.flatten.progress = r.merging.options.progress;
    r.flatten.opaque = r.merging.options.opaque;
    if (r.to_stdout) {
        r.flatten.sink = write_stdout;
        r.flatten.sink_opaque = &r;
    }
    confine(&r);
    qm_cli_progress_begin(&r.merging.progress, r.merging.mode);
    code = qmeld_flatten(r.image, r.to_stdout ? NULL : r.out, &r.flatten, &report, &err);
    if (code == 0)
        qm_cli_progress_full(&r.merging.progress);
    qm_cli_progress_end(&r.merging.progress);
    free_words(command);
    code = code < 0 ? explain(&r, &err) : QM_EXIT_DONE;
    if (r.merging.output == QM_OUTPUT_JSON)
        print_json(&r, &report, code == QM_EXIT_DONE ? NULL : &err);
    else if (code == QM_EXIT_DONE && !r.merging.quiet && !r.to_stdout)
        print_report(&r, &report);
    qmeld_flatten_report_free(&report);
    if (code != QM_EXIT_DONE || report.bytes_lost == 0)
        return code;
    fprintf(stderr, "qmeld: %" PRIu64 " bytes are lost, in %" PRIu64 " ranges\n", report.bytes_lost,
            report.ranges_lost);
    return QM_CLI_FLATTEN_LOST;
}

const struct qm_cli_command qm_cli_flatten = {"flatten", help, "image file", run, true};
