/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * err.h - how a call says what went wrong.
 *
 * Why.  One error vocabulary for the whole library: the public struct qmeld_error, filled
 * once, where the fault is seen, with the file, the place and a sentence that also says
 * what to do.  Callers pass it on and add nothing.
 *
 * Calls      return qm_fail(err, QMELD_CORRUPT, qm_at(file, off), "...", ...);
 *            return qm_fail_sys(err, qm_in(file), "cannot open");   (reads errno)
 * Ownership  err is the caller's stack value, never NULL.  Nothing here allocates.
 * Errors     Fallible calls return 0 or -1 and are marked QM_CHECK.  err->disk starts as
 *            QMELD_DISK_OLD; whoever writes raises it (qm_err_disk).
 * Style      A sentence is "what is wrong: what to do", lower case, no final stop, and
 *            does not repeat the file name: the command line puts that in front.
 */
#ifndef QM_ERR_H
#define QM_ERR_H

#include "qmeld.h"

#define QM_CHECK __attribute__((warn_unused_result))

struct qm_place {
    const char *file; /* NULL: no file is concerned */
    bool has_off;
    uint64_t off;
};

static inline struct qm_place
qm_in(const char *file)
{
    return (struct qm_place){.file = file};
}

static inline struct qm_place
qm_at(const char *file, uint64_t off)
{
    return (struct qm_place){.file = file, .has_off = true, .off = off};
}

static inline struct qm_place
qm_nowhere(void)
{
    return (struct qm_place){.file = NULL};
}

/* What the calls below do, but for the -1. */
void qm_err_fill(struct qmeld_error *err, enum qmeld_code code, struct qm_place place,
                 const char *fmt, ...) __attribute__((format(printf, 4, 5)));
void qm_err_fill_sys(struct qmeld_error *err, struct qm_place place, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));

/* Stands here for compilers and analyzers, which look at one file at a time: they see that who fails returns, and does
 * not go on with outputs that nobody filled. */
static inline int
qm_failed_(void)
{
    return -1;
}

/* qm_fail(err, code, place, fmt, ...): fills *err and returns -1. */
#define qm_fail(...) (qm_err_fill(__VA_ARGS__), qm_failed_())

/* qm_fail_sys(err, place, fmt, ...): the same for a failed system call.  The code follows errno (ENOMEM: NOMEM; ENOSPC,
 * EDQUOT, EFBIG: NOSPACE; else IO) and ": <strerror>" is added to the sentence.  Returns -1. */
#define qm_fail_sys(...) (qm_err_fill_sys(__VA_ARGS__), qm_failed_())

/* out of memory for what; returns -1 */
static inline int
qm_fail_nomem(struct qmeld_error *err, const char *what)
{
    return qm_fail(err, QMELD_NOMEM, qm_nowhere(), "out of memory for %s", what);
}

/* Records what the failure leaves on disk; never lowers it. */
void qm_err_disk(struct qmeld_error *err, enum qmeld_disk disk);

#endif
