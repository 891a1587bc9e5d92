/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qcow2_append.h"

#include "qcow2_check.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define NO_TABLE UINT64_MAX

/* An L2 table that is written, and that no L1 entry leads to yet. */
struct pending {
    uint64_t l1_idx;
    host_off at;
};

struct qm_append {
    struct qm_qcow2 *q;
    const struct qcow2_geo *geo;
    struct qm_refs *refs;
    struct qm_pack pack;  /* of compressed clusters */
    uint64_t l1_idx;      /* of the table in memory; NO_TABLE: none */
    host_off at;          /* where it is to be */
    unsigned char *table; /* one cluster */
    bool changed;         /* since it was written */
    bool live;            /* an L1 entry leads to it already */
    unsigned char *held;  /* another one that is live and changed: published first; NULL: none */
    host_off held_at;
    uint64_t end; /* the file must reach that far */
    QM_VEC(struct pending) tables;
};

/* ---- open and close ---- */

/* Entries from guest cluster `from` on become zeros: a batch may have been published, and the crash come before
 * anybody noted it.  An image that nobody uses yet may be in between. */
static int
cut_entries(struct qm_qcow2 *q, uint64_t from, struct qmeld_error *err)
{
    const uint64_t l1_idx = from >> q->geo.l2_bits;
    const uint64_t in_table = (from & ((1ull << q->geo.l2_bits) - 1)) * q->geo.l2_entry_len;
    const uint64_t first = l1_idx + (in_table > 0);
    QM_FREE unsigned char *zeros = NULL;
    uint64_t entry = 0;

    if (l1_idx >= q->hdr.l1_entries)
        return 0;
    zeros = calloc(1, qm_max(q->geo.cluster_size, q->hdr.l1_entries * sizeof(be64)));
    if (!zeros)
        return qm_fail_nomem(err, "an L1 table");
    if (qm_qcow2_read_l1(q, q->hdr.l1_off, (uint32_t)l1_idx, 1, &entry, err) < 0)
        return -1;
    entry &= QCOW2_OFFSET_MASK;
    if (in_table > 0 && entry != 0 &&
        qm_pwrite(q->img.file, entry + in_table, zeros, q->geo.cluster_size - in_table, err) < 0)
        return -1;
    if (qm_pwrite(q->img.file, q->hdr.l1_off + first * sizeof(be64), zeros,
                  (q->hdr.l1_entries - first) * sizeof(be64), err) < 0)
        return -1;
    qm_image_forget(&q->img);
    return qm_sync(q->img.file, err);
}

/* What nothing leads to is given back.  The file gets as long as the refcounts say before that is looked for, as a check
 * looks no further than the file goes. */
static int
mend(struct qm_qcow2 *q, uint64_t from, struct qmeld_error *err)
{
    struct qm_refs *refs;
    uint64_t end;
    int rc;

    if (cut_entries(q, from, err) < 0 || qm_refs_open(q, &refs, err) < 0)
        return -1;
    rc = qm_refs_end(refs, &end, err);
    qm_refs_close(refs);
    if (rc == 0 && end > q->img.file->size)
        rc = qm_truncate(q->img.file, end, err);
    return rc < 0 ? -1 : qm_qcow2_mend_leaks(q, err);
}

int
qm_append_open(struct qm_qcow2 *q, bool resumed, uint64_t from, struct qm_append **out,
               struct qmeld_error *err)
{
    struct qm_append *a = calloc(1, sizeof *a);

    *out = NULL;
    if (!a || !(a->table = malloc(q->geo.cluster_size))) {
        free(a);
        return qm_fail_nomem(err, "a new image");
    }
    a->q = q;
    a->geo = &q->geo;
    a->l1_idx = NO_TABLE;
    if ((resumed && mend(q, from, err) < 0) || qm_refs_open(q, &a->refs, err) < 0) {
        qm_append_close(a);
        return -1;
    }
    qm_pack_init(&a->pack, a->refs, a->geo);
    *out = a;
    return 0;
}

void
qm_append_close(struct qm_append *a)
{
    if (!a)
        return;
    qm_refs_close(a->refs);
    qm_vec_release(&a->tables);
    free(a->table);
    free(a->held);
    free(a);
}

