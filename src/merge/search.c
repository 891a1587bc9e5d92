/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "search.h"

#include "signpost.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- paths ---- */

bool
qm_search_is_name(const char *name)
{
    const size_t len = strlen(name);

    return name[0] == '.' && len > strlen("..qmeld") && strcmp(name + len - 6, ".qmeld") == 0;
}

bool
qm_search_is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* ---- journals ---- */

int
qm_search_one(const char *path, qm_found_fn *fn, void *opaque, struct qmeld_error *err)
{
    struct qm_found f = {.path = path};
    int rc;

    if (qm_journal_load(path, &f.j, &f.problem) == 0 && !f.j)
        return 0;
    rc = fn(&f, opaque, err);
    qm_journal_close(f.j);
    return rc;
}

/* By a file that says where a journal is, or by its own name. */
static int
search_entry(const char *path, const char *name, qm_found_fn *fn, void *opaque,
             struct qmeld_error *err)
{
    QM_FREE char *there = NULL;
    const char *slash;

    if (!qm_signpost_is_name(name))
        return qm_search_one(path, fn, opaque, err);
    there = qm_signpost_read(path);
    slash = there ? strrchr(there, '/') : NULL;
    return slash && qm_search_is_name(slash + 1) ? qm_search_one(there, fn, opaque, err) : 0;
}

int
qm_search_dir(const char *dir, qm_found_fn *fn, void *opaque, struct qmeld_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int rc = 0;

    if (!d)
        return qm_fail_sys(err, qm_in(dir), "cannot list the directory");
    while (rc == 0 && (e = readdir(d))) {
        QM_FREE char *path = NULL;

        if (!qm_search_is_name(e->d_name) && !qm_signpost_is_name(e->d_name))
            continue;
        if (asprintf(&path, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", e->d_name) < 0) {
            path = NULL;
            rc = qm_fail_nomem(err, "a path");
            break;
        }
        rc = search_entry(path, e->d_name, fn, opaque, err);
    }
    closedir(d);
    return rc;
}

int
qm_search_chain(const struct qm_chain *chain, const char *active, const char *journal_dir,
                qm_found_fn *fn, void *opaque, struct qmeld_error *err)
{
    int rc = 0;

    for (size_t i = 0; rc == 0 && i < chain->n; i++) {
        QM_FREE char *journal = NULL;
        const struct qm_layer *l = &chain->layers[i];

        if (qm_journal_path(l->path, l->img->file->blockdev, active, journal_dir, &journal, err) <
            0)
            return -1;
        rc = qm_search_one(journal, fn, opaque, err);
    }
    return rc;
}

/* ---- directories of a chain ---- */

struct dirs {
    QM_VEC(char *) list;
};

/* Beside layer i, in a directory that cannot be listed: where the journal of a merge into it would lie. */
static int
search_by_name(const struct qm_layer *l, qm_found_fn *fn, void *opaque, struct qmeld_error *err)
{
    QM_FREE char *journal = NULL;

    if (qm_journal_path(l->path, false, l->path, NULL, &journal, err) < 0)
        return -1;
    return qm_search_one(journal, fn, opaque, err);
}

/* *out_new: dir was not among them. */
static int
add_dir(struct dirs *dirs, const char *dir, bool *out_new, struct qmeld_error *err)
{
    char *copy;

    *out_new = false;
    QM_VEC_EACH (d, &dirs->list)
        if (strcmp(*d, dir) == 0 || qm_path_same(*d, dir))
            return 0;
    copy = strdup(dir);
    if (!copy || !qm_vec_push(&dirs->list, &copy)) {
        free(copy);
        return qm_fail_nomem(err, "a path");
    }
    *out_new = true;
    return 0;
}

int
qm_search_beside(const struct qm_chain *chain, const char *own, qm_found_fn *fn, void *opaque,
                 struct qmeld_error *err)
{
    struct dirs dirs = {.list = {.at = NULL}};
    bool is_new;
    int rc = add_dir(&dirs, own, &is_new, err);

    for (size_t i = 0; rc == 0 && i < chain->n; i++) {
        QM_FREE char *dir = qm_dir_of(chain->layers[i].path);

        if (!dir)
            rc = qm_fail_nomem(err, "a path");
        else
            rc = add_dir(&dirs, dir, &is_new, err);
        if (rc == 0 && access(dir, R_OK) != 0)
            rc = search_by_name(&chain->layers[i], fn, opaque, err);
        else if (rc == 0 && is_new)
            rc = qm_search_dir(dir, fn, opaque, err);
    }
    QM_VEC_EACH (d, &dirs.list)
        free(*d);
    qm_vec_release(&dirs.list);
    return rc;
}
