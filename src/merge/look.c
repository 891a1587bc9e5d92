/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * look.c - the looking calls of qmeld.h: open a chain, describe a layer, map, read.
 *
 * Why.  The chain and the map think in layers and answers; callers of the library and of `qemu-img
 * map` think in extents with depth, present, zero and data.  The translation, and nothing else,
 * is here.  Its rules are those of qemu 7.2 (qemu-img.c: get_block_status, entry_mergeable;
 * block/io.c: bdrv_co_block_status).
 */
#include "dependants.h"
#include "lock.h"
#include "map.h"
#include "qcow2.h"
#include "qcow2_bitmap.h"
#include "qcow2_prealloc.h"

#include <string.h>

/* What qmeld_chain_layer has said about a layer: it stays until the chain is closed. */
struct detail {
    struct qm_snapshots snapshots;
    struct qm_bitmap_list bitmaps;
    struct qmeld_snapshot_info *snapshot_infos;
    struct qmeld_bitmap_info *bitmap_infos;
    bool done;
};

enum prealloc { NOT_ASKED, PREALLOCATED, NOT_PREALLOCATED };

struct qmeld_chain {
    struct qm_chain *c;
    struct detail *details;  /* one a layer */
    char **holders;          /* one a layer, found for all at once; NULL: not looked for yet */
    enum prealloc *prealloc; /* one a layer: is its metadata preallocated */
    bool readable;           /* all layers' bytes are within our reach */
};

/* ---- open and close ---- */

static int
view_snapshot(struct qmeld_chain *chain, const char *name, struct qmeld_error *err)
{
    const struct qm_layer *top = &chain->c->layers[chain->c->n - 1];
    struct qm_qcow2 *q = qm_qcow2_of(top->img);

    if (!q)
        return qm_fail(err, QMELD_USAGE, qm_in(top->path),
                       "a raw image has no internal snapshots: leave out their name");
    return qm_qcow2_view_snapshot(q, name, err);
}

int
qmeld_chain_open(const char *path, const struct qmeld_open_options *opts, struct qmeld_chain **out,
                 struct qmeld_error *err)
{
    struct qm_chain_options o = {.mode = QM_CHAIN_LOOK, .describe = true, .keys = QM_KEYS_IF_GIVEN};
    struct qmeld_chain *chain;

    *out = NULL;
    memset(err, 0, sizeof *err);
    if (opts) {
        o.format = opts->format;
        o.backing_format = opts->backing_format;
        o.single = opts->single;
        o.secrets = opts->secrets;
        o.allow = opts->allow_paths;
    }
    chain = calloc(1, sizeof *chain);
    if (!chain)
        return qm_fail_nomem(err, "a chain");
    if (qm_chain_open(path, &o, &chain->c, err) < 0) {
        qmeld_chain_close(chain);
        return -1;
    }
    if (opts && opts->snapshot && view_snapshot(chain, opts->snapshot, err) < 0) {
        qmeld_chain_close(chain);
        return -1;
    }
    chain->details = calloc(chain->c->n, sizeof *chain->details);
    chain->prealloc = calloc(chain->c->n, sizeof *chain->prealloc);
    if (!chain->details || !chain->prealloc) {
        qmeld_chain_close(chain);
        return qm_fail_nomem(err, "a chain");
    }
    *out = chain;
    return 0;
}

static void
release_detail(struct detail *d)
{
    qm_snapshots_release(&d->snapshots);
    qm_bitmap_list_release(&d->bitmaps);
    free(d->snapshot_infos);
    free(d->bitmap_infos);
    memset(d, 0, sizeof *d);
}

void
qmeld_chain_close(struct qmeld_chain *chain)
{
    if (!chain)
        return;
    for (size_t i = 0; chain->c && i < chain->c->n; i++) {
        if (chain->details)
            release_detail(&chain->details[i]);
        if (chain->holders)
            free(chain->holders[i]);
    }
    free(chain->details);
    free(chain->holders);
    free(chain->prealloc);
    qm_chain_close(chain->c);
    free(chain);
}

size_t
qmeld_chain_depth(const struct qmeld_chain *chain)
{
    return chain->c->n;
}

int
qmeld_chain_find(const struct qmeld_chain *chain, const char *name, size_t *out,
                 struct qmeld_error *err)
{
    memset(err, 0, sizeof *err);
    return qm_chain_find(chain->c, name, out, err);
}

/* ---- one layer ---- */

