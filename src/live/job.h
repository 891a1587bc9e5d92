/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * job.h - a block commit job, watched from its start to its end.
 *
 * Why.  No single source tells when a job is ready or over.  An event may be missed (the daemon was
 * started anew), never sent (the machine was destroyed), or contradicted (FAILED after READY); cur == end
 * does not mean ready.  So all of them only wake the watcher up, and what it reports is that the job is
 * there, ready, or gone; what came of it is read from the machine's definition afterwards, by the caller.
 *
 *     COPYING --ready--> READY --pivot or keep asked--> FINISHING --gone--> GONE
 *        \____________________stop asked______________> CANCELING --gone--> GONE
 *
 * Calls      open (before the job begins), begin unless the job runs already, run, close.
 * Threads    One thread calls; libvirt's event loop calls back, and only sets flags under a lock.
 * Ownership  session and domain are borrowed, and replaced in place when the connection had to be made anew.
 * Errors     0, or -1 with *err; err->disk is OPEN where the job may still be running.
 */
#ifndef QM_JOB_H
#define QM_JOB_H

#include "calls.h"
#include "domain.h"
#include "live.h"

struct qm_job;

struct qm_job_request {
    struct qm_session **session;
    const struct qm_session_options *reconnect; /* how to get a new one */
    struct qm_domain *domain;
    const char *disk; /* target */
    bool active;      /* the job is an active commit: it gets ready, and waits */
    bool hold;        /* the guest must not write while the machine is taken to the base */
    const struct qm_live_commit *commit;
};

enum qm_job_state {
    QM_JOB_GONE,  /* there is no job any more; the definition tells what came of it */
    QM_JOB_READY, /* it mirrors, and nothing more was asked */
    QM_JOB_LEFT,  /* it runs, and is not waited for */
};

struct qm_job_end {
    enum qm_job_state state;
    bool stop_asked;  /* a signal or the deadline made us cancel it */
    bool finished;    /* it was ready, and was asked to pivot or to end */
    bool heard;       /* an event told of the end */
    bool failed;      /* an event said FAILED */
    bool held;        /* the guest was suspended for a pivot, and could not be told to go on */
    char reason[200]; /* QEMU's, of the failure; "" if it was not heard */
};

int qm_job_open(const struct qm_job_request *request, struct qm_job **out, struct qmeld_error *err)
    QM_CHECK;
void qm_job_close(struct qm_job *job); /* NULL is fine */

/* Starts it.  base and top are names that libvirt understands; top NULL: the active layer. */
int qm_job_begin(struct qm_job *job, const char *base, const char *top, unsigned flags,
                 struct qmeld_error *err) QM_CHECK;

/* Waits, finishes as asked, or cancels.  *end is filled also on failure, as far as it is known. */
int qm_job_run(struct qm_job *job, struct qm_job_end *end, struct qmeld_error *err) QM_CHECK;

#endif
