/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage.c - from a recipe to a chain, and the merge of it.
 */
#include "stage_int.h"

#include "forge_recipe.h"
#include "promote.h"
#include "share.h"
#include "torn.h"
#include "transfer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct qmeld_secret secrets[] = {{.data = "one", .len = 3}, {.data = "two", .len = 3}};
const struct qmeld_secrets stage_secrets = {.list = secrets, .n = 2};
const struct qmeld_commit_options stage_resuming = {.secrets = &stage_secrets};

static void
die(const char *name, const struct qmeld_error *err)
{
    fprintf(stderr, "%s: %s: %s\n", name, err->file, err->what);
    exit(2);
}

/* ---- the recipe -------------------------------------------------------------------------------
 */

static size_t
layer_named(const struct stage *s, const char *file)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->files[i], file))
            return i;
    fprintf(stderr, "%s: there is no layer %s\n", s->name, file);
    exit(2);
}

static void
set_option(struct stage *s, const char *key, const char *value, struct qm_transfer_limits *limits)
{
    uint64_t v = 0;

    if (!strcmp(key, "base")) {
        s->base = layer_named(s, value);
        s->opts.base = s->files[s->base];
    } else if (!strcmp(key, "top")) {
        s->top = layer_named(s, value);
        s->opts.top = s->files[s->top];
    } else if (!strcmp(key, "protect") && !strcmp(value, "own")) {
        s->opts.protect = true;
    } else if (!strcmp(key, "protect")) {
        s->beside = s->opts.protect = true;
        s->sibling = layer_named(s, value);
    } else if (!strcmp(key, "fold") && qm_forge_number(value, 0, &v)) {
        s->fold = true;
        s->keep = (size_t)v;
        s->top = s->keep;
    } else if (!strcmp(key, "rebase")) {
        s->rebase = true;
        s->onto = strcmp(value, "none") != 0 ? s->files[layer_named(s, value)] : NULL;
        s->base = s->top = 0;
    } else if (!strcmp(key, "overlays")) {
        s->opts.overlays = !strcmp(value, "empty")        ? QMELD_OVERLAYS_EMPTY
                           : !strcmp(value, "delete")     ? QMELD_OVERLAYS_DELETE
                           : !strcmp(value, "quarantine") ? QMELD_OVERLAYS_QUARANTINE
                                                          : QMELD_OVERLAYS_KEEP;
    } else if (!strcmp(key, "direction")) {
        s->opts.direction = !strcmp(value, "auto") ? QMELD_DIRECTION_AUTO : QMELD_DIRECTION_UP;
    } else if (!strcmp(key, "bitmaps")) {
        s->opts.bitmaps = !strcmp(value, "keep")   ? QMELD_BITMAPS_KEEP
                          : !strcmp(value, "drop") ? QMELD_BITMAPS_DROP
                                                   : QMELD_BITMAPS_MERGE;
    } else if (!strcmp(key, "backing_format")) {
        s->opts.backing_format = !strcmp(value, "raw") ? "raw" : "qcow2";
    } else if (!strcmp(key, "atomic")) {
        s->opts.atomic = true;
    } else if (!strcmp(key, "undo")) {
        s->opts.undo = true;
    } else if (!strcmp(key, "verify")) {
        s->opts.verify = true;
    } else if (!strcmp(key, "skip-equal")) {
        s->opts.skip_equal = true;
    } else if (!strcmp(key, "detect-zeroes")) {
        s->opts.detect_zeroes = true;
    } else if (!strcmp(key, "direct")) {
        s->opts.direct = true;
    } else if (!strcmp(key, "reclaim")) {
        s->opts.reclaim = true;
    } else if (!strcmp(key, "decompress")) {
        s->opts.decompress = true;
    } else if (!strcmp(key, "dirty")) {
        s->dirty_base = true;
    } else if (!strcmp(key, "batch") && qm_forge_number(value, 0, &v)) {
        limits->batch = v;
    } else if (!strcmp(key, "share") && qm_forge_number(value, 0, &v)) {
        qm_share_pretended_block = v;
    } else if (!strcmp(key, "weight") && qm_forge_number(value, 0, &v)) {
        limits->batch_weight = v;
    } else if (!strcmp(key, "sec") && qm_forge_number(value, 0, &v)) {
        limits->batch_sec = (unsigned)v;
    } else {
        fprintf(stderr, "%s: commit line: %s=%s\n", s->name, key, value);
        exit(2);
    }
}

