/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * guard_test.c - when a merge asks its caller for leave, and what is so then.
 */
#include "lab.h"
#include "lock.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define RECIPE                                                                                     \
    "all cluster=4k\n"                                                                             \
    "top.qcow2 | .B.B\n"                                                                           \
    "base.qcow2 | AAAA\n"

struct asked {
    char story[32];
    int at[2];     /* what to answer */
    bool written;  /* something of base.qcow2 was, at LOCKED */
    bool unlocked; /* somebody else could have taken base.qcow2 */
    bool journal;  /* there is one, at DONE */
};

static int
guard(enum qmeld_moment moment, void *opaque, struct qmeld_error *err)
{
    struct asked *a = opaque;
    struct qmeld_error unheard = {0};
    struct qm_file *file = NULL;

    strcat(a->story, moment == QMELD_MOMENT_LOCKED ? "locked " : "done ");
    assert_int_equal(qm_file_open("base.qcow2", &file, &unheard), 0);
    a->unlocked = a->unlocked || qm_lock_take(file, QM_LOCK_READER, &unheard) == 0;
    qm_file_close(file);
    if (moment == QMELD_MOMENT_LOCKED)
        a->written = qm_lab_written("base.qcow2") > 0;
    else
        a->journal = access(".base.qcow2.qmeld", F_OK) == 0;
    if (a->at[moment])
        qm_fail(err, QMELD_CANCELED, qm_nowhere(), "the guard says no");
    return a->at[moment];
}

static int
merge(struct asked *a, struct qmeld_error *err)
{
    const struct qmeld_commit_options opts = {.guard = guard, .guard_opaque = a, .threads = 1};
    int rc;

    memset(err, 0, sizeof *err);
    a->story[0] = '\0';
    qm_lab_watch();
    rc = qmeld_commit("top.qcow2", &opts, NULL, err);
    qm_lab_unwatch();
    return rc;
}

static void
guard__is_asked_under_locks_before_and_after(void **state)
{
    struct qm_forge *f = qm_lab_make(RECIPE);
    struct asked a = {.journal = true, .written = true};
    struct qmeld_error err;

    (void)state;
    assert_int_equal(merge(&a, &err), 0);
    assert_string_equal(a.story, "locked done ");
    assert_false(a.written);
    assert_false(a.unlocked);
    assert_false(a.journal);
    qm_lab_reads_as("base.qcow2", f, 0);
    /* nothing is left to do, and still the layers are held */
    assert_int_equal(merge(&a, &err), 0);
    assert_string_equal(a.story, "locked done ");
    assert_false(a.unlocked);
    qm_forge_free(f);
}

static void
guard__a_no_before_leaves_all_as_it_was(void **state)
{
    struct qm_forge *f = qm_lab_make(RECIPE);
    struct asked a = {.at = {[QMELD_MOMENT_LOCKED] = -1}};
    struct qmeld_error err;

    (void)state;
    assert_int_equal(merge(&a, &err), -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    assert_int_equal(err.disk, QMELD_DISK_OLD);
    assert_string_equal(a.story, "locked ");
    assert_int_equal(access(".base.qcow2.qmeld", F_OK), -1);
    qm_lab_reads_as("base.qcow2", f, 1);
    qm_forge_free(f);
}

static void
guard__a_no_afterwards_is_told_as_done(void **state)
{
    struct qm_forge *f = qm_lab_make(RECIPE);
    struct asked a = {.at = {[QMELD_MOMENT_DONE] = -1}};
    struct qmeld_error err;

    (void)state;
    assert_int_equal(merge(&a, &err), -1);
    assert_int_equal(err.disk, QMELD_DISK_NEW);
    qm_lab_reads_as("base.qcow2", f, 0);
    qm_forge_free(f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(guard__is_asked_under_locks_before_and_after,
                                        qm_scratch_enter, qm_scratch_leave),
        cmocka_unit_test_setup_teardown(guard__a_no_before_leaves_all_as_it_was, qm_scratch_enter,
                                        qm_scratch_leave),
        cmocka_unit_test_setup_teardown(guard__a_no_afterwards_is_told_as_done, qm_scratch_enter,
                                        qm_scratch_leave),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
