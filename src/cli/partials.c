/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "partials.h"

#include "outcome.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- found ---- */

static int
note(const struct qmeld_partial *p, void *opaque)
{
    struct qm_cli_partials *found = opaque;
    char **list;

    if (!p->note) {
        found->n_left++;
        return 0;
    }
    list = reallocarray(found->outs, found->n + 1, sizeof *list);
    if (!list)
        return 1;
    found->outs = list;
    list[found->n] = strdup(p->out);
    return list[found->n] ? (found->n++, 0) : 1;
}

int
qm_cli_partials_find(const char *path, struct qm_cli_partials *out, struct qmeld_error *err)
{
    *out = (struct qm_cli_partials){.outs = NULL};
    return qmeld_partials(path, note, out, err);
}

void
qm_cli_partials_release(struct qm_cli_partials *partials)
{
    for (size_t i = 0; i < partials->n; i++)
        free(partials->outs[i]);
    free(partials->outs);
}

static bool
ends_with(const char *text, const char *end)
{
    const size_t n = strlen(text), m = strlen(end);

    return n >= m && strcmp(text + n - m, end) == 0;
}

bool
qm_cli_partials_own(const char *path)
{
    struct stat st;

    return ends_with(path, ".qmeld-flatten") || ends_with(path, ".qmeld-partial") ||
           stat(path, &st) < 0;
}

/* ---- shown ---- */

struct showing {
    struct json_object *array;
    size_t *n_found, *n_unfinished;
};

static struct json_object *
to_json(const struct qmeld_partial *p)
{
    struct json_object *object = json_object_new_object();

    qm_cli_json_add(object, "work", json_object_new_string("flatten"));
    qm_cli_json_add(object, "output", qm_cli_json_string(p->out));
    if (p->note)
        qm_cli_json_add(object, "note", qm_cli_json_string(p->note));
    if (p->partial)
        qm_cli_json_add(object, "partial", qm_cli_json_string(p->partial));
    qm_cli_json_add_bool(object, "running", p->running);
    if (p->problem)
        qm_cli_json_add(object, "error", qm_cli_json_error(p->problem));
    if (!p->note || p->problem)
        return object;
    if (p->image)
        qm_cli_json_add(object, "image", qm_cli_json_string(p->image));
    if (p->manifest)
        qm_cli_json_add(object, "manifest", qm_cli_json_string(p->manifest));
    qm_cli_json_add_bool(object, "complete", p->complete);
    qm_cli_json_add_u64(object, "done", p->done);
    qm_cli_json_add_u64(object, "size", p->size);
    return object;
}

static void
print_state(const struct qmeld_partial *p)
{
    QM_CLI_FREE char *partial = p->partial ? qm_cli_quote(p->partial) : NULL;

    if (p->complete) {
        puts(
            "  the image is complete and has its name; what belongs to it is still to get its own");
        return;
    }
    if (!p->partial) {
        puts("  what was written is gone; it begins anew");
        return;
    }
    if (p->size > 0)
        printf("  written so far: %s of %s of the disk (%.0f %%)\n", qm_cli_size(p->done).text,
               qm_cli_size(p->size).text, (double)p->done / (double)p->size * 100);
    printf("  %s: INVALID: not all of an image\n", partial);
}

static void
print(const struct qmeld_partial *p)
{
    QM_CLI_FREE char *out = qm_cli_quote(p->out);
    QM_CLI_FREE char *image = qm_cli_quote(p->image ? p->image : "an image");
    QM_CLI_FREE char *word = qm_cli_shell_word(p->note ? p->note : p->partial);

    if (p->problem) {
        QM_CLI_FREE char *what = qm_cli_quote(p->problem->what);

        printf("unfinished: %s: %s\n", out, what);
    } else if (!p->note) {
        QM_CLI_FREE char *partial = qm_cli_quote(p->partial);

        printf("%s: %s: INVALID: a part of what was to become %s; nobody can go on with it\n",
               p->running ? "at work now" : "left over", partial, out);
    } else {
        printf("%s: the flattening of %s to %s\n", p->running ? "at work now" : "unfinished", image,
               out);
        print_state(p);
    }
    if (p->running)
        return;
    if (p->note && !p->problem)
        printf("  to finish it: qmeld resume %s\n", word);
    if (!p->complete)
        printf("  to give it up: qmeld revert %s\n", word);
}

