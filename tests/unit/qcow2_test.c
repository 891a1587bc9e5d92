/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_test.c - opening a qcow2 image and walking its tables.
 *
 * The images are in memory and made here, entry by entry.
 */
#include "tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

#define ASSERT_EXTENT(e, k, l, placed, at)                                                         \
    do {                                                                                           \
        assert_int_equal((e).kind, k);                                                             \
        assert_int_equal((e).len, l);                                                              \
        assert_int_equal((e).has_host, placed);                                                    \
        assert_int_equal((e).host.h, at);                                                          \
    } while (0)

/* ---- the walk ---- */

static void
walk__missing_tables_are_one_extent(void **state)
{
    const uint64_t span = 512ull << 20, size = 1ull << 44; /* 32768 L1 entries, many slices */
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, size);
    qm_tables_set_l1(&f, 0, 1); /* reserved bits name no table */
    qm_tables_set_l1(&f, 20001, QCOW2_COPIED | 0x80000);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 5);
    ASSERT_EXTENT(e, QM_ABSENT, 20001 * span - 5, false, 0);
    e = qm_tables_next(&f,
                       20001 * span + 7); /* an empty table, and what comes behind costs no more */
    ASSERT_EXTENT(e, QM_ABSENT, size - 20001 * span - 7, false, 0);
    e = qm_tables_next(&f, size - 1);
    ASSERT_EXTENT(e, QM_ABSENT, 1, false, 0);
    qm_tables_end(&f);
}

static void
walk__a_single_table_is_never_overlooked(void **state)
{
    const uint64_t span = 512ull << 20;
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1200 * span);
    qm_tables_open(&f);
    for (uint64_t i = 1; i < 1200; i += i < 40 || (i > 500 && i < 530) ? 1 : 13) {
        qm_tables_set_l1(&f, i, 0x20000);
        qm_tables_set_l2(&f, 0x20000, 0, 0x50000);
        qm_image_forget(&f.q->img);
        e = qm_tables_next(&f, i / 3 * span);
        ASSERT_EXTENT(e, QM_ABSENT, (i - i / 3) * span, false, 0);
        e = qm_tables_next(&f, i * span);
        ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
        qm_tables_set_l1(&f, i, 0);
    }
    qm_tables_end(&f);
}

static void
walk__two_entries_for_one_cluster_stay_apart(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    qm_tables_set_l1(&f, 0, 0x20000);
    qm_tables_set_l2(&f, 0x20000, 0, 0x50000);
    qm_tables_set_l2(&f, 0x20000, 1, 0x50000);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    e = qm_tables_next(&f, 0x10000);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    qm_tables_end(&f);
}

static void
walk__answers_stop_where_the_question_does(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1ull << 40);
    qm_tables_open(&f);
    for (unsigned i = 0; i < 2; i++) { /* from the table, then from what is remembered */
        assert_int_equal(qm_image_next(&f.q->img, qm_guest(70000), 3, &e, &f.err), 0);
        ASSERT_EXTENT(e, QM_ABSENT, 3, false, 0);
    }
    qm_tables_end(&f);
}

static void
walk__adjacent_clusters_join_across_slices(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 512ull << 20);
    qm_tables_set_l1(&f, 0, 0x20000);
    for (uint64_t i = 100; i < 2000; i++) /* slices hold 512 entries */
        qm_tables_set_l2(&f, 0x20000, i, QCOW2_COPIED | (0x100000 + i * 0x10000));
    qm_tables_set_l2(&f, 0x20000, 2000, 0x50000);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_ABSENT, 100 * 0x10000, false, 0);
    e = qm_tables_next(&f, 100 * 0x10000 + 77);
    ASSERT_EXTENT(e, QM_DATA, 1900 * 0x10000 - 77, true, 0x100000 + 100 * 0x10000 + 77);
    e = qm_tables_next(&f, 2000 * 0x10000);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    e = qm_tables_next(&f, 2001 * 0x10000);
    ASSERT_EXTENT(e, QM_ABSENT, (8192 - 2001) * 0x10000ull, false, 0);
    qm_tables_end(&f);
}

