/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_blockcommit.c - `qmeld blockcommit`: merge layers of a domain's disk.
 *
 * Options, their meanings and what is said at the end are those of `virsh blockcommit`, so that scripts
 * can be pointed here; what virsh leaves to its user (which files may go, what a failure left) is said too.
 */
#include "loader.h"
#include "merging.h"
#include "outcome.h"

#include <json-c/json.h>
#include <string.h>

static const char help[] =
    "qmeld blockcommit - merge layers of a domain's disk, as virsh blockcommit does\n"
    "\n"
    "    qmeld blockcommit vm1 vda --pivot            everything into the bottom; go on there\n"
    "    qmeld blockcommit vm1 vda --shallow --pivot  the active layer into the one under it\n"
    "    qmeld blockcommit vm1 vda --base='vda[1]' --top='vda[3]' --wait\n"
    "                                                 layers below the active one\n"
    "    qmeld blockcommit vm1 vda --pivot --delete   and remove what was merged\n"
    "\n"
    "usage: qmeld blockcommit [OPTIONS] DOMAIN DISK\n"
    "\n"
    "DOMAIN is a name, UUID or id; DISK a target, such as vda, or the path of its active layer.\n"
    "The machine runs on meanwhile.  Layers are named by path, by the index of the running\n"
    "definition, vda[N], or by [N] counted from the bottom, which is [1]; qmeld info DOMAIN\n"
    "shows them.\n"
    "\n"
    "    -c, --connect=URI          of the hypervisor; otherwise as virsh finds it, or\n"
    "                               qemu:///system\n"
    "        --base=LAYER           merge into this one (the bottom of the chain)\n"
    "        --top=LAYER            merge from this one down (the active layer)\n"
    "        --shallow              base is the layer under top\n"
    "        --active               the active layer is to be merged: when the base has all of "
    "it,\n"
    "                               the job goes on mirroring, until a pivot or an abort\n"
    "        --pivot                implies --active --wait: then the machine goes on on the base\n"
    "        --keep-overlay         implies --active --wait: then the machine stays on the active\n"
    "                               layer\n"
    "        --delete               implies --wait: merged files are removed, once nothing that\n"
    "                               libvirt knows of names them any more\n"
    "        --keep-relative        the backing name in the layer above has to stay relative; it\n"
    "                               does if it is, and an absolute one is refused then\n"
    "        --wait                 until the job has ended or, with --active, is ready\n"
    "        --async                with --wait: do not wait for a canceled job to end\n"
    "        --timeout=SECONDS      implies --wait: cancel the job after so long\n"
    "        --verbose              with --wait: show progress as virsh does\n"
    "        --bandwidth=N          MiB a second at most; 0: no limit\n"
    "        --bytes                the bandwidth is in bytes a second; suffixes k, M, G\n"
    "        --threads=N            copy with N threads, if the machine is stopped\n"
    "        --verify               read back what was written, if the machine is stopped\n"
    "        --journal-dir=DIR      where the journal lies, if the machine is stopped\n"
    "        --deadline=TIME        the same as --timeout; seconds, or 30m, 2h, 1d\n"
    "        --progress=auto|bar|json|none\n"
    "                               on stderr; auto: a bar if that is a terminal\n"
    "    -q, --quiet                no report, no bar; errors only\n"
    "        --output=human|json    form of the report\n"
    "    -h, --help                 this text\n"
    "\n"
    "SIGINT, SIGTERM and SIGHUP cancel the job: the machine then runs on the chain it had.\n"
    "\n"
    "Exit codes: 0 done; 1 failed, the chain is as it was; 2 refused or wrong usage, nothing\n"
    "touched; 3 half-way, the job still runs or is undecided; 75 stopped by a signal or at the\n"
    "deadline, the chain is as it was.\n";

enum {
    OPT_BASE = QM_OPT_MERGING_FIRST,
    OPT_TOP,
    OPT_SHALLOW,
    OPT_ACTIVE,
    OPT_PIVOT,
    OPT_KEEP_OVERLAY,
    OPT_DELETE,
    OPT_KEEP_RELATIVE,
    OPT_WAIT,
    OPT_ASYNC,
    OPT_TIMEOUT,
    OPT_VERBOSE,
    OPT_BYTES,
};

