/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * onto.h - what an overlay must get before it may stand on another backing file.
 *
 * Why.  Where the overlay has nothing it reads what is below it.  When something else is to be below it, it
 * has to hold by itself what reads differently there, and nothing more: by map first, by bytes then
 * (diff.h).  Told in whole clusters (or subclusters) of the overlay, so that nothing has to be filled up.
 *
 * Calls      qm_onto_open; qm_onto_next until done; qm_onto_close.
 * Threads    One thread calls; workers are inside.
 * Ownership  The chains are borrowed.  Entries of the overlay may be added behind the walk.
 * Errors     What diff.h says.
 */
#ifndef QM_ONTO_H
#define QM_ONTO_H

#include "diff.h"
#include "move.h"

struct qm_onto {
    const struct qm_chain *chain; /* NULL: it will stand on nothing */
    bool by_map;                  /* bytes are not compared: what may be wanted is told */
    unsigned threads;             /* 0: as many as processors, at most 16 */
    uint64_t bandwidth;           /* bytes a second for comparing, 0: no limit */
    qmeld_progress_fn *progress;  /* asked now and then; may be NULL */
    void *opaque;
    struct qm_diff_costs *costs; /* so far; may be NULL */
};

struct qm_onto_walk;

/* overlay: the layer of chain, with all below it. */
int qm_onto_open(const struct qm_chain *chain, size_t overlay, const struct qm_onto *onto,
                 struct qm_onto_walk **out, struct qmeld_error *err) QM_CHECK;

/* What the overlay is to hold: what it reads there now.  Ascending. */
int qm_onto_next(struct qm_onto_walk *w, struct qm_want *out, bool *out_done,
                 struct qmeld_error *err) QM_CHECK;

void qm_onto_close(struct qm_onto_walk *w); /* NULL is fine */

#endif
