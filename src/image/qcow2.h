/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2.h - a qcow2 image held open: header, tables, snapshots.
 *
 * Why.  The modules of this folder that change or check qcow2 images (refs, edit, check, header,
 * bitmap, empty) need more than guest bytes; what they share is here and nowhere else.  Outside
 * src/image it serves who must know features, not tables: what can be read, what to refuse, what
 * to tell about an image, which bits forbid a merge.
 *
 * Threads    One thread at a time, except for the const functions.
 * Ownership  qm_qcow2 embeds the image; qm_image_close frees all.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_QCOW2_H
#define QM_QCOW2_H

#include "image.h"
#include "qcow2_disk.h"

/* specification, "Snapshots", in host form */
struct qm_snapshot {
    uint64_t l1_off;
    uint32_t l1_entries;
    char *id;
    char *name;
    uint32_t date_sec;
    uint32_t date_nsec;
    uint64_t vm_clock_nsec;
    uint64_t vm_state_size; /* the 64-bit field if present */
    uint64_t disk_size;     /* 0 if not stored */
    uint64_t icount;        /* UINT64_MAX: none */
};

struct qm_snapshots {
    QM_VEC(struct qm_snapshot) list;
    uint64_t table_len; /* bytes of the table in the file */
};

struct qm_stage;

struct qm_qcow2 {
    struct qm_image img; /* first: a qm_image of format "qcow2" is a qm_qcow2; its backing_name and
                          * backing_format are hdr's own strings, not copies */
    struct qcow2_header hdr;
    struct qcow2_geo geo;
    unsigned flags; /* enum qcow2_decode_flags: the tolerance it was opened with, and keeps */
    const struct qm_stage *stage; /* NULL, or the image is changed beside itself (qcow2_stage.h);
                                   * borrowed */
    /* caches of the walk: slices of the L1 and of one L2 table; NULL until it begins */
    struct qm_qcow2_walk *walk;
};

/* NULL if img is not a qcow2 image. */
struct qm_qcow2 *qm_qcow2_of(struct qm_image *img);

/* Opens like qm_image_open, with the tolerance of flags (enum qcow2_decode_flags). */
int qm_qcow2_open(struct qm_file *file, unsigned flags, struct qm_qcow2 **out,
                  struct qmeld_error *err) QM_CHECK;

/* As qm_image_open_damaged; the image's flags have QCOW2_DECODE_SALVAGE. */
struct qm_qcow2_damage {
    qmeld_finding_fn *fn; /* may be NULL */
    void *opaque;
};
int qm_qcow2_open_damaged(struct qm_file *file, const struct qm_qcow2_damage *damage,
                          struct qm_qcow2 **out, struct qmeld_error *err) QM_CHECK;

/* Features that stand between us and the bytes: an external data file; one clear sentence
 * each (UNSUPPORTED).  qm_image_open does not call it, so that info can describe such
 * images; chain opening for map and merge does. */
int qm_qcow2_can_read(const struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* Reads L1 entries [idx, idx + n) of the table at l1_off (the active one, or a snapshot's) into
 * out, host order.  The caller knows the table's length; entries beyond the file's end read as 0.
 */
int qm_qcow2_read_l1(const struct qm_qcow2 *q, uint64_t l1_off, uint32_t idx, uint32_t n,
                     uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* Reads one whole cluster of metadata (L2 table, refcount block) raw; padded past the end. */
int qm_qcow2_read_cluster(const struct qm_qcow2 *q, host_off off, void *out,
                          struct qmeld_error *err) QM_CHECK;

/* The raw L2 entry of a guest cluster (index = guest offset >> cluster_bits): both words, 0 where
 * there is no table.  Bypasses the walk's caches.  *out_l2_off: the table, 0 if none. */
int qm_qcow2_l2_entry(const struct qm_qcow2 *q, uint64_t guest_cluster, uint64_t *out_word0,
                      uint64_t *out_word1, uint64_t *out_l2_off, struct qmeld_error *err) QM_CHECK;

/* After qm_image_next failed at guest offset from with *err: how far from there nothing can be told, as far as one may
 * know without trying again cluster by cluster.  At least 1. */
uint64_t qm_qcow2_lost_run(const struct qm_qcow2 *q, uint64_t from, const struct qmeld_error *err);

/* The snapshot table.  Release *out in every case. */
int qm_qcow2_read_snapshots(const struct qm_qcow2 *q, struct qm_snapshots *out,
                            struct qmeld_error *err) QM_CHECK;
void qm_snapshots_release(struct qm_snapshots *s);

/* From here on q is, to whoever reads, what its internal snapshot of this ID, or else of this name, was (or as
 * qemu-img -l has it: "snapshot.id=ID,snapshot.name=NAME", one or both): the disk alone, not the saved memory.  q must never be written to.  USAGE: there is none, or several have
 * the name. */
int qm_qcow2_view_snapshot(struct qm_qcow2 *q, const char *name, struct qmeld_error *err) QM_CHECK;

/* *out: the disk of an internal snapshot of q (from qm_qcow2_read_snapshots) as an image of its own, read through q's file and
 * keys; q stays open longer.  Its header is q's but for L1 table and size (the snapshot's, or as much more as its tables can say of
 * the active view's), and is never stored: who changes what the
 * snapshot holds does so by qm_edit_open_snapshot.  CORRUPT: its tables make no sense; UNSUPPORTED: an external data
 * file, which no snapshot has. */
int qm_qcow2_open_snapshot(const struct qm_qcow2 *q, const struct qm_snapshot *s,
                           struct qm_qcow2 **out, struct qmeld_error *err) QM_CHECK;
void qm_qcow2_close_snapshot(struct qm_qcow2 *view); /* q's file and keys stay; NULL is fine */

/* Re-reads the header after we wrote it (virtual size, L1, reftable, backing name).  On failure
 * q keeps what it knew.  A staged image's header is the one in memory. */
int qm_qcow2_reload(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* The sentence for an L2 verdict, e.g. "L2 entry: zero flag in a version 2 image". */
const char *qcow2_l2_verdict_text(enum qcow2_l2_verdict v);

#endif
