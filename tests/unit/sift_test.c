/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sift_test.c - what --skip-equal and --detect-zeroes leave out, counted in bytes that are written.
 */
#include "lab.h"
#include "scratch.h"
#include "transfer.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define KIB 1024ull

static const struct qmeld_commit_options skip = {.threads = 2, .skip_equal = true};
static const struct qmeld_commit_options zeroes = {.threads = 2, .detect_zeroes = true};
static const struct qmeld_commit_options both = {
    .threads = 2, .skip_equal = true, .detect_zeroes = true};

/* [off, off + len) of the file becomes these bytes; NULL: zeros. */
static void
put(const char *path, uint64_t off, const unsigned char *from, size_t len)
{
    const int fd = open(path, O_WRONLY);
    unsigned char *nothing = calloc(1, len);

    assert_true(fd >= 0 && nothing);
    assert_int_equal(pwrite(fd, from ? from : nothing, len, (off_t)off), (ssize_t)len);
    close(fd);
    free(nothing);
}

/* The data that path has for these guest bytes becomes what base reads there; or zeros. */
static void
make_equal(const char *path, const char *base, uint64_t guest, size_t len)
{
    struct qm_bytes b = base ? qm_lab_read(base) : (struct qm_bytes){.at = NULL};

    for (uint64_t n, at = guest; at < guest + len; at += n) {
        const uint64_t host = qm_lab_host(path, at);

        n = qm_min(guest + len - at, 4 * KIB - at % (4 * KIB)); /* no cluster is smaller */
        assert_int_not_equal(host, 0);
        put(path, host, base ? b.at + at : NULL, n);
    }
    free(b.at);
}

/* Merges top into base under watch: base reads as top did, and so does top still. */
static struct qmeld_commit_report
merge(const char *base, const struct qmeld_commit_options *opts)
{
    struct qm_bytes want = qm_lab_read("top");
    struct qmeld_commit_report r;

    qm_lab_watch();
    r = qm_lab_commit("top", opts);
    qm_lab_unwatch();
    qm_lab_same(qm_lab_read(base), want, base);
    qm_lab_same(qm_lab_read("top"), qm_lab_read(base), "top");
    if (!strstr(base, ".raw"))
        qm_lab_clean(base);
    return r;
}

/* ---- equal ---- */

static void
sift__what_the_base_holds_is_not_written(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top  | ABCDE\n"
                              "base | FGHIJ\n"));
    make_equal("top", "base", 0, 4 * KIB);
    make_equal("top", "base", 8 * KIB, 8 * KIB);
    r = merge("base", &skip);
    assert_int_equal(r.bytes_skipped, 12 * KIB);
    assert_int_equal(r.bytes_copied, 8 * KIB);
    assert_int_equal(qm_lab_written("base"), 8 * KIB); /* in place: no metadata */
}

static void
sift__without_being_asked_nothing_is_left_out(void **state)
{
    const struct qmeld_commit_options plain = {.threads = 2};
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top  | ABC\n"
                              "base | FGH\n"));
    make_equal("top", "base", 0, 4 * KIB);
    make_equal("top", NULL, 8 * KIB, 4 * KIB);
    r = merge("base", &plain);
    assert_int_equal(r.bytes_skipped + r.bytes_zero_found, 0);
    assert_int_equal(qm_lab_written("base"), 12 * KIB);
}

static void
sift__one_byte_that_differs_writes_its_cluster_whole(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    for (uint64_t at = 0; at < 12 * KIB; at += 12 * KIB - 1) {
        qm_forge_free(qm_lab_make("all cluster=4k\n"
                                  "top  | ABC\n"
                                  "base | FGH\n"));
        make_equal("top", "base", 0, 12 * KIB);
        put("top", qm_lab_host("top", at), (const unsigned char *)"?", 1);
        r = merge("base", &skip);
        assert_int_equal(r.bytes_skipped, 8 * KIB);
        assert_int_equal(qm_lab_written("base"), 4 * KIB);
    }
}

static void
sift__what_shows_through_from_below_the_base_is_equal_too(void **state)
{
    const struct qmeld_commit_options shallow = {.shallow = true, .skip_equal = true};
    struct qm_bytes want;
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top  | ABC\n"
                              "base | .G.\n"
                              "low.raw | XYZ\n"));
    make_equal("top", "base", 0, 12 * KIB);
    put("top", qm_lab_host("top", 4 * KIB), NULL, 16);
    want = qm_lab_read("top");
    qm_lab_watch();
    r = qm_lab_commit("top", &shallow);
    qm_lab_unwatch();
    qm_lab_same(qm_lab_read("base"), want, "base");
    assert_int_equal(r.bytes_skipped, 8 * KIB);
    qm_lab_looks("base", 4 * KIB, ".D.");
    assert_int_equal(qm_lab_written("base"), 4 * KIB);
}

