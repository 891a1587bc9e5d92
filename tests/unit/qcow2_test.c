/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_test.c - opening a qcow2 image and walking its tables.
 *
 * The images are in memory and made here, entry by entry.  The last tests compare the walk with the
 * slowest way there is: one entry after the other.
 */
#include "qcow2.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>
#include <zlib.h>

/* Every image here: the L1 table in cluster 1, L2 tables from cluster 2 on, data behind. */
struct fixture {
    int fd;
    char path[64];
    uint64_t cs;
    struct qcow2_geo geo;
    uint64_t l1_off;
    struct qm_qcow2 *q;
    struct qmeld_error err;
};

static void
put(struct fixture *f, uint64_t off, const void *bytes, size_t len)
{
    assert_int_equal(pwrite(f->fd, bytes, len, (off_t)off), len);
}

static void
put64(struct fixture *f, uint64_t off, uint64_t value)
{
    be64 raw;

    be64_put(&raw, value);
    put(f, off, &raw, sizeof raw);
}

static void
make(struct fixture *f, uint32_t version, uint32_t cluster_bits, bool extended, uint64_t size)
{
    struct qcow2_disk_header h = {0};
    const struct qcow2_header host = {.version = version,
                                      .cluster_bits = cluster_bits,
                                      .refcount_order = 4,
                                      .incompatible = extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0};

    memset(f, 0, sizeof *f);
    f->fd = memfd_create("qcow2_test", MFD_CLOEXEC);
    assert_true(f->fd >= 0);
    snprintf(f->path, sizeof f->path, "/proc/self/fd/%d", f->fd);
    f->geo = qcow2_geo_of(&host);
    f->cs = f->geo.cluster_size;
    f->l1_off = f->cs;
    be32_put(&h.magic, QCOW2_MAGIC);
    be32_put(&h.version, version);
    be32_put(&h.cluster_bits, cluster_bits);
    be64_put(&h.size, size);
    be32_put(&h.l1_entries, (uint32_t)qcow2_l1_needed(&f->geo, size));
    be64_put(&h.l1_off, f->l1_off);
    be64_put(&h.reftable_off, 1ull << 40); /* nobody looks at refcounts here */
    be32_put(&h.reftable_clusters, 1);
    if (version == 3) {
        be64_put(&h.incompatible, host.incompatible);
        be32_put(&h.refcount_order, 4);
        be32_put(&h.header_len, 112);
    }
    put(f, 0, &h, version == 3 ? sizeof h : QCOW2_V2_HEADER_LEN);
}

static void
set_l1(struct fixture *f, uint64_t idx, uint64_t entry)
{
    put64(f, f->l1_off + idx * 8, entry);
}

/* word0 of entry idx of the L2 table at table */
static void
set_l2(struct fixture *f, uint64_t table, uint64_t idx, uint64_t word0)
{
    put64(f, table + idx * f->geo.l2_entry_len, word0);
}

static int
open_flags(struct fixture *f, unsigned flags)
{
    struct qm_file *file;

    assert_int_equal(qm_file_open(f->path, &file, &f->err), 0);
    if (qm_qcow2_open(file, flags, &f->q, &f->err) == 0)
        return 0;
    qm_file_close(file);
    return -1;
}

static void
open_good(struct fixture *f)
{
    if (open_flags(f, QCOW2_DECODE_STRICT) < 0)
        fail_msg("%s", f->err.what);
}

static void
end(struct fixture *f)
{
    if (f->q)
        qm_image_close(&f->q->img);
    close(f->fd);
}

static int
try_next(struct fixture *f, uint64_t from, struct qm_extent *e)
{
    return qm_image_next(&f->q->img, qm_guest(from), f->q->img.size - from, e, &f->err);
}

