/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_commit.c - `qmeld commit`: merge layers down. */
#include "delegate.h"
#include "machines.h"
#include "qemu_words.h"

#include <string.h>

static const char help[] =
    "qmeld commit - merge the layers of a chain down into their base\n"
    "\n"
    "    qmeld commit top.qcow2                   everything into the bottom layer\n"
    "    qmeld commit --shallow top.qcow2         top.qcow2 into the layer under it\n"
    "    qmeld commit --base=[1] --top=[3] top.qcow2\n"
    "                                             layers 2 and 3 into 1; 4 then stands on 1\n"
    "    qmeld commit --overlays=delete top.qcow2 and remove what was merged\n"
    "    qmeld commit -f qcow2 -b base.qcow2 top.qcow2\n"
    "                                             in the words of qemu-img commit\n"
    "\n"
    "usage: qmeld commit [OPTIONS] IMAGE\n"
    "\n"
    "IMAGE is the active layer, the one a virtual machine would use.  At every instant, even if\n"
    "the power fails, it reads as it did before.  The layers stay locked, with QEMU's own locks,\n"
    "until everything is on the disk; an image in use is refused.  If the merge is interrupted,\n"
    "the same command again goes on where it was, and so does qmeld resume; qmeld status tells\n"
    "what is unfinished.  Layers are named by path, or by [N] counted from the base, which is\n"
    "[1]; qmeld info shows the numbers.\n"
    "\n"
    "        --base=LAYER           merge into this one (the bottom layer)\n"
    "        --top=LAYER            merge from this one down (IMAGE)\n"
    "        --shallow              base is the layer under top\n"
    "        --overlays=keep        merged layers stay as they are (default); layers between\n"
    "                               base and top are then wrong if opened by themselves\n"
    "        --overlays=empty       top of the range is emptied, as qemu-img commit does\n"
    "        --overlays=delete      merged layers are removed, IMAGE too if it was merged\n"
    "        --overlays=quarantine  they are renamed instead: NAME to NAME.merged (.merged.1, ...\n"
    "                               if that is taken)\n"
    "        --direction=down       everything goes into the base (default)\n"
    "        --direction=up         a small base is moved up: into the layer that shows most "
    "data,\n"
    "                               which then gets the base's backing file, owner, mode, labels,\n"
    "                               times and name.  Needs a qcow2 base, --overlays=delete\n"
    "        --direction=auto       up if that is possible and moves less data, else down\n"
    "        --reclaim              merged layers are emptied as the merge goes, batch by batch, "
    "so\n"
    "                               that free space of one batch is enough; the merge can then\n"
    "                               only be finished, not taken back\n"
    "        --decompress           store compressed clusters plain; otherwise a qcow2 base\n"
    "                               with the same cluster size and compression gets them as\n"
    "                               they are\n"
    "        --atomic               a qcow2 base stays bit for bit what it is until all is\n"
    "                               merged and one sector switches; qmeld revert can bring it\n"
    "                               back until qmeld finalize.  With --overlays=empty, delete\n"
    "                               or quarantine the way back ends with the merge\n"
    "        --undo                 the same for any base: what is overwritten in a raw one is\n"
    "                               kept beside the journal\n"
    "        --skip-equal           what the base reads as already is not written again\n"
    "        --detect-zeroes        data that is zeros becomes holes, or clusters that say zero\n"
    "        --live=auto|never      if a running machine uses IMAGE: merge through libvirt, as\n"
    "                               blockcommit --pivot does (default), or refuse\n"
    "        --bitmaps=merge        persistent bitmaps of merged layers go into the base "
    "(default)\n"
    "        --bitmaps=keep         they are left behind; the base's learn what is merged\n"
    "        --bitmaps=drop         likewise, and the base's of the same names are removed\n"
    "        --keep-relative        refuse rather than store an absolute backing name\n"
    "        --journal-dir=DIR      where the journal lies while the merge runs: beside the base,\n"
    "                               or, if that is a device or an export, beside IMAGE\n"
    "    -f, --format=FMT           format of IMAGE; found by content otherwise\n"
    "    -b LAYER                   as qemu-img has it: --base=LAYER, and IMAGE stays as it is\n"
    "    -d                         as qemu-img has it: IMAGE stays as it is; without -b the base\n"
    "                               is the layer under it.  -b and -d: --live=never\n"
    "    -t MODE                    none and directsync: --cache=none; writeback, writethrough,\n"
    "                               unsafe: --cache=writeback.  All is durable at the end anyway\n"
    "    -r RATE                    --bandwidth=RATE\n"
    "    -p                         a progress bar, unless -q\n"
    "        --allow-path=PATH      a folder, file or nbd://HOST that names in images may lead\n"
    "                               to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one; without\n"
    "                               it they are refused\n" QM_CLI_OTHERS_HELP QM_CLI_SECRET_HELP
        QM_CLI_MERGING_SANDBOX_HELP QM_CLI_MERGING_HELP "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done, already merged, or nothing to do; 1 failed, images as they were;\n"
    "2 refused or wrong usage, nothing touched; 3 stopped half-way, and 75 stopped by a signal\n"
    "or at the deadline: the same command again finishes.\n";

enum {
    OPT_BASE = QM_OPT_MERGING_FIRST,
    OPT_TOP,
    OPT_SHALLOW,
    OPT_DECOMPRESS,
    OPT_DIRECTION,
    OPT_LIVE,
};

static bool
take_direction(const char *command, struct qmeld_commit_options *options, const char *arg)
{
    static const char *const names[] = {"down", "up", "auto"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(arg, names[i]) != 0)
            continue;
        options->direction = (enum qmeld_direction)i;
        return true;
    }
    qm_cli_usage(command, "--direction is down, up or auto, not \"%s\"", arg);
    return false;
}

