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

#include "clock.h"
#include "shadow.h"

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

/* ---- naming the holders --------------------------------------------------------------------- */

/* Looking through /proc stops after this long, and leaves one process after this long (the kernel
 * walks all locks of a file for each descriptor: thousands of both take minutes); who was not
 * found by then is "unknown". */
#define SEARCH_MS   2000
#define PROCESS_MS  200
#define MAX_HOLDERS 8u /* named for one file; the rest is "others" */
#define MAX_TEXT    512u

/* One file whose holders are wanted. */
struct target {
    const struct qm_file *file;
    unsigned held;    /* lock bytes that others hold */
    unsigned seen;    /* those whose holders were found */
    unsigned process; /* those of the process being looked at */
    unsigned n;
    size_t used;
    char text[MAX_TEXT];
};

struct search {
    struct target *targets;
    size_t n;
    uint64_t deadline_ms;
};

static void
say(struct target *t, const char *str)
{
    const size_t len = strlen(str);

    if (t->used + len >= sizeof t->text)
        return;
    memcpy(t->text + t->used, str, len + 1);
    t->used += len;
}

static void
say_uses(struct target *t, unsigned bytes)
{
    static const char *const names[N_PERMS] = {"read", "write", "write unchanged", "resize",
                                               "change the graph"};
    const char *sep = ": ";

    for (unsigned k = 0; k < N_PERMS; k++) {
        if (!(bytes & USE(k)))
            continue;
        say(t, sep);
        say(t, names[k]);
        sep = ", ";
    }
    if (!(bytes & ALL_USES) && bytes & FORBID(WRITE))
        say(t, ": lets nobody write");
}

/* A process may call itself anything; what we print stays printable. */
static void
say_process(struct target *t, pid_t pid)
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
    snprintf(line, sizeof line, "%spid %ld (%s)", t->n ? "; " : "", (long)pid,
             *comm ? comm : "no name");
    say(t, line);
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

/* Notes that a descriptor, open at path, holds bytes.  No round trip to a server: a dead NFS
 * mount of somebody else must not hang us. */
static void
note_descriptor(struct search *s, const char *path, unsigned bytes)
{
    struct statx st;

    if (statx(AT_FDCWD, path, AT_STATX_DONT_SYNC, STATX_TYPE | STATX_INO, &st) < 0)
        return;
    for (size_t i = 0; i < s->n; i++) {
        const struct qm_file *f = s->targets[i].file;
        const bool same = f->blockdev ? S_ISBLK(st.stx_mode) &&
                                            makedev(st.stx_rdev_major, st.stx_rdev_minor) == f->dev
                                      : S_ISREG(st.stx_mode) && st.stx_ino == f->ino &&
                                            makedev(st.stx_dev_major, st.stx_dev_minor) == f->dev;

        if (same)
            s->targets[i].process |= bytes;
    }
}

static bool
is_ours(const struct search *s, int fd)
{
    for (size_t i = 0; i < s->n; i++)
        if (s->targets[i].file->fd == fd)
            return true;
    return false;
}

static void
look_at_descriptors(struct search *s, pid_t pid)
{
    const uint64_t deadline_ms = qm_min(s->deadline_ms, qm_clock_ms() + PROCESS_MS);
    char path[96];
    struct dirent *e;
    DIR *d;

    snprintf(path, sizeof path, "/proc/%ld/fdinfo", (long)pid);
    d = opendir(path);
    if (!d)
        return;
    while ((e = readdir(d)) && qm_clock_ms() < deadline_ms) {
        unsigned bytes;
        int fd;

        if (sscanf(e->d_name, "%d", &fd) != 1 || (pid == getpid() && is_ours(s, fd)))
            continue;
        snprintf(path, sizeof path, "/proc/%ld/fdinfo/%d", (long)pid, fd);
        bytes = bytes_in_fdinfo(path);
        if (!bytes)
            continue;
        snprintf(path, sizeof path, "/proc/%ld/fd/%d", (long)pid, fd);
        note_descriptor(s, path, bytes);
    }
    closedir(d);
}

