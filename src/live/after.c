/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * after.c - what follows a merge under a running machine.
 *
 * The order is that of what must not break: first what the next start of the machine needs (the header of
 * the layer above, the kept definition), then what is only in the way.  A merged file is removed by us, never
 * by libvirt's DELETE, and only when nothing that libvirt knows of names it any more: libvirt removes it without
 * a look at the kept definition, snapshots or other machines, and says nothing if it fails.
 */
#include "run.h"

#include "backing.h"
#include "calls.h"
#include "cleanup.h"
#include "defs.h"
#include "io.h"
#include "leftover.h"
#include "scan.h"
#include "texts.h"

#include <stdio.h>
#include <string.h>

bool
qm_run_is_merged(const struct qm_run *run, const struct qm_domxml_source *source)
{
    for (size_t i = run->range.top; i < run->range.base; i++)
        if (qm_range_same(&run->disk->layers.at[i], source, run->local))
            return true;
    return false;
}

/* ---- the kept definition ---- */

static enum qm_layer_role
role_of(const struct qm_domxml_source *source, void *opaque)
{
    const struct qm_run *run = opaque;

    if (qm_run_is_merged(run, source))
        return QM_LAYER_MERGED;
    return qm_range_same(qm_run_base(run), source, run->local) ? QM_LAYER_BASE : QM_LAYER_OTHER;
}

static int
half_done(struct qmeld_error *err)
{
    qm_err_disk(err, QMELD_DISK_NEW);
    return -1;
}

/* libvirt does it by itself if the kept definition's disk is the one that runs; else nobody does. */
static int
settle_definition(struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_domxml_source *base = qm_run_base(run);
    const struct qm_domxml_edit edit = {
        .target = run->disk->target,
        .role = role_of,
        .opaque = run,
        .base = base->path,
        .base_format = base->format ? base->format : "raw",
        .base_blockdev = base->type == QM_SOURCE_BLOCK,
    };
    QM_FREE char *edited = NULL;
    struct qm_texts texts;
    struct qm_fault fault;
    int result;

    if (qm_texts_get(qm_run_session(run), run->domain->ptr, &texts, &fault) < 0) {
        if (fault.code == VIR_ERR_NO_DOMAIN) /* a transient one, which has stopped since */
            return 0;
        (void)qm_session_fail(err, &fault, "read the kept definition, after the merge");
        return half_done(err);
    }
    if (!texts.persistent || !base->path) {
        if (texts.persistent)
            qm_note(&run->report->notes,
                    "the base has no path: look whether the kept definition of %s is right",
                    run->disk->target);
        qm_texts_free(&texts);
        return 0;
    }
    result = qm_domxml_edit_disk(texts.persistent, &edit, &edited, err);
    qm_texts_free(&texts);
    if (result < 0)
        /* it may lack the disk, which was plugged in for this run only */
        return err->code == QMELD_USAGE ? (memset(err, 0, sizeof *err), 0) : half_done(err);
    if (!edited)
        return 0;
    if (qm_calls_update(qm_run_session(run), run->domain->ptr, edited, VIR_DOMAIN_AFFECT_CONFIG,
                        &fault) < 0) {
        (void)qm_session_fail(err, &fault,
                              "put the machine's kept definition right, after the merge");
        return half_done(err);
    }
    qm_note(&run->report->notes, "the kept definition of %s named merged layers, and was put right",
            run->disk->target);
    return 0;
}

/* ---- merged files ---- */

struct needed {
    const struct qm_run *run;
    char **why; /* for each file; NULL: nobody names it */
};

static int
take_mention(const struct qm_scan_mention *mention, void *opaque)
{
    struct needed *needed = opaque;
    char **why = &needed->why[mention->file];

    if (*why)
        return 0;
    if (asprintf(why, "domain \"%s\" %s%s%s%s%s", mention->domain,
                 qm_scan_where_name(mention->where), mention->head ? " " : "",
                 mention->head ? mention->head : "", mention->snapshot ? " " : "",
                 mention->snapshot ? mention->snapshot : "") < 0)
        *why = NULL;
    return 0;
}

/* A pool goes on listing a file that it was not told of. */
static void
refresh_pool(struct qm_run *run, const char *path)
{
    QM_FREE char *folder = strndup(path, (size_t)(strrchr(path, '/') - path));
    struct qm_fault fault;
    bool found;

    if (folder && qm_defs_refresh_pool(qm_run_session(run), folder, &found, &fault) < 0)
        qm_note(&run->report->notes, "the storage pool of %s could not be refreshed: %s", folder,
                fault.what);
}

