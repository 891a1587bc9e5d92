/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * note_test.c - a note is there whole or not at all, and a stranger's is not obeyed.
 */
#include "qmeld.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define PATH ".base.raw.qmeld-domain"
#define TEXT "{\"domain\": \"d\xc3\xa9j\xc3\xa0\"}\n"

static void
reads_as(const char *wanted)
{
    QM_FREE char *text = NULL;

    OK(qmeld_note_read(PATH, &text, NULL, err));
    if (!wanted) {
        assert_null(text);
        return;
    }
    assert_non_null(text);
    assert_string_equal(text, wanted);
}

static void
refused(enum qmeld_code code)
{
    struct qmeld_error err = {0};
    char *text;

    assert_int_equal(qmeld_note_read(PATH, &text, NULL, &err), -1);
    assert_int_equal(err.code, code);
    assert_null(text);
}

static void
note__lies_beside_the_journal(void **state)
{
    QM_FREE char *beside = NULL, *elsewhere = NULL;

    (void)state;
    qm_torn_save("base.raw", (const unsigned char *)"", 0);
    OK(qmeld_note_path("base.raw", "/x/top", NULL, &beside, err));
    assert_string_equal(beside, PATH);
    OK(qmeld_note_path("./base.raw", "/x/top", "/j", &elsewhere, err));
    assert_string_equal(elsewhere, "/j/" PATH);
}

static void
note__is_read_as_it_was_written_and_goes(void **state)
{
    struct qmeld_error told;

    (void)state;
    reads_as(NULL);
    OK(qmeld_note_write(PATH, TEXT, err));
    reads_as(TEXT);
    assert_int_equal(qmeld_note_write(PATH, "other", &told), -1);
    assert_int_equal(told.code, QMELD_USAGE);
    reads_as(TEXT);
    assert_int_equal(qmeld_note_remove(PATH, &told), 0);
    assert_int_equal(qmeld_note_remove(PATH, &told), 0);
    reads_as(NULL);
}

static void
note__with_any_byte_changed_is_damaged(void **state)
{
    unsigned char *whole;
    size_t len;

    (void)state;
    OK(qmeld_note_write(PATH, TEXT, err));
    whole = qm_torn_load(PATH, &len);
    assert_int_equal(len, 64 + strlen(TEXT));
    for (size_t at = 0; at < len; at++) {
        if (at == 36) /* behind the head */
            at = 64;
        whole[at] ^= 1;
        qm_torn_save(PATH, whole, len);
        refused(QMELD_CORRUPT);
        whole[at] ^= 1;
    }
    qm_torn_save(PATH, whole, len - 1);
    refused(QMELD_CORRUPT);
    free(whole);
}

static void
note__that_everybody_may_write_is_not_obeyed(void **state)
{
    (void)state;
    OK(qmeld_note_write(PATH, TEXT, err));
    assert_int_equal(chmod(PATH, 0666), 0);
    refused(QMELD_USAGE);
}

struct seen {
    size_t none;
    size_t whole;
    size_t steps[2];
};

static void
check_state(const unsigned char *file, size_t len, void *opaque)
{
    struct seen *seen = opaque;
    QM_FREE char *text = NULL;
    unsigned step = 7;

    qm_torn_save(PATH, file, len);
    OK(qmeld_note_read(PATH, &text, &step, err));
    if (!text) {
        seen->none++;
        return;
    }
    seen->whole++;
    assert_in_range(step, 0, 1);
    seen->steps[step]++;
    assert_string_equal(text, TEXT);
}

static void
note__power_cut_while_it_is_made_leaves_none_or_all(void **state)
{
    struct qm_torn *t = qm_torn_start(PATH);
    struct seen seen = {0};

    (void)state;
    OK(qmeld_note_write(PATH, TEXT, err));
    qm_torn_stop(t);
    assert_in_range(qm_torn_replay(t, check_state, &seen), 3, 1000);
    qm_torn_free(t);
    assert_true(seen.none > 0 && seen.whole > 0);
}

static void
note__power_cut_while_a_step_is_made_leaves_one_of_two(void **state)
{
    struct seen seen = {0};
    struct qm_torn *t;

    (void)state;
    OK(qmeld_note_write(PATH, TEXT, err));
    t = qm_torn_start(PATH);
    OK(qmeld_note_step(PATH, 1, err));
    qm_torn_stop(t);
    assert_in_range(qm_torn_replay(t, check_state, &seen), 2, 100);
    qm_torn_free(t);
    assert_int_equal(seen.none, 0);
    assert_true(seen.steps[0] > 0 && seen.steps[1] > 0);
}

static int
count(const char *path, const char *text, const struct qmeld_error *problem, void *opaque)
{
    size_t *n = opaque;

    assert_non_null(strstr(path, "/.base.raw.qmeld-domain"));
    assert_true(text ? !problem && strcmp(text, TEXT) == 0 : problem->code == QMELD_CORRUPT);
    n[text == NULL]++;
    return 0;
}

static void
note__of_a_directory_are_found(void **state)
{
    size_t n[2] = {0};

    (void)state;
    OK(qmeld_note_write(PATH, TEXT, err));
    qm_torn_save(".base.raw.qmeld", (const unsigned char *)"x", 1);
    qm_torn_save("base.raw.qmeld-domain", (const unsigned char *)"x", 1);
    OK(qmeld_notes(".", count, n, err));
    assert_int_equal(n[0], 1);
    qm_torn_save(PATH, (const unsigned char *)"rubbish", 7);
    OK(qmeld_notes(qm_scratch_dir(), count, n, err));
    assert_int_equal(n[0], 1);
    assert_int_equal(n[1], 1);
}

#define FACT(name) cmocka_unit_test_setup_teardown(note__##name, qm_scratch_enter, qm_scratch_leave)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        FACT(lies_beside_the_journal),
        FACT(is_read_as_it_was_written_and_goes),
        FACT(with_any_byte_changed_is_damaged),
        FACT(that_everybody_may_write_is_not_obeyed),
        FACT(power_cut_while_it_is_made_leaves_none_or_all),
        FACT(power_cut_while_a_step_is_made_leaves_one_of_two),
        FACT(of_a_directory_are_found),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
