/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_files_go_test.c - a caller who removes the merged files himself: who stands on one of them is why not.
 */
#include "lab.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

#include "ok.h"

static const struct qmeld_commit_options keeps = {.threads = 1};
static const struct qmeld_commit_options goes = {.files_go = true, .threads = 1};

/* "upon" stands on top, which is merged into base. */
static void
begin(const char *recipe)
{
    const struct qmeld_create_options over = {
        .format = "qcow2", .backing_name = "top", .backing_format = "qcow2"};
    struct qmeld_error err;

    qm_forge_free(qm_lab_make(recipe));
    assert_int_equal(qmeld_create("upon", &over, &err), 0);
}

static void
refused(const struct qmeld_commit_options *o, const char *word)
{
    struct qmeld_commit_report r;
    struct qmeld_error err;

    assert_int_equal(qmeld_commit("top", o, &r, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_int_equal(err.disk, QMELD_DISK_OLD);
    assert_non_null(strstr(err.what, word));
    qmeld_commit_report_free(&r);
}

/* Nothing of it was changed: what top reads as is what the recipe says. */
static void
files_go__refuses_for_who_stands_on_top(void **state)
{
    const char *recipe = "top | .b.c\nmid | a...\nbase | AB..\n";
    struct qm_forge *f = qm_lab_make(recipe);
    struct qmeld_commit_report r;

    (void)state;
    begin(recipe);
    refused(&goes, "upon");
    qm_lab_reads_as("top", f, 0);
    OK(qmeld_commit("top", &keeps, &r, err)); /* top reads as before, if it stays */
    qmeld_commit_report_free(&r);
    qm_forge_free(f);
}

/* The base reads so already, and the files would go nevertheless. */
static void
files_go__looks_where_nothing_is_to_be_merged(void **state)
{
    struct qmeld_commit_report r;

    (void)state;
    begin("top | ....\nbase | AB..\n");
    refused(&goes, "upon");
    OK(qmeld_commit("top", &keeps, &r, err));
    assert_true(r.already_merged);
    qmeld_commit_report_free(&r);
}

static void
files_go__nobody_is_broken_unless_it_is_said(void **state)
{
    const struct qmeld_commit_options forced = {.files_go = true, .force = true, .threads = 1};
    struct qmeld_commit_report r;

    (void)state;
    begin("top | .b.c\nbase | AB..\n");
    OK(qmeld_commit("top", &forced, &r, err));
    assert_int_equal(r.n_dependants, 1);
    assert_int_equal(r.dependants[0].fate, QMELD_DEPENDANT_BROKEN);
    qmeld_commit_report_free(&r);
}

static void
files_go__protects_nobody(void **state)
{
    const struct qmeld_commit_options both = {.files_go = true, .protect = true, .threads = 1};

    (void)state;
    begin("top | .b.c\nbase | AB..\n");
    refused(&both, "cannot be protected");
}

#define T(f) cmocka_unit_test(f)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        T(files_go__refuses_for_who_stands_on_top),
        T(files_go__looks_where_nothing_is_to_be_merged),
        T(files_go__nobody_is_broken_unless_it_is_said),
        T(files_go__protects_nobody),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
