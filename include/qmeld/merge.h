/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/merge.h - merging layers of a chain down into a base, or up.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Ownership  What a report points to is freed by its _free call, which takes reports of failed calls, too.
 * Disk       At every instant, a crash included, the chain's top reads as before.
 */
#ifndef QMELD_MERGE_H
#define QMELD_MERGE_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

enum qmeld_overlays {
    QMELD_OVERLAYS_KEEP = 0,   /* merged layers stay as they are */
    QMELD_OVERLAYS_EMPTY,      /* the top of the range is emptied, as qemu-img commit does */
    QMELD_OVERLAYS_DELETE,     /* merged layers are removed, where no other layer of the chain
                              * needs them: the active layer, too, if it was merged */
    QMELD_OVERLAYS_QUARANTINE, /* they are renamed instead: NAME becomes NAME.merged, or
                                * NAME.merged.1 and so on if that is taken */
};

/* Which layer of the range all of them become. */
enum qmeld_direction {
    QMELD_DIRECTION_DOWN = 0, /* the base */
    QMELD_DIRECTION_UP, /* a layer above it, which then gets the base's backing file, attributes and
                               * name; what the base shows is copied into it.  The result is what a merge down
                               * leaves, in another file.  Needs OVERLAYS_DELETE, and a qcow2 base that has nothing
                               * but its data (no internal snapshots, no bitmaps) */
    QMELD_DIRECTION_AUTO, /* up if that is possible and moves less guest data, else down */
};

/* What becomes of the persistent dirty bitmaps of merged layers. */
enum qmeld_bitmaps {
    QMELD_BITMAPS_MERGE =
        0, /* they go into the base: a bitmap of the same name there gets their bits, one that it lacks
                              * is made.  One that says nothing in some layer (not closed cleanly, or damaged) says
                              * nothing in the base either, afterwards.  A base that cannot hold bitmaps is refused */
    QMELD_BITMAPS_KEEP, /* they are left behind; the base's get what the merge writes, as qemu-img commit
                         * does it */
    QMELD_BITMAPS_DROP, /* they are left behind, and those of the base with the same names, or not closed cleanly, are
                         * removed */
};

/* When a merge asks the caller for leave to go on. */
enum qmeld_moment {
    QMELD_MOMENT_LOCKED, /* every layer is locked, all that can be refused was looked at, and this call
                          * has written nothing yet.  Not called if there is nothing to do. */
    QMELD_MOMENT_DONE, /* all is durable and the journal is gone; the layers are still locked.
                          * Called, too, if there was nothing to do. */
};

/* Not 0, with *err filled: the call fails.  After LOCKED nothing more was changed; after DONE
 * err->disk becomes NEW.  For callers who must put other things right while nobody can open the
 * layers; a merge of another chain may be made from within. */
typedef int qmeld_guard_fn(enum qmeld_moment moment, void *opaque, struct qmeld_error *err);

struct qmeld_commit_options {
    const char *format;         /* of the active layer; NULL: by its content */
    const char *backing_format; /* for layers whose overlay stores none; NULL: refuse those */
    const char *const
        *allow_paths;   /* as in struct qmeld_open_options; a merge that goes on keeps its own */
    const char *base;   /* "[N]" counted from 1, or a path; NULL: the bottom */
    const char *top;    /* likewise; NULL: the active layer */
    bool shallow;       /* base is what lies directly under top */
    bool atomic;        /* a qcow2 base stays bit for bit what it is until one sector of its
                                 * header switches; it can be taken back (qmeld_revert) until then, and, if
                                 * overlays are kept, until qmeld_finalize */
    bool undo;          /* as atomic; of a raw base what is overwritten is kept beside the
                                 * journal, so that it can be brought back */
    bool keep_relative; /* refuse rather than write an absolute backing name */
    bool skip_equal;    /* bytes that the base reads as already are not written */
    bool detect_zeroes; /* data that is zeros becomes holes, or clusters that say zero */
    bool verify;        /* read back what was written, from the disk where the page cache can
                                 * be got out of the way, before any overlay is settled */
    bool direct; /* data is read and written past the page cache (O_DIRECT), where file system and
                  * alignment allow it; elsewhere through it */
    enum qmeld_overlays overlays;
    enum qmeld_direction direction;
    enum qmeld_bitmaps bitmaps;
    /* merged layers give up what the base holds, batch by batch, so that the space of one batch is
     * enough; KEEP then leaves them empty, and QUARANTINE is refused */
    bool reclaim;
    bool
        decompress; /* compressed clusters become plain ones.  Otherwise those of a layer with the base's
                      * cluster size and compression are moved as they are, and not inflated: what
                      * such a cluster reads as is not looked at (unless with verify) */
    /* Other images may stand on the base, or on a layer in the middle, and internal snapshots of merged layers
     * read through what is below these: they would read other data afterwards, or nothing.  They are looked for
     * among all files in the folders that hold the chain's layers, and the merge is refused (USAGE), with all of
     * them in the report, unless one of the next two is said.  (What stands on top, or above, reads as before.) */
    bool
        protect; /* images that stand on such a layer get, before it changes, what they read through it and would
                   * read otherwise; where its file goes they get the base as their backing file.  So do internal
                   * snapshots, of theirs and of merged layers that stay.  They and all above them read as before
                   * at every instant; who cannot be protected is refused for */
    bool
        force; /* not with protect: it is done nevertheless, and the report tells who is broken by it */
    bool no_scan; /* other images are not looked for: none is protected, refused for, or told of */
    bool
        files_go; /* with KEEP: the caller will remove the merged files when this call has succeeded, so that
                    * who stands on any of them is refused for, too; not with protect */
    const char *const
        *scan; /* more places to look: folders, with all that is below them, and files */
    size_t n_scan;
    const struct qmeld_secrets
        *secrets; /* NULL: none.  What goes into an encrypted layer is encrypted with that
                                  * layer's key, what goes into another is not, wherever it comes from.  They
                                  * are no part of the journal: resuming needs them again */
    const char *journal_dir;     /* where the journal of the merge lies while it runs; NULL:
                                  * beside the base (of a block device: beside the active layer) */
    unsigned threads;            /* copy workers; 0: as many as there are processors, at most 16 */
    uint64_t bandwidth;          /* bytes a second, 0: no limit */
    qmeld_progress_fn *progress; /* may be NULL */
    void *opaque;                /* for progress */
    qmeld_guard_fn *guard;       /* may be NULL */
    void *guard_opaque;
};

