/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fate_test.c - what becomes of the overlays that a merge leaves over, and when.
 */
#include "lab.h"
#include "scratch.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static const char *const five = "all cluster=4k\n"
                                "child | ...E autoclear=0x100\n"
                                "top   | A.0.\n"
                                "mid   | .b.B\n"
                                "base  | CCCC\n"
                                "low.raw | XXXX\n";

static void
fate__kept_overlays_are_not_touched(void **state)
{
    const struct qmeld_commit_options o = {.base = "[2]", .top = "[4]"};
    struct qm_forge *f = qm_lab_make(five);
    struct qm_bytes top = qm_lab_file("top"), mid = qm_lab_file("mid"), child;

    (void)state;
    qm_lab_watch();
    qm_lab_commit("child", &o);
    qm_lab_unwatch();
    qm_lab_same(qm_lab_file("top"), top, "top");
    qm_lab_same(qm_lab_file("mid"), mid, "mid");
    qm_lab_reads_as("child", f, 0);
    assert_string_equal(qm_lab_files(), "base child");
    qm_lab_durable_before("base", "child");
    child = qm_lab_file("child"); /* its autoclear bits: who set them does not know what we did */
    assert_int_equal(child.at[94], 0);
    free(child.at);
    qm_forge_free(f);
}

/* Merges `five`: top and mid lose their names, in this order, when the child is durable. */
static void
names_go_from_the_top(const struct qm_forge *f, const struct qmeld_commit_options *o)
{
    qm_lab_watch();
    qm_lab_commit("child", o);
    qm_lab_unwatch();
    qm_lab_reads_as("child", f, 0);
    assert_string_equal(qm_lab_files(), "base child top mid");
    qm_lab_durable_before("base", "child");
    qm_lab_durable_before("child", "top");
    assert_int_equal(access("top", F_OK) | access("mid", F_OK), -1);
}

static void
fate__overlays_are_removed_from_the_top_when_the_child_is_durable(void **state)
{
    const struct qmeld_commit_options o = {
        .base = "[2]", .top = "[4]", .overlays = QMELD_OVERLAYS_DELETE};
    struct qm_forge *f = qm_lab_make(five);

    (void)state;
    names_go_from_the_top(f, &o);
    qm_forge_free(f);
}

static void
fate__overlays_are_put_aside_from_the_top_when_the_child_is_durable(void **state)
{
    const struct qmeld_commit_options o = {
        .base = "[2]", .top = "[4]", .overlays = QMELD_OVERLAYS_QUARANTINE};
    struct qm_forge *f = qm_lab_make(five);
    struct qm_bytes top = qm_lab_file("top"), mid = qm_lab_file("mid");

    (void)state;
    unlink("top.merged"); /* of a test before */
    unlink("mid.merged");
    unlink("mid.merged.1");
    close(open("mid.merged", O_WRONLY | O_CREAT, 0600)); /* somebody's */
    names_go_from_the_top(f, &o);
    qm_lab_same(qm_lab_file("top.merged"), top, "top.merged");
    qm_lab_same(qm_lab_file("mid.merged.1"), mid, "mid.merged.1");
    assert_int_equal(unlink("mid.merged"), 0);
    unlink("mid.merged.1");
    unlink("top.merged");
    qm_forge_free(f);
}

static void
fate__a_name_too_long_to_be_put_aside_is_refused_first(void **state)
{
    char recipe[1024], name[256];
    const struct qmeld_commit_options o = {.overlays = QMELD_OVERLAYS_QUARANTINE};
    struct qmeld_commit_report r;
    struct qmeld_error err;

    (void)state;
    memset(name, 'n', sizeof name);
    name[250] = '\0';
    snprintf(recipe, sizeof recipe, "all cluster=4k\n%s | A.\nbase | BB\n", name);
    qm_forge_free(qm_lab_make(recipe));
    qm_lab_watch();
    assert_int_equal(qmeld_commit(name, &o, &r, &err), -1);
    qm_lab_unwatch();
    assert_int_equal(err.code, QMELD_UNSUPPORTED);
    assert_int_equal(err.disk, QMELD_DISK_OLD);
    assert_string_equal(qm_lab_files(), "");
    qmeld_commit_report_free(&r);
    unlink(name);
}