/* ---- tables ---- */

static int
write_table(struct qm_append *a, struct qmeld_error *err)
{
    if (!a->changed)
        return 0;
    a->changed = false;
    return qm_pwrite(a->q->img.file, a->at.h, a->table, a->geo->cluster_size, err);
}

static int
take_cluster(struct qm_append *a, host_off *out, struct qmeld_error *err)
{
    uint64_t n;

    if (qm_refs_alloc(a->refs, 1, out, &n, err) < 0)
        return -1;
    a->end = qm_max(a->end, out->h + a->geo->cluster_size);
    return 0;
}

/* The table in memory is left behind.  One that is live waits for publish: its new entries lead to what is not durable
 * before.  There is at most one in a batch, the one that the batch before ended in. */
static int
leave_table(struct qm_append *a, struct qmeld_error *err)
{
    if (!a->live || !a->changed)
        return write_table(a, err);
    assert(!a->held);
    a->held = QM_TAKE(a->table);
    a->held_at = a->at;
    a->changed = false;
    a->table = malloc(a->geo->cluster_size);
    return a->table ? 0 : qm_fail_nomem(err, "an L2 table");
}

/* The table of an L1 entry comes into memory: a new one, or, where an earlier run ended, the one that is there. */
static int
load_table(struct qm_append *a, uint64_t l1_idx, struct qmeld_error *err)
{
    struct pending new = {.l1_idx = l1_idx};
    uint64_t entry;

    assert(a->l1_idx == NO_TABLE || l1_idx > a->l1_idx);
    if (leave_table(a, err) < 0 ||
        qm_qcow2_read_l1(a->q, a->q->hdr.l1_off, (uint32_t)l1_idx, 1, &entry, err) < 0)
        return -1;
    a->l1_idx = l1_idx;
    a->at = qm_host(entry & QCOW2_OFFSET_MASK);
    a->live = a->at.h != 0;
    if (a->live)
        return qm_qcow2_read_cluster(a->q, a->at, a->table, err);
    memset(a->table, 0, a->geo->cluster_size);
    if (take_cluster(a, &a->at, err) < 0)
        return -1;
    new.at = a->at;
    return qm_vec_push(&a->tables, &new) ? 0 : qm_fail_nomem(err, "new L2 tables");
}

static int
set_entry(struct qm_append *a, uint64_t idx, const struct qcow2_l2 *e, struct qmeld_error *err)
{
    const uint64_t place = (idx & ((1ull << a->geo->l2_bits) - 1)) * a->geo->l2_entry_len;
    uint64_t word0, word1;

    if (idx >> a->geo->l2_bits != a->l1_idx && load_table(a, idx >> a->geo->l2_bits, err) < 0)
        return -1;
    qcow2_l2_encode(a->geo, e, &word0, &word1);
    be64_put((be64 *)(a->table + place), word0);
    if (a->geo->extended_l2)
        be64_put((be64 *)(a->table + place) + 1, word1);
    a->changed = true;
    return 0;
}

int
qm_append_cluster(struct qm_append *a, uint64_t idx, uint32_t units, host_off *out,
                  struct qmeld_error *err)
{
    struct qcow2_l2 e = {
        .kind = QCOW2_L2_STANDARD, .copied = true, .has_host = true, .alloc = units};

    /* the table first, so that it lies in front of what it leads to */
    if (idx >> a->geo->l2_bits != a->l1_idx && load_table(a, idx >> a->geo->l2_bits, err) < 0)
        return -1;
    if (take_cluster(a, &e.host, err) < 0)
        return -1;
    *out = e.host;
    return set_entry(a, idx, &e, err);
}

/* *out: entries can lead behind all that is taken now, and a cluster and some refcount blocks more. */
static int
reaches(struct qm_append *a, bool *out, struct qmeld_error *err)
{
    struct qcow2_l2 far = {.kind = QCOW2_L2_COMPRESSED};
    uint64_t end;

    if (qm_refs_end(a->refs, &end, err) < 0)
        return -1;
    far.host = qm_host(end + 4 * a->geo->cluster_size);
    *out = qcow2_l2_fits(a->geo, &far);
    return 0;
}

