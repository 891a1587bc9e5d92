/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_size_test.c - targets that grow, what lay behind their old end, and very many clusters.
 */
#include "image.h"
#include "lab.h"
#include "scratch.h"
#include "transfer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static const struct qmeld_commit_options into_base = {.threads = 2};
static const struct qmeld_commit_options into_second = {.threads = 2, .base = "[2]"};

/* ---- growth, and what was behind the old end ---- */

static void
merge_size__stale_bytes_in_the_last_cluster_become_zeros(void **state)
{
    static const char *const bases[] = {"", "  snapshot s ^^\n"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char recipe[256];
        struct qm_forge *f;

        snprintf(recipe, sizeof recipe,
                 "top  | .......A.... cluster=4k\n"
                 "base | AB size=20k cluster=16k\n%s",
                 bases[i]);
        f = qm_lab_make(recipe);
        qm_lab_soil("base", qm_lab_host("base", 16 * KIB) + 4 * KIB, 12 * KIB);
        qm_lab_merge(f, "top", "base", &into_base);
        qm_lab_looks("base", 16 * KIB, "DD0");
        qm_forge_free(f);
    }
}

static void
merge_size__stale_clusters_behind_the_end_are_never_seen(void **state)
{
    static const struct {
        const char *base;
        const char *looks;
    } cases[] = {
        {"ABCDEF cluster=16k", "DD0D00"},
        {"ABcdef cluster=16k", "DD0D00"},
        {"ABCDEF cluster=16k version=2", "DD.D.."},
        {"AB==00 cluster=16k", "DD=D00"},
        {"ABCDEF cluster=16k\n  snapshot s ^^^^^^", "DD0D00"},
    };

    (void)state;
    for (size_t i = 0; i < 5; i++) {
        char recipe[256];
        struct qm_bytes want, old;

        snprintf(recipe, sizeof recipe,
                 "top  | .............Z.......... cluster=4k\n"
                 "base | %s\n"
                 "  poke header.size = 20480\n",
                 cases[i].base);
        qm_forge_free(qm_lab_make(recipe));
        want = qm_lab_read("top"); /* already hides what is behind base's end */
        assert_int_equal(want.at[56 * KIB] | want.at[22 * KIB], 0);
        old = qm_lab_snapshots("base");
        qm_lab_commit("top", &into_base);
        qm_lab_same(qm_lab_read("base"), want, "base");
        qm_lab_looks("base", 16 * KIB, cases[i].looks);
        qm_lab_same(qm_lab_snapshots("base"), old, "snapshots");
        qm_lab_clean("base");
    }
}

static void
merge_size__stale_tables_behind_the_end_are_never_seen(void **state)
{
    (void)state;
    qm_forge_free(qm_lab_make("top  | - size=100k cluster=4k\n"
                              "base | - size=70k cluster=512\n" /* a table is 32 KiB of guest */
                              "  fill 0 140 A\n"
                              "  poke header.size = 10240\n"));
    qm_lab_commit("top", &into_base);
    qm_lab_zeros("base", 10 * KIB, 90 * KIB);
    qm_lab_clean("base");
}

static void
merge_size__a_top_that_ends_early_keeps_hiding_the_base(void **state)
{
    static const struct qmeld_commit_options range = {.threads = 1, .top = "[2]"};
    struct qm_forge *f = qm_lab_make("child | ....... cluster=8k\n" /* 56k */
                                     "top   | A. cluster=4k\n"      /* 8k */
                                     "base  | BBBBB cluster=16k\n");
    struct qm_bytes old, now;

    (void)state;
    old = qm_lab_read("base");
    qm_lab_commit("child", &range);
    qm_lab_reads_as("child", f, 0);
    now = qm_lab_read("base");
    assert_int_equal(now.len, 80 * KIB);
    for (uint64_t i = 8 * KIB; i < 56 * KIB; i++)
        assert_int_equal(now.at[i], 0);
    assert_memory_equal(now.at + 56 * KIB, old.at + 56 * KIB, 24 * KIB); /* nobody's but its own */
    assert_memory_equal(now.at + 4 * KIB, old.at + 4 * KIB, 4 * KIB);
    qm_lab_looks("base", 16 * KIB, "D00DD");
    qm_lab_clean("base");
    free(old.at);
    free(now.at);
    qm_forge_free(f);
}

static void
merge_size__the_l1_table_and_the_refcounts_grow(void **state)
{
    static const char *const bases[] = {"refcount_bits=16", "refcount_bits=64", "refcount_bits=1",
                                        "version=2", "scatter=7"};

    (void)state;
    for (size_t i = 0; i < 5; i++) {
        char recipe[256];
        struct qm_forge *f;

        snprintf(recipe, sizeof recipe,
                 "top  | AB size=4M cluster=4k\n"
                 "  fill 2M 90 C\n"
                 "  at 4190208 D\n"
                 "base | XYZ size=40k cluster=512 %s\n",
                 bases[i]);
        f = qm_lab_make(recipe);
        qm_lab_merge(f, "top", "base", &into_base);
        qm_lab_written_once("base", "HBR1");
        qm_forge_free(f);
    }
}

