/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "copy.h"

#include "pace.h"
#include "pagecache.h"
#include "route.h"
#include "shadow.h"
#include "work.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>

#define MAX_THREADS 16u
#define PIECE_BYTES                                                                                \
    (1ull << 20) /* a worker's portion: large enough to stream, small enough to share */
#define WINDOW_BYTES (16ull << 20) /* mapped at once, per worker */
#define QUEUE_LEN    64u
#define MAX_LATER    16384u       /* pieces of direct copies that wait for the others */
#define SHARE_BYTES  (1ull << 30) /* shared by one call: it cannot be stopped */

struct piece {
    enum { DATA, SHARE, COMPRESSED, ZERO, VERIFY } kind;
    const struct qm_image *from;
    struct qm_route *route; /* DATA, SHARE and COMPRESSED */
    struct qm_extent ext;   /* DATA and SHARE: .host only */
    uint64_t to;
    uint64_t len;
    uint64_t worth; /* guest bytes in the progress */
    bool direct;    /* whole units of direct.h: past the page cache */
    /* what of it the page cache had before (pagecache.h) */
    uint64_t from_there;
    uint64_t to_there;
};

struct worker_state {
    struct qm_window window;
    struct qm_codec *codec;
    unsigned char *buf; /* one inflated extent */
    uint64_t buf_len;
    unsigned char *direct_buf; /* piece_bytes */
};

struct qm_copy {
    /* set at new */
    struct qm_copy_config cfg;
    struct qm_pool *pool;
    unsigned threads;
    uint64_t piece_bytes;
    struct worker_state *workers; /* each its worker's own */
    struct qm_behind *behind;     /* NULL: nothing is written */
    struct qm_direct *direct;     /* NULL: through the page cache */
    /* the calling thread's */
    struct qm_window from_ahead; /* to look ahead of the workers; nothing is read through them */
    struct qm_window to_ahead;
    struct qm_routes routes;
    QM_VEC(struct piece) later; /* go through the page cache, when nothing goes past it */
    struct piece held;          /* DATA that the next move may continue; len 0: none */
    struct qm_pace pace;
    struct qm_copy_costs costs;
    bool stopped;
    /* any thread's */
    _Atomic bool no_direct; /* it was refused */
    _Atomic uint64_t done;
};

/* ---- on the workers ---- */

/* QEMU reads what a qcow2 file does not have as zeros; a raw file that lost its end failed. */
static uint64_t
bytes_inside(const struct piece *p)
{
    const uint64_t off = p->ext.host.h, size = p->from->file->size;

    if (!p->from->ops->pad_data)
        return p->len;
    return off < size ? qm_min(p->len, size - off) : 0;
}

/* Bytes that the file has; read through the worker's window if nobody else copies them. */
static int
write_inside(struct qm_copy *c, struct worker_state *w, const struct piece *p, uint64_t inside,
             struct qmeld_error *err)
{
    const struct qm_file *file = p->from->file;
    uint64_t done = 0;

    if (qm_route_offloads(p->route)) {
        qm_share_offload(c->cfg.target, p->to, file, p->ext.host.h, inside, &done);
        atomic_fetch_add(&p->route->offloaded, done);
        if (done < inside)
            p->route->no_offload = true;
    }
    if (w->window.file != file) {
        qm_window_release(&w->window);
        qm_window_init(&w->window, file, WINDOW_BYTES);
    }
    atomic_fetch_add(&p->route->copied, inside - done);
    if (qm_window_write(&w->window, p->ext.host.h + done, c->cfg.target, p->to + done,
                        inside - done, err) < 0)
        return -1;
    qm_behind_read(c->behind, file, p->ext.host.h, p->len, p->from_there);
    return 0;
}

static int
read_past_cache(const struct qm_copy *c, const struct piece *p, void *buf, bool *out_refused,
                struct qmeld_error *err)
{
    const uint64_t off = p->ext.host.h;

    *out_refused = false;
    if (p->route->direct)
        return qm_direct_read(p->route->direct, off, buf, p->len, out_refused, err);
    if (qm_pread(p->from->file, off, buf, p->len, err) < 0)
        return -1;
    qm_behind_read(c->behind, p->from->file, off, p->len, p->from_there);
    return 0;
}

/* *out_done false: it was refused, and is to go through the cache. */
static int
write_past_cache(struct qm_copy *c, struct worker_state *w, const struct piece *p, bool *out_done,
                 struct qmeld_error *err)
{
    bool refused;

