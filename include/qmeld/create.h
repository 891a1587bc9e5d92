/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/create.h - new images.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 */
#ifndef QMELD_CREATE_H
#define QMELD_CREATE_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qmeld_create_options {
    const char *format;         /* "qcow2" or "raw"; NULL: raw, as qemu-img create has it */
    uint64_t size;              /* virtual size; ignored if has_size is false */
    bool has_size;              /* false: the backing file's size */
    const char *backing_name;   /* NULL: none; stored as it is */
    const char *backing_format; /* required with backing_name */
    const char *const
        *allow_paths;        /* as in struct qmeld_open_options, for what lies below that file */
    unsigned version;        /* 2 or 3; 0: 3 */
    uint64_t cluster_size;   /* 0: 65536 */
    unsigned refcount_bits;  /* 0: 16 */
    const char *compression; /* "zlib" or "zstd"; NULL: zlib */
    bool extended_l2;
    bool lazy_refcounts;
    const char *preallocation; /* "off", "metadata", "falloc", "full"; NULL: off */
    bool unsafe_backing;       /* do not open the backing file (needs has_size) */
};

/* Makes a new image, durable on return.  opts must not be NULL.  An existing file is overwritten, as qemu-img create does, unless
 * somebody holds it (BUSY). */
QMELD_API int qmeld_create(const char *path, const struct qmeld_create_options *opts,
                           struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
