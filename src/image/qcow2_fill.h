/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_fill.h - how long an image's file is when its guest has written everywhere.
 *
 * Why.  Whoever gives an image a place wants to know how much it may come to take.
 *
 * Threads    One thread; it uses the image's caches.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_QCOW2_FILL_H
#define QM_QCOW2_FILL_H

#include "qcow2.h"

/* Length of the file when each guest cluster has a host cluster of its own, where the ones that are there
 * stay where they are, and free clusters inside the file are used.  What compressed clusters take is not
 * counted as free then.  UINT64_MAX if no file is that long. */
int qm_qcow2_full_length(struct qm_qcow2 *q, uint64_t *out, struct qmeld_error *err) QM_CHECK;

#endif