    *out_done = false;
    if (!p->direct || c->no_direct)
        return 0;
    if (!w->direct_buf && !(w->direct_buf = qm_direct_buffer(c->piece_bytes)))
        return qm_fail_nomem(err, "the copy");
    if (read_past_cache(c, p, w->direct_buf, &refused, err) < 0 ||
        (!refused && qm_direct_write(c->direct, p->to, w->direct_buf, p->len, &refused, err) < 0))
        return -1;
    if (refused) {
        c->no_direct = true;
        return 0;
    }
    *out_done = true;
    atomic_fetch_add(&p->route->copied, p->len);
    atomic_fetch_add(&p->route->past_cache, p->len);
    return 0;
}

static int
write_data(struct qm_copy *c, struct worker_state *w, const struct piece *p,
           struct qmeld_error *err)
{
    const uint64_t inside = bytes_inside(p);
    bool done;

    if (write_past_cache(c, w, p, &done, err) < 0)
        return -1;
    if (done)
        return 0;

    if (inside > 0 && write_inside(c, w, p, inside, err) < 0)
        return -1;
    return inside < p->len ? qm_zero(c->cfg.target, p->to + inside, p->len - inside, false, err)
                           : 0;
}

/* The share of a piece's n first bytes in what it is worth. */
static uint64_t
worth_of(const struct piece *p, uint64_t n)
{
    return p->worth / p->len * n + p->worth % p->len * n / p->len;
}

static struct piece
part_of(const struct piece *p, uint64_t skip, uint64_t len)
{
    struct piece part = *p;

    part.worth = p->len ? worth_of(p, skip + len) - worth_of(p, skip) : 0;
    part.ext.host.h += skip;
    part.to += skip;
    part.len = len;
    return part;
}

/* As a whole, that is. */
static bool
is_direct(const struct qm_copy *c, const struct piece *p)
{
    const uint64_t unit = qm_direct_unit();

    return c->direct && !c->no_direct && p->len > 0 && p->to % unit == 0 && p->len % unit == 0 &&
           (p->kind == COMPRESSED ||
            (p->kind != ZERO && p->ext.host.h % unit == 0 && bytes_inside(p) == p->len));
}

/* *out_done false: not any more, with these two files. */
static int
share(struct qm_copy *c, const struct piece *p, bool *out_done, struct qmeld_error *err)
{
    *out_done = false;
    if (p->route->refused)
        return 0;
    if (qm_share_range(c->cfg.target, p->to, p->from->file, p->ext.host.h, p->len, out_done, err) <
        0)
        return -1;
    if (*out_done)
        atomic_fetch_add(&p->route->shared, p->len);
    else
        p->route->refused = true;
    return 0;
}

static int
share_or_copy(struct qm_copy *c, struct worker_state *w, const struct piece *p,
              struct qmeld_error *err)
{
    bool done;

    if (share(c, p, &done, err) < 0)
        return -1;
    for (uint64_t at = 0, n; !done && at < p->len; at += n) {
        struct piece part;

        n = qm_min(p->len - at, c->piece_bytes);
        part = part_of(p, at, n);
        part.direct = is_direct(c, &part);
        if (write_data(c, w, &part, err) < 0 ||
            qm_behind_wrote(c->behind, part.to, part.len, QM_CACHE_ALL, err) < 0)
            return -1;
    }
    return 0;
}

static int
inflate(struct worker_state *w, const struct piece *p, struct qmeld_error *err)
{
    if (!w->codec)
        w->codec = qm_codec_new();
    if (w->buf_len < p->len) {
        free(w->buf);
        w->buf_len = 0;
        w->buf = qm_direct_buffer(p->len);
    }
    if (!w->codec || !w->buf)
        return qm_fail_nomem(err, "an inflated cluster");
    w->buf_len = qm_max(w->buf_len, p->len);
    return qm_extent_read(p->from, &p->ext, w->codec, w->buf, err);
}

static int
write_inflated(struct qm_copy *c, const struct worker_state *w, const struct piece *p,
               struct qmeld_error *err)
{
    bool refused = true;

    if (p->direct && !c->no_direct &&
        qm_direct_write(c->direct, p->to, w->buf, p->len, &refused, err) < 0)
        return -1;
    c->no_direct |= p->direct && refused;
    if (refused && qm_pwrite(c->cfg.target, p->to, w->buf, p->len, err) < 0)
        return -1;
    atomic_fetch_add(&p->route->copied, p->len);
    atomic_fetch_add(&p->route->past_cache, refused ? 0 : p->len);
    return 0;
}

