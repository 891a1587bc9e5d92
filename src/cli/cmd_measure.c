/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* cmd_measure.c - `qmeld measure --onto BASE`: how long the base's file will be. */
#include "cli.h"

#include <inttypes.h>
#include <json-c/json.h>

static const char help[] =
    "qmeld measure - how large a file a merge will make\n"
    "\n"
    "    qmeld measure --onto base.qcow2 top.qcow2\n"
    "    qmeld measure --onto '[1]' --top '[3]' --output=json top.qcow2\n"
    "\n"
    "usage: qmeld measure --onto BASE [OPTIONS] IMAGE\n"
    "\n"
    "Prints, in the words of qemu-img measure, the length that the file of this very base will\n"
    "have when the layers above it, up to top, are merged into it (`qmeld commit --base=BASE`),\n"
    "and the length that it may come to when the guest has then written everywhere.  The merge\n"
    "is done dry, so the first is exact.  Takes no lock and writes nothing.\n"
    "\n"
    "        --onto=LAYER           the layer to be merged into, by path or as [N]\n"
    "        --top=LAYER            merge from this one down (IMAGE)\n"
    "    -f, --format=FMT           format of IMAGE; found by content otherwise\n"
    "        --backing-format=FMT   format of layers for which no overlay stores one\n"
    "        --output=human|json\n"
    "    -h, --help\n"
    "\n"
    "Exit codes: 0 done; 1 failed; 2 refused or wrong usage.\n";

enum { OPT_ONTO = QM_OPT_FIRST, OPT_TOP, OPT_BACKING_FORMAT };

struct asked {
    const char *command;
    struct qmeld_commit_options options;
    enum qm_cli_output output;
};

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
    case 'f':
        asked->options.format = optarg;
        return true;
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
measure(const struct asked *asked, const char *path)
{
    struct qmeld_measure found;
    struct qmeld_error err;

    if (qmeld_measure_onto(path, &asked->options, &found, &err) < 0)
        return qm_cli_fail(&err);
    if (asked->output == QM_OUTPUT_JSON) {
        struct json_object *o = json_object_new_object();

        qm_cli_json_add_u64(o, "required", found.required);
        qm_cli_json_add_u64(o, "fully-allocated", found.fully_allocated);
        qm_cli_json_print(o);
        return QM_EXIT_DONE;
    }
    printf("required size: %" PRIu64 "\n", found.required);
    printf("fully allocated size: %" PRIu64 "\n", found.fully_allocated);
    return QM_EXIT_DONE;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"onto", required_argument, NULL, OPT_ONTO},
        {"top", required_argument, NULL, OPT_TOP},
        {"format", required_argument, NULL, 'f'},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct asked asked = {.command = argv[0]};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":f:h", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&asked, c))
            return QM_EXIT_REFUSED;
    }
    if (argc - optind != 1) {
        qm_cli_usage(argv[0], "one image is expected, %d were named", argc - optind);
        return QM_EXIT_REFUSED;
    }
    if (!asked.options.base) {
        qm_cli_usage(argv[0],
                     "only merges into an existing base are measured: name it with --onto");
        return QM_EXIT_REFUSED;
    }
    return measure(&asked, argv[optind]);
}

const struct qm_cli_command qm_cli_measure = {"measure", help, run, false};
