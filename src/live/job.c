/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "job.h"

#include "cleanup.h"
#include "clock.h"
#include "domxml.h"
#include "watch.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    LOOK_MS = 100,      /* how often somebody may ask to stop */
    POLL_MS = 1000,     /* how often the job is asked for, once it is not new any more */
    RECONNECT_S = 60,   /* a daemon that is started anew is back within a few seconds */
    CANCEL_S = 30,      /* a job that was asked to end */
    FINISH_S = 120,     /* a pivot waits for requests in flight */
    HURRY_S = 10,       /* a call, once somebody wants out */
    NEWS_MS = 2000,     /* an event on its way, when a poll was quicker */
    MAX_ODD_FAULTS = 5, /* polls in a row that failed for reasons nobody here knows */
};

enum phase { COPYING, READY, FINISHING, CANCELING };

struct qm_job {
    struct qm_job_request request;
    struct qm_watch *watch;
    enum phase phase;
    bool gone;
    bool finished;
    bool stop_asked;
    bool held;               /* the guest is suspended, by us */
    struct qm_job_info info; /* as last polled */
    double next_poll;
    unsigned poll_ms;  /* until the next one: short at first, for short jobs */
    double phase_ends; /* of FINISHING and CANCELING */
    unsigned odd_faults;
};

static struct qm_session *
session_of(const struct qm_job *job)
{
    return *job->request.session;
}

static virDomainPtr
domain_of(const struct qm_job *job)
{
    return job->request.domain->ptr;
}

/* Whatever comes now, the job may still be there. */
static int
left_open(struct qmeld_error *err)
{
    qm_err_disk(err, QMELD_DISK_OPEN);
    return -1;
}

int
qm_job_open(const struct qm_job_request *request, struct qm_job **out, struct qmeld_error *err)
{
    struct qm_job *job = calloc(1, sizeof *job);

    *out = NULL;
    if (!job)
        return qm_fail_nomem(err, "watching the job");
    job->request = *request;
    job->poll_ms = LOOK_MS;
    if (qm_watch_begin(*request->session, request->domain, request->disk, &job->watch, err) < 0) {
        free(job);
        return -1;
    }
    *out = job;
    return 0;
}

void
qm_job_close(struct qm_job *job)
{
    if (!job)
        return;
    qm_watch_end(job->watch, session_of(job));
    free(job);
}

/* ---- beginning ---- */

static int
explain_refusal(const struct qm_job *job, const struct qm_fault *fault, struct qmeld_error *err)
{
    const char *name = qm_domain_word(job->request.domain), *disk = job->request.disk;

    if (fault->late || fault->stopped) {
        /* also if we were asked to stop: half-way, for what was asked for may still happen */
        (void)qm_fail(
            err, QMELD_IO, qm_nowhere(),
            "the machine \"%s\" did not answer when the job was asked for: it may still begin; "
            "look with virsh blockjob %s %s",
            job->request.domain->name, name, disk);
        return left_open(err);
    }
    /* libvirt has two codes for it: one if the other job mirrors, one if not */
    if (fault->code == VIR_ERR_BLOCK_COPY_ACTIVE ||
        (fault->code == VIR_ERR_OPERATION_UNSUPPORTED && strstr(fault->what, "active block job")))
        return qm_fail(
            err, QMELD_BUSY, qm_nowhere(),
            "a block job runs on %s already: look with virsh blockjob %s %s; --abort or --pivot "
            "there ends it",
            disk, name, disk);
    if (strstr(fault->what, "Permission denied"))
        return qm_fail(
            err, QMELD_USAGE, qm_nowhere(),
            "cannot begin the commit: %s: QEMU may not write to the base. With AppArmor (Debian, "
            "Ubuntu; libvirt before 12.1) the machine's profile denies it: allow it in "
            "/etc/apparmor.d/local/abstractions/libvirt-qemu, or stop the machine and merge then",
            fault->what);
    if (strstr(fault->what, "Failed to get \"write\" lock"))
        return qm_fail(
            err, QMELD_BUSY, qm_nowhere(),
            "cannot begin the commit: %s: another process has the base open, merging into it "
            "would corrupt what that one reads",
            fault->what);
    if (strstr(fault->what, "Block node is read-only"))
        return qm_fail(
            err, QMELD_BUSY, qm_nowhere(),
            "cannot begin the commit: %s: a machine paused by a snapshot with memory has given its "
            "images up until virsh resume",
            fault->what);
    return qm_session_fail(err, fault, "begin the commit");
}

