/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * transfer.c - the walks over the plan that only look: count, compare, mark.  The one that writes is batches.c.
 */
#include "transfer_int.h"

#include "cipher.h"
#include "qcow2_edit.h"
#include "shadow.h"

#include <inttypes.h>
#include <stdlib.h>

#define MOST_WANTS 4096u /* compared at a time */

struct qm_plan_config
qm_transfer_plan(const struct qm_transfer *t)
{
    return (struct qm_plan_config){.chain = t->chain,
                                   .base = t->base,
                                   .top = t->top,
                                   .target = t->target,
                                   .onto = t->onto,
                                   .old_size = t->old_size,
                                   .new_size = t->new_size,
                                   .hidden_end = t->hidden_end};
}

/* The layers of `whole` that the target, its uppermost one here, reads from when all is done: itself, and what
 * lies below base. */
static int
select_done(const struct qm_transfer *t, const struct qm_chain *whole, size_t target,
            struct qm_chain *out, struct qmeld_error *err)
{
    *out = (struct qm_chain){.n = t->base + 1};
    out->layers = calloc(out->n, sizeof *out->layers);
    if (!out->layers)
        return qm_fail_nomem(err, "the chain");
    for (size_t i = 0; i < t->base; i++)
        out->layers[i] = whole->layers[i];
    out->layers[t->base] = whole->layers[target];
    return 0;
}

/* A wrong key of the legacy AES is not noticed by anybody until what it has written is needed. */
int
qm_transfer_check_target(const struct qm_layer *target, struct qmeld_error *err)
{
    const struct qm_cipher *cipher = target->img->cipher;

    if (!cipher || qm_cipher_may_write(cipher))
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(target->path),
                   "the image has the legacy encryption (AES), which is read but not written: "
                   "flatten the chain, or convert this image to LUKS with qemu-img");
}

int
qm_transfer_begin(struct qm_transfer *t, struct qmeld_error *err)
{
    if (qm_transfer_check_target(&t->chain->layers[t->target], err) < 0)
        return -1;
    return select_done(t, t->chain, t->target, &t->done, err);
}

void
qm_transfer_release(struct qm_transfer *t)
{
    free(t->done.layers);
}

static int
open_plan_at(const struct qm_transfer *t, guest_off from, struct qm_plan **out,
             struct qmeld_error *err)
{
    struct qm_plan_config config = qm_transfer_plan(t);

    config.from = from;
    return qm_plan_open(&config, out, err);
}

static int
open_plan(const struct qm_transfer *t, struct qm_plan **out, struct qmeld_error *err)
{
    return open_plan_at(t, t->from, out, err);
}

int
qm_transfer_open_copy(const struct qm_transfer *t, const char *phase, bool write,
                      struct qm_copy **out, struct qmeld_error *err)
{
    const bool dry = qm_shadow_now(); /* to who looks on it is a part of counting */
    const struct qm_copy_config config = {
        .target = write ? t->chain->layers[t->target].img->data : NULL,
        .cipher = write ? t->chain->layers[t->target].img->cipher : NULL,
        .threads = t->opts->threads,
        .bandwidth = write ? t->opts->bandwidth : 0,
        .direct = write && t->opts->direct,
        .finish_when_stopped = write && !dry,
        .total_bytes = dry ? 0 : t->total,
        .phase = dry ? "count" : phase,
        .progress = t->opts->progress,
        .opaque = t->opts->opaque};

    return qm_copy_new(&config, out, err);
}

/* ---- counting ---- */

/* A target cluster that a want covers in part may have to be filled up with what it reads as now:
 * that, too, must be readable. */
static int
verify_edge(const struct qm_transfer *t, uint64_t at, uint64_t *last, struct qm_copy *copy,
            struct qmeld_error *err)
{
    const uint64_t cs = t->chain->layers[t->target].img->cluster_size;
    struct qm_map *map;
    int rc;

