/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * space.h - will the target have room for what is to come?
 *
 * Why.  A merge that fills the file system fails half-way.  So the counting walk adds up what
 * the target must gain, and a merge that cannot fit is refused before the first write.  The sum is
 * a lower bound (new tables are not in it, clusters that the merge itself frees are taken off):
 * nobody is refused who could have succeeded; who is not refused may still meet a full disk.
 * With --reclaim what the overlays take comes back on the way, if they are on the same file system.
 *
 * Calls      qm_space_overlay for every layer that is merged; qm_space_add for every want of the plan, ascending; qm_space_check.
 * Threads    One thread; it uses the target image's caches.
 * Units      Bytes.
 */
#ifndef QM_SPACE_H
#define QM_SPACE_H

#include "move.h"

struct qm_space {
    struct qm_image *target; /* set by the caller; the rest begins as 0 */
    bool reclaim;            /* set by the caller, too: overlays are given up on the way, */
    uint64_t at_once;        /* after so many bytes at least */
    uint64_t overlays;       /* bytes they have on the target's file system */
    uint64_t gain;           /* bytes that must be newly allocated */
    uint64_t loss;           /* bytes that the merge gives back */
    uint64_t next;           /* target clusters below this offset are counted */
};

int qm_space_overlay(struct qm_space *s, const struct qm_image *overlay, struct qmeld_error *err)
    QM_CHECK;
int qm_space_add(struct qm_space *s, const struct qm_want *want, struct qmeld_error *err) QM_CHECK;

/* NOSPACE with the shortfall in bytes. */
int qm_space_check(const struct qm_space *s, struct qmeld_error *err) QM_CHECK;

#endif
