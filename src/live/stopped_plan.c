/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stopped_plan.c - which layers of a stopped machine's disks are to be merged.
 *
 * The chain is read twice: the definition says what the machine would open, the headers what the images
 * say.  Where both speak they have to agree; the definition often names the active layer only.
 */
#include "stopped.h"

#include "defs.h"
#include "range.h"

#include <stdio.h>
#include <string.h>

/* ---- the chain ---- */

static int
add_layers(struct qmeld_chain *chain, struct qm_change_disk *out, struct qmeld_error *err)
{
    for (size_t i = 0; i < qm_lib->chain_depth(chain); i++) {
        struct qmeld_layer_info info;

        if (qm_lib->chain_layer(chain, i, &info, err) < 0)
            return -1;
        if (info.path[0] != '/')
            return qm_fail(
                err, QMELD_UNSUPPORTED, qm_in(info.path),
                "its overlay names it relative to a working directory, and libvirt's is "
                "not ours: give the overlay an absolute name for it (qemu-img rebase -u)");
        if (qm_change_add_layer(out, info.path, info.format, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_stopped_read_chain(const char *active, const char *format, struct qm_change_disk *out,
                      struct qmeld_error *err)
{
    const struct qmeld_open_options options = {.format = format};
    struct qmeld_chain *chain;
    int rc;

    if (qm_lib->chain_open(active, &options, &chain, err) < 0)
        return -1;
    rc = add_layers(chain, out, err);
    qm_lib->chain_close(chain);
    return rc;
}

static int
disagree(const struct qm_domxml_disk *xml, const char *path, const char *says,
         struct qmeld_error *err)
{
    return qm_fail(err, QMELD_USAGE, qm_in(path),
                   "the machine's definition of disk %s says that this is %s, and the images' "
                   "headers do not: put one of them right first",
                   xml->target, says);
}

/* libvirt keeps the passphrase, and the base's <encryption> would have to become the active layer's. */
static int
refuse_encrypted(const struct qm_stopped *s, const struct qm_domxml_disk *xml,
                 struct qmeld_error *err)
{
    const char *word = qm_domain_word(s->domain);

    return qm_fail(
        err, QMELD_UNSUPPORTED, qm_nowhere(),
        "disk %s has an encrypted layer, and its passphrase is libvirt's: let QEMU merge it: "
        "`virsh start --paused %s`, the same command again (with --pivot, if the active layer is "
        "merged), `virsh destroy %s`",
        xml->target, word, word);
}

/* A layer as the definition has it, depth counted from the active one. */
static int
compare_layer(struct qm_stopped *s, const struct qm_domxml_disk *xml, size_t depth,
              struct qm_change_disk *disk, struct qmeld_error *err)
{
    const struct qm_domxml_source *said = &xml->layers.at[depth];
    QM_FREE char *path = NULL;
    QM_FREE char *place = NULL;
    size_t layer;

    if (qm_stopped_path(s, said, &path, err) < 0)
        return -1;
    if (!path || said->slices)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_nowhere(),
                       "disk %s has a layer %s: only files and block devices are merged while the "
                       "machine is stopped; start it and merge then",
                       xml->target,
                       said->slices ? "that is a part of a file" : "that lies on the network");
    if (said->encrypted)
        return refuse_encrypted(s, xml, err);
    layer = qm_change_find(disk, path);
    if (asprintf(&place, "layer %zu below the active one", depth) < 0)
        place = NULL;
    if (layer + depth + 1 != disk->layers.n)
        return disagree(xml, path, place ? place : "a layer", err);
    if (said->format && strcmp(said->format, disk->layers.at[layer].format) != 0)
        return disagree(xml, path, said->format, err);
    return 0;
}

/* The library refuses layers whose format nobody stored; the definition may tell it. */
static int
take_format(const struct qm_domxml_disk *xml, struct qm_change_disk *disk, struct qmeld_error *err)
{
    for (size_t depth = 1; depth < xml->layers.n && !disk->backing_format; depth++)
        if (xml->layers.at[depth].format) {
            disk->backing_format = strdup(xml->layers.at[depth].format);
            if (!disk->backing_format)
                return qm_fail_nomem(err, "a format");
        }
    for (size_t depth = 1; depth < xml->layers.n; depth++)
        if (disk->backing_format && xml->layers.at[depth].format &&
            strcmp(disk->backing_format, xml->layers.at[depth].format) != 0) {
            free(QM_TAKE(disk->backing_format)); /* more than one: none for all */
            return 0;
        }
    return 0;
}

static int
compare(struct qm_stopped *s, const struct qm_domxml_disk *xml, struct qm_change_disk *disk,
        struct qmeld_error *err)
{
    for (size_t depth = 0; depth < xml->layers.n; depth++)
        if (compare_layer(s, xml, depth, disk, err) < 0)
            return -1;
    if (xml->terminated && xml->layers.n != disk->layers.n)
        return disagree(xml, disk->layers.at[disk->layers.n - xml->layers.n].path, "the last layer",
                        err);
    return take_format(xml, disk, err);
}

/* Also of layers that the definition does not tell of. */
static int
check_encryption(struct qm_stopped *s, const struct qm_domxml_disk *xml, const char *active,
                 const char *format, struct qmeld_error *err)
{
    const struct qmeld_open_options options = {.format = format};
    struct qmeld_chain *chain;
    struct qmeld_layer_info info;
    int rc = qm_lib->chain_open(active, &options, &chain, err);

    if (rc < 0)
        return -1;
    for (size_t i = 0; rc == 0 && i < qm_lib->chain_depth(chain); i++) {
        rc = qm_lib->chain_layer(chain, i, &info, err);
        if (rc == 0 && info.encryption)
            rc = refuse_encrypted(s, xml, err);
    }
    qm_lib->chain_close(chain);
    return rc;
}

static int
read_disk(struct qm_stopped *s, const struct qm_domxml_disk *xml, struct qm_change_disk *out,
          struct qmeld_error *err)
{
    const char *format = xml->layers.at[0].format;
    QM_FREE char *path = NULL;

    out->target = strdup(xml->target);
    if (!out->target)
        return qm_fail_nomem(err, "a disk");
    if (qm_stopped_path(s, &xml->layers.at[0], &path, err) < 0)
        return -1;
    if (!path)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_nowhere(),
                       "disk %s lies on the network: it can be merged while the machine runs only",
                       xml->target);
    /* libvirt: no format is raw (formatdomain.rst, <driver>) */
    if (qm_stopped_read_chain(path, format ? format : "raw", out, err) < 0 ||
        check_encryption(s, xml, path, format ? format : "raw", err) < 0)
        return -1;
    return compare(s, xml, out, err);
}

/* ---- the range ---- */

static int
find_layer(const struct qm_change_disk *disk, const char *name, size_t *out,
           struct qmeld_error *err)
{
    const char *bracket = strchr(name, '[');
    char *end = NULL;
    unsigned long number;

    *out = name[0] == '[' ? disk->layers.n : qm_change_find(disk, name);
    if (*out < disk->layers.n)
        return 0;
    number = bracket ? strtoul(bracket + 1, &end, 10) : 0;
    if (bracket && strcmp(end, "]") == 0 && name[0] != '[')
        return qm_fail(
            err, QMELD_USAGE, qm_nowhere(),
            "%s is a number of the running machine, and it is stopped: name the layer by "
            "path, or by [N] counted from the base, which is [1]",
            name);
    if (name[0] == '[' && end != name + 1 && strcmp(end, "]") == 0 && number >= 1 &&
        number <= disk->layers.n) {
        *out = number - 1;
        return 0;
    }
    return qm_fail(err, QMELD_USAGE, qm_in(name),
                   "it is no layer of disk %s: `qmeld info %s` shows them", disk->target,
                   disk->layers.at[disk->layers.n - 1].path);
}

/* *out_empty: there is nothing under top. */
static int
find_range(const struct qm_stopped *s, struct qm_change_disk *disk, bool *out_empty,
           struct qmeld_error *err)
{
    const struct qm_live_commit *r = s->request;

    disk->top = disk->layers.n - 1;
    if (r->top && find_layer(disk, r->top, &disk->top, err) < 0)
        return -1;
    disk->base = r->shallow && disk->top > 0 ? disk->top - 1 : 0;
    if (r->base && find_layer(disk, r->base, &disk->base, err) < 0)
        return -1;
    *out_empty = disk->layers.n == 1;
    if (*out_empty)
        return 0;
    if (disk->base >= disk->top)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_change_base(disk)->path),
                       "the base must lie below the top %s in the chain",
                       disk->layers.at[disk->top].path);
    if (r->shallow && disk->base + 1 != disk->top)
        return qm_fail(err, QMELD_USAGE, qm_in(qm_change_base(disk)->path),
                       "it does not lie directly under the top %s: leave out --base or --shallow",
                       disk->layers.at[disk->top].path);
    return 0;
}

