/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_fold.c - `qmeld fold`: rolling fulls of backup chains. */
#include "machines.h"
#include "merging.h"

#include <string.h>

static const char help[] =
    "qmeld fold - merge the oldest increments of a backup chain into its full\n"
    "\n"
    "    qmeld fold --keep 7 sunday.qcow2         the full, and the seven newest increments\n"
    "    qmeld fold --keep 7 --atomic sunday.qcow2\n"
    "\n"
    "usage: qmeld fold [OPTIONS] --keep N IMAGE\n"
    "\n"
    "IMAGE is the newest increment.  The layers above the bottom of its chain, which is the full,\n"
    "are increments; the oldest are merged into the full until N are left, and removed.  The\n"
    "first one that is kept then stands on the full.  With N or fewer there is nothing to do, so\n"
    "that a backup job may call it each time.  It is qmeld commit with base and top chosen: at\n"
    "every instant IMAGE, and each increment that is kept, reads as it did before; interrupted,\n"
    "the same command again goes on, also for an increment that was added on top since; another\n"
    "unfinished merge of the chain is refused.  `qmeld plan --top=[K] IMAGE` tells what it\n"
    "would cost.\n"
    "\n"
    "        --keep=N               increments that stay; with 0 IMAGE itself is merged\n"
    "        --overlays=delete|quarantine|keep|empty\n"
    "                               what becomes of merged increments: removed (default), renamed\n"
    "                               to NAME.merged, left as they are, or only the newest of them\n"
    "                               emptied\n"
    "        --reclaim              they are emptied as the merge goes, batch by batch\n"
    "        --atomic               a qcow2 full stays what it is until one sector switches\n"
    "        --undo                 the same for any full; see qmeld commit\n"
    "        --skip-equal           what the full reads as already is not written\n"
    "        --detect-zeroes        data that is zeros becomes holes\n"
    "        --bitmaps=merge        persistent bitmaps of merged layers go into the base "
    "(default)\n"
    "        --bitmaps=keep         they are left behind; the base's learn what is merged\n"
    "        --bitmaps=drop         likewise, and the base's of the same names are removed\n"
    "        --keep-relative        refuse rather than store an absolute backing name\n"
    "        --journal-dir=DIR      where the journal lies while the merge runs: beside the full,\n"
    "                               or, if that is a device or an export, beside IMAGE\n"
    "    -f, --format=FMT           format of IMAGE; found by content otherwise\n"
    "        --allow-path=PATH      a folder, file or nbd://HOST that names in images may lead\n"
    "                               to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one; without\n"
    "                               it they are refused\n" QM_CLI_OTHERS_HELP QM_CLI_SECRET_HELP
        QM_CLI_MERGING_SANDBOX_HELP QM_CLI_MERGING_HELP "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done, or nothing to do; 1 failed, images as they were; 2 refused or wrong\n"
    "usage, nothing touched; 3 stopped half-way, and 75 stopped by a signal or at the deadline:\n"
    "the same command again finishes.\n";

enum { OPT_KEEP = QM_OPT_MERGING_FIRST };

/* As the call that serves all merges has no room for it. */
static uint64_t n_kept;
static bool has_kept;

static int
fold(const char *path, const struct qmeld_commit_options *options,
     struct qmeld_commit_report *report, struct qmeld_error *err)
{
    return qmeld_fold(path, (size_t)n_kept, options, report, err);
}

static bool
take_keep(const char *command, const char *arg)
{
    has_kept = qm_cli_parse_number(arg, 1000000, &n_kept);
    if (!has_kept)
        qm_cli_usage(command, "--keep is a number of increments, not \"%s\"", arg);
    return has_kept;
}

/* False after a complaint. */
static bool
take_option(struct qm_cli_merging *merging, int c)
{
    return c == OPT_KEEP ? take_keep(merging->command, optarg) : qm_cli_merging_take(merging, c);
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"keep", required_argument, NULL, OPT_KEEP},
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        QM_CLI_MERGE_KIND_OPTIONS,
        QM_CLI_MERGING_OPTIONS,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct qm_cli_merging merging = {
        .command = argv[0],
        .nothing = "nothing to do: there are no more increments than are to stay",
    };
    int c;

    merging.options.overlays = QMELD_OVERLAYS_DELETE;
    while ((c = qm_cli_getopt(argc, argv, ":f:h" QM_CLI_MERGING_LETTERS, options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&merging, c))
            return QM_EXIT_REFUSED;
    }
    if (argc - optind != 1) {
        qm_cli_expected(argv[0], "one image is expected", argc - optind);
        return QM_EXIT_REFUSED;
    }
    if (!has_kept) {
        qm_cli_usage(argv[0], "how many increments are to stay is to be said with --keep");
        return QM_EXIT_REFUSED;
    }
    merging.options.allow_paths = qm_cli_allow_paths();
    qm_cli_machines_ask(&merging);
    qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    if (!qm_cli_machines_let(&merging, argv[optind]))
        return QM_EXIT_REFUSED;
    qm_cli_merging_confine(&merging, argv[optind], QM_SANDBOX_WRITES);
    qm_cli_merging_begin(&merging);
    return qm_cli_merging_run_and_report(&merging, argv[optind], fold);
}

const struct qm_cli_command qm_cli_fold = {"fold", help, "image", run, true};
