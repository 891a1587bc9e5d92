/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stopped.c - the line of a stopped machine's merge: begun, gone on with, ended.
 *
 * The merge of one disk is made from within that of the disk before it (qmeld_guard_fn), and what libvirt
 * has to be told from within the last: so all layers are locked until all of it is done.
 *
 * After a crash nothing but the definition and the images tell how far it came, for the machine may have
 * run meanwhile.  While the definition names the old top, the merge is made again, for the guest may have
 * written to it; once it names the base it is never made again, for the guest may have written to that.
 */
#include "stopped.h"

#include "io.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- virtlockd's byte ---- */

/* With lock_manager="lockd" a start takes byte 0 of the active layer, exclusively (libvirt,
 * src/locking/lock_daemon_dispatch.c).  Our shared lock keeps it away, and needs no right to write. */
static int
lock_start(struct qm_stopped *s, const char *path, struct qmeld_error *err)
{
    struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_len = 1};
    const int fd = open(path, O_RDONLY | O_CLOEXEC);

    if (fd < 0)
        return qm_fail_sys(err, qm_in(path), "cannot open it");
    if (fcntl(fd, F_OFD_SETLK, &l) < 0 && (errno == EAGAIN || errno == EACCES)) {
        close(fd);
        return qm_fail(err, QMELD_BUSY, qm_in(path),
                       "it is locked, as virtlockd locks the disks of running machines: see who "
                       "uses it (virsh list)");
    }
    if (!qm_vec_push(&s->locks, &fd)) {
        close(fd);
        return qm_fail_nomem(err, "a lock");
    }
    return 0;
}

static void
unlock(struct qm_stopped *s)
{
    QM_VEC_EACH (fd, &s->locks)
        close(*fd);
    qm_vec_release(&s->locks);
}

/* ---- how far a disk is ---- */

enum step {
    STEP_MERGE,  /* by a merge of its own, or once more */
    STEP_RESUME, /* an interrupted merge is gone on with */
    STEP_NONE,   /* its images are merged, and the machine may have used them since */
};

struct journal {
    char *path;
    bool found;
    bool ours;
    bool complete;
    struct qmeld_error problem;
    const struct qm_change_disk *disk;
};

static int
take_journal(const struct qmeld_unfinished *merge, void *opaque)
{
    struct journal *j = opaque;
    const struct qm_change_disk *d = j->disk;

    j->found = true;
    if (merge->problem) {
        j->problem = *merge->problem;
        return 0;
    }
    j->complete = merge->complete;
    j->ours = strcmp(merge->active, d->layers.at[d->layers.n - 1].path) == 0 &&
              strcmp(merge->base, qm_change_base(d)->path) == 0 &&
              strcmp(merge->top, d->layers.at[d->top].path) == 0;
    return 0;
}

/* The note lies beside the journal, and is called like it with "-domain" behind. */
static int
find_journal(const struct qm_change_disk *disk, struct journal *out, struct qmeld_error *err)
{
    static const char suffix[] = "-domain";
    const size_t len = strlen(disk->note);

    *out = (struct journal){.disk = disk};
    if (len < sizeof suffix)
        return qm_fail(err, QMELD_CORRUPT, qm_in(disk->note), "it is no name of a note");
    out->path = strndup(disk->note, len - (sizeof suffix - 1));
    if (!out->path)
        return qm_fail_nomem(err, "a path");
    if (access(out->path, F_OK) < 0 && errno == ENOENT)
        return 0;
    return qm_lib->status(out->path, NULL, take_journal, out, err);
}

static int
changed(const struct qm_stopped *s, const struct qm_change_disk *disk, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_STALE, qm_in(disk->note),
                   "disk %s of domain \"%s\" has another chain now than when its unfinished merge "
                   "began: put the definition or the files back, or, if the chain is right as it "
                   "is, remove this note",
                   disk->target, s->domain->name);
}

/* The chain below the active layer is the one of the change, or, with merged, what the merge makes of
 * it. */
