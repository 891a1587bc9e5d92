/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stream_int.h - between the two halves of the stream: the ring (stream.c) and what workers do for a chunk
 * (stream_work.c).  Nobody else includes it.
 */
#ifndef QM_STREAM_INT_H
#define QM_STREAM_INT_H

#include "stream.h"
#include "work.h"

#include <pthread.h>

enum qm_slot_state { QM_SLOT_FREE, QM_SLOT_READING, QM_SLOT_READY, QM_SLOT_TAKEN, QM_SLOT_WRITING };

struct qm_slot {
    struct qm_chunk chunk; /* first: a chunk's slot is where it is */
    unsigned char *packed; /* likewise */
    unsigned char *buf;    /* NULL until it is needed */
    struct qm_moves moves;
    struct qm_file *file;     /* what they are in */
    enum qm_slot_state state; /* under the stream's lock */
};

/* A worker's own. */
struct qm_stream_worker {
    struct qm_codec *codec;
    struct qm_digest *digest;
    unsigned char *bounce;            /* to copy what could not be shared */
    QM_VEC(struct qm_map_span) spans; /* salvage: of the chunk that it reads */
};

struct qm_stream {
    /* set at new */
    struct qm_stream_config cfg;
    uint64_t size;
    struct qm_map *map;
    struct qm_pool *pool;
    struct qm_stream_worker *workers;
    unsigned threads;
    struct qm_route **routes; /* of each layer; NULL: nothing is shared */
    struct qm_slot *slots;
    size_t n_slots;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    /* the calling thread's */
    size_t head, tail;       /* slots taken next, and filled next */
    size_t filled;           /* from head on, not taken yet */
    uint64_t pos;            /* guest bytes given to slots */
    uint64_t given;          /* and to the caller */
    struct qm_map_span span; /* what of the map is not given yet; len 0: nothing */
    bool stopped;
};

struct qm_stream_item {
    struct qm_slot *slot;
};

bool qm_stream_reads_zero(const struct qm_stream *s, const struct qm_map_span *span);

/* How much of the span can be shared, whatever becomes of it; *out_head: bytes in front of that.  0: nothing. */
uint64_t qm_stream_shareable(const struct qm_stream *s, const struct qm_map_span *span,
                             uint64_t *out_head);

void qm_stream_set_state(struct qm_stream *s, struct qm_slot *slot, enum qm_slot_state state);

/* The pool's function: what the slot's state says is done, for its chunk. */
int qm_stream_work(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
    QM_CHECK;

#endif
