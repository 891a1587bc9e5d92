/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_walk_test.c - the walk over random tables agrees with the slowest way there is: one entry after the other.
 */
#include "tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

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
look_slowly(struct qm_tables *f, uint64_t at, struct qm_extent *out)
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
random_tables(struct qm_tables *f, uint64_t n_tables)
{
    const uint64_t entries = 1ull << f->geo.l2_bits;

    for (uint64_t t = 0; t < n_tables; t++) {
        const uint64_t table = (t + 8) * f->cs;
        uint64_t host = 1 << 30;

        if (rnd(3) == 0)
            continue;
        qm_tables_set_l1(f, t, rnd(20) ? table | QCOW2_COPIED : table + 512);
        for (uint64_t i = 0; i < entries;) {
            const uint64_t kind = rnd(f->geo.version == 2 ? 3 : 5);
            uint64_t run = 1 + rnd(rnd(2) ? 4 : entries);

            for (; run && i < entries; run--, i++, host += f->cs) {
                static const uint64_t flags[] = {0, QCOW2_COPIED, QCOW2_COMPRESSED, 1, 1};
                uint64_t w = (kind && kind != 3 ? host : 0) | flags[kind];

                if (rnd(200) == 0)
                    w ^= 1ull << rnd(64);
                qm_tables_set_l2(f, table, i, w);
                if (f->geo.extended_l2)
                    qm_tables_put64(f, table + i * 16 + 8,
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
compare_walk(struct qm_tables *f)
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
        struct qm_tables f;

        seed = 1000003 * (i + 1);
        qm_tables_make(&f, shapes[k].version, shapes[k].bits, shapes[k].extended, 512);
        f.l1_off = f.cs;
        qm_tables_put64(&f, 24, qcow2_l2_span(&f.geo) * 5 + 512 * rnd(50));
        qm_tables_put(&f, 36, "\0\0\0\6", 4);
        random_tables(&f, 6);
        qm_tables_open(&f);
        for (unsigned n = 0; n < 3; n++)
            compare_walk(&f);
        qm_tables_end(&f);
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
        struct qm_tables f;

        seed = 7000003 * (i + 1);
        qm_tables_make(&f, 3, shapes[k].bits, shapes[k].extended, 512);
        qm_tables_put64(&f, 24, qcow2_l2_span(&f.geo) * 3 - 512 * rnd(50));
        qm_tables_put(&f, 36, "\0\0\0\3", 4);
        for (uint64_t t = 0; t < 3; t++) {
            const uint64_t table = (t + 8) * f.cs, entries = 1ull << f.geo.l2_bits;

            qm_tables_set_l1(&f, t, table | QCOW2_COPIED);
            qm_tables_set_l2(&f, table, entries - 1, 0); /* as long as it is */
            for (uint64_t n = rnd(6); n; n--) {
                const uint64_t at = rnd(2) ? rnd(entries) : rnd(entries / 512) * 512 - rnd(2);

                qm_tables_set_l2(&f, table, at % entries,
                                 rnd(8) ? (100 + rnd(50)) * f.cs : QCOW2_COPIED);
                if (f.geo.extended_l2)
                    qm_tables_put64(&f, table + at % entries * 16 + 8, rnd(2) ? 0xffffffff : 0);
            }
        }
        qm_tables_open(&f);
        for (unsigned n = 0; n < 4; n++)
            compare_walk(&f);
        qm_tables_end(&f);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walk__agrees_with_looking_at_every_entry),
        cmocka_unit_test(walk__agrees_on_sparse_tables),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
