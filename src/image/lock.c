/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lock.c - QEMU's image lock bytes.
 *
 * Why this way.  The kernel tells through F_OFD_GETLK only that a byte is held, not by whom: an
 * OFD lock belongs to an open file, its pid reads -1.  Who it is stands in
 * /proc/PID/fdinfo/FD, where the kernel lists each open file's own locks.  That is text made by
 * the kernel, so a search through it waits for no file system; only descriptors with a lock on
 * QEMU's bytes are then compared with our file.
 */
#include "lock.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* qemu 7.2, block/file-posix.c: RAW_LOCK_PERM_BASE, RAW_LOCK_SHARED_BASE, and the number of
 * permissions; the fifth, graph-mod, is used by QEMU up to 6.1 and only reported here. */
#define USE_BASE    100
#define FORBID_BASE 200
#define N_PERMS     5u

/* A set of lock bytes in one word: bit k is byte 100 + k, bit 8 + k is byte 200 + k. */
#define USE(k)      (1u << (k))
#define FORBID(k)   (1u << (8u + (k)))
#define ALL_USES    0x001fu
#define ALL_FORBIDS 0x1f00u

enum { READ, WRITE, WRITE_SAME, RESIZE, GRAPH };

static const unsigned role_bytes[] = {
    [QM_LOCK_READER] = USE(READ) | FORBID(WRITE) | FORBID(RESIZE),
    [QM_LOCK_WRITER] = USE(READ) | USE(WRITE) | USE(RESIZE) | FORBID(WRITE) | FORBID(RESIZE),
    [QM_LOCK_EXCLUSIVE] =
        USE(READ) | USE(WRITE) | USE(RESIZE) | FORBID(READ) | FORBID(WRITE) | FORBID(RESIZE),
};

/* What others may not hold: what we forbid must not be used, what we use not be forbidden. */
static unsigned
conflicts_of(unsigned bytes)
{
    return (bytes & ALL_USES) << 8 | (bytes & ALL_FORBIDS) >> 8;
}

static off_t
byte_of(unsigned bit)
{
    return bit < 8 ? USE_BASE + (off_t)bit : FORBID_BASE + (off_t)(bit - 8);
}

/* ---- the kernel's side ---- */

static int
set_lock(int fd, unsigned bit, short type)
{
    struct flock l = {.l_type = type, .l_whence = SEEK_SET, .l_start = byte_of(bit), .l_len = 1};
    int r;

    do
        r = fcntl(fd, F_OFD_SETLK, &l);
    while (r < 0 && errno == EINTR);
    return r;
}

/* 1: somebody else holds the byte, 0: nobody, -1: errno */
static int
test_lock(int fd, unsigned bit, pid_t *out_pid)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte_of(bit), .l_len = 1};
    int r;

    do
        r = fcntl(fd, F_OFD_GETLK, &l);
    while (r < 0 && errno == EINTR);
    if (r < 0)
        return -1;
    *out_pid = l.l_type == F_UNLCK ? 0 : l.l_pid;
    return l.l_type != F_UNLCK;
}

/* The file system keeps no locks at all, as opposed to this one being refused: then even
 * asking fails.  (ENOLCK alone may also be a kernel out of memory.) */
static bool
has_no_locks(int fd)
{
    pid_t pid;

    return test_lock(fd, 0, &pid) < 0 &&
           (errno == EINVAL || errno == ENOLCK || errno == EOPNOTSUPP || errno == ENOSYS);
}

static void
give_back(struct qm_file *file, unsigned bytes)
{
    for (unsigned bit = 0; bit < 16; bit++)
        if (bytes >> bit & 1)
            (void)set_lock(file->fd, bit, F_UNLCK);
    file->held &= ~bytes;
}

/* ---- naming the holder ---- */

/* Looking through /proc stops after this long or so many holders; the rest is "unknown". */
#define SEARCH_MS   1000
#define MAX_HOLDERS 8u
#define MAX_TEXT    512u

struct search {
    const struct qm_file *file;
    struct timespec deadline;
    unsigned seen; /* lock bytes whose holders were found */
    unsigned n;
    size_t used;
    char text[MAX_TEXT];
};

