/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld.h - libqmeld: fold chains of disk images.
 *
 * Why.  A virtual machine's disk is often a chain: a base (raw or qcow2) under
 * qcow2 overlays.  This library reads such chains natively, says which layer
 * answers which byte, merges layers down into a base so that the chain's top
 * never changes what it reads, checks and creates images.  It links no QEMU code.
 *
 * Calls      Look:   qmeld_chain_open, then qmeld_chain_layer / qmeld_map / qmeld_read,
 *                    then qmeld_chain_close.
 *            Change: qmeld_commit, qmeld_check (with a repair), qmeld_create; each
 *                    opens, locks, works, makes durable and closes by itself.
 * Threads    The library has no global state and installs no signal handler.  Different
 *            chains may be used from different threads; one chain by one thread at a
 *            time.  Progress callbacks run on the thread that made the call.
 * Ownership  What a call returns through a pointer to a pointer belongs to the caller
 *            and goes back through the matching close.  Strings inside structs belong
 *            to the object that filled them and live as long as it does.
 * Units      Bytes, unless a name says otherwise.  Layers count from the base: 0 is
 *            the base here; the command line, as libvirt's indexes, shows it as 1.
 * Errors     0, or -1 with *err filled.  The library never prints, exits, or aborts on
 *            input.  err->disk says what the files on disk are worth after the failure.
 */
#ifndef QMELD_H
#define QMELD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QMELD_API   __attribute__((visibility("default")))
#define QMELD_CHECK __attribute__((warn_unused_result))

/* ---- errors ---- */

/* Whose fault it was. */
enum qmeld_code {
    QMELD_OK = 0,
    QMELD_USAGE,       /* the request makes no sense, or is refused as dangerous */
    QMELD_IO,          /* the operating system said no */
    QMELD_CORRUPT,     /* an image contradicts itself */
    QMELD_UNSUPPORTED, /* a valid image, with a feature this version does not handle */
    QMELD_BUSY,        /* somebody else uses the image */
    QMELD_STALE,       /* a file changed after it was looked at */
    QMELD_NOMEM,
    QMELD_NOSPACE,  /* the file system, a header or a format's limit is full */
    QMELD_CANCELED, /* the progress callback asked to stop */
};

/* What is on disk after a call that failed. */
enum qmeld_disk {
    QMELD_DISK_OLD = 0, /* every image is as it was */
    QMELD_DISK_OPEN,    /* a merge is half done: the chain's top reads as before, and the
                         * same call again finishes */
    QMELD_DISK_NEW,     /* the work is done; only what came after it failed */
};

struct qmeld_error {
    enum qmeld_code code;
    enum qmeld_disk disk;
    int sys_errno;  /* errno of the call that failed, or 0 */
    bool has_off;   /* off is meaningful */
    uint64_t off;   /* bytes into the file */
    char file[256]; /* the image concerned; "" if none; long paths keep their end */
    char what[768]; /* "what is wrong: what to do", no newline, no file name in front */
};

/* "corrupt image", "busy", ...: the code in a word or two.  Never NULL. */
QMELD_API const char *qmeld_code_name(enum qmeld_code code);

/* "0.1.0" */
QMELD_API const char *qmeld_version(void);

/* ---- encryption ---- */

/* A passphrase of encrypted images (qcow2 with LUKS, or with the legacy AES). */
struct qmeld_secret {
    const char *layer; /* path of the image that it opens; NULL: any for which none is named */
    const void *
        data; /* its bytes, as they are: a newline at the end counts, as in files of QEMU's secret objects */
    size_t len; /* at most QMELD_MAX_SECRET */
};
#define QMELD_MAX_SECRET 65536u

/* Those that a call has.  The caller's; read during the call only (qmeld_chain_open: until it returns), never written
 * anywhere, and not kept.  Of several that may open an image each is tried; of the legacy AES, which any passphrase
 * opens, USAGE if there is more than one: name the image.  An image that is encrypted and for which there is none, or
 * none that is right: USAGE.  What a LUKS header asks for is bounded: about a minute for each image and passphrase,
 * UNSUPPORTED if it is more. */
struct qmeld_secrets {
    const struct qmeld_secret *list;
    size_t n;
};

/* ---- looking at a chain ---- */

struct qmeld_chain;