static void
walk__zeros_with_and_without_a_place_stay_apart(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 12, false, 8 << 12);
    qm_tables_set_l1(&f, 0, 0x2000);
    qm_tables_set_l2(&f, 0x2000, 0, 1);
    qm_tables_set_l2(&f, 0x2000, 1, QCOW2_COPIED | 1); /* COPIED means nothing here */
    qm_tables_set_l2(&f, 0x2000, 2, 0x5001);
    qm_tables_set_l2(&f, 0x2000, 3, 0x6001);
    qm_tables_set_l2(&f, 0x2000, 4, 0x7000);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_ZERO, 0x2000, false, 0);
    e = qm_tables_next(&f, 0x2000);
    ASSERT_EXTENT(e, QM_ZERO, 0x2000, true, 0x5000);
    e = qm_tables_next(&f, 0x4000);
    ASSERT_EXTENT(e, QM_DATA, 0x1000, true, 0x7000);
    qm_tables_end(&f);
}

static void
walk__reserved_bits_do_not_matter(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    qm_tables_set_l1(&f, 0, 0x7f000000000201ff);
    qm_tables_set_l2(&f, 0x20000, 0, 0xbf000000000501fe);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    qm_tables_end(&f);
}

static void
walk__tables_and_data_past_the_end_read_as_zeros(void **state)
{
    struct qm_tables f;
    struct qm_extent e;
    char buf[512];

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1ull << 30);
    qm_tables_set_l1(&f, 0, 0x20000);
    qm_tables_set_l2(&f, 0x20000, 0, 1ull << 55);
    qm_tables_set_l1(&f, 1, 1ull << 50);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 512ull << 20);
    ASSERT_EXTENT(e, QM_ABSENT, 512ull << 20, false, 0);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 1ull << 55);
    memset(buf, 1, sizeof buf);
    e = qm_extent_part(&e, 1000, sizeof buf);
    assert_int_equal(qm_extent_read(&f.q->img, &e, NULL, buf, &f.err), 0);
    assert_int_equal(buf[0] | buf[511], 0);
    qm_tables_end(&f);
}

static void
walk__data_that_ends_with_the_file_is_padded(void **state)
{
    struct qm_tables f;
    struct qm_extent e;
    char buf[8];

    (void)state;
    qm_tables_make(&f, 3, 9, false, 512);
    qm_tables_set_l1(&f, 0, 1024);
    qm_tables_set_l2(&f, 1024, 0, 2048);
    qm_tables_put(&f, 2048, "abc", 3);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    e = qm_extent_part(&e, 0, sizeof buf);
    assert_int_equal(qm_extent_read(&f.q->img, &e, NULL, buf, &f.err), 0);
    assert_memory_equal(buf, "abc\0\0\0\0", 8);
    qm_tables_end(&f);
}

static void
walk__a_bad_entry_fails_only_its_own_cluster(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 2, 16, false, 1 << 20);
    qm_tables_set_l1(&f, 0, 0x20000);
    qm_tables_set_l2(&f, 0x20000, 0, 0x50000);
    qm_tables_set_l2(&f, 0x20000, 1, 0x60001); /* would continue, but version 2 has no zero flag */
    qm_tables_set_l2(&f, 0x20000, 2, 0x70200); /* not aligned */
    qm_tables_set_l2(&f, 0x20000, 3, 0x80000);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    assert_int_equal(qm_tables_try_next(&f, 0x10000, &e), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_non_null(strstr(f.err.what, "version 2"));
    assert_non_null(strstr(f.err.what, "0x10000"));
    assert_int_equal(f.err.off, 0x20008);
    assert_string_equal(f.err.file, f.path);
    assert_int_equal(qm_tables_try_next(&f, 0x2ffff, &e), -1);
    assert_non_null(strstr(f.err.what, "aligned"));
    e = qm_tables_next(&f, 0x30000);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x80000);
    qm_tables_end(&f);
}

static void
walk__a_bad_table_fails_only_its_own_range(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 3ull << 29);
    qm_tables_set_l1(&f, 1, 0x20200);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_ABSENT, 1 << 29, false, 0);
    assert_int_equal(qm_tables_try_next(&f, 1 << 29, &e), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_int_equal(f.err.off, f.l1_off + 8);
    e = qm_tables_next(&f, 2ull << 29);
    ASSERT_EXTENT(e, QM_ABSENT, 1 << 29, false, 0);
    qm_tables_end(&f);
}