/* Rubbish that is no part of the image: free space that the merge will use. */
static void
add_rubbish(const char *path, uint64_t cluster)
{
    struct qm_bytes b = qm_lab_file(path);

    qm_lab_soil(path, (b.len + cluster - 1) / cluster * cluster, 256 * KIB);
    free(b.at);
}

static void
merge_size__rubbish_in_free_clusters_is_not_inherited(void **state)
{
    struct qm_forge *f = qm_lab_make("top     | .A..B.C size=27648 cluster=4k\n"
                                     "mid     | .. size=27648 cluster=16k\n"
                                     "low.raw | XXXXXXX cluster=4k\n");
    struct qm_bytes b;
    uint64_t tail;

    (void)state;
    add_rubbish("mid", 16 * KIB);
    qm_lab_merge(f, "top", "mid", &into_second);
    qm_lab_looks("mid", 16 * KIB, "DD");
    /* also where no guest can see it yet */
    tail = qm_lab_host("mid", 16 * KIB) + 27648 - 16 * KIB;
    b = qm_lab_file("mid");
    for (uint64_t i = tail; i < tail + 5 * KIB && i < b.len; i++)
        assert_int_equal(b.at[i], 0);
    free(b.at);
    qm_forge_free(f);

    f = qm_lab_make("top  | .A..B.C cluster=4k\n"
                    "base | .. cluster=16k size=28k\n");
    add_rubbish("base", 16 * KIB);
    qm_lab_merge(f, "top", "base", &into_base);
    qm_forge_free(f);
}

/* ---- many of them ---- */

/* A table stands for 32 KiB here: there is none, there is one, none, one. */
static void
merge_size__zeros_pass_over_missing_tables_only(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | 0 size=128k cluster=128k\n"
                                     "base | - size=128k cluster=512\n"
                                     "  at 32k A\n"
                                     "  at 130560 A\n");

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    qm_forge_free(f);
    qm_lab_zeros("base", 0, 128 * KIB);
}

/* A table that one write cannot fill, zeros that one step cannot cover. */
static void
merge_size__long_runs_of_entries(void **state)
{
    struct qm_extent x;
    struct qm_file *file;
    struct qm_image *img;

    (void)state;
    qm_forge_free(qm_lab_make("top  | - size=40G cluster=2M\n"
                              "  fill 2M 20000 0\n"
                              "  at 0 B\n"
                              "base | A size=40G cluster=2M\n"));
    qm_lab_commit("top", &into_base);
    qm_lab_clean("base");
    OK(qm_file_open("base", &file, err));
    OK(qm_image_open(file, "qcow2", &img, err));
    for (uint64_t at = 0; at < img->size; at += x.len) {
        OK(qm_image_next(img, qm_guest(at), img->size - at, &x, err));
        assert_int_equal(x.kind, at < 2048 * KIB              ? QM_DATA
                                 : at < 20001ull * 2048 * KIB ? QM_ZERO
                                                              : QM_ABSENT);
    }
    qm_image_close(img);
}

/* The second batch goes on inside the table that the first made. */
static void
merge_size__batches_may_end_inside_a_table(void **state)
{
    const struct qm_transfer_limits limits = qm_transfer_limits;

    (void)state;
    for (uint64_t batch = 1; batch <= 4096; batch *= 16) {
        struct qm_forge *f = qm_lab_make("top     | A.B.0.C..00..DD..0a..E cluster=4k\n"
                                         "mid     | ...................... cluster=4k\n"
                                         "low.raw | XXXXXXXXXXXXXXXXXXX cluster=4k\n");

        qm_transfer_limits.batch = batch;
        qm_transfer_limits.step = 4096;
        qm_lab_merge(f, "top", "mid", &into_second);
        qm_transfer_limits = limits;
        qm_lab_looks("mid", 4 * KIB, "D.D.0.D..00..DD..0c..D");
        qm_forge_free(f);
    }
}

/* Otherwise what the second batch brings would be filled with old bytes by the first. */
static void
merge_size__batches_end_between_clusters_only(void **state)
{
    const struct qm_transfer_limits limits = qm_transfer_limits;
    uint64_t filled = 0;

    (void)state;
    for (int tiny = 0; tiny < 2; tiny++) {
        struct qm_forge *f = qm_lab_make("top     | A.BCD.A..B.C..0.0A.B cluster=4k\n"
                                         "mid     | b.AAA cluster=16k\n"
                                         "low.raw | XXXXXXXXXXXXXXXXXXX cluster=4k\n");
        struct qmeld_commit_report r;

        if (tiny)
            qm_transfer_limits = (struct qm_transfer_limits){
                .batch = 1, .batch_weight = 1, .batch_sec = 5, .step = 4096};
        r = qm_lab_merge(f, "top", "mid", &into_second);
        qm_transfer_limits = limits;
        qm_lab_looks("mid", 16 * KIB, "DDDDD");
        assert_true(!tiny || r.bytes_filled == filled);
        filled = r.bytes_filled;
        qm_forge_free(f);
    }
    assert_true(filled > 0);
}

