/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * carry.h - the persistent bitmaps of merged layers go into the layer that they are merged into.
 *
 * Why.  A bitmap says what changed since a backup, and each layer has one, of the same name, for the time that it
 * was the active one.  A merge that leaves them behind makes the next backup a full one at best; one that
 * leaves a bitmap which looks whole, and lacks a layer's part, makes it a wrong one.  docs/decisions/0027-bitmaps.md has the rules:
 * which bitmaps are put together, and which are void.
 *
 * A new image gets those of the layers that it is made of likewise: it has none itself, so each layer is a source.
 *
 *     plan      what becomes of each name; goes into the journal
 *     check     can it be done?  Before the first write
 *     import    bits, and what layers without the bitmap changed while it recorded below them, become marks
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_CARRY_H
#define QM_CARRY_H

#include "chain.h"
#include "qcow2_bitmap.h"

struct qm_carry {
    const struct qm_chain *chain;
    size_t base;
    size_t top;
    size_t target;        /* base, or above it; QM_NO_LAYER: a new image */
    uint64_t new_cluster; /* of a new image, which can hold bitmaps: its cluster size; else 0 */
    enum qmeld_bitmaps mode;
    bool layers_stay; /* merged layers are not deleted: what the target cannot hold is not lost */
    uint64_t new_size;
};

/* *out: one order a name that any of the layers has, if it is about more than writes; release it in every case.  USAGE:
 * the target cannot hold bitmaps, and the layers go.  CORRUPT, UNSUPPORTED: those of a layer cannot be read. */
int qm_carry_plan(const struct qm_carry *c, struct qm_bitmap_orders *out, struct qmeld_error *err)
    QM_CHECK;

/* As qm_bitmap_orders_check; the target is a layer. */
int qm_carry_check(const struct qm_carry *c, const struct qm_bitmap_orders *orders,
                   struct qmeld_error *err) QM_CHECK;

/* What became of them, by the paths of the chain's layers; the caller's, malloc'd. */
int qm_carry_tell(const struct qm_carry *c, const struct qm_bitmap_orders *orders,
                  struct qmeld_merged_bitmap **out, size_t *out_n, struct qmeld_error *err)
    QM_CHECK;
void qm_carry_told_free(struct qmeld_merged_bitmap *told, size_t n);

/* So many bitmaps are made in the target. */
size_t qm_carry_n_created(const struct qm_bitmap_orders *orders);

/* Something of the target is to change, though all data may be there. */
bool qm_carry_has_work(const struct qm_bitmap_orders *orders);

/* After qm_bitmaps_begin, of the target; in every run.  bitmaps may be NULL. */
int qm_carry_import(const struct qm_carry *c, const struct qm_bitmap_orders *orders,
                    struct qm_bitmaps *bitmaps, struct qmeld_error *err) QM_CHECK;

#endif
