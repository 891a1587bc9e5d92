/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * share.c - what the kernel and its file systems say about sharing blocks.
 */
#include "share.h"

#include "io_int.h"
#include "shadow.h"

#include <assert.h>
#include <errno.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/vfs.h>
#include <unistd.h>

/* Magic numbers that <linux/magic.h> has not got everywhere (statfs(2)). */
#define MAGIC_RAMFS 0x858458f6u
#define MAGIC_NFS   0x6969u
#define MAGIC_CIFS  0xff534d42u
#define MAGIC_SMB2  0xfe534d42u
#define MAGIC_CEPH  0x00c36400u
#define MAGIC_XFS   0x58465342u
#define MAGIC_BTRFS 0x9123683eu

/* The first form of XFS's geometry, which every kernel answers (Linux, fs/xfs/libxfs/xfs_fs.h, struct
 * xfs_fsop_geom_v1); <xfs/xfs.h> is in a package of its own. */
struct xfs_geometry {
    uint32_t blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct;
    uint64_t datablocks, rtblocks, rtextents, logstart;
    unsigned char uuid[16];
    uint32_t sunit, swidth;
    int32_t version;
    uint32_t flags, logsectsize, rtsectsize, dirblocksize;
};
#define GET_XFS_GEOMETRY _IOR('X', 100, struct xfs_geometry)
#define XFS_HAS_REFLINK  (1u << 20) /* XFS_FSOP_GEOM_FLAGS_REFLINK */

/* ---- what is known ---- */

#ifdef QM_TESTING
uint64_t qm_share_pretended_block;
bool qm_share_pretended_offload;

static uint64_t
pretended_block(void)
{
    const char *env = getenv("QMELD_TEST_SHARE");

    return env ? strtoull(env, NULL, 0) : qm_share_pretended_block;
}

static bool
pretends_offload(void)
{
    return getenv("QMELD_TEST_OFFLOAD") || qm_share_pretended_offload;
}
#else
#define pretended_block()  0ull
#define pretends_offload() false
#endif

static bool
xfs_can(const struct qm_file *file)
{
    struct xfs_geometry g;

    return ioctl(file->fd, GET_XFS_GEOMETRY, &g) == 0 && (g.flags & XFS_HAS_REFLINK);
}

/* Blocks with checksums cannot be shared with a file that has none (Linux, fs/btrfs/reflink.c,
 * btrfs_remap_file_range_prep). */
static bool
same_checksums(const struct qm_file *a, const struct qm_file *b)
{
    int of_a = 0, of_b = 0;

    return ioctl(a->fd, FS_IOC_GETFLAGS, &of_a) == 0 && ioctl(b->fd, FS_IOC_GETFLAGS, &of_b) == 0 &&
           (of_a & FS_NOCOW_FL) == (of_b & FS_NOCOW_FL);
}

static enum qm_share_verdict
verdict_on(uint32_t magic, const struct qm_file *to, const struct qm_file *from)
{
    switch (magic) {
    case EXT4_SUPER_MAGIC: /* ext2 and ext3, too */
    case TMPFS_MAGIC:
    case MAGIC_RAMFS:
    case MSDOS_SUPER_MAGIC:
        return QM_SHARE_NO;
    case MAGIC_XFS:
        return to->dev == from->dev && xfs_can(to) ? QM_SHARE_YES : QM_SHARE_NO;
    case MAGIC_BTRFS:
        if (to->dev == from->dev)
            return same_checksums(to, from) ? QM_SHARE_YES : QM_SHARE_NO;
        return QM_SHARE_MAYBE; /* two subvolumes have two device numbers */
    default:
        return to->dev == from->dev ? QM_SHARE_MAYBE : QM_SHARE_NO;
    }
}

/* For two files that exist. */
static void
look(const struct qm_file *to, const struct qm_file *from, struct qm_share *out)
{
    struct statfs fs, other;
    uint32_t magic;

    *out = (struct qm_share){.clone = QM_SHARE_NO, .block = 4096};
    if (to->blockdev || from->blockdev || to->fd < 0 || from->fd < 0 || fstatfs(to->fd, &fs) < 0 ||
        fstatfs(from->fd, &other) < 0 || fs.f_type != other.f_type)
        return;
    magic = (uint32_t)fs.f_type;
    out->clone = verdict_on(magic, to, from);
    /* elsewhere it is a copy in the kernel, slower than ours, as one thread does it */
    out->offload =
        magic == MAGIC_NFS || magic == MAGIC_CIFS || magic == MAGIC_SMB2 || magic == MAGIC_CEPH;
    if (fs.f_bsize >= 512 && fs.f_bsize <= 1 << 20 && (fs.f_bsize & (fs.f_bsize - 1)) == 0)
        out->block = (uint64_t)fs.f_bsize;
}

