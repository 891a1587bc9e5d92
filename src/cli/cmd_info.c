/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_info.c - `qmeld info`: a chain, layer by layer.
 *
 * The JSON is what `qemu-img info --backing-chain --output=json` prints (its keys, its order of
 * layers: top first), so that its readers can be pointed here; what we know beyond that has
 * keys of its own.  Only full-backing-filename differs: it is a plain path, where qemu-img
 * repeats a "file:" or "json:" name.
 */
#include "info.h"
#include "qemu_words.h"
#include "sandbox.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const char help[] =
    "qmeld info - show a chain of images, layer by layer, or a domain's disks\n"
    "\n"
    "    qmeld info disk.qcow2\n"
    "    qmeld info --output=json disk.qcow2 | jq '.[].filename'\n"
    "    qmeld info --single disk.qcow2        the image alone, even if its chain is broken\n"
    "    qmeld info vm1                        the disks of a virtual machine, and their chains\n"
    "\n"
    "usage: qmeld info [OPTIONS] IMAGE|DOMAIN\n"
    "\n"
    "Shows for every layer, from the top to the base: format and features, sizes, the space it\n"
    "takes, its backing file, internal snapshots, persistent bitmaps, and which process uses\n"
    "it.  Takes no lock and writes nothing, so it may be run beside a virtual machine.  The\n"
    "number in brackets is what commit --base and --top understand; [1] is the base.\n"
    "A name without a slash that is no file is taken as a domain's: name, UUID or id.  Its "
    "running\n"
    "layers are shown with the names that blockcommit and virsh understand, such as vda[3].\n"
    "\n"
    "    -c, --connect=URI         it is a domain, of this hypervisor; otherwise as virsh finds "
    "it,\n"
    "                              or qemu:///system\n"
    "    -f, --format=FMT          format of IMAGE (qcow2, raw); found by content otherwise\n"
    "        --allow-path=PATH     a folder, file or nbd://HOST that names in images may lead\n"
    "                              to; may be repeated, and then they lead nowhere else\n"
    "        --backing-format=FMT  format of layers for which no overlay stores one\n"
    "        --single              do not open backing files\n"
    "        --backing-chain       do, as is done anyway, but not by the name qmeld-img\n"
    "    -U, --force-share         accepted, and makes no difference, as no lock is taken\n"
    "        --output=human|json   json: the keys of qemu-img info --backing-chain, and more\n"
    "    -v, --verbose             tell on standard error whether there is a sandbox\n"
    "        --no-sandbox          keep what the command does not need, to debug it\n"
    "    -h, --help                this text\n";

/* ---- human ---- */

/* "    disk size       1.2 GiB": the left column of every line. */
static void
print_key(const char *key)
{
    printf("    %-15s ", key);
}

static void
print_format(const struct qmeld_layer_info *layer, bool is_top)
{
    print_key("format");
    printf("%s", layer->format);
    if (layer->version) {
        printf(" version %u, %s clusters, %s", layer->version,
               qm_cli_size(layer->cluster_size).text,
               layer->compression ? layer->compression : "zlib");
        printf(", %u-bit refcounts", layer->refcount_bits);
        if (layer->extended_l2)
            printf(", extended L2");
        if (layer->lazy_refcounts)
            printf(", lazy refcounts");
    }
    /* of the top it goes without saying; a layer below is only looked at, never written, so */
    printf("%s\n", layer->format_probed && !is_top ? " (a guess: no overlay stores it)" : "");
}

static void
print_sizes(const struct qmeld_layer_info *layer)
{
    print_key("virtual size");
    printf("%s (%" PRIu64 " bytes)\n", qm_cli_size(layer->virtual_size).text, layer->virtual_size);
    print_key("disk size");
    if (layer->block_device)
        printf("%s (%s)\n", qm_cli_size(layer->file_size).text,
               layer->nbd ? "NBD export, which nothing locks" : "block device");
    else
        printf("%s of a file of %s\n", qm_cli_size(layer->allocated).text,
               qm_cli_size(layer->file_size).text);
}

static void
print_backing(const struct qmeld_layer_info *layer)
{
    QM_CLI_FREE char *name = NULL;
    QM_CLI_FREE char *format = NULL;

    if (!layer->backing_name)
        return;
    name = qm_cli_quote(layer->backing_name);
    format = qm_cli_quote(layer->backing_format ? layer->backing_format : "no format stored");
    print_key("backing file");
    printf("%s (%s)\n", name, format);
}

static void
print_data_file(const struct qmeld_layer_info *layer)
{
    QM_CLI_FREE char *name = NULL;

    if (!layer->data_file)
        return;
    name = qm_cli_quote(layer->data_file);
    print_key("data file");
    printf("%s%s\n", name, layer->data_file_raw ? " (valid as raw)" : "");
}

