/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * preflight.c - what is looked at before QEMU is asked to merge.
 *
 * QEMU and libvirt refuse much, but not what they cannot see: other machines that stand on the base, branches
 * of snapshots, bitmaps that a raw base cannot take.  Files are looked at only where they are this machine's,
 * and what cannot be read is no reason to refuse: a member of the group libvirt may merge and may not open
 * the images.
 */
#include "run.h"

#include "backing.h"
#include "calls.h"
#include "cleanup.h"
#include "scan.h"
#include "texts.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/statvfs.h>

/* ---- the job that may be there ---- */

static int
busy(const struct qm_run *run, const char *job, struct qmeld_error *err)
{
    if (strcmp(job, "backup") == 0) /* of the whole machine: it has no disk */
        return qm_fail(err, QMELD_BUSY, qm_nowhere(),
                       "a backup job runs on %s: wait for it, or end it with virsh domjobabort %s",
                       run->disk->target, qm_domain_word(run->domain));
    return qm_fail(err, QMELD_BUSY, qm_nowhere(),
                   "a block job (%s) runs on %s already: wait for it, or end it with virsh "
                   "blockjob %s %s --abort",
                   job, run->disk->target, qm_domain_word(run->domain), run->disk->target);
}

/* An active commit to the same base, left by an earlier call, is gone on with. */
static int
check_job(struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_domxml_mirror *mirror = &run->disk->mirror;
    struct qm_job_info info;
    struct qm_fault fault;

    if (mirror->present) {
        run->attached = run->request->active && mirror->job &&
                        strcmp(mirror->job, "active-commit") == 0 &&
                        qm_range_same(&mirror->source, qm_run_base(run), run->local);
        return run->attached ? 0 : busy(run, mirror->job ? mirror->job : "copy", err);
    }
    if (qm_calls_job(qm_run_session(run), run->domain->ptr, run->disk->target, &info, &fault) < 0)
        return qm_session_fail(err, &fault, "ask whether a job runs");
    return info.present ? busy(run, qm_calls_job_name(info.type), err) : 0;
}

static int
check_disk(const struct qm_run *run, struct qmeld_error *err)
{
    if (run->disk->transient)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "disk %s is transient: libvirt throws its active layer away when the "
                       "machine stops, and "
                       "allows no block jobs on it",
                       run->disk->target);
    if (run->disk->shareable)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "disk %s is shareable: other machines may write to it at the same time",
                       run->disk->target);
    if (!run->disk->terminated)
        qm_note(&run->report->notes,
                "the definition does not say what lies under the last layer of %s; only what it "
                "names is merged",
                run->disk->target);
    return 0;
}

/* ---- who else stands on these files ---- */

struct others {
    const struct qm_run *run;
    const struct qm_domxml_source **files;
    bool branched; /* the domain's own snapshots have branches */
    bool found;
    struct qmeld_error *err;
};

static bool
is_in_chain(const struct qm_run *run, const char *path)
{
    struct qm_domxml_source source = {.type = QM_SOURCE_FILE, .path = (char *)path};

    QM_VEC_EACH (layer, &run->disk->layers)
        if (qm_range_same(layer, &source, run->local))
            return true;
    return false;
}

/* Of our own domain: the disk itself may have its layers, and snapshots in one line tell of the same chain. */
static bool
is_expected(const struct others *others, const struct qm_scan_mention *mention)
{
    const struct qm_run *run = others->run;

    if (strcmp(mention->uuid, run->domain->uuid) != 0)
        return false;
    if (mention->where == QM_SCAN_SNAPSHOT)
        return true;
    if (mention->where == QM_SCAN_HEADER)
        return !others->branched || is_in_chain(run, mention->head);
    return strcmp(mention->target, run->disk->target) == 0;
}

