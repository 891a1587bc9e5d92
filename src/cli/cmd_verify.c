/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_verify.c - `qmeld verify`: is all still as a manifest says? */
#include "merging.h"
#include "sandbox.h"

#include <inttypes.h>
#include <json-c/json.h>

static const char help[] =
    "qmeld verify - derive all that a manifest says anew\n"
    "\n"
    "    qmeld flatten --manifest=case.json top.qcow2 disk.raw\n"
    "    qmeld verify case.json\n"
    "    qmeld verify --image=/mnt/copy.raw case.json\n"
    "    qmeld verify --image=copy/disk.raw --inputs=copy/top.qcow2 copy/case.json\n"
    "\n"
    "usage: qmeld verify [OPTIONS] MANIFEST\n"
    "\n"
    "Reads the image that was written and the files that it was made from, where the manifest\n"
    "says they are: the digests of the image's leaves and of all of it, the tree over them, the\n"
    "digest of each input file, and that the inputs' tables lead to the places that are noted for\n"
    "each byte.  Says which leaf and which file differs.  Takes no lock, and writes nothing.\n"
    "\n"
    "        --image=FILE           the image that was written is here, and not where the\n"
    "                               manifest says\n"
    "        --inputs=FILE          the image that was flattened is here, and the files under it\n"
    "                               are where its backing names lead from here\n"
    "        --allow-path=PATH      a folder, file or nbd://HOST that names in images may lead\n"
    "                               to; may be repeated, and then they lead nowhere "
    "else\n" QM_CLI_SECRET_HELP
    "        --threads=N            use N threads (as many as processors, at most 16)\n"
    "        --deadline=TIME        stop after so long, as a signal would do\n"
    "        --progress=auto|bar|json|none\n"
    "                               on stderr; auto: a bar if that is a terminal\n"
    "    -q, --quiet                no report, no bar; the exit code tells\n"
    "        --output=human|json    form of the report\n"
    "        --no-sandbox           keep what the command does not need, to debug it\n"
    "    -h, --help                 this text\n"
    "\n"
    "Exit codes: 0 all is as the manifest says; 1 something differs; 2 wrong usage, or the file "
    "is\n"
    "no manifest; 3 something could not be read, and the rest is as it says; 75 stopped.\n";

enum {
    VERIFY_SAME = 0,
    VERIFY_DIFFERS = 1,
    VERIFY_REFUSED = 2,
    VERIFY_UNREADABLE = 3,
};

enum { OPT_IMAGE = QM_OPT_MERGING_FIRST, OPT_INPUTS };

struct request {
    struct qmeld_verify_options verify;
    struct qm_cli_merging merging; /* for what it knows of threads, signals and progress */
    struct json_object *findings;  /* NULL: they are printed */
};

static void
take_finding(const char *sentence, void *opaque)
{
    struct request *r = opaque;

    if (r->findings) {
        json_object_array_add(r->findings, qm_cli_json_string(sentence));
        return;
    }
    if (r->merging.quiet)
        return;
    {
        QM_CLI_FREE char *shown = qm_cli_quote(sentence);

        qm_cli_progress_end(&r->merging.progress);
        printf("%s\n", shown);
    }
}

/* False after a complaint. */
static bool
take_option(struct request *r, int c)
{
    switch (c) {
    case OPT_IMAGE:
        r->verify.output = optarg;
        return true;
    case OPT_INPUTS:
        r->verify.inputs = optarg;
        return true;
    default:
        return qm_cli_merging_take(&r->merging, c);
    }
}

static uint64_t
differences(const struct qmeld_verify_result *v)
{
    return v->leaves_differ + v->inputs_differ + v->spans_differ + v->digests_differ;
}

