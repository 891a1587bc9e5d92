/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_resume_test.c - bitmaps after a merge that was cut short, as often as you like, and
 * resumed: as if it never had been.
 *
 * Every state that a power cut can leave from begin to the end of end is taken up by a run that
 * was told which bitmaps were valid at first; some of those runs are cut short in turn.  What
 * each holds at the end is known from a plain array of bits (bitmap_world.h).
 */
#include "bitmap_world.h"
#include "lab.h"
#include "qcow2_check.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>

#include <cmocka.h>

#include "ok.h"

#define MAX_MARKS 6
#define DEEPEST   4

/* One merge, however many runs it takes. */
struct work {
    struct qm_world w;
    struct qm_bitmap_names valid; /* when it began */
    struct {
        uint64_t from, len;
    } marks[MAX_MARKS];
    size_t n_marks;
    size_t n_runs[DEEPEST + 1];
};

/* One of its runs. */
struct run {
    struct work *work;
    unsigned depth; /* how many runs were cut short before */
    bool begun;     /* one of them got through begin: guest data may have been written */
    size_t begin_syncs;
};

/* ---- runs ---- */

static void
mark_all(struct work *work, struct qm_bitmaps *b)
{
    for (size_t i = 0; i < work->n_marks; i++)
        qm_world_mark(&work->w, b, work->marks[i].from, work->marks[i].len);
}

static void
assert_whole(struct qm_qcow2 *q, bool leaks_too)
{
    struct qmeld_check_result r;

    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.check_errors, 0);
    if (leaks_too)
        assert_int_equal(r.leaks, 0);
}

/* Everything that was valid is valid, at the new size, with the old bits and the marks. */
static void
check_end(const char *path, const struct run *r)
{
    struct qm_qcow2 *q = qm_lab_open(path);

    assert_int_equal(q->hdr.size, r->work->w.new_size);
    for (size_t i = 0; i < r->work->w.n; i++)
        assert_int_equal(qm_world_flags(q, i), r->work->w.m[i].flags);
    qm_world_check(q, &r->work->w);
    assert_whole(q, r->depth == 0);
    qm_image_close(&q->img);
}

/* Runs the whole merge on what is at path; taken down if *out_torn is wanted. */
static void
run(const char *path, struct run *r, struct qm_torn **out_torn)
{
    struct qm_qcow2 *q = qm_lab_open(path);
    struct qm_bitmaps *b;
    struct qm_refs *refs;

    if (out_torn)
        *out_torn = qm_torn_start(path);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, r->work->w.new_size, r->depth ? &r->work->valid : NULL, NULL, &b,
                        err));
    r->begin_syncs = out_torn ? qm_torn_syncs(*out_torn) : 0;
    mark_all(r->work, b);
    OK(qm_bitmaps_end(b, err));
    if (out_torn)
        qm_torn_stop(*out_torn);
    qm_refs_close(refs);
    qm_image_close(&q->img);
    r->work->n_runs[r->depth]++;
    check_end(path, r);
}

/* Of the runs at each depth, one in `one_in` is cut short in about `max` ways (0: in all). */
static const struct {
    size_t one_in, max;
} effort[DEEPEST] = {{1, 0}, {15, 8}, {8, 5}, {4, 3}};

static void
resume(const struct qm_torn_state *state, void *opaque)
{
    const struct run *cut = opaque;
    struct run next = {.work = cut->work,
                       .depth = cut->depth + 1,
                       .begun = cut->begun || state->interval >= cut->begin_syncs};
    const struct qm_torn_how how = {.seed = state->number, .max = effort[next.depth % DEEPEST].max};
    struct qm_torn *torn = NULL;
    struct qm_qcow2 *q;
    bool record;
    char path[8];

    snprintf(path, sizeof path, "%u", next.depth);
    qm_torn_save(path, state->files[0].at, state->files[0].len);
    q = qm_lab_open(path);
    assert_whole(q, false);
    if (next.begun) /* no bitmap hides what was written */
        qm_world_check(q, &next.work->w);
    qm_image_close(&q->img);
    record = next.depth < DEEPEST && qm_world_any(effort[next.depth].one_in) == 0;
    run(path, &next, record ? &torn : NULL);
    if (!record)
        return;
    qm_torn_replay_files(torn, &how, resume, &next);
    qm_torn_free(torn);
}

