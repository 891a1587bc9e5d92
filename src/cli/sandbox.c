/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sandbox.c - what sandbox.h promises, by seccomp.
 *
 * Why this way.  Two filters, one after the other, since the kernel takes the stricter answer of both and gives nothing
 * back.  The first is a list of what is allowed.  What is refused by intent fails with EPERM; what is merely unknown
 * here fails with ENOSYS, as on an older kernel, so that a libc that tries a newer call first falls back to one that is
 * on the list.  Nothing kills the process: a refusal is an error with a sentence, as any other.
 */
#include "sandbox.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#ifdef QM_SECCOMP
#include <sched.h>
#include <seccomp.h>
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif

static bool disabled, active;
static const char *why_not = "off: it was not entered";

void
qm_cli_sandbox_disable(void)
{
    disabled = true;
    why_not = "off: --no-sandbox";
}

const char *
qm_cli_sandbox_state(void)
{
    return active ? "on" : why_not;
}

#if defined(QM_SECCOMP) && !defined(SANITIZED)

static bool writes_files; /* set by enter */

#define XFS_GEOMETRY _IOR('X', 100, char[112]) /* xfs_fs.h, XFS_IOC_FSGEOMETRY_V1 */

/* Whatever a reader does: files, memory, threads, time, itself.  Calls that are allowed with some arguments only are
 * in allow_special(). */
static const int reading[] = {
    SCMP_SYS(read),
    SCMP_SYS(pread64),
    SCMP_SYS(readv),
    SCMP_SYS(preadv),
    SCMP_SYS(preadv2),
    SCMP_SYS(write),
    SCMP_SYS(writev),
    SCMP_SYS(lseek),
    SCMP_SYS(_llseek),
    SCMP_SYS(close),
    SCMP_SYS(close_range),
    SCMP_SYS(fstat),
    SCMP_SYS(fstat64),
    SCMP_SYS(stat),
    SCMP_SYS(stat64),
    SCMP_SYS(lstat),
    SCMP_SYS(lstat64),
    SCMP_SYS(newfstatat),
    SCMP_SYS(fstatat64),
    SCMP_SYS(statx),
    SCMP_SYS(statfs),
    SCMP_SYS(statfs64),
    SCMP_SYS(fstatfs),
    SCMP_SYS(fstatfs64),
    SCMP_SYS(access),
    SCMP_SYS(faccessat),
    SCMP_SYS(faccessat2),
    SCMP_SYS(readlink),
    SCMP_SYS(readlinkat),
    SCMP_SYS(getcwd),
    SCMP_SYS(getdents64),
    SCMP_SYS(getdents),
    SCMP_SYS(getxattr),
    SCMP_SYS(fgetxattr),
    SCMP_SYS(lgetxattr),
    SCMP_SYS(listxattr),
    SCMP_SYS(flistxattr),
    SCMP_SYS(fcntl), /* locks; O_RDONLY descriptors stay what they are */
    SCMP_SYS(fcntl64),
    SCMP_SYS(flock),
    SCMP_SYS(fadvise64),
    SCMP_SYS(fadvise64_64),
    SCMP_SYS(readahead),
    SCMP_SYS(mincore),
    SCMP_SYS(munmap),
    SCMP_SYS(mremap),
    SCMP_SYS(madvise),
    SCMP_SYS(mlock),
    SCMP_SYS(mlock2),
    SCMP_SYS(munlock),
    SCMP_SYS(brk),
    SCMP_SYS(futex),
    SCMP_SYS(futex_time64),
    SCMP_SYS(set_robust_list),
    SCMP_SYS(rseq),
    SCMP_SYS(membarrier),
    SCMP_SYS(set_tid_address),
    SCMP_SYS(exit),
    SCMP_SYS(exit_group),
    SCMP_SYS(rt_sigaction),
    SCMP_SYS(rt_sigprocmask),
    SCMP_SYS(rt_sigreturn),
    SCMP_SYS(sigreturn),
    SCMP_SYS(sigaltstack),
    SCMP_SYS(restart_syscall),
    SCMP_SYS(getpid),
    SCMP_SYS(gettid),
    SCMP_SYS(getuid),
    SCMP_SYS(geteuid),
    SCMP_SYS(getgid),
    SCMP_SYS(getegid),
    SCMP_SYS(getgroups),
    SCMP_SYS(sched_yield),
    SCMP_SYS(sched_getaffinity),
    SCMP_SYS(getcpu),
    SCMP_SYS(clock_gettime),
    SCMP_SYS(clock_gettime64),
    SCMP_SYS(clock_getres),
    SCMP_SYS(clock_nanosleep),
    SCMP_SYS(clock_nanosleep_time64),
    SCMP_SYS(nanosleep),
    SCMP_SYS(gettimeofday),
    SCMP_SYS(time),
    SCMP_SYS(times),
    SCMP_SYS(getrusage),
    SCMP_SYS(getrandom),
    SCMP_SYS(getrlimit),
    SCMP_SYS(ugetrlimit),
    SCMP_SYS(setrlimit),
    SCMP_SYS(sysinfo),
    SCMP_SYS(uname),
    SCMP_SYS(prctl), /* the names of threads, and the second filter */
    SCMP_SYS(seccomp),
    SCMP_SYS(quotactl_fd), /* who may set quotas needs no file for it */
    SCMP_SYS(poll),
    SCMP_SYS(ppoll),
    SCMP_SYS(ppoll_time64),
    SCMP_SYS(select),
    SCMP_SYS(pselect6),
    SCMP_SYS(eventfd2),
    SCMP_SYS(pipe2),
    SCMP_SYS(dup),
};

