/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd.c - a file that is an export of an NBD server, through libnbd.
 *
 * One connection an export, with many commands in flight: any number of threads put commands into it, and
 * whoever waits for his own lets the connection move on for all (nobody has to be started or stopped for that; nbd_conn.c).
 *
 * A connection that breaks, or that brings nothing for too long, is dead for good: commands fail, later ones, too.  There is
 * no going back to it, as a server that went away may have lost what it had not made durable; the merge stops, and goes on
 * by its journal.
 */
#include "remote.h"

#include "nbd_name.h"

#ifndef QM_NBD

#ifdef QM_STATIC
#define WITHOUT "is no part of this static qmeld: install the package qmeld, and libnbd"
#else
#define WITHOUT "this qmeld was built without: build it where libnbd-dev is installed"
#endif

int
qm_nbd_open(const char *path, struct qm_remote **out, struct qmeld_error *err)
{
    *out = NULL;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                   "images behind NBD servers need libnbd, which " WITHOUT);
}

#else

#include "nbd_int.h"

#include "addr.h"
#include "cleanup.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* A command carries so much data at most: several are in flight for one long read, and a slow line still brings a whole one
 * in time.  Zeros and discards carry none, but a server may have to write them. */
#define PIECE      (1u << 20)
#define ZERO_PIECE (128u << 20)

#define MAX_BLOCK   (64u << 10) /* the NBD protocol, "Block size constraints" */
#define STATUS_ONCE (1u << 30)

/* Of this process. */
static pthread_mutex_t list_lock = PTHREAD_MUTEX_INITIALIZER;
static struct nbd *list;

/* ---- whole blocks ---- */

static int
read_blocks(struct nbd *n, uint64_t off, unsigned char *buf, uint64_t len)
{
    struct batch b;

    qm_nbd_begin(n, &b, false, LOOKS);
    while (len > 0 && qm_nbd_expect(&b)) {
        const uint64_t part = qm_min(len, n->piece);

        qm_nbd_put(&b, nbd_aio_pread(n->h, buf, part, off, WHEN_OVER(&b), 0));
        off += part;
        buf += part;
        len -= part;
    }
    return qm_nbd_finish(&b);
}

static int
write_blocks(struct nbd *n, uint64_t off, const unsigned char *buf, uint64_t len)
{
    struct batch b;

    qm_nbd_begin(n, &b, false, CHANGES);
    while (len > 0 && qm_nbd_expect(&b)) {
        const uint64_t part = qm_min(len, n->piece);

        qm_nbd_put(&b, nbd_aio_pwrite(n->h, buf, part, off, WHEN_OVER(&b), 0));
        off += part;
        buf += part;
        len -= part;
    }
    return qm_nbd_finish(&b);
}

/* Zeros, or a discard. */
static int
clear_blocks(struct nbd *n, uint64_t off, uint64_t len, bool zero)
{
    const unsigned most = 8; /* at a time */
    struct batch b;

    qm_nbd_begin(n, &b, true, CHANGES);
    while (len > 0 && qm_nbd_expect(&b)) {
        const uint64_t part = qm_min(len, ZERO_PIECE);

        qm_nbd_put(&b, zero ? nbd_aio_zero(n->h, part, off, WHEN_OVER(&b), 0)
                            : nbd_aio_trim(n->h, part, off, WHEN_OVER(&b), 0));
        off += part;
        len -= part;
        qm_nbd_wait_until(&b, most - 1);
    }
    return qm_nbd_finish(&b);
}

/* ---- any bytes ---- */

/* A range in whole blocks, and what it has of a block in front of them and behind. */
struct cut {
    uint64_t off, head, middle, tail;
};

static struct cut
cut_blocks(const struct nbd *n, uint64_t off, uint64_t len)
{
    const uint64_t end = off + len, first = qm_align_up(off, n->block);
    const uint64_t last = end == n->r.size ? end : qm_align_down(end, n->block);

    if (first >= last) /* in one block, or over one edge */
        return (struct cut){
            .off = off, .head = qm_min(first, end) - off, .tail = end - qm_min(first, end)};
    return (struct cut){off, first - off, last - first, end - last};
}