void
qm_share_look(const struct qm_file *to, const struct qm_file *from, struct qm_share *out)
{
    look(to, from, out);
    if (to->blockdev || from->blockdev)
        return;
    if (pretended_block())
        *out = (struct qm_share){.clone = QM_SHARE_YES, .block = pretended_block()};
    out->offload |= pretends_offload();
}

static int
clone_range(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
            uint64_t len)
{
    struct file_clone_range range = {
        .src_fd = from->fd, .src_offset = off, .src_length = len, .dest_offset = to_off};
    int rc;

    do
        rc = ioctl(to->wfd, FICLONERANGE, &range);
    while (rc < 0 && errno == EINTR);
    return rc;
}

/* A length of 0 means "up to the end", and at the end that is nothing: all that does not depend on the range is
 * looked at, and then it is over (Linux, fs/remap_range.c, generic_remap_file_range_prep). */
void
qm_share_ask(struct qm_share *share, struct qm_file *to, const struct qm_file *from)
{
    assert(!to->shadow);
    if (share->clone == QM_SHARE_MAYBE)
        share->clone = clone_range(to, 0, from, from->size, 0) == 0 ? QM_SHARE_YES : QM_SHARE_NO;
}

/* ---- doing it ---- */

#ifdef QM_TESTING
/* The recorder and the faults of tests see such a range as the write that it is to who reads the file.  *out is
 * malloc'd, or NULL if nobody looks. */
static int
announce_bytes(const struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
               uint64_t len, unsigned char **out)
{
    struct qmeld_error unheard = {0};

    *out = NULL;
    if (!qm_io_is_watched() && !pretended_block())
        return 0;
    *out = malloc(len ? len : 1);
    if (!*out || qm_pread(from, off, *out, len, &unheard) < 0)
        return -1;
    return qm_io_announce(&(struct qm_io_event){.op = QM_IO_WRITE,
                                                .path = to->path,
                                                .off = to_off,
                                                .len = len,
                                                .buf = *out,
                                                .from = from->path});
}

static int
seen_clone(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
           uint64_t len)
{
    QM_FREE unsigned char *buf = NULL;
    ssize_t n;

    if (announce_bytes(to, to_off, from, off, len, &buf) < 0)
        return -1;
    if (!pretended_block())
        return clone_range(to, to_off, from, off, len);
    for (uint64_t done = 0; done < len; done += (uint64_t)n) {
        n = pwrite(to->wfd, buf + done, len - done, (off_t)(to_off + done));
        if (n <= 0)
            return -1;
    }
    return 0;
}

static ssize_t
seen_copy(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
          uint64_t len)
{
    QM_FREE unsigned char *buf = NULL;
    off64_t in = (off64_t)off, out = (off64_t)to_off;

    if (announce_bytes(to, to_off, from, off, len, &buf) < 0)
        return -1;
    return copy_file_range(from->fd, &in, to->wfd, &out, len, 0);
}
#else
#define seen_clone(to, to_off, from, off, len) clone_range(to, to_off, from, off, len)
static ssize_t
seen_copy(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
          uint64_t len)
{
    off64_t in = (off64_t)off, out = (off64_t)to_off;

    return copy_file_range(from->fd, &in, to->wfd, &out, len, 0);
}
#endif

int
qm_share_range(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
               uint64_t len, bool *out_done, struct qmeld_error *err)
{
    *out_done = true;
    if (!qm_inside(to_off, len, QM_MAX_OFF))
        return qm_fail(err, QMELD_NOSPACE, qm_at(to->path, to_off),
                       "offset %" PRIu64 " is beyond what a file can have", to_off);
    if (to->shadow)
        return qm_shadow_share(to, to_off, from, off, len, err);
    assert(!qm_shadow_now());
    *out_done = seen_clone(to, to_off, from, off, len) == 0;
    if (*out_done)
        qm_io_note_end(to, to_off + len);
    return 0;
}

void
qm_share_offload(struct qm_file *to, uint64_t to_off, const struct qm_file *from, uint64_t off,
                 uint64_t len, uint64_t *out_done)
{
    assert(!to->shadow);
    for (*out_done = 0; *out_done < len;) {
        const ssize_t n = seen_copy(to, to_off + *out_done, from, off + *out_done, len - *out_done);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            break;
        *out_done += (uint64_t)n;
    }
    if (*out_done)
        qm_io_note_end(to, to_off + *out_done);
}

int
qm_clone(struct qm_file *to, const struct qm_file *from, bool *out_done, struct qmeld_error *err)
{
    struct qm_share share;

    *out_done = false;
    look(from, from, &share);
    if (to->shadow) {
        if (share.clone != QM_SHARE_NO)
            qm_shadow_may_share(to);
        return 0;
    }
    if (from->blockdev || ioctl(to->wfd, FICLONE, from->fd) < 0)
        return 0; /* whatever the reason, copying says it better */
    *out_done = true;
    return qm_file_refresh(to, err);
}
