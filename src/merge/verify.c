/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * verify.c - qmeld_verify: is all still as a manifest says?
 *
 * Why this way.  Three things are read beside each other, from the disk's first byte to its last: the manifest's leaves, the
 * image, and the map of the inputs.  What cannot be opened is told and left out, so that the rest is
 * verified all the same.  A file that is missing is not one that differs: who has lost a disk must not be told that the
 * evidence was changed.
 */
#include "evidence.h"
#include "fields.h"
#include "manifest.h"
#include "manifest_read.h"

#include "qcow2.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_BYTES (1u << 20)

/* What is told of at once: neighbours that differ. */
struct differing {
    uint64_t from;
    uint64_t to;
};

struct verify {
    const char *manifest;
    const struct qmeld_verify_options *opts;
    struct qmeld_verify_result *result;
    struct qm_manifest_reader *reader;
    uint64_t size;
    uint64_t leaf;
    struct qm_digest *digest;
    struct qm_tree tree; /* over the leaves as listed */
    uint64_t at;         /* the disk's bytes in front of it are verified */
    /* the image; NULL: it could not be opened */
    struct qm_chain *image;
    struct qm_stream *stream;
    struct qm_chunk *chunk; /* NULL: the next one is to be asked for, or there is none */
    struct qm_digest *view;
    struct qm_sha256 zero; /* of a leaf of zeros */
    struct differing leaves;
    /* the inputs; likewise */
    struct qm_chain *inputs;
    struct qm_map *map;
    struct qm_map_span span; /* not compared yet; len 0: none */
    struct differing spans;
};

/* ---- findings ---- */

static void find(struct verify *v, const char *format, ...) __attribute__((format(printf, 2, 3)));

static void
find(struct verify *v, const char *format, ...)
{
    char text[1400];
    va_list args;

    va_start(args, format);
    (void)vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (v->opts->finding)
        v->opts->finding(text, v->opts->finding_opaque);
}

static void
find_unreadable(struct verify *v, const char *what, const struct qmeld_error *why)
{
    v->result->unreadable++;
    find(v, "%s: %s%s%s", what, why->file, why->file[0] ? ": " : "", why->what);
}

static void
tell_leaves(struct verify *v)
{
    struct differing *d = &v->leaves;

    if (d->to - d->from == 1)
        find(v, "leaf %" PRIu64 " differs, bytes %" PRIu64 " to %" PRIu64 " of the disk", d->from,
             d->from * v->leaf, qm_min(v->size, d->to * v->leaf));
    else if (d->from < d->to)
        find(v,
             "leaves %" PRIu64 " to %" PRIu64 " differ, bytes %" PRIu64 " to %" PRIu64
             " of the disk",
             d->from, d->to - 1, d->from * v->leaf, qm_min(v->size, d->to * v->leaf));
    d->from = d->to;
}

static void
leaf_differs(struct verify *v, uint64_t leaf, uint64_t n)
{
    v->result->leaves_differ += n;
    if (v->leaves.to != leaf)
        tell_leaves(v);
    if (v->leaves.from == v->leaves.to)
        v->leaves.from = leaf;
    v->leaves.to = leaf + n;
}

static void
tell_spans(struct verify *v)
{
    struct differing *d = &v->spans;

    if (d->from < d->to)
        find(v,
             "bytes %" PRIu64 " to %" PRIu64 " of the disk: the inputs' tables lead elsewhere now",
             d->from, d->to);
    d->from = d->to;
}

static void
span_differs(struct verify *v, uint64_t from, uint64_t len)
{
    v->result->spans_differ++;
    if (v->spans.to != from)
        tell_spans(v);
    if (v->spans.from == v->spans.to)
        v->spans.from = from;
    v->spans.to = from + len;
}

/* ---- opening ---- */

static int
open_stream(struct verify *v, struct qmeld_error *err)
{
    const struct qm_stream_config config = {.chain = v->image,
                                            .chunk = qm_max(CHUNK_BYTES, v->leaf),
                                            .threads = v->opts->threads,
                                            .keep_zeros = true,
                                            .leaf = v->leaf,
                                            .phase = "verify",
                                            .progress = v->opts->progress,
                                            .opaque = v->opts->opaque};

    return qm_stream_new(&config, &v->stream, err);
}

