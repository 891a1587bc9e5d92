/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_unmap_test.c - an overlay that gives up its front: what stays, what goes, in which order.
 *
 * A cell of a picture (lab.h) is a cluster.  In every state that a power cut can leave, a cluster in front of
 * the end reads as it did or is absent, all others read as they did, and nothing is corrupt.
 */
#include "lab.h"
#include "qcow2_check.h"
#include "qcow2_refs.h"
#include "qcow2_unmap.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static void
make(const char *recipe)
{
    qm_forge_free(qm_lab_make(recipe));
}

static uint64_t
unmap(struct qm_qcow2 *q, uint64_t from, uint64_t to)
{
    uint64_t end = UINT64_MAX;

    OK(qm_qcow2_unmap(q, from, to, &end, err));
    return end;
}

static uint64_t
allocated(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

/* ---- what goes ---- */

static void
qcow2_unmap__only_clusters_wholly_in_front_go(void **state)
{
    struct qm_qcow2 *q;

    (void)state;
    make("x | AB.C0=dE cluster=4k\n");
    q = qm_lab_open("x");
    assert_int_equal(unmap(q, 0, 4 * KIB + 4095), 4 * KIB);
    qm_lab_looks("x", 4096, ".D.D0=cD");
    assert_int_equal(unmap(q, 4 * KIB, 28 * KIB), 28 * KIB);
    qm_lab_looks("x", 4096, ".......D");
    qm_lab_clean("x");
    qm_image_close(&q->img);
}

static void
qcow2_unmap__the_end_of_the_disk_is_the_end_of_its_last_cluster(void **state)
{
    struct qm_qcow2 *q;

    (void)state;
    make("x | ABC cluster=4k size=9k\n");
    q = qm_lab_open("x");
    assert_int_equal(unmap(q, 0, 9 * KIB - 1), 8 * KIB);
    assert_int_equal(unmap(q, 8 * KIB, 9 * KIB), 9 * KIB);
    qm_lab_looks("x", 1024, ".........");
    qm_lab_clean("x");
    qm_image_close(&q->img);
}

static void
qcow2_unmap__space_comes_back_at_once(void **state)
{
    struct qm_qcow2 *q;
    uint64_t before;

    (void)state;
    make("x | - cluster=64k size=8M\n  fill 0 128 A\n");
    before = allocated("x");
    q = qm_lab_open("x");
    unmap(q, 0, 4096 * KIB);
    if (allocated("x") == before)
        skip(); /* a file system without holes */
    assert_true(allocated("x") <= before - 4096 * KIB + 4 * KIB);
    qm_image_close(&q->img);
}

static void
qcow2_unmap__clusters_that_share_a_sector_stay_readable(void **state)
{
    struct qm_forge *f = qm_lab_make("x | abcdefgh cluster=4k\n");
    struct qm_bytes was, is;
    struct qm_qcow2 *q = qm_lab_open("x");

    (void)state;
    was = qm_lab_read("x");
    for (uint64_t i = 1; i < 8; i++) {
        assert_int_equal(unmap(q, (i - 1) * 4 * KIB, i * 4 * KIB), i * 4 * KIB);
        is = qm_lab_read("x");
        assert_memory_equal(is.at + i * 4 * KIB, was.at + i * 4 * KIB, (8 - i) * 4 * KIB);
        free(is.at);
        qm_lab_clean("x");
    }
    free(was.at);
    qm_image_close(&q->img);
    qm_forge_free(f);
}

/* ---- the order ---- */

static void
tells(const char *recipe, uint64_t to, const char *story)
{
    struct qm_qcow2 *q;

    make(recipe);
    q = qm_lab_open("x");
    qm_lab_watch();
    unmap(q, 0, to);
    qm_lab_unwatch();
    assert_string_equal(qm_lab_story("x"), story);
    qm_lab_clean("x");
    qm_image_close(&q->img);
}

static void
qcow2_unmap__entries_are_durable_before_anything_is_lowered(void **state)
{
    (void)state;
    tells("x | AB.C cluster=4k\n", 8 * KIB, "2|Bx");
}

static void
qcow2_unmap__a_table_that_is_passed_goes_with_one_l1_entry(void **state)
{
    (void)state;
    /* 64 entries a table: two tables whole, one in part */
    tells("x | - cluster=512 size=100k\n  fill 0 200 A\n", 70 * KIB, "12|Bx");
}

static void
qcow2_unmap__all_of_it_cuts_the_file(void **state)
{
    struct stat st;

    (void)state;
    tells("x | - cluster=512 size=100k\n  fill 0 200 A\n", 100 * KIB, "1|B|xt");
    assert_int_equal(stat("x", &st), 0);
    assert_true(st.st_size < 20 * 512);
}

static void
qcow2_unmap__where_nothing_is_nothing_is_written(void **state)
{
    (void)state;
    tells("x | ....AB cluster=4k\n", 16 * KIB, "");
    tells("x | - cluster=512 size=100k\n  fill 75k 10 A\n", 64 * KIB, "");
}

static void
qcow2_unmap__twice_is_once(void **state)
{
    struct qm_qcow2 *q;

    (void)state;
    make("x | - cluster=512 size=100k\n  fill 0 200 A\n");
    q = qm_lab_open("x");
    assert_int_equal(unmap(q, 0, 70 * KIB), 70 * KIB);
    qm_lab_watch();
    assert_int_equal(unmap(q, 0, 70 * KIB), 70 * KIB);
    qm_lab_unwatch();
    assert_string_equal(qm_lab_story("x"), "");
    qm_image_close(&q->img);
}

/* ---- tables that are not ours alone ---- */

/* The second L1 entry leads to the first one's table, and both are counted. */
static void
make_shared(void)
{
    make("x | - cluster=512 size=64k\n"
         "  fill 0 64 A\n"
         "  poke l1[1] = @l2table[0]\n"
         "  poke l1[0] = @l2table[0]\n");
    {
        struct qmeld_check_result r;
        struct qm_qcow2 *q = qm_lab_open("x");

        OK(qm_qcow2_check(q, QMELD_REPAIR_ALL, NULL, NULL, &r, err));
        assert_int_equal(r.corruptions + r.leaks, 0);
        qm_image_close(&q->img);
    }
}

static void
qcow2_unmap__a_shared_table_waits_until_it_goes_as_a_whole(void **state)
{
    struct qm_bytes was, is;
    struct qm_qcow2 *q;

    (void)state;
    make_shared();
    q = qm_lab_open("x");
    was = qm_lab_read("x");
    assert_int_equal(unmap(q, 0, 16 * KIB), 0);
    is = qm_lab_read("x");
    assert_memory_equal(is.at, was.at, was.len);
    free(is.at);
    assert_int_equal(unmap(q, 0, 48 * KIB), 32 * KIB); /* now it is the second one's alone */
    assert_int_equal(unmap(q, 32 * KIB, 48 * KIB), 48 * KIB);
    is = qm_lab_read("x");
    assert_memory_equal(is.at + 48 * KIB, was.at + 48 * KIB, 16 * KIB);
    assert_int_equal(unmap(q, 48 * KIB, 64 * KIB), 64 * KIB);
    qm_lab_clean("x");
    free(is.at);
    free(was.at);
    qm_image_close(&q->img);
}

static void
qcow2_unmap__shared_tables_are_seen_beforehand(void **state)
{
    struct qm_qcow2 *q;
    bool shared;

    (void)state;
    make_shared();
    q = qm_lab_open("x");
    OK(qm_qcow2_look_safe(q, &shared, err));
    assert_true(shared);
    qm_image_close(&q->img);
    make("x | AB~=0c#D cluster=16k extended_l2=1\n  sub 6 ..AA..00....BBBB~~==........CCCC\n");
    q = qm_lab_open("x");
    OK(qm_qcow2_look_safe(q, &shared, err));
    assert_false(shared);
    qm_image_close(&q->img);
}

/* ---- power cuts ---- */

static struct {
    uint64_t cell;
    uint64_t end; /* of what is given up */
    size_t n;
    struct qm_extent *was;
    struct qm_bytes bytes;
} old;

static void
look(const char *path, struct qm_extent *out)
{
    struct qm_qcow2 *q = qm_lab_open(path);

    for (size_t i = 0; i < old.n; i++)
        OK(qm_image_next(&q->img, qm_guest(i * old.cell), old.cell, &out[i], err));
    qm_image_close(&q->img);
}

static void
look_at_state(const unsigned char *file, size_t len, void *opaque)
{
    struct qm_extent *now = calloc(old.n, sizeof *now);
    struct qmeld_check_result r;
    struct qm_bytes bytes;
    struct qm_qcow2 *q;

    (void)opaque;
    assert_non_null(now);
    qm_torn_save("cut", file, len);
    look("cut", now);
    bytes = qm_lab_read("cut");
    for (size_t i = 0; i < old.n; i++) {
        if (now[i].kind == QM_ABSENT && !now[i].has_host && (i + 1) * old.cell <= old.end)
            continue;
        assert_int_equal(now[i].kind, old.was[i].kind);
        assert_memory_equal(bytes.at + i * old.cell, old.bytes.at + i * old.cell, old.cell);
    }
    free(bytes.at);
    free(now);
    q = qm_lab_open("cut");
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.check_errors, 0);
    OK(qm_qcow2_give_back(q, err));
    qm_image_close(&q->img);
    qm_lab_clean("cut");
}

