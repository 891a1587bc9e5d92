/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * deflate_test.c - compressed clusters that we make: they come back, and QEMU can read them.
 */
#include "image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#define LARGEST (2u << 20) /* the largest cluster there is */

static unsigned char *plain, *packed, *back;
static struct qm_codec *codec;

static const enum qm_compression types[] = {QM_ZLIB, QM_ZSTD};

enum content { TEXT, RUNS, NOISE, ZEROS, DISTANT, N_CONTENTS };

/* DISTANT repeats itself 5,000 bytes later: outside of the window. */
static void
fill(enum content content, size_t len)
{
    uint32_t x = 12345;

    for (size_t i = 0; i < len; i++) {
        x = x * 1664525 + 1013904223;
        switch (content) {
        case TEXT:
            plain[i] = (unsigned char)"etaoin shrdlu\n"[(x >> 24) % 14];
            break;
        case RUNS:
            plain[i] = (unsigned char)(i / 300 * 7);
            break;
        case DISTANT:
            plain[i] = i < 5000 ? (unsigned char)(x >> 24) : plain[i - 5000];
            break;
        case NOISE:
            plain[i] = (unsigned char)(x >> 24);
            break;
        default:
            plain[i] = 0;
        }
    }
}

static int
set_up(void **state)
{
    (void)state;
    plain = malloc(LARGEST);
    packed = malloc(LARGEST);
    back = malloc(LARGEST);
    codec = qm_codec_new();
    return plain && packed && back && codec ? 0 : -1;
}

static int
set_up_zlib_alone(void **state)
{
    if (set_up(state) != 0)
        return -1;
    qm_codec_use_zlib(codec);
    return 0;
}

static int
tear_down(void **state)
{
    (void)state;
    qm_codec_free(codec);
    free(plain);
    free(packed);
    free(back);
    return 0;
}

static size_t
deflated(enum qm_compression type, int level, size_t len, size_t cap)
{
    size_t n;

    assert_int_equal(qm_codec_deflate(codec, type, level, plain, len, packed, cap, &n), 0);
    assert_true(n <= cap);
    return n;
}

static void
deflate__every_level_comes_back(void **state)
{
    static const size_t lens[] = {512, 4096, 65536, LARGEST};

    (void)state;
    for (unsigned t = 0; t < 2; t++)
        for (int level = 0; level <= qm_codec_level_max(types[t]); level++)
            for (size_t i = 0; i < sizeof lens / sizeof *lens; i++) {
                size_t n;

                if (lens[i] == LARGEST && level > 3)
                    continue; /* slow, and told by the shorter ones */
                fill((enum content)((level + (int)i) % N_CONTENTS), lens[i]);
                n = deflated(types[t], level, lens[i], lens[i] - 1);
                if (n == 0)
                    continue;
                memset(back, 0xaa, lens[i]);
                assert_int_equal(qm_codec_inflate(codec, types[t], packed, n, back, lens[i]), 0);
                assert_memory_equal(back, plain, lens[i]);
            }
}

static void
deflate__what_can_shrink_does(void **state)
{
    (void)state;
    for (unsigned t = 0; t < 2; t++)
        for (int level = 0; level <= qm_codec_level_max(types[t]); level++) {
            fill(TEXT, 65536);
            assert_in_range(deflated(types[t], level, 65536, 65535), 1, 65536 * 6 / 10);
            fill(ZEROS, 65536);
            assert_in_range(deflated(types[t], level, 65536, 65535), 1, 512);
        }
}

static void
deflate__what_does_not_fit_is_told(void **state)
{
    (void)state;
    for (unsigned t = 0; t < 2; t++)
        for (int level = 0; level <= qm_codec_level_max(types[t]); level++) {
            size_t n;

            fill(NOISE, 65536);
            assert_int_equal(deflated(types[t], level, 65536, 65535), 0);
            fill(TEXT, 65536);
            n = deflated(types[t], level, 65536, 65535);
            assert_int_equal(deflated(types[t], level, 65536, n / 2), 0);
            assert_int_equal(deflated(types[t], level, 65536, 1), 0);
            /* and it is as good as new after that */
            assert_int_equal(deflated(types[t], level, 65536, 65535), n);
        }
}

