/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "pagecache.h"

#include "io_int.h"
#include "vec.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <unistd.h>

#define PARTS      64u
#define PAGES_ONCE 1024u

/* ---- what is there ---- */

/* Of a range: so long is a part.  Whole pages, so that the last parts may be empty. */
static uint64_t
part_bytes(uint64_t len)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);

    return qm_align_up(qm_div_up(len, PARTS), page);
}

/* Marks the parts that pages [at, + n), whose states these are, belong to. */
static uint64_t
parts_of_pages(const unsigned char *pages, size_t n, uint64_t at, uint64_t off, uint64_t part)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    uint64_t there = 0;

    for (size_t i = 0; i < n; i++) {
        const uint64_t first = at + i * page;

        if (pages[i] & 1) { /* a page may belong to two parts, as these begin anywhere */
            there |= 1ull << (first > off ? (first - off) / part : 0);
            there |= 1ull << qm_min(PARTS - 1, (first + page - 1 - off) / part);
        }
    }
    return there;
}

uint64_t
qm_cache_look(struct qm_window *w, uint64_t off, uint64_t len)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE), part = part_bytes(len);
    const uint64_t end = qm_min(off + len, w->file->size);
    unsigned char pages[PAGES_ONCE];
    uint64_t there = 0;

    if (w->file->no_map)
        return QM_CACHE_ALL;
    for (uint64_t at = qm_align_down(off, page), n; at < end; at += n) {
        if (!qm_window_covers(w, at))
            return QM_CACHE_ALL;
        n = qm_min(qm_min(end, w->off + w->len) - at, PAGES_ONCE * page);
        n = qm_align_up(n, page);
        if (mincore(w->base + (at - w->off), n, pages) < 0)
            return QM_CACHE_ALL;
        there |= parts_of_pages(pages, n / page, at, off, part);
    }
    return there;
}

/* Forgets the parts that were not there.  Only whole pages go, and only what is durable or was not changed. */
static void
drop(const struct qm_file *file, uint64_t off, uint64_t len, uint64_t there)
{
    const uint64_t part = part_bytes(len);
    const int fd = file->wfd >= 0 ? file->wfd : file->fd;

    if (!qm_file_is_local(file))
        return;
    for (unsigned i = 0, n; i < PARTS && i * part < len; i += n) {
        const bool stays = there >> i & 1;

        for (n = 1; i + n < PARTS && (there >> (i + n) & 1) == stays; n++)
            ;
        if (!stays)
            (void)posix_fadvise(fd, (off_t)(off + i * part),
                                (off_t)qm_min(n * part, len - i * part), POSIX_FADV_DONTNEED);
    }
}

/* ---- behind a writer ---- */

struct range {
    const struct qm_file *file;
    uint64_t off;
    uint64_t len;
    uint64_t there;
};

struct qm_behind {
    /* set at new */
    struct qm_file *file;
    pthread_mutex_t lock;
    /* under lock */
    QM_VEC(struct range) list; /* all since the last sync, for dropping */
    QM_VEC(struct range) read;
    size_t waited; /* of list, from the front */
    uint64_t sum;  /* bytes of the others */
    /* any thread's */
    _Atomic bool cannot; /* the file system has no such call */
};

#ifdef QM_TESTING
uint64_t qm_behind_bytes;
#define BEHIND_BYTES (qm_behind_bytes ? qm_behind_bytes : QM_BEHIND_BYTES)
#else
#define BEHIND_BYTES QM_BEHIND_BYTES
#endif

int
qm_behind_new(struct qm_file *file, struct qm_behind **out, struct qmeld_error *err)
{
    struct qm_behind *b = calloc(1, sizeof *b);

    *out = b;
    if (!b)
        return qm_fail_nomem(err, "the copy");
    b->file = file;
    b->cannot = !qm_file_is_local(file);
    pthread_mutex_init(&b->lock, NULL);
    return 0;
}

