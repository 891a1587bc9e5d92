/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_refs_int.h - what qcow2_refs.c and qcow2_refs_disk.c share, and nobody else.
 *
 * Why.  Deciding which clusters are taken, and bringing that to disk in order, are two things that
 * share one object.
 */
#ifndef QM_QCOW2_REFS_INT_H
#define QM_QCOW2_REFS_INT_H

#include "qcow2_refs.h"

struct block {
    unsigned char *data; /* NULL: not loaded */
    bool dirty;
    bool written; /* some version is on its way to the disk: it may be linked */
    bool linked;  /* the table on disk points at it */
};

struct run { /* of clusters */
    uint64_t first;
    uint64_t n;
};

struct qm_refs {
    struct qm_qcow2 *q;
    uint64_t per_block; /* clusters a block counts */
    uint64_t *table;    /* host offsets, 0: no block; n_entries of them */
    uint64_t n_entries;
    uint64_t disk_entries; /* what the table on disk has room for */
    struct block *blocks;  /* beside table */
    uint64_t clean_bytes;
    uint64_t free_hint;   /* no cluster below is free */
    uint64_t end_hint;    /* no cluster from here on is in use */
    bool new_blocks;      /* some block is not linked */
    struct run new_table; /* n > 0: written, the header does not point at it yet */
    uint64_t old_file_size;
    uint64_t floor;           /* first cluster that may change; 0 unless the image is staged */
    QM_VEC(uint64_t) moved;   /* clusters that blocks left for ones behind the floor */
    size_t n_left;            /* of these, from the first on: the blocks are written elsewhere */
    QM_VEC(struct run) freed; /* reached 0 since open */
};

static inline uint64_t
qm_refs_cluster_size(const struct qm_refs *r)
{
    return r->q->geo.cluster_size;
}

/* How many clusters from `first` on are free and countable, at most want.  A range
 * without block ends the run: its first cluster becomes the block. */
int qm_refs_free_run(struct qm_refs *r, uint64_t first, uint64_t want, uint64_t *out,
                     struct qmeld_error *err) QM_CHECK;

#endif