static void
sift__a_longer_top_is_compared_up_to_the_old_end(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top  | AB0C size=15k\n"
                              "base | FG size=7k\n"));
    make_equal("top", "base", 0, 4 * KIB);
    r = merge("base", &skip);
    assert_int_equal(r.bytes_skipped, 4 * KIB); /* the last cluster ends behind the old end */
    assert_int_equal(r.bytes_copied, 7 * KIB);
    qm_lab_looks("base", KIB, "DDDDDDDD0000DDD");
}

static void
sift__a_base_that_cannot_be_read_is_overwritten(void **state)
{
    struct qm_forge *f = qm_lab_make("all cluster=4k\n"
                                     "top  | ABC\n"
                                     "base | FgH\n"
                                     "  stream 1 garbage\n");
    struct qmeld_commit_report r;

    (void)state;
    make_equal("top", NULL, 0, 4 * KIB);
    qm_lab_watch();
    r = qm_lab_commit("top", &skip);
    qm_lab_unwatch();
    assert_int_equal(r.bytes_skipped, 0);
    qm_lab_same(qm_lab_read("base"), qm_lab_read("top"), "base");
    qm_forge_free(f);
}

static void
sift__zeros_over_zeros_cost_nothing(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top      | 0000A\n"
                              "base.raw | .0.B.\n"));
    r = merge("base.raw", &skip);
    assert_int_equal(r.bytes_skipped, 12 * KIB);
    assert_int_equal(r.bytes_zeroed, 4 * KIB);
    assert_int_equal(qm_lab_written("base.raw"), 4 * KIB);
}

static void
sift__long_zeros_are_not_looked_at_piece_by_piece(void **state)
{
    struct qmeld_commit_report r;

    (void)state; /* mid hides 64 TiB of nothing; in pieces of 4 KiB that takes hours */
    qm_forge_free(qm_lab_make("all cluster=64k\n"
                              "top  | A size=64T\n"
                              "mid  | BC\n"
                              "base | DEF size=64T\n"
                              "  at 1T G\n"));
    qm_lab_watch();
    r = qm_lab_commit("top", &both);
    qm_lab_unwatch();
    assert_int_equal(r.bytes_zeroed, 128 * KIB);
    assert_int_equal(r.bytes_copied, 128 * KIB);
    assert_int_equal(r.bytes_skipped, (64ull << 40) - 256 * KIB);
    assert_int_equal(qm_lab_host("base", 128 * KIB), 0);
    assert_int_equal(qm_lab_host("base", 1ull << 40), 0);
    qm_lab_clean("base");
}

/* ---- zeros ---- */

static void
sift__data_that_is_zeros_becomes_no_data(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top  | ABCDE\n"
                              "base | .GHI.\n"));
    make_equal("top", NULL, 0, 4 * KIB);
    make_equal("top", NULL, 4 * KIB, 4 * KIB);
    make_equal("top", NULL, 12 * KIB, 8 * KIB);
    r = merge("base", &zeroes);
    assert_int_equal(r.bytes_zero_found, 16 * KIB);
    assert_int_equal(r.bytes_zeroed, 16 * KIB);
    assert_int_equal(r.bytes_copied, 4 * KIB);
    qm_lab_looks("base", 4 * KIB, "00D00");
}

static void
sift__an_overlay_of_zeros_makes_no_data(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=64k\n"
                              "top  | - size=6400k\n"
                              "  fill 0 100 A\n"
                              "base | - size=6336k\n"));
    make_equal("top", NULL, 0, 6400 * KIB);
    r = merge("base", &zeroes);
    assert_int_equal(r.bytes_zero_found, 6400 * KIB);
    assert_int_equal(r.bytes_copied, 0);
    assert_int_equal(qm_lab_written("base"), 512); /* its new size */
}

