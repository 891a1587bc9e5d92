/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "changes.h"

#include "domain_report.h"
#include "loader.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const char suffix[] = "-domain";

/* ---- what a note says ---- */

/* "?": it is not told, which a note that a qmeld wrote never does. */
static const char *
text_of(struct json_object *object, const char *key)
{
    struct json_object *value;

    if (!object || !json_object_object_get_ex(object, key, &value) ||
        !json_object_is_type(value, json_type_string))
        return "?";
    return json_object_get_string(value);
}

static size_t
number_of(struct json_object *object, const char *key)
{
    struct json_object *value;

    if (!object || !json_object_object_get_ex(object, key, &value))
        return 0;
    return (size_t)json_object_get_uint64(value);
}

/* NULL: there is none. */
static struct json_object *
array_of(struct json_object *object, const char *key)
{
    struct json_object *value;

    if (!object || !json_object_object_get_ex(object, key, &value) ||
        !json_object_is_type(value, json_type_array))
        return NULL;
    return value;
}

static const char *
layer_path(struct json_object *disk, size_t layer)
{
    struct json_object *layers = array_of(disk, "layers");

    return layers && layer < json_object_array_length(layers)
               ? text_of(json_object_array_get_idx(layers, layer), "path")
               : "?";
}

static bool
same_file(const char *a, const char *b)
{
    struct stat x, y;

    if (stat(a, &x) == 0 && stat(b, &y) == 0)
        return x.st_dev == y.st_dev && x.st_ino == y.st_ino;
    return strcmp(a, b) == 0;
}

static bool
concerns(struct json_object *text, const char *path)
{
    struct json_object *disks = array_of(text, "disks");

    for (size_t i = 0; disks && i < json_object_array_length(disks); i++) {
        struct json_object *disk = json_object_array_get_idx(disks, i);
        struct json_object *layers = array_of(disk, "layers");

        for (size_t k = 0; layers && k < json_object_array_length(layers); k++)
            if (same_file(path, layer_path(disk, k)))
                return true;
    }
    return false;
}

/* ---- finding ---- */

struct search {
    struct qm_cli_changes *out;
    const char *about; /* NULL: all */
    const char *only;  /* the note's own path; NULL: any */
};

static bool
is_known(const struct qm_cli_changes *all, struct json_object *text, const char *path)
{
    for (size_t i = 0; i < all->n; i++)
        if (same_file(all->list[i].note, path) ||
            (text && all->list[i].text && json_object_equal(all->list[i].text, text)))
            return true;
    return false;
}

static int
take(const char *path, const char *text, const struct qmeld_error *problem, void *opaque)
{
    struct search *search = opaque;
    struct qm_cli_changes *all = search->out;
    struct qm_cli_change one = {.text = text ? json_tokener_parse(text) : NULL};
    struct qm_cli_change *list;

    if (problem)
        one.problem = *problem;
    if ((search->only && !same_file(search->only, path)) ||
        (search->about && one.text && !concerns(one.text, search->about)) ||
        (search->about && !one.text) || is_known(all, one.text, path)) {
        json_object_put(one.text);
        return 0;
    }
    one.note = strdup(path);
    list = reallocarray(all->list, all->n + 1, sizeof *list);
    if (list)
        all->list = list;
    if (!list || !one.note) {
        free(one.note);
        json_object_put(one.text);
        return 1;
    }
    list[all->n++] = one;
    return 0;
}

static char *
dir_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    if (!slash)
        return strdup(".");
    return strndup(path, slash == path ? 1 : (size_t)(slash - path));
}

static int
search_dir(struct search *search, char *dir, struct qmeld_error *err)
{
    const int result = dir ? qmeld_notes(dir, take, search, err) : -1;

    free(dir);
    return result;
}

/* Notes lie beside bases, which may be in another directory than the layer that was named. */
static void
search_chain(struct search *search, const char *path)
{
    struct qmeld_error unheard;
    struct qmeld_chain *chain;

    if (qmeld_chain_open(path, NULL, &chain, &unheard) < 0)
        return; /* half-way there may be files missing */
    for (size_t i = 0; i < qmeld_chain_depth(chain); i++) {
        struct qmeld_layer_info layer;

        if (qmeld_chain_layer(chain, i, &layer, &unheard) == 0 &&
            search_dir(search, dir_of(layer.path), &unheard) < 0)
            unheard.code = QMELD_OK; /* nothing can be noted there */
    }
    qmeld_chain_close(chain);
}

static bool
ends_with(const char *text, const char *end)
{
    const size_t a = strlen(text), b = strlen(end);

    return a >= b && strcmp(text + a - b, end) == 0;
}

bool
qm_cli_names_a_note(const char *path)
{
    return ends_with(path, ".qmeld-domain");
}

bool
qm_cli_change_has(const char *journal)
{
    QM_CLI_FREE char *note = NULL;

    if (asprintf(&note, "%s%s", journal, suffix) < 0) {
        note = NULL;
        return true; /* what is not known is left alone */
    }
    return access(note, F_OK) == 0;
}