static int
list_snapshots(const struct qm_qcow2 *q, struct detail *d, struct qmeld_error *err)
{
    if (qm_qcow2_read_snapshots(q, &d->snapshots, err) < 0)
        return -1;
    d->snapshot_infos = calloc(d->snapshots.list.n + 1, sizeof *d->snapshot_infos);
    if (!d->snapshot_infos)
        return qm_fail_nomem(err, "the list of snapshots");
    for (size_t i = 0; i < d->snapshots.list.n; i++) {
        const struct qm_snapshot *s = &d->snapshots.list.at[i];

        d->snapshot_infos[i] = (struct qmeld_snapshot_info){
            .id = s->id,
            .name = s->name,
            .vm_state_size = s->vm_state_size,
            .disk_size = s->disk_size,
            .date_sec = s->date_sec,
            .date_nsec = s->date_nsec,
            .vm_clock_nsec = s->vm_clock_nsec,
            .icount = s->icount,
        };
    }
    return 0;
}

static int
list_bitmaps(const struct qm_qcow2 *q, struct detail *d, struct qmeld_error *err)
{
    if (qm_bitmap_list_read(q, &d->bitmaps, err) < 0)
        return -1;
    d->bitmap_infos = calloc(d->bitmaps.list.n + 1, sizeof *d->bitmap_infos);
    if (!d->bitmap_infos)
        return qm_fail_nomem(err, "the list of bitmaps");
    for (size_t i = 0; i < d->bitmaps.list.n; i++) {
        const struct qm_bitmap *b = &d->bitmaps.list.at[i];

        d->bitmap_infos[i] = (struct qmeld_bitmap_info){
            .name = b->name,
            .granularity = 1ull << (b->granularity_bits & 63),
            .enabled = b->flags & QCOW2_BITMAP_AUTO,
            .in_use = b->flags & QCOW2_BITMAP_IN_USE,
        };
    }
    return 0;
}

static int
find_detail(const struct qm_layer *l, struct detail *d, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(l->img);

    if (d->done)
        return 0;
    if (q && (list_snapshots(q, d, err) < 0 || list_bitmaps(q, d, err) < 0)) {
        release_detail(d);
        return -1;
    }
    d->done = true;
    return 0;
}

/* Who uses the layers; looked for once, as the search goes through all processes. */
static int
find_holders(struct qmeld_chain *chain, struct qmeld_error *err)
{
    const size_t n = chain->c->n;
    QM_FREE const struct qm_file **files = NULL;
    QM_FREE char **holders = NULL;

    if (chain->holders)
        return 0;
    files = calloc(n, sizeof *files);
    holders = calloc(n, sizeof *holders);
    if (!files || !holders)
        return qm_fail_nomem(err, "the holders of locks");
    for (size_t i = 0; i < n; i++)
        files[i] = chain->c->layers[i].img->file;
    if (qm_lock_holders(files, n, holders, err) < 0)
        return -1;
    chain->holders = QM_TAKE(holders);
    return 0;
}

static void
describe_qcow2(const struct qm_qcow2 *q, struct qmeld_layer_info *out)
{
    static const char *const ciphers[] = {NULL, "aes", "luks"};
    const struct qcow2_header *h = &q->hdr;

    out->version = h->version;
    out->cluster_size = q->geo.cluster_size;
    out->refcount_bits = 1u << h->refcount_order;
    out->compression = h->compression == QM_ZSTD ? "zstd" : "zlib";
    out->extended_l2 = q->geo.extended_l2;
    out->lazy_refcounts = h->compatible & QCOW2_COMPAT_LAZY;
    out->dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY;
    out->corrupt = h->incompatible & QCOW2_INCOMPAT_CORRUPT;
    out->encryption = h->crypt_method < 3 ? ciphers[h->crypt_method] : "unknown";
    if (h->incompatible & QCOW2_INCOMPAT_DATA_FILE)
        out->data_file = h->data_file ? h->data_file : "";
    out->data_file_raw = h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA;
    out->unknown_autoclear = h->autoclear & ~QCOW2_AUTOCLEAR_KNOWN;
}

int
qmeld_chain_layer(struct qmeld_chain *chain, size_t layer, struct qmeld_layer_info *out,
                  struct qmeld_error *err)
{
    const struct qm_layer *l;
    const struct qm_qcow2 *q;
    const struct detail *d;

