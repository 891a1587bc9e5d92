/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * inflate_test.c - our reading of deflate streams against zlib's: the same verdict and the same bytes, for
 * whole streams, cut ones and damaged ones.
 *
 *     inflate_test [ROUNDS [SEED]]     more of the random ones
 *
 * Every buffer is just as long as it has to be, so that the sanitizers see a step too far.
 */
#include "image.h"
#include "qcow2_inflate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>

#define LONGEST 65536u

static struct qm_codec *ours, *zlib;
static struct qm_inflate *fast;
static unsigned char plain[LONGEST], packed[2 * LONGEST];
static unsigned long rounds = 150;
static uint64_t seed = 1;

static uint32_t
draw(uint32_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33) % below;
}

static int
set_up(void **state)
{
    (void)state;
    ours = qm_codec_new();
    zlib = qm_codec_new();
    fast = qm_inflate_new();
    if (!ours || !zlib || !fast)
        return -1;
    qm_codec_use_zlib(zlib);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    qm_codec_free(ours);
    qm_codec_free(zlib);
    qm_inflate_free(fast);
    return 0;
}

/* Runs, repeated pieces and noise, in proportions of their own. */
static void
fill(size_t len)
{
    const uint32_t runs = draw(4), noise = draw(3), letters = 1 + draw(256);

    for (size_t i = 0; i < len;) {
        const size_t n = len - i < 300 ? len - i : 1 + draw(300);

        if (i > 0 && draw(4) < runs) {
            const size_t back = 1 + draw((uint32_t)(i < 20000 ? i : draw(2) ? 20000 : 9));

            for (size_t k = 0; k < n; k++)
                plain[i + k] = plain[i + k - (back <= i ? back : i)];
        } else if (draw(3) < noise) {
            for (size_t k = 0; k < n; k++)
                plain[i + k] = (unsigned char)draw(256);
        } else {
            for (size_t k = 0; k < n; k++)
                plain[i + k] = (unsigned char)draw(letters);
        }
        i += n;
    }
}

/* In blocks of several kinds, if flushes are wanted. */
static size_t
deflated(size_t len, int level, int strategy, int mem, int flushes)
{
    z_stream z = {0};

    assert_int_equal(deflateInit2(&z, level, Z_DEFLATED, -15, mem, strategy), Z_OK);
    z.next_in = plain;
    z.next_out = packed;
    z.avail_out = sizeof packed;
    while (flushes-- > 0 && z.total_in < len) {
        z.avail_in = draw((uint32_t)(len - z.total_in) + 1);
        (void)deflate(&z, draw(2) ? Z_FULL_FLUSH : Z_BLOCK);
    }
    z.avail_in = (uInt)(len - z.total_in);
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return z.total_out;
}

/* Do we say of src what zlib says? */
static void
agree(const unsigned char *src, size_t src_len, size_t out_len)
{
    unsigned char *in = malloc(src_len ? src_len : 1), *a = malloc(out_len), *b = malloc(out_len);
    int want, got;

    assert_true(in && a && b);
    memcpy(in, src, src_len);
    want = qm_codec_inflate(zlib, QM_ZLIB, in, src_len, a, out_len);
    got = qm_codec_inflate(ours, QM_ZLIB, in, src_len, b, out_len);
    assert_int_equal(got, want);
    if (want == 0)
        assert_memory_equal(b, a, out_len);
    if (qm_inflate(fast, in, src_len, b, out_len)) {
        assert_int_equal(want, 0); /* it never takes more than zlib does */
        assert_memory_equal(b, a, out_len);
    }
    free(in);
    free(a);
    free(b);
}

static void
inflate__every_kind_of_stream_is_taken_without_zlib(void **state)
{
    (void)state;
    for (int strategy = Z_DEFAULT_STRATEGY; strategy <= Z_FIXED; strategy++)
        for (int level = 0; level <= 9; level++)
            for (size_t len = 512; len <= LONGEST; len *= 8) {
                unsigned char *out = malloc(len);
                size_t n;

                fill(len);
                n = deflated(len, level, strategy, 9 - level % 9, level % 4);
                assert_non_null(out);
                assert_true(qm_inflate(fast, packed, n, out, len));
                assert_memory_equal(out, plain, len);
                free(out);
            }
}

static void
inflate__cut_anywhere_zlib_decides(void **state)
{
    (void)state;
    for (int strategy = Z_DEFAULT_STRATEGY; strategy <= Z_FIXED; strategy++) {
        size_t n;

        fill(1024);
        n = deflated(1024, 6, strategy, 8, 2);
        for (size_t cut = 0; cut <= n; cut++)
            agree(packed, cut, 1024);
        for (size_t len = 1000; len < 1050; len++) /* longer and shorter than the cluster */
            agree(packed, n, len);
    }
}

static void
inflate__every_bit_flipped_zlib_decides(void **state)
{
    (void)state;
    for (int strategy = Z_DEFAULT_STRATEGY; strategy <= Z_FIXED; strategy++) {
        size_t n;

        fill(512);
        n = deflated(512, 6, strategy, 8, 1);
        for (size_t bit = 0; bit < 8 * n; bit++) {
            packed[bit / 8] ^= (unsigned char)(1 << bit % 8);
            agree(packed, n, 512);
            packed[bit / 8] ^= (unsigned char)(1 << bit % 8);
        }
    }
}

