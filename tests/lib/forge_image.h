/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_image.h - a qcow2 file in the making: where everything came to lie.
 *
 * Why.  forge_qcow2.c lays the file out, forge_damage.c finds the place a recipe wants to
 * damage by the same notes.  Offsets are bytes in the file.
 */
#ifndef QM_FORGE_IMAGE_H
#define QM_FORGE_IMAGE_H

#include "forge_recipe.h"

/* One L1 table with what hangs on it: the active one, or a snapshot's. */
struct qm_forge_tree {
    const struct qm_forge_cells *cells;
    size_t who; /* for the pattern */
    uint64_t l1_off;
    uint64_t l1_entries;
    uint64_t *l2_offs; /* of each L1 entry, 0: none */
    uint64_t *entries; /* of each cell, without COPIED; extended: two words a cell */
};

struct qm_forge_image {
    const struct qm_forge_layer *l;
    const char *path;
    int fd;
    int data_fd; /* external data file, or -1 */
    uint64_t cs;
    uint64_t l2_entry_len;
    uint64_t l2_entries;
    uint64_t random;
    QM_VEC(uint64_t) refs; /* refcount of each cluster; .n is the end of the file */
    uint64_t packed_to;    /* where the last compressed payload ended, 0: start anew */
    struct qm_forge_tree active;
    struct qm_forge_tree *snaps; /* l->snapshots.n */
    uint64_t snapshots_off;
    uint64_t reftable_off;
    uint64_t reftable_clusters;
    QM_VEC(uint64_t) refblocks; /* their offsets */
    uint64_t crypto_off;        /* LUKS header and key material */
    uint64_t bitmap_dir_off;
    uint64_t bitmap_dir_len;
    struct qmeld_error *err;
};

/* Lays down the clusters of t and finds room for its tables. */
int qm_forge_build_tree(struct qm_forge_image *im, struct qm_forge_tree *t, uint64_t size) QM_CHECK;

/* Lays down the snapshots: clusters, L1 tables, the snapshot table. */
int qm_forge_put_snapshots(struct qm_forge_image *im) QM_CHECK;

/* Writes L1 and L2 tables; all references must have been counted. */
int qm_forge_write_tree(struct qm_forge_image *im, const struct qm_forge_tree *t) QM_CHECK;

/* Carries out one poke or truncate line. */
int qm_forge_damage(struct qm_forge_image *im, const struct qm_forge_damage *damage,
                    const char *recipe) QM_CHECK;

#endif
