/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_stage.h - a qcow2 image changed beside itself, and switched by one sector.
 *
 * Why.  With --atomic the base stays bit for bit the old base while it is merged into: everything
 * new, data and tables alike, goes behind its end (the floor), and the header that names the new tables is
 * kept elsewhere until all is durable.  Then sector 0 is written, once.  Both headers lead to a
 * whole image: the old one as long as nothing below the floor is changed, which lets us go
 * back; so what the new one does not need any more is free in its refcounts, but taken by nobody until
 * the change is final.
 *
 * How.  An image with q->stage set is staged: header stores go to stage->store instead of the
 * disk; refs, edit and bitmaps treat what lies below the floor as read-only and move it before they change it.
 *
 * Calls      qm_stage_floor; q->stage set, and qm_stage_adopt if there are fields from an earlier run; the
 *            image is changed; qm_stage_fields; qm_stage_switch.  Later qm_stage_back, or qm_stage_final.
 * Threads    One thread.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_QCOW2_STAGE_H
#define QM_QCOW2_STAGE_H

#include "qcow2_header.h"

/* What a header says that a merge changes. */
struct qm_staged {
    uint64_t size;
    uint64_t l1_off; /* 0: nothing is staged yet */
    uint32_t l1_entries;
    uint32_t reftable_clusters;
    uint64_t reftable_off;
    uint64_t autoclear;
    uint64_t bitmap_dir_off; /* 0: no bitmaps */
    uint64_t bitmap_dir_len;
    uint32_t n_bitmaps;
};

struct qm_stage {
    uint64_t floor; /* bytes, a multiple of the cluster size: nothing in front changes */
    int (*store)(const struct qm_staged *fields, void *opaque, struct qmeld_error *err);
    void *opaque;
};

/* False: q is staged and this place must not be written. */
static inline bool
qm_stage_may_write(const struct qm_qcow2 *q, uint64_t off)
{
    return !q->stage || off >= q->stage->floor;
}

/* The first byte behind all that the image has: its file, and whatever has a refcount. */
int qm_stage_floor(struct qm_qcow2 *q, uint64_t *out, struct qmeld_error *err) QM_CHECK;

struct qm_staged qm_stage_fields(const struct qm_qcow2 *q);

/* q takes these fields for its header's. */
void qm_stage_adopt(struct qm_qcow2 *q, const struct qm_staged *fields);

/* COMMIT POINT: the header on disk gets these fields; everything they lead to is durable.  May be
 * done twice.  One sector, unless a bitmaps extension that has to change, or to be made, lies behind it: then the
 * bitmaps are void (autoclear bit 0) between two writes of that sector.  q is not staged afterwards. */
int qm_stage_switch(struct qm_qcow2 *q, const struct qm_staged *fields, struct qmeld_error *err)
    QM_CHECK;

/* The first sector as it is now; for qm_stage_back. */
int qm_stage_read_sector(const struct qm_qcow2 *q, unsigned char out[QM_HEADER_SECTOR],
                         struct qmeld_error *err) QM_CHECK;

/* The old first sector again, then the file is cut to its old length.  ext: what stood where the bitmaps extension is;
 * len 0: nothing that has changed.  May be done twice, and whether or not the switch was made. */
int qm_stage_back(struct qm_qcow2 *q, const unsigned char sector[QM_HEADER_SECTOR],
                  const struct qm_header_place *ext, uint64_t file_size, struct qmeld_error *err)
    QM_CHECK;

/* There is no way back from here: space below the floor that is free is given back. */
int qm_stage_final(struct qm_qcow2 *q, uint64_t floor, struct qmeld_error *err) QM_CHECK;

#endif
