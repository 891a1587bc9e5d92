/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * output_left.c - what an interrupted run left of a new image, seen from outside: looked at, and given up.
 *
 * A note says what is being written and how far it is (output.c).  A file without a note is of a run that was
 * cut off before it had one, or that nobody could have gone on with: it is worth nothing.
 */
#include "journal.h"
#include "fields.h"
#include "lock.h"
#include "output.h"

#include <errno.h>
#include <fcntl.h>
#include <json-c/json.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

int
qm_output_named_by(const char *path, char **out, struct qmeld_error *err)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    const size_t len = strlen(name), suffix = strlen(QM_OUTPUT_NOTE);

    static_assert(sizeof QM_OUTPUT_NOTE == sizeof QM_OUTPUT_PARTIAL, "one length");
    *out = NULL;
    if (name[0] != '.' || len < suffix + 2 ||
        (strcmp(name + len - suffix, QM_OUTPUT_NOTE) != 0 &&
         strcmp(name + len - suffix, QM_OUTPUT_PARTIAL) != 0))
        return 0;
    if (asprintf(out, "%.*s%.*s", (int)(name - path), path, (int)(len - suffix - 1), name + 1) <
        0) {
        *out = NULL;
        return qm_fail_nomem(err, "a path");
    }
    return 0;
}

/* Somebody holds the byte that writers of an image hold (lock.h). */
static bool
is_held(const char *path)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 200};
    struct qmeld_error unheard = {0};
    struct qm_file *file;
    bool held;

    if (qm_file_open(path, &file, &unheard) < 0)
        return false;
    held = fcntl(file->fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
    qm_file_close(file);
    return held;
}

static int
read_note(const char *path, const char *text, unsigned step, struct qm_output_left *out,
          struct qmeld_error *err)
{
    struct json_object *j = json_tokener_parse(text), *v;
    struct stat st;

    out->bad = !j || !json_object_object_get_ex(j, "request", &v) ||
               !json_object_is_type(v, json_type_string) ||
               __builtin_mul_overflow(step, qm_field_number_or_0(j, "unit"), &out->done);
    if (out->bad) {
        (void)qm_fail(&out->problem, QMELD_CORRUPT, qm_in(out->note),
                      "the note about an unfinished image cannot be understood: give it up");
    } else {
        out->request = strdup(json_object_get_string(v));
        out->force = qm_field_is_true(j, "force");
        out->size = qm_field_number_or_0(j, "size");
        out->done = out->size ? qm_min(out->done, out->size) : out->done;
        out->complete = lstat(path, &st) == 0 && S_ISREG(st.st_mode) &&
                        (uint64_t)st.st_ino == qm_field_number_or_0(j, "inode");
    }
    json_object_put(j);
    return out->bad || out->request ? 0 : qm_fail_nomem(err, "a note");
}

int
qm_output_look(const char *path, struct qm_output_left *out, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;
    struct stat st;
    unsigned step = 0;

    *out = (struct qm_output_left){.note = qm_output_beside(path, QM_OUTPUT_NOTE),
                                   .partial = qm_output_beside(path, QM_OUTPUT_PARTIAL)};
    if (!out->note || !out->partial)
        return qm_fail_nomem(err, "a path");
    if (lstat(out->partial, &st) < 0 || !S_ISREG(st.st_mode))
        free(QM_TAKE(out->partial));
    else
        out->running = is_held(out->partial);
    if (qmeld_note_read(out->note, &text, &step, &out->problem) < 0)
        out->bad = true;
    if (text)
        return read_note(path, text, step, out, err);
    if (lstat(out->note, &st) < 0)
        free(QM_TAKE(out->note));
    return 0;
}

void
qm_output_left_release(struct qm_output_left *left)
{
    free(left->note);
    free(left->partial);
    free(left->request);
    *left = (struct qm_output_left){.note = NULL};
}

/* The note goes first: without it the file is nothing that anybody goes on with. */
static int
remove_both(const struct qm_output_left *left, struct qmeld_error *err)
{
    if (left->note && qm_unlink(left->note, err) < 0)
        return -1;
    return left->partial ? qm_unlink(left->partial, err) : 0;
}

int
qm_output_abandon(const char *path, struct qmeld_error *err)
{
    struct qm_output_left left;
    struct qm_file *file = NULL;
    int rc = qm_output_look(path, &left, err);

    if (rc == 0 && left.complete)
        rc = qm_fail(
            err, QMELD_USAGE, qm_in(path),
            "the image is complete, and only what comes after is left to do: go on with it");
    if (rc == 0 && left.partial)
        rc = qm_file_open(left.partial, &file, err);
    if (rc == 0 && file)
        rc = qm_lock_take(file, QM_LOCK_WRITER, err);
    if (rc == 0)
        rc = remove_both(&left, err);
    qm_file_close(file);
    qm_output_left_release(&left);
    return rc;
}
