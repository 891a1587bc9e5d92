/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blocks.h - which blocks of its file system a file would have.
 *
 * Why.  What a change costs depends on what the file has already: a hole that is written takes
 * space, data that is overwritten does not, unless it is shared with another file (reflinks).  Here
 * changes are applied to a picture of the file's blocks, and each answers with what it would cost.
 *
 * The picture is the kernel's own (FIEMAP: preallocated blocks are there, and sharing is told; where there
 * is none, SEEK_DATA, which shows preallocated blocks as holes), read piece by piece as it
 * is needed.  Writing takes every block that it touches, a hole frees those that it covers whole, and cutting
 * those behind the end: so do ext4, XFS, btrfs and tmpfs.
 *
 * Threads    One thread.
 * Ownership  Owns its descriptor of the file.
 * Units      Bytes.
 * Errors     0 or -1 with *err: IO, NOMEM.
 */
#ifndef QM_BLOCKS_H
#define QM_BLOCKS_H

#include "addr.h"
#include "err.h"

struct qm_blocks;

struct qm_blocks_change {
    int64_t allocated; /* bytes that the file would have more */
    int64_t space;     /* bytes that its file system would have less: sharing ends, or goes on */
};

/* fd: of the file, which is not changed meanwhile, taken over; -1: there is none yet, it would be new.
 * block: of its file system, a power of two.  path is for errors. */
int qm_blocks_new(int fd, uint64_t block, const char *path, struct qm_blocks **out,
                  struct qmeld_error *err) QM_CHECK;
void qm_blocks_free(struct qm_blocks *b); /* NULL is fine */

/* Each adds to *change. */
int qm_blocks_write(struct qm_blocks *b, uint64_t off, uint64_t len,
                    struct qm_blocks_change *change, struct qmeld_error *err) QM_CHECK;
int qm_blocks_punch(struct qm_blocks *b, uint64_t off, uint64_t len,
                    struct qm_blocks_change *change, struct qmeld_error *err) QM_CHECK;
int qm_blocks_cut(struct qm_blocks *b, uint64_t size, struct qm_blocks_change *change,
                  struct qmeld_error *err) QM_CHECK;

/* [to_off, + len) becomes what [off, + len) of `from` is, and both have those blocks from then on; from may be to, the
 * ranges do not overlap.  All are multiples of the block.  *out_freed: bytes of blocks that were `to`'s alone before;
 * they are not in *change, as when they are free again is the file system's business. */
int qm_blocks_share(struct qm_blocks *to, uint64_t to_off, struct qm_blocks *from, uint64_t off,
                    uint64_t len, struct qm_blocks_change *change, uint64_t *out_freed,
                    struct qmeld_error *err) QM_CHECK;

/* What the block at off is, up to *out_len bytes further.  *out_touched false: nothing was changed there, so
 * *out_has is not set, and the file itself tells. */
void qm_blocks_ask(const struct qm_blocks *b, uint64_t off, bool *out_touched, bool *out_has,
                   uint64_t *out_len);

/* Bytes of the file that were allocated, although the picture has holes there (see SEEK_DATA above). */
uint64_t qm_blocks_unseen(const struct qm_blocks *b);

#endif
