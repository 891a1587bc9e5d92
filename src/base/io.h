/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io.h - the only door to image files.
 *
 * Why.  Every read, write, hole, truncation and sync of an image goes through here, in full
 * length, with errors that name the file and the offset.  So there is one place where short
 * writes are finished, where faults can be injected, and where a recorder can write down what
 * a merge does to a disk, so that tests can replay any prefix of it.
 *
 * Calls      qm_file_open, then reads; qm_file_make_writable before the first write;
 *            qm_file_finish after the last (checked), or qm_file_close (read-only, after an
 *            error, or if the last thing was a qm_sync, which has told all there is to tell).
 * Threads    qm_pread, qm_pread_padded, qm_pwrite, qm_zero (without grow), qm_writeback and the
 *            windows, each its own, may be used from many threads on one file.  Everything else
 *            belongs to one thread at a time.
 * Ownership  A file owns its descriptors and its copy of the path.
 * Units      Bytes; offsets are offsets in the file.
 * Dry runs   In a dry run (shadow.h) the same calls change memory only.
 * Errors     0, or -1 with *err filled: IO, NOSPACE, NOMEM, STALE.
 */
#ifndef QM_IO_H
#define QM_IO_H

#include "addr.h"
#include "cleanup.h"
#include "err.h"

#include <stddef.h>
#include <sys/types.h>
#include <time.h>

struct qm_shadow_file;
struct qm_remote;

struct qm_file {
    /* set at open */
    char *path;
    int fd;        /* read-only; image locks hang on it (lock.h), so it stays open; -1: remote */
    int wfd;       /* -1 until qm_file_make_writable; remote: always */
    bool blockdev; /* a block device, or what is like one: its size is fixed */
    dev_t dev;     /* identity: of the file, or of the device node's device */
    ino_t ino;
    struct qm_remote *remote;      /* not NULL: it is behind a server (remote.h) */
    bool no_map;                   /* reading through a mapping would change the file */
    struct qm_shadow_file *shadow; /* not NULL: changes happen in memory only (shadow.h) */
    /* one thread */
    unsigned held; /* lock.c only: the image lock bytes we hold; they end with fd */
    /* any thread */
    _Atomic uint64_t size; /* length of the file or device as last seen or set by us */
};

/* Opens a regular file, a block device, or the export of an NBD server (nbd_name.h says which paths are
 * names of those) for reading.  Anything else is refused (IO). */
int qm_file_open(const char *path, struct qm_file **out, struct qmeld_error *err) QM_CHECK;

/* Opens for reading and writing, and makes a new, empty file where there is none.  What
 * is there stays as it is, so that it can be locked before it is truncated. */
int qm_file_create(const char *path, struct qm_file **out, struct qmeld_error *err) QM_CHECK;

/* Makes a file with these permission bits and opens it likewise; where there is something already, be it a
 * symbolic link that leads nowhere: IO. */
int qm_file_create_new(const char *path, unsigned mode, struct qm_file **out,
                       struct qmeld_error *err) QM_CHECK;

/* Opens the same file for writing beside the first descriptor.  STALE if the path
 * now leads to another file.  Does nothing if it is writable already.  USAGE: a device or an export that is read-only, or
 * an export whose server cannot flush, so that nothing could be said to be durable. */
