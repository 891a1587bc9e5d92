/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * show.h - a domain's disks and their chains, as its definition tells them.
 *
 * For the module's table: see live.h.
 */
#ifndef QM_SHOW_H
#define QM_SHOW_H

#include "err.h"
#include "live.h"

int qm_show_domain(const char *uri, const char *name, struct qm_live_domain *out,
                   struct qmeld_error *err) QM_CHECK;
void qm_show_domain_free(struct qm_live_domain *domain);

#endif
