/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_create.c - `qmeld create`: a new image, by the options `qemu-img create` has.
 *
 * Everything -o can say has a long option as well; both end in the same setter.
 */
#include "create_options.h"
#include "qemu_words.h"
#include "sandbox.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

static const char help[] =
    "qmeld create - make a new image\n"
    "\n"
    "    qmeld create -f qcow2 disk.qcow2 20G\n"
    "    qmeld create -f qcow2 -b base.qcow2 -F qcow2 overlay.qcow2\n"
    "    qmeld create -f qcow2 -o cluster_size=4k,compression_type=zstd disk.qcow2 1T\n"
    "    qmeld create disk.raw 512M\n"
    "\n"
    "usage: qmeld create [OPTIONS] FILE [SIZE]\n"
    "\n"
    "A file that exists is overwritten, unless somebody uses it.  SIZE takes the suffixes k, M,\n"
    "G, T, P, E (powers of 1024); without one the backing file's size is taken.  A relative\n"
    "backing name is relative to the folder of FILE.\n"
    "\n"
    "    -f, --format=qcow2|raw       format of the new image (raw)\n"
    "    -b, --backing=NAME           the image it stands on; stored as written here\n"
    "    -F, --backing-format=FMT     format of that image; needed with -b\n"
    "        --allow-path=PATH        a folder, file or nbd://HOST that names in images may lead\n"
    "                                 to; may be repeated, and then they lead nowhere else\n"
    "    -u, --unsafe-backing         do not look at the backing file; needs SIZE\n"
    "        --size=SIZE              as the operand SIZE\n"
    "    -o KEY=VALUE[,KEY=VALUE...]  the names qemu-img uses: backing_file, backing_fmt, size,\n"
    "                                 and the underscored names of those below; \",,\" is a comma\n"
    "        --compat=1.1|0.10        qcow2 version 3 or 2 (also v3, v2)\n"
    "        --cluster-size=SIZE      512 to 2M (64k)\n"
    "        --refcount-bits=N        1, 2, 4, 8, 16, 32 or 64 (16)\n"
    "        --compression-type=TYPE  zlib or zstd\n"
    "        --extended-l2=on|off     32 subclusters in a cluster\n"
    "        --lazy-refcounts=on|off  refcounts written late; repaired after a crash\n"
    "        --preallocation=MODE     off, metadata, falloc or full\n"
    "    -q, --quiet                  no report\n"
    "        --no-sandbox             keep what the command does not need, to debug it\n"
    "        --output=human|json      form of the report\n"
    "    -h, --help                   this text\n";

struct request {
    const char *path;
    struct qmeld_create_options create;
    enum qm_cli_output output;
    bool quiet;
};

/* ---- setters: one for every name -o and the long options know ---- */

typedef bool setter(struct qmeld_create_options *create, const char *value);

static bool
set_backing_file(struct qmeld_create_options *create, const char *value)
{
    create->backing_name = value;
    return *value != '\0';
}

static bool
set_backing_fmt(struct qmeld_create_options *create, const char *value)
{
    create->backing_format = value;
    return *value != '\0';
}

static bool
set_size(struct qmeld_create_options *create, const char *value)
{
    create->has_size = true;
    return qm_cli_parse_size(value, &create->size);
}

static bool
set_compat(struct qmeld_create_options *create, const char *value)
{
    if (strcmp(value, "1.1") == 0 || strcmp(value, "v3") == 0)
        create->version = 3;
    else if (strcmp(value, "0.10") == 0 || strcmp(value, "v2") == 0)
        create->version = 2;
    else
        return false;
    return true;
}

static bool
set_cluster_size(struct qmeld_create_options *create, const char *value)
{
    /* 0 would mean "the default" to the library, which nobody asks for by writing 0 */
    return qm_cli_parse_size(value, &create->cluster_size) && create->cluster_size > 0;
}

static bool
set_refcount_bits(struct qmeld_create_options *create, const char *value)
{
    uint64_t bits;

    if (!qm_cli_parse_number(value, 64, &bits) || bits == 0)
        return false;
    create->refcount_bits = (unsigned)bits;
    return true;
}

static bool
set_compression(struct qmeld_create_options *create, const char *value)
{
    create->compression = value;
    return strcmp(value, "zlib") == 0 || strcmp(value, "zstd") == 0;
}

static bool
set_extended_l2(struct qmeld_create_options *create, const char *value)
{
    return qm_cli_parse_switch(value, &create->extended_l2);
}

static bool
set_lazy_refcounts(struct qmeld_create_options *create, const char *value)
{
    return qm_cli_parse_switch(value, &create->lazy_refcounts);
}

