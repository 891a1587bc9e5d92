/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stream_work.c - what workers do for a chunk: read it, look at it, digest it, compress it, put it where it goes.
 *
 * What can be had without looking at it is not read, unless somebody wants its digest: bytes that the target shares with
 * a layer's file (share.h), and compressed clusters that it takes as they are (qcow2_pack.h).
 */
#include "stream_int.h"

#include <assert.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* What cannot be read at once is tried in these. */
#define LARGE_PIECE (64u << 10)
#define SMALL_PIECE 4096u
#define SECTOR      512u

#define BOUNCE (1u << 20) /* copied at once, where sharing was refused */

bool
qm_stream_reads_zero(const struct qm_stream *s, const struct qm_map_span *span)
{
    if (span->ext.lost && s->cfg.salvage->fill)
        return false;
    return span->ext.kind == QM_ZERO || span->ext.kind == QM_ABSENT;
}

uint64_t
qm_stream_shareable(const struct qm_stream *s, const struct qm_map_span *span, uint64_t *out_head)
{
    const uint64_t host = span->ext.host.h;
    uint64_t size;

    if (!s->routes || span->ext.kind != QM_DATA || !s->routes[span->layer])
        return 0;
    size = s->routes[span->layer]->from->size;
    if (host >= size)
        return 0;
    return qm_route_shareable(s->routes[span->layer], span->guest.g, host,
                              qm_min(span->len, size - host), out_head);
}

/* The target takes the compressed cluster as it is. */
static bool
passes(const struct qm_stream *s, const struct qm_map_span *span)
{
    struct qm_qcow2 *from;

    if (!s->cfg.pass_to || span->ext.kind != QM_COMPRESSED)
        return false;
    from = qm_qcow2_of(s->cfg.chain->layers[span->layer].img);
    return qm_pack_may_pass(s->cfg.pass_to, from, &span->ext);
}

static const struct qm_image *
image_of(const struct qm_stream *s, const struct qm_map_span *span)
{
    return s->cfg.chain->layers[span->layer].img;
}

/* ---- salvage ---- */

static bool
may_salvage(const struct qm_stream *s, const struct qmeld_error *err)
{
    return s->cfg.salvage && (err->code == QMELD_IO || err->code == QMELD_CORRUPT);
}

static void
fill(const struct qm_stream *s, unsigned char *to, uint64_t guest, uint64_t len)
{
    const struct qm_salvage *with = s->cfg.salvage;

    if (!with->fill) {
        memset(to, 0, len);
        return;
    }
    for (uint64_t i = 0; i < len; i++)
        to[i] = with->fill[(guest + i) % with->fill_len];
}

/* [at, at + len) of span, read or lost, becomes one of the chunk's new spans. */
static int
keep_part(struct qm_stream_worker *w, const struct qm_map_span *span, uint64_t at, uint64_t len,
          enum qm_lost lost, struct qmeld_error *err)
{
    struct qm_map_span part = *span;
    struct qm_map_span *last = w->spans.n ? qm_vec_last(&w->spans) : NULL;

    part.guest = qm_guest(at);
    part.len = len;
    part.ext = qm_extent_part(&span->ext, at - span->guest.g, len);
    if (lost) {
        part.ext =
            (struct qm_extent){.guest = part.guest, .len = len, .kind = QM_ZERO, .lost = lost};
        if (last && last->ext.lost == lost && last->layer == part.layer &&
            last->guest.g + last->len == at) {
            last->len += len;
            last->ext.len += len;
            return 0;
        }
    }
    return qm_vec_push(&w->spans, &part) ? 0 : qm_fail_nomem(err, "the spans of a chunk");
}

/* Plain bytes that could not be read at once: piece by piece, down to a sector. */
static int
read_pieces(struct qm_stream *s, struct qm_stream_worker *w, const struct qm_map_span *span,
            unsigned char *to, uint64_t at, uint64_t len, struct qmeld_error *err)
{
    const struct qm_extent part = qm_extent_part(&span->ext, at - span->guest.g, len);
    const uint64_t piece = len > LARGE_PIECE   ? LARGE_PIECE
                           : len > SMALL_PIECE ? SMALL_PIECE
                                               : SECTOR;
    struct qmeld_error why = {0};

    if (qm_extent_read(s->cfg.chain->layers[span->layer].img, &part, w->codec, to, &why) == 0)
        return keep_part(w, span, at, len, QM_LOST_NOTHING, err);
    if (len <= SECTOR) {
        fill(s, to, at, len);
        return keep_part(w, span, at, len, QM_LOST_DATA, err);
    }
    for (uint64_t done = 0, n; done < len; done += n) {
        n = qm_min(len - done, piece - (at + done) % piece);
        if (read_pieces(s, w, span, to + done, at + done, n, err) < 0)
            return -1;
    }
    return 0;
}

