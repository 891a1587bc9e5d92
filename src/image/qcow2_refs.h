/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_refs.h - the refcounts of a qcow2 image that is being changed: look, allocate, free.
 *
 * Why.  One module knows refcount blocks and the refcount table, and the order in which they
 * must reach the disk.  Everybody who needs a cluster (data, L2 tables, bitmaps) asks here.
 *
 * The order a caller keeps, for any change that makes metadata point at new clusters:
 *     qm_refs_alloc (any number)         in memory
 *     qm_refs_write                      blocks written, not yet durable
 *     ... write the clusters' content
 *     qm_sync(file)                      content and refcounts durable
 *     qm_refs_link                       only if blocks were added: the table points at them, synced
 *     ... write the metadata that points at the clusters, qm_sync
 *     qm_refs_free what it pointed at before; the next qm_refs_write brings that to disk
 * A crash anywhere leaves refcounts too high at worst: leaks.
 *
 * Staged images (qcow2_stage.h): clusters are taken from the floor on only; blocks and the table move behind
 * it before they change; what is freed below it is not given back to the file system.
 *
 * Threads    One thread.
 * Ownership  The image is borrowed and stays open longer.
 * Units      Cluster numbers (host offset >> cluster_bits) where a name says cluster.
 * Errors     0 or -1 with *err: IO, NOSPACE, CORRUPT, NOMEM.
 */
#ifndef QM_QCOW2_REFS_H
#define QM_QCOW2_REFS_H

#include "qcow2.h"

struct qm_refs;

int qm_refs_open(struct qm_qcow2 *q, struct qm_refs **out, struct qmeld_error *err) QM_CHECK;
void qm_refs_close(struct qm_refs *refs); /* NULL is fine; staged changes are forgotten */

/* Refcount of a cluster, staged changes included. */
int qm_refs_get(struct qm_refs *refs, uint64_t cluster, uint64_t *out, struct qmeld_error *err)
    QM_CHECK;

/* Number of clusters inside the file whose refcount is not 0. */
int qm_refs_used(struct qm_refs *refs, uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* The first cluster behind the last one in [from, from + n) whose refcount is not 0; from if
 * there is none. */
int qm_refs_end_of_used(struct qm_refs *refs, uint64_t from, uint64_t n, uint64_t *out,
                        struct qmeld_error *err) QM_CHECK;

/* First byte behind the last cluster whose refcount is not 0; 0 if there is none. */
int qm_refs_end(struct qm_refs *refs, uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* Takes up to `want` adjacent free clusters, lowest free first; 1 <= *out_n <= want.  Their
 * refcount is staged to 1.  Same calls, same clusters: the order is part of the contract, as
 * plans predict it. */
int qm_refs_alloc(struct qm_refs *refs, uint64_t want, host_off *out, uint64_t *out_n,
                  struct qmeld_error *err) QM_CHECK;

/* Takes exactly n adjacent clusters (for tables that must be contiguous). */
int qm_refs_alloc_adjacent(struct qm_refs *refs, uint64_t n, host_off *out, struct qmeld_error *err)
    QM_CHECK;

/* Raises the refcount of a cluster in use by one (staged).  NOSPACE: it cannot count that far. */
int qm_refs_raise(struct qm_refs *refs, uint64_t cluster, struct qmeld_error *err) QM_CHECK;

/* Takes this very cluster, if it is free and its refcount block is there; *out: so it was. */
int qm_refs_alloc_at(struct qm_refs *refs, uint64_t cluster, bool *out, struct qmeld_error *err)
    QM_CHECK;

/* Lowers the refcount of every cluster that [off, off + len) touches by one (staged).  Call it only
 * when nothing durable points there any more: a cluster that reaches 0 may be allocated again at
 * once.  CORRUPT if a refcount is 0 already. */
int qm_refs_free(struct qm_refs *refs, host_off off, uint64_t len, struct qmeld_error *err)
    QM_CHECK;

/* Lowers the refcount of one cluster to `to` (staged), if it is higher; as above otherwise. */
int qm_refs_lower(struct qm_refs *refs, uint64_t cluster, uint64_t to, struct qmeld_error *err)
    QM_CHECK;

/* Writes staged refcounts, new blocks and a new table if the table must grow; no sync, nothing
 * that points at a new block. */
int qm_refs_write(struct qm_refs *refs, struct qmeld_error *err) QM_CHECK;

/* After a qm_sync: points the table (or the header at the new table) at blocks added by the
 * last qm_refs_write, and syncs.  Without such blocks it does nothing. */
int qm_refs_link(struct qm_refs *refs, struct qmeld_error *err) QM_CHECK;

/* Write, sync, link: for callers that have nothing else to sync. */
int qm_refs_commit(struct qm_refs *refs, struct qmeld_error *err) QM_CHECK;

/* Clusters whose refcount reached 0 since the image was opened, or the last such call, and that were
 * not taken again: their space is given back to the file system.  What pointed at them is durably
 * gone; their refcounts need not be durable. */
int qm_refs_discard(struct qm_refs *refs, struct qmeld_error *err) QM_CHECK;

/* The same; and a free tail is cut off the file.  Call when everything is durable.  *out_changed (may be NULL): the file
 * was changed, and is to be synced. */
int qm_refs_trim(struct qm_refs *refs, bool *out_changed, struct qmeld_error *err) QM_CHECK;

/* Gives back the space of all free clusters below `end`. */
int qm_refs_discard_free(struct qm_refs *refs, uint64_t end, struct qmeld_error *err) QM_CHECK;

#endif
