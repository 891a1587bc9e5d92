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

#include "clock.h"

struct qm_pace {
    uint64_t rate; /* bytes a second; 0: no limit */
    uint64_t done; /* bytes; the user adds to it */
    uint64_t started_nsec;
};

static inline void
qm_pace_begin(struct qm_pace *p, uint64_t rate)
{
    *p = (struct qm_pace){.rate = rate, .started_nsec = qm_clock_nsec()};
}

/* More was done than the rate allows by now. */
static inline bool
qm_pace_is_ahead(const struct qm_pace *p)
{
    double passed;

    if (p->rate == 0)
        return false;
    passed = (double)(qm_clock_nsec() - p->started_nsec) / QM_NSEC_PER_SEC;
    return (double)p->done > passed * (double)p->rate;
}

static inline void
qm_pace_nap(void)
{
    const struct timespec nap = {.tv_nsec = 20000000};

    nanosleep(&nap, NULL);
}

#endif
