/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_refs_test.c - allocation in a fixed order, growth of blocks and table, space given back.
 *
 * What refs leaves on disk is read again by a second opening, and counted by the census: a cluster
 * that is taken and that nobody refers to must show as a leak, never as anything worse.
 */
#include "qcow2_check.h"
#include "qcow2_create.h"
#include "qcow2_refs.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#include "ok.h"

static struct qm_qcow2 *
make(uint64_t cluster_size, unsigned refcount_bits)
{
    const struct qm_qcow2_create want = {.size = 1 << 20,
                                         .version = 3,
                                         .cluster_size = cluster_size,
                                         .refcount_bits = refcount_bits};
    struct qm_file *f;
    struct qm_qcow2 *q;

    OK(qm_file_create("image", &f, err));
    OK(qm_qcow2_create(f, &want, err));
    OK(qm_file_finish(f, err));
    OK(qm_file_open("image", &f, err));
    OK(qm_file_make_writable(f, err));
    OK(qm_qcow2_open(f, QCOW2_DECODE_STRICT, &q, err));
    return q;
}

/* A check counts no leaks behind the file's end (QEMU's does not), so the file is made long. */
static void
check_leaks(uint64_t leaks)
{
    struct qmeld_check_result r;
    struct qm_file *f;
    struct qm_qcow2 *q;

    OK(qm_file_open("image", &f, err));
    OK(qm_file_make_writable(f, err));
    OK(qm_truncate(f, 64 << 20, err));
    OK(qm_qcow2_open(f, QCOW2_DECODE_STRICT, &q, err));
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions, 0);
    assert_int_equal(r.leaks, leaks);
    qm_image_close(&q->img);
}

static void
refs__the_lowest_free_clusters_are_taken_in_order(void **state)
{
    struct qm_qcow2 *q = make(65536, 16);
    struct qm_refs *r;
    host_off at;
    uint64_t n;

    (void)state;
    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc(r, 3, &at, &n, err));
    assert_int_equal(at.h, 4 * 65536); /* header, table, block, L1 */
    assert_int_equal(n, 3);
    OK(qm_refs_alloc(r, 1, &at, &n, err));
    assert_int_equal(at.h, 7 * 65536);
    OK(qm_refs_free(r, qm_host(5 * 65536), 65536, err));
    OK(qm_refs_alloc(r, 2, &at, &n, err));
    assert_int_equal(at.h, 5 * 65536);
    assert_int_equal(n, 1); /* the run ends at a cluster in use */
    OK(qm_refs_commit(r, err));
    qm_refs_close(r);
    qm_image_close(&q->img);
    check_leaks(4);
}

/* Who fills clusters side by side asks for the next one. */
static void
refs__a_cluster_is_taken_by_its_number_if_it_is_free(void **state)
{
    struct qm_qcow2 *q = make(65536, 2);
    struct qm_refs *r;
    bool taken;
    host_off at;
    uint64_t n, count;

    (void)state;
    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc_at(r, 3, &taken, err));
    assert_false(taken); /* L1 */
    OK(qm_refs_alloc_at(r, 5, &taken, err));
    assert_true(taken);
    OK(qm_refs_alloc_at(r, 5, &taken, err));
    assert_false(taken);
    OK(qm_refs_alloc(r, 3, &at, &n, err));
    assert_int_equal(at.h, 4 * 65536); /* what was skipped is not forgotten */
    assert_int_equal(n, 1);
    OK(qm_refs_alloc_at(r, 6, &taken, err));
    assert_true(taken);
    OK(qm_refs_alloc(r, 1, &at, &n, err));
    assert_int_equal(at.h, 7 * 65536);
    OK(qm_refs_alloc_at(r, 1ull << 40, &taken, err)); /* no block counts it */
    assert_false(taken);
    OK(qm_refs_raise(r, 5, err));
    OK(qm_refs_get(r, 5, &count, err));
    assert_int_equal(count, 2);
    OK(qm_refs_commit(r, err));
    qm_refs_close(r);
    qm_image_close(&q->img);
    check_leaks(4);
}

static void
refs__what_is_staged_is_not_on_disk_before_the_write(void **state)
{
    struct qm_qcow2 *q = make(65536, 16);
    struct qm_refs *r;
    host_off at;
    uint64_t n, count;

    (void)state;
    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc(r, 8, &at, &n, err));
    OK(qm_refs_get(r, 4, &count, err));
    assert_int_equal(count, 1);
    qm_refs_close(r);
    qm_image_close(&q->img);
    check_leaks(0);
}

/* 512-byte clusters: a block counts 256 (16 bits) or 64 (64 bits) clusters, the table of one
 * cluster has 64 entries, so both must grow soon. */
static void
grow_far(unsigned refcount_bits, bool table_too)
{
    struct qm_qcow2 *q = make(512, refcount_bits);
    const uint64_t want = 40000;
    uint64_t got = 0, clusters = 0;
    struct qm_refs *r;

    OK(qm_refs_open(q, &r, err));
    while (got < want) {
        host_off at;
        uint64_t n;

        OK(qm_refs_alloc(r, want - got, &at, &n, err));
        assert_true(n > 0);
        got += n;
        if (++clusters % 7 == 0)
            OK(qm_refs_commit(r, err));
    }
    OK(qm_refs_commit(r, err));
    OK(qm_refs_commit(r, err)); /* the old table, freed by the first, reaches the disk */
    assert_int_equal(q->hdr.reftable_clusters > 1, table_too);
    qm_refs_close(r);
    qm_image_close(&q->img);
    check_leaks(want);
}

