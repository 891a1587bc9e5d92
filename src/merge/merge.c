/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge.c - qmeld_commit: chain, map, plan, copy, seal in a few readable calls.
 */
#include "copy.h"
#include "lock.h"
#include "merge.h"
#include "plan.h"
#include "qcow2.h"
#include "seal.h"
#include "settle.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* A batch ends when it has this much data, or lists this long.  An interrupted merge repeats at
 * most one batch; each costs two syncs. */
#ifdef QM_TESTING
struct qm_merge_limits
#else
static const struct qm_merge_limits
#endif
    qm_merge_limits = {.batch = 512ull << 20, .batch_weight = 16u << 20, .step = 64ull << 20};

struct merge {
    const struct qmeld_commit_options *opts;
    struct qmeld_commit_report *report;
    struct qm_chain *chain;
    size_t base;
    size_t top;
    uint64_t base_size;
    uint64_t new_size;
    uint64_t hidden_end; /* as in plan.h */
    struct qm_settle_config settle_config;
    struct qm_settle *settle;
    struct qm_seal *seal;
    struct qm_copy *copy;
    struct qm_moves moves;
    uint64_t total;       /* bytes to copy */
    uint64_t batch_bytes; /* in the batch so far */
    uint64_t batch_end;   /* where its last want ends */
};

/* ---- what is asked ---- */

static int
find_range(struct merge *m, struct qmeld_error *err)
{
    const struct qmeld_commit_options *o = m->opts;
    struct qm_chain *chain = m->chain;

    m->top = chain->n - 1;
    if (o->top && qm_chain_find(chain, o->top, &m->top, err) < 0)
        return -1;
    m->base = o->shallow && m->top > 0 ? m->top - 1 : 0;
    if (!o->base)
        return 0;
    if (qm_chain_find(chain, o->base, &m->base, err) < 0)
        return -1;
    if (o->shallow && m->base + 1 != m->top)
        return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[m->base].path),
                       "it does not lie directly under the top %s: leave out --base or --shallow",
                       chain->layers[m->top].path);
    if (m->base >= m->top)
        return qm_fail(err, QMELD_USAGE, qm_in(chain->layers[m->base].path),
                       "the base must lie below the top %s in the chain: `qmeld info` shows the "
                       "order",
                       chain->layers[m->top].path);
    return 0;
}

/* The corrupt bit forbids writing (specification, "incompatible_features"), and a corrupt
 * source would be copied as if it were right.  An overlay's internal snapshots read through
 * the layers below, which are about to change. */
static int
refuse_layer(const struct merge *m, size_t i, struct qmeld_error *err)
{
    const struct qm_layer *layer = &m->chain->layers[i];
    const struct qm_qcow2 *q = qm_qcow2_of(layer->img);

    if (!q)
        return 0;
    if (q->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return qm_fail(err, QMELD_CORRUPT, qm_in(layer->path),
                       "the image is marked corrupt: run `qmeld check --repair=all` on it first");
    if (i > m->base && i <= m->top && q->hdr.n_snapshots > 0)
        return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                       "it has %" PRIu32
                       " internal snapshots, which would read other data after the merge: delete "
                       "them first (`qemu-img snapshot -d`)",
                       q->hdr.n_snapshots);
    return 0;
}

/* The base and the middle layers hold, by themselves, neither the old nor the new view while
 * the merge runs: nobody may even read them.  Whose header is rewritten may not be opened. */
static int
lock_layers(const struct merge *m, struct qmeld_error *err)
{
    const bool change_top = m->opts->overlays != QMELD_OVERLAYS_KEEP;

    for (size_t i = m->base; i < m->chain->n && i <= m->top + 1; i++) {
        enum qm_lock_role role = QM_LOCK_EXCLUSIVE;

        if (i == m->top)
            role = change_top ? QM_LOCK_WRITER : QM_LOCK_READER;
        else if (i > m->top)
            role = QM_LOCK_WRITER;
        if (refuse_layer(m, i, err) < 0 ||
            qm_lock_take(m->chain->layers[i].img->file, role, err) < 0)
            return -1;
    }
    return 0;
}

/* Guest bytes of the base that the child will see when it reads the base itself: up to its own
 * end, or that of an internal snapshot taken before it was shrunk, to which it can be reverted. */
static int
find_hidden_end(struct merge *m, struct qmeld_error *err)
{
    const size_t child = m->top + 1;
    const struct qm_qcow2 *q;
    struct qm_snapshots snapshots;
    int rc;

    if (child >= m->chain->n)
        return 0;
    m->hidden_end = m->chain->layers[child].img->size;
    q = qm_qcow2_of(m->chain->layers[child].img);
    if (q) {
        rc = qm_qcow2_read_snapshots(q, &snapshots, err);
        QM_VEC_EACH (s, &snapshots.list)
            m->hidden_end = qm_max(m->hidden_end, s->disk_size);
        qm_snapshots_release(&snapshots);
        if (rc < 0)
            return -1;
    }
    m->hidden_end = qm_min(m->hidden_end, m->base_size);
    return 0;
}

/* ---- the two walks over the plan ---- */