/* Every span of the chunk, and what of it is lost. */
static int
read_salvaging(struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot,
               struct qmeld_error *err)
{
    struct qm_chunk *c = &slot->chunk;
    __typeof__(c->spans) swap;

    qm_vec_clear(&w->spans);
    QM_VEC_EACH (span, &c->spans) {
        unsigned char *to = slot->buf + (span->guest.g - c->guest.g);
        struct qmeld_error why = {0};
        int rc = 0;

        if (span->ext.lost)
            fill(s, to, span->guest.g, span->len);
        else if (qm_stream_reads_zero(s, span))
            memset(to, 0, span->len);
        else if (span->ext.kind == QM_DATA)
            rc = read_pieces(s, w, span, to, span->guest.g, span->len, err);
        else if (qm_extent_read(s->cfg.chain->layers[span->layer].img, &span->ext, w->codec, to,
                                &why) < 0) {
            if (!may_salvage(s, &why)) {
                *err = why;
                return -1;
            }
            fill(s, to, span->guest.g, span->len);
            rc = keep_part(w, span, span->guest.g, span->len,
                           why.code == QMELD_IO ? QM_LOST_DATA : QM_LOST_STREAM, err);
            if (rc < 0)
                return -1;
            continue;
        }
        if (rc == 0 &&
            (qm_stream_reads_zero(s, span) || span->ext.lost || span->ext.kind != QM_DATA))
            rc = keep_part(w, span, span->guest.g, span->len, span->ext.lost, err);
        if (rc < 0)
            return -1;
    }
    swap = c->spans;
    memcpy(&c->spans, &w->spans, sizeof swap);
    memcpy(&w->spans, &swap, sizeof swap);
    return 0;
}

/* ---- reading ---- */

/* [skip, skip + len) of the span. */
static int
read_part(const struct qm_stream *s, struct qm_stream_worker *w, const struct qm_map_span *span,
          uint64_t skip, uint64_t len, unsigned char *to, struct qmeld_error *err)
{
    const struct qm_extent part = qm_extent_part(&span->ext, skip, len);

    return len == 0 ? 0 : qm_extent_read(image_of(s, span), &part, w->codec, to + skip, err);
}