static struct qm_extent
next(struct fixture *f, uint64_t from)
{
    struct qm_extent e;

    if (try_next(f, from, &e) < 0)
        fail_msg("%s", f->err.what);
    assert_int_equal(e.guest.g, from);
    return e;
}

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
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, size);
    set_l1(&f, 0, 1); /* reserved bits name no table */
    set_l1(&f, 20001, QCOW2_COPIED | 0x80000);
    open_good(&f);
    e = next(&f, 5);
    ASSERT_EXTENT(e, QM_ABSENT, 20001 * span - 5, false, 0);
    e = next(&f, 20001 * span + 7); /* an empty table, and what comes behind costs no more */
    ASSERT_EXTENT(e, QM_ABSENT, size - 20001 * span - 7, false, 0);
    e = next(&f, size - 1);
    ASSERT_EXTENT(e, QM_ABSENT, 1, false, 0);
    end(&f);
}

static void
walk__a_single_table_is_never_overlooked(void **state)
{
    const uint64_t span = 512ull << 20;
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, 1200 * span);
    open_good(&f);
    for (uint64_t i = 1; i < 1200; i += i < 40 || (i > 500 && i < 530) ? 1 : 13) {
        set_l1(&f, i, 0x20000);
        set_l2(&f, 0x20000, 0, 0x50000);
        qm_image_forget(&f.q->img);
        e = next(&f, i / 3 * span);
        ASSERT_EXTENT(e, QM_ABSENT, (i - i / 3) * span, false, 0);
        e = next(&f, i * span);
        ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
        set_l1(&f, i, 0);
    }
    end(&f);
}

static void
walk__two_entries_for_one_cluster_stay_apart(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    set_l1(&f, 0, 0x20000);
    set_l2(&f, 0x20000, 0, 0x50000);
    set_l2(&f, 0x20000, 1, 0x50000);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    e = next(&f, 0x10000);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    end(&f);
}

static void
walk__answers_stop_where_the_question_does(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, 1ull << 40);
    open_good(&f);
    for (unsigned i = 0; i < 2; i++) { /* from the table, then from what is remembered */
        assert_int_equal(qm_image_next(&f.q->img, qm_guest(70000), 3, &e, &f.err), 0);
        ASSERT_EXTENT(e, QM_ABSENT, 3, false, 0);
    }
    end(&f);
}

static void
walk__adjacent_clusters_join_across_slices(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, 512ull << 20);
    set_l1(&f, 0, 0x20000);
    for (uint64_t i = 100; i < 2000; i++) /* slices hold 512 entries */
        set_l2(&f, 0x20000, i, QCOW2_COPIED | (0x100000 + i * 0x10000));
    set_l2(&f, 0x20000, 2000, 0x50000);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_ABSENT, 100 * 0x10000, false, 0);
    e = next(&f, 100 * 0x10000 + 77);
    ASSERT_EXTENT(e, QM_DATA, 1900 * 0x10000 - 77, true, 0x100000 + 100 * 0x10000 + 77);
    e = next(&f, 2000 * 0x10000);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    e = next(&f, 2001 * 0x10000);
    ASSERT_EXTENT(e, QM_ABSENT, (8192 - 2001) * 0x10000ull, false, 0);
    end(&f);
}

static void
walk__zeros_with_and_without_a_place_stay_apart(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 12, false, 8 << 12);
    set_l1(&f, 0, 0x2000);
    set_l2(&f, 0x2000, 0, 1);
    set_l2(&f, 0x2000, 1, QCOW2_COPIED | 1); /* COPIED means nothing here */
    set_l2(&f, 0x2000, 2, 0x5001);
    set_l2(&f, 0x2000, 3, 0x6001);
    set_l2(&f, 0x2000, 4, 0x7000);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_ZERO, 0x2000, false, 0);
    e = next(&f, 0x2000);
    ASSERT_EXTENT(e, QM_ZERO, 0x2000, true, 0x5000);
    e = next(&f, 0x4000);
    ASSERT_EXTENT(e, QM_DATA, 0x1000, true, 0x7000);
    end(&f);
}

