/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "signpost.h"

#include "journal.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* One line behind this one.  No checksum: a torn path leads to no journal of this merge. */
static const char head[] = "qmeld journal at\n";
static const char suffix[] = ".qmeld-journal";

bool
qm_signpost_is_name(const char *name)
{
    const size_t len = strlen(name), end = strlen(suffix);

    return name[0] == '.' && len > end + 1 && strcmp(name + len - end, suffix) == 0;
}

/* Where it lies, or NULL: none is needed, or none can be. */
static char *
place(const struct qm_intent *i, const char *journal)
{
    const bool goes =
        i->overlays == QMELD_OVERLAYS_DELETE || i->overlays == QMELD_OVERLAYS_QUARANTINE;
    const char *active = i->layers.at[i->layers.n - 1].path;
    QM_FREE char *here = qm_dir_of(active);
    QM_FREE char *there = qm_dir_of(journal);
    char *path;

    /* a journal is found under many spellings ("./.base.qmeld", through a link): what counts is the directory */
    if (i->rebase || !goes || i->top + 1 < i->layers.n || !here || !there ||
        qm_path_same(here, there) ||
        asprintf(&path, "%s/.%s%s", here, strrchr(active, '/') + 1, suffix) < 0)
        return NULL;
    return path;
}

char *
qm_signpost_read(const char *path)
{
    char text[sizeof head + PATH_MAX + 1] = "";
    struct qmeld_error unheard = {0};
    struct qm_file *file;
    char *end, *to = NULL;

    if (qm_file_open(path, &file, &unheard) < 0)
        return NULL;
    if (qm_journal_is_ours(file, &unheard) == 0 &&
        qm_pread_padded(file, 0, text, sizeof text - 1, &unheard) == 0 &&
        strncmp(text, head, strlen(head)) == 0) {
        to = text + strlen(head);
        end = strchr(to, '\n');
        to = end && to[0] == '/' ? strndup(to, (size_t)(end - to)) : NULL;
    }
    qm_file_close(file);
    return to;
}

/* Makes it, whole and durable, or not at all. */
static void
write_it(const char *path, const char *text)
{
    struct qmeld_error unheard = {0};
    struct qm_file *file;
    int rc;

    if (qm_file_create_new(path, 0644, &file, &unheard) < 0)
        return;
    rc = qm_pwrite(file, 0, text, strlen(text), &unheard);
    if (rc == 0)
        rc = qm_sync(file, &unheard);
    if (rc == 0)
        rc = qm_sync_dir_of(path, &unheard);
    qm_file_close(file);
    if (rc < 0 && qm_unlink(path, &unheard) < 0)
        unheard.code = QMELD_OK; /* a hint that leads nowhere */
}

/* Away with what has the name, be it of a merge that is over, or torn by a crash while it was made.  False: it is not
 * ours, or stays. */
static bool
clear_the_place(const char *path)
{
    struct qmeld_error unheard = {0};
    struct qm_file *file;
    bool ours;

    if (access(path, F_OK) < 0)
        return errno == ENOENT;
    if (qm_file_open(path, &file, &unheard) < 0)
        return false;
    ours = qm_journal_is_ours(file, &unheard) == 0;
    qm_file_close(file);
    return ours && qm_unlink(path, &unheard) == 0;
}

void
qm_signpost_plant(const struct qm_intent *intent, const char *journal)
{
    QM_FREE char *to = qm_absolute_path(journal);
    QM_FREE char *path = to ? place(intent, to) : NULL;
    QM_FREE char *old = path ? qm_signpost_read(path) : NULL;
    QM_FREE char *text = NULL;

    if (!path || (old && qm_path_same(old, to)))
        return;
    if (strchr(to, '\n') || asprintf(&text, "%s%s\n", head, to) < 0) {
        text = NULL;
        return;
    }
    if (clear_the_place(path))
        write_it(path, text);
}

char *
qm_signpost_place(const struct qm_intent *intent, const char *journal)
{
    QM_FREE char *to = qm_absolute_path(journal);
    QM_FREE char *path = to ? place(intent, to) : NULL;
    QM_FREE char *said = path ? qm_signpost_read(path) : NULL;

    return said && qm_path_same(said, to) ? QM_TAKE(path) : NULL;
}

void
qm_signpost_remove(const char *path)
{
    struct qmeld_error unheard = {0};

    if (path && qm_unlink(path, &unheard) < 0)
        unheard.code = QMELD_OK; /* it leads nowhere from now on */
}
