/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "running.h"

#include "calls.h"
#include "cleanup.h"
#include "defs.h"
#include "job.h"
#include "run.h"
#include "texts.h"

#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

/* What became of the chain, by the definition after the job. */
enum verdict {
    MERGED,
    AS_BEFORE,
    MIRRORING, /* the job is still there */
    STOPPED,   /* the machine does not run any more, and the merge was not finished */
    STRANGE,   /* neither: somebody else changed the chain meanwhile */
};

/* ---- before ---- */

static char *
layer_name(const struct qm_domxml_source *layer)
{
    return layer->path ? strdup(layer->path) : qm_domxml_source_text(layer);
}

/* A volume's path is in no definition, and is needed to know its file again. */
static void
ask_for_volumes(struct qm_run *run, struct qm_domxml *xml)
{
    struct qm_fault unheard;

    if (!run->local)
        return;
    QM_VEC_EACH (disk, &xml->disks)
        QM_VEC_EACH (layer, &disk->layers)
            if (!layer->path && layer->pool && layer->volume &&
                qm_defs_volume_path(qm_run_session(run), layer->pool, layer->volume, &layer->path,
                                    &unheard) < 0)
                layer->path = NULL;
}

static int
read_before(struct qm_run *run, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;
    struct qm_fault fault;

    if (qm_session_xml(qm_run_session(run), run->domain->ptr, 0, &text, &fault) < 0)
        return qm_session_fail(err, &fault, "read the machine's definition");
    if (qm_domxml_parse(text, &run->before, err) < 0)
        return -1;
    ask_for_volumes(run, run->before);
    run->disk = qm_range_disk(run->before, run->request->disk, run->local, err);
    if (!run->disk || qm_range_find(run->disk, run->request, run->local, &run->range, err) < 0)
        return -1;
    run->ids = calloc(run->disk->layers.n, sizeof *run->ids);
    run->report->disk = strdup(run->disk->target);
    run->report->base = layer_name(qm_run_base(run));
    run->report->top = layer_name(&run->disk->layers.at[run->range.top]);
    if (!run->ids || !run->report->disk || !run->report->base || !run->report->top)
        return qm_fail_nomem(err, "reading the machine's definition");
    for (size_t i = 0; i < run->disk->layers.n && run->local; i++)
        run->ids[i] = qm_file_id(run->disk->layers.at[i].path);
    return 0;
}

/* "vda[3]", as the running definition has it; the path where it has no index.  NULL: no memory. */
static char *
libvirt_name(const struct qm_run *run, size_t layer)
{
    const struct qm_domxml_source *source = &run->disk->layers.at[layer];
    char *name;

    if (source->index == 0)
        return layer_name(source);
    return asprintf(&name, "%s[%u]", run->disk->target, source->index) < 0 ? NULL : name;
}

static int
begin(struct qm_run *run, struct qm_job *job, struct qmeld_error *err)
{
    QM_FREE char *base = libvirt_name(run, run->range.base);
    QM_FREE char *top = run->range.top ? libvirt_name(run, run->range.top) : NULL;
    unsigned flags = run->range.top ? 0 : VIR_DOMAIN_BLOCK_COMMIT_ACTIVE;

    if (!base || (run->range.top && !top))
        return qm_fail_nomem(err, "beginning the commit");
    if (run->relative)
        flags |= VIR_DOMAIN_BLOCK_COMMIT_RELATIVE;
    return qm_job_begin(job, base, top, flags, err);
}

/* ---- after ---- */

static bool
same_chain(const struct qm_run *run, const struct qm_domxml_disk *now, size_t skip_from,
           size_t skip_to)
{
    const struct qm_domxml_disk *before = run->disk;
    size_t j = 0;

    if (now->layers.n != before->layers.n - (skip_to - skip_from))
        return false;
    for (size_t i = 0; i < before->layers.n; i++)
        if (i < skip_from || i >= skip_to)
            if (!qm_range_same(&before->layers.at[i], &now->layers.at[j++], run->local))
                return false;
    return true;
}

static enum verdict
judge_disk(const struct qm_run *run, const struct qm_domxml_disk *now)
{
    if (same_chain(run, now, run->range.top, run->range.base))
        return MERGED;
    if (now->mirror.present)
        return MIRRORING;
    return same_chain(run, now, 0, 0) ? AS_BEFORE : STRANGE;
}

/* Of a machine that has stopped: its kept definition may name the active layer only. */
static enum verdict
judge_stopped(const struct qm_run *run, const struct qm_domxml_disk *now)
{
    if (!now || now->layers.n == 0)
        return STOPPED;
    if (run->range.top == 0)
        return qm_range_same(&now->layers.at[0], qm_run_base(run), run->local) ? MERGED : STOPPED;
    return now->layers.n > 1 && same_chain(run, now, run->range.top, run->range.base) ? MERGED
                                                                                      : STOPPED;
}

