/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit_pack.c - compressed clusters that are passed on as they are.
 *
 * Why.  Where payloads go is qcow2_pack.h's business; this is in which order they go there: that of the source, so that what
 * is adjacent there stays so, and is one piece.
 */
#include "qcow2_edit_int.h"

#include <stdlib.h>

/* ---- which ---- */

bool
qm_edit_passes(struct qm_qcow2 *to, const struct qm_want *want)
{
    /* the walk made it an extent of this image, which therefore may be asked what it is */
    const struct qm_qcow2 *from = want->from ? qm_qcow2_of((struct qm_image *)want->from) : NULL;

    return from && want->len == want->ext.len && qm_pack_may_pass(to, from, &want->ext);
}

int
qm_edit_pass_on(struct qm_edit *e, uint64_t idx, const struct qm_want *want,
                struct qmeld_error *err)
{
    const struct qm_edit_payload p = {.entry = e->entries.n, .want = *want};
    const struct qm_edit_entry x = {.idx = idx};

    e->weight += sizeof p + sizeof(struct qm_move);
    if (!qm_vec_push(&e->payloads, &p))
        return qm_fail_nomem(err, "compressed clusters");
    return qm_edit_set(e, &x, err);
}

/* ---- where ---- */

static int
by_source(const void *a, const void *b)
{
    const struct qm_edit_payload *x = a, *y = b;

    if (x->want.layer != y->want.layer)
        return x->want.layer < y->want.layer ? -1 : 1;
    if (x->want.ext.host.h != y->want.ext.host.h)
        return x->want.ext.host.h < y->want.ext.host.h ? -1 : 1;
    return x->entry < y->entry ? -1 : x->entry > y->entry;
}

/* Sectors that continue those of the last move are a part of it. */
static int
move_sectors(const struct qm_edit_payload *p, const struct qm_passed *to, struct qm_moves *moves,
             struct qmeld_error *err)
{
    struct qm_move m = {.kind = QM_MOVE_COPY,
                        .guest = p->want.guest,
                        .len = to->len,
                        .to = qm_host(to->to),
                        .from = p->want.from,
                        .worth = p->want.len};

    m.ext = (struct qm_extent){.guest = m.guest,
                               .len = m.len,
                               .kind = QM_DATA,
                               .has_host = true,
                               .host = qm_host(to->source)};
    if (to->joins) {
        qm_vec_last(&moves->list)->len += m.len;
        qm_vec_last(&moves->list)->ext.len += m.len;
        qm_vec_last(&moves->list)->worth += m.worth;
    } else if (!qm_vec_push(&moves->list, &m)) {
        return qm_fail_nomem(err, "the list of moves");
    }
    return 0;
}

static int
pack(struct qm_edit *e, const struct qm_edit_payload *p, struct qm_moves *moves,
     struct qmeld_error *err)
{
    struct qm_edit_entry *entry = &e->entries.at[p->entry];
    struct qcow2_l2 new = {
        .kind = QCOW2_L2_COMPRESSED, .has_host = true, .payload_len = p->want.ext.payload_len};
    struct qm_passed to;

    if (qm_pack_pass(&e->pack, p->want.from, &p->want.ext, &to, err) < 0 ||
        move_sectors(p, &to, moves, err) < 0)
        return -1;
    e->host_end = qm_max(e->host_end, qm_align_up(e->pack.at, e->geo->cluster_size));
    new.host = to.payload;
    if (!qcow2_l2_fits(e->geo, &new))
        return qm_fail(
            err, QMELD_NOSPACE, qm_in(e->q->img.file->path),
            "the image file is so long that its far end cannot hold compressed clusters: "
            "merge with --decompress");
    qcow2_l2_encode(e->geo, &new, &entry->word0, &entry->word1);
    return 0;
}

int
qm_edit_pack(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err)
{
    if (e->payloads.n > 1)
        qsort(e->payloads.at, e->payloads.n, sizeof *e->payloads.at, by_source);
    QM_VEC_EACH (p, &e->payloads)
        if (pack(e, p, moves, err) < 0)
            return -1;
    qm_vec_clear(&e->payloads);
    qm_pack_cut(&e->pack); /* what was moved may be on the disk soon */
    return 0;
}
