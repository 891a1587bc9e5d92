/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* luks_test.c - headers from strangers, and sectors under a key. */
#include "luks.h"

#include "addr.h"
#include "bytes.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define REGION (4096 + 8 * 131072u)

/* A header with slot 0 in use, as qemu-img makes them. */
static void
make(unsigned char *h)
{
    memset(h, 0, QM_LUKS_HEADER);
    memcpy(h, "LUKS\xba\xbe\0\1", 8);
    memcpy(h + 8, "aes", 3);
    memcpy(h + 40, "xts-plain64", 11);
    memcpy(h + 72, "sha256", 6);
    be32_put((be32 *)(h + 108), 32);
    be32_put((be32 *)(h + 164), 1000);
    for (unsigned i = 0; i < QM_LUKS_SLOTS; i++) {
        be32_put((be32 *)(h + 208 + 48 * i), i ? 0xdead : 0xac71f3);
        be32_put((be32 *)(h + 208 + 48 * i + 4), 1000);
        be32_put((be32 *)(h + 208 + 48 * i + 40), 8 + 256 * i);
        be32_put((be32 *)(h + 208 + 48 * i + 44), QM_LUKS_STRIPES);
    }
}

static void
refused(const unsigned char *h, uint64_t region, enum qmeld_code code, const char *part)
{
    struct qmeld_error err = {0};
    struct qm_luks l;

    assert_int_equal(qm_luks_decode("f", 65536, h, region, &l, &err), -1);
    assert_string_equal(qmeld_code_name(err.code), qmeld_code_name(code));
    if (!strstr(err.what, part))
        fail_msg("\"%s\" does not say \"%s\"", err.what, part);
}

static void
luks__takes_what_qemu_makes(void **state)
{
    unsigned char h[QM_LUKS_HEADER];
    struct qmeld_error err = {0};
    struct qm_luks l;

    (void)state;
    make(h);
    assert_int_equal(qm_luks_decode("f", 0, h, REGION, &l, &err), 0);
    assert_int_equal(l.kind.mode, QM_MODE_XTS);
    assert_int_equal(l.kind.ivgen, QM_IV_PLAIN64);
    assert_int_equal(qm_luks_material_len(&l), 128000);
    assert_true(l.slots[0].active && !l.slots[1].active);
    assert_int_equal(l.slots[0].material, 4096);
    memcpy(h + 40, "cbc-essiv:sha256", 17);
    assert_int_equal(qm_luks_decode("f", 0, h, REGION, &l, &err), 0);
    assert_int_equal(l.kind.ivgen, QM_IV_ESSIV);
}

static void
luks__refuses_by_name_what_is_not_done(void **state)
{
    static const struct {
        unsigned at;
        const char *text;
        enum qmeld_code code;
        const char *part;
    } list[] = {
        {0, "LUKX", QMELD_CORRUPT, "no LUKS header"},
        {6, "\0\2", QMELD_UNSUPPORTED, "version 2"},
        {8, "twofish", QMELD_UNSUPPORTED, "\"twofish\""},
        {8, "a\nb", QMELD_CORRUPT, "no text"},
        {8, "0123456789abcdef0123456789abcdef", QMELD_CORRUPT, "does not end"},
        {40, "0123456789abcdef0123456789abcdef", QMELD_CORRUPT, "does not end"},
        {72, "0123456789abcdef0123456789abcdef", QMELD_CORRUPT, "does not end"},
        {40, "xts-plain65", QMELD_UNSUPPORTED, "\"xts-plain65\""},
        {40, "xts\0plain64", QMELD_UNSUPPORTED, "\"xts\""},
        {40, "cbc-essiv:sha1\0\0", QMELD_UNSUPPORTED, "essiv:sha1"},
        {72, "whirlpool", QMELD_UNSUPPORTED, "\"whirlpool\""},
        {108, "\0\0\0\x30", QMELD_UNSUPPORTED, "48 bytes"},
        {108, "\xff\xff\xff\xff", QMELD_UNSUPPORTED, "4294967295 bytes"},
        {164, "\0\0\0\0", QMELD_CORRUPT, "no iterations"},
        {164, "\xff\xff\xff\xff", QMELD_UNSUPPORTED, "the limit is"},
        {208, "\0\0\0\0", QMELD_CORRUPT, "neither in use nor free"},
        {212, "\0\0\0\0", QMELD_CORRUPT, "no iterations"},
        {212, "\xff\xff\xff\xff", QMELD_UNSUPPORTED, "the limit is"},
        {248, "\0\0\0\0", QMELD_CORRUPT, "not in the"},
        {248, "\xff\xff\xff\xff", QMELD_CORRUPT, "not in the"},
        {252, "\xff\xff\xff\xff", QMELD_CORRUPT, "stripes"},
    };
    unsigned char h[QM_LUKS_HEADER];

    (void)state;
    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        size_t len = strlen(list[i].text);

        if (len < 4 && list[i].at >= 100)
            len = 4;
        if (list[i].at == 6)
            len = 2;
        if (list[i].at == 40 && len < 4)
            len = 11;
        make(h);
        memcpy(h + list[i].at, list[i].text, len);
        refused(h, REGION, list[i].code, list[i].part);
    }
    make(h);
    refused(h, 4096 + 127999, QMELD_CORRUPT, "not in the");
    refused(h, 591, QMELD_CORRUPT, "no LUKS header");
    be32_put((be32 *)(h + 208 + 48), 0xac71f3);
    be32_put((be32 *)(h + 208 + 48 + 40), 8 + 249);
    refused(h, REGION, QMELD_CORRUPT, "overlaps");
}

