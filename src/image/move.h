/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * move.h - what is wanted of a target, and the byte moves that follow from it.
 *
 * Why.  A merge wants guest ranges of its target to read in a new way.  The target's format
 * decides where the bytes go (in place, into a new cluster, nowhere because a flag says zero).
 * These two structs are the words between the two sides.
 */
#ifndef QM_MOVE_H
#define QM_MOVE_H

#include "image.h"
#include "vec.h"

/* [guest, guest + len) of the target is to read as ext of image from, or as zeros. */
struct qm_want {
    guest_off guest;
    uint64_t len;
    const struct qm_image *from; /* NULL: zeros */
    uint32_t layer;              /* of the chain that `from` is; a name that sorts */
    struct qm_extent ext;        /* DATA or COMPRESSED, exactly these guest bytes */
};

struct qm_wants {
    QM_VEC(struct qm_want) list;
};

enum qm_move_kind {
    QM_MOVE_COPY, /* ext of image from */
    QM_MOVE_ZERO,
    QM_MOVE_OLD, /* what the target's own view (with all below it) had at guest */
};

/* Fill [to, to + len) of the target file. */
struct qm_move {
    enum qm_move_kind kind;
    guest_off guest; /* which guest bytes these are; OLD needs it, others tell it in errors */
    uint64_t len;
    host_off to;
    const struct qm_image *from; /* COPY; OLD once it is known */
    struct qm_extent ext;        /* likewise */
    uint64_t worth; /* COPY: guest bytes that it is in the progress; len, unless it carries
                                  * compressed clusters as they are */
};

struct qm_moves {
    QM_VEC(struct qm_move) list;
};

#endif
