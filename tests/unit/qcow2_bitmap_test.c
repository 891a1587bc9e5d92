/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_test.c - a bitmap that claims to be valid names every change, in any crash state.
 *
 * Images with bitmaps of several kinds are marked and grown; a plain array of bits, kept beside,
 * says what each must hold.
 */
#include "qcow2_bitmap.h"
#include "qcow2_check.h"
#include "qcow2_create.h"
#include "qcow2_header.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

static char dir[] = "/tmp/qmeld-bitmap-XXXXXX";
static char path[64];
static char crashed[64];

static int
make_dir(void **state)
{
    (void)state;
    if (!mkdtemp(dir))
        return -1;
    snprintf(path, sizeof path, "%s/x", dir);
    snprintf(crashed, sizeof crashed, "%s/crashed", dir);
    return 0;
}

static int
remove_dir(void **state)
{
    (void)state;
    unlink(path);
    unlink(crashed);
    return rmdir(dir);
}

/* ---- images with bitmaps ---- */

#define MAX_BITS  65536
#define N_BITMAPS 5
#define CS        ((uint64_t)512)
#define PER_ENTRY (CS * 8)

static uint64_t seed;

static uint64_t
any(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

struct model {
    uint32_t flags;
    uint32_t g;
    bool bits[MAX_BITS];
};

struct world {
    uint64_t old_size, new_size;
    size_t n;
    struct model m[N_BITMAPS];
};

static struct qm_qcow2 *
open_at(const char *name)
{
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_open(name, &file, err));
    OK(qm_file_make_writable(file, err));
    OK(qm_qcow2_open(file, 0, &q, err));
    return q;
}

static host_off
alloc(struct qm_refs *refs, uint64_t n)
{
    host_off at;

    OK(qm_refs_alloc_adjacent(refs, n, &at, err));
    return at;
}

/* Stores one bitmap; what a table entry stands for may be a cluster, all ones, or nothing. */
static host_off
store_bits(struct qm_qcow2 *q, struct qm_refs *refs, const struct model *m, uint64_t n_bits,
           uint64_t *out_entries)
{
    const uint64_t n = qm_div_up(n_bits, PER_ENTRY);
    const host_off table = alloc(refs, qm_div_up(n * 8, CS));

    for (uint64_t i = 0; i < n; i++) {
        unsigned char bytes[CS] = {0};
        uint64_t ones = 0, value = 0;
        be64 entry;

        for (uint64_t b = i * PER_ENTRY; b < n_bits && b < (i + 1) * PER_ENTRY; b++)
            if (m->bits[b]) {
                bytes[(b % PER_ENTRY) / 8] |= (unsigned char)(1u << b % 8);
                ones++;
            }
        if (ones == qm_min(n_bits - i * PER_ENTRY, PER_ENTRY)) {
            value = 1;
        } else if (ones) {
            if (i == n - 1 && n_bits % PER_ENTRY && any(2)) /* rubbish behind the end */
                memset(bytes + qm_div_up(n_bits % PER_ENTRY, 8), 0xa5,
                       CS - qm_div_up(n_bits % PER_ENTRY, 8));
            value = alloc(refs, 1).h;
            OK(qm_pwrite(q->img.file, value, bytes, CS, err));
        }
        be64_put(&entry, value);
        OK(qm_pwrite(q->img.file, table.h + i * 8, &entry, sizeof entry, err));
    }
    *out_entries = n;
    return table;
}

static void
store_directory(struct qm_qcow2 *q, const unsigned char *bytes, uint64_t len, host_off at, size_t n)
{
    struct {
        be32 type, len;
        be32 n, zero;
        be64 dir_len, dir_off;
        be64 end;
    } x = {.type = {{0x23, 0x85, 0x28, 0x75}}, .len = {{0, 0, 0, 24}}};

    OK(qm_pwrite(q->img.file, at.h, bytes, len, err));
    be32_put(&x.n, (uint32_t)n);
    be64_put(&x.dir_len, len);
    be64_put(&x.dir_off, at.h);
    OK(qm_pwrite(q->img.file, q->hdr.ext_end, &x, sizeof x, err));
}

