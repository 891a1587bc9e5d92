/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * work.h - a bounded pool of workers; the first error wins.
 *
 * Why.  Copying is many independent pieces.  The pool gives them to threads, keeps the queue
 * short so that memory is bounded, stops everybody at the first error, and lets the calling
 * thread do its own small things (progress, a wish to stop) while it waits.
 *
 * Calls      new; put items; drain (waits for all of them); put again ...; free.  Who puts nothing
 *            for long calls tick now and then.
 * Threads    new, put, tick, drain, free on one thread.  fn runs on the workers.
 * Ownership  Items are copied in by value.
 * Errors     put, tick and drain return -1 with *err: the first failed item's, or CANCELED when the
 *            callback asked to stop.  After that, they keep failing until free.
 */
#ifndef QM_WORK_H
#define QM_WORK_H

#include "err.h"

struct qm_pool;

/* One item.  worker < threads tells which worker runs it: index of its private state. */
typedef int qm_work_fn(void *shared, unsigned worker, const void *item, struct qmeld_error *err);

/* Runs on the calling thread about five times a second, inside put, tick and drain; not 0: stop. */
typedef int qm_tick_fn(void *shared);

struct qm_pool_config {
    unsigned threads; /* 1..; 1 means one worker beside the caller */
    size_t item_size;
    size_t queue_len; /* items that may wait */
    qm_work_fn *fn;
    qm_tick_fn *tick; /* may be NULL */
    void *shared;
};

int qm_pool_new(const struct qm_pool_config *config, struct qm_pool **out, struct qmeld_error *err)
    QM_CHECK;
int qm_pool_put(struct qm_pool *pool, const void *item, struct qmeld_error *err) QM_CHECK;
int qm_pool_tick(struct qm_pool *pool, struct qmeld_error *err) QM_CHECK;
int qm_pool_drain(struct qm_pool *pool, struct qmeld_error *err) QM_CHECK;
void qm_pool_free(struct qm_pool *pool); /* waits for running items; NULL is fine */

/* Processors this process may use, at least 1. */
unsigned qm_processors(void);

#endif
