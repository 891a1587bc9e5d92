/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten.c - qmeld_flatten: what a chain reads as becomes one image.
 *
 * Why this way.  Nothing of the chain changes, so there is nothing to protect but the new image's name: it is given when all
 * is durable (output.h).  The bytes pass through memory, as somebody always wants to look at them: for zeros, for a
 * digest, to compress them.  The stream (stream.h) lets many threads do that, and gives the chunks in order.
 */
#include "flatten_int.h"

#include "clock.h"
#include "journal.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <string.h>

#define CHUNK_BYTES (1u << 20)
#define BATCH_BYTES (512ull << 20)
#define SHARE_BYTES (1ull << 30) /* by one call: it cannot be stopped */
#define MAX_STEP    (1u << 30)   /* of progress in the note, whose counter has 32 bits */

/* ---- what is asked ---- */

static int
check_target(const struct qmeld_create_options *t, bool to_sink, const char *out,
             struct qmeld_error *err)
{
    const bool raw = !t->format || strcmp(t->format, "raw") == 0;

    if (!raw && strcmp(t->format, "qcow2") != 0)
        return qm_fail(err, QMELD_USAGE, qm_in(out),
                       "format \"%.64s\" cannot be written here: use qcow2 or raw", t->format);
    if (!raw && to_sink)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "only a raw disk can be written in order, as a pipe needs it: name a file");
    if (raw && (t->version || t->cluster_size || t->refcount_bits || t->compression ||
                t->extended_l2 || t->lazy_refcounts))
        return qm_fail(err, QMELD_USAGE, qm_in(out),
                       "these options are for qcow2 images: use format qcow2");
    if (t->backing_name || t->backing_format || t->has_size)
        return qm_fail(err, QMELD_USAGE, qm_in(out),
                       "a flattened image has no backing file, and the size of its disk");
    if (to_sink && t->preallocation)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "only a file has space that can be preallocated: name one");
    return 0;
}

static int
take_compression(struct qm_flatten *f, const char *out, struct qmeld_error *err)
{
    const struct qmeld_flatten_options *o = f->opts;
    enum qm_compression type;

    if (!o->compress)
        return 0;
    if (!f->is_qcow2)
        return qm_fail(err, QMELD_USAGE, qm_in(out),
                       "a raw disk cannot be compressed: use format qcow2");
    if (qm_create_compression(out, o->compress, &type, err) < 0)
        return -1;
    if (o->target->compression && type != f->create.compression)
        return qm_fail(err, QMELD_USAGE, qm_in(out),
                       "an image has one compression, and two are named: leave one out");
    if (o->compress_level < 0 || o->compress_level > qm_codec_level_max(type))
        return qm_fail(err, QMELD_USAGE, qm_in(out), "the level of %s is 1 to %d, not %d",
                       o->compress, qm_codec_level_max(type), o->compress_level);
    if (f->prealloc != QM_PREALLOC_OFF)
        return qm_fail(err, QMELD_USAGE, qm_in(out),
                       "nobody knows how much space compressed data will take: leave out "
                       "compression or preallocation");
    f->create.compression = type;
    return 0;
}

static int
take_target(struct qm_flatten *f, const char *out, struct qmeld_error *err)
{
    static const struct qmeld_create_options none;
    const struct qmeld_create_options *t = f->opts->target ? f->opts->target : &none;

    if (check_target(t, f->opts->sink != NULL, out, err) < 0)
        return -1;
    f->is_qcow2 = t->format && strcmp(t->format, "qcow2") == 0;
    if (f->is_qcow2 ? qm_create_parse(out, t, &f->create, err) < 0
                    : qm_create_raw_prealloc(out, t->preallocation, &f->prealloc, err) < 0)
        return -1;
    if (f->is_qcow2) { /* it begins empty, and every place is taken when it is its turn */
        f->prealloc = f->create.prealloc;
        f->create.prealloc = QM_PREALLOC_OFF;
    }
    return take_compression(f, out, err);
}

