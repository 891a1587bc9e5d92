/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "io_int.h"

#include "shadow.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Zeros are written from here where a file system cannot make holes. */
#define ZERO_CHUNK (64u << 10)
static const unsigned char zeros[ZERO_CHUNK];

ssize_t
qm_io_raw_read(const struct qm_file *f, uint64_t off, void *buf, size_t len)
{
    struct qm_remote *r = f->remote;

    if (!r)
        return pread(f->fd, buf, len, (off_t)off);
    if (off >= r->size)
        return 0;
    len = (size_t)qm_min(len, r->size - off);
    return r->ops->read(r, off, buf, len) < 0 ? -1 : (ssize_t)len;
}

ssize_t
qm_io_raw_write(const struct qm_file *f, uint64_t off, const void *buf, size_t len)
{
    struct qm_remote *r = f->remote;

    if (!r)
        return pwrite(f->wfd, buf, len, (off_t)off);
    if (!qm_inside(off, len, r->size)) {
        errno = ENOSPC; /* as a block device says it */
        return -1;
    }
    return len > 0 && r->ops->write(r, off, buf, len) < 0 ? -1 : (ssize_t)len;
}

int
qm_io_read_some(const struct qm_file *f, uint64_t off, void *buf, size_t len, size_t *out_got,
                struct qmeld_error *err)
{
    size_t got = 0;

