/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_create.h - lay out a new, empty qcow2 image.
 *
 * Why.  A fresh image is laid out as qemu-img lays it out (header, refcount table, refcount
 * blocks, L1 table, each from a cluster of its own), so that other tools meet nothing new.  It
 * becomes an image only at the very end: sector 0 is written last, when all else is durable.
 *
 * Calls      qm_qcow2_create_check says whether the wish can be fulfilled, before any file is
 *            touched; qm_qcow2_create then does it.
 * Ownership  Everything is borrowed.
 * Units      Bytes.
 * Errors     0 or -1 with *err: USAGE (a wish that cannot be), IO, NOSPACE, NOMEM.
 */
#ifndef QM_QCOW2_CREATE_H
#define QM_QCOW2_CREATE_H

#include "image.h"

enum qm_prealloc {
    QM_PREALLOC_OFF,
    QM_PREALLOC_METADATA, /* all tables, and a place for each cluster, as a hole */
    QM_PREALLOC_FALLOC,   /* and the space for them */
    QM_PREALLOC_FULL,     /* and zeros written there */
};

struct qm_qcow2_create {
    uint64_t size; /* virtual; rounded up to 512, as QEMU does */
    unsigned version;
    uint64_t cluster_size;
    unsigned refcount_bits;
    enum qm_compression compression;
    bool extended_l2;
    bool lazy_refcounts;
    enum qm_prealloc prealloc;
    const char *backing_name;   /* NULL: none */
    const char *backing_format; /* NULL: none stored */
};

/* path is only for messages. */
int qm_qcow2_create_check(const char *path, const struct qm_qcow2_create *want,
                          struct qmeld_error *err) QM_CHECK;

/* file is writable, a regular file or a block device; a regular file is emptied first, so hold its
 * lock.  Durable, except for the directory entry. */
int qm_qcow2_create(struct qm_file *file, const struct qm_qcow2_create *want,
                    struct qmeld_error *err) QM_CHECK;

/* Gives [off, off + len) of file, which reads as zeros, its space: falloc reserves it, full writes
 * zeros.  A file system that cannot reserve gets zeros. */
int qm_preallocate(struct qm_file *file, uint64_t off, uint64_t len, bool full,
                   struct qmeld_error *err) QM_CHECK;

#endif
