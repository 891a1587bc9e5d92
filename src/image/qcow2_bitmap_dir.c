/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_dir.c - the directory of persistent bitmaps, and their tables, read and checked.
 */
#include "qcow2_bitmap_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define MIN_GRANULARITY 9u /* QEMU, as the next */
#define MAX_GRANULARITY 31u
#define MAX_NAME        1023u
#define ENTRIES_AT_ONCE ((uint64_t)8192)

#define ADVICE "remove the bitmap with `qemu-img bitmap --remove`, or restore the image from a copy"

/* ---- sizes ---- */

uint64_t
qm_bitmap_bits(const struct qm_bitmap *m, uint64_t size)
{
    return qm_div_up(size, 1ull << m->granularity_bits);
}

/* specification, "Bitmap table": it has one entry for each cluster of bits, no more and no less */
uint64_t
qm_bitmap_entries(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t size)
{
    return qm_div_up(qm_div_up(qm_bitmap_bits(m, size), 8), q->geo.cluster_size);
}

/* ---- directory ---- */

static int
bad_entry(const struct qm_qcow2 *q, uint64_t pos, const char *what, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, q->hdr.bitmap_dir_off + pos),
                   "bitmap directory: %s: " ADVICE, what);
}

/* qemu 7.2, block/qcow2-bitmap.c, check_dir_entry: the same limits */
static int
check_entry(const struct qm_qcow2 *q, const struct qm_bitmap *m, unsigned type,
            struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;

    if (type != 1)
        return bad_entry(q, m->dir_pos, "an unknown kind of bitmap", err);
    if (m->flags & ~(QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO |
                     (m->extra_len ? QCOW2_BITMAP_EXTRA_COMPATIBLE : 0)))
        return bad_entry(q, m->dir_pos, "unknown flags", err);
    if (m->granularity_bits < MIN_GRANULARITY || m->granularity_bits > MAX_GRANULARITY)
        return bad_entry(q, m->dir_pos, "impossible granularity", err);
    if (m->table.h == 0 || m->table.h % cs != 0 || m->table.h > QCOW2_OFFSET_MASK)
        return bad_entry(q, m->dir_pos, "a table at an impossible place", err);
    if (m->table_entries == 0 || m->table_entries > QCOW2_MAX_BITMAP_BYTES / cs)
        return bad_entry(q, m->dir_pos, "a table of impossible size", err);
    if (!(m->flags & QCOW2_BITMAP_IN_USE) &&
        m->table_entries != qm_bitmap_entries(q, m, q->hdr.size))
        return bad_entry(q, m->dir_pos, "a table that does not fit the virtual size", err);
    return 0;
}

/* One entry at *pos of the directory, *pos moved behind it. */
static int
take_entry(const struct qm_qcow2 *q, const unsigned char *dir, uint64_t *pos,
           struct qm_bitmap_list *out, struct qmeld_error *err)
{
    const uint64_t left = q->hdr.bitmap_dir_len - *pos;
    struct qcow2_disk_bitmap raw;
    struct qm_bitmap m = {.dir_pos = *pos};
    uint64_t name_len, len;

    if (left < sizeof raw)
        return bad_entry(q, *pos, "an entry does not fit", err);
    memcpy(&raw, dir + *pos, sizeof raw);
    name_len = be16_get(&raw.name_len);
    len = qm_align_up(sizeof raw + name_len + be32_get(&raw.extra_len), 8);
    if (len > left)
        return bad_entry(q, *pos, "an entry does not fit", err);
    m.dir_len = len;
    m.extra_len = be32_get(&raw.extra_len);
    if (name_len == 0 || name_len > MAX_NAME)
        return bad_entry(q, *pos, "a name of impossible length", err);
    m.table = qm_host(be64_get(&raw.table_off));
    m.table_entries = be32_get(&raw.table_entries);
    m.flags = be32_get(&raw.flags);
    m.granularity_bits = raw.granularity_bits;
    if (check_entry(q, &m, raw.type, err) < 0)
        return -1;
    m.name = strndup((const char *)dir + *pos + sizeof raw + m.extra_len, name_len);
    if (!m.name || !qm_vec_push(&out->list, &m)) {
        free(m.name);
        return qm_fail_nomem(err, "the bitmap directory");
    }
    *pos += len;
    return 0;
}