static void
sift__a_raw_base_gets_holes_of_4_kib(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("top      | AB cluster=64k\n"
                              "base.raw | XY cluster=64k\n"));
    make_equal("top", NULL, 8 * KIB, 16 * KIB);
    make_equal("top", NULL, 65 * KIB, 8 * KIB); /* one whole block, two in part */
    r = merge("base.raw", &zeroes);
    assert_int_equal(r.bytes_zero_found, 20 * KIB);
    assert_int_equal(qm_lab_written("base.raw"), 108 * KIB);
}

static void
sift__both_at_once_skip_first(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("all cluster=4k\n"
                              "top  | ABCD\n"
                              "base | .F0G\n"));
    make_equal("top", NULL, 0, 12 * KIB);
    r = merge("base", &both);
    assert_int_equal(r.bytes_skipped, 8 * KIB);
    assert_int_equal(r.bytes_zero_found, 4 * KIB);
    assert_int_equal(r.bytes_copied, 4 * KIB);
    qm_lab_looks("base", 4 * KIB, ".00D");
}

/* ---- units ---- */

static void
sift__a_unit_is_a_subcluster_where_there_are_some(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("top  | A cluster=64k\n"
                              "base | B cluster=64k extended_l2=1\n"));
    make_equal("top", "base", 0, 64 * KIB);
    make_equal("top", NULL, 4 * KIB, 2 * KIB);
    put("top", qm_lab_host("top", 9 * KIB), (const unsigned char *)"?", 1);
    r = merge("base", &both);
    assert_int_equal(r.bytes_skipped, 60 * KIB);
    assert_int_equal(r.bytes_zero_found, 2 * KIB);
    assert_int_equal(r.bytes_copied, 2 * KIB);
    qm_lab_looks("base", 2 * KIB, "DD=DDDDDDDDDDDDDDDDDDDDDDDDDDDDD");
}

static void
sift__small_overlay_clusters_make_one_verdict_a_unit(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    qm_forge_free(qm_lab_make("top  | ABCDEFGH.J cluster=4k size=64k\n"
                              "base | XY cluster=32k\n"));
    for (uint64_t at = 0; at < 40 * KIB; at += 4 * KIB)
        if (at != 32 * KIB)
            make_equal("top", "base", at, 4 * KIB);
    put("top", qm_lab_host("top", 8 * KIB), (const unsigned char *)"?", 1);
    r = merge("base", &skip);
    assert_int_equal(r.bytes_skipped, 4 * KIB); /* all that is wanted of the second cluster */
    assert_int_equal(r.bytes_copied, 32 * KIB);
}

static void
sift__jobs_and_windows_meet_without_a_seam(void **state)
{
    struct qmeld_commit_report r;

    (void)state; /* more than is looked at ahead, and no job like another */
    qm_forge_free(qm_lab_make("top  | - cluster=4k size=68M\n"
                              "  fill 0 17408 A\n"
                              "base.raw | - size=68M\n"));
    for (uint64_t at = 0; at < 68 << 20; at += 372 * KIB)
        make_equal("top", NULL, at, 4 * KIB);
    r = merge("base.raw", &zeroes);
    assert_int_equal(r.bytes_zero_found, (68 * KIB / 372 + 1) * 4 * KIB);
    assert_int_equal(r.bytes_zero_found + r.bytes_copied, 68 << 20);
    assert_int_equal(qm_lab_written("base.raw"), r.bytes_copied);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(sift__what_the_base_holds_is_not_written),
        cmocka_unit_test(sift__without_being_asked_nothing_is_left_out),
        cmocka_unit_test(sift__one_byte_that_differs_writes_its_cluster_whole),
        cmocka_unit_test(sift__what_shows_through_from_below_the_base_is_equal_too),
        cmocka_unit_test(sift__a_longer_top_is_compared_up_to_the_old_end),
        cmocka_unit_test(sift__a_base_that_cannot_be_read_is_overwritten),
        cmocka_unit_test(sift__zeros_over_zeros_cost_nothing),
        cmocka_unit_test(sift__long_zeros_are_not_looked_at_piece_by_piece),
        cmocka_unit_test(sift__data_that_is_zeros_becomes_no_data),
        cmocka_unit_test(sift__an_overlay_of_zeros_makes_no_data),
        cmocka_unit_test(sift__a_raw_base_gets_holes_of_4_kib),
        cmocka_unit_test(sift__both_at_once_skip_first),
        cmocka_unit_test(sift__a_unit_is_a_subcluster_where_there_are_some),
        cmocka_unit_test(sift__small_overlay_clusters_make_one_verdict_a_unit),
        cmocka_unit_test(sift__jobs_and_windows_meet_without_a_seam),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