static int
take_mention(const struct qm_scan_mention *mention, void *opaque)
{
    struct others *others = opaque;
    const char *file = others->files[mention->file]->path;

    if (is_expected(others, mention))
        return 0;
    others->found = true;
    (void)qm_fail(
        others->err, QMELD_BUSY, qm_in(file ? file : ""),
        "domain \"%s\" %s%s%s%s%s: the merge would change what that one reads; undo that use first",
        mention->domain, qm_scan_where_name(mention->where), mention->head ? " " : "",
        mention->head ? mention->head : "", mention->snapshot ? " " : "",
        mention->snapshot ? mention->snapshot : "");
    return 1;
}

/* Each snapshot has at most one child, and the current one has none: they tell of one chain. */
static bool
has_branches(const struct qm_texts *texts)
{
    QM_VEC(struct qm_domxml *) all = {0};
    struct qmeld_error unreadable = {0};
    size_t roots = 0;
    bool branched = false;

    for (size_t i = 0; i < texts->snapshots.n; i++) {
        struct qm_domxml *xml = NULL;

        if (qm_domxml_parse(texts->snapshots.at[i], &xml, &unreadable) < 0 ||
            !qm_vec_push(&all, &xml)) {
            qm_domxml_free(xml);
            branched = true; /* what is unknown is taken as the worse */
        }
    }
    QM_VEC_EACH (one, &all) {
        size_t children = 0;

        roots += (*one)->parent == NULL;
        QM_VEC_EACH (other, &all)
            children += (*other)->parent && strcmp((*other)->parent, (*one)->name) == 0;
        branched |= children > 1 ||
                    (children == 1 && texts->current && strcmp(texts->current, (*one)->name) == 0);
    }
    QM_VEC_EACH (one, &all)
        qm_domxml_free(*one);
    qm_vec_release(&all);
    return branched || roots > 1;
}

static int
check_others(struct qm_run *run, struct qmeld_error *err)
{
    const size_t n = run->range.base - run->range.top + 1;
    QM_FREE const struct qm_domxml_source **files = calloc(n, sizeof(*files));
    struct others others = {.run = run, .files = files, .err = err};
    struct qm_scan scan = {
        .session = qm_run_session(run),
        .files = files,
        .n_files = n,
        .fn = take_mention,
        .opaque = &others,
        .notes = &run->report->notes,
    };
    struct qm_texts texts;
    struct qm_fault fault;

    if (!files)
        return qm_fail_nomem(err, "looking for who uses the files");
    for (size_t i = 0; i < n; i++)
        files[i] = &run->disk->layers.at[run->range.top + i];
    if (qm_texts_get(qm_run_session(run), run->domain->ptr, &texts, &fault) < 0)
        return qm_session_fail(err, &fault, "read the machine's definition");
    others.branched = has_branches(&texts);
    qm_texts_free(&texts);
    if (qm_scan_mentions(&scan, err) < 0)
        return -1;
    return others.found ? -1 : 0;
}

/* ---- what the images tell ---- */

struct folders {
    char *found; /* the first image; NULL: none */
    size_t n;
};

static int
take_dependant(const struct qmeld_dependant *dependant, void *opaque)
{
    struct folders *f = opaque;

    if (f->n++ == 0)
        f->found = strdup(dependant->path);
    return 0;
}

/* Where a layer of the definition stands in the chain that the headers tell; the depth: nowhere. */
static size_t
find_in_headers(const struct qm_run *run, struct qmeld_chain *chain, size_t layer)
{
    const size_t n = qm_lib->chain_depth(chain);
    struct qmeld_layer_info info;
    struct qmeld_error unheard;

    for (size_t i = 0; i < n; i++)
        if (qm_lib->chain_layer(chain, i, &info, &unheard) == 0) {
            const struct qm_domxml_source source = {.type = QM_SOURCE_FILE,
                                                    .path = (char *)info.path};

            if (qm_range_same(&run->disk->layers.at[layer], &source, run->local))
                return i;
        }
    return n;
}

