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

/* specification, "Bitmaps extension": where the directory's offset stands */
#define EXT_DIR_OFF (sizeof(struct qcow2_disk_ext) + 16)

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
                              .bitmap_dir_off = h->has_bitmaps ? h->bitmap_dir_off : 0};
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
    if (fields->bitmap_dir_off)
        h->bitmap_dir_off = fields->bitmap_dir_off;
    q->img.size = h->size;
    qm_image_forget(&q->img);
}

int
qm_stage_read_sector(const struct qm_qcow2 *q, unsigned char out[QM_HEADER_SECTOR],
                     struct qmeld_error *err)
{
    return qm_pread_padded(q->img.file, 0, out, QM_HEADER_SECTOR, err);
}

/* Where in the file the offset of the bitmap directory stands; 0: there is no extension. */
static uint64_t
place_of_dir(const struct qm_qcow2 *q)
{
    QM_VEC_EACH (x, &q->hdr.exts)
        if (x->type == QCOW2_EXT_BITMAPS)
            return x->off + EXT_DIR_OFF;
    return 0;
}

static int
write_sector(struct qm_qcow2 *q, const unsigned char *sector, struct qmeld_error *err)
{
    if (qm_pwrite(q->img.file, 0, sector, QM_HEADER_SECTOR, err) < 0)
        return -1;
    return qm_sync(q->img.file, err);
}

/* A directory that is named outside sector 0 changes while the autoclear bit says that bitmaps are
 * not to be believed (specification, "autoclear_features", bit 0). */
static int
write_dir(struct qm_qcow2 *q, const unsigned char *sector, uint64_t at, uint64_t dir_off,
          struct qmeld_error *err)
{
    unsigned char void_bitmaps[QM_HEADER_SECTOR];
    struct qcow2_disk_header *h = (struct qcow2_disk_header *)void_bitmaps;
    be64 raw;

    if (qm_pread(q->img.file, at, &raw, sizeof raw, err) < 0)
        return -1;
    if (be64_get(&raw) == dir_off)
        return 0;
    memcpy(void_bitmaps, sector, sizeof void_bitmaps);
    be64_put(&h->autoclear, be64_get(&h->autoclear) & ~QCOW2_AUTOCLEAR_BITMAPS);
    if (write_sector(q, void_bitmaps, err) < 0)
        return -1;
    be64_put(&raw, dir_off);
    if (qm_pwrite(q->img.file, at, &raw, sizeof raw, err) < 0)
        return -1;
    return qm_sync(q->img.file, err);
}

/* COMMIT POINT: the last write of sector 0. */
static int
write_header(struct qm_qcow2 *q, unsigned char *sector, uint64_t dir_off, struct qmeld_error *err)
{
    const uint64_t at = place_of_dir(q);

    if (at && dir_off && at + sizeof(be64) <= QM_HEADER_SECTOR)
        be64_put((be64 *)(sector + at), dir_off);
    else if (at && dir_off && write_dir(q, sector, at, dir_off, err) < 0)
        return -1;
    return write_sector(q, sector, err);
}

int
qm_stage_switch(struct qm_qcow2 *q, const struct qm_staged *fields, struct qmeld_error *err)
{
    unsigned char sector[QM_HEADER_SECTOR];

    qm_stage_adopt(q, fields);
    if (qm_header_sector(q, sector, err) < 0 ||
        write_header(q, sector, fields->bitmap_dir_off, err) < 0)
        return -1;
    q->stage = NULL;
    return qm_qcow2_reload(q, err);
}

int
qm_stage_back(struct qm_qcow2 *q, const unsigned char sector[QM_HEADER_SECTOR],
              uint64_t bitmap_dir_off, uint64_t file_size, struct qmeld_error *err)
{
    struct qm_file *file = q->img.file;
    unsigned char copy[QM_HEADER_SECTOR];

    memcpy(copy, sector, sizeof copy);
    if (write_header(q, copy, bitmap_dir_off, err) < 0)
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
