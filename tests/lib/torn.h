/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torn.h - every set of files that a power cut could leave.
 *
 * Why.  An order of writes is right if each state it can leave on a disk is right.  The model:
 * a sync makes durable what was done to that file before it, and to no other file; a sync of a
 * directory makes new and removed names durable.  What is not durable reaches the disk or not, each
 * piece for itself: writes and holes in sectors of 512 bytes, each whole or not at all;
 * truncations, new names, removed and changed names whole.  A discarded range may also read as anything.
 *
 * A recorder takes down the changes of some files.  Replay then builds the states between any two
 * syncs: every subset where there are few pieces; otherwise none, all, each change missing, each
 * alone, each torn (its first sectors, its last, every other), and some sets at random.
 *
 * Calls      qm_torn_start or qm_torn_start_many, the code under test, qm_torn_stop,
 *            qm_torn_replay or qm_torn_replay_files, qm_torn_free.
 * Threads    One recorder at a time (it takes the hook of io.h).
 * Ownership  Files' content and names live as long as the callback runs.
 * Errors     Failed cmocka assertions.
 */
#ifndef QM_TORN_H
#define QM_TORN_H

#include "io.h"

struct qm_torn;

struct qm_torn_file {
    const char *path; /* as it was given */
    const unsigned char *at;
    size_t len;
    bool gone; /* it has no name: not yet, or not any more */
    size_t
        file; /* which of the files it leads to: if not its own, it is another name of that one */
    bool changed; /* something was done to it while it was recorded */
};

struct qm_torn_state {
    const struct qm_torn_file *files; /* in the order they were given */
    size_t n_files;
    size_t interval;    /* how many syncs had happened */
    size_t number;      /* of this state, in this replay */
    const char *choice; /* which of the changes since, in words */
};

struct qm_torn_how {
    uint64_t seed;
    size_t max;    /* about so many states, chosen at random; 0: all */
    size_t random; /* of each interval, so many sets at random; 0: 24 */
    bool strict;   /* max counts also for "none" and "all" of each interval, which else are
                    * never left out */
};

/* Takes down what happens to path from now on; the file is read into memory.  It need not be there
 * yet: its name appears with the first thing done to it. */
struct qm_torn *qm_torn_start(const char *path);
struct qm_torn *qm_torn_start_many(const char *const *paths, size_t n);

/* Right after the start: the i-th path is a name of the file that the state says, as one was built of it. */
void qm_torn_start_as(struct qm_torn *t, const struct qm_torn_state *state);
void qm_torn_stop(struct qm_torn *t);
void qm_torn_free(struct qm_torn *t);

/* How many syncs, and how many other changes, were seen. */
size_t qm_torn_syncs(const struct qm_torn *t);
size_t qm_torn_changes(const struct qm_torn *t);

/* Called with each state, no two of them equal. */
typedef void qm_torn_files_fn(const struct qm_torn_state *state, void *opaque);

/* Returns the number of states.  how may be NULL: all. */
size_t qm_torn_replay_files(struct qm_torn *t, const struct qm_torn_how *how, qm_torn_files_fn *fn,
                            void *opaque);

/* The same for the first file alone; all states. */
typedef void qm_torn_fn(const unsigned char *file, size_t len, void *opaque);
size_t qm_torn_replay(struct qm_torn *t, qm_torn_fn *fn, void *opaque);

/* Makes path hold these bytes; runs of zeros become holes. */
void qm_torn_save(const char *path, const unsigned char *file, size_t len);

/* The whole file, malloc'd. */
unsigned char *qm_torn_load(const char *path, size_t *out_len);

#endif
