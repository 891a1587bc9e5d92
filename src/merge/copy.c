/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "copy_int.h"

#include "cipher.h"
#include "shadow.h"

#include <errno.h>
#include <stdlib.h>

#define MAX_THREADS 16u
#define PIECE_BYTES                                                                                \
    (1ull << 20) /* a worker's portion: large enough to stream, small enough to share */
#define LEAST_COLD  (256u << 10) /* read past the page cache by itself */
#define QUEUE_LEN   64u
#define MAX_LATER   16384u       /* pieces of direct copies that wait for the others */
#define SHARE_BYTES (1ull << 30) /* shared by one call: it cannot be stopped */

static int
tick(void *shared)
{
    struct qm_copy *c = shared;
    const struct qmeld_progress p = {.done_bytes = atomic_load(&c->done),
                                     .total_bytes = c->cfg.total_bytes,
                                     .phase = c->cfg.phase};

    if (c->cfg.progress && c->cfg.progress(&p, c->cfg.opaque) != 0)
        c->stopped = true;
    return c->stopped && !c->cfg.finish_when_stopped;
}

bool
qm_copy_stopped(const struct qm_copy *copy)
{
    return copy->stopped;
}

int
qm_copy_new(const struct qm_copy_config *config, struct qm_copy **out, struct qmeld_error *err)
{
    struct qm_copy *c = calloc(1, sizeof *c);
    struct qm_pool_config pool = {.item_size = sizeof(struct qm_piece),
                                  .queue_len = QUEUE_LEN,
                                  .fn = qm_copy_work,
                                  .tick = tick,
                                  .shared = c};

    *out = NULL;
    if (!c)
        return qm_fail_nomem(err, "the copy");
    c->cfg = *config;
    if (config->direct && config->target)
        c->direct = qm_direct_open(config->target);
    qm_routes_init(&c->routes, config->target);
    c->threads = config->threads ? config->threads : qm_processors();
    c->threads = c->threads > MAX_THREADS ? MAX_THREADS : c->threads;
    c->piece_bytes = PIECE_BYTES;
    if (config->bandwidth) /* no piece longer than a quarter of a second */
        c->piece_bytes =
            qm_max(qm_direct_unit(),
                   qm_align_down(qm_min(PIECE_BYTES, config->bandwidth / 4), qm_direct_unit()));
    qm_pace_begin(&c->pace, config->bandwidth);
    c->workers = calloc(c->threads, sizeof *c->workers);
    pool.threads = c->threads;
    if (!c->workers) {
        free(c);
        return qm_fail_nomem(err, "the copy");
    }
    if ((config->target && !config->target->shadow &&
         qm_behind_new(config->target, &c->behind, err) < 0) ||
        qm_pool_new(&pool, &c->pool, err) < 0) {
        qm_copy_free(c);
        return -1;
    }
    *out = c;
    return 0;
}

/* Waits until n more bytes are within the bandwidth. */
static int
throttle(struct qm_copy *c, uint64_t n, struct qmeld_error *err)
{
    while (!c->stopped && qm_pace_is_ahead(&c->pace)) {
        if (tick(c) != 0)
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
        qm_pace_nap();
    }
    c->pace.done += n;
    return 0;
}

/* In a dry run nothing is read, and what would be written is only noted. */
static int
pretend(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err)
{
    struct qm_file *to = c->cfg.target;
    uint64_t bytes = p->len;

    if (qm_copy_tick(c, err) < 0)
        return -1;
    if (p->kind == QM_PIECE_ZERO && !c->cfg.cipher)
        return qm_shadow_hole(to, p->to, p->len, err);
    if (p->kind == QM_PIECE_SHARE) {
        bool done;

        return qm_piece_share(c, p, &done, err);
    }
    if (p->kind == QM_PIECE_DATA)
        bytes = qm_piece_bytes_inside(p);
    if (p->kind != QM_PIECE_ZERO)
        c->costs.bytes_read += p->kind == QM_PIECE_COMPRESSED ? p->ext.payload_len : bytes;
    c->costs.inflated += p->kind == QM_PIECE_COMPRESSED;
    if (qm_piece_is_coded(c, p)) /* what the file does not have is bytes, too */
        bytes = p->len;
    c->costs.bytes_written += bytes;
    if (p->route)
        atomic_fetch_add(&p->route->copied, bytes);
    if (bytes > 0 && qm_shadow_data(to, p->to, bytes, err) < 0)
        return -1;
    return bytes < p->len ? qm_shadow_hole(to, p->to + bytes, p->len - bytes, err) : 0;
}