static void
walk__reserved_bits_do_not_matter(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    set_l1(&f, 0, 0x7f000000000201ff);
    set_l2(&f, 0x20000, 0, 0xbf000000000501fe);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    end(&f);
}

static void
walk__tables_and_data_past_the_end_read_as_zeros(void **state)
{
    struct fixture f;
    struct qm_extent e;
    char buf[512];

    (void)state;
    make(&f, 3, 16, false, 1ull << 30);
    set_l1(&f, 0, 0x20000);
    set_l2(&f, 0x20000, 0, 1ull << 55);
    set_l1(&f, 1, 1ull << 50);
    open_good(&f);
    e = next(&f, 512ull << 20);
    ASSERT_EXTENT(e, QM_ABSENT, 512ull << 20, false, 0);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 1ull << 55);
    memset(buf, 1, sizeof buf);
    e = qm_extent_part(&e, 1000, sizeof buf);
    assert_int_equal(qm_extent_read(&f.q->img, &e, NULL, buf, &f.err), 0);
    assert_int_equal(buf[0] | buf[511], 0);
    end(&f);
}

static void
walk__data_that_ends_with_the_file_is_padded(void **state)
{
    struct fixture f;
    struct qm_extent e;
    char buf[8];

    (void)state;
    make(&f, 3, 9, false, 512);
    set_l1(&f, 0, 1024);
    set_l2(&f, 1024, 0, 2048);
    put(&f, 2048, "abc", 3);
    open_good(&f);
    e = next(&f, 0);
    e = qm_extent_part(&e, 0, sizeof buf);
    assert_int_equal(qm_extent_read(&f.q->img, &e, NULL, buf, &f.err), 0);
    assert_memory_equal(buf, "abc\0\0\0\0", 8);
    end(&f);
}

static void
walk__a_bad_entry_fails_only_its_own_cluster(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 2, 16, false, 1 << 20);
    set_l1(&f, 0, 0x20000);
    set_l2(&f, 0x20000, 0, 0x50000);
    set_l2(&f, 0x20000, 1, 0x60001); /* would continue, but version 2 has no zero flag */
    set_l2(&f, 0x20000, 2, 0x70200); /* not aligned */
    set_l2(&f, 0x20000, 3, 0x80000);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x50000);
    assert_int_equal(try_next(&f, 0x10000, &e), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_non_null(strstr(f.err.what, "version 2"));
    assert_non_null(strstr(f.err.what, "0x10000"));
    assert_int_equal(f.err.off, 0x20008);
    assert_string_equal(f.err.file, f.path);
    assert_int_equal(try_next(&f, 0x2ffff, &e), -1);
    assert_non_null(strstr(f.err.what, "aligned"));
    e = next(&f, 0x30000);
    ASSERT_EXTENT(e, QM_DATA, 0x10000, true, 0x80000);
    end(&f);
}

static void
walk__a_bad_table_fails_only_its_own_range(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, false, 3ull << 29);
    set_l1(&f, 1, 0x20200);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_ABSENT, 1 << 29, false, 0);
    assert_int_equal(try_next(&f, 1 << 29, &e), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_int_equal(f.err.off, f.l1_off + 8);
    e = next(&f, 2ull << 29);
    ASSERT_EXTENT(e, QM_ABSENT, 1 << 29, false, 0);
    end(&f);
}