/* ---- disks ---- */

static int
refuse_disk(const struct qm_domxml_disk *xml, struct qmeld_error *err)
{
    const char *why = xml->transient   ? "transient: libvirt throws its top away at each stop"
                      : xml->shareable ? "shareable: several machines use it"
                      : xml->readonly  ? "read-only: the machine is not to change what it reads"
                                       : NULL;

    if (why)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "disk %s is %s", xml->target, why);
    if (xml->layers.n == 0)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "disk %s is an empty drive", xml->target);
    return 0;
}

static void
release_disk(struct qm_change_disk *disk)
{
    struct qm_change one = {.uri = NULL};

    if (qm_vec_push(&one.disks, disk))
        qm_change_release(&one);
}

/* How the range of a disk is found. */
typedef int range_fn(const struct qm_stopped *s, struct qm_change_disk *disk, bool *out_empty,
                     struct qmeld_error *err);

static int
add_disk(struct qm_stopped *s, const struct qm_domxml_disk *xml, range_fn *range,
         struct qmeld_error *err)
{
    struct qm_change_disk disk = {.target = NULL};
    bool empty = false;
    int rc = refuse_disk(xml, err);

    if (rc == 0)
        rc = read_disk(s, xml, &disk, err);
    if (rc == 0)
        rc = range(s, &disk, &empty, err);
    if (rc == 0 && !empty)
        rc = qm_lib->note_path(qm_change_base(&disk)->path, disk.layers.at[disk.layers.n - 1].path,
                               s->change.journal_dir, &disk.note, err);
    if (rc == 0 && !empty) {
        if (qm_vec_push(&s->change.disks, &disk))
            return 0;
        rc = qm_fail_nomem(err, "a disk");
    }
    release_disk(&disk);
    return rc;
}

