/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * plan_test.c - what a merge must do to its target, drawn as pictures.
 */
#include "picture.h"
#include "plan.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CELL 65536ull

struct steps {
    char text[512];
    size_t n;
};

/* "copy 1+2 from [3]; zero 4+1; grow 5+1": cells, and layers as users count them */
static void
note(struct steps *s, const struct qm_chain *chain, const struct qm_want *w, bool asked)
{
    const char *sep = s->n ? "; " : "";
    const unsigned long long at = w->guest.g / CELL, n = w->len / CELL;

    for (size_t i = 0; w->from && i < chain->n; i++)
        if (chain->layers[i].img == w->from)
            s->n += (size_t)snprintf(s->text + s->n, sizeof s->text - s->n,
                                     "%scopy %llu+%llu from [%zu]", sep, at, n, i + 1);
    if (!w->from)
        s->n += (size_t)snprintf(s->text + s->n, sizeof s->text - s->n, "%s%s %llu+%llu", sep,
                                 asked ? "zero" : "grow", at, n);
}

static void
check_plan(const struct qm_plan_config *config, const char *steps)
{
    struct steps got = {.n = 0};
    struct qmeld_error err = {0};
    struct qm_plan *plan;

    assert_int_equal(qm_plan_open(config, &plan, &err), 0);
    for (;;) {
        struct qm_want want;
        bool asked, done;

        assert_int_equal(qm_plan_next(plan, &want, &asked, &done, &err), 0);
        if (done)
            break;
        note(&got, config->chain, &want, asked);
    }
    qm_plan_close(plan);
    assert_string_equal(got.text, steps);
}

/* The steps of making layers base .. top (0 = base) of the picture's rows one, which is target. */
static void
check_steps_into(const char *picture, size_t base, size_t target, size_t top, size_t hidden_cells,
                 const char *steps)
{
    const char *rows[16];
    char copy[256];
    size_t n = 0;
    struct qm_plan_config config = {.base = base, .top = top, .hidden_end = hidden_cells * CELL};
    struct qm_chain *chain;

    assert_true(strlen(picture) < sizeof copy);
    memcpy(copy, picture, strlen(picture) + 1);
    for (char *row = strtok(copy, "\n"); row && n < 16; row = strtok(NULL, "\n"))
        rows[n++] = row;
    chain = qm_picture_open(rows, n, CELL);
    config.chain = chain;
    config.target = target;
    config.old_size = chain->layers[target].img->size;
    config.new_size = qm_max(chain->layers[base].img->size, chain->layers[top].img->size);
    check_plan(&config, steps);
    qm_picture_close(chain);
}

static void
check_steps(const char *picture, size_t base, size_t top, size_t hidden_cells, const char *steps)
{
    check_steps_into(picture, base, base, top, hidden_cells, steps);
}

static void
plan__what_only_the_base_has_is_kept(void **state)
{
    (void)state;
    check_steps(".A.\n"
                "BBB\n",
                0, 1, 0, "copy 1+1 from [2]");
}

static void
plan__an_empty_overlay_asks_for_nothing(void **state)
{
    (void)state;
    check_steps("...\n"
                "BBB\n",
                0, 1, 0, "");
}

static void
plan__the_uppermost_layer_is_copied_once(void **state)
{
    (void)state;
    check_steps("A.0\n"
                "BBB\n"
                "CCC\n",
                0, 2, 0, "copy 0+1 from [3]; copy 1+1 from [2]; zero 2+1");
}

static void
plan__layers_above_the_top_are_not_merged(void **state)
{
    (void)state;
    check_steps("AAA\n"
                ".B.\n"
                "CCC\n",
                0, 1, 0, "copy 1+1 from [2]");
}

static void
plan__layers_below_the_base_are_not_read(void **state)
{
    (void)state;
    check_steps("A..\n"
                "...\n"
                "CCC\n",
                1, 2, 0, "copy 0+1 from [3]");
}

static void
plan__growth_nobody_asked_for_must_read_as_zeros(void **state)
{
    (void)state;
    check_steps(".A..\n"
                "BB\n",
                0, 1, 0, "copy 1+1 from [2]; grow 2+2");
}

static void
plan__a_short_middle_layer_zeroes_what_it_hides(void **state)
{
    (void)state;
    check_steps("..A.\n"
                ".B\n"
                "CCCC\n",
                0, 2, 0, "copy 1+1 from [2]; copy 2+1 from [3]; zero 3+1");
}