int
qm_cli_changes_find(const char *path, const char *journal_dir, struct qm_cli_changes *out,
                    struct qmeld_error *err)
{
    struct search search = {.out = out};
    QM_CLI_FREE char *note = NULL;
    struct stat st;

    memset(out, 0, sizeof *out);
    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return qmeld_notes(path, take, &search, err);
    if (ends_with(path, ".qmeld") || qm_cli_names_a_note(path)) {
        if (asprintf(&note, "%s%s", path, qm_cli_names_a_note(path) ? "" : suffix) < 0)
            note = NULL;
        search.only = note;
        memset(err, 0, sizeof *err);
        return note && access(note, F_OK) < 0 ? 0 : search_dir(&search, dir_of(path), err);
    }
    search.about = path;
    if (journal_dir)
        return qmeld_notes(journal_dir, take, &search, err);
    if (search_dir(&search, dir_of(path), err) < 0)
        return -1;
    if (out->n ==
        0) /* from here on images are read; libvirt may still be asked, but starts nothing */
        qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    search_chain(&search, path);
    return 0;
}

void
qm_cli_changes_release(struct qm_cli_changes *changes)
{
    for (size_t i = 0; i < changes->n; i++) {
        free(changes->list[i].note);
        json_object_put(changes->list[i].text);
    }
    free(changes->list);
    memset(changes, 0, sizeof *changes);
}

/* ---- showing ---- */

static void
print_disk(struct json_object *disk)
{
    QM_CLI_FREE char *target = qm_cli_quote(text_of(disk, "target"));
    QM_CLI_FREE char *top = qm_cli_quote(layer_path(disk, number_of(disk, "top")));
    QM_CLI_FREE char *base = qm_cli_quote(layer_path(disk, number_of(disk, "base")));

    printf("  %s: %s down into %s\n", target, top, base);
}

void
qm_cli_change_print(const struct qm_cli_change *change)
{
    QM_CLI_FREE char *note = qm_cli_quote(change->note);
    QM_CLI_FREE char *word = qm_cli_shell_word(change->note);
    QM_CLI_FREE char *domain = qm_cli_quote(text_of(change->text, "domain"));
    QM_CLI_FREE char *uri = qm_cli_quote(text_of(change->text, "uri"));
    struct json_object *disks = array_of(change->text, "disks");

    if (!change->text) {
        QM_CLI_FREE char *what = qm_cli_quote(change->problem.what);

        printf("%s: %s\n", note, what);
        return;
    }
    printf("unfinished: a change of the machine \"%s\" (%s)\n", domain, uri);
    for (size_t i = 0; disks && i < json_object_array_length(disks); i++)
        print_disk(json_object_array_get_idx(disks, i));
    puts("  the machine's definition has still to be put right, by libvirt; until then it goes on "
         "with\n"
         "  the old chain, which reads as before");
    printf("  to finish it: qmeld resume %s\n", word);
}

struct json_object *
qm_cli_change_json(const struct qm_cli_change *change)
{
    struct json_object *object = json_object_new_object();

    qm_cli_json_add(object, "note", qm_cli_json_string(change->note));
    if (change->text)
        qm_cli_json_add(object, "change", json_object_get(change->text));
    else
        qm_cli_json_add(object, "error", qm_cli_json_error(&change->problem));
    return object;
}

/* ---- ending ---- */

static void
say_what_is_left(const struct qm_cli_change *change)
{
    QM_CLI_FREE char *domain = qm_cli_quote(text_of(change->text, "domain"));
    QM_CLI_FREE char *word = qm_cli_shell_word(change->note);

    fprintf(stderr,
            "qmeld: left to do: the definition of the machine \"%s\" has to be put right with "
            "libvirt's help: qmeld resume %s\n",
            domain, word);
}

int
qm_cli_change_finish(struct qm_cli_merging *merging, const struct qm_cli_change *change,
                     struct json_object *array)
{
    const struct qm_live_commit request = {.offline = merging->options,
                                           .progress = merging->options.progress,
                                           .opaque = merging->options.opaque};
    struct qm_live_report report = {0};
    struct qmeld_error err = {0};
    const struct qm_live_module *live;
    int result = -1;

    if (!change->text)
        return qm_cli_fail(&change->problem);
    if (access(change->note, F_OK) < 0)
        return QM_EXIT_DONE; /* another of its notes was gone by */
    live = qm_cli_live(&err);
    qm_cli_progress_begin(&merging->progress, merging->mode);
    if (live)
        result = live->resume(change->note, &request, &report, &err);
    qm_cli_progress_end(&merging->progress);
    if (result < 0) {
        err.disk = QMELD_DISK_OPEN;
        qm_cli_complain(&err);
        say_what_is_left(change);
    }
    if (array)
        json_object_array_add(array, qm_cli_domain_json(&report, result < 0 ? &err : NULL));
    else
        qm_cli_domain_report(merging, &report, "Commit complete", result < 0 ? &err : NULL);
    if (live)
        live->report_free(&report);
    return result < 0 ? qm_cli_exit_code(&err) : QM_EXIT_DONE;
}
