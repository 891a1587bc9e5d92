/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_names.c - the half of io.h that changes names in directories, durably.
 */
#include "io_int.h"

#include "shadow.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *
qm_dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

int
qm_sync_dir_of(const char *path, struct qmeld_error *err)
{
    QM_FREE char *dir = qm_dir_of(path);
    int fd, rc;

    if (qm_shadow_now())
        return 0;
    if (!dir)
        return qm_fail_nomem(err, "a path");
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return qm_fail_sys(err, qm_in(dir), "cannot open the directory");
    rc = QM_ANNOUNCE(.op = QM_IO_SYNC, .path = dir);
    if (rc == 0)
        rc = qm_io_waits_for_disks() ? fsync(fd) : 0;
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
    if (QM_ANNOUNCE(.op = QM_IO_UNLINK, .path = path) < 0 || unlink(path) < 0)
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
    rc = QM_ANNOUNCE(.op = QM_IO_RENAME, .path = path, .to = to);
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

/* 1: both lead to one file */
static bool
is_same(const char *a, const char *b)
{
    struct stat x, y;

    return lstat(a, &x) == 0 && lstat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int
qm_link(const char *path, const char *to, struct qmeld_error *err)
{
    int rc;

    if (qm_shadow_now())
        return qm_shadow_link(qm_shadow_now(), path, to, err);
    rc = QM_ANNOUNCE(.op = QM_IO_LINK, .path = path, .to = to);
    if (rc == 0)
        rc = link(path, to);
    if (rc == 0)
        return 0;
    if (errno != EEXIST)
        return qm_fail_sys(err, qm_in(path), "cannot get a second name (a hard link)");
    if (is_same(path, to))
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(to),
                   "it is in the way: a name is needed here for a moment: move it away");
}

int
qm_link_possible(const char *path, const char *to, struct qmeld_error *err)
{
    if (qm_shadow_now())
        return 0;
    if (qm_link(path, to, err) < 0)
        return -1;
    if (qm_unlink(to, err) == 0)
        return 0;
    qm_err_disk(err, QMELD_DISK_OPEN);
    return -1;
}

int
qm_replace(const char *path, const char *to, struct qmeld_error *err)
{
    if (qm_shadow_now())
        return qm_shadow_replace(qm_shadow_now(), path, to, err);
    if (QM_ANNOUNCE(.op = QM_IO_RENAME, .path = path, .to = to) < 0 || rename(path, to) < 0)
        return qm_fail_sys(err, qm_in(path), "cannot rename to %.400s", to);
    return qm_sync_dir_of(to, err);
}

int
qm_names_may_change(const char *path, struct qmeld_error *err)
{
    QM_FREE char *dir = qm_dir_of(path);

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