struct qmeld_open_options {
    const char *format;         /* of the top: "qcow2", "raw"; NULL: by its content */
    const char *backing_format; /* for layers whose overlay stores no format; NULL: such
                                 * a layer is opened by its content, which is safe for looking
                                 * only (qcow2 documentation: a guest can write a header) */
    bool single;                /* the top alone, without its backing files */
    const struct qmeld_secrets
        *secrets; /* NULL: none, and encrypted bytes cannot be read (qmeld_read: USAGE);
                                          * info, map and check need none */
    const char *const
        *allow_paths; /* where names out of images may lead: folders (with all below them), files,
                                     * "nbd://HOST[:PORT]", "/" for all; ends with NULL.  The folders of paths
                                     * that the caller gives are always allowed.  NULL: those, and regular files
                                     * elsewhere that evidently are disk images; QMELD_USAGE otherwise */
    const char
        *snapshot; /* not NULL: the top is what this internal snapshot of it was, for qmeld_map and
                           * qmeld_read: an ID, or else a name, or as qemu-img has it
                           * snapshot.id=ID,snapshot.name=NAME.  USAGE: there is none */
};

/* Opens path and every layer under it, for reading.  Takes no lock and writes nothing, so
 * that it may be used beside a running virtual machine; what it then reads may be a moment
 * old.  opts may be NULL.  Cost: headers only. */
QMELD_API int qmeld_chain_open(const char *path, const struct qmeld_open_options *opts,
                               struct qmeld_chain **out, struct qmeld_error *err) QMELD_CHECK;

/* NULL is fine. */
QMELD_API void qmeld_chain_close(struct qmeld_chain *chain);

/* Number of layers, at least 1. */
QMELD_API size_t qmeld_chain_depth(const struct qmeld_chain *chain);

/* The layer that name names, as in the options of qmeld_commit: "[N]", counted from the base, which is [1]; a path to its
 * file; or its name in the overlay's header.  *out: 0 = base.  USAGE: none, or two. */
QMELD_API int qmeld_chain_find(const struct qmeld_chain *chain, const char *name, size_t *out,
                               struct qmeld_error *err) QMELD_CHECK;

struct qmeld_snapshot_info {
    const char *id;
    const char *name;
    uint64_t vm_state_size;
    uint64_t disk_size;
    uint32_t date_sec; /* since the epoch */
    uint32_t date_nsec;
    uint64_t vm_clock_nsec; /* how long the guest had run */
};

struct qmeld_bitmap_info {
    const char *name;
    uint64_t granularity; /* bytes a bit stands for */
    bool enabled;         /* "auto": guest writes are recorded */
    bool in_use;          /* not closed cleanly: its content cannot be trusted */
};

struct qmeld_layer_info {
    const char *path;   /* as it was opened */
    const char *format; /* "qcow2" or "raw" */
    bool format_probed; /* nobody said so; it was found by content */
    uint64_t virtual_size;
    uint64_t file_size; /* length of the file, or size of the block device */
    uint64_t allocated; /* bytes of disk the file takes (st_blocks * 512) */
    bool block_device;  /* or an NBD export: its size is fixed, and is both numbers above */
    bool nbd; /* an export of an NBD server, where there are no locks: no holder is known */
    const char *backing_name;   /* as stored in the header; NULL: none */
    const char *backing_format; /* as stored; NULL: none */
    /* the rest is 0, NULL or false for raw */
    unsigned version; /* 2 or 3 */
    uint64_t cluster_size;
    unsigned refcount_bits;
    const char *compression; /* "zlib" or "zstd" */
    bool extended_l2;
    bool lazy_refcounts;
    bool dirty;
    bool corrupt;
    const char *encryption; /* "aes", "luks" or NULL */
    const char *data_file;  /* external data file name, or NULL */
    bool data_file_raw;
    uint64_t unknown_autoclear; /* bits of the autoclear word nobody here knows */
    size_t n_snapshots;
    const struct qmeld_snapshot_info *snapshots;
    size_t n_bitmaps;
    const struct qmeld_bitmap_info *bitmaps;
    const char *holder; /* who uses the file now: "pid 4711 (qemu-system-x86): write",
                         * NULL: nobody seen */
};

/* Fills *out for a layer, 0 = base.  Strings live until the chain is closed. */
QMELD_API int qmeld_chain_layer(struct qmeld_chain *chain, size_t layer,
                                struct qmeld_layer_info *out, struct qmeld_error *err) QMELD_CHECK;

