/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * share.h - bytes that get into another file without being copied by us.
 *
 * Why.  XFS, btrfs and others can let two files share blocks (FICLONERANGE): that costs a change of metadata,
 * whatever the length, and no space.  Network file systems can copy on the server (copy_file_range).  Which two
 * files can do that is told here, as far as it can be known without trying; so a dry run knows it, too.
 *
 * Calls      qm_share_look, then qm_share_ask where a real run is about to begin; then qm_share_range or
 *            qm_share_offload.
 * Threads    Any, as for qm_pwrite.
 * Units      Bytes.
 * Errors     "Not done" is no error: whatever the reason, who then copies says it better.
 */
#ifndef QM_SHARE_H
#define QM_SHARE_H

#include "io.h"

enum qm_share_verdict {
    QM_SHARE_NO,
    QM_SHARE_MAYBE, /* the file system is to be asked */
    QM_SHARE_YES,   /* by all that is known */
};

/* What can be done from one file to another. */
struct qm_share {
    enum qm_share_verdict clone;
    bool offload;
    uint64_t
        block; /* shared ranges begin and end at multiples of it, in both files; a power of two */
};

/* It depends on the files and where they lie alone, and is the same in a dry run. */
void qm_share_look(const struct qm_file *to, const struct qm_file *from, struct qm_share *out);

/* MAYBE becomes YES or NO, by sharing nothing.  `to` is writable, and no shadow. */
void qm_share_ask(struct qm_share *share, struct qm_file *to, const struct qm_file *from);

/* [to_off, + len) of `to` shares the blocks of [off, + len) of `from`, holes, too.  All are multiples of the block,
 * and the range lies inside of `from`.  *out_done false: it was refused, and a part may be shared.  Durable by
 * qm_sync(to): what `from` had in memory only is written first (Linux, fs/remap_range.c,
 * generic_remap_file_range_prep).  In a dry run it is noted what that would be. */
int qm_share_range(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
                   uint64_t len, bool *out_done, struct qmeld_error *err) QM_CHECK;

/* Copied by the file system: *out_done bytes of it, from the front; 0: it was refused. */
void qm_share_offload(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
                      uint64_t len, uint64_t *out_done);

/* Makes `to`, an empty file, share all that `from` has: its bytes, holes and length, at once and without
 * copying.  *out_done false: the file system cannot. */
int qm_clone(struct qm_file *to, const struct qm_file *from, bool *out_done,
             struct qmeld_error *err) QM_CHECK;

/* ---- test builds only ---- */

#ifdef QM_TESTING
/* Not 0: any two files can share blocks of this size; it is done by copying.  QMELD_TEST_SHARE in the
 * environment says the same. */
extern uint64_t qm_share_pretended_block;
/* Likewise, that the file system copies by itself (QMELD_TEST_OFFLOAD). */
extern bool qm_share_pretended_offload;
#endif

#endif
