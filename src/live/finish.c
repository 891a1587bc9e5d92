/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * finish.c - what follows the merges of a stopped machine's disks.
 *
 * The definition comes first: until it names the base, a start would go on with the old chain, whose
 * guest would write to layers that are about to be given up.  Files go last, after everything that may
 * name them is right and that is noted; each only if nobody names it.
 */
#include "stopped.h"

#include "calls.h"
#include "defs.h"
#include "io.h"
#include "leftover.h"
#include "scan.h"
#include "snapshots.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* ---- whose the base is ---- */

/* qemu.conf's dynamic_ownership, for the system's hypervisor; libvirt has no call that tells. */
static bool
ownership_is_static(const struct qm_stopped *s)
{
    char line[256];
    FILE *f = strstr(s->change.uri, "/system") ? fopen("/etc/libvirt/qemu.conf", "re") : NULL;
    bool off = false;

    while (f && fgets(line, sizeof line, f)) {
        int value;

        if (sscanf(line, " dynamic_ownership = %d", &value) == 1)
            off = value == 0;
    }
    if (f)
        fclose(f);
    return off;
}

static int
copy_label(const char *from, const char *to, struct qmeld_error *err)
{
    static const char name[] = "security.selinux";
    char label[1024];
    const ssize_t len = getxattr(from, name, label, sizeof label);

    if (len <= 0 || setxattr(to, name, label, (size_t)len, 0) == 0)
        return 0; /* no labels here */
    return qm_fail_sys(err, qm_in(to), "cannot give it the label that the merged layer had");
}

/* Where libvirt does not hand files over when a machine starts, the base must be the machine's as the
 * old top was.  Elsewhere libvirt sees to the owner, but never to the mode. */
static int
hand_over(const struct qm_stopped *s, const struct qm_change_disk *disk, bool no_relabel,
          struct qmeld_error *err)
{
    const char *from = disk->layers.at[disk->top].path, *to = qm_change_base(disk)->path;
    struct stat top, base;

    if (stat(from, &top) < 0)
        return errno == ENOENT ? 0 : qm_fail_sys(err, qm_in(from), "cannot look at it");
    if (stat(to, &base) < 0)
        return qm_fail_sys(err, qm_in(to), "cannot look at it");
    if (!S_ISREG(top.st_mode) || !S_ISREG(base.st_mode))
        return 0;
    if (no_relabel || ownership_is_static(s)) {
        if ((top.st_uid != base.st_uid || top.st_gid != base.st_gid) &&
            chown(to, top.st_uid, top.st_gid) < 0)
            return qm_fail_sys(err, qm_in(to), "cannot give it the owner of the merged layer");
        if (chmod(to, top.st_mode & 07777) < 0)
            return qm_fail_sys(err, qm_in(to), "cannot give it the mode of the merged layer");
        return copy_label(from, to, err);
    }
    if (base.st_mode & S_IWUSR || !(top.st_mode & S_IWUSR))
        return 0;
    if (chmod(to, (base.st_mode & 07777) | S_IWUSR) < 0)
        return qm_fail_sys(err, qm_in(to), "its owner must be able to write to it now");
    qm_note(&s->report->notes, "%s: its owner may write to it now, for the machine will", to);
    return 0;
}

/* ---- the definition ---- */

static bool
is_relabelled(const char *kept, const char *target)
{
    struct qmeld_error unheard = {0};
    const struct qm_domxml_disk *disk;
    struct qm_domxml *x;
    bool yes = true;

    if (qm_domxml_parse(kept, &x, &unheard) < 0)
        return true;
    disk = qm_domxml_find(x, target);
    yes = !x->no_relabel && !(disk && disk->no_relabel);
    qm_domxml_free(x);
    return yes;
}

/* *again: it was changed, and is to be looked at once more. */
static int
settle_disk(struct qm_stopped *s, const struct qm_change_disk *disk, bool *again,
            struct qmeld_error *err)
{
    QM_FREE char *xml = NULL;
    struct qm_texts texts;
    struct qm_fault fault;
    char doing[200];
    int rc;

