/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * diff.c - the sweep over two maps side by side, in rounds.
 *
 * Why this way.  A round goes on along both maps until there is work enough for all threads, lets them
 * read and compare, waits, and tells what they found in the order of the guest's bytes.  A job is an aligned
 * window of the guest's disk, however many pieces the maps cut it into, so that a compressed
 * cluster is inflated once, and scattered clusters do not cost a hand-over each.  The first rounds
 * are small: who only wants to know whether there is a difference shall not read much behind it.  What
 * cannot be read is told in the same order, after the differences in front of it.
 */
#include "diff.h"

#include "cipher.h"
#include "clock.h"
#include "pace.h"
#include "vec.h"
#include "work.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 16u
#define WINDOW      (2ull << 20) /* of a job; no cluster is larger */
#define SECTORS     (WINDOW / QM_SECTOR)
#define FIRST_JOBS  4u
#define MAX_JOBS    128u
#define MAX_PIECES  16384u
#define TICK_SEC    0.2

/* One side of a piece. */
struct source {
    const struct qm_image *img; /* NULL: zeros */
    struct qm_extent ext;
};

struct piece {
    guest_off guest;
    uint64_t len;
    struct source a, b;
};

struct job {
    uint64_t window; /* guest offset of its first byte */
    size_t first;    /* pieces, in order */
    size_t n;
    uint64_t
        failed_at; /* pieces from this guest offset on could not be read, for err; or UINT64_MAX */
    struct qmeld_error err;
    uint8_t differs[SECTORS / 8];
    uint8_t data_a[SECTORS / 8]; /* sectors that are not zeros in a */
};

/* What the sweep met, in order. */
struct event {
    guest_off guest;
    uint64_t len;
    enum { SAME, MAY_DIFFER, TO_READ } kind;
    bool zero_a;
    size_t job; /* TO_READ */
};

/* A compressed cluster that was inflated last: its neighbours come next. */
struct memo {
    const struct qm_image *img; /* NULL: none */
    uint64_t host;
    unsigned char *cluster;
};

struct worker {
    struct qm_codec *codec;
    unsigned char *buf[2];
    struct memo memo[2];
};

struct side {
    struct qm_map *map; /* NULL: zeros */
    const struct qm_chain *chain;
    struct qm_map_span span;
    bool ended;
};

/* Units are told whole: the one that is being looked at. */
struct unit {
    uint64_t lo; /* [lo, hi): what was met of it */
    uint64_t hi; /* equal to lo: nothing */
    bool differs;
    bool data_a;
};

struct qm_diff {
    struct qm_diff_config cfg;
    unsigned threads;
    struct qm_pool *pool; /* NULL until there is something to read */
    struct worker *workers;
    struct side a, b;
    uint64_t pos;
    size_t max_jobs; /* of the next round */
    /* the round: read only while workers run, but for the jobs' results */
    QM_VEC(struct piece) pieces;
    QM_VEC(struct event) events;
    struct job *jobs; /* MAX_JOBS */
    size_t n_jobs;
    /* told */
    struct unit unit;
    QM_VEC(struct qm_diff_range) out;
    size_t next;
    struct qm_pace pace;
    struct qm_diff_costs costs;
    double ticked; /* when progress was told last */
    bool failed;   /* for err, behind all that is in out */
    struct qmeld_error err;
};

/* ---- on the workers ---- */

static int
inflate(struct worker *w, struct memo *memo, const struct source *s, unsigned char *buf,
        struct qmeld_error *err)
{
    const struct qm_image *img = s->img;
    struct qm_extent whole = s->ext;

    whole.guest.g -= s->ext.skip;
    whole.skip = 0;
    whole.len = img->cluster_size;
    if (memo->img != img || memo->host != s->ext.host.h) {
        memo->img = NULL;
        if (!memo->cluster)
            memo->cluster = malloc(WINDOW);
        if (!w->codec)
            w->codec = qm_codec_new();
        if (!memo->cluster || !w->codec)
            return qm_fail_nomem(err, "comparing");
        if (qm_extent_read(img, &whole, w->codec, memo->cluster, err) < 0)
            return -1;
        memo->img = img;
        memo->host = s->ext.host.h;
    }
    memcpy(buf, memo->cluster + s->ext.skip, s->ext.len);
    return 0;
}

