/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "plan.h"

#include <assert.h>
#include <stdlib.h>

/* What is gone over, in this order. */
enum part {
    RANGE,  /* what top sees of the layers of the range */
    HIDDEN, /* what its end hid from the child */
    TAIL,   /* what lies behind that in a base which is not the target itself */
    NOTHING
};

struct qm_plan {
    struct qm_plan_config cfg;
    uint64_t below_size; /* of what the target will stand on; 0: of nothing */
    enum part part;
    struct qm_map *map;
    struct qm_map_span rest;   /* of the last span; len 0: none */
    struct qm_onto_walk *onto; /* or all of it is this */
};

static uint64_t
size_of(const struct qm_plan *p, size_t layer)
{
    return p->cfg.chain->layers[layer].img->size;
}

static bool
is_up(const struct qm_plan *p)
{
    return p->cfg.target > p->cfg.base;
}

/* Of what top showed: as the target it may have grown, by the run that was interrupted. */
static uint64_t
end_of_top(const struct qm_plan *p)
{
    return p->cfg.target == p->cfg.top ? p->cfg.old_size : size_of(p, p->cfg.top);
}

int
qm_plan_open(const struct qm_plan_config *config, struct qm_plan **out, struct qmeld_error *err)
{
    struct qm_plan *p = calloc(1, sizeof *p);

    assert(config->base <= config->target && config->target <= config->top);
    *out = NULL;
    if (!p)
        return qm_fail_nomem(err, "the plan");
    p->cfg = *config;
    if (config->onto) {
        *out = p;
        if (qm_onto_open(config->chain, config->target, config->onto, &p->onto, err) == 0)
            return 0;
        qm_plan_close(p);
        *out = NULL;
        return -1;
    }
    p->below_size = config->base > 0 ? size_of(p, config->base - 1) : 0;
    /* a base that is the target is not asked: what nobody above it answers, it keeps */
    if (qm_map_open(config->chain, config->base + !is_up(p), config->top, config->from,
                    end_of_top(p) - qm_min(end_of_top(p), config->from.g), &p->map, err) < 0) {
        free(p);
        return -1;
    }
    *out = p;
    return 0;
}

/* ---- the range ---- */

static void
want_span(const struct qm_plan *p, const struct qm_map_span *span, struct qm_want *out)
{
    *out = (struct qm_want){.guest = span->guest, .len = span->len};
    if (span->ext.kind == QM_DATA || span->ext.kind == QM_COMPRESSED) {
        out->from = p->cfg.chain->layers[span->layer].img;
        out->layer = (uint32_t)span->layer;
        out->ext = span->ext;
    }
}

/* The next span of the map; of those that no layer above the target answers, none crosses the target's old end. */
static int
next_span(struct qm_plan *p, struct qm_map_span *out, bool *out_done, struct qmeld_error *err)
{
    const uint64_t end = p->cfg.old_size;
    uint64_t n;

    *out_done = false;
    *out = p->rest;
    p->rest.len = 0;
    if (out->len == 0 && qm_map_next(p->map, out, out_done, err) < 0)
        return -1;
    if (*out_done || p->part != RANGE ||
        (out->layer != QM_NO_LAYER && out->layer > p->cfg.target) || out->guest.g >= end ||
        out->len <= end - out->guest.g)
        return 0;
    n = end - out->guest.g;
    p->rest = *out;
    p->rest.guest.g += n;
    p->rest.len -= n;
    p->rest.ext = qm_extent_part(&out->ext, n, p->rest.len);
    out->len = n;
    out->ext = qm_extent_part(&out->ext, 0, n);
    return 0;
}

/* False: the target stays as it is there. */
static bool
want_in_range(const struct qm_plan *p, const struct qm_map_span *span, struct qm_want *out,
              bool *out_asked)
{
    const bool asked = span->layer != QM_NO_LAYER;

    want_span(p, span, out);
    *out_asked = asked;
    if (asked && span->layer > p->cfg.target)
        return true;
    if (span->guest.g >= p->cfg.old_size) { /* nobody asked: the target grows over it */
        *out = (struct qm_want){.guest = span->guest, .len = span->len};
        *out_asked = false;
        return true;
    }
    if (!asked || span->layer == p->cfg.target)
        return false;
    if (out->from)
        return true;
    /* pulled up; zeros that hide nothing are what the target reads there by itself */
    if (span->guest.g >= p->below_size)
        return false;
    out->len = qm_min(out->len, p->below_size - span->guest.g);
    return true;
}

/* ---- behind its end ---- */

/* What the child sees as zeros because the top ends must be zeros when it sees the target itself. */
static bool
want_hidden(const struct qm_plan *p, struct qm_want *out)
{
    const uint64_t at = qm_max(end_of_top(p), p->cfg.from.g);

    if (p->cfg.hidden_end <= at)
        return false;
    *out = (struct qm_want){.guest = qm_guest(at), .len = p->cfg.hidden_end - at};
    return true;
}

/* A base that is longer than top keeps its tail, whichever file it will be.  Nobody reads that now, and what the
 * target holds there may be anything: all of it is wanted, also what lies below the base. */
static int
open_tail(struct qm_plan *p, struct qmeld_error *err)
{
    const uint64_t at = qm_max(qm_max(end_of_top(p), p->cfg.hidden_end), p->cfg.from.g);

    qm_map_close(p->map);
    p->map = NULL;
    return qm_map_open(p->cfg.chain, 0, p->cfg.base, qm_guest(at), UINT64_MAX, &p->map, err);
}

static int
next_part(struct qm_plan *p, struct qmeld_error *err)
{
    p->part++;
    if (p->part == TAIL && is_up(p))
        return open_tail(p, err);
    if (p->part == TAIL)
        p->part = NOTHING;
    return 0;
}

int
qm_plan_next(struct qm_plan *plan, struct qm_want *out, bool *out_asked, bool *out_done,
             struct qmeld_error *err)
{
    if (plan->onto) {
        *out_asked = false; /* nobody will read anything else there than before */
        return qm_onto_next(plan->onto, out, out_done, err);
    }
    *out_done = false;
    while (plan->part != NOTHING) {
        struct qm_map_span span;
        bool done;

        *out_asked = true;
        if (plan->part == HIDDEN) {
            const bool hidden = want_hidden(plan, out);

            if (next_part(plan, err) < 0)
                return -1;
            if (hidden)
                return 0;
            continue;
        }
        if (next_span(plan, &span, &done, err) < 0)
            return -1;
        if (done && next_part(plan, err) < 0)
            return -1;
        if (done)
            continue;
        if (plan->part == RANGE && !want_in_range(plan, &span, out, out_asked))
            continue;
        if (plan->part == TAIL)
            want_span(plan, &span, out);
        return 0;
    }
    *out_done = true;
    return 0;
}

void
qm_plan_close(struct qm_plan *plan)
{
    if (!plan)
        return;
    qm_onto_close(plan->onto);
    qm_map_close(plan->map);
    free(plan);
}
