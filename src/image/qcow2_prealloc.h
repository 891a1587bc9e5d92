/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_prealloc.h - does an image look as if its metadata had been preallocated.
 *
 * Why.  In such an image a "data" entry says nothing: its cluster may never have been written.
 * QEMU then looks for holes in the file; to print the same map one must guess as it does.
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_QCOW2_PREALLOC_H
#define QM_QCOW2_PREALLOC_H

#include "qcow2.h"

/* True if far more clusters have a refcount than the file takes on disk.  Cost: refcount blocks,
 * only where the file is sparse enough for the answer to be open, and at most 1 GiB of them. */
int qm_qcow2_is_preallocated(const struct qm_qcow2 *q, bool *out, struct qmeld_error *err) QM_CHECK;

#endif