static int
is_chain(const struct qm_change_disk *disk, bool merged, bool *out, struct qmeld_error *err)
{
    const struct qm_change_layer *active = &disk->layers.at[disk->layers.n - 1];
    struct qm_change now = {.uri = NULL};
    struct qm_change_disk none = {.target = NULL}, *d;
    size_t at = 0;
    bool gone;
    int rc = 0;

    if (!qm_vec_push(&now.disks, &none))
        return qm_fail_nomem(err, "the chain");
    d = now.disks.at;
    rc = qm_stopped_read_chain(active->path, active->format, d, err);
    *out = rc == 0;
    for (size_t i = 0; *out && i < disk->layers.n; i++) {
        if (merged && i > disk->base && i <= disk->top)
            continue;
        *out = at < d->layers.n && qm_change_find(disk, d->layers.at[at].path) == i &&
               qm_change_is_still(&disk->layers.at[i], &gone);
        at++;
    }
    *out = *out && at == d->layers.n;
    qm_change_release(&now);
    return rc;
}

/* By the definition: it names the old top, or the base.  Neither: *out_layer is n. */
static int
find_active(struct qm_stopped *s, const struct qm_change_disk *disk, size_t *out_layer,
            struct qmeld_error *err)
{
    const struct qm_domxml_disk *xml = NULL;
    QM_FREE char *path = NULL;
    struct qm_domxml *x = NULL;
    struct qm_texts texts;
    int rc;

    *out_layer = disk->layers.n;
    if (qm_stopped_texts(s, &texts, err) < 0)
        return -1;
    rc = qm_domxml_parse(texts.persistent, &x, err);
    qm_texts_free(&texts);
    if (rc == 0)
        xml = qm_domxml_find(x, disk->target);
    if (rc == 0 && xml && xml->layers.n > 0)
        rc = qm_stopped_path(s, &xml->layers.at[0], &path, err);
    if (rc == 0 && path)
        *out_layer = qm_change_find(disk, path);
    qm_domxml_free(x);
    return rc;
}

static int
find_step(struct qm_stopped *s, const struct qm_change_disk *disk, const struct journal *j,
          enum step *out, struct qmeld_error *err)
{
    size_t active;
    bool is;

    *out = STEP_MERGE;
    if (!s->resumed)
        return 0;
    if (j->found && !j->ours) {
        if (j->problem.code == QMELD_OK)
            return changed(s, disk, err);
        *err = j->problem;
        return -1;
    }
    if (find_active(s, disk, &active, err) < 0)
        return -1;
    if (qm_change_top_is_active(disk) && active == disk->base && !j->found) {
        *out = STEP_NONE;
        return 0;
    }
    if (active + 1 != disk->layers.n)
        return changed(s, disk, err);
    if (j->found) {
        *out = STEP_RESUME;
        return 0;
    }
    if (is_chain(disk, false, &is, err) < 0)
        return -1;
    if (is)
        return 0;
    *out = STEP_NONE;
    if (qm_change_top_is_active(disk) || is_chain(disk, true, &is, err) < 0)
        return qm_change_top_is_active(disk) ? changed(s, disk, err) : -1;
    return is ? 0 : changed(s, disk, err);
}

/* ---- the merges ---- */

struct merging {
    struct qm_stopped *s;
    size_t disk;
    bool asked; /* the library came as far as to ask us */
};

static int merge_from(struct qm_stopped *s, size_t i, struct qmeld_error *err);

/* Under the locks, nothing written yet: what was looked at without them is looked at again. */
static int
begin(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qm_texts texts;
    bool same;

    if (qm_stopped_check_state(s, err) < 0)
        return -1;
    if (!s->noted) {
        if (qm_stopped_texts(s, &texts, err) < 0)
            return -1;
        same = strcmp(texts.persistent, s->planned) == 0;
        qm_texts_free(&texts);
        if (!same)
            return qm_fail(
                err, QMELD_STALE, qm_nowhere(),
                "the definition of domain \"%s\" has just been changed: give the command "
                "again",
                s->domain->name);
        if (qm_change_note(&s->change, err) < 0)
            return -1;
        s->noted = true;
    }
    return 0;
}

static int
guard(enum qmeld_moment moment, void *opaque, struct qmeld_error *err)
{
    struct merging *m = opaque;

    m->asked = true;
    if (moment == QMELD_MOMENT_LOCKED)
        return begin(m->s, err);
    return merge_from(m->s, m->disk + 1, err);
}

