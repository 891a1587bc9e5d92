/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_unmap.h - an overlay gives up its clusters from the front, and their space.
 *
 * Why.  Once the base durably holds what an overlay says about some guest bytes, the overlay need not
 * say it any more.  Its entries are cleared then, so that these bytes are read from below, and the
 * clusters go back to the file system: merging --reclaim, and emptying at the end of any merge.
 *
 * Crash      Each guest cluster reads in the old way or from below; what was cleared and not yet
 *            given back is leaked.  qm_qcow2_give_back finds all of it again.
 * Threads    One thread.
 * Errors     0 or -1 with *err: CORRUPT, IO, NOMEM; NOSPACE not from refcounts, as those of clusters in
 *            use have their place, but from a file system that cannot make a hole without space.
 */
#ifndef QM_QCOW2_UNMAP_H
#define QM_QCOW2_UNMAP_H

#include "qcow2.h"

/* Clears the entries of the clusters that lie wholly in front of guest offset `to`, durably, then
 * gives their space back; with to >= the virtual size all entries there are, whatever they are for.
 * What lies in front of `from` is cleared already.  *out_to: how far it came, a multiple of the
 * cluster size or the virtual size.  It is less than `to` allows if two L1 entries share a table, which
 * then waits until it can go as a whole.
 * q is writable and exclusively locked, its refcounts are true (qm_qcow2_make_safe_to_write), and
 * what lies below answers for all of it.  If nothing was there, nothing is written or synced. */
int qm_qcow2_unmap(struct qm_qcow2 *q, uint64_t from, uint64_t to, uint64_t *out_to,
                   struct qmeld_error *err) QM_CHECK;

/* After an interruption: makes refcounts true (leaks and the dirty bit are mended), and gives the space
 * of every free cluster of the file back, a free tail is cut off.  Durable. */
int qm_qcow2_give_back(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

#endif
