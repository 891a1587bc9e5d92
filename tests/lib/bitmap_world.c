/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bitmap_world.c - images with persistent bitmaps, and a plain array that says what they hold.
 */
#include "bitmap_world.h"

#include "lab.h"
#include "qcow2_check.h"
#include "qcow2_create.h"
#include "qcow2_header.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ok.h"

/* ---- images with bitmaps ---- */

#define PER_ENTRY (QM_WORLD_CLUSTER * 8) /* bits */

static uint64_t seed;

uint64_t
qm_world_any(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
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
store_bits(struct qm_qcow2 *q, struct qm_refs *refs, const struct qm_model *m, uint64_t n_bits,
           uint64_t *out_entries)
{
    const uint64_t n = qm_div_up(n_bits, PER_ENTRY);
    const host_off table = alloc(refs, qm_div_up(n * 8, QM_WORLD_CLUSTER));

    for (uint64_t i = 0; i < n; i++) {
        unsigned char bytes[QM_WORLD_CLUSTER] = {0};
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
            if (i == n - 1 && n_bits % PER_ENTRY && qm_world_any(2)) /* rubbish behind the end */
                memset(bytes + qm_div_up(n_bits % PER_ENTRY, 8), 0xa5,
                       QM_WORLD_CLUSTER - qm_div_up(n_bits % PER_ENTRY, 8));
            value = alloc(refs, 1).h;
            OK(qm_pwrite(q->img.file, value, bytes, QM_WORLD_CLUSTER, err));
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
store_bitmaps(struct qm_qcow2 *q, const struct qm_world *w)
{
    unsigned char bytes[2048] = {0};
    struct qm_refs *refs;
    size_t at = 0;
    host_off where;

    OK(qm_refs_open(q, &refs, err));
    for (size_t i = 0; i < w->n; i++) {
        const uint64_t n_bits = qm_div_up(w->old_size, 1ull << w->m[i].g);
        /* names of such lengths that entries lie across sectors */
        const uint16_t any = (uint16_t)(1 + qm_world_any(400));
        const uint16_t name_len = w->m[i].name_len ? w->m[i].name_len : any;
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
    where = alloc(refs, qm_div_up(at, QM_WORLD_CLUSTER));
    OK(qm_refs_commit(refs, err));
    qm_refs_close(refs);
    store_directory(q, bytes, at, where, w->n);
    q->hdr.autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    q->hdr.size = w->old_size;
    OK(qm_header_store(q, err));
    OK(qm_qcow2_reload(q, err));
}

struct qm_qcow2 *
qm_world_make(const char *path, const struct qm_world *w)
{
    const struct qm_qcow2_create want = {.size = w->new_size, /* the L1 table must have room */
                                         .version = 3,
                                         .cluster_size = QM_WORLD_CLUSTER,
                                         .refcount_bits = 16};
    struct qmeld_check_result r;
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, &want, err));
    OK(qm_file_finish(file, err));
    q = qm_lab_open(path);
    store_bitmaps(q, w);
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    assert_int_equal(r.corruptions + r.leaks + r.check_errors, 0);
    return q;
}

/* ---- what they hold ---- */

bool
qm_world_stored_bit(struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t bit)
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

static void
check_bits(struct qm_qcow2 *q, const struct qm_bitmap *m, const struct qm_model *want)
{
    const uint64_t n_bits = qm_div_up(q->hdr.size, 1ull << m->granularity_bits);

    for (uint64_t i = 0; i * PER_ENTRY < n_bits; i++) {
        unsigned char bytes[QM_WORLD_CLUSTER];
        be64 entry;

        assert_true(i < m->table_entries);
        OK(qm_pread(q->img.file, m->table.h + i * sizeof entry, &entry, sizeof entry, err));
        memset(bytes, be64_get(&entry) ? 0xff : 0, sizeof bytes);
        if (be64_get(&entry) > 1)
            OK(qm_pread(q->img.file, be64_get(&entry), bytes, sizeof bytes, err));
        for (uint64_t b = i * PER_ENTRY; b < n_bits && b < (i + 1) * PER_ENTRY; b++)
            if ((bytes[b % PER_ENTRY / 8] >> b % 8 & 1) != want->bits[b])
                fail_msg("bitmap %s bit %llu of %llu", m->name, (unsigned long long)b,
                         (unsigned long long)n_bits);
    }
}

void
qm_world_check(struct qm_qcow2 *q, const struct qm_world *w)
{
    struct qm_bitmap_list l;

    OK(qm_bitmap_list_read(q, &l, err));
    assert_int_equal(l.list.n, w->n);
    for (size_t i = 0; i < w->n; i++) {
        const struct qm_bitmap *m = &l.list.at[i];

        assert_int_equal(m->granularity_bits, w->m[i].g);
        assert_int_equal(m->flags & QCOW2_BITMAP_AUTO, w->m[i].flags & QCOW2_BITMAP_AUTO);
        if (m->flags & QCOW2_BITMAP_IN_USE)
            continue;
        assert_int_equal(w->m[i].flags & QCOW2_BITMAP_IN_USE, 0); /* never healed */
        check_bits(q, m, &w->m[i]);
    }
    qm_bitmap_list_release(&l);
}

void
qm_world_draw(struct qm_world *w, uint64_t number, bool grow)
{
    memset(w, 0, sizeof *w);
    seed = number;
    w->old_size = (1 + qm_world_any(12000)) * 512;
    w->new_size = grow ? w->old_size + (1 + qm_world_any(8000)) * 512 : w->old_size;
    w->n = 1 + qm_world_any(QM_WORLD_BITMAPS);
    for (size_t i = 0; i < w->n; i++) {
        struct qm_model *m = &w->m[i];
        const uint64_t kind = qm_world_any(4);

        m->g = 9 + (uint32_t)qm_world_any(4);
        m->flags = qm_world_any(3) ? QCOW2_BITMAP_AUTO : 0;
        if (qm_world_any(5) == 0)
            m->flags |= QCOW2_BITMAP_IN_USE;
        for (uint64_t b = 0; b < qm_div_up(w->old_size, 1ull << m->g); b++)
            m->bits[b] = kind == 0   ? false
                         : kind == 1 ? true
                                     : qm_world_any(kind == 2 ? 1000 : 2) == 0;
    }
}

void
qm_world_mark(struct qm_world *w, struct qm_bitmaps *b, uint64_t from, uint64_t len)
{
    OK(qm_bitmaps_mark(b, qm_guest(from), len, err));
    len = qm_min(len, w->new_size - from);
    for (size_t i = 0; i < w->n; i++)
        if (w->m[i].flags == QCOW2_BITMAP_AUTO)
            for (uint64_t bit = from >> w->m[i].g; bit <= (from + len - 1) >> w->m[i].g; bit++)
                w->m[i].bits[bit] = true;
}

void
qm_world_plain(struct qm_world *w, uint64_t new_size)
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

uint32_t
qm_world_flags(struct qm_qcow2 *q, size_t i)
{
    struct qm_bitmap_list l;
    uint32_t flags;

    OK(qm_bitmap_list_read(q, &l, err));
    flags = l.list.at[i].flags;
    qm_bitmap_list_release(&l);
    return flags;
}