static void
say(struct search *s, const char *str)
{
    const size_t len = strlen(str);

    if (s->used + len >= sizeof s->text)
        return;
    memcpy(s->text + s->used, str, len + 1);
    s->used += len;
}

static void
say_uses(struct search *s, unsigned bytes)
{
    static const char *const names[N_PERMS] = {"read", "write", "write unchanged", "resize",
                                               "change the graph"};
    const char *sep = ": ";

    for (unsigned k = 0; k < N_PERMS; k++) {
        if (!(bytes & USE(k)))
            continue;
        say(s, sep);
        say(s, names[k]);
        sep = ", ";
    }
    if (!(bytes & ALL_USES) && bytes & FORBID(WRITE))
        say(s, ": lets nobody write");
}

/* A process may call itself anything; what we print stays printable. */
static void
say_process(struct search *s, pid_t pid)
{
    char path[64], line[96], comm[32] = "";
    FILE *f;

    snprintf(path, sizeof path, "/proc/%ld/comm", (long)pid);
    f = fopen(path, "re");
    if (f) {
        if (!fgets(comm, sizeof comm, f))
            comm[0] = '\0';
        fclose(f);
    }
    comm[strcspn(comm, "\n")] = '\0';
    for (char *c = comm; *c; c++)
        if (!isprint((unsigned char)*c))
            *c = '?';
    snprintf(line, sizeof line, "%spid %ld (%s)", s->n ? "; " : "", (long)pid,
             *comm ? comm : "no name");
    say(s, line);
}

/* The lock bytes in one fdinfo line, "lock:\t1: OFDLCK  ADVISORY  READ -1 08:01:1234 100 101". */
static unsigned
bytes_in_line(const char *line)
{
    char kind[16], inode[64], last[32];
    uint64_t from, to;
    unsigned bytes = 0;

    if (sscanf(line, "lock: %*d: %15s %*s %*s %*d %63s %" SCNu64 " %31s", kind, inode, &from,
               last) != 4 ||
        (strcmp(kind, "OFDLCK") != 0 && strcmp(kind, "POSIX") != 0))
        return 0;
    if (strcmp(last, "EOF") == 0)
        to = UINT64_MAX;
    else if (sscanf(last, "%" SCNu64, &to) != 1)
        return 0;
    for (unsigned bit = 0; bit < 16; bit++)
        if (((ALL_USES | ALL_FORBIDS) >> bit & 1) && (uint64_t)byte_of(bit) >= from &&
            (uint64_t)byte_of(bit) <= to)
            bytes |= 1u << bit;
    return bytes;
}

static unsigned
bytes_in_fdinfo(const char *path)
{
    FILE *f = fopen(path, "re");
    char line[256];
    unsigned bytes = 0;

    if (!f)
        return 0;
    while (fgets(line, sizeof line, f))
        if (strncmp(line, "lock:", 5) == 0)
            bytes |= bytes_in_line(line);
    fclose(f);
    return bytes;
}

/* No round trip to a server: a dead NFS mount of somebody else must not hang us. */
static bool
leads_to(const char *path, const struct qm_file *file)
{
    struct statx st;

    if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &st) < 0)
        return false;
    if (file->blockdev)
        return S_ISBLK(st.stx_mode) && makedev(st.stx_rdev_major, st.stx_rdev_minor) == file->dev;
    return S_ISREG(st.stx_mode) && st.stx_ino == file->ino &&
           makedev(st.stx_dev_major, st.stx_dev_minor) == file->dev;
}

static bool
out_of_time(const struct search *s)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > s->deadline.tv_sec ||
           (now.tv_sec == s->deadline.tv_sec && now.tv_nsec >= s->deadline.tv_nsec);
}