static bool
is_dry(const struct qm_copy *c)
{
    return c->cfg.target && c->cfg.target->shadow;
}

static uint64_t
look(struct qm_window *ahead, const struct qm_file *file, uint64_t off, uint64_t len)
{
    if (ahead->file != file) {
        qm_window_release(ahead);
        qm_window_init(ahead, file, QM_COPY_WINDOW);
    }
    return qm_cache_look(ahead, off, len);
}

/* Where the page cache has nothing of a piece, to take it through there costs more than the copy itself: pages are
 * found, filled, looked up and forgotten again.  Short pieces are better read ahead, many at a time. */
static bool
is_cold(struct qm_copy *c, const struct qm_piece *p)
{
    const uint64_t unit = qm_direct_unit();

    return p->kind == QM_PIECE_DATA && p->from_there == 0 && p->len >= LEAST_COLD &&
           p->len % unit == 0 && p->ext.host.h % unit == 0 && qm_piece_bytes_inside(p) == p->len &&
           !qm_route_offloads(p->route) && qm_route_reads_direct(&c->routes, p->route);
}

/* The disk begins to read what the workers will come to; the queue is how far that is ahead of them. */
static void
look_ahead(struct qm_copy *c, struct qm_piece *p)
{
    p->from_there = p->to_there = QM_CACHE_ALL;
    if (p->kind != QM_PIECE_DATA && p->kind != QM_PIECE_COMPRESSED)
        return;
    if (c->cfg.direct && p->direct && qm_route_reads_direct(&c->routes, p->route)) {
        p->cold = true; /* it was asked for, whatever the cache has */
        return;
    }
    p->to_there = look(&c->to_ahead, c->cfg.target, p->to, p->len);
    if (p->kind == QM_PIECE_COMPRESSED) {
        qm_prefetch(p->from->file, p->ext.host.h, p->ext.payload_len);
        return;
    }
    p->from_there = look(&c->from_ahead, p->from->data, p->ext.host.h, p->len);
    p->cold = is_cold(c, p);
    if (p->from_there != QM_CACHE_ALL && !p->cold)
        qm_prefetch(p->from->data, p->ext.host.h, p->len);
}

/* To the workers; nothing is shared of it. */
static int
give_now(struct qm_copy *c, const struct qm_piece *whole, struct qmeld_error *err)
{
    const bool is_cut = whole->kind == QM_PIECE_DATA ||
                        (whole->kind == QM_PIECE_ZERO && qm_piece_is_coded(c, whole));

    for (uint64_t at = 0, n; at < whole->len; at += n) {
        struct qm_piece p;

        n = is_cut ? qm_min(whole->len - at, c->piece_bytes) : whole->len;
        p = qm_piece_part(whole, at, n);
        p.direct = qm_piece_is_direct(c, &p);
        look_ahead(c, &p);
        if (throttle(c, p.kind == QM_PIECE_ZERO ? 0 : n, err) < 0 ||
            qm_pool_put(c->pool, &p, err) < 0)
            return -1;
    }
    return 0;
}

/* What waited for the others; drained before and after. */
static int
give_later(struct qm_copy *c, struct qmeld_error *err)
{
    if (qm_pool_drain(c->pool, err) < 0)
        return -1;
    QM_VEC_EACH (p, &c->later)
        if (give_now(c, p, err) < 0)
            return -1;
    qm_vec_clear(&c->later);
    return qm_pool_drain(c->pool, err);
}

static int
put_off(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err)
{
    if (p->len == 0)
        return 0;
    if (!qm_vec_push(&c->later, p))
        return qm_fail_nomem(err, "the list of moves");
    return c->later.n >= MAX_LATER ? give_later(c, err) : 0;
}

/* Past the page cache goes what is whole units in both files; the rest waits (direct.h says why). */
static int
give_past_cache(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err)
{
    const uint64_t unit = qm_direct_unit(), start = qm_align_up(p->to, unit);
    uint64_t end = start;
    struct qm_piece head, middle, tail;

    if (p->kind != QM_PIECE_DATA)
        return qm_piece_is_direct(c, p) ? give_now(c, p, err) : put_off(c, p, err);
    if (p->to % unit == p->ext.host.h % unit)
        end = qm_align_down(p->to + qm_piece_bytes_inside(p), unit);
    if (end <= start)
        return put_off(c, p, err);
    head = qm_piece_part(p, 0, start - p->to);
    middle = qm_piece_part(p, start - p->to, end - start);
    tail = qm_piece_part(p, end - p->to, p->len - (end - p->to));
    return put_off(c, &head, err) < 0 || give_now(c, &middle, err) < 0 ? -1
                                                                       : put_off(c, &tail, err);
}

