/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit_pack.c - compressed clusters that are passed on as they are, and where their payloads go.
 *
 * A payload begins at any byte, and its length is known to the sector only (specification,
 * "Compressed Clusters Descriptor").  So that no slack is added by a merge, and the next, payloads keep
 * their place within a sector, and whole sectors are moved: what lies adjacent, or in one sector, in the
 * source is one run and stays as it is; runs follow each other at sectors.
 *
 *     source   |..AAAAAA|AABBBBBB|BBBBBCCC|CC......|        |....DDDD|D.......|
 *     target                     |..AAAAAA|AABBBBBB|BBBBBCCC|CC......|....DDDD|D.......|
 *
 * The area that is being filled is made of host clusters side by side, taken one by one.  Each counts
 * the payloads that touch it (as QEMU does; 7.2, block/qcow2-refcount.c, update_refcount); one that
 * cannot count another ends the area.  The next batch goes on in the last cluster, but at a new sector:
 * no sector that an entry on the disk leads to is written.
 */
#include "qcow2_edit_int.h"

#include <stdlib.h>

#define SECTOR 512u

/* ---- which ---- */

bool
qm_edit_passes(struct qm_qcow2 *to, const struct qm_want *want)
{
    /* the walk made it an extent of this image, which therefore may be asked what it is */
    struct qm_qcow2 *from = want->from ? qm_qcow2_of((struct qm_image *)want->from) : NULL;
    const struct qm_extent *x = &want->ext;
    const uint64_t cs = to->geo.cluster_size;
    uint64_t end;

    if (!from || x->kind != QM_COMPRESSED || x->skip != 0 || want->len != cs ||
        want->guest.g % cs != 0 || from->geo.cluster_size != cs ||
        from->hdr.compression != to->hdr.compression || to->geo.data_file)
        return false;
    /* More sectors than a cluster has would be no gain, and make two clusters of one.  What is not in
     * the file is left to who inflates. */
    return x->host.h % SECTOR + x->payload_len <= cs && qm_add(x->host.h, x->payload_len, &end) &&
           end <= qm_align_up(from->img.file->size, SECTOR);
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

/* *out: [at, at + len) is, or can become, a part of the area, and its clusters can count one more; then they
 * do. */
static int
take(struct qm_edit *e, uint64_t at, uint64_t len, bool *out, struct qmeld_error *err)
{
    const uint32_t bits = e->geo->cluster_bits;
    const uint64_t old_end = e->area_end;

    *out = false;
    for (uint64_t c = at >> bits; c << bits < qm_min(old_end, at + len); c++) {
        uint64_t count;

        if (qm_refs_get(e->refs, c, &count, err) < 0)
            return -1;
        if (count >= qcow2_refcount_max(e->geo->refcount_order))
            return 0;
    }
    if (at + len > old_end) { /* by one cluster: a payload has no more bytes than that */
        if (qm_refs_alloc_at(e->refs, old_end >> bits, out, err) < 0 || !*out)
            return *out ? -1 : 0;
        e->area_end += e->geo->cluster_size;
    }
    *out = true;
    for (uint64_t c = at >> bits; c << bits < qm_min(old_end, at + len); c++)
        if (qm_refs_raise(e->refs, c, err) < 0)
            return -1;
    return 0;
}

/* Sectors [from, from + len) of the payload's file get a place in the area; *out: where. */
static int
find_place(struct qm_edit *e, const struct qm_image *img, uint64_t from, uint64_t len,
           uint64_t *out, struct qmeld_error *err)
{
    const bool goes_on = e->run_from == img && from <= e->run_end;
    bool done = false;
    host_off at;
    uint64_t n;

    *out = goes_on ? e->run_to - (e->run_end - from) : e->area_at;
    if (e->area_end > 0 && take(e, *out, len, &done, err) < 0)
        return -1;
    if (!done || !goes_on)
        e->run_from = NULL; /* a run ends with the area, and with what a cluster can count */
    if (done)
        return 0;
    if (qm_refs_alloc(e->refs, 1, &at, &n, err) < 0)
        return -1;
    e->area_end = at.h + e->geo->cluster_size;
    *out = e->area_at = at.h;
    return 0;
}

/* The bytes of source sectors up to `end` that are not on their way yet. */
static int
move_sectors(struct qm_edit *e, const struct qm_edit_payload *p, uint64_t from, uint64_t to,
             uint64_t len, struct qm_moves *moves, struct qmeld_error *err)
{
    const bool goes_on = e->run_from == p->want.from;
    const uint64_t known = goes_on ? qm_min(len, e->run_end - from) : 0;
    struct qm_move m = {.kind = QM_MOVE_COPY,
                        .guest = p->want.guest,
                        .len = len - known,
                        .to = qm_host(to + known),
                        .from = p->want.from,
                        .worth = p->want.len};

    m.ext = (struct qm_extent){.guest = m.guest,
                               .len = m.len,
                               .kind = QM_DATA,
                               .has_host = true,
                               .host = qm_host(from + known)};
    if (goes_on) {
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
    const struct qm_extent *x = &p->want.ext;
    const uint64_t from = qm_align_down(x->host.h, SECTOR), end = x->host.h + x->payload_len;
    struct qm_edit_entry *entry = &e->entries.at[p->entry];
    struct qcow2_l2 new = {
        .kind = QCOW2_L2_COMPRESSED, .has_host = true, .payload_len = x->payload_len};
    uint64_t to;

    if (find_place(e, p->want.from, from, end - from, &to, err) < 0 ||
        move_sectors(e, p, from, to, end - from, moves, err) < 0)
        return -1;
    if (e->run_from != p->want.from || end > e->run_end) {
        e->run_from = p->want.from;
        e->run_end = end;
        e->run_to = to + (end - from);
    }
    e->area_at = qm_max(e->area_at, to + (end - from));
    e->host_end = qm_max(e->host_end, qm_align_up(e->area_at, e->geo->cluster_size));
    new.host = qm_host(to + x->host.h % SECTOR);
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
    e->run_from = NULL;
    QM_VEC_EACH (p, &e->payloads)
        if (pack(e, p, moves, err) < 0)
            return -1;
    qm_vec_clear(&e->payloads);
    e->run_from = NULL; /* of the image; and what was moved last may be on the disk soon */
    return 0;
}
