/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * share_test.c - what of a merge is shared with the layers' files, and what is not.
 *
 * The file system is a pretended one here (share.h): what two files would share is copied, and seen as a share.
 * Whether real ones do it is asked by tests/oracle/filesystems.py.  The forge puts a layer's L2 table behind
 * its first cluster of data, so each layer has one run more than is drawn.
 */
#include "direct.h"
#include "lab.h"
#include "scratch.h"
#include "share.h"
#include "transfer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static const struct qmeld_commit_options into_base = {.threads = 2};

static int
pretend(void **state)
{
    qm_share_pretended_block = 4 * KIB;
    return qm_scratch_enter(state);
}

static int
stop_pretending(void **state)
{
    qm_share_pretended_block = 0;
    qm_share_pretended_offload = false;
    return qm_scratch_leave(state);
}

/* The plan of the same merge tells the same. */
static struct qmeld_commit_report
merge(const char *recipe, const char *base, struct qm_lab_io *io)
{
    struct qm_forge *f = qm_lab_make(recipe);
    struct qmeld_commit_report r;
    struct qmeld_plan_report plan;

    OK(qmeld_plan("top", &into_base, &plan, err));
    r = qm_lab_merge(f, "top", base, &into_base);
    *io = qm_lab_io(base);
    assert_int_equal(plan.bytes_shared, r.bytes_shared);
    assert_int_equal(plan.bytes_copied, r.bytes_copied);
    assert_int_equal(r.bytes_shared, io->bytes_shared);
    qmeld_plan_report_free(&plan);
    qm_forge_free(f);
    return r;
}

static void
share__a_run_is_one_share(void **state)
{
    struct qm_lab_io io;

    (void)state;
    merge("top      | .AAAAAAAAAAAAAAAA. cluster=64k\n"
          "base.raw | BBBBBBBBBBBBBBBBBB cluster=64k\n",
          "base.raw", &io);
    assert_int_equal(io.shares, 2);
    assert_int_equal(io.bytes_shared, 1024 * KIB);
    assert_int_equal(io.writes, 0);
    assert_int_equal(io.syncs, 2);
}

static void
share__each_layer_has_its_own_runs(void **state)
{
    struct qm_lab_io io;

    (void)state;
    merge("top      | A.AA.... cluster=64k\n"
          "mid      | BBBB..BB cluster=64k\n"
          "base.raw | ........ cluster=64k\n",
          "base.raw", &io);
    assert_int_equal(io.shares, 4);
    assert_int_equal(io.bytes_shared, 6 * 64 * KIB);
    assert_int_equal(io.writes, 0);
}

static void
share__a_qcow2_base_gets_new_clusters_and_its_own(void **state)
{
    struct qm_lab_io io;

    (void)state;
    merge("top  | AAAA..CC cluster=64k\n"
          "base | ....XXXX cluster=64k\n",
          "base", &io);
    assert_int_equal(io.shares, 3);
    assert_int_equal(io.bytes_shared, 6 * 64 * KIB);
}

/* New clusters are given out in the order of the sources, so that clusters which lie side by side there are one
 * range, wherever in the guest's disk they are. */
static void
share__scattered_clusters_are_few_shares(void **state)
{
    struct qm_lab_io io;

    (void)state;
    merge("top  | A..A.A....A.A.A..A...A.A.A cluster=64k\n"
          "base | .......................... cluster=64k\n",
          "base", &io);
    assert_int_equal(io.shares, 2);
    assert_int_equal(io.bytes_shared, 10 * 64 * KIB);
    assert_in_range(io.writes, 0, 6); /* tables and refcounts */
}

/* 512-byte clusters of a layer do not begin where blocks do, in both files. */
static void
share__what_is_not_aligned_is_copied(void **state)
{
    struct qm_lab_io io;
    struct qmeld_commit_report r;

    (void)state;
    r = merge("top      | .A.AA.AAA.AAAA cluster=512\n"
              "base.raw | BBBBBBBBBBBBBB cluster=512\n",
              "base.raw", &io);
    assert_int_equal(io.shares, 0);
    assert_int_equal(r.bytes_copied, io.bytes_written);
}

static void
share__the_odd_end_is_copied(void **state)
{
    struct qm_lab_io io;

    (void)state;
    merge("top      | AA cluster=64k size=70144\n"
          "base.raw | BB cluster=64k size=70144\n",
          "base.raw", &io);
    assert_int_equal(io.shares, 1); /* of the second cluster there is less than a block */
    assert_int_equal(io.bytes_shared, 16 * 4 * KIB);
    assert_int_equal(io.writes, 1);
}

