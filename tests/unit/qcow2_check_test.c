/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_check_test.c - what a check finds, what a repair mends, and what it leaves alone.
 *
 * The image is small and laid out by hand, so that every number on disk can be named: clusters of
 * 512 bytes, 64 entries an L2 table, 256 refcounts a block.
 *
 *     0 header   1 refcount table   2 refcount block   3 L1   4, 5 L2   6 A   7 B   8 C   9 D
 */
#include "qcow2_check.h"
#include "qcow2_count.h"
#include "scratch.h"
#include "torn.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#define PATH   "image"
#define CS     512u
#define GUEST  128u /* clusters of the virtual disk */
#define END    10u  /* clusters of the file */
#define COPIED QCOW2_COPIED

static void
poke(uint64_t off, const void *bytes, size_t len)
{
    const int fd = open(PATH, O_RDWR | O_CREAT, 0600);

    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, bytes, len, (off_t)off), len);
    assert_int_equal(close(fd), 0);
}

static void
poke64(uint64_t off, uint64_t v)
{
    be64 b;

    be64_put(&b, v);
    poke(off, &b, sizeof b);
}

static void
set_refcount(uint64_t cluster, unsigned v)
{
    be16 b;

    be16_put(&b, (uint16_t)v);
    poke(2 * CS + 2 * cluster, &b, sizeof b);
}

/* Entry of the first (guest 0 to 63) or second L2 table. */
static void
set_l2(unsigned guest, uint64_t entry)
{
    poke64((4 + guest / 64) * CS + 8 * (guest % 64), entry);
}

static void
draw(void)
{
    const struct qcow2_header h = {
        .version = 3,
        .cluster_bits = 9,
        .size = GUEST * CS,
        .l1_entries = 2,
        .l1_off = 3 * CS,
        .reftable_off = CS,
        .reftable_clusters = 1,
        .refcount_order = 4,
        .header_len = 112,
    };
    struct qcow2_disk_header raw = {0};

    unlink(PATH);
    qcow2_header_encode(&h, &raw);
    poke(0, &raw, sizeof raw);
    poke64(CS, 2 * CS);
    poke64(3 * CS, 4 * CS | COPIED);
    poke64(3 * CS + 8, 5 * CS | COPIED);
    set_l2(0, 6 * CS | COPIED);
    set_l2(1, 7 * CS | COPIED);
    set_l2(64, 8 * CS | COPIED);
    set_l2(127, 9 * CS | COPIED);
    for (unsigned i = 0; i < END; i++)
        set_refcount(i, 1);
    for (unsigned i = 6; i < END; i++) {
        unsigned char data[CS];

        memset(data, (int)('A' + i - 6), sizeof data);
        poke(i * CS, data, sizeof data);
    }
}

static struct qm_qcow2 *
open_image(bool writable)
{
    struct qmeld_error err = {0};
    struct qm_qcow2 *q = NULL;
    struct qm_file *f;

    assert_int_equal(qm_file_open(PATH, &f, &err), 0);
    if (writable)
        assert_int_equal(qm_file_make_writable(f, &err), 0);
    if (qm_qcow2_open(f, QCOW2_DECODE_FOR_CHECK, &q, &err) < 0)
        fail_msg("%s", err.what);
    return q;
}

static struct qmeld_check_result
check(enum qmeld_repair repair)
{
    struct qm_qcow2 *q = open_image(repair != QMELD_REPAIR_NONE);
    struct qmeld_check_result r;
    struct qmeld_error err = {0};

    if (qm_qcow2_check(q, repair, NULL, NULL, &r, &err) < 0)
        fail_msg("%s", err.what);
    qm_image_close(&q->img);
    return r;
}

static void
expect(enum qmeld_repair repair, uint64_t corruptions, uint64_t leaks)
{
    const struct qmeld_check_result r = check(repair);

    if (r.corruptions != corruptions || r.leaks != leaks || r.check_errors)
        fail_msg("%" PRIu64 " corruptions, %" PRIu64 " leaks, %" PRIu64 " errors", r.corruptions,
                 r.leaks, r.check_errors);
}

/* One character a guest cluster: its first byte, '.' nothing, '0' zeros, '!' cannot be read, ' '
 * a cluster of the file that holds zeros. */
