/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * others.c - who would read otherwise after a merge, and what is done about it.
 *
 * docs/decisions/0024-who-else-reads.md has the cases.  In short: the base changes, and with it everything that
 * reads through to it; a layer in the middle changes for whoever stands on it, since it reads through to the base; top
 * does not, unless its file goes.
 */
#include "merge_int.h"

#include "dependants.h"
#include "qcow2.h"
#include "shadow.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* So many are named in the sentence; the report has all of them. */
#define MAX_NAMED 3u

/* done: the target reads as it is to already; that is the base, or its name leads to another file in the end. */
static void
find_hurt(const struct qm_merge *m, bool done, bool *hurt)
{
    const struct qm_settle_config *c = &m->settle_config;
    const bool go = c->overlays == QMELD_OVERLAYS_DELETE ||
                    c->overlays == QMELD_OVERLAYS_QUARANTINE || m->opts->files_go;

    hurt[c->base] = !done || c->target != c->base;
    for (size_t i = c->base + 1; i <= c->top; i++)
        hurt[i] = go || (i < c->top && (!done || c->reclaim));
}

/* ---- internal snapshots of merged layers ---- */

static int
add_snapshot(size_t layer, const char *path, const struct qm_snapshot *s,
             struct qm_dependants *found, struct qmeld_error *err)
{
    const struct qmeld_dependant told = {.kind = QMELD_DEPENDANT_SNAPSHOT,
                                         .layer = layer,
                                         .path = (char *)path,
                                         .snapshot_id = s->id,
                                         .snapshot_name = s->name,
                                         .date_sec = s->date_sec};
    struct qmeld_dependant d;

    if (!qm_dependant_copy(&told, &d) || !qm_vec_push(&found->list, &d)) {
        qm_dependant_release(&d);
        return qm_fail_nomem(err, "the list of snapshots");
    }
    return 0;
}

static int
add_snapshots(const struct qm_layer *l, size_t layer, struct qm_dependants *found,
              struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(l->img);
    struct qm_snapshots snapshots;
    int rc;

    if (!q || q->hdr.n_snapshots == 0)
        return 0;
    rc = qm_qcow2_read_snapshots(q, &snapshots, err);
    for (size_t i = 0; rc == 0 && i < snapshots.list.n; i++)
        rc = add_snapshot(layer, l->path, &snapshots.list.at[i], found, err);
    qm_snapshots_release(&snapshots);
    return rc;
}

/* What is below such a layer changes, or it goes itself, or gives up what is in it. */
static int
find_snapshots(const struct qm_merge *m, const bool *hurt, struct qm_dependants *found,
               struct qmeld_error *err)
{
    const struct qm_settle_config *c = &m->settle_config;

    for (size_t i = c->base + 1; i <= c->top; i++)
        if ((hurt[i - 1] || hurt[i] || qm_settle_fate(c, i) == QMELD_FATE_EMPTIED) &&
            add_snapshots(&m->chain->layers[i], i, found, err) < 0)
            return -1;
    return 0;
}

/* ---- what is said ---- */

/* "sib1.qcow2, sib2.qcow2 and 7 more" */
static void
name_them(const struct qm_dependants *found, bool snapshots, char *out, size_t size)
{
    size_t named = 0, more = 0, at = 0;

    out[0] = '\0';
    QM_VEC_EACH (d, &found->list) {
        const char *name = snapshots ? d->snapshot_name : d->path;
        const size_t len = strlen(name);
        int n;

        if ((d->kind == QMELD_DEPENDANT_SNAPSHOT) != snapshots)
            continue;
        if (named == MAX_NAMED || at >= size) {
            more++;
            continue;
        }
        n = snprintf(out + at, size - at, "%s%s%s", named++ ? ", " : "", len > 100 ? "..." : "",
                     name + (len > 100 ? len - 100 : 0));
        at += n > 0 ? (size_t)n : 0;
    }
    if (more && at < size)
        snprintf(out + at, size - at, " and %zu more", more);
}

static const struct qmeld_dependant *
first_of(const struct qm_dependants *found, bool snapshots)
{
    QM_VEC_EACH (d, &found->list)
        if ((d->kind == QMELD_DEPENDANT_SNAPSHOT) == snapshots)
            return d;
    return NULL;
}

