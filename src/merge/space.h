/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * space.h - will there be room for what is to come?
 *
 * Why.  A merge that fills the file system fails half-way.  So the counting walk adds up what the target can
 * gain at the very most, which costs nothing; where that fits easily, nothing more is asked.
 * Otherwise the merge is done dry (shadow.h), and what it then took decides, to the byte: who cannot
 * succeed is refused before the first write, and nobody else.
 *
 * Calls      qm_space_begin, qm_space_add for every want of the plan, ascending; qm_space_is_ample; after a dry
 *            run qm_space_judge.
 * Threads    One thread.
 * Units      Bytes.
 */
#ifndef QM_SPACE_H
#define QM_SPACE_H

#include "chain.h"
#include "move.h"
#include "shadow.h"

struct qm_space {
    const struct qm_image *target;
    uint64_t new_size;
    uint64_t most;      /* data and L2 tables; UINT64_MAX stands for more */
    uint64_t next;      /* target clusters below this offset are counted */
    uint64_t next_span; /* so are L2 tables of guest offsets below */
    size_t new_bitmaps; /* that the target gets; the caller's, after begin */
};

void qm_space_begin(struct qm_space *s, const struct qm_image *target, uint64_t new_size);
void qm_space_add(struct qm_space *s, const struct qm_want *want);

/* *out: the layers from..to of the chain, `target` among them, can be changed, and the journal written, without
 * a look at what exactly that takes.  What cannot be found out is not ample. */
void qm_space_is_ample(const struct qm_space *s, const struct qm_chain *chain, size_t from,
                       size_t to, size_t target, const char *journal, bool *out);

/* NOSPACE with the shortfall in bytes, if the files, as the dry run left them, cannot be. */
int qm_space_judge(const struct qm_shadow *dry, struct qmeld_error *err) QM_CHECK;

/* To a NOSPACE: with --reclaim it would fit. */
void qm_space_recommend_reclaim(struct qmeld_error *err);

#ifdef QM_TESTING
/* Every merge is done dry first, whatever room there is. */
extern bool qm_space_never_ample;
#endif

#endif
