/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * batches.c - the walk that writes: what of the plan is one batch, and what happens at its end.
 */
#include "transfer_int.h"

#include "clock.h"
#include "shadow.h"

#include <stdlib.h>

/* A batch ends when it has this much data to copy or to share, lists this long, or took this long.  An interrupted
 * merge repeats at most one batch; each costs three syncs.  The clock has little say (is_late), so where the
 * bandwidth is limited a batch has no more data than fits into that time. */
#ifdef QM_TESTING
struct qm_transfer_limits
#else
static const struct qm_transfer_limits
#endif
    qm_transfer_limits = {.batch = 512ull << 20,
                          .batch_shared = 8ull << 30,
                          .batch_weight = 32u << 20,
                          .batch_sec = 5,
                          .step = 4ull << 20};

/* Zeros behind the base's old end are wanted in portions of this: where there are tables, their entries
 * are held in memory, 12 MiB at the worst. */
#define GROW_STEP (256ull << 20)

/* A file system allocates no less for a raw target. */
#define RAW_UNIT 4096u

/* The walk that writes. */
struct run {
    struct qm_transfer *t;
    struct qm_seal *seal;
    struct qm_journal *journal;
    struct qm_copy *copy;
    struct qm_moves moves;
    struct qm_moves filled; /* OLD moves of the batch, if it is to be verified; of a rebase all */
    struct qm_wants wanted; /* of a rebase that is to be verified: of the batch */
    uint64_t end;           /* where the batch's last want ends; 0: it has none */
    uint64_t started_ms;    /* when the batch began */
    /* Since clusters were released last; a batch that ends by the clock does not count, so that
     * what is allocated where depends on the images alone. */
    uint64_t bytes;  /* that were copied */
    uint64_t shared; /* by what is known beforehand */
    /* give_up: what the target takes for this batch at most, tables left out; and the most it may */
    uint64_t gain;
    uint64_t limit;
    uint64_t gain_end;  /* guest bytes in front of it are in that */
    guest_off given_up; /* so are they in batches that ended */
    uint64_t batch;     /* bytes to copy that end a batch */
};

/* ---- a batch ---- */

/* An OLD move becomes what the layers from the target down had there. */
static int
put_old(struct run *r, const struct qm_move *old, struct qmeld_error *err)
{
    struct qm_map *map;
    int rc;

    if (qm_map_open(r->t->chain, 0, r->t->target, old->guest, old->len, &map, err) < 0)
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
            move.from = r->t->chain->layers[span.layer].img;
            move.ext = span.ext;
        }
        rc = qm_copy_put(r->copy, &move, err);
        if (rc < 0)
            break;
    }
    qm_map_close(map);
    r->t->report->bytes_filled += old->len;
    return rc;
}

static int
put_moves(struct run *r, struct qmeld_error *err)
{
    QM_VEC_EACH (move, &r->moves.list) {
        if (r->t->verify && (move->kind == QM_MOVE_OLD || r->t->onto) &&
            !qm_vec_push(&r->filled.list, move))
            return qm_fail_nomem(err, "the list of moves");
        if ((move->kind == QM_MOVE_OLD ? put_old(r, move, err) : qm_copy_put(r->copy, move, err)) <
            0)
            return -1;
    }
    qm_vec_clear(&r->moves.list);
    return 0;
}

/* What clusters that are only partly new were filled up with cannot be read back when the merge is complete:
 * what it was copied from may be gone by then.  Here it is what the base reads as still.  In a rebase everybody
 * reads what is published: nothing is that the disk does not give back. */
