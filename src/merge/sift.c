/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "sift.h"

#include "pace.h"
#include "qcow2.h"
#include "work.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define MAX_THREADS 16u
#define JOBS        64u
#define JOB_BYTES   (1ull << 20) /* unless a cluster is larger */
#define RAW_UNIT    4096u        /* what file systems allocate; QEMU looks for zeros in this, too */

/* What is known of a unit; over all that is wanted of it. */
enum {
    DIFFERS = 1, /* some byte is not what the target reads as */
    NONZERO = 2, /* some byte is not 0 */
    HAS_DATA = 4,
};

struct part {
    struct qm_want want;
    bool asked;
};

/* What the target reads as; from NULL: zeros. */
struct span {
    guest_off guest;
    uint64_t len;
    const struct qm_image *from;
    struct qm_extent ext;
};

/* Wants of one stretch of units.  Filled by the calling thread, looked at by a worker, given out by the
 * calling thread. */
struct job {
    guest_off from; /* a multiple of the job length */
    QM_VEC(struct part) parts;
    QM_VEC(struct span) had; /* without gaps, from the first part on, as far as it could be told */
    unsigned char *flags;    /* of each unit */
    bool decided;            /* nothing to look at: */
    enum qm_verdict verdict; /* of all parts */
};

struct worker_state {
    struct qm_codec *codec;
    unsigned char *want; /* a job's length each */
    unsigned char *have;
};

struct qm_sift {
    /* set at open */
    struct qm_sift_config cfg;
    uint64_t unit;
    uint64_t cluster; /* of the target; a raw one's is the unit */
    uint64_t job_len;
    unsigned threads;
    struct worker_state *workers; /* each its worker's own */
    struct qm_pool *pool;         /* NULL: nothing is looked at */
    /* the calling thread's, except that a job is its worker's until the pool is drained */
    struct qm_plan *plan;
    struct part rest; /* of the want that the plan gave last; len 0: none */
    bool plan_done;
    bool hurry;
    struct job jobs[JOBS];
    size_t n_jobs;
    size_t job; /* the one that is given out, */
    size_t part;
    uint64_t done; /* and bytes of its part that were */
    struct qm_pace pace;
    /* any thread's */
    _Atomic uint64_t bytes_read;
};

/* ---- on the workers ---- */

