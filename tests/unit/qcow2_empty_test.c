/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_empty_test.c - an overlay that is being emptied reads as before or as its base, never
 * as anything else.
 *
 * Overlay and base hold the same bytes where the overlay holds anything.  So each crash state must,
 * cluster by cluster, show the overlay's bytes or nothing at all.
 */
#include "lab.h"
#include "qcow2_check.h"
#include "qcow2_create.h"
#include "qcow2_empty.h"
#include "qcow2_header.h"
#include "qcow2_refs.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ok.h"

static const char path[] = "x";
static const char crashed[] = "crashed";

/* An overlay whose cluster n holds the byte n + 1 throughout. */
struct shape {
    unsigned version;
    uint64_t cs;
    uint64_t size;
    bool extended_l2;
    bool bitmap;        /* has a persistent bitmap, so that it cannot shrink */
    bool l1_in_front;   /* L1 table at cluster 1, where the new refcount table will be */
    bool data_in_front; /* guest data there */
};

static uint64_t
n_clusters(const struct shape *s)
{
    return qm_div_up(s->size, s->cs);
}

/* Exchanges cluster a with the run of n clusters at b, and puts the header right. */
static void
put_l1_in_front(struct qm_qcow2 *q)
{
    const uint64_t cs = q->geo.cluster_size;
    QM_FREE unsigned char *reftable = malloc(cs);
    QM_FREE unsigned char *l1 = malloc(cs);

    assert_int_equal(q->hdr.reftable_off, cs);
    assert_int_equal(q->hdr.l1_off, 3 * cs);
    OK(qm_pread_padded(q->img.file, cs, reftable, cs, err));
    OK(qm_pread_padded(q->img.file, 3 * cs, l1, cs, err));
    OK(qm_pwrite(q->img.file, cs, l1, cs, err));
    OK(qm_pwrite(q->img.file, 3 * cs, reftable, cs, err));
    q->hdr.l1_off = cs;
    q->hdr.reftable_off = 3 * cs;
    OK(qm_header_store(q, err));
}

/* Exchanges the refcount table at cluster 1 with the first data cluster. */
static void
put_data_in_front(struct qm_qcow2 *q)
{
    const uint64_t cs = q->geo.cluster_size;
    QM_FREE unsigned char *reftable = malloc(cs);
    QM_FREE unsigned char *data = malloc(cs);
    uint64_t word0, word1, table, at;
    be64 entry;

    OK(qm_qcow2_l2_entry(q, 0, &word0, &word1, &table, err));
    at = word0 & QCOW2_OFFSET_MASK;
    OK(qm_pread_padded(q->img.file, cs, reftable, cs, err));
    OK(qm_pread_padded(q->img.file, at, data, cs, err));
    OK(qm_pwrite(q->img.file, cs, data, cs, err));
    OK(qm_pwrite(q->img.file, at, reftable, cs, err));
    be64_put(&entry, cs | QCOW2_COPIED);
    OK(qm_pwrite(q->img.file, table, &entry, sizeof entry, err));
    q->hdr.reftable_off = at;
    OK(qm_header_store(q, err));
}

static void
fill(struct qm_qcow2 *q, const struct shape *s)
{
    QM_FREE unsigned char *cluster = malloc(s->cs);

    for (uint64_t c = 0; c < n_clusters(s); c++) {
        uint64_t word0, word1, table;
        const uint64_t idx = c % (1ull << q->geo.l2_bits);
        be64 words[2];

        OK(qm_qcow2_l2_entry(q, c, &word0, &word1, &table, err));
        memset(cluster, (int)(c % 250) + 1, s->cs);
        OK(qm_pwrite(q->img.file, word0 & QCOW2_OFFSET_MASK, cluster, s->cs, err));
        if (!s->extended_l2)
            continue;
        be64_put(&words[0], word0);
        be64_put(&words[1], 0xffffffff); /* all subclusters are data */
        OK(qm_pwrite(q->img.file, table + idx * sizeof words, words, sizeof words, err));
    }
}

