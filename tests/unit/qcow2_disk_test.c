/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_disk_test.c - headers: bytes to host form and back, without a file.
 */
#include "qcow2_disk.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>

#include <cmocka.h>

#define AREA 65536u

/* A good version 3 header of a 1 GiB image with 64 KiB clusters. */
static void
make_header(unsigned char *buf)
{
    struct qcow2_disk_header h = {0};

    memset(buf, 0, AREA);
    be32_put(&h.magic, QCOW2_MAGIC);
    be32_put(&h.version, 3);
    be32_put(&h.cluster_bits, 16);
    be64_put(&h.size, 1ull << 30);
    be32_put(&h.l1_entries, 2);
    be64_put(&h.l1_off, 0x30000);
    be64_put(&h.reftable_off, 0x10000);
    be32_put(&h.reftable_clusters, 1);
    be32_put(&h.refcount_order, 4);
    be32_put(&h.header_len, 112);
    memcpy(buf, &h, sizeof h);
}

static void
poke(unsigned char *buf, size_t off, unsigned width, uint64_t value)
{
    while (width--) {
        buf[off + width] = (unsigned char)value;
        value >>= 8;
    }
}

static uint32_t
put_ext(unsigned char *buf, uint32_t off, uint32_t type, const void *data, uint32_t len)
{
    poke(buf, off, 4, type);
    poke(buf, off + 4, 4, len);
    memcpy(buf + off + 8, data, len);
    return off + 8 + (uint32_t)qm_align_up(len, 8);
}

static int
decode(const unsigned char *buf, unsigned flags, struct qcow2_header *h, struct qmeld_error *err)
{
    memset(err, 0, sizeof *err);
    return qcow2_header_decode("t.qcow2", buf, AREA, flags, h, err);
}

/* Decodes what must be good. */
static struct qcow2_header
decode_good(const unsigned char *buf)
{
    struct qmeld_error err;
    struct qcow2_header h;

    if (decode(buf, QCOW2_DECODE_STRICT, &h, &err) < 0)
        fail_msg("refused: %s", err.what);
    return h;
}

static void
header__a_good_one_decodes(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 24, 8, (1ull << 30) - 1);
    h = decode_good(buf);
    assert_int_equal(h.version, 3);
    assert_int_equal(h.size, (1ull << 30) - 512); /* whole sectors, as QEMU counts */
    assert_int_equal(h.l1_off, 0x30000);
    assert_int_equal(h.refcount_order, 4);
    assert_null(h.backing_name);
    assert_int_equal(h.exts.n, 0);
    assert_int_equal(h.ext_end, 112);
    qcow2_header_release(&h);
}

struct defect {
    const char *what;
    size_t off;
    unsigned width;
    uint64_t value;
    enum qmeld_code code;
};

