/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_entry_test.c - entries of L2 tables and refcount blocks: bytes to host form and back, without a file.
 */
#include "qcow2_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

/* ---- L2 entries ---- */

static struct qcow2_geo
geo(uint32_t version, uint32_t cluster_bits, bool extended)
{
    const struct qcow2_header h = {.version = version,
                                   .cluster_bits = cluster_bits,
                                   .refcount_order = 4,
                                   .incompatible = extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0};

    return qcow2_geo_of(&h);
}

static void
geo__follows_from_the_header(void **state)
{
    struct qcow2_geo g = geo(3, 16, false);

    (void)state;
    assert_int_equal(g.l2_bits, 13);
    assert_int_equal(g.refblock_bits, 15);
    assert_int_equal(qcow2_l2_span(&g), 512ull << 20);
    assert_int_equal(qcow2_l1_needed(&g, 0), 0);
    assert_int_equal(qcow2_l1_needed(&g, 512ull << 20), 1);
    assert_int_equal(qcow2_l1_needed(&g, (512ull << 20) + 1), 2);
    g = geo(3, 14, true);
    assert_int_equal(g.l2_bits, 10);
    assert_int_equal(g.subclusters, 32);
    assert_int_equal(g.subcluster_size, 512);
}

static void
l2__kinds_of_a_plain_entry(void **state)
{
    const struct qcow2_geo g = geo(3, 16, false);
    struct qcow2_l2 e;

    (void)state;
    assert_int_equal(qcow2_l2_decode(&g, 0, 0, &e), QCOW2_L2_OK);
    assert_true(!e.has_host && !e.alloc && !e.zero);
    assert_int_equal(qcow2_l2_decode(&g, QCOW2_COPIED, 0, &e), QCOW2_L2_OK);
    assert_true(!e.has_host && !e.alloc && !e.zero); /* COPIED alone allocates nothing */
    assert_int_equal(qcow2_l2_decode(&g, 1, 0, &e), QCOW2_L2_OK);
    assert_true(!e.has_host && !e.alloc && e.zero == 1);
    assert_int_equal(qcow2_l2_decode(&g, QCOW2_COPIED | 0x50001, 0, &e), QCOW2_L2_OK);
    assert_true(e.has_host && !e.alloc && e.zero == 1 && e.copied && e.host.h == 0x50000);
    assert_int_equal(qcow2_l2_decode(&g, 0x50000, 0, &e), QCOW2_L2_OK);
    assert_true(e.has_host && e.alloc == 1 && !e.zero && !e.copied && e.host.h == 0x50000);
}

static void
l2__defects(void **state)
{
    const struct qcow2_geo v2 = geo(2, 16, false), v3 = geo(3, 16, false), ext = geo(3, 16, true);
    struct qcow2_l2 e;

    (void)state;
    assert_int_equal(qcow2_l2_decode(&v3, 0x50200, 0, &e), QCOW2_L2_UNALIGNED);
    assert_int_equal(qcow2_l2_decode(&v3, 0x50201, 0, &e), QCOW2_L2_UNALIGNED);
    assert_int_equal(qcow2_l2_decode(&v2, 1, 0, &e), QCOW2_L2_ZERO_IN_V2);
    assert_int_equal(qcow2_l2_decode(&v2, 0x50001, 0, &e), QCOW2_L2_ZERO_IN_V2);
    assert_int_equal(qcow2_l2_decode(&ext, 0x50000, 1ull << 32 | 1, &e), QCOW2_L2_BAD_BITMAP);
    assert_int_equal(qcow2_l2_decode(&ext, 0, 1, &e), QCOW2_L2_BAD_BITMAP);
    assert_int_equal(qcow2_l2_decode(&ext, 0x50200, 1, &e), QCOW2_L2_UNALIGNED);
}

static void
l2__reserved_bits_are_ignored(void **state)
{
    const struct qcow2_geo v3 = geo(3, 16, false), ext = geo(3, 16, true);
    struct qcow2_l2 e;

    (void)state;
    assert_int_equal(qcow2_l2_decode(&v3, 0x3f000000000501fe, 0, &e), QCOW2_L2_OK);
    assert_int_equal(e.host.h, 0x50000);
    assert_int_equal(qcow2_l2_decode(&ext, QCOW2_COMPRESSED, 1, &e), QCOW2_L2_OK);
}

static void
l2__extended_entries_have_32_states(void **state)
{
    const struct qcow2_geo g = geo(3, 16, true);
    struct qcow2_l2 e;

    (void)state;
    assert_int_equal(qcow2_l2_decode(&g, 0x50001, 0x0000000c00000003, &e),
                     QCOW2_L2_OK); /* bit 0: ignored */
    assert_true(e.has_host && e.alloc == 3 && e.zero == 12);
    assert_int_equal(qcow2_l2_decode(&g, 0, 0xffffffff00000000, &e), QCOW2_L2_OK);
    assert_true(!e.has_host && e.alloc == 0 && e.zero == UINT32_MAX);
    assert_int_equal(qcow2_l2_decode(&g, 0x50000, 0, &e),
                     QCOW2_L2_OK); /* allocated, but nothing in it */
    assert_true(e.has_host && !e.alloc && !e.zero);
}

