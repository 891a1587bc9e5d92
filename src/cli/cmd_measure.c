/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_measure.c - `qmeld measure`: how long a file will be, of a new image or of a merge's base. */
#include "create_options.h"
#include "qemu_words.h"
#include "sandbox.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

static const char help[] =
    "qmeld measure - how large a file a new image, or a merge, will make\n"
    "\n"
    "    qmeld measure -O qcow2 disk.raw                  of a copy of disk.raw as qcow2\n"
    "    qmeld measure -O qcow2 -o cluster_size=4k --size=10G\n"
    "                                                     of a new, empty image\n"
    "    qmeld measure --onto base.qcow2 top.qcow2        of base.qcow2, after a commit\n"
    "\n"
    "usage: qmeld measure [-O FMT] [-o OPTIONS] IMAGE\n"
    "       qmeld measure [-O FMT] [-o OPTIONS] --size=N\n"
    "       qmeld measure --onto BASE [OPTIONS] IMAGE\n"
    "\n"
    "Prints, in the words of qemu-img measure, the length that a file will have at first "
    "(required\n"
    "size) and the length that it may come to when the guest has then written everywhere.  Of a\n"
    "new image the numbers are qemu-img's: the first counts the metadata of a full image, and so\n"
    "is a bit too high.  With --onto it is this very base that is meant, and the merge of the\n"
    "layers above it (`qmeld commit --base=BASE`) is done dry, so that the first is exact.  Takes\n"
    "no lock and writes nothing.\n"
    "\n"
    "    -O FMT                     format of the new image: raw (default) or qcow2\n"
    "    -o NAME=VALUE,...          its options, as those of qmeld create: cluster_size, compat,\n"
    "                               refcount_bits, extended_l2, preallocation, backing_file, ...\n"
    "        --size=N               no IMAGE, but an empty disk of this size\n"
    "        --onto=LAYER           the layer to be merged into, by path or as [N]\n"
    "        --top=LAYER            merge from this one down (IMAGE)\n"
    "    -l, --snapshot=NAME|ID     an internal snapshot of IMAGE; also understood:\n"
    "                               snapshot.id=ID,snapshot.name=NAME\n"
    "    -f, --format=FMT           format of IMAGE; found by content otherwise\n"
    "        --no-sandbox           keep what the command does not need, to debug it\n"
    "        --allow-path=PATH      a folder, file or nbd://HOST that names in images may lead\n"
    "                               to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one\n"
    "    -U, --force-share          what is done anyway: nothing is locked\n"
    "        --output=human|json\n"
    "    -h, --help\n"
    "\n"
    "Exit codes: 0 done; 1 failed; 2 refused or wrong usage.\n";

enum {
    OPT_ONTO = QM_OPT_FIRST,
    OPT_TOP,
    OPT_BACKING_FORMAT,
    OPT_SIZE,
};

struct asked {
    const char *command;
    struct qmeld_commit_options options;
    struct qmeld_create_options create;
    const char *snapshot;
    bool has_new; /* -O, -o or --size was given */
    bool has_size;
    enum qm_cli_output output;
};

static bool
take_new(struct asked *asked, int c)
{
    asked->has_new = true;
    if (c == 'O') {
        asked->create.format = optarg;
        return true;
    }
    if (c == 'o')
        return qm_cli_create_apply_list(asked->command, &asked->create, optarg);
    asked->has_size = true;
    return qm_cli_create_apply(asked->command, &asked->create, "size", optarg);
}

/* False after a complaint. */
static bool
take_option(struct asked *asked, int c)
{
    switch (c) {
    case OPT_ONTO:
        asked->options.base = optarg;
        return true;
    case OPT_TOP:
        asked->options.top = optarg;
        return true;
    case 'O':
    case 'o':
    case OPT_SIZE:
        return take_new(asked, c);
    case 'f':
        asked->options.format = optarg;
        return true;
    case 'l':
        asked->snapshot = optarg;
        return true;
    case 'U':
        return true;
    case QM_OPT_IMAGE_OPTS:
    case QM_OPT_OBJECT:
        return qm_cli_refuse_qemu_option(asked->command, c);
    case OPT_BACKING_FORMAT:
        asked->options.backing_format = optarg;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output(asked->command, optarg, &asked->output);
    default:
        return false;
    }
}

static int
print(const struct asked *asked, const struct qmeld_measure *m)
{
    if (asked->output == QM_OUTPUT_JSON) {
        struct json_object *o = json_object_new_object();

        if (m->has_bitmaps)
            qm_cli_json_add_u64(o, "bitmaps", m->bitmaps);
        qm_cli_json_add_u64(o, "required", m->required);
        qm_cli_json_add_u64(o, "fully-allocated", m->fully_allocated);
        qm_cli_json_print(o);
        return QM_EXIT_DONE;
    }
    printf("required size: %" PRIu64 "\n", m->required);
    printf("fully allocated size: %" PRIu64 "\n", m->fully_allocated);
    if (m->has_bitmaps)
        printf("bitmaps size: %" PRIu64 "\n", m->bitmaps);
    return QM_EXIT_DONE;
}

/* path NULL: of an empty disk. */
static int
measure(const struct asked *asked, const char *path)
{
    const struct qmeld_open_options open = {.format = asked->options.format,
                                            .backing_format = asked->options.backing_format,
                                            .allow_paths = asked->options.allow_paths,
                                            .snapshot = asked->snapshot};
    struct qmeld_measure found;
    struct qmeld_error err;

    qm_cli_sandbox_enter(QM_SANDBOX_READS);
    if (path)
        qm_cli_sandbox_peek(path, &open);
    qm_cli_sandbox_opened(QM_SANDBOX_OPENS_FILES);
    if ((asked->options.base ? qmeld_measure_onto(path, &asked->options, &found, &err)
                             : qmeld_measure_new(path, &open, &asked->create, &found, &err)) < 0)
        return qm_cli_fail(&err);
    return print(asked, &found);
}

/* False after a complaint. */
static bool
check_request(const struct asked *asked, int n_images)
{
    if (asked->options.base && asked->has_new)
        qm_cli_usage(asked->command,
                     "--onto measures a base that is there: leave out -O, -o and --size");
    else if (asked->options.top && !asked->options.base)
        qm_cli_usage(asked->command, "--top goes with --onto");
    else if (asked->snapshot && (asked->options.base || asked->has_size))
        qm_cli_usage(asked->command,
                     "-l is about an image's snapshot: leave out --onto and --size");
    else if (asked->has_size && n_images > 0)
        qm_cli_usage(asked->command, "--size is without an image: leave out one of them");
    else if (n_images != !asked->has_size)
        qm_cli_expected(asked->command, "one image or --size is expected", n_images);
    else
        return true;
    return false;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"onto", required_argument, NULL, OPT_ONTO},
        {"top", required_argument, NULL, OPT_TOP},
        {"size", required_argument, NULL, OPT_SIZE},
        QM_CLI_ALLOW_PATH_OPTION,
        {"format", required_argument, NULL, 'f'},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"snapshot", required_argument, NULL, 'l'},
        {"force-share", no_argument, NULL, 'U'},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct asked asked = {.command = argv[0]};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":O:o:f:l:Uh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&asked, c))
            return QM_EXIT_REFUSED;
    }
    if (!check_request(&asked, argc - optind))
        return QM_EXIT_REFUSED;
    asked.options.allow_paths = qm_cli_allow_paths();
    return measure(&asked, asked.has_size ? NULL : argv[optind]);
}

const struct qm_cli_command qm_cli_measure = {"measure", help, "image", run, false};