/* One extent of the view from the top; the fields as `qemu-img map --output=json` has them. */
struct qmeld_extent {
    uint64_t start;
    uint64_t length;
    size_t depth; /* layers below the top that answers; 0 = the top itself */
    bool present; /* some layer has an entry for it */
    bool zero;    /* reads as zeros */
    bool data;    /* stored as data somewhere */
    bool compressed;
    bool has_offset; /* offset is meaningful */
    uint64_t offset; /* bytes into that layer's file */
};

/* Called in ascending order, without gaps.  A result other than 0 ends the walk, and
 * qmeld_map returns -1 with QMELD_CANCELED. */
typedef int qmeld_extent_fn(const struct qmeld_extent *extent, void *opaque);

/* Walks [start, start + length) of the top's view, clipped to its size.  Neighbours
 * are joined as `qemu-img map` joins them.  Memory is bounded, whatever the image. */
QMELD_API int qmeld_map(struct qmeld_chain *chain, uint64_t start, uint64_t length,
                        qmeld_extent_fn *fn, void *opaque, struct qmeld_error *err) QMELD_CHECK;

/* The same for the layers from bottom to top, 0 = base, as if there were no others: what a layer itself holds
 * (bottom == top), or what the chain reads as from a layer in the middle (bottom == 0).  Depths count from this top,
 * and what lies past its end is not walked.  USAGE: there are no such layers. */
QMELD_API int qmeld_map_layers(struct qmeld_chain *chain, size_t bottom, size_t top, uint64_t start,
                               uint64_t length, qmeld_extent_fn *fn, void *opaque,
                               struct qmeld_error *err) QMELD_CHECK;

/* Reads len bytes of the top's view at off.  Reading past the virtual end is USAGE. */
QMELD_API int qmeld_read(struct qmeld_chain *chain, uint64_t off, void *buf, size_t len,
                         struct qmeld_error *err) QMELD_CHECK;

/* ---- progress ---- */

struct qmeld_progress {
    uint64_t done_bytes;  /* of real work: guest bytes copied, compressed ones as inflated */
    uint64_t total_bytes; /* of real work, exact; 0 while it is being counted */
    const char *phase;    /* "count", "compare" (looking, nothing is written), "copy", "verify" */
};

/* Called a few times a second on the calling thread.  A result other than 0 asks to stop:
 * the call ends at the next point where every file has a name for its state. */
typedef int qmeld_progress_fn(const struct qmeld_progress *progress, void *opaque);

/* ---- compare ---- */

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
 * in the other.  Looks as qmeld_chain_open does: no lock, nothing written.  0 also if they differ: see
 * *report.  Up to the first difference, or, with fn, all of it. */
QMELD_API int qmeld_compare(const char *a, const char *b, const struct qmeld_compare_options *opts,
                            qmeld_difference_fn *fn, void *fn_opaque,
                            struct qmeld_compare_report *report,
                            struct qmeld_error *err) QMELD_CHECK;

/* ---- commit ---- */

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
                   * read otherwise; where its file goes they get the base as their backing file.  They and all
                   * above them read as before at every instant; who cannot be protected is refused for */
    bool
        force; /* not with protect: it is done nevertheless, and the report tells who is broken by it */
    bool no_scan; /* other images are not looked for: none is protected, refused for, or told of */
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
 * * If an interrupted merge is found that was begun by the same call, it is gone on with.
 * *report may be NULL; otherwise release it with qmeld_commit_report_free, also after
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

/* ---- planning ---- */

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
 * nothing.  Release *report with qmeld_plan_report_free, also after a failure. */
QMELD_API int qmeld_plan(const char *path, const struct qmeld_commit_options *opts,
                         struct qmeld_plan_report *report, struct qmeld_error *err) QMELD_CHECK;
QMELD_API void qmeld_plan_report_free(struct qmeld_plan_report *report);

struct qmeld_measure {
    uint64_t required;        /* length of the file */
    uint64_t fully_allocated; /* and when its guest has then written everywhere */
    bool has_bitmaps;         /* the source's persistent bitmaps could go along */
    uint64_t bitmaps;         /* so much more, then */
};

/* What the base of such a merge will take. */
QMELD_API int qmeld_measure_onto(const char *path, const struct qmeld_commit_options *opts,
                                 struct qmeld_measure *out, struct qmeld_error *err) QMELD_CHECK;

/* ---- rebase ---- */

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
 * same call, or by qmeld_resume.  *report may be NULL; otherwise qmeld_rebase_report_free, also after a
 * failure. */
