/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "change.h"

#include "fields.h"

#include <errno.h>
#include <fcntl.h>
#include <json.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* in the order of enum qmeld_bitmaps */
static const char *const bitmaps_words[] = {"merge", "keep", "drop"};

enum { SETTLED = 1 }; /* step of a note */

void
qm_change_release(struct qm_change *change)
{
    free(change->uri);
    free(change->domain);
    free(change->uuid);
    free(change->words);
    free(change->snapshot);
    free(change->journal_dir);
    QM_VEC_EACH (d, &change->disks) {
        free(d->target);
        free(d->backing_format);
        free(d->note);
        QM_VEC_EACH (l, &d->layers) {
            free(l->path);
            free(l->format);
        }
        qm_vec_release(&d->layers);
    }
    qm_vec_release(&change->disks);
    *change = (struct qm_change){.uri = NULL};
}

/* Who a file is.  A block device is its number. */
static bool
identify(const char *path, struct qm_change_layer *out, bool *out_gone)
{
    struct statx st;

    *out_gone = false;
    if (statx(AT_FDCWD, path, AT_STATX_SYNC_AS_STAT, STATX_TYPE | STATX_INO | STATX_BTIME, &st) <
        0) {
        *out_gone = errno == ENOENT || errno == ENOTDIR;
        return false;
    }
    out->blockdev = S_ISBLK(st.stx_mode);
    out->ino = out->blockdev ? makedev(st.stx_rdev_major, st.stx_rdev_minor) : st.stx_ino;
    out->born_sec = out->born_nsec = 0;
    if (!out->blockdev && st.stx_mask & STATX_BTIME) {
        out->born_sec = st.stx_btime.tv_sec;
        out->born_nsec = st.stx_btime.tv_nsec;
    }
    return true;
}

int
qm_change_add_layer(struct qm_change_disk *disk, const char *path, const char *format,
                    struct qmeld_error *err)
{
    struct qm_change_layer layer = {.path = NULL};
    bool gone;

    if (!identify(path, &layer, &gone))
        return qm_fail_sys(err, qm_in(path), "cannot look at it");
    layer.path = strdup(path);
    layer.format = strdup(format);
    if (layer.path && layer.format && qm_vec_push(&disk->layers, &layer))
        return 0;
    free(layer.path);
    free(layer.format);
    return qm_fail_nomem(err, "the chain");
}

bool
qm_change_is_still(const struct qm_change_layer *layer, bool *out_gone)
{
    struct qm_change_layer now = {.path = NULL};

    return identify(layer->path, &now, out_gone) && now.blockdev == layer->blockdev &&
           now.ino == layer->ino && now.born_sec == layer->born_sec &&
           now.born_nsec == layer->born_nsec;
}

size_t
qm_change_find(const struct qm_change_disk *d, const char *path)
{
    const struct qm_file_id id = qm_file_id(path);

    for (size_t i = 0; i < d->layers.n; i++) {
        const struct qm_change_layer *l = &d->layers.at[i];
        const struct qm_file_id there = qm_file_id(l->path);
        bool gone;

        if (strcmp(l->path, path) != 0 && !qm_file_id_same(&id, &there))
            continue;
        return qm_change_is_still(l, &gone) || gone ? i : d->layers.n;
    }
    return d->layers.n;
}

/* ---- as JSON ---- */

static void
add_text(struct json_object *o, const char *key, const char *text)
{
    json_object_object_add(o, key, text ? json_object_new_string(text) : NULL);
}

static struct json_object *
disk_to_json(const struct qm_change_disk *d)
{
    struct json_object *o = json_object_new_object(), *layers = json_object_new_array();

    add_text(o, "target", d->target);
    add_text(o, "note", d->note);
    add_text(o, "backing-format", d->backing_format);
    json_object_object_add(o, "base", json_object_new_uint64(d->base));
    json_object_object_add(o, "top", json_object_new_uint64(d->top));
    QM_VEC_EACH (l, &d->layers) {
        struct json_object *layer = json_object_new_object();

        add_text(layer, "path", l->path);
        add_text(layer, "format", l->format);
        json_object_object_add(layer, "block-device", json_object_new_boolean(l->blockdev));
        json_object_object_add(layer, "inode", json_object_new_uint64(l->ino));
        json_object_object_add(layer, "born", json_object_new_int64(l->born_sec));
        json_object_object_add(layer, "born-nsec", json_object_new_int64(l->born_nsec));
        json_object_array_add(layers, layer);
    }
    json_object_object_add(o, "layers", layers);
    return o;
}

