/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/check.h - is the metadata of one image sound?
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Disk       Without a repair nothing is locked or written.
 */
#ifndef QMELD_CHECK_H
#define QMELD_CHECK_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qmeld_repair {
    QMELD_REPAIR_NONE = 0,
    QMELD_REPAIR_LEAKS, /* lower refcounts that are too high */
    QMELD_REPAIR_ALL,   /* and mend what is corrupt, where that can be known */
};

/* The numbers of `qemu-img check`, counted as it counts. */
struct qmeld_check_result {
    uint64_t corruptions;
    uint64_t leaks;
    uint64_t check_errors; /* parts that could not be checked */
    uint64_t corruptions_fixed;
    uint64_t leaks_fixed;
    uint64_t image_end_offset; /* first byte behind the last cluster in use */
    uint64_t total_clusters;   /* of the guest's view */
    uint64_t allocated_clusters;
    uint64_t fragmented_clusters;
    uint64_t compressed_clusters;
};

/* Checks one image (not its backing files).  Without a repair it takes no lock and
 * writes nothing; with one it holds the write lock.  QMELD_UNSUPPORTED if the format has no
 * metadata to check (raw).  0 also when something was found: see *out. */
QMELD_API int qmeld_check(const char *path, const char *format, enum qmeld_repair repair,
                          qmeld_finding_fn *fn, void *opaque, struct qmeld_check_result *out,
                          struct qmeld_error *err) QMELD_CHECK;

enum qmeld_anomaly_kind {
    QMELD_ANOMALY_UNREFERENCED, /* bytes of the file that nobody refers to, and that are not all zeros */
    QMELD_ANOMALY_TWICE, /* a cluster that one view names more than once: the active one, or an internal
                                 * snapshot in tables of its own */
    QMELD_ANOMALY_OVERLAP, /* one that it names, and that is metadata as well */
    QMELD_ANOMALY_PACKED, /* bytes of a compressed cluster that lie in a cluster which the active view names, too,
                                 * as data or as a table */
};

struct qmeld_anomaly {
    enum qmeld_anomaly_kind kind;
    uint64_t offset; /* in the file */
    uint64_t length;
    bool counted;    /* UNREFERENCED: its refcount says that somebody does, it is leaked */
    bool table;      /* others: it is named as an L2 table, not as a cluster of data */
    bool compressed; /* likewise: as a place of compressed data */
    bool
        in_snapshot; /* likewise: by internal snapshot `snapshot`, counted from 0, not by the active view */
    uint32_t snapshot;
    bool has_guest;    /* guest is meaningful: of others */
    uint64_t guest;    /* where in the disk, by the entry that was met last */
    const char *saved; /* UNREFERENCED, if it was extracted: the file it is in now */
};

/* Not 0: the walk ends, CANCELED. */
typedef int qmeld_anomaly_fn(const struct qmeld_anomaly *anomaly, void *opaque);

/* Lists what is odd about where the clusters of one qcow2 image lie.  With extract_dir, a directory, what is
 * unreferenced is saved there, a new file for each range, named by its offset in the image's file:
 * 0x%012x.bin.  The image is opened for reading only, and not locked. */
QMELD_API int qmeld_report(const char *path, const char *format, const char *extract_dir,
                           qmeld_anomaly_fn *fn, void *opaque, struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