static const struct defect defects[] = {
    {"magic", 0, 4, 0x514649fa, QMELD_CORRUPT},
    {"version 1", 4, 4, 1, QMELD_UNSUPPORTED},
    {"version 4", 4, 4, 4, QMELD_UNSUPPORTED},
    {"cluster of 256 bytes", 20, 4, 8, QMELD_UNSUPPORTED},
    {"cluster of 4 MiB", 20, 4, 22, QMELD_UNSUPPORTED},
    {"cluster bits wrap", 20, 4, 0x80000010, QMELD_UNSUPPORTED},
    {"header of 103 bytes", 100, 4, 103, QMELD_CORRUPT},
    {"header larger than a cluster", 100, 4, 65537, QMELD_CORRUPT},
    {"backing name outside", 8, 8, 65537, QMELD_CORRUPT},
    {"unknown compression", 104, 1, 2, QMELD_UNSUPPORTED},
    {"zstd without its bit", 104, 1, 1, QMELD_CORRUPT},
    {"compression bit without a type", 72, 8, QCOW2_INCOMPAT_COMPRESSION, QMELD_CORRUPT},
    {"unknown feature", 72, 8, 1ull << 5, QMELD_UNSUPPORTED},
    {"unknown feature, last bit", 72, 8, 1ull << 63, QMELD_UNSUPPORTED},
    {"refcounts of 128 bits", 96, 4, 7, QMELD_CORRUPT},
    {"no refcount table", 56, 4, 0, QMELD_CORRUPT},
    {"refcount table above 8 MiB", 56, 4, 129, QMELD_CORRUPT},
    {"refcount table unaligned", 48, 8, 0x10200, QMELD_CORRUPT},
    {"refcount table at the end of the world", 48, 8, 0x7fffffffffff0000, QMELD_CORRUPT},
    {"refcount table behind it", 48, 8, 0xffffffffffff0000, QMELD_CORRUPT},
    {"65537 snapshots", 60, 4, 65537, QMELD_CORRUPT},
    {"snapshot table unaligned", 64, 8, 0x200, QMELD_CORRUPT},
    {"L1 above 32 MiB", 36, 4, (4u << 20) + 1, QMELD_CORRUPT},
    {"L1 unaligned", 40, 8, 0x30200, QMELD_CORRUPT},
    {"L1 too small", 36, 4, 1, QMELD_CORRUPT},
    {"size above 2^63", 24, 8, UINT64_MAX, QMELD_CORRUPT},
    {"size above the L1", 24, 8, (1ull << 30) + 1, QMELD_CORRUPT},
    {"unknown encryption", 32, 4, 3, QMELD_UNSUPPORTED},
    {"LUKS without a header", 32, 4, 2, QMELD_CORRUPT},
    {"raw data file that is not there", 88, 8, QCOW2_AUTOCLEAR_RAW_DATA, QMELD_CORRUPT},
    {"extension too long", 116, 4, AREA - 112 - 8 + 1, QMELD_CORRUPT},
    {"end marker too long", 116, 4, UINT32_MAX, QMELD_CORRUPT},
};

static void
header__each_defect_is_refused(void **state)
{
    static unsigned char buf[AREA];

    (void)state;
    for (size_t i = 0; i < sizeof defects / sizeof *defects; i++) {
        const struct defect *d = &defects[i];
        struct qmeld_error err;
        struct qcow2_header h;

        make_header(buf);
        poke(buf, d->off, d->width, d->value);
        if (decode(buf, QCOW2_DECODE_STRICT, &h, &err) == 0)
            fail_msg("%s: let through", d->what);
        if (err.code != d->code || strcmp(err.file, "t.qcow2") != 0)
            fail_msg("%s: code %d, file %s: %s", d->what, (int)err.code, err.file, err.what);
        assert_null(h.exts.at); /* *out holds nothing */
    }
}

static void
header__check_may_open_what_it_can_mend(void **state)
{
    static unsigned char buf[AREA];
    struct qmeld_error err;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 56, 4, 0);
    poke(buf, 60, 4, 7);
    poke(buf, 64, 8, 0x200);
    assert_int_equal(decode(buf, QCOW2_DECODE_FOR_CHECK, &h, &err), 0);
    assert_int_equal(h.n_snapshots, 7);
    qcow2_header_release(&h);
    poke(buf, 40, 8, 0x30200); /* the L1 still has to be right */
    assert_int_equal(decode(buf, QCOW2_DECODE_FOR_CHECK, &h, &err), -1);
}

static void
header__version_2_has_no_feature_words(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 4, 4, 2);
    memset(buf + 72, 0, 40);
    put_ext(buf, 72, QCOW2_EXT_BACKING_FORMAT, "raw", 3);
    h = decode_good(buf);
    assert_int_equal(h.incompatible, 0);
    assert_int_equal(h.refcount_order, 4);
    assert_int_equal(h.header_len, 72);
    assert_string_equal(h.backing_format, "raw");
    qcow2_header_release(&h);
}

