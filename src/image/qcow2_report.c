/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qcow2_report.h"

#include "dict.h"
#include "qcow2_census.h"

#include <stdlib.h>
#include <string.h>

#define L1_SLICE 512u /* entries read at once */

struct report {
    struct qm_qcow2 *q;
    qmeld_anomaly_fn *fn;
    void *opaque;
    struct qm_census census;
    struct qm_count seen;   /* by tables of the view that is walked: 1, or more */
    struct qm_count packed; /* with compressed data of the active view */
    struct qm_count tables; /* L2 tables of any view that were walked: each is once */
    const struct qm_census_snapshot *snapshot; /* NULL: it is the active view */
    struct qmeld_anomaly held;                 /* unreferenced, not told yet; length 0: none */
    unsigned char *buf;                        /* a cluster */
    uint64_t *l1;
};

static int
tell(const struct report *r, const struct qmeld_anomaly *anomaly, struct qmeld_error *err)
{
    struct qmeld_anomaly told = *anomaly, *a = &told;

    a->in_snapshot = r->snapshot != NULL;
    if (a->in_snapshot)
        a->snapshot = (uint32_t)(r->snapshot - r->census.snapshots.at);
    if (r->fn(a, r->opaque) == 0)
        return 0;
    return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped by the caller");
}

/* ---- a view ---- */

/* *out_again: the cluster was named before, so that what it refers to has been looked at. */
static int
note(struct report *r, uint64_t off, uint64_t guest, bool table, bool *out_again,
     struct qmeld_error *err)
{
    const uint64_t cs = r->q->geo.cluster_size;
    struct qmeld_anomaly a = {
        .offset = off, .length = cs, .guest = guest, .has_guest = true, .table = table};
    uint64_t lost;

    *out_again = qm_count_get(&r->seen, off / cs) > 0;
    if (qm_count_add(&r->seen, off / cs, 1, &lost, err) < 0)
        return -1;
    if (*out_again) {
        a.kind = QMELD_ANOMALY_TWICE;
        if (tell(r, &a, err) < 0)
            return -1;
    }
    if (!qm_census_is_metadata(&r->census, off, cs))
        return 0;
    a.kind = QMELD_ANOMALY_OVERLAP;
    return tell(r, &a, err);
}

/* The sectors of a compressed cluster, each cluster of the file that they lie in.  Several may share one, and one may
 * end in the sector in which the next begins. */
static int
note_packed(struct report *r, const struct qcow2_l2 *e, uint64_t guest, struct qmeld_error *err)
{
    const uint64_t cs = r->q->geo.cluster_size, off = e->host.h;
    struct qmeld_anomaly a = {.kind = QMELD_ANOMALY_OVERLAP,
                              .offset = off,
                              .length = e->payload_len,
                              .guest = guest,
                              .has_guest = true,
                              .compressed = true};
    uint64_t lost;

    if (off >= r->q->img.file->size)
        return 0;
    for (uint64_t c = off / cs; !r->snapshot && c <= (off + a.length - 1) / cs; c++)
        if (c < r->census.file_clusters && qm_count_get(&r->packed, c) == 0 &&
            qm_count_add(&r->packed, c, 1, &lost, err) < 0)
            return -1;
    return qm_census_is_metadata(&r->census, off, a.length) ? tell(r, &a, err) : 0;
}

/* What cannot be a place in the file is check's business. */
static bool
is_inside(const struct report *r, uint64_t off)
{
    return off > 0 && off % r->q->geo.cluster_size == 0 && off < r->q->img.file->size;
}

static int
walk_table(struct report *r, uint64_t table, uint64_t guest, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &r->q->geo;
    const uint32_t words = g->extended_l2 ? 2 : 1;
    const uint64_t n = g->cluster_size / (8 * words);
    const be64 *entries = (const be64 *)r->buf;

    if (qm_qcow2_read_cluster(r->q, qm_host(table), r->buf, err) < 0)
        return -1;
    for (uint64_t i = 0; i < n; i++) {
        const uint64_t word1 = words == 2 ? be64_get(&entries[2 * i + 1]) : 0;
        struct qcow2_l2 e;
        bool again;

        if (qcow2_l2_decode(g, be64_get(&entries[words * i]), word1, &e) != QCOW2_L2_OK)
            continue;
        if (e.kind == QCOW2_L2_COMPRESSED &&
            note_packed(r, &e, guest + (i << g->cluster_bits), err) < 0)
            return -1;
        if (e.kind != QCOW2_L2_STANDARD || !e.has_host || !is_inside(r, e.host.h))
            continue;
        if (note(r, e.host.h, guest + (i << g->cluster_bits), false, &again, err) < 0)
            return -1;
    }
    return 0;
}

