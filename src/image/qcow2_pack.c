/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qcow2_pack.h"

#include <assert.h>

void
qm_pack_init(struct qm_pack *p, struct qm_refs *refs, const struct qcow2_geo *geo)
{
    *p = (struct qm_pack){
        .refs = refs, .cluster_bits = geo->cluster_bits, .refcount_order = geo->refcount_order};
}

static int
take_cluster(struct qm_pack *p, host_off *out, struct qmeld_error *err)
{
    uint64_t n;

    return qm_refs_alloc(p->refs, 1, out, &n, err);
}

/* Behind what was taken last, as far as that cluster goes, and on into the next one if that is free. */
static int
take_on(struct qm_pack *p, uint64_t len, host_off *out, struct qmeld_error *err)
{
    const uint64_t cs = 1ull << p->cluster_bits, end = qm_align_up(p->at, cs);
    host_off next = {0};

    if (len > end - p->at && take_cluster(p, &next, err) < 0)
        return -1;
    *out = qm_host(p->at);
    if (next.h != 0 && next.h != end) { /* something else lies there: begin in the new one */
        *out = next;
        p->at = next.h + len;
        p->count = 1;
        return 0;
    }
    if (qm_refs_raise(p->refs, p->at >> p->cluster_bits, err) < 0)
        return -1;
    p->count = next.h != 0 ? 1 : p->count + 1;
    p->at += len;
    return 0;
}

int
qm_pack_take(struct qm_pack *p, uint64_t len, host_off *out, struct qmeld_error *err)
{
    const uint64_t cs = 1ull << p->cluster_bits;
    int rc;

    assert(len > 0 && len <= cs);
    if (p->at != 0 && p->count < qcow2_refcount_max(p->refcount_order)) {
        rc = take_on(p, len, out, err);
    } else {
        rc = take_cluster(p, out, err);
        p->at = out->h + len;
        p->count = 1;
    }
    if (p->at % cs == 0) /* full: whoever comes next begins a cluster */
        p->at = 0;
    return rc;
}

bool
qm_pack_can_lead_to(const struct qcow2_geo *geo, host_off at)
{
    const uint32_t bits = 70 - geo->cluster_bits;

    return at.h >> (bits < 56 ? bits : 56) == 0;
}