static int
take_leaf(struct qm_flatten *f, struct qmeld_error *err)
{
    const uint64_t leaf = f->opts->leaf ? f->opts->leaf : QM_MANIFEST_LEAF;

    if (!f->opts->manifest && f->opts->leaf)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "a leaf size is for a manifest, and none is asked for");
    if (leaf < QM_MANIFEST_MIN_LEAF || leaf > QM_MANIFEST_MAX_LEAF || (leaf & (leaf - 1)))
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "a leaf is a power of two from 4 KiB to 64 MiB, not %" PRIu64 " bytes",
                       leaf);
    f->leaf = f->opts->manifest ? leaf : 0;
    return 0;
}

static int
take_salvage(struct qm_flatten *f, struct qmeld_error *err)
{
    const struct qmeld_flatten_options *o = f->opts;

    if (!o->salvage && (o->fill || o->salvage_map))
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "a filling and a map of losses are for salvaging");
    if (o->fill && !*o->fill)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "the pattern to fill losses with is empty");
    if (o->manifest && o->salvage_map && strcmp(o->manifest, o->salvage_map) == 0)
        return qm_fail(err, QMELD_USAGE, qm_in(o->manifest),
                       "manifest and map of losses cannot be the same file");
    if (o->fill)
        f->salvage = (struct qm_salvage){.fill = (const unsigned char *)o->fill,
                                         .fill_len = strlen(o->fill)};
    return 0;
}

static int
open_chain(struct qm_flatten *f, struct qmeld_error *err)
{
    const struct qm_chain_options look = {.mode = f->opts->share ? QM_CHAIN_LOOK : QM_CHAIN_READ,
                                          .format = f->opts->format,
                                          .backing_format = f->opts->backing_format,
                                          .salvage = f->opts->salvage,
                                          .finding = f->opts->finding,
                                          .finding_opaque = f->opts->finding_opaque,
                                          .allow = f->opts->allow_paths,
                                          .secrets = f->opts->secrets};
    struct qm_image *top;
    struct qm_qcow2 *q;

    if (qm_chain_open(f->path, &look, &f->chain, err) < 0)
        return -1;
    top = f->chain->layers[f->chain->n - 1].img;
    q = qm_qcow2_of(top);
    if (f->opts->snapshot && !q)
        return qm_fail(err, QMELD_USAGE, qm_in(f->path),
                       "a raw image has no internal snapshots: leave out their name");
    if (f->opts->snapshot && qm_qcow2_view_snapshot(q, f->opts->snapshot, err) < 0)
        return -1;
    f->size = f->report->size = top->size;
    return 0;
}

/* ---- who may go on ---- */

static int
add_input(struct json_object *list, const struct qm_layer *layer, struct qmeld_error *err)
{
    struct json_object *j = json_object_new_object();
    struct qm_journal_layer l;

    if (qm_journal_note(layer, &l, err) < 0) {
        json_object_put(j);
        return -1;
    }
    json_object_object_add(j, "path", json_object_new_string(l.path));
    json_object_object_add(j, "format", json_object_new_string(l.format));
    json_object_object_add(j, "inode", json_object_new_uint64(l.ino));
    json_object_object_add(j, "size", json_object_new_uint64(l.size));
    if (!l.blockdev) { /* a device's is that of its node */
        json_object_object_add(j, "sec", json_object_new_int64(l.mtime_sec));
        json_object_object_add(j, "nsec", json_object_new_int64(l.mtime_nsec));
    }
    if (l.data.path) {
        json_object_object_add(j, "data", json_object_new_string(l.data.path));
        json_object_object_add(j, "data-inode", json_object_new_uint64(l.data.ino));
        json_object_object_add(j, "data-size", json_object_new_uint64(l.data.size));
        if (!layer->img->data->blockdev) {
            json_object_object_add(j, "data-sec", json_object_new_int64(l.data.mtime_sec));
            json_object_object_add(j, "data-nsec", json_object_new_int64(l.data.mtime_nsec));
        }
    }
    qm_journal_layer_release(&l);
    return json_object_array_add(list, j) == 0 ? 0 : qm_fail_nomem(err, "the list of inputs");
}

/* How the inputs look: the same text again says that nobody has changed them. */
static int
describe_inputs(const struct qm_flatten *f, char **out, struct qmeld_error *err)
{
    struct json_object *list = json_object_new_array();
    int rc = 0;

    *out = NULL;
    for (size_t i = 0; rc == 0 && i < f->chain->n; i++)
        rc = add_input(list, &f->chain->layers[i], err);
    if (rc == 0) {
        *out = strdup(json_object_to_json_string_ext(list, JSON_C_TO_STRING_PLAIN));
        rc = *out ? 0 : qm_fail_nomem(err, "the list of inputs");
    }
    json_object_put(list);
    return rc;
}

