/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "carry.h"

#include "map.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Bits of all layers together: 64 GiB are those of 128 bitmaps as large as QEMU lets them be.  A forged file can
 * claim more, in a few clusters, than anybody will wait for. */
#define MAX_BITS_BYTES (64ull << 30)

/* ---- what there is ---- */

/* A name, over the layers looked at so far. */
struct state {
    char *name;
    bool in_target, valid_in_target, enabled_in_target;
    size_t sources;            /* layers but the target that have it */
    size_t layer;              /* the uppermost of them; if it is broken, the one by which it is */
    bool broken;               /* in some layer it says nothing */
    bool enabled;              /* in the uppermost layer that has it */
    uint32_t granularity_bits; /* of the target's, or else the finest */
};

struct states {
    QM_VEC(struct state) list; /* sorted by name */
    bool unknown;              /* a layer's bitmaps could not be read, and that is not to matter */
    uint64_t bits_bytes;
};

static void
release(struct states *s)
{
    QM_VEC_EACH (n, &s->list)
        free(n->name);
    qm_vec_release(&s->list);
}

static const struct qm_qcow2 *
qcow2_of(const struct qm_carry *c, size_t layer)
{
    struct qm_image *img = c->chain->layers[layer].img;

    return img ? qm_qcow2_of(img) : NULL;
}

static uint64_t
target_cluster(const struct qm_carry *c)
{
    return c->new_cluster ? c->new_cluster : qcow2_of(c, c->target)->geo.cluster_size;
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(((const struct qm_bitmap *)a)->name, ((const struct qm_bitmap *)b)->name);
}

/* Sorted; empty for raw. */
static int
read_list(const struct qm_carry *c, size_t layer, struct qm_bitmap_list *out,
          struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qcow2_of(c, layer);

    memset(out, 0, sizeof *out);
    if (!q)
        return 0;
    if (qm_bitmap_list_read(q, out, err) < 0)
        return -1;
    if (out->list.n)
        qsort(out->list.at, out->list.n, sizeof *out->list.at, by_name);
    return 0;
}

/* Its bits can be read, and make sense. */
static int
is_readable(const struct qm_carry *c, size_t layer, const struct qm_bitmap *m, struct states *s,
            bool *out, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qcow2_of(c, layer);

    *out = qm_bitmap_is_valid(m);
    if (!*out || layer == c->target || c->mode != QMELD_BITMAPS_MERGE)
        return 0;
    s->bits_bytes += (uint64_t)m->table_entries * q->geo.cluster_size;
    if (s->bits_bytes > MAX_BITS_BYTES)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
                       "the bitmaps of the merged layers are too large to be put together: merge "
                       "with --bitmaps=keep or --bitmaps=drop");
    if (qm_bitmap_check_table(q, m, err) == 0)
        return 0;
    if (err->code != QMELD_CORRUPT)
        return -1;
    *err = (struct qmeld_error){.disk = err->disk};
    *out = false;
    return 0;
}

static void
note(const struct qm_carry *c, size_t layer, const struct qm_bitmap *m, bool readable,
     struct state *n)
{
    const bool enabled = m->flags & QCOW2_BITMAP_AUTO;

    if (layer == c->target) {
        n->in_target = true;
        n->valid_in_target = readable;
        n->enabled_in_target = enabled;
        n->granularity_bits = m->granularity_bits;
    } else {
        n->sources++;
        if (!n->in_target && (n->sources == 1 || m->granularity_bits < n->granularity_bits))
            n->granularity_bits = m->granularity_bits;
    }
    n->enabled = enabled;
    if (!n->broken && layer != c->target)
        n->layer = layer;
    if (!readable && !n->broken) {
        n->broken = true;
        n->layer = layer;
    }
}

/* Both sorted: one pass. */
static int
join(const struct qm_carry *c, size_t layer, struct qm_bitmap_list *list, struct states *s,
     struct qmeld_error *err)
{
    struct states joined = {.bits_bytes = s->bits_bytes, .unknown = s->unknown};
    size_t k = 0;