    if (cs == 0 || at % cs == 0 || at >= t->old_size || at / cs == *last)
        return 0;
    *last = at / cs;
    rc = qm_map_open(t->chain, 0, t->target, qm_guest(at / cs * cs), cs, &map, err);
    while (rc == 0) {
        struct qm_map_span span;
        bool done;

        rc = qm_map_next(map, &span, &done, err);
        if (rc < 0 || done)
            break;
        if (span.ext.kind == QM_COMPRESSED)
            rc = qm_copy_verify(copy, t->chain->layers[span.layer].img, &span.ext, err);
    }
    qm_map_close(map);
    return rc;
}

/* A compressed cluster that is moved unread.  It reads here as it did there, be it damaged. */
static bool
will_pass(const struct qm_transfer *t, const struct qm_want *want)
{
    struct qm_qcow2 *q = qm_qcow2_of(t->chain->layers[t->target].img);

    return q && !t->decompress && !t->inflate_all && !t->skip_equal && !t->detect_zeroes &&
           qm_edit_passes(q, want);
}

static int
count(struct qm_transfer *t, struct qm_plan *plan, struct qm_copy *copy, struct qmeld_error *err)
{
    uint64_t edge = UINT64_MAX;

    qm_space_begin(&t->space, t->chain->layers[t->target].img, t->new_size);
    t->space.new_bitmaps = t->new_bitmaps;
    for (;;) {
        struct qm_want want;
        bool asked, done;

        if (qm_plan_next(plan, &want, &asked, &done, err) < 0)
            return -1;
        if (done)
            return qm_copy_drain(copy, err);
        qm_space_add(&t->space, &want);
        t->total += want.from ? want.len : 0;
        if (t->looked)
            continue;
        if (verify_edge(t, want.guest.g, &edge, copy, err) < 0 ||
            verify_edge(t, want.guest.g + want.len, &edge, copy, err) < 0)
            return -1;
        if (want.from && want.ext.kind == QM_COMPRESSED && !will_pass(t, &want) &&
            qm_copy_verify(copy, want.from, &want.ext, err) < 0)
            return -1;
        if (qm_copy_tick(copy, err) < 0) /* a top can claim more than anybody will wait for */
            return -1;
    }
}

int
qm_transfer_count(struct qm_transfer *t, struct qmeld_error *err)
{
    struct qm_plan *plan = NULL;
    struct qm_copy *copy = NULL;
    int rc = qm_transfer_open_copy(t, "count", false, &copy, err);

    if (rc == 0)
        rc = open_plan(t, &plan, err);
    if (rc == 0)
        rc = count(t, plan, copy, err);
    qm_plan_close(plan);
    qm_copy_free(copy);
    return rc;
}

/* ---- comparing ---- */

static struct qm_compare_config
compare_config(const struct qm_transfer *t, uint64_t end, const struct qm_chain *have,
               const char *phase, bool tell_all)
{
    return (struct qm_compare_config){.plan = qm_transfer_plan(t),
                                      .end = qm_guest(end),
                                      .have = have,
                                      .have_top = have->n - 1,
                                      .bandwidth = t->opts->bandwidth,
                                      .phase = phase,
                                      .tell_all = tell_all,
                                      .progress = t->opts->progress,
                                      .opaque = t->opts->opaque};
}

/* What is wanted before end against what the uppermost layer of have reads. */
static int
compare(const struct qm_transfer *t, uint64_t end, const struct qm_chain *have, const char *phase,
        bool tell_all, struct qm_compare_result *out, struct qmeld_error *err)
{
    const struct qm_compare_config config = compare_config(t, end, have, phase, tell_all);

    return qm_compare(&config, out, err);
}

/* *out: what is wanted before end is what the base reads as. */
static int
is_there(const struct qm_transfer *t, uint64_t end, bool *out, struct qmeld_error *err)
{
    struct qm_compare_result found;

    if (compare(t, end, &t->done, "compare", false, &found, err) < 0)
        return -1;
    *out = found.equal;
    return 0;
}