/* In three steps, each from where the last one ended. */
static void
survives(const char *recipe, uint64_t cell, size_t cells, uint64_t end)
{
    struct qm_torn *t;
    struct qm_qcow2 *q;
    uint64_t at = 0;

    make(recipe);
    old.cell = cell;
    old.n = cells;
    old.end = end;
    old.was = calloc(cells, sizeof *old.was);
    assert_non_null(old.was);
    look("x", old.was);
    old.bytes = qm_lab_read("x");
    t = qm_torn_start("x");
    q = qm_lab_open("x");
    for (uint64_t third = 1; third <= 3; third++)
        at = unmap(q, at, end / 3 * third);
    unmap(q, at, end);
    qm_image_close(&q->img);
    qm_torn_stop(t);
    assert_true(qm_torn_replay(t, look_at_state, NULL) > 3);
    qm_torn_free(t);
    free(old.bytes.at);
    free(old.was);
}

static void
qcow2_unmap__every_cut_leaves_old_or_nothing(void **state)
{
    (void)state;
    survives("x | ABcd=E0~FGhi cluster=4k\n", 4096, 12, 36 * KIB);
    survives("x | ABcdE.FGhi cluster=4k version=2\n", 4096, 10, 40 * KIB);
    survives("x | A.b#cD cluster=16k extended_l2=1\n"
             "  sub 3 ..AA..00....BBBB~~==........CCCC\n",
             512, 192, 80 * KIB);
}

