/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * partials.h - images that an interrupted flatten has not completed: shown, completed, given up.
 *
 * Why.  Such an image is no merge and has no journal; its note lies beside it.  status, resume, recover and revert know
 * it all the same, so that who looks into a directory after a crash is told of everything by one command.
 */
#ifndef QM_CLI_PARTIALS_H
#define QM_CLI_PARTIALS_H

#include "merging.h"

/* Beside the exit codes of every command: the image is complete, and not all of the disk could be read. */
enum { QM_CLI_FLATTEN_LOST = 4 };

struct qm_cli_partials {
    char **outs; /* names of images that can be gone on with */
    size_t n;
    size_t n_left; /* files that nobody goes on with */
};

/* Those that path, a directory or a name of one of them, has to do with; release in any case. */
int qm_cli_partials_find(const char *path, struct qm_cli_partials *out,
                         struct qmeld_error *err) QMELD_CHECK;
void qm_cli_partials_release(struct qm_cli_partials *partials);

/* Nothing else can be meant by path: it is the name of a note or of a file that is not complete, or nothing is there. */
bool qm_cli_partials_own(const char *path);

/* For status: prints them, or adds them to array unless that is NULL. */
int qm_cli_partials_show(const char *path, struct json_object *array, size_t *n_found,
                         size_t *n_unfinished, struct qmeld_error *err) QMELD_CHECK;

/* Completes one, or gives it up, and reports; into array, unless that is NULL.  Return the exit code. */
int qm_cli_partial_finish(struct qm_cli_merging *merging, const char *out,
                          struct json_object *array);
int qm_cli_partial_abandon(const struct qm_cli_merging *merging, const char *out);

#endif