int
qm_job_begin(struct qm_job *job, const char *base, const char *top, unsigned flags,
             struct qmeld_error *err)
{
    const struct qm_calls_commit what = {
        .disk = job->request.disk,
        .base = base,
        .top = top,
        .bandwidth = job->request.commit->bandwidth,
        .flags = flags,
    };
    struct qm_fault fault;

    if (qm_calls_commit(session_of(job), domain_of(job), &what, &fault) < 0)
        return explain_refusal(job, &fault, err);
    return 0;
}

/* ---- looking ---- */

/* What the definition of the machine's disk says. */
static int
is_mirror_ready(struct qm_session *session, virDomainPtr domain, const char *disk, bool *out,
                struct qm_fault *fault)
{
    QM_FREE char *text = NULL;
    struct qm_domxml *xml = NULL;
    const struct qm_domxml_disk *found;
    struct qmeld_error unreadable = {0};

    *out = false;
    if (qm_session_xml(session, domain, 0, &text, fault) < 0)
        return -1;
    if (qm_domxml_parse(text, &xml, &unreadable) < 0) {
        fault->code = VIR_ERR_XML_ERROR;
        snprintf(fault->what, sizeof fault->what, "%.500s", unreadable.what);
        return -1;
    }
    found = qm_domxml_find(xml, disk);
    *out = found && found->mirror.present && found->mirror.ready;
    qm_domxml_free(xml);
    return 0;
}

/* The daemon went away, and perhaps came back: libvirt finds its jobs again. */
static int
reconnect(struct qm_job *job, struct qmeld_error *err)
{
    const double ends = qm_clock_sec() + RECONNECT_S;
    const struct qm_job_request *request = &job->request;
    const struct timespec pause = {.tv_sec = 1};

    qm_watch_end(job->watch, session_of(job));
    job->watch = NULL;
    for (;;) {
        struct qm_session *session;
        struct qm_domain domain = {0};
        struct qmeld_error unheard = {0};

        if (qm_session_open(request->reconnect, &session, &unheard) == 0) {
            if (qm_domain_find(session, request->domain->uuid, &domain, &unheard) == 0 &&
                qm_watch_begin(session, &domain, request->disk, &job->watch, &unheard) == 0) {
                qm_domain_free(request->domain);
                qm_session_close(session_of(job));
                *request->domain = domain;
                *request->session = session;
                if (job->phase >= FINISHING)
                    qm_session_hurry(session, HURRY_S);
                return 0;
            }
            qm_domain_free(&domain);
            qm_session_close(session);
        }
        if (unheard.code == QMELD_CANCELED || qm_clock_sec() >= ends)
            break;
        nanosleep(&pause, NULL);
    }
    (void)qm_fail(
        err, QMELD_IO, qm_nowhere(),
        "the connection to libvirt was lost and cannot be made again: the job goes on without us; "
        "look with virsh blockjob %s %s",
        qm_domain_word(request->domain), request->disk);
    return left_open(err);
}