static int
read_spans(struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot,
           struct qmeld_error *err)
{
    if (!w->codec && !(w->codec = qm_codec_new()))
        return qm_fail_nomem(err, "a decompressor");
    if (s->cfg.salvage)
        return read_salvaging(s, w, slot, err);
    QM_VEC_EACH (span, &slot->chunk.spans) {
        uint64_t head = span->len, shared = 0;
        unsigned char *to = slot->buf + (span->guest.g - slot->chunk.guest.g);

        if (qm_stream_reads_zero(s, span)) {
            memset(to, 0, span->len);
            continue;
        }
        if (s->cfg.leaf == 0 && passes(s, span))
            continue;
        if (s->cfg.leaf == 0)
            shared = qm_stream_shareable(s, span, &head);
        if (shared == 0)
            head = span->len;
        if (read_part(s, w, span, 0, head, to, err) < 0 ||
            read_part(s, w, span, head + shared, span->len - head - shared, to, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- looking at the bytes ---- */

static int
add_run(struct qm_chunk *c, const struct qm_run *run, struct qmeld_error *err)
{
    struct qm_run *last = c->runs.n > 0 ? qm_vec_last(&c->runs) : NULL;

    if (last && last->off + last->len == run->off && last->route == run->route &&
        (!run->route || last->host + last->len == run->host)) {
        last->len += run->len;
        return 0;
    }
    return qm_vec_push(&c->runs, run) ? 0 : qm_fail_nomem(err, "runs of data");
}

/* Of [from, to) what is not zeros; zeros that are stored as data count as data if they are to be kept. */
static int
look(const struct qm_stream *s, struct qm_slot *slot, uint64_t from, uint64_t to,
     struct qmeld_error *err)
{
    struct qm_run run = {.off = from};

    for (; run.off < to; run.off += run.len) {
        run.len = qm_min(to, qm_align_down(run.off, QM_STREAM_GRAIN) + QM_STREAM_GRAIN) - run.off;
        if ((s->cfg.keep_zeros || !qm_is_zero(slot->buf + run.off, run.len)) &&
            add_run(&slot->chunk, &run, err) < 0)
            return -1;
    }
    return 0;
}

static int
find_runs(const struct qm_stream *s, struct qm_slot *slot, struct qmeld_error *err)
{
    struct qm_chunk *c = &slot->chunk;

    QM_VEC_EACH (span, &c->spans) {
        const uint64_t from = span->guest.g - c->guest.g, to = from + span->len;
        struct qm_run run = {.off = from, .len = span->len};
        uint64_t head;

        if (qm_stream_reads_zero(s, span))
            continue;
        if (!passes(s, span)) {
            run.len = qm_stream_shareable(s, span, &head);
            if (run.len > 0) {
                run.off += head;
                run.layer = span->layer;
                run.route = s->routes[span->layer];
                run.host = span->ext.host.h + head;
            }
        }
        if (run.len == 0) {
            if (look(s, slot, from, to, err) < 0)
                return -1;
        } else if (look(s, slot, from, run.off, err) < 0 || add_run(c, &run, err) < 0 ||
                   look(s, slot, run.off + run.len, to, err) < 0) {
            return -1;
        }
    }
    return 0;
}

static int
digest_leaves(const struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot,
              struct qmeld_error *err)
{
    struct qm_chunk *c = &slot->chunk;

    if (s->cfg.leaf == 0)
        return 0;
    if (!w->digest && !(w->digest = qm_digest_new()))
        return qm_fail_nomem(err, "a digest");
    for (uint64_t at = 0; at < c->len; at += s->cfg.leaf) {
        const size_t n = (size_t)qm_min(s->cfg.leaf, c->len - at);
        const struct qm_sha256 leaf = qm_digest_of(w->digest, slot->buf + at, n);

        if (!qm_vec_push(&c->leaves, &leaf))
            return qm_fail_nomem(err, "the digests of leaves");
    }
    return 0;
}

/* ---- compressed clusters ---- */

/* Payloads that lie side by side in their file: their sectors are read at once. */
struct sectors {
    const struct qm_image *img; /* NULL: none */
    uint64_t first;
    uint64_t end;
    size_t off; /* in the slot's packed bytes */
};

static int
read_sectors(struct qm_slot *slot, struct sectors *of, struct qmeld_error *err)
{
    const struct qm_image *img = of->img;

    of->img = NULL;
    if (!img)
        return 0;
    return qm_pread_padded(img->file, of->first, slot->packed + of->off, of->end - of->first, err);
}

/* The span's payload, from its first sector to its last, gets a place at *out, which is raised. */
static int
take_payload(struct qm_slot *slot, const struct qm_image *img, const struct qm_extent *x,
             struct sectors *last, size_t *out, struct qm_payload *p, struct qmeld_error *err)
{
    const uint64_t first = qm_align_down(x->host.h, SECTOR), end = x->host.h + x->payload_len;

    p->len = (uint32_t)(end - first);
    if (last->img == img && first >= last->first && first <= last->end &&
        last->off + (last->end - last->first) == *out) {
        p->off = (uint32_t)(last->off + (first - last->first));
    } else {
        if (read_sectors(slot, last, err) < 0)
            return -1;
        *last = (struct sectors){.img = img, .first = first, .end = first, .off = *out};
        p->off = (uint32_t)*out;
    }
    if (end > last->end) {
        *out += end - last->end;
        last->end = end;
    }
    return 0;
}

static int
deflate(const struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot, uint64_t at,
        size_t *out, struct qm_payload *p, struct qmeld_error *err)
{
    const uint64_t cs = s->cfg.deflate;
    size_t len = 0;

    /* QEMU stores a cluster compressed only if it gets shorter than that (qemu 7.2, block/qcow2.c) */
    if (qm_codec_deflate(w->codec, s->cfg.type, s->cfg.level, slot->buf + at, cs,
                         slot->packed + *out, cs - 1, &len) < 0)
        return qm_fail_nomem(err, "a compressed cluster");
    p->off = (uint32_t)*out;
    p->len = (uint32_t)len;
    *out += len;
    return 0;
}

/* Clusters that runs touch; behind the disk's end they are zeros (QEMU pads a last cluster so). */
static int
pack_clusters(const struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot,
              struct qmeld_error *err)
{
    struct qm_chunk *c = &slot->chunk;
    const uint64_t cs = s->cfg.deflate;
    struct sectors last = {.img = NULL};
    size_t run = 0, span = 0, out = 0;

    if (cs == 0)
        return 0;
    memset(slot->buf + c->len, 0, s->cfg.chunk - c->len);
    for (uint64_t at = 0; at < c->len; at += cs) {
        struct qm_payload p = {.len = 0};
        int rc = 0;

        while (run < c->runs.n && c->runs.at[run].off + c->runs.at[run].len <= at)
            run++;
        while (c->spans.at[span].guest.g + c->spans.at[span].len <= c->guest.g + at)
            span++;
        if (passes(s, &c->spans.at[span])) {
            p.from = image_of(s, &c->spans.at[span]);
            p.ext = c->spans.at[span].ext;
            rc = take_payload(slot, p.from, &p.ext, &last, &out, &p, err);
        } else if (run < c->runs.n && c->runs.at[run].off < at + cs) {
            rc = deflate(s, w, slot, at, &out, &p, err);
        }
        if (rc < 0)
            return -1;
        if (!qm_vec_push(&c->payloads, &p))
            return qm_fail_nomem(err, "compressed clusters");
    }
    return read_sectors(slot, &last, err);
}

/* ---- putting them where they go ---- */

static int
copy_range(struct qm_stream_worker *w, const struct qm_file *from, uint64_t off, struct qm_file *to,
           uint64_t to_off, uint64_t len, struct qmeld_error *err)
{
    if (!w->bounce && !(w->bounce = malloc(BOUNCE)))
        return qm_fail_nomem(err, "the copy");
    for (uint64_t done = 0, n; done < len; done += n) {
        n = qm_min(len - done, BOUNCE);
        if (qm_pread(from, off + done, w->bounce, n, err) < 0 ||
            qm_pwrite(to, to_off + done, w->bounce, n, err) < 0)
            return -1;
        qm_writeback(to, to_off + done, n);
    }
    return 0;
}

/* [skip, skip + len) of a run goes to `at` of file. */
static int
put_run(struct qm_stream_worker *w, const struct qm_slot *slot, const struct qm_run *run,
        uint64_t skip, uint64_t len, struct qm_file *file, uint64_t at, struct qmeld_error *err)
{
    struct qm_route *route = run->route;
    bool done = false;

    if (!route) {
        if (qm_pwrite(file, at, slot->buf + run->off + skip, len, err) < 0)
            return -1;
        qm_writeback(file, at, len);
        return 0;
    }
    if (qm_route_shares(route)) {
        if (qm_share_range(file, at, route->from, run->host + skip, len, &done, err) < 0)
            return -1;
        if (done)
            atomic_fetch_add(&route->shared, len);
        else
            route->refused = true;
    }
    return done ? 0 : copy_range(w, route->from, run->host + skip, file, at, len, err);
}

static int
write_raw(const struct qm_stream *s, struct qm_stream_worker *w, const struct qm_slot *slot,
          struct qmeld_error *err)
{
    const struct qm_chunk *c = &slot->chunk;

    if (!s->cfg.raw || c->guest.g < s->cfg.raw_from.g)
        return 0;
    QM_VEC_EACH (run, &c->runs)
        if (put_run(w, slot, run, 0, run->len, s->cfg.raw, c->guest.g + run->off, err) < 0)
            return -1;
    return 0;
}

static int
read_chunk(struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot,
           struct qmeld_error *err)
{
    if (read_spans(s, w, slot, err) < 0 || find_runs(s, slot, err) < 0 ||
        digest_leaves(s, w, slot, err) < 0 || pack_clusters(s, w, slot, err) < 0 ||
        write_raw(s, w, slot, err) < 0)
        return -1;
    qm_stream_set_state(s, slot, QM_SLOT_READY);
    return 0;
}

/* What an interrupted run wrote there may still be there, so space alone is not enough. */
static int
put_zeros(const struct qm_stream *s, struct qm_file *file, uint64_t at, uint64_t len,
          struct qmeld_error *err)
{
    const bool full = s->cfg.prealloc == QM_PREALLOC_FULL;

    if (!full && qm_zero(file, at, len, false, err) < 0)
        return -1;
    return s->cfg.prealloc < QM_PREALLOC_FALLOC ? 0 : qm_preallocate(file, at, len, full, err);
}

static int
write_moves(struct qm_stream *s, struct qm_stream_worker *w, struct qm_slot *slot,
            struct qmeld_error *err)
{
    const struct qm_run *run = slot->chunk.runs.at;

    QM_VEC_EACH (m, &slot->moves.list) {
        const uint64_t skip = m->guest.g - slot->chunk.guest.g;

        if (m->kind == QM_MOVE_ZERO) {
            if (put_zeros(s, slot->file, m->to.h, m->len, err) < 0)
                return -1;
            continue;
        }
        assert(m->kind == QM_MOVE_COPY && qm_inside(skip, m->len, slot->chunk.len));
        while (run->off + run->len <= skip)
            run++;
        assert(skip >= run->off && qm_inside(skip - run->off, m->len, run->len));
        if (put_run(w, slot, run, skip - run->off, m->len, slot->file, m->to.h, err) < 0)
            return -1;
    }
    qm_stream_set_state(s, slot, QM_SLOT_FREE);
    return 0;
}

int
qm_stream_work(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_stream *s = shared;
    struct qm_slot *slot = ((const struct qm_stream_item *)item)->slot;

    return slot->state == QM_SLOT_READING ? read_chunk(s, &s->workers[worker], slot, err)
                                          : write_moves(s, &s->workers[worker], slot, err);
}