static void
print_result(const struct qmeld_verify_result *v)
{
    if (differences(v) == 0 && v->unreadable == 0)
        printf("all is as the manifest says: %" PRIu64 " leaves, %" PRIu64 " input files\n",
               v->leaves, v->inputs);
    else
        printf("differ: leaves %" PRIu64 " of %" PRIu64 ", input files %" PRIu64 " of %" PRIu64
               ", places of bytes %" PRIu64 ", digests of the whole %" PRIu64
               "; not readable: %" PRIu64 "\n",
               v->leaves_differ, v->leaves, v->inputs_differ, v->inputs, v->spans_differ,
               v->digests_differ, v->unreadable);
}

static void
print_json(struct request *r, const struct qmeld_verify_result *v, const struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object();

    if (err)
        qm_cli_json_add(object, "error", qm_cli_json_error(err));
    qm_cli_json_add_u64(object, "leaves", v->leaves);
    qm_cli_json_add_u64(object, "leaves-differ", v->leaves_differ);
    qm_cli_json_add_u64(object, "inputs", v->inputs);
    qm_cli_json_add_u64(object, "inputs-differ", v->inputs_differ);
    qm_cli_json_add_u64(object, "spans-differ", v->spans_differ);
    qm_cli_json_add_u64(object, "digests-differ", v->digests_differ);
    qm_cli_json_add_u64(object, "unreadable", v->unreadable);
    qm_cli_json_add(object, "findings", r->findings);
    qm_cli_json_print(object);
}

static int
code_of(const struct qmeld_verify_result *v)
{
    if (differences(v) > 0)
        return VERIFY_DIFFERS;
    return v->unreadable > 0 ? VERIFY_UNREADABLE : VERIFY_SAME;
}

static int
verify(struct request *r, const char *path)
{
    struct qmeld_verify_result result;
    struct qmeld_error err;
    int rc;

    qm_cli_merging_begin(&r->merging);
    r->verify.secrets = r->merging.options.secrets;
    r->verify.threads = r->merging.options.threads;
    r->verify.progress = r->merging.options.progress;
    r->verify.opaque = r->merging.options.opaque;
    r->verify.finding = take_finding;
    r->verify.finding_opaque = r;
    r->findings = r->merging.output == QM_OUTPUT_JSON ? json_object_new_array() : NULL;
    qm_cli_progress_begin(&r->merging.progress, r->merging.mode);
    rc = qmeld_verify(path, &r->verify, &result, &err);
    qm_cli_progress_end(&r->merging.progress);
    if (rc < 0)
        qm_cli_complain(&err);
    if (r->findings)
        print_json(r, &result, rc < 0 ? &err : NULL);
    else if (rc == 0 && !r->merging.quiet)
        print_result(&result);
    if (rc == 0)
        return code_of(&result);
    if (err.code == QMELD_CANCELED)
        return QM_EXIT_STOPPED;
    return err.code == QMELD_IO || err.code == QMELD_NOMEM ? VERIFY_UNREADABLE : VERIFY_REFUSED;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"image", required_argument, NULL, OPT_IMAGE},
        {"inputs", required_argument, NULL, OPT_INPUTS},
        QM_CLI_ALLOW_PATH_OPTION,
        {"threads", required_argument, NULL, QM_OPT_THREADS},
        {"deadline", required_argument, NULL, QM_OPT_DEADLINE},
        {"progress", required_argument, NULL, QM_OPT_PROGRESS},
        {"quiet", no_argument, NULL, 'q'},
        QM_CLI_SECRET_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request r = {.merging = {.command = argv[0]}};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":qh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return VERIFY_SAME;
        }
        if (!take_option(&r, c))
            return VERIFY_REFUSED;
    }
    if (argc - optind != 1) {
        qm_cli_expected(argv[0], "one manifest is expected", argc - optind);
        return VERIFY_REFUSED;
    }
    r.verify.allow_paths = qm_cli_allow_paths();
    qm_cli_sandbox_enter(QM_SANDBOX_READS); /* its inputs are known when it is read: servers, too */
    return verify(&r, argv[optind]);
}

const struct qm_cli_command qm_cli_verify = {"verify", help, "manifest", run, false};
