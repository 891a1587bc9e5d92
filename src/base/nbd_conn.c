/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd_conn.c - the half of nbd.c that has the connection: commands are put into it by many threads, and whoever waits moves it.
 *
 * libnbd's calls are made under one lock, never across a wait, so its state cannot change between a question and the call
 * that follows.
 */
#ifdef QM_NBD

#include "nbd_int.h"

#include "cleanup.h"
#include "clock.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <unistd.h>

/* How long nothing may come of what is in flight.  A flush may mean a full cache on a slow disk. */
#define CONNECT_MS 30000u
#define PATIENT_MS 120000u
#define SLOW_MS    600000u

#ifdef QM_TESTING
/* Nobody wants to wait so long for a test. */
static unsigned
tests_patience_ms(void)
{
    const char *env = getenv("QMELD_TEST_NBD_PATIENCE");

    return env ? (unsigned)strtoul(env, NULL, 10) : 0;
}
#else
#define tests_patience_ms() 0u
#endif

/* ---- the connection, under its lock ---- */

/* Closing it gives up all commands: nobody touches their buffers any more. */
static void
die(struct nbd *n, int why)
{
    if (!n->h)
        return;
    n->dead = why;
    nbd_close(QM_TAKE(n->h));
    pthread_cond_broadcast(&n->moved);
}

static unsigned
patience_ms(const struct nbd *n)
{
    const unsigned tests_ms = tests_patience_ms();

    return tests_ms ? tests_ms : n->slow ? SLOW_MS : PATIENT_MS;
}

/* What poll said is looked at again: others may have moved the connection meanwhile. */
static void
notify(struct nbd *n, short revents)
{
    const unsigned dir = nbd_aio_get_direction(n->h);
    const bool gone = revents & (POLLERR | POLLNVAL);
    int rc = 0;

    if ((revents & (POLLIN | POLLHUP | POLLERR)) && dir & LIBNBD_AIO_DIRECTION_READ)
        rc = nbd_aio_notify_read(n->h);
    else if ((revents & (POLLOUT | POLLHUP | POLLERR)) && dir & LIBNBD_AIO_DIRECTION_WRITE)
        rc = nbd_aio_notify_write(n->h);
    else if (gone)
        rc = -1;
    if (rc < 0 || nbd_aio_is_dead(n->h) || nbd_aio_is_closed(n->h))
        die(n, ECONNRESET);
}

