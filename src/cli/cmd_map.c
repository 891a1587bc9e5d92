/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_map.c - `qmeld map`: which layer answers which bytes.
 *
 * --output=json is, byte for byte, what `qemu-img map --output=json` prints; the table is its
 * table, except that a compressed extent, which makes qemu-img give up, has "compressed" where
 * the offset would be.
 */
#include "draw.h"
#include "qemu_words.h"
#include "sandbox.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

static const char help[] =
    "qmeld map - show which layer answers which bytes\n"
    "\n"
    "    qmeld map disk.qcow2\n"
    "    qmeld map --format=strip disk.qcow2           draw the chain\n"
    "    qmeld map --format=strip -s 1G -l 64M disk.qcow2\n"
    "    qmeld map --format=html disk.qcow2 > disk.html    a page to look around in\n"
    "    qmeld map --format=svg --base='[2]' disk.qcow2 > disk.svg\n"
    "    qmeld map --output=json disk.qcow2            as qemu-img map --output=json\n"
    "\n"
    "usage: qmeld map [OPTIONS] IMAGE\n"
    "\n"
    "Takes no lock and writes nothing, so it may be run beside a virtual machine; what it then\n"
    "tells may be a moment old.\n"
    "\n"
    "        --format=table|strip|svg|html\n"
    "                                table: the extents that hold data, as qemu-img map lists\n"
    "                                them; strip: a picture, a row for each layer, a column for\n"
    "                                so many bytes, as wide as the terminal (or COLUMNS; 100 in\n"
    "                                a pipe), in letters if NO_COLOR is set or the locale has no\n"
    "                                UTF-8; svg: the picture as a file; html: a page that zooms,\n"
    "                                and needs no network\n"
    "        --base=LAYER            with a picture: what a merge into LAYER would move, by path "
    "or\n"
    "                                as [N]; the bottom one, if only --top is given\n"
    "        --top=LAYER             of this one and those above the base (IMAGE)\n"
    "    -s, --start-offset=OFFSET   begin here; suffixes k, M, G, T, P, E are understood\n"
    "    -l, --max-length=LENGTH     so many bytes at most\n"
    "    -f, --image-format=FMT      format of IMAGE; found by content otherwise\n"
    "        --allow-path=PATH       a folder, file or nbd://HOST that names in images may lead\n"
    "                                to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT    format of layers for which no overlay stores one\n"
    "    -U, --force-share           accepted, and makes no difference, as no lock is taken\n"
    "        --output=human|json     json: every extent, one a line\n"
    "        --no-sandbox            keep what the command does not need, to debug it\n"
    "    -h, --help                  this text\n"
    "\n"
    "Numbers of depth in the JSON count from the top, which is 0, as qemu-img's do.\n";

struct request {
    const char *path;
    struct qmeld_open_options open;
    uint64_t start;
    uint64_t length;
    enum qm_cli_output output;
    enum format { FORMAT_TABLE, FORMAT_STRIP, FORMAT_SVG, FORMAT_HTML } format;
    const char *base; /* of a range; NULL: as commit has it */
    const char *top;
};

/* ---- JSON ---- */

static void
print_extent(const struct qmeld_extent *e)
{
    printf("{ \"start\": %" PRIu64 ", \"length\": %" PRIu64 ", \"depth\": %zu, \"present\": %s, "
           "\"zero\": %s, \"data\": %s",
           e->start, e->length, e->depth, e->present ? "true" : "false", e->zero ? "true" : "false",
           e->data ? "true" : "false");
    if (e->has_offset)
        printf(", \"offset\": %" PRIu64, e->offset);
    putchar('}');
}

static int
print_json_line(const struct qmeld_extent *extent, void *opaque)
{
    bool *some = opaque;

    fputs(*some ? ",\n" : "[", stdout);
    *some = true;
    print_extent(extent);
    return ferror(stdout); /* nobody reads on: do not walk on */
}

static int
show_json(struct qmeld_chain *chain, const struct request *request, struct qmeld_error *err)
{
    bool some = false;

    if (qmeld_map(chain, request->start, request->length, print_json_line, &some, err) < 0)
        return -1;
    if (!some) { /* qemu-img prints an extent of nothing for nothing */
        const struct qmeld_extent nothing = {.start = request->start};

        putchar('[');
        print_extent(&nothing);
    }
    puts("]");
    return 0;
}

