/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shadow_test.c - a dry run reads as the real thing would, counts what it would take, and changes nothing.
 */
#include "lab.h"
#include "ok.h"
#include "scratch.h"
#include "shadow.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define LEN   (64u << 10)
#define BLOCK 4096u

static void
make_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    for (size_t i = 0; i < LEN / strlen(text); i++)
        fputs(text, f);
    assert_int_equal(fclose(f), 0);
}

static struct qm_shadow *
begin(void)
{
    struct qmeld_error err = {0};
    struct qm_shadow *dry;

    assert_int_equal(qm_shadow_begin(true, &dry, &err), 0);
    return dry;
}

static struct qm_file *
open_file(const char *path)
{
    struct qmeld_error err = {0};
    struct qm_file *f;

    assert_int_equal(qm_file_open(path, &f, &err), 0);
    assert_int_equal(qm_file_make_writable(f, &err), 0);
    return f;
}

static void
reads_as(const struct qm_file *f, uint64_t off, const char *want)
{
    struct qmeld_error err = {0};
    char got[64] = "";

    assert_int_equal(qm_pread_padded(f, off, got, strlen(want), &err), 0);
    assert_string_equal(got, want);
}

static const struct qm_shadow_sum *
sum_of(const struct qm_shadow *dry, const char *path)
{
    for (size_t i = 0; i < qm_shadow_n_files(dry); i++)
        if (strcmp(qm_shadow_sum(dry, i)->path, path) == 0)
            return qm_shadow_sum(dry, i);
    fail_msg("no shadow of %s", path);
    return NULL;
}

static void
shadow__writes_are_read_back_and_nothing_is_changed(void **state)
{
    struct qm_shadow *dry;
    struct qm_bytes before;
    struct qm_file *f, *again;
    struct qmeld_error err = {0};

    (void)state;
    make_file("a", "abcdefgh");
    before = qm_lab_file("a");
    dry = begin();
    f = open_file("a");
    assert_int_equal(qm_pwrite(f, 4094, "12345", 5, &err), 0);
    reads_as(f, 4088, "abcdef12345defgh");
    again = open_file("a"); /* opened twice it is one file */
    reads_as(again, 4088, "abcdef12345defgh");
    assert_int_equal(qm_pwrite(again, LEN + 10, "end", 3, &err), 0);
    assert_int_equal(qm_file_refresh(f, &err), 0);
    reads_as(f, LEN + 10, "end");
    qm_file_close(f);
    qm_file_close(again);
    assert_int_equal(qm_shadow_finish(dry, &err), 0);
    assert_int_equal(sum_of(dry, "a")->old_size, LEN);
    assert_int_equal(sum_of(dry, "a")->new_size, LEN + 13);
    assert_int_equal(sum_of(dry, "a")->metadata, 8);
    qm_shadow_end(dry);
    qm_lab_same(qm_lab_file("a"), before, "a file after a dry run");
}

static void
shadow__cut_and_grown_again_reads_zeros(void **state)
{
    struct qm_shadow *dry;
    struct qm_file *f;
    struct qmeld_error err = {0};
    char got[4];

    (void)state;
    make_file("a", "abcdefgh");
    dry = begin();
    f = open_file("a");
    assert_int_equal(qm_pwrite(f, 4090, "XXXXXXXXXXXX", 12, &err), 0);
    assert_int_equal(qm_truncate(f, 4094, &err), 0);
    assert_int_equal(qm_pread_padded(f, 4092, got, 4, &err), 0);
    assert_memory_equal(got, "XX\0\0", 4);
    assert_int_equal(qm_truncate(f, LEN, &err), 0);
    assert_int_equal(qm_pread(f, 4094, got, 4, &err), 0);
    assert_memory_equal(got, "\0\0\0\0", 4);
    assert_int_equal(qm_pread(f, LEN - 4, got, 4, &err), 0);
    assert_memory_equal(got, "\0\0\0\0", 4);
    qm_file_close(f);
    qm_shadow_end(dry);
}

