/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * run.h - one merge under a running machine: what its steps hand on to each other.
 *
 * Why.  running.c is the line of the steps; preflight.c has what is looked at before the job begins, after.c
 * what is put right when it has ended.
 *
 * Threads    As session.h.
 */
#ifndef QM_RUN_H
#define QM_RUN_H

#include "domain.h"
#include "domxml.h"
#include "live.h"
#include "module.h"
#include "range.h"

struct qm_run {
    /* given */
    struct qm_session **session;
    const struct qm_session_options *options;
    struct qm_domain *domain;
    const struct qm_live_commit *request;
    struct qm_live_report *report;
    bool local; /* the hypervisor's paths are ours */

    /* read before the job begins */
    struct qm_domxml *before;
    const struct qm_domxml_disk *disk; /* in before */
    struct qm_range range;
    struct qm_file_id *ids; /* of the disk's layers */
    bool attached;          /* the job runs already, from an earlier call */
    bool relative;          /* the child's header has a relative name for what is merged */
};

/* ---- preflight.c ---- */

/* What would be spoilt, or cannot work: refused.  What must be known: noted.  Sets attached and relative. */
int qm_run_preflight(struct qm_run *run, struct qmeld_error *err) QM_CHECK;

/* ---- after.c ---- */

/* The chain is merged: the child's header, the kept definition, and merged files. */
int qm_run_settle(struct qm_run *run, struct qmeld_error *err) QM_CHECK;

/* ---- shared ---- */

/* The layer was merged: it lies in [top, base). */
bool qm_run_is_merged(const struct qm_run *run, const struct qm_domxml_source *source);

static inline const struct qm_domxml_source *
qm_run_base(const struct qm_run *run)
{
    return &run->disk->layers.at[run->range.base];
}

static inline struct qm_session *
qm_run_session(const struct qm_run *run)
{
    return *run->session;
}

/* From the header of a file of this machine: backing name and format (malloc'd, NULL: none stored; format
 * itself may be NULL).  False if it cannot be read. */
bool qm_run_backing_name(const char *path, char **name, char **format);

#endif