/* Waits until the connection can move, or somebody wants it looked at, without the lock; then moves it. */
static void
move(struct nbd *n)
{
    const unsigned dir = nbd_aio_get_direction(n->h);
    const uint64_t end = n->moved_ms + patience_ms(n), now = qm_clock_ms();
    struct pollfd fds[2] = {{.fd = nbd_aio_get_fd(n->h)}, {.fd = n->wake, .events = POLLIN}};
    uint64_t count;
    int rc;

    if (now >= end) {
        die(n, ETIMEDOUT);
        return;
    }
    fds[0].events = (short)((dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
    n->polled = true;
    pthread_mutex_unlock(&n->lock);
    rc = poll(fds, 2, (int)(end - now));
    if (rc > 0 && fds[1].revents && read(n->wake, &count, sizeof count) < 0)
        count = 0; /* another read has taken it */
    pthread_mutex_lock(&n->lock);
    n->polled = false;
    if (rc > 0 && fds[0].revents && n->h)
        notify(n, fds[0].revents);
    pthread_cond_broadcast(&n->moved);
}

/* ---- commands ---- */

/* From inside libnbd, under the lock. */
int
qm_nbd_is_over(void *opaque, int *error)
{
    struct batch *b = opaque;
    struct nbd *n = b->n;

    if (*error && !b->error)
        b->error = *error;
    b->left--;
    n->in_flight--;
    n->slow -= b->slow;
    n->moved_ms = qm_clock_ms();
    return 1; /* libnbd forgets it */
}

/* Before a command is put into the connection; NULL: it is dead. */
struct nbd_handle *
qm_nbd_expect(struct batch *b)
{
    struct nbd *n = b->n;

    if (!n->h)
        return NULL;
    if (n->in_flight++ == 0)
        n->moved_ms = qm_clock_ms();
    n->slow += b->slow;
    b->left++;
    return n->h;
}

/* After it; what libnbd does not take is a mistake of ours or of the server, and a broken connection then. */
void
qm_nbd_put(const struct batch *b, int64_t cookie)
{
    const uint64_t one = 1;
    const int e = nbd_get_errno();

    if (cookie < 0)
        die(b->n, e ? e : EIO);
    else if (b->n->polled && write(b->n->wake, &one, sizeof one) < 0)
        die(b->n, errno); /* it cannot be full */
}

/* Until no more than `left` commands of the batch are in flight. */
void
qm_nbd_wait_until(struct batch *b, unsigned left)
{
    struct nbd *n = b->n;

    while (b->left > left && n->h) {
        if (n->polled)
            pthread_cond_wait(&n->moved, &n->lock);
        else
            move(n);
    }
}

/* Before a change and after it: no answer from between is kept. */
static void
forget_runs(struct nbd *n)
{
    n->changes++;
    n->n_runs = 0;
}

int
qm_nbd_finish(struct batch *b)
{
    struct nbd *n = b->n;

    qm_nbd_wait_until(b, 0);
    if (!n->h)
        b->error = n->dead;
    if (b->changes)
        forget_runs(n);
    pthread_mutex_unlock(&n->lock);
    errno = b->error;
    return b->error ? -1 : 0;
}

/* The lock is held from here to finish, but for the waits. */
void
qm_nbd_begin(struct nbd *n, struct batch *b, bool slow, enum kind kind)
{
    *b = (struct batch){.n = n, .slow = slow, .changes = kind == CHANGES};
    pthread_mutex_lock(&n->lock);
    if (b->changes)
        forget_runs(n);
}

/* ---- the handshake ---- */

int
qm_nbd_fail(const char *path, const char *what, struct qmeld_error *err)
{
    const int e = nbd_get_errno();
    const char *why = nbd_get_error();

    qm_fail(err, QMELD_IO, qm_in(path), "%s: %.400s", what, why ? why : "no reason given");
    err->sys_errno = e;
    return -1;
}

/* The handshake, which a server may draw out no longer than this. */
static int
shake_hands(struct nbd *n, const char *path, struct qmeld_error *err)
{
    const unsigned tests_ms = tests_patience_ms();
    const uint64_t end = qm_clock_ms() + (tests_ms ? tests_ms : CONNECT_MS);

    while (nbd_aio_is_connecting(n->h) == 1 || nbd_aio_is_negotiating(n->h) == 1) {
        const unsigned dir = nbd_aio_get_direction(n->h);
        struct pollfd fd = {.fd = nbd_aio_get_fd(n->h)};
        const uint64_t now = qm_clock_ms();
        int rc = 0;

        fd.events = (short)((dir & LIBNBD_AIO_DIRECTION_READ ? POLLIN : 0) |
                            (dir & LIBNBD_AIO_DIRECTION_WRITE ? POLLOUT : 0));
        if (now >= end)
            return qm_fail(err, QMELD_IO, qm_in(path),
                           "the server does not answer: does it serve one client at a time, and "
                           "has one? is it an NBD server?");
        if (poll(&fd, 1, (int)(end - now)) <= 0)
            continue;
        if (dir & LIBNBD_AIO_DIRECTION_READ && fd.revents & (POLLIN | POLLHUP | POLLERR))
            rc = nbd_aio_notify_read(n->h);
        else if (fd.revents)
            rc = nbd_aio_notify_write(n->h);
        if (rc < 0)
            return qm_nbd_fail(path, "cannot connect", err);
    }
    return nbd_aio_is_ready(n->h) == 1 ? 0 : qm_nbd_fail(path, "cannot connect", err);
}

static int
set_up(struct nbd *n, const struct qm_nbd_name *name)
{
    if (nbd_set_export_name(n->h, name->export) < 0 ||
        nbd_add_meta_context(n->h, LIBNBD_CONTEXT_BASE_ALLOCATION) < 0 ||
        nbd_set_strict_mode(n->h, nbd_get_strict_mode(n->h) & ~LIBNBD_STRICT_ALIGN) < 0)
        return -1;
    if (!name->tls)
        return 0;
    if (nbd_set_tls(n->h, LIBNBD_TLS_REQUIRE) < 0 ||
        (name->user && nbd_set_tls_username(n->h, name->user) < 0) ||
        (name->certificates && nbd_set_tls_certificates(n->h, name->certificates) < 0) ||
        (name->psk_file && nbd_set_tls_psk_file(n->h, name->psk_file) < 0))
        return -1;
    return 0;
}

int
qm_nbd_connect(struct nbd *n, const struct qm_nbd_name *name, const char *path,
               struct qmeld_error *err)
{
    if (qm_nbd_load(path, err) < 0)
        return -1;
    n->h = nbd_create();
    if (!n->h)
        return qm_fail_nomem(err, "an NBD connection");
    if (set_up(n, name) < 0 ||
        (name->socket ? nbd_aio_connect_unix(n->h, name->socket)
                      : nbd_aio_connect_tcp(n->h, name->host, name->port)) < 0)
        return qm_nbd_fail(path, "cannot connect", err);
    return shake_hands(n, path, err);
}

#endif
