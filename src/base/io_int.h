/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_int.h - between the halves of io.h (io.c, io_open.c, io_names.c, window.c, share.c) and shadow.c: what is not for
 * others, and the seam for tests as all of them use it.  Nobody else includes it.
 */
#ifndef QM_IO_INT_H
#define QM_IO_INT_H

#include "io.h"
#include "remote.h"

/* Reads up to len bytes of the real file; *out_got < len only at its end. */
int qm_io_read_some(const struct qm_file *f, uint64_t off, void *buf, size_t len, size_t *out_got,
                    struct qmeld_error *err) QM_CHECK;

/* Something was written in front of end.  Many threads may write behind the file's end at once; its size only
 * grows here. */
void qm_io_note_end(struct qm_file *f, uint64_t end);

/* Syncs are to be waited for. */
bool qm_io_waits_for_disks(void);

/* One piece of it, from a descriptor or from what is behind a server: as pread and pwrite. */
ssize_t qm_io_raw_read(const struct qm_file *f, uint64_t off, void *buf, size_t len);
ssize_t qm_io_raw_write(const struct qm_file *f, uint64_t off, const void *buf, size_t len);

/* ---- the seam ---- */

#ifdef QM_TESTING
/* Before each change: 0, or -1 with errno: it must not happen. */
int qm_io_announce(const struct qm_io_event *ev);

/* Somebody is told of changes. */
bool qm_io_is_watched(void);

/* The system calls, as far as the call hook lets them come. */
ssize_t qm_io_call_read(const struct qm_file *f, uint64_t off, void *buf, size_t len);
ssize_t qm_io_call_write(const struct qm_file *f, uint64_t off, const void *buf, size_t len);

#define QM_ANNOUNCE(...) qm_io_announce(&(struct qm_io_event){__VA_ARGS__})
#else
#define QM_ANNOUNCE(...)                   0
#define qm_io_always_map                   false
#define qm_io_call_read(f, off, buf, len)  qm_io_raw_read(f, off, buf, len)
#define qm_io_call_write(f, off, buf, len) qm_io_raw_write(f, off, buf, len)
#endif

#endif
