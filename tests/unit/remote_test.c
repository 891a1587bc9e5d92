/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remote_test.c - a file without a descriptor means the same to who uses io.h: a remote in memory stands for a server.
 */
#include "io.h"
#include "remote.h"

#include "cleanup.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SIZE 65536u

struct fake {
    struct qm_remote r; /* first */
    unsigned char at[SIZE];
    unsigned writes, zeros, discards, flushes;
    int fails; /* errno of the next command */
    bool no_zeros;
};

static int
result_of(struct fake *f)
{
    errno = f->fails;
    return f->fails ? -1 : 0;
}

static int
fake_read(struct qm_remote *r, uint64_t off, void *buf, size_t len)
{
    struct fake *f = (struct fake *)r;

    assert_true(off + len <= SIZE);
    memcpy(buf, f->at + off, len);
    return result_of(f);
}

static int
fake_write(struct qm_remote *r, uint64_t off, const void *buf, size_t len)
{
    struct fake *f = (struct fake *)r;

    assert_true(off + len <= SIZE);
    memcpy(f->at + off, buf, len);
    f->writes++;
    return result_of(f);
}

static int
fake_zero(struct qm_remote *r, uint64_t off, uint64_t len)
{
    struct fake *f = (struct fake *)r;

    if (f->no_zeros) {
        errno = ENOTSUP;
        return -1;
    }
    memset(f->at + off, 0, len);
    f->zeros++;
    return result_of(f);
}

static int
fake_discard(struct qm_remote *r, uint64_t off, uint64_t len)
{
    struct fake *f = (struct fake *)r;

    assert_true(off + len <= SIZE);
    f->discards++;
    return result_of(f);
}

static int
fake_flush(struct qm_remote *r)
{
    struct fake *f = (struct fake *)r;

    f->flushes++;
    return result_of(f);
}

static int
fake_status(struct qm_remote *r, uint64_t off, bool *out_data, uint64_t *out_len)
{
    *out_data = off >= SIZE / 2;
    *out_len = *out_data ? SIZE - off : SIZE / 2 - off;
    return result_of((struct fake *)r);
}

static void
fake_close(struct qm_remote *r)
{
    free(r);
}

static const struct qm_remote_ops fake_ops = {.kind = "fake",
                                              .read = fake_read,
                                              .write = fake_write,
                                              .zero = fake_zero,
                                              .discard = fake_discard,
                                              .flush = fake_flush,
                                              .status = fake_status,
                                              .close = fake_close};

static struct qm_file *
open_fake(struct fake **out)
{
    struct qm_file *file = calloc(1, sizeof *file);
    struct fake *f = calloc(1, sizeof *f);

    assert_true(file && f);
    f->r = (struct qm_remote){
        .ops = &fake_ops, .name = "fake://", .id = 1, .size = SIZE, .can_flush = true};
    *file = (struct qm_file){
        .path = strdup("nbd:fake:1"), .fd = -1, .wfd = -1, .blockdev = true, .no_map = true};
    file->remote = &f->r;
    file->size = SIZE;
    *out = f;
    return file;
}

static void
remote__bytes_come_and_go(void **state)
{
    struct qmeld_error err = {0};
    struct fake *f;
    struct qm_file *file = open_fake(&f);
    char buf[64];
    uint64_t len;
    bool data;

    (void)state;
    assert_false(qm_file_is_local(file));
    assert_int_equal(qm_file_make_writable(file, &err), 0);
    assert_int_equal(qm_pwrite(file, 5, "abc", 3, &err), 0);
    assert_int_equal(qm_pread(file, 4, buf, 5, &err), 0);
    assert_memory_equal(buf, "\0abc\0", 5);
    assert_int_equal(qm_pread(file, SIZE - 4, buf, 8, &err), -1); /* the end lies in it */
    assert_int_equal(qm_pread_padded(file, SIZE - 4, buf, 8, &err), 0);
    assert_int_equal(qm_data_or_hole(file, 100, &data, &len, &err), 0);
    assert_false(data);
    assert_int_equal(len, SIZE / 2 - 100);
    assert_int_equal(qm_sync(file, &err), 0);
    assert_int_equal(qm_discard(file, 0, SIZE * 2, &err), 0); /* up to the end */
    assert_int_equal(f->discards, 1);
    qm_prefetch(file, 0, SIZE);
    qm_writeback(file, 0, SIZE);
    qm_drop_cache(file, 0, 0);
    qm_file_close(file);
}

