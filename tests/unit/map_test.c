/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * map_test.c - which layer answers, drawn as pictures.
 */
#include "picture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#define CELL 65536ull

/* Maps [first, end) in cells of layers bottom..top into text; fails on gaps and disorder. */
static char *
map_cells(const struct qm_chain *chain, size_t bottom, size_t top, size_t first, size_t end,
          uint64_t cell)
{
    char *text = calloc(end + 1, 1);
    struct qmeld_error err = {0};
    struct qm_map_span s;
    struct qm_map *m;
    uint64_t pos = first * cell;
    size_t n = 0;
    bool done;

    assert_non_null(text);
    assert_int_equal(
        qm_map_open(chain, bottom, top, qm_guest(first * cell), (end - first) * cell, &m, &err), 0);
    for (;;) {
        assert_int_equal(qm_map_next(m, &s, &done, &err), 0);
        if (done)
            break;
        assert_int_equal(s.guest.g, pos);
        assert_true(s.len > 0);
        for (uint64_t off = 0; off < s.len; off += cell) {
            const struct qm_map_span part = {
                qm_guest(s.guest.g + off),         cell, s.layer, s.past_end,
                qm_extent_part(&s.ext, off, cell),
            };

            assert_true(n < end - first);
            text[n++] = qm_picture_answer(chain, &part);
        }
        pos += s.len;
    }
    qm_map_close(m);
    return text;
}

/* All rows but the last are the chain, the last is what its top reads as. */
static void
check_map(const char *picture)
{
    const char *rows[16];
    char copy[256];
    size_t n = 0;
    struct qm_chain *chain;
    char *text;

    assert_true(strlen(picture) < sizeof copy);
    memcpy(copy, picture, strlen(picture) + 1);
    for (char *row = strtok(copy, "\n"); row && n < 16; row = strtok(NULL, "\n"))
        rows[n++] = row;
    chain = qm_picture_open(rows, n - 1, CELL);
    text = map_cells(chain, 0, n - 2, 0, strlen(rows[n - 1]), CELL);
    assert_string_equal(text, rows[n - 1]);
    free(text);
    qm_picture_close(chain);
}

static void
map__the_uppermost_answer_wins(void **state)
{
    (void)state;
    check_map("..A.0\n"
              ".B..B\n"
              "CCCCC\n"
              "CBAC0\n");
}

static void
map__what_nobody_has_is_nobodys(void **state)
{
    (void)state;
    check_map("A...\n"
              "..B.\n"
              "A.B.\n");
}

static void
map__compressed_cells_answer_singly(void **state)
{
    (void)state;
    check_map(".a..\n"
              "bbbb\n"
              "babb\n");
}

/* The semantics of a short middle image: QEMU does not look below its end. */
static void
map__a_short_middle_layer_hides_the_base(void **state)
{
    (void)state;
    check_map("...A..\n"
              ".B\n"
              "CCCCCC\n"
              "CB0A00\n");
}

static void
map__a_short_base_ends_in_zeros(void **state)
{
    (void)state;
    check_map("A...\n"
              "BB\n"
              "AB00\n");
}

static void
map__the_end_of_the_first_short_layer_counts(void **state)
{
    (void)state;
    check_map("......\n"
              "....\n"
              "..\n"
              "AAAAAA\n"
              "AA0000\n");
}

static void
map__a_short_top_clips_the_map(void **state)
{
    (void)state;
    check_map(".A\n"
              "BBBB\n"
              "BA\n");
}

static void
map__past_end_names_the_layer_that_ended(void **state)
{
    const char *const rows[] = {"....", "...", ".", "C"};
    struct qm_chain *chain = qm_picture_open(rows, 4, CELL);
    struct qmeld_error err = {0};
    struct qm_map_span s;
    struct qm_map *m;
    const size_t layers[] = {0, 1, 2};
    bool done;

    (void)state;
    assert_int_equal(qm_map_open(chain, 0, 3, qm_guest(0), UINT64_MAX, &m, &err), 0);
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(qm_map_next(m, &s, &done, &err), 0);
        assert_false(done);
        assert_int_equal(s.layer, layers[i]);
        assert_int_equal(s.past_end, i > 0);
    }
    assert_int_equal(s.guest.g + s.len, 4 * CELL);
    assert_int_equal(qm_map_next(m, &s, &done, &err), 0);
    assert_true(done);
    qm_map_close(m);
    qm_picture_close(chain);
}

