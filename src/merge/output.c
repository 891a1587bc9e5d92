/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "output.h"

#include "fields.h"
#include "journal.h"
#include "lock.h"
#include "nbd_name.h"

#include <errno.h>
#include <inttypes.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define MODE 0666 /* and the process's umask */

/* ---- names ---- */

/* A link is followed: its target is replaced, not the link. */
static int
find_path(const char *path, char **out, struct qmeld_error *err)
{
    struct stat st;

    if (lstat(path, &st) == 0 && S_ISLNK(st.st_mode)) {
        *out = realpath(path, NULL);
        if (!*out)
            return qm_fail_sys(err, qm_in(path), "a symbolic link that cannot be followed");
        return 0;
    }
    *out = strdup(path);
    return *out ? 0 : qm_fail_nomem(err, "a path");
}

char *
qm_output_beside(const char *path, const char *suffix)
{
    const char *slash = strrchr(path, '/');
    char *out;

    if (asprintf(&out, "%.*s.%s%s", slash ? (int)(slash - path + 1) : 0, path,
                 slash ? slash + 1 : path, suffix) < 0)
        return NULL;
    return out;
}

static int
name_all(struct qm_output *o, const char *path, struct qmeld_error *err)
{
    if (find_path(path, &o->path, err) < 0)
        return -1;
    o->partial = qm_output_beside(o->path, QM_OUTPUT_PARTIAL);
    o->note = qm_output_beside(o->path, QM_OUTPUT_NOTE);
    return o->partial && o->note ? 0 : qm_fail_nomem(err, "a path");
}

/* ---- what is there ---- */

int
qm_output_not_an_input(const char *path, const struct qm_chain *chain, struct qmeld_error *err)
{
    for (size_t i = 0; chain && i < chain->n; i++) {
        const struct qm_image *img = chain->layers[i].img;

        if (qm_file_is_at(img->file, path) || qm_file_is_at(img->data, path))
            return qm_fail(err, QMELD_USAGE, qm_in(path),
                           "this is %.400s, a layer of the chain that is read: choose another name",
                           chain->layers[i].path);
    }
    return 0;
}

static int
look_at_old(struct qm_output *o, const struct qm_output_config *config, struct qmeld_error *err)
{
    const bool export = qm_nbd_is_name(o->path);
    struct stat st;

    if (!export && stat(o->path, &st) < 0) {
        if (errno == ENOENT)
            return 0;
        return qm_fail_sys(err, qm_in(o->path), "cannot look at it");
    }
    if (qm_output_not_an_input(o->path, config->chain, err) < 0)
        return -1;
    if (export || S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) {
        if (!config->force)
            return qm_fail(
                err, QMELD_USAGE, qm_in(o->path),
                "it is there already: choose another name, or say --force to replace it");
    }
    if (qm_file_open(o->path, &o->old, err) < 0) /* says what is wrong with anything else */
        return -1;
    return qm_lock_take(o->old, QM_LOCK_WRITER, err);
}

/* ---- the note ---- */

static char *
note_text(const struct qm_output *o, const struct qm_output_config *config)
{
    struct json_object *j = json_object_new_object();
    char *text = NULL;

    if (!j)
        return NULL;
    json_object_object_add(j, "request", json_object_new_string(config->request));
    json_object_object_add(j, "inputs", json_object_new_string(config->inputs));
    json_object_object_add(j, "inode", json_object_new_uint64(o->file->ino));
    json_object_object_add(j, "unit", json_object_new_uint64(config->unit));
    json_object_object_add(j, "size", json_object_new_uint64(config->size));
    json_object_object_add(j, "force", json_object_new_boolean(config->force));
    text = strdup(json_object_to_json_string_ext(j, JSON_C_TO_STRING_PLAIN));
    json_object_put(j);
    return text;
}

/* Is it ours to go on with? */
static int
match_note(const struct qm_output *o, const struct qm_output_config *config, struct json_object *j,
           struct qmeld_error *err)
{
    const char *request = qm_field_word(j, "request"), *inputs = qm_field_word(j, "inputs");