    if (!qm_vec_reserve(&joined.list, s->list.n + list->list.n))
        return qm_fail_nomem(err, "the names of bitmaps");
    QM_VEC_EACH (m, &list->list) {
        struct state n = {.layer = layer};
        bool readable;

        while (k < s->list.n && strcmp(s->list.at[k].name, m->name) < 0)
            joined.list.at[joined.list.n++] = s->list.at[k++];
        if (is_readable(c, layer, m, &joined, &readable, err) < 0) {
            while (k < s->list.n) /* whoever releases them has one list */
                joined.list.at[joined.list.n++] = s->list.at[k++];
            free(s->list.at);
            *s = joined;
            return -1;
        }
        if (k < s->list.n && strcmp(s->list.at[k].name, m->name) == 0)
            n = s->list.at[k++];
        else
            n.name = QM_TAKE(m->name);
        note(c, layer, m, readable, &n);
        joined.list.at[joined.list.n++] = n;
    }
    while (k < s->list.n)
        joined.list.at[joined.list.n++] = s->list.at[k++];
    free(s->list.at);
    *s = joined;
    return 0;
}

/* Bitmaps that nobody is to have need not be known: of a target only, as it keeps what is not named. */
static bool
is_no_matter(const struct qm_carry *c, size_t layer, enum qmeld_code code)
{
    return c->mode == QMELD_BITMAPS_DROP && layer != c->target &&
           (code == QMELD_CORRUPT || code == QMELD_UNSUPPORTED ||
            (c->new_cluster && code == QMELD_IO));
}

static int
look(const struct qm_carry *c, struct states *s, struct qmeld_error *err)
{
    for (size_t i = c->base; i <= c->top; i++) {
        struct qm_bitmap_list list;
        int rc = read_list(c, i, &list, err);

        if (rc < 0 && is_no_matter(c, i, err->code)) {
            *err = (struct qmeld_error){.disk = err->disk};
            s->unknown = true;
            continue;
        }
        if (rc < 0 && i != c->target &&
            (err->code == QMELD_CORRUPT || err->code == QMELD_UNSUPPORTED)) {
            const size_t len = strlen(err->what);

            snprintf(err->what + len, sizeof err->what - len,
                     ", or merge without the layers' bitmaps, with --bitmaps=drop");
        }
        if (rc == 0)
            rc = join(c, i, &list, s, err);
        qm_bitmap_list_release(&list);
        if (rc < 0)
            return -1;
    }
    return 0;
}

/* ---- what becomes of it ---- */

static bool
can_hold(const struct qm_carry *c)
{
    const struct qm_qcow2 *q = c->new_cluster ? NULL : qcow2_of(c, c->target);

    return c->new_cluster || (q && q->hdr.version >= 3);
}

static int
refuse_target(const struct qm_carry *c, const struct state *n, struct qmeld_error *err)
{
    const bool raw = !qcow2_of(c, c->target);

    return qm_fail(
        err, QMELD_USAGE, qm_in(c->chain->layers[n->layer].path),
        "its bitmap \"%.100s\" would be lost, as the base is %s, which has no bitmaps: merge with "
        "--bitmaps=drop if no backup needs it%s",
        n->name, raw ? "raw" : "a version 2 image",
        raw ? "" : ", or upgrade the base with `qemu-img amend -o compat=1.1`");
}

/* False: nothing is to be said of it. */
static bool
decide(const struct qm_carry *c, const struct states *s, const struct state *n,
       struct qm_bitmap_order *out)
{
    const bool merge = c->mode == QMELD_BITMAPS_MERGE;

    *out =
        (struct qm_bitmap_order){.deed = QM_BITMAP_LEAVE, .layer = n->layer, .broken = n->broken};
    if (n->sources == 0 && (merge || (n->valid_in_target && !s->unknown)))
        return false;
    if (!merge) {
        out->deed = n->in_target ? QM_BITMAP_REMOVE : QM_BITMAP_LEAVE;
        return true;
    }
    if (n->broken) {
        out->deed = n->in_target && n->valid_in_target ? QM_BITMAP_VOID : QM_BITMAP_LEAVE;
        return true;
    }
    out->deed = QM_BITMAP_CARRY;
    out->created = !n->in_target;
    out->enabled = n->enabled;
    out->marks = n->in_target && n->enabled_in_target && c->target == c->base;
    out->granularity_bits =
        n->in_target
            ? n->granularity_bits
            : qm_bitmap_granularity_for(target_cluster(c), n->granularity_bits, c->new_size);
    return true;
}