static int
take_fault(struct qm_job *job, const struct qm_fault *fault, struct qmeld_error *err)
{
    if (fault->code == VIR_ERR_OPERATION_INVALID || fault->code == VIR_ERR_NO_DOMAIN) {
        job->gone = true; /* the machine does not run */
        return 0;
    }
    if (fault->stopped) {
        job->stop_asked = true;
        return 0;
    }
    if (fault->late) {
        (void)qm_fail(err, QMELD_IO, qm_nowhere(),
                      "the machine \"%s\" does not answer: its job may still be running, or is "
                      "undecided; look "
                      "with virsh blockjob %s %s once it answers",
                      job->request.domain->name, qm_domain_word(job->request.domain),
                      job->request.disk);
        return left_open(err);
    }
    if (qm_session_is_lost(session_of(job)) || fault->domain == VIR_FROM_RPC)
        return reconnect(job, err);
    if (fault->code == VIR_ERR_OPERATION_TIMEOUT || ++job->odd_faults < MAX_ODD_FAULTS)
        return 0;
    (void)qm_session_fail(err, fault, "ask for the job");
    return left_open(err);
}

/* Asks for the job, if it is time to or libvirt told of something. */
static int
poll_job(struct qm_job *job, struct qmeld_error *err)
{
    struct qm_fault fault;
    bool ready = false;

    if (qm_session_is_lost(session_of(job)))
        return reconnect(job, err);
    if (qm_clock_sec() < job->next_poll)
        return 0;
    if (qm_calls_job(session_of(job), domain_of(job), job->request.disk, &job->info, &fault) < 0)
        return take_fault(job, &fault, err);
    job->odd_faults = 0;
    if (!job->info.present) {
        job->gone = true;
        return 0;
    }
    /* the event may have gone before we listened */
    if (job->request.active && job->phase == COPYING) {
        if (is_mirror_ready(session_of(job), domain_of(job), job->request.disk, &ready, &fault) < 0)
            return take_fault(job, &fault, err);
        if (ready)
            job->phase = READY;
    }
    job->next_poll = qm_clock_sec() + job->poll_ms / 1000.0;
    job->poll_ms = job->poll_ms * 2 > POLL_MS ? POLL_MS : job->poll_ms * 2;
    return 0;
}

static int
look(struct qm_job *job, struct qmeld_error *err)
{
    const struct qm_watch_state heard = qm_watch_read(job->watch);

    if (heard.ready && job->phase == COPYING)
        job->phase = READY;
    job->gone |= heard.ended || heard.shut_down;
    if (job->gone)
        return 0;
    return poll_job(job, err);
}

/* ---- asking for something ---- */

/* Returns 0 also if it was too early, or nothing is there any more: the next look tells. */
static int
ask_to_end(struct qm_job *job, unsigned flags, enum phase next, unsigned seconds,
           struct qmeld_error *err)
{
    struct qm_fault fault;

    if (qm_calls_abort(session_of(job), domain_of(job), job->request.disk,
                       flags | VIR_DOMAIN_BLOCK_JOB_ABORT_ASYNC, &fault) == 0) {
        job->phase = next;
        job->phase_ends = qm_clock_sec() + seconds;
        job->poll_ms = LOOK_MS;
        job->next_poll = 0;
        return 0;
    }
    job->next_poll = 0;
    if (fault.code == VIR_ERR_BLOCK_COPY_ACTIVE) /* "not ready for pivot yet" */
        return 0;
    return take_fault(job, &fault, err);
}

/* For a pivot.  A guest that is suspended already stays so afterwards.  What does not work is gone without: the pivot
 * may still do. */
static void
hold_guest(struct qm_job *job)
{
    struct qm_fault fault;
    bool going;

    if (!job->request.hold || job->held ||
        qm_calls_is_going(session_of(job), domain_of(job), &going, &fault) < 0 || !going)
        return;
    /* one that did not answer in time may still be suspended later */
    job->held = qm_calls_suspend(session_of(job), domain_of(job), &fault) == 0 || fault.late ||
                fault.stopped;
}

/* As soon as the pivot is over, whatever came of it. */
static void
let_guest_go(struct qm_job *job)
{
    struct qm_fault fault;

    if (job->held && (qm_calls_resume(session_of(job), domain_of(job), &fault) == 0 ||
                      fault.code == VIR_ERR_OPERATION_INVALID || fault.code == VIR_ERR_NO_DOMAIN))
        job->held = false; /* it goes on, or has stopped, or somebody else has told it to */
}

