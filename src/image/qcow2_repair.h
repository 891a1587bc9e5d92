/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_repair.h - the single mends of a qcow2 image, each safe against a crash by itself.
 *
 * Why.  A repair writes to an image that is already damaged, perhaps the only copy.  Each mend
 * here brings one kind of metadata nearer to the truth that a census has found, in an order in
 * which every instant is at least as good as what was there before:
 *
 *   refcounts    Entries are independent; each write makes some of them right.  Too low ones are
 *                a danger, too high ones cost space.
 *   rebuild      A new refcount structure is written where nothing refers to, made durable, and
 *                one sector of the header switches to it.
 *   flags        COPIED is set only after the refcount 1 it promises is durable.
 *   zero entries One aligned write inside a sector each.
 *   snapshots    A new table is written and durable before the header's sector names it.
 *
 * Nothing is discarded: what a damaged image calls free may be what somebody wants to rescue.
 *
 * Calls      Each takes a fresh census of the image as it is on disk; take another after it.
 * Threads    One thread; the file is writable and locked.
 * Errors     0 or -1 with *err.  Everything that was written is durable after success.
 */
#ifndef QM_QCOW2_REPAIR_H
#define QM_QCOW2_REPAIR_H

#include "qcow2_census.h"

enum qm_repair_refcounts {
    QM_REPAIR_RAISE = 1, /* those that are too low */
    QM_REPAIR_LOWER = 2, /* those that are too high */
};

/* Writes the counted values into the refcount blocks.  The census does not ask for a rebuild. */
int qm_repair_refcounts(struct qm_qcow2 *q, const struct qm_census *c, unsigned what,
                        struct qmeld_error *err) QM_CHECK;

/* Makes a new refcount table and blocks from the counts, and the header point at them.  Spends
 * the census: its counts are changed.  NOSPACE if they do not fit. */
int qm_repair_rebuild(struct qm_qcow2 *q, struct qm_census *c, struct qmeld_error *err) QM_CHECK;

/* Makes the COPIED flags of the active L1 and L2 tables agree with the refcounts on disk. */
int qm_repair_copied(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
    QM_CHECK;

/* Turns preallocated entries without data that point at impossible places into plain zeros. */
int qm_repair_zeroable(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
    QM_CHECK;

/* Writes the snapshot table anew, with the extra data that version 3 demands and no more than
 * QEMU takes.  The refcounts are right. */
int qm_repair_snapshots(struct qm_qcow2 *q, const struct qm_census *c, struct qmeld_error *err)
    QM_CHECK;

#endif
