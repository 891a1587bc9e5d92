/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "intent.h"

#include "fields.h"
#include "nbd_name.h"

#include <json.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void
qm_journal_layer_release(struct qm_journal_layer *l)
{
    free(l->path);
    free(l->format);
    free(l->backing_name);
    free(l->backing_format);
    free(l->moved_to);
    free(l->data.path);
}

/* What is not there was refused when the chain was opened; a server's name stays as it is. */
bool
qm_intent_allow(struct qm_intent *i, const char *const *allow)
{
    char *end = NULL;

    for (; allow && *allow; allow++) {
        char *path = realpath(*allow, NULL);

        if (!path)
            path = strdup(*allow);
        if (!path || !qm_vec_push(&i->allow, &path)) {
            free(path);
            return false;
        }
    }
    return i->allow.n == 0 || qm_vec_push(&i->allow, &end);
}

void
qm_guarded_release(struct qm_guarded *g)
{
    qm_journal_layer_release(&g->file);
}

void
qm_intent_release(struct qm_intent *i)
{
    free(i->base_arg);
    free(i->top_arg);
    free(i->backing_format);
    free(i->journal);
    free(i->new_backing);
    free(i->new_format);
    QM_VEC_EACH (a, &i->allow)
        free(*a);
    qm_vec_release(&i->allow);
    QM_VEC_EACH (l, &i->layers)
        qm_journal_layer_release(l);
    qm_vec_release(&i->layers);
    qm_bitmap_names_release(&i->bitmaps);
    qm_bitmap_orders_release(&i->orders);
    QM_VEC_EACH (g, &i->guarded)
        qm_guarded_release(g);
    qm_vec_release(&i->guarded);
    *i = (struct qm_intent){.base_arg = NULL};
}

static struct json_object *
string_or_null(const char *s)
{
    return s ? json_object_new_string(s) : NULL;
}

static void
add_birth(struct json_object *o, const struct qm_birth *born)
{
    if (born->sec == 0 && born->nsec == 0)
        return;
    json_object_object_add(o, "born", json_object_new_int64(born->sec));
    json_object_object_add(o, "born-nsec", json_object_new_int64(born->nsec));
}

static struct json_object *
data_to_json(const struct qm_journal_data *d)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "path", json_object_new_string(d->path));
    json_object_object_add(o, "inode", json_object_new_uint64(d->ino));
    json_object_object_add(o, "size", json_object_new_uint64(d->size));
    json_object_object_add(o, "mtime", json_object_new_int64(d->mtime_sec));
    json_object_object_add(o, "mtime-nsec", json_object_new_int64(d->mtime_nsec));
    add_birth(o, &d->born);
    return o;
}

static struct json_object *
layer_to_json(const struct qm_journal_layer *l)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "path", json_object_new_string(l->path));
    json_object_object_add(o, "format", json_object_new_string(l->format));
    json_object_object_add(o, "block-device", json_object_new_boolean(l->blockdev));
    json_object_object_add(o, "inode", json_object_new_uint64(l->ino));
    json_object_object_add(o, "size", json_object_new_uint64(l->size));
    json_object_object_add(o, "mtime", json_object_new_int64(l->mtime_sec));
    json_object_object_add(o, "mtime-nsec", json_object_new_int64(l->mtime_nsec));
    add_birth(o, &l->born);
    if (l->backing_name)
        json_object_object_add(o, "backing-name", json_object_new_string(l->backing_name));
    if (l->backing_format)
        json_object_object_add(o, "backing-format", json_object_new_string(l->backing_format));
    if (l->moved_to)
        json_object_object_add(o, "moved-to", json_object_new_string(l->moved_to));
    if (l->data.path)
        json_object_object_add(o, "data-file", data_to_json(&l->data));
    return o;
}

static struct json_object *
hex_of(const unsigned char *bytes, size_t n)
{
    char hex[2 * QM_HEADER_SECTOR + 1] = "";

    for (size_t k = 0; k < n; k++)
        snprintf(hex + 2 * k, 3, "%02x", bytes[k]);
    return json_object_new_string(hex);
}

