/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cleanup.h - what ends with its scope: heap memory and read-only descriptors.
 *
 * Why.  Early returns are how errors read best, and an early return must not
 * leak.  Written files are never closed this way: their close is checked
 * (qm_file_finish in io.h).
 */
#ifndef QM_CLEANUP_H
#define QM_CLEANUP_H

#include <stdlib.h>

static inline void
qm_cleanup_free(void *p)
{
    free(*(void **)p);
}

/* Declares a pointer whose memory is freed when the scope ends. */
#define QM_FREE __attribute__((cleanup(qm_cleanup_free)))

/* The value of p, which is NULL afterwards: ownership leaves the scope. */
#define QM_TAKE(p)                                                                                 \
    ({                                                                                             \
        __typeof__(p) taken_ = (p);                                                                \
        (p) = NULL;                                                                                \
        taken_;                                                                                    \
    })

#endif
