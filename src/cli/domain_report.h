/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domain_report.h - how the end of a change of a domain reads: blockcommit, snapshot-delete, resume.
 *
 * Ownership  All is borrowed.
 */
#ifndef QM_CLI_DOMAIN_REPORT_H
#define QM_CLI_DOMAIN_REPORT_H

#include "live.h"
#include "merging.h"

/* The value of --managed-save.  False after a complaint. */
bool qm_cli_parse_managed_save(const char *command, const char *text, bool *out_update);

/* The report in the form that was asked for; sentence says the end in words.  err, NULL if there is none,
 * was complained of already. */
void qm_cli_domain_report(const struct qm_cli_merging *merging, const struct qm_live_report *report,
                          const char *sentence, const struct qmeld_error *err);

/* What the failure, complained of already, leaves of a stopped machine: said on stderr. */
void qm_cli_domain_explain(const struct qm_live_report *report, const struct qmeld_error *err);

/* As an object, which is the caller's. */
struct json_object *qm_cli_domain_json(const struct qm_live_report *report,
                                       const struct qmeld_error *err);

#endif