static void
store_bitmaps(struct qm_qcow2 *q, const struct world *w)
{
    unsigned char bytes[2048] = {0};
    struct qm_refs *refs;
    size_t at = 0;
    host_off where;

    OK(qm_refs_open(q, &refs, err));
    for (size_t i = 0; i < w->n; i++) {
        const uint64_t n_bits = qm_div_up(w->old_size, 1ull << w->m[i].g);
        /* names of such lengths that entries lie across sectors */
        const uint16_t name_len = (uint16_t)(1 + any(400));
        struct qcow2_disk_bitmap raw = {.type = 1, .granularity_bits = (unsigned char)w->m[i].g};
        uint64_t entries;

        be64_put(&raw.table_off, store_bits(q, refs, &w->m[i], n_bits, &entries).h);
        be32_put(&raw.table_entries, (uint32_t)entries);
        be32_put(&raw.flags, w->m[i].flags);
        be16_put(&raw.name_len, name_len);
        memcpy(bytes + at, &raw, sizeof raw);
        memset(bytes + at + sizeof raw, 'a' + (int)i, name_len);
        at += qm_align_up(sizeof raw + name_len, 8);
    }
    where = alloc(refs, qm_div_up(at, CS));
    OK(qm_refs_commit(refs, err));
    qm_refs_close(refs);
    store_directory(q, bytes, at, where, w->n);
    q->hdr.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    q->hdr.size = w->old_size;
    OK(qm_header_store(q, err));
    OK(qm_qcow2_reload(q, err));
}

static struct qm_qcow2 *
make(const struct world *w)
{
    const struct qm_qcow2_create want = {.size = w->new_size, /* the L1 table must have room */
                                         .version = 3,
                                         .cluster_size = CS,
                                         .refcount_bits = 16};
    struct qmeld_check_result r;
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, &want, err));
    OK(qm_file_finish(file, err));
    q = open_at(path);
    store_bitmaps(q, w);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    return q;
}

/* ---- what they hold ---- */

static bool
stored_bit(struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t bit)
{
    unsigned char byte;
    be64 entry;

    assert_true(bit / PER_ENTRY < m->table_entries);
    OK(qm_pread(q->img.file, m->table.h + bit / PER_ENTRY * 8, &entry, sizeof entry, err));
    if (be64_get(&entry) <= 1)
        return be64_get(&entry);
    OK(qm_pread(q->img.file, be64_get(&entry) + bit % PER_ENTRY / 8, &byte, 1, err));
    return byte >> bit % 8 & 1;
}

/* marked: enabled bitmaps must hold the model's bits; otherwise they must be in_use. */
static void
check_bits(struct qm_qcow2 *q, const struct world *w)
{
    struct qm_bitmap_list l;

    OK(qm_bitmap_list_read(q, &l, err));
    assert_int_equal(l.list.n, w->n);
    for (size_t i = 0; i < w->n; i++) {
        const struct qm_bitmap *m = &l.list.at[i];
        const uint64_t n_bits = qm_div_up(q->hdr.size, 1ull << w->m[i].g);

        assert_int_equal(m->flags & QCOW2_BITMAP_AUTO, w->m[i].flags & QCOW2_BITMAP_AUTO);
        if (m->flags & QCOW2_BITMAP_IN_USE)
            continue;
        assert_int_equal(w->m[i].flags & QCOW2_BITMAP_IN_USE, 0); /* never healed */
        for (uint64_t b = 0; b < n_bits; b++)
            if (stored_bit(q, m, b) != w->m[i].bits[b])
                fail_msg("bitmap %zu bit %llu of %llu", i, (unsigned long long)b,
                         (unsigned long long)n_bits);
    }
    qm_bitmap_list_release(&l);
}