static void
refs__blocks_and_table_grow_and_count_themselves(void **state)
{
    (void)state;
    grow_far(16, true);
    grow_far(64, true);
    grow_far(1, false);
}

static void
refs__an_adjacent_run_may_be_longer_than_a_block_counts(void **state)
{
    struct qm_qcow2 *q = make(512, 64);
    struct qm_refs *r;
    host_off at, single;
    uint64_t n;

    (void)state;
    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc_adjacent(r, 1000, &at, err));
    OK(qm_refs_alloc(r, 1, &single, &n, err));
    assert_true(single.h < at.h || single.h >= at.h + 1000 * 512);
    OK(qm_refs_commit(r, err));
    for (uint64_t c = at.h / 512; c < at.h / 512 + 1000; c++) {
        OK(qm_refs_get(r, c, &n, err));
        assert_int_equal(n, 1);
    }
    qm_refs_close(r);
    qm_image_close(&q->img);
    check_leaks(1001);
}

static void
no_corruption(const unsigned char *file, size_t len, void *opaque)
{
    const char *path = opaque;
    struct qmeld_check_result r;
    struct qm_file *f;
    struct qm_qcow2 *q;

    qm_torn_save(path, file, len);
    OK(qm_file_open(path, &f, err));
    OK(qm_qcow2_open(f, QCOW2_DECODE_STRICT, &q, err));
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions, 0);
    qm_image_close(&q->img);
}

/* S2, S3: new blocks in front of the run are counted by a block that is new itself.  first: so
 * many clusters are taken before, up to the end of a block. */
static void
cut_short(uint64_t first, uint64_t run)
{
    static char path[] = "state";
    struct qm_qcow2 *q = make(512, 64);
    struct qm_refs *r;
    struct qm_torn *t;
    host_off at;

    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc_adjacent(r, first, &at, err));
    OK(qm_refs_commit(r, err));
    assert_int_equal((at.h / 512 + first) % 64, 0);
    t = qm_torn_start("image");
    OK(qm_refs_alloc_adjacent(r, run, &at, err));
    OK(qm_refs_commit(r, err));
    qm_torn_stop(t);
    assert_true(qm_torn_replay(t, no_corruption, path) > 8);
    qm_torn_free(t);
    qm_refs_close(r);
    qm_image_close(&q->img);
}

static void
refs__no_crash_leaves_a_block_that_nobody_counts(void **state)
{
    (void)state;
    cut_short(60, 150);  /* some blocks */
    cut_short(60, 5000); /* and a new table */
}

static void
refs__freeing_what_is_free_is_corruption(void **state)
{
    struct qm_qcow2 *q = make(65536, 16);
    struct qmeld_error told = {0};
    struct qm_refs *r;

    (void)state;
    OK(qm_refs_open(q, &r, err));
    assert_int_equal(qm_refs_free(r, qm_host(9 * 65536), 1, &told), -1);
    assert_int_equal(told.code, QMELD_CORRUPT);
    qm_refs_close(r);
    qm_image_close(&q->img);
}

static void
refs__a_freed_tail_is_cut_off(void **state)
{
    struct qm_qcow2 *q = make(65536, 16);
    const uint64_t old = q->img.file->size;
    struct qm_refs *r;
    host_off at;
    uint64_t n;

    (void)state;
    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc(r, 10, &at, &n, err));
    OK(qm_truncate(q->img.file, at.h + 10 * 65536, err));
    OK(qm_refs_commit(r, err));
    OK(qm_refs_free(r, qm_host(at.h + 2 * 65536), 8 * 65536, err));
    OK(qm_refs_commit(r, err));
    OK(qm_refs_trim(r, NULL, err));
    assert_int_equal(q->img.file->size, at.h + 2 * 65536);
    assert_true(q->img.file->size > old);
    qm_refs_close(r);
    qm_image_close(&q->img);
    check_leaks(2);
}

static void
refs__a_tail_that_was_there_before_is_not_ours_to_cut(void **state)
{
    struct qm_qcow2 *q = make(65536, 16);
    struct qm_refs *r;
    host_off at;
    uint64_t n;

    (void)state;
    OK(qm_truncate(q->img.file, 100 * 65536, err));
    OK(qm_refs_open(q, &r, err));
    OK(qm_refs_alloc(r, 2, &at, &n, err));
    OK(qm_refs_free(r, at, 65536, err));
    OK(qm_refs_commit(r, err));
    OK(qm_refs_trim(r, NULL, err));
    assert_int_equal(q->img.file->size, 100 * 65536);
    qm_refs_close(r);
    qm_image_close(&q->img);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refs__the_lowest_free_clusters_are_taken_in_order),
        cmocka_unit_test(refs__a_cluster_is_taken_by_its_number_if_it_is_free),
        cmocka_unit_test(refs__what_is_staged_is_not_on_disk_before_the_write),
        cmocka_unit_test(refs__blocks_and_table_grow_and_count_themselves),
        cmocka_unit_test(refs__an_adjacent_run_may_be_longer_than_a_block_counts),
        cmocka_unit_test(refs__no_crash_leaves_a_block_that_nobody_counts),
        cmocka_unit_test(refs__freeing_what_is_free_is_corruption),
        cmocka_unit_test(refs__a_freed_tail_is_cut_off),
        cmocka_unit_test(refs__a_tail_that_was_there_before_is_not_ours_to_cut),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