    if (qm_stopped_texts(s, &texts, err) < 0)
        return -1;
    rc = qm_stopped_edit_disk(s, texts.persistent, disk, &xml, err);
    *again = rc == 0 && xml;
    if (*again && qm_change_top_is_active(disk))
        rc = hand_over(s, disk, !is_relabelled(texts.persistent, disk->target), err);
    qm_texts_free(&texts);
    if (rc < 0 || !*again)
        return rc;
    /* COMMIT POINT: the next start of the machine uses the merged chain */
    if (qm_calls_update(s->session, s->domain->ptr, xml, VIR_DOMAIN_AFFECT_CONFIG, &fault) == 0)
        return 0;
    snprintf(doing, sizeof doing, "put the definition of disk %s right", disk->target);
    return qm_session_fail(err, &fault, doing);
}

static int
settle_definition(struct qm_stopped *s, const struct qm_change_disk *disk, struct qmeld_error *err)
{
    bool again;

    if (settle_disk(s, disk, &again, err) < 0)
        return -1;
    if (!again)
        return 0;
    if (settle_disk(s, disk, &again, err) < 0)
        return -1;
    return again ? qm_fail(err, QMELD_IO, qm_nowhere(),
                           "libvirt took the new definition of disk %s and has another one: see "
                           "virsh dumpxml --inactive %s",
                           disk->target, qm_domain_word(s->domain))
                 : 0;
}

/* ---- the saved state ---- */

static int
settle_saved(struct qm_stopped *s, struct qmeld_error *err)
{
    QM_FREE char *old = NULL;
    struct qm_fault fault;

    if (qm_defs_saved_xml(s->session, s->domain->ptr, &old, &fault) < 0)
        return qm_session_fail(err, &fault, "read the definition in the saved state");
    QM_VEC_EACH (disk, &s->change.disks) {
        struct qm_stopped_role role = {.s = s, .disk = disk};
        const struct qm_domxml_edit edit = qm_stopped_edit(&role);
        QM_FREE char *text = NULL;

        if (qm_domxml_edit_all(old, &edit, 1, &text, err) < 0)
            return -1;
        if (role.failed) {
            *err = role.err;
            return -1;
        }
        if (!text)
            continue;
        free(old);
        old = QM_TAKE(text);
    }
    if (qm_defs_saved_define(s->session, s->domain->ptr, old, &fault) < 0)
        return qm_session_fail(err, &fault, "put the definition in the saved state right");
    return 0;
}

static int
settle_definitions(struct qm_stopped *s, struct qmeld_error *err)
{
    struct qm_texts texts;
    bool saved;

    QM_VEC_EACH (disk, &s->change.disks)
        if (settle_definition(s, disk, err) < 0)
            return -1;
    if (qm_snapshots_settle(s, err) < 0 || qm_stopped_texts(s, &texts, err) < 0)
        return -1;
    saved = texts.saved && s->change.update_saved;
    qm_texts_free(&texts);
    return saved ? settle_saved(s, err) : 0;
}

/* ---- storage pools ---- */

static void
refresh_pool_of(const struct qm_stopped *s, const char *path)
{
    const char *slash = strrchr(path, '/');
    QM_FREE char *dir = strndup(path, slash && slash > path ? (size_t)(slash - path) : 1);
    struct qm_fault fault;
    bool found;

    if (dir && qm_defs_refresh_pool(s->session, dir, &found, &fault) < 0)
        qm_note(&s->report->notes, "the storage pool of %s could not be refreshed: %s", dir,
                fault.what);
}

static bool
is_same_dir(const char *a, const char *b)
{
    const char *x = strrchr(a, '/'), *y = strrchr(b, '/');

    return x && y && x - a == y - b && strncmp(a, b, (size_t)(x - a)) == 0;
}

/* What libvirt shows of volumes is what it saw last. */
static void
refresh_pools(const struct qm_stopped *s)
{
    QM_VEC_EACH (disk, &s->change.disks)
        for (size_t i = disk->base; i <= disk->top; i++) {
            const char *path = disk->layers.at[i].path;
            bool seen = false;

            for (size_t k = disk->base; k < i; k++)
                seen = seen || is_same_dir(path, disk->layers.at[k].path);
            if (!seen)
                refresh_pool_of(s, path);
        }
}

/* ---- files ---- */

/* Merged files in the order of the report: the lowest first, disk after disk. */
struct merged {
    const struct qm_change_layer **at;
    struct qm_domxml_source *sources;
    const struct qm_domxml_source **files;
    char **why; /* it must stay; NULL: nobody names it */
    size_t n;
};

static void
release_merged(struct merged *m)
{
    for (size_t i = 0; m->why && i < m->n; i++)
        free(m->why[i]);
    free(m->at);
    free(m->sources);
    free(m->files);
    free(m->why);
}