QMELD_API int qmeld_rebase(const char *path, const struct qmeld_rebase_options *opts,
                           struct qmeld_rebase_report *report, struct qmeld_error *err) QMELD_CHECK;
QMELD_API void qmeld_rebase_report_free(struct qmeld_rebase_report *report);

/* ---- unfinished merges ---- */

/* A merge that was interrupted, as its journal tells it.  Strings live during the call of fn. */
struct qmeld_unfinished {
    const char *journal;
    const struct qmeld_error *problem; /* NULL, or why the journal cannot be gone by: it is damaged,
                                        * or not ours; then nothing below is set */

    bool rebase; /* no merge: active gets another backing file; base and top are active, too */
    const char *new_backing; /* its name; NULL: none */
    bool fold;               /* begun by qmeld_fold: the layers above top are what it was to keep */
    bool running;            /* a process is at work on it now */
    const char *active;      /* the chain's active layer: it reads as before, always */
    const char *base;        /* what is merged into */
    const char *top;         /* the uppermost layer that is merged */
    bool complete;           /* the base holds all of it; headers and overlays are being settled */
    bool
        base_intact; /* all layers, the base too, read as before by themselves until it is complete */
    bool protecting; /* other images are being given what they read through it (protect); so far no
                      * layer has changed */
    bool held; /* all is done; it can be taken back, or made final: this is no unfinished work */
    bool revertible; /* qmeld_revert can take it back */
    bool reverting;  /* it is being taken back; qmeld_resume goes on with that */
    uint64_t done;   /* guest bytes that are in the base, durably, counted from 0 */
    uint64_t size;   /* of the guest's disk when it is finished */
    enum qmeld_overlays overlays;
    bool reclaim; /* the merged layers have given up what is done */
    bool up; /* layer `target_layer`, above the base, is merged into, and gets the base's name */
    bool replaced; /* it has it */

    const char *const *layers;   /* of the chain before the merge; 0 = bottom */
    const char *const *moved_to; /* likewise: the name that a layer gets when the base is complete,
                                  * or has by now; NULL: none */
    size_t n_layers;
    size_t base_layer;
    size_t top_layer;
    size_t target_layer; /* the base, or as `up` says */
};

/* Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_unfinished_fn(const struct qmeld_unfinished *merge, void *opaque);

/* Tells of each unfinished merge that path has to do with: as a directory that holds journals, or
 * as a layer (then journal_dir is searched; if that is NULL the layer's directory, and the places
 * beside the layers under it), or as the journal itself.  Takes no lock and writes nothing. */
QMELD_API int qmeld_status(const char *path, const char *journal_dir, qmeld_unfinished_fn *fn,
                           void *opaque, struct qmeld_error *err) QMELD_CHECK;

/* Finishes the merge whose journal this is.  Of opts only secrets, threads, bandwidth, verify, direct, progress, guard
 * and their opaques count; the rest is in the journal.  STALE, with nothing done, if a layer changed. */
QMELD_API int qmeld_resume(const char *journal, const struct qmeld_commit_options *opts,
                           struct qmeld_commit_report *report, struct qmeld_error *err) QMELD_CHECK;

/* Takes back the merge whose journal this is: the base is again bit for bit what it was, the layer above
 * names its old backing file.  For merges begun with atomic or undo; USAGE for others, and once
 * overlays are given up.  STALE, with nothing done, if a layer changed since.  opts as for qmeld_resume. */
QMELD_API int qmeld_revert(const char *journal, const struct qmeld_commit_options *opts,
                           struct qmeld_commit_report *report, struct qmeld_error *err) QMELD_CHECK;

/* Makes a merge that is held final: the space that going back would need is given up.  The base may be in
 * use by readers. */
QMELD_API int qmeld_finalize(const char *journal, const struct qmeld_commit_options *opts,
                             struct qmeld_commit_report *report,
                             struct qmeld_error *err) QMELD_CHECK;

/* ---- notes ---- */

/* A note is a text beside an image that outlives a crash: what has to be put right, outside of the
 * images, when a merge is done - the definition of a virtual machine, say.  The library keeps it whole
 * or not at all, and gives it no meaning. */

/* Where the note of a merge into base lies: the journal's path (see qmeld_commit_options), and
 * "-domain" behind it.  malloc'd. */