int
qm_carry_plan(const struct qm_carry *c, struct qm_bitmap_orders *out, struct qmeld_error *err)
{
    struct states s = {.unknown = false};
    int rc = 0;

    memset(out, 0, sizeof *out);
    if (c->mode == QMELD_BITMAPS_KEEP)
        return 0;
    rc = look(c, &s, err);
    for (size_t i = 0; rc == 0 && i < s.list.n; i++) {
        struct state *n = &s.list.at[i];
        struct qm_bitmap_order o;
        const bool nowhere =
            c->mode == QMELD_BITMAPS_MERGE && n->sources && !n->broken && !can_hold(c);

        if (nowhere && !c->layers_stay) {
            rc = refuse_target(c, n, err);
            break;
        }
        if (nowhere)
            o = (struct qm_bitmap_order){.deed = QM_BITMAP_LEAVE, .layer = n->layer};
        else if (!decide(c, &s, n, &o))
            continue;
        o.name = n->name;
        if (!qm_vec_push(&out->list, &o))
            rc = qm_fail_nomem(err, "what becomes of bitmaps");
        else
            n->name = NULL; /* it went to the caller */
    }
    release(&s);
    return rc;
}

int
qm_carry_check(const struct qm_carry *c, const struct qm_bitmap_orders *orders,
               struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qcow2_of(c, c->target);

    return q ? qm_bitmap_orders_check(q, orders, c->new_size, err) : 0;
}

void
qm_carry_told_free(struct qmeld_merged_bitmap *told, size_t n)
{
    for (size_t i = 0; told && i < n; i++) {
        free(told[i].name);
        free(told[i].layer);
    }
    free(told);
}

static enum qmeld_bitmap_fate
fate_of(const struct qm_bitmap_order *o)
{
    switch (o->deed) {
    case QM_BITMAP_CARRY:
        return o->created ? QMELD_BITMAP_CREATED : QMELD_BITMAP_MERGED;
    case QM_BITMAP_VOID:
        return QMELD_BITMAP_VOID;
    case QM_BITMAP_REMOVE:
        return QMELD_BITMAP_REMOVED;
    case QM_BITMAP_LEAVE:
        break;
    }
    return QMELD_BITMAP_LEFT;
}

int
qm_carry_tell(const struct qm_carry *c, const struct qm_bitmap_orders *orders,
              struct qmeld_merged_bitmap **out, size_t *out_n, struct qmeld_error *err)
{
    struct qmeld_merged_bitmap *told = calloc(orders->list.n + 1, sizeof *told);
    size_t n = 0;

    *out = NULL;
    *out_n = 0;
    if (!told)
        return qm_fail_nomem(err, "the report");
    QM_VEC_EACH (o, &orders->list) {
        struct qmeld_merged_bitmap *b = &told[n++];

        *b = (struct qmeld_merged_bitmap){
            .name = strdup(o->name),
            .fate = fate_of(o),
            .layer = strdup(c->chain->layers[o->layer].path),
            .unreadable = o->broken,
            .enabled = o->enabled,
            .granularity = o->deed == QM_BITMAP_CARRY ? 1ull << o->granularity_bits : 0};
        if (!b->name || !b->layer) {
            qm_carry_told_free(told, n);
            return qm_fail_nomem(err, "the report");
        }
    }
    *out = told;
    *out_n = n;
    return 0;
}

size_t
qm_carry_n_created(const struct qm_bitmap_orders *orders)
{
    size_t n = 0;

    QM_VEC_EACH (o, &orders->list)
        n += o->deed == QM_BITMAP_CARRY && o->created;
    return n;
}

bool
qm_carry_has_work(const struct qm_bitmap_orders *orders)
{
    QM_VEC_EACH (o, &orders->list)
        if (o->deed != QM_BITMAP_LEAVE)
            return true;
    return false;
}

/* ---- bits ---- */

/* A name while the layers are gone through from the base up. */
struct carried {
    size_t bitmap;  /* of qm_bitmaps_mark_in */
    bool gets;      /* it gets marks here */
    bool recording; /* a layer below has it enabled; what layers above write is a change, whether
                     * they have it or not */
    uint64_t size;  /* of the layer below, and the largest since it records */
    uint64_t largest;
};

struct import {
    const struct qm_carry *c;
    const struct qm_bitmap_orders *orders;
    struct qm_bitmaps *bitmaps;
    struct carried *of; /* beside the orders */
    bool *gap;          /* likewise: this layer lacks it, and it records below */
};

struct one {
    struct qm_bitmaps *bitmaps;
    size_t bitmap;
};

static int
take_run(guest_off from, uint64_t len, void *opaque, struct qmeld_error *err)
{
    const struct one *to = opaque;

    (void)err;
    qm_bitmaps_mark_in(to->bitmaps, to->bitmap, from, len);
    return 0;
}

