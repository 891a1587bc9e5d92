/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * same.c - the public call compare: do two images read the same?
 *
 * What counts as a difference is what `qemu-img compare` calls one (qemu 7.2, qemu-img.c, img_compare):
 * content in sectors, behind the end of the shorter image against zeros; with strict also the size, and
 * the block status of each byte.  Of a status QEMU's flag "end of file" is left out: it depends
 * on how its drivers happen to cut extents, not on the images.
 */
#include "diff.h"
#include "qcow2.h"
#include "qcow2_prealloc.h"
#include "vec.h"

#include <stdlib.h>
#include <string.h>

/* What QEMU's block status says, without place and length. */
struct status {
    bool allocated;
    bool data;
    bool zero;
    bool offset;
};

struct side {
    struct qm_chain *chain;
    struct qm_map *map; /* strict only; so the rest */
    struct qm_map_span span;
    enum { NOT_ASKED, PREALLOCATED, NOT_PREALLOCATED } * prealloc; /* of each layer */
};

struct compare {
    const struct qmeld_compare_options *opts;
    struct qmeld_compare_report *report;
    struct side a, b;
    qmeld_difference_fn *fn;
    void *fn_opaque;
    struct qm_diff_range held; /* not told yet: the next may join it */
};

static uint64_t
size_of(const struct side *s)
{
    return s->chain->layers[s->chain->n - 1].img->size;
}

/* ---- strict: status ---- */

static int
is_preallocated(struct side *s, size_t layer, bool *out, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(s->chain->layers[layer].img);

    if (s->prealloc[layer] == NOT_ASKED) {
        *out = false;
        if (q && qm_qcow2_is_preallocated(q, out, err) < 0)
            return -1;
        s->prealloc[layer] = *out ? PREALLOCATED : NOT_PREALLOCATED;
    }
    *out = s->prealloc[layer] == PREALLOCATED;
    return 0;
}

/* Of data in such an image: where the file has a hole, or has ended, QEMU says zero as well. */
static int
look_into_file(const struct side *s, uint64_t at, struct status *out, uint64_t *len,
               struct qmeld_error *err)
{
    const struct qm_file *file = s->chain->layers[s->span.layer].img->data;
    const uint64_t host = s->span.ext.host.h + (at - s->span.guest.g);
    bool data = false;
    uint64_t n = *len;

    if (host < file->size && qm_data_or_hole(file, host, &data, &n, err) < 0)
        return -1;
    out->zero = !data;
    *len = qm_min(*len, n);
    return 0;
}

/* Nobody answers: the bottom layer's word, which with extended L2 entries may have a cluster there. */
static int
status_of_nobody(const struct side *s, uint64_t at, struct status *out, uint64_t *len,
                 struct qmeld_error *err)
{
    struct qm_image *bottom = s->chain->layers[0].img;
    const struct qm_qcow2 *q = qm_qcow2_of(bottom);
    struct qm_extent e;

    *out = (struct status){.zero = true};
    if (!q || !q->geo.extended_l2)
        return 0;
    if (qm_image_next(bottom, qm_guest(at), *len, &e, err) < 0)
        return -1;
    out->offset = e.kind == QM_ABSENT && e.has_host && !bottom->cipher;
    *len = e.len;
    return 0;
}

/* The status at `at`, and how far it holds. */
static int
status_at(struct side *s, uint64_t at, struct status *out, uint64_t *len, struct qmeld_error *err)
{
    const struct qm_extent *e = &s->span.ext;
    bool done = false, preallocated;
    const struct qm_cipher *cipher; /* QEMU tells no offset of what is encrypted */

    while (s->span.guest.g + s->span.len <= at && !done)
        if (qm_map_next(s->map, &s->span, &done, err) < 0)
            return -1;
    *len = s->span.guest.g + s->span.len - at;
    if (s->span.layer == QM_NO_LAYER)
        return status_of_nobody(s, at, out, len, err);
    cipher = s->chain->layers[s->span.layer].img->cipher;
    *out = (struct status){.allocated = true,
                           .data = e->kind == QM_DATA || e->kind == QM_COMPRESSED,
                           .zero = e->kind == QM_ZERO,
                           .offset = e->has_host && e->kind != QM_COMPRESSED && !cipher};
    if (s->span.past_end || e->kind != QM_DATA || cipher)
        return 0;
    if (is_preallocated(s, s->span.layer, &preallocated, err) < 0)
        return -1;
    return preallocated ? look_into_file(s, at, out, len, err) : 0;
}

static int
open_status(struct side *s, struct qmeld_error *err)
{
    s->prealloc = calloc(s->chain->n, sizeof *s->prealloc);
    if (!s->prealloc)
        return qm_fail_nomem(err, "comparing");
    return qm_map_open(s->chain, 0, s->chain->n - 1, qm_guest(0), UINT64_MAX, &s->map, err);
}