struct asked {
    struct qm_live_commit request;
    struct qm_cli_merging merging;
    const char *bandwidth;
    bool bytes, pivot, keep_overlay, verbose;
    bool line_stands; /* verbose: a line of progress is on the terminal */
};

/* ---- options ---- */

static bool
take_timeout(struct asked *asked, const char *arg)
{
    asked->merging.has_deadline = true;
    if (qm_cli_parse_seconds(arg, &asked->merging.seconds) && asked->merging.seconds > 0)
        return true;
    qm_cli_usage("blockcommit", "--timeout is a number of seconds, not \"%s\"", arg);
    return false;
}

/* Those that say nothing but yes; false: it is none of them. */
static bool
take_switch(struct asked *asked, int c)
{
    struct qm_live_commit *request = &asked->request;
    bool *const switches[] = {
        [OPT_SHALLOW - OPT_BASE] = &request->shallow,
        [OPT_ACTIVE - OPT_BASE] = &request->active,
        [OPT_PIVOT - OPT_BASE] = &asked->pivot,
        [OPT_KEEP_OVERLAY - OPT_BASE] = &asked->keep_overlay,
        [OPT_DELETE - OPT_BASE] = &request->remove,
        [OPT_KEEP_RELATIVE - OPT_BASE] = &request->keep_relative,
        [OPT_WAIT - OPT_BASE] = &request->wait,
        [OPT_ASYNC - OPT_BASE] = &request->async,
        [OPT_VERBOSE - OPT_BASE] = &asked->verbose,
        [OPT_BYTES - OPT_BASE] = &asked->bytes,
    };
    const int i = c - OPT_BASE;

    if (i < 0 || (size_t)i >= sizeof switches / sizeof *switches || !switches[i])
        return false;
    *switches[i] = true;
    return true;
}

/* False after a complaint. */
static bool
take_option(struct asked *asked, int c)
{
    if (take_switch(asked, c))
        return true;
    switch (c) {
    case 'c':
        asked->request.uri = optarg;
        return true;
    case OPT_BASE:
        asked->request.base = optarg;
        return true;
    case OPT_TOP:
        asked->request.top = optarg;
        return true;
    case OPT_TIMEOUT:
        return take_timeout(asked, optarg);
    case QM_OPT_BANDWIDTH:
        asked->bandwidth = optarg;
        return true;
    default:
        return qm_cli_merging_take(&asked->merging, c);
    }
}

/* libvirt takes an unsigned long, and QEMU an int64. */
static bool
settle_bandwidth(struct asked *asked)
{
    uint64_t *rate = &asked->request.bandwidth;

    if (!asked->bandwidth)
        return true;
    if (asked->bytes ? qm_cli_parse_size(asked->bandwidth, rate)
                     : qm_cli_parse_number(asked->bandwidth, INT64_MAX >> 20, rate)) {
        if (!asked->bytes)
            *rate <<= 20;
        if (*rate <= INT64_MAX)
            return true;
    }
    qm_cli_usage("blockcommit", "--bandwidth is a number of %s a second, not \"%s\"",
                 asked->bytes ? "bytes" : "MiB", asked->bandwidth);
    return false;
}

/* What options imply and exclude. */
static bool
settle(struct asked *asked)
{
    struct qm_live_commit *request = &asked->request;

    if (asked->pivot && asked->keep_overlay) {
        qm_cli_usage("blockcommit", "--pivot and --keep-overlay exclude each other");
        return false;
    }
    if (asked->bytes && !asked->bandwidth) {
        qm_cli_usage("blockcommit", "--bytes says in which unit --bandwidth is: add that");
        return false;
    }
    if (asked->pivot)
        request->finish = QM_LIVE_FINISH_PIVOT;
    if (asked->keep_overlay)
        request->finish = QM_LIVE_FINISH_KEEP;
    request->active |= asked->pivot || asked->keep_overlay;
    if (request->remove && request->active && !asked->pivot) {
        qm_cli_usage("blockcommit",
                     "--delete with the active layer needs --pivot: until then it is in use");
        return false;
    }
    request->wait |=
        request->finish != QM_LIVE_FINISH_NONE || request->remove || asked->merging.has_deadline;
    if ((request->async || asked->verbose) && !request->wait) {
        qm_cli_usage("blockcommit", "--async and --verbose need --wait");
        return false;
    }
    return settle_bandwidth(asked);
}