static void
map__a_range_of_layers_ignores_the_others(void **state)
{
    const char *const rows[] = {"AAAA", "..B.", ".C..", "DDDD"};
    struct qm_chain *chain = qm_picture_open(rows, 4, CELL);
    char *text = map_cells(chain, 1, 2, 0, 4, CELL);

    (void)state;
    assert_string_equal(text, ".CB.");
    assert_int_equal(qm_picture_asked(chain, 0), 0);
    assert_int_equal(qm_picture_asked(chain, 3), 0);
    free(text);
    qm_picture_close(chain);
}

static void
map__a_range_of_bytes_is_clipped_on_both_sides(void **state)
{
    const char *const rows[] = {"..A..", "BBBBB"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    char *text = map_cells(chain, 0, 1, 1, 4, CELL);

    (void)state;
    assert_string_equal(text, "BAB");
    free(text);
    text = map_cells(chain, 0, 1, 3, 9, CELL);
    assert_string_equal(text, "BB");
    free(text);
    text = map_cells(chain, 0, 1, 7, 9, CELL);
    assert_string_equal(text, "");
    free(text);
    qm_picture_close(chain);
}

/* Work follows what is allocated: inside a run that is known nobody asks again. */
static void
map__a_layer_is_asked_once_a_run(void **state)
{
    const char *const rows[] = {"A.A.A.A.A.A.A.A.", "........B.......", "CCCCCCCCCCCCCCCC"};
    struct qm_chain *chain = qm_picture_open(rows, 3, CELL);
    char *text = map_cells(chain, 0, 2, 0, 16, CELL);

    (void)state;
    assert_string_equal(text, "ACACACACACACACAC");
    assert_int_equal(qm_picture_asked(chain, 2), 16); /* its own runs */
    assert_int_equal(qm_picture_asked(chain, 1), 2);  /* cell 8 is hidden, 1 and 9 are runs */
    assert_int_equal(qm_picture_asked(chain, 0), 1);
    free(text);
    qm_picture_close(chain);
}

static void
map__what_is_hidden_is_not_asked_for(void **state)
{
    const char *const rows[] = {"AAAA", "B..B"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    char *text;

    (void)state;
    qm_picture_break(chain, 0, 1);
    text = map_cells(chain, 0, 1, 0, 4, CELL);
    assert_string_equal(text, "AAAA");
    assert_int_equal(qm_picture_asked(chain, 0), 0);
    free(text);
    qm_picture_close(chain);
}

static void
map__a_broken_table_ends_the_map_with_its_error(void **state)
{
    const char *const rows[] = {"A..A", "BBBB"};
    struct qm_chain *chain = qm_picture_open(rows, 2, CELL);
    struct qmeld_error err = {0};
    struct qm_map_span s;
    struct qm_map *m;
    bool done;

    (void)state;
    qm_picture_break(chain, 0, 2);
    assert_int_equal(qm_map_open(chain, 0, 1, qm_guest(0), UINT64_MAX, &m, &err), 0);
    assert_int_equal(qm_map_next(m, &s, &done, &err), -1);
    assert_int_equal(err.code, QMELD_CORRUPT);
    qm_map_close(m);
    qm_picture_close(chain);
}

/* ---- against the obvious answer -------------------------------------------------------------- */

static uint32_t
draw(uint32_t *seed)
{
    *seed = *seed * 1664525u + 1013904223u;
    return *seed >> 16;
}

/* Runs of random length, as disks have them; density in percent of cells that are not '.'. */
static char *
random_row(uint32_t *seed, size_t cells, unsigned density)
{
    static const char marks[] = "0ABCa";
    char *row = malloc(cells + 1);

    assert_non_null(row);
    for (size_t i = 0; i < cells;) {
        const char c = draw(seed) % 100 < density ? marks[draw(seed) % 5] : '.';

        for (size_t run = 1 + draw(seed) % 9; run && i < cells; run--)
            row[i++] = c;
    }
    row[cells] = '\0';
    return row;
}

static char
obvious(char *const *rows, size_t n, size_t cell)
{
    for (size_t i = 0; i < n; i++) {
        if (cell >= strlen(rows[i]))
            return '0';
        if (rows[i][cell] != '.')
            return rows[i][cell];
    }
    return '.';
}

static void
check_random(uint32_t seed, size_t n, size_t cells, unsigned density, uint64_t cell)
{
    char *rows[12];
    struct qm_chain *chain;
    char *text, *want;

    for (size_t i = 0; i < n; i++)
        rows[i] = random_row(&seed, i ? cells - draw(&seed) % 4 * (cells / 8) : cells, density);
    chain = qm_picture_open((const char *const *)rows, n, cell);
    text = map_cells(chain, 0, n - 1, 0, cells, cell);
    want = calloc(cells + 1, 1);
    assert_non_null(want);
    /* cells of the picture that share a letter need no strlen each */
    for (size_t c = 0; c < cells; c++)
        want[c] = obvious(rows, n, c);
    if (strcmp(text, want) != 0)
        print_message("seed %u\n", seed);
    assert_true(strcmp(text, want) == 0);
    free(want);
    free(text);
    qm_picture_close(chain);
    for (size_t i = 0; i < n; i++)
        free(rows[i]);
}

static void
map__random_pictures_read_as_they_should(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 200; seed++)
        check_random(seed, 1 + seed % 9, 200, 5 + seed % 60, 65536);
}

/* Cells of 8 MiB: the first window of the sweep ends after a few of them. */
static void
map__windows_join_without_gaps(void **state)
{
    (void)state;
    for (uint32_t seed = 1; seed <= 20; seed++)
        check_random(seed, 1 + seed % 5, 3000, 5 + seed % 60, 8u << 20);
}

/* More pieces than a window may have: it is halved, and nothing is lost. */
static void
map__crowded_windows_are_halved(void **state)
{
    const size_t cells = 120000;
    char *top = malloc(cells + 1), *base = malloc(cells + 1), *want = malloc(cells + 1), *text;
    struct qm_chain *chain;

    (void)state;
    assert_true(top && base && want);
    for (size_t i = 0; i < cells; i++) {
        top[i] = i % 2 ? '.' : 'a';
        base[i] = i % 3 ? 'B' : '.';
        want[i] = top[i] != '.' ? top[i] : base[i];
    }
    top[cells] = base[cells] = want[cells] = '\0';
    chain = qm_picture_open((const char *const[]){top, base}, 2, 512);
    text = map_cells(chain, 0, 1, 0, cells, 512);
    assert_true(strcmp(text, want) == 0);
    free(text);
    free(top);
    free(base);
    free(want);
    qm_picture_close(chain);
}

/* Memory is bounded: spans come before the whole of a crowded disk has been looked at. */
static void
map__spans_come_before_the_end_is_known(void **state)
{
    const size_t cells = 120000;
    char *row = malloc(cells + 1);
    struct qmeld_error err = {0};
    struct qm_chain *chain;
    struct qm_map_span s;
    struct qm_map *m;
    bool done;

    (void)state;
    assert_non_null(row);
    memset(row, 'a', cells);
    row[cells] = '\0';
    chain = qm_picture_open((const char *const[]){row}, 1, 512);
    qm_picture_break(chain, 0, cells - 10);
    assert_int_equal(qm_map_open(chain, 0, 0, qm_guest(0), UINT64_MAX, &m, &err), 0);
    for (size_t i = 0; i < 10000; i++) {
        assert_int_equal(qm_map_next(m, &s, &done, &err), 0);
        assert_false(done);
        assert_int_equal(s.guest.g, i * 512);
    }
    qm_map_close(m);
    qm_picture_close(chain);
    free(row);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(map__the_uppermost_answer_wins),
        cmocka_unit_test(map__what_nobody_has_is_nobodys),
        cmocka_unit_test(map__compressed_cells_answer_singly),
        cmocka_unit_test(map__a_short_middle_layer_hides_the_base),
        cmocka_unit_test(map__a_short_base_ends_in_zeros),
        cmocka_unit_test(map__the_end_of_the_first_short_layer_counts),
        cmocka_unit_test(map__a_short_top_clips_the_map),
        cmocka_unit_test(map__past_end_names_the_layer_that_ended),
        cmocka_unit_test(map__a_range_of_layers_ignores_the_others),
        cmocka_unit_test(map__a_range_of_bytes_is_clipped_on_both_sides),
        cmocka_unit_test(map__a_layer_is_asked_once_a_run),
        cmocka_unit_test(map__what_is_hidden_is_not_asked_for),
        cmocka_unit_test(map__a_broken_table_ends_the_map_with_its_error),
        cmocka_unit_test(map__random_pictures_read_as_they_should),
        cmocka_unit_test(map__windows_join_without_gaps),
        cmocka_unit_test(map__crowded_windows_are_halved),
        cmocka_unit_test(map__spans_come_before_the_end_is_known),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
