/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage_bitmaps.c - what the base's persistent bitmaps say: is it true, and what an undisturbed merge makes of them?
 */
#include "stage_int.h"

#include "qcow2_bitmap_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Do the guest bytes [from, from + len) read otherwise?  Behind a view's end: zeros. */
static bool
differs(const struct stage_bytes *a, const struct stage_bytes *b, size_t from, size_t len)
{
    const size_t common = a->len < b->len ? a->len : b->len;
    const size_t both = from < common ? (len < common - from ? len : common - from) : 0;
    const struct stage_bytes *longer = a->len > b->len ? a : b;

    if (both > 0 && memcmp(a->at + from, b->at + from, both) != 0)
        return true;
    for (size_t i = from + both; i < from + len && i < longer->len; i++)
        if (longer->at[i] != 0)
            return true;
    return false;
}

/* The stored bits of m, a byte each. */
static int
read_bits(struct qm_qcow2 *q, const struct qm_bitmap *m, struct stage_bytes *out,
          struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;
    QM_FREE unsigned char *bits = malloc(cs);
    QM_FREE uint64_t *table = calloc(m->table_entries, sizeof *table);

    out->len = (size_t)qm_bitmap_bits(m, q->hdr.size);
    out->at = calloc(out->len + 1, 1);
    if (!table || !bits || !out->at)
        abort();
    if (qm_bitmap_read_table(q, m, table, err) < 0)
        return -1;
    for (size_t i = 0; i < out->len; i++) {
        const uint64_t entry = table[i / (cs * 8)];

        if (i % (cs * 8) == 0 && entry > BITMAP_ALL_ONES &&
            qm_qcow2_read_cluster(q, qm_host(entry), bits, err) < 0)
            return -1;
        out->at[i] =
            entry <= BITMAP_ALL_ONES ? entry == BITMAP_ALL_ONES : bits[i / 8 % cs] >> i % 8 & 1;
    }
    return 0;
}

/* Who trusts this bitmap finds everything that changed. */
static bool
bitmap_tells(struct stage *s, const struct stage_bitmap *b, const struct stage_bytes *now)
{
    for (size_t i = 0; (b->flags & QCOW2_BITMAP_AUTO) && b->before && i < b->bits.len; i++)
        if (!b->bits.at[i] &&
            differs(now, &s->base_view, i << b->granularity_bits, (size_t)1 << b->granularity_bits))
            return stage_no(s, "bitmap %s: bit %zu is 0, and guest bytes have changed", b->name, i);
    return true;
}

static const struct stage_bitmap *
find(const struct stage_bitmaps *all, const char *name)
{
    QM_VEC_EACH (b, &all->list)
        if (strcmp(b->name, name) == 0)
            return b;
    return NULL;
}

/* How many bits of `whole` it lacks. */
static size_t
lacks(const struct stage_bitmap *b, const struct stage_bitmap *whole)
{
    size_t n = 0;

    for (size_t i = 0; i < whole->bits.len; i++)
        n += whole->bits.at[i] && !(i < b->bits.len && b->bits.at[i]);
    return n;
}

/* Who trusts this one finds what merged layers have recorded, too, unless the base is what it was. */
static bool
bitmap_is_whole(struct stage *s, const struct stage_bitmap *b, const struct stage_bytes *now)
{
    const struct stage_bitmap *end = find(&s->done_bitmaps, b->name);

    if (!end || (end->flags & QCOW2_BITMAP_IN_USE) || lacks(b, end) == 0)
        return true;
    if (b->before && !differs(now, &s->base_view, 0, qm_max(now->len, s->base_view.len)))
        return true;
    return stage_no(s, "bitmap %s is valid and lacks %zu bits", b->name, lacks(b, end));
}

/* Those of the base as it is. */
static bool
load(struct stage *s, struct stage_bitmaps *out)
{
    struct qm_bitmap_list list = {0};
    struct qmeld_error err = {0};
    struct qm_qcow2 *q;
    struct qm_file *file;
    bool ok;

    if (!stage_is_qcow2(s, s->base))
        return true;
    if (qm_file_open(s->files[s->base], &file, &err) < 0)
        return stage_no_because(s, "bitmaps", &err);
    if (qm_qcow2_open(file, 0, &q, &err) < 0) {
        qm_file_close(file);
        return stage_no_because(s, "bitmaps", &err);
    }
    ok = qm_bitmap_list_read(q, &list, &err) == 0;
    QM_VEC_EACH (m, &list.list) {
        struct stage_bitmap b = {.flags = m->flags, .granularity_bits = m->granularity_bits};

        b.name = strdup(m->name);
        if (!(m->flags & QCOW2_BITMAP_IN_USE) && ok)
            ok = read_bits(q, m, &b.bits, &err) == 0;
        if (!b.name || !qm_vec_push(&out->list, &b))
            abort();
    }
    qm_bitmap_list_release(&list);
    qm_image_close(&q->img);
    return ok || stage_no_because(s, "bitmaps", &err);
}

void
stage_bitmaps_release(struct stage_bitmaps *all)
{
    QM_VEC_EACH (b, &all->list) {
        free(b->name);
        free(b->bits.at);
    }
    qm_vec_release(&all->list);
}

bool
stage_bitmaps_before(struct stage *s)
{
    return load(s, &s->old_bitmaps);
}

bool
stage_bitmaps_after(struct stage *s)
{
    return load(s, &s->done_bitmaps);
}

bool
stage_bitmaps_tell(struct stage *s)
{
    struct stage_bitmaps all = {0};
    struct stage_bytes now = {0};
    struct qmeld_error err = {0};
    bool ok = load(s, &all);

    if (ok && all.list.n && stage_read_view(s, s->base, &now, &err) < 0)
        ok = stage_no_because(s, "bitmaps", &err);
    QM_VEC_EACH (b, &all.list) {
        const struct stage_bitmap *was = find(&s->old_bitmaps, b->name);

        b->before = was && !(was->flags & QCOW2_BITMAP_IN_USE);
        if (ok && !(b->flags & QCOW2_BITMAP_IN_USE))
            ok = bitmap_tells(s, b, &now) && bitmap_is_whole(s, b, &now);
    }
    free(now.at);
    stage_bitmaps_release(&all);
    return ok;
}

/* Whoever skips what is there already cannot know who wrote it, and marks more. */
bool
stage_bitmaps_ended(struct stage *s)
{
    struct stage_bitmaps all = {0};
    bool ok = load(s, &all);

    if (ok && all.list.n != s->done_bitmaps.list.n)
        ok = stage_no(s, "%zu bitmaps are there, not %zu", all.list.n, s->done_bitmaps.list.n);
    QM_VEC_EACH (b, &all.list) {
        const struct stage_bitmap *end = find(&s->done_bitmaps, b->name);

        if (!ok)
            break;
        if (!end || end->flags != b->flags || end->granularity_bits != b->granularity_bits)
            ok = stage_no(s, "bitmap %s has flags %" PRIu32 " now, not %" PRIu32, b->name, b->flags,
                          end ? end->flags : UINT32_MAX);
        else if (lacks(b, end) || (!s->opts.skip_equal && lacks(end, b)))
            ok = stage_no(s, "bitmap %s lacks %zu bits, and has %zu too many", b->name,
                          lacks(b, end), lacks(end, b));
    }
    stage_bitmaps_release(&all);
    return ok;
}
