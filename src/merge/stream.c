/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stream.c - the ring of chunks.
 *
 * Why this way.  The slots of a ring are filled in the guest's order by the calling thread, which alone may
 * walk the map; workers read, look and digest; the caller takes the oldest slot when it is ready.  So memory is
 * bounded by the ring, and a slow chunk (a compressed one, say) holds up nobody until the ring is
 * full.  A slot whose bytes are still being written is skipped by nobody either: its turn to be filled comes
 * when the ring has gone round.
 */
#include "stream.h"

#include "bytes.h"
#include "work.h"

#include <assert.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RING_BYTES  (128ull << 20) /* memory for chunks, except that there are two at least */
#define MAX_THREADS 16u
#define WAIT_NSEC   100000000

/* What cannot be read at once is tried in these. */
#define LARGE_PIECE (64u << 10)
#define SMALL_PIECE 4096u
#define SECTOR      512u

enum state { FREE, READING, READY, TAKEN, WRITING };

struct slot {
    struct qm_chunk chunk; /* first: a chunk's slot is where it is */
    unsigned char *packed; /* likewise */
    unsigned char *buf;    /* NULL until it is needed */
    struct qm_moves moves;
    struct qm_file *file; /* what they are in */
    enum state state;     /* under the stream's lock */
};

/* A worker's own. */
struct worker {
    struct qm_codec *codec;
    struct qm_digest *digest;
    QM_VEC(struct qm_map_span) spans; /* salvage: of the chunk that it reads */
};

struct qm_stream {
    /* set at new */
    struct qm_stream_config cfg;
    uint64_t size;
    struct qm_map *map;
    struct qm_pool *pool;
    struct worker *workers;
    unsigned threads;
    struct slot *slots;
    size_t n_slots;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* the calling thread's */
    size_t head, tail;       /* slots taken next, and filled next */
    size_t filled;           /* from head on, not taken yet */
    uint64_t pos;            /* guest bytes given to slots */
    uint64_t given;          /* and to the caller */
    struct qm_map_span span; /* what of the map is not given yet; len 0: nothing */
    bool stopped;
};

struct item {
    struct slot *slot;
};

static void
set_state(struct qm_stream *s, struct slot *slot, enum state state)
{
    pthread_mutex_lock(&s->lock);
    slot->state = state;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
}

/* ---- what workers do ---- */

