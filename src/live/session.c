/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "session.h"

#include "cleanup.h"
#include "clock.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { LOOK_MS = 100 }; /* how often the stop function is asked */

struct qm_session {
    /* set at open */
    virConnectPtr connection;
    char *uri;
    bool local;
    qm_session_stop_fn *stop;
    void *opaque;
    /* the caller's thread only */
    bool abandoned;
    unsigned limit; /* of calls that do not say; 0: QM_SESSION_CALL_LIMIT */
    unsigned grace; /* seconds that a call has left once somebody asks to stop */
    struct shared *shared;
};

/* What the close callback sets.  It is never called after it was unregistered (libvirt calls it under its
 * own lock), so this lives as long as the session, or, if that is not closed, to the end. */
struct shared {
    pthread_mutex_t lock;
    bool closed;
};

/* ---- the event loop: one for the process, for libvirt allows one ---- */

static pthread_once_t loop_once = PTHREAD_ONCE_INIT;
static bool loop_runs;

static void *
run_loop(void *unused)
{
    (void)unused;
    for (;;)
        if (virEventRunDefaultImpl() < 0) {
            const struct timespec pause = {.tv_nsec = 100000000};

            nanosleep(&pause, NULL); /* an error that stays must not become a busy loop */
        }
    return NULL;
}

static void
be_silent(void *unused, virErrorPtr error)
{
    (void)unused;
    (void)error;
}

static void
start_loop(void)
{
    pthread_t thread;

    virSetErrorFunc(NULL, be_silent); /* it would print on our stderr; errors are read instead */
    if (virInitialize() < 0 || virEventRegisterDefaultImpl() < 0)
        return;
    if (pthread_create(&thread, NULL, run_loop, NULL) != 0)
        return;
    (void)pthread_detach(thread);
    loop_runs = true;
}

/* ---- calls with a limit ---- */

/* Owned by the caller's thread and the call's together; whoever is second frees it. */
struct pending {
    pthread_mutex_t lock;
    pthread_cond_t ended;
    pthread_t thread; /* joined by the caller's, or detached if abandoned */
    struct qm_session_call call;
    bool done;
    bool abandoned;
    int result;
    struct qm_fault fault;
};

static void
read_fault(struct qm_fault *fault)
{
    const virError *error = virGetLastError();

    memset(fault, 0, sizeof *fault);
    if (error) {
        fault->code = error->code;
        fault->domain = error->domain;
    }
    snprintf(fault->what, sizeof fault->what, "%s",
             error && error->message ? error->message : "libvirt does not say why");
}

