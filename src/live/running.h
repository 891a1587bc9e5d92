/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * running.h - merging layers of a disk whose machine runs.
 *
 * Why.  QEMU does the work; what is ours is to ask for the right thing, to refuse what QEMU and libvirt
 * would do although it spoils something, and to find out what came of it.
 *
 * Threads    As session.h.  *session is replaced if the connection had to be made anew.
 * Errors     err->disk: OLD, the chain is as it was (the base may hold some of the merged bytes already,
 *            where layers above hide them); OPEN, the job may still run; NEW, it is done, and only what had
 *            to follow failed.
 */
#ifndef QM_RUNNING_H
#define QM_RUNNING_H

#include "domain.h"
#include "live.h"

int qm_running_commit(struct qm_session **session, const struct qm_session_options *options,
                      struct qm_domain *domain, const struct qm_live_commit *request,
                      struct qm_live_report *report, struct qmeld_error *err) QM_CHECK;

#endif
