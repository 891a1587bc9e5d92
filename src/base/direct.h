/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * direct.h - a file's bytes past the page cache (O_DIRECT).
 *
 * Why.  With --cache=none a merge leaves the page cache alone altogether.  Not every file system can, and those that
 * can want whole sectors in aligned memory; which ranges that are is told here.
 *
 * Direct writes beside writes through the cache that share a page with them, at one time, are what the kernel
 * cannot make coherent (Linux, mm/filemap.c, dio_warn_stale_pagecache).  So who writes a file directly writes nothing
 * else to it meanwhile; before and after, kernel and file system see to it.
 *
 * Calls      qm_direct_open; reads and writes; qm_direct_close.
 * Threads    Many.
 * Units      Bytes.
 * Errors     0 or -1 with *err.  "Refused" is no error: it was not done, and can be done through the cache.
 */
#ifndef QM_DIRECT_H
#define QM_DIRECT_H

#include "io.h"

struct qm_direct;

/* Opens the file once more; to write, too, if it is writable.  NULL: it cannot be, or has been replaced. */
struct qm_direct *qm_direct_open(struct qm_file *file);
void qm_direct_close(struct qm_direct *d); /* NULL is fine */

/* Offsets, lengths and memory are multiples of it: of pages, so that no page is both. */
uint64_t qm_direct_unit(void);

/* Aligned memory, for free(); NULL: there is none. */
void *qm_direct_buffer(size_t len);

int qm_direct_read(struct qm_direct *d, uint64_t off, void *buf, size_t len, bool *out_refused,
                   struct qmeld_error *err) QM_CHECK;
int qm_direct_write(struct qm_direct *d, uint64_t off, const void *buf, size_t len,
                    bool *out_refused, struct qmeld_error *err) QM_CHECK;

#endif