static bool
set_preallocation(struct qmeld_create_options *create, const char *value)
{
    create->preallocation = value;
    return strcmp(value, "off") == 0 || strcmp(value, "metadata") == 0 ||
           strcmp(value, "falloc") == 0 || strcmp(value, "full") == 0;
}

/* The order is that of the long options from QM_OPT_FIRST on. */
static const struct {
    const char *name;
    setter *set;
} settings[] = {
    {"compat", set_compat},
    {"cluster_size", set_cluster_size},
    {"refcount_bits", set_refcount_bits},
    {"compression_type", set_compression},
    {"extended_l2", set_extended_l2},
    {"lazy_refcounts", set_lazy_refcounts},
    {"preallocation", set_preallocation},
    {"size", set_size},
    {"backing_file", set_backing_file},
    {"backing_fmt", set_backing_fmt},
};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

bool
qm_cli_create_apply(const char *command, struct qmeld_create_options *create, const char *name,
                    const char *value)
{
    size_t i = 0;

    while (i < N_SETTINGS && strcmp(settings[i].name, name) != 0)
        i++;
    if (i == N_SETTINGS) {
        qm_cli_usage(command, "-o has no \"%s\"", name);
        return false;
    }
    /* a switch may stand alone, as in qemu-img */
    if (!value && (settings[i].set == set_extended_l2 || settings[i].set == set_lazy_refcounts))
        value = "on";
    if (!value) {
        qm_cli_usage(command, "-o %s needs a value", name);
        return false;
    }
    if (!settings[i].set(create, value)) {
        qm_cli_usage(command, "%s cannot be \"%s\"", name, value);
        return false;
    }
    return true;
}

static bool
apply_pair(const char *command, struct qmeld_create_options *create, char *pair)
{
    char *equals = strchr(pair, '=');

    if (equals)
        *equals = '\0';
    return qm_cli_create_apply(command, create, pair, equals ? equals + 1 : NULL);
}

/* "a=b,c=d": text is argv's own, which may be written to (C11 5.1.2.2.1), and the values stay in
 * it as long as the process lives. */
bool
qm_cli_create_apply_list(const char *command, struct qmeld_create_options *create, char *text)
{
    while (*text) {
        char *read = text, *write = text, *pair = text;

        while (*read && (*read != ',' || read[1] == ',')) {
            if (*read == ',')
                read++;
            *write++ = *read++;
        }
        text = *read ? read + 1 : read;
        *write = '\0';
        if (!apply_pair(command, create, pair))
            return false;
    }
    return true;
}

/* ---- the command ---- */

/* The line of qemu-img create, which tells the options in the order of its table. */
static void
print_as_qemu(const struct request *request, const char *path, const struct qmeld_layer_info *layer)
{
    /* as it was asked for, not as it was rounded up */
    const uint64_t size = request->create.has_size ? request->create.size : layer->virtual_size;
    QM_CLI_FREE char *backing = qm_cli_quote(layer->backing_name ? layer->backing_name : "");

    printf("Formatting '%s', fmt=%s", path, layer->format);
    if (layer->version) {
        printf(" cluster_size=%" PRIu64 " extended_l2=%s", layer->cluster_size,
               layer->extended_l2 ? "on" : "off");
        if (request->create.preallocation)
            printf(" preallocation=%s", request->create.preallocation);
        printf(" compression_type=%s", layer->compression ? layer->compression : "zlib");
    }
    printf(" size=%" PRIu64, size);
    if (request->create.version)
        printf(" compat=%s", layer->version == 2 ? "0.10" : "1.1");
    if (!layer->version && request->create.preallocation)
        printf(" preallocation=%s", request->create.preallocation);
    if (layer->backing_name)
        printf(" backing_file=%s", backing);
    if (layer->backing_format)
        printf(" backing_fmt=%s", layer->backing_format);
    if (layer->version)
        printf(" lazy_refcounts=%s refcount_bits=%u", layer->lazy_refcounts ? "on" : "off",
               layer->refcount_bits);
    putchar('\n');
}