int
qm_append_compressed(struct qm_append *a, uint64_t idx, uint32_t len, host_off *out, bool *out_fits,
                     struct qmeld_error *err)
{
    struct qcow2_l2 e = {.kind = QCOW2_L2_COMPRESSED};

    *out_fits = false;
    if (idx >> a->geo->l2_bits != a->l1_idx && load_table(a, idx >> a->geo->l2_bits, err) < 0)
        return -1;
    if (reaches(a, out_fits, err) < 0)
        return -1;
    if (!*out_fits)
        return 0;
    if (qm_pack_take(&a->pack, len, &e.host, err) < 0)
        return -1;
    a->end = qm_max(a->end, qm_align_up(e.host.h + len, a->geo->cluster_size));
    /* whole sectors, of which the first begins in front of it (specification, "Compressed Clusters Descriptor") */
    e.payload_len = (uint32_t)(qm_align_up(e.host.h + len, 512) - e.host.h);
    *out = e.host;
    return set_entry(a, idx, &e, err);
}

int
qm_append_passed(struct qm_append *a, uint64_t idx, const struct qm_image *from,
                 const struct qm_extent *x, struct qm_passed *out, struct qmeld_error *err)
{
    struct qcow2_l2 e = {.kind = QCOW2_L2_COMPRESSED, .payload_len = x->payload_len};

    if (idx >> a->geo->l2_bits != a->l1_idx && load_table(a, idx >> a->geo->l2_bits, err) < 0)
        return -1;
    if (qm_pack_pass(&a->pack, from, x, out, err) < 0)
        return -1;
    a->end = qm_max(a->end, qm_align_up(a->pack.at, a->geo->cluster_size));
    e.host = out->payload;
    if (!qcow2_l2_fits(a->geo, &e))
        return qm_fail(err, QMELD_NOSPACE, qm_in(a->q->img.file->path),
                       "the image gets so long that its far end cannot hold compressed clusters: "
                       "write it without compression");
    return set_entry(a, idx, &e, err);
}

size_t
qm_append_weight(const struct qm_append *a)
{
    return a->tables.n * sizeof *a->tables.at;
}

/* ---- to the disk ---- */

int
qm_append_prepare(struct qm_append *a, struct qmeld_error *err)
{
    if (!a->live && write_table(a, err) < 0)
        return -1;
    /* A cluster that ends in zeros may not be written to its end; an entry that leads behind the file's end is
     * called corrupt by a check. */
    if (a->end > a->q->img.file->size && qm_truncate(a->q->img.file, a->end, err) < 0)
        return -1;
    return qm_refs_write(a->refs, err);
}

static int
write_l1_entry(struct qm_append *a, const struct pending *t, struct qmeld_error *err)
{
    be64 entry;

    be64_put(&entry, t->at.h | QCOW2_COPIED);
    return qm_pwrite(a->q->img.file, a->q->hdr.l1_off + t->l1_idx * sizeof entry, &entry,
                     sizeof entry, err);
}

int
qm_append_publish(struct qm_append *a, struct qmeld_error *err)
{
    assert(a->end <= a->q->img.file->size); /* S2: no entry points behind the file's end */
    if (qm_refs_link(a->refs, err) < 0)
        return -1;
    /* COMMIT POINT of the batch: tables and data are durable, and from here on lead to each other.  A table that is
     * written whole again has in front what it had. */
    if (a->held && qm_pwrite(a->q->img.file, a->held_at.h, a->held, a->geo->cluster_size, err) < 0)
        return -1;
    free(QM_TAKE(a->held));
    if (write_table(a, err) < 0)
        return -1;
    QM_VEC_EACH (t, &a->tables) {
        if (write_l1_entry(a, t, err) < 0)
            return -1;
    }
    qm_vec_clear(&a->tables);
    qm_pack_cut(&a->pack);
    a->live = a->l1_idx != NO_TABLE;
    return qm_sync(a->q->img.file, err);
}

int
qm_append_finish(struct qm_append *a, struct qmeld_error *err)
{
    bool changed;

    if (qm_refs_commit(a->refs, err) < 0 || qm_refs_trim(a->refs, &changed, err) < 0)
        return -1;
    return changed ? qm_sync(a->q->img.file, err) : 0; /* the commit was one */
}