static void
view(char out[GUEST + 1])
{
    struct qm_qcow2 *q = open_image(false);
    unsigned char data[CS];

    for (unsigned i = 0; i < GUEST; i++) {
        struct qmeld_error err = {0};
        struct qm_extent e;

        if (qm_image_next(&q->img, qm_guest((uint64_t)i * CS), CS, &e, &err) < 0)
            out[i] = '!';
        else if (e.kind != QM_DATA)
            out[i] = e.kind == QM_ZERO ? '0' : '.';
        else if (qm_extent_read(&q->img, &e, NULL, data, &err) < 0)
            out[i] = '!';
        else
            out[i] = data[0] ? (char)data[0] : ' ';
    }
    out[GUEST] = 0;
    qm_image_close(&q->img);
}

/* Repairs with all, and expects the same guest bytes and these numbers then. */
static void
mends_to(uint64_t corruptions, uint64_t leaks)
{
    char before[GUEST + 1], after[GUEST + 1];

    view(before);
    expect(QMELD_REPAIR_ALL, corruptions, leaks);
    view(after);
    assert_string_equal(after, before);
    expect(QMELD_REPAIR_NONE, corruptions, leaks);
}

/* ---- counters ---- */

static void
count__passes_255_and_comes_back(void **state)
{
    struct qmeld_error err = {0};
    struct qm_count c;
    uint64_t lost;

    (void)state;
    assert_int_equal(qm_count_init(&c, 1000, 65535, 1 << 20, &err), 0);
    assert_int_equal(qm_count_add(&c, 999, 200, &lost, &err), 0);
    assert_true(qm_count_bump(&c, 999, 55));
    assert_false(qm_count_bump(&c, 999, 1));
    assert_int_equal(qm_count_add(&c, 999, 70000, &lost, &err), 0);
    assert_int_equal(lost, 70255 - 65535);
    assert_int_equal(qm_count_get(&c, 999), 65535);
    for (unsigned i = 0; i < 65400; i++)
        qm_count_drop(&c, 999);
    assert_int_equal(qm_count_get(&c, 999), 135);
    assert_int_equal(qm_count_get(&c, 998), 0);
    assert_int_equal(qm_count_get(&c, 1u << 30), 0);
    qm_count_release(&c);
}

static void
count__refuses_to_outgrow_its_budget(void **state)
{
    struct qmeld_error err = {0};
    struct qm_count c;
    uint64_t lost, k = 0;

    (void)state;
    assert_int_equal(qm_count_init(&c, 1u << 20, 65535, 4096, &err), 0);
    while (k < 1u << 20 && qm_count_add(&c, k, 1, &lost, &err) == 0)
        k += 4096;
    assert_true(k < 1u << 20);
    assert_int_equal(err.code, QMELD_UNSUPPORTED);
    qm_count_release(&c);
}

/* ---- findings ---- */

static void
check__a_sound_image_has_no_findings(void **state)
{
    struct qmeld_check_result r;

    (void)state;
    draw();
    expect(QMELD_REPAIR_NONE, 0, 0);
    r = check(QMELD_REPAIR_NONE);
    assert_int_equal(r.allocated_clusters, 4);
    assert_int_equal(r.fragmented_clusters, 0);
    assert_int_equal(r.total_clusters, GUEST);
    assert_int_equal(r.image_end_offset, END * CS);
}

static void
check__a_repair_of_a_sound_image_writes_nothing(void **state)
{
    struct qm_torn *t;

    (void)state;
    draw();
    t = qm_torn_start(PATH);
    expect(QMELD_REPAIR_ALL, 0, 0);
    qm_torn_stop(t);
    assert_int_equal(qm_torn_syncs(t), 0);
    qm_torn_free(t);
}

static void
check__a_refcount_too_high_is_a_leak(void **state)
{
    (void)state;
    draw();
    set_refcount(20, 1); /* behind the end of the file: nobody looks */
    expect(QMELD_REPAIR_NONE, 0, 0);
    set_l2(1, 0);
    expect(QMELD_REPAIR_NONE, 0, 1);
    expect(QMELD_REPAIR_LEAKS, 0, 0);
    mends_to(0, 0);
}

