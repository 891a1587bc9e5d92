/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * salvage_test.c - disks with bad sectors: what cannot be read is lost, that and no more.
 *
 * The bad disk is the hook of io.h in front of each read: it says EIO for all that touches the bad bytes of a file.
 */
#include "io.h"
#include "lab.h"
#include "scratch.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull
#define RUN                                                                                        \
    "all cluster=64k\n"                                                                            \
    "top.qcow2 | AAAAAAAAAAAAAAAA..BB\n"                                                           \
    "base.raw | CCCCCCCCCCCCCCCCCCCC\n"

struct bad {
    const char *path;
    uint64_t from;
    uint64_t to;
    unsigned hit;
};

static ssize_t
fail_reads(enum qm_io_call call, const char *path, uint64_t off, size_t len, void *opaque)
{
    struct bad *bad = opaque;

    if (call != QM_IO_CALL_READ || strcmp(path, bad->path) != 0 || off >= bad->to ||
        off + len <= bad->from)
        return (ssize_t)len;
    bad->hit++;
    return -EIO;
}

static int
flatten(struct bad *bad, bool salvage, const char *fill, struct qmeld_flatten_report *report,
        struct qmeld_error *err)
{
    const struct qmeld_create_options raw = {.format = "raw"};
    const struct qmeld_flatten_options o = {
        .target = &raw, .salvage = salvage, .fill = fill, .threads = 2};
    int rc;

    qm_io_set_call_hook(fail_reads, bad);
    rc = qmeld_flatten("top.qcow2", "out", &o, report, err);
    qm_io_set_call_hook(NULL, NULL);
    return rc;
}

/* out is what the chain reads as, but for [from, to), which is 'x'. */
static void
differs_in(const struct qm_forge *f, uint64_t from, uint64_t to)
{
    struct qm_bytes want = qm_lab_expect(f, 0), got = qm_lab_file("out");

    assert_int_equal(got.len, want.len);
    memset(want.at + from, 'x', to - from);
    assert_memory_equal(got.at, want.at, want.len);
    free(want.at);
    free(got.at);
    unlink("out");
}

static void
salvage__a_bad_sector_in_a_long_run_loses_that_sector(void **state)
{
    struct qm_forge *f = qm_lab_make(RUN);
    const uint64_t at = 3 * 64 * KIB + 20 * 512; /* of the guest */
    struct bad bad = {.path = "top.qcow2"};
    struct qmeld_flatten_report r;

    (void)state;
    bad.from = qm_lab_host("top.qcow2", 3 * 64 * KIB) + 20 * 512 + 7;
    bad.to = bad.from + 1;
    OK(flatten(&bad, true, "x", &r, err));
    assert_true(bad.hit > 1);
    assert_int_equal(r.bytes_lost, 512);
    assert_int_equal(r.ranges_lost, 1);
    differs_in(f, at, at + 512);
    qm_forge_free(f);
}

static void
salvage__a_bad_sector_of_a_raw_layer_loses_that_sector(void **state)
{
    struct qm_forge *f = qm_lab_make(RUN);
    const uint64_t at = 17 * 64 * KIB + 4096;
    struct bad bad = {.path = "base.raw", .from = at, .to = at + 1024};
    struct qmeld_flatten_report r;

    (void)state;
    OK(flatten(&bad, true, "x", &r, err));
    assert_int_equal(r.bytes_lost, 1024);
    differs_in(f, at, at + 1024);
    qm_forge_free(f);
}

/* Nothing comes from below in place of what a table would have said. */
static void
salvage__a_bad_sector_of_a_table_loses_what_it_stood_for(void **state)
{
    struct qm_forge *f = qm_lab_make(RUN);
    struct bad bad = {.path = "top.qcow2"};
    struct qm_bytes file = qm_lab_file("top.qcow2");
    struct qmeld_flatten_report r;
    uint64_t l1 = 0;

    (void)state;
    for (size_t i = 40; i < 48; i++) /* specification, "Header": l1_table_offset */
        l1 = l1 << 8 | file.at[i];
    free(file.at);
    bad.from = l1;
    bad.to = l1 + 8;
    OK(flatten(&bad, true, "x", &r, err));
    assert_int_equal(r.bytes_lost, 20 * 64 * KIB);
    differs_in(f, 0, 20 * 64 * KIB);
    qm_forge_free(f);
}

static void
salvage__is_not_what_happens_without_it(void **state)
{
    struct qm_forge *f = qm_lab_make(RUN);
    struct bad bad = {.path = "base.raw", .from = 17 * 64 * KIB, .to = 17 * 64 * KIB + 1};
    struct qmeld_flatten_report r;
    struct qmeld_error bad_err;

    (void)state;
    assert_int_equal(flatten(&bad, false, NULL, &r, &bad_err), -1);
    assert_int_equal(bad_err.code, QMELD_IO);
    assert_int_equal(bad_err.sys_errno, EIO);
    assert_int_equal(access("out", F_OK), -1);
    OK(flatten(&(struct bad){.path = "none"}, false, NULL, &r, err)); /* the disk is well again */
    differs_in(f, 0, 0);
    qm_forge_free(f);
}

static void
note_finding(const char *sentence, void *opaque)
{
    (void)sentence;
    ++*(unsigned *)opaque;
}

static void
salvage__a_missing_backing_file_takes_what_was_its_own(void **state)
{
    struct qm_forge *f = qm_lab_make(RUN);
    const struct qmeld_create_options raw = {.format = "raw"};
    unsigned told = 0;
    const struct qmeld_flatten_options o = {.target = &raw,
                                            .salvage = true,
                                            .fill = "x",
                                            .finding = note_finding,
                                            .finding_opaque = &told};
    struct qmeld_flatten_report r;

    (void)state;
    unlink("base.raw");
    OK(qmeld_flatten("top.qcow2", "out", &o, &r, err));
    assert_int_equal(told, 1);
    assert_int_equal(r.bytes_lost, 2 * 64 * KIB);
    differs_in(f, 16 * 64 * KIB, 18 * 64 * KIB);
    qm_forge_free(f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(salvage__a_bad_sector_in_a_long_run_loses_that_sector),
        cmocka_unit_test(salvage__a_bad_sector_of_a_raw_layer_loses_that_sector),
        cmocka_unit_test(salvage__a_bad_sector_of_a_table_loses_what_it_stood_for),
        cmocka_unit_test(salvage__is_not_what_happens_without_it),
        cmocka_unit_test(salvage__a_missing_backing_file_takes_what_was_its_own),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
