/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten_request.c - what a flatten was asked for, as its note has it; and the public calls about flattens that were
 * interrupted.
 *
 * The text is compared as a whole by who gives the same command again (output.c), and taken apart here by who goes on
 * without it.  So whatever changes the image or the files beside it is a key.
 */
#include "flatten_int.h"
#include "fields.h"
#include "hands.h"
#include "search.h"

#include <dirent.h>
#include <json-c/json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- to text ---- */

static bool
add_text(struct json_object *j, const char *key, const char *text)
{
    return !text || json_object_object_add(j, key, json_object_new_string(text)) == 0;
}

static bool
add_path(struct json_object *j, const char *key, const char *path)
{
    QM_FREE char *full = path ? qm_absolute_path(path) : NULL;

    return !path || (full && add_text(j, key, full));
}

static bool
add_number(struct json_object *j, const char *key, uint64_t n)
{
    return json_object_object_add(j, key, json_object_new_uint64(n)) == 0;
}

static bool
add_bool(struct json_object *j, const char *key, bool b)
{
    return json_object_object_add(j, key, json_object_new_boolean(b)) == 0;
}

/* Folders as the caller has them from where he is; others (nbd://HOST) as they are. */
static bool
add_allowed(struct json_object *j, const char *const *allow)
{
    struct json_object *list;

    if (!allow)
        return true;
    list = json_object_new_array();
    if (!list || json_object_object_add(j, "allow", list) != 0)
        return false;
    for (; *allow; allow++) {
        QM_FREE char *path = realpath(*allow, NULL);

        if (json_object_array_add(list, json_object_new_string(path ? path : *allow)) != 0)
            return false;
    }
    return true;
}

/* Only where they are asked for: a note that says nothing of them is one of an image without. */
static bool
add_bitmaps(struct json_object *j, const struct qmeld_flatten_options *o)
{
    if (o->bitmaps == QMELD_FLATTEN_BITMAPS_DROP)
        return true;
    return add_text(j, "bitmaps", o->bitmaps == QMELD_FLATTEN_BITMAPS_KEEP ? "keep" : "merge") &&
           add_bool(j, "skip-broken", o->skip_broken_bitmaps);
}

/* Likewise. */
static bool
add_prealloc(struct json_object *j, const struct qm_flatten *f)
{
    return f->prealloc == QM_PREALLOC_OFF ||
           add_text(j, "preallocation", f->opts->target->preallocation);
}

static void
take_bitmaps(struct json_object *j, struct qmeld_flatten_options *o)
{
    const char *word = qm_field_word(j, "bitmaps");

    o->bitmaps = !word                       ? QMELD_FLATTEN_BITMAPS_DROP
                 : strcmp(word, "keep") == 0 ? QMELD_FLATTEN_BITMAPS_KEEP
                                             : QMELD_FLATTEN_BITMAPS_MERGE;
    o->skip_broken_bitmaps = qm_field_is_true(j, "skip-broken");
}

char *
qm_flatten_request(const struct qm_flatten *f)
{
    const struct qmeld_flatten_options *o = f->opts;
    const struct qm_qcow2_create *c = &f->create;
    struct json_object *j = json_object_new_object();
    char *text = NULL;

    if (j && add_path(j, "image", f->path) && add_text(j, "format", o->format) &&
        add_text(j, "backing-format", o->backing_format) && add_text(j, "snapshot", o->snapshot) &&
        add_allowed(j, o->allow_paths) && add_bool(j, "qcow2", f->is_qcow2) &&
        add_number(j, "version", c->version) && add_number(j, "cluster", c->cluster_size) &&
        add_number(j, "refcount", c->refcount_bits) &&
        add_number(j, "compression", c->compression) && add_bool(j, "extended", c->extended_l2) &&
        add_bool(j, "lazy", c->lazy_refcounts) && add_bool(j, "compress", o->compress != NULL) &&
        add_number(j, "level", (uint64_t)o->compress_level) && add_bool(j, "salvage", o->salvage) &&
        add_text(j, "fill", o->fill) && add_path(j, "map", o->salvage_map) &&
        add_path(j, "manifest", o->manifest) && add_number(j, "leaf", f->leaf) &&
        add_bool(j, "zeros", o->keep_zeros) && add_bitmaps(j, o) && add_prealloc(j, f))
        text = strdup(json_object_to_json_string_ext(j, JSON_C_TO_STRING_PLAIN));
    json_object_put(j);
    return text;
}

/* ---- from text ---- */

