/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "io.h"

#include "io_int.h"
#include "shadow.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Zeros are written from here where a file system cannot make holes. */
#define ZERO_CHUNK (64u << 10)
static const unsigned char zeros[ZERO_CHUNK];

/* ---- the seam for tests ---- */

#ifdef QM_TESTING
static pthread_mutex_t hook_lock = PTHREAD_MUTEX_INITIALIZER;
static qm_io_hook *hook_fn;
static void *hook_opaque;
static qm_io_call_hook *call_fn;
static void *call_opaque;
bool qm_io_always_map;

void
qm_io_set_hook(qm_io_hook *hook, void *opaque)
{
    pthread_mutex_lock(&hook_lock);
    hook_fn = hook;
    hook_opaque = opaque;
    pthread_mutex_unlock(&hook_lock);
}

/* 0, or -1 with errno: the change must not happen */
static int
announce_event(const struct qm_io_event *ev)
{
    int e = 0;

    pthread_mutex_lock(&hook_lock);
    if (hook_fn)
        e = hook_fn(ev, hook_opaque);
    pthread_mutex_unlock(&hook_lock);
    errno = e;
    return e ? -1 : 0;
}

static int
announce(enum qm_io_op op, const char *path, uint64_t off, uint64_t len, const void *buf)
{
    return announce_event(
        &(struct qm_io_event){.op = op, .path = path, .off = off, .len = len, .buf = buf});
}

static int
announce_rename(const char *path, const char *to)
{
    return announce_event(&(struct qm_io_event){.op = QM_IO_RENAME, .path = path, .to = to});
}

void
qm_io_set_call_hook(qm_io_call_hook *hook, void *opaque)
{
    pthread_mutex_lock(&hook_lock);
    call_fn = hook;
    call_opaque = opaque;
    pthread_mutex_unlock(&hook_lock);
}

ssize_t
qm_io_ask(enum qm_io_call call, const char *path, uint64_t off, size_t len)
{
    ssize_t n = (ssize_t)len;

    pthread_mutex_lock(&hook_lock);
    if (call_fn)
        n = call_fn(call, path, off, len, call_opaque);
    pthread_mutex_unlock(&hook_lock);
    return n;
}

static ssize_t
call_read(const struct qm_file *f, uint64_t off, void *buf, size_t len)
{
    const ssize_t n = qm_io_ask(QM_IO_CALL_READ, f->path, off, len);

    if (n >= 0)
        return pread(f->fd, buf, (size_t)n, (off_t)off);
    errno = (int)-n;
    return -1;
}

static ssize_t
call_write(const struct qm_file *f, uint64_t off, const void *buf, size_t len)
{
    const ssize_t n = qm_io_ask(QM_IO_CALL_WRITE, f->path, off, len);

    if (n >= 0)
        return pwrite(f->wfd, buf, (size_t)n, (off_t)off);
    errno = (int)-n;
    return -1;
}
#define ANNOUNCE(op, path, off, len, buf) announce(op, path, off, len, buf)
#define ANNOUNCE_RENAME(path, to)         announce_rename(path, to)
#else
#define ANNOUNCE(op, path, off, len, buf) 0
#define ANNOUNCE_RENAME(path, to)         0
#define qm_io_always_map                  false
#define call_read(f, off, buf, len)       pread((f)->fd, buf, len, (off_t)(off))
#define call_write(f, off, buf, len)      pwrite((f)->wfd, buf, len, (off_t)(off))
#endif

/* ---- open and close ---- */

static int
identify(struct qm_file *f, struct qmeld_error *err)
{
    struct statfs fs;
    struct stat st;
    uint64_t size;

    if (fstat(f->fd, &st) < 0)
        return qm_fail_sys(err, qm_in(f->path), "cannot stat");
    if (S_ISREG(st.st_mode)) {
        f->no_map = !qm_io_always_map && fstatfs(f->fd, &fs) == 0 && fs.f_type == TMPFS_MAGIC;
        f->dev = st.st_dev;
        f->ino = st.st_ino;
        f->size = (uint64_t)st.st_size;
        return 0;
    }
    if (!S_ISBLK(st.st_mode))
        return qm_fail(err, QMELD_USAGE, qm_in(f->path),
                       "neither a regular file nor a block device: name an image file");
    if (ioctl(f->fd, BLKGETSIZE64, &size) < 0)
        return qm_fail_sys(err, qm_in(f->path), "cannot find the size of the block device");
    f->blockdev = true;
    f->dev = st.st_rdev;
    f->ino = 0;
    f->size = size;
    return 0;
}