    if (!request || !inputs || qm_field_number_or_0(j, "unit") == 0)
        return qm_fail(
            err, QMELD_CORRUPT, qm_in(o->note),
            "the note about an unfinished image cannot be understood: say --restart to begin anew");
    if (!config->inputs || strcmp(request, config->request) != 0 ||
        qm_field_number_or_0(j, "unit") != config->unit)
        return qm_fail(
            err, QMELD_USAGE, qm_in(o->path),
            "an earlier run with other options was interrupted here: give its command to go on "
            "with it, or say --restart to begin anew");
    if (strcmp(inputs, config->inputs) != 0)
        return qm_fail(
            err, QMELD_STALE, qm_in(o->path),
            "an earlier run was interrupted here, and what it read has changed since: say "
            "--restart to begin anew");
    return 0;
}

/* The file that has this inode at path is opened; *out_is false: it is another, or none. */
static int
open_known(const char *path, uint64_t ino, struct qm_file **out, struct qmeld_error *err)
{
    struct stat st;

    *out = NULL;
    if (lstat(path, &st) < 0 || !S_ISREG(st.st_mode) || st.st_ino != ino)
        return 0;
    return qm_file_open(path, out, err);
}

static int
remove_left(const struct qm_output *o, struct qmeld_error *err)
{
    struct stat st;

    if (lstat(o->note, &st) == 0 && qm_unlink(o->note, err) < 0)
        return -1;
    return lstat(o->partial, &st) == 0 ? qm_unlink(o->partial, err) : 0;
}

/* The same, unless somebody is at it now. */
static int
remove_unheld(const struct qm_output *o, struct qmeld_error *err)
{
    struct qm_file *left;
    struct stat st;
    int rc = 0;

    if (lstat(o->partial, &st) == 0) {
        if (qm_file_open(o->partial, &left, err) < 0)
            return -1;
        rc = qm_lock_take(left, QM_LOCK_WRITER, err);
        qm_file_close(left);
    }
    return rc < 0 ? -1 : remove_left(o, err);
}

static int
go_on(struct qm_output *o, const struct qm_output_config *config, struct json_object *j,
      unsigned step, struct qmeld_error *err)
{
    const uint64_t ino = qm_field_number_or_0(j, "inode");

    if (open_known(o->partial, ino, &o->file, err) < 0)
        return -1;
    if (!o->file && open_known(o->path, ino, &o->file, err) < 0)
        return -1;
    if (!o->file) /* somebody has removed it */
        return remove_left(o, err);
    if (qm_lock_take(o->file, QM_LOCK_WRITER, err) < 0 || match_note(o, config, j, err) < 0)
        return -1;
    o->complete = strcmp(o->file->path, o->path) == 0;
    o->owned = o->noted = o->resumed = true;
    if (__builtin_mul_overflow(step, config->unit, &o->done))
        return qm_fail(
            err, QMELD_CORRUPT, qm_in(o->note),
            "the note about an unfinished image is damaged: say --restart to begin anew");
    return o->complete ? 0 : qm_file_make_writable(o->file, err);
}

static int
look_for_note(struct qm_output *o, const struct qm_output_config *config, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;
    struct json_object *j;
    unsigned step = 0;
    int rc;

    if (config->restart)
        return remove_unheld(o, err);
    if (qmeld_note_read(o->note, &text, &step, err) < 0)
        return -1;
    if (!text)
        return 0;
    j = json_tokener_parse(text);
    if (!j)
        return qm_fail(
            err, QMELD_CORRUPT, qm_in(o->note),
            "the note about an unfinished image cannot be understood: say --restart to begin anew");
    rc = go_on(o, config, j, step, err);
    json_object_put(j);
    return rc;
}

/* ---- begin ---- */

