/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_append.h - a new image that is filled from its first guest byte to its last.
 *
 * Why.  Who writes a whole disk out anew knows more than who merges into one (qcow2_edit.h): nothing is there, nothing
 * is replaced, guest clusters come in ascending order.  So no entry is read back, each L2 table is
 * written once, in front of the data it leads to, and one table is all that is in memory.
 *
 * The order a caller keeps, batch by batch:
 *     qm_append_* (any number)           places are taken; whoever has the bytes writes them there
 *     qm_append_prepare                  tables, refcounts, the file's length
 *     qm_sync(file)                      all of it durable; a crash until here leaves leaks
 *     qm_append_publish                  what leads to it, synced
 * What was published stays as it is.  An image that was closed after some batch is gone on with: resumed.
 *
 * Threads    One thread.
 * Ownership  The image is borrowed; it must be writable, and nobody else's.
 * Errors     0 or -1 with *err: IO, NOSPACE, CORRUPT (only if it is gone on with), NOMEM.
 */
#ifndef QM_QCOW2_APPEND_H
#define QM_QCOW2_APPEND_H

#include "qcow2_pack.h"

struct qm_append;

/* resumed: q is gone on with from guest cluster `from` on.  Nothing leads to what lies from there on any more, and what
 * an interrupted batch took is free again; its bytes may still be there. */
int qm_append_open(struct qm_qcow2 *q, bool resumed, uint64_t from, struct qm_append **out,
                   struct qmeld_error *err) QM_CHECK;
void qm_append_close(struct qm_append *a); /* NULL is fine */

/* A host cluster for guest cluster idx, which lies behind all before.  units: the subclusters that have data (bit
 * 0 = the first), 1 without extended L2 entries; what of them is not written must be zeroed. */
int qm_append_cluster(struct qm_append *a, uint64_t idx, uint32_t units, host_off *out,
                      struct qmeld_error *err) QM_CHECK;

/* Bytes for guest cluster idx in compressed form, by the codec that the header names.  *out_fits false: an entry cannot
 * lead that far; nothing is taken, and the cluster must be stored as it is. */
int qm_append_compressed(struct qm_append *a, uint64_t idx, uint32_t len, host_off *out,
                         bool *out_fits, struct qmeld_error *err) QM_CHECK;

/* Extent x of `from`, a compressed cluster (qm_pack_may_pass), is guest cluster idx as it is.  NOSPACE: an entry cannot lead
 * that far. */
int qm_append_passed(struct qm_append *a, uint64_t idx, const struct qm_image *from,
                     const struct qm_extent *x, struct qm_passed *out, struct qmeld_error *err)
    QM_CHECK;

int qm_append_prepare(struct qm_append *a, struct qmeld_error *err) QM_CHECK;
int qm_append_publish(struct qm_append *a, struct qmeld_error *err) QM_CHECK;

/* Bytes of memory that the batch takes. */
size_t qm_append_weight(const struct qm_append *a);

/* After the last publish: the refcounts are as they are to stay, durable. */
int qm_append_finish(struct qm_append *a, struct qmeld_error *err) QM_CHECK;

#endif
