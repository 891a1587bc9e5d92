/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * diff_test.c - where two views read differently, and what had to be read to know it.
 */
#include "diff.h"
#include "lab.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CELL 65536ull

static struct qm_chain *
open_chain(const char *path)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK};
    struct qmeld_error err = {0};
    struct qm_chain *chain;

    assert_int_equal(qm_chain_open(path, &how, &chain, &err), 0);
    return chain;
}

/* What differs, as a picture: X a cell that does, z one where a reads zeros, . the others; /N behind it: bytes
 * that were read. */
static const char *
look(const char *a, const char *b, struct qm_diff_config c)
{
    static char text[128];
    struct qm_chain *x = open_chain(a), *y = open_chain(b);
    struct qmeld_error err = {0};
    struct qm_diff_range r;
    struct qm_diff *d;
    bool done;

    c.a = (struct qm_view){x, x->n - 1};
    c.b = (struct qm_view){y, y->n - 1};
    if (c.skip)
        c.skip = x->layers[x->n - 1].img;
    c.end = qm_max(x->layers[x->n - 1].img->size, y->layers[y->n - 1].img->size);
    c.unit = c.unit ? c.unit : CELL;
    memset(text, 0, sizeof text);
    memset(text, '.', (size_t)(c.end / CELL));
    assert_int_equal(qm_diff_open(&c, &d, &err), 0);
    for (;;) {
        assert_int_equal(qm_diff_next(d, &r, &done, &err), 0);
        if (done)
            break;
        for (uint64_t at = r.guest.g / CELL; at * CELL < r.guest.g + r.len; at++)
            text[at] = r.zero_a ? 'z' : 'X';
    }
    snprintf(text + c.end / CELL, 32, "/%llu",
             (unsigned long long)(qm_diff_costs(d).bytes_read / CELL));
    qm_diff_close(d);
    qm_chain_close(x);
    qm_chain_close(y);
    return text;
}

/* Two overlays of one base. */
#define SIBLINGS                                                                                   \
    "all cluster=64k\n"                                                                            \
    "b.qcow2    | .D.0.e  over=base.qcow2\n"                                                       \
    "a.qcow2    | ..D00D  over=base.qcow2\n"                                                       \
    "base.qcow2 | AAA.AA\n"

static void
diff__what_both_read_from_one_file_is_not_read(void **state)
{
    struct qm_forge *f = qm_lab_make(SIBLINGS);

    (void)state;
    /* cells 1, 2 and 5 from both sides, 4 from b's; 0 is the base's for both, 3 zeros for both */
    assert_string_equal(look("a.qcow2", "b.qcow2", (struct qm_diff_config){0}), ".XX.zX/7");
    assert_string_equal(look("a.qcow2", "a.qcow2", (struct qm_diff_config){0}), "....../0");
    qm_forge_free(f);
}

static void
diff__by_map_alone_reads_nothing(void **state)
{
    struct qm_forge *f = qm_lab_make(SIBLINGS);

    (void)state;
    assert_string_equal(look("a.qcow2", "b.qcow2", (struct qm_diff_config){.by_map = true}),
                        ".XX.zX/0");
    qm_forge_free(f);
}

static void
diff__what_a_layer_answers_itself_can_be_passed_over(void **state)
{
    struct qm_forge *f = qm_lab_make(SIBLINGS);
    const struct qm_image *any = (const struct qm_image *)f; /* its top: look() puts it in */

    (void)state;
    assert_string_equal(look("a.qcow2", "b.qcow2", (struct qm_diff_config){.skip = any}),
                        ".X..../2");
    qm_forge_free(f);
}

static void
diff__bytes_decide_and_zeros_are_seen_in_them(void **state)
{
    static const unsigned char one[512] = {1};
    struct qm_forge *f = qm_lab_make("all cluster=64k\n"
                                     "b.raw | AA..A\n"
                                     "a.raw | A0.A.\n");
    FILE *file = fopen("b.raw", "r+b");

    (void)state;
    assert_non_null(file);
    assert_int_equal(fseek(file, (long)(CELL + 4096), SEEK_SET), 0);
    assert_int_equal(fwrite(one, 1, sizeof one, file), sizeof one);
    assert_int_equal(fclose(file), 0);
    assert_string_equal(look("a.raw", "b.raw", (struct qm_diff_config){.look_at_zero = true}),
                        "Xz.Xz/6");
    qm_forge_free(f);
}

static void
diff__behind_the_shorter_end_are_zeros(void **state)
{
    struct qm_forge *f = qm_lab_make("all cluster=64k\n"
                                     "b.qcow2 | 0..A.  over=none\n"
                                     "a.qcow2 | ..     over=none\n");

    (void)state;
    assert_string_equal(look("a.qcow2", "b.qcow2", (struct qm_diff_config){0}), "...z./1");
    assert_string_equal(look("b.qcow2", "a.qcow2", (struct qm_diff_config){0}), "...X./1");
    qm_forge_free(f);
}

static void
diff__ranges_are_whole_units(void **state)
{
    struct qm_forge *f = qm_lab_make("all cluster=64k\n"
                                     "b.qcow2 | ....B.B...  over=none\n"
                                     "a.qcow2 | ......B...  over=none\n");

    (void)state;
    /* data of another letter or layer differs */
    assert_string_equal(look("a.qcow2", "b.qcow2", (struct qm_diff_config){.unit = 2 * CELL}),
                        "....zzXX../3");
    qm_forge_free(f);
}

static int
stop(const struct qmeld_progress *now, void *opaque)
{
    (void)now;
    ++*(int *)opaque;
    return 1;
}

static void
diff__stops_on_request(void **state)
{
    struct qm_forge *f = qm_lab_make(SIBLINGS);
    struct qm_chain *x = open_chain("a.qcow2"), *y = open_chain("b.qcow2");
    int asked = 0;
    const struct qm_diff_config c = {.a = {x, x->n - 1},
                                     .b = {y, y->n - 1},
                                     .end = 6 * CELL,
                                     .unit = 512,
                                     .bandwidth = 1, /* so it takes long enough */
                                     .progress = stop,
                                     .opaque = &asked};
    struct qmeld_error err = {0};
    struct qm_diff_range r;
    struct qm_diff *d;
    bool done;

    (void)state;
    assert_int_equal(qm_diff_open(&c, &d, &err), 0);
    assert_int_equal(qm_diff_next(d, &r, &done, &err), -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    assert_int_equal(asked, 1);
    qm_diff_close(d);
    qm_chain_close(x);
    qm_chain_close(y);
    qm_forge_free(f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
#define TEST(t) cmocka_unit_test_setup_teardown(t, qm_scratch_enter, qm_scratch_leave)
        TEST(diff__what_both_read_from_one_file_is_not_read),
        TEST(diff__by_map_alone_reads_nothing),
        TEST(diff__what_a_layer_answers_itself_can_be_passed_over),
        TEST(diff__bytes_decide_and_zeros_are_seen_in_them),
        TEST(diff__behind_the_shorter_end_are_zeros),
        TEST(diff__ranges_are_whole_units),
        TEST(diff__stops_on_request),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
