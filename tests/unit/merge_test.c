/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_test.c - what each guest cluster of a target becomes: one small chain a decision.
 *
 * Content is compared with what the forge drew; the structure is drawn again (lab.h) and
 * compared with a picture; in both every target must be free of corruptions and leaks.
 */
#include "image.h"
#include "lab.h"
#include "scratch.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static const struct qmeld_commit_options into_base = {.threads = 2};
static const struct qmeld_commit_options into_second = {.threads = 2, .base = "[2]"};

/* A chain top over base, merged; base then looks so. */
static struct qmeld_commit_report
becomes(const char *recipe, uint64_t cell, const char *picture)
{
    struct qm_forge *f = qm_lab_make(recipe);
    const struct qmeld_commit_report r = qm_lab_merge(f, "top", "base", &into_base);

    qm_lab_looks("base", cell, picture);
    qm_forge_free(f);
    return r;
}

/* The same for top and mid over a raw image, which stays as it is: what is below matters. */
static struct qmeld_commit_report
mid_becomes(const char *recipe, uint64_t cell, const char *picture)
{
    struct qm_forge *f = qm_lab_make(recipe);
    const struct qm_bytes low = qm_lab_file("low.raw");
    const struct qmeld_commit_report r = qm_lab_merge(f, "top", "mid", &into_second);

    qm_lab_looks("mid", cell, picture);
    qm_lab_same(qm_lab_file("low.raw"), low, "low.raw");
    qm_forge_free(f);
    return r;
}

/* ---- data ---- */

static void
merge__data_of_our_own_goes_in_place(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | .C. cluster=4k\n"
                                     "base | AB. cluster=4k\n");
    const uint64_t at = qm_lab_host("base", 4 * KIB);
    struct qmeld_commit_report r;

    (void)state;
    r = qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", 4 * KIB, "DD.");
    assert_int_equal(qm_lab_host("base", 4 * KIB), at);
    assert_int_equal(qm_lab_write_at("base", at), 4 * KIB);
    assert_int_equal(qm_lab_written("base"), 4 * KIB);
    assert_int_equal(r.bytes_copied, 4 * KIB);
    assert_int_equal(r.bytes_filled, 0);
    assert_int_equal(r.bytes_zeroed, 0);
    qm_forge_free(f);
}

static void
merge__only_what_is_allocated_is_written(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | ......A. size=128k cluster=4k\n"
                                     "base | BC cluster=64k\n");
    uint64_t at = qm_lab_host("base", 0) + 24 * KIB;

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    assert_int_equal(qm_lab_written("base"), 4 * KIB);
    assert_int_equal(qm_lab_write_at("base", at), 4 * KIB);
    qm_forge_free(f);

    f = qm_lab_make("top | ..A....b..0 cluster=4k\n"
                    "base.raw | ........... cluster=4k\n");
    qm_lab_merge(f, "top", "base.raw", &into_base);
    assert_int_equal(qm_lab_written("base.raw"), 8 * KIB);
    assert_int_equal(qm_lab_write_at("base.raw", 8 * KIB), 4 * KIB);
    assert_int_equal(qm_lab_write_at("base.raw", 28 * KIB), 4 * KIB);
    qm_forge_free(f);
}

static void
merge__a_new_cluster_is_filled_from_below(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    r = mid_becomes("top     | ..A..............B.............. cluster=4k\n"
                    "mid     | .. cluster=64k\n"
                    "low.raw | XY.XY.XYZ.XY.Y size=108k cluster=8k\n",
                    64 * KIB, "DD");
    assert_int_equal(r.bytes_copied, 8 * KIB);
    assert_int_equal(r.bytes_filled, 120 * KIB);
    /* nothing below: what is not wanted is a hole */
    r = becomes("top  | ..A............. cluster=4k\n"
                "base | . cluster=64k\n",
                64 * KIB, "D");
    assert_int_equal(r.bytes_filled, 0);
    assert_int_equal(qm_lab_write_at("base", qm_lab_host("base", 0) + 8 * KIB), 4 * KIB);
}

static void
merge__zeros_of_the_base_become_zeros_around_new_data(void **state)
{
    (void)state;
    /* '=' has rubbish in its cluster, '~' a hole that hides what is below */
    mid_becomes("top     | .A...A...A...A.. cluster=4k\n"
                "mid     | 0=~. cluster=16k\n"
                "low.raw | XXXXXXXXXXXXXXXX cluster=4k\n",
                16 * KIB, "DDDD");
}