static int
refuse(const struct qm_merge *m, const struct qm_dependants *found, struct qmeld_error *err)
{
    const struct qmeld_dependant *image = first_of(found, false);
    const struct qmeld_dependant *snapshot = first_of(found, true);
    char names[400];

    if (image) {
        name_them(found, false, names, sizeof names);
        return qm_fail(err, QMELD_USAGE, qm_in(m->chain->layers[image->layer].path),
                       "other images read through it, and would read other data after the merge: "
                       "%s: %s, or --force to break them",
                       names,
                       m->opts->files_go ? "rebase them first (`qmeld rebase`)"
                                         : "say --protect to give them what they need first");
    }
    name_them(found, true, names, sizeof names);
    return qm_fail(
        err, QMELD_USAGE, qm_in(snapshot->path),
        "it has internal snapshots, which would read other data after the merge: %s: say --protect "
        "to give them what they need first, or --force to break them, or delete them "
        "(`qemu-img snapshot -d`)",
        names);
}

static void
report(struct qmeld_commit_report *r, struct qm_dependants *found)
{
    r->files_scanned = found->files;
    r->files_unread = found->unread;
    r->unread = QM_TAKE(found->unread_path);
    r->unread_errno = found->unread_why;
    r->n_dependants = found->list.n;
    r->dependants = found->list.at;
    found->list.at = NULL;
    found->list.n = found->list.room = 0;
}

/* ---- protecting ---- */

static struct qm_protect
config_of(const struct qm_merge *m, const struct qm_intent *intent)
{
    const bool go =
        intent->overlays == QMELD_OVERLAYS_DELETE || intent->overlays == QMELD_OVERLAYS_QUARANTINE;

    return (struct qm_protect){.intent = intent,
                               .chain = m->chain,
                               .base = m->transfer.base,
                               .top = m->transfer.top,
                               .hidden_end = m->transfer.hidden_end,
                               .gone = go,
                               .emptied = intent->reclaim,
                               .up = intent->target != intent->base,
                               .top_moves =
                                   intent->reclaim || intent->overlays == QMELD_OVERLAYS_EMPTY,
                               .opts = m->opts};
}

/* ---- the calls ---- */

static int
find(const struct qm_merge *m, const bool *hurt, struct qm_dependants *found,
     struct qmeld_error *err)
{
    const struct qm_dependants_config config = {.chain = m->chain,
                                                .hurt = hurt,
                                                .scan = m->opts->scan,
                                                .n_scan = m->opts->n_scan,
                                                .threads = m->opts->threads};

    if (!m->opts->no_scan && qm_dependants_find(&config, found, err) < 0)
        return -1;
    return find_snapshots(m, hurt, found, err);
}

static int
guard(struct qm_protect *p, const struct qmeld_dependant *d, struct qm_intent *intent,
      struct qmeld_error *err)
{
    struct qm_guarded g;

    if (d->kind == QMELD_DEPENDANT_SNAPSHOT && qm_intent_guards_layer(intent, d->layer))
        return 0;
    if ((d->kind == QMELD_DEPENDANT_SNAPSHOT ? qm_protect_note_own(p, d->layer, &g, err)
                                             : qm_protect_note(p, d->path, d->layer, &g, err)) < 0)
        return -1;
    if (qm_vec_push(&intent->guarded, &g))
        return 0;
    qm_guarded_release(&g);
    return qm_fail_nomem(err, "the list of images");
}

/* Who can, is protected; the first who cannot is why the merge is refused. */
static int
protect(const struct qm_merge *m, struct qm_dependants *found, struct qm_intent *intent,
        struct qmeld_error *err)
{
    struct qm_protect p = config_of(m, intent);

    QM_VEC_EACH (d, &found->list) {
        if (d->kind == QMELD_DEPENDANT_DATA_FILE)
            return qm_fail(err, QMELD_USAGE, qm_in(d->path),
                           "its data file is %.300s, which changes: it cannot be protected, copy "
                           "it first",
                           m->chain->layers[d->layer].path);
        if ((d->kind == QMELD_DEPENDANT_OVERLAY || d->kind == QMELD_DEPENDANT_SNAPSHOT) &&
            guard(&p, d, intent, err) < 0)
            return -1;
        d->fate = QMELD_DEPENDANT_PROTECTED; /* what is above one of those reads what it reads */
    }
    return 0;
}

static int
decide(const struct qm_merge *m, struct qm_dependants *found, struct qm_intent *intent,
       struct qmeld_error *err)
{
    int rc = 0;