static void
open_image(struct verify *v)
{
    struct qm_chain_options look = {.mode = QM_CHAIN_LOOK,
                                    .single = true,
                                    .allow = v->opts->allow_paths,
                                    .secrets = v->opts->secrets};
    struct json_object *j;
    QM_FREE char *path = NULL;
    struct qmeld_error err = {0};

    if (json_object_object_get_ex(qm_manifest_head(v->reader), "output", &j)) {
        look.format = qm_field_word(j, "format");
        path = qm_manifest_name(j, "path");
    }
    if (!v->opts->output && !path) {
        v->result->unreadable++;
        find(v, "the image went to a pipe: say where it is now with --image");
        return;
    }
    if (qm_chain_open(v->opts->output ? v->opts->output : path, &look, &v->image, &err) < 0 ||
        open_stream(v, &err) < 0) {
        find_unreadable(v, "the image cannot be opened", &err);
        return;
    }
    if (v->image->layers[0].img->size != v->size)
        find(v, "the image is a disk of %" PRIu64 " bytes, and was one of %" PRIu64,
             v->image->layers[0].img->size, v->size);
}

static int
list_inputs(const struct qm_manifest_reader *reader, struct json_object **out,
            struct qmeld_error *err)
{
    if (!json_object_object_get_ex(qm_manifest_head(reader), "inputs", out) ||
        !json_object_is_type(*out, json_type_array) || json_object_array_length(*out) == 0)
        return qm_manifest_bad(reader, "it does not list its inputs", err);
    return 0;
}

/* How many layers the manifest has, which stands behind its leaves: it is read once more for that.  0: nobody knows. */
static size_t
count_layers(const char *manifest)
{
    struct qm_manifest_reader *reader;
    struct json_object *list, *leaf = NULL, *role;
    struct qmeld_error err;
    size_t n = 0;
    int rc;

    if (qm_manifest_open(manifest, &reader, &err) < 0)
        return 0;
    do
        rc = qm_manifest_next_leaf(reader, &leaf, &err);
    while (rc == 0 && leaf);
    if (rc == 0 && list_inputs(reader, &list, &err) == 0)
        for (size_t i = 0; i < json_object_array_length(list); i++)
            n += !json_object_object_get_ex(json_object_array_get_idx(list, i), "role", &role);
    qm_manifest_close(reader);
    return n;
}

/* The chain of the inputs; damaged, if it may have been in no better state when it was flattened. */
static int
open_chain(struct verify *v, const char *top, struct qm_chain_options *look,
           struct qmeld_error *err)
{
    struct qmeld_error damage;

    if (qm_chain_open(top, look, &v->inputs, err) == 0)
        return 0;
    if (err->code != QMELD_CORRUPT && err->code != QMELD_IO)
        return -1;
    look->salvage = true;
    damage = (struct qmeld_error){.disk = err->disk};
    if (qm_chain_open(top, look, &v->inputs, &damage) < 0) {
        *err = damage;
        return -1;
    }
    if (v->inputs->bottomless && v->inputs->n != count_layers(v->manifest)) {
        qm_chain_close(v->inputs); /* a layer that was there is missing now: *err says which */
        v->inputs = NULL;
        return -1;
    }
    *err = damage;
    return 0;
}

static int
open_inputs(struct verify *v, struct json_object *j, struct qmeld_error *err)
{
    QM_FREE char *path = qm_manifest_name(j, "path");
    QM_FREE char *snapshot = qm_manifest_name(j, "snapshot");
    const char *top = v->opts->inputs ? v->opts->inputs : path;
    struct qm_chain_options look = {.mode = QM_CHAIN_LOOK,
                                    .format = qm_field_word(j, "format"),
                                    .backing_format = qm_field_word(j, "backing_format"),
                                    .allow = v->opts->allow_paths,
                                    .secrets = v->opts->secrets};
    struct qm_image *active;

    if (!top)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "the manifest does not name it: is it the manifest of this image?");
    if (open_chain(v, top, &look, err) < 0)
        return -1;
    active = v->inputs->layers[v->inputs->n - 1].img;
    if (snapshot && !qm_qcow2_of(active))
        return qm_fail(err, QMELD_CORRUPT, qm_in(top), "it has no internal snapshots");
    if (snapshot && qm_qcow2_view_snapshot(qm_qcow2_of(active), snapshot, err) < 0)
        return -1;
    if (qm_map_open(v->inputs, 0, v->inputs->n - 1, qm_guest(0), v->size, &v->map, err) < 0)
        return -1;
    qm_map_go_on(v->map); /* what was lost then may be lost now */
    return 0;
}

