/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "signpost.h"

#include "journal.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* One line behind this one.  No checksum: a torn path leads to no journal of this merge. */
static const char head[] = "qmeld journal at\n";
static const char suffix[] = ".qmeld-journal";

bool
qm_signpost_is_name(const char *name)
{
    const size_t len = strlen(name), end = strlen(suffix);

    return name[0] == '.' && len > end + 1 && strcmp(name + len - end, suffix) == 0;
}

static size_t
dir_len(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? (size_t)(slash - path) + 1 : 0;
}

/* Where it lies, or NULL: none is needed, or none can be. */
static char *
place(const struct qm_intent *i, const char *journal)
{
    const bool goes =
        i->overlays == QMELD_OVERLAYS_DELETE || i->overlays == QMELD_OVERLAYS_QUARANTINE;
    const char *active = i->layers.at[i->layers.n - 1].path;
    const size_t dir = dir_len(active);
    char *path;

    if (i->rebase || !goes || i->top + 1 < i->layers.n ||
        (dir == dir_len(journal) && strncmp(active, journal, dir) == 0) ||
        asprintf(&path, "%.*s.%s%s", (int)dir, active, active + dir, suffix) < 0)
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

void
qm_signpost_plant(const struct qm_intent *intent, const char *journal)
{
    QM_FREE char *to = qm_absolute_path(journal);
    QM_FREE char *path = to ? place(intent, to) : NULL;
    QM_FREE char *old = path ? qm_signpost_read(path) : NULL;
    QM_FREE char *text = NULL;
    struct qmeld_error unheard = {0};

    if (!path || (old && strcmp(old, to) == 0))
        return;
    if (strchr(to, '\n') || asprintf(&text, "%s%s\n", head, to) < 0) {
        text = NULL;
        return;
    }
    if (old && qm_unlink(path, &unheard) < 0) /* of a merge that is over */
        return;
    write_it(path, text);
}

char *
qm_signpost_place(const struct qm_intent *intent, const char *journal)
{
    QM_FREE char *to = qm_absolute_path(journal);
    QM_FREE char *path = to ? place(intent, to) : NULL;
    QM_FREE char *said = path ? qm_signpost_read(path) : NULL;

    return said && strcmp(said, to) == 0 ? QM_TAKE(path) : NULL;
}

void
qm_signpost_remove(const char *path)
{
    struct qmeld_error unheard = {0};

    if (path && qm_unlink(path, &unheard) < 0)
        unheard.code = QMELD_OK; /* it leads nowhere from now on */
}
