/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * tables.c - a qcow2 image in memory, made entry by entry.
 */
#include "tables.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

void
qm_tables_put(struct qm_tables *f, uint64_t off, const void *bytes, size_t len)
{
    assert_int_equal(pwrite(f->fd, bytes, len, (off_t)off), len);
}

void
qm_tables_put64(struct qm_tables *f, uint64_t off, uint64_t value)
{
    be64 raw;

    be64_put(&raw, value);
    qm_tables_put(f, off, &raw, sizeof raw);
}

void
qm_tables_make(struct qm_tables *f, uint32_t version, uint32_t cluster_bits, bool extended,
               uint64_t size)
{
    struct qcow2_disk_header h = {0};
    const struct qcow2_header host = {.version = version,
                                      .cluster_bits = cluster_bits,
                                      .refcount_order = 4,
                                      .incompatible = extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0};

    memset(f, 0, sizeof *f);
    f->fd = memfd_create("qcow2_tables", MFD_CLOEXEC);
    assert_true(f->fd >= 0);
    snprintf(f->path, sizeof f->path, "/proc/self/fd/%d", f->fd);
    f->geo = qcow2_geo_of(&host);
    f->cs = f->geo.cluster_size;
    f->l1_off = f->cs;
    be32_put(&h.magic, QCOW2_MAGIC);
    be32_put(&h.version, version);
    be32_put(&h.cluster_bits, cluster_bits);
    be64_put(&h.size, size);
    be32_put(&h.l1_entries, (uint32_t)qcow2_l1_needed(&f->geo, size));
    be64_put(&h.l1_off, f->l1_off);
    be64_put(&h.reftable_off, 1ull << 40); /* nobody looks at refcounts here */
    be32_put(&h.reftable_clusters, 1);
    if (version == 3) {
        be64_put(&h.incompatible, host.incompatible);
        be32_put(&h.refcount_order, 4);
        be32_put(&h.header_len, 112);
    }
    qm_tables_put(f, 0, &h, version == 3 ? sizeof h : QCOW2_V2_HEADER_LEN);
}

void
qm_tables_set_l1(struct qm_tables *f, uint64_t idx, uint64_t entry)
{
    qm_tables_put64(f, f->l1_off + idx * 8, entry);
}

/* word0 of entry idx of the L2 table at table */
void
qm_tables_set_l2(struct qm_tables *f, uint64_t table, uint64_t idx, uint64_t word0)
{
    qm_tables_put64(f, table + idx * f->geo.l2_entry_len, word0);
}

int
qm_tables_open_flags(struct qm_tables *f, unsigned flags)
{
    struct qm_file *file;

    assert_int_equal(qm_file_open(f->path, &file, &f->err), 0);
    if (qm_qcow2_open(file, flags, &f->q, &f->err) == 0)
        return 0;
    qm_file_close(file);
    return -1;
}

void
qm_tables_open(struct qm_tables *f)
{
    if (qm_tables_open_flags(f, QCOW2_DECODE_STRICT) < 0)
        fail_msg("%s", f->err.what);
}

void
qm_tables_end(struct qm_tables *f)
{
    if (f->q)
        qm_image_close(&f->q->img);
    close(f->fd);
}

int
qm_tables_try_next(struct qm_tables *f, uint64_t from, struct qm_extent *e)
{
    return qm_image_next(&f->q->img, qm_guest(from), f->q->img.size - from, e, &f->err);
}

struct qm_extent
qm_tables_next(struct qm_tables *f, uint64_t from)
{
    struct qm_extent e;

    if (qm_tables_try_next(f, from, &e) < 0)
        fail_msg("%s", f->err.what);
    assert_int_equal(e.guest.g, from);
    return e;
}