static void
qcow2_unmap__every_cut_among_tables_does(void **state)
{
    (void)state;
    survives("x | - cluster=512 size=48k refcount_bits=1\n  fill 0 20 A\n  fill 17k 8 b\n"
             "  fill 31k 10 C\n  fill 40k 9 D\n",
             512, 96, 37 * KIB);
}

/* ---- after an interruption ---- */

static void
qcow2_unmap__what_was_freed_and_not_given_back_is_found(void **state)
{
    struct qm_qcow2 *q;
    uint64_t before;

    (void)state;
    /* entries are gone, refcounts are not; and clusters are free that the file system has still */
    make("x | - cluster=64k size=4M\n  fill 0 64 A\n  poke l2[3] = 0\n  poke l2[4] = 0\n"
         "  poke l2[60] = 0\n  poke l2[61] = 0\n  poke l2[62] = 0\n  poke l2[63] = 0\n"
         "  poke refcount[@data[40]] = 0\n  poke l2[40] = 0\n");
    before = allocated("x");
    q = qm_lab_open("x");
    OK(qm_qcow2_give_back(q, err));
    qm_image_close(&q->img);
    qm_lab_clean("x");
    if (allocated("x") == before)
        skip(); /* a file system without holes */
    /* seven clusters, but for a block of the file system's own: more holes are more extents to keep account of */
    assert_true(allocated("x") <= before - 7 * 64 * KIB + 4 * KIB);
}

/* S6: the refcounts may be those of a run that was killed, and only in the page cache.  Nothing is left to be mended
 * here, so that no mend has synced them. */
static void
qcow2_unmap__refcounts_are_durable_before_the_file_is_cut(void **state)
{
    struct qm_qcow2 *q;

    (void)state;
    make("x | ABCD cluster=4k\n  poke refcount[@data[3]] = 0\n  poke l2[3] = 0\n");
    q = qm_lab_open("x");
    qm_lab_watch();
    OK(qm_qcow2_give_back(q, err));
    qm_lab_unwatch();
    assert_string_equal(qm_lab_story("x"), "|t|");
    qm_image_close(&q->img);
    qm_lab_clean("x");
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qcow2_unmap__only_clusters_wholly_in_front_go),
        cmocka_unit_test(qcow2_unmap__the_end_of_the_disk_is_the_end_of_its_last_cluster),
        cmocka_unit_test(qcow2_unmap__space_comes_back_at_once),
        cmocka_unit_test(qcow2_unmap__clusters_that_share_a_sector_stay_readable),
        cmocka_unit_test(qcow2_unmap__entries_are_durable_before_anything_is_lowered),
        cmocka_unit_test(qcow2_unmap__a_table_that_is_passed_goes_with_one_l1_entry),
        cmocka_unit_test(qcow2_unmap__all_of_it_cuts_the_file),
        cmocka_unit_test(qcow2_unmap__where_nothing_is_nothing_is_written),
        cmocka_unit_test(qcow2_unmap__twice_is_once),
        cmocka_unit_test(qcow2_unmap__a_shared_table_waits_until_it_goes_as_a_whole),
        cmocka_unit_test(qcow2_unmap__shared_tables_are_seen_beforehand),
        cmocka_unit_test(qcow2_unmap__every_cut_leaves_old_or_nothing),
        cmocka_unit_test(qcow2_unmap__every_cut_among_tables_does),
        cmocka_unit_test(qcow2_unmap__what_was_freed_and_not_given_back_is_found),
        cmocka_unit_test(qcow2_unmap__refcounts_are_durable_before_the_file_is_cut),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