/* What somebody has to know before touching the image. */
static void
print_state(const struct qmeld_layer_info *layer)
{
    if (layer->encryption) {
        print_key("encryption");
        printf("%s\n", layer->encryption);
    }
    if (layer->dirty) {
        print_key("state");
        puts("dirty: it was not closed cleanly, its refcounts may be stale");
    }
    if (layer->corrupt) {
        print_key("state");
        puts("corrupt: marked so by a program that found damage; qmeld check tells");
    }
    if (layer->unknown_autoclear) {
        print_key("autoclear");
        printf("unknown bits %#" PRIx64 "\n", layer->unknown_autoclear);
    }
    if (layer->holder) {
        QM_CLI_FREE char *holder = qm_cli_quote(layer->holder);

        print_key("in use by");
        printf("%s\n", holder);
    }
}

static void
print_snapshot(const struct qmeld_snapshot_info *snapshot, const char *key)
{
    QM_CLI_FREE char *id = qm_cli_quote(snapshot->id ? snapshot->id : "");
    QM_CLI_FREE char *name = qm_cli_quote(snapshot->name ? snapshot->name : "");
    const time_t seconds = (time_t)snapshot->date_sec;
    char date[32] = "?";
    struct tm tm;

    if (localtime_r(&seconds, &tm))
        strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm);
    print_key(key);
    printf("%s \"%s\", %s, %s", id, name, date, qm_cli_size(snapshot->disk_size).text);
    if (snapshot->vm_state_size)
        printf(", with %s of machine state", qm_cli_size(snapshot->vm_state_size).text);
    putchar('\n');
}

static void
print_bitmap(const struct qmeld_bitmap_info *bitmap, const char *key)
{
    QM_CLI_FREE char *name = qm_cli_quote(bitmap->name ? bitmap->name : "");

    print_key(key);
    printf("\"%s\", a bit for %s, %s%s\n", name, qm_cli_size(bitmap->granularity).text,
           bitmap->enabled ? "recording" : "not recording",
           bitmap->in_use ? ", not closed cleanly" : "");
}

void
qm_cli_info_print(const char *label, const struct qmeld_layer_info *layer, bool is_top)
{
    QM_CLI_FREE char *path = qm_cli_quote(layer->path);

    printf("%s %s\n", label, path);
    print_format(layer, is_top);
    print_sizes(layer);
    print_backing(layer);
    print_data_file(layer);
    print_state(layer);
    for (size_t i = 0; i < layer->n_snapshots; i++)
        print_snapshot(&layer->snapshots[i], i ? "" : "snapshots");
    for (size_t i = 0; i < layer->n_bitmaps; i++)
        print_bitmap(&layer->bitmaps[i], i ? "" : "bitmaps");
}

/* ---- JSON ---- */

static struct json_object *
snapshots_json(const struct qmeld_layer_info *layer)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < layer->n_snapshots; i++) {
        const struct qmeld_snapshot_info *snapshot = &layer->snapshots[i];
        struct json_object *object = json_object_new_object();

        qm_cli_json_add(object, "id", qm_cli_json_string(snapshot->id));
        qm_cli_json_add(object, "name", qm_cli_json_string(snapshot->name));
        qm_cli_json_add_u64(object, "vm-state-size", snapshot->vm_state_size);
        qm_cli_json_add_u64(object, "disk-size", snapshot->disk_size);
        qm_cli_json_add_u64(object, "date-sec", snapshot->date_sec);
        qm_cli_json_add_u64(object, "date-nsec", snapshot->date_nsec);
        qm_cli_json_add_u64(object, "vm-clock-sec", snapshot->vm_clock_nsec / 1000000000);
        qm_cli_json_add_u64(object, "vm-clock-nsec", snapshot->vm_clock_nsec % 1000000000);
        if (snapshot->icount != UINT64_MAX)
            qm_cli_json_add_u64(object, "icount", snapshot->icount);
        json_object_array_add(list, object);
    }
    return list;
}

static struct json_object *
bitmaps_json(const struct qmeld_layer_info *layer)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < layer->n_bitmaps; i++) {
        const struct qmeld_bitmap_info *bitmap = &layer->bitmaps[i];
        struct json_object *object = json_object_new_object();
        struct json_object *flags = json_object_new_array();

        if (bitmap->in_use)
            json_object_array_add(flags, json_object_new_string("in-use"));
        if (bitmap->enabled)
            json_object_array_add(flags, json_object_new_string("auto"));
        qm_cli_json_add(object, "name", qm_cli_json_string(bitmap->name));
        qm_cli_json_add_u64(object, "granularity", bitmap->granularity);
        qm_cli_json_add(object, "flags", flags);
        json_object_array_add(list, object);
    }
    return list;
}

