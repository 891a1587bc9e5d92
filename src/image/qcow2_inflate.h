/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_inflate.h - inflate a raw deflate stream that is beyond doubt, quickly.
 *
 * Why.  zlib decides what a damaged cluster is, as it does for QEMU, but it was not written to fill a
 * buffer that is there as a whole.  This half takes only what every version of zlib takes in the same
 * way: a stream that ends, with complete Huffman codes, that fills its cluster exactly.  Whatever is
 * not so is left to zlib (docs/decisions/0015-deflate.md).
 *
 * Threads    One state, one thread.
 */
#ifndef QM_QCOW2_INFLATE_H
#define QM_QCOW2_INFLATE_H

#include <stdbool.h>
#include <stddef.h>

struct qm_inflate;

struct qm_inflate *qm_inflate_new(void); /* NULL: out of memory */
void qm_inflate_free(struct qm_inflate *z);

/* True: src begins with such a stream, and out is what it says.  False: ask zlib; out may have been
 * written to.  Reads and writes nothing outside of the two. */
bool qm_inflate(struct qm_inflate *z, const void *src, size_t src_len, void *out, size_t out_len);

#endif