static void
free_pending(struct pending *p)
{
    if (p->call.release)
        p->call.release(p->call.args);
    free(p->call.args);
    pthread_cond_destroy(&p->ended);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

static void *
run_call(void *opaque)
{
    struct pending *p = opaque;
    struct qm_fault fault = {0};
    const int result = p->call.run(p->call.args);
    bool mine;

    if (result < 0)
        read_fault(&fault);
    pthread_mutex_lock(&p->lock);
    p->result = result;
    p->fault = fault;
    p->done = true;
    mine = p->abandoned;
    pthread_cond_signal(&p->ended);
    pthread_mutex_unlock(&p->lock);
    if (mine)
        free_pending(p);
    return NULL;
}

static struct pending *
begin_call(const struct qm_session_call *call, struct qm_fault *fault)
{
    struct pending *p = call->args ? calloc(1, sizeof *p) : NULL;
    pthread_condattr_t attr;

    memset(fault, 0, sizeof *fault);
    if (!p) {
        if (call->args && call->release)
            call->release(call->args);
        free(call->args);
        fault->code = VIR_ERR_NO_MEMORY;
        snprintf(fault->what, sizeof fault->what, "out of memory");
        return NULL;
    }
    p->call = *call;
    pthread_mutex_init(&p->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&p->ended, &attr);
    pthread_condattr_destroy(&attr);
    if (pthread_create(&p->thread, NULL, run_call, p) == 0)
        return p;
    free_pending(p);
    fault->code = VIR_ERR_SYSTEM_ERROR;
    snprintf(fault->what, sizeof fault->what, "no thread can be started");
    return NULL;
}

/* How long a call is waited for. */
struct patience {
    qm_session_stop_fn *stop; /* NULL: nobody is asked */
    void *opaque;
    unsigned limit; /* seconds */
    unsigned grace; /* seconds left once somebody asks to stop */
};

/* True when the call has ended; otherwise *fault says why it is given up. */
static bool
await(struct pending *p, const struct patience *patience, struct qm_fault *fault)
{
    uint64_t end_ms = qm_clock_ms() + (uint64_t)patience->limit * 1000;
    bool stop_asked = false, done;

    pthread_mutex_lock(&p->lock);
    while (!p->done) {
        const struct timespec look =
            qm_clock_moment(qm_clock_nsec() + (uint64_t)LOOK_MS * QM_NSEC_PER_MS);

        (void)pthread_cond_timedwait(&p->ended, &p->lock, &look);
        if (p->done)
            break;
        pthread_mutex_unlock(&p->lock); /* the function is the caller's: it may take its time */
        if (!stop_asked && patience->stop && patience->stop(patience->opaque)) {
            stop_asked = true;
            if (patience->grace < patience->limit)
                end_ms = qm_clock_ms() + (uint64_t)patience->grace * 1000;
        }
        fault->late = qm_clock_ms() >= end_ms;
        fault->stopped = fault->late && stop_asked && patience->grace == 0;
        pthread_mutex_lock(&p->lock);
        if (!p->done && fault->late)
            break;
    }
    done = p->done;
    p->abandoned = !done;
    if (!done) /* while the lock keeps it from freeing p */
        (void)pthread_detach(p->thread);
    pthread_mutex_unlock(&p->lock);
    return done;
}

/* *abandoned: the call may still be running, and act. */
static int
call_within(const struct qm_session_call *call, const struct patience *patience, bool *abandoned,
            struct qm_fault *fault)
{
    struct pending *p = begin_call(call, fault);
    int result;

    *abandoned = false;
    if (!p)
        return -1;
    if (!await(p, patience, fault)) {
        *abandoned = true;
        fault->late &= !fault->stopped;
        snprintf(fault->what, sizeof fault->what, "%s did not answer%s", call->name,
                 fault->late ? " in time" : "");
        return -1;
    }
    (void)pthread_join(p->thread, NULL); /* and with it what libraries keep for a thread */
    result = p->result;
    *fault = p->fault;
    if (result == 0 && call->take)
        call->take(call->args, call->out);
    free_pending(p);
    return result;
}

int
qm_session_run(struct qm_session *session, const struct qm_session_call *call,
               struct qm_fault *fault)
{
    const struct patience patience = {
        .stop = session->stop,
        .opaque = session->opaque,
        .limit = call->limit      ? call->limit
                 : session->limit ? session->limit
                                  : QM_SESSION_CALL_LIMIT,
        .grace = session->grace,
    };
    bool abandoned;
    const int result = call_within(call, &patience, &abandoned, fault);

    if (abandoned)
        session->abandoned = true;
    return result;
}

/* ---- opening and closing ---- */

struct open_args {
    char *uri;
    bool read_only;
    virConnectPtr connection;
};

static int
open_run(void *opaque)
{
    struct open_args *args = opaque;

    args->connection = args->read_only ? virConnectOpenReadOnly(args->uri)
                                       : virConnectOpenAuth(args->uri, virConnectAuthPtrDefault, 0);
    return args->connection ? 0 : -1;
}

static void
open_take(void *opaque, void *out)
{
    struct open_args *args = opaque;

    *(virConnectPtr *)out = QM_TAKE(args->connection);
}

static void
open_release(void *opaque)
{
    struct open_args *args = opaque;

    if (args->connection)
        (void)virConnectClose(args->connection);
    free(args->uri);
}

/* What virsh would take, but for its last resort; NULL: nothing is set. */
static const char *
uri_of_environment(void)
{
    static const char *const names[] = {"VIRSH_DEFAULT_CONNECT_URI", "LIBVIRT_DEFAULT_URI"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const char *uri = getenv(names[i]);

        if (uri && *uri)
            return uri;
    }
    return NULL;
}

bool
qm_session_default_is_set(void)
{
    return uri_of_environment() != NULL;
}

static const char *
default_uri(void)
{
    const char *uri = uri_of_environment();

    return uri ? uri : "qemu:///system";
}

/* "qemu+ssh://host/system" has a server; "qemu:///system" and "qemu+unix:///system?socket=..." have none. */
static bool
names_a_server(const char *uri)
{
    const char *slashes = strstr(uri, "://");

    return slashes && slashes[3] != '/' && slashes[3] != '\0';
}

static void
note_close(virConnectPtr connection, int reason, void *opaque)
{
    struct shared *shared = opaque;

    (void)connection;
    (void)reason;
    pthread_mutex_lock(&shared->lock);
    shared->closed = true;
    pthread_mutex_unlock(&shared->lock);
}

static int
watch(struct qm_session *session, struct qmeld_error *err)
{
    struct shared *shared = calloc(1, sizeof *shared);

    if (!shared)
        return qm_fail_nomem(err, "connecting to libvirt");
    pthread_mutex_init(&shared->lock, NULL);
    session->shared = shared;
    /* both may be unsupported by a driver; the poll of whoever waits finds out as well, later */
    (void)virConnectRegisterCloseCallback(session->connection, note_close, shared, NULL);
    (void)virConnectSetKeepAlive(session->connection, 5, 5);
    session->uri = virConnectGetURI(session->connection);
    if (!session->uri)
        return qm_fail_nomem(err, "connecting to libvirt");
    session->local = !names_a_server(session->uri);
    return 0;
}

int
qm_session_open(const struct qm_session_options *options, struct qm_session **out,
                struct qmeld_error *err)
{
    const char *uri = options->uri && *options->uri ? options->uri : default_uri();
    struct open_args *args = calloc(1, sizeof *args);
    struct qm_session *session = calloc(1, sizeof *session);
    struct qm_session_call call = {
        .name = "virConnectOpen",
        .run = open_run,
        .release = open_release,
        .args = args,
        .take = open_take,
    };
    const struct patience patience = {
        .stop = options->stop,
        .opaque = options->opaque,
        .limit = names_a_server(uri) ? QM_SESSION_REMOTE_LIMIT : QM_SESSION_OPEN_LIMIT,
    };
    struct qm_fault fault;
    bool abandoned;

    *out = NULL;
    pthread_once(&loop_once, start_loop);
    if (args)
        args->uri = strdup(uri);
    if (!args || !args->uri || !session || !loop_runs) {
        if (args)
            free(args->uri);
        free(args);
        free(session);
        return qm_fail_nomem(err, "connecting to libvirt");
    }
    args->read_only = options->read_only;
    session->stop = options->stop;
    session->opaque = options->opaque;
    call.out = &session->connection;
    if (call_within(&call, &patience, &abandoned, &fault) < 0) {
        char doing[400];

        free(session);
        snprintf(doing, sizeof doing, "connect to %s", uri);
        return qm_session_fail(err, &fault, doing);
    }
    if (watch(session, err) < 0) {
        qm_session_close(session);
        return -1;
    }
    *out = session;
    return 0;
}

void
qm_session_close(struct qm_session *session)
{
    if (!session)
        return;
    /* after an abandoned call the connection's locks may be held for ever: the process ends it */
    if (session->connection && !session->abandoned) {
        (void)virConnectUnregisterCloseCallback(session->connection, note_close);
        (void)virConnectClose(session->connection);
        if (session->shared)
            pthread_mutex_destroy(&session->shared->lock);
        free(session->shared);
    }
    free(session->uri);
    free(session);
}

const char *
qm_session_uri(const struct qm_session *session)
{
    return session->uri;
}

bool
qm_session_is_local(const struct qm_session *session)
{
    return session->local;
}

bool
qm_session_is_lost(const struct qm_session *session)
{
    bool closed;

    pthread_mutex_lock(&session->shared->lock);
    closed = session->shared->closed;
    pthread_mutex_unlock(&session->shared->lock);
    return closed;
}

bool
qm_session_stopped(const struct qm_session *session)
{
    return session->stop && session->stop(session->opaque);
}

void
qm_session_hurry(struct qm_session *session, unsigned seconds)
{
    session->stop = NULL;
    session->limit = seconds;
}

void
qm_session_be_patient(struct qm_session *session, unsigned seconds)
{
    session->grace = seconds;
}

virConnectPtr
qm_session_connection(const struct qm_session *session)
{
    return session->connection;
}

/* ---- the calls that everybody needs ---- */

struct domain_args {
    virDomainPtr domain; /* a reference of its own */
    unsigned flags;
    char *text;
    int answer;
};

static void
domain_release(void *opaque)
{
    struct domain_args *args = opaque;

    if (args->domain)
        (void)virDomainFree(args->domain);
    free(args->text);
}

static struct domain_args *
domain_args(virDomainPtr domain, unsigned flags)
{
    struct domain_args *args = calloc(1, sizeof *args);

    if (args && virDomainRef(domain) == 0) {
        args->domain = domain;
        args->flags = flags;
    }
    return args;
}

static int
xml_run(void *opaque)
{
    struct domain_args *args = opaque;

    args->text = virDomainGetXMLDesc(args->domain, args->flags);
    return args->text ? 0 : -1;
}

static void
text_take(void *opaque, void *out)
{
    struct domain_args *args = opaque;

    *(char **)out = QM_TAKE(args->text);
}

int
qm_session_xml(struct qm_session *session, virDomainPtr domain, unsigned flags, char **out,
               struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = "virDomainGetXMLDesc",
        .run = xml_run,
        .release = domain_release,
        .args = domain_args(domain, flags),
        .take = text_take,
        .out = out,
    };

    *out = NULL;
    return qm_session_run(session, &call, fault);
}