static void
walk__subclusters_are_answered_one_by_one(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, true, 1 << 20); /* subclusters of 2 KiB */
    qm_tables_set_l1(&f, 0, 0x20000);
    qm_tables_set_l2(&f, 0x20000, 0, 0x50000);
    qm_tables_put64(&f, 0x20008, 0xff0000000000ffff); /* 16 data, 8 not there, 8 zero */
    qm_tables_set_l2(&f, 0x20000, 1, 0x60000);
    qm_tables_put64(&f, 0x20018, 0xffffffff00000000); /* zero, adjacent */
    qm_tables_put64(&f, 0x20028, 0xffull << 32);      /* no cluster: zero, then not there */
    qm_tables_open(&f);
    e = qm_tables_next(&f, 100);
    ASSERT_EXTENT(e, QM_DATA, 0x8000 - 100, true, 0x50000 + 100);
    e = qm_tables_next(&f, 0x8000);
    ASSERT_EXTENT(e, QM_ABSENT, 0x4000, true, 0x58000);
    e = qm_tables_next(&f, 0xc000);
    ASSERT_EXTENT(e, QM_ZERO, 0x14000, true, 0x5c000);
    e = qm_tables_next(&f, 0x20000);
    ASSERT_EXTENT(e, QM_ZERO, 0x4000, false, 0);
    e = qm_tables_next(&f, 0x24000);
    ASSERT_EXTENT(e, QM_ABSENT, 0x100000 - 0x24000, false, 0);
    qm_tables_end(&f);
}

static void
walk__a_bad_bitmap_spoils_the_whole_cluster(void **state)
{
    struct qm_tables f;
    struct qm_extent e;

    (void)state;
    qm_tables_make(&f, 3, 16, true, 1 << 20);
    qm_tables_set_l1(&f, 0, 0x20000);
    qm_tables_set_l2(&f, 0x20000, 1, 0x60000);
    qm_tables_put64(&f, 0x20018, 1ull << 63 | 1u << 31);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 0);
    ASSERT_EXTENT(e, QM_ABSENT, 0x10000, false, 0);
    assert_int_equal(qm_tables_try_next(&f, 0x10000, &e), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    qm_tables_end(&f);
}

static size_t
deflated(unsigned char *out, size_t room, const void *src, size_t len)
{
    z_stream z = {0};

    assert_int_equal(deflateInit2(&z, 6, Z_DEFLATED, -12, 9, Z_DEFAULT_STRATEGY), Z_OK);
    z.next_in = (Bytef *)(uintptr_t)src;
    z.avail_in = (uInt)len;
    z.next_out = out;
    z.avail_out = (uInt)room;
    assert_int_equal(deflate(&z, Z_FINISH), Z_STREAM_END);
    deflateEnd(&z);
    return z.total_out;
}