QMELD_API int qmeld_note_path(const char *base, const char *active, const char *journal_dir,
                              char **out, struct qmeld_error *err) QMELD_CHECK;

/* Durable on return.  USAGE if there is a valid one already: it stays. */
QMELD_API int qmeld_note_write(const char *path, const char *text,
                               struct qmeld_error *err) QMELD_CHECK;

/* malloc'd; *out is NULL if there is none, or one that was never finished.  *step is 0 in a new note.
 * CORRUPT: damaged.  USAGE: somebody else's, whom we had better not obey. */
QMELD_API int qmeld_note_read(const char *path, char **out, unsigned *step,
                              struct qmeld_error *err) QMELD_CHECK;

/* Notes how far things came; the text stays.  Durable on return; after a crash the old step or the
 * new one is there. */
QMELD_API int qmeld_note_step(const char *path, unsigned step, struct qmeld_error *err) QMELD_CHECK;

/* Durable on return; that there is none is no failure. */
QMELD_API int qmeld_note_remove(const char *path, struct qmeld_error *err) QMELD_CHECK;

/* text is NULL if the note cannot be read, for *problem.  Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_note_fn(const char *path, const char *text, const struct qmeld_error *problem,
                          void *opaque);

/* Tells of each note in a directory. */
QMELD_API int qmeld_notes(const char *dir, qmeld_note_fn *fn, void *opaque,
                          struct qmeld_error *err) QMELD_CHECK;

/* ---- check ---- */

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

/* One finding, one sentence, no newline. */
typedef void qmeld_finding_fn(const char *sentence, void *opaque);

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

/* ---- create ---- */

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

/* How long the file of a new image with these options will be that holds all that path reads as, NULL: that is
 * empty and has opts->size.  The numbers, and the small overestimates, of `qemu-img measure`; of an internal snapshot
 * too it takes the disk to have its present size.  Looks as
 * qmeld_chain_open does; either of open and opts may be NULL. */
QMELD_API int qmeld_measure_new(const char *path, const struct qmeld_open_options *open,
                                const struct qmeld_create_options *opts, struct qmeld_measure *out,
                                struct qmeld_error *err) QMELD_CHECK;

/* Makes a new image.  An existing file is overwritten, as qemu-img create does, unless
 * somebody holds it (BUSY). */
QMELD_API int qmeld_create(const char *path, const struct qmeld_create_options *opts,
                           struct qmeld_error *err) QMELD_CHECK;

/* ---- flatten ---- */

/* Takes the disk's bytes in order, zeros too.  Not 0: the flattening ends, QMELD_CANCELED. */
typedef int qmeld_bytes_fn(const void *bytes, size_t len, void *opaque);

struct qmeld_flatten_options {
    const char *format; /* of path; NULL: by content */
    const char
        *backing_format; /* of layers for which no overlay stores one; NULL: they are refused */
    const char *const *allow_paths; /* as in struct qmeld_open_options */
    const char *snapshot; /* ID or name of an internal snapshot of path; NULL: its active view */
    const struct qmeld_secrets *secrets; /* NULL: none; out is not encrypted */
    bool share; /* takes no lock: somebody may write meanwhile, and then what is
                                 * read was never the disk at any one time */
    const struct qmeld_create_options
        *target; /* format (NULL: raw), version, cluster_size, refcount_bits,
                                                * compression, extended_l2, lazy_refcounts; the rest is refused */
    const char *
        compress; /* "zlib" or "zstd": data is stored compressed, where it gets shorter; NULL: it is not */
    int compress_level; /* zlib 1 to 9, zstd 1 to 19; 0: a good one, and compressed clusters of layers with the same
                         * cluster size and compression are passed on as they are, whatever is in them */
    bool
        salvage; /* goes on past what cannot be read: sectors, tables, compressed clusters, what a file that
                   * was cut off has not got, backing files that are not there; fields of headers that
                   * reading does not need may make no sense */
    qmeld_finding_fn
        *finding; /* with salvage, for what of headers and backing files that was; may be NULL */
    void *finding_opaque;
    const char *fill; /* what is lost reads as this, over and over; NULL: as zeros */
    const char
        *salvage_map; /* NULL, or a file to be written: what is lost, as GNU ddrescue notes it */
    bool keep_zeros;  /* zeros that are stored as data become data, not holes */
    bool force;       /* what is called out may be replaced */
    bool restart;     /* what an interrupted run left is thrown away, not gone on with */
    const char *
        manifest; /* NULL, or a file to be written: of every byte where it is from, and digests of all
                           * (docs/manifest.md) */
    uint64_t leaf; /* a digest for each so many bytes: a power of two, 4 KiB to 64 MiB; 0: 1 MiB */
    const char *const
        *command;         /* for the manifest: the command line, NULL-terminated; may be NULL */
    qmeld_bytes_fn *sink; /* takes the bytes, in place of out, which is NULL then */
    void *sink_opaque;
    unsigned threads;            /* 0: as many as there are processors, at most 16 */
    qmeld_progress_fn *progress; /* may be NULL; counts guest bytes, zeros too */
    void *opaque;
};

