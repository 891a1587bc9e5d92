/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * policy.c - judging names.
 *
 * Why twice.  Before a file is opened, since opening a device or a pipe may do something; and when it is open, since
 * the names on the way may have been changed meanwhile: what the path leads to now, and is allowed, must be the file
 * that is open.
 */
#include "policy.h"

#include "image.h"
#include "nbd_name.h"
#include "vec.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define SECTOR 512u

/* Nothing in there is a disk image by accident; secrets are, or things that act when they are read. */
static const char *const never_evident[] = {"/dev", "/etc", "/proc", "/run", "/sys"};

/* But these are folders for files: memory, and what was plugged in. */
static const char *const but_evident[] = {"/dev/shm", "/run/media"};

struct qm_policy {
    bool strict;
    QM_VEC(char *) trees; /* real paths; below them all is free */
    QM_VEC(struct qm_nbd_name) servers;
};

/* ---- setting up ---- */

/* Takes path over. */
static int
add_tree(struct qm_policy *p, char *path, struct qmeld_error *err)
{
    if (!path)
        return qm_fail_nomem(err, "a path");
    if (qm_vec_push(&p->trees, &path))
        return 0;
    free(path);
    return qm_fail_nomem(err, "a path");
}

static int
add_allowed(struct qm_policy *p, const char *path, struct qmeld_error *err)
{
    struct qm_nbd_name server;
    char *copy;

    if (!qm_nbd_is_name(path)) {
        copy = realpath(path, NULL);
        if (copy)
            return add_tree(p, copy, err);
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "nothing is there that could be allowed (%s): --allow-path takes a folder, "
                       "a file, or nbd://HOST",
                       strerror(errno));
    }
    if (qm_nbd_parse(path, &server, err) < 0)
        return -1;
    if (qm_vec_push(&p->servers, &server))
        return 0;
    qm_nbd_name_release(&server);
    return qm_fail_nomem(err, "a server");
}

int
qm_policy_new(const char *const *allow, struct qm_policy **out, struct qmeld_error *err)
{
    struct qm_policy *p = calloc(1, sizeof *p);

    *out = NULL;
    if (!p)
        return qm_fail_nomem(err, "the path policy");
    p->strict = allow && *allow;
    for (; allow && *allow; allow++)
        if (add_allowed(p, *allow, err) < 0) {
            qm_policy_free(p);
            return -1;
        }
    *out = p;
    return 0;
}

void
qm_policy_free(struct qm_policy *p)
{
    if (!p)
        return;
    QM_VEC_EACH (t, &p->trees)
        free(*t);
    QM_VEC_EACH (s, &p->servers)
        qm_nbd_name_release(s);
    qm_vec_release(&p->trees);
    qm_vec_release(&p->servers);
    free(p);
}

/* The folder as it was named, and the one the file lies in: a link's target has its neighbours, too. */
int
qm_policy_named(struct qm_policy *p, const char *path, struct qmeld_error *err)
{
    QM_FREE char *dir = qm_dir_of(path);
    QM_FREE char *real = realpath(path, NULL);
    QM_FREE char *real_dir = dir ? realpath(dir, NULL) : NULL;

    if (!dir)
        return qm_fail_nomem(err, "a path");
    if (!real) /* "[1]", a name as a header has it, a new file */
        return 0;
    if (real_dir && add_tree(p, QM_TAKE(real_dir), err) < 0)
        return -1;
    return add_tree(p, qm_dir_of(real), err);
}

/* ---- where a path leads ---- */