/* In a dry run: nothing is opened for writing, nothing made. */
static int
open_shadow(struct qm_shadow *s, struct qm_file *f, int flags, struct qmeld_error *err)
{
    const bool gone = qm_shadow_is_gone(s, f->path), made = qm_shadow_is_made(s, f->path);

    if (!gone && !made) {
        f->fd = open(f->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
        if (f->fd >= 0 && !(flags & O_EXCL))
            return identify(f, err) < 0 ? -1 : qm_shadow_attach(s, f, err);
        if (f->fd >= 0 || errno != ENOENT || !(flags & O_CREAT)) {
            errno = f->fd >= 0 ? EEXIST : errno;
            return qm_fail_sys(err, qm_in(f->path), "cannot open");
        }
    }
    errno = made ? EEXIST : ENOENT;
    if (made ? flags & O_EXCL : !(flags & O_CREAT))
        return qm_fail_sys(err, qm_in(f->path), "cannot open");
    return qm_shadow_make(s, f, err);
}

static int
open_real(struct qm_file *f, int flags, unsigned mode, struct qmeld_error *err)
{
    /* O_NONBLOCK: a FIFO or a device that waits must not hang us; no effect on images */
    f->fd = open(f->path, flags | O_CLOEXEC | O_NONBLOCK, mode);
    return f->fd < 0 ? qm_fail_sys(err, qm_in(f->path), "cannot open") : identify(f, err);
}

static int
open_with(const char *path, int flags, unsigned mode, struct qm_file **out, struct qmeld_error *err)
{
    struct qm_file *f = calloc(1, sizeof *f);
    struct qm_shadow *dry = qm_shadow_now();

    *out = NULL;
    if (!f || !(f->path = strdup(path))) {
        free(f);
        return qm_fail_nomem(err, "an open file");
    }
    f->fd = f->wfd = -1;
    if ((dry ? open_shadow(dry, f, flags, err) : open_real(f, flags, mode, err)) < 0) {
        qm_file_close(f);
        return -1;
    }
    *out = f;
    return 0;
}

int
qm_file_open(const char *path, struct qm_file **out, struct qmeld_error *err)
{
    return open_with(path, O_RDONLY, 0, out, err);
}

static int
create_with(const char *path, int flags, unsigned mode, struct qm_file **out,
            struct qmeld_error *err)
{
    struct qm_file *f;

    if (open_with(path, O_RDWR | O_CREAT | flags, mode, &f, err) < 0) {
        *out = NULL;
        return -1;
    }
    f->wfd = f->shadow ? -1 : f->fd;
    *out = f;
    return 0;
}

int
qm_file_create(const char *path, struct qm_file **out, struct qmeld_error *err)
{
    return create_with(path, 0, 0666, out, err);
}

int
qm_file_create_new(const char *path, unsigned mode, struct qm_file **out, struct qmeld_error *err)
{
    return create_with(path, O_EXCL | O_NOFOLLOW, mode, out, err);
}

int
qm_file_make_writable(struct qm_file *file, struct qmeld_error *err)
{
    struct stat st;
    dev_t dev;
    int fd;

    if (file->wfd >= 0)
        return 0;
    if (file->shadow) {
        qm_shadow_check_access(file);
        return 0;
    }
    fd = open(file->path, O_RDWR | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot open for writing");
    if (fstat(fd, &st) < 0) {
        close(fd);
        return qm_fail_sys(err, qm_in(file->path), "cannot stat");
    }
    dev = S_ISBLK(st.st_mode) ? st.st_rdev : st.st_dev;
    if (dev != file->dev || (!file->blockdev && st.st_ino != file->ino)) {
        close(fd);
        return qm_fail(err, QMELD_STALE, qm_in(file->path),
                       "the path leads to another file than a moment ago: run the command again");
    }
    file->wfd = fd;
    return 0;
}

int
qm_file_refresh(struct qm_file *file, struct qmeld_error *err)
{
    if (file->shadow && qm_shadow_is_changed(file))
        return 0;
    return identify(file, err);
}

void
qm_file_close(struct qm_file *file)
{
    if (!file)
        return;
    if (file->shadow)
        qm_shadow_detach(file);
    if (file->wfd >= 0 && file->wfd != file->fd)
        close(file->wfd);
    if (file->fd >= 0)
        close(file->fd);
    free(file->path);
    free(file);
}

int
qm_file_finish(struct qm_file *file, struct qmeld_error *err)
{
    int rc = 0;

    if (file->wfd >= 0 && close(file->wfd) < 0)
        rc = qm_fail_sys(err, qm_in(file->path), "cannot close");
    if (file->wfd == file->fd && !file->shadow)
        file->fd = -1;
    file->wfd = -1;
    qm_file_close(file);
    return rc;
}

bool
qm_file_same(const struct qm_file *a, const struct qm_file *b)
{
    return a->dev == b->dev && a->ino == b->ino && a->blockdev == b->blockdev;
}

int
qm_file_allocated(struct qm_file *file, uint64_t *out, struct qmeld_error *err)
{
    struct stat st;

    if (file->blockdev) {
        *out = file->size;
        return 0;
    }
    if (file->shadow) {
        *out = qm_shadow_allocated(file);
        return 0;
    }
    if (fstat(file->fd, &st) < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot stat");
    *out = (uint64_t)st.st_blocks * 512;
    return 0;
}

int
qm_file_room(const struct qm_file *file, uint64_t *out, struct qmeld_error *err)
{
    struct qm_room rooms[QM_ROOM_KINDS];
    size_t n;

    if (file->shadow) {
        *out = qm_shadow_room(file);
        return 0;
    }
    if (qm_room_find(file->fd, file->path, rooms, &n, err) < 0)
        return -1;
    *out = UINT64_MAX;
    for (size_t i = 0; i < n; i++)
        *out = qm_min(*out, rooms[i].bytes);
    return 0;
}

/* ---- reading and writing ---- */

int
qm_io_read_some(const struct qm_file *f, uint64_t off, void *buf, size_t len, size_t *out_got,
                struct qmeld_error *err)
{
    size_t got = 0;

    while (f->fd >= 0 && got < len) {
        ssize_t n = call_read(f, off + got, (char *)buf + got, len - got);

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return qm_fail_sys(err, qm_at(f->path, off + got), "cannot read at offset %" PRIu64,
                               off + got);
        if (n == 0)
            break;
        got += (size_t)n;
    }
    *out_got = got;
    return 0;
}

static int
read_some(const struct qm_file *f, uint64_t off, void *buf, size_t len, size_t *out_got,
          struct qmeld_error *err)
{
    return f->shadow ? qm_shadow_read(f, off, buf, len, out_got, err)
                     : qm_io_read_some(f, off, buf, len, out_got, err);
}

int
qm_pread(const struct qm_file *file, uint64_t off, void *buf, size_t len, struct qmeld_error *err)
{
    size_t got;

    if (!qm_inside(off, len, QM_MAX_OFF))
        return qm_fail(err, QMELD_CORRUPT, qm_at(file->path, off),
                       "offset %" PRIu64 " is beyond what a file can have", off);
    if (read_some(file, off, buf, len, &got, err) < 0)
        return -1;
    if (got < len)
        return qm_fail(err, QMELD_IO, qm_at(file->path, off + got),
                       "the file ends at offset %" PRIu64 ", inside a structure: it is truncated",
                       off + got);
    return 0;
}

int
qm_pread_padded(const struct qm_file *file, uint64_t off, void *buf, size_t len,
                struct qmeld_error *err)
{
    size_t got = 0;

    if (off < QM_MAX_OFF &&
        read_some(file, off, buf, (size_t)qm_min(len, QM_MAX_OFF - off), &got, err) < 0)
        return -1;
    memset((char *)buf + got, 0, len - got);
    return 0;
}

/* Many threads may write behind the end at once; the size only grows here. */
static void
note_end(struct qm_file *f, uint64_t end)
{
    uint64_t size = atomic_load(&f->size);

    while (end > size && !atomic_compare_exchange_weak(&f->size, &size, end))
        ;
}

int
qm_pwrite(struct qm_file *file, uint64_t off, const void *buf, size_t len, struct qmeld_error *err)
{
    size_t done = 0;

    if (!qm_inside(off, len, QM_MAX_OFF))
        return qm_fail(err, QMELD_NOSPACE, qm_at(file->path, off),
                       "offset %" PRIu64 " is beyond what a file can have", off);
    if (file->shadow)
        return qm_shadow_write(file, off, buf, len, err);
    assert(!qm_shadow_now());
    if (ANNOUNCE(QM_IO_WRITE, file->path, off, len, buf) < 0)
        return qm_fail_sys(err, qm_at(file->path, off), "cannot write at offset %" PRIu64, off);
    while (done < len) {
        ssize_t n = call_write(file, off + done, (const char *)buf + done, len - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = EIO; /* POSIX does not allow it; a loop would not end */
        if (n <= 0)
            return qm_fail_sys(err, qm_at(file->path, off + done),
                               "cannot write at offset %" PRIu64, off + done);
        done += (size_t)n;
    }
    note_end(file, off + len);
    return 0;
}

static int
write_zeros(struct qm_file *f, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    while (len > 0) {
        const size_t n = (size_t)qm_min(len, ZERO_CHUNK - off % ZERO_CHUNK);

        if (qm_pwrite(f, off, zeros, n, err) < 0)
            return -1;
        off += n;
        len -= n;
    }
    return 0;
}

/* 1: done, 0: the file system cannot, -1: error */
static int
punch(struct qm_file *f, enum qm_io_op op, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    (void)op; /* said to the test hook only */
    if (ANNOUNCE(op, f->path, off, len, NULL) < 0)
        return qm_fail_sys(err, qm_at(f->path, off), "cannot make a hole at offset %" PRIu64, off);
    for (;;) {
        if (fallocate(f->wfd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) ==
            0)
            return 1;
        if (errno == EINTR)
            continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL || errno == ENODEV)
            return 0;
        return qm_fail_sys(err, qm_at(f->path, off), "cannot make a hole at offset %" PRIu64, off);
    }
}

int
qm_zero(struct qm_file *file, uint64_t off, uint64_t len, bool grow, struct qmeld_error *err)
{
    uint64_t end;
    int rc = 1;

    if (!qm_add(off, len, &end) || end > QM_MAX_OFF)
        return qm_fail(err, QMELD_NOSPACE, qm_at(file->path, off),
                       "offset %" PRIu64 " is beyond what a file can have", off);
    if (len == 0)
        return 0;
    if (file->shadow && qm_shadow_zero(file, off, len, err) < 0)
        return -1;
    if (off < file->size && !file->shadow) {
        const uint64_t n = qm_min(len, file->size - off);

        rc = punch(file, QM_IO_ZERO, off, n, err);
        if (rc < 0 || (rc == 0 && write_zeros(file, off, n, err) < 0))
            return -1;
    }
    if (end > file->size && grow)
        return qm_truncate(file, end, err);
    return 0;
}

int
qm_discard(struct qm_file *file, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    if (off >= file->size || len == 0)
        return 0;
    if (file->shadow)
        return qm_shadow_discard(file, off, len, err);
    return punch(file, QM_IO_DISCARD, off, qm_min(len, file->size - off), err) < 0 ? -1 : 0;
}

/* Those that never can are known. */
static bool
may_clone(const struct qm_file *from)
{
    struct statfs fs;

    return !from->blockdev && (fstatfs(from->fd, &fs) < 0 ||
                               (fs.f_type != EXT4_SUPER_MAGIC && fs.f_type != TMPFS_MAGIC));
}

int
qm_clone(struct qm_file *to, const struct qm_file *from, bool *out_done, struct qmeld_error *err)
{
    *out_done = false;
    if (to->shadow) {
        if (may_clone(from))
            qm_shadow_may_share(to);
        return 0;
    }
    if (from->blockdev || ioctl(to->wfd, FICLONE, from->fd) < 0)
        return 0; /* whatever the reason, copying says it better */
    *out_done = true;
    return qm_file_refresh(to, err);
}

int
qm_truncate(struct qm_file *file, uint64_t size, struct qmeld_error *err)
{
    int rc;

    if (file->blockdev) {
        if (size <= file->size)
            return 0;
        if (file->shadow) /* how much is too much shall be known in the end */
            return qm_shadow_truncate(file, size, err);
        return qm_fail(err, QMELD_NOSPACE, qm_in(file->path),
                       "the block device has %" PRIu64 " bytes, %" PRIu64
                       " are needed: enlarge it by %" PRIu64,
                       file->size, size, size - file->size);
    }
    if (size > QM_MAX_OFF)
        return qm_fail(err, QMELD_NOSPACE, qm_in(file->path), "%" PRIu64 " bytes is no file size",
                       size);
    if (file->shadow)
        return qm_shadow_truncate(file, size, err);
    assert(!qm_shadow_now());
    if (ANNOUNCE(QM_IO_TRUNCATE, file->path, size, 0, NULL) < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot set the file's length to %" PRIu64,
                           size);
    do
        rc = ftruncate(file->wfd, (off_t)size);
    while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot set the file's length to %" PRIu64,
                           size);
    file->size = size;
    return 0;
}

int
qm_reserve(struct qm_file *file, uint64_t off, uint64_t len, bool *out_done,
           struct qmeld_error *err)
{
    *out_done = false;
    if (file->blockdev || len == 0) {
        *out_done = true;
        return 0;
    }
    if (!qm_inside(off, len, QM_MAX_OFF))
        return qm_fail(err, QMELD_NOSPACE, qm_at(file->path, off),
                       "offset %" PRIu64 " is beyond what a file can have", off);
    if (file->shadow) {
        *out_done = true;
        return qm_shadow_reserve(file, off, len, err);
    }
    for (;;) {
        if (fallocate(file->wfd, FALLOC_FL_KEEP_SIZE, (off_t)off, (off_t)len) == 0) {
            *out_done = true;
            return 0;
        }
        if (errno == EINTR)
            continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL || errno == ENODEV)
            return 0;
        return qm_fail_sys(err, qm_at(file->path, off), "cannot reserve space");
    }
}

/* Most tests ask in which order syncs come, and would wait for their disk in vain. */
static bool
waits_for_disks(void)
{
#ifdef QM_TESTING
    return !getenv("QMELD_TEST_NO_SYNC");
#else
    return true;
#endif
}

int
qm_sync(struct qm_file *file, struct qmeld_error *err)
{
    int rc = -1;

    if (file->shadow)
        return qm_shadow_sync(file, err);
    if (ANNOUNCE(QM_IO_SYNC, file->path, 0, 0, NULL) == 0)
        do
            rc = !waits_for_disks() ? 0
                 : file->wfd >= 0   ? fdatasync(file->wfd)
                                    : fdatasync(file->fd); /* others' writes, then */
        while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot make the file durable (fdatasync)");
    return 0;
}

void
qm_prefetch(const struct qm_file *file, uint64_t off, uint64_t len)
{
    if (file->shadow && qm_shadow_is_changed(file))
        return;
    (void)posix_fadvise(file->fd, (off_t)off, (off_t)len, POSIX_FADV_WILLNEED);
}

void
qm_drop_cache(const struct qm_file *file, uint64_t off, uint64_t len)
{
    /* pages that lie only partly in the range are kept by the kernel: all of them are meant */
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), from = qm_align_down(off, page);
    const uint64_t end = len ? qm_min(qm_align_up(off + len, page), QM_MAX_OFF) : 0;

    (void)posix_fadvise(file->fd, (off_t)from, len ? (off_t)(end - from) : 0, POSIX_FADV_DONTNEED);
}