static int
judge(struct qm_run *run, enum verdict *out, struct qmeld_error *err)
{
    const struct qm_domxml_disk *now;
    QM_FREE char *text = NULL;
    struct qm_domxml *xml = NULL;
    struct qm_fault fault;
    bool active = false;

    if (qm_session_is_active(qm_run_session(run), run->domain->ptr, &active, &fault) < 0 ||
        qm_session_xml(qm_run_session(run), run->domain->ptr, 0, &text, &fault) < 0) {
        *out = STOPPED; /* a transient machine is gone with its definition */
        if (fault.code == VIR_ERR_NO_DOMAIN)
            return 0;
        (void)qm_session_fail(err, &fault, "read what came of the job");
        qm_err_disk(err, QMELD_DISK_OPEN);
        return -1;
    }
    if (qm_domxml_parse(text, &xml, err) < 0) {
        qm_err_disk(err, QMELD_DISK_OPEN);
        return -1;
    }
    now = qm_domxml_find(xml, run->disk->target);
    if (!active)
        *out = judge_stopped(run, now);
    else
        *out = now ? judge_disk(run, now) : STRANGE;
    qm_domxml_free(xml);
    return 0;
}

/* ---- what is said of failures ---- */

static int
tell_failed(const struct qm_run *run, const struct qm_job_end *end, struct qmeld_error *err)
{
    const char *base = run->report->base;
    struct statvfs fs;

    if (end->reason[0])
        return qm_fail(err, QMELD_IO, qm_in(base),
                       "QEMU could not finish the merge: %s. The machine goes on as before, the "
                       "chain is valid, "
                       "and the same command again begins anew",
                       end->reason);
    if (run->local && statvfs(base, &fs) == 0 && fs.f_bavail == 0)
        return qm_fail(err, QMELD_IO, qm_in(base),
                       "QEMU could not finish the merge; the file system is full. The machine goes "
                       "on as before, "
                       "and the chain is valid: make room, then the same command again");
    return qm_fail(
        err, QMELD_IO, qm_in(base),
        "the job ended without a merge, and libvirt does not say why. The machine goes on as "
        "before, "
        "the chain is valid: the machine's log may tell, and the same command again begins anew");
}

static int
tell_verdict(const struct qm_run *run, const struct qm_job_end *end, enum verdict verdict,
             struct qmeld_error *err)
{
    const char *name = run->domain->name, *word = qm_domain_word(run->domain),
               *target = run->disk->target;

    switch (verdict) {
    case STOPPED:
        return qm_fail(err, QMELD_IO, qm_nowhere(),
                       "the machine \"%s\" stopped before the merge was done: its chain is as it "
                       "was, and valid",
                       name);
    case MIRRORING:
        (void)qm_fail(err, QMELD_IO, qm_nowhere(),
                      "the job on %s is still there: the same command with --pivot finishes it, "
                      "virsh blockjob %s %s "
                      "--abort ends it",
                      target, word, target);
        break;
    case STRANGE:
        (void)qm_fail(err, QMELD_IO, qm_nowhere(),
                      "the chain of %s is neither what it was nor merged: somebody else changed it "
                      "meanwhile; look "
                      "with qmeld info %s",
                      target, word);
        break;
    case AS_BEFORE:
        if (end->stop_asked)
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(),
                           "stopped, and the job is canceled: the machine runs on the same chain "
                           "as before; the same "
                           "command again begins anew");
        return tell_failed(run, end, err);
    case MERGED:
        return 0;
    }
    qm_err_disk(err, QMELD_DISK_OPEN);
    return -1;
}

/* ---- the line of the steps ---- */

static int
take_end(struct qm_run *run, const struct qm_job_end *end, struct qmeld_error *err)
{
    enum verdict verdict = STRANGE;

    if (end->state == QM_JOB_READY) {
        run->report->end = QM_LIVE_READY;
        return 0;
    }
    if (end->state == QM_JOB_LEFT) {
        (void)qm_fail(
            err, QMELD_CANCELED, qm_nowhere(),
            "stopped; the job was asked to end and was not waited for: virsh blockjob %s %s tells",
            qm_domain_word(run->domain), run->disk->target);
        qm_err_disk(err, QMELD_DISK_OPEN);
        return -1;
    }
    qm_session_hurry(qm_run_session(run),
                     QM_SESSION_CALL_LIMIT); /* what follows is short, and has to be */
    if (judge(run, &verdict, err) < 0)
        return -1;
    /* the base has it all only if the job was ready to its end: an event has to say that it did not fail */
    if (verdict == AS_BEFORE && run->request->finish == QM_LIVE_FINISH_KEEP && end->finished &&
        end->heard && !end->failed) {
        run->report->end = QM_LIVE_KEPT;
        return 0;
    }
    if (verdict != MERGED)
        return tell_verdict(run, end, verdict, err);
    run->report->end = run->range.top == 0 ? QM_LIVE_PIVOTED : QM_LIVE_MERGED;
    return qm_run_settle(run, err);
}

/* While QEMU changes its block graph it takes no requests from a virtio device's ioeventfd.  What a vCPU hands over itself
 * goes on: a write at the instant of the pivot then hits the assertion child->perm & BLK_PERM_WRITE (block/io.c,
 * bdrv_co_write_req_prepare).  Seen in most pivots of QEMU 7.2 under a guest that writes all the time, whoever asks for
 * them, with IDE, SATA, LSI SCSI, and virtio without ioeventfd; never with it, or with the guest suspended. */