/* What a layer has, it got while it was the active one. */
static int
mark_gaps(const struct import *in, size_t layer, struct qmeld_error *err)
{
    struct qm_map *map;
    int rc = qm_map_open(in->c->chain, layer, layer, qm_guest(0), UINT64_MAX, &map, err);

    while (rc == 0) {
        struct qm_map_span span;
        bool done;

        rc = qm_map_next(map, &span, &done, err);
        if (rc < 0 || done)
            break;
        if (span.layer == QM_NO_LAYER)
            continue;
        for (size_t k = 0; k < in->orders->list.n; k++)
            if (in->gap[k])
                qm_bitmaps_mark_in(in->bitmaps, in->of[k].bitmap, span.guest, span.len);
    }
    qm_map_close(map);
    return rc;
}

/* What a shorter layer cut off reads as zeros in a longer one above it: that is a change, and no layer's data. */
static void
mark_cut(const struct import *in, size_t k, uint64_t size)
{
    struct carried *n = &in->of[k];

    if (!n->recording)
        return;
    if (size > n->size && n->largest > n->size)
        qm_bitmaps_mark_in(in->bitmaps, n->bitmap, qm_guest(n->size),
                           qm_min(size, n->largest) - n->size);
    n->size = size;
    n->largest = qm_max(n->largest, size);
}

static void
begin_recording(struct carried *n, uint64_t size)
{
    if (!n->recording)
        n->size = n->largest = size;
    n->recording = true;
}

/* One layer's bits of a name. */
static int
take_layer(const struct import *in, size_t layer, const struct qm_bitmap *m, size_t k,
           struct qmeld_error *err)
{
    struct one to = {.bitmaps = in->bitmaps, .bitmap = in->of[k].bitmap};

    if (layer != in->c->target &&
        qm_bitmap_each_run(qcow2_of(in->c, layer), m, take_run, &to, err) < 0)
        return -1;
    if ((m->flags & QCOW2_BITMAP_AUTO) &&
        !in->orders->list.at[k].marks) /* else it is told anyway */
        begin_recording(&in->of[k], in->c->chain->layers[layer].img->size);
    return 0;
}

static int
import_layer(struct import *in, size_t layer, const struct qm_bitmap_list *list,
             struct qmeld_error *err)
{
    const uint64_t size = in->c->chain->layers[layer].img->size;
    bool any = false;
    size_t at = 0;

    for (size_t k = 0; k < in->orders->list.n; k++) {
        const struct qm_bitmap_order *o = &in->orders->list.at[k];

        in->gap[k] = false;
        while (at < list->list.n && strcmp(list->list.at[at].name, o->name) < 0)
            at++;
        if (!in->of[k].gets)
            continue;
        mark_cut(in, k, size);
        if (at < list->list.n && strcmp(list->list.at[at].name, o->name) == 0) {
            if (take_layer(in, layer, &list->list.at[at], k, err) < 0)
                return -1;
        } else {
            in->gap[k] = in->of[k].recording;
            any = any || in->gap[k];
        }
    }
    return any ? mark_gaps(in, layer, err) : 0;
}

static int
import(struct import *in, struct qmeld_error *err)
{
    bool any = false;

    for (size_t k = 0; k < in->orders->list.n; k++) {
        const struct qm_bitmap_order *o = &in->orders->list.at[k];

        in->of[k].gets =
            o->deed == QM_BITMAP_CARRY && qm_bitmaps_find(in->bitmaps, k, &in->of[k].bitmap);
        any = any || in->of[k].gets;
    }
    for (size_t i = in->c->base + !in->c->new_cluster; any && i <= in->c->top; i++) {
        struct qm_bitmap_list list;
        int rc = read_list(in->c, i, &list, err);

        if (rc == 0)
            rc = import_layer(in, i, &list, err);
        qm_bitmap_list_release(&list);
        if (rc < 0)
            return -1;
    }
    return 0;
}

int
qm_carry_import(const struct qm_carry *c, const struct qm_bitmap_orders *orders,
                struct qm_bitmaps *bitmaps, struct qmeld_error *err)
{
    struct import in = {.c = c, .orders = orders, .bitmaps = bitmaps};
    int rc;

    if (!bitmaps || orders->list.n == 0)
        return 0;
    in.of = calloc(orders->list.n, sizeof *in.of);
    in.gap = calloc(orders->list.n, sizeof *in.gap);
    rc = in.of && in.gap ? import(&in, err) : qm_fail_nomem(err, "bitmaps");
    free(in.of);
    free(in.gap);
    return rc;
}
