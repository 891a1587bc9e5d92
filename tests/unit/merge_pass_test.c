/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_pass_test.c - compressed clusters that a target gets as they are: which, and where they go.
 */
#include "lab.h"
#include "qcow2.h"
#include "scratch.h"
#include "transfer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static const struct qmeld_commit_options into_base = {.threads = 2};

/* A chain top over base, merged; base then looks so. */
static void
becomes(const char *recipe, uint64_t cell, const char *picture)
{
    struct qm_forge *f = qm_lab_make(recipe);

    qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", cell, picture);
    qm_forge_free(f);
}

/* The extent of a guest's byte. */
static struct qm_extent
extent(const char *path, uint64_t guest)
{
    struct qm_extent x;
    struct qm_file *file;
    struct qm_image *img;

    OK(qm_file_open(path, &file, err));
    OK(qm_image_open(file, "qcow2", &img, err));
    OK(qm_image_next(img, qm_guest(guest), 1, &x, err));
    qm_image_close(img);
    return x;
}

static uint64_t
length(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_size;
}

/* ---- which ---- */

static void
pass__whole_clusters_of_the_same_size_and_compression(void **state)
{
    (void)state;
    becomes("all cluster=4k\ntop | ab.c\nbase | A.zB\n", 4 * KIB, "cccc");
    becomes("all cluster=4k compression=zstd\ntop | ab.c\nbase | A.zB\n", 4 * KIB, "cccc");
    becomes("all cluster=4k\ntop | ab.c extended_l2=0\nbase | A.zB version=2\n", 4 * KIB, "cccc");
    becomes("all cluster=16k\ntop | ab.c\nbase | A.zB extended_l2=1\n", 16 * KIB, "cccc");
}

static void
pass__no_others(void **state)
{
    (void)state;
    becomes("all cluster=4k\ntop | ab.c compression=zstd\nbase | A.zB\n", 4 * KIB, "DDcD");
    becomes("top | ab.c cluster=4k\nbase | A. cluster=8k\n", 8 * KIB, "DD");
    becomes("top | ab cluster=8k\nbase | A.zB cluster=4k\n", 4 * KIB, "DDDD");
}

/* An upper layer has a part of it. */
static void
pass__not_what_is_covered_in_part(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | ..A.....b cluster=512 size=8k\n"
                                     "mid  | ab cluster=4k\n"
                                     "base | .. cluster=4k\n");

    (void)state;
    qm_lab_merge(f, "top", "base", &into_base);
    qm_lab_looks("base", 4 * KIB, "DD");
    qm_forge_free(f);
}

/* What it has behind the end would be seen if the disk grew. */
static void
pass__not_the_part_of_a_cluster_at_the_end(void **state)
{
    (void)state;
    becomes("all cluster=4k\ntop | aab size=10240\nbase | ... size=10240\n", 512,
            "ccccccccccccccccDDDD");
}

static void
pass__not_if_it_is_said(void **state)
{
    const struct qmeld_commit_options flat = {.decompress = true};
    struct qm_forge *f = qm_lab_make("all cluster=4k\ntop | ab.c\nbase | A.zB\n");

    (void)state;
    qm_lab_merge(f, "top", "base", &flat);
    qm_lab_looks("base", 4 * KIB, "DDcD");
    qm_forge_free(f);
}

/* It reads as before, and who gives the command again hears that all is there. */
static void
pass__a_damaged_one_without_a_look(void **state)
{
    const struct qmeld_commit_options careful = {.verify = true};
    const char *recipe = "all cluster=4k\ntop | a.b.\n  stream 0 garbage\nbase | A..B\n";
    struct qmeld_commit_report r;
    struct qmeld_error bad = {0};

    (void)state;
    qm_forge_free(qm_lab_make(recipe));
    r = qm_lab_commit("top", &into_base);
    assert_false(r.already_merged);
    qm_lab_looks("base", 4 * KIB, "c.cD");
    qm_lab_clean("base");
    r = qm_lab_commit("top", &into_base);
    assert_true(r.already_merged);

    qm_forge_free(qm_lab_make(recipe));
    assert_int_equal(qmeld_commit("top", &careful, &r, &bad), -1);
    assert_int_equal(bad.code, QMELD_CORRUPT);
    assert_int_equal(bad.disk, QMELD_DISK_OLD);
    qmeld_commit_report_free(&r);
}

/* ---- where ---- */

/* Payloads keep their place in the sector, so they need no sector more, however often they move. */
static void
pass__no_slack_is_added(void **state)
{
    const struct qmeld_commit_options twice[] = {{.base = "base", .top = "mid"}, {.base = "low"}};
    struct qm_forge *f = qm_lab_make("all cluster=16k\n"
                                     "top  | ........ \n"
                                     "mid  | ab.cd.ef\n"
                                     "base | A.C....k\n"
                                     "low  | ..Z..Z..\n");
    static const uint64_t guests[] = {0, 1, 3, 4, 6, 7};
    struct qm_extent before[6];

    (void)state;
    for (size_t i = 0; i < 6; i++)
        before[i] = extent("mid", guests[i] * 16 * KIB);
    qm_lab_commit("top", &twice[0]);
    qm_lab_commit("top", &twice[1]);
    for (size_t i = 0; i < 6; i++) {
        const struct qm_extent now = extent("low", guests[i] * 16 * KIB);

        assert_int_equal(now.kind, QM_COMPRESSED);
        assert_int_equal(now.payload_len, before[i].payload_len);
        assert_int_equal(now.host.h % 512, before[i].host.h % 512);
    }
    qm_lab_reads_as("low", f, 1);
    qm_lab_clean("low");
    qm_forge_free(f);
}

