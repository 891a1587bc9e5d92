/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/compare.h - do two images read the same?
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Disk       Nothing is locked or written.
 */
#ifndef QMELD_COMPARE_H
#define QMELD_COMPARE_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qmeld_compare_options {
    const char *format_a; /* NULL: by content */
    const char *format_b;
    const char *backing_format;     /* as in struct qmeld_open_options, for both chains */
    const char *const *allow_paths; /* likewise */
    bool strict; /* sizes must be the same, and of each byte whether it is allocated, as qemu-img
                  * compare -s looks at it */
    const struct qmeld_secrets *secrets; /* NULL: none; for both chains */
    unsigned threads;                    /* 0: as many as there are processors, at most 16 */
    uint64_t bandwidth;                  /* bytes a second, 0: no limit */
    qmeld_progress_fn *progress;         /* may be NULL */
    void *opaque;
};

enum qmeld_difference {
    QMELD_SAME = 0,
    QMELD_DIFFERENT_SIZE,   /* strict only */
    QMELD_DIFFERENT_STATUS, /* strict only: one is allocated there, or says that it is zero */
    QMELD_DIFFERENT_CONTENT,
};

struct qmeld_compare_report {
    enum qmeld_difference difference; /* the first one */
    uint64_t offset;                  /* guest offset of its first sector; not of SIZE */
    uint64_t size_a;
    uint64_t size_b;
    uint64_t bytes_different; /* in sectors of 512; of what was looked at */
    uint64_t bytes_read;      /* from both sides */
    uint64_t bytes_shared;    /* known to be equal, as both read it from the same place of a file */
    int failed_at;            /* after a failure: 0 opening, 1 metadata, 2 data */
};

/* A range of sectors that differs, ascending; neighbours are joined.  Not 0: look no further. */
typedef int qmeld_difference_fn(uint64_t start, uint64_t length, void *opaque);

/* Do two images, each with all under it, read the same?  What lies behind the end of the shorter one must be zeros
 * in the other.  opts and fn may be NULL.  Looks as qmeld_chain_open does: no lock, nothing written.  0 also if they differ: see
 * *report.  Up to the first difference, or, with fn, all of it. */
QMELD_API int qmeld_compare(const char *a, const char *b, const struct qmeld_compare_options *opts,
                            qmeld_difference_fn *fn, void *fn_opaque,
                            struct qmeld_compare_report *report,
                            struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