static int
verify_filled(struct run *r, struct qmeld_error *err)
{
    const struct qm_transfer *t = r->t;
    const struct qm_compare_config config = {.plan = qm_transfer_plan(t),
                                             .end = qm_guest(UINT64_MAX),
                                             .have = t->chain,
                                             .have_top = t->target,
                                             .bandwidth = t->opts->bandwidth};
    struct qm_file *file = t->chain->layers[t->target].img->data;
    struct qm_compare_result found;

    if (r->filled.list.n == 0)
        return 0;
    if (qm_sync(file, err) < 0)
        return -1;
    QM_VEC_EACH (move, &r->filled.list)
        qm_drop_cache(file, move->to.h, move->len);
    if (qm_compare_moves(&config, &r->filled, &found, err) < 0)
        return -1;
    t->report->bytes_verified += t->onto ? 0 : found.bytes; /* it is counted when it is published */
    qm_vec_clear(&r->filled.list);
    return found.equal ? 0 : qm_transfer_lost(t, found.differs, err);
}

static uint64_t
batch_of(const struct qm_transfer *t)
{
    const uint64_t rate = t->opts->bandwidth, seconds = qm_transfer_limits.batch_sec;
    const uint64_t most = qm_transfer_limits.batch;

    if (rate == 0 || seconds == 0 || rate >= most / seconds)
        return most;
    return qm_min(most, qm_max(rate * seconds, qm_transfer_limits.step));
}

/* With give_up half of the room there is, so that tables, bitmaps and others' files have some, too. */
static int
begin_batch(struct run *r, struct qmeld_error *err)
{
    const struct qm_file *file = r->t->chain->layers[r->t->target].img->data;
    uint64_t room;

    r->gain = 0;
    r->limit = r->batch;
    r->started_ms = qm_clock_ms();
    if (!r->t->give_up || file->blockdev)
        return 0;
    if (qm_file_room(file, &room, err) < 0)
        return -1;
    r->limit = qm_min(r->limit, qm_max(room / 2, qm_transfer_limits.step));
    return 0;
}

static int
publish(struct run *r, bool release, struct qmeld_error *err)
{
    if (qm_seal_want_end(r->seal, &r->moves, err) < 0 || put_moves(r, err) < 0 ||
        (r->t->opts->direct && qm_copy_drain(r->copy, err) < 0) || /* tables go through the cache */
        qm_seal_prepare(r->seal, err) < 0 || qm_copy_drain(r->copy, err) < 0 ||
        verify_filled(r, err) < 0 || qm_seal_publish(r->seal, release, err) < 0)
        return -1;
    qm_copy_synced(r->copy);
    return 0;
}

/* Of the batch: does the image read on its new backing file, by the tables that the disk has, what it is to? */
static int
verify_wanted(struct run *r, const struct qm_compare_config *config, struct qm_compare_result *out,
              struct qmeld_error *err)
{
    struct qm_compare_config onto = *config;

    onto.have = &r->t->done;
    onto.have_top = r->t->done.n - 1;
    if (qm_compare_wants(&onto, &r->wanted, out, err) < 0)
        return -1;
    qm_vec_clear(&r->wanted.list);
    return 0;
}

/* Other merges read back when all is complete.  Here it cannot be told any more by then. */
static int
verify_batch(struct run *r, guest_off end, struct qmeld_error *err)
{
    const struct qm_transfer *t = r->t;
    struct qm_compare_config config = {.plan = qm_transfer_plan(t),
                                       .end = end,
                                       .have = t->chain,
                                       .have_top = t->target,
                                       .bandwidth = t->opts->bandwidth};
    struct qm_image *base = t->chain->layers[t->target].img;
    struct qm_compare_result found;

    config.plan.from = r->given_up;
    if (!t->verify || !(t->give_up || t->onto))
        return 0;
    qm_drop_cache(base->file, 0, 0);
    qm_drop_cache(base->data, 0, 0);
    qm_image_forget(base);
    if ((t->onto ? verify_wanted(r, &config, &found, err) : qm_compare(&config, &found, err)) < 0)
        return -1;
    t->report->bytes_verified += found.bytes;
    return found.equal ? 0 : qm_transfer_lost(t, found.differs, err);
}

