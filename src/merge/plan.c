/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "plan.h"

#include <stdlib.h>

struct qm_plan {
    struct qm_plan_config cfg;
    struct qm_map *map;
    bool tail_done;
};

int
qm_plan_open(const struct qm_plan_config *config, struct qm_plan **out, struct qmeld_error *err)
{
    struct qm_plan *p = calloc(1, sizeof *p);

    *out = NULL;
    if (!p)
        return qm_fail_nomem(err, "the plan");
    p->cfg = *config;
    if (qm_map_open(config->chain, config->base + 1, config->top, config->from, UINT64_MAX, &p->map,
                    err) < 0) {
        free(p);
        return -1;
    }
    *out = p;
    return 0;
}

/* What lies behind the top's end, after all else. */
static void
tail(struct qm_plan *p, struct qm_want *out, bool *out_asked, bool *out_done)
{
    const uint64_t top_size = p->cfg.chain->layers[p->cfg.top].img->size;
    const uint64_t at = qm_max(top_size, p->cfg.from.g);

    *out_done = p->tail_done || p->cfg.hidden_end <= at;
    p->tail_done = true;
    if (*out_done)
        return;
    *out = (struct qm_want){.guest = qm_guest(at), .len = p->cfg.hidden_end - at};
    *out_asked = true;
}

int
qm_plan_next(struct qm_plan *plan, struct qm_want *out, bool *out_asked, bool *out_done,
             struct qmeld_error *err)
{
    for (;;) {
        struct qm_map_span span;
        uint64_t kept;

        if (qm_map_next(plan->map, &span, out_done, err) < 0)
            return -1;
        if (*out_done) {
            tail(plan, out, out_asked, out_done);
            return 0;
        }
        *out = (struct qm_want){.guest = span.guest, .len = span.len};
        *out_asked = span.layer != QM_NO_LAYER;
        if (*out_asked) {
            if (span.ext.kind == QM_DATA || span.ext.kind == QM_COMPRESSED) {
                out->from = plan->cfg.chain->layers[span.layer].img;
                out->ext = span.ext;
            }
            return 0;
        }
        /* nobody asked: keep what the target has, up to its old end */
        if (span.guest.g + span.len <= plan->cfg.base_size)
            continue;
        kept = qm_max(span.guest.g, plan->cfg.base_size) - span.guest.g;
        out->guest.g += kept;
        out->len -= kept;
        return 0;
    }
}

void
qm_plan_close(struct qm_plan *plan)
{
    if (!plan)
        return;
    qm_map_close(plan->map);
    free(plan);
}
