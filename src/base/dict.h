/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dict.h - from numbers to pointers: a hash table that only grows.
 *
 * Why.  Bookkeeping about a sparse file is kept for the parts that were touched, by their number.
 *
 * Calls      struct qm_dict d = {0};  qm_dict_put, qm_dict_get; qm_dict_release.
 * Threads    Lookups may run beside each other, not beside a put.
 * Ownership  Values are the caller's; release frees the table only.
 * Errors     qm_dict_put returns false when memory is out; the table is as it was.
 */
#ifndef QM_DICT_H
#define QM_DICT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

struct qm_dict_entry {
    uint64_t key;
    void *value; /* NULL: the entry is free */
};

struct qm_dict {
    struct qm_dict_entry *at;
    size_t n;
    size_t room; /* a power of two, or 0 */
};

/* Where key is, or would be.  room > n, so the search ends. */
static inline struct qm_dict_entry *
qm_dict_place_(const struct qm_dict *d, uint64_t key)
{
    /* neighbouring numbers are the rule: the golden ratio scatters them (Knuth, 6.4) */
    size_t i = (size_t)((key * 0x9e3779b97f4a7c15ull) >> 20) & (d->room - 1);

    while (d->at[i].value && d->at[i].key != key)
        i = (i + 1) & (d->room - 1);
    return &d->at[i];
}

/* NULL: there is none. */
static inline void *
qm_dict_get(const struct qm_dict *d, uint64_t key)
{
    return d->room ? qm_dict_place_(d, key)->value : NULL;
}

static inline bool
qm_dict_grow_(struct qm_dict *d)
{
    struct qm_dict more = {.n = d->n, .room = d->room ? d->room * 2 : 64};

    more.at = calloc(more.room, sizeof *more.at);
    if (!more.at)
        return false;
    for (size_t i = 0; i < d->room; i++)
        if (d->at[i].value)
            *qm_dict_place_(&more, d->at[i].key) = d->at[i];
    free(d->at);
    *d = more;
    return true;
}

/* value is not NULL; it takes the place of the one before. */
static inline bool
qm_dict_put(struct qm_dict *d, uint64_t key, void *value)
{
    struct qm_dict_entry *e;

    if (d->n * 2 >= d->room && !qm_dict_grow_(d))
        return false;
    e = qm_dict_place_(d, key);
    d->n += !e->value;
    e->key = key;
    e->value = value;
    return true;
}

static inline void
qm_dict_release(struct qm_dict *d)
{
    free(d->at);
    *d = (struct qm_dict){.at = NULL};
}

/* for (each entry pointer e of d, in no order) */
#define QM_DICT_EACH(e, d)                                                                         \
    for (struct qm_dict_entry *e = (d)->at; e && e < (d)->at + (d)->room; e++)                     \
        if (e->value)

#endif
