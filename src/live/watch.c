/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "watch.h"

#include "cleanup.h"
#include "clock.h"

#include <json-c/json.h>
#include <libvirt/libvirt-qemu.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Owned by the watch and by each callback that libvirt has. */
struct heard {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned owners;
    bool news; /* since the last read */
    struct qm_watch_state state;
    char *disk; /* set at begin */
};

enum { CALLBACKS = 3 };

struct qm_watch {
    struct heard *heard;
    virDomainPtr domain; /* a reference of its own, for the callbacks hang on its connection */
    int ids[CALLBACKS];  /* of libvirt; -1: not registered.  The last one is the monitor's */
};

static void
drop(void *opaque)
{
    struct heard *heard = opaque;
    bool last;

    pthread_mutex_lock(&heard->lock);
    last = --heard->owners == 0;
    pthread_mutex_unlock(&heard->lock);
    if (!last)
        return;
    pthread_cond_destroy(&heard->changed);
    pthread_mutex_destroy(&heard->lock);
    free(heard->disk);
    free(heard);
}

static void
own(struct heard *heard)
{
    pthread_mutex_lock(&heard->lock);
    heard->owners++;
    pthread_mutex_unlock(&heard->lock);
}

static void
tell(struct heard *heard)
{
    heard->news = true;
    pthread_cond_signal(&heard->changed);
}

/* ---- what libvirt calls ---- */

static void
job_event(virConnectPtr connection, virDomainPtr domain, const char *disk, int type, int status,
          void *opaque)
{
    struct heard *heard = opaque;

    (void)connection;
    (void)domain;
    if (!disk || strcmp(disk, heard->disk) != 0 ||
        (type != VIR_DOMAIN_BLOCK_JOB_TYPE_COMMIT &&
         type != VIR_DOMAIN_BLOCK_JOB_TYPE_ACTIVE_COMMIT))
        return;
    pthread_mutex_lock(&heard->lock);
    heard->state.ready |= status == VIR_DOMAIN_BLOCK_JOB_READY;
    heard->state.ended |= status != VIR_DOMAIN_BLOCK_JOB_READY;
    heard->state.failed |= status == VIR_DOMAIN_BLOCK_JOB_FAILED;
    tell(heard);
    pthread_mutex_unlock(&heard->lock);
}

static int
lifecycle_event(virConnectPtr connection, virDomainPtr domain, int event, int detail, void *opaque)
{
    struct heard *heard = opaque;

    (void)connection;
    (void)domain;
    (void)detail;
    if (event != VIR_DOMAIN_EVENT_STOPPED && event != VIR_DOMAIN_EVENT_CRASHED &&
        event != VIR_DOMAIN_EVENT_SHUTDOWN)
        return 0;
    pthread_mutex_lock(&heard->lock);
    heard->state.shut_down = true;
    tell(heard);
    pthread_mutex_unlock(&heard->lock);
    return 0;
}

/* QEMU's own event has what libvirt's leaves out: why. */
static void
monitor_event(virConnectPtr connection, virDomainPtr domain, const char *event, long long seconds,
              unsigned micros, const char *details, void *opaque)
{
    struct heard *heard = opaque;
    struct json_object *object = details ? json_tokener_parse(details) : NULL;
    struct json_object *device = NULL, *error = NULL;
    char word[64];

    (void)connection;
    (void)domain;
    (void)event;
    (void)seconds;
    (void)micros;
    snprintf(word, sizeof word, "-%s-",
             heard->disk); /* libvirt names it commit-vda-libvirt-3-format */
    if (json_object_object_get_ex(object, "device", &device) &&
        json_object_object_get_ex(object, "error", &error) &&
        strstr(json_object_get_string(device), word)) {
        pthread_mutex_lock(&heard->lock);
        snprintf(heard->state.reason, sizeof heard->state.reason, "%s",
                 json_object_get_string(error));
        pthread_mutex_unlock(&heard->lock);
    }
    json_object_put(object);
}

/* ---- registering, within a limit as all calls ---- */

struct args {
    virDomainPtr domain; /* a reference of its own, and with it the connection's */
    struct heard *heard;
    int ids[CALLBACKS];
};

static void
args_release(void *opaque)
{
    struct args *args = opaque;

    if (args->domain)
        (void)virDomainFree(args->domain);
    if (args->heard)
        drop(args->heard);
}

static struct args *
make_args(virDomainPtr domain, struct heard *heard)
{
    struct args *args = calloc(1, sizeof *args);

    if (!args || virDomainRef(domain) < 0) {
        free(args);
        return NULL;
    }
    own(heard);
    args->domain = domain;
    args->heard = heard;
    return args;
}

