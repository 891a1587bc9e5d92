/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * create_options.h - the options of new images, for the commands that make some.
 *
 * Errors     False after the complaint.
 */
#ifndef QM_CLI_CREATE_OPTIONS_H
#define QM_CLI_CREATE_OPTIONS_H

#include "cli.h"

/* name is one of those -o knows, such as cluster_size; a value of NULL is for switches. */
bool qm_cli_create_apply(const char *command, struct qmeld_create_options *create, const char *name,
                         const char *value);

/* "a=b,c=d"; text is changed, and the options point into it. */
bool qm_cli_create_apply_list(const char *command, struct qmeld_create_options *create, char *text);

#endif
