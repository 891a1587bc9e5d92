/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_unmap.c - entries cleared in place, then refcounts lowered, then holes made.
 *
 * Tables are worked in groups, so that memory is bounded.  For each group
 *   1 the L1 entries of tables that go as a whole become zeros; so do the entries in front of the
 *     end in the one table that the end lies in.  Entries have 8 or 16 aligned bytes, so each is
 *     read old or cleared, and a cleared one is read from below.  Synced: COMMIT POINT
 *   2 each cluster they led to loses a reference, and so do the tables that went
 *   3 what has none left becomes a hole
 * Steps 2 and 3 need no sync of their own: refcounts that are late are too high, which is a leak,
 * and nobody looks into the holes.  Tables and refcount blocks are only changed where they are, so
 * that a full disk stops none of it, unless the file has holes in them.
 */
#include "qcow2_unmap.h"

#include "qcow2_check.h"
#include "qcow2_refs.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_TABLES   16384u /* L1 entries looked at at once; 128 KiB */
#define TABLES_A_WRITE 256    /* L2 tables freed between two writes of refcounts */

struct unmap {
    struct qm_qcow2 *q;
    struct qm_refs *refs; /* NULL: not needed yet */
    uint64_t end;         /* guest cluster; UINT64_MAX: all there is */
    uint64_t *l1;         /* GROUP_TABLES entries */
    unsigned char *table; /* one L2 table */
    unsigned char *zeros; /* room for the longer of both */
    /* the group */
    uint64_t first_l1; /* index of l1[0] */
    uint32_t n_l1;     /* entries of tables that go as a whole */
    uint64_t part_off; /* the table that goes in part; 0: none */
    uint64_t part_n;   /* so many entries of it */
    bool stuck;        /* it cannot */
};

static int
bad_table(const struct unmap *u, uint64_t off, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_at(u->q->img.file->path, off),
                   "L1 entry points into a cluster: run `qmeld check --repair=all`");
}

static int
open_refs(struct unmap *u, struct qmeld_error *err)
{
    return u->refs ? 0 : qm_refs_open(u->q, &u->refs, err);
}

/* ---- step 1 ---- */

/* Loads the next group; false: there is nothing in it. */
static int
load_group(struct unmap *u, uint64_t idx, bool *out_any, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = u->q;
    const uint64_t whole = u->end == UINT64_MAX ? q->hdr.l1_entries : u->end >> q->geo.l2_bits;
    uint64_t n = qm_min(GROUP_TABLES, q->hdr.l1_entries - idx);

    u->first_l1 = idx;
    u->part_off = 0;
    if (u->end != UINT64_MAX) /* and the one that the end lies in */
        n = qm_min(n, qm_div_up(u->end, 1ull << q->geo.l2_bits) - idx);
    if (qm_qcow2_read_l1(q, q->hdr.l1_off, (uint32_t)idx, (uint32_t)n, u->l1, err) < 0)
        return -1;
    *out_any = false;
    for (uint64_t i = 0; i < n; i++) {
        u->l1[i] &= QCOW2_OFFSET_MASK;
        if (u->l1[i] % q->geo.cluster_size)
            return bad_table(u, u->l1[i], err);
        *out_any = *out_any || u->l1[i];
    }
    u->n_l1 = (uint32_t)(whole > idx ? qm_min(n, whole - idx) : 0);
    if (u->n_l1 < n) {
        u->part_off = u->l1[n - 1];
        u->part_n = u->end & ((1ull << q->geo.l2_bits) - 1);
    }
    return 0;
}

/* L1 entries are overwritten in place, so nobody else may have the table. */
static int
check_l1_alone(struct unmap *u, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = u->q;

    if (off < q->geo.cluster_size)
        return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, off),
                       "the L1 table lies in the header: restore the image from a copy");
    for (uint64_t c = off >> q->geo.cluster_bits; c <= (off + len - 1) >> q->geo.cluster_bits;
         c++) {
        uint64_t count;

        if (qm_refs_get(u->refs, c, &count, err) < 0)
            return -1;
        if (count != 1)
            return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, off),
                           "a cluster of the L1 table has refcount %" PRIu64
                           ": run `qmeld check --repair=all`",
                           count);
    }
    return 0;
}