static void
header__tolerates_what_qemu_tolerates(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 100, 4, 105);  /* no multiple of 8 */
    poke(buf, 80, 8, ~1ull); /* unknown compatible bits */
    poke(buf, 88, 8, 0xf0);  /* unknown autoclear bits */
    poke(buf, 72, 8, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    h = decode_good(buf);
    assert_int_equal(h.header_len, 105);
    assert_int_equal(h.autoclear, 0xf0);
    qcow2_header_release(&h);
}

static void
header__backing_name_ends_at_its_nul(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 8, 8, 0x200);
    poke(buf, 16, 4, 9);
    memcpy(buf + 0x200, "base\0evil", 9);
    h = decode_good(buf);
    assert_string_equal(h.backing_name, "base");
    qcow2_header_release(&h);
    poke(buf, 16, 4, 0); /* a place without a length: no backing file */
    h = decode_good(buf);
    assert_null(h.backing_name);
    qcow2_header_release(&h);
}

static void
header__backing_name_has_room_for_1023_bytes(void **state)
{
    static unsigned char buf[AREA];
    struct qmeld_error err;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 8, 8, AREA - 1023);
    poke(buf, 16, 4, 1023);
    memset(buf + AREA - 1023, 'x', 1023);
    h = decode_good(buf);
    assert_int_equal(strlen(h.backing_name), 1023);
    qcow2_header_release(&h);
    poke(buf, 16, 4, 1024);
    assert_int_equal(decode(buf, 0, &h, &err), -1);
    poke(buf, 8, 8, AREA - 1022);
    poke(buf, 16, 4, 1023); /* leaves the cluster */
    assert_int_equal(decode(buf, 0, &h, &err), -1);
}