static int
run(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_copy *c = shared;
    struct worker_state *w = &c->workers[worker];
    const struct piece *p = item;
    int rc = -1;

    switch (p->kind) {
    case DATA:
        rc = write_data(c, w, p, err);
        break;
    case SHARE:
        rc = share_or_copy(c, w, p, err);
        break;
    case COMPRESSED:
        rc = inflate(w, p, err);
        if (rc == 0)
            rc = write_inflated(c, w, p, err);
        break;
    case VERIFY:
        rc = inflate(w, p, err);
        break;
    case ZERO: /* worth nothing */
        return qm_zero(c->cfg.target, p->to, p->len, false, err);
    }
    if (rc < 0)
        return -1;
    if ((p->kind == DATA || p->kind == COMPRESSED) && (!p->direct || c->no_direct) &&
        qm_behind_wrote(c->behind, p->to, p->len, p->to_there, err) < 0)
        return -1;
    atomic_fetch_add(&c->done, p->worth);
    return 0;
}

/* ---- on the calling thread ---- */

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
    struct qm_pool_config pool = {.item_size = sizeof(struct piece),
                                  .queue_len = QUEUE_LEN,
                                  .fn = run,
                                  .tick = tick,
                                  .shared = c};

    *out = NULL;
    if (!c)
        return qm_fail_nomem(err, "the copy");
    c->cfg = *config;
    if (config->direct && config->target)
        c->direct = qm_direct_open(config->target);
    qm_routes_init(&c->routes, config->target, c->direct != NULL);
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
pretend(struct qm_copy *c, const struct piece *p, struct qmeld_error *err)
{
    struct qm_file *to = c->cfg.target;
    uint64_t bytes = p->len;

    if (qm_copy_tick(c, err) < 0)
        return -1;
    if (p->kind == ZERO)
        return qm_shadow_hole(to, p->to, p->len, err);
    if (p->kind == SHARE) {
        bool done;

        return share(c, p, &done, err);
    }
    if (p->kind == DATA)
        bytes = bytes_inside(p);
    c->costs.bytes_read += p->kind == COMPRESSED ? p->ext.payload_len : bytes;
    c->costs.inflated += p->kind == COMPRESSED;
    c->costs.bytes_written += bytes;
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
        qm_window_init(ahead, file, WINDOW_BYTES);
    }
    return qm_cache_look(ahead, off, len);
}

/* The disk begins to read what the workers will come to; the queue is how far that is ahead of them. */
static void
look_ahead(struct qm_copy *c, struct piece *p)
{
    p->from_there = p->to_there = QM_CACHE_ALL;
    if (p->kind != DATA && p->kind != COMPRESSED)
        return;
    if (p->direct && p->route->direct)
        return;
    p->to_there = look(&c->to_ahead, c->cfg.target, p->to, p->len);
    if (p->kind == COMPRESSED) {
        qm_prefetch(p->from->file, p->ext.host.h, p->ext.payload_len);
        return;
    }
    p->from_there = look(&c->from_ahead, p->from->file, p->ext.host.h, p->len);
    if (p->from_there != QM_CACHE_ALL)
        qm_prefetch(p->from->file, p->ext.host.h, p->len);
}