/* From the first to the last entry that is set, in one write. */
static int
clear_l1(struct unmap *u, bool *out_wrote, struct qmeld_error *err)
{
    const uint64_t len_of_one = sizeof(be64);
    uint32_t from = 0, to = u->n_l1;
    uint64_t off, len;

    while (from < to && u->l1[from] == 0)
        from++;
    while (to > from && u->l1[to - 1] == 0)
        to--;
    if (from == to)
        return 0;
    off = u->q->hdr.l1_off + (u->first_l1 + from) * len_of_one;
    len = (to - from) * len_of_one;
    *out_wrote = true;
    if (check_l1_alone(u, off, len, err) < 0)
        return -1;
    return qm_pwrite(u->q->img.file, off, u->zeros, len, err);
}

static uint64_t
word_at(const struct unmap *u, uint64_t i)
{
    return be64_get((const be64 *)u->table + i);
}

/* The entries of the table in part, likewise.  They stay in u->table, for step 2. */
static int
clear_part(struct unmap *u, bool *out_wrote, struct qmeld_error *err)
{
    const uint64_t words = u->q->geo.l2_entry_len / sizeof(be64);
    uint64_t count, from = 0, to = u->part_n;

    if (u->part_off == 0)
        return 0;
    if (qm_refs_get(u->refs, u->part_off >> u->q->geo.cluster_bits, &count, err) < 0)
        return -1;
    u->stuck = count != 1; /* another part of the guest's disk is read through it, too */
    if (u->stuck)
        return 0;
    if (qm_qcow2_read_cluster(u->q, qm_host(u->part_off), u->table, err) < 0)
        return -1;
    while (from < to && !word_at(u, from * words) && !word_at(u, from * words + words - 1))
        from++;
    while (to > from && !word_at(u, (to - 1) * words) && !word_at(u, to * words - 1))
        to--;
    if (from == to)
        return 0;
    *out_wrote = true;
    return qm_pwrite(u->q->img.file, u->part_off + from * u->q->geo.l2_entry_len, u->zeros,
                     (to - from) * u->q->geo.l2_entry_len, err);
}

/* ---- steps 2 and 3 ---- */

/* Takes one reference from all that the first n entries of u->table lead to. */
static int
drop_clusters(struct unmap *u, uint64_t table_off, uint64_t n, struct qmeld_error *err)
{
    const struct qcow2_geo *geo = &u->q->geo;
    const uint64_t words = geo->l2_entry_len / sizeof(be64);

    for (uint64_t i = 0; i < n; i++) {
        const uint64_t word0 = word_at(u, i * words);
        struct qcow2_l2 e;
        uint64_t len;

        if (word0 == 0)
            continue;
        if (qcow2_l2_decode(geo, word0, words > 1 ? word_at(u, i * words + 1) : 0, &e) ==
            QCOW2_L2_UNALIGNED)
            return qm_fail(err, QMELD_CORRUPT, qm_at(u->q->img.file->path, table_off),
                           "L2 entry: %s: run `qmeld check --repair=all`",
                           qcow2_l2_verdict_text(QCOW2_L2_UNALIGNED));
        if (e.kind == QCOW2_L2_STANDARD && !e.has_host)
            continue;
        len = e.kind == QCOW2_L2_COMPRESSED ? e.payload_len : geo->cluster_size;
        if (qm_refs_free(u->refs, e.host, len, err) < 0)
            return -1;
    }
    return 0;
}

static int
drop_group(struct unmap *u, struct qmeld_error *err)
{
    const uint64_t entries = 1ull << u->q->geo.l2_bits;
    unsigned staged = 0;

    if (u->part_off && !u->stuck && drop_clusters(u, u->part_off, u->part_n, err) < 0)
        return -1;
    for (uint32_t i = 0; i < u->n_l1; i++) {
        const host_off off = qm_host(u->l1[i]);

        if (off.h == 0)
            continue;
        if (qm_qcow2_read_cluster(u->q, off, u->table, err) < 0 ||
            drop_clusters(u, off.h, entries, err) < 0 ||
            qm_refs_free(u->refs, off, u->q->geo.cluster_size, err) < 0)
            return -1;
        if (++staged % TABLES_A_WRITE == 0 && qm_refs_write(u->refs, err) < 0)
            return -1;
    }
    return qm_refs_write(u->refs, err);
}

/* The file is cut only when all is given up, as that needs refcounts that are durable: a check does not
 * look at those behind the end of the file. */