static int
refuse_dependants(struct qm_run *run, const struct folders *f, struct qmeld_error *err)
{
    char more[40] = "";

    if (f->n > 1)
        snprintf(more, sizeof more, ", and %zu more images", f->n - 1);
    if (!run->request->offline.force)
        return qm_fail(
            err, QMELD_BUSY, qm_in(f->found ? f->found : ""),
            "it stands on a layer that the merge changes or removes%s: remove it, if it is what an "
            "earlier merge left (virsh blockcommit leaves the file that was active, and qmeld if "
            "it "
            "was killed); if somebody needs it, give it another backing file first (qmeld rebase); "
            "--force merges nevertheless",
            more);
    qm_note(&run->report->notes,
            "%s stands on a layer that was changed or removed, and reads something else now%s",
            f->found ? f->found : "an image", more);
    return 0;
}

/* Images beside the chain that no definition names.  Who may not open the chain cannot be told. */
static int
check_folders(struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_domxml_source *active = &run->disk->layers.at[0];
    const struct qmeld_open_options how = {.format = active->format};
    struct qmeld_commit_options options = run->request->offline;
    struct qmeld_chain *chain = NULL;
    struct folders f = {.n = 0};
    struct qmeld_error unheard;
    size_t base, top;
    int rc = 0;

    if (options.no_scan || !active->path ||
        qm_lib->chain_open(active->path, &how, &chain, &unheard) < 0)
        return 0;
    base = find_in_headers(run, chain, run->range.base);
    top = find_in_headers(run, chain, run->range.top);
    options.files_go = run->request->remove || run->request->settles_snapshots;
    if (base < top && top < qm_lib->chain_depth(chain))
        rc = qm_lib->dependants(chain, base, top, &options, take_dependant, &f, err);
    qm_lib->chain_close(chain);
    if (rc == 0 && f.n > 0)
        rc = refuse_dependants(run, &f, err);
    free(f.found);
    return rc;
}

static bool
look_into(const char *path, const char *format, struct qmeld_chain **chain,
          struct qmeld_layer_info *info)
{
    const struct qmeld_open_options options = {.format = format, .single = true};
    struct qmeld_error unheard = {0};

    *chain = NULL;
    if (!path || qm_lib->chain_open(path, &options, chain, &unheard) < 0)
        return false;
    if (qm_lib->chain_layer(*chain, qm_lib->chain_depth(*chain) - 1, info, &unheard) == 0)
        return true;
    qm_lib->chain_close(*chain);
    return false;
}

bool
qm_run_backing_name(const char *path, char **name, char **format)
{
    struct qmeld_layer_info info;
    struct qmeld_chain *chain;

    *name = NULL;
    if (format)
        *format = NULL;
    if (!look_into(path, "qcow2", &chain, &info))
        return false;
    if (info.backing_name)
        *name = strdup(info.backing_name);
    if (format && info.backing_format)
        *format = strdup(info.backing_format);
    qm_lib->chain_close(chain);
    return true;
}

/* "base.raw" and "../base.raw" are; "/x", "nbd://..." and "json:{...}" are not. */
static bool
is_relative(const char *name)
{
    const size_t until = strcspn(name, ":/");

    return name[0] != '/' && name[0] != '\0' && name[until] != ':';
}

static int
check_relative(struct qm_run *run, struct qmeld_error *err)
{
    QM_FREE char *name = NULL;
    const char *child;

    if (run->range.top == 0)
        return 0; /* nothing above is told a new name */
    child = run->disk->layers.at[run->range.top - 1].path;
    run->relative = run->request->keep_relative;
    if (!run->local || !qm_run_backing_name(child, &name, NULL) || !name)
        return 0;
    run->relative = is_relative(name);
    if (run->request->keep_relative && !run->relative)
        return qm_fail(err, QMELD_USAGE, qm_in(child),
                       "its backing name is absolute, there is nothing to keep relative: leave out "
                       "--keep-relative");
    if (!run->relative || !qm_backing_names_are_stale(run))
        return 0;
    if (run->request->keep_relative)
        return qm_fail(
            err, QMELD_USAGE, qm_in(child),
            "libvirt would write a wrong relative name after an earlier commit in this run of the "
            "machine: leave out --keep-relative, or start the machine anew before");
    run->relative = false;
    qm_note(&run->report->notes,
            "%s gets an absolute backing name: after an earlier commit in this run of the machine "
            "libvirt would write "
            "a wrong relative one",
            child);
    return 0;
}

