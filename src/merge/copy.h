/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy.h - move bytes into the target, with many threads.
 *
 * Why.  The one place where guest data flows.  Moves are joined where they continue each other,
 * cut into pieces, and done by workers: plain data shared with the source where the file system can (route.h),
 * else straight from a mapping of it, compressed clusters through a codec, zeros as holes; what is encrypted on either
 * side through memory.  Reads
 * run ahead of the workers, and what was written reaches the disk behind them, so that the final sync is short;
 * the page cache is left as it was found (pagecache.h), and long pieces of which it has nothing
 * are read past it.
 *
 * Calls      new; put moves; drain before anything relies on them; free.
 * Threads    One thread calls; workers are inside.
 * Dry runs   Of a target that is a shadow (shadow.h) nothing is read or copied; it is noted what would be.
 * Ownership  Target and sources are borrowed and outlive the copy.
 * Errors     0 or -1 with *err: the first failed move, or CANCELED on the callback's wish.
 */
#ifndef QM_COPY_H
#define QM_COPY_H

#include "move.h"
#include "route.h"

struct qm_copy;

struct qm_copy_config {
    struct qm_file *target;         /* NULL: verify only */
    const struct qm_cipher *cipher; /* of the target; NULL: bytes are written as they are */
    unsigned threads;               /* 0: as many as processors, at most 16 */
    uint64_t bandwidth;             /* bytes a second, 0: no limit; what is shared does not count */
    bool direct; /* past the page cache (direct.h), as far as can be; then nobody else writes the
                                  * target between a put and the next drain */
    bool finish_when_stopped;    /* the callback's wish is only remembered (qm_copy_stopped), and
                                  * the bandwidth not kept any more: what was put is done */
    uint64_t total_bytes;        /* for progress */
    const char *phase;           /* for progress */
    qmeld_progress_fn *progress; /* may be NULL */
    void *opaque;
};

int qm_copy_new(const struct qm_copy_config *config, struct qm_copy **out, struct qmeld_error *err)
    QM_CHECK;

/* OLD moves need from and ext, too; they are no part of the progress, as nobody asked for
 * them.  May wait. */
int qm_copy_put(struct qm_copy *copy, const struct qm_move *move, struct qmeld_error *err) QM_CHECK;

/* Inflates a compressed extent to nowhere: can it be read? */
int qm_copy_verify(struct qm_copy *copy, const struct qm_image *from, const struct qm_extent *ext,
                   struct qmeld_error *err) QM_CHECK;

/* *out: bytes of a want that will be shared, by what is known beforehand: it costs no time to speak of.  The same in
 * dry runs.  cluster_size: of the target, 0 for raw. */
int qm_copy_foresee_shared(struct qm_copy *copy, const struct qm_want *want, uint64_t cluster_size,
                           uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* How the bytes of a file came into the target; in a dry run, how they would. */
struct qm_route_sums qm_copy_sums(const struct qm_copy *copy, const struct qm_file *from);
/* Bytes of the total that need no copying: they count as done. */
void qm_copy_spare(struct qm_copy *copy, uint64_t bytes);

/* In a dry run: what the moves would have cost. */
struct qm_copy_costs {
    uint64_t bytes_read;    /* of the sources; compressed clusters as they are stored */
    uint64_t bytes_written; /* to the target */
    uint64_t inflated;      /* pieces of compressed clusters */
};
struct qm_copy_costs qm_copy_costs(const struct qm_copy *copy);

/* The progress callback asked to stop. */
bool qm_copy_stopped(const struct qm_copy *copy);

/* For who has nothing to put for long: progress is shown, and a wish to stop heard (CANCELED). */
int qm_copy_tick(struct qm_copy *copy, struct qmeld_error *err) QM_CHECK;

/* Waits until all of it is written (not durable: sync the target). */
int qm_copy_drain(struct qm_copy *copy, struct qmeld_error *err) QM_CHECK;

/* The target was synced after a drain: what was written is forgotten by the page cache, where it had not been there
 * before. */
void qm_copy_synced(struct qm_copy *copy);

void qm_copy_free(struct qm_copy *copy); /* NULL is fine */

#endif