    memset(err, 0, sizeof *err);
    memset(out, 0, sizeof *out);
    if (layer >= chain->c->n)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "no layer %zu: the chain has %zu", layer,
                       chain->c->n);
    l = &chain->c->layers[layer];
    d = &chain->details[layer];
    if (find_detail(l, &chain->details[layer], err) < 0 || find_holders(chain, err) < 0 ||
        qm_file_refresh(l->img->file, err) < 0 ||
        qm_file_allocated(l->img->file, &out->allocated, err) < 0)
        return -1;
    out->path = l->path;
    out->format = l->img->ops->format;
    out->format_probed = l->format_probed;
    out->virtual_size = l->img->size;
    out->file_size = l->img->file->size;
    out->block_device = l->img->file->blockdev;
    out->nbd = !qm_file_is_local(l->img->file);
    out->backing_name = l->img->backing_name;
    out->backing_format = l->img->backing_format;
    q = qm_qcow2_of(l->img);
    if (q)
        describe_qcow2(q, out);
    out->n_snapshots = d->snapshots.list.n;
    out->snapshots = d->snapshot_infos;
    out->n_bitmaps = d->bitmaps.list.n;
    out->bitmaps = d->bitmap_infos;
    out->holder = chain->holders[layer];
    return 0;
}

/* ---- map ---- */

struct walk {
    struct qmeld_chain *chain;
    size_t bottom; /* of the layers that are looked at; */
    size_t top;    /* depths count from here */
    qmeld_extent_fn *fn;
    void *opaque;
    struct qmeld_extent held; /* not given to fn yet: the next may join it */
};

static int
give(struct walk *w, struct qmeld_error *err)
{
    if (w->fn(&w->held, w->opaque) == 0)
        return 0;
    return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped by the caller");
}

/* qemu-img.c, entry_mergeable; the file is the same where the depth is. */
static bool
joins(const struct qmeld_extent *a, const struct qmeld_extent *b)
{
    return a->length && a->zero == b->zero && a->data == b->data && a->present == b->present &&
           a->depth == b->depth && a->has_offset == b->has_offset &&
           (!a->has_offset || a->offset + a->length == b->offset);
}

static int
put(struct walk *w, const struct qmeld_extent *e, struct qmeld_error *err)
{
    if (joins(&w->held, e)) {
        w->held.length += e->length;
        return 0;
    }
    if (w->held.length && give(w, err) < 0)
        return -1;
    w->held = *e;
    return 0;
}

static int
is_preallocated(struct qmeld_chain *chain, size_t layer, bool *out, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(chain->c->layers[layer].img);
    enum prealloc *p = &chain->prealloc[layer];

    if (*p == NOT_ASKED) {
        bool yes = false;

        if (q && qm_qcow2_is_preallocated(q, &yes, err) < 0)
            return -1;
        *p = yes ? PREALLOCATED : NOT_PREALLOCATED;
    }
    *out = *p == PREALLOCATED;
    return 0;
}

/* Data of an image with preallocated metadata: QEMU looks into the file, and where that has a
 * hole, or has ended, says zero beside data. */
static int
put_preallocated(struct walk *w, const struct qm_file *file, struct qmeld_extent e,
                 struct qmeld_error *err)
{
    uint64_t left = e.length;

    while (left) {
        bool data = false;
        uint64_t n = left;

        if (e.offset < file->size) {
            if (qm_data_or_hole(file, e.offset, &data, &n, err) < 0)
                return -1;
            n = qm_min(n, left);
        }
        e.zero = !data;
        e.length = n;
        if (put(w, &e, err) < 0)
            return -1;
        e.start += n;
        e.offset += n;
        left -= n;
    }
    return 0;
}

/* Nobody answers, or the layer below has ended: zeros by the word of `layer`, which has no entry.
 * With extended L2 entries it may have a cluster there nevertheless; QEMU prints its offset. */
static int
put_unanswered(struct walk *w, size_t layer, guest_off from, uint64_t len, struct qmeld_error *err)
{
    struct qm_image *img = w->chain->c->layers[layer].img;
    const struct qm_qcow2 *q = qm_qcow2_of(img);
    const size_t depth = w->top - layer;

    while (len) {
        struct qmeld_extent e = {.start = from.g, .length = len, .depth = depth, .zero = true};

        if (q && q->geo.extended_l2) {
            struct qm_extent x;

            if (qm_image_next(img, from, len, &x, err) < 0)
                return -1;
            e.length = x.len;
            e.has_offset = x.kind == QM_ABSENT && x.has_host && !img->cipher;
            e.offset = e.has_offset ? x.host.h : 0;
        }
        if (put(w, &e, err) < 0)
            return -1;
        from.g += e.length;
        len -= e.length;
    }
    return 0;
}