static int
refuse_inside(const struct qm_run *run, const char *file, const char *snapshot,
              struct qmeld_error *err)
{
    return qm_fail(err, QMELD_BUSY, qm_in(file ? file : ""),
                   "snapshot \"%s\" is kept inside of it, and reads through to the base, which the "
                   "merge changes: delete that snapshot first (virsh snapshot-delete %s)",
                   snapshot, qm_domain_word(run->domain));
}

/* A snapshot's text that was taken inside of a layer of the range. */
static int
check_text_inside(const struct qm_run *run, const char *text, struct qmeld_error *err)
{
    struct qmeld_error unreadable = {0};
    struct qm_domxml *xml = NULL;
    int rc = 0;

    if (qm_domxml_parse(text, &xml, &unreadable) < 0)
        return 0;
    QM_VEC_EACH (own, &xml->snap_disks) {
        const struct qm_domxml_disk *then = qm_domxml_find(xml, run->disk->target);

        if (rc == 0 && own->internal && strcmp(own->target, run->disk->target) == 0 && then &&
            then->layers.n > 0 && qm_run_is_merged(run, &then->layers.at[0]))
            rc = refuse_inside(run, then->layers.at[0].path, xml->name, err);
    }
    qm_domxml_free(xml);
    return rc;
}

/* What is kept inside of a merged layer reads through to the base.  libvirt tells of what it made, also of files
 * that we may not open; the headers tell of the rest. */
static int
check_inside(const struct qm_run *run, struct qmeld_error *err)
{
    struct qm_texts texts;
    struct qm_fault fault;
    int rc = 0;

    if (qm_texts_get(qm_run_session(run), run->domain->ptr, &texts, &fault) < 0)
        return qm_session_fail(err, &fault, "read the machine's snapshots");
    for (size_t i = 0; rc == 0 && i < texts.snapshots.n; i++)
        rc = check_text_inside(run, texts.snapshots.at[i], err);
    qm_texts_free(&texts);
    for (size_t i = run->range.top; rc == 0 && run->local && i < run->range.base; i++) {
        const struct qm_domxml_source *layer = &run->disk->layers.at[i];
        struct qmeld_layer_info info;
        struct qmeld_chain *chain;

        if (!look_into(layer->path, layer->format, &chain, &info))
            continue;
        if (info.n_snapshots)
            rc = refuse_inside(run, layer->path, info.snapshots[0].name, err);
        qm_lib->chain_close(chain);
    }
    return rc;
}

static void
note_bitmaps(struct qm_run *run)
{
    const struct qm_domxml_source *base = qm_run_base(run);

    if (!base->format || strcmp(base->format, "raw") != 0)
        return;
    for (size_t i = run->range.top; i < run->range.base; i++) {
        const struct qm_domxml_source *layer = &run->disk->layers.at[i];
        struct qmeld_layer_info info;
        struct qmeld_chain *chain;

        if (!look_into(layer->path, layer->format, &chain, &info))
            continue;
        if (info.n_bitmaps)
            qm_note(&run->report->notes,
                    "%s has %zu bitmap%s, which a raw base cannot hold: they are lost, and the "
                    "next backup has to "
                    "be a full one",
                    layer->path, info.n_bitmaps, info.n_bitmaps == 1 ? "" : "s");
        qm_lib->chain_close(chain);
    }
}