    while ((f->fd >= 0 || f->remote) && got < len) {
        ssize_t n = qm_io_call_read(f, off + got, (char *)buf + got, len - got);

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
                       "offset %" PRIu64 " is beyond what a file can have: run `qmeld check` on it",
                       off);
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

void
qm_io_note_end(struct qm_file *f, uint64_t end)
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
    if (QM_ANNOUNCE(.op = QM_IO_WRITE, .path = file->path, .off = off, .len = len, .buf = buf) < 0)
        return qm_fail_sys(err, qm_at(file->path, off), "cannot write at offset %" PRIu64, off);
    while (done < len) {
        ssize_t n = qm_io_call_write(file, off + done, (const char *)buf + done, len - done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n == 0)
            errno = EIO; /* POSIX does not allow it; a loop would not end */
        if (n <= 0)
            return qm_fail_sys(err, qm_at(file->path, off + done),
                               "cannot write at offset %" PRIu64, off + done);
        done += (size_t)n;
    }
    qm_io_note_end(file, off + len);
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

/* What the kernel makes holes in, of a block device; nothing else cares. */
static uint64_t
sector_of(const struct qm_file *f)
{
    int bytes = 0;

    if (!f->blockdev || f->remote || ioctl(f->wfd, BLKSSZGET, &bytes) < 0 || bytes <= 0 ||
        (bytes & (bytes - 1)) != 0)
        return 1;
    return (uint64_t)bytes;
}

/* As fallocate.  Of a block device the kernel makes a hole only where that reads as zeros for certain (Linux, block/fops.c,
 * blkdev_fallocate: BLKDEV_ZERO_NOFALLBACK), and else writes zeros itself, if it is asked to; a discard promises
 * nothing about what is read, and is for what nobody refers to. */
static int
clear(const struct qm_file *f, enum qm_io_op op, uint64_t off, uint64_t len)
{
    const int hole = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
    struct qm_remote *r = f->remote;

    if (r)
        return op == QM_IO_ZERO ? r->ops->zero(r, off, len) : r->ops->discard(r, off, len);
    if (f->blockdev && op == QM_IO_DISCARD) {
        const uint64_t from = qm_align_up(off, sector_of(f));
        const uint64_t end = qm_align_down(off + len, sector_of(f));

        return from < end ? ioctl(f->wfd, BLKDISCARD, (uint64_t[]){from, end - from}) : 0;
    }
    if (fallocate(f->wfd, hole, (off_t)off, (off_t)len) == 0)
        return 0;
    return f->blockdev && errno != EINTR
               ? fallocate(f->wfd, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, (off_t)off,
                           (off_t)len)
               : -1;
}

/* 1: done, 0: the file system cannot, -1: error */
static int
punch(struct qm_file *f, enum qm_io_op op, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    (void)op; /* said to the test hook only */
    if (QM_ANNOUNCE(.op = op, .path = f->path, .off = off, .len = len) < 0)
        return qm_fail_sys(err, qm_at(f->path, off), "cannot make a hole at offset %" PRIu64, off);
    for (;;) {
        if (clear(f, op, off, len) == 0)
            return 1;
        if (errno == EINTR)
            continue;
        if (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL || errno == ENODEV ||
            errno == ENOTTY)
            return 0;
        return qm_fail_sys(err, qm_at(f->path, off), "cannot make a hole at offset %" PRIu64, off);
    }
}

/* The sectors of a device that are covered in part are written; a hole of any length in between costs no writing. */
static int
zero_range(struct qm_file *f, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    const uint64_t sector = sector_of(f), end = off + len;
    const uint64_t from = qm_min(qm_align_up(off, sector), end);
    const uint64_t to = qm_max(qm_align_down(end, sector), from);
    int rc = 1;

    if (write_zeros(f, off, from - off, err) < 0 || write_zeros(f, to, end - to, err) < 0)
        return -1;
    if (from < to)
        rc = punch(f, QM_IO_ZERO, from, to - from, err);
    return rc < 0 || (rc == 0 && write_zeros(f, from, to - from, err) < 0) ? -1 : 0;
}

int
qm_zero(struct qm_file *file, uint64_t off, uint64_t len, bool grow, struct qmeld_error *err)
{
    uint64_t end;

    if (!qm_add(off, len, &end) || end > QM_MAX_OFF)
        return qm_fail(err, QMELD_NOSPACE, qm_at(file->path, off),
                       "offset %" PRIu64 " is beyond what a file can have", off);
    if (len == 0)
        return 0;
    if (file->shadow && qm_shadow_zero(file, off, len, err) < 0)
        return -1;
    if (off < file->size && !file->shadow &&
        zero_range(file, off, qm_min(len, file->size - off), err) < 0)
        return -1;
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

int
qm_truncate(struct qm_file *file, uint64_t size, struct qmeld_error *err)
{
    int rc;

    if (file->blockdev) {
        if (size <= file->size)
            return 0;
        if (file->shadow) /* how much is too much shall be known in the end */
            return qm_shadow_truncate(file, size, err);
        return qm_file_too_small(file, size, err);
    }
    if (size > QM_MAX_OFF)
        return qm_fail(err, QMELD_NOSPACE, qm_in(file->path), "%" PRIu64 " bytes is no file size",
                       size);
    if (file->shadow)
        return qm_shadow_truncate(file, size, err);
    assert(!qm_shadow_now());
    if (QM_ANNOUNCE(.op = QM_IO_TRUNCATE, .path = file->path, .off = size) < 0)
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
bool
qm_io_waits_for_disks(void)
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
    if (QM_ANNOUNCE(.op = QM_IO_SYNC, .path = file->path) == 0)
        do
            rc = !qm_io_waits_for_disks() ? 0
                 : file->remote           ? file->remote->ops->flush(file->remote)
                 : file->wfd >= 0         ? fdatasync(file->wfd)
                                          : fdatasync(file->fd); /* others' writes, then */
        while (rc < 0 && errno == EINTR);
    if (rc < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot make the file durable (%s)",
                           file->remote ? "flush" : "fdatasync");
    return 0;
}

void
qm_prefetch(const struct qm_file *file, uint64_t off, uint64_t len)
{
    if (file->remote || (file->shadow && qm_shadow_is_changed(file)))
        return;
    (void)posix_fadvise(file->fd, (off_t)off, (off_t)len, POSIX_FADV_WILLNEED);
}

void
qm_drop_cache(const struct qm_file *file, uint64_t off, uint64_t len)
{
    /* pages that lie only partly in the range are kept by the kernel: all of them are meant */
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), from = qm_align_down(off, page);
    const uint64_t end = len ? qm_min(qm_align_up(off + len, page), QM_MAX_OFF) : 0;

    if (file->remote)
        return;
    (void)posix_fadvise(file->fd, (off_t)from, len ? (off_t)(end - from) : 0, POSIX_FADV_DONTNEED);
}

void
qm_writeback(struct qm_file *file, uint64_t off, uint64_t len)
{
    if (file->shadow || file->remote)
        return;
    (void)sync_file_range(file->wfd, (off_t)off, (off_t)len, SYNC_FILE_RANGE_WRITE);
}

static int
real_data_or_hole(const struct qm_file *file, uint64_t off, bool *out_data, uint64_t *out_len,
                  struct qmeld_error *err)
{
    off_t next;

    *out_data = true;
    *out_len = file->size - off;
    if (file->remote && file->remote->ops->status(file->remote, off, out_data, out_len) < 0)
        return qm_fail_sys(err, qm_at(file->path, off), "cannot look for holes");
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