int
qm_transfer_is_done(const struct qm_transfer *t, bool *out, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(t->chain->layers[t->target].img);

    /* a dirty base has refcounts to rebuild, whatever it reads as */
    *out = t->old_size == t->new_size && !(q && (q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY));
    return *out ? is_there(t, UINT64_MAX, out, err) : 0;
}

int
qm_transfer_still_there(const struct qm_transfer *t, guest_off done, bool *out,
                        struct qmeld_error *err)
{
    return is_there(t, done.g, out, err);
}

/* The spans of the map that layers have by themselves, some at a time.  What reads as zeros because a layer ends says nothing: when a
 * layer above it has given up what it had there, that end shows. */
static int
compare_answers(const struct qm_compare_config *config, struct qm_map *map, bool *out,
                struct qmeld_error *err)
{
    struct qm_wants wants = {0};
    bool done = false;
    int rc = 0;

    *out = true;
    while (rc == 0 && *out && !done) {
        struct qm_compare_result found = {.equal = true};
        struct qm_map_span s;

        rc = qm_map_next(map, &s, &done, err);
        if (rc == 0 && !done && s.layer != QM_NO_LAYER && !s.past_end) {
            const bool data = s.ext.kind == QM_DATA || s.ext.kind == QM_COMPRESSED;
            const struct qm_want want = {.guest = s.guest,
                                         .len = s.len,
                                         .from =
                                             data ? config->plan.chain->layers[s.layer].img : NULL,
                                         .layer = (uint32_t)s.layer,
                                         .ext = s.ext};

            if (!qm_vec_push(&wants.list, &want))
                rc = qm_fail_nomem(err, "comparing");
        }
        if (rc == 0 && (done || wants.list.n == MOST_WANTS)) {
            rc = qm_compare_wants(config, &wants, &found, err);
            qm_vec_clear(&wants.list);
        }
        *out = found.equal;
    }
    qm_vec_release(&wants.list);
    return rc;
}

int
qm_transfer_holds(const struct qm_transfer *t, size_t bottom, bool *out, struct qmeld_error *err)
{
    const struct qm_compare_config config =
        compare_config(t, UINT64_MAX, &t->done, "compare", false);
    struct qm_map *map;
    int rc;

    if (qm_map_open(t->chain, bottom, t->top, qm_guest(0), UINT64_MAX, &map, err) < 0)
        return -1;
    rc = compare_answers(&config, map, out, err);
    qm_map_close(map);
    return rc;
}

int
qm_transfer_read_back(const struct qm_transfer *t, const struct qm_chain *have,
                      struct qm_compare_result *out, struct qmeld_error *err)
{
    struct qm_chain done;
    int rc;

    /* by its header, it may still stand on layers of the range */
    if (select_done(t, have, have->n - 1, &done, err) < 0)
        return -1;
    rc = compare(t, UINT64_MAX, &done, "verify", true, out, err);
    free(done.layers);
    return rc;
}

int
qm_transfer_lost(const struct qm_transfer *t, guest_off at, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_IO, qm_in(t->chain->layers[t->target].path),
                   "at guest offset %" PRIu64 " the disk gave back other bytes than were written: "
                   "find out what is wrong with it; the same command then writes them again",
                   at.g);
}

/* ---- marking ---- */

int
qm_transfer_mark(const struct qm_transfer *t, struct qm_seal *seal, struct qmeld_error *err)
{
    struct qm_plan *plan;
    int rc = open_plan_at(t, qm_guest(0), &plan, err);

    if (rc < 0)
        return -1;
    while (rc == 0) {
        struct qm_want want;
        bool asked, done;

        rc = qm_plan_next(plan, &want, &asked, &done, err);
        if (rc < 0 || done || want.guest.g >= t->from.g)
            break;
        if (asked)
            rc = qm_seal_mark(seal, want.guest, qm_min(want.len, t->from.g - want.guest.g), err);
    }
    qm_plan_close(plan);
    return rc;
}