static void
shadow__zeros_hide_what_was_there(void **state)
{
    struct qm_shadow *dry;
    struct qm_file *f;
    struct qmeld_error err = {0};
    char got[6];

    (void)state;
    make_file("a", "abcdefgh");
    dry = begin();
    f = open_file("a");
    assert_int_equal(qm_pwrite(f, 8192, "12345678", 8, &err), 0);
    assert_int_equal(qm_zero(f, 2, 8192, false, &err), 0);
    assert_int_equal(qm_pread(f, 0, got, 6, &err), 0);
    assert_memory_equal(got, "ab\0\0\0\0", 6);
    assert_int_equal(qm_pread(f, 8192, got, 4, &err), 0);
    assert_memory_equal(got, "\0\0003", 3);
    qm_file_close(f);
    qm_shadow_end(dry);
}

/* The same changes to a file and to a shadow of its like: the kernel counts as we do. */
static void
change(struct qm_file *f, unsigned seed)
{
    struct qmeld_error err = {0};
    unsigned char buf[9000];

    memset(buf, 7, sizeof buf);
    for (unsigned i = 0; i < 40; i++) {
        const uint64_t off = (uint64_t)rand_r(&seed) % (3 * LEN);
        const uint64_t len = 1 + (uint64_t)rand_r(&seed) % sizeof buf;

        switch (rand_r(&seed) % 6) {
        case 0:
        case 1:
            assert_int_equal(qm_pwrite(f, off, buf, len, &err), 0);
            break;
        case 2:
            assert_int_equal(qm_zero(f, off, 3 * len, rand_r(&seed) % 2, &err), 0);
            break;
        case 3:
            assert_int_equal(qm_discard(f, off, 3 * len, &err), 0);
            break;
        case 4:
            assert_int_equal(qm_truncate(f, off, &err), 0);
            break;
        case 5:
            if (f->shadow)
                assert_int_equal(qm_shadow_data(f, off, len, &err), 0);
            else
                assert_int_equal(qm_pwrite(f, off, buf, len, &err), 0);
            break;
        }
    }
    assert_int_equal(qm_sync(f, &err), 0);
}

static uint64_t
blocks_of(const char *path)
{
    struct stat st;
    const int fd = open(path, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(fsync(fd), 0);
    assert_int_equal(fstat(fd, &st), 0);
    close(fd);
    return (uint64_t)st.st_blocks * 512;
}

static void
shadow__lengths_and_blocks_are_those_of_the_real_thing(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 60; seed++) {
        struct qmeld_error err = {0};
        struct qm_shadow *dry;
        struct qm_file *f;
        uint64_t size, bytes;
        struct stat st;

        make_file("a", "abcdefgh");
        (void)blocks_of("a");
        dry = begin();
        f = open_file("a");
        change(f, seed);
        qm_file_close(f);
        assert_int_equal(qm_shadow_finish(dry, &err), 0);
        size = sum_of(dry, "a")->new_size;
        bytes = sum_of(dry, "a")->new_bytes;
        qm_shadow_end(dry);
        f = open_file("a");
        change(f, seed);
        qm_file_close(f);
        assert_int_equal(stat("a", &st), 0);
        assert_int_equal(size, st.st_size);
        if (blocks_of("a") != bytes) /* a block of extents, perhaps */
            assert_in_range(blocks_of("a"), bytes, bytes + BLOCK);
        assert_int_equal(unlink("a"), 0);
    }
}

static void
shadow__new_files_live_in_memory_only(void **state)
{
    struct qm_shadow *dry = begin();
    struct qmeld_error err = {0};
    struct qm_file *f;

    (void)state;
    assert_int_equal(qm_file_create_new("new", 0644, &f, &err), 0);
    assert_int_equal(qm_pwrite(f, 100, "hello", 5, &err), 0);
    qm_file_close(f);
    assert_int_equal(qm_file_create_new("new", 0644, &f, &err), -1);
    assert_int_equal(access("new", F_OK), -1);
    f = open_file("new");
    reads_as(f, 100, "hello");
    qm_file_close(f);
    assert_int_equal(qm_shadow_purse(dry, 0)->change, BLOCK);
    assert_int_equal(qm_unlink("new", &err), 0);
    assert_int_equal(qm_file_open("new", &f, &err), -1);
    assert_int_equal(qm_shadow_purse(dry, 0)->change, 0);
    assert_int_equal(qm_shadow_purse(dry, 0)->peak, BLOCK);
    qm_shadow_end(dry);
}