static void
set_options(struct stage *s, const char *line)
{
    struct qm_transfer_limits limits = {
        .batch = 8192, .batch_weight = 8192, .batch_sec = 1000, .step = 512};
    char words[1024], *save = NULL;

    qm_share_pretended_block = 0;
    snprintf(words, sizeof words, "%.*s", (int)strcspn(line, "\n"), line);
    for (char *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(w, '=');

        if (!equals) {
            fprintf(stderr, "%s: commit line: %s\n", s->name, w);
            exit(2);
        }
        *equals = '\0';
        set_option(s, w, equals + 1, &limits);
    }
    limits.batch_shared = 2 * limits.batch;
    while (limits.step < limits.batch)
        limits.step *= 2;
    qm_transfer_limits = limits;
}

const char *
stage_aside(const struct stage *s, size_t layer)
{
    return s->files[s->n + 1 + (layer - s->top)];
}

/* Their new names, as this directory has nothing that could be in the way. */
static void
name_aside(struct stage *s)
{
    if (s->opts.overlays != QMELD_OVERLAYS_QUARANTINE)
        return;
    for (size_t i = s->top; i < s->base; i++) {
        char *name;

        if (asprintf(&name, "%s.merged", s->files[i]) < 0)
            abort();
        s->files[s->n_files++] = name;
    }
}

static void
add_data_files(struct stage *s)
{
    s->first_data = s->n_files;
    for (size_t i = 0; i < s->n; i++) {
        const char *name = qm_forge_data_file(s->forge, i);

        if (!name)
            continue;
        s->files[s->n_files] = strdup(name);
        if (!s->files[s->n_files++])
            abort();
        s->n_data++;
    }
}