static int
finish(struct qm_job *job, struct qmeld_error *err)
{
    const bool pivot = job->request.commit->finish == QM_LIVE_FINISH_PIVOT;

    qm_session_be_patient(session_of(job), HURRY_S); /* a pivot cannot be stopped */
    if (pivot)
        hold_guest(job);
    /* COMMIT POINT of a pivot: from here on the machine may run on the base */
    if (ask_to_end(job, pivot ? VIR_DOMAIN_BLOCK_JOB_ABORT_PIVOT : 0, FINISHING, FINISH_S, err) < 0)
        return -1;
    job->finished |= job->phase == FINISHING;
    if (job->phase != FINISHING) /* too early: meanwhile the guest goes on */
        let_guest_go(job);
    return 0;
}

static int
cancel(struct qm_job *job, struct qmeld_error *err)
{
    qm_session_hurry(session_of(job), HURRY_S);
    return ask_to_end(job, 0, CANCELING, CANCEL_S, err);
}

static int
late(const struct qm_job *job, struct qmeld_error *err)
{
    (void)qm_fail(
        err, QMELD_IO, qm_nowhere(),
        "the job on %s was asked to end and did not in %d s: it is undecided; look with virsh "
        "blockjob %s %s",
        job->request.disk, job->phase == FINISHING ? FINISH_S : CANCEL_S,
        qm_domain_word(job->request.domain), job->request.disk);
    return left_open(err);
}

/* True: the caller is told to stop. */
static bool
show(struct qm_job *job)
{
    const struct qm_live_commit *commit = job->request.commit;
    const struct qmeld_progress now = {
        .done_bytes = job->info.done,
        .total_bytes = job->info.total,
        .phase = job->phase == COPYING ? "copy" : "mirror",
    };

    if (job->phase == CANCELING || !commit->progress)
        return false;
    return commit->progress(&now, commit->opaque) != 0;
}

/* One turn: what follows from what was seen.  *done: the caller can go. */
static int
act(struct qm_job *job, struct qm_job_end *end, bool *done, struct qmeld_error *err)
{
    const struct qm_live_commit *commit = job->request.commit;

    job->stop_asked |= show(job);
    if (job->phase >= FINISHING)
        return qm_clock_sec() < job->phase_ends ? 0 : late(job, err);
    if (job->stop_asked) {
        if (cancel(job, err) < 0)
            return -1;
        end->state = QM_JOB_LEFT;
        *done = job->phase == CANCELING && commit->async;
        return 0;
    }
    if (job->phase != READY)
        return 0;
    if (commit->finish != QM_LIVE_FINISH_NONE)
        return finish(job, err);
    end->state = QM_JOB_READY;
    *done = true;
    return 0;
}

/* The job is gone; what its last event said, if one came. */
static void
hear_out(struct qm_job *job, struct qm_job_end *end)
{
    struct qm_watch_state heard = qm_watch_read(job->watch);

    if (!heard.ended && !heard.shut_down) {
        qm_watch_wait(job->watch, NEWS_MS);
        heard = qm_watch_read(job->watch);
    }
    end->state = QM_JOB_GONE;
    end->heard = heard.ended;
    end->failed = heard.failed;
    snprintf(end->reason, sizeof end->reason, "%s", heard.reason);
}

static int
follow(struct qm_job *job, struct qm_job_end *end, struct qmeld_error *err)
{
    bool done = false;

    while (!done && !job->gone) {
        if (look(job, err) < 0)
            return -1;
        if (job->gone)
            break;
        if (act(job, end, &done, err) < 0)
            return -1;
        if (!done)
            qm_watch_wait(job->watch, LOOK_MS);
    }
    return 0;
}

int
qm_job_run(struct qm_job *job, struct qm_job_end *end, struct qmeld_error *err)
{
    int rc;

    memset(end, 0, sizeof *end);
    rc = follow(job, end, err);
    let_guest_go(job);
    if (rc == 0 && job->gone)
        hear_out(job, end);
    end->stop_asked = job->stop_asked;
    end->finished = job->finished;
    end->held = job->held;
    return rc;
}
