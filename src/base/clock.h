/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * clock.h - the clock that only goes forward.
 *
 * Why.  Deadlines, rates and durations must not jump when somebody sets the time of day.  Nothing that a merge
 * decides may depend on it but when to look and when to give up.
 *
 * Threads    Any.
 * Units      In the name: since some moment before the machine started, CLOCK_MONOTONIC's.
 * Errors     None: Linux always has that clock.
 */
#ifndef QM_CLOCK_H
#define QM_CLOCK_H

#include <stdint.h>
#include <time.h>

enum { QM_NSEC_PER_SEC = 1000000000, QM_NSEC_PER_MS = 1000000 };

static inline uint64_t
qm_clock_nsec(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * QM_NSEC_PER_SEC + (uint64_t)now.tv_nsec;
}

static inline uint64_t
qm_clock_ms(void)
{
    return qm_clock_nsec() / QM_NSEC_PER_MS;
}

static inline double
qm_clock_sec(void)
{
    return (double)qm_clock_nsec() / QM_NSEC_PER_SEC;
}

/* A moment as pthread_cond_timedwait() wants it, of a condition that waits by this clock. */
static inline struct timespec
qm_clock_moment(uint64_t nsec)
{
    return (struct timespec){.tv_sec = (time_t)(nsec / QM_NSEC_PER_SEC),
                             .tv_nsec = (long)(nsec % QM_NSEC_PER_SEC)};
}

#endif