/* The smallest bitmap there can be: a directory, a table with one empty entry. */
static void
add_bitmap(struct qm_qcow2 *q)
{
    struct {
        be32 type, len;
        be32 n, zero;
        be64 dir_len, dir_off;
        be64 end;
    } x = {.type = {{0x23, 0x85, 0x28, 0x75}}, .len = {{0, 0, 0, 24}}, .n = {{0, 0, 0, 1}}};
    struct qcow2_disk_bitmap m = {.type = 1, .granularity_bits = 16, .name_len = {{0, 1}}};
    unsigned char entry[32] = {0};
    struct qm_refs *refs;
    host_off dir_at, table;
    uint64_t n;

    OK(qm_refs_open(q, &refs, err));
    OK(qm_refs_alloc(refs, 1, &dir_at, &n, err));
    OK(qm_refs_alloc(refs, 1, &table, &n, err));
    OK(qm_refs_commit(refs, err));
    qm_refs_close(refs);
    be64_put(&m.table_off, table.h);
    be32_put(&m.table_entries, 1);
    memcpy(entry, &m, sizeof m);
    entry[sizeof m] = 'b';
    OK(qm_pwrite(q->img.file, dir_at.h, entry, sizeof entry, err));
    OK(qm_zero(q->img.file, table.h, q->geo.cluster_size, true, err));
    be64_put(&x.dir_len, sizeof entry);
    be64_put(&x.dir_off, dir_at.h);
    OK(qm_pwrite(q->img.file, q->hdr.ext_end, &x, sizeof x, err));
    q->hdr.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    OK(qm_header_store(q, err));
    OK(qm_qcow2_reload(q, err));
    assert_true(q->hdr.has_bitmaps);
}

static struct qm_qcow2 *
make(const struct shape *s)
{
    const struct qm_qcow2_create want = {
        .size = s->size,
        .version = s->version,
        .cluster_size = s->cs,
        .refcount_bits = 16,
        .extended_l2 = s->extended_l2,
        .prealloc = QM_PREALLOC_METADATA,
    };
    struct qm_file *file;
    struct qm_qcow2 *q;
    struct qmeld_check_result r;

    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, &want, err));
    OK(qm_file_finish(file, err));
    q = qm_lab_open(path);
    fill(q, s);
    if (s->bitmap)
        add_bitmap(q);
    if (s->l1_in_front)
        put_l1_in_front(q);
    if (s->data_in_front)
        put_data_in_front(q);
    OK(qm_sync(q->img.file, err));
    qm_image_close(&q->img);
    q = qm_lab_open(path);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    assert_int_equal(r.allocated_clusters, n_clusters(s));
    return q;
}

/* ---- what may be seen ---- */

struct seen {
    const struct shape *s;
    bool any_data; /* in the last state */
};

/* Every cluster is absent, or has the overlay's bytes. */
static void
check_view(struct qm_qcow2 *q, struct seen *seen)
{
    const struct shape *s = seen->s;
    QM_FREE unsigned char *buf = malloc(s->cs);

    seen->any_data = false;
    for (uint64_t c = 0; c < n_clusters(s); c++) {
        const uint64_t len = qm_min(s->cs, q->img.size - c * s->cs);
        struct qm_extent x;

        OK(qm_image_next(&q->img, qm_guest(c * s->cs), len, &x, err));
        if (x.kind == QM_ABSENT)
            continue;
        seen->any_data = true;
        assert_int_equal(x.kind, QM_DATA);
        assert_int_equal(x.len, len);
        OK(qm_extent_read(&q->img, &x, NULL, buf, err));
        for (uint64_t i = 0; i < len; i++)
            assert_int_equal(buf[i], c % 250 + 1);
    }
}