/* On what is connected, and to connect: the second filter takes socket and connect away again. */
static const int network[] = {
    SCMP_SYS(connect),    SCMP_SYS(bind),        SCMP_SYS(getsockname),   SCMP_SYS(getpeername),
    SCMP_SYS(getsockopt), SCMP_SYS(setsockopt),  SCMP_SYS(shutdown),      SCMP_SYS(sendto),
    SCMP_SYS(recvfrom),   SCMP_SYS(sendmsg),     SCMP_SYS(recvmsg),       SCMP_SYS(sendmmsg),
    SCMP_SYS(recvmmsg),   SCMP_SYS(socketpair),  SCMP_SYS(epoll_create1), SCMP_SYS(epoll_ctl),
    SCMP_SYS(epoll_wait), SCMP_SYS(epoll_pwait), SCMP_SYS(send),          SCMP_SYS(recv),
    SCMP_SYS(socketcall),
};

static const int writing[] = {
    SCMP_SYS(open),
    SCMP_SYS(openat),
    SCMP_SYS(pwrite64),
    SCMP_SYS(pwritev),
    SCMP_SYS(pwritev2),
    SCMP_SYS(ftruncate),
    SCMP_SYS(ftruncate64),
    SCMP_SYS(fallocate),
    SCMP_SYS(fsync),
    SCMP_SYS(fdatasync),
    SCMP_SYS(sync_file_range),
    SCMP_SYS(sync_file_range2),
    SCMP_SYS(syncfs),
    SCMP_SYS(msync),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(rename),
    SCMP_SYS(renameat),
    SCMP_SYS(renameat2),
    SCMP_SYS(link),
    SCMP_SYS(linkat),
    SCMP_SYS(fchmod),
    SCMP_SYS(fchmodat),
    SCMP_SYS(fchown),
    SCMP_SYS(fchownat),
    SCMP_SYS(utimensat),
    SCMP_SYS(fsetxattr),
    SCMP_SYS(setxattr),
    SCMP_SYS(fremovexattr),
    SCMP_SYS(copy_file_range),
    SCMP_SYS(utimensat_time64),
};

