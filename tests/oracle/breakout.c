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
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char line[2048];

static void
tell(const char *what, long rc, long as_good)
{
    const int e = errno;
    const char *how = rc >= 0 || e == as_good ? "ok" : strerrorname_np(e);

    snprintf(line + strlen(line), sizeof line - strlen(line), " %s=%s", what, how);
    if (rc > 2)
        close((int)rc);
}

/* ---- a thread that was there before the sandbox, as libvirt's are ---- */

static sem_t asked, answered;
static int older_errno;

static void *
be_older(void *unused)
{
    char *const none[] = {NULL};

    (void)unused;
    for (;;) {
        sem_wait(&asked);
        older_errno = execve("/no/such/file", none, none) < 0 ? errno : 0;
        sem_post(&answered);
    }
    return NULL;
}

__attribute__((constructor)) static void
start_older(void)
{
    sigset_t all, before;
    pthread_t thread;

    sem_init(&asked, 0, 0);
    sem_init(&answered, 0, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &before);
    if (pthread_create(&thread, NULL, be_older, NULL) != 0)
        abort();
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* ---- what is tried ---- */

static void
try_memory(const char *victim)
{
    void *at =
        mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int fd;

    tell("writable-code", at == MAP_FAILED ? -1 : 0, 0);
    at = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    tell("made-code", mprotect(at, 4096, PROT_READ | PROT_EXEC), 0);
    fd = open(victim, O_RDONLY);
    at = mmap(NULL, 4096, PROT_READ | PROT_EXEC, MAP_PRIVATE, fd, 0);
    tell("file-code", at == MAP_FAILED ? -1 : 0, 0);
    if (fd >= 0)
        close(fd);
}

static void
try_processes(void)
{
    char *const none[] = {NULL};
    struct rlimit limit;

    tell("exec", execve("/no/such/file", none, none), ENOENT);
    sem_post(&asked);
    sem_wait(&answered);
    errno = older_errno;
    tell("older-thread", -1, ENOENT);
    tell("fork", syscall(SYS_clone, CLONE_FS | CLONE_NEWNS | SIGCHLD, 0, 0, 0, 0), EINVAL);
    tell("kill", kill(getppid(), 0), 0);
    tell("kill-self", kill(getpid(), 0), 0);
    tell("raise-self", syscall(SYS_tgkill, getpid(), gettid(), 0), 0);
    tell("ptrace", ptrace(PTRACE_ATTACH, 1 << 30, 0, 0), ESRCH);
    tell("process_vm", process_vm_readv(1 << 30, NULL, 0, NULL, 0, 0), ESRCH);
    tell("limits", prlimit(getppid(), RLIMIT_NOFILE, NULL, &limit), 0);
}

static void
try_kernel(void)
{
    tell("chroot", chroot("/no/such/file"), ENOENT);
    tell("setresuid", syscall(SYS_setresuid, -1, -1, -1), 0);
    tell("memfd", memfd_create("x", 0), 0);
    tell("mknod", mknod("/no/such/file", S_IFREG | 0600, 0), ENOENT);
    tell("symlink", symlink("x", "/no/such/file"), ENOENT);
    tell("typing", ioctl(-1, TIOCSTI, ""), EBADF);
    /* the kernel takes the lower half */
    tell("typing-64", syscall(SYS_ioctl, -1, TIOCSTI | 1UL << 32, ""), EBADF);
    tell("packets", socket(AF_ALG, SOCK_SEQPACKET, 0), EAFNOSUPPORT);
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
    tell("inet", socket(AF_INET, SOCK_STREAM, 0), 0);
    tell("unix", socket(AF_UNIX, SOCK_STREAM, 0), 0);
    tell("openat2", syscall(SYS_openat2, AT_FDCWD, victim, none, 8), EINVAL);
    try_memory(victim);
    try_processes();
    try_kernel();
    strcat(line, "\n");
    (void)!write(STDERR_FILENO, line, strlen(line));
}

ssize_t
pread64(int fd, void *buf, size_t len, off64_t off)
{
    static ssize_t (*next)(int, void *, size_t, off64_t);
    static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;
    static int times;
    const int e = errno;

    if (!next)
        *(void **)&next = dlsym(RTLD_NEXT, "pread64");
    pthread_mutex_lock(&one_at_a_time);
    if (++times <= 200)
        try_all();
    pthread_mutex_unlock(&one_at_a_time);
    errno = e;
    return next(fd, buf, len, off);
}
