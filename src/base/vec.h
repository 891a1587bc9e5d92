/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * vec.h - the one growable array.
 *
 * Calls      QM_VEC(struct thing) v = {0};  then qm_vec_push(&v, &thing).
 * Ownership  Elements are plain values; qm_vec_release frees the array only.
 * Errors     qm_vec_push and qm_vec_reserve return false when memory is out; the
 *            array is as it was.
 */
#ifndef QM_VEC_H
#define QM_VEC_H

#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#define QM_VEC(type)                                                                               \
    struct {                                                                                       \
        type *at;                                                                                  \
        size_t n;                                                                                  \
        size_t room;                                                                               \
    }

static inline bool
qm_vec_grow_(void **at, size_t *room, size_t need, size_t elem)
{
    size_t want = *room ? *room : 8;
    void *p;

    while (want < need)
        if (__builtin_mul_overflow(want, (size_t)2, &want))
            return false;
    p = reallocarray(*at, want, elem);
    if (!p)
        return false;
    *at = p;
    *room = want;
    return true;
}

/* Room for at least `need` elements in all. */
#define qm_vec_reserve(v, need)                                                                    \
    ((need) <= (v)->room || qm_vec_grow_((void **)&(v)->at, &(v)->room, (need), sizeof *(v)->at))

#define qm_vec_push(v, elem)                                                                       \
    (qm_vec_reserve((v), (v)->n + 1) ? ((v)->at[(v)->n++] = *(elem), true) : false)

#define qm_vec_last(v) (&(v)->at[(v)->n - 1])

#define qm_vec_clear(v) ((void)((v)->n = 0))

#define qm_vec_release(v)                                                                          \
    do {                                                                                           \
        free((v)->at);                                                                             \
        (v)->at = NULL;                                                                            \
        (v)->n = (v)->room = 0;                                                                    \
    } while (0)

/* for (each element pointer e of v) */
#define QM_VEC_EACH(e, v) for (__auto_type e = &*(v)->at; e && e < (v)->at + (v)->n; e++)

#endif
