/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * space_test.c - what a merge must gain at least, counted over drawn and real images.
 */
#include "picture.h"
#include "qcow2_create.h"
#include "scratch.h"
#include "space.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define CELL 65536ull

static struct qm_want
want_at(uint64_t from, uint64_t len, const struct qm_image *src)
{
    return (struct qm_want){.guest = qm_guest(from), .len = len, .from = src};
}

static void
space__only_what_the_target_has_not_is_gained(void **state)
{
    const char *const rows[] = {"AAAA", "B.0B"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    struct qm_space s = {.target = chain->layers[0].img};
    const struct qm_want all = want_at(0, 4 * CELL, chain->layers[1].img);
    struct qmeld_error err = {0};

    (void)state;
    assert_int_equal(qm_space_add(&s, &all, &err), 0);
    assert_int_equal(s.gain, 2 * CELL);
    assert_int_equal(s.loss, 0);
    qm_picture_close(chain);
}

static void
space__zeros_over_data_give_back(void **state)
{
    const char *const rows[] = {"0000", "BB.0"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    struct qm_space s = {.target = chain->layers[0].img};
    const struct qm_want all = want_at(0, 4 * CELL, NULL);
    struct qmeld_error err = {0};

    (void)state;
    assert_int_equal(qm_space_add(&s, &all, &err), 0);
    assert_int_equal(s.gain, 0);
    assert_int_equal(s.loss, 2 * CELL);
    qm_picture_close(chain);
}

static void
space__what_lies_behind_the_targets_end_is_gained(void **state)
{
    const char *const rows[] = {"AAAA", "B"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    struct qm_space s = {.target = chain->layers[0].img};
    const struct qm_want all = want_at(0, 4 * CELL, chain->layers[1].img);
    struct qmeld_error err = {0};

    (void)state;
    assert_int_equal(qm_space_add(&s, &all, &err), 0);
    assert_int_equal(s.gain, 3 * CELL);
    qm_picture_close(chain);
}

/* Two small wants in one cluster of a real image need that cluster once. */
static void
space__a_cluster_is_counted_once(void **state)
{
    const struct qm_qcow2_create how = {
        .size = 1 << 20, .version = 3, .cluster_size = CELL, .refcount_bits = 16};
    struct qmeld_error err = {0};
    struct qm_file *f;
    struct qm_image *img;
    struct qm_space s = {.target = NULL};
    struct qm_want first, second;

    (void)state;
    assert_int_equal(qm_file_create("image", &f, &err), 0);
    assert_int_equal(qm_qcow2_create(f, &how, &err), 0);
    assert_int_equal(qm_image_open(f, "qcow2", &img, &err), 0);
    s.target = img;
    first = want_at(4096, 4096, img);
    second = want_at(16384, 4096, img);
    assert_int_equal(qm_space_add(&s, &first, &err), 0);
    assert_int_equal(qm_space_add(&s, &second, &err), 0);
    assert_int_equal(s.gain, CELL);
    assert_int_equal(qm_space_check(&s, &err), 0);
    s.gain = UINT64_MAX / 2;
    assert_int_equal(qm_space_check(&s, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_string_equal(err.file, "image");
    qm_image_close(img);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(space__only_what_the_target_has_not_is_gained),
        cmocka_unit_test(space__zeros_over_data_give_back),
        cmocka_unit_test(space__what_lies_behind_the_targets_end_is_gained),
        cmocka_unit_test(space__a_cluster_is_counted_once),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
