/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit_int.h - between the parts of qcow2_edit: decisions (qcow2_edit.c), places
 * (qcow2_edit_place.c, qcow2_edit_pack.c) and tables (qcow2_edit_tables.c).  Nobody else includes it.
 */
#ifndef QM_QCOW2_EDIT_INT_H
#define QM_QCOW2_EDIT_INT_H

#include "qcow2_edit.h"
#include "qcow2_pack.h"

#include <inttypes.h>

/* A new L2 entry, not on disk yet. */
struct qm_edit_entry {
    uint64_t idx; /* guest cluster */
    uint64_t word0;
    uint64_t word1;
};

/* Host bytes nobody needs once the batch is published. */
struct qm_edit_free {
    host_off off;
    uint64_t len;
};

/* An L2 table that moves or is born in this batch. */
struct qm_edit_table {
    uint64_t l1_idx;
    bool of_active; /* of the active view, while a snapshot is edited: it gets no entries */
    host_off old;   /* .h == 0: there was none */
    host_off new;
    size_t from; /* the entries it gets */
    size_t to;
};

#define QM_EDIT_NO_LAYER UINT32_MAX

/* A guest cluster that gets a new host cluster when the batch ends. */
struct qm_edit_slot {
    size_t entry;    /* of qm_edit.entries: it has all but the place */
    size_t first;    /* of qm_edit.moves: `to` counts from the cluster's first byte */
    uint32_t n;      /* so many moves */
    uint32_t layer;  /* where the first of its bytes that are copied come from: */
    uint64_t source; /* host offset there; QM_EDIT_NO_LAYER: guest offset */
};

/* A compressed cluster that is passed on. */
struct qm_edit_payload {
    size_t entry; /* likewise */
    struct qm_want want;
};

struct qm_edit {
    /* set at open */
    struct qm_qcow2 *q;
    struct qm_refs *refs;
    const struct qcow2_geo *geo;
    uint64_t below_size;
    uint64_t new_size;
    bool decompress;
    uint64_t *l1; /* the active table, host order, as on disk */
    uint32_t l1_entries;
    /* a snapshot is edited: */
    struct qm_qcow2 *holder; /* the image; NULL: its active view is edited */
    uint64_t *active;        /* its active L1 table, likewise */
    uint32_t active_entries;
    /* the cluster whose wants are being collected */
    uint64_t pending_idx;
    QM_VEC(struct qm_want) pending;
    /* the batch */
    QM_VEC(struct qm_edit_entry) entries;    /* ascending */
    QM_VEC(struct qm_edit_slot) slots;       /* ascending */
    struct qm_moves moves;                   /* of slots, and in their order */
    QM_VEC(struct qm_edit_table) tables;     /* ascending; then those of_active, likewise */
    QM_VEC(struct qm_edit_free) frees;       /* since the last release */
    size_t weight;                           /* of all but frees, since the last release */
    QM_VEC(struct qm_edit_payload) payloads; /* ascending */
    struct qm_pack pack;                     /* where they go */
    uint64_t host_end; /* of the last new data cluster: the file must reach that far */
    /* the part of one L2 table read last */
    unsigned char *slice;
    uint64_t slice_off; /* in the file; UINT64_MAX: nothing */
};

/* The entry of a guest cluster as on disk; *out_table: its L2 table exists. */
int qm_edit_get(struct qm_edit *e, uint64_t idx, uint64_t *out_word0, uint64_t *out_word1,
                bool *out_table, struct qmeld_error *err) QM_CHECK;

/* If there is no L2 table for guest cluster idx and nothing below: the first cluster behind the
 * run of which that is true.  Otherwise 0.  The run is not followed past cluster end. */
uint64_t qm_edit_zero_run(const struct qm_edit *e, uint64_t idx, uint64_t end);

/* CORRUPT, or UNSUPPORTED, if this data cluster of guest cluster idx, of a snapshot, is the active view's, too: it must keep
 * its references. */
int qm_edit_may_leave(struct qm_edit *e, uint64_t idx, host_off host, struct qmeld_error *err)
    QM_CHECK;

/* Stages an entry. */
int qm_edit_set(struct qm_edit *e, const struct qm_edit_entry *entry, struct qmeld_error *err)
    QM_CHECK;

/* Adds a move, joined with the last one if it continues that. */
int qm_edit_add_move(struct qm_moves *moves, const struct qm_move *m, struct qmeld_error *err)
    QM_CHECK;

/* The entry of guest cluster idx is to lead to this payload (qm_edit_passes). */
int qm_edit_pass_on(struct qm_edit *e, uint64_t idx, const struct qm_want *want,
                    struct qmeld_error *err) QM_CHECK;

/* All payloads get their places, likewise. */
int qm_edit_pack(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err) QM_CHECK;

/* All slots get their clusters, their entries the places; their moves go to *moves. */
int qm_edit_place(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err) QM_CHECK;

#endif