/* Drives for media, and what has no layer to merge by its kind, are no part of "all". */
static int
add_all(struct qm_stopped *s, const struct qm_domxml *x, struct qmeld_error *err)
{
    if (s->request->base || s->request->top)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "--base and --top name layers of one disk: leave them out, or --all-disks");
    QM_VEC_EACH (xml, &x->disks) {
        const bool media = strcmp(xml->device, "cdrom") == 0 || strcmp(xml->device, "floppy") == 0;
        const char *format = xml->layers.n ? xml->layers.at[0].format : NULL;

        if (media || xml->layers.n == 0 || !format || strcmp(format, "raw") == 0)
            continue;
        if (add_disk(s, xml, find_range, err) < 0)
            return -1;
    }
    return 0;
}

static int
add_named(struct qm_stopped *s, const struct qm_domxml *x, struct qmeld_error *err)
{
    const struct qm_domxml_disk *xml;

    if (!s->request->disk)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "no disk is named");
    xml = qm_range_disk(x, s->request->disk, true, err);
    return xml ? add_disk(s, xml, find_range, err) : -1;
}

/* ---- a snapshot ---- */

/* base is set by the caller to the layer that the snapshot put on the chain; it merges into the next. */
static int
one_layer(const struct qm_stopped *s, struct qm_change_disk *disk, bool *out_empty,
          struct qmeld_error *err)
{
    const struct qm_domxml_snap_disk *own = s->planning;
    const size_t layer = own->source.path ? qm_change_find(disk, own->source.path) : 0;

