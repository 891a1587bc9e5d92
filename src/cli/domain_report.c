/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "domain_report.h"

#include "outcome.h"

#include <json-c/json.h>
#include <string.h>

bool
qm_cli_parse_managed_save(const char *command, const char *text, bool *out_update)
{
    *out_update = strcmp(text, "update") == 0;
    if (*out_update || strcmp(text, "refuse") == 0)
        return true;
    qm_cli_usage(command, "--managed-save is refuse or update, not \"%s\"", text);
    return false;
}

static const char *
word_of(enum qm_live_end end)
{
    static const char *const words[] = {
        [QM_LIVE_NOTHING] = "nothing", [QM_LIVE_STARTED] = "started", [QM_LIVE_MERGED] = "merged",
        [QM_LIVE_READY] = "ready",     [QM_LIVE_PIVOTED] = "pivoted", [QM_LIVE_KEPT] = "kept",
    };

    return words[end];
}

static void
print_notes(const struct qm_live_notes *notes)
{
    for (size_t i = 0; i < notes->n; i++) {
        QM_CLI_FREE char *note = qm_cli_quote(notes->at[i]);

        fprintf(stderr, "qmeld: note: %s\n", note);
    }
}

static void
print_report(const struct qm_live_report *report, const char *sentence, bool verbose)
{
    QM_CLI_FREE char *base = report->base ? qm_cli_quote(report->base) : NULL;

    puts(sentence);
    if (!report->running && report->end != QM_LIVE_NOTHING)
        printf("    %s copied\n", qm_cli_size(report->merge.bytes_copied).text);
    if (verbose)
        qm_cli_outcome_print_routes(&report->merge);
    for (size_t i = 0; i < report->n_files; i++) {
        QM_CLI_FREE char *path = qm_cli_quote(report->files[i].path);

        printf("    %s  %s\n", path,
               report->files[i].removed
                   ? "removed"
                   : "merged: nothing needs it any more, opened by itself it is wrong or will be");
    }
    if (base && report->n_files)
        printf("    %s  holds all of it\n", base);
}

struct json_object *
qm_cli_domain_json(const struct qm_live_report *report, const struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object(), *list = json_object_new_array();

    qm_cli_json_add(object, "domain", qm_cli_json_string(report->domain));
    qm_cli_json_add(object, "disk", qm_cli_json_string(report->disk));
    qm_cli_json_add_bool(object, "running", report->running);
    qm_cli_json_add(object, "result", err ? NULL : qm_cli_json_string(word_of(report->end)));
    qm_cli_json_add(object, "base", qm_cli_json_string(report->base));
    qm_cli_json_add(object, "top", qm_cli_json_string(report->top));
    for (size_t i = 0; i < report->n_files; i++) {
        struct json_object *file = json_object_new_object();

        qm_cli_json_add(file, "filename", qm_cli_json_string(report->files[i].path));
        qm_cli_json_add_bool(file, "removed", report->files[i].removed);
        json_object_array_add(list, file);
    }
    qm_cli_json_add(object, "merged", list);
    list = json_object_new_array();
    for (size_t i = 0; i < report->notes.n; i++)
        json_object_array_add(list, qm_cli_json_string(report->notes.at[i]));
    qm_cli_json_add(object, "notes", list);
    if (!report->running && report->merge.n_layers)
        qm_cli_json_add(object, "merge", qm_cli_outcome_json(&report->merge, NULL));
    qm_cli_json_add(object, "error", err ? qm_cli_json_error(err) : NULL);
    return object;
}

void
qm_cli_domain_explain(const struct qm_live_report *report, const struct qmeld_error *err)
{
    if (!report->running && err->disk == QMELD_DISK_OPEN)
        fputs(
            "qmeld: this is unfinished, and noted: the same command again goes on; until then the "
            "machine has its old chain, which reads as before\n",
            stderr);
}

void
qm_cli_domain_report(const struct qm_cli_merging *merging, const struct qm_live_report *report,
                     const char *sentence, const struct qmeld_error *err)
{
    if (merging->output == QM_OUTPUT_JSON) {
        qm_cli_json_print(qm_cli_domain_json(report, err));
        return;
    }
    if (merging->quiet)
        return;
    if (!err)
        print_report(report, sentence, merging->verbose);
    print_notes(&report->notes);
}