static void
walk__subclusters_are_answered_one_by_one(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, true, 1 << 20); /* subclusters of 2 KiB */
    set_l1(&f, 0, 0x20000);
    set_l2(&f, 0x20000, 0, 0x50000);
    put64(&f, 0x20008, 0xff0000000000ffff); /* 16 data, 8 not there, 8 zero */
    set_l2(&f, 0x20000, 1, 0x60000);
    put64(&f, 0x20018, 0xffffffff00000000); /* zero, adjacent */
    put64(&f, 0x20028, 0xffull << 32);      /* no cluster: zero, then not there */
    open_good(&f);
    e = next(&f, 100);
    ASSERT_EXTENT(e, QM_DATA, 0x8000 - 100, true, 0x50000 + 100);
    e = next(&f, 0x8000);
    ASSERT_EXTENT(e, QM_ABSENT, 0x4000, true, 0x58000);
    e = next(&f, 0xc000);
    ASSERT_EXTENT(e, QM_ZERO, 0x14000, true, 0x5c000);
    e = next(&f, 0x20000);
    ASSERT_EXTENT(e, QM_ZERO, 0x4000, false, 0);
    e = next(&f, 0x24000);
    ASSERT_EXTENT(e, QM_ABSENT, 0x100000 - 0x24000, false, 0);
    end(&f);
}