static int
open_plan(const struct merge *m, struct qm_plan **out, struct qmeld_error *err)
{
    const struct qm_plan_config config = {.chain = m->chain,
                                          .base = m->base,
                                          .top = m->top,
                                          .base_size = m->base_size,
                                          .new_size = m->new_size,
                                          .hidden_end = m->hidden_end};

    return qm_plan_open(&config, out, err);
}

static int
open_copy(struct merge *m, const char *phase, bool verify_only, struct qmeld_error *err)
{
    const struct qm_copy_config config = {
        .target = verify_only ? NULL : m->chain->layers[m->base].img->file,
        .threads = m->opts->threads,
        .bandwidth = verify_only ? 0 : m->opts->bandwidth,
        .total_bytes = m->total,
        .phase = phase,
        .progress = m->opts->progress,
        .opaque = m->opts->opaque};

    return qm_copy_new(&config, &m->copy, err);
}

/* First walk: every table of the sources is read, every compressed cluster inflated, and the work
 * counted, before the first write.  What cannot be read is found while all is as it was. */
static int
count(struct merge *m, struct qmeld_error *err)
{
    struct qm_plan *plan = NULL;
    bool asked, done = false;
    int rc;

    if (open_copy(m, "count", true, err) < 0)
        return -1;
    rc = open_plan(m, &plan, err);
    while (rc == 0) {
        struct qm_want want;

        rc = qm_plan_next(plan, &want, &asked, &done, err);
        if (rc < 0 || done)
            break;
        m->total += want.from ? want.len : 0;
        if (want.from && want.ext.kind == QM_COMPRESSED)
            rc = qm_copy_verify(m->copy, want.from, &want.ext, err);
    }
    if (rc == 0)
        rc = qm_copy_drain(m->copy, err);
    qm_plan_close(plan);
    qm_copy_free(m->copy);
    m->copy = NULL;
    return rc;
}

/* An OLD move becomes what the layers from the base down had there. */
static int
put_old(struct merge *m, const struct qm_move *old, struct qmeld_error *err)
{
    struct qm_map *map;
    int rc;

    if (qm_map_open(m->chain, 0, m->base, old->guest, old->len, &map, err) < 0)
        return -1;
    for (;;) {
        struct qm_map_span span;
        struct qm_move move;
        bool done;

        rc = qm_map_next(map, &span, &done, err);
        if (rc < 0 || done)
            break;
        move = (struct qm_move){.kind = QM_MOVE_ZERO,
                                .guest = span.guest,
                                .len = span.len,
                                .to = qm_host(old->to.h + (span.guest.g - old->guest.g))};
        if (span.ext.kind == QM_DATA || span.ext.kind == QM_COMPRESSED) {
            move.kind = QM_MOVE_OLD;
            move.from = m->chain->layers[span.layer].img;
            move.ext = span.ext;
        }
        rc = qm_copy_put(m->copy, &move, err);
        if (rc < 0)
            break;
    }
    qm_map_close(map);
    m->report->bytes_filled += old->len;
    return rc;
}

static int
put_moves(struct merge *m, struct qmeld_error *err)
{
    QM_VEC_EACH (move, &m->moves.list) {
        if ((move->kind == QM_MOVE_OLD ? put_old(m, move, err) : qm_copy_put(m->copy, move, err)) <
            0)
            return -1;
    }
    qm_vec_clear(&m->moves.list);
    return 0;
}

static int
end_batch(struct merge *m, struct qmeld_error *err)
{
    if (qm_seal_want_end(m->seal, &m->moves, err) < 0 || put_moves(m, err) < 0 ||
        qm_seal_prepare(m->seal, err) < 0 || qm_copy_drain(m->copy, err) < 0 ||
        qm_seal_publish(m->seal, err) < 0)
        return -1;
    m->batch_bytes = 0;
    return 0;
}

/* One batch may not end inside a target cluster: the next want must lie in a later one. */
static bool
batch_is_full(const struct merge *m, guest_off next)
{
    const uint64_t cs = m->chain->layers[m->base].img->cluster_size;

    if (cs != 0 && m->batch_end > 0 && next.g / cs == (m->batch_end - 1) / cs)
        return false;
    return m->batch_bytes >= qm_merge_limits.batch ||
           qm_seal_weight(m->seal) >= qm_merge_limits.batch_weight;
}

static int
transfer_want(struct merge *m, const struct qm_want *want, bool asked, struct qmeld_error *err)
{
    if (batch_is_full(m, want->guest) && end_batch(m, err) < 0)
        return -1;
    if (qm_seal_want(m->seal, want, asked, &m->moves, err) < 0 || put_moves(m, err) < 0)
        return -1;
    if (want->from)
        m->report->bytes_copied += want->len;
    else if (asked)
        m->report->bytes_zeroed += want->len;
    m->batch_bytes += want->from ? want->len : 0;
    m->batch_end = want->guest.g + want->len;
    return 0;
}