static void
remote__zeros_are_written_where_there_is_no_other_way(void **state)
{
    struct qmeld_error err = {0};
    struct fake *f;
    struct qm_file *file = open_fake(&f);

    (void)state;
    memset(f->at, 7, SIZE);
    assert_int_equal(qm_zero(file, 100, 200, false, &err), 0);
    assert_int_equal(f->zeros, 1);
    assert_int_equal(f->writes, 0);
    f->no_zeros = true;
    assert_int_equal(qm_zero(file, 1000, 200, false, &err), 0);
    assert_true(f->writes > 0);
    for (unsigned i = 0; i < SIZE; i++)
        assert_int_equal(f->at[i], (i >= 100 && i < 300) || (i >= 1000 && i < 1200) ? 0 : 7);
    qm_file_close(file);
}

static void
remote__it_does_not_grow(void **state)
{
    struct qmeld_error err = {0};
    struct fake *f;
    struct qm_file *file = open_fake(&f);

    (void)state;
    assert_int_equal(qm_truncate(file, SIZE / 2, &err), 0);
    assert_int_equal(qm_truncate(file, SIZE + 1, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_non_null(strstr(err.what, "enlarge it by 1"));
    assert_int_equal(qm_pwrite(file, SIZE - 1, "ab", 2, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_int_equal(f->writes, 0);
    qm_file_close(file);
}

static void
remote__a_target_must_be_writable_and_durable(void **state)
{
    struct qmeld_error err = {0};
    struct fake *f;
    struct qm_file *file = open_fake(&f);

    (void)state;
    f->r.read_only = true;
    assert_int_equal(qm_file_make_writable(file, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    f->r.read_only = false;
    f->r.can_flush = false;
    assert_int_equal(qm_file_make_writable(file, &err), -1);
    assert_non_null(strstr(err.what, "no flush"));
    qm_file_close(file);
}

static void
remote__failures_have_sentences(void **state)
{
    struct qmeld_error err = {0};
    struct fake *f;
    struct qm_file *file = open_fake(&f);
    uint64_t len;
    char c;
    bool data;

    (void)state;
    f->fails = ECONNRESET;
    assert_int_equal(qm_pread(file, 512, &c, 1, &err), -1);
    assert_int_equal(err.code, QMELD_IO);
    assert_non_null(strstr(err.what, "Connection reset"));
    assert_int_equal(qm_pwrite(file, 512, "x", 1, &err), -1);
    assert_int_equal(qm_zero(file, 0, 512, false, &err), -1);
    assert_int_equal(qm_sync(file, &err), -1);
    assert_non_null(strstr(err.what, "flush"));
    assert_int_equal(qm_data_or_hole(file, 0, &data, &len, &err), -1);
    f->fails = ENOSPC;
    assert_int_equal(qm_pwrite(file, 512, "x", 1, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    qm_file_close(file);
}

/* ---- the seam: what tests see and let fail does not reach the server ---- */

static unsigned seen[QM_IO_ATTRS + 1];

static int
refuse_all(const struct qm_io_event *event, void *opaque)
{
    (void)opaque;
    seen[event->op]++;
    return EIO;
}

static void
remote__tests_can_let_each_change_fail(void **state)
{
    struct qmeld_error err = {0};
    struct fake *f;
    struct qm_file *file = open_fake(&f);

    (void)state;
    qm_io_set_hook(refuse_all, NULL);
    assert_int_equal(qm_pwrite(file, 0, "x", 1, &err), -1);
    assert_int_equal(qm_zero(file, 0, 512, false, &err), -1);
    assert_int_equal(qm_discard(file, 0, 512, &err), -1);
    assert_int_equal(qm_sync(file, &err), -1);
    qm_io_set_hook(NULL, NULL);
    assert_int_equal(f->writes + f->zeros + f->discards + f->flushes, 0);
    assert_int_equal(seen[QM_IO_WRITE], 1);
    assert_int_equal(seen[QM_IO_ZERO], 1);
    assert_int_equal(seen[QM_IO_DISCARD], 1);
    assert_int_equal(seen[QM_IO_SYNC], 1);
    qm_file_close(file);
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(remote__bytes_come_and_go),
        cmocka_unit_test(remote__zeros_are_written_where_there_is_no_other_way),
        cmocka_unit_test(remote__it_does_not_grow),
        cmocka_unit_test(remote__a_target_must_be_writable_and_durable),
        cmocka_unit_test(remote__failures_have_sentences),
        cmocka_unit_test(remote__tests_can_let_each_change_fail),
    };

    unsetenv("QMELD_TEST_NO_SYNC"); /* a flush is nothing to wait for here, and has to come */
    return cmocka_run_group_tests_name("remote", tests, NULL, NULL);
}