static int
open_all(struct verify *v, struct qmeld_error *err)
{
    struct qmeld_error why = {0};
    struct json_object *j;

    if (qm_manifest_open(v->manifest, &v->reader, err) < 0)
        return -1;
    if (!qm_field_number(qm_manifest_head(v->reader), "size", &v->size) || v->size > QM_MAX_OFF ||
        !qm_field_number(qm_manifest_head(v->reader), "leaf_size", &v->leaf) ||
        v->leaf < QM_MANIFEST_MIN_LEAF || v->leaf > QM_MANIFEST_MAX_LEAF ||
        (v->leaf & (v->leaf - 1)))
        return qm_manifest_bad(v->reader, "its size or its leaf size is impossible", err);
    v->digest = qm_digest_new();
    v->view = qm_digest_new();
    if (!v->digest || !v->view)
        return qm_fail_nomem(err, "digests");
    qm_digest_add_zeros(v->digest, v->leaf);
    v->zero = qm_digest_end(v->digest);
    qm_tree_init(&v->tree, v->digest);
    open_image(v);
    if (!json_object_object_get_ex(qm_manifest_head(v->reader), "image", &j))
        return qm_manifest_bad(v->reader, "it does not name its inputs", err);
    if (open_inputs(v, j, &why) < 0)
        find_unreadable(v, "the inputs cannot be opened as the chain they were", &why);
    return 0;
}

/* ---- the image ---- */

/* v->chunk has v->at, or there is nothing there. */
static int
ensure_chunk(struct verify *v, uint64_t at, struct qmeld_error *err)
{
    if (v->chunk && at < v->chunk->guest.g + v->chunk->len)
        return 0;
    if (v->chunk)
        qm_stream_give_back(v->stream, v->chunk);
    v->chunk = NULL;
    if (qm_stream_stopped(v->stream))
        return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
    if (qm_stream_next(v->stream, &v->chunk, err) < 0 || !v->chunk)
        return v->chunk || !err->what[0] ? 0 : -1;
    if (v->chunk->zero)
        qm_digest_add_zeros(v->view, v->chunk->len);
    else
        qm_digest_add(v->view, v->chunk->bytes, v->chunk->len);
    return 0;
}

/* Leaves [leaf, leaf + n), which all are to have this digest. */
static int
compare_leaves(struct verify *v, uint64_t leaf, uint64_t n, const struct qm_sha256 *want,
               struct qmeld_error *err)
{
    while (v->stream && n > 0) {
        const uint64_t at = leaf * v->leaf;
        const struct qm_chunk *c;
        struct qm_sha256 got = v->zero;
        uint64_t k = 1;

        if (ensure_chunk(v, at, err) < 0)
            return -1;
        c = v->chunk;
        if (!c) { /* it ends here */
            leaf_differs(v, leaf, n);
            return 0;
        }
        if (!c->zero) {
            got = c->leaves.at[(at - c->guest.g) / v->leaf];
        } else if (c->guest.g + c->len - at >= v->leaf) {
            k = qm_min(n, (c->guest.g + c->len - at) / v->leaf);
        } else {
            qm_digest_add_zeros(v->digest, c->guest.g + c->len - at);
            got = qm_digest_end(v->digest);
        }
        if (!qm_sha256_same(&got, want))
            leaf_differs(v, leaf, k);
        leaf += k;
        n -= k;
    }
    return 0;
}

/* ---- the map ---- */

/* What a span of the manifest says, as far as it is compared. */
struct claim {
    uint64_t start;
    uint64_t len;
    const char *kind;
    bool has_layer;
    uint64_t layer;
    bool has_offset;
    uint64_t offset;
    uint64_t skip;
};

static bool
parse_span(struct json_object *j, struct claim *out)
{
    *out = (struct claim){.kind = qm_field_word(j, "kind")};
    out->has_layer = qm_field_number(j, "layer", &out->layer);
    out->has_offset = qm_field_number(j, "offset", &out->offset);
    return qm_field_number(j, "start", &out->start) && qm_field_number(j, "length", &out->len) &&
           out->kind && out->len > 0 &&
           (strcmp(out->kind, "compressed") != 0 || qm_field_number(j, "skip", &out->skip));
}

static bool
is_as_claimed(const struct claim *c, const struct qm_map_span *s)
{
    const uint64_t in = s->guest.g - c->start;
    const bool has_layer = s->layer != QM_NO_LAYER;
    const bool has_offset = has_layer && s->ext.has_host;

    if (strcmp(c->kind, "lost") ==
        0) /* tables, or bytes that nobody reads here, could not be read then */
        return true;
    if (strcmp(c->kind, qm_manifest_kind(s)) != 0 || c->has_layer != has_layer ||
        (has_layer && c->layer != s->layer) || c->has_offset != has_offset)
        return false;
    if (s->ext.kind == QM_COMPRESSED)
        return c->offset == s->ext.host.h && c->skip + in == s->ext.skip;
    return !has_offset || c->offset + in == s->ext.host.h;
}