/* The block that has the byte at off; buf has room for it. */
static int
read_block_of(struct nbd *n, uint64_t off, unsigned char *buf)
{
    const uint64_t start = qm_align_down(off, n->block);

    return read_blocks(n, start, buf, qm_min(n->block, n->r.size - start));
}

/* From inside one block. */
static int
read_part(struct nbd *n, uint64_t off, unsigned char *buf, uint64_t len)
{
    QM_FREE unsigned char *block = len ? malloc(n->block) : NULL;

    if (len == 0)
        return 0;
    if (!block || read_block_of(n, off, block) < 0)
        return -1;
    memcpy(buf, block + off % n->block, len);
    return 0;
}

/* NULL: zeros.  The blocks are ours alone. */
static int
write_part(struct nbd *n, uint64_t off, const unsigned char *buf, uint64_t len)
{
    const uint64_t start = qm_align_down(off, n->block);
    QM_FREE unsigned char *block = len ? malloc(n->block) : NULL;

    if (len == 0)
        return 0;
    if (!block || read_block_of(n, off, block) < 0)
        return -1;
    if (buf)
        memcpy(block + (off - start), buf, len);
    else
        memset(block + (off - start), 0, len);
    return write_blocks(n, start, block, qm_min(n->block, n->r.size - start));
}

static int
read_any(struct qm_remote *r, uint64_t off, void *buf, size_t len)
{
    struct nbd *n = (struct nbd *)r;
    const struct cut c = cut_blocks(n, off, len);
    unsigned char *to = buf;

    if (read_part(n, off, to, c.head) < 0 ||
        (c.middle && read_blocks(n, off + c.head, to + c.head, c.middle) < 0))
        return -1;
    return read_part(n, off + c.head + c.middle, to + c.head + c.middle, c.tail);
}

/* Whole blocks by as many as like; parts of blocks while nobody else writes any. */
static void
hold_blocks(struct nbd *n, const struct cut *c)
{
    if (c->head || c->tail)
        pthread_rwlock_wrlock(&n->blocks);
    else
        pthread_rwlock_rdlock(&n->blocks);
}

static int
write_any(struct qm_remote *r, uint64_t off, const void *buf, size_t len)
{
    struct nbd *n = (struct nbd *)r;
    const struct cut c = cut_blocks(n, off, len);
    const unsigned char *from = buf;
    int rc;

    hold_blocks(n, &c);
    rc = write_part(n, off, from, c.head);
    if (rc == 0 && c.middle)
        rc = write_blocks(n, off + c.head, from + c.head, c.middle);
    if (rc == 0)
        rc = write_part(n, off + c.head + c.middle, from + c.head + c.middle, c.tail);
    pthread_rwlock_unlock(&n->blocks);
    return rc;
}

static int
zero_any(struct qm_remote *r, uint64_t off, uint64_t len)
{
    struct nbd *n = (struct nbd *)r;
    const struct cut c = cut_blocks(n, off, len);
    int rc;

    if (!n->can_zero) {
        errno = ENOTSUP;
        return -1;
    }
    hold_blocks(n, &c);
    rc = write_part(n, off, NULL, c.head);
    if (rc == 0 && c.middle)
        rc = clear_blocks(n, off + c.head, c.middle, true);
    if (rc == 0)
        rc = write_part(n, off + c.head + c.middle, NULL, c.tail);
    pthread_rwlock_unlock(&n->blocks);
    return rc;
}

static int
discard_any(struct qm_remote *r, uint64_t off, uint64_t len)
{
    struct nbd *n = (struct nbd *)r;
    const struct cut c = cut_blocks(n, off, len);

    if (!n->can_discard) {
        errno = ENOTSUP;
        return -1;
    }
    return c.middle ? clear_blocks(n, off + c.head, c.middle, false) : 0;
}

static int
flush_all(struct qm_remote *r)
{
    struct nbd *n = (struct nbd *)r;
    struct batch b;

    qm_nbd_begin(n, &b, true, LOOKS);
    if (qm_nbd_expect(&b))
        qm_nbd_put(&b, nbd_aio_flush(n->h, WHEN_OVER(&b), 0));
    return qm_nbd_finish(&b);
}