static struct json_object *
way_to_json(const struct qm_way_back *w)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "kind", json_object_new_int((int)w->kind));
    if (w->kind == QM_WAY_NONE)
        return o;
    json_object_object_add(o, "file-size", json_object_new_uint64(w->file_size));
    if (w->kind == QM_WAY_KEEP)
        return o;
    json_object_object_add(o, "floor", json_object_new_uint64(w->floor));
    json_object_object_add(o, "sector-0", hex_of(w->sector, sizeof w->sector));
    if (w->ext.len) {
        json_object_object_add(o, "extension-at", json_object_new_uint64(w->ext.off));
        json_object_object_add(o, "extension", hex_of(w->ext.bytes, w->ext.len));
    }
    return o;
}

static struct json_object *
allow_to_json(const struct qm_intent *i)
{
    struct json_object *a = json_object_new_array();

    QM_VEC_EACH (path, &i->allow)
        if (*path)
            json_object_array_add(a, json_object_new_string(*path));
    return a;
}

static struct json_object *
order_to_json(const struct qm_bitmap_order *b)
{
    struct json_object *o = json_object_new_object();

    json_object_object_add(o, "name", json_object_new_string(b->name));
    json_object_object_add(o, "deed", json_object_new_int((int)b->deed));
    json_object_object_add(o, "created", json_object_new_boolean(b->created));
    json_object_object_add(o, "enabled", json_object_new_boolean(b->enabled));
    json_object_object_add(o, "marks", json_object_new_boolean(b->marks));
    json_object_object_add(o, "granularity-bits", json_object_new_uint64(b->granularity_bits));
    json_object_object_add(o, "layer", json_object_new_uint64(b->layer));
    json_object_object_add(o, "broken", json_object_new_boolean(b->broken));
    return o;
}

/* What most merges have nothing of. */
static void
add_orders(const struct qm_intent *i, struct json_object *o)
{
    struct json_object *orders;

    if (i->already)
        json_object_object_add(o, "already-merged", json_object_new_boolean(true));
    if (i->bitmaps_mode != QMELD_BITMAPS_MERGE)
        json_object_object_add(o, "bitmaps-mode", json_object_new_int((int)i->bitmaps_mode));
    if (i->orders.list.n == 0)
        return;
    orders = json_object_new_array();
    QM_VEC_EACH (b, &i->orders.list)
        json_object_array_add(orders, order_to_json(b));
    json_object_object_add(o, "bitmap-orders", orders);
}

static struct json_object *
names_to_json(const struct qm_bitmap_names *names)
{
    struct json_object *array = json_object_new_array();

    QM_VEC_EACH (b, &names->list)
        json_object_array_add(array, json_object_new_string(*b));
    return array;
}

static struct json_object *
guarded_to_json(const struct qm_intent *i)
{
    struct json_object *array = json_object_new_array();

    QM_VEC_EACH (g, &i->guarded) {
        struct json_object *o = json_object_new_object();

        json_object_object_add(o, "image", layer_to_json(&g->file));
        json_object_object_add(o, "stands-on", json_object_new_uint64(g->layer));
        if (g->own)
            json_object_object_add(o, "own-snapshots", json_object_new_boolean(true));
        json_object_array_add(array, o);
    }
    return array;
}

