/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_stage.c - the floor, the switch and the way back.
 *
 * What keeps to the floor while the image is staged is in qcow2_refs.c (refcount blocks and table, and
 * where clusters are taken), qcow2_edit.c and qcow2_edit_tables.c (clusters, L2 tables, L1) and
 * qcow2_bitmap*.c (directory, tables, bits).
 */
#include "qcow2_stage.h"

#include "qcow2_refs.h"

#include <string.h>

int
qm_stage_floor(struct qm_qcow2 *q, uint64_t *out, struct qmeld_error *err)
{
    struct qm_refs *refs;
    int rc;

    if (qm_refs_open(q, &refs, err) < 0)
        return -1;
    rc = qm_refs_end(refs, out, err);
    qm_refs_close(refs);
    if (rc == 0 && !q->img.file->blockdev) /* a device has its end where it has it */
        *out = qm_max(*out, qm_align_up(q->img.file->size, q->geo.cluster_size));
    return rc;
}

struct qm_staged
qm_stage_fields(const struct qm_qcow2 *q)
{
    const struct qcow2_header *h = &q->hdr;

    return (struct qm_staged){.size = h->size,
                              .l1_off = h->l1_off,
                              .l1_entries = h->l1_entries,
                              .reftable_off = h->reftable_off,
                              .reftable_clusters = h->reftable_clusters,
                              .autoclear = h->autoclear,
                              .bitmap_dir_off = h->has_bitmaps ? h->bitmap_dir_off : 0,
                              .bitmap_dir_len = h->has_bitmaps ? h->bitmap_dir_len : 0,
                              .n_bitmaps = h->has_bitmaps ? h->n_bitmaps : 0};
}

void
qm_stage_adopt(struct qm_qcow2 *q, const struct qm_staged *fields)
{
    struct qcow2_header *h = &q->hdr;

    h->size = fields->size;
    h->l1_off = fields->l1_off;
    h->l1_entries = fields->l1_entries;
    h->reftable_off = fields->reftable_off;
    h->reftable_clusters = fields->reftable_clusters;
    h->autoclear = fields->autoclear;
    h->has_bitmaps = fields->n_bitmaps > 0;
    h->bitmap_dir_off = fields->bitmap_dir_off;
    h->bitmap_dir_len = fields->bitmap_dir_len;
    h->n_bitmaps = fields->n_bitmaps;
    q->img.size = h->size;
    qm_image_forget(&q->img);
}

int
qm_stage_read_sector(const struct qm_qcow2 *q, unsigned char out[QM_HEADER_SECTOR],
                     struct qmeld_error *err)
{
    return qm_pread_padded(q->img.file, 0, out, QM_HEADER_SECTOR, err);
}

static int
write_sector(struct qm_qcow2 *q, const unsigned char *sector, struct qmeld_error *err)
{
    if (qm_pwrite(q->img.file, 0, sector, QM_HEADER_SECTOR, err) < 0)
        return -1;
    return qm_sync(q->img.file, err);
}

/* While an extension behind sector 0 changes, the autoclear bit says that bitmaps are not to be believed
 * (specification, "autoclear_features", bit 0).  sector: with which fields. */
static int
void_bitmaps(struct qm_qcow2 *q, const unsigned char *sector, struct qmeld_error *err)
{
    unsigned char copy[QM_HEADER_SECTOR];
    struct qcow2_disk_header *h = (struct qcow2_disk_header *)copy;

    memcpy(copy, sector, sizeof copy);
    be64_put(&h->autoclear, be64_get(&h->autoclear) & ~QCOW2_AUTOCLEAR_BITMAPS);
    return write_sector(q, copy, err);
}

int
qm_stage_switch(struct qm_qcow2 *q, const struct qm_staged *fields, struct qmeld_error *err)
{
    const struct qm_header_bitmaps to = {.n = fields->n_bitmaps,
                                         .dir_off = fields->bitmap_dir_off,
                                         .dir_len = fields->bitmap_dir_len};
    unsigned char sector[QM_HEADER_SECTOR];
    bool there;

    qm_stage_adopt(q, fields);
    if (qm_header_sector(q, sector, err) < 0 ||
        qm_header_place_bitmaps(q, &to, sector, &there, err) < 0)
        return -1;
    /* a place behind the sector; what is put there may begin in it */
    if (!there && (void_bitmaps(q, sector, err) < 0 || qm_header_put_bitmaps(q, &to, err) < 0 ||
                   qm_header_sector(q, sector, err) < 0))
        return -1;
    if (write_sector(q, sector, err) < 0) /* COMMIT POINT */
        return -1;
    q->stage = NULL;
    if (qm_qcow2_reload(q, err) < 0)
        return -1;
    return to.n == 0 ? qm_header_drop_ext(q, err) : 0;
}

/* With the old header's bitmaps void, whichever of the two is there. */
static int
put_ext_back(struct qm_qcow2 *q, const struct qm_header_place *ext, struct qmeld_error *err)
{
    unsigned char now[QM_HEADER_SECTOR], there[QM_HEADER_PLACE];

    if (ext->len == 0 || ext->off + ext->len <= QM_HEADER_SECTOR)
        return 0;
    if (qm_pread_padded(q->img.file, ext->off, there, ext->len, err) < 0)
        return -1;
    if (memcmp(there, ext->bytes, ext->len) == 0)
        return 0;
    if (qm_stage_read_sector(q, now, err) < 0 || void_bitmaps(q, now, err) < 0)
        return -1;
    return qm_header_put_back(q, ext, err);
}

int
qm_stage_back(struct qm_qcow2 *q, const unsigned char sector[QM_HEADER_SECTOR],
              const struct qm_header_place *ext, uint64_t file_size, struct qmeld_error *err)
{
    struct qm_file *file = q->img.file;

    if (put_ext_back(q, ext, err) < 0 || write_sector(q, sector, err) < 0)
        return -1;
    q->stage = NULL;
    if (!file->blockdev && file->size > file_size &&
        (qm_truncate(file, file_size, err) < 0 || qm_sync(file, err) < 0))
        return -1;
    return qm_qcow2_reload(q, err);
}

int
qm_stage_final(struct qm_qcow2 *q, uint64_t floor, struct qmeld_error *err)
{
    struct qm_refs *refs;
    int rc;

    if (qm_refs_open(q, &refs, err) < 0)
        return -1;
    rc = qm_refs_discard_free(refs, floor >> q->geo.cluster_bits, err);
    qm_refs_close(refs);
    return rc < 0 ? -1 : qm_sync(q->img.file, err);
}