/* ---- table ---- */

struct table {
    struct qmeld_chain *chain;
    size_t depth;
    char **paths; /* as printed, by layer; asked for once, for asking looks at locks too */
    struct qmeld_error err; /* of print_row */
    bool headed;
};

static void
print_head(struct table *table)
{
    if (!table->headed)
        printf("%-16s%-16s%-16s%s\n", "Offset", "Length", "Mapped to", "File");
    table->headed = true;
}

static const char *
path_of(struct table *table, size_t layer)
{
    struct qmeld_layer_info info;

    if (!table->paths[layer]) {
        if (qmeld_chain_layer(table->chain, layer, &info, &table->err) < 0)
            return NULL;
        table->paths[layer] = qm_cli_quote(info.data_file ? info.data_file : info.path);
    }
    return table->paths[layer];
}

static int
print_row(const struct qmeld_extent *extent, void *opaque)
{
    struct table *table = opaque;
    const char *path;
    char mapped[32];

    if (!extent->data || extent->zero)
        return 0;
    path = path_of(table, table->depth - 1 - extent->depth);
    if (!path)
        return -1;
    print_head(table);
    if (extent->has_offset)
        snprintf(mapped, sizeof mapped, "%#" PRIx64, extent->offset);
    else
        snprintf(mapped, sizeof mapped, "%s", extent->compressed ? "compressed" : "unknown");
    printf("%#-16" PRIx64 "%#-16" PRIx64 "%-16s%s\n", extent->start, extent->length, mapped, path);
    return ferror(stdout);
}

static int
show_table(struct qmeld_chain *chain, const struct request *request, struct qmeld_error *err)
{
    struct table table = {.chain = chain, .depth = qmeld_chain_depth(chain)};
    int result;

    table.paths = calloc(table.depth, sizeof *table.paths);
    if (!table.paths) {
        *err = (struct qmeld_error){.code = QMELD_NOMEM, .what = "out of memory"};
        return -1;
    }
    result = qmeld_map(chain, request->start, request->length, print_row, &table, err);
    if (result < 0 && err->code == QMELD_CANCELED && table.err.code != QMELD_OK)
        *err = table.err; /* why print_row ended the walk */
    if (result == 0)
        print_head(&table);
    for (size_t i = 0; i < table.depth; i++)
        qm_cli_free(&table.paths[i]);
    free(table.paths);
    return result;
}

/* ---- the command ---- */

/* The layers that a merge would be of, as commit understands --base and --top. */
static int
find_range(struct qmeld_chain *chain, const struct request *request,
           struct qm_picture_options *options, struct qmeld_error *err)
{
    options->has_range = request->base || request->top;
    options->top = qmeld_chain_depth(chain) - 1;
    if (request->top && qmeld_chain_find(chain, request->top, &options->top, err) < 0)
        return -1;
    if (request->base && qmeld_chain_find(chain, request->base, &options->base, err) < 0)
        return -1;
    if (!options->has_range || options->base < options->top)
        return 0;
    *err = (struct qmeld_error){.code = QMELD_USAGE};
    snprintf(err->what, sizeof err->what,
             "[%zu] does not lie below [%zu]: --base names the lower one, --top the upper",
             options->base + 1, options->top + 1);
    return -1;
}

static int
draw(struct qmeld_chain *chain, const struct request *request, struct qmeld_error *err)
{
    const struct qm_draw_style style = qm_draw_style_of_stdout();
    struct qm_picture_options options = {
        .start = request->start, .length = request->length, .most_runs = QM_DRAW_PAGE_RUNS};
    struct qm_picture picture;

    if (find_range(chain, request, &options, err) < 0)
        return -1;
    if (request->format == FORMAT_SVG)
        options.columns = qm_draw_svg_columns(qmeld_chain_depth(chain));
    if (request->format == FORMAT_STRIP &&
        qm_draw_strip_columns(chain, options.has_range, &style, &options.columns, err) < 0)
        return -1;
    if (qm_picture_take(chain, &options, &picture, err) < 0)
        return -1;
    if (request->format == FORMAT_STRIP)
        qm_draw_strip(&picture, &style);
    else if (request->format == FORMAT_SVG)
        qm_draw_svg(&picture);
    else
        qm_draw_page(&picture, NULL);
    qm_picture_release(&picture);
    return 0;
}