/* Reads the new image back: what is told is what is there. */
static int
report(const struct request *request, struct qmeld_error *err)
{
    const char *format = request->create.format ? request->create.format : "raw";
    const struct qmeld_open_options options = {.format = format, .single = true};
    QM_CLI_FREE char *path = qm_cli_quote(request->path);
    struct qmeld_chain *chain = NULL;
    struct qmeld_layer_info layer;

    if (qmeld_chain_open(request->path, &options, &chain, err) < 0)
        return -1;
    if (qmeld_chain_layer(chain, 0, &layer, err) < 0) {
        qmeld_chain_close(chain);
        return -1;
    }
    if (request->output == QM_OUTPUT_JSON) {
        struct json_object *object = json_object_new_object();

        qm_cli_json_add(object, "filename", qm_cli_json_string(request->path));
        qm_cli_json_add(object, "format", qm_cli_json_string(layer.format));
        qm_cli_json_add_u64(object, "virtual-size", layer.virtual_size);
        if (layer.version)
            qm_cli_json_add_u64(object, "cluster-size", layer.cluster_size);
        if (layer.backing_name)
            qm_cli_json_add(object, "backing-filename", qm_cli_json_string(layer.backing_name));
        qm_cli_json_print(object);
    } else if (qm_cli_is_qmeld_img()) {
        print_as_qemu(request, path, &layer);
    } else {
        QM_CLI_FREE char *backing = qm_cli_quote(layer.backing_name ? layer.backing_name : "");

        printf("%s: %s, %s (%" PRIu64 " bytes)%s%s\n", path, layer.format,
               qm_cli_size(layer.virtual_size).text, layer.virtual_size, *backing ? ", on " : "",
               backing);
    }
    qmeld_chain_close(chain);
    return 0;
}

static bool
take_operands(struct request *request, int n, char **operands)
{
    if (n < 1 || n > 2) {
        qm_cli_expected("create", "a file and a size are expected", n);
        return false;
    }
    request->path = operands[0];
    if (n == 2 && request->create.has_size) {
        qm_cli_usage("create", "the size is given twice: leave one of them out");
        return false;
    }
    if (n == 2 && !set_size(&request->create, operands[1])) {
        qm_cli_usage("create", "\"%s\" is no size", operands[1]);
        return false;
    }
    if (!request->create.has_size && !request->create.backing_name) {
        qm_cli_usage("create", "a size is needed where there is no backing file");
        return false;
    }
    return true;
}

/* False after a complaint. */
static bool
take_option(struct request *request, int c)
{
    struct qmeld_create_options *create = &request->create;

    switch (c) {
    case 'f':
        create->format = optarg;
        return true;
    case 'b':
        return qm_cli_create_apply("create", create, "backing_file", optarg);
    case 'F':
        return qm_cli_create_apply("create", create, "backing_fmt", optarg);
    case 'u':
        create->unsafe_backing = true;
        return true;
    case 'o':
        return qm_cli_create_apply_list("create", create, optarg);
    case 'q':
        request->quiet = true;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output("create", optarg, &request->output);
    case '?':
        return false;
    default:
        return qm_cli_create_apply("create", create, settings[c - QM_OPT_FIRST].name, optarg);
    }
}

static int
create(const struct request *request)
{
    struct qmeld_error err;

    if (qmeld_create(request->path, &request->create, &err) < 0)
        return qm_cli_fail(&err);
    if (!request->quiet && report(request, &err) < 0)
        return qm_cli_fail(&err);
    return QM_EXIT_DONE;
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"format", required_argument, NULL, 'f'},
        {"backing", required_argument, NULL, 'b'},
        {"backing-format", required_argument, NULL, 'F'},
        {"unsafe-backing", no_argument, NULL, 'u'},
        QM_CLI_ALLOW_PATH_OPTION,
        QM_CLI_SANDBOX_OPTION,
        {"quiet", no_argument, NULL, 'q'},
        {"compat", required_argument, NULL, QM_OPT_FIRST},
        {"cluster-size", required_argument, NULL, QM_OPT_FIRST + 1},
        {"refcount-bits", required_argument, NULL, QM_OPT_FIRST + 2},
        {"compression-type", required_argument, NULL, QM_OPT_FIRST + 3},
        {"extended-l2", required_argument, NULL, QM_OPT_FIRST + 4},
        {"lazy-refcounts", required_argument, NULL, QM_OPT_FIRST + 5},
        {"preallocation", required_argument, NULL, QM_OPT_FIRST + 6},
        {"size", required_argument, NULL, QM_OPT_FIRST + 7},
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {0};
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":f:b:F:uo:qh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (!take_option(&request, c))
            return QM_EXIT_REFUSED;
    }
    if (!take_operands(&request, argc - optind, argv + optind))
        return QM_EXIT_REFUSED;
    request.create.allow_paths = qm_cli_allow_paths();
    qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    if (!request.create.backing_name && !strstr(request.path, "nbd"))
        qm_cli_sandbox_opened(QM_SANDBOX_OPENS_FILES);
    return create(&request);
}

const struct qm_cli_command qm_cli_create = {"create", help, "file size", run, true};