/* A table is walked once, whoever names it: snapshots share most of theirs with the active view. */
static int
walk_once(struct report *r, uint64_t table, uint64_t guest, struct qmeld_error *err)
{
    const uint64_t cluster = table / r->q->geo.cluster_size;
    uint64_t lost;

    if (qm_count_get(&r->tables, cluster) > 0)
        return 0;
    return qm_count_add(&r->tables, cluster, 1, &lost, err) < 0 ? -1
                                                                : walk_table(r, table, guest, err);
}

static int
walk_view(struct report *r, uint64_t l1_off, uint32_t l1_entries, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &r->q->geo;
    const uint64_t per_table = g->cluster_size / (g->extended_l2 ? 16 : 8) * g->cluster_size;

    for (uint32_t at = 0; at < l1_entries; at += L1_SLICE) {
        const uint32_t n = (uint32_t)qm_min(L1_SLICE, l1_entries - at);

        if (qm_qcow2_read_l1(r->q, l1_off, at, n, r->l1, err) < 0)
            return -1;
        for (uint32_t i = 0; i < n; i++) {
            const uint64_t table = r->l1[i] & QCOW2_OFFSET_MASK, guest = (at + i) * per_table;
            bool again;

            if (!is_inside(r, table))
                continue;
            if (note(r, table, guest, true, &again, err) < 0 ||
                (!again && walk_once(r, table, guest, err) < 0))
                return -1;
        }
    }
    return 0;
}

/* Clusters of the active view that have compressed data as well: r->seen is of that view still. */
static int
compare_packed(struct report *r, struct qmeld_error *err)
{
    const uint64_t cs = r->q->geo.cluster_size;

    for (uint64_t c = 0; c < r->census.file_clusters; c++) {
        const struct qmeld_anomaly a = {
            .kind = QMELD_ANOMALY_PACKED, .offset = c * cs, .length = cs, .compressed = true};

        if (!qm_count_chunk(&r->packed, c)) {
            c |= QM_CHUNK_MASK;
            continue;
        }
        if (qm_count_get(&r->packed, c) > 0 && qm_count_get(&r->seen, c) > 0 &&
            tell(r, &a, err) < 0)
            return -1;
    }
    return 0;
}

/* As check judges them, and no further than the file goes: what is not there refers to nothing. */
static uint32_t
usable_entries(const struct report *r, const struct qm_census_snapshot *s)
{
    const uint64_t size = r->q->img.file->size;

    if (s->l1_off % r->q->geo.cluster_size != 0 || s->l1_off >= size ||
        s->l1_entries > QCOW2_MAX_L1_BYTES / sizeof(be64))
        return 0;
    return (uint32_t)qm_min(s->l1_entries, (size - s->l1_off) / sizeof(be64));
}

static int
walk_snapshot(struct report *r, const struct qm_census_snapshot *s, struct qmeld_error *err)
{
    qm_count_release(&r->seen);
    if (qm_count_init(&r->seen, r->census.file_clusters, UINT64_MAX, r->census.count.budget, err) <
        0)
        return -1;
    r->snapshot = s;
    return walk_view(r, s->l1_off, usable_entries(r, s), err);
}

/* What snapshots share with each other and the active view is meant so: each has counters of its own.  Those that have one
 * L1 table, which no sound image has, are looked at once: a small file could have thousands of them. */
static int
walk_snapshots(struct report *r, struct qmeld_error *err)
{
    struct qm_dict walked = {.at = NULL};
    int rc = 0;

    QM_VEC_EACH (s, &r->census.snapshots) {
        if (rc < 0 || qm_dict_get(&walked, s->l1_off))
            continue;
        rc = qm_dict_put(&walked, s->l1_off, s) ? walk_snapshot(r, s, err)
                                                : qm_fail_nomem(err, "the report");
    }
    qm_dict_release(&walked);
    r->snapshot = NULL;
    return rc;
}

