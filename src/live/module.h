/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * module.h - what the parts of qmeld-live.so share: libqmeld as the program lent it, and notes.
 *
 * Threads    One, that of the call.
 */
#ifndef QM_MODULE_H
#define QM_MODULE_H

#include "live.h"

/* libqmeld, as the program has it. */
extern const struct qm_live_host *qm_lib;

/* Adds a sentence for the user.  If there is no memory for it, it is lost: a note is no result. */
void qm_note(struct qm_live_notes *notes, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
void qm_notes_free(struct qm_live_notes *notes);

/* ---- files of this machine ---- */

/* Which file a path leads to.  Two paths are the same image if their files are, or, of block devices,
 * the devices: QEMU may see them under other inodes. */
struct qm_file_id {
    bool known; /* false: there is nothing, or it may not be looked at */
    bool block;
    bool regular;
    uint64_t dev;
    uint64_t ino;  /* of the device, if it is one */
    uint64_t size; /* bytes of disk it takes */
};

struct qm_file_id qm_file_id(const char *path);

/* The external data file that the header at path names, malloc'd; NULL: it has none, or cannot be read. */
char *qm_data_file_of(const char *path, const char *format);

/* Why a merged file is not removed, of its name and the other's: then nothing would tell of that one any more
 * (docs/decisions/0029-data-files.md). */
#define QM_NOTE_DATA_FILE                                                                          \
    "%s stays: its clusters are in a file of their own, %s; remove both, if nobody else needs "    \
    "them"

/* False if either is unknown. */
bool qm_file_id_same(const struct qm_file_id *a, const struct qm_file_id *b);

#endif
