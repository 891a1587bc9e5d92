/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/chain.h - looking at a chain: its layers, where its bytes are, the bytes.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Threads    Different chains from different threads; one chain from one thread at a time.
 * Ownership  A chain is the caller's, and goes back with qmeld_chain_close; strings and lists in structs are the
 *            chain's, and live as long.
 * Disk       Nothing is locked or written.
 */
#ifndef QMELD_CHAIN_H
#define QMELD_CHAIN_H

#include "common.h"

#ifdef __cplusplus
extern "C" {
#endif

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
    uint64_t icount; /* how many instructions a recorded guest had run; UINT64_MAX: not stored */
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

#ifdef __cplusplus
}
#endif

#endif