static void
share__compressed_clusters_are_inflated(void **state)
{
    struct qm_lab_io io;

    (void)state;
    merge("top      | Aa.AA cluster=64k\n"
          "base.raw | BBBBB cluster=64k\n",
          "base.raw", &io);
    assert_int_equal(io.bytes_shared, 3 * 64 * KIB);
    assert_int_equal(io.bytes_written, 64 * KIB);
}

/* ---- refusals ---- */

struct refusals {
    size_t n;
    int error;
};

static int
refuse(const struct qm_io_event *ev, void *opaque)
{
    struct refusals *r = opaque;

    if (!ev->from)
        return 0;
    r->n++;
    return r->error;
}

/* Nothing is lost, and it is not tried again. */
static void
share__a_refusal_is_believed_once(void **state)
{
    static const int errors[] = {EOPNOTSUPP, EXDEV, EINVAL, ENOSYS, EPERM, ENOSPC, EIO};

    (void)state;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        struct qm_forge *f = qm_lab_make("top      | A.A.A.A.A cluster=64k\n"
                                         "base.raw | BBBBBBBBB cluster=64k\n");
        struct refusals r = {.error = errors[i]};
        struct qmeld_commit_report report;

        qm_io_set_hook(refuse, &r);
        report = qm_lab_commit("top", &into_base);
        qm_io_set_hook(NULL, NULL);
        assert_int_equal(r.n, 1);
        assert_int_equal(report.bytes_shared, 0);
        assert_int_equal(report.bytes_copied, 5 * 64 * KIB);
        qm_lab_reads_as("base.raw", f, 0);
        qm_forge_free(f);
    }
}

/* The first ranges are shared, then it fails: also in the middle of many threads' work. */
static int
refuse_later(const struct qm_io_event *ev, void *opaque)
{
    struct refusals *r = opaque;

    return ev->from && r->n++ >= 3 ? r->error : 0;
}

static void
share__a_late_refusal_loses_nothing(void **state)
{
    struct qm_forge *f = qm_lab_make("top      | A.A.A.A.A.A.A.A.A.A.A cluster=64k\n"
                                     "base.raw | BBBBBBBBBBBBBBBBBBBBB cluster=64k\n");
    struct refusals r = {.error = ENOSPC};
    struct qmeld_commit_report report;

    (void)state;
    qm_io_set_hook(refuse_later, &r);
    report = qm_lab_commit("top", &into_base);
    qm_io_set_hook(NULL, NULL);
    assert_int_equal(report.bytes_shared, 3 * 64 * KIB);
    assert_int_equal(report.bytes_copied, 11 * 64 * KIB);
    qm_lab_reads_as("base.raw", f, 0);
    qm_forge_free(f);
}

/* ---- copies by the file system ---- */

static void
share__a_file_system_that_copies_is_asked_to(void **state)
{
    struct qm_forge *f = qm_lab_make("top      | AAAA.A cluster=64k\n"
                                     "base.raw | BBBBBB cluster=64k\n");
    struct refusals r = {.error = 0};
    struct qmeld_commit_report report;

    (void)state;
    qm_share_pretended_block = 0;
    qm_share_pretended_offload = true;
    qm_io_set_hook(refuse, &r);
    report = qm_lab_commit("top", &into_base);
    qm_io_set_hook(NULL, NULL);
    assert_int_equal(r.n, 3);
    assert_int_equal(report.bytes_offloaded, 5 * 64 * KIB);
    assert_int_equal(report.bytes_shared, 0);
    qm_lab_reads_as("base.raw", f, 0);
    qm_forge_free(f);
}

static void
share__a_copy_that_is_refused_is_made(void **state)
{
    struct qm_forge *f = qm_lab_make("top      | AAAA.A cluster=64k\n"
                                     "base.raw | BBBBBB cluster=64k\n");
    const struct qmeld_commit_options one_thread = {.threads = 1};
    struct refusals r = {.error = EXDEV};
    struct qmeld_commit_report report;

    (void)state;
    qm_share_pretended_block = 0;
    qm_share_pretended_offload = true;
    qm_io_set_hook(refuse, &r);
    report = qm_lab_commit("top", &one_thread);
    qm_io_set_hook(NULL, NULL);
    assert_int_equal(r.n, 1);
    assert_int_equal(report.bytes_offloaded, 0);
    qm_lab_reads_as("base.raw", f, 0);
    qm_forge_free(f);
}

/* ---- past the page cache ---- */

static bool
can_be_direct(const char *path)
{
    struct qm_direct *d;
    struct qm_file *file;

    OK(qm_file_open(path, &file, err));
    d = qm_direct_open(file);
    qm_direct_close(d);
    qm_file_close(file);
    return d != NULL;
}