static int
list_merged(struct qm_stopped *s, struct merged *m, struct qmeld_error *err)
{
    size_t n = 1; /* so that none is no failure */

    QM_VEC_EACH (disk, &s->change.disks)
        n += disk->top - disk->base;
    m->at = calloc(n, sizeof(*m->at));
    m->sources = calloc(n, sizeof *m->sources);
    m->files = calloc(n, sizeof(*m->files));
    m->why = calloc(n, sizeof *m->why);
    s->report->files = calloc(n, sizeof *s->report->files);
    if (!m->at || !m->sources || !m->files || !m->why || !s->report->files)
        return qm_fail_nomem(err, "the list of merged files");
    QM_VEC_EACH (disk, &s->change.disks)
        for (size_t i = disk->base + 1; i <= disk->top; i++) {
            const struct qm_change_layer *l = &disk->layers.at[i];

            m->at[m->n] = l;
            m->sources[m->n] = (struct qm_domxml_source){
                .type = l->blockdev ? QM_SOURCE_BLOCK : QM_SOURCE_FILE, .path = l->path};
            m->files[m->n] = &m->sources[m->n];
            s->report->files[m->n].path = strdup(l->path);
            if (!s->report->files[m->n].path)
                return qm_fail_nomem(err, "the list of merged files");
            s->report->n_files = ++m->n;
        }
    return 0;
}

static int
take_mention(const struct qm_scan_mention *mention, void *opaque)
{
    const struct merged *m = opaque;
    char **why = &m->why[mention->file];

    if (*why)
        return 0;
    if (asprintf(why, "domain \"%s\" %s%s%s%s%s", mention->domain,
                 qm_scan_where_name(mention->where), mention->head ? " " : "",
                 mention->head ? mention->head : "", mention->snapshot ? " " : "",
                 mention->snapshot ? mention->snapshot : "") < 0) {
        *why = NULL;
        return -1;
    }
    return 0;
}

static int
remove_file(const struct qm_stopped *s, const struct qm_change_layer *layer, const char *why,
            struct qm_live_file *out, struct qmeld_error *err)
{
    struct qm_live_notes *notes = &s->report->notes;
    QM_FREE char *data = NULL;
    bool gone;

    if (!qm_change_is_still(layer, &gone)) {
        if (!gone)
            qm_note(notes, "%s stays: it is another file now than when the merge began",
                    layer->path);
        out->removed = gone;
        return 0;
    }
    if (why || layer->blockdev) {
        qm_note(notes, "%s stays: %s", layer->path, why ? why : "it is a device");
        return 0;
    }
    data = qm_data_file_of(layer->path, layer->format);
    if (data) {
        qm_note(notes, QM_NOTE_DATA_FILE, layer->path, data);
        return 0;
    }
    if (qm_unlink(layer->path, err) < 0)
        return -1;
    out->removed = true;
    return 0;
}

static int
remove_files(struct qm_stopped *s, struct merged *m, struct qmeld_error *err)
{
    struct qm_scan scan = {.session = s->session,
                           .files = m->files,
                           .n_files = m->n,
                           .fn = take_mention,
                           .opaque = m,
                           .notes = &s->report->notes};

    if (qm_scan_mentions(&scan, err) < 0)
        return -1;
    for (size_t i = m->n; i-- > 0;) { /* no file without its backing file */
        const char *why = m->why[i];

        if (!why && scan.incomplete)
            why = "not everybody who may need it could be asked";
        if (remove_file(s, m->at[i], why, &s->report->files[i], err) < 0)
            return -1;
    }
    return 0;
}

/* ---- all of it ---- */

int
qm_stopped_finish(struct qm_stopped *s, struct qmeld_error *err)
{
    struct merged merged = {.n = 0};
    bool settled;
    int rc;

    if (qm_change_is_settled(&s->change, &settled, err) < 0)
        return -1;
    /* COMMIT POINT: from here on nothing but files is touched, whatever bears their names by then */
    if (!settled && (settle_definitions(s, err) < 0 || qm_change_note_settled(&s->change, err) < 0))
        return -1;
    rc = list_merged(s, &merged, err);
    if (rc == 0 && s->change.remove)
        rc = remove_files(s, &merged, err);
    for (size_t i = 0; rc == 0 && i < merged.n;
         i++) /* those that are left: the machine is past them */
        qm_leftover_mark(merged.at[i]->path);
    release_merged(&merged);
    if (rc < 0)
        return -1;
    refresh_pools(s);
    return qm_change_unnote(&s->change, err);
}