static void
add_report(struct qm_stopped *s, struct qmeld_commit_report *one)
{
    struct qmeld_commit_report *all = &s->report->merge;

    if (!all->layers) {
        *all = *one;
        return;
    }
    all->bytes_copied += one->bytes_copied;
    all->bytes_filled += one->bytes_filled;
    all->bytes_zeroed += one->bytes_zeroed;
    all->bytes_shared += one->bytes_shared;
    all->bytes_offloaded += one->bytes_offloaded;
    all->bytes_verified += one->bytes_verified;
    all->verified = all->verified && one->verified;
    all->bytes_zero_found += one->bytes_zero_found;
    all->bytes_skipped += one->bytes_skipped;
    for (size_t i = 0; i < one->n_bitmaps; i++)
        if (one->bitmaps[i].unreadable)
            qm_note(&s->report->notes,
                    "bitmap \"%s\" of %s was not closed cleanly, or is damaged, and says nothing "
                    "in the "
                    "base either: the next backup has to be a full one",
                    one->bitmaps[i].name, one->bitmaps[i].layer);
    qm_lib->commit_report_free(one);
}

/* journal: NULL, or the one that is gone on with. */
static int
merge_once(struct merging *m, const char *journal, struct qmeld_error *err)
{
    struct qm_stopped *s = m->s;
    const struct qm_change_disk *disk = &s->change.disks.at[m->disk];
    const struct qm_change_layer *active = &disk->layers.at[disk->layers.n - 1];
    struct qmeld_commit_options options = s->request->offline;
    struct qmeld_commit_report report;
    int rc;

    options.format = active->format;
    options.backing_format = disk->backing_format;
    options.base = qm_change_base(disk)->path;
    options.top = disk->layers.at[disk->top].path;
    options.shallow = false;
    options.keep_relative = s->change.keep_relative;
    options.bitmaps = s->change.bitmaps;
    options.overlays = QMELD_OVERLAYS_KEEP; /* until the definition is right */
    options.files_go = s->change.remove;
    options.journal_dir = s->change.journal_dir;
    if (!options.bandwidth)
        options.bandwidth = s->request->bandwidth;
    options.progress = s->request->progress;
    options.opaque = s->request->opaque;
    options.guard = guard;
    options.guard_opaque = m;
    m->asked = false;
    rc = journal ? qm_lib->resume(journal, &options, &report, err)
                 : qm_lib->commit(active->path, &options, &report, err);
    add_report(s, &report);
    return rc;
}

/* A machine that ran after the crash has written to its active layer, and the journal does not fit any
 * more.  The chain read right all the time, so that a merge from its beginning is right, too. */
static int
begin_anew(struct merging *m, const struct journal *j, struct qmeld_error *err)
{
    const struct qm_change_disk *disk = &m->s->change.disks.at[m->disk];
    bool is;

    if (is_chain(disk, false, &is, err) < 0)
        return -1;
    if (!is)
        return changed(m->s, disk, err);
    if (qm_unlink(j->path, err) < 0)
        return -1;
    qm_note(&m->s->report->notes,
            "the machine ran after the merge of %s was interrupted: it was begun anew",
            disk->target);
    memset(err, 0, sizeof *err);
    return merge_once(m, NULL, err);
}

static int
merge_disk(struct qm_stopped *s, size_t i, const struct journal *j, enum step step,
           struct qmeld_error *err)
{
    const struct qm_change_disk *disk = &s->change.disks.at[i];
    struct merging m = {.s = s, .disk = i};
    int rc;

    if (lock_start(s, disk->layers.at[disk->layers.n - 1].path, err) < 0 ||
        lock_start(s, qm_change_base(disk)->path, err) < 0)
        return -1;
    rc = merge_once(&m, step == STEP_RESUME ? j->path : NULL, err);
    if (rc < 0 && step == STEP_RESUME && !j->complete && !m.asked && err->code == QMELD_STALE)
        rc = begin_anew(&m, j, err);
    return rc;
}

/* Disks i and up, then all that follows. */
static int
merge_from(struct qm_stopped *s, size_t i, struct qmeld_error *err)
{
    struct journal j = {.path = NULL};
    enum step step;
    int rc;

    if (i == s->change.disks.n)
        return qm_stopped_finish(s, err);
    rc = find_journal(&s->change.disks.at[i], &j, err);
    if (rc == 0)
        rc = find_step(s, &s->change.disks.at[i], &j, &step, err);
    if (rc == 0 && step == STEP_NONE)
        rc = merge_from(s, i + 1, err);
    else if (rc == 0)
        rc = merge_disk(s, i, &j, step, err);
    free(j.path);
    return rc;
}