bool
stage_open(struct stage *s, const char *name, const char *recipe, size_t nth)
{
    static const char mark[] = "# commit";
    const char *line = recipe;
    struct qmeld_error err = {0};

    for (;;) {
        line = strstr(line, mark);
        if (!line)
            return false;
        line += strlen(mark);
        if (nth-- == 0)
            break;
    }
    memset(s, 0, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s:%.*s", name, (int)strcspn(line, "\n"), line);
    if (qm_forge_parse(recipe, name, &s->forge, &err) < 0)
        die(name, &err);
    s->n = qm_forge_n_layers(s->forge);
    s->base = s->n - 1;
    s->n_files = s->n + 1;
    s->files = calloc(3 * s->n + 2, sizeof *s->files);
    s->ends = calloc(s->n, sizeof *s->ends);
    s->seen = calloc(s->n, sizeof *s->seen);
    if (!s->files || !s->ends || !s->seen)
        abort();
    for (size_t i = 0; i < s->n; i++) {
        s->files[i] = qm_forge_file(s->forge, i);
        s->encrypted |= s->forge->layers.at[i].luks || s->forge->layers.at[i].aes;
    }
    s->opts.threads = 1;
    s->opts.secrets = &stage_secrets;
    set_options(s, line);
    s->opts.no_scan = !s->opts.protect; /* what states before this one have left is nobody's */
    snprintf(s->journal, sizeof s->journal, ".%s.qmeld", s->files[s->base]);
    s->files[s->n] = s->journal;
    name_aside(s);
    add_data_files(s);
    if (stage_has_way_back(s)) {
        snprintf(s->undo, sizeof s->undo, "%s-undo", s->journal);
        s->files[s->n_files++] = s->undo;
    }
    qm_promote_held_names = 0;
    if (s->opts.direction != QMELD_DIRECTION_DOWN) {
        snprintf(s->moment, sizeof s->moment, "%s-new", s->journal);
        s->files[s->n_files++] = s->moment;
        qm_promote_held_names = 1; /* stage_files_hold */
    }
    return true;
}

void
stage_close(struct stage *s)
{
    qm_forge_free(s->forge);
    for (size_t i = s->n + 1; i < s->n_files; i++)
        if (s->files[i] != s->undo && s->files[i] != s->moment)
            free((void *)s->files[i]);
    for (size_t i = 0; s->aside && i < s->base - s->top; i++)
        free(s->aside[i].at);
    free(s->aside);
    free(s->ends);
    free(s->seen);
    free(s->files);
    free(s->active_view.at);
    free(s->top_view.at);
    free(s->sibling_view.at);
    free(s->guarded.at);
    free(s->done_view.at);
    free(s->snapshots.at);
    free(s->base_view.at);
    free(s->base_file.at);
    stage_bitmaps_release(&s->old_bitmaps);
    stage_bitmaps_release(&s->done_bitmaps);
}

void
stage_write(struct stage *s)
{
    struct qmeld_error err = {0};

    if (qm_forge_write(s->forge, ".", &err) < 0)
        die(s->name, &err);
}

struct stage_bytes
stage_expected(struct stage *s, size_t layer)
{
    struct qmeld_error err = {0};
    struct stage_bytes b;

    if (qm_forge_expect(s->forge, layer, "expected.view", &err) < 0)
        die(s->name, &err);
    b.at = qm_torn_load("expected.view", &b.len);
    unlink("expected.view");
    return b;
}

/* ---- the merge ---- */

bool
stage_has_way_back(const struct stage *s)
{
    return s->opts.atomic || s->opts.undo;
}

/* Ends what a call began: a merge that is held is made final. */
static int
to_the_end(const struct stage *s, int rc, struct qmeld_commit_report *report, bool *out_resumed,
           struct qmeld_error *err)
{
    const bool held = report->held;

    if (out_resumed) /* one that was held before needs nothing but the end */
        *out_resumed =
            report->resumed || (held && report->already_merged && report->n_bitmaps == 0);
    qmeld_commit_report_free(report);
    if (rc < 0 || !held)
        return rc;
    if (qmeld_finalize(s->journal, NULL, NULL, err) == 0)
        return 0;
    if (err->disk == QMELD_DISK_OLD) /* what finalize found; both calls together are one here */
        err->disk = QMELD_DISK_OPEN;
    return -1;
}

static int
rebase(const struct stage *s, bool *out_resumed, struct qmeld_error *err)
{
    struct qmeld_rebase_options opts = {
        .backing = s->onto, .secrets = &stage_secrets, .verify = s->opts.verify, .threads = 1};
    struct qmeld_rebase_report report;
    int rc;

    for (size_t i = 0; s->onto && i < s->n; i++)
        if (!strcmp(s->files[i], s->onto))
            opts.backing_format = qm_forge_format(s->forge, i);
    rc = qmeld_rebase(s->files[0], &opts, &report, err);
    if (out_resumed)
        *out_resumed = report.resumed;
    qmeld_rebase_report_free(&report);
    return rc;
}

int
stage_commit(const struct stage *s, bool *out_resumed, struct qmeld_error *err)
{
    struct qmeld_commit_report report;
    int rc;

    if (s->rebase)
        return rebase(s, out_resumed, err);
    rc = s->fold ? qmeld_fold(s->files[0], s->keep, &s->opts, &report, err)
                 : qmeld_commit(s->files[0], &s->opts, &report, err);
    return to_the_end(s, rc, &report, out_resumed, err);
}

int
stage_resume(const struct stage *s, bool *out_resumed, struct qmeld_error *err)
{
    struct qmeld_commit_report report;
    const int rc = qmeld_resume(s->journal, &stage_resuming, &report, err);

    return to_the_end(s, rc, &report, out_resumed, err);
}
