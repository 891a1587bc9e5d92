/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_test.c - a bitmap that claims to be valid names every change, in any crash state.
 *
 * Images with bitmaps of several kinds are marked and grown; a plain array of bits, kept beside,
 * says what each must hold.
 */
#include "bitmap_world.h"
#include "lab.h"
#include "qcow2_check.h"
#include "qcow2_create.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ok.h"

static const char path[] = "x";
static const char crashed[] = "crashed";

static void
check_state(const unsigned char *file, size_t len, void *opaque)
{
    struct qmeld_check_result r;
    struct qm_qcow2 *q;

    qm_torn_save(crashed, file, len);
    q = qm_lab_open(crashed);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.check_errors, 0);
    qm_world_check(q, opaque);
    qm_image_close(&q->img);
}

/* Begins, marks at random, ends; looks at every state of the end. */
static void
round_trip(struct qm_world *w)
{
    struct qmeld_check_result r;
    struct qm_qcow2 *q = qm_world_make(path, w);
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_torn *t;

    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, NULL, &b, err));
    for (uint64_t k = qm_world_any(6); k > 0; k--) {
        const uint64_t from = qm_world_any(w->new_size);

        qm_world_mark(w, b, from, 1 + qm_world_any(qm_world_any(2) ? 3000 : w->new_size));
    }
    t = qm_torn_start(path);
    OK(qm_bitmaps_end(b, err));
    qm_torn_stop(t);
    qm_refs_close(refs);
    assert_int_equal(q->hdr.size, w->new_size);
    qm_world_check(q, w);
    OK(qm_bitmap_list_read(q, &l, err));
    for (size_t i = 0; i < w->n; i++)
        assert_int_equal(l.list.at[i].flags, w->m[i].flags);
    qm_bitmap_list_release(&l);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    qm_image_close(&q->img);
    qm_torn_replay(t, check_state, w);
    qm_torn_free(t);
}

static void
qcow2_bitmap__marks_are_stored_whatever_happens(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);

    (void)state;
    for (uint64_t round = 1; round <= 12; round++) {
        qm_world_draw(w, round, false);
        round_trip(w);
    }
}

static void
qcow2_bitmap__all_bitmaps_follow_the_size_whatever_happens(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);

    (void)state;
    for (uint64_t round = 1; round <= 12; round++) {
        qm_world_draw(w, round + 1000, true);
        round_trip(w);
    }
}

/* ---- single facts ---- */

static void
qcow2_bitmap__enabled_ones_are_in_use_between_begin_and_end(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    qm_world_plain(w, 1 << 20);
    q = qm_world_make(path, w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, NULL, &b, err));
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    assert_int_equal(qm_world_flags(q, 1), 0);
    qm_world_mark(w, b, 0, 1);
    qm_bitmaps_abandon(b); /* something may have been written: no longer to be trusted */
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__giving_up_before_the_first_mark_changes_nothing(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    qm_world_plain(w, 5 << 20);
    q = qm_world_make(path, w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, NULL, &b, err));
    qm_bitmaps_abandon(b);
    assert_int_equal(q->hdr.size, w->old_size);
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO);
    qm_world_check(q, w);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__stopping_keeps_marks_and_size(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    qm_world_plain(w, 5 << 20);
    q = qm_world_make(path, w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, NULL, &b, err));
    qm_world_mark(w, b, 100000, 900000);
    qm_world_mark(w, b, 1000000, 3 << 20);
    OK(qm_bitmaps_stop(b, err));
    assert_int_equal(q->hdr.size, w->old_size);
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO);
    qm_world_check(q, w);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__no_bit_is_set_behind_the_end(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    qm_world_plain(w, 1 << 20);
    q = qm_world_make(path, w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, NULL, &b, err));
    qm_world_mark(w, b, 0, UINT32_MAX);
    OK(qm_bitmaps_end(b, err));
    qm_world_check(q, w);
    OK(qm_bitmap_list_read(q, &l, err));
    for (uint64_t bit = 2048; bit < (QM_WORLD_CLUSTER * 8); bit++)
        assert_false(qm_world_stored_bit(q, &l.list.at[0], bit));
    qm_bitmap_list_release(&l);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

