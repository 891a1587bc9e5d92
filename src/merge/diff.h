/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * diff.h - where do two views read differently?
 *
 * Why.  Comparing two images, and moving an overlay from one backing chain to another, ask the same
 * question.  Most of the answer is in the maps: what both sides read from the same place of the
 * same file, or as zeros, is equal without reading a byte of it.  The rest is read by many
 * threads, in large pieces, and told in order.
 *
 * Calls      qm_diff_open; qm_diff_next until done; qm_diff_close.
 * Threads    One thread calls; workers are inside, and idle whenever a call has returned.
 * Ownership  The chains are borrowed.  They may be the same chain, or share files.
 * Memory     One round of work: at most 32,768 pieces, 128 results of 1 KiB, and four buffers of
 *            2 MiB a worker.
 * Errors     0 or -1 with *err: what map and files say; CANCELED on the callback's wish.
 */
#ifndef QM_DIFF_H
#define QM_DIFF_H

#include "map.h"

#define QM_SECTOR 512u

/* What a reader of layer top sees; behind the end of it: zeros. */
struct qm_view {
    const struct qm_chain *chain; /* NULL: zeros everywhere */
    size_t top;
};

struct qm_diff_config {
    struct qm_view a;
    struct qm_view b;
    const struct qm_image
        *skip;         /* what this layer of a answers for itself is passed over; or NULL */
    uint64_t end;      /* guest bytes before here */
    uint64_t unit;     /* differences are told in units of this, a power of two from QM_SECTOR on */
    bool by_map;       /* nothing is read: what may differ is told */
    bool look_at_zero; /* zero_a is wanted, also where a has bytes */
    unsigned threads;  /* 0: as many as processors, at most 16 */
    uint64_t bandwidth;          /* bytes a second, 0: no limit */
    const char *phase;           /* for progress, which is told in guest bytes */
    qmeld_progress_fn *progress; /* may be NULL */
    void *opaque;
};

struct qm_diff_range {
    guest_off guest;
    uint64_t len;
    bool zero_a; /* a reads as zeros there */
};

/* What it cost. */
struct qm_diff_costs {
    uint64_t bytes_read;  /* of both sides; compressed clusters as inflated */
    uint64_t compared;    /* guest bytes that this was for */
    uint64_t same_by_map; /* guest bytes that nobody had to read; not those of holes */
    bool reading;         /* the call that failed was reading data, not tables */
};

struct qm_diff;

int qm_diff_open(const struct qm_diff_config *config, struct qm_diff **out, struct qmeld_error *err)
    QM_CHECK;

/* The next range that differs, ascending; ranges that touch may come one by one.  *out_done: there was
 * none left. */
int qm_diff_next(struct qm_diff *d, struct qm_diff_range *out, bool *out_done,
                 struct qmeld_error *err) QM_CHECK;

struct qm_diff_costs qm_diff_costs(const struct qm_diff *d);

void qm_diff_close(struct qm_diff *d); /* NULL is fine */

#endif