static int
make_holes(struct unmap *u, struct qmeld_error *err)
{
    if (u->end != UINT64_MAX)
        return qm_refs_discard(u->refs, err);
    if (qm_refs_commit(u->refs, err) < 0)
        return -1;
    return qm_refs_trim(u->refs, NULL, err);
}

/* ---- all of it ---- */

static int
unmap_group(struct unmap *u, struct qmeld_error *err)
{
    bool wrote = false;

    if (open_refs(u, err) < 0 || clear_l1(u, &wrote, err) < 0 || clear_part(u, &wrote, err) < 0)
        return -1;
    if (!wrote)
        return 0;
    /* COMMIT POINT, S1: these guest bytes are read from below */
    if (qm_sync(u->q->img.file, err) < 0)
        return -1;
    qm_image_forget(&u->q->img);
    return drop_group(u, err) < 0 ? -1 : make_holes(u, err);
}

static int
unmap(struct unmap *u, uint64_t from, struct qmeld_error *err)
{
    const struct qcow2_geo *geo = &u->q->geo;
    uint64_t idx = from >> (geo->cluster_bits + geo->l2_bits);

    while (idx < u->q->hdr.l1_entries && (u->end == UINT64_MAX || idx << geo->l2_bits < u->end)) {
        bool any;

        if (load_group(u, idx, &any, err) < 0 || (any && unmap_group(u, err) < 0))
            return -1;
        idx += GROUP_TABLES;
    }
    return 0;
}

int
qm_qcow2_unmap(struct qm_qcow2 *q, uint64_t from, uint64_t to, uint64_t *out_to,
               struct qmeld_error *err)
{
    const bool all = to >= q->hdr.size;
    QM_FREE uint64_t *l1 = calloc(GROUP_TABLES, sizeof *l1);
    QM_FREE unsigned char *table = malloc(q->geo.cluster_size);
    QM_FREE unsigned char *zeros =
        calloc(1, qm_max(GROUP_TABLES * sizeof(be64), q->geo.cluster_size));
    struct unmap u = {.q = q,
                      .end = all ? UINT64_MAX : to >> q->geo.cluster_bits,
                      .l1 = l1,
                      .table = table,
                      .zeros = zeros};
    int rc;

    if (!l1 || !table || !zeros)
        return qm_fail_nomem(err, "the tables of an overlay");
    rc = unmap(&u, from, err);
    qm_refs_close(u.refs);
    *out_to = all ? q->hdr.size : u.end << q->geo.cluster_bits;
    if (u.stuck) /* it is the last of its group, and the group the last */
        *out_to = qm_align_down(*out_to, qcow2_l2_span(&q->geo));
    return rc;
}

/* ---- after an interruption ---- */

/* Makes [first, end) a hole, clusters that are free. */
static int
punch(struct qm_qcow2 *q, uint64_t first, uint64_t end, struct qmeld_error *err)
{
    const uint32_t bits = q->geo.cluster_bits;

    return end > first ? qm_discard(q->img.file, first << bits, (end - first) << bits, err) : 0;
}

static int
punch_free(struct qm_qcow2 *q, struct qm_refs *refs, struct qmeld_error *err)
{
    struct qm_file *file = q->img.file;
    const uint64_t n = qm_div_up(file->size, q->geo.cluster_size);
    uint64_t begun = 0; /* of the free run that c ends */

    for (uint64_t c = 0; c < n; c++) {
        uint64_t count;

        if (qm_refs_get(refs, c, &count, err) < 0)
            return -1;
        if (count == 0)
            continue;
        if (punch(q, begun, c, err) < 0)
            return -1;
        begun = c + 1;
    }
    if (begun >= n)
        return 0;
    if (file->blockdev)
        return punch(q, begun, n, err);
    return qm_truncate(file, begun << q->geo.cluster_bits, err);
}

int
qm_qcow2_give_back(struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct qm_refs *refs;
    int rc;

    /* refcounts as they are must be durable, too, before the file is cut behind the last one */
    if (qm_qcow2_make_safe_to_write(q, err) < 0 || qm_qcow2_mend_leaks(q, err) < 0 ||
        qm_sync(q->img.file, err) < 0 || qm_refs_open(q, &refs, err) < 0)
        return -1;
    rc = punch_free(q, refs, err);
    qm_refs_close(refs);
    return rc < 0 ? -1 : qm_sync(q->img.file, err);
}