static int
read_source(struct worker *w, unsigned which, const struct source *s, uint64_t len,
            struct qmeld_error *err)
{
    if (!w->buf[which])
        w->buf[which] = malloc(WINDOW);
    if (!w->buf[which])
        return qm_fail_nomem(err, "comparing");
    if (!s->img) {
        memset(w->buf[which], 0, len);
        return 0;
    }
    if (s->ext.kind == QM_COMPRESSED)
        return inflate(w, &w->memo[which], s, w->buf[which], err);
    return qm_extent_read(s->img, &s->ext, NULL, w->buf[which], err);
}

static bool
is_zero(const unsigned char *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static void
set_bit(uint8_t *bits, uint64_t sector)
{
    bits[sector / 8] |= (uint8_t)(1u << sector % 8);
}

static bool
get_bit(const uint8_t *bits, uint64_t sector)
{
    return bits[sector / 8] >> sector % 8 & 1;
}

/* Sector by sector; the first and last may be cut. */
static void
note_sectors(const struct qm_diff *d, struct job *j, const struct piece *p, const unsigned char *a,
             const unsigned char *b)
{
    const uint64_t from = p->guest.g - j->window;
    const bool equal = memcmp(a, b, p->len) == 0;

    for (uint64_t at = 0; at < p->len && (!equal || d->cfg.look_at_zero);) {
        const uint64_t sector = (from + at) / QM_SECTOR;
        const uint64_t n = qm_min(p->len - at, (sector + 1) * QM_SECTOR - (from + at));

        if (!equal && memcmp(a + at, b + at, n) != 0)
            set_bit(j->differs, sector);
        if (d->cfg.look_at_zero && !is_zero(a + at, n))
            set_bit(j->data_a, sector);
        at += n;
    }
}

static int
run(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_diff *d = shared;
    struct worker *w = &d->workers[worker];
    struct job *j = &d->jobs[*(const size_t *)item];

    for (size_t i = j->first; i < j->first + j->n; i++) {
        const struct piece *p = &d->pieces.at[i];

        if (read_source(w, 0, &p->a, p->len, &j->err) < 0 ||
            read_source(w, 1, &p->b, p->len, &j->err) < 0) {
            j->failed_at = p->guest.g;
            break;
        }
        note_sectors(d, j, p, w->buf[0], w->buf[1]);
    }
    (void)err; /* others go on: what lies in front of it is to be told first */
    return 0;
}

/* ---- the sweep ---- */

static int
tick(void *shared)
{
    struct qm_diff *d = shared;
    const struct qmeld_progress p = {
        .done_bytes = d->pos, .total_bytes = d->cfg.end, .phase = d->cfg.phase};

    d->ticked = qm_clock_sec();
    return d->cfg.progress ? d->cfg.progress(&p, d->cfg.opaque) : 0;
}

/* Where nothing is to be read for long. */
static int
tick_if_due(struct qm_diff *d, struct qmeld_error *err)
{
    if (!d->cfg.progress || qm_clock_sec() - d->ticked < TICK_SEC || tick(d) == 0)
        return 0;
    return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
}

/* Makes the side's span one that covers at, which lies before end. */
static int
look(struct side *s, uint64_t at, uint64_t end, struct qmeld_error *err)
{
    while (!s->ended && s->span.guest.g + s->span.len <= at)
        if (qm_map_next(s->map, &s->span, &s->ended, err) < 0)
            return -1;
    if (s->ended)
        s->span = (struct qm_map_span){.guest = qm_guest(at),
                                       .len = end - at,
                                       .layer = QM_NO_LAYER,
                                       .ext = {.guest = qm_guest(at), .len = end - at}};
    return 0;
}

static struct source
source_at(const struct side *s, uint64_t at, uint64_t len)
{
    struct source out = {.img = NULL};

    if (s->span.ext.kind != QM_DATA && s->span.ext.kind != QM_COMPRESSED)
        return out;
    out.img = s->chain->layers[s->span.layer].img;
    out.ext = qm_extent_part(&s->span.ext, at - s->span.guest.g, len);
    return out;
}

/* Both read the same bytes of the same file. */
static bool
is_same(const struct source *a, const struct source *b)
{
    if (!a->img || !b->img)
        return a->img == b->img;
    if (a->ext.kind != b->ext.kind || a->ext.host.h != b->ext.host.h ||
        (a->img != b->img && !qm_file_same(a->img->data, b->img->data)))
        return false;
    return a->ext.kind == QM_DATA
               ? a->img->ops->pad_data == b->img->ops->pad_data &&
                     qm_cipher_same(a->img->cipher, b->img->cipher)
               : a->ext.payload_len == b->ext.payload_len && a->ext.skip == b->ext.skip &&
                     a->img->cluster_size == b->img->cluster_size;
}

static int
add_event(struct qm_diff *d, const struct event *e, struct qmeld_error *err)
{
    struct event *last = d->events.n ? qm_vec_last(&d->events) : NULL;

    if (last && last->kind == e->kind && last->zero_a == e->zero_a && last->job == e->job &&
        last->guest.g + last->len == e->guest.g) {
        last->len += e->len;
        return 0;
    }
    return qm_vec_push(&d->events, e) ? 0 : qm_fail_nomem(err, "comparing");
}

/* A piece within one window joins the window's job. */
static int
add_piece(struct qm_diff *d, const struct piece *p, struct qmeld_error *err)
{
    const uint64_t window = qm_align_down(p->guest.g, WINDOW);
    struct event e = {.guest = p->guest, .len = p->len, .kind = TO_READ, .zero_a = !p->a.img};

    if (d->n_jobs == 0 || d->jobs[d->n_jobs - 1].window != window) {
        struct job *j = &d->jobs[d->n_jobs++];

        memset(j, 0, sizeof *j);
        j->window = window;
        j->failed_at = UINT64_MAX;
        j->first = d->pieces.n;
    }
    e.job = d->n_jobs - 1;
    d->jobs[e.job].n++;
    d->pace.done += (p->a.img ? p->len : 0) + (p->b.img ? p->len : 0);
    d->costs.compared += p->len;
    if (!qm_vec_push(&d->pieces, p))
        return qm_fail_nomem(err, "comparing");
    return add_event(d, &e, err);
}

/* One step along both maps: as far as neither changes, and no further than a window if it must be read. */
static int
step(struct qm_diff *d, struct qmeld_error *err)
{
    const uint64_t at = d->pos, end = d->cfg.end;
    struct event e = {.guest = qm_guest(at), .kind = SAME};
    struct piece p = {.guest = qm_guest(at)};
    uint64_t n;

    if (tick_if_due(d, err) < 0 || look(&d->a, at, end, err) < 0 || look(&d->b, at, end, err) < 0)
        return -1;
    n = qm_min(d->a.span.guest.g + d->a.span.len, d->b.span.guest.g + d->b.span.len) - at;
    n = qm_min(n, end - at);
    if (d->cfg.skip && d->a.span.layer != QM_NO_LAYER && !d->a.span.past_end &&
        d->a.chain->layers[d->a.span.layer].img == d->cfg.skip) {
        d->pos += n;
        return 0;
    }
    p.a = source_at(&d->a, at, n);
    p.b = source_at(&d->b, at, n);
    e.zero_a = !p.a.img;
    if (!is_same(&p.a, &p.b)) {
        e.kind = MAY_DIFFER;
        if (!d->cfg.by_map) {
            n = qm_min(n, WINDOW - at % WINDOW);
            p.len = n;
            p.a = source_at(&d->a, at, n);
            p.b = source_at(&d->b, at, n);
            d->pos += n;
            return add_piece(d, &p, err);
        }
    } else if (p.a.img) {
        d->costs.same_by_map += n;
    }
    e.len = n;
    d->pos += n;
    return add_event(d, &e, err);
}

static bool
is_round_full(const struct qm_diff *d)
{
    return d->n_jobs >= d->max_jobs || d->pieces.n >= MAX_PIECES || d->events.n >= MAX_PIECES;
}

/* The last job may not get pieces in the next round: its window ends before the round does. */
static bool
may_end_round(const struct qm_diff *d)
{
    return d->n_jobs == 0 || d->pieces.n >= 2 * MAX_PIECES || d->events.n >= 2 * MAX_PIECES ||
           d->jobs[d->n_jobs - 1].window != qm_align_down(d->pos, WINDOW);
}

/* ---- reading ---- */

static int
open_pool(struct qm_diff *d, struct qmeld_error *err)
{
    const struct qm_pool_config config = {.threads = d->threads,
                                          .item_size = sizeof(size_t),
                                          .queue_len = MAX_JOBS,
                                          .fn = run,
                                          .tick = tick,
                                          .shared = d};

    if (d->pool)
        return 0;
    d->workers = calloc(d->threads, sizeof *d->workers);
    if (!d->workers)
        return qm_fail_nomem(err, "comparing");
    return qm_pool_new(&config, &d->pool, err);
}

static int
keep_pace(struct qm_diff *d, struct qmeld_error *err)
{
    while (qm_pace_is_ahead(&d->pace)) {
        if (qm_pool_tick(d->pool, err) < 0)
            return -1;
        qm_pace_nap();
    }
    return 0;
}

static int
read_jobs(struct qm_diff *d, struct qmeld_error *err)
{
    uint64_t bytes = d->pace.done - d->costs.bytes_read;

    if (d->n_jobs == 0)
        return d->pool ? qm_pool_tick(d->pool, err) : 0;
    if (open_pool(d, err) < 0)
        return -1;
    for (size_t i = 0; i < d->n_jobs; i++)
        if (qm_pool_put(d->pool, &i, err) < 0)
            return -1;
    if (qm_pool_drain(d->pool, err) < 0)
        return -1;
    for (unsigned i = 0; i < d->threads; i++) /* what it remembers of may be closed soon */
        d->workers[i].memo[0].img = d->workers[i].memo[1].img = NULL;
    d->costs.bytes_read += bytes;
    return keep_pace(d, err);
}

/* ---- telling ---- */

static int
emit(struct qm_diff *d, uint64_t lo, uint64_t hi, bool zero, struct qmeld_error *err)
{
    const struct qm_diff_range r = {qm_guest(lo), hi - lo, zero};
    struct qm_diff_range *last = d->out.n ? qm_vec_last(&d->out) : NULL;

    if (last && last->guest.g + last->len == lo && last->zero_a == zero) {
        last->len += hi - lo;
        return 0;
    }
    return qm_vec_push(&d->out, &r) ? 0 : qm_fail_nomem(err, "comparing");
}

static int
end_unit(struct qm_diff *d, struct qmeld_error *err)
{
    const struct unit u = d->unit;

    d->unit = (struct unit){.lo = 0};
    return u.differs ? emit(d, u.lo, u.hi, !u.data_a, err) : 0;
}

/* The next bytes, all of one kind. */
static int
feed(struct qm_diff *d, uint64_t lo, uint64_t hi, bool differs, bool data_a,
     struct qmeld_error *err)
{
    const uint64_t last = qm_align_down(hi - 1, d->cfg.unit);
    struct unit *u = &d->unit;

    if (u->hi > u->lo && qm_align_down(u->lo, d->cfg.unit) != qm_align_down(lo, d->cfg.unit) &&
        end_unit(d, err) < 0)
        return -1;
    if (u->hi > u->lo) { /* it begins in the same unit */
        u->hi = qm_min(hi, qm_align_down(lo, d->cfg.unit) + d->cfg.unit);
        u->differs |= differs;
        u->data_a |= data_a;
        lo = u->hi;
        if (lo == hi)
            return 0;
        if (end_unit(d, err) < 0)
            return -1;
    }
    if (lo < last) { /* whole units, however many */
        if (differs && emit(d, lo, last, !data_a, err) < 0)
            return -1;
        lo = last;
    }
    *u = (struct unit){.lo = lo, .hi = hi, .differs = differs, .data_a = data_a};
    return 0;
}

/* Up to `end`, which lies in the event or ends it. */
static int
feed_job(struct qm_diff *d, const struct event *e, uint64_t end, struct qmeld_error *err)
{
    const struct job *j = &d->jobs[e->job];

    for (uint64_t at = e->guest.g; at < end;) {
        const uint64_t first = (at - j->window) / QM_SECTOR;
        const bool differs = get_bit(j->differs, first);
        const bool data_a = d->cfg.look_at_zero ? get_bit(j->data_a, first) : !e->zero_a;
        uint64_t stop = j->window + (first + 1) * QM_SECTOR;

        /* equal neighbours in one go; they are most of it */
        while (
            !differs && stop < end && !get_bit(j->differs, (stop - j->window) / QM_SECTOR) &&
            (!d->cfg.look_at_zero || get_bit(j->data_a, (stop - j->window) / QM_SECTOR) == data_a))
            stop += QM_SECTOR;
        stop = qm_min(stop, end);
        if (feed(d, at, stop, differs, data_a, err) < 0)
            return -1;
        at = stop;
    }
    return 0;
}

static int
feed_event(struct qm_diff *d, const struct event *e, struct qmeld_error *err)
{
    const uint64_t end = e->guest.g + e->len;
    const struct job *j;

    if (e->kind != TO_READ)
        return feed(d, e->guest.g, end, e->kind == MAY_DIFFER, !e->zero_a, err);
    j = &d->jobs[e->job];
    if (j->failed_at >= end)
        return feed_job(d, e, end, err);
    d->failed = true;
    d->costs.reading = true;
    d->err = j->err;
    return feed_job(d, e, j->failed_at, err);
}

/* What a failure of the sweep itself leaves is looked at first. */
static void
sweep(struct qm_diff *d)
{
    struct qmeld_error err = {0};

    while (!d->failed && d->pos < d->cfg.end && !(is_round_full(d) && may_end_round(d)))
        if (step(d, &err) < 0) {
            d->failed = true;
            d->err = err;
        }
}

/* The next round; afterwards d->out has what it found. */
static int
go_round(struct qm_diff *d, struct qmeld_error *err)
{
    qm_vec_clear(&d->out);
    qm_vec_clear(&d->pieces);
    qm_vec_clear(&d->events);
    d->next = d->n_jobs = 0;
    sweep(d);
    if (read_jobs(d, err) < 0)
        return -1;
    d->max_jobs = qm_min(2 * d->max_jobs, MAX_JOBS - 1);
    for (size_t i = 0; i < d->events.n && !d->costs.reading; i++)
        if (feed_event(d, &d->events.at[i], err) < 0)
            return -1;
    return d->failed || d->pos == d->cfg.end ? end_unit(d, err) : 0;
}

/* Tells what stopped the walk; what is on disk the caller has in *err. */
static int
tell_failure(const struct qm_diff *d, struct qmeld_error *err)
{
    const enum qmeld_disk disk = err->disk;

    *err = d->err;
    qm_err_disk(err, disk);
    return -1;
}

/* ---- calls ---- */

static int
open_side(const struct qm_view *v, uint64_t end, struct side *out, struct qmeld_error *err)
{
    out->chain = v->chain;
    out->ended = !v->chain;
    return v->chain ? qm_map_open(v->chain, 0, v->top, qm_guest(0), end, &out->map, err) : 0;
}

int
qm_diff_open(const struct qm_diff_config *config, struct qm_diff **out, struct qmeld_error *err)
{
    const unsigned threads = config->threads ? config->threads : qm_processors();
    struct qm_diff *d = calloc(1, sizeof *d);

    *out = NULL;
    assert(config->unit >= QM_SECTOR && (config->unit & (config->unit - 1)) == 0);
    if (!d || !(d->jobs = calloc(MAX_JOBS, sizeof *d->jobs))) {
        free(d);
        return qm_fail_nomem(err, "comparing");
    }
    d->cfg = *config;
    d->threads = threads < MAX_THREADS ? threads : MAX_THREADS;
    d->max_jobs = FIRST_JOBS;
    d->ticked = qm_clock_sec();
    qm_pace_begin(&d->pace, config->bandwidth);
    if (open_side(&config->a, config->end, &d->a, err) < 0 ||
        open_side(&config->b, config->end, &d->b, err) < 0) {
        qm_diff_close(d);
        return -1;
    }
    *out = d;
    return 0;
}

int
qm_diff_next(struct qm_diff *d, struct qm_diff_range *out, bool *out_done, struct qmeld_error *err)
{
    while (d->next == d->out.n) {
        if (d->failed)
            return tell_failure(d, err);
        if (d->pos == d->cfg.end) {
            *out_done = true;
            return 0;
        }
        if (go_round(d, err) < 0)
            return -1;
    }
    *out = d->out.at[d->next++];
    *out_done = false;
    return 0;
}

struct qm_diff_costs
qm_diff_costs(const struct qm_diff *d)
{
    return d->costs;
}

void
qm_diff_close(struct qm_diff *d)
{
    if (!d)
        return;
    qm_pool_free(d->pool);
    for (unsigned i = 0; d->workers && i < d->threads; i++) {
        qm_codec_free(d->workers[i].codec);
        for (unsigned k = 0; k < 2; k++) {
            free(d->workers[i].buf[k]);
            free(d->workers[i].memo[k].cluster);
        }
    }
    free(d->workers);
    free(d->jobs);
    qm_map_close(d->a.map);
    qm_map_close(d->b.map);
    qm_vec_release(&d->pieces);
    qm_vec_release(&d->events);
    qm_vec_release(&d->out);
    free(d);
}
