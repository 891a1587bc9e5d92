/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * changes.h - unfinished changes of stopped domains: found by their notes, shown, ended.
 *
 * Why.  A merge for a stopped machine is done when libvirt's definition says so, too; until then a note
 * lies beside the base.  status, resume and recover have to see it even where libvirt is not: then
 * they say what is left to do.
 *
 * Ownership  What find fills goes back with release.
 */
#ifndef QM_CLI_CHANGES_H
#define QM_CLI_CHANGES_H

#include "merging.h"

struct qm_cli_change {
    char *note;               /* its path */
    struct json_object *text; /* NULL: it cannot be read, for problem */
    struct qmeld_error problem;
};

struct qm_cli_changes {
    struct qm_cli_change *list;
    size_t n;
};

/* All of a directory; or those that have to do with a layer, a journal or a note.  Several notes of one
 * change count once.  If there is none beside a layer the sandbox is entered (sandbox.h) before its chain is read: libvirt
 * can be asked from within, but not started. */
int qm_cli_changes_find(const char *path, const char *journal_dir, struct qm_cli_changes *out,
                        struct qmeld_error *err) QMELD_CHECK;
void qm_cli_changes_release(struct qm_cli_changes *changes);

/* By its name, path is a note. */
bool qm_cli_names_a_note(const char *path);

/* The merge of this journal is a part of a change: its note lies beside it. */
bool qm_cli_change_has(const char *journal);

/* For status. */
void qm_cli_change_print(const struct qm_cli_change *change);
struct json_object *qm_cli_change_json(const struct qm_cli_change *change);

/* Ends it with the help of libvirt, and reports: into array, unless that is NULL.
 * Returns the exit code; what is left to do was said then. */
int qm_cli_change_finish(struct qm_cli_merging *merging, const struct qm_cli_change *change,
                         struct json_object *array);

#endif