int
qm_bitmap_by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int
check_names(const struct qm_qcow2 *q, const struct qm_bitmap_list *l, struct qmeld_error *err)
{
    QM_FREE const char **names = calloc(l->list.n + 1, sizeof *names);

    if (!names)
        return qm_fail_nomem(err, "the bitmap directory");
    for (size_t i = 0; i < l->list.n; i++)
        names[i] = l->list.at[i].name;
    qsort(names, l->list.n, sizeof *names, qm_bitmap_by_name);
    for (size_t i = 1; i < l->list.n; i++)
        if (strcmp(names[i - 1], names[i]) == 0)
            return bad_entry(q, 0, "two bitmaps of one name", err);
    return 0;
}

int
qm_bitmap_list_read(const struct qm_qcow2 *q, struct qm_bitmap_list *out, struct qmeld_error *err)
{
    const struct qcow2_header *h = &q->hdr;
    QM_FREE unsigned char *dir = NULL;
    uint64_t pos = 0;

    memset(out, 0, sizeof *out);
    if (!h->has_bitmaps)
        return 0;
    dir = malloc(h->bitmap_dir_len + 1);
    if (!dir)
        return qm_fail_nomem(err, "the bitmap directory");
    if (qm_pread_padded(q->img.file, h->bitmap_dir_off, dir, h->bitmap_dir_len, err) < 0)
        return -1;
    for (uint32_t i = 0; i < h->n_bitmaps; i++)
        if (take_entry(q, dir, &pos, out, err) < 0)
            goto out;
    if (pos != h->bitmap_dir_len && bad_entry(q, pos, "more bytes than entries", err) < 0)
        goto out;
    if (check_names(q, out, err) < 0)
        goto out;
    return 0;
out:
    qm_bitmap_list_release(out);
    return -1;
}

void
qm_bitmap_list_release(struct qm_bitmap_list *l)
{
    QM_VEC_EACH (m, &l->list)
        free(m->name);
    qm_vec_release(&l->list);
}

/* ---- names ---- */

int
qm_bitmaps_valid_names(const struct qm_qcow2 *q, struct qm_bitmap_names *out,
                       struct qmeld_error *err)
{
    struct qm_bitmap_list all;
    int rc = 0;

    memset(out, 0, sizeof *out);
    if (qm_bitmap_list_read(q, &all, err) < 0)
        return -1;
    QM_VEC_EACH (m, &all.list) {
        if (!qm_bitmap_is_valid(m))
            continue;
        if (!qm_vec_push(&out->list, &m->name)) {
            rc = qm_fail_nomem(err, "the names of bitmaps");
            break;
        }
        m->name = NULL; /* it went to the caller */
    }
    qm_bitmap_list_release(&all);
    if (rc < 0)
        qm_bitmap_names_release(out);
    return rc;
}

void
qm_bitmap_names_release(struct qm_bitmap_names *names)
{
    QM_VEC_EACH (name, &names->list)
        free(*name);
    qm_vec_release(&names->list);
}

/* ---- tables ---- */

int
qm_bitmap_read_entries(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t first,
                       uint64_t n, uint64_t *out, struct qmeld_error *err)
{
    const uint64_t at = m->table.h + first * sizeof(be64);

    if (qm_pread_padded(q->img.file, at, out, n * sizeof(be64), err) < 0)
        return -1;
    for (uint64_t i = 0; i < n; i++) {
        be64 raw;
        uint64_t e;

        memcpy(&raw, &out[i], sizeof raw);
        e = out[i] = be64_get(&raw);
        if (e == BITMAP_ALL_ONES)
            continue;
        if ((e & ~QCOW2_OFFSET_MASK) || e % q->geo.cluster_size)
            return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, at + i * sizeof(be64)),
                           "bitmap \"%.100s\": bad table entry: " ADVICE, m->name);
    }
    return 0;
}

int
qm_bitmap_read_table(const struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t *out,
                     struct qmeld_error *err)
{
    for (uint64_t i = 0; i < m->table_entries; i += ENTRIES_AT_ONCE)
        if (qm_bitmap_read_entries(q, m, i, qm_min(ENTRIES_AT_ONCE, m->table_entries - i), out + i,
                                   err) < 0)
            return -1;
    return 0;
}
