/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * codec_test.c - which compressed clusters are good.  The verdicts are those of qemu-img 7.2.22
 * on images that hold the same payloads.
 */
#include "image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>
#include <zlib.h>
#include <zstd.h>

#define CLUSTER 65536u

static unsigned char plain[2 * CLUSTER];
static unsigned char payload[4 * CLUSTER];
static unsigned char out[CLUSTER];
static struct qm_codec *codec;

static int
set_up(void **state)
{
    uint32_t x = 1;

    (void)state;
    for (size_t i = 0; i < sizeof plain; i++) {
        x = x * 1103515245 + 12345;
        plain[i] = (unsigned char)(x >> 29 ? i / 97 : x >> 16);
    }
    codec = qm_codec_new();
    return codec ? 0 : -1;
}

static int
tear_down(void **state)
{
    (void)state;
    qm_codec_free(codec);
    return 0;
}

/* Deflates the first len bytes of plain; window_bits as zlib has them: negative is raw. */
static size_t
deflated(int window_bits, size_t len, int flush)
{
    z_stream z = {0};

    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, window_bits, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = plain;
    z.avail_in = (uInt)len;
    z.next_out = payload;
    z.avail_out = sizeof payload;
    (void)deflate(&z, flush);
    deflateEnd(&z);
    return z.total_out;
}

enum { CHECKSUM = 1, NO_SIZE = 2 };

/* Appends a frame of [from, from + len) of plain to payload at `at`; returns its end. */
static size_t
frame(size_t at, size_t from, size_t len, int flags)
{
    ZSTD_CCtx *c = ZSTD_createCCtx();
    size_t n;

    assert_non_null(c);
    ZSTD_CCtx_setParameter(c, ZSTD_c_checksumFlag, flags & CHECKSUM ? 1 : 0);
    ZSTD_CCtx_setParameter(c, ZSTD_c_contentSizeFlag, flags & NO_SIZE ? 0 : 1);
    n = ZSTD_compress2(c, payload + at, sizeof payload - at, plain + from, len);
    ZSTD_freeCCtx(c);
    assert_false(ZSTD_isError(n));
    return at + n;
}

static size_t
skippable(size_t at)
{
    static const unsigned char bytes[] = {0x50, 0x2a, 0x4d, 0x18, 4, 0, 0, 0, 1, 2, 3, 4};

    memcpy(payload + at, bytes, sizeof bytes);
    return at + sizeof bytes;
}

static size_t
garbage(size_t at, size_t len)
{
    memset(payload + at, 0xaa, len);
    return at + len;
}

static void
assert_good(enum qm_compression type, size_t len)
{
    memset(out, 0, sizeof out);
    assert_int_equal(qm_codec_inflate(codec, type, payload, len, out, CLUSTER), 0);
    assert_memory_equal(out, plain, CLUSTER);
}

static void
assert_bad(enum qm_compression type, size_t len)
{
    assert_int_equal(qm_codec_inflate(codec, type, payload, len, out, CLUSTER), -1);
}

static void
zlib__raw_streams_of_any_window(void **state)
{
    (void)state;
    assert_good(QM_ZLIB, deflated(-12, CLUSTER, Z_FINISH));
    assert_good(QM_ZLIB, deflated(-15, CLUSTER, Z_FINISH));
}

static void
zlib__rest_of_the_last_sector_is_ignored(void **state)
{
    (void)state;
    assert_good(QM_ZLIB, garbage(deflated(-12, CLUSTER, Z_FINISH), 511));
}

static void
zlib__stream_without_its_end_is_good(void **state)
{
    (void)state;
    assert_good(QM_ZLIB, deflated(-12, CLUSTER, Z_SYNC_FLUSH));
}

static void
zlib__longer_stream_is_good_and_cut(void **state)
{
    (void)state;
    assert_good(QM_ZLIB, deflated(-12, CLUSTER + 10, Z_FINISH));
}

static void
zlib__shorter_stream_is_bad(void **state)
{
    size_t len;

    (void)state;
    assert_bad(QM_ZLIB, deflated(-12, CLUSTER - 1, Z_FINISH));
    len = deflated(-12, CLUSTER, Z_FINISH);
    assert_bad(QM_ZLIB, len / 2);
    assert_bad(QM_ZLIB, 0);
}

static void
zlib__headers_are_bad(void **state)
{
    (void)state;
    assert_bad(QM_ZLIB, deflated(15, CLUSTER, Z_FINISH));
    assert_bad(QM_ZLIB, deflated(31, CLUSTER, Z_FINISH));
}

