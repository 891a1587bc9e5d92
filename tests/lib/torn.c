/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torn.c - records changes of files.
 */
#include "torn_int.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define SAVE_BLOCK 4096u

/* By inode, as an event may use another path; asked each time, as a file may be a new one.  Of several names any. */
static bool
which_file(const struct qm_torn *t, const char *path, size_t *out)
{
    struct stat st, own;

    if (stat(path, &st) < 0)
        return false;
    if (S_ISDIR(st.st_mode)) {
        *out = ALL_FILES;
        return true;
    }
    for (*out = 0; *out < t->n_files; ++*out)
        if (stat(t->files[*out].path, &own) == 0 && own.st_dev == st.st_dev &&
            own.st_ino == st.st_ino)
            return true;
    return false;
}

/* The name that a path has: same name, same directory. */
static size_t
name_of(const struct qm_torn *t, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    char *dir = slash ? strndup(path, (size_t)(slash - path) + 1) : strdup(".");
    struct stat here, there;
    size_t i = 0;

    assert_non_null(dir);
    assert_int_equal(stat(dir, &there), 0);
    assert_int_equal(stat(".", &here), 0);
    free(dir);
    assert_true(here.st_dev == there.st_dev && here.st_ino == there.st_ino);
    while (i < t->n_files && strcmp(t->files[i].path, name) != 0)
        i++;
    assert_true(i < t->n_files); /* a file goes where nobody looks */
    return i;
}

/* More or fewer names of one file. */
static void
note_link(struct qm_torn *t, const struct qm_io_event *ev, struct qm_torn_change *c)
{
    const size_t from = name_of(t, ev->path);

    c->to = name_of(t, ev->to);
    c->file = t->files[from].leads_now;
    t->files[c->to].leads_now = c->file;
    t->files[c->to].there = true;
    if (ev->op == QM_IO_RENAME) {
        c->gone = from;
        t->files[from].there = false;
        t->files[from].leads_now = from;
    }
}

static void
note_name(struct qm_torn *t, size_t idx, enum qm_io_op op)
{
    struct qm_torn_known *f = &t->files[idx];

    if (!f->there) {
        const struct qm_torn_change c = {.op = op, .file = idx, .appears = true};

        assert_true(qm_vec_push(&t->changes, &c));
    }
    f->there = op != QM_IO_UNLINK;
}

static int
record(const struct qm_io_event *ev, void *opaque)
{
    struct qm_torn *t = opaque;
    struct qm_torn_change c = {.op = ev->op, .off = ev->off, .len = ev->len};

    if (!which_file(t, ev->path, &c.file) || (c.file == ALL_FILES && ev->op != QM_IO_SYNC) ||
        ev->op == QM_IO_ATTRS)
        return 0;
    if (ev->op == QM_IO_LINK || ev->op == QM_IO_RENAME) {
        note_link(t, ev, &c);
    } else if (c.file != ALL_FILES) {
        if (ev->op == QM_IO_UNLINK)
            c.file = name_of(t, ev->path);
        else
            c.file = t->files[c.file].leads_now;
        if (ev->op == QM_IO_UNLINK || c.file == t->files[c.file].leads_now)
            note_name(t, c.file, ev->op);
    }
    if (ev->op == QM_IO_WRITE && ev->len > 0) {
        c.bytes = malloc(ev->len);
        assert_non_null(c.bytes);
        memcpy(c.bytes, ev->buf, ev->len);
    }
    if (ev->op == QM_IO_SYNC)
        t->n_syncs++;
    else
        t->files[c.file].changed = true;
    assert_true(qm_vec_push(&t->changes, &c));
    return 0;
}

unsigned char *
qm_torn_load(const char *path, size_t *out_len)
{
    const int fd = open(path, O_RDONLY);
    unsigned char *at;
    struct stat st;

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    at = malloc((size_t)st.st_size + 1);
    assert_non_null(at);
    assert_int_equal(pread(fd, at, (size_t)st.st_size, 0), st.st_size);
    close(fd);
    *out_len = (size_t)st.st_size;
    return at;
}

struct qm_torn *
qm_torn_start_many(const char *const *paths, size_t n)
{
    struct qm_torn *t = calloc(1, sizeof *t);

    assert_non_null(t);
    t->files = calloc(n, sizeof *t->files);
    assert_non_null(t->files);
    t->n_files = n;
    for (size_t i = 0; i < n; i++) {
        struct qm_torn_known *f = &t->files[i];

        f->path = strdup(paths[i]);
        assert_non_null(f->path);
        f->there = access(paths[i], F_OK) == 0;
        f->leads_now = i;
        f->start_name = (struct qm_torn_name){.gone = !f->there, .file = i};
        if (f->there)
            f->start.at = qm_torn_load(paths[i], &f->start.len);
    }
    qm_io_set_hook(record, t);
    return t;
}

void
qm_torn_start_as(struct qm_torn *t, const struct qm_torn_state *state)
{
    for (size_t i = 0; i < t->n_files; i++) {
        const struct qm_torn_file *was = &state->files[i];
        struct qm_torn_known *f = &t->files[was->file];

        if (was->gone || was->file == i)
            continue;
        t->files[i].leads_now = t->files[i].start_name.file = was->file;
        free(f->start.at);
        f->start.at = qm_torn_load(t->files[i].path, &f->start.len);
    }
}

struct qm_torn *
qm_torn_start(const char *path)
{
    return qm_torn_start_many(&path, 1);
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
    QM_VEC_EACH (c, &t->changes)
        free(c->bytes);
    qm_vec_release(&t->changes);
    for (size_t i = 0; i < t->n_files; i++) {
        free(t->files[i].path);
        free(t->files[i].start.at);
        free(t->files[i].durable.at);
        free(t->files[i].state.at);
    }
    free(t->files);
    free(t);
}

size_t
qm_torn_syncs(const struct qm_torn *t)
{
    return t->n_syncs;
}

size_t
qm_torn_changes(const struct qm_torn *t)
{
    return t->changes.n - t->n_syncs;
}

static bool
all_zeros(const unsigned char *at, size_t len)
{
    return len == 0 || (at[0] == 0 && memcmp(at, at + 1, len - 1) == 0);
}

void
qm_torn_save(const char *path, const unsigned char *file, size_t len)
{
    const int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)len), 0);
    for (size_t at = 0; at < len;) {
        size_t end = at;

        while (end < len && !all_zeros(file + end, qm_min(SAVE_BLOCK, len - end)))
            end += qm_min(SAVE_BLOCK, len - end);
        if (end > at)
            assert_int_equal(pwrite(fd, file + at, end - at, (off_t)at), end - at);
        at = end + qm_min(SAVE_BLOCK, len - end);
    }
    assert_int_equal(close(fd), 0);
}
