/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_blockcommit.c - `qmeld blockcommit`: merge layers of a domain's disk.
 *
 * Options, their meanings and what is said at the end are those of `virsh blockcommit`, so that scripts
 * can be pointed here; what virsh leaves to its user (which files may go, what a failure left) is said too.
 */
#include "delegate.h"
#include "domain_report.h"
#include "loader.h"

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
    "       qmeld blockcommit [OPTIONS] --all-disks DOMAIN\n"
    "\n"
    "DOMAIN is a name, UUID or id; DISK a target, such as vda, or the path of its active layer.\n"
    "A machine that runs goes on meanwhile; of a stopped one the definition, snapshots and saved\n"
    "state are put right after the merge.  Layers are named by path, by the index of the running\n"
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
    "    -v, --verbose              with --wait: show progress as virsh does\n"
    "        --bandwidth=N          MiB a second at most; 0: no limit\n"
    "        --bytes                the bandwidth is in bytes a second; suffixes k, M, G\n"
    "        --deadline=TIME        the same as --timeout; seconds, or 30m, 2h, "
    "1d\n" QM_CLI_OTHERS_HELP
    "  of a stopped machine, which qmeld merges itself, and which cannot be started meanwhile:\n"
    "        --all-disks            every disk that has layers, as one: all of them are merged, "
    "or\n"
    "                               the same command again goes on\n"
    "        --managed-save=refuse  if the machine has a saved state (default)\n"
    "        --managed-save=update  its guest then goes on with the merged chain\n"
    "        --threads=N            copy with N threads\n"
    "        --bitmaps=merge|keep|drop\n"
    "                               bitmaps of merged layers, as with commit\n"
    "        --verify               read back what was written\n"
    "        --cache=writeback|none as with commit\n"
    "        --journal-dir=DIR      where the journal and the note of the change lie: beside the\n"
    "                               base otherwise\n"
    "        --progress=auto|bar|json|none\n"
    "                               on stderr; auto: a bar if that is a terminal\n"
    "    -q, --quiet                no report, no bar; errors only\n"
    "        --output=human|json    form of the report\n"
    "    -h, --help                 this text\n"
    "\n"
    "SIGINT, SIGTERM and SIGHUP cancel the job: the machine then runs on the chain it had.\n"
    "\n"
    "Exit codes: 0 done; 1 failed, the chain is as it was; 2 refused or wrong usage, nothing\n"
    "touched; 3 half-way: the job still runs or is undecided, or, of a stopped machine, the same\n"
    "command again finishes; 75 stopped by a signal or at the deadline, the chain is as it was\n"
    "or, of a stopped machine, the same command again finishes.\n";

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
    OPT_BYTES,
    OPT_ALL_DISKS,
    OPT_MANAGED_SAVE,
};

struct asked {
    struct qm_live_commit request;
    struct qm_cli_merging merging;
    const char *bandwidth;
    bool bytes, pivot, keep_overlay;
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
        [OPT_BYTES - OPT_BASE] = &asked->bytes,
        [OPT_ALL_DISKS - OPT_BASE] = &request->all_disks,
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
    case OPT_MANAGED_SAVE:
        return qm_cli_parse_managed_save("blockcommit", optarg, &asked->request.update_saved);
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
    if ((request->async || asked->merging.verbose) && !request->wait) {
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
    if (asked->merging.verbose) {
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
    if (asked->merging.verbose && done)
        fputs("\rBlock Commit: [100 %]", stderr);
    if (asked->line_stands || (asked->merging.verbose && done))
        fputc('\n', stderr);
}

/* ---- the report ---- */

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

/* ---- the command ---- */

static int
merge(struct asked *asked)
{
    struct qm_live_report report = {0};
    struct qmeld_error err = {0};
    const struct qm_live_module *live = qm_cli_live(&err);
    int result = -1;

    if (asked->merging.verbose)
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
    if (result < 0) {
        qm_cli_complain(&err);
        qm_cli_domain_explain(&report, &err);
    }
    if (result < 0 && asked->merging.has_deadline && err.code == QMELD_CANCELED)
        fputs("Commit aborted\n", stderr);
    qm_cli_domain_report(&asked->merging, &report, sentence_of(asked, report.end),
                         result < 0 ? &err : NULL);
    if (live)
        live->report_free(&report);
    return result < 0 ? qm_cli_exit_code(&err) : QM_EXIT_DONE;
}

int
qm_cli_blockcommit_run(const struct qm_live_commit *request, const struct qm_cli_merging *merging)
{
    struct asked asked = {.request = *request, .merging = *merging};

    return merge(&asked);
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
        {"bytes", no_argument, NULL, OPT_BYTES},
        {"all-disks", no_argument, NULL, OPT_ALL_DISKS},
        {"managed-save", required_argument, NULL, OPT_MANAGED_SAVE},
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        {"bitmaps", required_argument, NULL, QM_OPT_BITMAPS},
        QM_CLI_OTHERS_OPTIONS,
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
    if (argc - optind != (asked.request.all_disks ? 1 : 2)) {
        qm_cli_expected(argv[0],
                        "a domain and one of its disks are expected, or --all-disks and a domain",
                        argc - optind);
        return QM_EXIT_REFUSED;
    }
    asked.request.domain = argv[optind];
    asked.request.disk = asked.request.all_disks ? NULL : argv[optind + 1];
    return settle(&asked) ? merge(&asked) : QM_EXIT_REFUSED;
}

const struct qm_cli_command qm_cli_blockcommit = {"blockcommit", help, "domain disk", run, true};
