/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * losses.h - what a salvaging flatten could not read, as a map file of GNU ddrescue.
 *
 * Why.  Every byte of the new image is either what the chain had or listed as lost.  The form is what people who
 * rescue disks have tools for: lines of position, size and '+' or '-' (GNU ddrescue manual, "Mapfile structure").
 *
 * Calls      begin; add each chunk, in order; end; free.
 * Threads    One thread.
 * Ownership  The file is borrowed, and may be NULL: then losses are only counted.
 * Errors     0 or -1 with *err: IO, NOSPACE, NOMEM.
 */
#ifndef QM_LOSSES_H
#define QM_LOSSES_H

#include "stream.h"

struct qm_losses;

int qm_losses_begin(struct qm_file *file, struct qm_losses **out, struct qmeld_error *err) QM_CHECK;
int qm_losses_add(struct qm_losses *l, const struct qm_chunk *chunk, struct qmeld_error *err)
    QM_CHECK;

/* Durable on return. */
int qm_losses_end(struct qm_losses *l, uint64_t *out_bytes, uint64_t *out_ranges,
                  struct qmeld_error *err) QM_CHECK;
void qm_losses_free(struct qm_losses *l); /* NULL is fine */

#endif