void
qm_writeback(struct qm_file *file, uint64_t off, uint64_t len)
{
    if (file->shadow)
        return;
    (void)sync_file_range(file->wfd, (off_t)off, (off_t)len, SYNC_FILE_RANGE_WRITE);
}

/* malloc'd */
static char *
dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

int
qm_sync_dir_of(const char *path, struct qmeld_error *err)
{
    QM_FREE char *dir = dir_of(path);
    int fd, rc;

    if (qm_shadow_now())
        return 0;
    if (!dir)
        return qm_fail_nomem(err, "a path");
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return qm_fail_sys(err, qm_in(dir), "cannot open the directory");
    rc = ANNOUNCE(QM_IO_SYNC, dir, 0, 0, NULL);
    if (rc == 0)
        rc = waits_for_disks() ? fsync(fd) : 0;
    if (rc < 0 && (errno == EINVAL || errno == EROFS)) /* no directory syncs on this file system */
        rc = 0;
    if (rc < 0)
        qm_fail_sys(err, qm_in(dir), "cannot make the directory durable");
    close(fd);
    return rc;
}

int
qm_unlink(const char *path, struct qmeld_error *err)
{
    if (qm_shadow_now())
        return qm_shadow_unlink(qm_shadow_now(), path, err);
    if (ANNOUNCE(QM_IO_UNLINK, path, 0, 0, NULL) < 0 || unlink(path) < 0)
        return qm_fail_sys(err, qm_in(path), "cannot remove");
    return qm_sync_dir_of(path, err);
}

