/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shadow_int.h - between the two halves of shadow: the dry run and its files (shadow.c), their bytes and blocks
 * (shadow_bytes.c).  Nobody else includes it.
 */
#ifndef QM_SHADOW_INT_H
#define QM_SHADOW_INT_H

#include "blocks.h"
#include "dict.h"
#include "shadow.h"
#include "vec.h"

#define QM_SHADOW_MAX_NOTES 8u

struct qm_shadow_hole {
    uint64_t off;
    uint64_t len;
};

struct qm_shadow_file {
    struct qm_shadow *s;
    struct qm_shadow_sum sum; /* .path is ours */
    unsigned users;           /* open qm_files */
    bool linked_elsewhere;    /* other names keep a removed file alive */
    unsigned names;           /* that it got, and has, besides those it had */
    bool changed;
    size_t purses[QM_ROOM_KINDS];
    size_t n_purses;
    uint64_t block;
    uint64_t size;
    uint64_t end;             /* from here on the real file's bytes do not count */
    struct qm_blocks *blocks; /* NULL: not changed yet, or a block device */
    struct qm_dict pages;     /* PAGE bytes each, or qm_shadow_zeros */
    QM_VEC(struct qm_shadow_hole) holes;
};

struct qm_shadow {
    QM_VEC(struct qm_shadow_file *) files;
    QM_VEC(struct qm_shadow_purse) purses;
    bool wants_notes;
    bool frugal;
    struct qmeld_error notes[QM_SHADOW_MAX_NOTES];
    size_t n_notes;
    uint64_t bytes;          /* of memory */
    uint64_t n_made;         /* inode numbers for files that do not exist */
    struct qmeld_error late; /* what went wrong while a file was being closed */
    bool failed;
};

/* A page of zeros is this one, not a copy of its own. */
#define QM_SHADOW_PAGE 4096u
extern unsigned char qm_shadow_zeros[QM_SHADOW_PAGE];

/* The blocks of a removed file that nobody has open any more. */
int qm_shadow_release(struct qm_shadow_file *f, struct qmeld_error *err) QM_CHECK;

/* Holes that were left for the next sync. */
int qm_shadow_apply_holes(struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* Blocks are asked for when the first of them changes. */
int qm_shadow_need_blocks(struct qm_file *file, struct qmeld_error *err) QM_CHECK;

#endif