static int
register_run(void *opaque)
{
    struct args *args = opaque;
    virConnectPtr connection = virDomainGetConnect(args->domain);

    for (int i = 0; i < CALLBACKS; i++) {
        own(args->heard);
        if (i == 0)
            args->ids[i] = virConnectDomainEventRegisterAny(
                connection, args->domain, VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2,
                VIR_DOMAIN_EVENT_CALLBACK(job_event), args->heard, drop);
        else if (i == 1)
            args->ids[i] = virConnectDomainEventRegisterAny(
                connection, args->domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                VIR_DOMAIN_EVENT_CALLBACK(lifecycle_event), args->heard, drop);
        else
            args->ids[i] = virConnectDomainQemuMonitorEventRegister(
                connection, args->domain, "BLOCK_JOB_COMPLETED", monitor_event, args->heard, drop,
                0);
        if (args->ids[i] < 0)
            drop(args->heard);
    }
    return 0;
}

static void
register_take(void *opaque, void *out)
{
    const struct args *args = opaque;

    memcpy(out, args->ids, sizeof args->ids);
}

static int
deregister_run(void *opaque)
{
    struct args *args = opaque;
    virConnectPtr connection = virDomainGetConnect(args->domain);

    for (int i = 0; i < CALLBACKS; i++)
        if (i < 2 && args->ids[i] >= 0)
            (void)virConnectDomainEventDeregisterAny(connection, args->ids[i]);
        else if (args->ids[i] >= 0)
            (void)virConnectDomainQemuMonitorEventDeregister(connection, args->ids[i]);
    return 0;
}

int
qm_watch_begin(struct qm_session *session, const struct qm_domain *domain, const char *disk,
               struct qm_watch **out, struct qmeld_error *err)
{
    struct qm_watch *watch = calloc(1, sizeof *watch);
    struct heard *heard = calloc(1, sizeof *heard);
    struct qm_session_call call = {
        .name = "virConnectDomainEventRegisterAny",
        .run = register_run,
        .release = args_release,
        .take = register_take,
    };
    pthread_condattr_t attr;
    struct qm_fault fault;

    *out = NULL;
    if (!watch || !heard || !(heard->disk = strdup(disk))) {
        free(watch);
        free(heard);
        return qm_fail_nomem(err, "watching the job");
    }
    pthread_mutex_init(&heard->lock, NULL);
    pthread_condattr_init(&attr);
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
    pthread_cond_init(&heard->changed, &attr);
    pthread_condattr_destroy(&attr);
    heard->owners = 1;
    watch->heard = heard;
    call.args = make_args(domain->ptr, heard);
    call.out = watch->ids;
    for (int i = 0; i < CALLBACKS; i++)
        watch->ids[i] = -1;
    if (qm_session_run(session, &call, &fault) < 0) {
        drop(heard);
        free(watch);
        return qm_session_fail(err, &fault, "ask for the machine's events");
    }
    watch->domain = domain->ptr;
    (void)virDomainRef(domain->ptr);
    *out = watch;
    return 0;
}

void
qm_watch_end(struct qm_watch *watch, struct qm_session *session)
{
    struct qm_session_call call = {
        .name = "virConnectDomainEventDeregisterAny",
        .run = deregister_run,
        .release = args_release,
        .limit = 5,
    };
    struct args *args;
    struct qm_fault unheard;

    if (!watch)
        return;
    call.args = args = make_args(watch->domain, watch->heard);
    if (args) {
        memcpy(args->ids, watch->ids, sizeof args->ids);
        if (qm_session_run(session, &call, &unheard) < 0)
            watch->domain = NULL; /* the session keeps the connection open then, and with it this */
    }
    if (watch->domain)
        (void)virDomainFree(watch->domain);
    drop(watch->heard);
    free(watch);
}

struct qm_watch_state
qm_watch_read(struct qm_watch *watch)
{
    struct qm_watch_state state;

    pthread_mutex_lock(&watch->heard->lock);
    state = watch->heard->state;
    watch->heard->news = false;
    pthread_mutex_unlock(&watch->heard->lock);
    return state;
}

void
qm_watch_wait(struct qm_watch *watch, unsigned ms)
{
    const struct timespec end = qm_clock_moment(qm_clock_nsec() + (uint64_t)ms * QM_NSEC_PER_MS);

    pthread_mutex_lock(&watch->heard->lock);
    while (!watch->heard->news)
        if (pthread_cond_timedwait(&watch->heard->changed, &watch->heard->lock, &end) != 0)
            break;
    pthread_mutex_unlock(&watch->heard->lock);
}