static void
check_state(const unsigned char *file, size_t len, void *opaque)
{
    struct seen *seen = opaque;
    struct qmeld_check_result r;
    struct qm_qcow2 *q;

    qm_torn_save(crashed, file, len);
    q = qm_lab_open(crashed);
    check_view(q, seen);
    /* who writes next gets a sound image: rebuilt if dirty, else with leaks at worst */
    OK(qm_qcow2_make_safe_to_write(q, err));
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.check_errors, 0);
    check_view(q, seen);
    qm_image_close(&q->img);
}

static void
empty(const struct shape *s, uint64_t *out_size)
{
    struct seen seen = {.s = s};
    struct qm_qcow2 *q = make(s);
    struct qm_torn *t = qm_torn_start(path);
    struct qmeld_check_result r;

    OK(qm_qcow2_empty(q, err));
    qm_torn_stop(t);
    check_view(q, &seen);
    assert_false(seen.any_data);
    assert_int_equal(q->hdr.incompatible & QCOW2_INCOMPAT_DIRTY, 0);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    assert_int_equal(r.allocated_clusters, 0);
    *out_size = q->img.file->size;
    qm_image_close(&q->img);
    qm_torn_replay(t, check_state, &seen);
    assert_false(seen.any_data);
    qm_torn_free(t);
}

static void
qcow2_empty__shrinks_to_four_clusters(void **state)
{
    const struct shape s = {.version = 3, .cs = 4096, .size = 100 * 1024};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 4 * 4096);
}

static void
qcow2_empty__tables_in_the_way_do_no_harm(void **state)
{
    const struct shape s = {.version = 3, .cs = 4096, .size = 100 * 1024, .l1_in_front = true};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 4 * 4096);
}

static void
qcow2_empty__data_in_the_way_is_read_until_it_is_not_needed(void **state)
{
    const struct shape s = {.version = 3, .cs = 4096, .size = 100 * 1024, .data_in_front = true};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 4 * 4096);
}

static void
qcow2_empty__small_clusters_have_long_tables(void **state)
{
    const struct shape s = {.version = 3, .cs = 512, .size = 3 << 20};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 5 * 512); /* 96 L1 entries: two clusters */
}

static void
qcow2_empty__subclusters_go_as_well(void **state)
{
    const struct shape s = {.version = 3, .cs = 16384, .size = 200000, .extended_l2 = true};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 4 * 16384);
}

static void
qcow2_empty__version_2_gives_its_clusters_up(void **state)
{
    const struct shape s = {.version = 2, .cs = 4096, .size = 100 * 1024};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 4 * 4096);
}

static void
qcow2_empty__a_bitmap_survives(void **state)
{
    const struct shape s = {.version = 3, .cs = 4096, .size = 100 * 1024, .bitmap = true};
    uint64_t size;
    struct qm_qcow2 *q;

    (void)state;
    empty(&s, &size);
    q = qm_lab_open(path);
    assert_true(q->hdr.has_bitmaps);
    qm_image_close(&q->img);
}