static void
zlib__garbage_and_zeros_are_bad(void **state)
{
    (void)state;
    assert_bad(QM_ZLIB, garbage(0, 4096));
    memset(payload, 0, 4096); /* a payload beyond the file's end reads so */
    assert_bad(QM_ZLIB, 4096);
}

static void
zlib__a_bad_cluster_does_not_spoil_the_next(void **state)
{
    (void)state;
    assert_bad(QM_ZLIB, garbage(0, 4096));
    assert_good(QM_ZLIB, deflated(-12, CLUSTER, Z_FINISH));
}

static void
zstd__one_frame(void **state)
{
    (void)state;
    assert_good(QM_ZSTD, frame(0, 0, CLUSTER, 0));
    assert_good(QM_ZSTD, frame(0, 0, CLUSTER, NO_SIZE));
    assert_good(QM_ZSTD, garbage(frame(0, 0, CLUSTER, 0), 511));
}

static void
zstd__several_frames(void **state)
{
    (void)state;
    assert_good(QM_ZSTD, frame(frame(0, 0, 30000, 0), 30000, CLUSTER - 30000, NO_SIZE));
    assert_good(QM_ZSTD, frame(frame(skippable(0), 0, 0, 0), 0, CLUSTER, 0));
}

static void
zstd__frame_that_exceeds_the_cluster_is_bad(void **state)
{
    (void)state;
    assert_bad(QM_ZSTD, frame(0, 0, CLUSTER + 10, 0));
    assert_bad(QM_ZSTD, frame(0, 0, CLUSTER + 10, NO_SIZE));
    assert_bad(QM_ZSTD, frame(frame(0, 0, 30000, 0), 30000, CLUSTER - 30000 + 1, 0));
}

static void
zstd__too_little_is_bad(void **state)
{
    size_t len;

    (void)state;
    assert_bad(QM_ZSTD, frame(0, 0, CLUSTER - 1, 0));
    assert_bad(QM_ZSTD, garbage(frame(0, 0, CLUSTER - 1, 0), 511));
    len = frame(0, 0, CLUSTER, 0);
    assert_bad(QM_ZSTD, len - 1);
    assert_bad(QM_ZSTD, 0);
    assert_bad(QM_ZSTD, skippable(0));
}

static void
zstd__checksum_is_verified(void **state)
{
    const size_t len = frame(0, 0, CLUSTER, CHECKSUM);

    (void)state;
    assert_good(QM_ZSTD, len);
    assert_bad(QM_ZSTD, len - 4);
    payload[len - 1] ^= 1;
    assert_bad(QM_ZSTD, len);
}

static void
codec__unknown_type_is_bad(void **state)
{
    (void)state;
    assert_bad((enum qm_compression)7, deflated(-12, CLUSTER, Z_FINISH));
}

static void
codec__areas_grow_and_stay_apart(void **state)
{
    unsigned char *a = qm_codec_scratch(codec, 100);
    unsigned char *b = qm_codec_cluster(codec, 100);

    (void)state;
    memset(a, 1, 100);
    memset(b, 2, 100);
    assert_int_equal(a[99], 1);
    assert_ptr_equal(qm_codec_scratch(codec, 50), a);
    a = qm_codec_scratch(codec, 1u << 20);
    memset(a, 3, 1u << 20);
    assert_int_equal(b[99], 2);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(zlib__raw_streams_of_any_window),
        cmocka_unit_test(zlib__rest_of_the_last_sector_is_ignored),
        cmocka_unit_test(zlib__stream_without_its_end_is_good),
        cmocka_unit_test(zlib__longer_stream_is_good_and_cut),
        cmocka_unit_test(zlib__shorter_stream_is_bad),
        cmocka_unit_test(zlib__headers_are_bad),
        cmocka_unit_test(zlib__garbage_and_zeros_are_bad),
        cmocka_unit_test(zlib__a_bad_cluster_does_not_spoil_the_next),
        cmocka_unit_test(zstd__one_frame),
        cmocka_unit_test(zstd__several_frames),
        cmocka_unit_test(zstd__frame_that_exceeds_the_cluster_is_bad),
        cmocka_unit_test(zstd__too_little_is_bad),
        cmocka_unit_test(zstd__checksum_is_verified),
        cmocka_unit_test(codec__unknown_type_is_bad),
        cmocka_unit_test(codec__areas_grow_and_stay_apart),
    };

    return cmocka_run_group_tests(tests, set_up, tear_down);
}
