/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_report.h - what is odd about where the clusters of a qcow2 image lie.
 *
 * Why.  Whoever examines an image, or wants to save what a damaged one has lost, asks not how many
 * refcounts are wrong but which bytes of the file nobody refers to any more, and which two parts
 * of the guest's disk, or of the metadata, claim the same bytes.
 *
 * Calls      qm_qcow2_report.
 * Threads    One thread.
 * Errors     0 or -1 with *err: IO, NOMEM, UNSUPPORTED (a cap was hit), CANCELED.  Anomalies are no errors.
 * Memory     Four sets of counters within the budget of a census (qcow2_census.h).
 */
#ifndef QM_QCOW2_REPORT_H
#define QM_QCOW2_REPORT_H

#include "qcow2.h"

/* Overlaps and second references of the active view first, in the order of the guest's disk; what lies among compressed
 * data; the same of internal snapshots, in what they do not share; then what is unreferenced and not only zeros, in
 * the order of the file.  That views share clusters is as it should be. */
int qm_qcow2_report(struct qm_qcow2 *q, qmeld_anomaly_fn *fn, void *opaque, struct qmeld_error *err)
    QM_CHECK;

#endif