static void
remove_file(struct qm_run *run, size_t layer, const char *why, struct qm_live_file *out)
{
    const struct qm_domxml_source *source = &run->disk->layers.at[layer];
    const struct qm_file_id now = qm_file_id(source->path);
    struct qm_live_notes *notes = &run->report->notes;
    QM_FREE char *data = now.regular ? qm_data_file_of(source->path, source->format) : NULL;
    struct qmeld_error err = {0};

    if (why)
        qm_note(notes, "%s stays: %s", out->path, why);
    else if (!run->local || !source->path || !now.regular)
        qm_note(notes, "%s stays: it is no file of this machine", out->path);
    else if (!qm_file_id_same(&now, &run->ids[layer]))
        qm_note(notes, "%s stays: it is another file now than when the merge began", out->path);
    else if (data)
        qm_note(notes, QM_NOTE_DATA_FILE, out->path, data);
    else if (qm_unlink(source->path, &err) < 0 || qm_sync_dir_of(source->path, &err) < 0)
        qm_note(notes, "%s stays: %s", out->path, err.what);
    else {
        out->removed = true;
        refresh_pool(run, source->path);
    }
}

static int
remove_files(struct qm_run *run, struct qmeld_error *err)
{
    const size_t n = run->range.base - run->range.top;
    QM_FREE const struct qm_domxml_source **files = calloc(n, sizeof(*files));
    QM_FREE char **why = calloc(n, sizeof *why);
    struct needed needed = {.run = run, .why = why};
    struct qm_scan scan = {
        .session = qm_run_session(run),
        .files = files,
        .n_files = n,
        .fn = take_mention,
        .opaque = &needed,
        .notes = &run->report->notes,
    };
    int result;

    if (!files || !why)
        return qm_fail_nomem(err, "looking for who needs the merged files");
    for (size_t i = 0; i < n; i++)
        files[i] = &run->disk->layers.at[run->range.top + i];
    result = qm_scan_mentions(&scan, err);
    for (size_t i = 0; i < n; i++) {
        struct qm_live_file *file = &run->report->files[n - 1 - i];

        if (result == 0)
            remove_file(run, run->range.top + i,
                        why[i]            ? why[i]
                        : scan.incomplete ? "not everybody who may need it could be asked"
                                          : NULL,
                        file);
        free(why[i]);
    }
    return result;
}

/* Lowest first, as the report wants them. */
static int
list_files(struct qm_run *run, struct qmeld_error *err)
{
    struct qm_live_report *report = run->report;

    report->files = calloc(run->range.base - run->range.top, sizeof *report->files);
    for (size_t i = run->range.base; report->files && i-- > run->range.top;) {
        const struct qm_domxml_source *layer = &run->disk->layers.at[i];
        char *name = layer->path ? strdup(layer->path) : qm_domxml_source_text(layer);

        if (!name)
            return qm_fail_nomem(err, "listing the merged files");
        report->files[report->n_files++].path = name;
    }
    return report->files ? 0 : qm_fail_nomem(err, "listing the merged files");
}

/* ---- snapshots ---- */

/* libvirt leaves them as they are, and they speak of files that are worth nothing by now. */
static void
note_snapshots(struct qm_run *run)
{
    struct qm_texts texts;
    struct qm_fault unheard;

    if (qm_texts_get(qm_run_session(run), run->domain->ptr, &texts, &unheard) < 0)
        return;
    for (size_t i = 0; i < texts.snapshots.n; i++) {
        struct qmeld_error err = {0};
        struct qm_domxml *xml = NULL;

        if (qm_domxml_parse(texts.snapshots.at[i], &xml, &err) < 0)
            continue;
        QM_VEC_EACH (disk, &xml->snap_disks)
            if (disk->external && qm_run_is_merged(run, &disk->source))
                qm_note(&run->report->notes,
                        "snapshot %s still tells of %s, which was merged: virsh snapshot-delete %s "
                        "%s --metadata "
                        "forgets it",
                        xml->name, disk->source.path ? disk->source.path : "a layer",
                        qm_domain_word(run->domain), xml->name);
        qm_domxml_free(xml);
    }
    qm_texts_free(&texts);
}

/* What stays is no reason to refuse the next merge (leftover.h). */
static void
mark_leftovers(const struct qm_run *run)
{
    for (size_t i = run->range.top; run->local && i < run->range.base; i++) {
        const struct qm_file_id now = qm_file_id(run->disk->layers.at[i].path);

        if (now.regular && qm_file_id_same(&now, &run->ids[i]))
            qm_leftover_mark(run->disk->layers.at[i].path);
    }
}

int
qm_run_settle(struct qm_run *run, struct qmeld_error *err)
{
    if (list_files(run, err) < 0)
        return half_done(err);
    if (qm_backing_check(run, err) < 0 || settle_definition(run, err) < 0)
        return -1;
    if (!run->request->settles_snapshots)
        note_snapshots(run);
    if (run->request->remove && remove_files(run, err) < 0)
        return half_done(err);
    mark_leftovers(run);
    return 0;
}