/* The last batch is given up with all that is left, when the merge is settled. */
static int
end_batch(struct run *r, bool release, bool last, struct qmeld_error *err)
{
    const struct qm_cursor cursor = {.phase = QM_PHASE_COPY,
                                     .done = qm_guest(qm_max(r->end, r->t->from.g))};
    const bool give_up = r->t->give_up;

    /* what layers have given up cannot be found and marked again, whoever gives it up */
    if (publish(r, release, err) < 0 || verify_batch(r, cursor.done, err) < 0 ||
        (give_up && qm_seal_save(r->seal, err) < 0) ||
        (r->journal && qm_journal_advance(r->journal, cursor, err) < 0))
        return -1;
    /* COMMIT POINT S10: the cursor says that nobody will ask them again */
    if (give_up && !last && qm_reclaim_until(r->t->reclaim, cursor.done, err) < 0)
        return -1;
    r->given_up = cursor.done;
    if (release)
        r->bytes = r->shared = 0;
    return begin_batch(r, err);
}

/* One batch may not end inside a target cluster: the next want must lie in a later one. */
static bool
may_end(const struct run *r, guest_off next)
{
    const uint64_t cs = r->t->chain->layers[r->t->target].img->cluster_size;

    return cs == 0 || r->end == 0 || next.g / cs != (r->end - 1) / cs;
}

static bool
is_full(const struct run *r)
{
    return r->bytes >= r->batch || r->shared >= qm_transfer_limits.batch_shared ||
           qm_seal_weight(r->seal) >= qm_transfer_limits.batch_weight;
}

/* Only where it makes no difference to what is allocated does the clock end a batch: in others nothing
 * is copied yet, so that they take no time until they end anyway. */
static int
is_late(struct run *r, bool *out, struct qmeld_error *err)
{
    *out = r->filled.list.n * sizeof *r->filled.list.at +
               r->wanted.list.n * sizeof *r->wanted.list.at >=
           qm_transfer_limits.batch_weight;
    if (*out || qm_clock_ms() - r->started_ms < qm_transfer_limits.batch_sec * UINT64_C(1000))
        return 0;
    return qm_seal_is_bare(r->seal, &r->moves, out, err) < 0 ? -1 : put_moves(r, err);
}

/* Then every batch has to release what it can. */
static bool
is_short_of_room(const struct run *r)
{
    return r->limit < r->batch;
}

static uint64_t
unit_of(const struct run *r)
{
    const uint64_t cs = r->t->chain->layers[r->t->target].img->cluster_size;

    return cs ? cs : RAW_UNIT;
}

/* What a want adds to the target's file if nothing of it is there: whole clusters. */
static uint64_t
gain_of(const struct run *r, const struct qm_want *want)
{
    const uint64_t unit = unit_of(r);
    const uint64_t from = qm_max(r->gain_end, qm_align_down(want->guest.g, unit));
    const uint64_t to = qm_align_up(want->guest.g + want->len, unit);

    return want->from && to > from ? to - from : 0;
}

/* Ends the batch in front of a want that adds so much to the target's file, if it is time. */
static int
make_way(struct run *r, guest_off next, uint64_t gain, struct qmeld_error *err)
{
    const bool stopped = qm_copy_stopped(r->copy);
    const bool no_room = r->t->give_up && r->gain > 0 && r->gain + gain > r->limit;
    bool ends = may_end(r, next);

    if (ends && !stopped && !no_room && !is_full(r) && is_late(r, &ends, err) < 0)
        return -1;
    if (!ends)
        return 0;
    if (end_batch(r, is_full(r) || is_short_of_room(r), false, err) < 0)
        return -1;
    return stopped ? qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request") : 0;
}