/* ---- the whole ---- */

static int
set_report(struct qm_stopped *s, struct qmeld_error *err)
{
    const struct qm_change_disk *d = s->change.disks.at;
    struct qm_live_report *r = s->report;

    r->end = QM_LIVE_MERGED;
    r->disk = strdup(d->target);
    r->base = strdup(qm_change_base(d)->path);
    r->top = strdup(d->layers.at[d->top].path);
    for (size_t i = 1; i < s->change.disks.n; i++)
        qm_note(&r->notes, "%s: %s was merged into %s", d[i].target, d[i].layers.at[d[i].top].path,
                qm_change_base(&d[i])->path);
    return r->disk && r->base && r->top ? 0 : qm_fail_nomem(err, "the report");
}

static int
run(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qmeld_error unheard;
    bool settled = false;
    int rc = 0;

    if (s->resumed)
        rc = qm_change_is_settled(&s->change, &settled, err);
    if (rc == 0 && s->resumed && !settled)
        rc = qm_change_note_again(&s->change, err);
    if (rc == 0 && settled)
        rc = qm_stopped_finish(s, err);
    else if (rc == 0)
        rc = s->live ? qm_stopped_merge_live(s, err) : merge_from(s, 0, err);
    unlock(s);
    if (rc == 0)
        return set_report(s, err);
    if (!s->noted)
        return -1;
    if (!s->resumed && err->disk == QMELD_DISK_OLD && qm_change_unnote(&s->change, &unheard) == 0)
        return -1; /* nothing was begun */
    err->disk = QMELD_DISK_OPEN;
    return -1;
}

static void
release(struct qm_stopped *s)
{
    unlock(s);
    qm_change_release(&s->change);
    free(s->planned);
}

/* ---- the calls ---- */

static char *
absolute(const char *path)
{
    QM_FREE char *here = path[0] == '/' ? NULL : getcwd(NULL, 0);
    char *out = NULL;

    if (path[0] == '/')
        return strdup(path);
    return here && asprintf(&out, "%s/%s", here, path) >= 0 ? out : NULL;
}

static int
fill(struct qm_stopped *s, const char *snapshot, struct qmeld_error *err)
{
    const struct qm_live_commit *r = s->request;
    struct qm_change *c = &s->change;
    const char *dir = r->offline.journal_dir;

    c->uri = strdup(qm_session_uri(s->session));
    c->domain = strdup(s->domain->name);
    c->uuid = strdup(s->domain->uuid);
    c->snapshot = snapshot ? strdup(snapshot) : NULL;
    c->journal_dir = dir ? absolute(dir) : NULL;
    c->remove = r->remove || snapshot;
    c->keep_relative = r->keep_relative;
    c->bitmaps = r->offline.bitmaps;
    c->update_saved = r->update_saved;
    c->live = s->live;
    if (asprintf(&c->words, "disk=%s base=%s top=%s shallow=%d all=%d snapshot=%s",
                 r->disk ? r->disk : "", r->base ? r->base : "", r->top ? r->top : "", r->shallow,
                 r->all_disks, snapshot ? snapshot : "") < 0)
        c->words = NULL;
    if (c->uri && c->domain && c->uuid && c->words && (c->snapshot || !snapshot) &&
        (c->journal_dir || !dir))
        return 0;
    return qm_fail_nomem(err, "the request");
}

static int
check_request(const struct qm_stopped *s, const char *snapshot, struct qmeld_error *err)
{
    if (s->request->offline.protect && (s->request->remove || snapshot))
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "--protect keeps images right that stand on a merged layer, which this "
                       "removes: rebase them first (`qmeld rebase`), or keep the layers");
    if (!qm_session_is_local(s->session))
        return qm_fail(err, QMELD_UNSUPPORTED, qm_nowhere(),
                       "the images of domain \"%s\" lie on another machine, and must be looked at: "
                       "run qmeld there",
                       s->domain->name);
    if (s->request->finish == QM_LIVE_FINISH_KEEP)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "domain \"%s\" is stopped, so there is no job to leave the overlay in use: "
                       "leave out --keep-overlay",
                       s->domain->name);
    return 0;
}