static void
plan__what_a_short_top_hid_from_its_child_becomes_zeros(void **state)
{
    (void)state;
    check_steps("....\n"
                "A.\n"
                "CCCC\n",
                0, 1, 4, "copy 0+1 from [2]; zero 2+2");
}

/* ---- up ---- */

static void
plan__up_pulls_what_the_target_reads_from_the_base(void **state)
{
    (void)state;
    check_steps_into("A.A.\n"
                     "BB..\n",
                     0, 1, 1, 0, "copy 1+1 from [1]");
}

static void
plan__up_merges_down_what_lies_above_the_target(void **state)
{
    (void)state;
    check_steps_into("C..0.\n"
                     "BBB.0\n"
                     "AAAAA\n",
                     0, 1, 2, 0, "copy 0+1 from [3]; zero 3+1");
}

static void
plan__up_pulls_from_the_uppermost_layer_below_the_target(void **state)
{
    (void)state;
    check_steps_into("..C..\n"
                     ".b...\n"
                     "AAA.A\n",
                     0, 2, 2, 0, "copy 0+1 from [1]; copy 1+1 from [2]; copy 4+1 from [1]");
}

static void
plan__zeros_over_nothing_are_not_pulled(void **state)
{
    (void)state;
    check_steps_into("C...\n"
                     ".00.\n"
                     "AA0A\n",
                     0, 2, 2, 0, "copy 3+1 from [1]");
}

static void
plan__zeros_that_hide_what_the_target_will_stand_on_are_pulled(void **state)
{
    (void)state;
    check_steps_into("C....\n"
                     ".0.0.\n"
                     "BBBBB\n",
                     1, 2, 2, 0, "zero 1+1; zero 3+1");
}

/* Of zeros only what lies over something. */
static void
plan__a_base_that_is_shorter_than_what_lies_below_it_hides_that(void **state)
{
    (void)state;
    check_steps_into("C.....\n"
                     "..\n"
                     "BBBB\n",
                     1, 2, 2, 0, "zero 2+2");
}

static void
plan__up_over_a_short_base_pulls_no_zeros(void **state)
{
    (void)state;
    check_steps_into("C.....\n"
                     "AA\n",
                     0, 1, 1, 0, "copy 1+1 from [1]");
}

static void
plan__up_past_a_short_middle_layer_does_not_pull_what_that_hides(void **state)
{
    (void)state;
    check_steps_into("C.....\n"
                     ".B\n"
                     "AAAAAA\n",
                     0, 2, 2, 0, "copy 1+1 from [2]");
}

static void
plan__a_target_that_grows_does_not_show_what_lies_below_its_old_end(void **state)
{
    (void)state;
    check_steps_into("..D...\n"
                     "C..\n"
                     "AAAAAA\n",
                     0, 1, 2, 0, "copy 1+1 from [1]; copy 2+1 from [3]; grow 3+3");
}

/* It has its new size already, as a merge that was cut short left it. */
static void
plan__nor_does_one_that_has_grown(void **state)
{
    const char *const rows[] = {"..D...", "C....0", "AAAAAA"};
    struct qm_chain *chain = qm_picture_open(rows, 3, CELL);
    const struct qm_plan_config config = {.chain = chain,
                                          .base = 0,
                                          .top = 2,
                                          .target = 1,
                                          .old_size = 3 * CELL + CELL / 2,
                                          .new_size = 6 * CELL};
    struct steps got = {.n = 0};
    struct qmeld_error err = {0};
    struct qm_plan *plan;
    uint64_t end = 0;

    (void)state;
    assert_int_equal(qm_plan_open(&config, &plan, &err), 0);
    for (;;) {
        struct qm_want want;
        bool asked, done;

        assert_int_equal(qm_plan_next(plan, &want, &asked, &done, &err), 0);
        if (done)
            break;
        assert_true(want.guest.g >= end);
        end = want.guest.g + want.len;
        assert_int_equal(asked, want.guest.g < config.old_size);
        assert_int_equal(want.from != NULL, asked);
        assert_int_equal(!want.from || want.ext.len == want.len, true);
        note(&got, chain, &want, asked);
    }
    assert_int_equal(end, config.new_size);
    /* half cells look like none */
    assert_string_equal(got.text, "copy 1+1 from [1]; copy 2+1 from [3]; copy 3+0 from [1]; "
                                  "grow 3+1; grow 5+1");
    qm_plan_close(plan);
    qm_picture_close(chain);
}

