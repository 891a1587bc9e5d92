/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * change.h - what is to become of a stopped domain's disks, as it is remembered until it is done.
 *
 * Why.  Between the merge of the images and the moment when libvirt's definition, its snapshots and
 * its saved state say the same, anything may crash.  So before the first image is touched all of it is
 * written down beside each base (qmeld_note_write); whoever comes later, the same command or
 * another, finds there what was meant, and ends it.  A change is never rewritten: how far it came is
 * told by the definition and the images themselves.
 *
 * Calls      fill, note; or read; then finish (finish.h); unnote last.
 * Threads    One.
 * Ownership  The change owns all in it: qm_change_release.
 * Units      Layer 0 is the bottom of the chain.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_CHANGE_H
#define QM_CHANGE_H

#include "domxml.h"
#include "module.h"

struct qm_change_layer {
    char *path; /* absolute */
    char *format;
    bool blockdev;
    /* which file it was: the number, and, since numbers are given again, its birth (0: not told) */
    uint64_t ino;
    int64_t born_sec;
    int64_t born_nsec;
};

struct qm_change_disk {
    char *target;
    QM_VEC(struct qm_change_layer) layers; /* before the merge */
    size_t base;
    size_t top;
    char *backing_format; /* of layers for which no overlay stores one; NULL: not told */
    char *note;           /* where this change is written down, beside the base */
};

struct qm_change {
    char *uri; /* of the hypervisor, as it names itself */
    char *domain;
    char *uuid;
    char *words;    /* of the request: the same words again mean "go on" */
    char *snapshot; /* that is deleted; NULL: layers are merged */
    char *journal_dir;
    bool remove; /* merged files go */
    bool keep_relative;
    enum qmeld_bitmaps bitmaps;
    bool update_saved; /* a managed save is put right, too */
    bool live;         /* the machine ran when it was begun: QEMU merges as long as it does */
    QM_VEC(struct qm_change_disk) disks;
};

void qm_change_release(struct qm_change *change);

/* Takes the layer's identity from its file. */
int qm_change_add_layer(struct qm_change_disk *disk, const char *path, const char *format,
                        struct qmeld_error *err) QM_CHECK;

/* Writes it down beside each base.  Durable on return; on failure nothing is left. */
int qm_change_note(const struct qm_change *change, struct qmeld_error *err) QM_CHECK;
/* Where a crash came between two of the notes: those that are missing. */
int qm_change_note_again(const struct qm_change *change, struct qmeld_error *err) QM_CHECK;
/* It is done with: the notes go. */
int qm_change_unnote(const struct qm_change *change, struct qmeld_error *err) QM_CHECK;

/* From the text of a note. */
int qm_change_read(const char *path, const char *text, struct qm_change *out,
                   struct qmeld_error *err) QM_CHECK;

static inline const struct qm_change_layer *
qm_change_base(const struct qm_change_disk *d)
{
    return &d->layers.at[d->base];
}

static inline bool
qm_change_top_is_active(const struct qm_change_disk *d)
{
    return d->top + 1 == d->layers.n;
}

/* The layer of the disk that is at this path, by name, or by being the same file now; d->layers.n: none,
 * or a file that took a layer's place since. */
size_t qm_change_find(const struct qm_change_disk *d, const char *path);

/* What is at the layer's path is the file it was.  *out_gone: there is none. */
bool qm_change_is_still(const struct qm_change_layer *layer, bool *out_gone);

/* Definitions, snapshots and saved state are right: only files are left to be removed. */
int qm_change_note_settled(const struct qm_change *change, struct qmeld_error *err) QM_CHECK;
/* It was noted, by any of the notes. */
int qm_change_is_settled(const struct qm_change *change, bool *out, struct qmeld_error *err)
    QM_CHECK;

#endif
