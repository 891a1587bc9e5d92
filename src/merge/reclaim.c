/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "reclaim.h"

#include "qcow2_check.h"
#include "qcow2_header.h"
#include "qcow2_unmap.h"

#include <stdlib.h>

struct qm_reclaim {
    const struct qm_chain *chain;
    size_t base;
    size_t top;
    uint64_t *cleared; /* a layer: guest bytes in front of it are; [0] is base + 1 */
};

static struct qm_qcow2 *
overlay(const struct qm_chain *chain, size_t layer)
{
    return qm_qcow2_of(chain->layers[layer].img); /* what has a backing file is qcow2 */
}

/* Without internal snapshots a cluster has one reference.  One that has two is legal, and was made by
 * nobody we know. */
static int
check_layer(struct qm_qcow2 *q, struct qmeld_error *err)
{
    bool shared;

    if (qm_image_make_writable(&q->img, err) < 0 || qm_qcow2_look_safe(q, &shared, err) < 0)
        return -1;
    if (shared)
        return qm_fail(
            err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
            "some of its clusters count more than one reference, and cannot be given up one "
            "by one: mend that with `qmeld check --repair=leaks`, or merge without "
            "--reclaim");
    return 0;
}

int
qm_reclaim_check(const struct qm_chain *chain, size_t base, size_t top, struct qmeld_error *err)
{
    for (size_t i = base + 1; i <= top; i++)
        if (check_layer(overlay(chain, i), err) < 0)
            return -1;
    return 0;
}

static int
begin(struct qm_qcow2 *q, bool resumed, struct qmeld_error *err)
{
    const bool dirty = q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY;

    if (qm_image_make_writable(&q->img, err) < 0)
        return -1;
    if (resumed ? qm_qcow2_give_back(q, err) < 0 : dirty && qm_qcow2_make_safe_to_write(q, err) < 0)
        return -1;
    if ((resumed || dirty) && check_layer(q, err) < 0) /* otherwise a moment ago */
        return -1;
    return qm_header_before_write(q, err);
}

int
qm_reclaim_open(const struct qm_chain *chain, size_t base, size_t top, bool resumed,
                struct qm_reclaim **out, struct qmeld_error *err)
{
    struct qm_reclaim *r = calloc(1, sizeof *r);

    *out = NULL;
    if (r)
        r->cleared = calloc(top - base, sizeof *r->cleared);
    if (!r || !r->cleared) {
        qm_reclaim_free(r);
        return qm_fail_nomem(err, "the layers that are given up");
    }
    r->chain = chain;
    r->base = base;
    r->top = top;
    for (size_t i = base + 1; i <= top; i++) {
        if (begin(overlay(chain, i), resumed, err) < 0) {
            qm_reclaim_free(r);
            return -1;
        }
    }
    *out = r;
    return 0;
}

int
qm_reclaim_until(struct qm_reclaim *r, guest_off done, struct qmeld_error *err)
{
    uint64_t end = done.g; /* nobody below has gone further */

    for (size_t i = r->base + 1; i <= r->top; i++) {
        struct qm_qcow2 *q = overlay(r->chain, i);
        uint64_t *cleared = &r->cleared[i - r->base - 1];
        const uint64_t to =
            end >= q->hdr.size ? q->hdr.size : qm_align_down(end, q->geo.cluster_size);

        if (to > *cleared && qm_qcow2_unmap(q, *cleared, to, cleared, err) < 0)
            return -1;
        end = qm_min(end, *cleared);
    }
    return 0;
}

void
qm_reclaim_free(struct qm_reclaim *r)
{
    if (!r)
        return;
    free(r->cleared);
    free(r);
}