/* *out: where the status differs first; the size if nowhere.  Both are of one size. */
static int
find_status(struct compare *c, uint64_t *out, struct qmeld_error *err)
{
    const uint64_t size = size_of(&c->a);
    uint64_t at = 0;

    if (open_status(&c->a, err) < 0 || open_status(&c->b, err) < 0)
        return -1;
    while (at < size) {
        struct status x, y;
        uint64_t n, m;

        if (status_at(&c->a, at, &x, &n, err) < 0 || status_at(&c->b, at, &y, &m, err) < 0)
            return -1;
        if (x.allocated != y.allocated || x.data != y.data || x.zero != y.zero ||
            x.offset != y.offset)
            break;
        at += qm_min(n, m);
    }
    *out = at;
    qm_map_close(QM_TAKE(c->a.map)); /* one map over an image at a time */
    qm_map_close(QM_TAKE(c->b.map));
    return 0;
}

/* ---- content ---- */

static void
note(struct compare *c, enum qmeld_difference kind, uint64_t offset)
{
    struct qmeld_compare_report *r = c->report;

    if (r->difference != QMELD_SAME)
        return;
    r->difference = kind;
    r->offset = offset;
}

/* *more: the caller wants to hear of others. */
static void
tell(struct compare *c, bool *more)
{
    const struct qm_diff_range r = c->held;

    *more = true;
    c->held.len = 0;
    if (r.len > 0 && c->fn)
        *more = c->fn(r.guest.g, r.len, c->fn_opaque) == 0;
}

static int
walk(struct compare *c, struct qm_diff *d, struct qmeld_error *err)
{
    bool more = true;

    while (more) {
        struct qm_diff_range r;
        bool done;

        if (qm_diff_next(d, &r, &done, err) < 0)
            return -1;
        if (done) {
            tell(c, &more);
            break;
        }
        note(c, QMELD_DIFFERENT_CONTENT, r.guest.g);
        c->report->bytes_different += r.len;
        if (c->held.len > 0 && c->held.guest.g + c->held.len == r.guest.g) {
            c->held.len += r.len;
        } else {
            tell(c, &more);
            c->held = r;
        }
        more = more && c->fn;
    }
    return 0;
}

static int
compare_content(struct compare *c, uint64_t end, struct qmeld_error *err)
{
    const struct qm_diff_config config = {.a = {c->a.chain, c->a.chain->n - 1},
                                          .b = {c->b.chain, c->b.chain->n - 1},
                                          .end = end,
                                          .unit = QM_SECTOR,
                                          .threads = c->opts->threads,
                                          .bandwidth = c->opts->bandwidth,
                                          .phase = "compare",
                                          .progress = c->opts->progress,
                                          .opaque = c->opts->opaque};
    struct qm_diff_costs costs;
    struct qm_diff *d;
    int rc;

    if (qm_diff_open(&config, &d, err) < 0)
        return -1;
    rc = walk(c, d, err);
    costs = qm_diff_costs(d);
    c->report->bytes_read = costs.bytes_read;
    c->report->bytes_shared = costs.same_by_map;
    c->report->failed_at = costs.reading ? 2 : 1;
    qm_diff_close(d);
    return rc;
}

static int
compare(struct compare *c, struct qmeld_error *err)
{
    struct qmeld_compare_report *r = c->report;
    uint64_t end = qm_max(r->size_a, r->size_b), same = end;

    if (c->opts->strict && r->size_a != r->size_b) {
        note(c, QMELD_DIFFERENT_SIZE, 0);
        return 0;
    }
    if (c->opts->strict && find_status(c, &same, err) < 0)
        return -1;
    if (!c->fn) /* what lies behind the first difference of status is nobody's question */
        end = same;
    if (compare_content(c, end, err) < 0)
        return -1;
    if (same < end || (c->opts->strict && same < r->size_a))
        if (r->difference == QMELD_SAME || r->offset >= same) {
            r->difference = QMELD_DIFFERENT_STATUS;
            r->offset = same;
        }
    return 0;
}

static int
open_side(const char *path, const char *format, const struct qmeld_compare_options *opts,
          struct side *out, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK,
                                         .format = format,
                                         .backing_format = opts->backing_format,
                                         .allow = opts->allow_paths,
                                         .secrets = opts->secrets};

    return qm_chain_open(path, &how, &out->chain, err);
}

static void
close_side(struct side *s)
{
    qm_map_close(s->map);
    qm_chain_close(s->chain);
    free(s->prealloc);
}

int
qmeld_compare(const char *a, const char *b, const struct qmeld_compare_options *opts,
              qmeld_difference_fn *fn, void *fn_opaque, struct qmeld_compare_report *report,
              struct qmeld_error *err)
{
    static const struct qmeld_compare_options defaults;
    struct compare c = {
        .opts = opts ? opts : &defaults, .report = report, .fn = fn, .fn_opaque = fn_opaque};
    int rc;

    memset(err, 0, sizeof *err);
    memset(report, 0, sizeof *report);
    rc = open_side(a, c.opts->format_a, c.opts, &c.a, err);
    if (rc == 0)
        rc = open_side(b, c.opts->format_b, c.opts, &c.b, err);
    if (rc == 0) {
        report->size_a = size_of(&c.a);
        report->size_b = size_of(&c.b);
        report->failed_at = 1;
        rc = compare(&c, err);
    }
    if (rc == 0)
        report->failed_at = 0;
    close_side(&c.a);
    close_side(&c.b);
    return rc;
}
