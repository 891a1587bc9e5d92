/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy_int.h - what the two halves of the copy know of each other.
 *
 * Why.  copy.c is the calling thread: it takes moves, joins and cuts them, decides how each goes, and looks ahead.
 * copy_work.c is the workers: bytes of one piece to their place.  Nobody else includes this.
 *
 * Threads    Said beside each member of struct qm_copy.
 */
#ifndef QM_COPY_INT_H
#define QM_COPY_INT_H

#include "copy.h"
#include "pace.h"
#include "pagecache.h"
#include "route.h"
#include "work.h"

#include <stdatomic.h>

#define QM_COPY_WINDOW (16ull << 20) /* mapped at once, per worker */

/* What one worker does at a time. */
struct qm_piece {
    enum qm_piece_kind {
        QM_PIECE_DATA,
        QM_PIECE_SHARE,
        QM_PIECE_COMPRESSED,
        QM_PIECE_ZERO,
        QM_PIECE_VERIFY
    } kind;
    const struct qm_image *from;
    struct qm_route *route; /* DATA, SHARE and COMPRESSED */
    struct qm_extent ext;   /* DATA and SHARE: .host, and .guest if the image is encrypted */
    uint64_t to;
    uint64_t len;
    uint64_t worth; /* guest bytes in the progress */
    bool direct;    /* whole units of direct.h: past the page cache */
    bool cold;      /* read past the page cache, which has nothing of it */
    /* what of it the page cache had before (pagecache.h) */
    uint64_t from_there;
    uint64_t to_there;
};

struct qm_copy_worker {
    struct qm_window window;
    struct qm_codec *codec;
    unsigned char *buf; /* one inflated extent */
    uint64_t buf_len;
    unsigned char *direct_buf; /* piece_bytes; for what is encrypted, too */
};

struct qm_copy {
    /* set at new */
    struct qm_copy_config cfg;
    struct qm_pool *pool;
    unsigned threads;
    uint64_t piece_bytes;
    struct qm_copy_worker *workers; /* each its worker's own */
    struct qm_behind *behind;       /* NULL: nothing is written */
    struct qm_direct *direct;       /* NULL: through the page cache */
    /* the calling thread's */
    struct qm_window from_ahead; /* to look ahead of the workers; nothing is read through them */
    struct qm_window to_ahead;
    struct qm_routes routes;
    QM_VEC(struct qm_piece) later; /* go through the page cache, when nothing goes past it */
    struct qm_piece held;          /* DATA that the next move may continue; len 0: none */
    struct qm_pace pace;
    struct qm_copy_costs costs;
    bool stopped;
    /* any thread's */
    _Atomic bool no_direct; /* it was refused */
    _Atomic uint64_t done;
};

/* The pool's function: one piece. */
int qm_copy_work(void *shared, unsigned worker, const void *item, struct qmeld_error *err) QM_CHECK;

/* Of the piece's bytes those that its file has: QEMU reads what a qcow2 file does not have as zeros; a raw file
 * that lost its end failed. */
uint64_t qm_piece_bytes_inside(const struct qm_piece *p);

/* Its part [skip, skip + len), with its share of the worth. */
struct qm_piece qm_piece_part(const struct qm_piece *p, uint64_t skip, uint64_t len);

/* Encrypted where it comes from or goes to: it is never shared, mapped, or a hole. */
bool qm_piece_is_coded(const struct qm_copy *c, const struct qm_piece *p);

/* Of a target that is encrypted a part of a sector [to, + len): the rest of it stays.  Nobody else is at that sector. */
int qm_piece_patch(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err) QM_CHECK;

/* Can it go past the page cache, as a whole? */
bool qm_piece_is_direct(const struct qm_copy *c, const struct qm_piece *p);

/* *out_done false: not any more, with these two files. */
int qm_piece_share(struct qm_copy *c, const struct qm_piece *p, bool *out_done,
                   struct qmeld_error *err) QM_CHECK;

#endif
