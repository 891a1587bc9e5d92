/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_open.c - the half of io.h that opens files, knows them again, and closes them.
 */
#include "io_int.h"

#include "nbd_name.h"
#include "room.h"
#include "shadow.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

/* dev 0 is no device's. */
static int
identify_remote(struct qm_file *f)
{
    f->blockdev = f->no_map = true;
    f->ino = f->remote->id;
    f->size = f->remote->size;
    return 0;
}

static int
identify(struct qm_file *f, struct qmeld_error *err)
{
    struct statfs fs;
    struct stat st;
    uint64_t size;

    if (f->remote)
        return identify_remote(f);
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

/* There is one or not: none is made. */
static int
open_remote(struct qm_shadow *dry, struct qm_file *f, int flags, struct qmeld_error *err)
{
    if (flags & O_EXCL)
        return qm_fail(err, QMELD_USAGE, qm_in(f->path),
                       "an export cannot be made from here: let its server make it");
    if (qm_nbd_open(f->path, &f->remote, err) < 0 || identify(f, err) < 0)
        return -1;
    return dry ? qm_shadow_attach(dry, f, err) : 0;
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
    if (f->fd < 0 && errno == EPERM && (flags & O_NOATIME)) /* only the owner may ask for that */
        f->fd = open(f->path, (flags & ~O_NOATIME) | O_CLOEXEC | O_NONBLOCK, mode);
    if (f->fd < 0)
        return qm_fail_sys(err, qm_in(f->path), flags & O_CREAT ? "cannot create" : "cannot open");
    return identify(f, err);
}

static int
open_with(const char *path, int flags, unsigned mode, struct qm_file **out, struct qmeld_error *err)
{
    struct qm_shadow *dry = qm_shadow_now();
    struct qm_file *f;

    *out = NULL;
    if (!*path)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "an empty name names no file: say its path");
    f = calloc(1, sizeof *f);
    if (!f || !(f->path = strdup(path))) {
        free(f);
        return qm_fail_nomem(err, "an open file");
    }
    f->fd = f->wfd = -1;
    if ((qm_nbd_is_name(path) ? open_remote(dry, f, flags, err)
         : dry                ? open_shadow(dry, f, flags, err)
                              : open_real(f, flags, mode, err)) < 0) {
        qm_file_close(f);
        return -1;
    }
    *out = f;
    return 0;
}

int
qm_file_open(const char *path, struct qm_file **out, struct qmeld_error *err)
{
    /* looking leaves no trace: no time of access */
    return open_with(path, O_RDONLY | O_NOATIME, 0, out, err);
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
    if (!f->remote || qm_file_make_writable(f, err) == 0)
        return 0;
    qm_file_close(f);
    *out = NULL;
    return -1;
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

/* To a device that is read-only one may get a descriptor for writing, and an error at the first write (Linux,
 * block/bdev.c), too late. */
static int
check_writable(const struct qm_file *file, struct qmeld_error *err)
{
    int read_only = 0;

    if (!file->remote && ioctl(file->fd, BLKROGET, &read_only) == 0 && read_only)
        return qm_fail(err, QMELD_USAGE, qm_in(file->path),
                       "the block device is read-only, and would have to be written to: make it "
                       "writable first (blockdev --setrw)");
    if (!file->remote)
        return 0;
    if (file->remote->read_only)
        return qm_fail(err, QMELD_USAGE, qm_in(file->path),
                       "the export is read-only, and would have to be written to: let the server "
                       "export it for writing");
    if (!file->remote->can_flush)
        return qm_fail(err, QMELD_USAGE, qm_in(file->path),
                       "its server has no flush, so nothing written there can be said to be "
                       "durable: use a server that has");
    return 0;
}

int
qm_file_make_writable(struct qm_file *file, struct qmeld_error *err)
{
    struct stat st;
    dev_t dev;
    int fd;

    if (file->wfd >= 0)
        return 0;
    if (file->blockdev && check_writable(file, err) < 0)
        return -1;
    if (file->shadow) {
        qm_shadow_check_access(file);
        return 0;
    }
    if (file->remote)
        return 0;
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
    if (file->remote)
        file->remote->ops->close(file->remote);
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
    if (a->remote || b->remote)
        return a->remote && b->remote && strcmp(a->remote->name, b->remote->name) == 0;
    return a->dev == b->dev && a->ino == b->ino && a->blockdev == b->blockdev;
}

bool
qm_file_is_at(const struct qm_file *file, const char *path)
{
    struct stat st;

    if (file->remote || qm_nbd_is_name(path))
        return file->remote && qm_nbd_same(file->remote->name, path);
    if (stat(path, &st) < 0)
        return false;
    if (file->blockdev)
        return S_ISBLK(st.st_mode) && st.st_rdev == file->dev;
    return S_ISREG(st.st_mode) && st.st_dev == file->dev && st.st_ino == file->ino;
}

char *
qm_absolute_path(const char *path)
{
    QM_FREE char *cwd = NULL;
    char *out;

    if (qm_nbd_is_name(path))
        return qm_nbd_canonical(path);
    if (path[0] == '/')
        return strdup(path);
    cwd = getcwd(NULL, 0);
    if (!cwd || asprintf(&out, "%s/%s", cwd, path) < 0)
        return NULL;
    return out;
}

bool
qm_path_same(const char *a, const char *b)
{
    QM_FREE char *x = NULL;
    QM_FREE char *y = NULL;
    struct stat p, q;

    if (!qm_nbd_is_name(a) && !qm_nbd_is_name(b) && stat(a, &p) == 0 && stat(b, &q) == 0)
        return p.st_dev == q.st_dev && p.st_ino == q.st_ino;
    x = qm_absolute_path(a);
    y = qm_absolute_path(b);
    return x && y && strcmp(x, y) == 0;
}

const char *
qm_file_kind(const struct qm_file *file)
{
    return file->remote ? file->remote->ops->kind : file->blockdev ? "block device" : "file";
}

int
qm_file_too_small(const struct qm_file *file, uint64_t size, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_NOSPACE, qm_in(file->path),
                   "the %s has %" PRIu64 " bytes, %" PRIu64 " are needed: enlarge it by %" PRIu64,
                   qm_file_kind(file), (uint64_t)file->size, size, size - file->size);
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

/* Who has one of those claims it for itself (open(2), O_EXCL without O_CREAT). */
bool
qm_device_is_claimed(const char *path)
{
    const int fd = open(path, O_RDONLY | O_EXCL | O_NONBLOCK | O_CLOEXEC);

    if (fd >= 0)
        close(fd);
    return fd < 0;
}