/* The JSON owns what the options point at. */
struct request {
    struct json_object *json;
    const char *image;
    const char **allow; /* NULL-terminated; NULL: none is said */
    struct qmeld_create_options target;
    struct qmeld_flatten_options options;
};

static void
take_target(struct json_object *j, struct qmeld_create_options *t)
{
    t->preallocation = qm_field_word(j, "preallocation");
    if (!qm_field_is_true(j, "qcow2")) {
        t->format = "raw";
        return;
    }
    t->format = "qcow2";
    t->version = (unsigned)qm_field_number_or_0(j, "version");
    t->cluster_size = qm_field_number_or_0(j, "cluster");
    t->refcount_bits = (unsigned)qm_field_number_or_0(j, "refcount");
    t->compression = qm_field_number_or_0(j, "compression") == QM_ZSTD ? "zstd" : "zlib";
    t->extended_l2 = qm_field_is_true(j, "extended");
    t->lazy_refcounts = qm_field_is_true(j, "lazy");
}

/* False: no memory. */
static bool
take_allowed(struct json_object *j, struct request *r)
{
    struct json_object *list;
    size_t n;

    if (!json_object_object_get_ex(j, "allow", &list) ||
        !json_object_is_type(list, json_type_array))
        return true;
    n = json_object_array_length(list);
    r->allow = calloc(n + 1, sizeof *r->allow);
    for (size_t i = 0; r->allow && i < n; i++) {
        const char *path = json_object_get_string(json_object_array_get_idx(list, i));

        r->allow[i] = path ? path : "";
    }
    r->options.allow_paths = r->allow;
    return r->allow != NULL;
}

static void
release(struct request *r)
{
    json_object_put(r->json);
    free(r->allow);
}

/* How it runs stays as in r->options; false: it makes no sense. */
static bool
read_request(const char *text, struct request *r)
{
    struct json_object *j = r->json = json_tokener_parse(text);
    struct qmeld_flatten_options *o = &r->options;

    r->image = j ? qm_field_word(j, "image") : NULL;
    r->options.allow_paths = NULL;
    if (!r->image || !take_allowed(j, r))
        return false;
    take_target(j, &r->target);
    o->target = &r->target;
    o->format = qm_field_word(j, "format");
    o->backing_format = qm_field_word(j, "backing-format");
    o->snapshot = qm_field_word(j, "snapshot");
    o->compress = qm_field_is_true(j, "compress") ? r->target.compression : NULL;
    o->compress_level = (int)qm_min(qm_field_number_or_0(j, "level"), 99);
    o->salvage = qm_field_is_true(j, "salvage");
    o->fill = qm_field_word(j, "fill");
    o->salvage_map = qm_field_word(j, "map");
    o->manifest = qm_field_word(j, "manifest");
    o->leaf = qm_field_number_or_0(j, "leaf");
    o->keep_zeros = qm_field_is_true(j, "zeros");
    take_bitmaps(j, o);
    o->share = o->restart = false;
    o->sink = NULL;
    return true;
}

/* ---- the public calls ---- */

/* The image that path means: by its note's name, the other name it has, or its own. */
static int
name_output(const char *path, char **out, struct qmeld_error *err)
{
    struct stat st;

    if (qm_output_named_by(path, out, err) < 0)
        return -1;
    if (!*out) /* a link's target is replaced, not the link (output.c) */
        *out = lstat(path, &st) == 0 && S_ISLNK(st.st_mode) ? realpath(path, NULL) : strdup(path);
    return *out ? 0 : qm_fail_nomem(err, "a path");
}

static int
tell(const char *out, qmeld_partial_fn *fn, void *opaque, struct qmeld_error *err)
{
    struct qm_output_left left;
    struct request r = {.json = NULL};
    struct qmeld_partial p = {.out = out};
    int rc = qm_output_look(out, &left, err);
    /* a power cut may leave a note that was never whole: nobody goes on by it, and so it is as good as none */
    const bool noted = left.request || left.bad;

    if (rc == 0 && (left.note || left.partial)) {
        p.note = noted ? left.note : NULL;
        p.partial = noted || left.partial ? left.partial : left.note;
        p.running = left.running;
        p.complete = left.complete;
        p.done = left.done;
        p.size = left.size;
        p.problem = left.bad ? &left.problem : NULL;
        if (left.request && read_request(left.request, &r)) {
            p.image = r.image;
            p.manifest = r.options.manifest;
        }
        if (fn(&p, opaque) != 0)
            rc = qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
    }
    release(&r);
    qm_output_left_release(&left);
    return rc;
}

