/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * killat.c - preloaded into a program: end it in front of its n-th change of a file.
 *
 * Why.  A merge promises that it may die anywhere.  This makes it die everywhere: SIGKILL cannot be
 * caught, so what is in the files then is what a crash of the program leaves.
 *
 * Environment
 *   KILL_AT=N     die in front of the N-th change (1 = the first); unset or 0: never
 *   KILL_TEAR=1   if the N-th change is a write of more than one sector: do its first half, in
 *                 whole sectors, then die
 *   KILL_COUNT=F  at a normal end, write the number of changes to file F
 *   KILL_TRACE=F  append a line for every change to file F
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define SECTOR 512

static atomic_long n_changes;

static long
number(const char *name)
{
    const char *text = getenv(name);

    return text ? atol(text) : 0;
}

/* How much of a write of len bytes may still be done: all of it, or the torn part; does not return
 * if nothing may.  *out_last: die after it. */
static size_t
allow(const char *what, int fd, size_t len, long off, int *out_last)
{
    const long at = number("KILL_AT");
    const long now = atomic_fetch_add(&n_changes, 1) + 1;
    const char *trace = getenv("KILL_TRACE");

    *out_last = 0;
    if (trace) {
        FILE *f = fopen(trace, "a");

        if (f) {
            fprintf(f, "%ld %s fd=%d off=%ld len=%zu\n", now, what, fd, off, len);
            fclose(f);
        }
    }
    if (!at || now != at)
        return len;
    if (number("KILL_TEAR") && len > SECTOR) {
        *out_last = 1;
        return len / SECTOR < 2 ? SECTOR : len / SECTOR / 2 * SECTOR;
    }
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

static void
die(void)
{
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

__attribute__((destructor)) static void
count(void)
{
    const char *path = getenv("KILL_COUNT");
    FILE *f = path ? fopen(path, "w") : NULL;

    if (f) {
        fprintf(f, "%ld\n", atomic_load(&n_changes));
        fclose(f);
    }
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

#define PWRITE(name, off_type)                                                                     \
    ssize_t name(int fd, const void *buf, size_t len, off_type off)                                \
    {                                                                                              \
        int last;                                                                                  \
        const size_t some = allow(#name, fd, len, (long)off, &last);                               \
        const ssize_t got = NEXT(name)(fd, buf, some, off);                                        \
                                                                                                   \
        if (last)                                                                                  \
            die();                                                                                 \
        return got;                                                                                \
    }

#define PWRITEV(name, off_type)                                                                    \
    ssize_t name(int fd, const struct iovec *iov, int n, off_type off)                             \
    {                                                                                              \
        int last;                                                                                  \
                                                                                                   \
        allow(#name, fd, 0, (long)off, &last);                                                     \
        return NEXT(name)(fd, iov, n, off);                                                        \
    }

#define SIMPLE(name, fd, parameters, arguments)                                                    \
    int name parameters                                                                            \
    {                                                                                              \
        int last;                                                                                  \
                                                                                                   \
        allow(#name, fd, 0, 0, &last);                                                             \
        return NEXT(name) arguments;                                                               \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)
PWRITEV(pwritev, off_t)
PWRITEV(pwritev64, off64_t)
SIMPLE(fallocate, fd, (int fd, int mode, off_t off, off_t len), (fd, mode, off, len))
SIMPLE(fallocate64, fd, (int fd, int mode, off64_t off, off64_t len), (fd, mode, off, len))
SIMPLE(ftruncate, fd, (int fd, off_t len), (fd, len))
SIMPLE(ftruncate64, fd, (int fd, off64_t len), (fd, len))
SIMPLE(fdatasync, fd, (int fd), (fd))
SIMPLE(fsync, fd, (int fd), (fd))
SIMPLE(unlink, -1, (const char *path), (path))
SIMPLE(rename, -1, (const char *from, const char *to), (from, to))
SIMPLE(renameat2, -1, (int from_dir, const char *from, int to_dir, const char *to, unsigned flags),
       (from_dir, from, to_dir, to, flags))

ssize_t
copy_file_range(int in, off64_t *in_off, int out, off64_t *out_off, size_t len, unsigned flags)
{
    int last;

    allow("copy_file_range", out, 0, 0, &last);
    return NEXT(copy_file_range)(in, in_off, out, out_off, len, flags);
}

int
ioctl(int fd, unsigned long request, ...)
{
    va_list ap;
    void *argument;
    int last;

    va_start(ap, request);
    argument = va_arg(ap, void *);
    va_end(ap);
    allow("ioctl", fd, 0, 0, &last);
    return NEXT(ioctl)(fd, request, argument);
}