/* ---- the file ---- */

static bool
is_zero(const unsigned char *p, size_t len)
{
    return p[0] == 0 && memcmp(p, p + 1, len - 1) == 0;
}

/* [off, off + len) has data that nobody refers to: joins what is held, or replaces it. */
static int
hold(struct report *r, uint64_t off, uint64_t len, bool counted, struct qmeld_error *err)
{
    struct qmeld_anomaly *h = &r->held;

    if (h->length > 0 && h->offset + h->length == off && h->counted == counted) {
        h->length += len;
        return 0;
    }
    if (h->length > 0 && tell(r, h, err) < 0)
        return -1;
    *h = (struct qmeld_anomaly){
        .kind = QMELD_ANOMALY_UNREFERENCED, .offset = off, .length = len, .counted = counted};
    return 0;
}

/* A cluster that nobody refers to. */
static int
look_at_cluster(struct report *r, uint64_t cluster, struct qmeld_error *err)
{
    const uint64_t cs = r->q->geo.cluster_size, off = cluster * cs;
    const uint64_t len = qm_min(cs, r->q->img.file->size - off);
    uint64_t refcount = 0;
    bool known = false;

    if (qm_pread(r->q->img.file, off, r->buf, len, err) < 0)
        return -1;
    if (is_zero(r->buf, len))
        return 0;
    if (qm_census_disk_refcount(&r->census, cluster, &known, &refcount, err) < 0)
        return -1;
    return hold(r, off, len, known && refcount > 0, err);
}

/* Holes of the file are not looked at: it may be long. */
static int
walk_file(struct report *r, struct qmeld_error *err)
{
    const struct qm_file *file = r->q->img.file;
    const uint64_t cs = r->q->geo.cluster_size;
    uint64_t next = 0; /* clusters below are done */

    for (uint64_t at = 0; at < file->size;) {
        uint64_t len, end;
        bool data;

        if (qm_data_or_hole(file, at, &data, &len, err) < 0)
            return -1;
        end = data ? qm_div_up(at + len, cs) : 0;
        for (uint64_t c = qm_max(next, at / cs); c < end; c++)
            if (qm_count_get(&r->census.count, c) == 0 && look_at_cluster(r, c, err) < 0)
                return -1;
        next = qm_max(next, end);
        at += len;
    }
    return r->held.length > 0 ? tell(r, &r->held, err) : 0;
}

static int
report(struct report *r, struct qmeld_error *err)
{
    struct qm_qcow2 *q = r->q;

    if (qm_census_take(q, 0, NULL, NULL, &r->census, err) < 0 ||
        qm_count_init(&r->seen, r->census.file_clusters, UINT64_MAX, r->census.count.budget, err) <
            0 ||
        qm_count_init(&r->packed, r->census.file_clusters, UINT64_MAX, r->census.count.budget,
                      err) < 0 ||
        qm_count_init(&r->tables, r->census.file_clusters, UINT64_MAX, r->census.count.budget,
                      err) < 0)
        return -1;
    r->buf = malloc(q->geo.cluster_size);
    r->l1 = calloc(L1_SLICE, sizeof *r->l1);
    if (!r->buf || !r->l1)
        return qm_fail_nomem(err, "the report");
    if (walk_view(r, q->hdr.l1_off, q->hdr.l1_entries, err) < 0 || compare_packed(r, err) < 0 ||
        walk_snapshots(r, err) < 0)
        return -1;
    return walk_file(r, err);
}

int
qm_qcow2_report(struct qm_qcow2 *q, qmeld_anomaly_fn *fn, void *opaque, struct qmeld_error *err)
{
    struct report r = {.q = q, .fn = fn, .opaque = opaque};
    const int rc = report(&r, err);

    qm_count_release(&r.seen);
    qm_count_release(&r.packed);
    qm_count_release(&r.tables);
    qm_census_release(&r.census);
    free(r.buf);
    free(r.l1);
    return rc;
}