/* To the workers; nothing is shared of it. */
static int
give_now(struct qm_copy *c, const struct piece *whole, struct qmeld_error *err)
{
    for (uint64_t at = 0, n; at < whole->len; at += n) {
        struct piece p;

        n = whole->kind == DATA ? qm_min(whole->len - at, c->piece_bytes) : whole->len;
        p = part_of(whole, whole->kind == DATA ? at : 0, n);
        p.direct = is_direct(c, &p);
        look_ahead(c, &p);
        if (throttle(c, p.kind == ZERO ? 0 : n, err) < 0 || qm_pool_put(c->pool, &p, err) < 0)
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
put_off(struct qm_copy *c, const struct piece *p, struct qmeld_error *err)
{
    if (p->len == 0)
        return 0;
    if (!qm_vec_push(&c->later, p))
        return qm_fail_nomem(err, "the list of moves");
    return c->later.n >= MAX_LATER ? give_later(c, err) : 0;
}

/* Past the page cache goes what is whole units in both files; the rest waits (direct.h says why). */
static int
give_past_cache(struct qm_copy *c, const struct piece *p, struct qmeld_error *err)
{
    const uint64_t unit = qm_direct_unit(), start = qm_align_up(p->to, unit);
    uint64_t end = start;
    struct piece head, middle, tail;

    if (p->kind != DATA)
        return is_direct(c, p) ? give_now(c, p, err) : put_off(c, p, err);
    if (p->to % unit == p->ext.host.h % unit)
        end = qm_align_down(p->to + bytes_inside(p), unit);
    if (end <= start)
        return put_off(c, p, err);
    head = part_of(p, 0, start - p->to);
    middle = part_of(p, start - p->to, end - start);
    tail = part_of(p, end - p->to, p->len - (end - p->to));
    return put_off(c, &head, err) < 0 || give_now(c, &middle, err) < 0 ? -1
                                                                       : put_off(c, &tail, err);
}

static int
give(struct qm_copy *c, const struct piece *p, struct qmeld_error *err)
{
    if (p->len == 0)
        return 0;
    if (is_dry(c))
        return pretend(c, p, err);
    return c->direct && !c->no_direct ? give_past_cache(c, p, err) : give_now(c, p, err);
}

/* The first range of two files is shared here: if it is refused, all else is copied by many threads. */
static int
give_shared(struct qm_copy *c, const struct piece *whole, struct qmeld_error *err)
{
    for (uint64_t at = 0, n; at < whole->len; at += n) {
        struct piece p;
        bool done = true;

        n = qm_min(whole->len - at, SHARE_BYTES);
        p = part_of(whole, at, n);
        p.kind = SHARE;
        if (is_dry(c)         ? pretend(c, &p, err) < 0
            : p.route->proven ? qm_pool_put(c->pool, &p, err) < 0
                              : share(c, &p, &done, err) < 0)
            return -1;
        if (!done) {
            p = part_of(whole, at, whole->len - at);
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
give_data(struct qm_copy *c, const struct piece *p, struct qmeld_error *err)
{
    struct piece head, shared, tail;
    uint64_t skip = 0, n = 0;

    if (p->len > 0 && qm_route_shares(p->route))
        n = qm_route_shareable(p->route, p->to, p->ext.host.h, bytes_inside(p), &skip);
    if (n == 0)
        return give(c, p, err);
    head = part_of(p, 0, skip);
    shared = part_of(p, skip, n);
    tail = part_of(p, skip + n, p->len - skip - n);
    if (give(c, &head, err) < 0 || give_shared(c, &shared, err) < 0)
        return -1;
    return give(c, &tail, err);
}

static int
give_held(struct qm_copy *c, struct qmeld_error *err)
{
    const struct piece p = c->held;

    c->held.len = 0;
    return give_data(c, &p, err);
}

int
qm_copy_put(struct qm_copy *copy, const struct qm_move *move, struct qmeld_error *err)
{
    struct piece p = {.from = move->from,
                      .ext = move->ext,
                      .to = move->to.h,
                      .len = move->len,
                      .from_there = QM_CACHE_ALL,
                      .to_there = QM_CACHE_ALL,
                      .worth = move->kind == QM_MOVE_COPY ? move->worth : 0};
    struct piece *held = &copy->held;

    if (move->kind == QM_MOVE_ZERO) {
        p.kind = ZERO;
        return give(copy, &p, err);
    }
    p.route = qm_route_to(&copy->routes, p.from->file);
    if (!p.route)
        return qm_fail_nomem(err, "the copy");
    if (move->ext.kind == QM_COMPRESSED) {
        p.kind = COMPRESSED;
        return give(copy, &p, err);
    }
    p.kind = DATA;
    if (held->len > 0 && held->from == p.from && held->to + held->len == p.to &&
        held->ext.host.h + held->len == p.ext.host.h) {
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

int
qm_copy_verify(struct qm_copy *copy, const struct qm_image *from, const struct qm_extent *ext,
               struct qmeld_error *err)
{
    const struct piece p = {
        .kind = VERIFY, .from = from, .ext = *ext, .len = ext->len, .worth = ext->len};

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
    if (!want->from || want->ext.kind != QM_DATA)
        return 0;
    route = qm_route_to(&copy->routes, want->from->file);
    if (!route)
        return qm_fail_nomem(err, "the copy");
    size = want->from->file->size;
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