static int
give(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err)
{
    if (p->len == 0)
        return 0;
    if (is_dry(c))
        return pretend(c, p, err);
    return c->direct && !c->no_direct ? give_past_cache(c, p, err) : give_now(c, p, err);
}

/* The first range of two files is shared here: if it is refused, all else is copied by many threads. */
static int
give_shared(struct qm_copy *c, const struct qm_piece *whole, struct qmeld_error *err)
{
    for (uint64_t at = 0, n; at < whole->len; at += n) {
        struct qm_piece p;
        bool done = true;

        n = qm_min(whole->len - at, SHARE_BYTES);
        p = qm_piece_part(whole, at, n);
        p.kind = QM_PIECE_SHARE;
        if (is_dry(c)         ? pretend(c, &p, err) < 0
            : p.route->proven ? qm_pool_put(c->pool, &p, err) < 0
                              : qm_piece_share(c, &p, &done, err) < 0)
            return -1;
        if (!done) {
            p = qm_piece_part(whole, at, whole->len - at);
            return give(c, &p, err);
        }
        if (!is_dry(c) && !p.route->proven) {
            p.route->proven = true;
            atomic_fetch_add(&c->done, p.worth);
        }
    }
    return 0;
}

static int
give_data(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err)
{
    struct qm_piece head, shared, tail;
    uint64_t skip = 0, n = 0;

    if (p->len > 0 && !qm_piece_is_coded(c, p) && qm_route_shares(p->route))
        n = qm_route_shareable(p->route, p->to, p->ext.host.h, qm_piece_bytes_inside(p), &skip);
    if (n == 0)
        return give(c, p, err);
    head = qm_piece_part(p, 0, skip);
    shared = qm_piece_part(p, skip, n);
    tail = qm_piece_part(p, skip + n, p->len - skip - n);
    if (give(c, &head, err) < 0 || give_shared(c, &shared, err) < 0)
        return -1;
    return give(c, &tail, err);
}

static int
give_held(struct qm_copy *c, struct qmeld_error *err)
{
    const struct qm_piece p = c->held;

    c->held.len = 0;
    return give_data(c, &p, err);
}

static int
put(struct qm_copy *copy, const struct qm_move *move, struct qmeld_error *err)
{
    struct qm_piece p = {.from = move->from,
                         .ext = move->ext,
                         .to = move->to.h,
                         .len = move->len,
                         .from_there = QM_CACHE_ALL,
                         .to_there = QM_CACHE_ALL,
                         .worth = move->kind == QM_MOVE_COPY ? move->worth : 0};
    struct qm_piece *held = &copy->held;

    if (move->kind == QM_MOVE_ZERO) {
        p.kind = QM_PIECE_ZERO;
        p.ext.guest = move->guest;
        return give(copy, &p, err);
    }
    p.route = qm_route_to(&copy->routes, p.from->data);
    if (!p.route)
        return qm_fail_nomem(err, "the copy");
    if (move->ext.kind == QM_COMPRESSED) {
        p.kind = QM_PIECE_COMPRESSED;
        return give(copy, &p, err);
    }
    p.kind = QM_PIECE_DATA;
    if (held->len > 0 && held->from == p.from && held->to + held->len == p.to &&
        held->ext.host.h + held->len == p.ext.host.h &&
        (!p.from->cipher || held->ext.guest.g + held->len == p.ext.guest.g)) {
        held->len += p.len;
        held->worth += p.worth;
        return held->len >= (qm_route_shares(p.route) ? SHARE_BYTES : PIECE_BYTES)
                   ? give_held(copy, err)
                   : 0;
    }
    if (give_held(copy, err) < 0)
        return -1;
    *held = p;
    return 0;
}

static struct qm_move
part_of(const struct qm_move *move, uint64_t skip, uint64_t len)
{
    struct qm_move part = *move;

    part.guest.g += skip;
    part.to.h += skip;
    part.len = len;
    if (move->kind != QM_MOVE_ZERO)
        part.ext = qm_extent_part(&move->ext, skip, len);
    if (move->worth)
        part.worth = len;
    return part;
}