static void
merge__zeros_with_a_cluster_are_written_in_place(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | A..B cluster=4k\n"
                                     "base | = cluster=16k\n");
    const uint64_t at = qm_lab_host("base", 0);

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", 16 * KIB, "D");
    assert_int_equal(qm_lab_host("base", 0), at);
    qm_forge_free(f);
}

static void
merge__a_cluster_shared_with_a_snapshot_is_copied_on_write(void **state)
{
    static const char *const snapshots[] = {"^^^", "^S^", "S.^"};

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        char recipe[256];
        struct qm_forge *f;
        struct qm_bytes before;
        uint64_t at;

        snprintf(recipe, sizeof recipe,
                 "top  | ........C.0. cluster=4k\n"
                 "base | AbB cluster=16k\n"
                 "  snapshot s %s\n",
                 snapshots[i]);
        f = qm_lab_make(recipe);
        before = qm_lab_snapshots("base");
        at = qm_lab_host("base", 32 * KIB);
        qm_lab_merge(f, "top", "base", &into_base);
        qm_lab_looks("base", 16 * KIB, "DcD");
        assert_true(qm_lab_host("base", 32 * KIB) != at);
        qm_lab_same(qm_lab_snapshots("base"), before, "snapshots");
        qm_forge_free(f);
    }
}

/* ---- compressed clusters of the target ---- */

static void
merge__a_compressed_cluster_is_inflated_when_partly_overwritten(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    r = becomes("top  | .....C.............. cluster=4k\n"
                "base | abcDe cluster=16k\n",
                16 * KIB, "cDcDc");
    assert_int_equal(r.bytes_filled, 12 * KIB);
    /* a whole one is not read; zeros in a part of one must be bytes */
    r = becomes("top  | DDDD....0.......0000 cluster=4k\n"
                "base | abcDe cluster=16k\n",
                16 * KIB, "DcDD0");
    assert_int_equal(r.bytes_filled, 12 * KIB);
    assert_int_equal(r.bytes_copied, 16 * KIB);
    assert_int_equal(r.bytes_zeroed, 20 * KIB);
}

static void
merge__a_compressed_cluster_that_ends_behind_the_image_needs_only_its_visible_part(void **state)
{
    const struct qmeld_commit_report r = becomes("top  | ..00 size=28k cluster=8k\n"
                                                 "base | ab size=28k cluster=16k\n",
                                                 16 * KIB, "c0");

    (void)state;
    assert_int_equal(r.bytes_filled, 0);
}

/* ---- zeros ---- */

static void
merge__whole_zero_cluster_frees_the_old_cluster(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | .00. cluster=16k\n"
                                     "base | ABCD cluster=16k\n");

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", 16 * KIB, "D00D");
    assert_int_equal(qm_lab_written("base") / KIB, 16); /* entries and refcounts */
    assert_non_null(strchr(qm_lab_story("base"), 'x'));
    qm_forge_free(f);
}

static void
merge__zeros_in_a_part_of_our_cluster_are_punched_in_place(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | .0.. cluster=4k\n"
                                     "base | A cluster=16k\n");

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", 16 * KIB, "D");
    assert_int_equal(qm_lab_written("base"), 0);
    qm_forge_free(f);
}

static void
merge__zeros_over_zeros_change_nothing(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | .0..0000.0..0000 cluster=4k\n"
                                     "base | 00== cluster=16k\n");

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", 16 * KIB, "00==");
    assert_int_equal(qm_lab_written("base"), 0);
    qm_forge_free(f);
}

static void
merge__zeros_over_absent(void **state)
{
    (void)state;
    /* with a table: the flag costs nothing */
    becomes("top  | 0.B cluster=16k\n"
            "base | ..A cluster=16k\n",
            16 * KIB, "0.D");
    /* without one, over nothing: absent is zero enough, and no table is made */
    becomes("top  | 0.. cluster=16k\n"
            "base | ... cluster=16k\n",
            16 * KIB, "...");
    assert_int_equal(qm_lab_written("base"), 0);
    /* over a backing file zeros must be said, with a table or without */
    mid_becomes("top     | 0.. cluster=16k\n"
                "mid     | ..A cluster=16k\n"
                "low.raw | XXX cluster=16k\n",
                16 * KIB, "0.D");
    mid_becomes("top     | 0.0 cluster=16k\n"
                "mid     | ... cluster=16k\n"
                "low.raw | XX cluster=16k\n",
                16 * KIB, "0..");
    /* a part of an absent cluster over a backing file: bytes */
    mid_becomes("top     | .0.... cluster=8k\n"
                "mid     | ... cluster=16k\n"
                "low.raw | XXX cluster=16k\n",
                16 * KIB, "D..");
    /* where the backing file has ended, the whole cluster may say zero */
    mid_becomes("top     | C..0.. cluster=8k\n"
                "mid     | A.. cluster=16k\n"
                "low.raw | X cluster=16k\n",
                16 * KIB, "D0.");
    /* but not where it ends inside the cluster */
    mid_becomes("top     | C..0.. cluster=8k\n"
                "mid     | A.. cluster=16k\n"
                "low.raw | XXX cluster=8k\n",
                16 * KIB, "DD.");
}