static int
run_want(struct run *r, const struct qm_want *want, bool asked, struct qmeld_error *err)
{
    uint64_t shared, gain;

    if (qm_copy_foresee_shared(r->copy, want, r->t->chain->layers[r->t->target].img->cluster_size,
                               &shared, err) < 0)
        return -1;
    gain = gain_of(r, want);
    gain -= qm_min(gain, shared);
    if (make_way(r, want->guest, gain, err) < 0)
        return -1;
    if (r->t->back && qm_back_ahead(r->t->back, qm_guest(want->guest.g + want->len), err) < 0)
        return -1;
    if (qm_seal_want(r->seal, want, asked, &r->moves, err) < 0 || put_moves(r, err) < 0)
        return -1;
    if (r->t->verify && r->t->onto && !qm_vec_push(&r->wanted.list, want))
        return qm_fail_nomem(err, "the list of what is wanted");
    if (want->from)
        r->t->report->bytes_copied += want->len;
    else if (asked)
        r->t->report->bytes_zeroed += want->len;
    r->bytes += want->from ? want->len - shared : 0;
    r->shared += shared;
    r->gain += gain;
    if (want->from)
        r->gain_end = qm_align_up(want->guest.g + want->len, unit_of(r));
    r->end = want->guest.g + want->len;
    return 0;
}

/* Long wants in steps, so that a batch stays bounded whatever the map joins. */
static int
run_in_steps(struct run *r, const struct qm_want *want, bool asked, struct qmeld_error *err)
{
    const uint64_t step = qm_transfer_limits.step;

    for (uint64_t done = 0; done < want->len;) {
        const uint64_t at = want->guest.g + done;
        const uint64_t n = qm_min(want->len - done, step - at % step);
        struct qm_want part = *want;

        part.guest = qm_guest(at);
        part.len = n;
        if (want->from)
            part.ext = qm_extent_part(&want->ext, done, n);
        if (run_want(r, &part, asked, err) < 0)
            return -1;
        done += n;
    }
    return 0;
}

/* The target reads so already, and nothing is written.  If an earlier run has written it, bitmaps have
 * not heard of that. */
static int
run_skipped(struct run *r, const struct qm_sifted *s, struct qmeld_error *err)
{
    const struct qm_want *want = &s->want;

    if (make_way(r, want->guest, 0, err) < 0 ||
        (s->asked && r->t->resumed && qm_seal_mark(r->seal, want->guest, want->len, err) < 0))
        return -1;
    r->t->report->bytes_skipped += want->len;
    qm_copy_spare(r->copy, want->from ? want->len : 0);
    r->end = want->guest.g + want->len;
    return 0;
}

static int
run_sifted(struct run *r, const struct qm_sifted *s, struct qmeld_error *err)
{
    if (s->verdict == QM_SIFT_SKIP)
        return run_skipped(r, s, err);
    if (s->verdict == QM_SIFT_ZERO) {
        r->t->report->bytes_zero_found += s->want.len;
        qm_copy_spare(r->copy, s->want.len);
    }
    return run_in_steps(r, &s->want, s->asked, err);
}

static int
run_all(struct run *r, struct qm_sift *sift, struct qmeld_error *err)
{
    for (;;) {
        struct qm_sifted next;
        bool done;

        if (qm_sift_next(sift, &next, &done, err) < 0) {
            if (err->code == QMELD_CANCELED && qm_copy_tick(r->copy, err) < 0)
                return -1; /* it was the copy that gave up, and that knows why */
            return -1;
        }
        if (done)
            return end_batch(r, true, true, err);
        if (run_sifted(r, &next, err) < 0)
            return -1;
    }
}

/* While the sift looks, the copy goes on, and may fail or be asked to stop. */
static int
tick_copy(void *opaque)
{
    const struct run *r = opaque;
    struct qmeld_error unheard = {0};

    if (qm_copy_tick(r->copy, &unheard) < 0)
        return -1;
    return qm_copy_stopped(r->copy) ? 1 : 0;
}

static int
open_sift(struct run *r, struct qm_sift **out, struct qmeld_error *err)
{
    const struct qm_transfer *t = r->t;
    struct qm_sift_config config = {.plan = qm_transfer_plan(t),
                                    .have = &t->done,
                                    .skip_equal = t->skip_equal,
                                    .detect_zeroes = t->detect_zeroes,
                                    .threads = t->opts->threads,
                                    .bandwidth = t->opts->bandwidth,
                                    .tick = tick_copy,
                                    .opaque = r};

    config.plan.from = t->from;
    return qm_sift_open(&config, out, err);
}