struct qmeld_flatten_report {
    uint64_t size;       /* of the disk */
    uint64_t bytes_data; /* of that, what is stored as data; by this run */
    uint64_t
        bytes_shared; /* of those, in blocks that a layer's file has, too: they take no space */
    uint64_t bytes_passed; /* likewise, in compressed clusters that are a layer's, as they are */
    uint64_t bytes_compressed; /* what all compressed clusters take */
    bool resumed;              /* an interrupted run was gone on with, from guest byte resumed_at */
    uint64_t resumed_at;
    uint64_t bytes_lost; /* with salvage */
    uint64_t ranges_lost;
    char sha256[65];      /* with a manifest: of the disk's bytes, hexadecimal; else empty */
    char merkle_root[65]; /* likewise, of the tree over its leaves */
    uint64_t seconds_x1000;
};

/* Writes what path reads as, through all its layers, to a new image without any backing file.  The layers are only
 * read, and locked as a reader locks them.  out has its name when it is complete and durable: until
 * then the file is called .NAME.qmeld-partial, and the same call goes on with it.  A block device is written to as it
 * is. *report may be NULL. */
QMELD_API int qmeld_flatten(const char *path, const char *out,
                            const struct qmeld_flatten_options *opts,
                            struct qmeld_flatten_report *report,
                            struct qmeld_error *err) QMELD_CHECK;

/* What an interrupted flatten left; everything is the callee's. */
struct qmeld_partial {
    const char *out;     /* the image's name, when it is complete */
    const char *note;    /* NULL: there is none, and nobody goes on with what is in partial */
    const char *partial; /* what the image is called until then; NULL: no such file is there */
    const struct qmeld_error *problem; /* NULL, or why the note cannot be gone by */
    const char *image;                 /* what is flattened; NULL: unknown */
    const char *manifest;              /* NULL: none is asked for, or unknown */
    bool running;                      /* a process is at work on it now */
    bool complete;                     /* it has its name; what comes after is left to do */
    uint64_t done;                     /* guest bytes that are in it, durably, counted from 0 */
    uint64_t size;                     /* of the disk; 0: unknown */
};

/* Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_partial_fn(const struct qmeld_partial *partial, void *opaque);

/* Tells of each that lies in path, a directory; or of that of one image, by its name, that of its note, or the one it has
 * until it is complete.  Takes no lock and writes nothing. */
QMELD_API int qmeld_partials(const char *path, qmeld_partial_fn *fn, void *opaque,
                             struct qmeld_error *err) QMELD_CHECK;

/* Goes on with one (path as above) as qmeld_flatten does when it is called again: what is to be done is in the note.  Of how,
 * which may be NULL, threads, secrets, progress, opaque and command count.  USAGE: there is no note.  STALE: what it
 * reads has changed.  *report may be NULL. */
QMELD_API int qmeld_flatten_resume(const char *path, const struct qmeld_flatten_options *how,
                                   struct qmeld_flatten_report *report,
                                   struct qmeld_error *err) QMELD_CHECK;

/* Removes what it left, note and file; of its manifest, too.  USAGE: there is nothing, or the image is complete.  BUSY: it is
 * at work. */
QMELD_API int qmeld_flatten_abandon(const char *path, struct qmeld_error *err) QMELD_CHECK;

/* ---- verify ---- */

struct qmeld_verify_options {
    const char *output; /* the image, if it is not where the manifest says; NULL: it is */
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

/* Derives all that a manifest says anew, from the image and the inputs at the paths that it names.  Takes no lock and
 * writes nothing.  0 also if something differs: see *out.  USAGE: path is no manifest. */
QMELD_API int qmeld_verify(const char *path, const struct qmeld_verify_options *opts,
                           struct qmeld_verify_result *out, struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