/* So many L1 clusters in a row that the refcount blocks before them need a block themselves. */
static void
merge_size__an_l1_table_of_thousands_of_clusters(void **state)
{
    (void)state;
    qm_forge_free(qm_lab_make("top  | A size=9G cluster=64k\n"
                              "base | B size=4k cluster=512 refcount_bits=64\n"));
    assert_int_equal(qm_lab_commit("top", &into_base).base_new_size, 9ull << 30);
    qm_lab_clean("base");
    assert_true(qm_lab_host("base", 0) != 0);
}

/* ---- lengths of files ---- */

static void
merge_size__a_source_that_ends_early_reads_as_zeros(void **state)
{
    (void)state;
    for (uint64_t keep = 0; keep <= 1024; keep += 512) {
        struct qm_bytes want;

        qm_forge_free(qm_lab_make("top  | .AB cluster=4k\n"
                                  "base | CDE cluster=4k\n"));
        assert_int_equal(truncate("top", (off_t)(qm_lab_host("top", 8 * KIB) + keep)), 0);
        want = qm_lab_read("top");
        assert_int_equal(want.at[8 * KIB + keep], 0);
        qm_lab_commit("top", &into_base);
        qm_lab_same(qm_lab_read("base"), want, "base");
    }
}

static void
merge_size__a_raw_file_of_odd_length_keeps_it(void **state)
{
    struct qm_bytes b;

    (void)state;
    qm_forge_free(qm_lab_make("top      | A size=4k cluster=4k\n"
                              "base.raw | XX size=5000 cluster=4k\n"));
    qm_lab_commit("top", &into_base);
    b = qm_lab_file("base.raw");
    assert_int_equal(b.len, 5000);
    assert_int_equal(b.at[0], 'A');
    assert_int_equal(b.at[4096], 'X');
    free(b.at);
}

/* Who reads it as the guest's disk finds all of that (docs/crash-safety.md, "A target with an external data file"). */
static void
merge_size__a_data_file_becomes_as_long_as_the_disk(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | ..A..... cluster=4k\n"
                                     "base | AB cluster=4k size=8k data_file=base.data\n");
    struct stat st;

    (void)state;
    assert_int_equal(stat("base.data", &st), 0);
    assert_in_range(st.st_size, 0, 8 * KIB);
    qm_lab_merge(f, "top", "base", &into_base);
    assert_int_equal(stat("base.data", &st), 0);
    assert_int_equal(st.st_size, 32 * KIB);
    qm_forge_free(f);
}

/* The child was shrunk, and can go back to a snapshot that is longer: that saw zeros behind top's end. */
static void
merge_size__what_top_hid_from_a_snapshot_of_the_child_stays_hidden(void **state)
{
    const struct qmeld_commit_options o = {.threads = 1, .top = "[2]"};
    struct qm_forge *f = qm_lab_make("all cluster=4k\n"
                                     "child | .. size=8k\n"
                                     "  snapshot s .... size=16k\n"
                                     "top   | A. size=8k\n"
                                     "base  | BBBBB size=20k\n");
    struct qmeld_commit_report r;
    struct qmeld_error err;

    (void)state;
    assert_int_equal(qmeld_commit("child", &o, &r, &err), 0);
    qmeld_commit_report_free(&r);
    qm_lab_looks("base", 4 * KIB, "DD00D"); /* the fifth nobody ever saw through top */
    qm_lab_clean("base");
    qm_forge_free(f);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, qm_scratch_enter, qm_scratch_leave)
    const struct CMUnitTest tests[] = {
        T(merge_size__rubbish_in_free_clusters_is_not_inherited),
        T(merge_size__zeros_pass_over_missing_tables_only),
        T(merge_size__long_runs_of_entries),
        T(merge_size__an_l1_table_of_thousands_of_clusters),
        T(merge_size__a_source_that_ends_early_reads_as_zeros),
        T(merge_size__a_raw_file_of_odd_length_keeps_it),
        T(merge_size__batches_may_end_inside_a_table),
        T(merge_size__batches_end_between_clusters_only),
        T(merge_size__stale_bytes_in_the_last_cluster_become_zeros),
        T(merge_size__stale_clusters_behind_the_end_are_never_seen),
        T(merge_size__stale_tables_behind_the_end_are_never_seen),
        T(merge_size__a_top_that_ends_early_keeps_hiding_the_base),
        T(merge_size__the_l1_table_and_the_refcounts_grow),
        T(merge_size__what_top_hid_from_a_snapshot_of_the_child_stays_hidden),
        T(merge_size__a_data_file_becomes_as_long_as_the_disk),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