static int
active_run(void *opaque)
{
    struct domain_args *args = opaque;

    args->answer = virDomainIsActive(args->domain);
    return args->answer < 0 ? -1 : 0;
}

static void
active_take(void *opaque, void *out)
{
    const struct domain_args *args = opaque;

    *(bool *)out = args->answer == 1;
}

int
qm_session_is_active(struct qm_session *session, virDomainPtr domain, bool *out,
                     struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = "virDomainIsActive",
        .run = active_run,
        .release = domain_release,
        .args = domain_args(domain, 0),
        .take = active_take,
        .out = out,
    };

    return qm_session_run(session, &call, fault);
}

/* ---- sentences ---- */

/* What is known about a fault beyond libvirt's words; "" if nothing is. */
static const char *
advice(const struct qm_fault *fault)
{
    switch (fault->code) {
    case VIR_ERR_AUTH_FAILED:
    case VIR_ERR_AUTH_CANCELLED:
    case VIR_ERR_AUTH_UNAVAILABLE:
        return ": run it as root, or as a member of the group libvirt";
    case VIR_ERR_OPERATION_DENIED:
        return ": this connection may only look; run it as root, or as a member of the group "
               "libvirt";
    case VIR_ERR_OPERATION_TIMEOUT:
        return ": somebody else's call waits for a QEMU that does not answer; is the machine hung?";
    default:
        return "";
    }
}