static void
l2__compressed_descriptor_of_every_cluster_size(void **state)
{
    (void)state;
    for (uint32_t bits = QCOW2_MIN_CLUSTER_BITS; bits <= QCOW2_MAX_CLUSTER_BITS; bits++) {
        const struct qcow2_geo g = geo(3, bits, false);
        const uint32_t x = 70 - bits;
        const uint64_t sectors = 1ull << (62 - x);
        uint64_t w0, w1;
        struct qcow2_l2 e;

        /* all bits set: the longest payload, the last place */
        assert_int_equal(qcow2_l2_decode(&g, ~QCOW2_COPIED, 0, &e), QCOW2_L2_OK);
        assert_int_equal(e.kind, QCOW2_L2_COMPRESSED);
        assert_int_equal(e.host.h, (1ull << x) - 1);
        assert_int_equal(e.payload_len, sectors * 512 - 511);
        qcow2_l2_encode(&g, &e, &w0, &w1);
        assert_true(w0 == ~QCOW2_COPIED && w1 == 0);

        /* one byte at the end of a sector, then one more */
        e = (struct qcow2_l2){.kind = QCOW2_L2_COMPRESSED, .host = {1023}, .payload_len = 1};
        qcow2_l2_encode(&g, &e, &w0, &w1);
        assert_true(w0 == (QCOW2_COMPRESSED | 1023));
        e.payload_len = 2;
        qcow2_l2_encode(&g, &e, &w0, &w1);
        assert_true(w0 == (QCOW2_COMPRESSED | 1ull << x | 1023));
    }
}

static void
l2__encode_is_the_inverse_of_decode(void **state)
{
    static const uint64_t words[][2] = {
        {0, 0},
        {0x50000, 0},
        {QCOW2_COPIED | 0x50000, 0},
        {0x00ffffffffff0000, 0},
        {1, 0}, /* from here on with the zero flag: plain entries only */
        {QCOW2_COPIED | 0x50001, 0},
        {0x50000, 0x00000ff0ffff000f}, /* from here on: extended only */
        {0, 0x8000000000000000},
    };

    (void)state;
    for (size_t i = 0; i < 12; i++) {
        const struct qcow2_geo g = geo(3, 16, i >= 6);
        const uint64_t *w = words[i < 10 ? i % 6 : i - 4];
        uint64_t w0, w1;
        struct qcow2_l2 e;

        assert_int_equal(qcow2_l2_decode(&g, w[0], w[1], &e), QCOW2_L2_OK);
        qcow2_l2_encode(&g, &e, &w0, &w1);
        assert_true(w0 == w[0] && w1 == w[1]);
    }
}

/* ---- refcounts ---- */

static void
refcount__narrow_ones_begin_at_the_low_bits(void **state)
{
    unsigned char b[8] = {0};

    (void)state;
    qcow2_refcount_put(b, 0, 0, 1);
    assert_int_equal(b[0], 0x01);
    qcow2_refcount_put(b, 1, 0, 3);
    assert_int_equal(b[0], 0x03);
    qcow2_refcount_put(b, 2, 0, 15);
    assert_int_equal(b[0], 0x0f);
    qcow2_refcount_put(b, 4, 1, 0x0102);
    assert_int_equal(b[2], 1);
    assert_int_equal(b[3], 2);
}

static void
refcount__every_width_keeps_its_neighbours(void **state)
{
    (void)state;
    for (uint32_t order = 0; order <= 6; order++) {
        const uint64_t max = order == 6 ? UINT64_MAX : qcow2_refcount_max(order);
        unsigned char b[64];

        memset(b, 0xff, sizeof b);
        for (uint64_t i = 0, n = sizeof b * 8 >> order; i < n; i++) {
            qcow2_refcount_put(b, order, i, 0);
            assert_int_equal(qcow2_refcount_get(b, order, i), 0);
            if (i > 0)
                assert_true(qcow2_refcount_get(b, order, i - 1) == max);
            if (i + 1 < n)
                assert_true(qcow2_refcount_get(b, order, i + 1) == max);
            qcow2_refcount_put(b, order, i, max);
            assert_true(qcow2_refcount_get(b, order, i) == max);
        }
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(geo__follows_from_the_header),
        cmocka_unit_test(l2__kinds_of_a_plain_entry),
        cmocka_unit_test(l2__defects),
        cmocka_unit_test(l2__reserved_bits_are_ignored),
        cmocka_unit_test(l2__extended_entries_have_32_states),
        cmocka_unit_test(l2__compressed_descriptor_of_every_cluster_size),
        cmocka_unit_test(l2__encode_is_the_inverse_of_decode),
        cmocka_unit_test(refcount__narrow_ones_begin_at_the_low_bits),
        cmocka_unit_test(refcount__every_width_keeps_its_neighbours),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
