/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_seam.c - where tests see every change of a file, and let the nth one fail.  Empty in what users run.
 */
#include "io_int.h"

#ifdef QM_TESTING

#include <errno.h>
#include <pthread.h>
#include <unistd.h>

static pthread_mutex_t hook_lock = PTHREAD_MUTEX_INITIALIZER;
static qm_io_hook *hook_fn;
static void *hook_opaque;
static qm_io_call_hook *call_fn;
static void *call_opaque;
bool qm_io_always_map;

void
qm_io_set_hook(qm_io_hook *hook, void *opaque)
{
    pthread_mutex_lock(&hook_lock);
    hook_fn = hook;
    hook_opaque = opaque;
    pthread_mutex_unlock(&hook_lock);
}

bool
qm_io_is_watched(void)
{
    bool is;

    pthread_mutex_lock(&hook_lock);
    is = hook_fn != NULL;
    pthread_mutex_unlock(&hook_lock);
    return is;
}

int
qm_io_announce(const struct qm_io_event *ev)
{
    int e = 0;

    pthread_mutex_lock(&hook_lock);
    if (hook_fn)
        e = hook_fn(ev, hook_opaque);
    pthread_mutex_unlock(&hook_lock);
    errno = e;
    return e ? -1 : 0;
}

void
qm_io_set_call_hook(qm_io_call_hook *hook, void *opaque)
{
    pthread_mutex_lock(&hook_lock);
    call_fn = hook;
    call_opaque = opaque;
    pthread_mutex_unlock(&hook_lock);
}

ssize_t
qm_io_ask(enum qm_io_call call, const char *path, uint64_t off, size_t len)
{
    ssize_t n = (ssize_t)len;

    pthread_mutex_lock(&hook_lock);
    if (call_fn)
        n = call_fn(call, path, off, len, call_opaque);
    pthread_mutex_unlock(&hook_lock);
    return n;
}

ssize_t
qm_io_call_read(const struct qm_file *f, uint64_t off, void *buf, size_t len)
{
    const ssize_t n = qm_io_ask(QM_IO_CALL_READ, f->path, off, len);

    if (n >= 0)
        return qm_io_raw_read(f, off, buf, (size_t)n);
    errno = (int)-n;
    return -1;
}

ssize_t
qm_io_call_write(const struct qm_file *f, uint64_t off, const void *buf, size_t len)
{
    const ssize_t n = qm_io_ask(QM_IO_CALL_WRITE, f->path, off, len);

    if (n >= 0)
        return qm_io_raw_write(f, off, buf, (size_t)n);
    errno = (int)-n;
    return -1;
}

#endif