/* The merge of a world that was drawn: whole, and cut short everywhere. */
static void
try_all(struct work *work)
{
    struct run first = {.work = work};
    struct qm_torn *torn;
    struct qm_qcow2 *q;

    work->n_marks = qm_world_any(MAX_MARKS + 1);
    for (size_t i = 0; i < work->n_marks; i++) {
        work->marks[i].from = qm_world_any(work->w.new_size);
        work->marks[i].len = 1 + qm_world_any(qm_world_any(2) ? 3000 : work->w.new_size);
    }
    q = qm_world_make("0", &work->w);
    OK(qm_bitmaps_valid_names(q, &work->valid, err));
    qm_image_close(&q->img);
    run("0", &first, &torn);
    qm_torn_replay_files(torn, NULL, resume, &first);
    qm_torn_free(torn);
    qm_bitmap_names_release(&work->valid);
}

/* ---- cut short anywhere ---- */

static void
qcow2_bitmap_resume__ends_as_if_never_cut_short(void **state)
{
    QM_FREE struct work *work = calloc(1, sizeof *work);

    (void)state;
    for (uint64_t round = 1; round <= 6; round++) {
        qm_world_draw(&work->w, round + 2000, false);
        try_all(work);
    }
    assert_true(work->n_runs[1] >= 50 && work->n_runs[DEEPEST] >= 5);
}

static void
qcow2_bitmap_resume__ends_at_the_new_size_as_if_never_cut_short(void **state)
{
    QM_FREE struct work *work = calloc(1, sizeof *work);

    (void)state;
    for (uint64_t round = 1; round <= 8; round++) {
        qm_world_draw(&work->w, round + 3000, true);
        try_all(work);
    }
    assert_true(work->n_runs[1] >= 200 && work->n_runs[DEEPEST] >= 100);
}

/* A table of one cluster becomes one of two; old offset and new length would be no table.  Names
 * are so long that these two lie in two sectors. */
static void
qcow2_bitmap_resume__a_table_of_several_clusters_is_made_good(void **state)
{
    QM_FREE struct work *work = calloc(1, sizeof *work);

    (void)state;
    qm_world_plain(&work->w, 190 << 20);
    work->w.old_size = 101 << 20; /* 51 entries, then 95 */
    work->w.m[0].g = 13;          /* a disabled one that grows, too */
    work->w.m[0].flags = 0;
    work->w.m[0].name_len = 480; /* the next entry is at 504 */
    work->w.m[1].flags = QCOW2_BITMAP_AUTO;
    work->w.m[1].bits[100000] = true;
    try_all(work);
    assert_true(work->n_runs[1] >= 50 && work->n_runs[DEEPEST] >= 50);
}

/* ---- single facts ---- */

/* The plain world with its enabled bitmap left in_use, as by a run that was killed. */
static struct qm_qcow2 *
make_killed(struct qm_world *w, uint64_t new_size, struct qm_bitmap_names *out_valid,
            struct qm_refs **out_refs)
{
    struct qm_bitmaps *b;
    struct qm_qcow2 *q;

    qm_world_plain(w, new_size);
    q = qm_world_make("0", w);
    OK(qm_bitmaps_valid_names(q, out_valid, err));
    OK(qm_refs_open(q, out_refs, err));
    OK(qm_bitmaps_begin(q, *out_refs, w->new_size, NULL, NULL, &b, err));
    qm_world_mark(w, b, 0, 1);
    qm_bitmaps_abandon(b);
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    return q;
}

