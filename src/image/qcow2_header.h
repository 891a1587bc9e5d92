/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_header.h - changing the header of a live qcow2 image.
 *
 * Why.  The header is the one cluster whose loss loses the image.  Every change to it is made
 * here, so that the old or the new header is there at every instant, also when the power
 * fails in the middle of a write: what must change together lies in the first 512 bytes and is
 * written as one sector; what lies behind (a new backing name) is first written where nobody
 * looks yet.
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err: IO, NOSPACE (the header cluster is full).
 */
#ifndef QM_QCOW2_HEADER_H
#define QM_QCOW2_HEADER_H

#include "qcow2.h"

#define QM_HEADER_SECTOR 512u /* written whole or not at all */
#define QM_HEADER_PLACE  40u  /* the bitmaps extension, and an end marker behind it */

/* The first sector with the fixed fields from q->hdr; its other bytes as they stand on disk. */
int qm_header_sector(const struct qm_qcow2 *q, unsigned char out[QM_HEADER_SECTOR],
                     struct qmeld_error *err) QM_CHECK;

/* Writes the fixed fields from q->hdr (sizes, tables, feature words) in one sector write and syncs.
 * Bytes of that sector that are not fixed fields stay.  Of a staged image they are given to whoever keeps them. */
int qm_header_store(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* What a writer owes the format before its first write: unknown autoclear bits are cleared
 * (specification, "autoclear_features"), and bit 0 if there is no bitmaps extension
 * (QEMU would refuse every later write).  Durable.  Writes nothing if there is nothing to do. */
int qm_header_before_write(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* Where the bitmap directory is to be; n 0: nowhere. */
struct qm_header_bitmaps {
    uint32_t n;
    uint64_t dir_off;
    uint64_t dir_len;
};

/* What stands where the bitmaps extension is, or would be: bytes that a change of it overwrites. */
struct qm_header_place {
    uint64_t off; /* in the header cluster */
    uint32_t len;
    unsigned char bytes[QM_HEADER_PLACE];
};

/* Names another bitmap directory, which is durable, or none.  Durable; q->hdr is updated.  At every instant
 * the image has the old directory or the new one, or, from none to one and from one to none, none.  Of a staged
 * image the new fields are given to whoever keeps them (qm_header_store), and the extension is written by
 * qm_header_put_bitmaps. */
int qm_header_set_bitmaps(struct qm_qcow2 *q, const struct qm_header_bitmaps *to,
                          struct qmeld_error *err) QM_CHECK;

/* 0 if qm_header_set_bitmaps would find room for the extension, else NOSPACE; writes nothing.  *out may be
 * NULL. */
int qm_header_bitmaps_fit(const struct qm_qcow2 *q, struct qm_header_place *out,
                          struct qmeld_error *err) QM_CHECK;

/* Brings the extension to the disk, durable, while autoclear bit 0 is off there, so that nobody believes
 * it. */
int qm_header_put_bitmaps(const struct qm_qcow2 *q, const struct qm_header_bitmaps *to,
                          struct qmeld_error *err) QM_CHECK;

/* *out: with `sector` for its first sector the header names this directory, as the extension lies in that sector, where it
 * is brought up to date, or says so already; or there is to be none. */
int qm_header_place_bitmaps(const struct qm_qcow2 *q, const struct qm_header_bitmaps *to,
                            unsigned char sector[QM_HEADER_SECTOR], bool *out,
                            struct qmeld_error *err) QM_CHECK;

/* An extension that nobody believes any more becomes the end marker, if it is the last.  Durable. */
int qm_header_drop_ext(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* Takes that back, likewise. */
int qm_header_put_back(const struct qm_qcow2 *q, const struct qm_header_place *was,
                       struct qmeld_error *err) QM_CHECK;

/* Makes name/format the backing file (name NULL: none).  Unknown extensions, the feature table
 * and unknown header fields are kept.  Durable; q->hdr and q->img are updated. */
int qm_header_set_backing(struct qm_qcow2 *q, const char *name, const char *format,
                          struct qmeld_error *err) QM_CHECK;

/* 0 if qm_header_set_backing would fit, else NOSPACE; writes nothing. */
int qm_header_backing_fits(const struct qm_qcow2 *q, const char *name, const char *format,
                           struct qmeld_error *err) QM_CHECK;

#endif