static void
deflate__the_same_bytes_make_the_same_stream(void **state)
{
    (void)state;
    for (unsigned t = 0; t < 2; t++)
        for (int level = 0; level <= qm_codec_level_max(types[t]); level++) {
            size_t n;

            fill(TEXT, 65536);
            n = deflated(types[t], level, 65536, 65535);
            memcpy(back, packed, n);
            fill(RUNS, 8192);
            (void)deflated(types[t], level == 1 ? 2 : 1, 8192, 8191);
            (void)deflated(types[t], level, 8192, 8191);
            fill(TEXT, 65536);
            assert_int_equal(deflated(types[t], level, 65536, 65535), n);
            assert_memory_equal(packed, back, n);
        }
}

/* Who inflates piece by piece, as zlib then insists on the window. */
static void
inflate_in_pieces(size_t n, size_t len)
{
    z_stream z = {0};
    int rc = Z_OK;

    assert_int_equal(inflateInit2(&z, -12), Z_OK);
    z.next_in = packed;
    z.avail_in = (uInt)n;
    while (rc == Z_OK) {
        unsigned char piece[997];

        z.next_out = piece;
        z.avail_out = sizeof piece;
        rc = inflate(&z, Z_NO_FLUSH);
        memcpy(back + (z.total_out - (sizeof piece - z.avail_out)), piece,
               sizeof piece - z.avail_out);
    }
    inflateEnd(&z);
    assert_int_equal(rc, Z_STREAM_END);
    assert_int_equal(z.total_out, len);
    assert_int_equal(z.total_in, n);
}

static void
deflate__no_reference_leaves_the_window(void **state)
{
    (void)state;
    for (int level = 1; level <= qm_codec_level_max(QM_ZLIB); level++)
        for (int c = 0; c < N_CONTENTS; c++) {
            size_t n;

            fill((enum content)c, 65536);
            n = deflated(QM_ZLIB, level, 65536, 65535);
            if (n == 0)
                continue;
            inflate_in_pieces(n, 65536);
            assert_memory_equal(back, plain, 65536);
        }
}

/* Calls as in QEMU 7.2, block/qcow2-threads.c, qcow2_zstd_decompress; a payload ends with its sector. */
static void
stream_as_qemu_does(size_t n, size_t len)
{
    ZSTD_DCtx *d = ZSTD_createDCtx();
    ZSTD_inBuffer in = {.src = packed, .size = (n + 511) / 512 * 512};
    ZSTD_outBuffer to = {.dst = back, .size = len};
    size_t rc = 1;

    memset(packed + n, 0x5a, in.size - n);
    while (to.pos < to.size) {
        rc = ZSTD_decompressStream(d, &to, &in);
        assert_false(ZSTD_isError(rc));
    }
    assert_int_equal(rc, 0);
    ZSTD_freeDCtx(d);
}

static void
deflate__zstd_is_one_frame_that_tells_its_size(void **state)
{
    (void)state;
    for (int level = 1; level <= qm_codec_level_max(QM_ZSTD); level++) {
        size_t n;

        fill(TEXT, 65536);
        n = deflated(QM_ZSTD, level, 65536, 65535);
        assert_int_equal(ZSTD_getFrameContentSize(packed, n), 65536);
        assert_int_equal(ZSTD_findFrameCompressedSize(packed, n), n);
        stream_as_qemu_does(n, 65536);
        assert_memory_equal(back, plain, 65536);
    }
}

static int
run(const char *name, CMFixtureFunction begin)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(deflate__every_level_comes_back),
        cmocka_unit_test(deflate__what_can_shrink_does),
        cmocka_unit_test(deflate__what_does_not_fit_is_told),
        cmocka_unit_test(deflate__the_same_bytes_make_the_same_stream),
        cmocka_unit_test(deflate__no_reference_leaves_the_window),
        cmocka_unit_test(deflate__zstd_is_one_frame_that_tells_its_size),
    };

    return cmocka_run_group_tests_name(name, tests, begin, tear_down);
}

int
main(void)
{
    return run("as built", set_up) + run("zlib alone", set_up_zlib_alone);
}