/* The part qemu-img calls format-specific. */
static struct json_object *
qcow2_json(const struct qmeld_layer_info *layer)
{
    struct json_object *object = json_object_new_object();
    struct json_object *data = json_object_new_object();

    qm_cli_json_add(data, "compat", json_object_new_string(layer->version < 3 ? "0.10" : "1.1"));
    qm_cli_json_add(data, "compression-type",
                    qm_cli_json_string(layer->compression ? layer->compression : "zlib"));
    qm_cli_json_add_u64(data, "refcount-bits", layer->refcount_bits);
    if (layer->version >= 3) {
        qm_cli_json_add_bool(data, "lazy-refcounts", layer->lazy_refcounts);
        qm_cli_json_add_bool(data, "corrupt", layer->corrupt);
        qm_cli_json_add_bool(data, "extended-l2", layer->extended_l2);
    }
    if (layer->data_file) {
        qm_cli_json_add(data, "data-file", qm_cli_json_string(layer->data_file));
        qm_cli_json_add_bool(data, "data-file-raw", layer->data_file_raw);
    }
    if (layer->n_bitmaps)
        qm_cli_json_add(data, "bitmaps", bitmaps_json(layer));
    qm_cli_json_add(object, "type", json_object_new_string("qcow2"));
    qm_cli_json_add(object, "data", data);
    return object;
}

struct json_object *
qm_cli_info_json(size_t number, const struct qmeld_layer_info *layer, const char *below)
{
    struct json_object *object = json_object_new_object();

    qm_cli_json_add_u64(object, "layer", number);
    qm_cli_json_add(object, "filename", qm_cli_json_string(layer->path));
    qm_cli_json_add(object, "format", qm_cli_json_string(layer->format));
    qm_cli_json_add_bool(object, "format-probed", layer->format_probed);
    qm_cli_json_add_u64(object, "virtual-size", layer->virtual_size);
    qm_cli_json_add_u64(object, "actual-size", layer->allocated);
    qm_cli_json_add_u64(object, "file-size", layer->file_size);
    qm_cli_json_add_bool(object, "block-device", layer->block_device);
    qm_cli_json_add_bool(object, "nbd", layer->nbd);
    qm_cli_json_add_bool(object, "dirty-flag", layer->dirty);
    if (layer->version)
        qm_cli_json_add_u64(object, "cluster-size", layer->cluster_size);
    if (layer->backing_name)
        qm_cli_json_add(object, "backing-filename", qm_cli_json_string(layer->backing_name));
    if (layer->backing_format)
        qm_cli_json_add(object, "backing-filename-format",
                        qm_cli_json_string(layer->backing_format));
    if (below)
        qm_cli_json_add(object, "full-backing-filename", qm_cli_json_string(below));
    if (layer->encryption) {
        qm_cli_json_add_bool(object, "encrypted", true);
        qm_cli_json_add(object, "encryption", qm_cli_json_string(layer->encryption));
    }
    if (layer->unknown_autoclear)
        qm_cli_json_add_u64(object, "unknown-autoclear", layer->unknown_autoclear);
    if (layer->holder)
        qm_cli_json_add(object, "holder", qm_cli_json_string(layer->holder));
    if (layer->n_snapshots)
        qm_cli_json_add(object, "snapshots", snapshots_json(layer));
    if (layer->version)
        qm_cli_json_add(object, "format-specific", qcow2_json(layer));
    return object;
}

/* ---- the command ---- */

static int
show_json(struct qmeld_chain *chain, struct qmeld_error *err)
{
    struct json_object *list = json_object_new_array();
    struct qmeld_layer_info layer, below = {0};
    size_t i = qmeld_chain_depth(chain) - 1;
    int result = qmeld_chain_layer(chain, i, &layer, err);

    while (result == 0) { /* each layer is asked once, for asking looks for its users too */
        if (i > 0 && (result = qmeld_chain_layer(chain, i - 1, &below, err)) < 0)
            break;
        json_object_array_add(list, qm_cli_info_json(i + 1, &layer, i > 0 ? below.path : NULL));
        if (i-- == 0)
            break;
        layer = below;
    }
    if (result < 0)
        json_object_put(list);
    else
        qm_cli_json_print(list);
    return result;
}

static int
show_human(struct qmeld_chain *chain, struct qmeld_error *err)
{
    for (size_t i = qmeld_chain_depth(chain); i-- > 0;) {
        struct qmeld_layer_info layer;
        char label[32];

        if (qmeld_chain_layer(chain, i, &layer, err) < 0)
            return -1;
        snprintf(label, sizeof label, "[%zu]", i + 1);
        qm_cli_info_print(label, &layer, i + 1 == qmeld_chain_depth(chain));
        if (i > 0)
            putchar('\n');
    }
    return 0;
}