/* ---- holes ---- */

struct question {
    struct nbd *n;
    uint64_t off;
    uint64_t changes; /* when it was asked */
};

/* From inside libnbd, under the lock.  What a server says of no range, or of one behind the end, ends the list. */
static int
take_answer(void *opaque, const char *context, uint64_t off, uint32_t *entries, size_t n_entries,
            int *error)
{
    struct question *q = opaque;
    struct nbd *n = q->n;

    (void)error;
    if (strcmp(context, LIBNBD_CONTEXT_BASE_ALLOCATION) != 0 || off != q->off ||
        q->changes != n->changes)
        return 0;
    n->n_runs = 0;
    for (size_t i = 0; i + 1 < n_entries && n->n_runs < QM_NBD_MAX_RUNS && off < n->r.size;
         i += 2) {
        const uint64_t len = qm_min(entries[i], n->r.size - off);
        const bool data = !(entries[i + 1] & LIBNBD_STATE_ZERO);
        struct run *last = n->n_runs ? &n->runs[n->n_runs - 1] : NULL;

        if (len == 0)
            break;
        if (last && last->data == data)
            last->len += len;
        else
            n->runs[n->n_runs++] = (struct run){off, len, data};
        off += len;
    }
    return 0;
}

static bool
find_run(const struct nbd *n, uint64_t off, bool *out_data, uint64_t *out_len)
{
    for (size_t lo = 0, hi = n->n_runs; lo < hi;) {
        const size_t mid = lo + (hi - lo) / 2;
        const struct run *r = &n->runs[mid];

        if (off < r->off)
            hi = mid;
        else if (off >= r->off + r->len)
            lo = mid + 1;
        else {
            *out_data = r->data;
            *out_len = r->off + r->len - off;
            return true;
        }
    }
    return false;
}

/* One answer is kept for the next questions, until something is written. */
static int
find_status(struct qm_remote *r, uint64_t off, bool *out_data, uint64_t *out_len)
{
    struct nbd *n = (struct nbd *)r;
    const uint64_t start = qm_align_down(off, n->block);
    struct question q = {.n = n, .off = start};
    struct batch b;

    *out_data = true;
    *out_len = n->r.size - off;
    if (!n->can_status)
        return 0;
    qm_nbd_begin(n, &b, false, LOOKS);
    if (!find_run(n, off, out_data, out_len)) {
        q.changes = n->changes;
        if (qm_nbd_expect(&b))
            qm_nbd_put(&b, nbd_aio_block_status(
                               n->h, qm_min(STATUS_ONCE, n->r.size - start), start,
                               (nbd_extent_callback){.callback = take_answer, .user_data = &q},
                               WHEN_OVER(&b), 0));
        qm_nbd_wait_until(&b, 0);
        if (b.error == 0 && n->h && !find_run(n, off, out_data, out_len)) {
            *out_data = true; /* no answer is no hole */
            *out_len = qm_min(n->block, n->r.size - off);
        }
    }
    return qm_nbd_finish(&b);
}

/* ---- open and close ---- */

static void
free_nbd(struct nbd *n)
{
    if (n->h) {
        (void)nbd_aio_disconnect(n->h, 0); /* as far as it goes at once: a goodbye, not a barrier */
        nbd_close(n->h);
    }
    if (n->wake >= 0)
        close(n->wake);
    pthread_rwlock_destroy(&n->blocks);
    pthread_mutex_destroy(&n->lock);
    pthread_cond_destroy(&n->moved);
    free(n->uri);
    free(n);
}

static void
leave(struct qm_remote *r)
{
    struct nbd *n = (struct nbd *)r;
    bool last;

    pthread_mutex_lock(&list_lock);
    last = --n->users == 0;
    for (struct nbd **at = &list; last && *at; at = &(*at)->next) {
        if (*at == n) {
            *at = n->next;
            break;
        }
    }
    pthread_mutex_unlock(&list_lock);
    if (last)
        free_nbd(n);
}