static struct json_object *
intent_to_json(const struct qm_intent *i)
{
    struct json_object *o = json_object_new_object();
    struct json_object *layers = json_object_new_array();

    json_object_object_add(o, "base-arg", string_or_null(i->base_arg));
    json_object_object_add(o, "top-arg", string_or_null(i->top_arg));
    json_object_object_add(o, "backing-format", string_or_null(i->backing_format));
    if (i->journal)
        json_object_object_add(o, "journal", json_object_new_string(i->journal));
    if (i->allow.n > 0)
        json_object_object_add(o, "allow-paths", allow_to_json(i));
    json_object_object_add(o, "shallow", json_object_new_boolean(i->shallow));
    json_object_object_add(o, "keep-relative", json_object_new_boolean(i->keep_relative));
    if (i->verify)
        json_object_object_add(o, "verify", json_object_new_boolean(true));
    if (i->decompress)
        json_object_object_add(o, "decompress", json_object_new_boolean(true));
    json_object_object_add(o, "reclaim", json_object_new_boolean(i->reclaim));
    if (i->skip_equal)
        json_object_object_add(o, "skip-equal", json_object_new_boolean(true));
    if (i->detect_zeroes)
        json_object_object_add(o, "detect-zeroes", json_object_new_boolean(true));
    json_object_object_add(o, "overlays", json_object_new_int((int)i->overlays));
    if (i->direction != QMELD_DIRECTION_DOWN)
        json_object_object_add(o, "direction", json_object_new_int((int)i->direction));
    if (i->target != i->base) {
        json_object_object_add(o, "target", json_object_new_uint64(i->target));
        json_object_object_add(o, "target-size", json_object_new_uint64(i->old_size));
    }
    json_object_object_add(o, "base", json_object_new_uint64(i->base));
    json_object_object_add(o, "top", json_object_new_uint64(i->top));
    json_object_object_add(o, "base-size", json_object_new_uint64(i->base_size));
    json_object_object_add(o, "new-size", json_object_new_uint64(i->new_size));
    if (i->back.kind != QM_WAY_NONE) {
        json_object_object_add(o, "atomic", json_object_new_boolean(i->atomic));
        json_object_object_add(o, "undo", json_object_new_boolean(i->undo));
        json_object_object_add(o, "way-back", way_to_json(&i->back));
    }
    if (i->fold)
        json_object_object_add(o, "fold", json_object_new_uint64(i->keep));
    if (i->rebase) {
        struct json_object *onto = json_object_new_object();

        json_object_object_add(onto, "backing-name", string_or_null(i->new_backing));
        json_object_object_add(onto, "backing-format", string_or_null(i->new_format));
        json_object_object_add(o, "rebase", onto);
    }
    QM_VEC_EACH (l, &i->layers)
        json_object_array_add(layers, layer_to_json(l));
    json_object_object_add(o, "layers", layers);
    json_object_object_add(o, "bitmaps", names_to_json(&i->bitmaps));
    if (i->guarded.n > 0)
        json_object_object_add(o, "protected", guarded_to_json(i));
    add_orders(i, o);
    return o;
}

static bool
get_optional(struct json_object *o, const char *key, char **out)
{
    *out = NULL;
    return !json_object_object_get_ex(o, key, NULL) || qm_field_text(o, key, true, out);
}

static bool
get_if_there(struct json_object *o, const char *key, bool *out)
{
    return !json_object_object_get_ex(o, key, NULL) || qm_field_bool(o, key, out);
}

/* Not there: NULL. */
static bool
get_new_path(struct json_object *o, const char *key, char **out)
{
    *out = NULL;
    if (!json_object_object_get_ex(o, key, NULL))
        return true;
    return qm_field_text(o, key, true, out) && *out && **out == '/';
}

static bool
bytes_from_hex(const char *hex, size_t n, unsigned char *out)
{
    if (strlen(hex) != 2 * n || strspn(hex, "0123456789abcdef") != 2 * n)
        return false;
    for (size_t k = 0; k < n; k++) {
        const char two[3] = {hex[2 * k], hex[2 * k + 1], '\0'};

        out[k] = (unsigned char)strtoul(two, NULL, 16);
    }
    return true;
}

/* Inside a header cluster, and not in the fixed fields. */
static bool
get_ext(struct json_object *o, struct qm_header_place *out)
{
    QM_FREE char *hex = NULL;

    *out = (struct qm_header_place){.off = 0};
    if (!json_object_object_get_ex(o, "extension-at", NULL))
        return true;
    if (!qm_field_number(o, "extension-at", &out->off) ||
        !qm_field_text(o, "extension", true, &hex) || !hex || strlen(hex) / 2 > sizeof out->bytes ||
        strlen(hex) < 2 * sizeof(struct qcow2_disk_ext))
        return false;
    out->len = (uint32_t)(strlen(hex) / 2);
    return out->off >= QCOW2_V3_HEADER_LEN &&
           qm_inside(out->off, out->len, 1ull << QCOW2_MAX_CLUSTER_BITS) &&
           bytes_from_hex(hex, out->len, out->bytes);
}

static bool
way_from_json(struct json_object *o, struct qm_way_back *w)
{
    QM_FREE char *hex = NULL;
    uint64_t kind;

    if (!json_object_is_type(o, json_type_object) || !qm_field_number(o, "kind", &kind) ||
        kind > QM_WAY_KEEP)
        return false;
    w->kind = (enum qm_way)kind;
    if (w->kind != QM_WAY_NONE && !qm_field_number(o, "file-size", &w->file_size))
        return false;
    return w->kind != QM_WAY_SWITCH ||
           (qm_field_number(o, "floor", &w->floor) && qm_field_text(o, "sector-0", true, &hex) &&
            hex && bytes_from_hex(hex, QM_HEADER_SECTOR, w->sector) && get_ext(o, &w->ext));
}