void
qm_behind_free(struct qm_behind *b)
{
    if (!b)
        return;
    pthread_mutex_destroy(&b->lock);
    qm_vec_release(&b->list);
    qm_vec_release(&b->read);
    free(b);
}

static int
wait_for(const struct qm_file *f, uint64_t off, uint64_t len)
{
#ifdef QM_TESTING
    const ssize_t can = qm_io_ask(QM_IO_CALL_WAIT, f->path, off, len);

    if (can < 0) {
        errno = (int)-can;
        return -1;
    }
#endif
    return sync_file_range(f->wfd, (off_t)off, (off_t)len,
                           SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                               SYNC_FILE_RANGE_WAIT_AFTER);
}

/* What was written first, as far as it is one range, if there is too much; waited for without the lock. */
static bool
take_oldest(struct qm_behind *b, uint64_t *out_off, uint64_t *out_len)
{
    bool took = false;

    pthread_mutex_lock(&b->lock);
    for (*out_len = 0; (took || b->sum > BEHIND_BYTES) && b->waited < b->list.n; b->waited++) {
        const struct range *r = &b->list.at[b->waited];

        if (took && (*out_off + *out_len != r->off || *out_len >= BEHIND_BYTES / 4))
            break;
        if (!took)
            *out_off = r->off;
        *out_len += r->len;
        b->sum -= r->len;
        took = true;
    }
    pthread_mutex_unlock(&b->lock);
    return took;
}

int
qm_behind_wrote(struct qm_behind *b, uint64_t off, uint64_t len, uint64_t there,
                struct qmeld_error *err)
{
    const struct range r = {b->file, off, len, there};
    bool noted;

    qm_writeback(b->file, off, len);
    pthread_mutex_lock(&b->lock);
    noted = qm_vec_push(&b->list, &r);
    b->sum += noted ? len : 0;
    pthread_mutex_unlock(&b->lock);
    while (noted && !b->cannot && take_oldest(b, &off, &len)) {
        if (wait_for(b->file, off, len) == 0)
            continue;
        if (errno != ENOSYS && errno != EOPNOTSUPP && errno != ESPIPE && errno != EINVAL)
            return qm_fail_sys(err, qm_at(b->file->path, off),
                               "cannot make durable what was written at offset %" PRIu64, off);
        b->cannot = true;
    }
    return 0;
}

void
qm_behind_read(struct qm_behind *b, const struct qm_file *file, uint64_t off, uint64_t len,
               uint64_t there)
{
    const struct range r = {file, off, len, there};

    if (there == QM_CACHE_ALL)
        return;
    pthread_mutex_lock(&b->lock);
    (void)qm_vec_push(&b->read, &r); /* otherwise it stays */
    pthread_mutex_unlock(&b->lock);
}

static int
by_place(const void *a, const void *b)
{
    const struct range *x = a, *y = b;

    if (x->file != y->file)
        return (uintptr_t)x->file < (uintptr_t)y->file ? -1 : 1;
    return x->off < y->off ? -1 : x->off > y->off;
}

/* One call for what is one range: each may wait for all processors (Linux, mm/fadvise.c, lru_add_drain_all). */
static void
drop_all(struct range *r, size_t n)
{
    if (n == 0)
        return;
    qsort(r, n, sizeof *r, by_place);
    for (size_t i = 0, k; i < n; i = k) {
        struct range whole = r[i];

        for (k = i + 1; k < n && whole.there == 0 && r[k].there == 0 && r[k].file == whole.file &&
                        r[k].off == whole.off + whole.len;
             k++)
            whole.len += r[k].len;
        drop(whole.file, whole.off, whole.len, whole.there);
    }
}

void
qm_behind_synced(struct qm_behind *b)
{
    drop_all(b->list.at, b->list.n);
    drop_all(b->read.at, b->read.n);
    qm_vec_clear(&b->list);
    qm_vec_clear(&b->read);
    b->waited = 0;
    b->sum = 0;
}
