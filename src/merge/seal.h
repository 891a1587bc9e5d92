/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * seal.h - make copied bytes the image that readers see.
 *
 * Why.  The copy writes only where no read from the chain's top arrives: clusters that are
 * free, or that an upper layer shadows.  A crash then costs space, never data.  Only this module
 * overwrites live metadata of the target, in one written order (docs/crash-safety.md):
 *
 *     begin      the target may be written: access, refcounts true (rebuilt if dirty), unknown
 *                autoclear bits cleared, bitmaps marked in use, L1 large enough
 *     batches    want ... want_end       decided in memory; moves for the copy
 *                prepare                 new tables, refcounts written (crash: leaks)
 *                ... the copy is drained
 *                publish                 sync; entries; sync: COMMIT POINT of the batch;
 *                                        release: clusters replaced so far may be taken again
 *     grow       only for who gives sources up as he goes: the virtual size is the new one from here
 *                on; all that was stale behind the old end has been published as zeros
 *     save       likewise: what was marked in bitmaps so far need not be marked again
 *     finish     bitmaps, virtual size, space given back, length; sync
 *
 * At every instant the chain, read from its top, gives the same guest bytes: until publish nobody
 * refers to what was written, and what publish changes an upper layer answers for.
 *
 * Calls      begin; any number of batches; finish or abandon, once.
 * Threads    One thread; the copy is drained before publish.
 * Ownership  The chain is borrowed; finish and abandon free the seal.
 * Errors     0, or -1 with *err; err->disk tells what is on disk.  After an error: abandon.
 */
#ifndef QM_SEAL_H
#define QM_SEAL_H

#include "chain.h"
#include "move.h"
#include "qcow2_bitmap.h"

struct qm_seal;

struct qm_seal_config {
    struct qm_chain *chain;
    size_t target;
    size_t base; /* what lies below it is what the target will stand on; the target, or below it */
    uint64_t
        below_size; /* and of what it will stand on, if that is none of the chain: its size; or 0 */
    uint64_t new_size; /* >= the target's virtual size */
    struct qm_qcow2 *
        holder; /* NULL, or the target is an internal snapshot of this image (qm_qcow2_open_snapshot), which was
                              * made safe to write, and whose header, refcounts and active view stay its own */
    bool unchanged; /* nobody will read anything else in the target: its bitmaps stay as they are */
    bool resumed;   /* an earlier run may have left leaks, which are mended first, and bitmaps in
                        * use that are good: those in trusted_bitmaps */
    bool decompress; /* compressed clusters are not passed on as they are */
    const struct qm_bitmap_names *trusted_bitmaps; /* NULL: none */
    const struct qm_bitmap_orders *orders; /* what becomes of bitmaps; NULL: nothing; borrowed */
};

/* Whatever is refused, is refused before the first write, except that a dirty image has been
 * repaired by then.  UNSUPPORTED: a version 2 image with internal snapshots cannot grow
 * (QEMU, block/qcow2.c, qcow2_co_truncate). */
int qm_seal_begin(const struct qm_seal_config *config, struct qm_seal **out,
                  struct qmeld_error *err) QM_CHECK;

/* The target's; NULL: it has none that get marks.  They are others after qm_seal_grow. */
struct qm_bitmaps *qm_seal_bitmaps(struct qm_seal *s);

/* A layer asked for these guest bytes, which an earlier run has written, or may have: enabled bitmaps
 * are told.  After begin. */
int qm_seal_mark(struct qm_seal *s, guest_off from, uint64_t len, struct qmeld_error *err) QM_CHECK;

/* asked: a layer asked for it, so enabled bitmaps are told. */
int qm_seal_want(struct qm_seal *s, const struct qm_want *want, bool asked, struct qm_moves *moves,
                 struct qmeld_error *err) QM_CHECK;
int qm_seal_want_end(struct qm_seal *s, struct qm_moves *moves, struct qmeld_error *err) QM_CHECK;

/* *out: nothing of the target would be allocated if the batch ended here, so that the clock may say when it does. */
int qm_seal_is_bare(struct qm_seal *s, struct qm_moves *moves, bool *out, struct qmeld_error *err)
    QM_CHECK;

/* Bytes of memory that what was wanted since the last release takes, or took. */
size_t qm_seal_weight(const struct qm_seal *s);

int qm_seal_prepare(struct qm_seal *s, struct qmeld_error *err) QM_CHECK;
int qm_seal_publish(struct qm_seal *s, bool release, struct qmeld_error *err) QM_CHECK;

/* Before anything else is published than zeros behind the old end that nobody asked for.  Durable. */
int qm_seal_grow(struct qm_seal *s, struct qmeld_error *err) QM_CHECK;

/* After a publish, when the target has its new size.  Durable. */
int qm_seal_save(struct qm_seal *s, struct qmeld_error *err) QM_CHECK;
int qm_seal_finish(struct qm_seal *s, struct qmeld_error *err) QM_CHECK;
void qm_seal_abandon(struct qm_seal *s); /* NULL is fine */

#endif
