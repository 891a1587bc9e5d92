/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * secret.h - memory for keys and passphrases.
 *
 * Why.  What opens a disk must not outlive its use: not in memory that somebody else gets, and not in a core dump.
 *
 * Threads    Any.
 */
#ifndef QM_SECRET_H
#define QM_SECRET_H

#include <stddef.h>

/* Zeros, left out of core dumps.  NULL: there is none. */
void *qm_secret_new(size_t len);

/* Wiped, and given back.  NULL is fine. */
void qm_secret_free(void *p, size_t len);

#endif