/* No crash, no bound left: what is accepted may be opened without surprise. */
static void
luks__random_bytes_are_judged(void **state)
{
    unsigned seed = 1, accepted = 0;

    (void)state;
    for (unsigned round = 0; round < 200000; round++) {
        unsigned char h[QM_LUKS_HEADER];
        struct qmeld_error err = {0};
        struct qm_luks l;

        make(h);
        for (unsigned n = 0; n < 1 + round % 4; n++) {
            seed = seed * 1103515245u + 12345u;
            h[seed / 65536 % (round % 2 ? QM_LUKS_HEADER : 260)] ^=
                (unsigned char)(1u << (seed >> 8) % 8);
        }
        if (qm_luks_decode("f", 0, h, REGION, &l, &err) < 0) {
            assert_true(err.code == QMELD_CORRUPT || err.code == QMELD_UNSUPPORTED);
            continue;
        }
        accepted++;
        for (unsigned i = 0; i < QM_LUKS_SLOTS; i++)
            if (l.slots[i].active) {
                assert_true(qm_inside(l.slots[i].material, qm_luks_material_len(&l), REGION));
                assert_true(l.slots[i].iterations <= QM_LUKS_MAX_WORK);
            }
        assert_true(qm_luks_material_len(&l) <= QM_LUKS_MATERIAL);
    }
    assert_true(accepted > 1000);
}

/* IEEE 1619-2007, XTS-AES-128 vector 4: 512 bytes, data unit 0. */
static void
luks__xts_is_that_of_the_standard(void **state)
{
    static const unsigned char key[32] = {0x27, 0x18, 0x28, 0x18, 0x28, 0x45, 0x90, 0x45,
                                          0x23, 0x53, 0x60, 0x28, 0x74, 0x71, 0x35, 0x26,
                                          0x31, 0x41, 0x59, 0x26, 0x53, 0x58, 0x97, 0x93,
                                          0x23, 0x84, 0x62, 0x64, 0x33, 0x83, 0x27, 0x95};
    static const unsigned char cipher[16] = {0x27, 0xa7, 0x47, 0x9b, 0xef, 0xa1, 0xd4, 0x76,
                                             0x48, 0x9f, 0x30, 0x8c, 0xd4, 0xcf, 0xa6, 0xe2};
    const struct qm_sectors_kind kind = {
        .mode = QM_MODE_XTS, .ivgen = QM_IV_PLAIN64, .key_len = 32};
    unsigned char buf[1024];
    struct qmeld_error err = {0};
    struct qm_sectors *s;

    (void)state;
    for (unsigned i = 0; i < sizeof buf; i++)
        buf[i] = (unsigned char)i;
    assert_int_equal(qm_sectors_new(&kind, key, "f", &s, &err), 0);
    assert_int_equal(qm_sectors_encrypt(s, 0, buf, sizeof buf, &err), 0);
    assert_memory_equal(buf, cipher, sizeof cipher);
    assert_memory_not_equal(buf + 512, buf, 512); /* another sector */
    assert_int_equal(qm_sectors_decrypt(s, 1, buf + 512, 512, &err), 0);
    assert_int_equal(qm_sectors_decrypt(s, 0, buf, 512, &err), 0);
    for (unsigned i = 0; i < sizeof buf; i++)
        assert_int_equal(buf[i], (unsigned char)i);
    qm_sectors_free(s);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(luks__takes_what_qemu_makes),
        cmocka_unit_test(luks__refuses_by_name_what_is_not_done),
        cmocka_unit_test(luks__random_bytes_are_judged),
        cmocka_unit_test(luks__xts_is_that_of_the_standard),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