static void
shadow__a_removed_file_gives_back_when_it_is_closed(void **state)
{
    struct qmeld_error err = {0};
    struct qm_shadow *dry;
    struct qm_file *f;

    (void)state;
    make_file("a", "abcdefgh");
    (void)blocks_of("a");
    dry = begin();
    f = open_file("a");
    assert_int_equal(qm_unlink("a", &err), 0);
    assert_int_equal(qm_shadow_purse(dry, 0)->change, 0);
    qm_file_close(f);
    assert_int_equal(qm_shadow_purse(dry, 0)->change, -(int64_t)LEN);
    assert_true(sum_of(dry, "a")->gone);
    assert_int_equal(qm_file_open("a", &f, &err), -1);
    qm_shadow_end(dry);
    assert_int_equal(access("a", F_OK), 0);
}

/* Holes that are made while data is copied may come late; when all is synced they have come. */
static void
shadow__the_peak_is_that_of_the_least_lucky_order(void **state)
{
    struct qmeld_error err = {0};
    struct qm_shadow *dry;
    struct qm_file *f;

    (void)state;
    make_file("a", "abcdefgh");
    (void)blocks_of("a");
    dry = begin();
    f = open_file("a");
    assert_int_equal(qm_shadow_hole(f, 0, LEN / 2, &err), 0);
    assert_int_equal(qm_shadow_data(f, LEN, LEN, &err), 0);
    assert_int_equal(qm_sync(f, &err), 0);
    assert_int_equal(qm_shadow_purse(dry, 0)->peak, LEN);
    assert_int_equal(qm_shadow_purse(dry, 0)->sure, LEN / 2);
    assert_int_equal(qm_shadow_purse(dry, 0)->change, LEN / 2);
    qm_file_close(f);
    qm_shadow_end(dry);
}

/* A merge of terabytes costs no memory for data, and pages of zeros cost none. */
static void
shadow__memory_is_for_metadata_and_bounded(void **state)
{
    QM_FREE unsigned char *page = malloc(1 << 20);
    struct qmeld_error err = {0};
    struct qm_shadow *dry;
    struct qm_file *f;
    uint64_t at = 0;

    (void)state;
    make_file("a", "abcdefgh");
    dry = begin();
    f = open_file("a");
    assert_int_equal(qm_shadow_data(f, 0, 1ull << 40, &err), 0);
    memset(page, 0, 1 << 20);
    for (unsigned i = 0; i < 512; i++, at += 1 << 20)
        assert_int_equal(qm_pwrite(f, at, page, 1 << 20, &err), 0);
    memset(page, 1, 1 << 20);
    for (at = 0; at <= QM_SHADOW_BYTES; at += 1 << 20)
        if (qm_pwrite(f, at, page, 1 << 20, &err) < 0)
            break;
    assert_in_range(at, QM_SHADOW_BYTES / 2, QM_SHADOW_BYTES);
    assert_int_equal(err.code, QMELD_NOMEM);
    qm_file_close(f);
    qm_shadow_end(dry);
}

static void
shadow__what_may_not_be_written_is_only_noted(void **state)
{
    const uid_t me = geteuid();
    struct qmeld_error err = {0};
    struct qm_shadow *dry;
    struct qm_file *f;

    (void)state;
    make_file("a", "abcdefgh");
    assert_int_equal(chmod("a", 0444), 0);
    dry = begin();
    assert_int_equal(qm_file_open("a", &f, &err), 0);
    if (me == 0) /* root may write to it */
        assert_int_equal(seteuid(65534), 0);
    assert_int_equal(qm_file_make_writable(f, &err), 0);
    assert_int_equal(seteuid(me), 0);
    qm_file_close(f);
    assert_int_equal(qm_shadow_n_notes(dry), 1);
    assert_string_equal(qm_shadow_notes(dry, 0)->file, "a");
    qm_shadow_end(dry);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(shadow__writes_are_read_back_and_nothing_is_changed),
        cmocka_unit_test(shadow__cut_and_grown_again_reads_zeros),
        cmocka_unit_test(shadow__zeros_hide_what_was_there),
        cmocka_unit_test(shadow__lengths_and_blocks_are_those_of_the_real_thing),
        cmocka_unit_test(shadow__new_files_live_in_memory_only),
        cmocka_unit_test(shadow__a_removed_file_gives_back_when_it_is_closed),
        cmocka_unit_test(shadow__the_peak_is_that_of_the_least_lucky_order),
        cmocka_unit_test(shadow__memory_is_for_metadata_and_bounded),
        cmocka_unit_test(shadow__what_may_not_be_written_is_only_noted),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