static void
check_state(const unsigned char *file, size_t len, void *opaque)
{
    struct qmeld_check_result r;
    struct qm_qcow2 *q;

    qm_torn_save(crashed, file, len);
    q = open_at(crashed);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.check_errors, 0);
    check_bits(q, opaque);
    qm_image_close(&q->img);
}

static void
draw(struct world *w, bool grow)
{
    memset(w, 0, sizeof *w);
    w->old_size = (1 + any(12000)) * 512;
    w->new_size = grow ? w->old_size + (1 + any(8000)) * 512 : w->old_size;
    w->n = 1 + any(N_BITMAPS);
    for (size_t i = 0; i < w->n; i++) {
        struct model *m = &w->m[i];
        const uint64_t kind = any(4);

        m->g = 9 + (uint32_t)any(4);
        m->flags = any(3) ? QCOW2_BITMAP_AUTO : 0;
        if (!grow && any(5) == 0)
            m->flags |= QCOW2_BITMAP_IN_USE;
        for (uint64_t b = 0; b < qm_div_up(w->old_size, 1ull << m->g); b++)
            m->bits[b] = kind == 0 ? false : kind == 1 ? true : any(kind == 2 ? 1000 : 2) == 0;
    }
}

static void
mark(struct qm_bitmaps *b, struct world *w, uint64_t from, uint64_t len)
{
    OK(qm_bitmaps_mark(b, qm_guest(from), len, err));
    len = qm_min(len, w->new_size - from);
    for (size_t i = 0; i < w->n; i++)
        if (w->m[i].flags == QCOW2_BITMAP_AUTO)
            for (uint64_t bit = from >> w->m[i].g; bit <= (from + len - 1) >> w->m[i].g; bit++)
                w->m[i].bits[bit] = true;
}

/* Begins, marks at random, ends; looks at every state of the end. */
static void
round_trip(struct world *w)
{
    struct qmeld_check_result r;
    struct qm_qcow2 *q = make(w);
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_torn *t;

    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, &b, err));
    for (uint64_t k = any(6); k > 0; k--) {
        const uint64_t from = any(w->new_size);

        mark(b, w, from, 1 + any(any(2) ? 3000 : w->new_size));
    }
    t = qm_torn_start(path);
    OK(qm_bitmaps_end(b, err));
    qm_torn_stop(t);
    qm_refs_close(refs);
    assert_int_equal(q->hdr.size, w->new_size);
    check_bits(q, w);
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
    QM_FREE struct world *w = malloc(sizeof *w);

    (void)state;
    for (uint64_t round = 1; round <= 12; round++) {
        seed = round;
        draw(w, false);
        round_trip(w);
    }
}

static void
qcow2_bitmap__all_bitmaps_follow_the_size_whatever_happens(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);

    (void)state;
    for (uint64_t round = 1; round <= 12; round++) {
        seed = round + 1000;
        draw(w, true);
        round_trip(w);
    }
}

/* ---- single facts ---- */

/* One enabled bitmap of 512-byte granularity over 1 MiB, a disabled one beside it. */
static void
plain(struct world *w, uint64_t new_size)
{
    memset(w, 0, sizeof *w);
    seed = 7;
    w->old_size = 1 << 20;
    w->new_size = new_size;
    w->n = 2;
    w->m[0].g = w->m[1].g = 9;
    w->m[0].flags = QCOW2_BITMAP_AUTO;
    w->m[0].bits[5] = w->m[1].bits[6] = true;
}

static uint32_t
flags_of(struct qm_qcow2 *q, size_t i)
{
    struct qm_bitmap_list l;
    uint32_t flags;

    OK(qm_bitmap_list_read(q, &l, err));
    flags = l.list.at[i].flags;
    qm_bitmap_list_release(&l);
    return flags;
}

