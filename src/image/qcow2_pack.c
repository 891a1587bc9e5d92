/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qcow2_pack.h"

#include <assert.h>

#define SECTOR 512u

void
qm_pack_init(struct qm_pack *p, struct qm_refs *refs, const struct qcow2_geo *geo)
{
    *p = (struct qm_pack){.refs = refs, .geo = geo};
}

void
qm_pack_cut(struct qm_pack *p)
{
    p->at = qm_align_up(p->at, SECTOR);
    p->from = NULL;
}

/* ---- the area ---- */

/* *out: [at, at + len) is, or can become, a part of the area, and its clusters can count one more; then they
 * do. */
static int
count(struct qm_pack *p, uint64_t at, uint64_t len, bool *out, struct qmeld_error *err)
{
    const uint32_t bits = p->geo->cluster_bits;
    const uint64_t old_end = p->end;

    *out = false;
    if (old_end == 0)
        return 0;
    for (uint64_t c = at >> bits; c << bits < qm_min(old_end, at + len); c++) {
        uint64_t n;

        if (qm_refs_get(p->refs, c, &n, err) < 0)
            return -1;
        if (n >= qcow2_refcount_max(p->geo->refcount_order))
            return 0;
    }
    if (at + len > old_end) { /* by one cluster: a payload has no more bytes than that */
        if (qm_refs_alloc_at(p->refs, old_end >> bits, out, err) < 0)
            return -1;
        if (!*out)
            return 0;
        p->end += p->geo->cluster_size;
    }
    *out = true;
    for (uint64_t c = at >> bits; c << bits < qm_min(old_end, at + len); c++)
        if (qm_refs_raise(p->refs, c, err) < 0)
            return -1;
    return 0;
}

static int
begin_area(struct qm_pack *p, struct qmeld_error *err)
{
    host_off at;
    uint64_t n;

    if (qm_refs_alloc(p->refs, 1, &at, &n, err) < 0)
        return -1;
    p->at = at.h;
    p->end = at.h + p->geo->cluster_size;
    return 0;
}

int
qm_pack_take(struct qm_pack *p, uint64_t len, host_off *out, struct qmeld_error *err)
{
    bool done;

    assert(len > 0 && len <= p->geo->cluster_size);
    if (count(p, p->at, len, &done, err) < 0 || (!done && begin_area(p, err) < 0))
        return -1;
    *out = qm_host(p->at);
    p->at += len;
    p->from = NULL;
    return 0;
}

/* ---- passing on ---- */

bool
qm_pack_may_pass(const struct qm_qcow2 *to, const struct qm_qcow2 *from, const struct qm_extent *x)
{
    const uint64_t cs = to->geo.cluster_size;
    uint64_t end;

    if (x->kind != QM_COMPRESSED || x->skip != 0 || x->len != cs || x->guest.g % cs != 0 ||
        from->geo.cluster_size != cs || from->hdr.compression != to->hdr.compression ||
        to->geo.data_file || to->img.cipher || from->img.cipher) /* payloads are never encrypted */
        return false;
    /* More sectors than a cluster has would be no gain, and make two clusters of one.  What is not in
     * the file is left to who inflates. */
    return x->host.h % SECTOR + x->payload_len <= cs && qm_add(x->host.h, x->payload_len, &end) &&
           end <= qm_align_up(from->img.file->size, SECTOR);
}

/* Sectors [from, from + len) of the source get a place; *out: where. */
static int
find_place(struct qm_pack *p, const struct qm_image *img, uint64_t from, uint64_t len,
           uint64_t *out, struct qmeld_error *err)
{
    const bool goes_on = p->from == img && from >= p->run_start && from <= p->run_end;
    bool done;

    if (!goes_on)
        p->at = qm_align_up(p->at, SECTOR);
    *out = goes_on ? p->run_to - (p->run_end - from) : p->at;
    if (count(p, *out, len, &done, err) < 0)
        return -1;
    if (!done || !goes_on)
        p->from = NULL; /* a run ends with the area, and with what a cluster can count */
    if (done)
        return 0;
    if (begin_area(p, err) < 0)
        return -1;
    *out = p->at;
    return 0;
}

int
qm_pack_pass(struct qm_pack *p, const struct qm_image *from, const struct qm_extent *x,
             struct qm_passed *out, struct qmeld_error *err)
{
    const uint64_t first = qm_align_down(x->host.h, SECTOR), end = x->host.h + x->payload_len;
    uint64_t to, known;

    if (find_place(p, from, first, end - first, &to, err) < 0)
        return -1;
    *out =
        (struct qm_passed){.payload = qm_host(to + x->host.h % SECTOR), .joins = p->from != NULL};
    known = out->joins ? qm_min(end - first, p->run_end - first) : 0;
    out->source = first + known;
    out->to = to + known;
    out->len = end - first - known;
    if (!out->joins) {
        p->from = from;
        p->run_start = first;
    }
    if (!out->joins || end > p->run_end) {
        p->run_end = end;
        p->run_to = to + (end - first);
    }
    p->at = qm_max(p->at, to + (end - first));
    return 0;
}