static int
change(struct qm_stopped *s, const char *snapshot, struct qmeld_error *err)
{
    QM_FREE char *words = NULL;

    if (check_request(s, snapshot, err) < 0 || fill(s, snapshot, err) < 0)
        return -1;
    words = strdup(s->change.words);
    if (!words)
        return qm_fail_nomem(err, "the request");
    if (qm_stopped_find_unfinished(s, words, err) < 0)
        return -1;
    if (s->resumed)
        return run(s, err);
    if (qm_stopped_plan(s, snapshot, err) < 0)
        return -1;
    if (s->change.disks.n == 0) {
        s->report->end = QM_LIVE_NOTHING;
        return 0;
    }
    return qm_stopped_check_plan(s, err) < 0 ? -1 : run(s, err);
}

int
qm_stopped_commit(struct qm_session *session, struct qm_domain *domain,
                  const struct qm_live_commit *request, struct qm_live_report *report,
                  struct qmeld_error *err)
{
    struct qm_stopped s = {
        .session = session, .domain = domain, .request = request, .report = report};
    const int rc = change(&s, NULL, err);

    release(&s);
    return rc;
}

int
qm_stopped_delete(struct qm_session **session, const struct qm_session_options *options,
                  struct qm_domain *domain, const char *snapshot,
                  const struct qm_live_commit *request, struct qm_live_report *report,
                  struct qmeld_error *err)
{
    struct qm_stopped s = {.session = *session,
                           .options = options,
                           .domain = domain,
                           .request = request,
                           .report = report,
                           .live = report->running};
    const int rc = change(&s, snapshot, err);

    *session = s.session;
    release(&s);
    return rc;
}

/* ---- by its note ---- */

static bool
is_stopped(void *opaque)
{
    const struct qm_live_commit *request = opaque;
    const struct qmeld_progress now = {.phase = "count"};

    return request->progress && request->progress(&now, request->opaque) != 0;
}

static int
go_on(struct qm_stopped *s, struct qmeld_error *err)
{
    const struct qm_session_options options = {.uri = s->request->uri ? s->request->uri
                                                                      : s->change.uri,
                                               .stop = is_stopped,
                                               .opaque = (void *)(uintptr_t)s->request};
    struct qm_domain domain = {.ptr = NULL};
    struct qm_fault fault;
    int rc;

    s->options = &options;
    if (qm_session_open(&options, &s->session, err) < 0)
        return -1;
    rc = qm_domain_find(s->session, s->change.uuid, &domain, err);
    if (rc < 0 && err->code == QMELD_USAGE)
        rc = qm_fail(err, QMELD_USAGE, qm_in(s->change.disks.at[0].note),
                     "%s has no domain \"%s\" (%s) any more: define it again or, if it is gone for "
                     "good, remove this note",
                     qm_session_uri(s->session), s->change.domain, s->change.uuid);
    s->domain = &domain;
    if (rc == 0 && !(s->report->domain = strdup(domain.name)))
        rc = qm_fail_nomem(err, "the report");
    if (rc == 0)
        rc = check_request(s, s->change.snapshot, err);
    if (rc == 0 && s->change.live &&
        qm_session_is_active(s->session, domain.ptr, &s->live, &fault) < 0)
        rc = qm_session_fail(err, &fault, "ask whether the machine runs");
    if (rc == 0)
        rc = run(s, err);
    s->domain = NULL;
    qm_domain_free(&domain);
    qm_session_close(s->session);
    return rc;
}

int
qm_stopped_resume(const char *note, const struct qm_live_commit *request,
                  struct qm_live_report *report, struct qmeld_error *err)
{
    struct qm_stopped s = {.request = request, .report = report, .resumed = true, .noted = true};
    QM_FREE char *text = NULL;
    int rc;

    memset(report, 0, sizeof *report);
    if (qm_lib->note_read(note, &text, NULL, err) < 0)
        return -1;
    if (!text)
        return qm_fail(err, QMELD_USAGE, qm_in(note),
                       "there is no note of an unfinished change: `qmeld status` finds those");
    rc = qm_change_read(note, text, &s.change, err);
    if (rc == 0)
        rc = go_on(&s, err);
    if (rc < 0)
        err->disk = QMELD_DISK_OPEN;
    release(&s);
    return rc;
}