static bool
must_hold(const struct qm_run *run)
{
    const char *bus = run->disk->bus ? run->disk->bus : "";

    if (strcmp(bus, "virtio") == 0)
        return run->disk->no_ioeventfd;
    return strcmp(bus, "scsi") != 0 || !run->before->virtio_scsi;
}

/* Somebody's wish, or we were killed between a suspend and a resume. */
static void
note_suspended(const struct qm_run *run)
{
    struct qm_fault unheard;
    bool going;

    if (must_hold(run) &&
        qm_calls_is_going(qm_run_session(run), run->domain->ptr, &going, &unheard) == 0 && !going)
        qm_note(&run->report->notes,
                "the machine is suspended; if a merge that was killed at its pivot has left it so: "
                "virsh resume %s",
                qm_domain_word(run->domain));
}

static int
merge(struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_job_request request = {
        .session = run->session,
        .reconnect = run->options,
        .domain = run->domain,
        .disk = run->disk->target,
        .active = run->range.top == 0,
        .hold = must_hold(run),
        .commit = run->request,
    };
    struct qm_job_end end = {.stop_asked = false};
    struct qm_job *job;
    int result;

    if (qm_job_open(&request, &job, err) < 0)
        return -1;
    if (run->attached)
        note_suspended(run);
    result = run->attached ? 0 : begin(run, job, err);
    if (result == 0 && !run->request->wait)
        run->report->end = QM_LIVE_STARTED;
    else if (result == 0)
        result = qm_job_run(job, &end, err);
    qm_job_close(job);
    if (end.held)
        qm_note(&run->report->notes,
                "the machine was suspended for the pivot, and could not be told to go on: virsh "
                "resume %s",
                qm_domain_word(run->domain));
    if (result < 0 || !run->request->wait)
        return result;
    return take_end(run, &end, err);
}

/* An image that the kept definition names stands, by its header, on the one that the machine writes to. */
static bool
stands_on_active(const struct qm_run *run, const struct qm_domxml_source *kept)
{
    const struct qmeld_open_options how = {.format = kept->format};
    struct qmeld_chain *chain = NULL;
    struct qmeld_layer_info layer;
    struct qmeld_error unheard;
    bool stands = false;

    if (!kept->path || qm_lib->chain_open(kept->path, &how, &chain, &unheard) < 0)
        return false;
    for (size_t i = qm_lib->chain_depth(chain); i-- > 0 && !stands;)
        if (qm_lib->chain_layer(chain, i, &layer, &unheard) == 0) {
            const struct qm_domxml_source below = {.type = QM_SOURCE_FILE,
                                                   .path = (char *)layer.path};

            stands = qm_range_same(&below, &run->disk->layers.at[0], true);
        }
    qm_lib->chain_close(chain);
    return stands;
}

/* Nothing is left to merge.  If we were killed behind a pivot the kept definition may name what was merged; it is
 * not known any more that it was, and somebody may mean it so, so that it is said and not changed. */
static void
note_kept(struct qm_run *run)
{
    const struct qm_domxml_disk *disk = NULL;
    struct qmeld_error unreadable = {0};
    struct qm_domxml *xml = NULL;
    struct qm_texts texts;
    struct qm_fault unheard;

    if (!run->local || qm_texts_get(qm_run_session(run), run->domain->ptr, &texts, &unheard) < 0)
        return;
    if (texts.persistent && qm_domxml_parse(texts.persistent, &xml, &unreadable) == 0)
        disk = qm_domxml_find(xml, run->disk->target);
    if (disk && disk->layers.n > 0 &&
        !qm_range_same(&disk->layers.at[0], &run->disk->layers.at[0], true) &&
        stands_on_active(run, &disk->layers.at[0]))
        qm_note(
            &run->report->notes,
            "the kept definition of %s names %s, which stands on the image that the machine "
            "writes to: from it the next start would read something else; unless that is meant, "
            "put it right (virsh edit %s)",
            run->disk->target, disk->layers.at[0].path, qm_domain_word(run->domain));
    qm_domxml_free(xml);
    qm_texts_free(&texts);
}

int
qm_running_commit(struct qm_session **session, const struct qm_session_options *options,
                  struct qm_domain *domain, const struct qm_live_commit *request,
                  struct qm_live_report *report, struct qmeld_error *err)
{
    struct qm_run run = {
        .session = session,
        .options = options,
        .domain = domain,
        .request = request,
        .report = report,
        .local = qm_session_is_local(*session),
    };
    int result = read_before(&run, err);

    if (result == 0 && !run.range.empty)
        result = qm_run_preflight(&run, err);
    if (result == 0 && run.range.empty) {
        report->end = QM_LIVE_NOTHING;
        note_kept(&run);
        note_suspended(&run);
    } else if (result == 0)
        result = merge(&run, err);
    qm_domxml_free(run.before);
    free(run.ids);
    return result;
}
