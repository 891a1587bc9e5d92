/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * signpost_test.c - a signpost stands only where one is needed, and goes however its journal was found.
 *
 * Whoever goes on with a merge may have found the journal by another spelling of its path than the one that began it
 * ("./x", a folder behind a link); a place must not be taken for another, nor a signpost for a stranger's, by that.
 */
#include "scratch.h"
#include "signpost.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define POST "top/.t.qmeld-journal"

/* A merge of top/t, which is to lose its name, into base/b. */
static void
make_intent(struct qm_intent *i)
{
    const char *const names[] = {"base/b", "top/t"};

    *i = (struct qm_intent){.overlays = QMELD_OVERLAYS_DELETE, .top = 1};
    for (size_t n = 0; n < 2; n++) {
        struct qm_journal_layer l = {.format = strdup("qcow2")};

        assert_true(asprintf(&l.path, "%s/%s", qm_scratch_dir(), names[n]) > 0);
        assert_true(qm_vec_push(&i->layers, &l));
    }
}

static int
enter(void **state)
{
    if (qm_scratch_enter(state) != 0 || mkdir("base", 0755) != 0 || mkdir("top", 0755) != 0 ||
        symlink("base", "link") != 0)
        return -1;
    qm_torn_save("base/.b.qmeld", (const unsigned char *)"a journal", 9);
    return 0;
}

static void
signpost__is_not_needed_beside_the_journal_however_that_is_spelled(void **state)
{
    const char *const spellings[] = {"top/.b.qmeld", "./top/.b.qmeld", "base/../top/.b.qmeld",
                                     "up/.b.qmeld"};
    struct qm_intent i;

    (void)state;
    make_intent(&i);
    assert_int_equal(symlink("top", "up"), 0);
    qm_torn_save("top/.b.qmeld", (const unsigned char *)"a journal", 9);
    for (size_t n = 0; n < sizeof spellings / sizeof *spellings; n++) {
        qm_signpost_plant(&i, spellings[n]);
        if (access(POST, F_OK) == 0)
            fail_msg("%s: a signpost stands beside it", spellings[n]);
    }
    qm_intent_release(&i);
}

static void
signpost__leads_to_a_journal_elsewhere(void **state)
{
    QM_FREE char *said = NULL;
    struct qm_intent i;

    (void)state;
    make_intent(&i);
    qm_signpost_plant(&i, "base/.b.qmeld");
    said = qm_signpost_read(POST);
    assert_non_null(said);
    assert_true(qm_path_same(said, "base/.b.qmeld"));
    qm_intent_release(&i);
}

static void
signpost__is_ones_own_under_every_spelling_of_the_journal(void **state)
{
    const char *const spellings[] = {"base/.b.qmeld", "./base/.b.qmeld", "link/.b.qmeld"};
    struct qm_intent i;

    (void)state;
    make_intent(&i);
    for (size_t n = 0; n < 9; n++) {
        QM_FREE char *place = NULL;

        qm_signpost_plant(&i, spellings[n / 3]);
        place = qm_signpost_place(&i, spellings[n % 3]);
        if (!place)
            fail_msg("planted for %s, not found for %s", spellings[n / 3], spellings[n % 3]);
        qm_signpost_remove(place);
        assert_int_equal(access(POST, F_OK), -1);
    }
    qm_intent_release(&i);
}

static void
signpost__of_another_journal_is_not_taken_away(void **state)
{
    QM_FREE char *place = NULL;
    struct qm_intent i;

    (void)state;
    make_intent(&i);
    qm_torn_save("base/.c.qmeld", (const unsigned char *)"another", 7);
    qm_signpost_plant(&i, "base/.c.qmeld");
    place = qm_signpost_place(&i, "base/.b.qmeld");
    assert_null(place);
    assert_int_equal(access(POST, F_OK), 0);
    qm_intent_release(&i);
}

static void
signpost__torn_by_a_crash_is_made_anew(void **state)
{
    const char *const torn[] = {"", "qmeld jour", "qmeld journal at\n", "qmeld journal at\n/x"};
    struct qm_intent i;

    (void)state;
    make_intent(&i);
    for (size_t n = 0; n < sizeof torn / sizeof *torn; n++) {
        QM_FREE char *said = NULL;

        qm_torn_save(POST, (const unsigned char *)torn[n], strlen(torn[n]));
        assert_null(qm_signpost_read(POST));
        qm_signpost_plant(&i, "base/.b.qmeld");
        said = qm_signpost_read(POST);
        if (!said || !qm_path_same(said, "base/.b.qmeld"))
            fail_msg("\"%s\" stays in the way", torn[n]);
    }
    qm_intent_release(&i);
}

#define FACT(name) cmocka_unit_test_setup_teardown(signpost__##name, enter, qm_scratch_leave)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        FACT(is_not_needed_beside_the_journal_however_that_is_spelled),
        FACT(leads_to_a_journal_elsewhere),
        FACT(is_ones_own_under_every_spelling_of_the_journal),
        FACT(torn_by_a_crash_is_made_anew),
        FACT(of_another_journal_is_not_taken_away),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
