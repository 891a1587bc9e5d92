/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_salvage.h - a damaged header, a file that was cut off: what of it can be read.
 *
 * Why.  A header is refused for any field that makes no sense, as whoever writes to such an image would
 * destroy it.  Who only wants to save what is in it needs the size, the cluster size and the L1 table; refcounts,
 * snapshots, bitmaps and most extensions are nothing to him.
 *
 * Threads    No I/O, no state.
 */
#ifndef QM_QCOW2_SALVAGE_H
#define QM_QCOW2_SALVAGE_H

#include "qcow2_disk.h"

/* As qcow2_header_decode, of area, which is changed: fields that reading does not need are put right, each told to fn
 * (may be NULL).  *out_below_lost: there was a backing file, and its name is lost.  Entries of the L1 table that cannot
 * be there are not in out->l1_entries, which may be too few for the size.  What cannot be done without is an
 * error, as there; so is a disk of more than QCOW2_SALVAGE_MAX with a table too short for it. */
int qcow2_header_salvage(const char *file, void *area, size_t len, qmeld_finding_fn *fn,
                         void *opaque, struct qcow2_header *out, bool *out_below_lost,
                         struct qmeld_error *err) QM_CHECK;

#define QCOW2_SALVAGE_MAX (64ull << 40)

struct qm_qcow2;
struct qm_extent;

/* Of an image that is opened as damaged, what its walk has found, as far as the file has it: shorter, or CORRUPT.  Of
 * others nothing is changed. */
int qm_qcow2_cut_to_file(const struct qm_qcow2 *q, struct qm_extent *ext, struct qmeld_error *err)
    QM_CHECK;

#endif