/* The map from claim's first byte to its last. */
static int
compare_span(struct verify *v, const struct claim *c, struct qmeld_error *err)
{
    uint64_t at = c->start;

    while (at < c->start + c->len) {
        struct qm_map_span part;
        bool done = false;

        if (v->span.len == 0 && qm_map_next(v->map, &v->span, &done, err) < 0)
            return -1;
        if (done) { /* the disk is shorter by now */
            v->span.len = 0;
            span_differs(v, at, c->start + c->len - at);
            return 0;
        }
        part = v->span;
        part.len = qm_min(v->span.len, c->start + c->len - at);
        part.ext = qm_extent_part(&v->span.ext, 0, part.len);
        if (part.guest.g != at || !is_as_claimed(c, &part))
            span_differs(v, at, part.len);
        if (part.len < v->span.len)
            v->span.ext = qm_extent_part(&v->span.ext, part.len, v->span.len - part.len);
        v->span.guest.g += part.len;
        v->span.len -= part.len;
        at += part.len;
    }
    return 0;
}

static int
compare_spans(struct verify *v, struct json_object *leaf, uint64_t from, uint64_t to,
              struct qmeld_error *err)
{
    struct json_object *list;
    struct qmeld_error why = {0};

    if (!json_object_object_get_ex(leaf, "spans", &list) ||
        !json_object_is_type(list, json_type_array))
        return qm_manifest_bad(v->reader, "a leaf has no spans", err);
    for (size_t i = 0; i < json_object_array_length(list); i++) {
        struct claim c;

        if (!parse_span(json_object_array_get_idx(list, i), &c) || c.start != from ||
            c.len > to - from)
            return qm_manifest_bad(v->reader, "the spans of a leaf do not cover it", err);
        if (v->map && compare_span(v, &c, &why) < 0) {
            find_unreadable(v, "the inputs' tables cannot be read", &why);
            qm_map_close(v->map);
            v->map = NULL;
        }
        from += c.len;
    }
    return from == to ? 0 : qm_manifest_bad(v->reader, "the spans of a leaf do not cover it", err);
}

/* ---- all leaves ---- */

static int
compare_leaf(struct verify *v, struct json_object *j, struct qmeld_error *err)
{
    const uint64_t first = v->at / v->leaf, left = qm_div_up(v->size - v->at, v->leaf);
    const char *hex = qm_field_word(j, "sha256");
    struct qm_sha256 want;
    uint64_t leaf, n, end;

    if (!hex || !qm_sha256_parse(hex, &want) || !qm_field_number(j, "leaf", &leaf) ||
        !qm_field_number(j, "count", &n) || leaf != first || n == 0 || n > left)
        return qm_manifest_bad(v->reader, "its leaves do not follow each other", err);
    end = n == left ? v->size : v->at + n * v->leaf;
    v->result->leaves += n;
    qm_tree_add(&v->tree, &want, n);
    if (compare_leaves(v, first, n, &want, err) < 0 || compare_spans(v, j, v->at, end, err) < 0)
        return -1;
    v->at = end;
    return 0;
}

static void
compare_digest(struct verify *v, const char *key, const struct qm_sha256 *got, const char *what)
{
    const char *hex = qm_field_word(qm_manifest_head(v->reader), key);
    struct qm_sha256 want;

    if (hex && qm_sha256_parse(hex, &want) && qm_sha256_same(&want, got))
        return;
    v->result->digests_differ++;
    find(v, "%s is %s, and not what the manifest has", what, qm_sha256_hex(got).text);
}

static int
compare_all(struct verify *v, struct qmeld_error *err)
{
    struct qm_sha256 got;

    for (;;) {
        struct json_object *leaf;

        if (qm_manifest_next_leaf(v->reader, &leaf, err) < 0)
            return -1;
        if (!leaf)
            break;
        if (compare_leaf(v, leaf, err) < 0)
            return -1;
    }
    if (v->at != v->size)
        return qm_manifest_bad(v->reader, "its leaves do not reach the end of the disk", err);
    while (v->stream) { /* what lies behind counts for the digest */
        if (ensure_chunk(v, v->chunk ? v->chunk->guest.g + v->chunk->len : 0, err) < 0)
            return -1;
        if (!v->chunk)
            break;
    }
    tell_leaves(v);
    tell_spans(v);
    got = qm_tree_root(&v->tree, v->size, v->leaf);
    compare_digest(v, "merkle_root", &got, "the root over the leaves");
    if (v->stream) {
        got = qm_digest_end(v->view);
        compare_digest(v, "sha256", &got, "the digest of the image's disk");
    }
    return 0;
}