static void
header__extensions_are_listed_in_file_order(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_header h;
    uint32_t at = 112;

    (void)state;
    make_header(buf);
    at = put_ext(buf, at, 0x11111111, "one", 3);
    at = put_ext(buf, at, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
    at = put_ext(buf, at, 0x22222222, "", 0);
    h = decode_good(buf);
    assert_int_equal(h.exts.n, 3);
    assert_int_equal(h.exts.at[0].type, 0x11111111);
    assert_int_equal(h.exts.at[0].off, 112);
    assert_int_equal(h.exts.at[0].len, 3);
    assert_int_equal(h.exts.at[1].off, 128);
    assert_int_equal(h.exts.at[2].len, 0);
    assert_int_equal(h.ext_end, at);
    assert_string_equal(h.backing_format, "qcow2");
    qcow2_header_release(&h);
}

static void
header__extensions_end_where_the_backing_name_begins(void **state)
{
    static unsigned char buf[AREA];
    struct qmeld_error err;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    put_ext(buf, 112, 0x11111111, "12345678", 8);
    poke(buf, 8, 8, 128);
    poke(buf, 16, 4, 1);
    buf[128] = 'b';
    h = decode_good(buf);
    assert_int_equal(h.ext_end, 128); /* no end marker: none fits */
    assert_string_equal(h.backing_name, "b");
    qcow2_header_release(&h);
    poke(buf, 8, 8, 127);
    assert_int_equal(decode(buf, 0, &h, &err), -1);
}

static void
header__backing_format_of_16_bytes_is_too_long(void **state)
{
    static unsigned char buf[AREA];
    struct qmeld_error err;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    put_ext(buf, 112, QCOW2_EXT_BACKING_FORMAT, "0123456789abcdef", 16);
    assert_int_equal(decode(buf, 0, &h, &err), -1);
    poke(buf, 116, 4, 15);
    h = decode_good(buf);
    assert_string_equal(h.backing_format, "0123456789abcde");
    qcow2_header_release(&h);
}

static void
header__floods_of_extensions_are_refused(void **state)
{
    static unsigned char buf[AREA];
    struct qmeld_error err;
    struct qcow2_header h;
    uint32_t at = 112;

    (void)state;
    make_header(buf);
    for (unsigned i = 0; i < QCOW2_MAX_EXTENSIONS; i++)
        at = put_ext(buf, at, 0x11111111, "", 0);
    h = decode_good(buf);
    assert_int_equal(h.exts.n, QCOW2_MAX_EXTENSIONS);
    qcow2_header_release(&h);
    put_ext(buf, at, 0x11111111, "", 0);
    assert_int_equal(decode(buf, 0, &h, &err), -1);
    assert_int_equal(err.code, QMELD_UNSUPPORTED);
}

static void
header__bitmaps_count_only_with_their_autoclear_bit(void **state)
{
    static unsigned char buf[AREA];
    unsigned char ext[24] = {0};
    struct qmeld_error err;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(ext, 0, 4, 2);
    poke(ext, 8, 8, 64);
    poke(ext, 16, 8, 0x50000);
    put_ext(buf, 112, QCOW2_EXT_BITMAPS, ext, sizeof ext);
    h = decode_good(buf);
    assert_false(h.has_bitmaps);
    qcow2_header_release(&h);
    poke(buf, 88, 8, QCOW2_AUTOCLEAR_BITMAPS);
    h = decode_good(buf);
    assert_true(h.has_bitmaps);
    assert_int_equal(h.n_bitmaps, 2);
    assert_int_equal(h.bitmap_dir_off, 0x50000);
    assert_int_equal(h.bitmap_dir_len, 64);
    qcow2_header_release(&h);
    poke(buf, 112 + 8 + 4, 4, 1); /* reserved */
    assert_int_equal(decode(buf, 0, &h, &err), -1);
    poke(buf, 112 + 8 + 4, 4, 0);
    poke(buf, 112 + 8 + 16, 8, 0x50200); /* unaligned */
    assert_int_equal(decode(buf, 0, &h, &err), -1);
}

static void
header__encrypted_and_split_images_decode(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 32, 4, 1);
    poke(buf, 72, 8, QCOW2_INCOMPAT_DATA_FILE);
    poke(buf, 88, 8, QCOW2_AUTOCLEAR_RAW_DATA);
    put_ext(buf, 112, QCOW2_EXT_DATA_FILE, "d.raw", 5);
    h = decode_good(buf);
    assert_int_equal(h.crypt_method, 1);
    assert_string_equal(h.data_file, "d.raw");
    qcow2_header_release(&h);
}

static void
header__unknown_feature_has_the_name_the_image_gives(void **state)
{
    static unsigned char buf[AREA];
    unsigned char table[96] = {0};
    struct qmeld_error err;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    table[0] = 1; /* a compatible feature of the same number is another one */
    table[1] = 40;
    strcpy((char *)table + 2, "wrong");
    table[48] = 0;
    table[49] = 40;
    strcpy((char *)table + 50, "time\x1btravel");
    put_ext(buf, 112, QCOW2_EXT_FEATURES, table, sizeof table);
    poke(buf, 72, 8, 1ull << 40 | 1ull << 41);
    assert_int_equal(decode(buf, 0, &h, &err), -1);
    assert_non_null(strstr(err.what, "(time?travel, bit 41)"));
}

static void
header__encode_is_the_inverse_and_keeps_the_rest(void **state)
{
    static unsigned char buf[AREA];
    struct qcow2_disk_header out;
    struct qcow2_header h;

    (void)state;
    make_header(buf);
    poke(buf, 72, 8, QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_DIRTY);
    poke(buf, 80, 8, 5);
    poke(buf, 88, 8, 8);
    buf[104] = 1;
    h = decode_good(buf);
    memset(&out, 0xee, sizeof out);
    memset(out.pad, 0, sizeof out.pad);
    qcow2_header_encode(&h, &out);
    assert_memory_equal(&out, buf, sizeof out);

    h.header_len = 104; /* an extension stands where the compression type would */
    out.compression = 0xee;
    qcow2_header_encode(&h, &out);
    assert_int_equal(out.compression, 0xee);
    h.version = 2;
    memset(&out, 0xee, sizeof out);
    qcow2_header_encode(&h, &out);
    assert_int_equal(out.incompatible.b[0], 0xee);
    qcow2_header_release(&h);
}

