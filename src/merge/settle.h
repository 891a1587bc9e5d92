/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * settle.h - after the merge: the child's header, and what becomes of the merged layers.
 *
 * Why.  Once the base holds everything, the layer above the merged range is pointed at it, and
 * the merged layers are kept, emptied or removed as asked.  Every step starts from a chain that
 * reads right and ends in one; what could be refused is found by qm_settle_check, before the
 * merge writes anything.
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err; err->disk is the caller's business.
 */
#ifndef QM_SETTLE_H
#define QM_SETTLE_H

#include "chain.h"

struct qm_settle_config {
    struct qm_chain *chain;
    size_t base;
    size_t top;
    size_t target; /* base, or the layer that takes its place and name */
    enum qmeld_overlays overlays;
    bool keep_relative;
    const char *const *moved_to; /* QUARANTINE: the new name of each merged layer, absolute */
    bool reclaim;                /* layers that are not removed are emptied, all of them */
};

struct qm_settle;

/* A free name for a file that is to be put aside: path.merged, path.merged.1, ...; malloc'd.
 * UNSUPPORTED: there is none. */
int qm_settle_new_name(const char *path, char **out, struct qmeld_error *err) QM_CHECK;

/* A layer without image was removed by an earlier run; one whose file has its new name was renamed.  Names are computed, room in headers and access are tested; layers that will be written are
 * opened for it.  Writes nothing. */
int qm_settle_check(const struct qm_settle_config *config, struct qm_settle **out,
                    struct qmeld_error *err) QM_CHECK;

/* False if all files are to stay as they are. */
bool qm_settle_has_work(const struct qm_settle *s);

/* Child, and top if it is to be emptied, name the base from here on.  Durable; merged layers are whole
 * still. */
int qm_settle_repoint(struct qm_settle *s, struct qmeld_error *err) QM_CHECK;

/* What is to become of the merged layers, durably; there is no way back from here.  The chain's images are open
 * still; removed files only lose their names. */
int qm_settle_give_up(struct qm_settle *s, struct qmeld_error *err) QM_CHECK;
/* Layers that are kept, and that nothing of the chain stands on any more, are noted as such (leftover.h): those that read
 * wrong by themselves, and the top if its child was re-pointed. */
void qm_settle_mark_leftovers(const struct qm_settle *s);

void qm_settle_free(struct qm_settle *s); /* NULL is fine */

/* What layer is worth after the merge. */
enum qmeld_fate qm_settle_fate(const struct qm_settle_config *config, size_t layer);

#endif
