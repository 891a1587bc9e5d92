/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/verify.h - deriving all that a manifest says anew.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Disk       Nothing is locked or written.
 */
#ifndef QMELD_VERIFY_H
#define QMELD_VERIFY_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qmeld_verify_options {
    const char *output; /* the image, if it is not where the manifest says; NULL: it is */
    /* the top of the chain that was flattened, if that is not where the manifest says, which then lends no path to the
     * inputs: they are what the chain's backing names lead to from there.  NULL: all are where the manifest says */
    const char *inputs;
    const char *const *allow_paths;      /* as in struct qmeld_open_options, for the inputs */
    const struct qmeld_secrets *secrets; /* NULL: none; of the inputs, and of the image */
    unsigned threads;                    /* 0: as many as there are processors, at most 16 */
    qmeld_progress_fn *progress;         /* may be NULL */
    void *opaque;
    qmeld_finding_fn *finding; /* called for whatever is not as the manifest has it; may be NULL */
    void *finding_opaque;
};

struct qmeld_verify_result {
    uint64_t leaves;        /* that the manifest has */
    uint64_t leaves_differ; /* of them, those that the image does not have */
    uint64_t inputs;
    uint64_t inputs_differ;
    uint64_t spans_differ; /* that the inputs' tables do not lead to any more */
    uint64_t
        digests_differ; /* of the disk, and of the tree: one or both do not follow from the leaves, or the image */
    uint64_t unreadable; /* files that could not be read: what is in them is not known */
};

/* Derives all that a manifest says anew, from the image and the inputs, at the paths that it names unless opts has others.  Takes no lock and
 * writes nothing.  opts may be NULL.  0 also if something differs: see *out.  USAGE: path is no manifest. */
QMELD_API int qmeld_verify(const char *path, const struct qmeld_verify_options *opts,
                           struct qmeld_verify_result *out, struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
