/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pace.h - work at no more than so many bytes a second.
 *
 * Why.  A merge beside running machines must leave them their disk.  Who works asks, before each
 * piece, whether it is ahead of the rate, and naps in between looking at other things.
 *
 * Threads    One thread.
 */
#ifndef QM_PACE_H
#define QM_PACE_H

#include <stdbool.h>
#include <stdint.h>
#include <time.h>

struct qm_pace {
    uint64_t rate; /* bytes a second; 0: no limit */
    uint64_t done; /* bytes; the user adds to it */
    struct timespec started;
};

static inline void
qm_pace_begin(struct qm_pace *p, uint64_t rate)
{
    *p = (struct qm_pace){.rate = rate};
    clock_gettime(CLOCK_MONOTONIC, &p->started);
}

/* More was done than the rate allows by now. */
static inline bool
qm_pace_is_ahead(const struct qm_pace *p)
{
    struct timespec now;
    double passed;

    if (p->rate == 0)
        return false;
    clock_gettime(CLOCK_MONOTONIC, &now);
    passed =
        (double)(now.tv_sec - p->started.tv_sec) + (double)(now.tv_nsec - p->started.tv_nsec) / 1e9;
    return (double)p->done > passed * (double)p->rate;
}

static inline void
qm_pace_nap(void)
{
    const struct timespec nap = {.tv_nsec = 20000000};

    nanosleep(&nap, NULL);
}

#endif
