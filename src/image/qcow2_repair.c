/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_repair.c - mends what a census has found: refcounts, flags, entries, snapshot table.
 *
 * The rebuild of the whole refcount structure has its own file, qcow2_rebuild.c.
 */
#include "qcow2_repair.h"

#include "qcow2_header.h"
#include "qcow2_refs.h"
#include "qcow2_stage.h"

#include <inttypes.h>

/* Writes the part [first, last] of buf, which is the content of the file from off on. */
static int
write_part(struct qm_qcow2 *q, uint64_t off, const void *buf, uint64_t first, uint64_t last,
           struct qmeld_error *err)
{
    return qm_pwrite(q->img.file, off + first, (const unsigned char *)buf + first, last - first + 1,
                     err);
}

/* ---- refcounts ---- */

static int
mend_block(struct qm_qcow2 *q, const struct qm_census *c, const struct qm_refblock *b,
           uint64_t block_off, unsigned what, struct qm_refs *refs, struct qmeld_error *err)
{
    const uint32_t order = q->geo.refcount_order;
    uint64_t first = UINT64_MAX, last = 0;

    for (uint64_t i = 0; i < b->n; i++) {
        const uint64_t counted = qm_count_get(&c->count, b->first + i);
        const uint64_t disk = qcow2_refcount_get(b->data, order, i);

        if (counted == disk || !(what & (counted > disk ? QM_REPAIR_RAISE : QM_REPAIR_LOWER)))
            continue;
        if (refs) { /* staged: the block must move before it changes, and nothing is raised */
            if (qm_refs_lower(refs, b->first + i, counted, err) < 0)
                return -1;
            continue;
        }
        qcow2_refcount_put(b->data, order, i, counted);
        first = qm_min(first, i << order >> 3);
        last = (((i + 1) << order) - 1) >> 3;
    }
    if (first == UINT64_MAX)
        return 0;
    return write_part(q, block_off, b->data, first, last, err);
}

static int
mend_blocks(struct qm_qcow2 *q, const struct qm_census *c, unsigned what, struct qm_refs *refs,
            struct qmeld_error *err)
{
    const struct qcow2_geo *g = &q->geo;
    QM_FREE unsigned char *buf = malloc(g->cluster_size);