/* Refused by intent, and with the right word. */
static const int refused[] = {
    SCMP_SYS(execve),
    SCMP_SYS(execveat),
    SCMP_SYS(fork),
    SCMP_SYS(vfork),
    SCMP_SYS(ptrace),
    SCMP_SYS(creat),
    SCMP_SYS(unlink),
    SCMP_SYS(unlinkat),
    SCMP_SYS(rename),
    SCMP_SYS(renameat),
    SCMP_SYS(renameat2),
    SCMP_SYS(truncate),
    SCMP_SYS(link),
    SCMP_SYS(linkat),
    SCMP_SYS(symlink),
    SCMP_SYS(symlinkat),
    SCMP_SYS(mkdir),
    SCMP_SYS(mkdirat),
    SCMP_SYS(rmdir),
    SCMP_SYS(mknod),
    SCMP_SYS(mknodat),
    SCMP_SYS(pwrite64),
    SCMP_SYS(ftruncate),
    SCMP_SYS(setxattr),
    SCMP_SYS(chmod),
    SCMP_SYS(chown),
    SCMP_SYS(fchmod),
    SCMP_SYS(fchown),
    SCMP_SYS(mount),
    SCMP_SYS(fallocate),
    SCMP_SYS(process_vm_writev),
};

#define ALLOW_ALL(c, list) allow_all(c, list, sizeof(list) / sizeof *(list))

/* A call that this architecture has not is no failure: libseccomp leaves it out. */
static bool
allow_all(scmp_filter_ctx c, const int *list, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (seccomp_rule_add(c, SCMP_ACT_ALLOW, list[i], 0) < 0)
            return false;
    return true;
}

static bool
contains(const int *list, size_t n, int call)
{
    for (size_t i = 0; i < n; i++)
        if (list[i] == call)
            return true;
    return false;
}

static bool
refuse_all(scmp_filter_ctx c, bool writes)
{
    for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
        if (!(writes && contains(writing, sizeof writing / sizeof *writing, refused[i])) &&
            seccomp_rule_add(c, SCMP_ACT_ERRNO(EPERM), refused[i], 0) < 0)
            return false;
    return true;
}

/* open and openat have their flags in a register; openat2 has not, and is unknown here. */
static bool
allow_to_open(scmp_filter_ctx c)
{
    const unsigned change = O_ACCMODE | O_CREAT | O_TRUNC;
    const struct {
        int call;
        unsigned arg;
    } calls[] = {{SCMP_SYS(open), 1}, {SCMP_SYS(openat), 2}};

    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        const struct scmp_arg_cmp only_reads =
            SCMP_CMP(calls[i].arg, SCMP_CMP_MASKED_EQ, change, O_RDONLY);

        if (seccomp_rule_add_array(c, SCMP_ACT_ALLOW, calls[i].call, 1, &only_reads) < 0)
            return false;
        /* the others, word by word: a rule without arguments would take the one above away */
        for (unsigned bit = 0; bit < 32; bit++) {
            const struct scmp_arg_cmp writes =
                SCMP_CMP(calls[i].arg, SCMP_CMP_MASKED_EQ, change & 1u << bit, 1u << bit);

            if ((change & 1u << bit) &&
                seccomp_rule_add_array(c, SCMP_ACT_ERRNO(EPERM), calls[i].call, 1, &writes) < 0)
                return false;
        }
    }
    return true;
}

/* A rule on one argument, whose first n_bits count: the kernel takes an int where a register has 64 bits, so what
 * compares the whole register with something that is refused lets the same number with a bit above it through. */
static struct scmp_arg_cmp
bits(unsigned arg, uint64_t mask, uint64_t value)
{
    return (struct scmp_arg_cmp){
        .arg = arg, .op = SCMP_CMP_MASKED_EQ, .datum_a = mask, .datum_b = value};
}

static bool
allow_if(scmp_filter_ctx c, int call, struct scmp_arg_cmp first)
{
    return seccomp_rule_add_array(c, SCMP_ACT_ALLOW, call, 1, &first) == 0;
}

/* What files, block devices and terminals are asked.  Any other request can do whatever its driver likes: type on
 * somebody's terminal, say. */