static void
compressed__clusters_are_one_extent_each(void **state)
{
    unsigned char plain[4096], payload[8192];
    struct qm_codec *codec = qm_codec_new();
    struct qm_extent e, part;
    char buf[4096];
    struct qm_tables f;
    uint64_t more;
    size_t len;

    (void)state;
    for (unsigned i = 0; i < sizeof plain; i++)
        plain[i] = (unsigned char)(i / 5);
    len = deflated(payload, sizeof payload, plain, sizeof plain);
    qm_tables_make(&f, 3, 12, false, 1 << 20);
    qm_tables_set_l1(&f, 0, 0x2000);
    more = (0x1fd + len - 1) / 512;
    qm_tables_set_l2(&f, 0x2000, 0, QCOW2_COMPRESSED | more << 58 | 0x51fd);
    qm_tables_set_l2(&f, 0x2000, 1, QCOW2_COMPRESSED | more << 58 | 0x51fd);
    qm_tables_put(&f, 0x51fd, payload, len);
    qm_tables_open(&f);
    e = qm_tables_next(&f, 1000);
    assert_true(e.kind == QM_COMPRESSED && e.len == 3096 && e.skip == 1000);
    assert_int_equal(e.host.h, 0x51fd);
    assert_int_equal(e.payload_len, (more + 1) * 512 - 0x1fd);
    part = qm_extent_part(&e, 96, 1000);
    assert_int_equal(qm_extent_read(&f.q->img, &part, codec, buf, &f.err), 0);
    assert_memory_equal(buf, plain + 1096, 1000);
    e = qm_tables_next(&f, 4096);
    assert_true(e.kind == QM_COMPRESSED && e.len == 4096 && e.skip == 0);
    assert_int_equal(qm_extent_read(&f.q->img, &e, codec, buf, &f.err), 0);
    assert_memory_equal(buf, plain, 4096);

    qm_tables_put(&f, 0x51fd, "\xff\xff\xff", 3);
    assert_int_equal(qm_extent_read(&f.q->img, &e, codec, buf, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_int_equal(f.err.off, 0x51fd);
    assert_non_null(strstr(f.err.what, "0x1000 "));
    qm_codec_free(codec);
    qm_tables_end(&f);
}

/* ---- open, reload ---- */

static void
open__file_shorter_than_its_header_area(void **state)
{
    struct qm_tables f;

    (void)state;
    qm_tables_make(&f, 3, 21, false, 1 << 20);
    assert_int_equal(ftruncate(f.fd, 112), 0);
    qm_tables_open(&f);
    assert_int_equal(qm_tables_next(&f, 0).len, 1 << 20); /* the L1 is beyond the end, too */
    qm_tables_end(&f);
}

static void
open__what_we_cannot_read_opens_but_says_so(void **state)
{
    struct qm_tables f;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    qm_tables_put64(&f, 72, QCOW2_INCOMPAT_DATA_FILE);
    qm_tables_open(&f);
    assert_int_equal(qm_qcow2_can_read(f.q, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_UNSUPPORTED);
    assert_non_null(strstr(f.err.what, "data file"));
    qm_image_close(&f.q->img);
    qm_tables_put64(&f, 72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    qm_tables_open(&f);
    assert_int_equal(qm_qcow2_can_read(f.q, &f.err), 0); /* these hinder writers only */
    qm_tables_end(&f);
}

static void
reload__sees_the_new_header_and_new_tables(void **state)
{
    struct qm_tables f;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    qm_tables_open(&f);
    assert_int_equal(qm_tables_next(&f, 0).kind, QM_ABSENT);
    qm_tables_set_l1(&f, 0, 0x20000);
    qm_tables_set_l2(&f, 0x20000, 0, 0x50000);
    qm_image_forget(&f.q->img);
    assert_int_equal(qm_tables_next(&f, 0).kind, QM_DATA);

    qm_tables_set_l2(&f, 0x20000, 0, 0x60000);
    qm_tables_put64(&f, 24, 2 << 20);
    qm_tables_put64(&f, 8, 0x200);
    qm_tables_put(&f, 16, "\0\0\0\4", 4);
    qm_tables_put(&f, 0x200, "base", 4);
    assert_int_equal(qm_qcow2_reload(f.q, &f.err), 0);
    assert_int_equal(f.q->img.size, 2 << 20);
    assert_string_equal(f.q->img.backing_name, "base");
    assert_int_equal(qm_tables_next(&f, 0).host.h, 0x60000);

    qm_tables_put(&f, 0, "x", 1);
    assert_int_equal(qm_qcow2_reload(f.q, &f.err), -1);
    assert_string_equal(f.q->img.backing_name, "base"); /* keeps what it knew */
    qm_tables_end(&f);
}

static uint64_t
put_snapshot(struct qm_tables *f, uint64_t off, const char *id, const char *name, uint32_t extra)
{
    struct qcow2_disk_snapshot s = {0};
    const size_t id_len = strlen(id), name_len = strlen(name);

    be64_put(&s.l1_off, 0x70000);
    be32_put(&s.l1_entries, 3);
    be16_put(&s.id_len, (uint16_t)id_len);
    be16_put(&s.name_len, (uint16_t)name_len);
    be32_put(&s.date_sec, 1000);
    be64_put(&s.vm_clock, 77);
    be32_put(&s.vm_state, 5);
    be32_put(&s.extra_len, extra);
    qm_tables_put(f, off, &s, sizeof s);
    off += sizeof s;
    if (extra >= 16) {
        qm_tables_put64(f, off, 1ull << 33);
        qm_tables_put64(f, off + 8, 1 << 20);
    }
    qm_tables_put(f, off + extra, id, id_len);
    qm_tables_put(f, off + extra + id_len, name, name_len);
    return off + extra + id_len + name_len;
}

static void
snapshots__old_and_new_entries(void **state)
{
    struct qm_snapshots s;
    struct qm_tables f;
    uint64_t off;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    off = put_snapshot(&f, 0x50000, "1", "first", 0);
    off = put_snapshot(&f, qm_align_up(off, 8), "22", "", 24);
    qm_tables_put(&f, 60, "\0\0\0\2", 4);
    qm_tables_put64(&f, 64, 0x50000);
    qm_tables_open(&f);
    assert_int_equal(qm_qcow2_read_snapshots(f.q, &s, &f.err), 0);
    assert_int_equal(s.list.n, 2);
    assert_int_equal(s.table_len, off - 0x50000);
    assert_string_equal(s.list.at[0].name, "first");
    assert_int_equal(s.list.at[0].vm_state_size, 5);
    assert_int_equal(s.list.at[0].disk_size, 0);
    assert_string_equal(s.list.at[1].id, "22");
    assert_int_equal(s.list.at[1].vm_state_size, 1ull << 33);
    assert_int_equal(s.list.at[1].disk_size, 1 << 20);
    assert_int_equal(s.list.at[1].l1_entries, 3);
    assert_int_equal(s.list.at[1].vm_clock_nsec, 77);
    qm_snapshots_release(&s);
    qm_tables_end(&f);
}

static void
snapshots__a_bad_table_closes_the_image_except_to_check(void **state)
{
    struct qm_snapshots s;
    struct qm_tables f;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    put_snapshot(&f, 0x50000, "1", "first", 1025);
    qm_tables_put(&f, 60, "\0\0\0\1", 4);
    qm_tables_put64(&f, 64, 0x50000);
    assert_int_equal(qm_tables_open_flags(&f, QCOW2_DECODE_STRICT), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_int_equal(qm_tables_open_flags(&f, QCOW2_DECODE_FOR_CHECK), 0);
    assert_int_equal(qm_qcow2_read_snapshots(f.q, &s, &f.err), -1);
    qm_snapshots_release(&s);
    qm_tables_end(&f);
}

static void
snapshots__absurd_numbers_cost_nothing(void **state)
{
    struct qm_snapshots s;
    struct qm_tables f;

    (void)state;
    qm_tables_make(&f, 3, 16, false, 1 << 20);
    qm_tables_put(&f, 60, "\xff\xff\xff\xff", 4);
    qm_tables_put64(&f, 64, UINT64_MAX);
    assert_int_equal(qm_tables_open_flags(&f, QCOW2_DECODE_FOR_CHECK), 0);
    assert_int_equal(qm_qcow2_read_snapshots(f.q, &s, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    qm_snapshots_release(&s);
    qm_tables_end(&f);
}

static ssize_t
count_reads(enum qm_io_call call, const char *path, uint64_t off, size_t len, void *opaque)
{
    (void)path;
    (void)off;
    *(unsigned *)opaque += call == QM_IO_CALL_READ;
    return (ssize_t)len;
}

/* What a sweep over sparse tables reads: the L1 once, of each table its first slice, the rest in one piece, and
 * the second slice with something in it. */
static void
walk__a_sparse_table_is_read_once(void **state)
{
    const uint64_t span = 512ull << 20, n_tables = 10;
    struct qm_tables f;
    unsigned reads = 0;

    (void)state;
    qm_tables_make(&f, 3, 16, false, n_tables * span);
    for (uint64_t i = 0; i < n_tables; i++) {
        qm_tables_set_l1(&f, i, (i + 2) << 16);
        qm_tables_set_l2(&f, (i + 2) << 16, 3000, 0x500000);
        qm_tables_set_l2(&f, (i + 2) << 16, 8191, 0x600000);
    }
    qm_tables_open(&f);
    qm_io_set_call_hook(count_reads, &reads);
    for (uint64_t at = 0; at < n_tables * span;)
        at += qm_tables_next(&f, at).len;
    qm_io_set_call_hook(NULL, NULL);
    assert_int_equal(reads, 1 + 3 * n_tables);
    qm_tables_end(&f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walk__missing_tables_are_one_extent),
        cmocka_unit_test(walk__a_single_table_is_never_overlooked),
        cmocka_unit_test(walk__two_entries_for_one_cluster_stay_apart),
        cmocka_unit_test(walk__answers_stop_where_the_question_does),
        cmocka_unit_test(walk__adjacent_clusters_join_across_slices),
        cmocka_unit_test(walk__zeros_with_and_without_a_place_stay_apart),
        cmocka_unit_test(walk__reserved_bits_do_not_matter),
        cmocka_unit_test(walk__tables_and_data_past_the_end_read_as_zeros),
        cmocka_unit_test(walk__data_that_ends_with_the_file_is_padded),
        cmocka_unit_test(walk__a_bad_entry_fails_only_its_own_cluster),
        cmocka_unit_test(walk__a_bad_table_fails_only_its_own_range),
        cmocka_unit_test(walk__subclusters_are_answered_one_by_one),
        cmocka_unit_test(walk__a_bad_bitmap_spoils_the_whole_cluster),
        cmocka_unit_test(compressed__clusters_are_one_extent_each),
        cmocka_unit_test(open__file_shorter_than_its_header_area),
        cmocka_unit_test(open__what_we_cannot_read_opens_but_says_so),
        cmocka_unit_test(reload__sees_the_new_header_and_new_tables),
        cmocka_unit_test(snapshots__old_and_new_entries),
        cmocka_unit_test(snapshots__a_bad_table_closes_the_image_except_to_check),
        cmocka_unit_test(snapshots__absurd_numbers_cost_nothing),
        cmocka_unit_test(walk__a_sparse_table_is_read_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