    if (!buf)
        return qm_fail_nomem(err, "a refcount block");
    for (uint64_t i = 0; i << g->refblock_bits < c->n_clusters; i++) {
        struct qm_refblock b;
        uint64_t off;
        bool known;

        if (qm_census_read_block(c, i, c->n_clusters, buf, &b, &known, err) < 0)
            return -1;
        if (!b.data || !qm_census_block(c, i, &off))
            continue; /* nothing is referred to there, or a rebuild would be needed */
        if (!qm_census_counted(c, off >> g->cluster_bits, 1))
            continue; /* it is something else, too, and a refcount of one bit cannot say so */
        if (mend_block(q, c, &b, off, what, refs, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_repair_refcounts(struct qm_qcow2 *q, const struct qm_census *c, unsigned what,
                    struct qmeld_error *err)
{
    struct qm_refs *refs = NULL;
    int rc;

    assert(!c->needs_rebuild && !c->incomplete);
    if (q->stage && qm_refs_open(q, &refs, err) < 0)
        return -1;
    rc = mend_blocks(q, c, what, refs, err);
    if (rc == 0)
        rc = refs ? qm_refs_commit(refs, err) : qm_sync(q->img.file, err);
    qm_refs_close(refs);
    return rc;
}

/* ---- L2 tables ---- */

/* What a mend does to the entries of one L2 table; returns how far it changed something. */
struct l2_mend {
    struct qm_qcow2 *q;
    const struct qm_census *c;
    struct qmeld_error *err;
    int (*entry)(struct l2_mend *m, be64 *words, bool *out_changed);
};

/* True if the table's cluster is nothing else besides: not other metadata, and not guest data,
 * which an L1 entry that went astray would have us write flags into. */
static bool
may_write_l2(const struct l2_mend *m, const struct qm_l2_ref *t)
{
    const uint64_t size = m->q->geo.cluster_size;

    return t->off && t->off % size == 0 && t->off < m->c->file_len &&
           qm_census_counted(m->c, t->off >> m->q->geo.cluster_bits, t->active + t->inactive) &&
           !qm_census_is_metadata(m->c, t->off, size);
}

static int
mend_l2_table(struct l2_mend *m, const struct qm_l2_ref *t, unsigned char *buf)
{
    const uint64_t size = m->q->geo.cluster_size, step = m->q->geo.l2_entry_len;
    uint64_t first = UINT64_MAX, last = 0;

    if (qm_pread_padded(m->q->img.file, t->off, buf, size, m->err) < 0)
        return -1;
    for (uint64_t i = 0; i < size; i += step) {
        bool changed = false;

        if (m->entry(m, (be64 *)(buf + i), &changed) < 0)
            return -1;
        if (!changed)
            continue;
        first = qm_min(first, i);
        last = i + step - 1;
    }
    if (first == UINT64_MAX)
        return 0;
    return write_part(m->q, t->off, buf, first, last, m->err);
}

static int
mend_l2_tables(struct l2_mend *m, bool active_only)
{
    QM_FREE unsigned char *buf = malloc(m->q->geo.cluster_size);

    if (!buf)
        return qm_fail_nomem(m->err, "an L2 table");
    QM_VEC_EACH (t, &m->c->l2)
        if ((t->active || !active_only) && may_write_l2(m, t) && mend_l2_table(m, t, buf) < 0)
            return -1;
    return qm_sync(m->q->img.file, m->err);
}

static int
zero_entry(struct l2_mend *m, be64 *words, bool *out_changed)
{
    const struct qcow2_geo *g = &m->q->geo;
    const uint64_t word0 = be64_get(words);
    const uint64_t word1 = g->extended_l2 ? be64_get(words + 1) : 0;
    const bool data = g->extended_l2 ? (word1 & QCOW2_L2_ALL_ALLOC) != 0 : !(word0 & QCOW2_ZERO);

    if ((word0 & QCOW2_COMPRESSED) || !(word0 & QCOW2_OFFSET_MASK & (g->cluster_size - 1)) || data)
        return 0;
    if (g->version < 3) /* has no zero flag: the entry stays damaged */
        return 0;
    /* Both words of an extended entry lie in one sector.  Which subclusters are zero stays. */
    if (g->extended_l2)
        be64_put(words, 0);
    else
        be64_put(words, QCOW2_ZERO);
    *out_changed = true;
    return 0;
}

int
qm_repair_zeroable(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
{
    struct l2_mend m = {.q = q, .c = c, .err = err, .entry = zero_entry};

    return mend_l2_tables(&m, false);
}

/* ---- COPIED flags ---- */

/* Makes the flag of *word say whether the refcount of its cluster is 1, if that can be known. In a
 * data file nobody else can own a cluster: `alone` says so. */
static int
mend_flag(const struct qm_census *c, be64 *word, uint64_t cluster, bool alone, bool *out_changed,
          struct qmeld_error *err)
{
    const uint64_t entry = be64_get(word);
    bool one = true, known = true;

    if (!alone) {
        uint64_t refcount = qm_count_is_one(&c->count, cluster);

        if ((refcount == 1) == (bool)(entry & QCOW2_COPIED) && cluster < c->file_clusters)
            return 0;
        if (qm_census_disk_refcount(c, cluster, &known, &refcount, err) < 0)
            return -1;
        one = refcount == 1;
    }
    if (!known || one == (bool)(entry & QCOW2_COPIED))
        return 0;
    be64_put(word, one ? entry | QCOW2_COPIED : entry & ~QCOW2_COPIED);
    *out_changed = true;
    return 0;
}

static int
copied_entry(struct l2_mend *m, be64 *words, bool *out_changed)
{
    const struct qcow2_geo *g = &m->q->geo;
    const uint64_t word0 = be64_get(words);
    const uint64_t off = word0 & QCOW2_OFFSET_MASK;

    /* An entry without an offset has no cluster; in an image with a data file it has one if
     * COPIED is set, which is then right. */
    if ((word0 & QCOW2_COMPRESSED) || off == 0)
        return 0;
    return mend_flag(m->c, words, off >> g->cluster_bits, g->data_file, out_changed, m->err);
}

/* True if the active L1 table is nothing else besides. */
static bool
may_write_l1(const struct qm_qcow2 *q, const struct qm_census *c)
{
    const uint64_t len = (uint64_t)q->hdr.l1_entries * sizeof(be64);

    if (len == 0 || q->hdr.l1_off == 0 || q->hdr.l1_off + len > q->img.file->size)
        return false;
    for (uint64_t k = q->hdr.l1_off >> q->geo.cluster_bits;
         k <= (q->hdr.l1_off + len - 1) >> q->geo.cluster_bits; k++)
        if (!qm_census_counted(c, k, 1))
            return false;
    return true;
}

#define L1_SLICE 8192u

static int
mend_l1_flags(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
{
    QM_FREE be64 *slice = malloc(L1_SLICE * sizeof *slice);

    if (!slice)
        return qm_fail_nomem(err, "an L1 table");
    for (uint64_t i = 0; i < q->hdr.l1_entries; i += L1_SLICE) {
        const uint64_t n = qm_min(L1_SLICE, q->hdr.l1_entries - i);
        const uint64_t off = q->hdr.l1_off + i * sizeof *slice;
        uint64_t first = UINT64_MAX, last = 0;

        if (qm_pread_padded(q->img.file, off, slice, n * sizeof *slice, err) < 0)
            return -1;
        for (uint64_t k = 0; k < n; k++) {
            const uint64_t l2 = be64_get(&slice[k]) & QCOW2_OFFSET_MASK;
            bool changed = false;

            if (l2 && mend_flag(c, &slice[k], l2 >> q->geo.cluster_bits, false, &changed, err) < 0)
                return -1;
            if (!changed)
                continue;
            first = qm_min(first, k);
            last = k;
        }
        if (first != UINT64_MAX && write_part(q, off, slice, first * sizeof *slice,
                                              (last + 1) * sizeof *slice - 1, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_repair_copied(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
{
    struct l2_mend m = {.q = q, .c = c, .err = err, .entry = copied_entry};

    if (may_write_l1(q, c) && mend_l1_flags(q, c, err) < 0)
        return -1;
    return mend_l2_tables(&m, true); /* syncs */
}

/* ---- snapshot table ---- */

/* specification, "Snapshots": extra data, as far as known */
struct disk_snapshot_extra {
    be64 vm_state;
    be64 disk_size;
};
static_assert(sizeof(struct disk_snapshot_extra) == 16, "spec size");

/* The extra data the new entry gets, of at least 16 bytes. */
static uint32_t
new_extra_len(const struct qm_census_snapshot *s)
{
    return (uint32_t)qm_min(qm_max(s->extra_len, sizeof(struct disk_snapshot_extra)),
                            QCOW2_MAX_SNAPSHOT_EXTRA);
}

/* Appends one entry to out; returns its length.  out is zeroed. */
static int
copy_snapshot(const struct qm_qcow2 *q, const struct qm_census_snapshot *s, unsigned char *out,
              uint64_t *out_len, struct qmeld_error *err)
{
    const uint64_t from = q->hdr.snapshots_off + s->off;
    const uint32_t extra_len = new_extra_len(s), keep = (uint32_t)qm_min(s->extra_len, extra_len);
    const uint64_t names = s->len - sizeof(struct qcow2_disk_snapshot) - s->extra_len;
    struct qcow2_disk_snapshot head;
    struct disk_snapshot_extra extra;
    unsigned char *p = out + sizeof head;

    if (qm_pread_padded(q->img.file, from, &head, sizeof head, err) < 0 ||
        qm_pread_padded(q->img.file, from + sizeof head, p, keep, err) < 0 ||
        qm_pread_padded(q->img.file, from + sizeof head + s->extra_len, p + extra_len, names, err) <
            0)
        return -1;
    memcpy(&extra, p, sizeof extra);
    /* what was not stored: the short VM state size, and the size the image has now (QEMU does
     * the same) */
    if (keep < sizeof extra.vm_state)
        be64_put(&extra.vm_state, be32_get(&head.vm_state));
    if (keep < sizeof extra)
        be64_put(&extra.disk_size, q->hdr.size);
    memcpy(p, &extra, sizeof extra);
    be32_put(&head.extra_len, extra_len);
    memcpy(out, &head, sizeof head);
    *out_len = sizeof head + extra_len + names;
    return 0;
}

static int
build_table(const struct qm_qcow2 *q, const struct qm_census *c, unsigned char **out,
            uint64_t *out_len, struct qmeld_error *err)
{
    QM_FREE unsigned char *buf = NULL;
    uint64_t room = 0, at = 0, len;

    QM_VEC_EACH (s, &c->snapshots)
        room += qm_align_up(s->len - s->extra_len + new_extra_len(s), 8);
    buf = calloc(1, room + 1);
    if (!buf)
        return qm_fail_nomem(err, "the snapshot table");
    QM_VEC_EACH (s, &c->snapshots) {
        at = qm_align_up(at, 8);
        if (copy_snapshot(q, s, buf + at, &len, err) < 0)
            return -1;
        at += len;
    }
    *out = QM_TAKE(buf);
    *out_len = at;
    return 0;
}

static int
switch_table(struct qm_qcow2 *q, struct qm_refs *refs, const struct qm_census *c,
             const unsigned char *table, uint64_t len, struct qmeld_error *err)
{
    const uint64_t old = q->hdr.snapshots_off;
    host_off off;

    if (qm_refs_alloc_adjacent(refs, qm_div_up(len, q->geo.cluster_size), &off, err) < 0 ||
        qm_refs_commit(refs, err) < 0 || qm_pwrite(q->img.file, off.h, table, len, err) < 0 ||
        qm_sync(q->img.file, err) < 0)
        return -1;
    q->hdr.snapshots_off = off.h;
    if (qm_header_store(q, err) < 0) /* the new table is the table from here on */
        return -1;
    if (qm_refs_free(refs, qm_host(old), c->snapshots_len, err) < 0)
        return -1;
    return qm_refs_commit(refs, err);
}

int
qm_repair_snapshots(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
{
    QM_FREE unsigned char *table = NULL;
    struct qm_refs *refs = NULL;
    uint64_t len = 0;
    int r;

    if (build_table(q, c, &table, &len, err) < 0)
        return -1;
    if (len > QCOW2_MAX_SNAPSHOT_TABLE)
        return qm_fail(err, QMELD_NOSPACE, qm_in(q->img.file->path),
                       "the mended snapshot table would take %" PRIu64
                       " bytes, %u is the most: delete snapshots first",
                       len, QCOW2_MAX_SNAPSHOT_TABLE);
    if (qm_refs_open(q, &refs, err) < 0)
        return -1;
    r = switch_table(q, refs, c, table, len, err);
    qm_refs_close(refs);
    return r;
}
