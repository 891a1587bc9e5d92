/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "onto.h"

#include "qcow2.h"

#include <stdlib.h>

struct qm_onto_walk {
    const struct qm_chain *chain;
    size_t overlay;
    const struct qm_onto *onto;
    struct qm_diff *diff;
    struct qm_map *map; /* over the range that differs; NULL: the next is to be asked for */
};

int
qm_onto_open(const struct qm_chain *chain, size_t overlay, const struct qm_onto *onto,
             struct qm_onto_walk **out, struct qmeld_error *err)
{
    struct qm_image *img = chain->layers[overlay].img;
    const struct qm_diff_config config = {
        .a = {chain, overlay},
        .b = {onto->chain, onto->chain ? onto->chain->n - 1 : 0},
        .skip = img,
        .end = img->size,
        .unit = qm_qcow2_of(img)->geo.subcluster_size,
        .by_map = onto->by_map || !onto->chain, /* nothing is nowhere equal to data */
        .look_at_zero = true,
        .threads = onto->threads,
        .bandwidth = onto->bandwidth,
        .phase = "copy",
        .progress = onto->progress,
        .opaque = onto->opaque};
    struct qm_onto_walk *w = calloc(1, sizeof *w);

    *out = NULL;
    if (!w)
        return qm_fail_nomem(err, "the plan");
    w->chain = chain;
    w->overlay = overlay;
    w->onto = onto;
    if (qm_diff_open(&config, &w->diff, err) < 0) {
        free(w);
        return -1;
    }
    *out = w;
    return 0;
}

/* *out_some false: there was nothing left of the range. */
static int
next_of_range(struct qm_onto_walk *w, struct qm_want *out, bool *out_some, struct qmeld_error *err)
{
    struct qm_map_span span;
    bool done;

    *out_some = false;
    if (qm_map_next(w->map, &span, &done, err) < 0)
        return -1;
    if (done) {
        qm_map_close(QM_TAKE(w->map));
        return 0;
    }
    *out_some = true;
    *out = (struct qm_want){.guest = span.guest, .len = span.len};
    if (span.ext.kind == QM_DATA || span.ext.kind == QM_COMPRESSED) {
        out->from = w->chain->layers[span.layer].img;
        out->ext = span.ext;
    }
    return 0;
}

int
qm_onto_next(struct qm_onto_walk *w, struct qm_want *out, bool *out_done, struct qmeld_error *err)
{
    *out_done = false;
    for (;;) {
        struct qm_diff_range r;
        bool some = false;

        if (w->map && next_of_range(w, out, &some, err) < 0)
            return -1;
        if (some)
            return 0;
        if (qm_diff_next(w->diff, &r, out_done, err) < 0)
            return -1;
        if (w->onto->costs)
            *w->onto->costs = qm_diff_costs(w->diff);
        if (*out_done)
            return 0;
        *out = (struct qm_want){.guest = r.guest, .len = r.len};
        if (r.zero_a)
            return 0;
        if (qm_map_open(w->chain, 0, w->overlay, r.guest, r.len, &w->map, err) < 0)
            return -1;
    }
}

void
qm_onto_close(struct qm_onto_walk *w)
{
    if (!w)
        return;
    qm_map_close(w->map);
    qm_diff_close(w->diff);
    free(w);
}
