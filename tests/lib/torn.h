/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torn.h - every file that a power cut could leave.
 *
 * Why.  An order of writes is right if each state it can leave on a disk is right.  The model:
 * what was written since the last sync reaches the disk in sectors of 512 bytes, each
 * whole or not at all, in any order.  A recorder takes down the changes of one file; replay
 * then builds the states between any two syncs: all of them where there are few, otherwise
 * none, all, each one alone, each one missing, and some at random.
 *
 * Calls      qm_torn_start, the code under test, qm_torn_stop, qm_torn_replay, qm_torn_free.
 * Threads    One recorder at a time (it takes the hook of io.h).
 * Errors     Failed cmocka assertions.
 */
#ifndef QM_TORN_H
#define QM_TORN_H

#include "io.h"

struct qm_torn;

/* Takes down what happens to path from now on; the file is read into memory. */
struct qm_torn *qm_torn_start(const char *path);
void qm_torn_stop(struct qm_torn *t);
void qm_torn_free(struct qm_torn *t);

/* How many syncs were seen. */
size_t qm_torn_syncs(const struct qm_torn *t);

/* Called with each possible content of the file. */
typedef void qm_torn_fn(const unsigned char *file, size_t len, void *opaque);

/* Returns the number of states. */
size_t qm_torn_replay(const struct qm_torn *t, qm_torn_fn *fn, void *opaque);

/* Makes path hold these bytes. */
void qm_torn_save(const char *path, const unsigned char *file, size_t len);

#endif
