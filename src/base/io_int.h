/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * io_int.h - between io.c and shadow.c: what the shadow of a file needs of the file.  Nobody else includes it.
 */
#ifndef QM_IO_INT_H
#define QM_IO_INT_H

#include "io.h"

/* Reads up to len bytes of the real file; *out_got < len only at its end. */
int qm_io_read_some(const struct qm_file *f, uint64_t off, void *buf, size_t len, size_t *out_got,
                    struct qmeld_error *err) QM_CHECK;

#endif