static void
fate__a_top_is_emptied_when_it_points_at_the_durable_base(void **state)
{
    const struct qmeld_commit_options o = {.base = "[2]", .overlays = QMELD_OVERLAYS_EMPTY};
    struct qm_forge *f = qm_lab_make(five);
    struct qm_bytes mid = qm_lab_file("mid");

    (void)state;
    qm_lab_watch();
    qm_lab_commit("child", &o);
    qm_lab_unwatch();
    assert_string_equal(qm_lab_files(), "base child");
    qm_lab_durable_before("base", "child");
    qm_lab_looks("child", 4 * KIB, "....");
    qm_lab_reads_as("child", f, 0); /* reads base itself, not through mid */
    qm_lab_same(qm_lab_file("mid"), mid, "mid");
    qm_lab_clean("child");
    qm_forge_free(f);
}

static void
fate__the_report_tells_each_layers_fate(void **state)
{
    static const enum qmeld_fate fates[4][5] = {
        {QMELD_FATE_UNTOUCHED, QMELD_FATE_MERGED_INTO, QMELD_FATE_INVALID, QMELD_FATE_REDUNDANT,
         QMELD_FATE_REPOINTED},
        {QMELD_FATE_UNTOUCHED, QMELD_FATE_MERGED_INTO, QMELD_FATE_INVALID, QMELD_FATE_EMPTIED,
         QMELD_FATE_REPOINTED},
        {QMELD_FATE_UNTOUCHED, QMELD_FATE_MERGED_INTO, QMELD_FATE_DELETED, QMELD_FATE_DELETED,
         QMELD_FATE_REPOINTED},
        {QMELD_FATE_UNTOUCHED, QMELD_FATE_MERGED_INTO, QMELD_FATE_QUARANTINED,
         QMELD_FATE_QUARANTINED, QMELD_FATE_REPOINTED},
    };

    (void)state;
    for (int how = 0; how < 4; how++) {
        const struct qmeld_commit_options o = {
            .base = "[2]", .top = "[4]", .overlays = (enum qmeld_overlays)how};
        struct qmeld_commit_report r;

        qm_forge_free(qm_lab_make(five));
        OK(qmeld_commit("child", &o, &r, err));
        assert_int_equal(r.n_layers, 5);
        for (size_t i = 0; i < 5; i++) {
            const char *to = r.layers[i].moved_to;

            assert_int_equal(r.layers[i].fate, fates[how][i]);
            assert_int_equal(to != NULL, fates[how][i] == QMELD_FATE_QUARANTINED);
            if (to)
                assert_int_equal(unlink(to), 0);
        }
        assert_string_equal(r.layers[4].path, "child");
        assert_int_equal(r.base_old_size, 16 * KIB);
        assert_int_equal(r.base_new_size, 16 * KIB);
        assert_int_equal(r.bytes_copied, 12 * KIB);
        assert_int_equal(r.bytes_zeroed, 4 * KIB);
        qmeld_commit_report_free(&r);
    }
}

/* Who wrote the base may have been killed before it was durable, and now the copies go. */
static void
fate__what_was_merged_before_is_durable_before_overlays_go(void **state)
{
    const struct qmeld_commit_options keep = {.threads = 1},
                                      gone = {.overlays = QMELD_OVERLAYS_DELETE};
    struct qmeld_commit_report r;
    struct qmeld_error err;
    struct qm_forge *f = qm_lab_make("top  | A. cluster=4k\nbase | BB cluster=4k\n");

    (void)state;
    assert_int_equal(qmeld_commit("top", &keep, &r, &err), 0);
    qmeld_commit_report_free(&r);
    qm_lab_watch();
    assert_int_equal(qmeld_commit("top", &gone, &r, &err), 0);
    qm_lab_unwatch();
    assert_true(r.already_merged);
    qmeld_commit_report_free(&r);
    assert_string_equal(qm_lab_story("base"), "|");
    assert_int_equal(access("top", F_OK), -1);
    qm_forge_free(f);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, qm_scratch_enter, qm_scratch_leave)
    const struct CMUnitTest tests[] = {
        T(fate__kept_overlays_are_not_touched),
        T(fate__overlays_are_removed_from_the_top_when_the_child_is_durable),
        T(fate__overlays_are_put_aside_from_the_top_when_the_child_is_durable),
        T(fate__a_name_too_long_to_be_put_aside_is_refused_first),
        T(fate__a_top_is_emptied_when_it_points_at_the_durable_base),
        T(fate__what_was_merged_before_is_durable_before_overlays_go),
        T(fate__the_report_tells_each_layers_fate),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
