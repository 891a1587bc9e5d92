/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * breakout.c - preloaded into qmeld by sandbox.py: what a parser that was taken over would try.
 *
 * At each read of an image, from whichever thread, things are tried that do no harm if they succeed; a line on standard
 * error tells how each went: "ok", or the name of the error.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char line[1024];

static void
tell(const char *what, long rc, long as_good)
{
    const int e = errno;
    const char *how = rc >= 0 || e == as_good ? "ok" : strerrorname_np(e);

    snprintf(line + strlen(line), sizeof line - strlen(line), " %s=%s", what, how);
    if (rc > 2)
        close((int)rc);
}

static void
try_all(void)
{
    const char *victim = getenv("BREAKOUT_VICTIM"), *no_such = "/no/such/file";
    char *const none[] = {NULL};

    snprintf(line, sizeof line, "breakout:");
    tell("read", open(victim, O_RDONLY), 0);
    tell("write", open(victim, O_WRONLY), 0);
    tell("append", openat(AT_FDCWD, victim, O_RDWR | O_APPEND), 0);
    tell("truncate", truncate(victim, 4), 0);
    tell("create", open(no_such, O_RDONLY | O_CREAT, 0600), ENOENT);
    tell("unlink", unlink(no_such), ENOENT);
    tell("rename", rename(no_such, "/no/such/other"), ENOENT);
    tell("mkdir", mkdir(no_such, 0700), ENOENT);
    tell("chmod", chmod(victim, 0600), 0);
    tell("exec", execve(no_such, none, none), ENOENT);
    tell("inet", socket(AF_INET, SOCK_STREAM, 0), 0);
    tell("unix", socket(AF_UNIX, SOCK_STREAM, 0), 0);
    tell("kill", kill(getppid(), 0), 0);
    tell("ptrace", ptrace(PTRACE_ATTACH, 1 << 30, 0, 0), ESRCH);
    tell("openat2", syscall(SYS_openat2, AT_FDCWD, victim, none, 8), EINVAL);
    strcat(line, "\n");
    (void)!write(STDERR_FILENO, line, strlen(line));
}

ssize_t
pread64(int fd, void *buf, size_t len, off64_t off)
{
    static ssize_t (*next)(int, void *, size_t, off64_t);
    static int times;
    const int e = errno;

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "pread64");
    if (__atomic_add_fetch(&times, 1, __ATOMIC_RELAXED) <= 200)
        try_all();
    errno = e;
    return next(fd, buf, len, off);
}