/* What lies there without a note was never worth anything. */
static int
make_partial(struct qm_output *o, struct qmeld_error *err)
{
    if (remove_unheld(o, err) < 0)
        return -1;
    if (qm_file_create_new(o->partial, MODE, &o->file, err) < 0) {
        const struct qmeld_error was = *err; /* of a name that nobody has typed */

        qm_fail(err, was.code, qm_in(o->path), "until it is complete, it is %.200s: %.200s",
                o->partial, was.what);
        err->sys_errno = was.sys_errno;
        return -1;
    }
    if (qm_lock_take(o->file, QM_LOCK_WRITER, err) < 0)
        return -1;
    o->owned = true;
    return 0;
}

int
qm_output_begin(struct qm_output *o, const struct qm_output_config *config, struct qmeld_error *err)
{
    o->unit = config->unit;
    if (name_all(o, config->path, err) < 0 || look_for_note(o, config, err) < 0)
        return -1;
    if (o->complete)
        return 0;
    if (look_at_old(o, config, err) < 0)
        return -1;
    if (o->old && o->old->blockdev) {
        o->file = QM_TAKE(o->old);
        o->owned = true;
        return qm_file_make_writable(o->file, err);
    }
    return o->file ? 0 : make_partial(o, err);
}

int
qm_output_note(struct qm_output *o, const struct qm_output_config *config, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;

    if (o->noted || o->file->blockdev || !config->inputs)
        return 0;
    text = note_text(o, config);
    if (!text)
        return qm_fail_nomem(err, "a note");
    if (qm_sync(o->file, err) < 0 || qm_sync_dir_of(o->partial, err) < 0 ||
        qmeld_note_write(o->note, text, err) < 0)
        return -1;
    o->noted = true;
    return 0;
}

int
qm_output_advance(struct qm_output *o, uint64_t done, struct qmeld_error *err)
{
    const uint64_t step = done / o->unit;

    if (!o->noted || step * o->unit <= o->done)
        return 0;
    if (qmeld_note_step(o->note, (unsigned)step, err) < 0)
        return -1;
    o->done = step * o->unit;
    return 0;
}

/* ---- the end ---- */

static bool
has_name(const struct qm_output *o)
{
    struct stat st;

    return lstat(o->path, &st) == 0 && st.st_dev == o->file->dev && st.st_ino == o->file->ino;
}

int
qm_output_finish(struct qm_output *o, struct qmeld_error *err)
{
    if (o->complete || o->file->blockdev)
        return 0;
    /* COMMIT POINT: all of it is durable, and gets its name */
    if (o->old ? qm_replace(o->partial, o->path, err) < 0
               : qm_rename(o->partial, o->path, err) < 0) {
        o->complete =
            has_name(o); /* and is not known to be durable: the note stays, for who goes on */
        if (o->complete)
            qm_err_disk(err, QMELD_DISK_OPEN);
        return -1;
    }
    o->complete = true;
    return 0;
}

int
qm_output_adopt(const char *path, struct qmeld_error *err)
{
    struct qm_output o = {0};
    struct stat st;
    int rc = name_all(&o, path, err);

    if (rc == 0 && lstat(o.partial, &st) == 0)
        rc = qm_replace(o.partial, o.path, err);
    qm_output_close(&o);
    return rc;
}

int
qm_output_forget(struct qm_output *o, struct qmeld_error *err)
{
    if (!o->noted || qmeld_note_remove(o->note, err) < 0)
        return o->noted ? -1 : 0;
    o->noted = false;
    return 0;
}

void
qm_output_fail(struct qm_output *o, struct qmeld_error *err)
{
    const bool worth =
        err->code != QMELD_CORRUPT && err->code != QMELD_UNSUPPORTED && err->code != QMELD_STALE;
    struct qmeld_error unheard = {0};

    if (!o->owned || o->complete)
        return;
    /* what is left is gone on with, or could not be removed */
    if (o->file->blockdev || (o->noted && worth && o->done > 0) || remove_left(o, &unheard) < 0)
        qm_err_disk(err, QMELD_DISK_OPEN);
}

void
qm_output_close(struct qm_output *o)
{
    qm_file_close(o->file);
    qm_file_close(o->old);
    free(o->path);
    free(o->partial);
    free(o->note);
    *o = (struct qm_output){0};
}
