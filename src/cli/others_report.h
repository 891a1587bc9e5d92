/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * others_report.h - who else depends on layers of a merge, as it reads.
 *
 * Threads    One.
 * Ownership  All is borrowed.
 */
#ifndef QM_CLI_OTHERS_REPORT_H
#define QM_CLI_OTHERS_REPORT_H

#include "cli.h"

/* One line each, the first twenty, and how many more there are.  planned: it has not happened. */
void qm_cli_others_print(FILE *out, const struct qmeld_dependant *d, size_t n, bool planned);

/* What could not be looked at, on stderr; nothing if all could.  path may be NULL. */
void qm_cli_others_print_unread(uint64_t n, const char *path, int why);

struct json_object *qm_cli_others_json(const struct qmeld_dependant *d, size_t n);

#endif