int
qm_session_fail(struct qmeld_error *err, const struct qm_fault *fault, const char *doing)
{
    if (fault->stopped)
        return qm_fail(err, QMELD_CANCELED, qm_nowhere(),
                       "cannot %s: stopped while waiting for an answer", doing);
    if (fault->late)
        return qm_fail(err, QMELD_IO, qm_nowhere(),
                       "cannot %s: %s: the daemon or the machine's QEMU hangs, look at their logs",
                       doing, fault->what);
    switch (fault->code) {
    case VIR_ERR_NO_MEMORY:
        return qm_fail_nomem(err, doing);
    case VIR_ERR_BLOCK_COPY_ACTIVE:
    case VIR_ERR_OPERATION_TIMEOUT:
        return qm_fail(err, QMELD_BUSY, qm_nowhere(), "cannot %s: %s%s", doing, fault->what,
                       advice(fault));
    case VIR_ERR_NO_DOMAIN:
    case VIR_ERR_INVALID_ARG:
    case VIR_ERR_OPERATION_INVALID:
    case VIR_ERR_OPERATION_DENIED:
    case VIR_ERR_CONFIG_UNSUPPORTED:
    case VIR_ERR_OPERATION_UNSUPPORTED:
    case VIR_ERR_NO_SUPPORT:
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "cannot %s: %s%s", doing, fault->what,
                       advice(fault));
    default:
        return qm_fail(err, QMELD_IO, qm_nowhere(), "cannot %s: %s%s", doing, fault->what,
                       advice(fault));
    }
}
