/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit.h - make guest ranges of a live qcow2 image read in a new way.
 *
 * Why.  Between "these guest bytes are to come from there" and a valid image lie allocation, copy
 * on write, subclusters, L2 tables and an order of writes.  All of that is decided here, in
 * memory, batch by batch; the caller moves the bytes and says when they are durable.
 *
 * Where.  New clusters are given out when a batch ends, in the order in which the sources hold their bytes, so
 * that what is adjacent there is adjacent here, and thousands of scattered guest clusters move in few pieces.
 *
 * Calls      qm_edit_open; then batches of
 *                qm_edit_want (ascending)   moves into clusters that are there
 *                qm_edit_want_end           moves into new ones, ascending in the file
 *                qm_edit_prepare            new tables and refcounts written
 *                ... the caller does the moves, then syncs the file: all of it durable
 *                qm_edit_publish            COMMIT POINT: entries point there, durable
 *            and qm_edit_close.
 * Crash      Before publish nothing refers to the new clusters; during it each guest cluster
 *            reads in the old or in the new way; after it what is not needed any more may be
 *            released: it is free in memory and becomes free on disk with the next prepare (or qm_refs_commit).
 *            Moves may go in place only into clusters that nobody else refers to, and only to
 *            bytes that were wanted: the caller wants only what no reader sees.
 * Threads    One thread.
 * Errors     0 or -1 with *err; after an error only close is left.
 */
#ifndef QM_QCOW2_EDIT_H
#define QM_QCOW2_EDIT_H

#include "move.h"
#include "qcow2_refs.h"

struct qm_edit;

/* q: writable, locked, checked (qm_qcow2_make_safe_to_write).  below_size: virtual size of what
 * lies under q, 0 if nothing.  Grows the L1 table, durable, if new_size needs it.  What the image
 * holds behind its present virtual size counts as stale: it must be wanted anew. */
int qm_edit_open(struct qm_qcow2 *q, struct qm_refs *refs, uint64_t below_size, uint64_t new_size,
                 struct qm_edit **out, struct qmeld_error *err) QM_CHECK;

/* The same for an internal snapshot (qm_qcow2_open_snapshot) of holder, whose refcounts refs are; its size stays.  A table that
 * the active view shares with it is given to neither: both get one of their own, in one batch, as the COPIED flag of the
 * active one, which must say that it is alone, could not change in the instant in which its refcount does.  CORRUPT:
 * its L1 table is somebody else's, too.  UNSUPPORTED, from qm_edit_want: a cluster of which it has a part is the active
 * view's, too. */
int qm_edit_open_snapshot(struct qm_qcow2 *view, struct qm_qcow2 *holder, struct qm_refs *refs,
                          uint64_t below_size, struct qm_edit **out, struct qmeld_error *err)
    QM_CHECK;
void qm_edit_close(struct qm_edit *e); /* NULL is fine */

/* From here on compressed clusters become plain ones.  Without it one that is wanted as a whole, from an
 * image of the same cluster size and compression, is passed on as it is. */
void qm_edit_decompress(struct qm_edit *e);

/* So would this want be, into image `to`: nobody looks whether it inflates, but its payload lies in its file. */
bool qm_edit_passes(struct qm_qcow2 *to, const struct qm_want *want);

/* Adds moves for clusters that are decided by now (a cluster is decided when a want lies
 * behind it) and that stay where they are. */
int qm_edit_want(struct qm_edit *e, const struct qm_want *want, struct qm_moves *moves,
                 struct qmeld_error *err) QM_CHECK;

/* Decides the last cluster of the batch, and where all the new ones go.  The next want must lie in a
 * later cluster. */
int qm_edit_want_end(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err) QM_CHECK;

/* *out: nothing would be allocated if the batch ended here, so that the clock may say when it does.  The
 * next want must lie in a later cluster. */
int qm_edit_is_bare(struct qm_edit *e, struct qm_moves *moves, bool *out, struct qmeld_error *err)
    QM_CHECK;

/* Memory that what was decided since the last release takes, or took, for the caller's bound.
 * It depends on the wants alone. */
size_t qm_edit_weight(const struct qm_edit *e);

int qm_edit_prepare(struct qm_edit *e, struct qmeld_error *err) QM_CHECK;

/* release: clusters replaced since the last release may be taken again from here on.  When that is said
 * decides which clusters later batches take, so it must not depend on the clock. */
int qm_edit_publish(struct qm_edit *e, bool release, struct qmeld_error *err) QM_CHECK;

#endif