/* ---- progress ---- */

static int
show_progress(const struct qmeld_progress *now, void *opaque)
{
    struct asked *asked = opaque;

    if (now->total_bytes == 0) /* nothing is known yet */
        return qm_cli_merging_stopped(&asked->merging);
    if (asked->verbose) {
        /* 100 is for what is ready: the end grows as long as the guest writes */
        uint64_t percent = (uint64_t)((double)now->done_bytes * 100.0 / (double)now->total_bytes);

        if (strcmp(now->phase, "mirror") == 0)
            percent = 100;
        else if (percent > 99)
            percent = 99;
        fprintf(stderr, "\rBlock Commit: [%3u %%]", (unsigned)percent);
        asked->line_stands = true;
    }
    return asked->merging.options.progress(now, asked->merging.options.opaque);
}

static void
end_progress(struct asked *asked, bool done)
{
    qm_cli_progress_end(&asked->merging.progress);
    if (asked->verbose && done)
        fputs("\rBlock Commit: [100 %]", stderr);
    if (asked->line_stands || (asked->verbose && done))
        fputc('\n', stderr);
}

/* ---- the report ---- */

static const char *
word_of(enum qm_live_end end)
{
    static const char *const words[] = {
        [QM_LIVE_NOTHING] = "nothing", [QM_LIVE_STARTED] = "started", [QM_LIVE_MERGED] = "merged",
        [QM_LIVE_READY] = "ready",     [QM_LIVE_PIVOTED] = "pivoted", [QM_LIVE_KEPT] = "kept",
    };

    return words[end];
}

/* As virsh says it. */
static const char *
sentence_of(const struct asked *asked, enum qm_live_end end)
{
    switch (end) {
    case QM_LIVE_NOTHING:
        return "The disk has one layer: nothing to merge";
    case QM_LIVE_STARTED:
        return asked->request.active ? "Active Block Commit started" : "Block Commit started";
    case QM_LIVE_MERGED:
        return "Commit complete";
    case QM_LIVE_READY:
        return "Now in synchronized phase";
    case QM_LIVE_PIVOTED:
        return "Successfully pivoted";
    case QM_LIVE_KEPT:
        return "Commit complete, overlay image kept";
    }
    return "";
}

static void
print_notes(const struct qm_live_notes *notes)
{
    for (size_t i = 0; i < notes->n; i++) {
        QM_CLI_FREE char *note = qm_cli_quote(notes->at[i]);

        fprintf(stderr, "qmeld: note: %s\n", note);
    }
}

static void
print_report(const struct asked *asked, const struct qm_live_report *report)
{
    QM_CLI_FREE char *base = report->base ? qm_cli_quote(report->base) : NULL;

    puts(sentence_of(asked, report->end));
    if (!report->running && report->end != QM_LIVE_NOTHING)
        qm_cli_outcome_print(&report->merge);
    for (size_t i = 0; i < report->n_files; i++) {
        QM_CLI_FREE char *path = qm_cli_quote(report->files[i].path);

        printf("    %s  %s\n", path,
               report->files[i].removed
                   ? "removed"
                   : "merged: nothing needs it any more, opened by itself it is wrong or will be");
    }
    if (base && report->n_files)
        printf("    %s  holds all of it\n", base);
}

