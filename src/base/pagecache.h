/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * pagecache.h - leave the page cache as it was found.
 *
 * Why.  A merge reads and writes many times more than the machine's memory, once.  Left to itself it fills the page
 * cache with what nobody asks for again, and drives out what others have there; and dirty pages pile up until the
 * sync at the end of a batch has to write them all.  So what we read ourselves is forgotten again, what we
 * wrote is written back along the way and forgotten then, and what was there before stays.
 *
 * Threads    qm_cache_look needs a window of its own; everything else may be called from many threads.
 * Units      Bytes.  Parts are bits: a range is 64 parts, the lowest bit is its beginning.
 */
#ifndef QM_PAGECACHE_H
#define QM_PAGECACHE_H

#include "io.h"

/* All of it stays. */
#define QM_CACHE_ALL UINT64_MAX

/* Which parts of [off, + len) are in the page cache now, as a whole or not; what cannot be known counts as there.
 * The window is of this file. */
uint64_t qm_cache_look(struct qm_window *w, uint64_t off, uint64_t len);

/* ---- behind a writer ---- */

struct qm_behind;

int qm_behind_new(struct qm_file *file, struct qm_behind **out, struct qmeld_error *err) QM_CHECK;
void qm_behind_free(struct qm_behind *b); /* NULL is fine */

/* [off, + len) has been written, and `there` says what of it was in the cache before.  It begins to reach the disk;
 * what was told QM_BEHIND_BYTES ago is waited for.  An error of the disk is told here and nowhere else: the kernel
 * tells it once (Linux, fs/sync.c, file_fdatawait_range), so it is final. */
int qm_behind_wrote(struct qm_behind *b, uint64_t off, uint64_t len, uint64_t there,
                    struct qmeld_error *err) QM_CHECK;

/* [off, + len) of another file has been read; it outlives the next call of synced. */
void qm_behind_read(struct qm_behind *b, const struct qm_file *file, uint64_t off, uint64_t len,
                    uint64_t there);

/* All that was told is durable by now, and nobody has it mapped: it is forgotten.  One thread, when nobody else
 * tells anything. */
void qm_behind_synced(struct qm_behind *b);

#define QM_BEHIND_BYTES (64ull << 20)

#ifdef QM_TESTING
extern uint64_t qm_behind_bytes; /* 0: as above */
#endif

#endif