/* Zeros over [at, end), published as often as they get many. */
static int
grow(struct run *r, uint64_t at, uint64_t end, struct qmeld_error *err)
{
    while (at < end) {
        const uint64_t n = qm_min(end - at, GROW_STEP - at % GROW_STEP); /* whole clusters */
        const struct qm_want want = {.guest = qm_guest(at), .len = n};

        if (qm_seal_want(r->seal, &want, false, &r->moves, err) < 0 || put_moves(r, err) < 0)
            return -1;
        at += n;
        if (qm_seal_weight(r->seal) >= qm_transfer_limits.batch_weight && publish(r, true, err) < 0)
            return -1;
    }
    return publish(r, true, err) < 0 ? -1 : qm_seal_grow(r->seal, err);
}

int
qm_transfer_grow(struct qm_transfer *t, struct qm_seal *seal, struct qmeld_error *err)
{
    struct run r = {.t = t, .seal = seal};
    int rc;

    if (!t->give_up || t->old_size == t->new_size)
        return 0;
    rc = qm_transfer_open_copy(t, "copy", true, &r.copy, err);
    if (rc == 0)
        rc = grow(&r, t->old_size, t->new_size, err);
    qm_copy_free(r.copy);
    qm_vec_release(&r.moves.list);
    qm_vec_release(&r.filled.list);
    if (rc == 0)
        t->old_size = t->new_size;
    return rc;
}

/* Suites that run the program cannot set qm_transfer_limits, and their images are small. */
static void
take_limits_of_test(void)
{
#ifdef QM_TESTING
    const char *batch = getenv("QMELD_TEST_BATCH");

    if (!batch)
        return;
    qm_transfer_limits.batch = strtoull(batch, NULL, 0);
    qm_transfer_limits.batch_shared = qm_transfer_limits.batch * 4;
    while (qm_transfer_limits.step > qm_max(qm_transfer_limits.batch, 512))
        qm_transfer_limits.step /= 2;
#endif
}

/* How the bytes of each layer came into the base. */
static void
tell_routes(const struct qm_transfer *t, const struct qm_copy *copy)
{
    struct qmeld_commit_report *report = t->report;

    for (size_t i = 0; copy && i < report->n_layers; i++) {
        struct qmeld_commit_layer *layer = &report->layers[i];
        struct qm_route_sums sums;

        if (!t->chain->layers[i].img)
            continue;
        sums = qm_copy_sums(copy, t->chain->layers[i].img->data);
        layer->bytes_shared += sums.shared;
        layer->bytes_offloaded += sums.offloaded;
        layer->bytes_copied += sums.copied;
        layer->bytes_past_cache += sums.past_cache;
        report->bytes_shared += sums.shared;
        report->bytes_offloaded += sums.offloaded;
    }
}

int
qm_transfer_run(struct qm_transfer *t, struct qm_seal *seal, struct qm_journal *journal,
                struct qmeld_error *err)
{
    struct run r = {.t = t, .seal = seal, .journal = journal, .given_up = t->from};
    struct qm_sift *sift = NULL;
    int rc = qm_transfer_open_copy(t, "copy", true, &r.copy, err);

    take_limits_of_test();
    r.batch = batch_of(t);
    if (rc == 0)
        rc = begin_batch(&r, err);
    if (rc == 0)
        rc = open_sift(&r, &sift, err);
    if (rc == 0)
        rc = run_all(&r, sift, err);
    if (rc == 0) {
        t->costs = qm_copy_costs(r.copy);
        t->costs.bytes_read += qm_sift_bytes_read(sift);
    }
    tell_routes(t, r.copy);
    qm_sift_close(sift);
    qm_copy_free(r.copy);
    qm_vec_release(&r.moves.list);
    qm_vec_release(&r.filled.list);
    qm_vec_release(&r.wanted.list);
    return rc;
}