static bool
reads_zero(const struct qm_stream *s, const struct qm_map_span *span)
{
    if (span->ext.lost && s->cfg.salvage->fill)
        return false;
    return span->ext.kind == QM_ZERO || span->ext.kind == QM_ABSENT;
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
keep_part(struct worker *w, const struct qm_map_span *span, uint64_t at, uint64_t len,
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
read_pieces(struct qm_stream *s, struct worker *w, const struct qm_map_span *span,
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
read_salvaging(struct qm_stream *s, struct worker *w, struct slot *slot, struct qmeld_error *err)
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
        else if (reads_zero(s, span))
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
        if (rc == 0 && (reads_zero(s, span) || span->ext.lost || span->ext.kind != QM_DATA))
            rc = keep_part(w, span, span->guest.g, span->len, span->ext.lost, err);
        if (rc < 0)
            return -1;
    }
    swap = c->spans;
    memcpy(&c->spans, &w->spans, sizeof swap);
    memcpy(&w->spans, &swap, sizeof swap);
    return 0;
}

static int
read_spans(struct qm_stream *s, struct worker *w, struct slot *slot, struct qmeld_error *err)
{
    if (!w->codec && !(w->codec = qm_codec_new()))
        return qm_fail_nomem(err, "a decompressor");
    if (s->cfg.salvage)
        return read_salvaging(s, w, slot, err);
    QM_VEC_EACH (span, &slot->chunk.spans) {
        unsigned char *to = slot->buf + (span->guest.g - slot->chunk.guest.g);

        if (reads_zero(s, span))
            memset(to, 0, span->len);
        else if (qm_extent_read(s->cfg.chain->layers[span->layer].img, &span->ext, w->codec, to,
                                err) < 0)
            return -1;
    }
    return 0;
}

/* ---- looking at the bytes ---- */

static int
add_run(struct qm_chunk *c, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    const struct qm_run run = {off, len};

    if (c->runs.n > 0 && qm_vec_last(&c->runs)->off + qm_vec_last(&c->runs)->len == off) {
        qm_vec_last(&c->runs)->len += len;
        return 0;
    }
    return qm_vec_push(&c->runs, &run) ? 0 : qm_fail_nomem(err, "runs of data");
}

/* Runs of what is not zeros; zeros that are stored as data count as data if they are to be kept. */
static int
find_runs(const struct qm_stream *s, struct slot *slot, struct qmeld_error *err)
{
    struct qm_chunk *c = &slot->chunk;

    QM_VEC_EACH (span, &c->spans) {
        const uint64_t from = span->guest.g - c->guest.g, to = from + span->len;

        if (reads_zero(s, span))
            continue;
        for (uint64_t at = from, n; at < to; at += n) {
            n = qm_min(to, qm_align_down(at, QM_STREAM_GRAIN) + QM_STREAM_GRAIN) - at;
            if ((s->cfg.keep_zeros || !qm_is_zero(slot->buf + at, n)) && add_run(c, at, n, err) < 0)
                return -1;
        }
    }
    return 0;
}

static int
digest_leaves(const struct qm_stream *s, struct worker *w, struct slot *slot,
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

/* Clusters that runs touch; behind the disk's end they are zeros (QEMU pads a last cluster so). */
static int
deflate_clusters(const struct qm_stream *s, struct worker *w, struct slot *slot,
                 struct qmeld_error *err)
{
    struct qm_chunk *c = &slot->chunk;
    const uint64_t cs = s->cfg.deflate;
    size_t run = 0, out = 0;

    if (cs == 0)
        return 0;
    memset(slot->buf + c->len, 0, s->cfg.chunk - c->len);
    for (uint64_t at = 0; at < c->len; at += cs) {
        struct qm_payload p = {.off = (uint32_t)out};
        size_t len = 0;

        while (run < c->runs.n && c->runs.at[run].off + c->runs.at[run].len <= at)
            run++;
        /* QEMU stores a cluster compressed only if it gets shorter than that (qemu 7.2, block/qcow2.c) */
        if (run < c->runs.n && c->runs.at[run].off < at + cs &&
            qm_codec_deflate(w->codec, s->cfg.type, s->cfg.level, slot->buf + at, cs,
                             slot->packed + out, cs - 1, &len) < 0)
            return qm_fail_nomem(err, "a compressed cluster");
        p.len = (uint32_t)len;
        out += len;
        if (!qm_vec_push(&c->payloads, &p))
            return qm_fail_nomem(err, "compressed clusters");
    }
    return 0;
}

static int
write_raw(const struct qm_stream *s, const struct slot *slot, struct qmeld_error *err)
{
    const struct qm_chunk *c = &slot->chunk;

    if (!s->cfg.raw || c->guest.g < s->cfg.raw_from.g)
        return 0;
    QM_VEC_EACH (run, &c->runs) {
        if (qm_pwrite(s->cfg.raw, c->guest.g + run->off, slot->buf + run->off, run->len, err) < 0)
            return -1;
        qm_writeback(s->cfg.raw, c->guest.g + run->off, run->len);
    }
    return 0;
}

static int
read_chunk(struct qm_stream *s, struct worker *w, struct slot *slot, struct qmeld_error *err)
{
    if (read_spans(s, w, slot, err) < 0 || find_runs(s, slot, err) < 0 ||
        digest_leaves(s, w, slot, err) < 0 || deflate_clusters(s, w, slot, err) < 0 ||
        write_raw(s, slot, err) < 0)
        return -1;
    set_state(s, slot, READY);
    return 0;
}

static int
write_moves(struct qm_stream *s, struct slot *slot, struct qmeld_error *err)
{
    QM_VEC_EACH (m, &slot->moves.list) {
        const uint64_t skip = m->guest.g - slot->chunk.guest.g;

        if (m->kind == QM_MOVE_ZERO) {
            if (qm_zero(slot->file, m->to.h, m->len, false, err) < 0)
                return -1;
            continue;
        }
        assert(m->kind == QM_MOVE_COPY && qm_inside(skip, m->len, slot->chunk.len));
        if (qm_pwrite(slot->file, m->to.h, slot->buf + skip, m->len, err) < 0)
            return -1;
        qm_writeback(slot->file, m->to.h, m->len);
    }
    set_state(s, slot, FREE);
    return 0;
}

static int
work(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_stream *s = shared;
    struct slot *slot = ((const struct item *)item)->slot;

    return slot->state == READING ? read_chunk(s, &s->workers[worker], slot, err)
                                  : write_moves(s, slot, err);
}

static int
tick(void *shared)
{
    struct qm_stream *s = shared;
    const struct qmeld_progress now = {
        .done_bytes = s->given, .total_bytes = s->size, .phase = s->cfg.phase};

    if (s->cfg.progress && s->cfg.progress(&now, s->cfg.opaque) != 0)
        s->stopped = true;
    return 0;
}

/* ---- filling the ring ---- */

/* s->span covers s->pos; behind the end of the map it is empty. */
static int
ensure_span(struct qm_stream *s, struct qmeld_error *err)
{
    bool done;

    if (s->span.len > 0)
        return 0;
    if (qm_map_next(s->map, &s->span, &done, err) < 0)
        return -1;
    assert(!done && s->span.guest.g == s->pos);
    return 0;
}

/* The first n bytes of s->span become the chunk's. */
static int
take(struct qm_stream *s, struct qm_chunk *c, uint64_t n, struct qmeld_error *err)
{
    struct qm_map_span part = s->span;

    part.len = n;
    part.ext = qm_extent_part(&s->span.ext, 0, n);
    if (!qm_vec_push(&c->spans, &part))
        return qm_fail_nomem(err, "the spans of a chunk");
    c->zero = c->zero && reads_zero(s, &part);
    c->len += n;
    s->pos += n;
    if (n < s->span.len) {
        s->span.ext = qm_extent_part(&s->span.ext, n, s->span.len - n);
        s->span.guest.g += n;
    }
    s->span.len -= n;
    return 0;
}

static int
collect(struct qm_stream *s, struct qm_chunk *c, struct qmeld_error *err)
{
    const uint64_t end = qm_min(s->size, s->pos + s->cfg.chunk);

    c->guest = qm_guest(s->pos);
    c->len = 0;
    c->zero = true;
    qm_vec_clear(&c->spans);
    qm_vec_clear(&c->runs);
    qm_vec_clear(&c->leaves);
    qm_vec_clear(&c->payloads);
    while (s->pos < end) {
        uint64_t n;

        if (ensure_span(s, err) < 0)
            return -1;
        n = qm_min(s->span.len, end - s->pos);
        if (c->len == 0 && reads_zero(s, &s->span) &&
            s->span.len > n) /* as many chunks as it fills */
            n = s->pos + s->span.len == s->size ? s->span.len
                                                : qm_align_down(s->span.len, s->cfg.chunk);
        if (take(s, c, n, err) < 0)
            return -1;
    }
    return 0;
}

static int
fill_slot(struct qm_stream *s, struct slot *slot, struct qmeld_error *err)
{
    const struct item item = {slot};

    if (collect(s, &slot->chunk, err) < 0)
        return -1;
    slot->chunk.bytes = NULL;
    s->tail = (s->tail + 1) % s->n_slots;
    s->filled++;
    if (slot->chunk.zero) {
        set_state(s, slot, READY);
        return 0;
    }
    if (!slot->buf && !(slot->buf = malloc(s->cfg.chunk)))
        return qm_fail_nomem(err, "a chunk");
    if (s->cfg.deflate && !slot->packed && !(slot->packed = malloc(s->cfg.chunk)))
        return qm_fail_nomem(err, "a chunk");
    slot->chunk.bytes = slot->buf;
    slot->chunk.packed = slot->packed;
    set_state(s, slot, READING);
    return qm_pool_put(s->pool, &item, err);
}

static enum state
state_of(struct qm_stream *s, const struct slot *slot)
{
    enum state state;

    pthread_mutex_lock(&s->lock);
    state = slot->state;
    pthread_mutex_unlock(&s->lock);
    return state;
}

static int
wait_for(struct qm_stream *s, const struct slot *slot, enum state state, struct qmeld_error *err)
{
    for (;;) {
        struct timespec until;

        if (qm_pool_tick(s->pool, err) < 0)
            return -1;
        pthread_mutex_lock(&s->lock);
        if (slot->state != state) {
            clock_gettime(CLOCK_MONOTONIC, &until);
            until.tv_nsec += WAIT_NSEC;
            until.tv_sec += until.tv_nsec / 1000000000;
            until.tv_nsec %= 1000000000;
            (void)pthread_cond_timedwait(&s->changed, &s->lock, &until);
        }
        if (slot->state == state) {
            pthread_mutex_unlock(&s->lock);
            return 0;
        }
        pthread_mutex_unlock(&s->lock);
    }
}

/* Every slot that is free from tail on gets its chunk; the first one if need be after waiting. */
static int
fill_all(struct qm_stream *s, struct qmeld_error *err)
{
    while (s->pos < s->size && s->filled < s->n_slots) {
        struct slot *slot = &s->slots[s->tail];

        if (state_of(s, slot) != FREE) {
            if (s->filled > 0)
                return 0;
            if (wait_for(s, slot, FREE, err) < 0)
                return -1;
        }
        if (fill_slot(s, slot, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- calls ---- */

static int
start(struct qm_stream *s, struct qmeld_error *err)
{
    const struct qm_chain *chain = s->cfg.chain;
    struct qm_pool_config pool = {.threads = s->threads,
                                  .item_size = sizeof(struct item),
                                  .queue_len = 2 * s->n_slots,
                                  .fn = work,
                                  .tick = tick,
                                  .shared = s};

    s->slots = calloc(s->n_slots, sizeof *s->slots);
    s->workers = calloc(s->threads, sizeof *s->workers);
    if (!s->slots || !s->workers)
        return qm_fail_nomem(err, "a stream");
    if (qm_map_open(chain, 0, chain->n - 1, s->cfg.from, UINT64_MAX, &s->map, err) < 0)
        return -1;
    if (s->cfg.salvage)
        qm_map_go_on(s->map);
    return qm_pool_new(&pool, &s->pool, err);
}

int
qm_stream_new(const struct qm_stream_config *config, struct qm_stream **out,
              struct qmeld_error *err)
{
    struct qm_stream *s = calloc(1, sizeof *s);
    pthread_condattr_t attr;

    *out = NULL;
    if (!s)
        return qm_fail_nomem(err, "a stream");
    assert(config->chunk >= QM_STREAM_GRAIN && config->leaf <= config->chunk);
    assert(config->from.g % config->chunk == 0);
    s->cfg = *config;
    s->size = config->chain->layers[config->chain->n - 1].img->size;
    s->pos = s->given = qm_min(config->from.g, s->size);
    s->threads = config->threads ? config->threads : qm_processors();
    s->threads = (unsigned)qm_min(s->threads, MAX_THREADS);
    s->n_slots = (size_t)qm_max(2, qm_min(2 * s->threads + 2, RING_BYTES / config->chunk));
    pthread_mutex_init(&s->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&s->changed, &attr);
    pthread_condattr_destroy(&attr);
    if (start(s, err) < 0) {
        qm_stream_free(s);
        return -1;
    }
    *out = s;
    return 0;
}

int
qm_stream_next(struct qm_stream *s, struct qm_chunk **out, struct qmeld_error *err)
{
    struct slot *slot;

    *out = NULL;
    if (qm_pool_tick(s->pool, err) < 0 || fill_all(s, err) < 0)
        return -1;
    if (s->filled == 0)
        return 0;
    slot = &s->slots[s->head];
    if (wait_for(s, slot, READY, err) < 0)
        return -1;
    set_state(s, slot, TAKEN);
    s->head = (s->head + 1) % s->n_slots;
    s->filled--;
    s->given += slot->chunk.len;
    *out = &slot->chunk;
    return 0;
}

void
qm_stream_give_back(struct qm_stream *s, struct qm_chunk *chunk)
{
    set_state(s, (struct slot *)chunk, FREE);
}

int
qm_stream_write(struct qm_stream *s, struct qm_chunk *chunk, struct qm_file *file,
                struct qm_moves *moves, struct qmeld_error *err)
{
    struct slot *slot = (struct slot *)chunk;
    const struct item item = {slot};
    const struct qm_moves swap = slot->moves;

    slot->moves = *moves;
    *moves = swap;
    qm_vec_clear(&moves->list);
    slot->file = file;
    set_state(s, slot, WRITING);
    return qm_pool_put(s->pool, &item, err);
}

int
qm_stream_drain(struct qm_stream *s, struct qmeld_error *err)
{
    return qm_pool_drain(s->pool, err);
}

int
qm_stream_tick(struct qm_stream *s, struct qmeld_error *err)
{
    return qm_pool_tick(s->pool, err);
}

bool
qm_stream_stopped(const struct qm_stream *s)
{
    return s->stopped;
}

void
qm_stream_free(struct qm_stream *s)
{
    if (!s)
        return;
    qm_pool_free(s->pool);
    for (unsigned i = 0; s->workers && i < s->threads; i++) {
        qm_codec_free(s->workers[i].codec);
        qm_digest_free(s->workers[i].digest);
        qm_vec_release(&s->workers[i].spans);
    }
    for (size_t i = 0; s->slots && i < s->n_slots; i++) {
        qm_vec_release(&s->slots[i].chunk.spans);
        qm_vec_release(&s->slots[i].chunk.runs);
        qm_vec_release(&s->slots[i].chunk.leaves);
        qm_vec_release(&s->slots[i].moves.list);
        qm_vec_release(&s->slots[i].chunk.payloads);
        free(s->slots[i].packed);
        free(s->slots[i].buf);
    }
    free(s->slots);
    free(s->workers);
    qm_map_close(s->map);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