    if (found->list.n == 0 || m->opts->force)
        return 0;
    if (!m->opts->protect)
        return refuse(m, found, err);
    rc = protect(m, found, intent, err);
    if (rc < 0)
        QM_VEC_EACH (d, &found->list)
            d->fate = QMELD_DEPENDANT_BROKEN;
    return rc;
}

int
qm_merge_meet_others(struct qm_merge *m, bool done, struct qm_intent *intent,
                     struct qmeld_error *err)
{
    QM_FREE bool *hurt = calloc(m->chain->n, sizeof *hurt);
    struct qm_dependants found = {.files = 0};
    int rc;

    if (!hurt)
        return qm_fail_nomem(err, "looking for other images");
    find_hurt(m, done, hurt);
    rc = find(m, hurt, &found, err);
    if (rc == 0)
        rc = decide(m, &found, intent, err);
    if (rc < 0 && found.list.n > 0 && qm_shadow_now() && qm_shadow_wants_notes(qm_shadow_now()) &&
        err->code != QMELD_NOMEM) { /* who plans wants to know all of it */
        m->refused = *err;
        *err = (struct qmeld_error){.disk = err->disk};
        rc = 0;
    }
    report(m->report, &found);
    qm_dependants_release(&found);
    return rc;
}

/* ---- later ---- */

static bool
is_guarded(const struct qm_intent *intent, const struct qmeld_dependant *d)
{
    struct stat st;

    if (d->kind == QMELD_DEPENDANT_DEEPER) /* what it stands on is asked about by itself */
        return true;
    if (d->kind == QMELD_DEPENDANT_SNAPSHOT)
        return qm_intent_guards_layer(intent, d->layer);
    if (d->kind != QMELD_DEPENDANT_OVERLAY || stat(d->path, &st) < 0)
        return false;
    QM_VEC_EACH (g, &intent->guarded)
        /* under another name it would not be found when its turn comes, and taken for removed */
        if (!g->own && !g->file.blockdev && g->file.ino == st.st_ino &&
            qm_path_same(g->file.path, d->path))
            return true;
    return false;
}

int
qm_merge_meet_newcomers(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    QM_FREE bool *hurt = calloc(m->chain->n, sizeof *hurt);
    struct qm_dependants found = {.files = 0};
    int rc = 0;

    if (!hurt)
        return qm_fail_nomem(err, "looking for other images");
    find_hurt(m, intent->already, hurt);
    rc = find(m, hurt, &found, err);
    for (size_t i = 0; rc == 0 && i < found.list.n; i++)
        if (!is_guarded(intent, &found.list.at[i]))
            rc = qm_fail(err, QMELD_USAGE, qm_in(found.list.at[i].path),
                         "it reads through layers of a merge that has begun, and came after: take "
                         "the merge back (`qmeld revert %.300s`), as no layer has changed so far, "
                         "and begin again, or remove it",
                         qm_journal_file(m->journal));
    qm_dependants_release(&found);
    return rc;
}

int
qm_merge_unprotect(struct qm_merge *m, struct qmeld_error *err)
{
    struct qm_protect p = config_of(m, qm_journal_intent(m->journal));

    return qm_protect_tidy(&p, err);
}

int
qm_merge_protect(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    struct qm_protect p = config_of(m, intent);

    if (qm_journal_cursor(m->journal).phase != QM_PHASE_PROTECT)
        return 0;
    if (qm_protect_run(&p, err) < 0)
        return -1;
    m->report->bytes_protected = p.bytes;
    /* COMMIT POINT S12: nobody but the chain reads what changes from here on */
    return qm_merge_advance(m, QM_PHASE_COPY, err);
}

int
qm_merge_tell_protected(struct qm_merge *m, struct qmeld_error *err)
{
    const struct qm_intent *intent = qm_journal_intent(m->journal);
    struct qmeld_commit_report *r = m->report;

    if (r->dependants || intent->guarded.n == 0)
        return 0;
    r->dependants = calloc(intent->guarded.n, sizeof *r->dependants);
    if (!r->dependants)
        return qm_fail_nomem(err, "the report");
    QM_VEC_EACH (g, &intent->guarded) {
        const struct qmeld_dependant d = {.kind = QMELD_DEPENDANT_OVERLAY,
                                          .fate = QMELD_DEPENDANT_PROTECTED,
                                          .path = g->file.path,
                                          .layer = g->layer};

        if (g->own) /* which ones was told when the merge began */
            continue;
        if (!qm_dependant_copy(&d, &r->dependants[r->n_dependants]))
            return qm_fail_nomem(err, "the report");
        r->n_dependants++;
    }
    return 0;
}
