/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit_place.c - which host clusters the new clusters of a batch become.
 *
 * An overlay holds guest clusters in the order in which they were written.  In that order, and
 * not in the guest's, they get their places in the target: what is adjacent in the source is then
 * adjacent here, so that it is copied, or shared, in few long pieces, and written from the front to
 * the back.  The order is total (layer, host offset, guest offset), so the same wants always
 * come to the same places.
 */
#include "qcow2_edit_int.h"

#include <stdlib.h>

static int
by_source(const void *a, const void *b)
{
    const struct qm_edit_slot *x = a, *y = b;

    if (x->layer != y->layer)
        return x->layer < y->layer ? -1 : 1;
    if (x->source != y->source)
        return x->source < y->source ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

/* The slot's cluster is at `at`. */
static int
settle(struct qm_edit *e, const struct qm_edit_slot *s, uint64_t at, struct qm_moves *moves,
       struct qmeld_error *err)
{
    e->entries.at[s->entry].word0 |= at; /* was encoded with offset 0 */
    for (size_t i = s->first; i < s->first + s->n; i++) {
        struct qm_move m = e->moves.list.at[i];

        m.to.h += at;
        if (qm_edit_add_move(moves, &m, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_edit_place(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err)
{
    const uint64_t cs = e->geo->cluster_size;

    if (qm_edit_pack(e, moves, err) < 0)
        return -1;
    if (e->slots.n > 1)
        qsort(e->slots.at, e->slots.n, sizeof *e->slots.at, by_source);
    for (size_t i = 0; i < e->slots.n;) {
        host_off at;
        uint64_t n;

        if (qm_refs_alloc(e->refs, e->slots.n - i, &at, &n, err) < 0)
            return -1;
        e->host_end = qm_max(e->host_end, at.h + n * cs);
        for (; n > 0; n--, at.h += cs)
            if (settle(e, &e->slots.at[i++], at.h, moves, err) < 0)
                return -1;
    }
    qm_vec_clear(&e->slots);
    qm_vec_clear(&e->moves.list);
    return 0;
}
