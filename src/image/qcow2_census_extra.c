/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_census_extra.c - the census of what an image has beside its guest data: snapshots, bitmaps,
 * an encryption header.
 */
#include "qcow2_census.h"

#include "qcow2_bitmap.h"

#include <inttypes.h>

/* ---- snapshots ---- */

/* Looks at one entry of the snapshot table; *off goes on to the next.  false: the table cannot
 * be read from here on. */
static bool
snapshot_entry(struct qm_census *c, uint32_t i, const struct qcow2_disk_snapshot *raw, uint64_t at,
               struct qm_census_snapshot *s)
{
    *s = (struct qm_census_snapshot){
        .l1_off = be64_get(&raw->l1_off),
        .l1_entries = be32_get(&raw->l1_entries),
        .extra_len = be32_get(&raw->extra_len),
        .off = at,
    };
    s->len = sizeof *raw + s->extra_len + be16_get(&raw->id_len) + be16_get(&raw->name_len);
    if (s->extra_len > QCOW2_MAX_SNAPSHOT_EXTRA && !c->drop_extra) {
        qm_census_say(c,
                      "snapshot %" PRIu32 " has %" PRIu32
                      " bytes of extra data, more than QEMU takes: --repair=all cuts them",
                      i, s->extra_len);
        return false;
    }
    if (at + s->len > QCOW2_MAX_SNAPSHOT_TABLE) {
        qm_census_say(c, "the snapshot table is longer than %u bytes, from snapshot %" PRIu32 " on",
                      QCOW2_MAX_SNAPSHOT_TABLE, i);
        return false;
    }
    if (s->extra_len > QCOW2_MAX_SNAPSHOT_EXTRA) {
        qm_census_say(c, "snapshot %" PRIu32 " has too much extra data", i);
        c->long_snapshots++;
    } else if (c->q->geo.version >= 3 && s->extra_len < 16) {
        /* specification, "Snapshots": version 3 must have VM state size and disk size */
        qm_census_say(c, "snapshot %" PRIu32 " lacks extra data that version 3 demands", i);
        c->short_snapshots++;
    }
    return true;
}

int
qm_census_read_snapshots(struct qm_census *c, struct qmeld_error *err)
{
    const struct qcow2_header *h = &c->q->hdr;
    uint64_t at = 0;

    /* QEMU looks at the place of a table without entries, too */
    if (h->n_snapshots > QCOW2_MAX_SNAPSHOTS || h->snapshots_off % c->q->geo.cluster_size ||
        h->snapshots_off > QM_MAX_OFF - QCOW2_MAX_SNAPSHOT_TABLE) {
        qm_census_say(c, "the snapshot table (%" PRIu32 " entries at 0x%" PRIx64 ") is impossible",
                      h->n_snapshots, h->snapshots_off);
        qm_census_unreadable(c);
        return 0;
    }
    for (uint32_t i = 0; i < h->n_snapshots; i++) {
        struct qcow2_disk_snapshot raw;
        struct qm_census_snapshot s;

        at = qm_align_up(at, 8);
        if (qm_pread_padded(c->q->img.file, h->snapshots_off + at, &raw, sizeof raw, err) < 0)
            return -1;
        if (!snapshot_entry(c, i, &raw, at, &s)) {
            qm_census_unreadable(c);
            return 0;
        }
        if (!qm_vec_push(&c->snapshots, &s))
            return qm_fail_nomem(err, "the snapshot table");
        at += s.len;
    }
    c->snapshots_len = at;
    return 0;
}

static int
by_l1(const void *va, const void *vb)
{
    const struct qm_census_snapshot *a = va, *b = vb;

    if (a->l1_off != b->l1_off)
        return a->l1_off > b->l1_off ? 1 : -1;
    return (a->l1_entries > b->l1_entries) - (a->l1_entries < b->l1_entries);
}

static bool
snapshot_l1_usable(struct qm_census *c, const struct qm_census_snapshot *s, uint64_t times)
{
    if (s->l1_off % c->q->geo.cluster_size) {
        qm_census_say(c, "L1 table of a snapshot at 0x%" PRIx64 " is not aligned", s->l1_off);
    } else if (s->l1_entries > QCOW2_MAX_L1_BYTES / sizeof(be64)) {
        qm_census_say(c, "L1 table of a snapshot at 0x%" PRIx64 " has %" PRIu32 " entries",
                      s->l1_off, s->l1_entries);
    } else if (s->l1_off > QM_MAX_OFF - QCOW2_MAX_L1_BYTES) {
        qm_census_say(c, "L1 table of a snapshot at 0x%" PRIx64 " is out of reach", s->l1_off);
        qm_census_unreadable(c);
        return false;
    } else {
        return true;
    }
    c->damaged += times;
    return false;
}

