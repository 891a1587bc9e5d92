/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_snapshot.c - the table of internal snapshots.
 *
 * Why.  Everybody who changes or checks an image must know which clusters its snapshots
 * still need.  Only the table is read here; a snapshot's L1 table is looked at by who uses it, as
 * QEMU does, so that one broken snapshot does not close the image.
 * Source     specification, "Snapshots"; limits: qemu 7.2, block/qcow2-snapshot.c
 *            (qcow2_do_read_snapshots).
 */
#include "qcow2.h"

#include <inttypes.h>

/* specification, "Snapshots": the extra data we know */
#define EXTRA_VM_STATE_END  8u
#define EXTRA_DISK_SIZE_END 16u

#define MAX_TAIL (QCOW2_MAX_SNAPSHOT_EXTRA + 2 * UINT16_MAX)

struct reading {
    const struct qm_qcow2 *q;
    uint64_t off;        /* of the next entry */
    unsigned char *tail; /* extra data, id and name of one entry */
};

static int
too_large(const struct reading *r, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_at(r->q->img.file->path, r->off),
                   "snapshot table exceeds %u bytes: it is damaged, repair it with check "
                   "--repair=all",
                   QCOW2_MAX_SNAPSHOT_TABLE);
}

static int
load_entry(struct reading *r, struct qm_snapshot *s, struct qmeld_error *err)
{
    const struct qm_file *file = r->q->img.file;
    struct qcow2_disk_snapshot raw;
    uint32_t extra, id_len, name_len, tail_len;
    be64 word;

    if (qm_pread_padded(file, r->off, &raw, sizeof raw, err) < 0)
        return -1;
    extra = be32_get(&raw.extra_len);
    id_len = be16_get(&raw.id_len);
    name_len = be16_get(&raw.name_len);
    if (extra > QCOW2_MAX_SNAPSHOT_EXTRA)
        return qm_fail(err, QMELD_CORRUPT, qm_at(file->path, r->off),
                       "snapshot table: %" PRIu32
                       " bytes of extra data in an entry, %u is the most: repair it with check "
                       "--repair=all",
                       extra, QCOW2_MAX_SNAPSHOT_EXTRA);
    r->off += sizeof raw;
    tail_len = extra + id_len + name_len;
    if (qm_pread_padded(file, r->off, r->tail, tail_len, err) < 0)
        return -1;
    r->off += tail_len;

    s->l1_off = be64_get(&raw.l1_off);
    s->l1_entries = be32_get(&raw.l1_entries);
    s->date_sec = be32_get(&raw.date_sec);
    s->date_nsec = be32_get(&raw.date_nsec);
    s->vm_clock_nsec = be64_get(&raw.vm_clock);
    s->vm_state_size = be32_get(&raw.vm_state);
    if (extra >= EXTRA_VM_STATE_END) {
        memcpy(&word, r->tail, sizeof word);
        s->vm_state_size = be64_get(&word);
    }
    if (extra >= EXTRA_DISK_SIZE_END) {
        memcpy(&word, r->tail + EXTRA_VM_STATE_END, sizeof word);
        s->disk_size = be64_get(&word);
    }
    s->id = strndup((const char *)r->tail + extra, id_len);
    s->name = strndup((const char *)r->tail + extra + id_len, name_len);
    if (!s->id || !s->name)
        return qm_fail_nomem(err, "a snapshot's name");
    return 0;
}

int
qm_qcow2_read_snapshots(const struct qm_qcow2 *q, struct qm_snapshots *out, struct qmeld_error *err)
{
    const uint64_t begin = q->hdr.snapshots_off;
    struct reading r = {.q = q, .off = begin};
    QM_FREE unsigned char *tail = NULL;

    *out = (struct qm_snapshots){0};
    if (q->hdr.n_snapshots == 0)
        return 0;
    if (q->hdr.n_snapshots > QCOW2_MAX_SNAPSHOTS || begin > QM_MAX_OFF - QCOW2_MAX_SNAPSHOT_TABLE)
        return too_large(&r, err);
    r.tail = tail = malloc(MAX_TAIL);
    if (!tail)
        return qm_fail_nomem(err, "the snapshot table");
    for (uint32_t i = 0; i < q->hdr.n_snapshots; i++) {
        struct qm_snapshot none = {0};

        if (!qm_vec_push(&out->list, &none))
            return qm_fail_nomem(err, "the snapshot table");
        r.off = qm_align_up(r.off, 8);
        if (load_entry(&r, qm_vec_last(&out->list), err) < 0)
            return -1;
        if (r.off - begin > QCOW2_MAX_SNAPSHOT_TABLE)
            return too_large(&r, err);
    }
    out->table_len = r.off - begin;
    return 0;
}

void
qm_snapshots_release(struct qm_snapshots *s)
{
    QM_VEC_EACH (e, &s->list) {
        free(e->id);
        free(e->name);
    }
    qm_vec_release(&s->list);
    s->table_len = 0;
}