/* Merges without a way back need not say so. */
static bool
get_way(struct json_object *o, struct qm_intent *i)
{
    struct json_object *way;

    if (!json_object_object_get_ex(o, "way-back", &way))
        return true;
    return qm_field_bool(o, "atomic", &i->atomic) && qm_field_bool(o, "undo", &i->undo) &&
           way_from_json(way, &i->back);
}

static bool
get_rebase(struct json_object *o, struct qm_intent *i)
{
    struct json_object *onto;

    i->rebase = json_object_object_get_ex(o, "rebase", &onto);
    return !i->rebase || (json_object_is_type(onto, json_type_object) &&
                          qm_field_text(onto, "backing-name", true, &i->new_backing) &&
                          qm_field_text(onto, "backing-format", true, &i->new_format) &&
                          (i->new_backing != NULL) == (i->new_format != NULL));
}

static bool
get_fold(struct json_object *o, struct qm_intent *i)
{
    i->fold = json_object_object_get_ex(o, "fold", NULL);
    return !i->fold || qm_field_number(o, "fold", &i->keep);
}

static bool
get_birth(struct json_object *o, struct qm_birth *out)
{
    return !json_object_object_get_ex(o, "born", NULL) ||
           (qm_field_time(o, "born", &out->sec) && qm_field_time(o, "born-nsec", &out->nsec));
}

static bool
get_data(struct json_object *o, struct qm_journal_data *d)
{
    struct json_object *data;

    if (!json_object_object_get_ex(o, "data-file", &data))
        return true;
    return json_object_is_type(data, json_type_object) &&
           qm_field_text(data, "path", true, &d->path) && d->path && d->path[0] == '/' &&
           qm_field_number(data, "inode", &d->ino) && qm_field_number(data, "size", &d->size) &&
           qm_field_time(data, "mtime", &d->mtime_sec) &&
           qm_field_time(data, "mtime-nsec", &d->mtime_nsec) && get_birth(data, &d->born);
}

static bool
file_from_json(struct json_object *o, struct qm_journal_layer *out)
{
    *out = (struct qm_journal_layer){.path = NULL};
    if (json_object_is_type(o, json_type_object) &&
        qm_field_bool(o, "block-device", &out->blockdev) &&
        qm_field_number(o, "inode", &out->ino) && qm_field_number(o, "size", &out->size) &&
        qm_field_time(o, "mtime", &out->mtime_sec) &&
        qm_field_time(o, "mtime-nsec", &out->mtime_nsec) && get_birth(o, &out->born) &&
        qm_field_text(o, "path", true, &out->path) && out->path &&
        (out->path[0] == '/' || qm_nbd_is_name(out->path)) &&
        qm_field_text(o, "format", true, &out->format) && out->format &&
        get_optional(o, "backing-name", &out->backing_name) &&
        get_optional(o, "backing-format", &out->backing_format) &&
        get_new_path(o, "moved-to", &out->moved_to) && get_data(o, &out->data))
        return true;
    qm_journal_layer_release(out);
    return false;
}

static bool
layer_from_json(struct json_object *o, struct qm_intent *i)
{
    struct qm_journal_layer l;

    if (!file_from_json(o, &l))
        return false;
    if (qm_vec_push(&i->layers, &l))
        return true;
    qm_journal_layer_release(&l);
    return false;
}

static bool
names_from_json(struct json_object *o, const char *key, struct qm_bitmap_names *out)
{
    struct json_object *array;

    if (!json_object_object_get_ex(o, key, &array) || !json_object_is_type(array, json_type_array))
        return false;
    for (size_t k = 0; k < json_object_array_length(array); k++) {
        struct json_object *v = json_object_array_get_idx(array, k);
        char *name =
            json_object_is_type(v, json_type_string) ? strdup(json_object_get_string(v)) : NULL;

        if (!name || !qm_vec_push(&out->list, &name)) {
            free(name);
            return false;
        }
    }
    return true;
}

static bool
guarded_from_json(struct json_object *o, struct qm_intent *i)
{
    struct qm_guarded g = {.layer = 0};
    struct json_object *image;
    uint64_t layer;

    if (json_object_is_type(o, json_type_object) && json_object_object_get_ex(o, "image", &image) &&
        file_from_json(image, &g.file)) {
        if (g.file.backing_name && qm_field_number(o, "stands-on", &layer) && layer >= i->base &&
            layer <= i->top && get_if_there(o, "own-snapshots", &g.own) &&
            (!g.own || layer < i->top)) {
            g.layer = layer;
            if (qm_vec_push(&i->guarded, &g))
                return true;
        }
        qm_guarded_release(&g);
    }
    return false;
}