static bool
allow_requests(scmp_filter_ctx c)
{
    static const uint64_t requests[] = {
        FS_IOC_FIEMAP, FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR, FICLONE,      FICLONERANGE, BLKGETSIZE64,
        BLKSSZGET,     BLKPBSZGET,      BLKROGET,          BLKDISCARD,   BLKZEROOUT,   TCGETS,
        TIOCGWINSZ,    FIONREAD,        FIONBIO,           XFS_GEOMETRY, FIOCLEX,      FIONCLEX,
    };

    for (size_t i = 0; i < sizeof requests / sizeof *requests; i++)
        if (!allow_if(c, SCMP_SYS(ioctl), bits(1, UINT32_MAX, requests[i])))
            return false;
    return true;
}

/* Servers of images, libvirt, names of hosts; no packets, no cryptography, no firewalls of the kernel, whose socket
 * families are where holes have been. */
static bool
allow_sockets(scmp_filter_ctx c)
{
    static const uint64_t families[] = {AF_UNIX, AF_INET, AF_INET6};
    const struct scmp_arg_cmp routes[] = {bits(0, UINT32_MAX, AF_NETLINK), bits(2, UINT32_MAX, 0)};

    for (size_t i = 0; i < sizeof families / sizeof *families; i++)
        if (!allow_if(c, SCMP_SYS(socket), bits(0, UINT32_MAX, families[i])))
            return false;
    return seccomp_rule_add_array(c, SCMP_ACT_ALLOW, SCMP_SYS(socket), 2, routes) == 0;
}

/* Code comes from files alone, and is not changed: a library may still be loaded (libnbd, libvirt's). */
static bool
allow_memory(scmp_filter_ctx c)
{
    const uint64_t changing = PROT_WRITE | PROT_EXEC;
    const int maps[] = {SCMP_SYS(mmap), SCMP_SYS(mmap2)};

    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        if (!allow_if(c, maps[i], bits(2, PROT_EXEC, 0)) ||
            !allow_if(c, maps[i], bits(2, changing, PROT_EXEC)))
            return false;
    return allow_if(c, SCMP_SYS(mprotect), bits(2, PROT_EXEC, 0));
}

/* Signals to itself: the second SIGINT ends the process by raise(), and so does abort(). */
static bool
allow_own_signals(scmp_filter_ctx c)
{
    const struct scmp_arg_cmp self = {.op = SCMP_CMP_EQ, .datum_a = (scmp_datum_t)getpid()};
    const struct scmp_arg_cmp other = {.op = SCMP_CMP_NE, .datum_a = (scmp_datum_t)getpid()};
    const int calls[] = {SCMP_SYS(kill), SCMP_SYS(tgkill)};

    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++)
        if (!allow_if(c, calls[i], self) ||
            seccomp_rule_add_array(c, SCMP_ACT_ERRNO(EPERM), calls[i], 1, &other) < 0)
            return false;
    return true;
}

/* Threads, and no processes: clone has its flags in a register, clone3 has not, and libc goes back to clone.  Limits are
 * its own. */
static bool
allow_special(scmp_filter_ctx c, bool writes)
{
    return allow_if(c, SCMP_SYS(clone),
                    bits(0, CLONE_THREAD | CLONE_VM, CLONE_THREAD | CLONE_VM)) &&
           allow_if(c, SCMP_SYS(prlimit64), bits(0, UINT32_MAX, 0)) && allow_requests(c) &&
           allow_sockets(c) && allow_memory(c) && allow_own_signals(c) &&
           (writes || allow_to_open(c));
}

/* Frees c.  What libseccomp sets by itself: no_new_privs. */
static bool
load(scmp_filter_ctx c, bool complete)
{
    bool done;

    /* what is run is our own code: no need for what slows it down (Linux before 5.16 would) */
    (void)seccomp_attr_set(c, SCMP_FLTATR_CTL_SSB, 1);
    /* libvirt's threads, which are there already, share our memory */
    (void)seccomp_attr_set(c, SCMP_FLTATR_CTL_TSYNC, 1);
    done = complete && seccomp_load(c) == 0;
    seccomp_release(c);
    return done;
}

