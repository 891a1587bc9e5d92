/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * defs.h - what libvirt keeps of domains beside their definitions: snapshots, saved states, pools.
 *
 * Why.  After a merge without QEMU nobody but we tells libvirt that a chain is shorter.  What that takes
 * of libvirt's interface is here, each call within a limit (session.h), so that those who decide what has
 * to change see texts and names only.
 *
 * Threads    As session.h.
 * Ownership  What is returned is malloc'd and the caller's.
 * Errors     0, or -1 with *fault filled.
 */
#ifndef QM_DEFS_H
#define QM_DEFS_H

#include "session.h"
#include "vec.h"

/* ---- snapshots ---- */

struct qm_defs_snapshot {
    char *name;
    char *xml; /* with secrets, so that it can be defined again */
    bool current;
};

struct qm_defs_snapshots {
    QM_VEC(struct qm_defs_snapshot) list;
};

/* Of a domain, parents before their children. */
int qm_defs_snapshots(struct qm_session *session, virDomainPtr domain,
                      struct qm_defs_snapshots *out, struct qm_fault *fault) QM_CHECK;
void qm_defs_snapshots_free(struct qm_defs_snapshots *snapshots);

/* Puts another text in a snapshot's place. */
int qm_defs_redefine(struct qm_session *session, virDomainPtr domain, const char *xml, bool current,
                     struct qm_fault *fault) QM_CHECK;

/* libvirt forgets the snapshot; its children become those of its parent.  No file is touched. */
int qm_defs_forget(struct qm_session *session, virDomainPtr domain, const char *snapshot,
                   struct qm_fault *fault) QM_CHECK;

/* ---- managed save ---- */

int qm_defs_has_saved(struct qm_session *session, virDomainPtr domain, bool *out,
                      struct qm_fault *fault) QM_CHECK;
int qm_defs_saved_xml(struct qm_session *session, virDomainPtr domain, char **out,
                      struct qm_fault *fault) QM_CHECK;
int qm_defs_saved_define(struct qm_session *session, virDomainPtr domain, const char *xml,
                         struct qm_fault *fault) QM_CHECK;

/* ---- storage ---- */

/* The path of a volume. */
int qm_defs_volume_path(struct qm_session *session, const char *pool, const char *volume,
                        char **out, struct qm_fault *fault) QM_CHECK;

/* The pool whose target is this directory looks again at what it has.  *out: there is one, and it is
 * active. */
int qm_defs_refresh_pool(struct qm_session *session, const char *dir, bool *out,
                         struct qm_fault *fault) QM_CHECK;

#endif
