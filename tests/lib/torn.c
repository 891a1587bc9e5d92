/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "torn.h"

#include "vec.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SECTOR     ((uint64_t)512)
#define FEW        7  /* changes in an epoch, up to which all subsets are tried */
#define AT_RANDOM  40 /* subsets beyond */
#define EACH_LIMIT 48 /* "each one" goes up to so many changes, evenly spread */

/* One change that happens whole or not at all. */
struct atom {
    enum qm_io_op op;
    uint64_t off;
    uint64_t len;
    unsigned char *bytes; /* QM_IO_WRITE */
};

struct content {
    unsigned char *at;
    size_t len;
};

struct qm_torn {
    char *path;
    struct content start;
    size_t n_syncs;
    QM_VEC(struct atom) atoms; /* op QM_IO_SYNC ends an epoch */
};

static void
add(struct qm_torn *t, enum qm_io_op op, uint64_t off, uint64_t len, const void *bytes)
{
    struct atom a = {.op = op, .off = off, .len = len};

    if (bytes) {
        a.bytes = malloc(len);
        assert_non_null(a.bytes);
        memcpy(a.bytes, bytes, len);
    }
    assert_true(qm_vec_push(&t->atoms, &a));
}

static int
record(const struct qm_io_event *ev, void *opaque)
{
    struct qm_torn *t = opaque;

    if (strcmp(ev->path, t->path) != 0)
        return 0;
    if (ev->op != QM_IO_WRITE) {
        t->n_syncs += ev->op == QM_IO_SYNC;
        add(t, ev->op, ev->off, ev->len, NULL);
        return 0;
    }
    for (uint64_t done = 0; done < ev->len;) {
        const uint64_t off = ev->off + done;
        const uint64_t n = qm_min(ev->len - done, SECTOR - off % SECTOR);

        add(t, QM_IO_WRITE, off, n, (const unsigned char *)ev->buf + done);
        done += n;
    }
    return 0;
}

struct qm_torn *
qm_torn_start(const char *path)
{
    struct qm_torn *t = calloc(1, sizeof *t);
    struct stat st;
    const int fd = open(path, O_RDONLY);

    assert_non_null(t);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    t->path = strdup(path);
    t->start.len = (size_t)st.st_size;
    t->start.at = malloc(t->start.len + 1);
    assert_non_null(t->start.at);
    assert_int_equal(pread(fd, t->start.at, t->start.len, 0), t->start.len);
    close(fd);
    qm_io_set_hook(record, t);
    return t;
}

void
qm_torn_stop(struct qm_torn *t)
{
    (void)t;
    qm_io_set_hook(NULL, NULL);
}

void
qm_torn_free(struct qm_torn *t)
{
    QM_VEC_EACH (a, &t->atoms)
        free(a->bytes);
    qm_vec_release(&t->atoms);
    free(t->start.at);
    free(t->path);
    free(t);
}

size_t
qm_torn_syncs(const struct qm_torn *t)
{
    return t->n_syncs;
}

/* ---- replay ------------------------------------------------------------------------------------
 */

static void
resize(struct content *c, size_t len)
{
    if (len == c->len)
        return;
    c->at = realloc(c->at, len + 1);
    assert_non_null(c->at);
    if (len > c->len)
        memset(c->at + c->len, 0, len - c->len);
    c->len = len;
}

static void
apply(struct content *c, const struct atom *a)
{
    const uint64_t n = a->off < c->len ? qm_min(a->len, c->len - a->off) : 0;

    switch (a->op) {
    case QM_IO_WRITE:
        if (a->off + a->len > c->len)
            resize(c, a->off + a->len);
        memcpy(c->at + a->off, a->bytes, a->len);
        break;
    case QM_IO_ZERO:
        memset(c->at + a->off, 0, n);
        break;
    case QM_IO_DISCARD: /* "not defined": what hurts most */
        memset(c->at + a->off, 0xdd, n);
        break;
    case QM_IO_TRUNCATE:
        resize(c, a->off);
        break;
    case QM_IO_SYNC:
    case QM_IO_UNLINK:
        break;
    }
}

struct epoch {
    const struct atom *atoms;
    size_t n;
    const struct content *before;
    qm_torn_fn *fn;
    void *opaque;
    size_t n_states;
};

/* One state: all changes for which keep[] is true, in their order. */
static void
state(struct epoch *e, const bool *keep)
{
    struct content c = {.len = e->before->len};

    c.at = malloc(c.len + 1);
    assert_non_null(c.at);
    memcpy(c.at, e->before->at, c.len);
    for (size_t i = 0; i < e->n; i++)
        if (keep[i])
            apply(&c, &e->atoms[i]);
    e->fn(c.at, c.len, e->opaque);
    free(c.at);
    e->n_states++;
}

static void
few(struct epoch *e, bool *keep)
{
    for (unsigned bits = 0; bits < 1u << e->n; bits++) {
        for (size_t i = 0; i < e->n; i++)
            keep[i] = bits >> i & 1;
        state(e, keep);
    }
}

static void
many(struct epoch *e, bool *keep)
{
    uint64_t seed = e->n * 2654435761u + 1;
    const size_t step = e->n / EACH_LIMIT + 1;

    for (int flip = 0; flip < 2; flip++) {
        memset(keep, flip, e->n);
        state(e, keep);
        for (size_t i = 0; i < e->n; i += step) {
            keep[i] = !flip;
            state(e, keep);
            keep[i] = flip;
        }
    }
    for (int r = 0; r < AT_RANDOM; r++) {
        for (size_t i = 0; i < e->n; i++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            keep[i] = seed >> 62 & 1;
        }
        state(e, keep);
    }
}

size_t
qm_torn_replay(const struct qm_torn *t, qm_torn_fn *fn, void *opaque)
{
    struct content before = {.len = t->start.len};
    size_t at = 0, n_states = 0;

    before.at = malloc(before.len + 1);
    assert_non_null(before.at);
    memcpy(before.at, t->start.at, before.len);
    while (at < t->atoms.n) {
        struct epoch e = {.atoms = t->atoms.at + at, .before = &before, .fn = fn, .opaque = opaque};
        bool *keep;

        while (at + e.n < t->atoms.n && e.atoms[e.n].op != QM_IO_SYNC)
            e.n++;
        keep = calloc(e.n + 1, sizeof *keep);
        assert_non_null(keep);
        if (e.n <= FEW)
            few(&e, keep);
        else
            many(&e, keep);
        free(keep);
        n_states += e.n_states;
        for (size_t i = 0; i < e.n; i++)
            apply(&before, &e.atoms[i]);
        at += e.n + 1;
    }
    fn(before.at, before.len, opaque);
    free(before.at);
    return n_states + 1;
}

void
qm_torn_save(const char *path, const unsigned char *file, size_t len)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    size_t done = 0;

    assert_true(fd >= 0);
    while (done < len) {
        const ssize_t n = write(fd, file + done, len - done);

        assert_true(n > 0);
        done += (size_t)n;
    }
    assert_int_equal(close(fd), 0);
}