/* One with a note and a file is told of once. */
static int
tell_entry(const char *dir, const char *name, qmeld_partial_fn *fn, void *opaque,
           struct qmeld_error *err)
{
    QM_FREE char *path = NULL;
    QM_FREE char *out = NULL;
    QM_FREE char *note = NULL;
    struct stat st;
    const bool is_note = strstr(name, QM_OUTPUT_NOTE) != NULL;

    if (asprintf(&path, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name) < 0) {
        path = NULL;
        return qm_fail_nomem(err, "a path");
    }
    if (qm_output_named_by(path, &out, err) < 0 || !out)
        return out ? -1 : 0;
    if (!is_note) {
        note = qm_output_beside(out, QM_OUTPUT_NOTE);
        if (!note)
            return qm_fail_nomem(err, "a path");
        if (lstat(note, &st) == 0)
            return 0;
    }
    return tell(out, fn, opaque, err);
}

int
qmeld_partials(const char *path, qmeld_partial_fn *fn, void *opaque, struct qmeld_error *err)
{
    QM_FREE char *out = NULL;
    struct dirent **names;
    int n, rc = 0;

    memset(err, 0, sizeof *err);
    if (!qm_search_is_dir(path))
        return name_output(path, &out, err) < 0 ? -1 : tell(out, fn, opaque, err);
    n = scandir(path, &names, NULL, alphasort);
    if (n < 0)
        return qm_fail_sys(err, qm_in(path), "cannot list the directory");
    for (int i = 0; i < n; i++) {
        if (rc == 0)
            rc = tell_entry(path, names[i]->d_name, fn, opaque, err);
        free(names[i]);
    }
    free(names);
    return rc;
}

/* A note names files to be read, or given up; whoever could have made it is not to choose them. */
static int
is_ours(const struct qm_output_left *left, struct qmeld_error *err)
{
    struct qm_hands hands;

    if (qm_hands_of(left->note, NULL, &hands, err) < 0)
        return -1;
    if (!hands.others)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(left->note),
                   "others than you can put files beside it (its directory is user %u's, or "
                   "everybody may write to it), so the note is not gone by: give the command that "
                   "began the image once more, which goes on",
                   (unsigned)hands.uid);
}

int
qmeld_flatten_resume(const char *path, const struct qmeld_flatten_options *how,
                     struct qmeld_flatten_report *report, struct qmeld_error *err)
{
    static const struct qmeld_flatten_options plain;
    struct request r = {.options = how ? *how : plain};
    struct qm_output_left left;
    QM_FREE char *out = NULL;
    int rc;

    memset(err, 0, sizeof *err);
    if (name_output(path, &out, err) < 0)
        return -1;
    rc = qm_output_look(out, &left, err);
    if (rc == 0 && left.bad) {
        *err = left.problem;
        rc = -1;
    } else if (rc == 0 && !left.request) {
        rc = qm_fail(err, QMELD_USAGE, qm_in(out),
                     "no note tells of an unfinished image here: give the command that began it");
    } else if (rc == 0 && is_ours(&left, err) < 0) {
        rc = -1;
    } else if (rc == 0 && !read_request(left.request, &r)) {
        rc = qm_fail(err, QMELD_CORRUPT, qm_in(left.note),
                     "the note about an unfinished image cannot be understood: give it up");
    }
    r.options.force = left.force;
    if (rc == 0)
        rc = qmeld_flatten(r.image, out, &r.options, report, err);
    release(&r);
    qm_output_left_release(&left);
    return rc;
}

int
qmeld_flatten_abandon(const char *path, struct qmeld_error *err)
{
    struct qm_output_left left;
    struct request r = {.json = NULL};
    struct qmeld_error unheard = {0};
    QM_FREE char *out = NULL;
    int rc;

    memset(err, 0, sizeof *err);
    if (name_output(path, &out, err) < 0)
        return -1;
    rc = qm_output_look(out, &left, err);
    if (rc == 0 && !left.note && !left.partial)
        rc = qm_fail(err, QMELD_USAGE, qm_in(out),
                     "nothing unfinished lies beside it: `qmeld status` finds what there is");
    if (rc == 0)
        rc = qm_output_abandon(out, err);
    if (rc == 0 && left.request && is_ours(&left, &unheard) == 0 &&
        read_request(left.request, &r)) {
        if (r.options.manifest)
            rc = qm_output_abandon(r.options.manifest, err);
        if (rc == 0 && r.options.salvage_map)
            rc = qm_output_abandon(r.options.salvage_map, err);
    }
    release(&r);
    qm_output_left_release(&left);
    return rc;
}