bool
qm_intent_guards_layer(const struct qm_intent *i, size_t layer)
{
    QM_VEC_EACH (g, &i->guarded)
        if (g->own && g->layer + 1 == layer)
            return true;
    return false;
}

/* They are looked up by name. */
static bool
is_sorted(const struct qm_intent *i)
{
    for (size_t k = 1; k < i->orders.list.n; k++)
        if (strcmp(i->orders.list.at[k - 1].name, i->orders.list.at[k].name) >= 0)
            return false;
    return true;
}

static bool
order_from_json(struct json_object *o, struct qm_intent *i)
{
    struct qm_bitmap_order b = {.name = NULL};
    uint64_t deed, bits, layer;

    if (!json_object_is_type(o, json_type_object) || !qm_field_number(o, "deed", &deed) ||
        deed > QM_BITMAP_LEAVE || !qm_field_bool(o, "created", &b.created) ||
        !qm_field_bool(o, "enabled", &b.enabled) || !qm_field_bool(o, "marks", &b.marks) ||
        !qm_field_bool(o, "broken", &b.broken) || !qm_field_number(o, "granularity-bits", &bits) ||
        !qm_field_number(o, "layer", &layer) ||
        (deed == QM_BITMAP_CARRY && (bits < 9 || bits > 31)) || layer >= i->layers.n ||
        !qm_field_text(o, "name", true, &b.name) || !b.name || !*b.name) {
        free(b.name);
        return false;
    }
    b.deed = (enum qm_bitmap_deed)deed;
    b.granularity_bits = (uint32_t)bits;
    b.layer = layer;
    if (qm_vec_push(&i->orders.list, &b))
        return true;
    free(b.name);
    return false;
}

static bool
each(struct json_object *o, const char *key, struct qm_intent *i,
     bool (*fn)(struct json_object *, struct qm_intent *))
{
    struct json_object *array;

    if (!json_object_object_get_ex(o, key, &array) || !json_object_is_type(array, json_type_array))
        return false;
    for (size_t k = 0; k < json_object_array_length(array); k++)
        if (!fn(json_object_array_get_idx(array, k), i))
            return false;
    return true;
}

/* After the layers. */
static bool
get_orders(struct json_object *o, struct qm_intent *i)
{
    uint64_t mode = QMELD_BITMAPS_MERGE;

    if (json_object_object_get_ex(o, "bitmaps-mode", NULL) &&
        !qm_field_number(o, "bitmaps-mode", &mode))
        return false;
    i->bitmaps_mode = (enum qmeld_bitmaps)mode;
    return mode <= QMELD_BITMAPS_DROP && get_if_there(o, "already-merged", &i->already) &&
           (!json_object_object_get_ex(o, "bitmap-orders", NULL) ||
            each(o, "bitmap-orders", i, order_from_json)) &&
           is_sorted(i);
}

/* Those that are to be put aside, or to take the base's name, have new names, and no others. */
static bool
new_names_fit(const struct qm_intent *i)
{
    for (size_t k = 0; k < i->layers.n; k++) {
        const bool aside = i->overlays == QMELD_OVERLAYS_QUARANTINE && k > i->base && k <= i->top;
        const bool up = i->target > i->base && k == i->target;
        const char *to = i->layers.at[k].moved_to;

        if ((aside || up) != (to != NULL) || (up && strcmp(to, i->layers.at[i->base].path) != 0))
            return false;
    }
    return true;
}

static bool
get_optional_number(struct json_object *o, const char *key, uint64_t otherwise, uint64_t *out)
{
    *out = otherwise;
    return !json_object_object_get_ex(o, key, NULL) || qm_field_number(o, key, out);
}

/* The merge goes down, or all that going up stands on was so when it began. */
static bool
get_direction(struct json_object *o, struct qm_intent *i)
{
    uint64_t direction, target;

    if (!get_optional_number(o, "direction", QMELD_DIRECTION_DOWN, &direction) ||
        direction > QMELD_DIRECTION_AUTO || !get_optional_number(o, "target", i->base, &target) ||
        !get_optional_number(o, "target-size", i->base_size, &i->old_size))
        return false;
    i->direction = (enum qmeld_direction)direction;
    i->target = target;
    return target == i->base ||
           (target > i->base && target <= i->top && i->overlays == QMELD_OVERLAYS_DELETE &&
            !i->reclaim && i->back.kind == QM_WAY_NONE);
}

