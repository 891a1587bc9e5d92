/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/measure.h - how large a file a new image, or a merge, will make.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Disk       Nothing is locked or written.
 */
#ifndef QMELD_MEASURE_H
#define QMELD_MEASURE_H

#include "chain.h"
#include "create.h"
#include "merge.h"

#ifdef __cplusplus
extern "C" {
#endif

struct qmeld_measure {
    uint64_t required;        /* length of the file */
    uint64_t fully_allocated; /* and when its guest has then written everywhere */
    bool has_bitmaps;         /* the source's persistent bitmaps could go along */
    uint64_t bitmaps;         /* so much more, then */
};

/* How long the file of a new image with these options will be that holds all that path reads as, NULL: that is
 * empty and has opts->size.  The numbers, and the small overestimates, of `qemu-img measure`; of an internal snapshot
 * too it takes the disk to have its present size.  Looks as
 * qmeld_chain_open does; either of open and opts may be NULL. */
QMELD_API int qmeld_measure_new(const char *path, const struct qmeld_open_options *open,
                                const struct qmeld_create_options *opts, struct qmeld_measure *out,
                                struct qmeld_error *err) QMELD_CHECK;

/* How long the file of the base will be after the merge that qmeld_commit with the same path and opts, which may be NULL,
 * would make: exact.  Which layers others stand on does not matter.  USAGE: a merge up. */
QMELD_API int qmeld_measure_onto(const char *path, const struct qmeld_commit_options *opts,
                                 struct qmeld_measure *out, struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
