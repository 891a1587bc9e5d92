/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/plan.h - what a merge would do and cost.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Ownership  What a report points to is freed by its _free call, which takes reports of failed calls, too.
 * Disk       Nothing is locked or written.
 */
#ifndef QMELD_PLAN_H
#define QMELD_PLAN_H

#include "merge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A layer, before and after. */
struct qmeld_plan_layer {
    char *path;
    char *moved_to; /* QUARANTINED, and MERGED_INTO above the base: its new name; else NULL */
    enum qmeld_fate fate;
    bool block_device;   /* or an NBD export */
    bool nbd;            /* an export of an NBD server: nothing keeps others from it meanwhile */
    uint64_t old_length; /* of the file, or size of the device */
    uint64_t new_length; /* 0 if the file is deleted */
    uint64_t
        old_allocated; /* bytes of disk; what the file system needs to keep account of a file changes with
                             * it, and is in the old number only */
    uint64_t new_allocated;
    uint64_t bytes_shared; /* as in struct qmeld_commit_layer, by what is known without trying */
    uint64_t bytes_copied;
};

/* A place that space is taken from. */
struct qmeld_plan_room {
    char *path;       /* of a file there */
    const char *what; /* "the file system", "the user's quota", ... */
    uint64_t room;    /* bytes that are free there now */
    uint64_t peak;    /* bytes that are taken at a time, at most */
    uint64_t need;    /* and at least: with less room the merge is refused */
    int64_t change;   /* bytes that are taken in the end; less than 0: given back */
};

/* The same merge in another way, or what else comes to the same for the guest. */
struct qmeld_plan_mode {
    const char *name;    /* "in place", "--reclaim", ... */
    bool possible;       /* false: refused tells why */
    bool bound;          /* of flatten: no more than this; the others are exact */
    bool fits;           /* there is room for it now; of flatten: on the base's file system */
    uint64_t bytes_read; /* of data, as in struct qmeld_plan_report; so the next */
    uint64_t bytes_written;
    uint64_t peak;       /* bytes of extra space, over all file systems; with --reclaim the least */
    uint64_t new_length; /* of the merged disk's file */
    char refused[256];
};

struct qmeld_plan_report {
    bool complete; /* what follows was found out; so it may be although the call was refused then */
    bool nothing_to_do;
    bool already_merged;
    bool resumed;           /* an interrupted merge would be gone on with */
    uint64_t base_old_size; /* virtual sizes */
    uint64_t base_new_size;
    enum qmeld_direction direction; /* these three as in struct qmeld_commit_report */
    uint64_t bytes_down;
    uint64_t bytes_up;
    uint64_t bytes_copied; /* as there */
    uint64_t bytes_filled;
    uint64_t bytes_zeroed;
    uint64_t bytes_shared; /* by what is known without trying; a file system may share more */
    uint64_t bytes_zero_found;
    uint64_t bytes_skipped;
    uint64_t bytes_protected;
    uint64_t bytes_read;        /* of data, compressed clusters as they are stored */
    uint64_t bytes_written;     /* of data */
    uint64_t metadata_written;  /* tables, refcounts, headers, bitmaps, the journal */
    uint64_t clusters_inflated; /* compressed clusters */
    uint64_t peak; /* bytes of extra space that are needed at a time: the sum of rooms' peaks */
    size_t base_layer;
    size_t top_layer;
    size_t target_layer; /* the base, or the layer above it that would take its place */
    size_t n_layers;     /* 0 = base */
    struct qmeld_plan_layer *layers;
    size_t n_bitmaps; /* as in struct qmeld_commit_report */
    struct qmeld_merged_bitmap *bitmaps;
    size_t n_rooms;
    struct qmeld_plan_room *rooms;
    size_t n_dependants; /* as in struct qmeld_commit_report; so the next */
    struct qmeld_dependant *dependants;
    uint64_t files_scanned;
    uint64_t files_unread;
    size_t n_modes; /* with skip_equal or detect_zeroes: 0, if there is room */
    struct qmeld_plan_mode *modes;
    size_t
        n_obstacles; /* what would stop a commit at this moment: somebody uses a layer, or we may not write */
    struct qmeld_error *obstacles;
};

/* What qmeld_commit with the same options would do and cost, to the byte, as long as nobody changes a layer: it
 * is done with everything but the disk (the allocator is the real one).  Refuses what commit would refuse, in
 * the same words, except that layers may be in use or read-only: that is told.  Takes no lock and writes
 * nothing.  opts may be NULL.  Release *report with qmeld_plan_report_free, also after a failure. */
QMELD_API int qmeld_plan(const char *path, const struct qmeld_commit_options *opts,
                         struct qmeld_plan_report *report, struct qmeld_error *err) QMELD_CHECK;
QMELD_API void qmeld_plan_report_free(struct qmeld_plan_report *report);

#ifdef __cplusplus
}
#endif

#endif
