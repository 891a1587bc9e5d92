/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * watch.h - what libvirt's events said about a disk's job.
 *
 * Why.  Events come on libvirt's event loop, perhaps after nobody wants them any more; they are kept
 * here as a few flags under a lock, and freed by whoever is last.  BLOCK_JOB_2 alone is used: its
 * older sister names a disk by a path that the job itself changes, and says nothing of network disks.
 *
 * Calls      begin, read and wait, end.
 * Threads    One thread calls; the event loop sets the flags.
 */
#ifndef QM_WATCH_H
#define QM_WATCH_H

#include "domain.h"

struct qm_watch;

struct qm_watch_state {
    bool ready;
    bool ended;       /* completed, failed or canceled */
    bool failed;      /* it was FAILED */
    bool shut_down;   /* the machine stopped: no event of the job will come */
    char reason[200]; /* QEMU's words for a failure; "" if they were not heard */
};

/* Before the job begins.  A driver without events is no failure: polls find out, later. */
int qm_watch_begin(struct qm_session *session, const struct qm_domain *domain, const char *disk,
                   struct qm_watch **out, struct qmeld_error *err) QM_CHECK;

void qm_watch_end(struct qm_watch *watch, struct qm_session *session); /* NULL is fine */

struct qm_watch_state qm_watch_read(struct qm_watch *watch);

/* Returns when something changed since the last read, or after ms. */
void qm_watch_wait(struct qm_watch *watch, unsigned ms);

#endif