static void
look_at_process(struct search *s, pid_t pid)
{
    look_at_descriptors(s, pid);
    for (size_t i = 0; i < s->n; i++) {
        struct target *t = &s->targets[i];
        const unsigned bytes = t->process;

        t->process = 0;
        t->seen |= bytes;
        if (!bytes)
            continue;
        if (t->n < MAX_HOLDERS) {
            say_process(t, pid);
            say_uses(t, bytes);
        } else if (t->n == MAX_HOLDERS) {
            say(t, "; others");
        }
        t->n++;
    }
}

/* Fills the targets' texts. */
static void
search(struct target *targets, size_t n)
{
    struct search s = {.targets = targets, .n = n, .deadline_ms = qm_clock_ms() + SEARCH_MS};
    DIR *d = opendir("/proc");
    struct dirent *e;

    while (d && (e = readdir(d)) && qm_clock_ms() < s.deadline_ms)
        if (isdigit((unsigned char)e->d_name[0]))
            look_at_process(&s, (pid_t)strtol(e->d_name, NULL, 10));
    if (d)
        closedir(d);
    for (size_t i = 0; i < n; i++) {
        struct target *t = &targets[i];

        if (!(t->held & ~t->seen))
            continue;
        say(t, t->n ? "; an unknown process" : "an unknown process");
        say_uses(t, t->held & ~t->seen);
    }
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
    struct target t = {.file = file, .held = bytes};

    search(&t, 1);
    return qm_fail(err, QMELD_BUSY, qm_in(file->path),
                   "in use by %s: stop it, or merge through it (virsh blockcommit)", t.text);
}

/* A dry run looks beside whoever uses the file, and remembers that the real thing could not. */
static int
note_holder(struct qm_file *file, unsigned bytes, struct qmeld_error *err)
{
    struct qmeld_error busy = {0};
    unsigned others;

    if (file->fd < 0 || !qm_shadow_wants_notes(qm_shadow_now()))
        return 0;
    if (test_bytes(file, conflicts_of(bytes), &others, err) < 0)
        return -1;
    if (others) {
        fail_busy(file, others, &busy);
        qm_shadow_note(qm_shadow_now(), &busy);
    }
    file->held |= bytes; /* asked for once */
    return 0;
}

int
qm_lock_take(struct qm_file *file, enum qm_lock_role role, struct qmeld_error *err)
{
    const unsigned bytes = role_bytes[role];
    unsigned taken = 0, others;

    if (!(bytes & ~file->held) || !qm_file_is_local(file))
        return 0;
    if (file->shadow)
        return note_holder(file, bytes, err);
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
qm_lock_holders(const struct qm_file *const *files, size_t n, char **out, struct qmeld_error *err)
{
    QM_FREE struct target *targets = calloc(n + 1, sizeof *targets);
    QM_FREE size_t *where = calloc(n + 1, sizeof *where);
    size_t n_held = 0;

    memset(out, 0, n * sizeof *out);
    if (!targets || !where)
        return qm_fail_nomem(err, "the holders of locks");
    for (size_t i = 0; i < n; i++) {
        struct target *t = &targets[n_held];

        t->file = files[i];
        if (!qm_file_is_local(files[i]))
            continue;
        if (test_bytes(files[i], ALL_USES | ALL_FORBIDS, &t->held, err) < 0)
            return -1;
        if (t->held)
            where[n_held++] = i;
    }
    if (!n_held)
        return 0;
    search(targets, n_held);
    for (size_t i = 0; i < n_held; i++) {
        out[where[i]] = strdup(targets[i].text);
        if (out[where[i]])
            continue;
        for (size_t k = 0; k < i; k++) {
            free(out[where[k]]);
            out[where[k]] = NULL;
        }
        return qm_fail_nomem(err, "the holders of locks");
    }
    return 0;
}
