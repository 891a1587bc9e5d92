/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "room.h"

#include "addr.h"

#include <errno.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <linux/quota.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef SYS_quotactl_fd
#define SYS_quotactl_fd 443 /* Linux 5.14, the same on every architecture */
#endif
#ifndef F2FS_SUPER_MAGIC
#define F2FS_SUPER_MAGIC 0xF2F52010
#endif
#define BCACHEFS_MAGIC 0xca451a4e /* these three are in no header */
#define ZFS_MAGIC      0x2fc12fc1
#define NTFS_MAGIC     0x5346544e
#define QUOTA_BLOCK    1024u /* of if_dqblk's limits */

static uint64_t
free_bytes(const struct statvfs *st)
{
    uint64_t room;

    /* root may use the blocks that are kept for it */
    if (__builtin_mul_overflow(geteuid() == 0 ? st->f_bfree : st->f_bavail, st->f_frsize, &room))
        return UINT64_MAX;
    return room;
}

/* A hard limit that is there, and is enforced. */
static bool
find_quota(int fd, int type, uint32_t id, uint64_t *out)
{
    struct if_dqblk q = {.dqb_valid = 0};
    uint64_t limit;

    /* unsigned: the kernel's header shifts it into the sign */
    if (syscall(SYS_quotactl_fd, fd, QCMD((unsigned)Q_GETQUOTA, type), id, &q) != 0 ||
        !(q.dqb_valid & QIF_BLIMITS) || !(q.dqb_valid & QIF_SPACE) || q.dqb_bhardlimit == 0 ||
        __builtin_mul_overflow(q.dqb_bhardlimit, QUOTA_BLOCK, &limit))
        return false;
    *out = limit > q.dqb_curspace ? limit - q.dqb_curspace : 0;
    return true;
}

/* Who may use more than is allowed, is not limited: root, but not on XFS (fs/quota/dquot.c, ignore_hardlimit;
 * fs/xfs/xfs_trans_dquot.c). */
static bool
is_limited(int fd)
{
    struct statfs st;

    return geteuid() != 0 || (fstatfs(fd, &st) == 0 && st.f_type == XFS_SUPER_MAGIC);
}

/* Some btrfs is mounted with compression.  Which one is ours, /proc does not tell by device number. */
static bool
btrfs_compresses(void)
{
    FILE *f = fopen("/proc/self/mountinfo", "re");
    char line[4096];
    bool found = false;

    while (f && !found && fgets(line, sizeof line, f))
        found = strstr(line, " - btrfs ") && strstr(line, "compress");
    if (f)
        fclose(f);
    return !f || found;
}

static bool
may_compress(int fd)
{
    struct statfs st;
    int flags = 0;

    if (fstatfs(fd, &st) < 0)
        return true;
    switch ((unsigned long)st.f_type) {
    case BTRFS_SUPER_MAGIC:
        return btrfs_compresses() ||
               (ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && flags & FS_COMPR_FL);
    case F2FS_SUPER_MAGIC:
        return ioctl(fd, FS_IOC_GETFLAGS, &flags) == 0 && flags & FS_COMPR_FL;
    case BCACHEFS_MAGIC:
    case ZFS_MAGIC:
    case NTFS_MAGIC:
        return true;
    default:
        return false;
    }
}

int
qm_room_find(int fd, const char *path, struct qm_room out[QM_ROOM_KINDS], size_t *out_n,
             struct qmeld_error *err)
{
    struct fsxattr x = {.fsx_projid = 0};
    struct statvfs vfs;
    struct stat st;
    uint64_t left;

    if (fstat(fd, &st) < 0 || fstatvfs(fd, &vfs) < 0)
        return qm_fail_sys(err, qm_in(path), "cannot ask for free space");
    *out_n = 0;
    out[(*out_n)++] = (struct qm_room){.kind = QM_ROOM_DISK,
                                       .dev = st.st_dev,
                                       .bytes = free_bytes(&vfs),
                                       .soft = may_compress(fd)};
    if (!S_ISREG(st.st_mode) || !is_limited(fd))
        return 0;
    if (find_quota(fd, USRQUOTA, st.st_uid, &left))
        out[(*out_n)++] = (struct qm_room){QM_ROOM_USER, st.st_dev, st.st_uid, left, false};
    if (find_quota(fd, GRPQUOTA, st.st_gid, &left))
        out[(*out_n)++] = (struct qm_room){QM_ROOM_GROUP, st.st_dev, st.st_gid, left, false};
    if (ioctl(fd, FS_IOC_FSGETXATTR, &x) == 0 && find_quota(fd, PRJQUOTA, x.fsx_projid, &left))
        out[(*out_n)++] = (struct qm_room){QM_ROOM_PROJECT, st.st_dev, x.fsx_projid, left, false};
    return 0;
}

const char *
qm_room_name(enum qm_room_kind kind)
{
    static const char *const names[] = {"the file system", "the user's quota", "the group's quota",
                                        "the project's quota"};

    return names[kind];
}

const char *
qm_room_forbids(int fd, uint64_t length, uint64_t *out_limit)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
        length > limit.rlim_cur) {
        *out_limit = limit.rlim_cur;
        return "the limit on file sizes (ulimit -f)";
    }
    /* A file offset that the file system cannot have is refused; ours is used for nothing else
     * (every read and write says its own). */
    if (fd < 0 || length <= INT32_MAX || length > QM_MAX_OFF ||
        lseek(fd, (off_t)length, SEEK_SET) >= 0 || errno != EINVAL)
        return NULL;
    *out_limit = INT32_MAX;
    for (uint64_t step = 1ull << 62; step > 0; step /= 2) /* the longest it can have */
        if (*out_limit + step < length && lseek(fd, (off_t)(*out_limit + step), SEEK_SET) >= 0)
            *out_limit += step;
    return "the longest file that its file system can have";
}