static int
show(const struct request *request)
{
    struct qmeld_chain *chain = NULL;
    struct qmeld_error err;
    int result;

    qm_cli_sandbox_enter(QM_SANDBOX_READS);
    if (qmeld_chain_open(request->path, &request->open, &chain, &err) < 0)
        return qm_cli_fail(&err);
    if (qmeld_read(chain, 0, NULL, 0, &err) < 0) { /* opens external data files */
        qmeld_chain_close(chain);
        return qm_cli_fail(&err);
    }
    /* pictures ask for the locale */
    qm_cli_sandbox_opened(request->format == FORMAT_TABLE ? QM_SANDBOX_OPENS_NOTHING
                                                          : QM_SANDBOX_OPENS_FILES);
    if (request->output == QM_OUTPUT_JSON)
        result = show_json(chain, request, &err);
    else if (request->format != FORMAT_TABLE)
        result = draw(chain, request, &err);
    else
        result = show_table(chain, request, &err);
    qmeld_chain_close(chain);
    if (result < 0 && err.code == QMELD_CANCELED && ferror(stdout))
        return QM_EXIT_FAILED; /* main says it */
    return result < 0 ? qm_cli_fail(&err) : QM_EXIT_DONE;
}

static bool
take_format(struct request *request, const char *arg)
{
    static const char *const names[] = {"table", "strip", "svg", "html"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(arg, names[i]) == 0) {
            request->format = (enum format)i;
            return true;
        }
    qm_cli_usage("map",
                 "--format is table, strip, svg or html, not \"%s\"; an image's format is told by "
                 "--image-format",
                 arg);
    return false;
}

static bool
take_size(const char *what, const char *arg, uint64_t *out)
{
    if (qm_cli_parse_size(arg, out))
        return true;
    qm_cli_usage("map", "%s cannot be \"%s\"", what, arg);
    return false;
}

enum { OPT_FORMAT = QM_OPT_FIRST, OPT_BACKING_FORMAT, OPT_BASE, OPT_TOP };

/* False after a complaint. */
static bool
take_option(struct request *request, int c)
{
    switch (c) {
    case 's':
        return take_size("--start-offset", optarg, &request->start);
    case 'l':
        return take_size("--max-length", optarg, &request->length);
    case 'f':
        request->open.format = optarg;
        return true;
    case 'U':
        return true;
    case QM_OPT_OBJECT:
    case QM_OPT_IMAGE_OPTS:
        return qm_cli_refuse_qemu_option(qm_cli_map.name, c);
    case OPT_FORMAT:
        return take_format(request, optarg);
    case OPT_BASE:
        request->base = optarg;
        return true;
    case OPT_TOP:
        request->top = optarg;
        return true;
    case OPT_BACKING_FORMAT:
        request->open.backing_format = optarg;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output("map", optarg, &request->output);
    default:
        return false;
    }
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"start-offset", required_argument, NULL, 's'},
        {"max-length", required_argument, NULL, 'l'},
        {"image-format", required_argument, NULL, 'f'},
        QM_CLI_ALLOW_PATH_OPTION,
        {"format", required_argument, NULL, OPT_FORMAT},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"base", required_argument, NULL, OPT_BASE},
        {"top", required_argument, NULL, OPT_TOP},
        {"force-share", no_argument, NULL, 'U'},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {.length = UINT64_MAX};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":s:l:f:Uh", options)) != -1) {
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
    if (request.format != FORMAT_TABLE && request.output == QM_OUTPUT_JSON) {
        qm_cli_usage(argv[0], "--format is for people, --output=json for programs: choose");
        return QM_EXIT_REFUSED;
    }
    if (request.format == FORMAT_TABLE && (request.base || request.top)) {
        qm_cli_usage(argv[0],
                     "--base and --top belong to a picture: add --format=strip, svg or html");
        return QM_EXIT_REFUSED;
    }
    request.path = argv[optind];
    request.open.allow_paths = qm_cli_allow_paths();
    return show(&request);
}

const struct qm_cli_command qm_cli_map = {"map", help, "image", run, false};
