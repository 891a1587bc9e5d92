/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_bitmap_read.c - the bits of a bitmap that nobody changes, as runs of guest bytes.
 */
#include "qcow2_bitmap_int.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ENTRIES_AT_ONCE ((uint64_t)8192)

struct walk {
    const struct qm_qcow2 *q;
    const struct qm_bitmap *m;
    qm_bitmap_run_fn *fn;
    void *opaque;
    uint64_t from; /* the run that is open: bits [from, to) */
    uint64_t to;
};

/* Bits behind the disk's end mean nothing (QEMU does not look at them). */
static int
end_run(struct walk *w, struct qmeld_error *err)
{
    const uint32_t g = w->m->granularity_bits;
    const uint64_t at = w->from << g, size = w->q->hdr.size;
    const uint64_t len = qm_min((w->to - w->from) << g, at < size ? size - at : 0);

    w->from = w->to;
    return len ? w->fn(qm_guest(at), len, w->opaque, err) : 0;
}

/* Bits [from, to) are set. */
static int
add_run(struct walk *w, uint64_t from, uint64_t to, struct qmeld_error *err)
{
    if (from != w->to) {
        if (w->to > w->from && end_run(w, err) < 0)
            return -1;
        w->from = from;
    }
    w->to = to;
    return 0;
}

/* A cluster of bits, the first of which is number `first`. */
static int
walk_bits(struct walk *w, uint64_t first, const unsigned char *bits, uint64_t bytes,
          struct qmeld_error *err)
{
    for (uint64_t i = 0; i < bytes; i++) {
        const uint64_t at = first + i * 8;

        if (bits[i] == 0)
            continue;
        if (bits[i] == 0xff) {
            if (add_run(w, at, at + 8, err) < 0)
                return -1;
            continue;
        }
        for (unsigned k = 0; k < 8; k++)
            if ((bits[i] >> k & 1) && add_run(w, at + k, at + k + 1, err) < 0)
                return -1;
    }
    return 0;
}

static int
walk_entries(struct walk *w, uint64_t first, const uint64_t *entries, uint64_t n,
             unsigned char *bits, struct qmeld_error *err)
{
    const uint64_t cs = w->q->geo.cluster_size, per = cs * 8;

    for (uint64_t k = 0; k < n; k++) {
        const uint64_t at = (first + k) * per;

        if (entries[k] == 0)
            continue;
        if (entries[k] == BITMAP_ALL_ONES) {
            if (add_run(w, at, at + per, err) < 0)
                return -1;
            continue;
        }
        if (qm_pread(w->q->img.file, entries[k], bits, cs, err) < 0 ||
            walk_bits(w, at, bits, cs, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_bitmap_each_run(const struct qm_qcow2 *q, const struct qm_bitmap *m, qm_bitmap_run_fn *fn,
                   void *opaque, struct qmeld_error *err)
{
    struct walk w = {.q = q, .m = m, .fn = fn, .opaque = opaque};
    QM_FREE uint64_t *some = calloc(ENTRIES_AT_ONCE, sizeof *some);
    QM_FREE unsigned char *bits = malloc(q->geo.cluster_size);

    if (!some || !bits)
        return qm_fail_nomem(err, "a bitmap");
    for (uint64_t i = 0; i < m->table_entries; i += ENTRIES_AT_ONCE) {
        const uint64_t n = qm_min(ENTRIES_AT_ONCE, m->table_entries - i);

        if (qm_bitmap_read_entries(q, m, i, n, some, err) < 0 ||
            walk_entries(&w, i, some, n, bits, err) < 0)
            return -1;
    }
    return w.to > w.from ? end_run(&w, err) : 0;
}

int
qm_bitmap_check_table(const struct qm_qcow2 *q, const struct qm_bitmap *m, struct qmeld_error *err)
{
    QM_FREE uint64_t *some = calloc(ENTRIES_AT_ONCE, sizeof *some);
    const uint64_t size = q->img.file->size;

    if (!some)
        return qm_fail_nomem(err, "a bitmap");
    for (uint64_t i = 0; i < m->table_entries; i += ENTRIES_AT_ONCE) {
        const uint64_t n = qm_min(ENTRIES_AT_ONCE, m->table_entries - i);

        if (qm_bitmap_read_entries(q, m, i, n, some, err) < 0)
            return -1;
        for (uint64_t k = 0; k < n; k++)
            if (some[k] > BITMAP_ALL_ONES && !qm_inside(some[k], q->geo.cluster_size, size))
                return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, some[k]),
                               "bitmap \"%.100s\": its bits lie behind the end of the file: remove "
                               "it with `qemu-img bitmap --remove`",
                               m->name);
    }
    return 0;
}
