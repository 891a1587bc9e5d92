/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "calls.h"

#include <stdlib.h>
#include <string.h>

/* Arguments of any of the calls: what a call has no use for stays empty. */
struct args {
    virDomainPtr domain; /* a reference of its own */
    char *text[3];
    unsigned long number;
    unsigned flags;
    struct qm_job_info job;
    int state;
};

static void
release(void *opaque)
{
    struct args *args = opaque;

    if (args->domain)
        (void)virDomainFree(args->domain);
    for (size_t i = 0; i < 3; i++)
        free(args->text[i]);
}

/* NULL if memory is out. */
static struct args *
make(virDomainPtr domain, unsigned flags, const char *one, const char *two, const char *three)
{
    const char *const text[3] = {one, two, three};
    struct args *args = calloc(1, sizeof *args);

    if (!args)
        return NULL;
    args->flags = flags;
    if (virDomainRef(domain) == 0)
        args->domain = domain;
    for (size_t i = 0; i < 3 && args->domain; i++)
        if (text[i] && !(args->text[i] = strdup(text[i]))) {
            release(args);
            free(args);
            return NULL;
        }
    if (args->domain)
        return args;
    free(args);
    return NULL;
}

static int
commit_run(void *opaque)
{
    struct args *args = opaque;

    return virDomainBlockCommit(args->domain, args->text[0], args->text[1], args->text[2],
                                args->number, args->flags);
}

int
qm_calls_commit(struct qm_session *session, virDomainPtr domain, const struct qm_calls_commit *what,
                struct qm_fault *fault)
{
    const unsigned bytes = what->bandwidth ? VIR_DOMAIN_BLOCK_COMMIT_BANDWIDTH_BYTES : 0;
    struct args *args = make(domain, what->flags | bytes, what->disk, what->base, what->top);
    const struct qm_session_call call = {
        .name = "virDomainBlockCommit", .run = commit_run, .release = release, .args = args};

    if (args)
        args->number = (unsigned long)what->bandwidth;
    return qm_session_run(session, &call, fault);
}

static int
abort_run(void *opaque)
{
    struct args *args = opaque;

    return virDomainBlockJobAbort(args->domain, args->text[0], args->flags);
}

int
qm_calls_abort(struct qm_session *session, virDomainPtr domain, const char *disk, unsigned flags,
               struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = "virDomainBlockJobAbort",
        .run = abort_run,
        .release = release,
        .args = make(domain, flags, disk, NULL, NULL),
    };

    return qm_session_run(session, &call, fault);
}

static int
job_run(void *opaque)
{
    struct args *args = opaque;
    virDomainBlockJobInfo info = {0};
    const int found = virDomainGetBlockJobInfo(args->domain, args->text[0], &info, 0);

    if (found < 0)
        return -1;
    args->job = (struct qm_job_info){
        .present = found > 0, .type = info.type, .done = info.cur, .total = info.end};
    return 0;
}

static void
job_take(void *opaque, void *out)
{
    const struct args *args = opaque;

    *(struct qm_job_info *)out = args->job;
}

int
qm_calls_job(struct qm_session *session, virDomainPtr domain, const char *disk,
             struct qm_job_info *out, struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = "virDomainGetBlockJobInfo",
        .run = job_run,
        .release = release,
        .args = make(domain, 0, disk, NULL, NULL),
        .take = job_take,
        .out = out,
    };

    memset(out, 0, sizeof *out);
    return qm_session_run(session, &call, fault);
}

const char *
qm_calls_job_name(int type)
{
    static const char *const names[] = {"block",  "pull",          "copy",
                                        "commit", "active commit", "backup"};

    return type > 0 && (size_t)type < sizeof names / sizeof *names ? names[type] : names[0];
}

static int
state_run(void *opaque)
{
    struct args *args = opaque;

    return virDomainGetState(args->domain, &args->state, NULL, 0);
}

static void
state_take(void *opaque, void *out)
{
    const struct args *args = opaque;

    *(bool *)out = args->state == VIR_DOMAIN_RUNNING;
}

int
qm_calls_is_going(struct qm_session *session, virDomainPtr domain, bool *out,
                  struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = "virDomainGetState",
        .run = state_run,
        .release = release,
        .args = make(domain, 0, NULL, NULL, NULL),
        .take = state_take,
        .out = out,
    };

    *out = false;
    return qm_session_run(session, &call, fault);
}

static int
suspend_run(void *opaque)
{
    return virDomainSuspend(((struct args *)opaque)->domain);
}

int
qm_calls_suspend(struct qm_session *session, virDomainPtr domain, struct qm_fault *fault)
{
    const struct qm_session_call call = {.name = "virDomainSuspend",
                                         .run = suspend_run,
                                         .release = release,
                                         .args = make(domain, 0, NULL, NULL, NULL)};

    return qm_session_run(session, &call, fault);
}

static int
resume_run(void *opaque)
{
    return virDomainResume(((struct args *)opaque)->domain);
}

int
qm_calls_resume(struct qm_session *session, virDomainPtr domain, struct qm_fault *fault)
{
    const struct qm_session_call call = {.name = "virDomainResume",
                                         .run = resume_run,
                                         .release = release,
                                         .args = make(domain, 0, NULL, NULL, NULL)};

    return qm_session_run(session, &call, fault);
}

static int
update_run(void *opaque)
{
    struct args *args = opaque;

    return virDomainUpdateDeviceFlags(args->domain, args->text[0], args->flags);
}

int
qm_calls_update(struct qm_session *session, virDomainPtr domain, const char *xml, unsigned flags,
                struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = "virDomainUpdateDeviceFlags",
        .run = update_run,
        .release = release,
        .args = make(domain, flags, xml, NULL, NULL),
    };

    return qm_session_run(session, &call, fault);
}