/* ---- the work ---- */

static int
open_stream(struct qm_flatten *f, struct qmeld_error *err)
{
    const bool to_raw = !f->is_qcow2 && !f->opts->sink;
    const bool device = f->output.file && f->output.file->blockdev;
    /* who asks for space does not want to be told later that there is none for a copy */
    const bool can_share = f->output.file && !device && !f->opts->compress && !f->opts->salvage &&
                           f->prealloc == QM_PREALLOC_OFF;
    const struct qm_stream_config config = {
        .chain = f->chain,
        .from = qm_guest(f->manifest || f->losses ? 0 : f->output.done),
        .leaf = f->leaf,
        .salvage = f->opts->salvage ? &f->salvage : NULL,
        .chunk = f->chunk,
        .threads = f->opts->threads,
        .keep_zeros = f->opts->keep_zeros,
        .zero_most = f->prealloc == QM_PREALLOC_OFF ? 0 : f->batch_bytes,
        .prealloc = f->prealloc,
        .deflate = f->opts->compress ? f->create.cluster_size : 0,
        .type = f->create.compression,
        .level = f->opts->compress_level,
        .pass_to = f->opts->compress && f->opts->compress_level == 0 ? f->q : NULL,
        .routes = can_share ? &f->routes : NULL,
        .share_most = qm_min(SHARE_BYTES, f->batch_bytes * QM_FLATTEN_SHARED_WEIGHT),
        .share_unit = f->is_qcow2 ? f->q->geo.cluster_size : 0,
        .raw = to_raw ? f->output.file : NULL,
        .raw_from = qm_guest(device ? f->chunk : f->output.done),
        .phase = "flatten",
        .progress = f->opts->progress,
        .opaque = f->opts->opaque,
    };

    qm_routes_init(&f->routes, f->output.file);
    return qm_stream_new(&config, &f->stream, err);
}

static int
copy_all(struct qm_flatten *f, struct qmeld_error *err)
{
    const uint64_t from = f->output.done;

    for (;;) {
        struct qm_chunk *c;
        uint64_t done;

        if (qm_stream_next(f->stream, &c, err) < 0)
            return -1;
        if (!c)
            break;
        done = c->guest.g + c->len;
        if (f->losses && qm_losses_add(f->losses, c, err) < 0)
            return -1;
        if (f->manifest && qm_manifest_add(f->manifest, c, err) < 0)
            return -1;
        if (c->guest.g < from) /* it is there already, and was read for its digest */
            qm_stream_give_back(f->stream, c);
        else if (qm_flatten_put(f, c, err) < 0)
            return -1;
        if ((qm_flatten_is_full(f) || qm_stream_stopped(f->stream)) &&
            qm_flatten_publish(f, done, err) < 0)
            return -1;
        if (qm_stream_stopped(f->stream))
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
    }
    return qm_flatten_publish(f, f->size, err) < 0 ? -1 : qm_flatten_complete(f, err);
}

static int
check_unchanged(const struct qm_flatten *f, const char *before, struct qmeld_error *err)
{
    QM_FREE char *now = NULL;

    if (f->opts->share)
        return 0;
    if (describe_inputs(f, &now, err) < 0)
        return -1;
    if (strcmp(before, now) == 0)
        return 0;
    return qm_fail(err, QMELD_STALE, qm_in(f->path),
                   "a layer of the chain was changed while it was read: find out by whom, then "
                   "give the command again");
}

static void
take_limits(struct qm_flatten *f)
{
    uint64_t chunk = CHUNK_BYTES;

    f->batch_bytes = BATCH_BYTES;
#ifdef QM_TESTING
    if (getenv("QMELD_TEST_BATCH")) { /* tests have small images */
        f->batch_bytes = strtoull(getenv("QMELD_TEST_BATCH"), NULL, 0);
        while (chunk > QM_STREAM_GRAIN && chunk > f->batch_bytes)
            chunk /= 2;
    }
#endif
    f->chunk = qm_max(qm_max(chunk, f->create.cluster_size), f->leaf);
}

