/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "back.h"

#include "qcow2_check.h"

#include <stdio.h>
#include <stdlib.h>

static const struct qm_way_back *
way_of(const struct qm_back *b)
{
    return &qm_journal_intent(b->journal)->back;
}

/* ---- before the merge ---- */

int
qm_back_describe(struct qm_image *target, bool atomic, bool undo, bool bitmaps,
                 struct qm_way_back *out, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(target);

    *out = (struct qm_way_back){.kind = QM_WAY_NONE};
    if (!atomic && !undo)
        return 0;
    out->file_size = target->file->size;
    out->kind = q ? QM_WAY_SWITCH : QM_WAY_KEEP;
    if (!q && atomic)
        return qm_fail(err, QMELD_USAGE, qm_in(target->file->path),
                       "a raw base has no header that one write could switch: use --undo instead "
                       "of --atomic, which keeps what is overwritten");
    if (!q)
        return 0;
    if (q->geo.data_file)
        return qm_fail(err, QMELD_USAGE, qm_in(target->file->path),
                       "its data file is written where it is, so that no header could switch back: "
                       "leave out --atomic and --undo, and copy both files first");
    if (q->hdr.incompatible & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT))
        return qm_fail(err, QMELD_USAGE, qm_in(target->file->path),
                       "it was not closed cleanly, and mending it would change the base at once: "
                       "run `qmeld check --repair=all` on it first");
    if ((bitmaps || q->hdr.has_bitmaps) && qm_header_bitmaps_fit(q, &out->ext, err) < 0)
        return -1;
    if (qm_stage_floor(q, &out->floor, err) < 0)
        return -1;
    return qm_stage_read_sector(q, out->sector, err);
}

/* ---- the staged qcow2 ---- */

static int
note_staged(const struct qm_staged *fields, void *opaque, struct qmeld_error *err)
{
    struct qm_back *b = opaque;
    struct qm_trail trail = qm_journal_trail(b->journal);

    trail.staged = *fields;
    return qm_journal_set_trail(b->journal, &trail, err);
}

/* The journal is a file like any other: what it says of tables is looked at as a header would be. */
static int
check_staged(const struct qm_qcow2 *q, const struct qm_staged *s, struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;
    const uint64_t l1 = (uint64_t)s->l1_entries * sizeof(be64);
    const uint64_t reftable = (uint64_t)s->reftable_clusters << q->geo.cluster_bits;

    if (s->l1_off % cs == 0 && s->reftable_off % cs == 0 && s->bitmap_dir_off % cs == 0 &&
        l1 <= QCOW2_MAX_L1_BYTES && reftable > 0 && reftable <= QCOW2_MAX_REFTABLE_BYTES &&
        qm_inside(s->l1_off, l1, QM_MAX_OFF) && qm_inside(s->reftable_off, reftable, QM_MAX_OFF) &&
        s->bitmap_dir_len <= QCOW2_MAX_BITMAP_DIR && s->n_bitmaps <= QCOW2_MAX_BITMAPS &&
        (s->n_bitmaps == 0) == (s->bitmap_dir_off == 0) &&
        qm_inside(s->bitmap_dir_off, s->bitmap_dir_len, QM_MAX_OFF) &&
        qcow2_l1_needed(&q->geo, s->size) <= s->l1_entries)
        return 0;
    return qm_fail(err, QMELD_CORRUPT, qm_in(q->img.file->path),
                   "the journal of its unfinished merge names tables that cannot be: the active "
                   "layer reads as before; remove the journal, and run `qmeld check` on the base");
}

int
qm_back_adopt(const struct qm_back *b, struct qm_image *img, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(img);
    struct qm_trail trail;

    if (!b->journal) /* nothing is written */
        return 0;
    trail = qm_journal_trail(b->journal);
    if (way_of(b)->kind != QM_WAY_SWITCH || trail.staged.l1_off == 0)
        return 0;
    if (!q || check_staged(q, &trail.staged, err) < 0)
        return -1;
    qm_stage_adopt(q, &trail.staged);
    return 0;
}

static int
enter_stage(struct qm_back *b, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(b->target);

    b->stage = (struct qm_stage){.floor = qm_align_up(way_of(b)->floor, q->geo.cluster_size),
                                 .store = note_staged,
                                 .opaque = b};
    q->stage = &b->stage;
    return qm_back_adopt(b, b->target, err);
}

