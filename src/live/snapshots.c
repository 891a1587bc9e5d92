/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "snapshots.h"

#include "defs.h"

#include <stdio.h>
#include <string.h>

/* libvirt carries 16,384 names in an answer (remote_protocol.x, REMOTE_DOMAIN_SNAPSHOT_LIST_NAMES_MAX) */
enum { MAX_SNAPSHOTS = 16384 };

static int
list(struct qm_stopped *s, struct qm_defs_snapshots *out, struct qmeld_error *err)
{
    struct qm_fault fault;

    if (qm_defs_snapshots(s->session, s->domain->ptr, out, &fault) == 0)
        return 0;
    if (fault.code == VIR_ERR_NO_SUPPORT || fault.code == VIR_ERR_OPERATION_UNSUPPORTED)
        return 0; /* a driver without snapshots has none */
    return qm_session_fail(err, &fault, "list the machine's snapshots");
}

static const struct qm_change_disk *
changed_disk(const struct qm_stopped *s, const char *target)
{
    QM_VEC_EACH (d, &s->change.disks)
        if (strcmp(d->target, target) == 0)
            return d;
    return NULL;
}

/* The layer of disk that source is; disk->layers.n: none of them. */
static int
layer_of(struct qm_stopped *s, const struct qm_change_disk *disk,
         const struct qm_domxml_source *source, size_t *out, struct qmeld_error *err)
{
    QM_FREE char *path = NULL;

    if (qm_stopped_path(s, source, &path, err) < 0)
        return -1;
    *out = path ? qm_change_find(disk, path) : disk->layers.n;
    return 0;
}

/* The text of one that stays; *out NULL: it is right as it is. */
static int
correct(struct qm_stopped *s, const char *xml, char **out, struct qmeld_error *err)
{
    const size_t n = s->change.disks.n;
    QM_FREE struct qm_stopped_role *roles = calloc(n, sizeof *roles);
    QM_FREE struct qm_domxml_edit *edits = calloc(n, sizeof *edits);

    if (!roles || !edits)
        return qm_fail_nomem(err, "a snapshot's text");
    for (size_t i = 0; i < n; i++) {
        roles[i] = (struct qm_stopped_role){.s = s, .disk = &s->change.disks.at[i]};
        edits[i] = qm_stopped_edit(&roles[i]);
    }
    if (qm_domxml_edit_all(xml, edits, n, out, err) < 0)
        return -1;
    for (size_t i = 0; i < n; i++)
        if (roles[i].failed) {
            free(QM_TAKE(*out));
            *err = roles[i].err;
            return -1;
        }
    return 0;
}

/* ---- before ---- */

static int
refuse_branch(struct qm_stopped *s, const struct qm_domxml *snapshot,
              const struct qm_domxml_snap_disk *own, struct qmeld_error *err)
{
    const struct qm_change_disk *disk = changed_disk(s, own->target);
    const struct qm_domxml_disk *kept = disk ? qm_domxml_find(snapshot, own->target) : NULL;
    size_t overlay, state;

    if (!disk || !own->external)
        return 0;
    if (layer_of(s, disk, &own->source, &overlay, err) < 0)
        return -1;
    if (overlay < disk->layers.n || !kept || kept->layers.n == 0)
        return 0;
    if (layer_of(s, disk, &kept->layers.at[0], &state, err) < 0)
        return -1;
    if (state < disk->base || state > disk->top)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(disk->layers.at[state].path),
                   "snapshot %s keeps its state here, and is on another branch than the machine: "
                   "the merge would spoil it. If its file was merged by an earlier command, or "
                   "nobody needs it, virsh snapshot-delete %s %s --metadata forgets it",
                   snapshot->name, qm_domain_word(s->domain), snapshot->name);
}