static void
merge__zeros_into_version_2(void **state)
{
    (void)state;
    /* nothing below: entries are removed */
    becomes("top  | 0000 cluster=16k\n"
            "base | AbC. cluster=16k version=2\n",
            16 * KIB, "....");
    /* something below: zeros are written, in place where there is a cluster of our own */
    mid_becomes("top     | 0000 cluster=16k\n"
                "mid     | Ab.. cluster=16k version=2\n"
                "low.raw | XXX cluster=16k\n",
                16 * KIB, "DDD.");
    /* where the backing file has ended: removed */
    mid_becomes("top     | .000 cluster=16k\n"
                "mid     | ABcD cluster=16k version=2\n"
                "low.raw | XX cluster=16k\n",
                16 * KIB, "DD..");
    /* parts */
    becomes("top  | .0...0...0..AA00 cluster=4k\n"
            "base | Ab.. cluster=16k version=2\n",
            16 * KIB, "DD.D");
}

/* ---- subclusters ---- */

#define SUBS(marks) "  sub 0 " marks "\n"

static void
merge__subclusters_change_one_by_one(void **state)
{
    (void)state;
    mid_becomes("top     | AA00..AA00..AA00..AA00..AA00.... cluster=2k\n"
                "mid     | # cluster=64k extended_l2=1\n" SUBS(
                    "BBBBBB......000000======~~~~~~~~") "low.raw | X cluster=64k\n",
                2 * KIB, "DD==DDDD==~~DD====DD====DD==~~~~");
}

static void
merge__a_part_of_a_subcluster_is_filled_up(void **state)
{
    (void)state;
    mid_becomes("top     | A...A...A...A... size=64k cluster=512\n"
                "mid     | # cluster=64k size=64k extended_l2=1\n" SUBS(
                    "B.0=............................") "low.raw | X cluster=64k\n",
                2 * KIB, "DDDD~~~~~~~~~~~~~~~~~~~~~~~~~~~~");
}

static void
merge__zeros_over_all_subclusters_free_the_cluster(void **state)
{
    (void)state;
    mid_becomes("top     | 0000000000000000000000000000000 size=64k cluster=2k\n"
                "mid     | # cluster=64k extended_l2=1\n" SUBS(
                    "AAAAAAAAAAAAAAAA................") "low.raw | X cluster=64k\n",
                2 * KIB, "0000000000000000000000000000000.");
    /* the last data is gone: so is the cluster, and what is absent in it stays so */
    assert_int_equal(qm_lab_host("mid", 63 * KIB), 0);
    /* one piece of data left, or none to begin with: it stays */
    mid_becomes("top     | 000000000000000................. cluster=2k\n"
                "mid     | # cluster=64k extended_l2=1\n" SUBS(
                    "AAAAAAAAAAAAAAAA................") "low.raw | X cluster=64k\n",
                2 * KIB, "===============D~~~~~~~~~~~~~~~~");
}

static void
merge__subclusters_shared_with_a_snapshot_move_together(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | ...C..0. size=64k cluster=2k\n"
                                     "base | # cluster=64k extended_l2=1\n" SUBS(
                                         "AA0.B0A=....A...................") "  snapshot s ^\n");
    const struct qm_bytes before = qm_lab_snapshots("base");
    const uint64_t at = qm_lab_host("base", 0);

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    assert_true(qm_lab_host("base", 0) != at);
    qm_lab_looks("base", 2 * KIB, "DD=DD===~~~~D~~~~~~~~~~~~~~~~~~~");
    qm_lab_same(qm_lab_snapshots("base"), before, "snapshots");
    qm_forge_free(f);
}

