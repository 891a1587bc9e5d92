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
#include "stream_int.h"

#include "clock.h"

#include <assert.h>
#include <stdlib.h>
#include <time.h>

#define RING_BYTES  (128ull << 20) /* memory for chunks, except that there are two at least */
#define MAX_THREADS 16u
#define WAIT_NSEC   100000000

void
qm_stream_set_state(struct qm_stream *s, struct qm_slot *slot, enum qm_slot_state state)
{
    pthread_mutex_lock(&s->lock);
    slot->state = state;
    pthread_cond_broadcast(&s->changed);
    pthread_mutex_unlock(&s->lock);
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
    c->zero = c->zero && qm_stream_reads_zero(s, &part);
    c->len += n;
    s->pos += n;
    if (n < s->span.len) {
        s->span.ext = qm_extent_part(&s->span.ext, n, s->span.len - n);
        s->span.guest.g += n;
    }
    s->span.len -= n;
    return 0;
}

/* How many bytes of s->span, whole chunks, need nobody to read them. */
static uint64_t
unread(const struct qm_stream *s)
{
    uint64_t head, n = s->span.len;

    if (qm_stream_reads_zero(s, &s->span)) {
        n = s->cfg.zero_most ? qm_min(n, s->cfg.zero_most) : n;
        return s->pos + n == s->size ? n : qm_align_down(n, s->cfg.chunk);
    }
    if (s->cfg.leaf > 0)
        return 0;
    n = qm_min(qm_stream_shareable(s, &s->span, &head), s->cfg.share_most);
    return n > 0 && head == 0 ? qm_align_down(n, s->cfg.chunk) : 0;
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
        if (c->len == 0 && s->span.len > n)
            n = qm_max(n, unread(s));
        if (take(s, c, n, err) < 0)
            return -1;
    }
    return 0;
}

static int
fill_slot(struct qm_stream *s, struct qm_slot *slot, struct qmeld_error *err)
{
    const struct qm_stream_item item = {slot};

    if (collect(s, &slot->chunk, err) < 0)
        return -1;
    slot->chunk.bytes = NULL;
    s->tail = (s->tail + 1) % s->n_slots;
    s->filled++;
    if (slot->chunk.zero) {
        qm_stream_set_state(s, slot, QM_SLOT_READY);
        return 0;
    }
    /* a longer one is shared */
    if (!slot->buf && slot->chunk.len <= s->cfg.chunk && !(slot->buf = malloc(s->cfg.chunk)))
        return qm_fail_nomem(err, "a chunk");
    if (s->cfg.deflate && !slot->packed && !(slot->packed = malloc(s->cfg.chunk)))
        return qm_fail_nomem(err, "a chunk");
    slot->chunk.bytes = slot->buf;
    slot->chunk.packed = slot->packed;
    qm_stream_set_state(s, slot, QM_SLOT_READING);
    return qm_pool_put(s->pool, &item, err);
}

static enum qm_slot_state
state_of(struct qm_stream *s, const struct qm_slot *slot)
{
    enum qm_slot_state state;

    pthread_mutex_lock(&s->lock);
    state = slot->state;
    pthread_mutex_unlock(&s->lock);
    return state;
}

static int
wait_for(struct qm_stream *s, const struct qm_slot *slot, enum qm_slot_state state,
         struct qmeld_error *err)
{
    for (;;) {
        if (qm_pool_tick(s->pool, err) < 0)
            return -1;
        pthread_mutex_lock(&s->lock);
        if (slot->state != state) {
            const struct timespec until = qm_clock_moment(qm_clock_nsec() + WAIT_NSEC);

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
        struct qm_slot *slot = &s->slots[s->tail];

        if (state_of(s, slot) != QM_SLOT_FREE) {
            if (s->filled > 0)
                return 0;
            if (wait_for(s, slot, QM_SLOT_FREE, err) < 0)
                return -1;
        }
        if (fill_slot(s, slot, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- calls ---- */

/* Only where all that is known says so: the same images come to the same chunks and runs, whatever is refused later. */
static int
find_routes(struct qm_stream *s, struct qmeld_error *err)
{
    const struct qm_chain *chain = s->cfg.chain;

    if (!s->cfg.routes)
        return 0;
    assert(!s->cfg.salvage && !s->cfg.deflate);
    s->routes = calloc(chain->n, sizeof *s->routes);
    for (size_t i = 0; s->routes && i < chain->n; i++) {
        struct qm_route *route = qm_route_to(s->cfg.routes, chain->layers[i].img->data);

        if (!route)
            return qm_fail_nomem(err, "a stream");
        /* what is encrypted there is plain here */
        if (!chain->layers[i].img->cipher && qm_route_shares(route) &&
            s->cfg.share_unit % route->share.block == 0)
            s->routes[i] = route;
    }
    return s->routes ? 0 : qm_fail_nomem(err, "a stream");
}

static int
start(struct qm_stream *s, struct qmeld_error *err)
{
    const struct qm_chain *chain = s->cfg.chain;
    struct qm_pool_config pool = {.threads = s->threads,
                                  .item_size = sizeof(struct qm_stream_item),
                                  .queue_len = 2 * s->n_slots,
                                  .fn = qm_stream_work,
                                  .tick = tick,
                                  .shared = s};

    s->slots = calloc(s->n_slots, sizeof *s->slots);
    s->workers = calloc(s->threads, sizeof *s->workers);
    if (!s->slots || !s->workers)
        return qm_fail_nomem(err, "a stream");
    if (find_routes(s, err) < 0 ||
        qm_map_open(chain, 0, chain->n - 1, s->cfg.from, UINT64_MAX, &s->map, err) < 0)
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
    struct qm_slot *slot;

    *out = NULL;
    if (qm_pool_tick(s->pool, err) < 0 || fill_all(s, err) < 0)
        return -1;
    if (s->filled == 0)
        return 0;
    slot = &s->slots[s->head];
    if (wait_for(s, slot, QM_SLOT_READY, err) < 0)
        return -1;
    qm_stream_set_state(s, slot, QM_SLOT_TAKEN);
    s->head = (s->head + 1) % s->n_slots;
    s->filled--;
    s->given += slot->chunk.len;
    *out = &slot->chunk;
    return 0;
}

void
qm_stream_give_back(struct qm_stream *s, struct qm_chunk *chunk)
{
    qm_stream_set_state(s, (struct qm_slot *)chunk, QM_SLOT_FREE);
}

int
qm_stream_write(struct qm_stream *s, struct qm_chunk *chunk, struct qm_file *file,
                struct qm_moves *moves, struct qmeld_error *err)
{
    struct qm_slot *slot = (struct qm_slot *)chunk;
    const struct qm_stream_item item = {slot};
    const struct qm_moves swap = slot->moves;

    slot->moves = *moves;
    *moves = swap;
    qm_vec_clear(&moves->list);
    slot->file = file;
    qm_stream_set_state(s, slot, QM_SLOT_WRITING);
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
        free(s->workers[i].bounce);
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
    free(s->routes);
    free(s->workers);
    qm_map_close(s->map);
    pthread_cond_destroy(&s->changed);
    pthread_mutex_destroy(&s->lock);
    free(s);
}
