/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "work.h"
#include "clock.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TICK_NSEC 200000000u

struct worker {
    struct qm_pool *pool;
    pthread_t thread;
    unsigned idx;
};

struct qm_pool {
    /* set at new */
    struct qm_pool_config cfg;
    struct worker *workers;
    unsigned n_workers;
    char *ring; /* cfg.queue_len items */
    pthread_mutex_t lock;
    pthread_cond_t has_item; /* a worker may start */
    pthread_cond_t has_room; /* the caller may go on: room, all done, or an error */
    /* under lock */
    size_t head, waiting; /* ring: first item, number of items */
    unsigned running;
    bool stop;   /* workers end */
    bool failed; /* first is set; nothing more is started */
    struct qmeld_error first;
    /* the calling thread's */
    uint64_t next_tick_nsec;
};

static void
fail_first(struct qm_pool *p, const struct qmeld_error *e)
{
    if (!p->failed)
        p->first = *e;
    p->failed = true;
    p->waiting = 0;
}

static void *
work(void *arg)
{
    struct worker *w = arg;
    struct qm_pool *p = w->pool;
    char *item = malloc(p->cfg.item_size);

    pthread_mutex_lock(&p->lock);
    if (!item) {
        struct qmeld_error e = {0};

        (void)qm_fail_nomem(&e, "a copy worker");
        fail_first(p, &e);
    }
    for (;;) {
        struct qmeld_error e = {0};
        int rc;

        while (!p->stop && p->waiting == 0)
            pthread_cond_wait(&p->has_item, &p->lock);
        if (p->waiting == 0 || !item)
            break;
        memcpy(item, p->ring + p->head * p->cfg.item_size, p->cfg.item_size);
        p->head = (p->head + 1) % p->cfg.queue_len;
        p->waiting--;
        p->running++;
        pthread_cond_signal(&p->has_room);
        pthread_mutex_unlock(&p->lock);
        rc = p->cfg.fn(p->cfg.shared, w->idx, item, &e);
        pthread_mutex_lock(&p->lock);
        p->running--;
        if (rc < 0)
            fail_first(p, &e);
        pthread_cond_signal(&p->has_room);
    }
    pthread_mutex_unlock(&p->lock);
    free(item);
    return NULL;
}

int
qm_pool_new(const struct qm_pool_config *config, struct qm_pool **out, struct qmeld_error *err)
{
    struct qm_pool *p = calloc(1, sizeof *p);
    pthread_condattr_t attr;

    *out = NULL;
    if (!p)
        return qm_fail_nomem(err, "copy workers");
    p->cfg = *config;
    p->next_tick_nsec = qm_clock_nsec() + TICK_NSEC;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->has_item, NULL);
    pthread_cond_init(&p->has_room, &attr);
    pthread_condattr_destroy(&attr);
    p->ring = calloc(config->queue_len, config->item_size);
    p->workers = calloc(config->threads, sizeof *p->workers);
    if (!p->ring || !p->workers) {
        qm_pool_free(p);
        return qm_fail_nomem(err, "copy workers");
    }
    for (unsigned i = 0; i < config->threads; i++) {
        p->workers[i] = (struct worker){.pool = p, .idx = i};
        errno = pthread_create(&p->workers[i].thread, NULL, work, &p->workers[i]);
        if (errno && i == 0) {
            qm_fail_sys(err, qm_nowhere(), "cannot start a copy worker");
            qm_pool_free(p);
            return -1;
        }
        if (errno) /* fewer workers do the same work */
            break;
        p->n_workers++;
    }
    *out = p;
    return 0;
}

/* Runs the tick if its time has come, outside the lock. */
static void
tick_if_due(struct qm_pool *p)
{
    const uint64_t now = qm_clock_nsec();
    int stop;

    if (!p->cfg.tick || now < p->next_tick_nsec)
        return;
    p->next_tick_nsec = now + TICK_NSEC;
    pthread_mutex_unlock(&p->lock);
    stop = p->cfg.tick(p->cfg.shared);
    pthread_mutex_lock(&p->lock);
    if (stop) {
        struct qmeld_error e = {0};

        (void)qm_fail(&e, QMELD_CANCELED, qm_nowhere(), "stopped on request");
        fail_first(p, &e);
    }
}

/* Waits until there may be news, at most until the next tick. */
static void
wait_a_tick(struct qm_pool *p)
{
    const uint64_t end = p->cfg.tick ? p->next_tick_nsec : qm_clock_nsec() + TICK_NSEC;
    const struct timespec until = qm_clock_moment(end);

    (void)pthread_cond_timedwait(&p->has_room, &p->lock, &until);
    tick_if_due(p);
}

static int
result(struct qm_pool *p, struct qmeld_error *err)
{
    enum qmeld_disk disk = err->disk;

    if (!p->failed)
        return 0;
    *err = p->first;
    qm_err_disk(err, disk);
    return -1;
}

int
qm_pool_put(struct qm_pool *p, const void *item, struct qmeld_error *err)
{
    int rc;

    pthread_mutex_lock(&p->lock);
    tick_if_due(p); /* a queue that moves is not waited for */
    while (!p->failed && p->waiting == p->cfg.queue_len)
        wait_a_tick(p);
    rc = result(p, err);
    if (rc == 0) {
        const size_t at = (p->head + p->waiting) % p->cfg.queue_len;

        memcpy(p->ring + at * p->cfg.item_size, item, p->cfg.item_size);
        p->waiting++;
        pthread_cond_signal(&p->has_item);
    }
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int
qm_pool_tick(struct qm_pool *p, struct qmeld_error *err)
{
    int rc;

    pthread_mutex_lock(&p->lock);
    tick_if_due(p);
    rc = result(p, err);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

int
qm_pool_drain(struct qm_pool *p, struct qmeld_error *err)
{
    int rc;

    pthread_mutex_lock(&p->lock);
    while (p->waiting > 0 || p->running > 0)
        wait_a_tick(p);
    rc = result(p, err);
    pthread_mutex_unlock(&p->lock);
    return rc;
}

void
qm_pool_free(struct qm_pool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->stop = true;
    p->waiting = 0;
    pthread_cond_broadcast(&p->has_item);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->n_workers; i++)
        pthread_join(p->workers[i].thread, NULL);
    pthread_cond_destroy(&p->has_item);
    pthread_cond_destroy(&p->has_room);
    pthread_mutex_destroy(&p->lock);
    free(p->workers);
    free(p->ring);
    free(p);
}

unsigned
qm_processors(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof set, &set) < 0)
        return 1;
    return (unsigned)CPU_COUNT(&set) ? (unsigned)CPU_COUNT(&set) : 1;
}