int qm_file_make_writable(struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* Looks at the file's length again (a virtual machine may have grown it). */
int qm_file_refresh(struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* Closes and frees; for files that were only read, and after errors.  NULL is fine. */
void qm_file_close(struct qm_file *file);

/* Closes and frees, and reports what close reports.  Sync first. */
int qm_file_finish(struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* True if both are the same file, device or export. */
bool qm_file_same(const struct qm_file *a, const struct qm_file *b);

/* True if path leads to it now. */
bool qm_file_is_at(const struct qm_file *file, const char *path);

/* True if both paths lead to one file, device or export; where nothing is at one of them, if they are the same words,
 * relative paths made absolute. */
bool qm_path_same(const char *a, const char *b);

/* path made absolute, symbolic links kept; the name of an export in the spelling that stands for all.  malloc'd, NULL
 * if that cannot be. */
char *qm_absolute_path(const char *path);

/* There is a descriptor: it can be mapped, locked, shared, asked for blocks and for room. */
static inline bool
qm_file_is_local(const struct qm_file *file)
{
    return !file->remote;
}

/* The block device at path belongs to the kernel: it, or a part of it, is mounted, swap, or makes up another device.  Also
 * if it cannot be asked. */
bool qm_device_is_claimed(const char *path);

/* What it is, where its fixed size is spoken of: "block device", "NBD export". */
const char *qm_file_kind(const struct qm_file *file);

/* NOSPACE: a file of fixed size has less than size bytes.  Returns -1. */
int qm_file_too_small(const struct qm_file *file, uint64_t size, struct qmeld_error *err);

/* Bytes of disk the file takes now; for a block device its size. */
int qm_file_allocated(struct qm_file *file, uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* Bytes that the file's file system, and the quotas there, still have for us. */
int qm_file_room(const struct qm_file *file, uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* Reads exactly len bytes.  The end of the file inside the range is IO. */
int qm_pread(const struct qm_file *file, uint64_t off, void *buf, size_t len,
             struct qmeld_error *err) QM_CHECK;

/* The same; bytes past the end of the file read as zeros (QEMU reads images so). */
int qm_pread_padded(const struct qm_file *file, uint64_t off, void *buf, size_t len,
                    struct qmeld_error *err) QM_CHECK;

/* Writes exactly len bytes. */
int qm_pwrite(struct qm_file *file, uint64_t off, const void *buf, size_t len,
              struct qmeld_error *err) QM_CHECK;

/* Makes [off, off + len) read as zeros: a hole where the file system can, written zeros
 * otherwise; beyond the end of a regular file nothing, except that the file gets at least
 * off + len long if grow is true. */
int qm_zero(struct qm_file *file, uint64_t off, uint64_t len, bool grow, struct qmeld_error *err)
    QM_CHECK;

/* Gives the space of [off, off + len) back if the file system can; what the range reads
 * as afterwards is not defined.  For space that nothing refers to. */
int qm_discard(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err) QM_CHECK;

/* Sets the length of a regular file.  A block device: nothing, or NOSPACE if it is smaller. */
int qm_truncate(struct qm_file *file, uint64_t size, struct qmeld_error *err) QM_CHECK;

/* Takes disk space for [off, off + len), which keeps what it reads as; the file does not get
 * longer.  *out_done false: the file system cannot. */
int qm_reserve(struct qm_file *file, uint64_t off, uint64_t len, bool *out_done,
               struct qmeld_error *err) QM_CHECK;

/* fdatasync, or NBD_CMD_FLUSH: all writes so far, and the length, are durable. */
int qm_sync(struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* Asks the kernel to read [off, off + len) ahead now.  Only a hint. */
void qm_prefetch(const struct qm_file *file, uint64_t off, uint64_t len);

/* Asks the kernel to forget its copy of [off, off + len), so that the next read asks the disk; len 0: up to
 * the end.  It does so for what is durable and nobody has mapped; a file system in memory has no
 * other place to read from. */
void qm_drop_cache(const struct qm_file *file, uint64_t off, uint64_t len);

/* Asks the kernel to start writing [off, off + len) back now.  Only a hint. */
void qm_writeback(struct qm_file *file, uint64_t off, uint64_t len);

/* Removes a file's name and makes that durable. */
int qm_unlink(const char *path, struct qmeld_error *err) QM_CHECK;

/* Gives a file another name in its directory and makes that durable.  USAGE: the name is taken;
 * what has it is never replaced. */
int qm_rename(const char *path, const char *to, struct qmeld_error *err) QM_CHECK;

/* The same, and what has the name is replaced: at every instant the old file or the new one has it. */
int qm_replace(const char *path, const char *to, struct qmeld_error *err) QM_CHECK;
/* Gives a file one more name, in the same file system; not durable by itself.  That it has the name already is
 * no failure; USAGE: another file has.  Links are not followed. */
int qm_link(const char *path, const char *to, struct qmeld_error *err) QM_CHECK;

/* Can it?  The name is made and removed again; err->disk is OPEN if only the former could be done. */
int qm_link_possible(const char *path, const char *to, struct qmeld_error *err) QM_CHECK;

/* May names be changed in the directory that holds path? */
int qm_names_may_change(const char *path, struct qmeld_error *err) QM_CHECK;

/* The directory that holds path: "." where no slash says another; malloc'd, NULL: no memory. */
char *qm_dir_of(const char *path);

/* fsync of the directory that holds path. */
int qm_sync_dir_of(const char *path, struct qmeld_error *err) QM_CHECK;

/* What [off, ...) is, up to *out_len bytes further: data or a hole (SEEK_DATA / SEEK_HOLE; a
 * file system that has neither, and a block device, is all data).  off < file->size.
 * *out_len is at least 1 and ends within the file. */
int qm_data_or_hole(const struct qm_file *file, uint64_t off, bool *out_data, uint64_t *out_len,
                    struct qmeld_error *err) QM_CHECK;

/* ---- windows: reading through mmap ---- */

/* A bounded read-only mapping of one file, moved along as it is used. */
struct qm_window {
    const struct qm_file *file; /* borrowed; must outlive the window */
    unsigned char *base;        /* NULL: nothing mapped yet */
    uint64_t off;
    uint64_t len;
    uint64_t max_len; /* how much to map at once */
};

void qm_window_init(struct qm_window *w, const struct qm_file *file, uint64_t max_len);
void qm_window_release(struct qm_window *w);

/* Writes [off, off + len) of the window's file to `to` at to_off, straight from the mapping; the
 * range must lie inside the file as last seen.  Only system calls touch the mapping: where the
 * source has shrunk or its device fails, the kernel says EFAULT, and that becomes
 * IO with the source's name and offset.  No SIGBUS is ever raised, so the library
 * needs no signal handler. */
int qm_window_write(struct qm_window *w, uint64_t off, struct qm_file *to, uint64_t to_off,
                    uint64_t len, struct qmeld_error *err) QM_CHECK;

/* The window is moved so that it has the byte at off, which the file has.  False: it cannot be. */
bool qm_window_covers(struct qm_window *w, uint64_t off);

/* ---- test builds only ---- */

/* What can happen to a disk. */
enum qm_io_op {
    QM_IO_WRITE,
    QM_IO_ZERO,
    QM_IO_DISCARD,
    QM_IO_TRUNCATE,
    QM_IO_SYNC,
    QM_IO_UNLINK,
    QM_IO_RENAME,
    QM_IO_LINK,
    QM_IO_ATTRS /* owner, mode, ...: not what the file holds */
};

#ifdef QM_TESTING
struct qm_io_event {
    enum qm_io_op op;
    const char *path;
    uint64_t off;
    uint64_t len;
    const void *buf; /* QM_IO_WRITE only */
    const char *
        from; /* QM_IO_WRITE of bytes that this file shares, or the file system copies; else NULL */
    const char *to; /* QM_IO_RENAME and LINK */
};

/* Called before each change; a result other than 0 is the errno the change fails with, undone.
 * With threads, calls are serialised. */
typedef int qm_io_hook(const struct qm_io_event *event, void *opaque);
void qm_io_set_hook(qm_io_hook *hook, void *opaque);

/* Files are mapped also where that would cost space (no_map): tests live in memory. */
extern bool qm_io_always_map;

/* One system call; a long read or write may take several. */
enum qm_io_call {
    QM_IO_CALL_READ,
    QM_IO_CALL_WRITE,
    QM_IO_CALL_WINDOW, /* a read through a mapping, by the write that it is for */
    QM_IO_CALL_WAIT    /* for what was written to reach the disk, while more is written */
};

/* Called before each; how many of the len bytes it may do, at least 1, or a negative errno.
 * Serialised, too. */
typedef ssize_t qm_io_call_hook(enum qm_io_call call, const char *path, uint64_t off, size_t len,
                                void *opaque);
void qm_io_set_call_hook(qm_io_call_hook *hook, void *opaque);

/* What the hook says; io.c and window.c ask it. */
ssize_t qm_io_ask(enum qm_io_call call, const char *path, uint64_t off, size_t len);
#endif

#endif
