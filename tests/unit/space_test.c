/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * space_test.c - what a merge can take at most, and the refusal of one that cannot fit.
 */
#include "qcow2_create.h"
#include "scratch.h"
#include "space.h"

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/resource.h>

#include <cmocka.h>

#define CELL 65536ull

static struct qm_want
want_at(uint64_t from, uint64_t len, const struct qm_image *src)
{
    return (struct qm_want){.guest = qm_guest(from), .len = len, .from = src};
}

static struct qm_image *
make_image(const char *path)
{
    const struct qm_qcow2_create how = {
        .size = 1 << 20, .version = 3, .cluster_size = CELL, .refcount_bits = 16};
    struct qmeld_error err = {0};
    struct qm_image *img;
    struct qm_file *f;

    assert_int_equal(qm_file_create(path, &f, &err), 0);
    assert_int_equal(qm_qcow2_create(f, &how, &err), 0);
    assert_int_equal(qm_image_open(f, "qcow2", &img, &err), 0);
    return img;
}

/* Two small wants in one cluster take that cluster once, and one L2 table. */
static void
space__a_cluster_is_counted_once(void **state)
{
    struct qm_image *img = make_image("image");
    const struct qm_want first = want_at(4096, 4096, img), second = want_at(16384, 4096, img);
    struct qm_space s;

    (void)state;
    qm_space_begin(&s, img, 1 << 20);
    qm_space_add(&s, &first);
    qm_space_add(&s, &second);
    assert_int_equal(s.most, 2 * CELL);
    qm_image_close(img);
}

/* Of a long run of zeros only the ends may need bytes. */
static void
space__zeros_cost_their_edges(void **state)
{
    struct qm_image *img = make_image("image");
    const struct qm_want zeros = want_at(4096, 12 * CELL, NULL);
    struct qm_space s;

    (void)state;
    qm_space_begin(&s, img, 1 << 20);
    qm_space_add(&s, &zeros);
    assert_int_equal(s.most, 3 * CELL);
    qm_image_close(img);
}

static void
space__more_than_there_can_be_is_never_ample(void **state)
{
    struct qm_image *img = make_image("image");
    struct qm_chain real = {.layers = (struct qm_layer[]){{.img = img, .path = (char[]){"image"}}},
                            .n = 1};
    struct qm_space s;
    bool ample;

    (void)state;
    qm_space_begin(&s, img, 1 << 20);
    qm_space_is_ample(&s, &real, 0, 0, 0, ".image.qmeld", &ample);
    assert_true(ample);
    s.most = UINT64_MAX - 5;
    qm_space_is_ample(&s, &real, 0, 0, 0, ".image.qmeld", &ample);
    assert_false(ample);
    s.most = 0;
    qm_space_is_ample(&s, &real, 0, 0, 0, "no/such/place", &ample);
    assert_false(ample);
    qm_image_close(img);
}

/* What a dry run did to a file decides. */
static int
judge_length(uint64_t length, struct qmeld_error *err)
{
    struct qm_shadow *dry;
    struct qm_file *f;
    int rc;

    assert_int_equal(qm_shadow_begin(false, &dry, err), 0);
    assert_int_equal(qm_file_open("image", &f, err), 0);
    assert_int_equal(qm_truncate(f, length, err), 0);
    qm_file_close(f);
    rc = qm_space_judge(dry, err);
    qm_shadow_end(dry);
    return rc;
}

static void
space__the_limit_on_file_sizes_counts(void **state)
{
    const struct rlimit low = {.rlim_cur = 2 << 20, .rlim_max = RLIM_INFINITY};
    struct qmeld_error err = {0};
    struct rlimit was;

    (void)state;
    qm_image_close(make_image("image"));
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &was), 0);
    assert_int_equal(judge_length(3 << 20, &err), 0);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &low), 0);
    assert_int_equal(judge_length(2 << 20, &err), 0);
    assert_int_equal(judge_length((2 << 20) + 1, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_non_null(strstr(err.what, "ulimit"));
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &was), 0);
}

/* More than the disk has: refused, with the shortfall. */
static void
space__what_does_not_fit_is_refused(void **state)
{
    struct qmeld_error err = {0};
    struct qm_shadow *dry;
    struct qm_file *f;

    (void)state;
    qm_image_close(make_image("image"));
    assert_int_equal(qm_shadow_begin(false, &dry, &err), 0);
    assert_int_equal(qm_file_open("image", &f, &err), 0);
    for (uint64_t at = 0; at <= qm_shadow_purse(dry, 0)->room.bytes; at += 1ull << 30)
        assert_int_equal(qm_shadow_data(f, at, 1ull << 30, &err), 0);
    assert_int_equal(qm_sync(f, &err), 0);
    qm_file_close(f);
    assert_int_equal(qm_space_judge(dry, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_string_equal(err.file, "image");
    assert_non_null(strstr(err.what, "make room for"));
    qm_shadow_end(dry);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(space__a_cluster_is_counted_once),
        cmocka_unit_test(space__zeros_cost_their_edges),
        cmocka_unit_test(space__more_than_there_can_be_is_never_ample),
        cmocka_unit_test(space__the_limit_on_file_sizes_counts),
        cmocka_unit_test(space__what_does_not_fit_is_refused),
    };

    (void)signal(SIGXFSZ, SIG_IGN);
    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
