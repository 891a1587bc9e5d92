/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_snapshot_delete.c - `qmeld snapshot-delete`: an external snapshot of a domain is merged away.
 *
 * It leaves what `virsh snapshot-delete` leaves, and needs neither a machine that can be started nor a
 * libvirt that knows how (before 9.0 it does not).
 */
#include "domain_report.h"
#include "loader.h"

#include <stdio.h>

static const char help[] =
    "qmeld snapshot-delete - delete an external snapshot of a domain\n"
    "\n"
    "    qmeld snapshot-delete vm1 before-upgrade\n"
    "\n"
    "usage: qmeld snapshot-delete [OPTIONS] DOMAIN SNAPSHOT\n"
    "\n"
    "On each disk, the layer that the snapshot put on the chain is merged into the one under it "
    "and\n"
    "removed; the definition and the other snapshots are put right.  The machine may be stopped,\n"
    "then qmeld merges and it cannot be started meanwhile, or run, then QEMU does.  Snapshots "
    "kept\n"
    "inside of images are left to virsh snapshot-delete.\n"
    "\n"
    "    -c, --connect=URI          of the hypervisor; otherwise as virsh finds it, or\n"
    "                               qemu:///system\n"
    "        --managed-save=refuse  if the machine has a saved state (default)\n"
    "        --managed-save=update  the saved state goes on with the merged chain\n"
    "        --bitmaps=merge|keep|drop\n"
    "                               of a stopped machine: bitmaps of merged layers, as with "
    "commit\n"
    "  of a stopped machine, too:\n" QM_CLI_OTHERS_HELP
    "        --journal-dir=DIR      where journal and note lie: beside the base "
    "otherwise\n" QM_CLI_MERGING_HELP "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done; 1 failed, all is as it was; 2 refused or wrong usage, nothing touched;\n"
    "3 half-way, and 75 stopped by a signal or at the deadline: the same command again finishes.\n";

enum { OPT_MANAGED_SAVE = QM_OPT_MERGING_FIRST };

static int
delete_snapshot(struct qm_cli_merging *merging, struct qm_live_commit *request,
                const char *snapshot)
{
    struct qm_live_report report = {0};
    struct qmeld_error err = {0};
    const struct qm_live_module *live = qm_cli_live(&err);
    int result = -1;

    qm_cli_merging_begin(merging);
    request->offline = merging->options;
    request->progress = merging->options.progress;
    request->opaque = merging->options.opaque;
    qm_cli_progress_begin(&merging->progress, merging->mode);
    if (live)
        result = live->snapshot_delete(request, snapshot, &report, &err);
    qm_cli_progress_end(&merging->progress);
    if (result < 0) {
        qm_cli_complain(&err);
        qm_cli_domain_explain(&report, &err);
    }
    qm_cli_domain_report(merging, &report, "Snapshot deleted", result < 0 ? &err : NULL);
    if (live)
        live->report_free(&report);
    return result < 0 ? qm_cli_exit_code(&err) : QM_EXIT_DONE;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"connect", required_argument, NULL, 'c'},
        {"managed-save", required_argument, NULL, OPT_MANAGED_SAVE},
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        {"bitmaps", required_argument, NULL, QM_OPT_BITMAPS},
        QM_CLI_OTHERS_OPTIONS,
        QM_CLI_MERGING_OPTIONS,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct qm_cli_merging merging = {.command = argv[0]};
    struct qm_live_commit request = {.uri = NULL};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":c:h" QM_CLI_MERGING_LETTERS, options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (c == 'c') {
            request.uri = optarg;
        } else if (c == OPT_MANAGED_SAVE) {
            if (!qm_cli_parse_managed_save(argv[0], optarg, &request.update_saved))
                return QM_EXIT_REFUSED;
        } else if (!qm_cli_merging_take(&merging, c)) {
            return QM_EXIT_REFUSED;
        }
    }
    if (argc - optind != 2) {
        qm_cli_expected(argv[0], "a domain and one of its snapshots are expected", argc - optind);
        return QM_EXIT_REFUSED;
    }
    request.domain = argv[optind];
    return delete_snapshot(&merging, &request, argv[optind + 1]);
}

const struct qm_cli_command qm_cli_snapshot_delete = {"snapshot-delete", help, "domain snapshot",
                                                      run, true};