static void
inflate__damaged_at_random_zlib_decides(void **state)
{
    static unsigned char whole[sizeof packed];

    (void)state;
    for (unsigned long round = 0; round < rounds; round++) {
        const size_t len = (size_t)512 << draw(draw(8) + 1);
        size_t n, reach;

        fill(len);
        n = deflated(len, (int)draw(10), (int)draw(5), 1 + (int)draw(9), (int)draw(4));
        memcpy(whole, packed, n);
        for (int k = 0; k < 20; k++) {
            memcpy(packed, whole, n);
            reach = draw(2) && n > 100 ? 100 : n; /* codes are told at the beginning */
            for (uint32_t hits = 1 + draw(3); hits > 0; hits--)
                packed[draw((uint32_t)reach)] ^=
                    (unsigned char)(draw(4) ? 1u << draw(8) : draw(256));
            agree(packed, draw(10) ? n : draw((uint32_t)n + 1), len);
        }
    }
}

static void
inflate__noise_is_no_stream(void **state)
{
    (void)state;
    for (unsigned long round = 0; round < 20 * rounds; round++) {
        const uint32_t n = 1 + draw(400);

        for (uint32_t i = 0; i < n; i++)
            packed[i] = (unsigned char)draw(256);
        packed[0] = (unsigned char)((packed[0] & ~7u) | (round % 8)); /* all kinds of blocks */
        agree(packed, n, 512);
    }
}

/* ---- streams that nobody makes ---- */

static size_t n_bits;

static void
put(unsigned value, unsigned n)
{
    for (unsigned i = 0; i < n; i++, n_bits++)
        packed[n_bits / 8] =
            (unsigned char)((n_bits % 8 ? packed[n_bits / 8] : 0) | (value >> i & 1) << n_bits % 8);
}

/* A last block with dynamic codes: literals 'a' and the block's end have codewords of these lengths,
 * and `unused` a third, which nothing uses; one distance code, of dist_len bits. */
static void
put_codes(unsigned a_len, unsigned end_len, unsigned unused_len, unsigned dist_len)
{
    static const unsigned order[] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1};

    n_bits = 0;
    put(1, 1);
    put(2, 2);
    put(0, 5); /* 257 lengths */
    put(0, 5); /* 1 distance */
    put(14, 4);
    for (unsigned i = 0; i < 18; i++) /* 18 and 0 to 2: two bits each */
        put(order[i] == 18 || order[i] <= 2 ? 2 : 0, 3);
#define LEN(l) put((l) == 0 ? 0 : (l) == 1 ? 2 : 1, 2) /* codewords 00 0, 01 1, 10 2, 11 18 */
    put(3, 2), put(96 - 11, 7);
    LEN(0);
    LEN(a_len); /* 97 */
    put(3, 2), put(138 - 11, 7);
    put(3, 2), put(19 - 11, 7);
    LEN(unused_len); /* 255 */
    LEN(end_len);
    LEN(dist_len);
}

static void
inflate__incomplete_codes_are_refused_as_by_zlib(void **state)
{
    static const unsigned lens[][4] = {{1, 1, 0, 0}, {1, 2, 2, 0}, {1, 2, 0, 0}, {2, 2, 2, 0},
                                       {2, 1, 0, 1}, {1, 2, 2, 1}, {1, 2, 2, 2}, {0, 1, 0, 0},
                                       {1, 0, 1, 0}, {1, 1, 1, 0}, {1, 1, 0, 1}, {1, 2, 1, 1}};
    size_t taken = 0;

    (void)state;
    for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
        unsigned char out[512];

        put_codes(lens[i][0], lens[i][1], lens[i][2], lens[i][3]);
        for (unsigned k = 0; k < 512; k++)
            put(0, lens[i][0]); /* the first codeword of the shortest length, mostly 'a' */
        put(3, 2);
        put(0, 32);
        agree(packed, (n_bits + 7) / 8, 512);
        taken += qm_codec_inflate(zlib, QM_ZLIB, packed, (n_bits + 7) / 8, out, 512) == 0;
    }
    assert_in_range(taken, 1, sizeof lens / sizeof *lens - 3); /* some of either kind */
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(inflate__every_kind_of_stream_is_taken_without_zlib),
        cmocka_unit_test(inflate__cut_anywhere_zlib_decides),
        cmocka_unit_test(inflate__every_bit_flipped_zlib_decides),
        cmocka_unit_test(inflate__damaged_at_random_zlib_decides),
        cmocka_unit_test(inflate__noise_is_no_stream),
        cmocka_unit_test(inflate__incomplete_codes_are_refused_as_by_zlib),
    };

    if (argc > 1)
        rounds = strtoul(argv[1], NULL, 0);
    if (argc > 2)
        seed = strtoull(argv[2], NULL, 0);
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
