/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd_int.h - between the halves of nbd.c: the connection and its commands (nbd_conn.c), and what a file asks of them
 * (nbd.c).  Nobody else includes it.
 */
#ifndef QM_NBD_INT_H
#define QM_NBD_INT_H

#include "nbd_lib.h"
#include "nbd_name.h"
#include "remote.h"

#include <pthread.h>

#define QM_NBD_MAX_RUNS 4096u

struct run {
    uint64_t off;
    uint64_t len;
    bool data;
};

struct nbd {
    struct qm_remote r; /* first */
    /* set at open */
    char *uri;
    uint64_t block; /* the least that can be read or written; all is multiples of it */
    uint64_t piece; /* the most, in one command */
    bool can_zero, can_discard, can_status;
    int wake; /* eventfd: the one who waits for the connection shall look at it anew */
    /* writes that cover whole blocks hold it shared; who reads a block, to write it back, alone */
    pthread_rwlock_t blocks;
    /* under lock */
    pthread_mutex_t lock;
    pthread_cond_t moved;
    struct nbd_handle *h; /* NULL: dead */
    int dead;             /* errno of all commands from then on */
    bool polled;          /* somebody waits for the connection */
    unsigned in_flight, slow;
    uint64_t moved_ms;
    struct run runs[QM_NBD_MAX_RUNS]; /* of the last answer about holes, ascending, without gaps */
    size_t n_runs;
    uint64_t changes; /* counts what may make them wrong */
    /* under the list's lock */
    unsigned users;
    struct nbd *next;
};

/* What one call asks for, in one command or several. */
struct batch {
    struct nbd *n;
    unsigned left; /* commands that are not over */
    int error;
    bool slow;
    bool changes; /* bytes */
};

/* Connects n->h, and shakes hands. */
int qm_nbd_connect(struct nbd *n, const struct qm_nbd_name *name, const char *path,
                   struct qmeld_error *err) QM_CHECK;

/* What libnbd said last, as an error.  Returns -1. */
int qm_nbd_fail(const char *path, const char *what, struct qmeld_error *err);

enum kind { LOOKS, CHANGES };

/* The lock is held from begin to finish, but for the waits. */
void qm_nbd_begin(struct nbd *n, struct batch *b, bool slow, enum kind kind);

/* Before a command is put into the connection; NULL: it is dead.  After it: what libnbd said of it. */
struct nbd_handle *qm_nbd_expect(struct batch *b);
void qm_nbd_put(const struct batch *b, int64_t cookie);

/* Until no more than `left` commands of the batch are in flight. */
void qm_nbd_wait_until(struct batch *b, unsigned left);

/* 0, or -1 with the errno of a command that failed. */
int qm_nbd_finish(struct batch *b) QM_CHECK;

/* For libnbd. */
int qm_nbd_is_over(void *batch, int *error);
#define WHEN_OVER(b) ((nbd_completion_callback){.callback = qm_nbd_is_over, .user_data = (b)})

#endif