static void
print_json(const struct qm_live_report *report, const struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object(), *list = json_object_new_array();

    qm_cli_json_add(object, "domain", qm_cli_json_string(report->domain));
    qm_cli_json_add(object, "disk", qm_cli_json_string(report->disk));
    qm_cli_json_add_bool(object, "running", report->running);
    qm_cli_json_add(object, "result", err ? NULL : qm_cli_json_string(word_of(report->end)));
    qm_cli_json_add(object, "base", qm_cli_json_string(report->base));
    qm_cli_json_add(object, "top", qm_cli_json_string(report->top));
    for (size_t i = 0; i < report->n_files; i++) {
        struct json_object *file = json_object_new_object();

        qm_cli_json_add(file, "filename", qm_cli_json_string(report->files[i].path));
        qm_cli_json_add_bool(file, "removed", report->files[i].removed);
        json_object_array_add(list, file);
    }
    qm_cli_json_add(object, "merged", list);
    list = json_object_new_array();
    for (size_t i = 0; i < report->notes.n; i++)
        json_object_array_add(list, qm_cli_json_string(report->notes.at[i]));
    qm_cli_json_add(object, "notes", list);
    if (!report->running && report->merge.n_layers)
        qm_cli_json_add(object, "merge", qm_cli_outcome_json(&report->merge, NULL));
    qm_cli_json_add(object, "error", err ? qm_cli_json_error(err) : NULL);
    qm_cli_json_print(object);
}

/* ---- the command ---- */

static int
merge(struct asked *asked)
{
    struct qm_live_report report = {0};
    struct qmeld_error err = {0};
    const struct qm_live_module *live = qm_cli_live(&err);
    int result = -1;

    if (asked->verbose)
        asked->merging.mode = QM_PROGRESS_NONE;
    qm_cli_merging_begin(&asked->merging);
    asked->request.offline = asked->merging.options;
    asked->request.progress = show_progress;
    asked->request.opaque = asked;
    if (live) {
        qm_cli_progress_begin(&asked->merging.progress, asked->merging.mode);
        result = live->blockcommit(&asked->request, &report, &err);
        end_progress(asked,
                     result == 0 && report.end != QM_LIVE_NOTHING && report.end != QM_LIVE_STARTED);
    }
    if (result < 0)
        qm_cli_complain(&err);
    if (result < 0 && asked->merging.has_deadline && err.code == QMELD_CANCELED)
        fputs("Commit aborted\n", stderr);
    if (asked->merging.output == QM_OUTPUT_JSON)
        print_json(&report, result < 0 ? &err : NULL);
    else if (result == 0 && !asked->merging.quiet)
        print_report(asked, &report);
    if (!asked->merging.quiet && asked->merging.output != QM_OUTPUT_JSON)
        print_notes(&report.notes);
    if (live)
        live->report_free(&report);
    return result < 0 ? qm_cli_exit_code(&err) : QM_EXIT_DONE;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"connect", required_argument, NULL, 'c'},
        {"base", required_argument, NULL, OPT_BASE},
        {"top", required_argument, NULL, OPT_TOP},
        {"shallow", no_argument, NULL, OPT_SHALLOW},
        {"active", no_argument, NULL, OPT_ACTIVE},
        {"pivot", no_argument, NULL, OPT_PIVOT},
        {"keep-overlay", no_argument, NULL, OPT_KEEP_OVERLAY},
        {"delete", no_argument, NULL, OPT_DELETE},
        {"keep-relative", no_argument, NULL, OPT_KEEP_RELATIVE},
        {"wait", no_argument, NULL, OPT_WAIT},
        {"async", no_argument, NULL, OPT_ASYNC},
        {"timeout", required_argument, NULL, OPT_TIMEOUT},
        {"verbose", no_argument, NULL, OPT_VERBOSE},
        {"bytes", no_argument, NULL, OPT_BYTES},
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        QM_CLI_MERGING_OPTIONS,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct asked asked = {.merging = {.command = argv[0]}};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":c:h" QM_CLI_MERGING_LETTERS, options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&asked, c))
            return QM_EXIT_REFUSED;
    }
    if (argc - optind != 2) {
        qm_cli_usage(argv[0], "a domain and one of its disks are expected, %d words were given",
                     argc - optind);
        return QM_EXIT_REFUSED;
    }
    asked.request.domain = argv[optind];
    asked.request.disk = argv[optind + 1];
    return settle(&asked) ? merge(&asked) : QM_EXIT_REFUSED;
}

const struct qm_cli_command qm_cli_blockcommit = {"blockcommit", help, run, true};