static void
check__a_refcount_of_zero_asks_for_new_refcounts(void **state)
{
    struct qmeld_check_result r;
    struct qm_qcow2 *q;

    (void)state;
    draw();
    set_refcount(7, 0);
    expect(QMELD_REPAIR_NONE, 2, 0); /* the flag of the entry disagrees, too */
    r = check(QMELD_REPAIR_LEAKS);
    assert_int_equal(r.check_errors, 1);
    mends_to(0, 0);
    q = open_image(false);
    assert_true(q->hdr.reftable_off >= END * CS);
    qm_image_close(&q->img);
}

static void
check__flags_follow_the_refcounts(void **state)
{
    (void)state;
    draw();
    set_l2(0, 6 * CS);          /* lacks the flag */
    poke64(3 * CS + 8, 5 * CS); /* likewise, in the L1 table */
    set_l2(2, 7 * CS | COPIED); /* a second reference to B */
    expect(QMELD_REPAIR_NONE, 3, 0);
    mends_to(0, 0);
}

static void
check__a_compressed_cluster_may_not_be_flagged(void **state)
{
    (void)state;
    draw();
    set_l2(1, 7 * CS | COPIED | QCOW2_COMPRESSED);
    expect(QMELD_REPAIR_NONE, 1, 0);
    expect(QMELD_REPAIR_ALL, 1, 0);
}

static void
check__reserved_bits_are_damage(void **state)
{
    (void)state;
    draw();
    set_l2(0, 6 * CS | COPIED | 1 << 4);
    poke64(3 * CS, 4 * CS | COPIED | 1);
    expect(QMELD_REPAIR_NONE, 2, 0);
    expect(QMELD_REPAIR_ALL, 2, 0);
}

/* An L1 table of 64 Ki entries, all of them the same L2 table: walked once, counted often. */
static void
check__a_table_named_often_is_walked_once(void **state)
{
    const uint64_t n = 65536;
    be32 entries;

    (void)state;
    draw();
    for (uint64_t i = 0; i < n; i++)
        poke64(1024 * CS + 8 * i, 4 * CS | COPIED);
    be32_put(&entries, (uint32_t)n);
    poke(36, &entries, sizeof entries);
    poke64(40, 1024 * CS);
    /* refcounts hold 65535: L2 table, A and B lose one each; none of the three is 1 any more.
     * Cluster 3 to 5, C and D leak; the new L1 table has no refcounts at all. */
    expect(QMELD_REPAIR_NONE, 3 + 3 + n * 8 / CS, 4);
}

/* ---- what repairs must not do ---- */

static void
repair__a_damaged_entry_keeps_leaks(void **state)
{
    (void)state;
    draw();
    set_l2(1, 7 * CS + 100 * CS); /* led to B, leads behind the end */
    expect(QMELD_REPAIR_NONE, 1, 1);
    mends_to(1, 1);
}

static void
repair__new_refcounts_avoid_what_a_cut_off_file_refers_to(void **state)
{
    char after[GUEST + 1];

    (void)state;
    draw();
    set_refcount(0, 0);
    assert_int_equal(truncate(PATH, 8 * CS), 0); /* C and D are gone, and read as zeros */
    mends_to(0, 0);
    view(after);
    assert_int_equal(after[64], ' ');
}

static void
repair__an_l2_table_that_is_guest_data_is_not_written(void **state)
{
    unsigned char data[CS], now[CS];
    int fd;

    (void)state;
    draw();
    memset(data, 0, sizeof data);
    data[6] = 0x0c; /* would be an L2 entry for A without its flag */
    poke(8 * CS, data, sizeof data);
    poke64(3 * CS, 8 * CS | COPIED); /* the first L1 entry leads to C */
    assert_true(check(QMELD_REPAIR_ALL).corruptions_fixed > 0);
    fd = open(PATH, O_RDONLY);
    assert_int_equal(pread(fd, now, sizeof now, 8 * CS), sizeof now);
    close(fd);
    assert_memory_equal(now, data, sizeof data);
}

static void
repair__a_refcount_block_far_out_does_not_grow_the_file(void **state)
{
    struct qm_qcow2 *q;

    (void)state;
    draw();
    poke64(CS + 8, 1ull << 40);
    expect(QMELD_REPAIR_NONE, 1, 0);
    mends_to(0, 0);
    q = open_image(false);
    assert_true(q->img.file->size < 100 * CS);
    qm_image_close(&q->img);
}