static void
merge__a_compressed_cluster_between_subclusters(void **state)
{
    (void)state;
    becomes("top  | ..C....0........................ size=64k cluster=2k\n"
            "base | a cluster=64k extended_l2=1\n",
            64 * KIB, "D");
    becomes("top  | 00000000000000000000000000000000 size=64k cluster=2k\n"
            "base | a cluster=64k extended_l2=1\n",
            64 * KIB, "0");
    becomes("top  | 0............................... size=64k cluster=2k\n"
            "base | a cluster=64k extended_l2=1\n",
            2 * KIB, "=DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD");
}

static void
merge__zeros_among_subclusters_without_data_keep_the_cluster(void **state)
{
    (void)state;
    mid_becomes("top     | 0000............................ cluster=2k\n"
                "mid     | # cluster=64k extended_l2=1\n" SUBS(
                    "~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~") "low.raw | X cluster=64k\n",
                2 * KIB, "====~~~~~~~~~~~~~~~~~~~~~~~~~~~~");
}

static void
merge__zero_flags_end_with_the_backing_file(void **state)
{
    (void)state;
    mid_becomes("top     | 00000000000000000000000000000000 cluster=2k\n"
                "mid     | . cluster=64k extended_l2=1\n"
                "low.raw | XXXXXXXX cluster=4k\n",
                2 * KIB, "0000000000000000................");
}

static void
merge__a_compressed_cluster_cut_by_the_end_can_become_zeros(void **state)
{
    const struct qmeld_commit_report r = becomes("top  | 00000 cluster=8k\n"
                                                 "base | a size=40k cluster=64k extended_l2=1\n",
                                                 40 * KIB, "0");

    (void)state;
    assert_int_equal(r.bytes_filled, 0);
}

static void
merge__neighbours_from_different_layers_are_not_mistaken_for_one(void **state)
{
    (void)state;
    /* cell 1 of top and cell 2 of mid lie side by side, in different files */
    for (int raw = 0; raw < 2; raw++) {
        char recipe[256];
        struct qm_forge *f;

        snprintf(recipe, sizeof recipe,
                 "top  | XY. cluster=4k\n"
                 "mid  | ABC cluster=4k\n"
                 "base%s | E size=12k cluster=16k\n",
                 raw ? ".raw" : "");
        f = qm_lab_make(recipe);
        assert_int_equal(qm_lab_host("top", 4 * KIB) + 4 * KIB, qm_lab_host("mid", 8 * KIB));
        qm_lab_merge(f, "top", raw ? "base.raw" : "base", &into_base);
        qm_forge_free(f);
    }
}

static void
merge__a_target_that_grows_hides_what_is_below_it(void **state)
{
    (void)state;
    mid_becomes("top     | .... cluster=16k\n"
                "mid     | A cluster=16k\n"
                "low.raw | XYZ cluster=16k\n",
                16 * KIB, "D000"); /* the table is there, so the last is flagged, too */
    mid_becomes("top     | .... cluster=16k\n"
                "mid     | A cluster=16k version=2\n"
                "low.raw | XYZ cluster=16k\n",
                16 * KIB, "DDD.");
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, qm_scratch_enter, qm_scratch_leave)
    const struct CMUnitTest tests[] = {
        T(merge__data_of_our_own_goes_in_place),
        T(merge__only_what_is_allocated_is_written),
        T(merge__a_new_cluster_is_filled_from_below),
        T(merge__zeros_of_the_base_become_zeros_around_new_data),
        T(merge__zeros_with_a_cluster_are_written_in_place),
        T(merge__a_cluster_shared_with_a_snapshot_is_copied_on_write),
        T(merge__a_compressed_cluster_is_inflated_when_partly_overwritten),
        T(merge__a_compressed_cluster_that_ends_behind_the_image_needs_only_its_visible_part),
        T(merge__whole_zero_cluster_frees_the_old_cluster),
        T(merge__zeros_in_a_part_of_our_cluster_are_punched_in_place),
        T(merge__zeros_over_zeros_change_nothing),
        T(merge__zeros_over_absent),
        T(merge__zeros_into_version_2),
        T(merge__subclusters_change_one_by_one),
        T(merge__a_part_of_a_subcluster_is_filled_up),
        T(merge__zeros_over_all_subclusters_free_the_cluster),
        T(merge__subclusters_shared_with_a_snapshot_move_together),
        T(merge__a_compressed_cluster_between_subclusters),
        T(merge__zeros_among_subclusters_without_data_keep_the_cluster),
        T(merge__zero_flags_end_with_the_backing_file),
        T(merge__a_compressed_cluster_cut_by_the_end_can_become_zeros),
        T(merge__neighbours_from_different_layers_are_not_mistaken_for_one),
        T(merge__a_target_that_grows_hides_what_is_below_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
