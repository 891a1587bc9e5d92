/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * plan_page.h - what a plan tells, in a page.
 *
 * Threads    One.
 * Ownership  All is borrowed.
 * Errors     None: what cannot be printed is seen by main, in stdout.
 */
#ifndef QM_CLI_PLAN_PAGE_H
#define QM_CLI_PLAN_PAGE_H

#include "cli.h"

/* What is to be merged, and what stands against it. */
void qm_plan_page_summary(const struct qmeld_plan_report *report);

/* Files and their fates, work, space, and the order of the steps. */
void qm_plan_page_details(const struct qmeld_plan_report *report);

#endif