/* What became of a layer.  Two lists of them make the report. */
enum qmeld_fate {
    QMELD_FATE_MERGED_INTO, /* the base: it now answers for the range */
    QMELD_FATE_UNTOUCHED,   /* outside the range */
    QMELD_FATE_REDUNDANT,   /* reads as before, but nothing above needs it */
    QMELD_FATE_INVALID,     /* a layer inside the range: reads wrong if opened by itself */
    QMELD_FATE_EMPTIED,
    QMELD_FATE_DELETED,
    QMELD_FATE_REPOINTED,   /* its header now names the base as backing file */
    QMELD_FATE_QUARANTINED, /* renamed; its own backing name may lead nowhere by now */
    QMELD_FATE_REPLACED, /* the base, merged up: its name leads to the layer that is MERGED_INTO */
};

/* How somebody else depends on a layer that changes or goes. */
enum qmeld_dependant_kind {
    QMELD_DEPENDANT_OVERLAY = 0, /* an image whose backing file is that layer */
    QMELD_DEPENDANT_DEEPER,      /* one that stands on such an image, by itself or over others */
    QMELD_DEPENDANT_DATA_FILE,   /* one that has the layer's file as its external data file */
    QMELD_DEPENDANT_SNAPSHOT,    /* an internal snapshot in a layer above it */
};

enum qmeld_dependant_fate {
    QMELD_DEPENDANT_BROKEN = 0, /* by the merge, or it would be */
    QMELD_DEPENDANT_PROTECTED,  /* it reads as before */
};

struct qmeld_dependant {
    enum qmeld_dependant_kind kind;
    enum qmeld_dependant_fate fate;
    char *path; /* of the image, as it was found; of a snapshot the layer's, that has it */
    size_t
        layer; /* 0 = base: the layer that changes or goes, and that it reads through; of a snapshot the one
                   * that has it */
    char *snapshot_id; /* SNAPSHOT, else NULL */
    char *snapshot_name;
    uint32_t date_sec; /* of the snapshot, since the epoch */
};

struct qmeld_commit_layer {
    char *path; /* before the merge */
    enum qmeld_fate fate;
    char
        *moved_to; /* QUARANTINED, and MERGED_INTO above the base: the path it has now; else NULL */
    /* how what came out of its file got into the base, in this call: */
    uint64_t bytes_shared;     /* the two files have the same blocks now (reflink) */
    uint64_t bytes_offloaded;  /* copied by the file system, on its server */
    uint64_t bytes_copied;     /* read and written; compressed clusters as inflated */
    uint64_t bytes_past_cache; /* of those: with direct, written past the page cache */
};

enum qmeld_bitmap_fate {
    QMELD_BITMAP_MERGED,  /* the base's has the layers' bits, too */
    QMELD_BITMAP_CREATED, /* the base has got it */
    QMELD_BITMAP_VOID,    /* the base's is marked in use: it says nothing any more */
    QMELD_BITMAP_REMOVED, /* from the base */
    QMELD_BITMAP_LEFT,    /* the base has not got it */
};

