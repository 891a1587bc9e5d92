/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shadow.h - a dry run: files that are changed in memory only.
 *
 * Why.  What a merge will cost is known to whoever does it: the allocator, the journal, the code that
 * empties overlays.  So a plan is the merge itself, run on shadows of the files.  A shadow reads
 * as its file until something is written; what was written is kept (metadata) or only noted (guest data,
 * which nobody reads again), and which blocks the file would have is counted (blocks.h).  No
 * descriptor is opened for writing, so nothing can be written by mistake.
 *
 * Between begin and end every file that this thread opens or makes (io.h) is a shadow, whichever code
 * opens it; that a merge gets new steps needs no change here as long as they use io.h.
 *
 * Calls      qm_shadow_begin; a merge; close all its files; the sums; qm_shadow_end.
 * Threads    The dry run is one thread's; others may read its files while it changes none.
 * Ownership  The dry run owns its shadows, which outlive the files.
 * Memory     At most QM_SHADOW_BYTES: 8 bytes of L2 entry and 2 of refcount stand for a cluster of 64 KiB, so
 *            this is enough for 1.6 TiB of them.  Pages of zeros cost nothing.  Beyond: NOMEM.
 * Errors     0 or -1 with *err: as in io.h.
 */
#ifndef QM_SHADOW_H
#define QM_SHADOW_H

#include "io.h"
#include "room.h"

#define QM_SHADOW_BYTES (256ull << 20)

struct qm_shadow;      /* a dry run */
struct qm_shadow_file; /* what one file would be */

/* notes: the caller wants to know what would stand in the way of the real thing (see below). */
int qm_shadow_begin(bool notes, struct qm_shadow **out, struct qmeld_error *err) QM_CHECK;
void qm_shadow_end(struct qm_shadow *s); /* NULL is fine */

/* The dry run of this thread, or NULL. */
struct qm_shadow *qm_shadow_now(void);

/* ---- what it came to ---- */

/* Where space comes from: a file system, or somebody's quota there. */
struct qm_shadow_purse {
    struct qm_room room; /* as it was when the dry run first came across it */
    const char *path;    /* of a file that is paid from it */
    int64_t change;      /* bytes taken */
    uint64_t peak; /* the most that were taken at any time, in the least lucky order of writes */
    uint64_t sure; /* the most that were taken when something was synced: less will not do */
    uint64_t
        replaced; /* bytes of blocks that shared ones took the place of: free sooner or later */
};

/* A file that was changed or opened. */
struct qm_shadow_sum {
    const char *path;
    dev_t dev;
    ino_t ino;
    bool blockdev;
    bool remote;        /* an NBD export: blockdev, too */
    const char *kind;   /* of a block device, and what is like one (qm_file_kind) */
    bool made;          /* there was none before */
    bool gone;          /* there is none after */
    uint64_t old_size;  /* length */
    uint64_t new_size;  /* of a block device: as far as it would be written, if that is more */
    uint64_t reach;     /* end of the last byte that was written */
    uint64_t old_bytes; /* allocated, as stat tells */
    uint64_t new_bytes;
    uint64_t unseen;   /* of old_bytes: holes to us, so that writing there may cost nothing */
    uint64_t metadata; /* bytes written that are not guest data */
};

/* When all its files are closed: did all of them settle? */
int qm_shadow_finish(struct qm_shadow *s, struct qmeld_error *err) QM_CHECK;

size_t qm_shadow_n_purses(const struct qm_shadow *s);
const struct qm_shadow_purse *qm_shadow_purse(const struct qm_shadow *s, size_t i);

/* Bytes that are needed at a time: the sum of the file systems' peaks. */
uint64_t qm_shadow_peak(const struct qm_shadow *s);
size_t qm_shadow_n_files(const struct qm_shadow *s);
const struct qm_shadow_sum *qm_shadow_sum(const struct qm_shadow *s, size_t i);

/* What would have stood in the way of the real thing, but not of a look: somebody holds a file, or it may not be
 * written.  The first few are kept. */
void qm_shadow_note(struct qm_shadow *s, const struct qmeld_error *obstacle);
/* From here on who asks how much room there is hears: none.  So what takes as much as there is, takes the least. */
void qm_shadow_be_frugal(struct qm_shadow *s);

bool qm_shadow_wants_notes(const struct qm_shadow *s);
size_t qm_shadow_n_notes(const struct qm_shadow *s);
const struct qmeld_error *qm_shadow_notes(const struct qm_shadow *s, size_t i);

/* ---- for who moves guest data ---- */

/* Bytes are written, or become a hole; they are not looked at again. */
int qm_shadow_data(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
    QM_CHECK;
int qm_shadow_hole(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
    QM_CHECK;

/* Bytes are shared with another file (share.h).  What `file` had there is not counted as given back. */
int qm_shadow_share(struct qm_file *file, uint64_t off, const struct qm_file *from,
                    uint64_t from_off, uint64_t len, struct qmeld_error *err) QM_CHECK;

/* ---- for io.c ---- */

/* Makes a file that was opened a shadow. */
int qm_shadow_attach(struct qm_shadow *s, struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* The same for a file without a descriptor: its path is that of a file which the dry run made, or makes now. */
int qm_shadow_make(struct qm_shadow *s, struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* A file that the dry run made, and one that it removed: what the path leads to is no help then. */
bool qm_shadow_is_made(const struct qm_shadow *s, const char *path);
bool qm_shadow_is_gone(const struct qm_shadow *s, const char *path);
void qm_shadow_detach(struct qm_file *file); /* file is being closed */

int qm_shadow_read(const struct qm_file *file, uint64_t off, void *buf, size_t len, size_t *out_got,
                   struct qmeld_error *err) QM_CHECK;
int qm_shadow_write(struct qm_file *file, uint64_t off, const void *buf, size_t len,
                    struct qmeld_error *err) QM_CHECK;
int qm_shadow_zero(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
    QM_CHECK;
int qm_shadow_discard(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
    QM_CHECK;
int qm_shadow_truncate(struct qm_file *file, uint64_t size, struct qmeld_error *err) QM_CHECK;
int qm_shadow_reserve(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
    QM_CHECK;
int qm_shadow_sync(struct qm_file *file, struct qmeld_error *err) QM_CHECK;
int qm_shadow_unlink(struct qm_shadow *s, const char *path, struct qmeld_error *err) QM_CHECK;
int qm_shadow_rename(struct qm_shadow *s, const char *path, const char *to, struct qmeld_error *err)
    QM_CHECK;
int qm_shadow_link(struct qm_shadow *s, const char *path, const char *to, struct qmeld_error *err)
    QM_CHECK;
int qm_shadow_replace(struct qm_shadow *s, const char *path, const char *to,
                      struct qmeld_error *err) QM_CHECK;
void qm_shadow_check_access(struct qm_file *file);
/* As qm_blocks_ask, with what was cut off as holes. */
void qm_shadow_ask(const struct qm_file *file, uint64_t off, bool *out_touched, bool *out_data,
                   uint64_t *out_len);

/* Files of this one's file system may share blocks, so what copying takes there is not known. */
void qm_shadow_may_share(const struct qm_file *file);
bool qm_shadow_is_changed(const struct qm_file *file);
uint64_t qm_shadow_room(const struct qm_file *file);
uint64_t qm_shadow_allocated(const struct qm_file *file);

#endif