static bool
allow_from_json(struct json_object *o, struct qm_intent *i)
{
    const char *const one[] = {
        json_object_is_type(o, json_type_string) ? json_object_get_string(o) : NULL, NULL};

    if (!one[0])
        return false;
    if (i->allow.n > 0) /* the NULL at its end */
        i->allow.n--;
    return qm_intent_allow(i, one);
}

/* What the merge is to do with these layers. */
static bool
fits_layers(const struct qm_intent *i)
{
    if ((i->rebase ? i->base != i->top || i->top + 1 != i->layers.n : i->base >= i->top) ||
        i->top >= i->layers.n || i->base_size > i->new_size || i->old_size > i->new_size ||
        (i->fold && (i->rebase || i->base != 0 || i->keep != i->layers.n - 1 - i->top)) ||
        !new_names_fit(i))
        return false;
    return i->target == i->base || (strcmp(i->layers.at[i->target].format, "qcow2") == 0 &&
                                    strcmp(i->layers.at[i->base].format, "qcow2") == 0 &&
                                    (i->layers.at[i->base].backing_name != NULL) == (i->base > 0));
}

static bool
intent_from_json(struct json_object *o, struct qm_intent *i)
{
    uint64_t overlays, base, top;

    if (!json_object_is_type(o, json_type_object))
        return false;
    if (!qm_field_bool(o, "shallow", &i->shallow) ||
        !qm_field_bool(o, "keep-relative", &i->keep_relative) ||
        !get_if_there(o, "verify", &i->verify) || !get_if_there(o, "skip-equal", &i->skip_equal) ||
        !get_if_there(o, "detect-zeroes", &i->detect_zeroes) ||
        !get_if_there(o, "decompress", &i->decompress) ||
        !qm_field_bool(o, "reclaim", &i->reclaim) || !get_way(o, i) ||
        !qm_field_number(o, "overlays", &overlays) || overlays > QMELD_OVERLAYS_QUARANTINE ||
        !qm_field_number(o, "base", &base) || !qm_field_number(o, "top", &top) ||
        !qm_field_number(o, "base-size", &i->base_size) ||
        !qm_field_number(o, "new-size", &i->new_size))
        return false;
    i->overlays = (enum qmeld_overlays)overlays;
    i->base = base;
    i->top = top;
    if (!get_direction(o, i))
        return false;
    return qm_field_text(o, "base-arg", true, &i->base_arg) &&
           qm_field_text(o, "top-arg", true, &i->top_arg) &&
           qm_field_text(o, "backing-format", true, &i->backing_format) &&
           get_optional(o, "journal", &i->journal) && each(o, "layers", i, layer_from_json) &&
           names_from_json(o, "bitmaps", &i->bitmaps) &&
           (!json_object_object_get_ex(o, "allow-paths", NULL) ||
            each(o, "allow-paths", i, allow_from_json)) &&
           (!json_object_object_get_ex(o, "protected", NULL) ||
            each(o, "protected", i, guarded_from_json)) &&
           get_fold(o, i) && get_orders(o, i) && get_rebase(o, i) && fits_layers(i);
}

char *
qm_intent_text(const struct qm_intent *i)
{
    struct json_object *o = intent_to_json(i);
    const char *text = o ? json_object_to_json_string_ext(o, JSON_C_TO_STRING_PRETTY) : NULL;
    char *out = text ? strdup(text) : NULL;

    json_object_put(o);
    return out;
}

bool
qm_intent_parse(const char *text, struct qm_intent *out)
{
    struct json_object *o = json_tokener_parse(text);
    bool good;

    *out = (struct qm_intent){.base_arg = NULL};
    good = o && intent_from_json(o, out);
    json_object_put(o);
    return good;
}

int
qm_intent_copy(const struct qm_intent *from, struct qm_intent *out, struct qmeld_error *err)
{
    QM_FREE char *text = qm_intent_text(from);

    if (text && qm_intent_parse(text, out))
        return 0;
    if (text)
        qm_intent_release(out);
    return qm_fail_nomem(err, "the journal");
}
