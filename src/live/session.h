/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * session.h - a connection to a hypervisor that cannot hang us.
 *
 * Why.  libvirt's calls have no time limit: a QEMU that does not answer holds them for ever, and a
 * connection may go away without a word.  Here each call runs on a thread of its own, is waited for
 * within a limit, and is abandoned if somebody asks to stop; events and the loss of the connection
 * are turned into flags that the caller looks at.
 *
 * Calls      open; then the calls, one at a time; close.
 * Threads    One thread calls.  A thread runs libvirt's event loop, from the first open to the end of
 *            the process; callbacks of libvirt run on it and only set what is under the lock.
 * Ownership  What a call returns through a char ** is malloc'd and the caller's.
 * Errors     0, or -1 with *fault filled.  An abandoned call leaves its thread behind, and may still
 *            act; the connection is then not closed, but left to the end of the process.
 */
#ifndef QM_SESSION_H
#define QM_SESSION_H

#include "err.h"

#include <libvirt/libvirt.h>
#include <libvirt/virterror.h>

struct qm_session;

/* Why a call failed. */
struct qm_fault {
    int code;       /* virErrorNumber; 0: what follows tells */
    int domain;     /* virErrorDomain: which part of libvirt */
    bool late;      /* it did not answer within its limit */
    bool stopped;   /* somebody asked to stop while it was waited for */
    char what[600]; /* libvirt's sentence */
};

/* Looked at while a call is waited for, some times a second; true: give up. */
typedef bool qm_session_stop_fn(void *opaque);

struct qm_session_options {
    const char *uri;          /* NULL: as virsh finds it, otherwise qemu:///system */
    bool read_only;           /* enough to look, and needs fewer rights */
    qm_session_stop_fn *stop; /* may be NULL */
    void *opaque;
};

/* CALL_LIMIT: longer than the 30 s after which libvirt itself tells that a domain's lock is held by
 * somebody who waits for a hung QEMU. */
enum { QM_SESSION_OPEN_LIMIT = 20, QM_SESSION_REMOTE_LIMIT = 120, QM_SESSION_CALL_LIMIT = 40 };

/* Connects.  On failure *err says what to look at. */
int qm_session_open(const struct qm_session_options *options, struct qm_session **out,
                    struct qmeld_error *err) QM_CHECK;

/* NULL is fine. */
void qm_session_close(struct qm_session *session);

/* As the connection names itself. */
const char *qm_session_uri(const struct qm_session *session);

/* The hypervisor runs on this machine, so that its paths are ours.  (In other mount namespaces they may
 * still be others.) */
bool qm_session_is_local(const struct qm_session *session);

/* The connection has ended: further calls will fail. */
bool qm_session_is_lost(const struct qm_session *session);

/* From now on nobody is asked whether to stop, and a call has so many seconds: for what must be done
 * after somebody asked to. */
void qm_session_hurry(struct qm_session *session, unsigned seconds);

/* Somebody asks to stop; false after qm_session_hurry. */
bool qm_session_stopped(const struct qm_session *session);

/* The environment names the hypervisor to connect to. */
bool qm_session_default_is_set(void);

/* From now on a call has so many seconds left when somebody asks to stop: for what is better waited for. */
void qm_session_be_patient(struct qm_session *session, unsigned seconds);

virConnectPtr qm_session_connection(const struct qm_session *session);

/* ---- calls ---- */

/* One call to libvirt.  Runs on another thread, so args must stay valid if the call is abandoned:
 * they are copied, size bytes, and what they point at is owned by them (see release). */
struct qm_session_call {
    const char *name; /* of the function, for sentences */
    /* 0, or -1 with libvirt's last error set */
    int (*run)(void *args);
    void (*release)(void *args); /* when nobody needs args any more; NULL: nothing to release */
    void *args;                  /* malloc'd; the call frees it, after release */
    void (*take)(void *args, void *out); /* on success, before release: results to the caller */
    void *out;
    unsigned limit; /* seconds; 0: QM_SESSION_CALL_LIMIT */
};

/* Runs it and waits.  Takes ownership of call->args, whatever happens (NULL: memory was out). */
int qm_session_run(struct qm_session *session, const struct qm_session_call *call,
                   struct qm_fault *fault) QM_CHECK;

/* The definition of a domain; flags are virDomainXMLFlags. */
int qm_session_xml(struct qm_session *session, virDomainPtr domain, unsigned flags, char **out,
                   struct qm_fault *fault) QM_CHECK;

/* virDomainIsActive. */
int qm_session_is_active(struct qm_session *session, virDomainPtr domain, bool *out,
                         struct qm_fault *fault) QM_CHECK;

/* Fills *err from a fault: "cannot VERB: <libvirt's sentence>", with the code that fits and, for
 * faults with a known cause, what to do.  Returns -1. */
int qm_session_fail(struct qmeld_error *err, const struct qm_fault *fault, const char *doing);

#endif
