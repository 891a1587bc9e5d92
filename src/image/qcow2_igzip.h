/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_igzip.h - deflate through ISA-L, where it is built in.
 *
 * Why.  ISA-L deflates ten times as fast as zlib.  It does not inflate for us: its decoder takes
 * Huffman codes that are incomplete, which zlib, and so QEMU, refuses as damaged
 * (docs/decisions/0015-deflate.md).
 *
 * Threads    One state, one thread.
 */
#ifndef QM_QCOW2_IGZIP_H
#define QM_QCOW2_IGZIP_H

#include <stddef.h>

#define QM_IGZIP_LEVEL_MAX 3

/* QEMU inflates with a window of 4 KiB (7.2, block/qcow2-threads.c), so nothing may reach further
 * back, and whoever inflates as a stream depends on it. */
#define QM_DEFLATE_WINDOW_BITS 12

struct qm_igzip;

/* NULL: ISA-L is not built in, or memory is out.  All below may then be left out. */
struct qm_igzip *qm_igzip_new(void);
void qm_igzip_free(struct qm_igzip *g); /* NULL is fine */

/* Level 1 to QM_IGZIP_LEVEL_MAX.  0: *out_len bytes are in out, or *out_len is 0: it does not fit.
 * -1: ask zlib. */
int qm_igzip_deflate(struct qm_igzip *g, int level, const void *src, size_t src_len, void *out,
                     size_t out_cap, size_t *out_len);

#endif