static struct json_object *
to_json(const struct qm_change *c)
{
    struct json_object *o = json_object_new_object(), *disks = json_object_new_array();

    add_text(o, "uri", c->uri);
    add_text(o, "domain", c->domain);
    add_text(o, "uuid", c->uuid);
    add_text(o, "words", c->words);
    add_text(o, "snapshot", c->snapshot);
    add_text(o, "journal-dir", c->journal_dir);
    json_object_object_add(o, "remove", json_object_new_boolean(c->remove));
    json_object_object_add(o, "keep-relative", json_object_new_boolean(c->keep_relative));
    if (c->bitmaps != QMELD_BITMAPS_MERGE)
        add_text(o, "bitmaps", bitmaps_words[c->bitmaps]);
    json_object_object_add(o, "update-saved", json_object_new_boolean(c->update_saved));
    json_object_object_add(o, "live", json_object_new_boolean(c->live));
    QM_VEC_EACH (d, &c->disks)
        json_object_array_add(disks, disk_to_json(d));
    json_object_object_add(o, "disks", disks);
    return o;
}

static bool
get_path(struct json_object *o, const char *key, bool optional, char **out)
{
    return qm_field_text(o, key, optional, out) && (!*out || (*out)[0] == '/');
}

static bool
read_layer(struct json_object *o, struct qm_change_disk *d)
{
    struct qm_change_layer l = {.path = NULL};

    if (json_object_is_type(o, json_type_object) && qm_field_bool(o, "block-device", &l.blockdev) &&
        qm_field_number(o, "inode", &l.ino) && qm_field_time(o, "born", &l.born_sec) &&
        qm_field_time(o, "born-nsec", &l.born_nsec) && get_path(o, "path", false, &l.path) &&
        qm_field_text(o, "format", false, &l.format) && qm_vec_push(&d->layers, &l))
        return true;
    free(l.path);
    free(l.format);
    return false;
}

/* Into a disk that is released with its change. */
static bool
read_disk(struct json_object *o, struct qm_change_disk *d)
{
    struct json_object *layers;
    uint64_t base, top;

    if (!json_object_is_type(o, json_type_object) ||
        !qm_field_text(o, "target", false, &d->target) || !get_path(o, "note", false, &d->note) ||
        !qm_field_text(o, "backing-format", true, &d->backing_format) ||
        !qm_field_number(o, "base", &base) || !qm_field_number(o, "top", &top) ||
        !qm_field_array(o, "layers", &layers))
        return false;
    for (size_t i = 0; i < json_object_array_length(layers); i++)
        if (!read_layer(json_object_array_get_idx(layers, i), d))
            return false;
    d->base = base;
    d->top = top;
    return d->base < d->top && d->top < d->layers.n;
}

/* Not there: they are merged. */
static bool
get_bitmaps(struct json_object *o, enum qmeld_bitmaps *out)
{
    QM_FREE char *word = NULL;

    *out = QMELD_BITMAPS_MERGE;
    if (!json_object_object_get_ex(o, "bitmaps", NULL))
        return true;
    if (!qm_field_text(o, "bitmaps", false, &word))
        return false;
    for (size_t i = 0; i < sizeof bitmaps_words / sizeof *bitmaps_words; i++)
        if (strcmp(word, bitmaps_words[i]) == 0) {
            *out = (enum qmeld_bitmaps)i;
            return true;
        }
    return false;
}