static bool
is_below(const char *tree, const char *path)
{
    const size_t n = strlen(tree);

    if (n == 1) /* "/" */
        return true;
    return strncmp(tree, path, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

static bool
is_free(const struct qm_policy *p, const char *real)
{
    QM_VEC_EACH (t, &p->trees)
        if (is_below(*t, real))
            return true;
    return false;
}

/* path without the links in its folders; malloc'd, NULL with errno. */
static char *
real_name(const char *path)
{
    QM_FREE char *dir = qm_dir_of(path);
    QM_FREE char *real = dir ? realpath(dir, NULL) : NULL;
    const char *slash = strrchr(path, '/');
    char *out;

    if (!real ||
        asprintf(&out, "%s/%s", strcmp(real, "/") == 0 ? "" : real, slash ? slash + 1 : path) < 0)
        return NULL;
    return out;
}

/* A logical volume is a link to a device: below /dev, where root alone makes links, its name counts as well as what it
 * leads to. */
static bool
is_free_device(const struct qm_policy *p, const char *path, const char *real)
{
    QM_FREE char *name = is_below("/dev", real) ? real_name(path) : NULL;

    return name && is_below("/dev", name) && is_free(p, name);
}

static const char *
word_of(enum qm_name_kind kind)
{
    return kind == QM_NAME_DATA ? "data file" : "backing file";
}

static int
refuse(enum qm_name_kind kind, const char *image, const char *path, const char *real,
       const char *why, struct qmeld_error *err)
{
    QM_FREE char *dir = qm_dir_of(real ? real : path);

    return qm_fail(err, QMELD_USAGE, qm_in(image),
                   "its %s %.200s lies outside the folders of the chain%s: if you know that it is "
                   "right, allow it with --allow-path=%.200s",
                   word_of(kind), path, why, dir ? dir : "DIR");
}

enum verdict { FREE, EVIDENT_IF_IMAGE };

/* real: what path leads to, NULL if to nothing: nothing at all, or a link that dangles. */
static int
judge(const struct qm_policy *p, enum qm_name_kind kind, const char *image, const char *path,
      const char *real, enum verdict *out, struct qmeld_error *err)
{
    QM_FREE char *missing = real ? NULL : real_name(path);
    struct stat st;

    *out = FREE;
    if (real ? is_free(p, real) || is_free_device(p, path, real)
             : missing && lstat(missing, &st) < 0 && is_free(p, missing))
        return 0;
    if (p->strict) /* also of what is not there: whether it is, is nobody's business */
        return refuse(kind, image, path, real, " and of --allow-path", err);
    *out = EVIDENT_IF_IMAGE;
    if (!real || stat(real, &st) < 0)
        return 0;            /* whoever opens it finds out why */
    if (S_ISBLK(st.st_mode)) /* judged when it is open */
        return 0;
    for (size_t i = 0; i < sizeof never_evident / sizeof *never_evident; i++)
        if (is_below(never_evident[i], real) && !is_below(but_evident[0], real) &&
            !is_below(but_evident[1], real))
            return refuse(kind, image, path, real, ", where no disk images are expected", err);
    if (!S_ISREG(st.st_mode))
        return refuse(kind, image, path, real, " and is no regular file", err);
    return 0;
}

static bool
same_text(const char *a, const char *b)
{
    return a && b && strcmp(a, b) == 0;
}

/* By host and port, or by its socket, which may also lie where all is free. */
static bool
is_free_server(const struct qm_policy *p, const struct qm_nbd_name *name)
{
    QM_FREE char *socket = name->socket ? real_name(name->socket) : NULL;

    if (socket && is_free(p, socket))
        return true;
    QM_VEC_EACH (t, &p->trees)
        if (strcmp(*t, "/") == 0)
            return true;
    QM_VEC_EACH (s, &p->servers)
        if (same_text(s->socket, name->socket) ||
            (same_text(s->host, name->host) && same_text(s->port, name->port)))
            return true;
    return false;
}

static int
judge_server(const struct qm_policy *p, const char *image, const char *uri, struct qmeld_error *err)
{
    struct qm_nbd_name name;
    bool good;

    if (!p->strict)
        return 0;
    if (qm_nbd_parse(uri, &name, err) < 0)
        return -1;
    good = is_free_server(p, &name);
    qm_nbd_name_release(&name);
    if (good)
        return 0;
    return qm_fail(
        err, QMELD_USAGE, qm_in(image),
        "its backing file %.300s is at no server of --allow-path: if you know that it is "
        "right, allow it with --allow-path=nbd://HOST:PORT",
        uri);
}

int
qm_names_allowed(const struct qm_policy *p, enum qm_name_kind kind, const char *image,
                 const char *name, struct qmeld_error *err)
{
    QM_FREE char *real = NULL;
    enum verdict verdict;

    if (kind == QM_NAME_BACKING && qm_nbd_is_name(name))
        return judge_server(p, image, name, err);
    real = realpath(name, NULL);
    return judge(p, kind, image, name, real, &verdict, err);
}

/* ---- the open file ---- */

static bool
is_at(const struct qm_file *file, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return false;
    return file->blockdev ? S_ISBLK(st.st_mode) && st.st_rdev == file->dev
                          : st.st_dev == file->dev && st.st_ino == file->ino;
}

/* In the folder above one that is free, or below that ("../bases/b.raw"): a neighbour, of whom no proof is asked. */
static bool
is_near(const struct qm_policy *p, const char *real)
{
    QM_VEC_EACH (t, &p->trees) {
        QM_FREE char *above = qm_dir_of(*t);

        if (above && strcmp(above, "/") != 0 && is_below(above, real))
            return true;
    }
    return false;
}

static int
check_evident(const struct qm_policy *p, enum qm_name_kind kind, const char *image,
              const char *path, const char *real, const struct qm_file *file, const char *format,
              struct qmeld_error *err)
{
    bool qcow2 = false;

    if (file->blockdev)
        return qm_device_is_claimed(real) ? refuse(kind, image, path, real,
                                                   " and is in use by this machine: mounted, swap, "
                                                   "or a part of something else",
                                                   err)
                                          : 0;
    if ((kind == QM_NAME_BACKING && (!format || strcmp(format, "raw") != 0)) &&
        qm_image_looks_like_qcow2(file, &qcow2, err) < 0)
        return -1;
    if (qcow2 || (file->size > 0 && file->size % SECTOR == 0) || is_near(p, real))
        return 0;
    return refuse(kind, image, path, real, " and is no disk image by its content or length", err);
}

int
qm_policy_opened(const struct qm_policy *p, enum qm_name_kind kind, const char *image,
                 const char *path, const struct qm_file *file, const char *format,
                 struct qmeld_error *err)
{
    QM_FREE char *real = NULL;
    enum verdict verdict;

    if (kind == QM_NAME_BACKING && qm_nbd_is_name(path))
        return 0;
    real = realpath(path, NULL);
    if (judge(p, kind, image, path, real, &verdict, err) < 0)
        return -1;
    if (!real || !is_at(file, real))
        return qm_fail(err, QMELD_STALE, qm_in(path),
                       "another file got this name while it was opened: run again");
    return verdict == FREE ? 0 : check_evident(p, kind, image, path, real, file, format, err);
}