/* A bitmap that merged layers have, or that was removed. */
struct qmeld_merged_bitmap {
    char *name;
    enum qmeld_bitmap_fate fate;
    char *
        layer; /* path of the uppermost layer that has it; of the one where it says nothing, if so */
    bool unreadable;      /* in that layer it says nothing: not closed cleanly, or damaged */
    bool enabled;         /* MERGED, CREATED: the base's records what is written */
    uint64_t granularity; /* likewise: bytes a bit stands for, in the base */
};

struct qmeld_commit_report {
    bool nothing_to_do;  /* the image has no backing file */
    bool already_merged; /* the base held all of it before: no guest byte was written */
    bool reclaimed;      /* with qmeld_commit_options.reclaim */
    bool resumed;        /* an interrupted merge was gone on with */
    bool rebased;        /* by qmeld_resume: it was a rebase */
    bool held;           /* merged, and it can be taken back: qmeld_revert, or qmeld_finalize */
    bool reverted;       /* it was taken back: every layer is what it was before */
    uint64_t
        bytes_copied; /* data moved into the base, in whatever way, compressed clusters as inflated */
    uint64_t bytes_filled; /* old content copied along because clusters were only partly new */
    uint64_t bytes_zeroed; /* guest bytes that became holes, zero clusters or zeros */
    uint64_t
        bytes_shared; /* of copied and filled ones: not read and written, but shared with the layer's file */
    uint64_t bytes_offloaded;  /* likewise: copied by the file system, on its server */
    uint64_t bytes_zero_found; /* with detect_zeroes: of these, what a layer had as data */
    uint64_t bytes_skipped;    /* with skip_equal: guest bytes that the base read as already */
    bool verified;             /* all of it was read back, and is what was to be written */
    uint64_t bytes_verified;
    uint64_t base_old_size; /* virtual size before and after */
    uint64_t base_new_size;
    enum qmeld_direction direction; /* that was taken: DOWN or UP */
    uint64_t
        bytes_down; /* of guest data that go down, and up, if both were thought of for this merge; else 0 */
    uint64_t bytes_up;
    uint64_t seconds_x1000;
    size_t n_layers; /* 0 = base, as in the chain before the merge */
    struct qmeld_commit_layer *layers;
    size_t
        n_dependants; /* also after a refusal: who would read otherwise; images by path, then snapshots */
    struct qmeld_dependant *dependants;
    uint64_t bytes_protected; /* data that was copied into dependants to protect them */
    uint64_t files_scanned;   /* that were looked at to find them */
    uint64_t files_unread;    /* of those, and of folders: could not be read */
    char *unread;             /* one of them; NULL: none */
    int unread_errno;         /* and why */
    size_t n_bitmaps;         /* sorted by name */
    struct qmeld_merged_bitmap *bitmaps;
};

/* Merges the layers above base up to top into base, path being the chain's active layer.
 * At every instant, a crash included, the active layer reads as it did before.  QEMU's image
 * locks are held on all layers from before anything is read until everything is durable.
 * If an interrupted merge is found that was begun by the same call, it is gone on with.
 * opts may be NULL.  report may be NULL; otherwise release it with qmeld_commit_report_free, also after
 * a failure. */
QMELD_API int qmeld_commit(const char *path, const struct qmeld_commit_options *opts,
                           struct qmeld_commit_report *report, struct qmeld_error *err) QMELD_CHECK;
QMELD_API void qmeld_commit_report_free(struct qmeld_commit_report *report);

/* ---- fold ---- */

/* Rolling fulls: of the chain full <- increments, whose newest is path, the oldest increments are merged
 * into the full until `keep` are left; the first of those then stands on the full.  It is a commit with base and
 * top chosen (opts->base, top and shallow must not be set), with all that is said there; nothing_to_do if
 * there are no more than `keep`.  An interrupted one is gone on with by the same call, also if path is a newer
 * increment, which stands on what was the newest one; then what else is due is folded, so that a guard may be
 * asked for each of both.  USAGE: it would leave fewer than `keep`, or something else is unfinished. */
QMELD_API int qmeld_fold(const char *path, size_t keep, const struct qmeld_commit_options *opts,
                         struct qmeld_commit_report *report, struct qmeld_error *err) QMELD_CHECK;

struct qmeld_chain; /* chain.h */

/* ---- who else reads ---- */

/* What dependant points to lives during the call.  Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_dependant_fn(const struct qmeld_dependant *dependant, void *opaque);

/* Tells of each image, outside of the chain, that a merge of the layers up to top into base would break (layers count
 * from 0, the bottom; base < top): of those that read through base or a layer between, and, with opts->files_go,
 * through top.  They are looked for as by qmeld_commit; of opts (may be NULL) scan, n_scan, threads and files_go
 * count.  Internal snapshots are not told of.  For callers who let somebody else merge, QEMU for one.
 * USAGE: no such range; IO: a place to look that cannot be listed. */
QMELD_API int qmeld_dependants(const struct qmeld_chain *chain, size_t base, size_t top,
                               const struct qmeld_commit_options *opts, qmeld_dependant_fn *fn,
                               void *opaque, struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