/* A block device does not grow, and QEMU finds that out in the middle only. */
static int
check_device(const struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_domxml_source *base = qm_run_base(run),
                                  *top = &run->disk->layers.at[run->range.top];
    struct qmeld_layer_info info;
    struct qmeld_chain *chain;
    uint64_t wanted, room;

    if (!run->ids[run->range.base].block || !base->format || strcmp(base->format, "raw") != 0)
        return 0;
    if (!look_into(top->path, top->format, &chain, &info))
        return 0;
    wanted = info.virtual_size;
    qm_lib->chain_close(chain);
    if (!look_into(base->path, "raw", &chain, &info))
        return 0;
    room = info.file_size;
    qm_lib->chain_close(chain);
    if (wanted <= room)
        return 0;
    return qm_fail(err, QMELD_NOSPACE, qm_in(base->path),
                   "the device has %" PRIu64 " bytes and the merged disk needs %" PRIu64
                   ": enlarge it first",
                   room, wanted);
}

static void
note_space(struct qm_run *run)
{
    const struct qm_domxml_source *base = qm_run_base(run);
    struct statvfs fs;
    uint64_t most = 0, room;

    if (!run->ids[run->range.base].regular || statvfs(base->path, &fs) < 0)
        return;
    for (size_t i = run->range.top; i < run->range.base; i++)
        most += run->ids[i].size;
    room = (uint64_t)fs.f_bavail * fs.f_frsize;
    if (room < most)
        qm_note(&run->report->notes,
                "the file system of %s has %" PRIu64 " bytes left, and up to %" PRIu64
                " may be needed: if it fills up the job fails, and the machine goes on as before",
                base->path, room, most);
}

/* ---- a merge of our own, interrupted while the machine was stopped ---- */

static int
take_unfinished(const struct qmeld_unfinished *merge, void *opaque)
{
    struct qmeld_error *err = opaque;

    if (merge->problem)
        return 0;
    (void)qm_fail(
        err, QMELD_BUSY, qm_in(merge->base),
        "a merge into it was interrupted, and would be gone on with over what QEMU merges: "
        "shut the machine down, and finish it first with `qmeld resume %s`",
        merge->journal);
    return 1;
}

static int
check_unfinished(const struct qm_run *run, struct qmeld_error *err)
{
    const char *active = run->disk->layers.at[0].path;
    struct qmeld_error found = {.code = QMELD_OK}, unheard;

    if (!active || qm_lib->status(active, NULL, take_unfinished, &found, &unheard) == 0 ||
        found.code == QMELD_OK)
        return 0; /* none, or a directory that may not be looked into */
    *err = found;
    return -1;
}

/* What only we could do, and QEMU merges.  Options for how the work is done (threads, cache) may stay in a
 * command that is for both kinds of machines; those that promise something may not. */
static int
check_promises(const struct qm_run *run, struct qmeld_error *err)
{
    const struct qmeld_commit_options *o = &run->request->offline;
    const char *cannot = o->verify ? "--verify" : o->protect ? "--protect" : NULL;

    if (o->bitmaps != QMELD_BITMAPS_MERGE)
        return qm_fail(err, QMELD_USAGE, qm_in(run->request->domain),
                       "of a running machine libvirt merges the bitmaps, or loses them: leave out "
                       "--bitmaps, or stop the machine first");
    if (!cannot)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                   "the machine \"%s\" runs, and QEMU, which then merges, does not know %s: leave "
                   "that out, or stop the machine",
                   run->domain->name, cannot);
}

int
qm_run_preflight(struct qm_run *run, struct qmeld_error *err)
{
    if (check_job(run, err) < 0 || check_disk(run, err) < 0)
        return -1;
    if (run->attached)
        return 0; /* it was all looked at when the job began; nothing can be refused any more */
    if (check_promises(run, err) < 0 || check_inside(run, err) < 0 || check_others(run, err) < 0 ||
        check_relative(run, err) < 0)
        return -1;
    if (!run->local)
        return 0;
    if (check_unfinished(run, err) < 0 || check_folders(run, err) < 0 || check_device(run, err) < 0)
        return -1;
    note_bitmaps(run);
    note_space(run);
    return 0;
}