static void
close_all(struct qm_qcow2 *q, struct qm_refs *refs, struct qm_bitmap_names *valid)
{
    qm_bitmap_names_release(valid);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap_resume__names_are_of_valid_ones_only(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmap_names names;
    struct qm_qcow2 *q;

    (void)state;
    qm_world_plain(w, 1 << 20);
    w->n = 4;
    w->m[2] = w->m[0];
    w->m[2].flags |= QCOW2_BITMAP_IN_USE;
    w->m[3] = w->m[1];
    q = qm_world_make("0", w);
    OK(qm_bitmaps_valid_names(q, &names, err));
    assert_int_equal(names.list.n, 3); /* each is one letter, repeated */
    assert_int_equal(names.list.at[0][0], 'a');
    assert_int_equal(names.list.at[1][0], 'b');
    assert_int_equal(names.list.at[2][0], 'd');
    qm_bitmap_names_release(&names);
    assert_int_equal(names.list.n, 0);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap_resume__who_is_not_named_stays_in_use(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmap_names valid;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;
    char *first;

    (void)state;
    q = make_killed(w, 3 << 20, &valid, &refs);
    first = valid.list.at[0];
    valid.list.at[0] = valid.list.at[1]; /* the disabled one, twice */
    OK(qm_bitmaps_begin(q, refs, w->new_size, &valid, NULL, &b, err));
    OK(qm_bitmaps_end(b, err));
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    assert_int_equal(qm_world_flags(q, 1), 0);
    valid.list.at[0] = first;
    close_all(q, refs, &valid);
}

/* Its table would have to be cut, or bits of unknown origin would be taken for old ones. */
static void
qcow2_bitmap_resume__a_table_of_foreign_length_stays_in_use(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmap_names valid;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;
    be32 two;

    (void)state;
    for (uint64_t new_size = 1 << 20; new_size <= 9 << 20; new_size += 8 << 20) {
        q = make_killed(w, new_size, &valid, &refs);
        be32_put(&two, 2); /* 1 for 1 MiB, 5 for 9 MiB */
        OK(qm_pwrite(q->img.file,
                     q->hdr.bitmap_dir_off + offsetof(struct qcow2_disk_bitmap, table_entries),
                     &two, sizeof two, err));
        OK(qm_bitmaps_begin(q, refs, new_size, &valid, NULL, &b, err));
        qm_world_mark(w, b, 0, 1);
        OK(qm_bitmaps_end(b, err));
        assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
        assert_int_equal(q->hdr.size, new_size);
        close_all(q, refs, &valid);
    }
}

/* The killed run may have written what the one that gives up has not marked. */
static void
qcow2_bitmap_resume__giving_up_keeps_in_use_for_the_next_one(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    struct qm_bitmap_names valid;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    q = make_killed(w, 3 << 20, &valid, &refs);
    OK(qm_bitmaps_begin(q, refs, w->new_size, &valid, NULL, &b, err));
    qm_bitmaps_abandon(b);
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    OK(qm_bitmaps_begin(q, refs, w->new_size, &valid, NULL, &b, err));
    OK(qm_bitmaps_stop(b, err));
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    OK(qm_bitmaps_begin(q, refs, w->new_size, &valid, NULL, &b, err));
    qm_world_mark(w, b, 0, 1);
    OK(qm_bitmaps_end(b, err));
    assert_int_equal(qm_world_flags(q, 0), QCOW2_BITMAP_AUTO);
    qm_world_check(q, w);
    close_all(q, refs, &valid);
}

static void
qcow2_bitmap_resume__a_damaged_table_is_an_error(void **state)
{
    QM_FREE struct qm_world *w = malloc(sizeof *w);
    const unsigned char bad[8] = {0xff};
    struct qmeld_error told = {0};
    struct qm_bitmap_names valid;
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        const unsigned char in_use = QCOW2_BITMAP_IN_USE;
        const struct qm_bitmap *m;

        q = make_killed(w, 1 << 20, &valid, &refs);
        OK(qm_bitmap_list_read(q, &l, err));
        m = &l.list.at[i];
        OK(qm_pwrite(q->img.file, m->table.h, bad, sizeof bad, err));
        if (i == 1) /* the disabled one, as if cut short after the growth */
            OK(qm_pwrite(q->img.file, q->hdr.bitmap_dir_off + m->dir_pos + 15, &in_use, 1, err));
        qm_bitmap_list_release(&l);
        assert_int_equal(qm_bitmaps_begin(q, refs, w->new_size, &valid, NULL, &b, &told), -1);
        assert_int_equal(told.code, QMELD_CORRUPT);
        assert_null(b);
        close_all(q, refs, &valid);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qcow2_bitmap_resume__ends_as_if_never_cut_short),
        cmocka_unit_test(qcow2_bitmap_resume__ends_at_the_new_size_as_if_never_cut_short),
        cmocka_unit_test(qcow2_bitmap_resume__a_table_of_several_clusters_is_made_good),
        cmocka_unit_test(qcow2_bitmap_resume__names_are_of_valid_ones_only),
        cmocka_unit_test(qcow2_bitmap_resume__who_is_not_named_stays_in_use),
        cmocka_unit_test(qcow2_bitmap_resume__a_table_of_foreign_length_stays_in_use),
        cmocka_unit_test(qcow2_bitmap_resume__giving_up_keeps_in_use_for_the_next_one),
        cmocka_unit_test(qcow2_bitmap_resume__a_damaged_table_is_an_error),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