static void
qcow2_bitmap__enabled_ones_are_in_use_between_begin_and_end(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    plain(w, 1 << 20);
    q = make(w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, &b, err));
    assert_int_equal(flags_of(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    assert_int_equal(flags_of(q, 1), 0);
    mark(b, w, 0, 1);
    qm_bitmaps_abandon(b); /* something may have been written: no longer to be trusted */
    assert_int_equal(flags_of(q, 0), QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__giving_up_before_the_first_mark_changes_nothing(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    plain(w, 5 << 20);
    q = make(w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, &b, err));
    qm_bitmaps_abandon(b);
    assert_int_equal(q->hdr.size, w->old_size);
    assert_int_equal(flags_of(q, 0), QCOW2_BITMAP_AUTO);
    check_bits(q, w);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__stopping_keeps_marks_and_size(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    plain(w, 5 << 20);
    q = make(w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, &b, err));
    mark(b, w, 100000, 900000);
    mark(b, w, 1000000, 3 << 20);
    OK(qm_bitmaps_stop(b, err));
    assert_int_equal(q->hdr.size, w->old_size);
    assert_int_equal(flags_of(q, 0), QCOW2_BITMAP_AUTO);
    check_bits(q, w);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__no_bit_is_set_behind_the_end(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    plain(w, 1 << 20);
    q = make(w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, w->new_size, NULL, &b, err));
    mark(b, w, 0, UINT32_MAX);
    OK(qm_bitmaps_end(b, err));
    check_bits(q, w);
    OK(qm_bitmap_list_read(q, &l, err));
    for (uint64_t bit = 2048; bit < PER_ENTRY; bit++)
        assert_false(stored_bit(q, &l.list.at[0], bit));
    qm_bitmap_list_release(&l);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

/* A merge that was cut short leaves them so, and must be able to go on. */
static void
qcow2_bitmap__an_inconsistent_one_stays_while_the_image_grows(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;

    (void)state;
    plain(w, 2 << 20);
    w->m[1].flags = QCOW2_BITMAP_IN_USE;
    q = make(w);
    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, 2 << 20, NULL, &b, err));
    OK(qm_bitmaps_end(b, err));
    assert_int_equal(flags_of(q, 1), QCOW2_BITMAP_IN_USE);
    assert_int_equal(q->hdr.size, 2 << 20);
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static void
qcow2_bitmap__an_image_without_them_costs_nothing(void **state)
{
    const struct qm_qcow2_create want = {
        .size = 1 << 20, .version = 3, .cluster_size = CS, .refcount_bits = 16};
    struct qm_bitmaps *b;
    struct qm_file *file;
    struct qm_qcow2 *q;

    (void)state;
    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, &want, err));
    OK(qm_file_finish(file, err));
    q = open_at(path);
    OK(qm_bitmaps_begin(q, NULL, 2 << 20, NULL, &b, err));
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
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qmeld_error bad = {0};
    struct qm_bitmap_list l;
    struct qm_qcow2 *q;

    plain(w, 1 << 20);
    q = make(w);
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
    damaged(20, "\0\0\0\1", 4); /* extra data */
}

static void
qcow2_bitmap__a_shared_cluster_is_never_written_in_place(void **state)
{
    QM_FREE struct world *w = malloc(sizeof *w);
    struct qmeld_error bad = {0};
    struct qm_bitmap_list l;
    struct qm_bitmaps *b;
    struct qm_refs *refs;
    struct qm_qcow2 *q;
    be64 entry;

    (void)state;
    plain(w, 1 << 20);
    q = make(w);
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
    q = open_at(path);
    OK(qm_refs_open(q, &refs, err));
    assert_int_equal(qm_bitmaps_begin(q, refs, 1 << 20, NULL, &b, &bad), -1);
    assert_int_equal(bad.code, QMELD_CORRUPT);
    assert_int_equal(flags_of(q, 0), QCOW2_BITMAP_AUTO);
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

    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