/* Long wants in steps, so that a batch stays bounded whatever the map joins. */
static int
transfer_in_steps(struct merge *m, const struct qm_want *want, bool asked, struct qmeld_error *err)
{
    const uint64_t step = qm_merge_limits.step;

    for (uint64_t done = 0; done < want->len;) {
        const uint64_t at = want->guest.g + done;
        const uint64_t n = qm_min(want->len - done, step - at % step);
        struct qm_want part = {.guest = qm_guest(at), .len = n, .from = want->from};

        if (want->from)
            part.ext = qm_extent_part(&want->ext, done, n);
        if (transfer_want(m, &part, asked, err) < 0)
            return -1;
        done += n;
    }
    return 0;
}

/* Second walk: the work. */
static int
transfer(struct merge *m, struct qmeld_error *err)
{
    struct qm_plan *plan;
    int rc;

    if (open_copy(m, "copy", false, err) < 0 || open_plan(m, &plan, err) < 0)
        return -1;
    do {
        struct qm_want want;
        bool asked, done;

        rc = qm_plan_next(plan, &want, &asked, &done, err);
        if (rc < 0 || done)
            break;
        rc = transfer_in_steps(m, &want, asked, err);
    } while (rc == 0);
    qm_plan_close(plan);
    return rc < 0 ? -1 : end_batch(m, err);
}

/* ---- the whole ---- */

static int
prepare(struct merge *m, struct qmeld_error *err)
{
    if (find_range(m, err) < 0)
        return -1;
    m->base_size = m->chain->layers[m->base].img->size;
    m->new_size = qm_max(m->base_size, m->chain->layers[m->top].img->size);
    m->report->base_old_size = m->base_size;
    m->report->base_new_size = m->new_size;
    m->settle_config = (struct qm_settle_config){.chain = m->chain,
                                                 .base = m->base,
                                                 .top = m->top,
                                                 .overlays = m->opts->overlays,
                                                 .keep_relative = m->opts->keep_relative};
    if (m->base == m->top) {
        m->report->nothing_to_do = true;
        return 0;
    }
    if (lock_layers(m, err) < 0 || find_hidden_end(m, err) < 0 ||
        qm_settle_check(&m->settle_config, &m->settle, err) < 0)
        return -1;
    return count(m, err);
}

static int
work(struct merge *m, struct qmeld_error *err)
{
    struct qm_seal *seal;

    if (qm_seal_begin(m->chain, m->base, m->new_size, &m->seal, err) < 0)
        return -1;
    qm_err_disk(err, QMELD_DISK_OPEN); /* until the end of the merge, whatever fails */
    if (transfer(m, err) < 0)
        return -1;
    seal = QM_TAKE(m->seal);
    if (qm_seal_finish(seal, err) < 0 || qm_settle_run(m->settle, err) < 0)
        return -1;
    err->disk = QMELD_DISK_NEW;
    return 0;
}

static int
list_layers(const struct merge *m, struct qmeld_error *err)
{
    struct qmeld_commit_report *r = m->report;

    r->layers = calloc(m->chain->n, sizeof *r->layers);
    if (!r->layers)
        return qm_fail_nomem(err, "the report");
    for (size_t i = 0; i < m->chain->n; i++) {
        struct qmeld_commit_layer *l = &r->layers[r->n_layers++];

        l->fate = r->nothing_to_do ? QMELD_FATE_UNTOUCHED : qm_settle_fate(&m->settle_config, i);
        l->path = strdup(m->chain->layers[i].path);
        if (!l->path)
            return qm_fail_nomem(err, "the report");
    }
    return 0;
}

static int
commit(const char *path, struct merge *m, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_HOLD,
                                         .format = m->opts->format,
                                         .backing_format = m->opts->backing_format};

    if (qm_chain_open(path, &how, &m->chain, err) < 0 || prepare(m, err) < 0 ||
        list_layers(m, err) < 0)
        return -1;
    return m->report->nothing_to_do ? 0 : work(m, err);
}

int
qmeld_commit(const char *path, const struct qmeld_commit_options *opts,
             struct qmeld_commit_report *report, struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct qmeld_commit_report own, *r = report ? report : &own;
    struct merge m = {.opts = opts ? opts : &defaults, .report = r};
    struct timespec a, b;
    int rc;

    memset(r, 0, sizeof *r);
    memset(err, 0, sizeof *err);
    clock_gettime(CLOCK_MONOTONIC, &a);
    rc = commit(path, &m, err);
    clock_gettime(CLOCK_MONOTONIC, &b);
    r->seconds_x1000 = (uint64_t)((b.tv_sec - a.tv_sec) * 1000 + (b.tv_nsec - a.tv_nsec) / 1000000);
    qm_copy_free(m.copy);
    qm_seal_abandon(m.seal);
    qm_settle_free(m.settle);
    qm_vec_release(&m.moves.list);
    qm_chain_close(m.chain);
    if (!report)
        qmeld_commit_report_free(r);
    return rc;
}

void
qmeld_commit_report_free(struct qmeld_commit_report *report)
{
    for (size_t i = 0; i < report->n_layers; i++)
        free(report->layers[i].path);
    free(report->layers);
    report->layers = NULL;
    report->n_layers = 0;
}
