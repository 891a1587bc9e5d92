/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/rebase.h - giving an image another backing file.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Ownership  What a report points to is freed by its _free call, which takes reports of failed calls, too.
 * Disk       At every instant, a crash included, the image reads as before.
 */
#ifndef QMELD_REBASE_H
#define QMELD_REBASE_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qmeld_rebase_options {
    const char *format; /* of the image; NULL: by content */
    const char
        *backing; /* the new backing file, as its header is to name it: relative to the image;
                                 * NULL: none, everything is pulled in */
    const char *backing_format; /* of the new backing file; required with backing */
    const char
        *chain_format; /* of layers for which no overlay stores a format; NULL: refuse those */
    const char *const *allow_paths; /* as in struct qmeld_open_options, for both chains */
    bool unsafe;        /* the header only: nothing is compared or copied, nothing else is opened */
    bool keep_relative; /* store a relative name that leads there, or refuse */
    bool dry_run;       /* nothing is written; the report tells what would be */
    bool
        verify; /* nothing becomes the image's that was not read back from the disk, and before the header
                  * changes the image as it is on the disk is compared on the new backing file */
    const struct qmeld_secrets *secrets; /* NULL: none; for both chains */
    const char *journal_dir;             /* NULL: beside the image */
    unsigned threads;                    /* 0: as many as there are processors, at most 16 */
    uint64_t bandwidth;          /* bytes a second: for comparing, and for copying; 0: no limit */
    qmeld_progress_fn *progress; /* may be NULL; of data that may differ */
    void *opaque;
};

struct qmeld_rebase_report {
    bool resumed;            /* an interrupted one was gone on with */
    char *stored;            /* the backing name that the header has now; NULL: none */
    uint64_t bytes_copied;   /* data that the image has got, compressed clusters as inflated */
    uint64_t bytes_compared; /* read for that, of both sides */
    uint64_t
        bytes_shared; /* known to be equal, as both chains read it from the same place of a file */
    uint64_t old_length; /* of the image's file */
    uint64_t new_length;
    uint64_t peak; /* dry_run: bytes of extra space that are needed at a time */
    bool verified; /* with verify: all that was copied, by an interrupted run too, was read back */
    uint64_t bytes_verified; /* guest bytes of that, by this run */
    uint64_t seconds_x1000;
};

/* Gives a qcow2 image another backing file.  The image reads the same at every instant, a crash included: first it
 * gets what reads differently there, then its header is changed, in one sector.  The image is locked as by a
 * writer, both chains as by readers, until everything is durable.  An interrupted one is gone on with by the
 * same call, or by qmeld_resume.  report may be NULL; otherwise qmeld_rebase_report_free, also after a
 * failure. */
QMELD_API int qmeld_rebase(const char *path, const struct qmeld_rebase_options *opts,
                           struct qmeld_rebase_report *report, struct qmeld_error *err) QMELD_CHECK;
QMELD_API void qmeld_rebase_report_free(struct qmeld_rebase_report *report);

#ifdef __cplusplus
}
#endif

#endif
