/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * create.h - the words of qmeld_create_options, for who makes images by them.
 *
 * Errors     0 or -1 with *err: USAGE.
 */
#ifndef QM_CREATE_H
#define QM_CREATE_H

#include "qcow2_create.h"

/* "zlib", "zstd"; NULL: zlib.  path is only for messages, here and below. */
int qm_create_compression(const char *path, const char *name, enum qm_compression *out,
                          struct qmeld_error *err) QM_CHECK;

/* USAGE: raw has no metadata. */
int qm_create_raw_prealloc(const char *path, const char *name, enum qm_prealloc *out,
                           struct qmeld_error *err) QM_CHECK;

/* The strings stay o's. */
int qm_create_parse(const char *path, const struct qmeld_create_options *o,
                    struct qm_qcow2_create *out, struct qmeld_error *err) QM_CHECK;

#endif