static void
repair__what_cannot_be_counted_is_not_repaired(void **state)
{
    struct qmeld_check_result r;
    be32 n;

    (void)state;
    draw();
    set_l2(1, 0);
    be32_put(&n, 1);
    poke(60, &n, sizeof n); /* a snapshot table at 17: impossible */
    poke64(64, 17);
    r = check(QMELD_REPAIR_ALL);
    assert_int_equal(r.check_errors, 1);
    assert_int_equal(r.leaks, 1);
    assert_int_equal(r.leaks_fixed, 0);
}

/* ---- before a merge ---- */

static enum qmeld_code
make_safe(void)
{
    struct qm_qcow2 *q = open_image(true);
    struct qmeld_error err = {0};
    const int r = qm_qcow2_make_safe_to_write(q, &err);

    assert_int_equal(r == 0, err.code == QMELD_OK);
    qm_image_close(&q->img);
    return err.code;
}

static void
make_safe__leaks_are_fine(void **state)
{
    (void)state;
    draw();
    set_l2(1, 0);
    assert_int_equal(make_safe(), QMELD_OK);
    expect(QMELD_REPAIR_NONE, 0, 1);
}

static void
make_safe__corruptions_are_refused(void **state)
{
    (void)state;
    draw();
    set_refcount(7, 0);
    assert_int_equal(make_safe(), QMELD_CORRUPT);
    draw();
    poke64(72, QCOW2_INCOMPAT_CORRUPT);
    assert_int_equal(make_safe(), QMELD_CORRUPT);
}

static void
make_safe__a_dirty_image_gets_refcounts(void **state)
{
    struct qm_qcow2 *q;

    (void)state;
    draw();
    set_refcount(7, 0);
    set_refcount(8, 2);
    poke64(72, QCOW2_INCOMPAT_DIRTY);
    assert_int_equal(make_safe(), QMELD_OK);
    expect(QMELD_REPAIR_NONE, 0, 0);
    q = open_image(false);
    assert_int_equal(q->hdr.incompatible, 0);
    qm_image_close(&q->img);
}

static void
make_safe__a_dirty_image_with_damage_is_refused_untouched(void **state)
{
    struct qm_torn *t;

    (void)state;
    draw();
    set_refcount(7, 0);
    set_l2(0, 6 * CS | COPIED | 1 << 4);
    poke64(72, QCOW2_INCOMPAT_DIRTY);
    t = qm_torn_start(PATH);
    assert_int_equal(make_safe(), QMELD_CORRUPT);
    qm_torn_stop(t);
    assert_int_equal(qm_torn_syncs(t), 0);
    qm_torn_free(t);
}

/* ---- power cuts ---- */

struct cut {
    char want[GUEST + 1];
    uint64_t corruptions; /* at the most */
};

/* Any state reads as the whole, is no worse, and can be repaired. */
static void
look_at_state(const unsigned char *file, size_t len, void *opaque)
{
    const struct cut *cut = opaque;
    char now[GUEST + 1];

    qm_torn_save(PATH, file, len);
    view(now);
    assert_string_equal(now, cut->want);
    /* a raised refcount shows up the flags of all who claimed to own the cluster alone */
    assert_true(check(QMELD_REPAIR_NONE).corruptions <= cut->corruptions + 2);
    expect(QMELD_REPAIR_ALL, 0, 0);
    view(now);
    assert_string_equal(now, cut->want);
}

static void
cut_power_in_repair(void)
{
    struct cut cut;
    struct qm_torn *t;

    view(cut.want);
    cut.corruptions = check(QMELD_REPAIR_NONE).corruptions;
    t = qm_torn_start(PATH);
    expect(QMELD_REPAIR_ALL, 0, 0);
    qm_torn_stop(t);
    assert_true(qm_torn_syncs(t) > 0);
    assert_true(qm_torn_replay(t, look_at_state, &cut) > 4);
    qm_torn_free(t);
}

static void
repair__survives_power_cuts_while_it_makes_new_refcounts(void **state)
{
    (void)state;
    draw();
    set_refcount(7, 0);
    set_refcount(0, 0);
    set_refcount(8, 3);
    set_l2(2, 6 * CS | COPIED);
    poke64(72, QCOW2_INCOMPAT_DIRTY);
    cut_power_in_repair();
}