int
qm_snapshots_check(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qm_defs_snapshots all;
    int rc = list(s, &all, err);

    for (size_t i = 0; rc == 0 && i < all.list.n; i++) {
        struct qm_domxml *x;

        QM_FREE char *trial = NULL; /* what cannot be put right is found before the merge */

        rc = qm_domxml_parse(all.list.at[i].xml, &x, err);
        for (size_t k = 0; rc == 0 && k < x->snap_disks.n; k++)
            rc = refuse_branch(s, x, &x->snap_disks.at[k], err);
        qm_domxml_free(x);
        if (rc == 0)
            rc = correct(s, all.list.at[i].xml, &trial, err);
    }
    qm_defs_snapshots_free(&all);
    return rc;
}

/* ---- after ---- */

/* It has external disks, and all of them were merged. */
static int
is_void(struct qm_stopped *s, const char *xml, bool *out, char **out_memory,
        struct qmeld_error *err)
{
    struct qm_domxml *x;
    size_t n_merged = 0, n_external = 0;
    int rc = qm_domxml_parse(xml, &x, err);

    *out = false;
    for (size_t i = 0; rc == 0 && i < x->snap_disks.n; i++) {
        const struct qm_domxml_snap_disk *own = &x->snap_disks.at[i];
        const struct qm_change_disk *disk = changed_disk(s, own->target);
        size_t layer;

        if (!own->external)
            continue;
        n_external++;
        if (!disk)
            continue;
        rc = layer_of(s, disk, &own->source, &layer, err);
        n_merged += rc == 0 && layer > disk->base && layer <= disk->top;
    }
    if (rc == 0) {
        *out = n_merged > 0 && n_merged == n_external && !x->internal;
        *out_memory = *out ? QM_TAKE(x->memory) : NULL;
    }
    qm_domxml_free(x);
    return rc;
}

static int
forget(struct qm_stopped *s, const char *name, const char *memory, struct qmeld_error *err)
{
    struct qm_fault fault;
    char doing[300];

    if (qm_defs_forget(s->session, s->domain->ptr, name, &fault) < 0) {
        snprintf(doing, sizeof doing, "make libvirt forget snapshot \"%s\"", name);
        return qm_session_fail(err, &fault, doing);
    }
    if (!s->change.snapshot || strcmp(s->change.snapshot, name) != 0)
        qm_note(&s->report->notes, "snapshot %s is gone: the layers it had were merged", name);
    if (memory) /* libvirt leaves it, too */
        qm_note(&s->report->notes, "%s, the memory of snapshot %s, is of no use any more", memory,
                name);
    return 0;
}

/* libvirt rewrites descendants when it forgets one (since 9.0), so that the list is read anew after
 * each.  *out: one was. */
static int
forget_one(struct qm_stopped *s, bool *out, struct qmeld_error *err)
{
    struct qm_defs_snapshots all;
    int rc = list(s, &all, err);

    *out = false;
    for (size_t i = 0; rc == 0 && !*out && i < all.list.n; i++) {
        QM_FREE char *memory = NULL;

        rc = is_void(s, all.list.at[i].xml, out, &memory, err);
        if (rc == 0 && *out)
            rc = forget(s, all.list.at[i].name, memory, err);
    }
    qm_defs_snapshots_free(&all);
    return rc;
}

static int
redefine(struct qm_stopped *s, const struct qm_defs_snapshot *snapshot, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;
    struct qm_fault fault;
    char doing[300];

    if (correct(s, snapshot->xml, &text, err) < 0)
        return -1;
    if (!text || qm_defs_redefine(s->session, s->domain->ptr, text, snapshot->current, &fault) == 0)
        return 0;
    snprintf(doing, sizeof doing, "put snapshot \"%s\" right", snapshot->name);
    return qm_session_fail(err, &fault, doing);
}

int
qm_snapshots_settle(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qm_defs_snapshots rest;
    bool again = true;
    int rc;

    for (unsigned round = 0; again && round < MAX_SNAPSHOTS; round++)
        if (forget_one(s, &again, err) < 0)
            return -1;
    rc = list(s, &rest, err);
    for (size_t i = 0; rc == 0 && i < rest.list.n; i++) /* parents come first */
        rc = redefine(s, &rest.list.at[i], err);
    qm_defs_snapshots_free(&rest);
    return rc;
}