/* A part of an encrypted sector, by the calling thread: the next move may be the rest of that sector. */
static int
patch(struct qm_copy *c, const struct qm_move *move, struct qmeld_error *err)
{
    const struct qm_piece p = {
        .kind = move->kind == QM_MOVE_ZERO        ? QM_PIECE_ZERO
                : move->ext.kind == QM_COMPRESSED ? QM_PIECE_COMPRESSED
                                                  : QM_PIECE_DATA,
        .from = move->from,
        .ext = move->kind == QM_MOVE_ZERO ? (struct qm_extent){.guest = move->guest} : move->ext,
        .to = move->to.h,
        .len = move->len};

    if (move->len == 0)
        return 0;
    if (is_dry(c))
        return pretend(c, &p, err);
    if (qm_piece_patch(c, &p, err) < 0)
        return -1;
    atomic_fetch_add(&c->done, move->worth);
    return 0;
}

int
qm_copy_put(struct qm_copy *copy, const struct qm_move *move, struct qmeld_error *err)
{
    const uint64_t start = qm_align_up(move->to.h, QM_CIPHER_SECTOR);
    const uint64_t end = qm_align_down(move->to.h + move->len, QM_CIPHER_SECTOR);
    struct qm_move head, middle, tail;

    if (!copy->cfg.cipher || (start == move->to.h && end == move->to.h + move->len))
        return put(copy, move, err);
    if (end < start) /* inside of one sector */
        return patch(copy, move, err);
    head = part_of(move, 0, start - move->to.h);
    middle = part_of(move, start - move->to.h, end - start);
    tail = part_of(move, end - move->to.h, move->to.h + move->len - end);
    if (patch(copy, &head, err) < 0 || (middle.len > 0 && put(copy, &middle, err) < 0))
        return -1;
    return patch(copy, &tail, err);
}

int
qm_copy_verify(struct qm_copy *copy, const struct qm_image *from, const struct qm_extent *ext,
               struct qmeld_error *err)
{
    const struct qm_piece p = {
        .kind = QM_PIECE_VERIFY, .from = from, .ext = *ext, .len = ext->len, .worth = ext->len};

    qm_prefetch(from->file, ext->host.h, ext->payload_len);
    return qm_pool_put(copy->pool, &p, err);
}

int
qm_copy_foresee_shared(struct qm_copy *copy, const struct qm_want *want, uint64_t cluster_size,
                       uint64_t *out, struct qmeld_error *err)
{
    const struct qm_route *route;
    uint64_t size, head;

    *out = 0;
    if (!want->from || want->ext.kind != QM_DATA || copy->cfg.cipher || want->from->cipher)
        return 0;
    route = qm_route_to(&copy->routes, want->from->data);
    if (!route)
        return qm_fail_nomem(err, "the copy");
    size = want->from->data->size;
    if (route->foreseen && cluster_size % route->share.block == 0 && want->ext.host.h < size)
        *out = qm_route_shareable(route, want->guest.g, want->ext.host.h,
                                  qm_min(want->len, size - want->ext.host.h), &head);
    return 0;
}

struct qm_route_sums
qm_copy_sums(const struct qm_copy *copy, const struct qm_file *from)
{
    return qm_route_sums(&copy->routes, from);
}

void
qm_copy_spare(struct qm_copy *copy, uint64_t bytes)
{
    atomic_fetch_add(&copy->done, bytes);
}

struct qm_copy_costs
qm_copy_costs(const struct qm_copy *copy)
{
    return copy->costs;
}

int
qm_copy_tick(struct qm_copy *copy, struct qmeld_error *err)
{
    return qm_pool_tick(copy->pool, err);
}

int
qm_copy_drain(struct qm_copy *copy, struct qmeld_error *err)
{
    if (give_held(copy, err) < 0 || qm_pool_drain(copy->pool, err) < 0 ||
        (copy->later.n > 0 && give_later(copy, err) < 0))
        return -1;
    if (tick(copy) != 0)
        return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
    return 0;
}

void
qm_copy_synced(struct qm_copy *copy)
{
    if (!copy->behind)
        return;
    for (unsigned i = 0; i < copy->threads;
         i++) /* workers are idle; mapped pages are not forgotten */
        qm_window_release(&copy->workers[i].window);
    qm_behind_synced(copy->behind);
}

void
qm_copy_free(struct qm_copy *copy)
{
    if (!copy)
        return;
    qm_pool_free(copy->pool);
    for (unsigned i = 0; copy->workers && i < copy->threads; i++) {
        qm_window_release(&copy->workers[i].window);
        qm_codec_free(copy->workers[i].codec);
        free(copy->workers[i].buf);
        free(copy->workers[i].direct_buf);
    }
    free(copy->workers);
    qm_routes_release(&copy->routes);
    qm_direct_close(copy->direct);
    qm_vec_release(&copy->later);
    qm_behind_free(copy->behind);
    qm_window_release(&copy->from_ahead);
    qm_window_release(&copy->to_ahead);
    free(copy);
}