static int
put_span(struct walk *w, const struct qm_map_span *s, struct qmeld_error *err)
{
    const struct qm_chain *c = w->chain->c;
    struct qmeld_extent e = {.start = s->guest.g, .length = s->len, .present = true};
    bool preallocated;

    if (s->layer == QM_NO_LAYER)
        return put_unanswered(w, w->bottom, s->guest, s->len, err);
    if (s->past_end)
        return put_unanswered(w, s->layer + 1, s->guest, s->len, err);
    e.depth = w->top - s->layer;
    /* what lies there is not what is read: QEMU tells no offset of what is encrypted */
    e.has_offset =
        s->ext.has_host && s->ext.kind != QM_COMPRESSED && !c->layers[s->layer].img->cipher;
    e.offset = e.has_offset ? s->ext.host.h : 0;
    e.zero = s->ext.kind == QM_ZERO;
    e.data = !e.zero;
    e.compressed = s->ext.kind == QM_COMPRESSED;
    if (s->ext.kind != QM_DATA || c->layers[s->layer].img->cipher)
        return put(w, &e, err);
    if (is_preallocated(w->chain, s->layer, &preallocated, err) < 0)
        return -1;
    if (preallocated)
        return put_preallocated(w, c->layers[s->layer].img->data, e, err);
    return put(w, &e, err);
}

static int
check_readable(struct qmeld_chain *chain, struct qmeld_error *err)
{
    if (!chain->readable && qm_chain_make_readable(chain->c, err) < 0)
        return -1;
    chain->readable = true;
    return 0;
}

int
qmeld_map_layers(struct qmeld_chain *chain, size_t bottom, size_t top, uint64_t start,
                 uint64_t length, qmeld_extent_fn *fn, void *opaque, struct qmeld_error *err)
{
    struct walk w = {chain, bottom, top, fn, opaque, .held = {.start = start}};
    struct qm_map_span s;
    struct qm_map *m;
    bool done = false;
    int r;

    memset(err, 0, sizeof *err);
    if (bottom > top || top >= chain->c->n)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "no layers %zu to %zu: there are %zu",
                       bottom, top, chain->c->n);
    if (check_readable(chain, err) < 0 ||
        qm_map_open(chain->c, bottom, top, qm_guest(start), length, &m, err) < 0)
        return -1;
    while ((r = qm_map_next(m, &s, &done, err)) == 0 && !done)
        if ((r = put_span(&w, &s, err)) < 0)
            break;
    qm_map_close(m);
    return r < 0 ? -1 : w.held.length ? give(&w, err) : 0;
}

int
qmeld_map(struct qmeld_chain *chain, uint64_t start, uint64_t length, qmeld_extent_fn *fn,
          void *opaque, struct qmeld_error *err)
{
    return qmeld_map_layers(chain, 0, chain->c->n - 1, start, length, fn, opaque, err);
}

int
qmeld_read(struct qmeld_chain *chain, uint64_t off, void *buf, size_t len, struct qmeld_error *err)
{
    memset(err, 0, sizeof *err);
    if (check_readable(chain, err) < 0)
        return -1;
    return qm_map_read(chain->c, 0, chain->c->n - 1, qm_guest(off), buf, len, err);
}

/* ---- who else reads through it ---- */

int
qmeld_dependants(const struct qmeld_chain *chain, size_t base, size_t top,
                 const struct qmeld_commit_options *opts, qmeld_dependant_fn *fn, void *opaque,
                 struct qmeld_error *err)
{
    const size_t n = chain->c->n;
    QM_FREE bool *hurt = calloc(n, sizeof *hurt);
    const struct qm_dependants_config config = {.chain = chain->c,
                                                .hurt = hurt,
                                                .scan = opts ? opts->scan : NULL,
                                                .n_scan = opts ? opts->n_scan : 0,
                                                .threads = opts ? opts->threads : 0};
    struct qm_dependants found = {.files = 0};
    int rc;

    memset(err, 0, sizeof *err);
    if (!hurt)
        return qm_fail_nomem(err, "looking for other images");
    if (base >= top || top >= n)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "no range of layers: base %zu, top %zu, of %zu", base, top, n);
    for (size_t i = base; i <= top; i++)
        hurt[i] = i < top || (opts && opts->files_go);
    rc = qm_dependants_find(&config, &found, err);
    for (size_t i = 0; rc == 0 && i < found.list.n; i++)
        if (fn(&found.list.at[i], opaque))
            rc = qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped by the caller");
    qm_dependants_release(&found);
    return rc;
}