/* Where the file system knows no RENAME_NOREPLACE (NFS): the new name is taken first, by an empty file
 * that nobody else can have made, and that is replaced.  Not link and unlink: a crash between the two
 * would leave one file with two names, and whoever then writes to the quarantined one writes to
 * the other; besides, many of these file systems have no links. */
static int
rename_over_our_own(const char *path, const char *to)
{
    const int fd = open(to, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    int e;

    if (fd < 0)
        return -1;
    close(fd);
    if (rename(path, to) == 0)
        return 0;
    e = errno;
    (void)unlink(to);
    errno = e;
    return -1;
}

int
qm_rename(const char *path, const char *to, struct qmeld_error *err)
{
    int rc;

    if (qm_shadow_now())
        return qm_shadow_rename(qm_shadow_now(), path, to, err);
    rc = ANNOUNCE_RENAME(path, to);
    if (rc == 0)
        rc = renameat2(AT_FDCWD, path, AT_FDCWD, to, RENAME_NOREPLACE);
    if (rc < 0 && (errno == EINVAL || errno == ENOSYS))
        rc = rename_over_our_own(path, to);
    if (rc < 0 && errno == EEXIST)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "it cannot be renamed, as there is a %.400s by now: move that away and give "
                       "the same command again",
                       to);
    if (rc < 0)
        return qm_fail_sys(err, qm_in(path), "cannot rename to %.400s", to);
    return qm_sync_dir_of(path, err);
}