/* ---- the kept bytes ---- */

/* Beside the journal; malloc'd. */
static char *
kept_path(const struct qm_back *b)
{
    char *path;

    return asprintf(&path, "%s-undo", qm_journal_file(b->journal)) < 0 ? NULL : path;
}

static int
open_kept(struct qm_back *b, const char *path, struct qmeld_error *err)
{
    const struct qm_kept_config config = {.plan = b->plan,
                                          .target = b->target->file,
                                          .path = path,
                                          .file_size = way_of(b)->file_size,
                                          .progress = b->progress,
                                          .opaque = b->opaque,
                                          .kept = qm_journal_trail(b->journal).kept};

    return qm_kept_open(&config, &b->kept, err);
}

int
qm_back_ahead(struct qm_back *b, guest_off end, struct qmeld_error *err)
{
    struct qm_trail trail;
    guest_off kept;

    if (!b->kept)
        return 0;
    if (qm_kept_ahead(b->kept, end, &kept, err) < 0)
        return -1;
    trail = qm_journal_trail(b->journal);
    if (kept.g <= trail.kept.g)
        return 0;
    trail.kept = kept;
    return qm_journal_set_trail(b->journal, &trail, err);
}

/* ---- the steps ---- */

int
qm_back_enter(struct qm_back *b, struct qmeld_error *err)
{
    QM_FREE char *path = NULL;

    if (way_of(b)->kind == QM_WAY_SWITCH)
        return enter_stage(b, err);
    if (way_of(b)->kind == QM_WAY_NONE)
        return 0;
    path = kept_path(b);
    return path ? open_kept(b, path, err) : qm_fail_nomem(err, "a path");
}

int
qm_back_switch_over(struct qm_back *b, struct qmeld_error *err)
{
    const struct qm_trail trail = qm_journal_trail(b->journal);

    /* nothing staged: the base held all of it before */
    if (way_of(b)->kind != QM_WAY_SWITCH || trail.staged.l1_off == 0)
        return 0;
    if (check_staged(qm_qcow2_of(b->target), &trail.staged, err) < 0 ||
        qm_file_make_writable(b->target->file, err) < 0)
        return -1;
    return qm_stage_switch(qm_qcow2_of(b->target), &trail.staged, err);
}

int
qm_back_give_up(struct qm_back *b, struct qmeld_error *err)
{
    QM_FREE char *path = NULL;

    switch (way_of(b)->kind) {
    case QM_WAY_NONE:
        return 0;
    case QM_WAY_SWITCH:
        /* somebody may have written to it since: what is free is only known from true refcounts */
        if (qm_file_make_writable(b->target->file, err) < 0 ||
            qm_qcow2_make_safe_to_write(qm_qcow2_of(b->target), err) < 0)
            return -1;
        return qm_stage_final(qm_qcow2_of(b->target), way_of(b)->floor, err);
    case QM_WAY_KEEP:
        path = kept_path(b);
        return path ? qm_kept_remove(path, err) : qm_fail_nomem(err, "a path");
    }
    return 0;
}

int
qm_back_restore(struct qm_back *b, struct qmeld_error *err)
{
    const struct qm_way_back *way = way_of(b);
    QM_FREE char *path = NULL;
    struct qm_trail trail;

    if (qm_file_make_writable(b->target->file, err) < 0)
        return -1;
    if (way->kind == QM_WAY_SWITCH)
        return qm_stage_back(qm_qcow2_of(b->target), way->sector, &way->ext, way->file_size, err);
    path = kept_path(b);
    if (!path)
        return qm_fail_nomem(err, "a path");
    if (qm_journal_trail(b->journal).kept.g > 0 && /* otherwise nothing was overwritten */
        (open_kept(b, path, err) < 0 || qm_kept_restore(b->kept, err) < 0))
        return -1;
    trail = qm_journal_trail(b->journal);
    trail.kept = qm_guest(0); /* whoever repeats this finds nothing to put back */
    return qm_journal_set_trail(b->journal, &trail, err) < 0 ? -1 : qm_kept_remove(path, err);
}

void
qm_back_release(struct qm_back *b)
{
    qm_kept_close(b->kept);
    b->kept = NULL;
}