static bool
is_zero(const unsigned char *p, uint64_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

static unsigned char *
flag_of(const struct qm_sift *s, const struct job *job, uint64_t guest)
{
    return &job->flags[(guest - job->from.g) / s->unit];
}

static uint64_t
unit_end(const struct qm_sift *s, uint64_t guest)
{
    return qm_align_down(guest, s->unit) + s->unit;
}

static void
set_flags(const struct qm_sift *s, const struct job *job, uint64_t from, uint64_t to, int flag)
{
    for (uint64_t at = from; at < to; at = unit_end(s, at))
        *flag_of(s, job, at) |= (unsigned char)flag;
}

static int
read_part(struct qm_sift *s, const struct worker_state *w, const struct qm_image *from,
          const struct qm_extent *ext, unsigned char *to, struct qmeld_error *err)
{
    atomic_fetch_add(&s->bytes_read, ext->kind == QM_COMPRESSED ? ext->payload_len : ext->len);
    return qm_extent_read(from, ext, w->codec, to, err);
}

static int
read_wanted(struct qm_sift *s, const struct worker_state *w, const struct job *job,
            struct qmeld_error *err)
{
    QM_VEC_EACH (p, &job->parts) {
        unsigned char *to = w->want + (p->want.guest.g - job->from.g);

        if (!p->want.from)
            memset(to, 0, p->want.len);
        else if (read_part(s, w, p->want.from, &p->want.ext, to, err) < 0)
            return -1;
    }
    return 0;
}

/* Of one part; what cannot be read differs. */
static void
read_had(struct qm_sift *s, const struct worker_state *w, const struct job *job,
         const struct qm_want *want)
{
    const uint64_t end = want->guest.g + want->len;
    uint64_t told = want->guest.g;

    QM_VEC_EACH (b, &job->had) {
        const uint64_t from = qm_max(b->guest.g, want->guest.g),
                       to = qm_min(b->guest.g + b->len, end);
        struct qmeld_error unheard = {0};
        struct qm_extent ext;

        if (from >= to)
            continue;
        told = to;
        if (!b->from) {
            memset(w->have + (from - job->from.g), 0, to - from);
            continue;
        }
        ext = qm_extent_part(&b->ext, from - b->guest.g, to - from);
        if (read_part(s, w, b->from, &ext, w->have + (from - job->from.g), &unheard) < 0)
            set_flags(s, job, from, to, DIFFERS);
    }
    set_flags(s, job, told, end, DIFFERS);
}

static void
compare(const struct qm_sift *s, const struct worker_state *w, const struct job *job,
        const struct qm_want *want)
{
    const uint64_t end = want->guest.g + want->len;

    for (uint64_t at = want->guest.g, to; at < end; at = to) {
        const uint64_t off = at - job->from.g;
        unsigned char *flags = flag_of(s, job, at);

        to = qm_min(end, unit_end(s, at));
        if (s->cfg.skip_equal && !(*flags & DIFFERS) &&
            memcmp(w->want + off, w->have + off, to - at) != 0)
            *flags |= DIFFERS;
        if (!want->from)
            continue;
        *flags |= HAS_DATA;
        if (!(*flags & NONZERO) && !is_zero(w->want + off, to - at))
            *flags |= NONZERO;
    }
}

/* A compressed cluster stays in one piece: it may go into the target as it is. */
static void
join_units(const struct qm_sift *s, const struct job *job, uint64_t guest)
{
    const uint64_t from = qm_align_down(guest, s->cluster), to = from + s->cluster;
    int all = 0;

    for (uint64_t at = from; at < to; at += s->unit)
        all |= *flag_of(s, job, at);
    set_flags(s, job, from, to, all);
}

static int
look(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_sift *s = shared;
    const struct worker_state *w = &s->workers[worker];
    const struct job *job = *(struct job *const *)item;

    if (read_wanted(s, w, job, err) < 0)
        return -1;
    QM_VEC_EACH (p, &job->parts) {
        if (s->cfg.skip_equal)
            read_had(s, w, job, &p->want);
        compare(s, w, job, &p->want);
    }
    if (s->unit == s->cluster)
        return 0;
    QM_VEC_EACH (p, &job->parts) {
        const uint64_t end = p->want.guest.g + p->want.len;

        for (uint64_t at = p->want.guest.g; p->want.ext.kind == QM_COMPRESSED && at < end;
             at = qm_align_down(at, s->cluster) + s->cluster)
            join_units(s, job, at);
    }
    return 0;
}

/* ---- open ---- */

static int
tick(void *shared)
{
    struct qm_sift *s = shared;
    const int said = s->cfg.tick ? s->cfg.tick(s->cfg.opaque) : 0;

    s->hurry = s->hurry || said > 0;
    return said < 0;
}

static void
set_units(struct qm_sift *s)
{
    const struct qm_image *target = s->cfg.plan.chain->layers[s->cfg.plan.target].img;
    const struct qm_qcow2 *q = qm_qcow2_of((struct qm_image *)(uintptr_t)target);

    s->cluster = q ? q->geo.cluster_size : RAW_UNIT;
    s->unit = q ? q->geo.subcluster_size : RAW_UNIT;
    s->job_len = qm_max(JOB_BYTES, s->cluster);
}

static int
open_workers(struct qm_sift *s, struct qmeld_error *err)
{
    const struct qm_pool_config config = {.threads = s->threads,
                                          .item_size = sizeof(struct job *),
                                          .queue_len = JOBS,
                                          .fn = look,
                                          .tick = tick,
                                          .shared = s};

    s->workers = calloc(s->threads, sizeof *s->workers);
    if (!s->workers)
        return qm_fail_nomem(err, "looking at what is to be merged");
    for (unsigned i = 0; i < s->threads; i++) {
        struct worker_state *w = &s->workers[i];

        w->codec = qm_codec_new();
        w->want = malloc(s->job_len);
        w->have = malloc(s->job_len);
        if (!w->codec || !w->want || !w->have)
            return qm_fail_nomem(err, "looking at what is to be merged");
    }
    for (size_t i = 0; i < JOBS; i++) {
        s->jobs[i].flags = malloc(s->job_len / s->unit);
        if (!s->jobs[i].flags)
            return qm_fail_nomem(err, "looking at what is to be merged");
    }
    return qm_pool_new(&config, &s->pool, err);
}

int
qm_sift_open(const struct qm_sift_config *config, struct qm_sift **out, struct qmeld_error *err)
{
    struct qm_sift *s = calloc(1, sizeof *s);

    *out = NULL;
    if (!s)
        return qm_fail_nomem(err, "the plan");
    s->cfg = *config;
    s->threads = config->threads ? config->threads : qm_processors();
    s->threads = s->threads > MAX_THREADS ? MAX_THREADS : s->threads;
    set_units(s);
    qm_pace_begin(&s->pace, config->bandwidth);
    if (qm_plan_open(&config->plan, &s->plan, err) < 0 ||
        ((config->skip_equal || config->detect_zeroes) && open_workers(s, err) < 0)) {
        qm_sift_close(s);
        return -1;
    }
    *out = s;
    return 0;
}

void
qm_sift_close(struct qm_sift *s)
{
    if (!s)
        return;
    qm_pool_free(s->pool);
    qm_plan_close(s->plan);
    for (size_t i = 0; i < JOBS; i++) {
        qm_vec_release(&s->jobs[i].parts);
        qm_vec_release(&s->jobs[i].had);
        free(s->jobs[i].flags);
    }
    for (unsigned i = 0; s->workers && i < s->threads; i++) {
        qm_codec_free(s->workers[i].codec);
        free(s->workers[i].want);
        free(s->workers[i].have);
    }
    free(s->workers);
    free(s);
}

/* ---- jobs ---- */

/* The first len bytes of the rest become a part of job. */
static int
take(struct qm_sift *s, struct job *job, uint64_t len, struct qmeld_error *err)
{
    struct part p = s->rest;
    struct qm_want *left = &s->rest.want;

    p.want.len = len;
    if (p.want.from)
        p.want.ext = qm_extent_part(&left->ext, 0, len);
    if (!qm_vec_push(&job->parts, &p))
        return qm_fail_nomem(err, "the plan");
    if (left->from && len < left->len)
        left->ext = qm_extent_part(&left->ext, len, left->len - len);
    left->guest.g += len;
    left->len -= len;
    return 0;
}

static struct job *
new_job(struct qm_sift *s)
{
    struct job *job = &s->jobs[s->n_jobs++];

    job->from = qm_guest(qm_align_down(s->rest.want.guest.g, s->job_len));
    qm_vec_clear(&job->parts);
    qm_vec_clear(&job->had);
    job->decided = false;
    return job;
}

static int
decide(struct qm_sift *s, uint64_t len, enum qm_verdict verdict, struct qmeld_error *err)
{
    struct job *job = new_job(s);

    job->decided = true;
    job->verdict = verdict;
    return take(s, job, len, err);
}

static bool
reads_zero(const struct qm_map_span *span)
{
    return span->ext.kind == QM_ZERO || span->ext.kind == QM_ABSENT;
}

/* How much of the zero want at hand the target reads as zeros, known without its bytes. */
static uint64_t
zeros_below(const struct qm_sift *s)
{
    const uint64_t end = s->cfg.plan.old_size;
    const struct qm_want *want = &s->rest.want;
    struct qmeld_error unheard = {0};
    struct qm_map_span span;
    struct qm_map *map;
    uint64_t found = 0;
    bool done;

    if (want->guest.g >= end ||
        qm_map_open(s->cfg.have, 0, s->cfg.have->n - 1, want->guest,
                    qm_min(want->len, end - want->guest.g), &map, &unheard) < 0)
        return 0;
    if (qm_map_next(map, &span, &done, &unheard) == 0 && !done && reads_zero(&span))
        found = span.len;
    qm_map_close(map);
    return found;
}

/* Long zeros are not cut into units: *out_done if the rest's beginning was decided at once. */
static int
decide_zeros(struct qm_sift *s, bool *out_done, struct qmeld_error *err)
{
    const struct qm_want *want = &s->rest.want;
    const uint64_t whole = qm_align_down(want->len, s->unit);
    uint64_t equal;

    *out_done = false;
    if (want->from || want->guest.g % s->unit != 0 || whole == 0)
        return 0;
    equal = s->cfg.skip_equal ? qm_align_down(zeros_below(s), s->unit) : 0;
    *out_done = equal > 0 || !s->cfg.skip_equal || want->guest.g >= s->cfg.plan.old_size;
    if (!*out_done)
        return 0;
    return equal ? decide(s, equal, QM_SIFT_SKIP, err) : decide(s, whole, QM_SIFT_KEEP, err);
}

/* What the target has where the job wants something.  What cannot be found out is no part of it. */
static int
ask_target(const struct qm_sift *s, struct job *job, struct qmeld_error *err)
{
    const struct qm_chain *have = s->cfg.have;
    const struct qm_want *first = &job->parts.at[0].want, *last = &qm_vec_last(&job->parts)->want;
    const uint64_t end = qm_min(last->guest.g + last->len, s->cfg.plan.old_size);
    struct qmeld_error unheard = {0};
    struct qm_map *map;
    int rc = 0;

    if (first->guest.g >= end ||
        qm_map_open(have, 0, have->n - 1, first->guest, end - first->guest.g, &map, &unheard) < 0)
        return 0;
    while (rc == 0) {
        struct qm_map_span found;
        struct span b;
        bool done;

        if (qm_map_next(map, &found, &done, &unheard) < 0 || done)
            break;
        b = (struct span){.guest = found.guest, .len = found.len};
        if (!reads_zero(&found)) {
            b.from = have->layers[found.layer].img;
            b.ext = found.ext;
        }
        if (!qm_vec_push(&job->had, &b))
            rc = qm_fail_nomem(err, "the plan");
    }
    qm_map_close(map);
    return rc;
}

static int
submit(struct qm_sift *s, struct job *job, struct qmeld_error *err)
{
    memset(job->flags, 0, s->job_len / s->unit);
    if (s->cfg.skip_equal && ask_target(s, job, err) < 0)
        return -1;
    while (!s->hurry && qm_pace_is_ahead(&s->pace)) {
        if (qm_pool_tick(s->pool, err) < 0)
            return -1;
        qm_pace_nap();
    }
    QM_VEC_EACH (p, &job->parts)
        s->pace.done += p->want.len;
    return qm_pool_put(s->pool, &job, err);
}

/* The rest, or the plan's next want; its len is 0 when there is none. */
static int
ensure_rest(struct qm_sift *s, struct qmeld_error *err)
{
    if (s->rest.want.len > 0 || s->plan_done)
        return 0;
    if (qm_plan_next(s->plan, &s->rest.want, &s->rest.asked, &s->plan_done, err) < 0)
        return -1;
    if (s->plan_done)
        s->rest.want.len = 0;
    return s->pool ? qm_pool_tick(s->pool, err) : 0;
}

/* Zeros end where they can be decided at once again. */
static uint64_t
portion(const struct qm_sift *s, const struct job *job)
{
    const struct qm_want *want = &s->rest.want;
    const uint64_t to = want->from || want->guest.g % s->unit == 0 ? job->from.g + s->job_len
                                                                   : unit_end(s, want->guest.g);

    return qm_min(want->len, to - want->guest.g);
}

/* A job of what lies in one stretch; or several that are decided. */
static int
add_job(struct qm_sift *s, struct qmeld_error *err)
{
    struct job *job = NULL;
    bool decided;

    for (;;) {
        if (ensure_rest(s, err) < 0 || decide_zeros(s, &decided, err) < 0)
            return -1;
        if (decided)
            break;
        job = job ? job : new_job(s);
        if (take(s, job, portion(s, job), err) < 0 || ensure_rest(s, err) < 0)
            return -1;
        if (s->rest.want.len == 0 || s->rest.want.guest.g >= job->from.g + s->job_len)
            break;
    }
    return job ? submit(s, job, err) : 0;
}

/* Looks at what comes next, as far ahead as there are jobs. */
static int
refill(struct qm_sift *s, struct qmeld_error *err)
{
    s->n_jobs = s->job = s->part = 0;
    s->done = 0;
    s->hurry = false;
    /* one adds two at most: one to look at, and one that was decided */
    while (s->n_jobs + 2 <= JOBS && !s->hurry) {
        if (ensure_rest(s, err) < 0)
            return -1;
        if (s->rest.want.len == 0)
            break;
        if (add_job(s, err) < 0)
            return -1;
    }
    return qm_pool_drain(s->pool, err);
}

/* ---- giving out ---- */

static enum qm_verdict
verdict_at(const struct qm_sift *s, const struct job *job, const struct part *p, uint64_t guest)
{
    const unsigned char flags = job->decided ? 0 : *flag_of(s, job, guest);

    if (job->decided)
        return job->verdict;
    if (s->cfg.skip_equal && !(flags & DIFFERS))
        return QM_SIFT_SKIP;
    return s->cfg.detect_zeroes && p->want.from && !(flags & NONZERO) ? QM_SIFT_ZERO : QM_SIFT_KEEP;
}

/* What of the part has one verdict. */
static void
give_run(struct qm_sift *s, const struct job *job, const struct part *p, struct qm_sifted *out)
{
    const uint64_t from = p->want.guest.g + s->done, end = p->want.guest.g + p->want.len;
    uint64_t to = job->decided ? end : qm_min(end, unit_end(s, from));

    out->verdict = verdict_at(s, job, p, from);
    while (to < end && verdict_at(s, job, p, to) == out->verdict)
        to = qm_min(end, unit_end(s, to));
    out->asked = p->asked;
    out->want = (struct qm_want){.guest = qm_guest(from), .len = to - from};
    if (p->want.from && out->verdict != QM_SIFT_ZERO) {
        out->want.from = p->want.from;
        out->want.layer = p->want.layer;
        out->want.ext = qm_extent_part(&p->want.ext, s->done, to - from);
    }
    s->done += to - from;
    if (s->done < p->want.len)
        return;
    s->done = 0;
    s->part++;
    if (s->part == job->parts.n) {
        s->part = 0;
        s->job++;
    }
}

int
qm_sift_next(struct qm_sift *s, struct qm_sifted *out, bool *out_done, struct qmeld_error *err)
{
    if (!s->pool) {
        out->verdict = QM_SIFT_KEEP;
        return qm_plan_next(s->plan, &out->want, &out->asked, out_done, err);
    }
    if (s->job == s->n_jobs && refill(s, err) < 0)
        return -1;
    *out_done = s->job == s->n_jobs;
    if (!*out_done)
        give_run(s, &s->jobs[s->job], &s->jobs[s->job].parts.at[s->part], out);
    return 0;
}

uint64_t
qm_sift_bytes_read(const struct qm_sift *s)
{
    return atomic_load(&s->bytes_read);
}