static void
qcow2_empty__clusters_of_a_snapshot_stay(void **state)
{
    const struct shape s = {.version = 3, .cs = 4096, .size = 100 * 1024};
    struct qmeld_check_result r;
    struct qm_qcow2 *q = make(&s);
    unsigned char raw[64] = {0};
    struct qcow2_disk_snapshot *snap = (struct qcow2_disk_snapshot *)raw;
    struct qm_refs *refs;
    host_off l1, table;
    uint64_t n, entry;
    be64 e;

    (void)state;
    /* a snapshot that has an L1 table of its own, over an L2 table and clusters it shares */
    OK(qm_refs_open(q, &refs, err));
    OK(qm_refs_alloc(refs, 1, &l1, &n, err));
    OK(qm_refs_alloc(refs, 1, &table, &n, err));
    OK(qm_refs_commit(refs, err));
    qm_refs_close(refs);
    OK(qm_qcow2_read_l1(q, q->hdr.l1_off, 0, 1, &entry, err));
    be64_put(&e, entry & ~QCOW2_COPIED);
    OK(qm_pwrite(q->img.file, l1.h, &e, sizeof e, err));
    be64_put(&snap->l1_off, l1.h);
    be32_put(&snap->l1_entries, 1);
    be16_put(&snap->id_len, 1);
    be16_put(&snap->name_len, 1);
    be32_put(&snap->extra_len, 16);
    be64_put((be64 *)(raw + 48), s.size);
    raw[56] = '1';
    raw[57] = 's';
    OK(qm_pwrite(q->img.file, table.h, raw, sizeof raw, err));
    q->hdr.n_snapshots = 1;
    q->hdr.snapshots_off = table.h;
    OK(qm_header_store(q, err));
    OK(qm_qcow2_check(q, QMELD_REPAIR_ALL, NULL, NULL, &r, err)); /* counts it all once more */
    assert_int_equal(r.corruptions, 0);
    qm_image_close(&q->img);

    q = qm_lab_open(path);
    OK(qm_qcow2_empty(q, err));
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    assert_int_equal(r.allocated_clusters, 0);
    /* the snapshot's table still leads to every byte */
    for (uint64_t c = 0; c < n_clusters(&s); c++) {
        unsigned char got;

        OK(qm_pread(q->img.file, (entry & QCOW2_OFFSET_MASK) + c * 8, &e, sizeof e, err));
        OK(qm_pread(q->img.file, be64_get(&e) & QCOW2_OFFSET_MASK, &got, 1, err));
        assert_int_equal(got, c + 1);
    }
    qm_image_close(&q->img);
}

static void
refused(const struct shape *s, struct qm_qcow2 *q)
{
    struct seen seen = {.s = s};
    struct qmeld_error bad = {0};
    struct qm_torn *t = qm_torn_start(path);

    assert_int_equal(qm_qcow2_empty(q, &bad), -1);
    assert_int_equal(bad.code, QMELD_CORRUPT);
    qm_torn_stop(t);
    assert_int_equal(qm_torn_syncs(t), 0);
    qm_torn_free(t);
    qm_image_close(&q->img);
    q = qm_lab_open(path);
    check_view(q, &seen);
    assert_true(seen.any_data);
    qm_image_close(&q->img);
}

static void
qcow2_empty__a_corrupt_image_is_left_alone(void **state)
{
    struct shape s = {.version = 3, .cs = 4096, .size = 100 * 1024};
    struct qm_qcow2 *q = make(&s);
    const be16 none = {{0, 0}};

    (void)state;
    q->hdr.incompatible |= QCOW2_INCOMPAT_CORRUPT;
    OK(qm_header_store(q, err));
    refused(&s, q);

    s.bitmap = true; /* refcounts will be lowered, and one is too low already */
    q = make(&s);
    OK(qm_pwrite(q->img.file, 2 * s.cs + 8 * sizeof none, &none, sizeof none, err));
    refused(&s, q);
}

static void
qcow2_empty__an_empty_image_stays_one(void **state)
{
    const struct shape s = {.version = 3, .cs = 4096, .size = 0};
    uint64_t size;

    (void)state;
    empty(&s, &size);
    assert_int_equal(size, 3 * 4096);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qcow2_empty__shrinks_to_four_clusters),
        cmocka_unit_test(qcow2_empty__tables_in_the_way_do_no_harm),
        cmocka_unit_test(qcow2_empty__data_in_the_way_is_read_until_it_is_not_needed),
        cmocka_unit_test(qcow2_empty__small_clusters_have_long_tables),
        cmocka_unit_test(qcow2_empty__subclusters_go_as_well),
        cmocka_unit_test(qcow2_empty__version_2_gives_its_clusters_up),
        cmocka_unit_test(qcow2_empty__a_bitmap_survives),
        cmocka_unit_test(qcow2_empty__clusters_of_a_snapshot_stay),
        cmocka_unit_test(qcow2_empty__a_corrupt_image_is_left_alone),
        cmocka_unit_test(qcow2_empty__an_empty_image_stays_one),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
