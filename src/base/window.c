/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * window.c - the mapped half of io.h: bounded windows, and SIGBUS turned into an error.
 *
 * A mapped file that shrinks, or whose device fails, answers a touch with SIGBUS.  The
 * handler below belongs to a thread only while that thread is inside qm_window_guard and only
 * for addresses of the window it guards; everything else goes to whoever was there before.
 */
#include "io.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

struct guard {
    sigjmp_buf env;
    const unsigned char *base; /* NULL: not inside a guard */
    uint64_t len;
    const unsigned char *fault;
};

static __thread struct guard guard __attribute__((tls_model("initial-exec")));
static struct sigaction before_us;
static pthread_once_t installed = PTHREAD_ONCE_INIT;

static void
on_sigbus(int sig, siginfo_t *info, void *context)
{
    const unsigned char *addr = info->si_addr;

    if (guard.base && addr >= guard.base && addr < guard.base + guard.len) {
        guard.fault = addr;
        siglongjmp(guard.env, 1);
    }
    if (before_us.sa_flags & SA_SIGINFO) {
        before_us.sa_sigaction(sig, info, context);
    } else if (before_us.sa_handler != SIG_DFL && before_us.sa_handler != SIG_IGN) {
        before_us.sa_handler(sig);
    } else { /* the touch is repeated on return and ends the process, as without us */
        signal(SIGBUS, SIG_DFL);
    }
}

static void
install(void)
{
    struct sigaction sa = {.sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER};

    sigemptyset(&sa.sa_mask);
    sigaction(SIGBUS, &sa, &before_us);
}

void
qm_window_init(struct qm_window *w, const struct qm_file *file, uint64_t max_len)
{
    *w = (struct qm_window){.file = file, .max_len = max_len};
}

void
qm_window_release(struct qm_window *w)
{
    if (w->base)
        munmap(w->base, w->len);
    w->base = NULL;
    w->off = w->len = 0;
}

static int
move_to(struct qm_window *w, uint64_t off, struct qmeld_error *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t start = qm_align_down(off, page);
    const uint64_t len = qm_min(w->max_len + (off - start), w->file->size - start);
    void *p;

    pthread_once(&installed, install);
    qm_window_release(w);
    p = mmap(NULL, len, PROT_READ, MAP_SHARED, w->file->fd, (off_t)start);
    if (p == MAP_FAILED)
        return qm_fail_sys(err, qm_at(w->file->path, off), "cannot map %" PRIu64 " bytes", len);
    (void)madvise(p, len, MADV_SEQUENTIAL);
    w->base = p;
    w->off = start;
    w->len = len;
    return 0;
}

int
qm_window_at(struct qm_window *w, uint64_t off, uint64_t len, const unsigned char **out,
             uint64_t *out_len, struct qmeld_error *err)
{
    if (off >= w->file->size)
        return qm_fail(err, QMELD_IO, qm_at(w->file->path, off),
                       "offset %" PRIu64 " is past the end of the file", off);
    if ((!w->base || off < w->off || off >= w->off + w->len) && move_to(w, off, err) < 0)
        return -1;
    *out = w->base + (off - w->off);
    *out_len = qm_min(len, w->off + w->len - off);
    return 0;
}

int
qm_window_guard(const struct qm_window *w, int (*fn)(void *opaque), void *opaque,
                struct qmeld_error *err)
{
    int rc;

    if (!w->base)
        return fn(opaque);
    if (sigsetjmp(guard.env, 0)) {
        const uint64_t off = w->off + (uint64_t)(guard.fault - guard.base);

        guard.base = NULL;
        return qm_fail(err, QMELD_IO, qm_at(w->file->path, off),
                       "cannot read at offset %" PRIu64 ": the file has shrunk or its device fails",
                       off);
    }
    guard.base = w->base;
    guard.len = w->len;
    rc = fn(opaque);
    guard.base = NULL;
    return rc;
}