    *out_empty = false;
    if (layer == 0 || layer >= disk->layers.n)
        return qm_fail(
            err, QMELD_USAGE, qm_in(own->source.path ? own->source.path : ""),
            "the snapshot's file is not in the chain that disk %s has now: it was merged "
            "already, or the snapshot is on another branch; virsh snapshot-delete %s %s "
            "--metadata forgets it, and touches no file",
            disk->target, qm_domain_word(s->domain), s->change.snapshot);
    disk->top = layer;
    disk->base = layer - 1;
    return 0;
}

static int
add_snapshot_disks(struct qm_stopped *s, const struct qm_domxml *x,
                   const struct qm_domxml *snapshot, struct qmeld_error *err)
{
    if (snapshot->internal)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "snapshot %s is kept inside of the images: virsh snapshot-delete deletes it",
                       snapshot->name);
    QM_VEC_EACH (own, &snapshot->snap_disks) {
        const struct qm_domxml_disk *xml = qm_domxml_find(x, own->target);

        if (!own->external)
            continue;
        if (!xml)
            return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                           "snapshot %s has disk %s, which the machine has not any more",
                           snapshot->name, own->target);
        s->planning = own;
        if (add_disk(s, xml, one_layer, err) < 0)
            return -1;
    }
    return s->change.disks.n ? 0
                             : qm_fail(err, QMELD_USAGE, qm_nowhere(),
                                       "snapshot %s has no file of its own: virsh snapshot-delete "
                                       "deletes it",
                                       snapshot->name);
}

static int
add_snapshot(struct qm_stopped *s, const struct qm_domxml *x, const char *name,
             struct qmeld_error *err)
{
    struct qm_defs_snapshots all;
    struct qm_domxml *snapshot = NULL;
    struct qm_fault fault;
    int rc = 0;

    if (qm_defs_snapshots(s->session, s->domain->ptr, &all, &fault) < 0)
        return qm_session_fail(err, &fault, "list the machine's snapshots");
    QM_VEC_EACH (one, &all.list)
        if (rc == 0 && strcmp(one->name, name) == 0)
            rc = qm_domxml_parse(one->xml, &snapshot, err);
    qm_defs_snapshots_free(&all);
    if (rc < 0)
        return -1;
    if (!snapshot)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "domain \"%s\" has no snapshot \"%s\": `virsh snapshot-list %s` shows them",
                       s->domain->name, name, qm_domain_word(s->domain));
    rc = add_snapshot_disks(s, x, snapshot, err);
    s->planning = NULL;
    qm_domxml_free(snapshot);
    return rc;
}

/* ---- all of it ---- */

int
qm_stopped_plan(struct qm_stopped *s, const char *snapshot, struct qmeld_error *err)
{
    struct qm_domxml *x = NULL;
    struct qm_texts texts;
    int rc;

    if (qm_stopped_texts(s, &texts, err) < 0)
        return -1;
    rc = qm_domxml_parse(texts.persistent, &x, err);
    qm_texts_free(&texts);
    if (rc < 0)
        return -1;
    if (snapshot)
        rc = add_snapshot(s, x, snapshot, err);
    else
        rc = s->request->all_disks ? add_all(s, x, err) : add_named(s, x, err);
    qm_domxml_free(x);
    return rc;
}