static void
walk__a_bad_bitmap_spoils_the_whole_cluster(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make(&f, 3, 16, true, 1 << 20);
    set_l1(&f, 0, 0x20000);
    set_l2(&f, 0x20000, 1, 0x60000);
    put64(&f, 0x20018, 1ull << 63 | 1u << 31);
    open_good(&f);
    e = next(&f, 0);
    ASSERT_EXTENT(e, QM_ABSENT, 0x10000, false, 0);
    assert_int_equal(try_next(&f, 0x10000, &e), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    end(&f);
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
    struct fixture f;
    uint64_t more;
    size_t len;

    (void)state;
    for (unsigned i = 0; i < sizeof plain; i++)
        plain[i] = (unsigned char)(i / 5);
    len = deflated(payload, sizeof payload, plain, sizeof plain);
    make(&f, 3, 12, false, 1 << 20);
    set_l1(&f, 0, 0x2000);
    more = (0x1fd + len - 1) / 512;
    set_l2(&f, 0x2000, 0, QCOW2_COMPRESSED | more << 58 | 0x51fd);
    set_l2(&f, 0x2000, 1, QCOW2_COMPRESSED | more << 58 | 0x51fd);
    put(&f, 0x51fd, payload, len);
    open_good(&f);
    e = next(&f, 1000);
    assert_true(e.kind == QM_COMPRESSED && e.len == 3096 && e.skip == 1000);
    assert_int_equal(e.host.h, 0x51fd);
    assert_int_equal(e.payload_len, (more + 1) * 512 - 0x1fd);
    part = qm_extent_part(&e, 96, 1000);
    assert_int_equal(qm_extent_read(&f.q->img, &part, codec, buf, &f.err), 0);
    assert_memory_equal(buf, plain + 1096, 1000);
    e = next(&f, 4096);
    assert_true(e.kind == QM_COMPRESSED && e.len == 4096 && e.skip == 0);
    assert_int_equal(qm_extent_read(&f.q->img, &e, codec, buf, &f.err), 0);
    assert_memory_equal(buf, plain, 4096);

    put(&f, 0x51fd, "\xff\xff\xff", 3);
    assert_int_equal(qm_extent_read(&f.q->img, &e, codec, buf, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_int_equal(f.err.off, 0x51fd);
    assert_non_null(strstr(f.err.what, "0x1000 "));
    qm_codec_free(codec);
    end(&f);
}

/* ---- open, reload ---- */

static void
open__file_shorter_than_its_header_area(void **state)
{
    struct fixture f;

    (void)state;
    make(&f, 3, 21, false, 1 << 20);
    assert_int_equal(ftruncate(f.fd, 112), 0);
    open_good(&f);
    assert_int_equal(next(&f, 0).len, 1 << 20); /* the L1 is beyond the end, too */
    end(&f);
}

static void
open__what_we_cannot_read_opens_but_says_so(void **state)
{
    struct fixture f;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    put64(&f, 72, QCOW2_INCOMPAT_DATA_FILE);
    open_good(&f);
    assert_int_equal(qm_qcow2_can_read(f.q, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_UNSUPPORTED);
    assert_non_null(strstr(f.err.what, "data file"));
    qm_image_close(&f.q->img);
    put64(&f, 72, QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    open_good(&f);
    assert_int_equal(qm_qcow2_can_read(f.q, &f.err), 0); /* these hinder writers only */
    end(&f);
}

static void
reload__sees_the_new_header_and_new_tables(void **state)
{
    struct fixture f;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    open_good(&f);
    assert_int_equal(next(&f, 0).kind, QM_ABSENT);
    set_l1(&f, 0, 0x20000);
    set_l2(&f, 0x20000, 0, 0x50000);
    qm_image_forget(&f.q->img);
    assert_int_equal(next(&f, 0).kind, QM_DATA);

    set_l2(&f, 0x20000, 0, 0x60000);
    put64(&f, 24, 2 << 20);
    put64(&f, 8, 0x200);
    put(&f, 16, "\0\0\0\4", 4);
    put(&f, 0x200, "base", 4);
    assert_int_equal(qm_qcow2_reload(f.q, &f.err), 0);
    assert_int_equal(f.q->img.size, 2 << 20);
    assert_string_equal(f.q->img.backing_name, "base");
    assert_int_equal(next(&f, 0).host.h, 0x60000);

    put(&f, 0, "x", 1);
    assert_int_equal(qm_qcow2_reload(f.q, &f.err), -1);
    assert_string_equal(f.q->img.backing_name, "base"); /* keeps what it knew */
    end(&f);
}

static uint64_t
put_snapshot(struct fixture *f, uint64_t off, const char *id, const char *name, uint32_t extra)
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
    put(f, off, &s, sizeof s);
    off += sizeof s;
    if (extra >= 16) {
        put64(f, off, 1ull << 33);
        put64(f, off + 8, 1 << 20);
    }
    put(f, off + extra, id, id_len);
    put(f, off + extra + id_len, name, name_len);
    return off + extra + id_len + name_len;
}

static void
snapshots__old_and_new_entries(void **state)
{
    struct qm_snapshots s;
    struct fixture f;
    uint64_t off;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    off = put_snapshot(&f, 0x50000, "1", "first", 0);
    off = put_snapshot(&f, qm_align_up(off, 8), "22", "", 24);
    put(&f, 60, "\0\0\0\2", 4);
    put64(&f, 64, 0x50000);
    open_good(&f);
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
    end(&f);
}

static void
snapshots__a_bad_table_closes_the_image_except_to_check(void **state)
{
    struct qm_snapshots s;
    struct fixture f;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    put_snapshot(&f, 0x50000, "1", "first", 1025);
    put(&f, 60, "\0\0\0\1", 4);
    put64(&f, 64, 0x50000);
    assert_int_equal(open_flags(&f, QCOW2_DECODE_STRICT), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    assert_int_equal(open_flags(&f, QCOW2_DECODE_FOR_CHECK), 0);
    assert_int_equal(qm_qcow2_read_snapshots(f.q, &s, &f.err), -1);
    qm_snapshots_release(&s);
    end(&f);
}

static void
snapshots__absurd_numbers_cost_nothing(void **state)
{
    struct qm_snapshots s;
    struct fixture f;

    (void)state;
    make(&f, 3, 16, false, 1 << 20);
    put(&f, 60, "\xff\xff\xff\xff", 4);
    put64(&f, 64, UINT64_MAX);
    assert_int_equal(open_flags(&f, QCOW2_DECODE_FOR_CHECK), 0);
    assert_int_equal(qm_qcow2_read_snapshots(f.q, &s, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    qm_snapshots_release(&s);
    end(&f);
}

/* ---- the walk against the slow way ---- */

static uint64_t seed;

static uint64_t
rnd(uint64_t below)
{
    seed ^= seed << 13;
    seed ^= seed >> 7;
    seed ^= seed << 17;
    return (seed >> 8) % below;
}

/* What entry after entry says about one guest byte; false: it is corrupt. */
static bool
look_slowly(struct fixture *f, uint64_t at, struct qm_extent *out)
{
    const uint64_t in_cluster = at % f->cs;
    const unsigned sub = (unsigned)(in_cluster / f->geo.subcluster_size);
    uint64_t w0, w1, table;
    struct qcow2_l2 e;

    memset(out, 0, sizeof *out);
    if (qm_qcow2_l2_entry(f->q, at / f->cs, &w0, &w1, &table, &f->err) < 0 ||
        qcow2_l2_decode(&f->geo, w0, w1, &e) != QCOW2_L2_OK)
        return false;
    out->has_host = e.has_host;
    out->host = e.host;
    if (e.kind == QCOW2_L2_COMPRESSED) {
        out->kind = QM_COMPRESSED;
        out->skip = (uint32_t)in_cluster;
        out->payload_len = e.payload_len;
        return true;
    }
    out->kind = e.zero >> sub & 1 ? QM_ZERO : e.alloc >> sub & 1 ? QM_DATA : QM_ABSENT;
    out->host.h = e.has_host ? e.host.h + in_cluster : 0;
    return true;
}

static void
random_tables(struct fixture *f, uint64_t n_tables)
{
    const uint64_t entries = 1ull << f->geo.l2_bits;

    for (uint64_t t = 0; t < n_tables; t++) {
        const uint64_t table = (t + 8) * f->cs;
        uint64_t host = 1 << 30;

        if (rnd(3) == 0)
            continue;
        set_l1(f, t, rnd(20) ? table | QCOW2_COPIED : table + 512);
        for (uint64_t i = 0; i < entries;) {
            const uint64_t kind = rnd(f->geo.version == 2 ? 3 : 5);
            uint64_t run = 1 + rnd(rnd(2) ? 4 : entries);

            for (; run && i < entries; run--, i++, host += f->cs) {
                static const uint64_t flags[] = {0, QCOW2_COPIED, QCOW2_COMPRESSED, 1, 1};
                uint64_t w = (kind && kind != 3 ? host : 0) | flags[kind];

                if (rnd(200) == 0)
                    w ^= 1ull << rnd(64);
                set_l2(f, table, i, w);
                if (f->geo.extended_l2)
                    put64(f, table + i * 16 + 8,
                          rnd(3)   ? (kind == 1  ? 0xffffffff
                                      : kind > 2 ? ~0ull << 32
                                                 : 0)
                          : rnd(2) ? 0xffull << rnd(57)
                                   : 0xff00ffull << 32 | 0xff00);
            }
            if (rnd(2))
                host += f->cs * rnd(4);
        }
    }
}

static bool
same_answer(const struct qm_extent *fast, const struct qm_extent *slow, uint64_t skip)
{
    const struct qm_extent part = qm_extent_part(fast, skip, 1);

    return part.kind == slow->kind && part.has_host == slow->has_host &&
           part.host.h == slow->host.h && part.skip == slow->skip &&
           part.payload_len == slow->payload_len;
}

/* Walks the image in questions of random length, and asks the slow way about bytes of each answer.
 */
static void
compare_walk(struct fixture *f)
{
    const uint64_t size = f->q->img.size;
    uint64_t at = rnd(2) ? 0 : rnd(size);

    while (at < size) {
        const uint64_t len = rnd(3) ? size - at : 1 + rnd(qm_min(size - at, 100 * f->cs));
        struct qm_extent fast, slow;

        if (qm_image_next(&f->q->img, qm_guest(at), len, &fast, &f->err) < 0) {
            assert_int_equal(f->err.code, QMELD_CORRUPT);
            assert_false(look_slowly(f, at, &slow));
            at = qm_align_up(at + 1, f->cs);
            continue;
        }
        assert_int_equal(fast.guest.g, at);
        assert_in_range(fast.len, 1, len);
        for (unsigned i = 0; i < 6; i++) {
            const uint64_t skip = i == 0 ? 0 : i == 1 ? fast.len - 1 : rnd(fast.len);

            assert_true(look_slowly(f, at + skip, &slow));
            assert_true(same_answer(&fast, &slow, skip));
        }
        at += fast.len;
    }
}

static void
walk__agrees_with_looking_at_every_entry(void **state)
{
    static const struct {
        uint32_t version, bits;
        bool extended;
    } shapes[] = {{3, 9, false}, {2, 9, false},  {3, 12, false}, {2, 13, false},
                  {3, 14, true}, {3, 15, false}, {3, 16, true}};

    (void)state;
    for (unsigned i = 0; i < 42; i++) {
        const unsigned k = i % (sizeof shapes / sizeof *shapes);
        struct fixture f;

        seed = 1000003 * (i + 1);
        make(&f, shapes[k].version, shapes[k].bits, shapes[k].extended, 512);
        f.l1_off = f.cs;
        put64(&f, 24, qcow2_l2_span(&f.geo) * 5 + 512 * rnd(50));
        put(&f, 36, "\0\0\0\6", 4);
        random_tables(&f, 6);
        open_good(&f);
        for (unsigned n = 0; n < 3; n++)
            compare_walk(&f);
        end(&f);
    }
}

/* Tables with an entry here and there, in clusters of many slices, and of more than one scan. */
static void
walk__agrees_on_sparse_tables(void **state)
{
    static const struct {
        uint32_t bits;
        bool extended;
    } shapes[] = {{16, false}, {16, true}, {18, false}, {21, false}, {21, true}};

    (void)state;
    for (unsigned i = 0; i < 25; i++) {
        const unsigned k = i % (sizeof shapes / sizeof *shapes);
        struct fixture f;

        seed = 7000003 * (i + 1);
        make(&f, 3, shapes[k].bits, shapes[k].extended, 512);
        put64(&f, 24, qcow2_l2_span(&f.geo) * 3 - 512 * rnd(50));
        put(&f, 36, "\0\0\0\3", 4);
        for (uint64_t t = 0; t < 3; t++) {
            const uint64_t table = (t + 8) * f.cs, entries = 1ull << f.geo.l2_bits;

            set_l1(&f, t, table | QCOW2_COPIED);
            set_l2(&f, table, entries - 1, 0); /* as long as it is */
            for (uint64_t n = rnd(6); n; n--) {
                const uint64_t at = rnd(2) ? rnd(entries) : rnd(entries / 512) * 512 - rnd(2);

                set_l2(&f, table, at % entries, rnd(8) ? (100 + rnd(50)) * f.cs : QCOW2_COPIED);
                if (f.geo.extended_l2)
                    put64(&f, table + at % entries * 16 + 8, rnd(2) ? 0xffffffff : 0);
            }
        }
        open_good(&f);
        for (unsigned n = 0; n < 4; n++)
            compare_walk(&f);
        end(&f);
    }
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
    struct fixture f;
    unsigned reads = 0;

    (void)state;
    make(&f, 3, 16, false, n_tables * span);
    for (uint64_t i = 0; i < n_tables; i++) {
        set_l1(&f, i, (i + 2) << 16);
        set_l2(&f, (i + 2) << 16, 3000, 0x500000);
        set_l2(&f, (i + 2) << 16, 8191, 0x600000);
    }
    open_good(&f);
    qm_io_set_call_hook(count_reads, &reads);
    for (uint64_t at = 0; at < n_tables * span;)
        at += next(&f, at).len;
    qm_io_set_call_hook(NULL, NULL);
    assert_int_equal(reads, 1 + 3 * n_tables);
    end(&f);
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
        cmocka_unit_test(walk__agrees_with_looking_at_every_entry),
        cmocka_unit_test(walk__agrees_on_sparse_tables),
        cmocka_unit_test(walk__a_sparse_table_is_read_once),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
