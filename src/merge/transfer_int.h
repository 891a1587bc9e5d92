/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * transfer_int.h - what transfer.c and batches.c share, and nobody else.
 */
#ifndef QM_TRANSFER_INT_H
#define QM_TRANSFER_INT_H

#include "transfer.h"

/* A copy into the target, or, write being false, to nowhere. */
int qm_transfer_open_copy(const struct qm_transfer *t, const char *phase, bool write,
                          struct qm_copy **out, struct qmeld_error *err) QM_CHECK;

#endif