/* The next batch goes on in the cluster that is not full. */
static void
pass__batches_share_clusters(void **state)
{
    const struct qm_transfer_limits limits = qm_transfer_limits;
    uint64_t len[2];

    (void)state;
    for (int tiny = 0; tiny < 2; tiny++) {
        struct qm_forge *f = qm_lab_make("all cluster=64k\n"
                                         "top  | abcdefghij\n"
                                         "base | Z........Z\n");

        if (tiny)
            qm_transfer_limits.batch = 1;
        qm_lab_merge(f, "top", "base", &into_base);
        qm_transfer_limits = limits;
        qm_lab_looks("base", 64 * KIB, "cccccccccc");
        len[tiny] = length("base");
        qm_forge_free(f);
    }
    assert_in_range(len[1], len[0], len[0] + 64 * KIB);
}

/* With refcounts of one bit each has a cluster of its own; of two, three share one. */
static void
pass__a_cluster_counts_no_further_than_it_can(void **state)
{
    (void)state;
    becomes("all cluster=64k\ntop | abcdefgh\nbase | ........ refcount_bits=1\n", 64 * KIB,
            "cccccccc");
    assert_int_equal(qm_lab_host("base", 7 * 64 * KIB) / 65536 - qm_lab_host("base", 0) / 65536, 7);
    becomes("all cluster=64k\ntop | abcdefgh\nbase | ........ refcount_bits=2\n", 64 * KIB,
            "cccccccc");
    assert_int_equal(qm_lab_host("base", 2 * 64 * KIB) / 65536, qm_lab_host("base", 0) / 65536);
    assert_int_equal(qm_lab_host("base", 3 * 64 * KIB) / 65536, qm_lab_host("base", 0) / 65536 + 1);
}

/* Entries of a hostile layer that lead to one payload, or into the middle of another. */
static void
pass__payloads_may_overlap(void **state)
{
    (void)state;
    for (int bits = 1; bits <= 64; bits *= 2) {
        struct qm_bytes top;
        char text[1024];

        snprintf(text, sizeof text,
                 "all cluster=64k\n"
                 "top  | abcdefgh\n"
                 "  poke l2[1] = l2[0]\n"
                 "  poke l2[2] = l2[0]\n"
                 "  poke l2[3] = l2[0]\n"
                 "  poke l2[4] = l2[0]\n"
                 "  poke l2[5] = l2[0]\n"
                 "  poke l2[7] = l2[6] + 1\n"
                 "base | Z..ZZ..Z refcount_bits=%d\n",
                 bits);
        qm_forge_free(qm_lab_make(text));
        qm_lab_commit("top", &into_base);
        qm_lab_looks("base", 64 * KIB, "cccccccc");
        qm_lab_clean("base");
        top = qm_lab_file("top");
        for (uint64_t g = 0; g < 8 * 64 * KIB; g += 64 * KIB) {
            const struct qm_extent was = extent("top", g), is = extent("base", g);
            struct qm_bytes base = qm_lab_file("base");

            assert_int_equal(was.payload_len, is.payload_len);
            assert_memory_equal(top.at + was.host.h, base.at + is.host.h, was.payload_len);
            free(base.at);
        }
        free(top.at);
    }
}

/* A second merge frees what the first one packed, one by one. */
static void
pass__what_shares_a_cluster_is_freed_one_by_one(void **state)
{
    static const struct qmeld_commit_options middle = {.top = "mid"};
    struct qm_forge *f = qm_lab_make("all cluster=4k\n"
                                     "top  | .A.b.0..C\n"
                                     "mid  | abcdefghi\n"
                                     "base | .Z......Z\n");

    (void)state;
    qm_lab_commit("top", &middle);
    qm_lab_looks("base", 4 * KIB, "ccccccccc");
    qm_lab_clean("base");
    qm_lab_commit("top", &into_base);
    qm_lab_looks("base", 4 * KIB, "cDccc0ccD");
    qm_lab_clean("base");
    qm_lab_reads_as("base", f, 0);
    qm_forge_free(f);
}

#define T(f) cmocka_unit_test(f)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        T(pass__whole_clusters_of_the_same_size_and_compression),
        T(pass__no_others),
        T(pass__not_what_is_covered_in_part),
        T(pass__not_the_part_of_a_cluster_at_the_end),
        T(pass__not_if_it_is_said),
        T(pass__a_damaged_one_without_a_look),
        T(pass__no_slack_is_added),
        T(pass__batches_share_clusters),
        T(pass__a_cluster_counts_no_further_than_it_can),
        T(pass__payloads_may_overlap),
        T(pass__what_shares_a_cluster_is_freed_one_by_one),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