static void
plan__the_tail_of_a_longer_base_moves_up_and_hides_what_is_below(void **state)
{
    (void)state;
    check_steps_into("C.\n"
                     ".A..A.\n"
                     ".BBB..\n",
                     1, 2, 2, 0,
                     "copy 1+1 from [2]; copy 2+2 from [1]; copy 4+1 from [2]; zero 5+1");
    check_steps_into("......\n"
                     "C.\n"
                     "AAAAA\n",
                     0, 1, 1, 4, "copy 1+1 from [1]; zero 2+2; copy 4+1 from [1]");
}

/* The same, when the target, which is top, has its new size already. */
static void
plan__nor_is_the_tail_lost_if_the_target_has_grown(void **state)
{
    const char *const rows[] = {"......", "C.00A", "AAAAA"};
    struct qm_chain *chain = qm_picture_open(rows, 3, CELL);
    const struct qm_plan_config config = {.chain = chain,
                                          .base = 0,
                                          .top = 1,
                                          .target = 1,
                                          .old_size = 2 * CELL,
                                          .new_size = 5 * CELL,
                                          .hidden_end = 4 * CELL};

    (void)state;
    check_plan(&config, "copy 1+1 from [1]; zero 2+2; copy 4+1 from [1]");
    qm_picture_close(chain);
}

static void
plan__what_a_longer_target_holds_behind_the_top_is_not_kept(void **state)
{
    (void)state;
    check_steps_into("D.\n"
                     "..CC\n"
                     "AA.AA\n",
                     0, 1, 2, 0,
                     "copy 0+1 from [3]; copy 1+1 from [1]; zero 2+1; copy 3+2 from [1]");
}

static void
plan__an_unreadable_layer_is_an_error(void **state)
{
    const char *const rows[] = {".A.", "BBB"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    const struct qm_plan_config config = {
        .chain = chain, .base = 0, .top = 1, .old_size = 3 * CELL, .new_size = 3 * CELL};
    struct qmeld_error err = {0};
    struct qm_plan *plan;
    struct qm_want want;
    bool asked, done = false;
    int rc = 0;

    (void)state;
    qm_picture_break(chain, 1, 1);
    assert_int_equal(qm_plan_open(&config, &plan, &err), 0);
    while (rc == 0 && !done)
        rc = qm_plan_next(plan, &want, &asked, &done, &err);
    assert_int_equal(rc, -1);
    assert_int_equal(err.code, QMELD_CORRUPT);
    qm_plan_close(plan);
    qm_picture_close(chain);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plan__what_only_the_base_has_is_kept),
        cmocka_unit_test(plan__an_empty_overlay_asks_for_nothing),
        cmocka_unit_test(plan__the_uppermost_layer_is_copied_once),
        cmocka_unit_test(plan__layers_above_the_top_are_not_merged),
        cmocka_unit_test(plan__layers_below_the_base_are_not_read),
        cmocka_unit_test(plan__growth_nobody_asked_for_must_read_as_zeros),
        cmocka_unit_test(plan__a_short_middle_layer_zeroes_what_it_hides),
        cmocka_unit_test(plan__what_a_short_top_hid_from_its_child_becomes_zeros),
        cmocka_unit_test(plan__up_pulls_what_the_target_reads_from_the_base),
        cmocka_unit_test(plan__up_merges_down_what_lies_above_the_target),
        cmocka_unit_test(plan__up_pulls_from_the_uppermost_layer_below_the_target),
        cmocka_unit_test(plan__zeros_over_nothing_are_not_pulled),
        cmocka_unit_test(plan__zeros_that_hide_what_the_target_will_stand_on_are_pulled),
        cmocka_unit_test(plan__a_base_that_is_shorter_than_what_lies_below_it_hides_that),
        cmocka_unit_test(plan__up_over_a_short_base_pulls_no_zeros),
        cmocka_unit_test(plan__up_past_a_short_middle_layer_does_not_pull_what_that_hides),
        cmocka_unit_test(plan__a_target_that_grows_does_not_show_what_lies_below_its_old_end),
        cmocka_unit_test(plan__nor_does_one_that_has_grown),
        cmocka_unit_test(plan__the_tail_of_a_longer_base_moves_up_and_hides_what_is_below),
        cmocka_unit_test(plan__nor_is_the_tail_lost_if_the_target_has_grown),
        cmocka_unit_test(plan__what_a_longer_target_holds_behind_the_top_is_not_kept),
        cmocka_unit_test(plan__an_unreadable_layer_is_an_error),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
