/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_empty.h - make an overlay hold nothing, so that it reads as its backing file.
 *
 * Why.  After a merge the overlay's clusters are copies of what the base now holds.  `qemu-img
 * commit` empties the overlay then; this does the same to the same result, but so that at every
 * instant each guest byte is read from the overlay (as before) or from the base (the same bytes).
 *
 * Source     qemu 7.2, block/qcow2.c (qcow2_make_empty): in place, down to header, refcount
 *            table, one refcount block and L1 if version 3, no internal snapshots, no bitmaps,
 *            and it fits; otherwise every active cluster is given up (QEMU leaves the L2
 *            tables; here they go, too).
 * Crash      What is left reads right.  Version 3 may be left dirty, other images with leaks.
 * Errors     0 or -1 with *err: CORRUPT (nothing given up), UNSUPPORTED, IO, NOSPACE, NOMEM.
 */
#ifndef QM_QCOW2_EMPTY_H
#define QM_QCOW2_EMPTY_H

#include "qcow2.h"

/* q is writable and exclusively locked, and everything below it already answers for it. */
int qm_qcow2_empty(struct qm_qcow2 *q, struct qmeld_error *err) QM_CHECK;

#endif