/* It writes what it found from within the process, at the end. */
static bool
under_valgrind(void)
{
    const char *preload = getenv("LD_PRELOAD");

    return preload && strstr(preload, "/vgpreload_");
}

void
qm_cli_sandbox_enter(enum qm_cli_sandbox_needs needs)
{
    const bool writes = needs & QM_SANDBOX_WRITES;
    scmp_filter_ctx c;

    if (disabled || active)
        return;
    if (under_valgrind()) {
        why_not = "off: under valgrind, which writes its files from within";
        return;
    }
    why_not = "off: this kernel has no seccomp filters, or does not let us use them";
    c = seccomp_init(SCMP_ACT_ERRNO(ENOSYS));
    if (!c)
        return;
    writes_files = writes;
    active = load(c, ALLOW_ALL(c, reading) && ALLOW_ALL(c, network) &&
                         (!writes || ALLOW_ALL(c, writing)) && allow_special(c, writes) &&
                         refuse_all(c, writes));
}

/* The library loads libnbd when the first export is opened, and never unloads it. */
static bool
uses_servers(void)
{
#ifdef QM_NBD
    void *loaded = dlopen("libnbd.so.0", RTLD_NOW | RTLD_NOLOAD);

    if (loaded)
        dlclose(loaded);
    return loaded != NULL;
#else
    return false;
#endif
}

/* What can write files could write a library, and map that. */
static bool
refuse_code(scmp_filter_ctx c)
{
    const struct scmp_arg_cmp runs = bits(2, PROT_EXEC, PROT_EXEC);
    const int maps[] = {SCMP_SYS(mmap), SCMP_SYS(mmap2)};

    for (size_t i = 0; i < sizeof maps / sizeof *maps; i++)
        if (seccomp_rule_add_array(c, SCMP_ACT_ERRNO(EPERM), maps[i], 1, &runs) < 0)
            return false;
    return true;
}

static bool
refuse_each(scmp_filter_ctx c, const int *calls, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (seccomp_rule_add(c, SCMP_ACT_ERRNO(EPERM), calls[i], 0) < 0)
            return false;
    return true;
}

void
qm_cli_sandbox_opened(unsigned opens)
{
    static const int connecting[] = {SCMP_SYS(socket), SCMP_SYS(connect), SCMP_SYS(bind),
                                     SCMP_SYS(socketpair), SCMP_SYS(socketcall)};
    static const int opening[] = {SCMP_SYS(open), SCMP_SYS(openat)};
    const bool nothing = opens & QM_SANDBOX_OPENS_NOTHING, servers = uses_servers();
    const bool no_code = writes_files && !servers && !(opens & QM_SANDBOX_OPENS_CODE);
    scmp_filter_ctx c;

    if (!active || (servers && !nothing) || !(c = seccomp_init(SCMP_ACT_ALLOW)))
        return;
    (void)load(c, (servers || refuse_each(c, connecting, sizeof connecting / sizeof *connecting)) &&
                      (!nothing || refuse_each(c, opening, sizeof opening / sizeof *opening)) &&
                      (!no_code || refuse_code(c)));
}

bool
qm_cli_sandbox_peek(const char *path, const struct qmeld_open_options *opts)
{
    struct qmeld_chain *chain;
    struct qmeld_error err;

    if (!active)
        return true;
    if (qmeld_chain_open(path, opts, &chain, &err) < 0)
        return false;
    qmeld_chain_close(chain);
    return true;
}

#else

void
qm_cli_sandbox_enter(enum qm_cli_sandbox_needs needs)
{
    (void)needs;
    if (!disabled)
#ifdef SANITIZED
        why_not = "off: built with a sanitizer, which runs programs and traces its own process";
#else
        why_not = "off: built without libseccomp";
#endif
}

bool
qm_cli_sandbox_peek(const char *path, const struct qmeld_open_options *opts)
{
    (void)path;
    (void)opts;
    return true;
}

void
qm_cli_sandbox_opened(unsigned opens)
{
    (void)opens;
}

#endif