static void
search_process(struct search *s, pid_t pid)
{
    char path[96];
    unsigned bytes = 0;
    struct dirent *e;
    DIR *d;

    snprintf(path, sizeof path, "/proc/%ld/fdinfo", (long)pid);
    d = opendir(path);
    if (!d)
        return;
    while ((e = readdir(d)) && !out_of_time(s)) {
        unsigned found;
        int fd;

        if (sscanf(e->d_name, "%d", &fd) != 1 || (pid == getpid() && fd == s->file->fd))
            continue;
        snprintf(path, sizeof path, "/proc/%ld/fdinfo/%d", (long)pid, fd);
        found = bytes_in_fdinfo(path);
        if (!found)
            continue;
        snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, fd);
        if (leads_to(path, s->file))
            bytes |= found;
    }
    closedir(d);
    if (!bytes)
        return;
    s->seen |= bytes;
    say_process(s, pid);
    say_uses(s, bytes);
    s->n++;
}

static void
search_all(struct search *s)
{
    DIR *d = opendir("/proc");
    struct dirent *e;

    if (!d)
        return;
    while ((e = readdir(d)) && s->n < MAX_HOLDERS && !out_of_time(s))
        if (isdigit((unsigned char)e->d_name[0]))
            search_process(s, (pid_t)strtol(e->d_name, NULL, 10));
    closedir(d);
}

/* Who holds `bytes`, which are known to be held.  NULL: out of memory. */
static char *
name_holders(const struct qm_file *file, unsigned bytes)
{
    struct search s = {.file = file};

    clock_gettime(CLOCK_MONOTONIC, &s.deadline);
    s.deadline.tv_sec += SEARCH_MS / 1000;
    search_all(&s);
    if (bytes & ~s.seen) {
        say(&s, s.n ? "; an unknown process" : "an unknown process");
        say_uses(&s, bytes & ~s.seen);
    }
    return strdup(s.text);
}

/* ---- calls ---- */

/* Which of `wanted` others hold. */
static int
test_bytes(const struct qm_file *file, unsigned wanted, unsigned *out, struct qmeld_error *err)
{
    *out = 0;
    for (unsigned bit = 0; bit < 16; bit++) {
        pid_t pid;
        int r;

        if (!(wanted >> bit & 1))
            continue;
        r = test_lock(file->fd, bit, &pid);
        if (r < 0 && has_no_locks(file->fd))
            return 0;
        if (r < 0)
            return qm_fail_sys(err, qm_in(file->path), "cannot test the image locks");
        if (r)
            *out |= 1u << bit;
    }
    return 0;
}

static int
fail_busy(const struct qm_file *file, unsigned bytes, struct qmeld_error *err)
{
    QM_FREE char *who = name_holders(file, bytes);

    return qm_fail(err, QMELD_BUSY, qm_in(file->path),
                   "in use by %s: stop it, or merge through it (virsh blockcommit)",
                   who ? who : "another process");
}

int
qm_lock_take(struct qm_file *file, enum qm_lock_role role, struct qmeld_error *err)
{
    const unsigned bytes = role_bytes[role];
    unsigned taken = 0, others;

    if (!(bytes & ~file->held))
        return 0;
    for (unsigned bit = 0; bit < 16; bit++) {
        if (!((bytes & ~file->held) >> bit & 1))
            continue;
        if (set_lock(file->fd, bit, F_RDLCK) == 0) {
            taken |= 1u << bit;
            continue;
        }
        if (errno == EAGAIN || errno == EACCES) {
            give_back(file, taken);
            return fail_busy(file, 1u << bit, err);
        }
        if (!taken && has_no_locks(file->fd))
            return 0;
        qm_fail_sys(err, qm_in(file->path), "cannot take the image locks");
        give_back(file, taken);
        return -1;
    }
    /* Own bytes first, then the others': of two who come at once at least one sees the other. */
    if (test_bytes(file, conflicts_of(bytes), &others, err) < 0) {
        give_back(file, taken);
        return -1;
    }
    if (others) {
        give_back(file, taken);
        return fail_busy(file, others, err);
    }
    file->held |= taken;
    return 0;
}

int
qm_lock_holder(const struct qm_file *file, char **out, struct qmeld_error *err)
{
    unsigned others;

    *out = NULL;
    if (test_bytes(file, ALL_USES | ALL_FORBIDS, &others, err) < 0)
        return -1;
    if (!others)
        return 0;
    *out = name_holders(file, others);
    return *out ? 0 : qm_fail_nomem(err, "the name of a lock holder");
}