static bool
take_live(struct qm_cli_merging *merging, const char *arg)
{
    merging->never_live = strcmp(arg, "never") == 0;
    if (merging->never_live || strcmp(arg, "auto") == 0)
        return true;
    qm_cli_usage(merging->command, "--live is auto or never, not \"%s\"", arg);
    return false;
}

/* What was said in the words of qemu-img commit, and what in ours. */
struct words {
    bool base_of_qemu; /* -b */
    bool stays;        /* -d */
    bool range;        /* --base, --shallow */
    bool overlays;
    bool live;
};

/* The letters of qemu-img commit. */
static bool
take_qemu_option(struct qm_cli_merging *merging, struct words *words, int c)
{
    switch (c) {
    case 'b':
        words->base_of_qemu = true;
        merging->options.base = optarg;
        return true;
    case 'd':
        words->stays = true;
        return true;
    case 't':
        return qm_cli_parse_cache(merging->command, c, optarg, &merging->options.direct);
    case 'p':
        merging->bar = true;
        return true;
    default:
        return qm_cli_refuse_qemu_option(merging->command, c);
    }
}

/* What qemu-img commit means by what it is given and not given (img_commit() in its qemu-img.c): without -b
 * the base is the layer under the image, and without -b and -d that is emptied. */
static bool
apply_words(struct qm_cli_merging *merging, const struct words *words)
{
    struct qmeld_commit_options *o = &merging->options;
    const bool as_qemu = qm_cli_is_qmeld_img() && strcmp(merging->command, qm_cli_commit.name) == 0;

    if (words->stays && o->overlays != QMELD_OVERLAYS_KEEP) {
        qm_cli_usage(merging->command,
                     "-d leaves the image as it is: leave out that or --overlays");
        return false;
    }
    if ((words->stays || as_qemu) && !words->base_of_qemu && !words->range)
        o->shallow = true;
    if (as_qemu && !words->stays && !words->base_of_qemu && !words->overlays)
        o->overlays = QMELD_OVERLAYS_EMPTY;
    if ((words->stays || words->base_of_qemu || as_qemu) && !words->live)
        merging->never_live = true; /* the machine would go on on the base */
    return true;
}

/* False after a complaint. */
static bool
take_option(struct qm_cli_merging *merging, struct words *words, int c)
{
    struct qmeld_commit_options *options = &merging->options;

    words->range |= c == OPT_BASE || c == OPT_SHALLOW;
    words->overlays |= c == QM_OPT_OVERLAYS;
    words->live |= c == OPT_LIVE;

    switch (c) {
    case OPT_BASE:
        options->base = optarg;
        return true;
    case OPT_TOP:
        options->top = optarg;
        return true;
    case OPT_SHALLOW:
        options->shallow = true;
        return true;
    case OPT_DIRECTION:
        return take_direction(merging->command, options, optarg);
    case OPT_DECOMPRESS:
        options->decompress = true;
        return true;
    case OPT_LIVE:
        return take_live(merging, optarg);
    case 'b':
    case 'd':
    case 't':
    case 'p':
    case QM_OPT_OBJECT:
    case QM_OPT_IMAGE_OPTS:
        return take_qemu_option(merging, words, c);
    default:
        return qm_cli_merging_take(merging, c == 'r' ? (int)QM_OPT_BANDWIDTH : c);
    }
}

int
qm_cli_commit_options(int argc, char **argv, const char *text, struct qm_cli_merging *merging)
{
    static const struct option options[] = {
        {"live", required_argument, NULL, OPT_LIVE}, /* of commit alone */
        {"base", required_argument, NULL, OPT_BASE},
        {"top", required_argument, NULL, OPT_TOP},
        {"shallow", no_argument, NULL, OPT_SHALLOW},
        {"direction", required_argument, NULL, OPT_DIRECTION},
        {"decompress", no_argument, NULL, OPT_DECOMPRESS},
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        QM_CLI_MERGE_KIND_OPTIONS,
        QM_CLI_MERGING_OPTIONS,
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    const bool commits = strcmp(argv[0], qm_cli_commit.name) == 0;
    struct words words = {.live = false};
    int c;

    *merging = (struct qm_cli_merging){.command = argv[0]};
    while ((c = qm_cli_getopt(argc, argv, ":b:df:hpr:t:" QM_CLI_MERGING_LETTERS,
                              commits ? options : options + 1)) != -1) {
        if (c == 'h') {
            fputs(text, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(merging, &words, c))
            return QM_EXIT_REFUSED;
    }
    if (argc - optind != 1) {
        qm_cli_expected(argv[0], "one image is expected", argc - optind);
        return QM_EXIT_REFUSED;
    }
    merging->options.allow_paths = qm_cli_allow_paths();
    return apply_words(merging, &words) ? -1 : QM_EXIT_REFUSED;
}

static int
run(int argc, char **argv)
{
    struct qm_cli_merging merging;
    int code = qm_cli_commit_options(argc, argv, help, &merging);

    if (code >= 0)
        return code;
    qm_cli_machines_ask(&merging); /* which runs ssh, or a daemon of this user, if at all */
    qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    code = qm_cli_delegate(&merging, argv[optind]);
    if (code >= 0)
        return code;
    if (!qm_cli_machines_let(&merging, argv[optind]))
        return QM_EXIT_REFUSED;
    qm_cli_merging_confine(&merging, argv[optind], QM_SANDBOX_WRITES);
    qm_cli_merging_begin(&merging);
    return qm_cli_merging_run_and_report(&merging, argv[optind], qmeld_commit);
}

const struct qm_cli_command qm_cli_commit = {"commit", help, "image", run, true};
