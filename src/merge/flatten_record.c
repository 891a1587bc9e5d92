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
    QM_FREE const struct qm_file **files = calloc(f->chain->n, sizeof *files);
    const struct qm_evidence_config config = {.files = files,
                                              .n = f->chain->n,
                                              .threads = f->opts->threads,
                                              .progress = f->opts->progress,
                                              .opaque = f->opts->opaque};

    if (!files)
        return qm_fail_nomem(err, "digests");
    for (size_t i = 0; i < f->chain->n; i++)
        files[i] = f->chain->layers[i].img->file;
    return qm_evidence_begin(&config, &f->evidence, err);
}

static int
refuse_names(const struct qm_flatten *f, struct qmeld_error *err)
{
    struct stat st;

    if (qm_output_not_an_input(f->opts->manifest, f->chain, err) < 0)
        return -1;
    if (f->output.file && (strcmp(f->opts->manifest, f->output.path) == 0 ||
                           (stat(f->opts->manifest, &st) == 0 && f->output.old &&
                            st.st_dev == f->output.old->dev && st.st_ino == f->output.old->ino)))
        return qm_fail(err, QMELD_USAGE, qm_in(f->opts->manifest),
                       "image and manifest cannot be the same file");
    return 0;
}

int
qm_flatten_record_begin(struct qm_flatten *f, struct qmeld_error *err)
{
    struct qm_output_config config = {.path = f->opts->manifest,
                                      .chain = f->chain,
                                      .unit = 1,
                                      .force = f->opts->force,
                                      .restart = true};
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

    if (!f->opts->manifest)
        return 0;
    if (refuse_names(f, err) < 0 || qm_output_begin(&f->record, &config, err) < 0)
        return -1;
    if (f->record.file->blockdev)
        return qm_fail(err, QMELD_USAGE, qm_in(f->opts->manifest),
                       "a manifest is a file, not a block device");
    if (qm_manifest_begin(f->record.file, &head, &f->manifest, err) < 0)
        return -1;
    return begin_digests(f, err);
}

int
qm_flatten_record_end(struct qm_flatten *f, struct qmeld_error *err)
{
    QM_FREE struct qm_sha256 *inputs = NULL;
    struct qm_sha256 view, root;

    if (!f->manifest)
        return 0;
    inputs = calloc(f->chain->n, sizeof *inputs);
    if (!inputs)
        return qm_fail_nomem(err, "digests");
    if (qm_evidence_end(f->evidence, inputs, err) < 0 ||
        qm_manifest_end(f->manifest, inputs, &view, &root, err) < 0)
        return -1;
    memcpy(f->report->sha256, qm_sha256_hex(&view).text, sizeof f->report->sha256);
    memcpy(f->report->merkle_root, qm_sha256_hex(&root).text, sizeof f->report->merkle_root);
    return 0;
}

/* Where an earlier run gave the image its name and no more, the manifest is still under its other one. */
int
qm_flatten_record_name(struct qm_flatten *f, struct qmeld_error *err)
{
    if (!f->opts->manifest)
        return 0;
    if (f->manifest)
        return qm_output_finish(&f->record, err);
    return qm_output_adopt(f->opts->manifest, err);
}

void
qm_flatten_record_close(struct qm_flatten *f, bool failed)
{
    struct qmeld_error unheard = {.code =
                                      QMELD_CORRUPT}; /* nobody goes on with half of a manifest */

    qm_evidence_free(f->evidence);
    qm_manifest_free(f->manifest);
    if (failed && !f->output.complete)
        qm_output_fail(&f->record, &unheard);
    qm_output_close(&f->record);
}