/* Called as qmeld-img.  Without --backing-chain qemu-img opens no backing file, and its JSON is one object. */
static int
show_as_qemu(struct qmeld_chain *chain, enum qm_cli_output output, struct qmeld_error *err)
{
    for (size_t i = qmeld_chain_depth(chain); i-- > 0;) {
        struct qmeld_layer_info layer;

        if (qmeld_chain_layer(chain, i, &layer, err) < 0)
            return -1;
        if (output == QM_OUTPUT_JSON) { /* alone: of chains show_json() makes a list */
            qm_cli_json_print(qm_cli_info_json(i + 1, &layer, NULL));
            return 0;
        }
        qm_cli_info_print_as_qemu(&layer);
        if (i > 0)
            putchar('\n');
    }
    return 0;
}

static int
show(const char *path, const struct qmeld_open_options *open_options, enum qm_cli_output output,
     bool verbose)
{
    struct qmeld_chain *chain = NULL;
    struct qmeld_error err;
    int result;

    qm_cli_sandbox_enter(QM_SANDBOX_READS);
    if (verbose)
        fprintf(stderr, "qmeld: sandbox: %s\n", qm_cli_sandbox_state());
    if (qmeld_chain_open(path, open_options, &chain, &err) < 0)
        return qm_cli_fail(&err);
    qm_cli_sandbox_opened(QM_SANDBOX_OPENS_FILES); /* /proc tells who uses a layer */
    if (qm_cli_is_qmeld_img() && (output == QM_OUTPUT_HUMAN || open_options->single))
        result = show_as_qemu(chain, output, &err);
    else
        result = output == QM_OUTPUT_JSON ? show_json(chain, &err) : show_human(chain, &err);
    qmeld_chain_close(chain);
    return result < 0 ? qm_cli_fail(&err) : QM_EXIT_DONE;
}

/* A path is always an image; so is a bare name, if there is such a file.  A folder is no image. */
static bool
may_be_domain(const char *name)
{
    struct stat st;

    return !strchr(name, '/') && (stat(name, &st) < 0 || S_ISDIR(st.st_mode));
}

enum { OPT_BACKING_FORMAT = QM_OPT_FIRST, OPT_SINGLE, OPT_BACKING_CHAIN };

struct request {
    struct qmeld_open_options open;
    enum qm_cli_output output;
    const char *uri;
    bool verbose;
};

/* False after a complaint. */
static bool
take_option(struct request *request, int c)
{
    switch (c) {
    case 'c':
        request->uri = optarg;
        return true;
    case 'f':
        request->open.format = optarg;
        return true;
    case OPT_BACKING_FORMAT:
        request->open.backing_format = optarg;
        return true;
    case OPT_SINGLE:
    case OPT_BACKING_CHAIN:
        request->open.single = c == OPT_SINGLE;
        return true;
    case 'U':
        return true;
    case 'v':
        request->verbose = true;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output(qm_cli_info.name, optarg, &request->output);
    case QM_OPT_OBJECT:
    case QM_OPT_IMAGE_OPTS:
        return qm_cli_refuse_qemu_option(qm_cli_info.name, c);
    default:
        return false;
    }
}

static int
run(int argc, char **argv)
{
    static const struct option options[] = {
        {"connect", required_argument, NULL, 'c'},
        QM_CLI_ALLOW_PATH_OPTION,
        {"format", required_argument, NULL, 'f'},
        {"backing-format", required_argument, NULL, OPT_BACKING_FORMAT},
        {"single", no_argument, NULL, OPT_SINGLE},
        {"backing-chain", no_argument, NULL, OPT_BACKING_CHAIN},
        {"force-share", no_argument, NULL, 'U'},
        {"verbose", no_argument, NULL, 'v'},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct request request = {.open = {.single = qm_cli_is_qmeld_img()}};
    struct qmeld_error err = {0};
    int c, code;

    while ((c = qm_cli_getopt(argc, argv, ":c:f:hUv", options)) != -1) {
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
    request.open.allow_paths = qm_cli_allow_paths();
    if (!request.uri && (qm_cli_is_qmeld_img() || !may_be_domain(argv[optind])))
        return show(argv[optind], &request.open, request.output, request.verbose);
    code = qm_cli_info_domain(request.uri, argv[optind], request.output, &err);
    if (code >= 0)
        return code;
    if (request.uri)
        return qm_cli_fail(&err);
    code = show(argv[optind], &request.open, request.output,
                request.verbose); /* says that it is no file either */
    if (code != QM_EXIT_DONE) {
        QM_CLI_FREE char *why = qm_cli_quote(err.what);

        fprintf(stderr, "qmeld: nor is there a machine of that name: %s\n", why);
    }
    return code;
}

const struct qm_cli_command qm_cli_info = {"info", help, "image", run, false};
