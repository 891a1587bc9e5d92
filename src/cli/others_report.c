/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "others_report.h"

#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define MAX_LINES 20u

static const char *
kind_name(enum qmeld_dependant_kind kind)
{
    switch (kind) {
    case QMELD_DEPENDANT_OVERLAY:
        return "overlay";
    case QMELD_DEPENDANT_DEEPER:
        return "deeper";
    case QMELD_DEPENDANT_DATA_FILE:
        return "data-file";
    case QMELD_DEPENDANT_SNAPSHOT:
        return "snapshot";
    }
    return "unknown";
}

static void
print_snapshot(FILE *out, const struct qmeld_dependant *d, const char *path)
{
    QM_CLI_FREE char *name = qm_cli_quote(d->snapshot_name);
    QM_CLI_FREE char *id = qm_cli_quote(d->snapshot_id);
    const time_t when = (time_t)d->date_sec;
    char date[32] = "";
    struct tm tm;

    if (localtime_r(&when, &tm))
        strftime(date, sizeof date, ", %Y-%m-%d %H:%M:%S", &tm);
    fprintf(out, "internal snapshot \"%s\" (ID %s%s) of [%zu] %s", name, id, date, d->layer + 1,
            path);
}

static void
print_one(FILE *out, const struct qmeld_dependant *d, bool planned)
{
    QM_CLI_FREE char *path = qm_cli_quote(d->path);

    fputs("  ", out);
    switch (d->kind) {
    case QMELD_DEPENDANT_OVERLAY:
        fprintf(out, "%s, which stands on [%zu]", path, d->layer + 1);
        break;
    case QMELD_DEPENDANT_DEEPER:
        fprintf(out, "%s, which stands on others that stand on [%zu]", path, d->layer + 1);
        break;
    case QMELD_DEPENDANT_DATA_FILE:
        fprintf(out, "%s, whose data file is [%zu]", path, d->layer + 1);
        break;
    case QMELD_DEPENDANT_SNAPSHOT:
        print_snapshot(out, d, path);
        break;
    }
    if (d->fate == QMELD_DEPENDANT_PROTECTED)
        fprintf(out, ": %s\n", planned ? "will be protected" : "protected: reads as before");
    else
        fprintf(out, ": %s\n", planned ? "would read wrong" : "BROKEN: reads wrong now");
}

void
qm_cli_others_print(FILE *out, const struct qmeld_dependant *d, size_t n, bool planned)
{
    for (size_t i = 0; i < n && i < MAX_LINES; i++)
        print_one(out, &d[i], planned);
    if (n > MAX_LINES)
        fprintf(out, "  and %zu more: --output=json tells all\n", n - MAX_LINES);
}

void
qm_cli_others_print_unread(uint64_t n, const char *path, int why)
{
    QM_CLI_FREE char *shown = path ? qm_cli_quote(path) : NULL;

    if (n == 0)
        return;
    fprintf(stderr,
            "qmeld: note: %" PRIu64
            " of the files and folders beside these layers could not be read, so nobody knows "
            "whether they stand on them",
            n);
    if (shown)
        fprintf(stderr, ": %s (%s)", shown, strerror(why));
    fputc('\n', stderr);
}

struct json_object *
qm_cli_others_json(const struct qmeld_dependant *d, size_t n)
{
    struct json_object *all = json_object_new_array();

    for (size_t i = 0; i < n; i++) {
        struct json_object *o = json_object_new_object();

        qm_cli_json_add(o, "filename", qm_cli_json_string(d[i].path));
        qm_cli_json_add(o, "kind", json_object_new_string(kind_name(d[i].kind)));
        qm_cli_json_add_u64(o, "layer", d[i].layer + 1);
        if (d[i].kind == QMELD_DEPENDANT_SNAPSHOT) {
            qm_cli_json_add(o, "snapshot-id", qm_cli_json_string(d[i].snapshot_id));
            qm_cli_json_add(o, "snapshot-name", qm_cli_json_string(d[i].snapshot_name));
            qm_cli_json_add_u64(o, "snapshot-date", d[i].date_sec);
        }
        qm_cli_json_add(o, "fate",
                        json_object_new_string(d[i].fate == QMELD_DEPENDANT_PROTECTED ? "protected"
                                                                                      : "broken"));
        json_object_array_add(all, o);
    }
    return all;
}
