/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_test.c - the one door to image files: full lengths, honest errors, holes, windows.
 */
#include "io.h"
#include "scratch.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static struct qm_file *
make(const char *path, char fill, size_t len)
{
    struct qmeld_error err = {0};
    struct qm_file *f;
    char *buf = malloc(len + 1);

    assert_non_null(buf);
    memset(buf, fill, len + 1);
    assert_int_equal(qm_file_create(path, &f, &err), 0);
    assert_int_equal(qm_pwrite(f, 0, buf, len, &err), 0);
    free(buf);
    return f;
}

static void
io__a_read_past_the_end_is_an_error_with_its_place(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *f = make("short", 'a', 100);
    char buf[200];

    (void)state;
    assert_int_equal(qm_pread(f, 50, buf, 100, &err), -1);
    assert_int_equal(err.code, QMELD_IO);
    assert_int_equal(err.off, 100);
    assert_string_equal(err.file, "short");
    qm_file_close(f);
}

static void
io__a_padded_read_gives_zeros_past_the_end(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *f = make("padded", 'a', 100);
    char buf[64];

    (void)state;
    memset(buf, 'x', sizeof buf);
    assert_int_equal(qm_pread_padded(f, 90, buf, sizeof buf, &err), 0);
    assert_memory_equal(buf, "aaaaaaaaaa\0\0\0", 13);
    assert_int_equal(qm_pread_padded(f, UINT64_MAX - 10, buf, sizeof buf, &err), 0);
    assert_int_equal(buf[0], 0);
    qm_file_close(f);
}

static void
io__zero_makes_a_hole_and_does_not_grow_unless_asked(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *f = make("zeroed", 'a', 1 << 20);
    uint64_t before, after;
    char c;

    (void)state;
    assert_int_equal(qm_file_allocated(f, &before, &err), 0);
    assert_int_equal(qm_zero(f, 65536, 1 << 20, false, &err), 0);
    assert_int_equal(f->size, 1 << 20);
    assert_int_equal(qm_file_allocated(f, &after, &err), 0);
    assert_true(after < before);
    assert_int_equal(qm_pread(f, 65535, &c, 1, &err), 0);
    assert_int_equal(c, 'a');
    assert_int_equal(qm_pread(f, 65536, &c, 1, &err), 0);
    assert_int_equal(c, 0);
    assert_int_equal(qm_zero(f, 65536, 2 << 20, true, &err), 0);
    assert_int_equal(f->size, 65536 + (2 << 20));
    qm_file_close(f);
}

static void
io__offsets_no_file_can_have_are_refused(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *f = make("far", 'a', 10);
    char c = 0;

    (void)state;
    assert_int_equal(qm_pwrite(f, UINT64_MAX - 1, &c, 1, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_int_equal(qm_zero(f, UINT64_MAX - 1, 100, true, &err), -1);
    assert_int_equal(qm_pread(f, UINT64_MAX - 1, &c, 1, &err), -1);
    qm_file_close(f);
}

static void
io__a_path_that_leads_elsewhere_now_is_stale(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *f;

    (void)state;
    qm_file_close(make("one", 'a', 10));
    qm_file_close(make("two", 'b', 10));
    assert_int_equal(qm_file_open("one", &f, &err), 0);
    assert_int_equal(rename("two", "one"), 0);
    assert_int_equal(qm_file_make_writable(f, &err), -1);
    assert_int_equal(err.code, QMELD_STALE);
    qm_file_close(f);
}

static void
io__a_fifo_is_refused_without_waiting(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *f;

    (void)state;
    assert_int_equal(mkfifo("pipe", 0600), 0);
    assert_int_equal(qm_file_open("pipe", &f, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_null(f);
}

/* No RENAME_NOREPLACE, as on NFS. */
static int
knows_no_flags(const struct qm_io_event *ev, void *opaque)
{
    (void)opaque;
    return ev->op == QM_IO_RENAME ? EINVAL : 0;
}

static void
io__a_rename_replaces_nothing(void **state)
{
    (void)state;
    for (int plain = 0; plain < 2; plain++) {
        struct qmeld_error err = {0};
        struct stat was, now;

        qm_file_close(make("old-name", 'a', 10));
        qm_file_close(make("taken", 'b', 20));
        qm_io_set_hook(plain ? knows_no_flags : NULL, NULL);
        assert_int_equal(stat("old-name", &was), 0);
        assert_int_equal(qm_rename("old-name", "taken", &err), -1);
        assert_int_equal(err.code, QMELD_USAGE);
        assert_int_equal(stat("taken", &now), 0);
        assert_int_equal(now.st_size, 20);
        assert_int_equal(qm_rename("old-name", "free", &err), 0);
        assert_int_equal(access("old-name", F_OK), -1);
        assert_int_equal(stat("free", &now), 0);
        assert_true(now.st_ino == was.st_ino);
        assert_int_equal(qm_rename("not-there", "free-too", &err), -1);
        assert_int_equal(err.sys_errno, ENOENT);
        assert_int_equal(access("free-too", F_OK), -1); /* nothing is left of the attempt */
        qm_io_set_hook(NULL, NULL);
        unlink("free");
    }
}

static void
window__a_range_longer_than_the_window_is_written_whole(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *from = make("from", 'q', 300000), *to = make("to", 'a', 10);
    struct qm_window w;
    char buf[3];

    (void)state;
    qm_window_init(&w, from, 65536);
    assert_int_equal(qm_window_write(&w, 1, to, 4097, 299999, &err), 0);
    assert_int_equal(to->size, 4097 + 299999);
    assert_int_equal(qm_pread(to, 4096, buf, 3, &err), 0);
    assert_memory_equal(buf, "\0qq", 3);
    qm_window_release(&w);
    qm_file_close(from);
    qm_file_close(to);
}

static void
window__a_source_that_shrinks_is_named_with_the_offset(void **state)
{
    struct qmeld_error err = {0};
    struct qm_file *from = make("shrinks", 'q', 1 << 20), *to = make("copy", 'a', 10);
    struct qm_window w;

    (void)state;
    qm_window_init(&w, from, 1 << 20);
    assert_int_equal(truncate("shrinks", 65536), 0);
    assert_int_equal(qm_window_write(&w, 0, to, 0, 1 << 20, &err), -1);
    assert_int_equal(err.code, QMELD_IO);
    assert_string_equal(err.file, "shrinks");
    assert_int_equal(err.off, 65536);
    qm_window_release(&w);
    qm_file_close(from);
    qm_file_close(to);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(io__a_read_past_the_end_is_an_error_with_its_place),
        cmocka_unit_test(io__a_padded_read_gives_zeros_past_the_end),
        cmocka_unit_test(io__zero_makes_a_hole_and_does_not_grow_unless_asked),
        cmocka_unit_test(io__offsets_no_file_can_have_are_refused),
        cmocka_unit_test(io__a_path_that_leads_elsewhere_now_is_stale),
        cmocka_unit_test(io__a_fifo_is_refused_without_waiting),
        cmocka_unit_test(io__a_rename_replaces_nothing),
        cmocka_unit_test(window__a_range_longer_than_the_window_is_written_whole),
        cmocka_unit_test(window__a_source_that_shrinks_is_named_with_the_offset),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
