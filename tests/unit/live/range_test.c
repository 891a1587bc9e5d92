/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* range_test.c - which layers of a running machine's disk are meant. */
#include "range.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>
#include <string.h>

/* vda[7] /x/top <- vda[4] /x/mid <- vda[2] /x/low <- vda[9] nbd export "base": numbers with gaps */
static struct qm_domxml_source layers[] = {
    {.type = QM_SOURCE_FILE, .path = (char *)"/x/top", .index = 7},
    {.type = QM_SOURCE_FILE, .path = (char *)"/x/mid", .index = 4},
    {.type = QM_SOURCE_FILE, .path = (char *)"/x/low", .index = 2},
    {.type = QM_SOURCE_NETWORK, .protocol = (char *)"nbd", .name = (char *)"base", .index = 9},
};

static struct qm_domxml_disk
disk_of(size_t depth)
{
    struct qm_domxml_disk disk = {.target = (char *)"vda"};

    disk.layers.at = layers;
    disk.layers.n = depth;
    return disk;
}

/* The range as "top..base", or the failure as "code: sentence". */
static const char *
find(struct qm_live_commit request, size_t depth)
{
    static char said[900];
    const struct qm_domxml_disk disk = disk_of(depth);
    struct qm_range range;
    struct qmeld_error err = {0};

    if (qm_range_find(&disk, &request, false, &range, &err) < 0)
        snprintf(said, sizeof said, "%d: %s", (int)err.code, err.what);
    else if (range.empty)
        return "empty";
    else
        snprintf(said, sizeof said, "%zu..%zu", range.top, range.base);
    return said;
}

#define FIND(...) find((struct qm_live_commit){__VA_ARGS__}, 4)

static void
assert_says(const char *said, const char *part)
{
    if (!strstr(said, part))
        fail_msg("\"%s\" does not have \"%s\"", said, part);
}

static void
range__index_is_read_and_no_depth(void **state)
{
    (void)state;
    assert_string_equal(FIND(.base = "vda[2]", .top = "vda[4]"), "1..2");
    assert_string_equal(FIND(.base = "vda[9]", .top = "vda[7]", .active = true), "0..3");
    assert_says(FIND(.base = "vda[1]", .active = true),
                "vda[9]"); /* there is none, and what there is is told */
    assert_says(FIND(.base = "vdb[2]", .active = true), "is no layer");
}

static void
range__bare_number_counts_from_the_bottom(void **state)
{
    (void)state;
    assert_string_equal(FIND(.base = "[1]", .top = "[3]"), "1..3");
    assert_says(FIND(.base = "[0]", .top = "[3]"), "is no layer");
    assert_says(FIND(.base = "[5]", .top = "[3]"), "is no layer");
    assert_says(FIND(.base = "[18446744073709551617]", .top = "[3]"), "is no layer");
    assert_says(FIND(.base = "[1", .top = "[3]"), "is no layer");
    assert_says(FIND(.base = "[-1]", .top = "[3]"), "is no layer");
}

static void
range__path_is_a_layer_word_for_word(void **state)
{
    (void)state;
    assert_string_equal(FIND(.base = "/x/low", .top = "/x/mid"), "1..2");
    assert_says(FIND(.base = "base", .top = "/x/mid"),
                "is no layer"); /* an export's name is no path */
}

static void
range__defaults_are_the_bottom_and_the_active_layer(void **state)
{
    (void)state;
    assert_string_equal(FIND(.active = true), "0..3");
    assert_string_equal(FIND(.top = "/x/mid"), "1..3");
    assert_string_equal(FIND(.active = true, .shallow = true), "0..1");
    assert_string_equal(FIND(.top = "/x/mid", .shallow = true), "1..2");
}

static void
range__active_layer_must_be_meant(void **state)
{
    (void)state;
    assert_says(FIND(.base = "/x/low"), "--pivot");
    assert_says(FIND(.base = "/x/low", .top = "/x/top"), "--pivot");
    assert_says(FIND(.base = "/x/low", .top = "/x/mid", .active = true), "not the active layer");
    assert_string_equal(FIND(.base = "/x/low", .top = "/x/mid", .active = true, .if_active = true),
                        "1..2");
}

static void
range__order_and_shallow_are_held(void **state)
{
    (void)state;
    assert_says(FIND(.base = "/x/mid", .top = "/x/low"), "does not lie under");
    assert_says(FIND(.base = "/x/mid", .top = "/x/mid"), "does not lie under");
    assert_says(FIND(.top = "vda[9]"), "nothing under it");
    assert_says(FIND(.base = "vda[9]", .top = "/x/mid", .shallow = true), "--shallow");
}

static void
range__single_layer_is_nothing_to_do(void **state)
{
    (void)state;
    assert_string_equal(find((struct qm_live_commit){.active = true}, 1), "empty");
    assert_says(find((struct qm_live_commit){.active = true}, 0), "empty: there is nothing");
    assert_says(find((struct qm_live_commit){.base = "/nowhere"}, 1), "is no layer");
}

static void
range__same_layer_by_all_that_names_it(void **state)
{
    const struct qm_domxml_source other = {.type = QM_SOURCE_NETWORK,
                                           .protocol = (char *)"nbd",
                                           .name = (char *)"base",
                                           .host = (char *)"h:1"};

    (void)state;
    assert_true(qm_range_same(&layers[3], &layers[3], false));
    assert_false(qm_range_same(&layers[3], &other, false));
    assert_false(qm_range_same(&layers[3], &layers[0], false));
    assert_true(qm_range_same(&layers[0], &layers[0], true));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(range__index_is_read_and_no_depth),
        cmocka_unit_test(range__bare_number_counts_from_the_bottom),
        cmocka_unit_test(range__path_is_a_layer_word_for_word),
        cmocka_unit_test(range__defaults_are_the_bottom_and_the_active_layer),
        cmocka_unit_test(range__active_layer_must_be_meant),
        cmocka_unit_test(range__order_and_shallow_are_held),
        cmocka_unit_test(range__single_layer_is_nothing_to_do),
        cmocka_unit_test(range__same_layer_by_all_that_names_it),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