static const struct qm_remote_ops ops = {
    .kind = "NBD export",
    .read = read_any,
    .write = write_any,
    .zero = zero_any,
    .discard = discard_any,
    .flush = flush_all,
    .status = find_status,
    .close = leave,
};

/* What the server says of the export. */
static int
look(struct nbd *n, const char *path, struct qmeld_error *err)
{
    const int64_t size = nbd_get_size(n->h);
    const int64_t least = nbd_get_block_size(n->h, LIBNBD_SIZE_MINIMUM);
    const int64_t most = nbd_get_block_size(n->h, LIBNBD_SIZE_MAXIMUM);

    if (size < 0)
        return qm_nbd_fail(path, "cannot find its size", err);
    n->r.size = (uint64_t)size;
    n->block = least > 0 ? (uint64_t)least : 1;
    n->piece = most > 0 ? qm_min((uint64_t)most, PIECE) : PIECE;
    if (n->block > MAX_BLOCK || (n->block & (n->block - 1)) || n->piece < n->block)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                       "the server wants blocks of %" PRId64 " bytes, at most %" PRId64
                       " at once: no NBD server may (1 to 65536, a power of two)",
                       least, most);
    n->piece = qm_align_down(n->piece, n->block);
    n->r.read_only = nbd_is_read_only(n->h) != 0;
    n->r.can_flush = nbd_can_flush(n->h) == 1;
    n->can_zero = nbd_can_zero(n->h) == 1;
    n->can_discard = nbd_can_trim(n->h) == 1;
    n->can_status = nbd_can_meta_context(n->h, LIBNBD_CONTEXT_BASE_ALLOCATION) == 1;
    return 0;
}

/* Takes over uri. */
static int
open_new(const struct qm_nbd_name *name, char *uri, const char *path, struct nbd **out,
         struct qmeld_error *err)
{
    struct nbd *n = calloc(1, sizeof *n);

    *out = n;
    if (!n) {
        free(uri);
        return qm_fail_nomem(err, "an NBD connection");
    }
    n->r = (struct qm_remote){.ops = &ops, .name = uri, .id = qm_nbd_id(uri)};
    n->uri = uri;
    n->users = 1;
    pthread_rwlock_init(&n->blocks, NULL);
    pthread_mutex_init(&n->lock, NULL);
    pthread_cond_init(&n->moved, NULL);
    n->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (n->wake < 0)
        return qm_fail_sys(err, qm_in(path), "cannot connect");
    return qm_nbd_connect(n, name, path, err) < 0 ? -1 : look(n, path, err);
}

/* One that is open, and lives. */
static struct nbd *
find_open(const char *uri)
{
    struct nbd *n;

    for (n = list; n; n = n->next) {
        bool alive;

        pthread_mutex_lock(&n->lock);
        alive = n->h != NULL;
        pthread_mutex_unlock(&n->lock);
        if (alive && strcmp(n->uri, uri) == 0)
            break;
    }
    if (n)
        n->users++;
    return n;
}

static int
open_named(const struct qm_nbd_name *name, const char *path, struct qm_remote **out,
           struct qmeld_error *err)
{
    char *uri = qm_nbd_uri(name);
    struct nbd *n;
    int rc = 0;

    if (!uri)
        return qm_fail_nomem(err, "an NBD connection");
    pthread_mutex_lock(&list_lock);
    n = find_open(uri);
    if (n) {
        free(uri);
    } else if ((rc = open_new(name, uri, path, &n, err)) == 0) {
        n->next = list;
        list = n;
    } else if (n) {
        free_nbd(n);
    }
    pthread_mutex_unlock(&list_lock);
    *out = rc == 0 ? &n->r : NULL;
    return rc;
}

int
qm_nbd_open(const char *path, struct qm_remote **out, struct qmeld_error *err)
{
    struct qm_nbd_name name;
    int rc;

    *out = NULL;
    if (qm_nbd_parse(path, &name, err) < 0)
        return -1;
    rc = open_named(&name, path, out, err);
    qm_nbd_name_release(&name);
    return rc;
}

#endif
