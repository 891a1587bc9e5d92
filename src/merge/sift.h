/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sift.h - the plan, with a look at the bytes: what is not worth writing is left out.
 *
 * Why.  A plan knows who has bytes, not what they are.  Overlays are full of bytes that the base
 * holds already (a file rewritten as it was) and of zeros (a file deleted and trimmed by hand).  With
 * --skip-equal the first are not written, with --detect-zeroes the second become holes.
 *
 *     plan ──> sift ──> batches
 *
 * A verdict is for a whole unit of the target: a cluster, a subcluster, 4 KiB of a raw file.  A unit that
 * is worth writing in part is written as the plan has it, so that no more clusters are partly written than
 * without sifting.  Who asks for neither pays nothing: wants go through as they are.
 *
 * Calls      open; next until it says done; close.
 * Threads    One thread calls; workers inside read and compare.  Nobody writes to what later wants
 *            need, so others may copy what came out before.
 * Ownership  Chains are borrowed.
 * Memory     64 portions of 1 MiB, or of a cluster, are looked at ahead; each worker holds two.
 * Errors     0 or -1 with *err: what the plan says, or what reading the sources says; CANCELED when tick
 *            said so.  What the target has and cannot be read is not equal to anything, and no error.
 */
#ifndef QM_SIFT_H
#define QM_SIFT_H

#include "plan.h"

enum qm_verdict {
    QM_SIFT_KEEP, /* as the plan has it */
    QM_SIFT_SKIP, /* the target reads so already */
    QM_SIFT_ZERO, /* a layer has it as data, and it is zeros: the want says so by now */
};

/* Now and then, on the calling thread.  0: go on; 1: no more looking ahead, somebody waits;
 * -1: give up. */
typedef int qm_sift_tick_fn(void *opaque);

struct qm_sift_config {
    struct qm_plan_config plan;
    const struct qm_chain
        *have; /* whose uppermost layer is the target, over what it will stand on */
    bool skip_equal;
    bool detect_zeroes;
    unsigned threads;   /* 0: as many as processors, at most 16 */
    uint64_t bandwidth; /* bytes a second that are looked at, 0: no limit */
    qm_sift_tick_fn *tick;
    void *opaque;
};

struct qm_sifted {
    struct qm_want want;
    bool asked; /* as the plan has it */
    enum qm_verdict verdict;
};

struct qm_sift;

int qm_sift_open(const struct qm_sift_config *config, struct qm_sift **out, struct qmeld_error *err)
    QM_CHECK;

/* Ascending; together the guest ranges of the plan, none left out. */
int qm_sift_next(struct qm_sift *sift, struct qm_sifted *out, bool *out_done,
                 struct qmeld_error *err) QM_CHECK;

/* Bytes that were read to find out; compressed clusters as they are stored. */
uint64_t qm_sift_bytes_read(const struct qm_sift *sift);

void qm_sift_close(struct qm_sift *sift); /* NULL is fine */

#endif