static void
repair__survives_power_cuts_while_it_mends_in_place(void **state)
{
    (void)state;
    draw();
    set_l2(2, 6 * CS | COPIED);
    set_l2(65, 9 * CS | COPIED);
    set_refcount(8, 3);
    set_l2(66, 1);
    poke64(3 * CS, 4 * CS);
    poke64(72, QCOW2_INCOMPAT_CORRUPT);
    cut_power_in_repair();
}

/* specification, "Snapshots": one without the extra data that version 3 demands */
static void
repair__survives_power_cuts_while_it_mends_the_snapshot_table(void **state)
{
    struct qcow2_disk_snapshot s = {0};
    be32 n;

    (void)state;
    draw();
    be64_put(&s.l1_off, 11 * CS);
    be32_put(&s.l1_entries, 0);
    be16_put(&s.id_len, 1);
    be16_put(&s.name_len, 2);
    poke(10 * CS, &s, sizeof s);
    poke(10 * CS + sizeof s, "1xy", 3);
    poke64(64, 10 * CS);
    be32_put(&n, 1);
    poke(60, &n, sizeof n);
    set_refcount(10, 1);
    expect(QMELD_REPAIR_NONE, 1, 0);
    cut_power_in_repair();
}

/* ---- failing disks ---- */

static int
fail_at(const struct qm_io_event *event, void *opaque)
{
    unsigned *left = opaque;

    (void)event;
    return *left && --*left == 0 ? EIO : 0;
}

/* The nth change fails, for every n: the error says what is on disk, the guest bytes stay, and the
 * same repair finishes. */
static void
repair__goes_on_after_any_failure(void **state)
{
    (void)state;
    for (unsigned n = 1;; n++) {
        struct qmeld_error err = {0};
        struct qmeld_check_result r;
        char before[GUEST + 1], after[GUEST + 1];
        unsigned left = n;
        struct qm_qcow2 *q;
        int result;

        draw();
        set_refcount(7, 0);
        set_l2(2, 6 * CS | COPIED);
        poke64(72, QCOW2_INCOMPAT_CORRUPT);
        view(before);
        q = open_image(true);
        qm_io_set_hook(fail_at, &left);
        result = qm_qcow2_check(q, QMELD_REPAIR_ALL, NULL, NULL, &r, &err);
        qm_io_set_hook(NULL, NULL);
        qm_image_close(&q->img);
        if (result == 0) {
            assert_int_not_equal(left, 0);
            assert_true(n > 5);
            return;
        }
        assert_int_equal(err.code, QMELD_IO);
        assert_int_equal(err.disk, QMELD_DISK_OPEN);
        view(after);
        assert_string_equal(after, before);
        mends_to(0, 0);
    }
}

#define TEST(name) cmocka_unit_test(name)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(count__passes_255_and_comes_back),
        TEST(count__refuses_to_outgrow_its_budget),
        TEST(check__a_sound_image_has_no_findings),
        TEST(check__a_repair_of_a_sound_image_writes_nothing),
        TEST(check__a_refcount_too_high_is_a_leak),
        TEST(check__a_refcount_of_zero_asks_for_new_refcounts),
        TEST(check__flags_follow_the_refcounts),
        TEST(check__a_compressed_cluster_may_not_be_flagged),
        TEST(check__reserved_bits_are_damage),
        TEST(check__a_table_named_often_is_walked_once),
        TEST(repair__a_damaged_entry_keeps_leaks),
        TEST(repair__new_refcounts_avoid_what_a_cut_off_file_refers_to),
        TEST(repair__an_l2_table_that_is_guest_data_is_not_written),
        TEST(repair__a_refcount_block_far_out_does_not_grow_the_file),
        TEST(repair__what_cannot_be_counted_is_not_repaired),
        TEST(make_safe__leaks_are_fine),
        TEST(make_safe__corruptions_are_refused),
        TEST(make_safe__a_dirty_image_gets_refcounts),
        TEST(make_safe__a_dirty_image_with_damage_is_refused_untouched),
        TEST(repair__goes_on_after_any_failure),
        TEST(repair__survives_power_cuts_while_it_makes_new_refcounts),
        TEST(repair__survives_power_cuts_while_it_mends_in_place),
        TEST(repair__survives_power_cuts_while_it_mends_the_snapshot_table),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