/* The note's counter has 32 bits. */
static uint64_t
unit_of(const struct qm_flatten *f)
{
    uint64_t unit = f->chunk;

    while (f->size / unit >= MAX_STEP)
        unit *= 2;
    return unit;
}

/* Up to the image's last byte, and the manifest's. */
static int
work(struct qm_flatten *f, const struct qm_output_config *config, const char *inputs,
     struct qmeld_error *err)
{
    if (qm_flatten_record_begin(f, err) < 0 ||
        (f->output.file && qm_flatten_sink_open(f, err) < 0) ||
        (f->output.file && qm_output_note(&f->output, config, err) < 0))
        return -1;
    if (open_stream(f, err) < 0 || copy_all(f, err) < 0 || qm_flatten_record_end(f, err) < 0)
        return -1;
    return check_unchanged(f, inputs, err);
}

static int
write_output(struct qm_flatten *f, const char *out, struct qmeld_error *err)
{
    QM_FREE char *request = qm_flatten_request(f);
    QM_FREE char *inputs = NULL;
    struct qm_output_config config = {.path = out,
                                      .chain = f->chain,
                                      .unit = unit_of(f),
                                      .size = f->size,
                                      .force = f->opts->force,
                                      .restart = f->opts->restart};

    if (!request)
        return qm_fail_nomem(err, "a note");
    if (describe_inputs(f, &inputs, err) < 0)
        return -1;
    config.request = request;
    config.inputs = f->opts->share ? NULL : inputs;
    if (out && qm_output_begin(&f->output, &config, err) < 0)
        return -1;
    f->report->resumed = f->output.resumed;
    f->report->resumed_at = f->output.done;
    if (!f->output.complete && work(f, &config, inputs, err) < 0)
        return -1;
    if (out && qm_output_finish(&f->output, err) < 0)
        return -1;
    if (qm_flatten_record_name(f, err) == 0 && (!out || qm_output_forget(&f->output, err) == 0))
        return 0;
    qm_err_disk(err, QMELD_DISK_NEW);
    return -1;
}

static int
flatten(struct qm_flatten *f, const char *out, struct qmeld_error *err)
{
    if (take_target(f, out, err) < 0 || take_leaf(f, err) < 0 || take_salvage(f, err) < 0 ||
        open_chain(f, err) < 0)
        return -1;
    f->create.size = f->size;
    if (f->is_qcow2 && qm_qcow2_create_check(out, &f->create, err) < 0)
        return -1;
    if (qm_flatten_bitmaps_plan(f, err) < 0 || qm_flatten_bitmaps_tell(f, err) < 0)
        return -1;
    take_limits(f);
    return write_output(f, out, err);
}

int
qmeld_flatten(const char *path, const char *out, const struct qmeld_flatten_options *opts,
              struct qmeld_flatten_report *report, struct qmeld_error *err)
{
    static const struct qmeld_flatten_options defaults;
    struct qmeld_flatten_report unheard;
    struct qm_flatten f = {
        .path = path, .opts = opts ? opts : &defaults, .report = report ? report : &unheard};
    const uint64_t began = qm_clock_ms();
    int rc;

    memset(err, 0, sizeof *err);
    memset(f.report, 0, sizeof *f.report);
    if (!out != (f.opts->sink != NULL))
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "either a file or a sink takes the image: name one of them");
    rc = flatten(&f, out, err);
    qm_stream_free(f.stream);
    for (size_t i = 0; f.chain && i < f.chain->n; i++)
        f.report->bytes_shared += qm_route_sums(&f.routes, f.chain->layers[i].img->data).shared;
    qm_routes_release(&f.routes);
    qm_flatten_sink_close(&f);
    qm_bitmap_orders_release(&f.orders);
    if (rc < 0)
        qm_output_fail(&f.output, err);
    qm_flatten_record_close(&f, rc < 0);
    qm_output_close(&f.output);
    qm_chain_close(f.chain);
    f.report->seconds_x1000 = qm_clock_ms() - began;
    if (!report || rc < 0)
        qmeld_flatten_report_free(f.report);
    return rc;
}

void
qmeld_flatten_report_free(struct qmeld_flatten_report *report)
{
    if (!report)
        return;
    qm_carry_told_free(report->bitmaps, report->n_bitmaps);
    report->bitmaps = NULL;
    report->n_bitmaps = 0;
}
