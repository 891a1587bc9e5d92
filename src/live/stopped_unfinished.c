/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stopped_unfinished.c - is there a change of the machine that was begun and not ended?
 *
 * Its note lies beside a base, and which files those are only the definition and the headers tell.
 */
#include "stopped.h"

#include <stdlib.h>
#include <string.h>

struct search {
    struct qm_stopped *s;
    const char *words;
    char *other; /* the note of an unfinished change that is not this one */
};

/* What may be asked for anew: more care is not less. */
static void
adopt(struct qm_stopped *s, const struct qm_change *change)
{
    qm_change_release(&s->change);
    s->change = *change;
    s->change.remove = change->remove || s->request->remove;
    s->change.update_saved = change->update_saved || s->request->update_saved;
    s->resumed = s->noted = true;
}

static int
take_note(const char *path, const char *text, const struct qmeld_error *problem, void *opaque)
{
    struct search *search = opaque;
    struct qm_stopped *s = search->s;
    struct qm_change change;
    struct qmeld_error unheard = {0};

    (void)problem; /* a damaged one is told of when it is in the way */
    if (!text || qm_change_read(path, text, &change, &unheard) < 0)
        return 0;
    if (strcmp(change.uuid, s->domain->uuid) == 0 && !s->resumed) {
        if (strcmp(change.words, search->words) == 0) {
            adopt(s, &change);
            return 1;
        }
        free(search->other);
        search->other = strdup(path);
    }
    qm_change_release(&change);
    return 0;
}

static void
search_dir_of(struct search *search, const char *path)
{
    const char *slash = strrchr(path, '/');
    QM_FREE char *dir = slash ? strndup(path, slash > path ? (size_t)(slash - path) : 1) : NULL;
    struct qmeld_error unheard;

    if (dir && !search->s->resumed && qm_lib->notes(dir, take_note, search, &unheard) < 0)
        unheard.code = QMELD_OK; /* found, or a directory that nothing can be noted in */
}

/* Notes lie beside bases: wherever the chains of the machine's disks have files. */
static void
search_disk(struct search *search, const struct qm_domxml_disk *disk)
{
    struct qm_change one = {.uri = NULL};
    struct qm_change_disk chain = {.target = NULL};
    struct qmeld_error unheard = {0};
    QM_FREE char *path = NULL;

    if (disk->layers.n == 0 ||
        qm_stopped_path(search->s, &disk->layers.at[0], &path, &unheard) < 0 || !path)
        return;
    search_dir_of(search, path);
    if (qm_stopped_read_chain(path, disk->layers.at[0].format, &chain, &unheard) < 0)
        unheard.code = QMELD_OK; /* what could be read of it counts */
    QM_VEC_EACH (layer, &chain.layers)
        search_dir_of(search, layer->path);
    if (qm_vec_push(&one.disks, &chain))
        qm_change_release(&one);
}

int
qm_stopped_find_unfinished(struct qm_stopped *s, const char *words, struct qmeld_error *err)
{
    struct search search = {.s = s, .words = words};
    struct qmeld_error unheard;
    struct qm_domxml *x;
    struct qm_texts texts;
    int rc;

    if (qm_stopped_texts(s, &texts, err) < 0)
        return -1;
    s->planned = QM_TAKE(texts.persistent);
    qm_texts_free(&texts);
    if (qm_domxml_parse(s->planned, &x, err) < 0)
        return -1;
    if (s->change.journal_dir &&
        qm_lib->notes(s->change.journal_dir, take_note, &search, &unheard) < 0)
        unheard.code = QMELD_OK;
    QM_VEC_EACH (disk, &x->disks)
        search_disk(&search, disk);
    qm_domxml_free(x);
    rc = search.other && !s->resumed
             ? qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "another change of domain \"%s\" is unfinished: finish it first with `qmeld "
                       "resume %s`",
                       s->domain->name, search.other)
             : 0;
    free(search.other);
    return rc;
}