/* A merge that was cut short leaves them so, and must be able to go on. */
static void
qcow2_bitmap__an_inconsistent_one_stays_while_the_image_grows(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    qm_world_plain(w, 2 << 20);
    w->m[1].flags = QCOW2_BITMAP_IN_USE;
    q = qm_world_make(path, w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, 2 << 20, NULL, NULL, &b, err));
    OK(qm_bitmaps_end(b, err));
    assert_int_equal(qm_world_flags(q, 1), QCOW2_BITMAP_IN_USE);
    assert_int_equal(q->hdr.size, 2 << 20);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__an_image_without_them_costs_nothing(void **state)
{
    const struct qm_qcow2_create want = {
        .size = 1 << 20, .version = 3, .cluster_size = QM_WORLD_CLUSTER, .refcount_bits = 16};
    struct qm_bitmap_names names;
    struct qm_bitmaps *b;
    struct qm_file *file;
    struct qm_qcow2 *q;

    (void)state;
    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, &want, err));
    OK(qm_file_finish(file, err));
    q = qm_lab_open(path);
    OK(qm_bitmaps_valid_names(q, &names, err));
    assert_int_equal(names.list.n, 0);
    OK(qm_bitmaps_begin(q, NULL, 2 << 20, &names, NULL, &b, err));
    assert_null(b);
    OK(qm_bitmaps_mark(b, qm_guest(0), 512, err));
    OK(qm_bitmaps_end(b, err));
    OK(qm_bitmaps_stop(b, err));
    qm_bitmaps_abandon(b);
    qm_image_close(&q->img);
}

/* Reads the directory after `len` of its bytes at `pos` were replaced. */
static void
damaged(uint64_t pos, const char *bytes, size_t len)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qmeld_error bad = {0};
    struct qm_bitmap_list l;
    struct qm_qcow2 *q;

    qm_world_plain(w, 1 << 20);
    q = qm_world_make(path, w);
    OK(qm_pwrite(q->img.file, q->hdr.bitmap_dir_off + pos, bytes, len, err));
    assert_int_equal(qm_bitmap_list_read(q, &l, &bad), -1);
    assert_true(bad.code == QMELD_CORRUPT || bad.code == QMELD_UNSUPPORTED);
    qm_bitmap_list_release(&l);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__a_damaged_directory_is_an_error(void **state)
{
    (void)state;
    damaged(0, "\1", 1);               /* table beyond 56 bits */
    damaged(6, "\0\1", 2);             /* table not aligned */
    damaged(8, "\0\0\0", 4);           /* no entries */
    damaged(8, "\0\0\0\2", 4);         /* too many for the size */
    damaged(8, "\xff\xff\xff\xff", 4); /* too many at all */
    damaged(15, "\4", 1);              /* unknown flag */
    damaged(16, "\2", 1);              /* unknown type */
    damaged(17, "\x08", 1);            /* granularity */
    damaged(17, "\x20", 1);
    damaged(18, "\0\0", 2);     /* no name */
    damaged(18, "\xff\xff", 2); /* runs out of the directory */
    damaged(20, "\xff\xff\xff\xff", 4);
    damaged(20, "\0\0\0\20", 4); /* extra data where the next entry is */
}

static void
qcow2_bitmap__a_shared_cluster_is_never_written_in_place(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qmeld_error bad = {0};
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;
    be64 entry;

    (void)state;
    qm_world_plain(w, 1 << 20);
    q = qm_world_make(path, w);
    OK(qm_bitmap_list_read(q, &l, err));
    /* the enabled one's bits in the disabled one's cluster; its refcount is 2 then */
    OK(qm_pread(q->img.file, l.list.at[1].table.h, &entry, sizeof entry, err));
    OK(qm_pwrite(q->img.file, l.list.at[0].table.h, &entry, sizeof entry, err));
    qm_bitmap_list_release(&l);
    {
        struct qmeld_check_result r;

        OK(qm_qcow2_check(q, QMELD_REPAIR_ALL, NULL, NULL, &r, err));
    }
    qm_image_close(&q->img);
    q = qm_lab_open(path);
    OK(qm_refs_open(q, &refs, err));
    assert_int_equal(qm_bitmaps_begin(q, refs, 1 << 20, NULL, NULL, &b, &bad), -1);
    assert_int_equal(bad.code, QMELD_CORRUPT);
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qcow2_bitmap__marks_are_stored_whatever_happens),
        cmocka_unit_test(qcow2_bitmap__all_bitmaps_follow_the_size_whatever_happens),
        cmocka_unit_test(qcow2_bitmap__enabled_ones_are_in_use_between_begin_and_end),
        cmocka_unit_test(qcow2_bitmap__giving_up_before_the_first_mark_changes_nothing),
        cmocka_unit_test(qcow2_bitmap__stopping_keeps_marks_and_size),
        cmocka_unit_test(qcow2_bitmap__no_bit_is_set_behind_the_end),
        cmocka_unit_test(qcow2_bitmap__an_inconsistent_one_stays_while_the_image_grows),
        cmocka_unit_test(qcow2_bitmap__an_image_without_them_costs_nothing),
        cmocka_unit_test(qcow2_bitmap__a_damaged_directory_is_an_error),
        cmocka_unit_test(qcow2_bitmap__a_shared_cluster_is_never_written_in_place),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