int
qm_names_may_change(const char *path, struct qmeld_error *err)
{
    QM_FREE char *dir = dir_of(path);

    if (!dir)
        return qm_fail_nomem(err, "a path");
    if (faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) < 0)
        qm_fail_sys(err, qm_in(path), "its directory cannot be written to");
    else
        return 0;
    if (!qm_shadow_now())
        return -1;
    qm_shadow_note(qm_shadow_now(), err);
    *err = (struct qmeld_error){.disk = err->disk};
    return 0;
}

static int
real_data_or_hole(const struct qm_file *file, uint64_t off, bool *out_data, uint64_t *out_len,
                  struct qmeld_error *err)
{
    off_t next;

    *out_data = true;
    *out_len = file->size - off;
    if (file->blockdev)
        return 0;
    next = lseek(file->fd, (off_t)off, SEEK_DATA);
    if (next < 0 && errno == ENXIO) { /* no data behind off */
        *out_data = false;
        return 0;
    }
    if (next < 0 && (errno == EINVAL || errno == EOPNOTSUPP))
        return 0;
    if (next < 0)
        return qm_fail_sys(err, qm_at(file->path, off), "cannot look for holes");
    if ((uint64_t)next > off) {
        *out_data = false;
        *out_len = qm_min(*out_len, (uint64_t)next - off);
        return 0;
    }
    next = lseek(file->fd, (off_t)off, SEEK_HOLE);
    if (next < 0)
        return qm_fail_sys(err, qm_at(file->path, off), "cannot look for holes");
    if ((uint64_t)next > off)
        *out_len = qm_min(*out_len, (uint64_t)next - off);
    return 0;
}

int
qm_data_or_hole(const struct qm_file *file, uint64_t off, bool *out_data, uint64_t *out_len,
                struct qmeld_error *err)
{
    uint64_t most = UINT64_MAX;
    bool touched = false;

    if (file->shadow && !file->blockdev && qm_shadow_is_changed(file))
        qm_shadow_ask(file, off, &touched, out_data, &most);
    if (touched) {
        *out_len = most;
        return 0;
    }
    if (real_data_or_hole(file, off, out_data, out_len, err) < 0)
        return -1;
    *out_len = qm_min(*out_len, most);
    return 0;
}