static int
show(const struct qmeld_partial *p, void *opaque)
{
    struct showing *s = opaque;

    ++*s->n_found;
    *s->n_unfinished += p->note != NULL;
    if (s->array)
        json_object_array_add(s->array, to_json(p));
    else
        print(p);
    return 0;
}

int
qm_cli_partials_show(const char *path, struct json_object *array, size_t *n_found,
                     size_t *n_unfinished, struct qmeld_error *err)
{
    struct showing s = {.array = array, .n_found = n_found, .n_unfinished = n_unfinished};

    return qmeld_partials(path, show, &s, err);
}

/* ---- ended ---- */

static void
report_json(const char *out, const struct qmeld_flatten_report *report,
            const struct qmeld_error *err, struct json_object *object)
{
    qm_cli_json_add(object, "work", json_object_new_string("flatten"));
    qm_cli_json_add(object, "filename", qm_cli_json_string(out));
    qm_cli_json_add(object, "result", qm_cli_json_string(qm_cli_result_word(err)));
    if (err)
        qm_cli_json_add(object, "error", qm_cli_json_error(err));
    qm_cli_json_add_bool(object, "resumed", report->resumed);
    qm_cli_json_add_u64(object, "resumed-at", report->resumed_at);
    qm_cli_json_add_u64(object, "bytes-lost", report->bytes_lost);
    qm_cli_json_add(object, "bitmaps",
                    qm_cli_outcome_bitmaps_json(report->bitmaps, report->n_bitmaps));
}

int
qm_cli_partial_finish(struct qm_cli_merging *merging, const char *out, struct json_object *array)
{
    const char *const command[] = {"qmeld", merging->command, out, NULL};
    const struct qmeld_flatten_options how = {.threads = merging->options.threads,
                                              .progress = merging->options.progress,
                                              .opaque = merging->options.opaque,
                                              .secrets = merging->options.secrets,
                                              .command = command};
    QM_CLI_FREE char *shown = qm_cli_quote(out);
    struct qmeld_flatten_report report = {0};
    struct qmeld_error err;
    int rc, code = QM_EXIT_DONE;

    qm_cli_progress_begin(&merging->progress, merging->mode);
    rc = qmeld_flatten_resume(out, &how, &report, &err);
    qm_cli_progress_end(&merging->progress);
    if (rc < 0)
        code = qm_cli_fail(&err);
    else if (!array && merging->output != QM_OUTPUT_JSON && !merging->quiet)
        printf("%s: finished: the image is complete\n", shown);
    if (array || merging->output == QM_OUTPUT_JSON) {
        struct json_object *object = json_object_new_object();

        report_json(out, &report, rc < 0 ? &err : NULL, object);
        if (array)
            json_object_array_add(array, object);
        else
            qm_cli_json_print(object);
    }
    qmeld_flatten_report_free(&report);
    if (code != QM_EXIT_DONE || report.bytes_lost == 0)
        return code;
    fprintf(stderr, "qmeld: %s: %" PRIu64 " bytes are lost, in %" PRIu64 " ranges\n", shown,
            report.bytes_lost, report.ranges_lost);
    return QM_CLI_FLATTEN_LOST;
}

int
qm_cli_partial_abandon(const struct qm_cli_merging *merging, const char *out)
{
    QM_CLI_FREE char *shown = qm_cli_quote(out);
    struct qmeld_error err;

    if (qmeld_flatten_abandon(out, &err) < 0)
        return qm_cli_fail(&err);
    if (!merging->quiet)
        printf("%s: given up: what was written of it is removed\n", shown);
    return QM_EXIT_DONE;
}