/* ---- the inputs' files ---- */

static void
judge_input(struct verify *v, struct json_object *j, const char *path, uint64_t length,
            const struct qm_sha256 *got)
{
    const char *hex = qm_field_word(j, "sha256");
    struct qm_sha256 want;
    uint64_t was;

    if (!hex) {
        v->result->unreadable++;
        find(v, "input %.1000s has no digest: it could not be read to its end", path);
        return;
    }
    if (qm_sha256_parse(hex, &want) && qm_sha256_same(&want, got) &&
        qm_field_number(j, "length", &was) && was == length)
        return;
    v->result->inputs_differ++;
    find(v, "input %.1000s is another file, or has changed", path);
}

/* The digest of one file, and what that means; -1 only if all is to end. */
static int
digest_input(struct verify *v, struct json_object *j, const char *path, const struct qm_file *file,
             struct qmeld_error *err)
{
    const struct qm_evidence_config config = {.files = &file,
                                              .n = 1,
                                              .threads = 1,
                                              .progress = v->opts->progress,
                                              .opaque = v->opts->opaque};
    struct qmeld_error why = {0};
    struct qm_evidence *e = NULL;
    struct qm_sha256 got;
    int rc;

    rc = qm_evidence_begin(&config, &e, &why);
    if (rc == 0)
        rc = qm_evidence_end(e, &got, NULL, &why);
    qm_evidence_free(e);
    if (rc == 0)
        judge_input(v, j, path, file->size, &got);
    else if (why.code == QMELD_CANCELED)
        *err = why;
    else
        find_unreadable(v, "an input cannot be read", &why);
    return rc < 0 && why.code == QMELD_CANCELED ? -1 : 0;
}

static int
compare_input(struct verify *v, struct json_object *j, struct qmeld_error *err)
{
    QM_FREE char *path = qm_manifest_name(j, "path");
    struct qmeld_error why = {0};
    struct qm_file *file;
    int rc;

    if (!path)
        return qm_manifest_bad(v->reader, "an input has no path", err);
    if (qm_file_open(path, &file, &why) < 0) {
        find_unreadable(v, "an input cannot be opened", &why);
        return 0;
    }
    rc = digest_input(v, j, path, file, err);
    qm_file_close(file);
    return rc;
}

/* They are elsewhere: the files of the chain there, in the order in which a manifest lists them (manifest.c). */
static int
compare_moved(struct verify *v, struct json_object *list, struct qmeld_error *err)
{
    const size_t n = json_object_array_length(list), here = qm_chain_files(v->inputs, NULL);
    QM_FREE const struct qm_file **files = calloc(here, sizeof *files);

    if (!files)
        return qm_fail_nomem(err, "the inputs' files");
    (void)qm_chain_files(v->inputs, files);
    if (here != n) {
        v->result->inputs_differ += n > here ? n - here : here - n;
        find(v, "the inputs are %zu files, and were %zu", here, n);
    }
    for (size_t i = 0; i < qm_min(n, here); i++)
        if (digest_input(v, json_object_array_get_idx(list, i), files[i]->path, files[i], err) < 0)
            return -1;
    return 0;
}

static int
compare_inputs(struct verify *v, struct qmeld_error *err)
{
    struct json_object *list;

    if (list_inputs(v->reader, &list, err) < 0)
        return -1;
    v->result->inputs = json_object_array_length(list);
    if (v->opts->inputs && !v->inputs) {
        v->result->unreadable += v->result->inputs; /* why was told when it was to be opened */
        return 0;
    }
    if (v->opts->inputs)
        return compare_moved(v, list, err);
    for (size_t i = 0; i < json_object_array_length(list); i++)
        if (compare_input(v, json_object_array_get_idx(list, i), err) < 0)
            return -1;
    return 0;
}

int
qmeld_verify(const char *path, const struct qmeld_verify_options *opts,
             struct qmeld_verify_result *out, struct qmeld_error *err)
{
    static const struct qmeld_verify_options none;
    struct verify v = {.manifest = path, .opts = opts ? opts : &none, .result = out};
    int rc;

    memset(err, 0, sizeof *err);
    memset(out, 0, sizeof *out);
    rc = open_all(&v, err);
    if (rc == 0)
        rc = compare_all(&v, err);
    if (rc == 0)
        rc = compare_inputs(&v, err);
    qm_stream_free(v.stream);
    qm_map_close(v.map);
    qm_chain_close(v.image);
    qm_chain_close(v.inputs);
    qm_digest_free(v.digest);
    qm_digest_free(v.view);
    qm_manifest_close(v.reader);
    return rc;
}
