/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* digest_test.c - SHA-256 by its own examples, and the tree against one that is built the slow way. */
#include "digest.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static struct qm_sha256
node(struct qm_digest *d, unsigned char mark, const void *a, size_t a_len, const void *b,
     size_t b_len)
{
    qm_digest_add(d, &mark, 1);
    qm_digest_add(d, a, a_len);
    return qm_digest_of(d, b, b_len);
}

/* RFC 6962, section 2.1, word for word. */
static struct qm_sha256
slow_tree(struct qm_digest *d, const struct qm_sha256 *leaf, size_t n)
{
    struct qm_sha256 left, right;
    size_t k = 1;

    if (n == 1)
        return node(d, 0, leaf->b, 32, "", 0);
    while (2 * k < n)
        k *= 2;
    left = slow_tree(d, leaf, k);
    right = slow_tree(d, leaf + k, n - k);
    return node(d, 1, left.b, 32, right.b, 32);
}

static void
digest__knows_the_examples_of_fips_180(void **state)
{
    struct qm_digest *d = qm_digest_new();
    struct qm_sha256 got;

    (void)state;
    assert_non_null(d);
    got = qm_digest_of(d, "abc", 3);
    assert_string_equal(qm_sha256_hex(&got).text,
                        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    got = qm_digest_of(d, "", 0);
    assert_string_equal(qm_sha256_hex(&got).text,
                        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    qm_digest_free(d);
}

static void
digest__zeros_need_not_be_in_memory(void **state)
{
    static const unsigned char zeros[200000];
    struct qm_digest *d = qm_digest_new();
    struct qm_sha256 want = qm_digest_of(d, zeros, sizeof zeros), got;

    (void)state;
    qm_digest_add_zeros(d, 70000);
    qm_digest_add_zeros(d, 130000);
    got = qm_digest_end(d);
    assert_true(qm_sha256_same(&want, &got));
    qm_digest_free(d);
}

static void
digest__hex_reads_back_and_nothing_else_does(void **state)
{
    struct qm_digest *d = qm_digest_new();
    const struct qm_sha256 want = qm_digest_of(d, "x", 1);
    struct qm_hex hex = qm_sha256_hex(&want);
    struct qm_sha256 got;

    (void)state;
    assert_true(qm_sha256_parse(hex.text, &got));
    assert_true(qm_sha256_same(&want, &got));
    hex.text[5] = 'g';
    assert_false(qm_sha256_parse(hex.text, &got));
    assert_false(qm_sha256_parse("abc", &got));
    qm_digest_free(d);
}

/* Runs of all lengths, at all places: the same as leaf by leaf. */
static void
tree__runs_are_what_single_leaves_are(void **state)
{
    struct qm_digest *d = qm_digest_new();
    struct qm_sha256 leaves[64];

    (void)state;
    for (size_t first = 0; first <= 20; first++)
        for (size_t run = 0; run <= 40; run++) {
            const size_t n = first + run;
            struct qm_tree t;
            struct qm_sha256 got, top, want;
            unsigned char head[17] = {2, 0, 0, 0, 0, 0, 0, 0x30, 0x39, 0, 0, 0, 0, 0, 0, 0x10, 0};

            qm_tree_init(&t, d);
            for (size_t i = 0; i < n; i++)
                leaves[i] = qm_digest_of(d, i < first ? (const void *)&i : "same",
                                         i < first ? sizeof i : 4);
            for (size_t i = 0; i < first; i++)
                qm_tree_add(&t, &leaves[i], 1);
            qm_tree_add(&t, &leaves[first], run);
            top = n ? slow_tree(d, leaves, n) : qm_digest_of(d, "", 0);
            want = node(d, head[0], head + 1, 16, top.b, 32);
            got = qm_tree_root(&t, 12345, 4096);
            assert_true(qm_sha256_same(&want, &got));
        }
    qm_digest_free(d);
}

static void
tree__a_run_of_a_whole_disk_is_cheap(void **state)
{
    struct qm_digest *d = qm_digest_new();
    const struct qm_sha256 leaf = qm_digest_of(d, "x", 1);
    struct qm_tree once, twice;
    struct qm_sha256 a, b;

    (void)state;
    qm_tree_init(&once, d);
    qm_tree_add(&once, &leaf, (1ull << 62) + 12345);
    qm_tree_init(&twice, d);
    qm_tree_add(&twice, &leaf, 77);
    qm_tree_add(&twice, &leaf, (1ull << 62) + 12345 - 77);
    a = qm_tree_root(&once, 1, 1);
    b = qm_tree_root(&twice, 1, 1);
    assert_true(qm_sha256_same(&a, &b));
    qm_digest_free(d);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(digest__knows_the_examples_of_fips_180),
        cmocka_unit_test(digest__zeros_need_not_be_in_memory),
        cmocka_unit_test(digest__hex_reads_back_and_nothing_else_does),
        cmocka_unit_test(tree__runs_are_what_single_leaves_are),
        cmocka_unit_test(tree__a_run_of_a_whole_disk_is_cheap),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
