/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * reclaim.h - the merged layers give up what the base holds, while the merge goes on.
 *
 * Why.  A merge needs the space of all that it copies until the copied layers are given up.  With
 * commit --reclaim they are given up batch by batch, so that it needs the space of one batch.
 *
 * The order (docs/crash-safety.md, S10).  A guest byte is answered by the uppermost layer that has it.
 * So it is cleared in the lowest layer first, durably, then in the next, and in the top last: until then
 * the layer that answered still does, and after that only the base can.  Clusters go as a whole, and
 * layers have different ones; so each layer goes no further than the one below it went, or a part
 * of that one's last cluster, hidden so far, would be seen.  Nor does it go behind the end of
 * a shorter layer below it, which would answer zeros there.
 *
 * Calls      check, before anything is written; open; until, with growing ends; free.
 * Threads    One thread; nobody else may use the layers' caches meanwhile, and workers are idle.
 * Ownership  The chain is borrowed.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_RECLAIM_H
#define QM_RECLAIM_H

#include "chain.h"

struct qm_reclaim;

/* Can the layers base + 1 .. top be written, and are they sound?  Writes nothing. */
int qm_reclaim_check(const struct qm_chain *chain, size_t base, size_t top, struct qmeld_error *err)
    QM_CHECK;

/* They are locked for us alone.  Dirty ones get their refcounts rebuilt.  resumed: what an interrupted
 * run cleared and did not give back is given back. */
int qm_reclaim_open(const struct qm_chain *chain, size_t base, size_t top, bool resumed,
                    struct qm_reclaim **out, struct qmeld_error *err) QM_CHECK;

/* The base durably reads as top does in front of `done`, and the journal says so. */
int qm_reclaim_until(struct qm_reclaim *r, guest_off done, struct qmeld_error *err) QM_CHECK;

void qm_reclaim_free(struct qm_reclaim *r); /* NULL is fine */

#endif
