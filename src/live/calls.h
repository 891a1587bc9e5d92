/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * calls.h - the calls to libvirt that ask for something, each within a limit (session.h).
 *
 * Why.  They are asked for by several parts, and the flags of libvirt are meant here as they are there.
 *
 * Errors     0, or -1 with *fault filled.
 */
#ifndef QM_CALLS_H
#define QM_CALLS_H

#include "session.h"

/* virDomainBlockCommit; bandwidth in bytes a second.  base and top as libvirt understands them. */
struct qm_calls_commit {
    const char *disk;
    const char *base;
    const char *top;
    uint64_t bandwidth;
    unsigned flags;
};

int qm_calls_commit(struct qm_session *session, virDomainPtr domain,
                    const struct qm_calls_commit *what, struct qm_fault *fault) QM_CHECK;

/* virDomainBlockJobAbort. */
int qm_calls_abort(struct qm_session *session, virDomainPtr domain, const char *disk,
                   unsigned flags, struct qm_fault *fault) QM_CHECK;

struct qm_job_info {
    bool present; /* a job runs on the disk; nothing else counts otherwise */
    int type;     /* virDomainBlockJobType */
    uint64_t done;
    uint64_t total;
};

/* virDomainGetBlockJobInfo. */
int qm_calls_job(struct qm_session *session, virDomainPtr domain, const char *disk,
                 struct qm_job_info *out, struct qm_fault *fault) QM_CHECK;

/* "copy", "commit", "active commit", "pull", "backup". */
const char *qm_calls_job_name(int type);

/* virDomainGetState: its guest runs, and so would go on writing. */
int qm_calls_is_going(struct qm_session *session, virDomainPtr domain, bool *out,
                      struct qm_fault *fault) QM_CHECK;

/* virDomainSuspend, and virDomainResume. */
int qm_calls_suspend(struct qm_session *session, virDomainPtr domain, struct qm_fault *fault)
    QM_CHECK;
int qm_calls_resume(struct qm_session *session, virDomainPtr domain, struct qm_fault *fault)
    QM_CHECK;

/* virDomainUpdateDeviceFlags. */
int qm_calls_update(struct qm_session *session, virDomainPtr domain, const char *xml,
                    unsigned flags, struct qm_fault *fault) QM_CHECK;

#endif
