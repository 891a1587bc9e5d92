/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blockcommit.h - merging layers of a domain's disk, whether it runs or not.
 *
 * For the module's table: see live.h.
 */
#ifndef QM_BLOCKCOMMIT_H
#define QM_BLOCKCOMMIT_H

#include "err.h"
#include "live.h"

int qm_blockcommit(const struct qm_live_commit *request, struct qm_live_report *report,
                   struct qmeld_error *err) QM_CHECK;
int qm_snapshot_delete(const struct qm_live_commit *request, const char *snapshot,
                       struct qm_live_report *report, struct qmeld_error *err) QM_CHECK;
void qm_blockcommit_report_free(struct qm_live_report *report);

#endif