/* Clusters of 512 bytes lie anywhere within a page; one of 64 KiB is compressed; the end is odd. */
static const char in_pieces[] = "top      | AAAAc.AA0A cluster=64k size=650240\n"
                                "mid      | .A.AA.AAAAA.AAAA cluster=512\n"
                                "base.raw | BBBBBBBBB cluster=64k\n";

static const struct qmeld_commit_options past_cache = {.threads = 3, .direct = true};

static void
share__whole_pages_go_past_the_cache(void **state)
{
    struct qm_forge *f = qm_lab_make(in_pieces);
    const bool can = can_be_direct("base.raw");
    struct qmeld_commit_report r;
    uint64_t past = 0;

    (void)state;
    qm_share_pretended_block = 0;
    OK(qmeld_commit("top", &past_cache, &r, err));
    for (size_t i = 0; i < r.n_layers; i++)
        past += r.layers[i].bytes_past_cache;
    if (can)
        assert_in_range(past, 6 * 64 * KIB, r.bytes_copied - 512);
    else
        assert_int_equal(past, 0);
    qmeld_commit_report_free(&r);
    qm_lab_reads_as("base.raw", f, 0);
    qm_forge_free(f);
}

/* Of those that are whole pages: others go through the cache. */
static ssize_t
refuse_nth_write(enum qm_io_call call, const char *path, uint64_t off, size_t len, void *opaque)
{
    size_t *left = opaque;

    if (call != QM_IO_CALL_WRITE || !strstr(path, "base.raw") || strstr(path, ".qmeld") ||
        (off | len) % qm_direct_unit() != 0)
        return (ssize_t)len;
    return (*left)-- == 0 ? -EINVAL : (ssize_t)len;
}

/* Nothing is lost, whichever write it is. */
static void
share__what_is_refused_past_the_cache_goes_through_it(void **state)
{
    (void)state;
    qm_share_pretended_block = 0;
    for (size_t i = 0; i < 4; i++) {
        struct qm_forge *f = qm_lab_make(in_pieces);
        const bool can = can_be_direct("base.raw");
        size_t left = i;

        if (can)
            qm_io_set_call_hook(refuse_nth_write, &left);
        qm_lab_commit("top", &past_cache);
        qm_io_set_call_hook(NULL, NULL);
        qm_lab_reads_as("base.raw", f, 0);
        qm_forge_free(f);
    }
}

/* ---- batches ---- */

/* What is shared does not count as copied. */
static void
share__a_batch_ends_by_what_is_copied(void **state)
{
    const struct qm_transfer_limits limits = qm_transfer_limits;
    struct qm_lab_io io;

    (void)state;
    qm_transfer_limits.batch = 128 * KIB;
    qm_transfer_limits.step = 64 * KIB;
    merge("top      | AAAAAAAAAAAAAAAA cluster=64k\n"
          "base.raw | BBBBBBBBBBBBBBBB cluster=64k\n",
          "base.raw", &io);
    assert_int_equal(io.syncs, 2);
    qm_share_pretended_block = 0;
    merge("top      | AAAAAAAAAAAAAAAA cluster=64k\n"
          "base.raw | BBBBBBBBBBBBBBBB cluster=64k\n",
          "base.raw", &io);
    assert_int_equal(io.syncs, 9); /* eight batches, and the end */
    qm_share_pretended_block = 4 * KIB;
    qm_transfer_limits.batch_shared = 256 * KIB;
    merge("top      | AAAAAAAAAAAAAAAA cluster=64k\n"
          "base.raw | BBBBBBBBBBBBBBBB cluster=64k\n",
          "base.raw", &io);
    qm_transfer_limits = limits;
    assert_int_equal(io.syncs, 5);
}

int
main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, pretend, stop_pretending)
    const struct CMUnitTest tests[] = {
        TEST(share__a_run_is_one_share),
        TEST(share__each_layer_has_its_own_runs),
        TEST(share__a_qcow2_base_gets_new_clusters_and_its_own),
        TEST(share__scattered_clusters_are_few_shares),
        TEST(share__what_is_not_aligned_is_copied),
        TEST(share__the_odd_end_is_copied),
        TEST(share__compressed_clusters_are_inflated),
        TEST(share__a_refusal_is_believed_once),
        TEST(share__a_late_refusal_loses_nothing),
        TEST(share__a_file_system_that_copies_is_asked_to),
        TEST(share__a_copy_that_is_refused_is_made),
        TEST(share__whole_pages_go_past_the_cache),
        TEST(share__what_is_refused_past_the_cache_goes_through_it),
        TEST(share__a_batch_ends_by_what_is_copied),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
