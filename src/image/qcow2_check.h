/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_check.h - does the metadata of a qcow2 image add up, and mend it.
 *
 * Why.  A refcount that is too low makes the next allocation overwrite somebody's data.  So a
 * merge counts all references of its target before it writes a byte; `qmeld check` prints
 * what is found, and repairs.  Counts, order and exit meaning are those of `qemu-img check`.
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err.  Findings are not errors: they are counted in the result.
 * Memory     Proportional to the clusters the image refers to, capped with a clear error.
 */
#ifndef QM_QCOW2_CHECK_H
#define QM_QCOW2_CHECK_H

#include "qcow2.h"

/* Counts every reference and compares; with repair, the file must be writable and locked.  fn may
 * be NULL.  After a repair the image is checked again; *out holds the second result and
 * the *_fixed counts.  Repairs are ordered so that a crash leaves leaks, or the dirty bit set. */
int qm_qcow2_check(struct qm_qcow2 *q, enum qmeld_repair repair, qmeld_finding_fn *fn, void *opaque,
                   struct qmeld_check_result *out, struct qmeld_error *err) QM_CHECK;

/* Gives back what an interrupted run took and never used, as a step of something larger: that is not
 * done if this fails, whatever was mended. */
int qm_qcow2_mend_leaks(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* Before a merge writes into q: a dirty image (version 3, lazy refcounts after a crash) gets its
 * refcounts rebuilt and the dirty bit cleared, durable; an image with corruptions is
 * refused (CORRUPT, with the command that mends it).  Leaks are fine.  q is reloaded.  If anything
 * was written, err->disk is OPEN from then on, after a success, too. */
int qm_qcow2_make_safe_to_write(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

/* Would that refuse it?  Writes nothing; of a dirty image only what its refcounts have no part in is
 * judged.  *out_shared: some cluster or L2 table of the active view has a refcount above 1, so that who
 * takes one reference away would have to set the COPIED flag of another; not said of a dirty image. */
int qm_qcow2_look_safe(struct qm_qcow2 *q, bool *out_shared, struct qmeld_error *err) QM_CHECK;

#endif