static bool
from_json(struct json_object *o, struct qm_change *c)
{
    struct json_object *disks;

    if (!json_object_is_type(o, json_type_object) || !qm_field_text(o, "uri", false, &c->uri) ||
        !qm_field_text(o, "domain", false, &c->domain) ||
        !qm_field_text(o, "uuid", false, &c->uuid) ||
        !qm_field_text(o, "words", false, &c->words) ||
        !qm_field_text(o, "snapshot", true, &c->snapshot) ||
        !get_path(o, "journal-dir", true, &c->journal_dir) ||
        !qm_field_bool(o, "remove", &c->remove) ||
        !qm_field_bool(o, "keep-relative", &c->keep_relative) || !get_bitmaps(o, &c->bitmaps) ||
        !qm_field_bool(o, "update-saved", &c->update_saved) ||
        !qm_field_bool(o, "live", &c->live) || !qm_field_array(o, "disks", &disks))
        return false;
    for (size_t i = 0; i < json_object_array_length(disks); i++) {
        const struct qm_change_disk none = {.target = NULL};

        if (!qm_vec_push(&c->disks, &none) ||
            !read_disk(json_object_array_get_idx(disks, i), qm_vec_last(&c->disks)))
            return false;
    }
    return c->disks.n > 0;
}

int
qm_change_read(const char *path, const char *text, struct qm_change *out, struct qmeld_error *err)
{
    struct json_object *o = json_tokener_parse(text);
    bool good;

    *out = (struct qm_change){.uri = NULL};
    good = o && from_json(o, out);
    json_object_put(o);
    if (good)
        return 0;
    qm_change_release(out);
    /* the checksum was right */
    return qm_fail(err, QMELD_CORRUPT, qm_in(path),
                   "the note is not one of a domain that this qmeld understands: finish with the "
                   "qmeld that began");
}

/* ---- beside the bases ---- */

int
qm_change_unnote(const struct qm_change *change, struct qmeld_error *err)
{
    QM_VEC_EACH (d, &change->disks)
        if (qm_lib->note_remove(d->note, err) < 0)
            return -1;
    return 0;
}

int
qm_change_note_settled(const struct qm_change *change, struct qmeld_error *err)
{
    QM_VEC_EACH (d, &change->disks)
        if (qm_lib->note_step(d->note, SETTLED, err) < 0)
            return -1;
    return 0;
}

int
qm_change_is_settled(const struct qm_change *change, bool *out, struct qmeld_error *err)
{
    *out = false;
    QM_VEC_EACH (d, &change->disks) {
        QM_FREE char *text = NULL;
        unsigned step = 0;

        if (qm_lib->note_read(d->note, &text, &step, err) < 0)
            return -1;
        *out = *out || (text && step >= SETTLED);
    }
    return 0;
}

int
qm_change_note_again(const struct qm_change *change, struct qmeld_error *err)
{
    struct json_object *o = to_json(change);
    const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
    int rc = text ? 0 : qm_fail_nomem(err, "the note");

    for (size_t i = 0; rc == 0 && i < change->disks.n; i++) {
        const char *note = change->disks.at[i].note;
        QM_FREE char *there = NULL;

        rc = qm_lib->note_read(note, &there, NULL, err);
        if (rc == 0 && !there)
            rc = qm_lib->note_write(note, text, err);
    }
    json_object_put(o);
    return rc;
}

int
qm_change_note(const struct qm_change *change, struct qmeld_error *err)
{
    struct json_object *o = to_json(change);
    const char *text = json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY);
    struct qmeld_error unheard;
    size_t done = 0;

    if (!text) {
        json_object_put(o);
        return qm_fail_nomem(err, "the note");
    }
    while (done < change->disks.n &&
           qm_lib->note_write(change->disks.at[done].note, text, err) == 0)
        done++;
    json_object_put(o);
    if (done == change->disks.n)
        return 0;
    while (done-- > 0) /* nothing has begun: what stays is ended by nothing being to do */
        if (qm_lib->note_remove(change->disks.at[done].note, &unheard) < 0)
            unheard.code = QMELD_OK;
    return -1;
}
