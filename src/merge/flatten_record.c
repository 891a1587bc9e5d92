/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten_record.c - the manifest of a flatten, from its file to its name.
 *
 * Why.  The manifest is whole, or has no name, as the image; and the image has its name first, so that no manifest
 * speaks of what is not there.  Its digests are of the whole disk, so a run that goes on reads it from its beginning,
 * and writes from where the image ends.
 */
#include "flatten_int.h"

#include <string.h>
#include <sys/stat.h>

static int
begin_digests(struct qm_flatten *f, struct qmeld_error *err)
{
    QM_FREE const struct qm_file **files = calloc(2 * f->chain->n, sizeof *files);
    const struct qm_evidence_config config = {.files = files,
                                              .n = qm_chain_files(f->chain, files),
                                              .go_on = f->opts->salvage,
                                              .threads = f->opts->threads,
                                              .progress = f->opts->progress,
                                              .opaque = f->opts->opaque};

    if (!files)
        return qm_fail_nomem(err, "digests");
    return qm_evidence_begin(&config, &f->evidence, err);
}

/* Neither an input, nor the image. */
static int
refuse_name(const struct qm_flatten *f, const char *path, struct qmeld_error *err)
{
    struct stat st;

    if (qm_output_not_an_input(path, f->chain, err) < 0)
        return -1;
    if (f->output.file && (strcmp(path, f->output.path) == 0 ||
                           (stat(path, &st) == 0 && f->output.old &&
                            st.st_dev == f->output.old->dev && st.st_ino == f->output.old->ino)))
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "this is the name of the image: choose another");
    return 0;
}

/* A file of ours beside the image. */
static int
begin_file(struct qm_flatten *f, const char *path, struct qm_output *out, struct qmeld_error *err)
{
    const struct qm_output_config config = {
        .path = path, .chain = f->chain, .unit = 1, .force = f->opts->force, .restart = true};

    if (refuse_name(f, path, err) < 0 || qm_output_begin(out, &config, err) < 0)
        return -1;
    if (!out->file->blockdev)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(path), "this is a file's place, not a block device's");
}

static int
begin_losses(struct qm_flatten *f, struct qmeld_error *err)
{
    if (!f->opts->salvage)
        return 0;
    if (f->opts->salvage_map && begin_file(f, f->opts->salvage_map, &f->map, err) < 0)
        return -1;
    return qm_losses_begin(f->map.file, &f->losses, err);
}

int
qm_flatten_record_begin(struct qm_flatten *f, struct qmeld_error *err)
{
    struct qm_manifest_head head = {.chain = f->chain,
                                    .image = f->path,
                                    .format = f->chain->layers[f->chain->n - 1].img->ops->format,
                                    .backing_format = f->opts->backing_format,
                                    .snapshot = f->opts->snapshot,
                                    .out = f->output.path,
                                    .out_format = f->is_qcow2 ? "qcow2" : "raw",
                                    .command = f->opts->command,
                                    .size = f->size,
                                    .leaf = f->leaf};

    if (begin_losses(f, err) < 0)
        return -1;
    if (!f->opts->manifest)
        return 0;
    if (begin_file(f, f->opts->manifest, &f->record, err) < 0)
        return -1;
    if (qm_manifest_begin(f->record.file, &head, &f->manifest, err) < 0)
        return -1;
    return begin_digests(f, err);
}

int
qm_flatten_record_end(struct qm_flatten *f, struct qmeld_error *err)
{
    QM_FREE struct qm_sha256 *inputs = NULL;
    QM_FREE bool *known = NULL;
    struct qm_sha256 view, root;

    if (f->losses &&
        qm_losses_end(f->losses, &f->report->bytes_lost, &f->report->ranges_lost, err) < 0)
        return -1;
    if (!f->manifest)
        return 0;
    inputs = calloc(2 * f->chain->n, sizeof *inputs);
    known = calloc(2 * f->chain->n, sizeof *known);
    if (!inputs || !known)
        return qm_fail_nomem(err, "digests");
    if (qm_evidence_end(f->evidence, inputs, known, err) < 0 ||
        qm_manifest_end(f->manifest, inputs, known, &view, &root, err) < 0)
        return -1;
    memcpy(f->report->sha256, qm_sha256_hex(&view).text, sizeof f->report->sha256);
    memcpy(f->report->merkle_root, qm_sha256_hex(&root).text, sizeof f->report->merkle_root);
    return 0;
}

/* Where an earlier run gave the image its name and no more, the manifest is still under its other one. */
static int
name_file(const char *path, struct qm_output *out, struct qmeld_error *err)
{
    if (!path)
        return 0;
    return out->file ? qm_output_finish(out, err) : qm_output_adopt(path, err);
}

int
qm_flatten_record_name(struct qm_flatten *f, struct qmeld_error *err)
{
    return name_file(f->opts->salvage_map, &f->map, err) < 0
               ? -1
               : name_file(f->opts->manifest, &f->record, err);
}

void
qm_flatten_record_close(struct qm_flatten *f, bool failed)
{
    struct qmeld_error unheard = {.code =
                                      QMELD_CORRUPT}; /* nobody goes on with half of a manifest */

    qm_evidence_free(f->evidence);
    qm_manifest_free(f->manifest);
    qm_losses_free(f->losses);
    if (failed && !f->output.complete) {
        qm_output_fail(&f->record, &unheard);
        qm_output_fail(&f->map, &unheard);
    }
    qm_output_close(&f->record);
    qm_output_close(&f->map);
}