int
qm_census_count_snapshots(struct qm_census *c, struct qmeld_error *err)
{
    QM_FREE struct qm_census_snapshot *s = NULL;
    const size_t n = c->snapshots.n;
    uint64_t sum = 0;

    if (!n)
        return 0;
    if (c->q->geo.data_file) {
        qm_census_say(c, "%zu snapshots in an image with an external data file", n);
        c->damaged++;
    }
    s = malloc(n * sizeof *s);
    if (!s)
        return qm_fail_nomem(err, "the snapshot table");
    memcpy(s, c->snapshots.at, n * sizeof *s);
    qsort(s, n, sizeof *s, by_l1);
    for (size_t i = 0, next; i < n; i = next) {
        for (next = i + 1; next < n && by_l1(&s[i], &s[next]) == 0; next++)
            ;
        if (!snapshot_l1_usable(c, &s[i], next - i))
            continue;
        sum += s[i].l1_entries;
        if (sum > QM_CENSUS_MAX_TABLES)
            return qm_census_cap(c, "L1 entries", QM_CENSUS_MAX_TABLES, err);
        if (qm_census_count_l1(c, s[i].l1_off, s[i].l1_entries, 0, next - i, err) < 0)
            return -1;
    }
    return 0;
}

/* ---- bitmaps, encryption ---- */

/* specification, "Bitmap table" */
static bool
bitmap_entry_valid(const struct qcow2_geo *g, uint64_t entry)
{
    const uint64_t off = entry & QCOW2_OFFSET_MASK;

    if (entry & ~(QCOW2_OFFSET_MASK | 1))
        return false;
    return off == 0 || (!(entry & 1) && off % g->cluster_size == 0);
}

static int
count_bitmap(struct qm_census *c, const struct qm_bitmap *b, struct qmeld_error *err)
{
    const uint64_t cluster = c->q->geo.cluster_size;
    QM_FREE be64 *slice = malloc(QM_CENSUS_SLICE * sizeof *slice);

    if (!slice)
        return qm_fail_nomem(err, "a bitmap table");
    if (qm_census_count_metadata(c, b->table.h, b->table_entries * sizeof *slice, 1, err) < 0)
        return -1;
    for (uint64_t i = 0; i < b->table_entries; i += QM_CENSUS_SLICE) {
        const uint64_t n = qm_min(QM_CENSUS_SLICE, b->table_entries - i);

        if (b->table.h + i * sizeof *slice >= c->file_len)
            break;
        if (qm_pread_padded(c->q->img.file, b->table.h + i * sizeof *slice, slice,
                            n * sizeof *slice, err) < 0)
            return -1;
        for (uint64_t k = 0; k < n; k++) {
            const uint64_t entry = be64_get(&slice[k]);
            const uint64_t off = entry & QCOW2_OFFSET_MASK;

            if (!bitmap_entry_valid(&c->q->geo, entry)) {
                qm_census_say(c, "bitmap %s: table entry 0x%016" PRIx64 " is damaged", b->name,
                              entry);
                c->damaged++;
                qm_census_unreadable(c);
            } else if (off && qm_census_count(c, off, cluster, 1, err) < 0) {
                return -1;
            }
        }
    }
    return 0;
}

int
qm_census_count_bitmaps(struct qm_census *c, struct qmeld_error *err)
{
    const struct qcow2_header *h = &c->q->hdr;
    struct qm_bitmap_list list = {0};
    uint64_t sum = 0;
    int r = 0;

    if (!h->has_bitmaps)
        return 0;
    if (qm_census_count_metadata(c, h->bitmap_dir_off, h->bitmap_dir_len, 1, err) < 0)
        return -1;
    if (qm_bitmap_list_read(c->q, &list, err) < 0) {
        qm_bitmap_list_release(&list);
        if (err->code != QMELD_CORRUPT)
            return -1;
        /* QEMU does not even open such an image */
        qm_census_say(c, "bitmap directory: %s", err->what);
        c->damaged++;
        qm_census_unreadable(c);
        return 0;
    }
    QM_VEC_EACH (b, &list.list) {
        sum += b->table_entries;
        if (sum > QM_CENSUS_MAX_TABLES)
            r = qm_census_cap(c, "bitmap table entries", QM_CENSUS_MAX_TABLES, err);
        else
            r = count_bitmap(c, b, err);
        if (r < 0)
            break;
    }
    qm_bitmap_list_release(&list);
    return r;
}

/* The LUKS header's clusters: offset and length stand in its extension (specification, "Full disk
 * encryption header pointer"). */
int
qm_census_count_crypto(struct qm_census *c, struct qmeld_error *err)
{
    QM_VEC_EACH (e, &c->q->hdr.exts) {
        be64 raw[2];

        if (e->type != QCOW2_EXT_CRYPTO || e->len != sizeof raw)
            continue;
        if (qm_pread(c->q->img.file, e->off + sizeof(struct qcow2_disk_ext), raw, sizeof raw, err) <
            0)
            return -1;
        if (qm_census_count_metadata(c, be64_get(&raw[0]), be64_get(&raw[1]), 1, err) < 0)
            return -1;
    }
    return 0;
}