static void
header__area_is_the_first_cluster(void **state)
{
    static unsigned char buf[AREA];

    (void)state;
    make_header(buf);
    assert_int_equal(qcow2_header_area(buf, 24), AREA);
    assert_int_equal(qcow2_header_area(buf, 23), 512);
    poke(buf, 20, 4, 21);
    assert_int_equal(qcow2_header_area(buf, 112), 2u << 20);
    poke(buf, 20, 4, 22);
    assert_int_equal(qcow2_header_area(buf, 112), 512);
    poke(buf, 0, 4, 0);
    poke(buf, 20, 4, 16);
    assert_int_equal(qcow2_header_area(buf, 112), 512);
}

/* The sanitizers are the judges here; what decodes must respect the limits. */
static void
header__random_damage_is_survived(void **state)
{
    static unsigned char good[AREA], buf[AREA];
    uint64_t seed = 88172645463325252ull;
    unsigned opened = 0;
    static const unsigned char feature[48] = "\0\5name";
    uint32_t at = 112;

    (void)state;
    make_header(good);
    at = put_ext(good, at, QCOW2_EXT_BACKING_FORMAT, "qcow2", 5);
    at = put_ext(good, at, QCOW2_EXT_FEATURES, feature, sizeof feature);
    put_ext(good, at, 0x12345678, "data", 4);
    poke(good, 8, 8, 512);
    poke(good, 16, 4, 10);
    memcpy(good + 512, "backing.fi", 10);
    for (unsigned i = 0; i < 20000; i++) {
        struct qmeld_error err;
        struct qcow2_header h;

        memcpy(buf, good, 1024);
        for (unsigned k = 0; k < 3; k++) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            buf[4 + (seed >> 8) % 196] = (unsigned char)seed;
        }
        if (qcow2_header_area(buf, 112) > AREA || decode(buf, i & 1, &h, &err) < 0)
            continue;
        opened++;
        assert_true(h.l1_entries <= QCOW2_MAX_L1_BYTES / 8);
        assert_true(h.refcount_order <= 6 && h.size <= QM_MAX_OFF);
        assert_true(h.ext_end <= AREA);
        QM_VEC_EACH (e, &h.exts)
            assert_true((uint64_t)e->off + 8 + e->len <= AREA);
        qcow2_header_release(&h);
    }
    assert_in_range(opened, 100, 19900);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(header__a_good_one_decodes),
        cmocka_unit_test(header__each_defect_is_refused),
        cmocka_unit_test(header__check_may_open_what_it_can_mend),
        cmocka_unit_test(header__version_2_has_no_feature_words),
        cmocka_unit_test(header__tolerates_what_qemu_tolerates),
        cmocka_unit_test(header__backing_name_ends_at_its_nul),
        cmocka_unit_test(header__backing_name_has_room_for_1023_bytes),
        cmocka_unit_test(header__extensions_are_listed_in_file_order),
        cmocka_unit_test(header__extensions_end_where_the_backing_name_begins),
        cmocka_unit_test(header__backing_format_of_16_bytes_is_too_long),
        cmocka_unit_test(header__floods_of_extensions_are_refused),
        cmocka_unit_test(header__bitmaps_count_only_with_their_autoclear_bit),
        cmocka_unit_test(header__encrypted_and_split_images_decode),
        cmocka_unit_test(header__unknown_feature_has_the_name_the_image_gives),
        cmocka_unit_test(header__encode_is_the_inverse_and_keeps_the_rest),
        cmocka_unit_test(header__area_is_the_first_cluster),
        cmocka_unit_test(header__random_damage_is_survived),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
