/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_empty.c - an overlay gives up all it holds.
 *
 * Both ways begin with the same commit point: the L1 table becomes zeros, in place.  An entry is
 * eight aligned bytes and a sector is written whole or not, so at every instant each guest
 * byte is read through an old entry (the overlay's copy) or through none (the base's, which
 * is the same).  Only after that is durable does anything happen to what the entries led to.
 *
 * Shrinking (version 3, no snapshots, no bitmaps, the new tables fit one refcount block; as
 * qemu 7.2, block/qcow2.c, make_completely_empty): tables are laid out anew over whatever lies
 * at the front of the file, so refcounts are void for a while, which the dirty bit says.
 *   1 dirty bit on; refcounts need not be believed any more
 *   2 L1 table zeroed; reads as the base from here on
 *   3 clusters 1 to 2 + n zeroed (n: of the L1 table); the old L1 may lie there and stays zeros
 *   4 sector 0: L1 at cluster 3, refcount table at 1; both are zeros, and the old L1's place is
 *     free for the next step
 *   5 refcount block at 2, its entry in the table
 *   6 the file is cut behind the new L1
 *   7 dirty bit off
 * Each is durable before the next.
 * A crash after 1 leaves a dirty image, whose refcounts the next writer rebuilds; its guest view is
 * right all the time.
 *
 * Giving up (all other images, qcow2_unmap.c): after the L1 table is zeros, each cluster it led to
 * loses one reference, and so do the L2 tables.  A crash leaves leaks.  Snapshots keep their
 * references.  (QEMU keeps the L2 tables, with empty entries; nobody needs them.)
 */
#include "qcow2_empty.h"

#include "qcow2_check.h"
#include "qcow2_header.h"
#include "qcow2_unmap.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define L1_AT_ONCE ((uint32_t)65536) /* entries; 512 KiB */

static uint64_t
l1_bytes(const struct qm_qcow2 *q)
{
    return (uint64_t)q->hdr.l1_entries * sizeof(be64);
}

/* COMMIT POINT: nothing is read from the overlay any more. */
static int
zero_l1(struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct qm_file *file = q->img.file;
    const uint64_t len = l1_bytes(q);
    QM_FREE be64 *zeros = NULL;
    uint64_t n;

    if (len == 0 || q->hdr.l1_off >= file->size) /* entries behind the file's end read as 0 */
        return 0;
    if (q->hdr.l1_off < q->geo.cluster_size)
        return qm_fail(err, QMELD_CORRUPT, qm_at(file->path, q->hdr.l1_off),
                       "the L1 table lies in the header: restore the image from a copy");
    zeros = calloc(L1_AT_ONCE, sizeof *zeros);
    if (!zeros)
        return qm_fail_nomem(err, "an empty L1 table");
    n = qm_min(len, file->size - q->hdr.l1_off);
    for (uint64_t off = 0; off < n; off += L1_AT_ONCE * sizeof(be64))
        if (qm_pwrite(file, q->hdr.l1_off + off, zeros, qm_min(n - off, L1_AT_ONCE * sizeof(be64)),
                      err) < 0)
            return -1;
    return qm_sync(file, err);
}

/* ---- shrinking ---- */

static uint64_t
l1_clusters(const struct qm_qcow2 *q)
{
    return qm_div_up(l1_bytes(q), q->geo.cluster_size);
}

static bool
can_shrink(const struct qm_qcow2 *q)
{
    /* clusters 1 and on are overwritten: an encryption header is among them (QEMU, too, keeps off) */
    return q->hdr.version >= 3 && q->hdr.n_snapshots == 0 && !q->hdr.has_bitmaps &&
           q->hdr.crypto_len == 0 && 3 + l1_clusters(q) <= 1ull << q->geo.refblock_bits;
}

/* Real zeros, not a hole: the file system must have the space when steps 4 and 5 need it. */
static int
zero_front(struct qm_qcow2 *q, struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;
    QM_FREE unsigned char *zeros = calloc(1, cs);

    if (!zeros)
        return qm_fail_nomem(err, "an empty cluster");
    for (uint64_t i = 1; i < 3 + l1_clusters(q); i++)
        if (qm_pwrite(q->img.file, i * cs, zeros, cs, err) < 0)
            return -1;
    return qm_sync(q->img.file, err);
}

static int
write_refcounts(struct qm_qcow2 *q, struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;
    QM_FREE unsigned char *block = calloc(1, cs);
    be64 entry;

    if (!block)
        return qm_fail_nomem(err, "a refcount block");
    for (uint64_t i = 0; i < 3 + l1_clusters(q); i++)
        qcow2_refcount_put(block, q->geo.refcount_order, i, 1);
    be64_put(&entry, 2 * cs);
    if (qm_pwrite(q->img.file, 2 * cs, block, cs, err) < 0 ||
        qm_pwrite(q->img.file, cs, &entry, sizeof entry, err) < 0)
        return -1;
    return qm_sync(q->img.file, err);
}

static int
cut(struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct qm_file *file = q->img.file;
    const uint64_t end = (3 + l1_clusters(q)) * q->geo.cluster_size;

    if (file->blockdev)
        return file->size > end ? qm_discard(file, end, file->size - end, err) : 0;
    if (qm_truncate(file, end, err) < 0)
        return -1;
    return qm_sync(file, err);
}

static int
shrink(struct qm_qcow2 *q, struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;

    q->hdr.incompatible |= QCOW2_INCOMPAT_DIRTY;
    if (qm_header_store(q, err) < 0 || zero_l1(q, err) < 0 || zero_front(q, err) < 0)
        return -1;
    q->hdr.l1_off = 3 * cs;
    q->hdr.reftable_off = cs;
    q->hdr.reftable_clusters = 1;
    if (qm_header_store(q, err) < 0 || write_refcounts(q, err) < 0 || cut(q, err) < 0)
        return -1;
    q->hdr.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
    return qm_header_store(q, err);
}

/* ---- giving up ---- */

static int
give_up(struct qm_qcow2 *q, struct qmeld_error *err)
{
    uint64_t end;

    /* a refcount that is too low would take a cluster from a snapshot */
    if (qm_qcow2_make_safe_to_write(q, err) < 0)
        return -1;
    return qm_qcow2_unmap(q, 0, UINT64_MAX, &end, err);
}

int
qm_qcow2_empty(struct qm_qcow2 *q, struct qmeld_error *err)
{
    if (qm_qcow2_can_read(q, err) < 0)
        return -1;
    if (q->hdr.incompatible & QCOW2_INCOMPAT_CORRUPT)
        return qm_fail(err, QMELD_CORRUPT, qm_in(q->img.file->path),
                       "the image is marked corrupt: run `qmeld check --repair=all` on it");
    if (qm_header_before_write(q, err) < 0)
        return -1;
    if ((can_shrink(q) ? shrink(q, err) : give_up(q, err)) < 0)
        return -1;
    return qm_qcow2_reload(q, err);
}
