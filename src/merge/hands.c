/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "hands.h"

#include "cleanup.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Where it is, links followed.  What is open is asked of the kernel: a path may lead elsewhere by now. */
static char *
real_path(const char *path, const struct qm_file *file)
{
    char link[64], to[PATH_MAX];
    ssize_t n;

    if (file && !file->shadow && qm_file_is_local(file)) {
        snprintf(link, sizeof link, "/proc/self/fd/%d", file->fd);
        n = readlink(link, to, sizeof to);
        if (n > 0 && (size_t)n < sizeof to && to[0] == '/')
            return strndup(to, (size_t)n);
    }
    return realpath(path, NULL);
}

/* The directory of a path; of one that is not there yet, too. */
static int
stat_dir(const char *path, const struct qm_file *file, struct stat *out, struct qmeld_error *err)
{
    QM_FREE char *real = real_path(path, file);
    QM_FREE char *dir = qm_dir_of(real ? real : path);

    if (!dir)
        return qm_fail_nomem(err, "a path");
    return stat(dir, out) < 0 ? qm_fail_sys(err, qm_in(dir), "cannot look at the directory") : 0;
}

static bool
is_trusted(uid_t uid)
{
    return uid == 0 || uid == geteuid();
}

int
qm_hands_of(const char *path, const struct qm_file *file, struct qm_hands *out,
            struct qmeld_error *err)
{
    struct stat st;

    *out = (struct qm_hands){.others = false};
    if (stat_dir(path, file, &st, err) < 0)
        return -1;
    /* the sticky bit does not help: it keeps files from being renamed away, not from being brought in */
    *out = (struct qm_hands){.others = !is_trusted(st.st_uid) || (st.st_mode & S_IWOTH),
                             .everybody = (st.st_mode & S_IWOTH) != 0,
                             .dev = st.st_dev,
                             .ino = st.st_ino,
                             .uid = st.st_uid};
    return 0;
}

/* In the directory, or in one below it: who has the hands can give any of those names to another file.  (Not if it is sticky and a
 * directory below belongs to root; but then what lies in there is at stake, and nothing else.) */
static bool
lies_below(const struct qm_hands *h, const char *path)
{
    QM_FREE char *at = strdup(path);

    for (char *slash = at ? strrchr(at, '/') : NULL; slash; slash = strrchr(at, '/')) {
        struct stat st;

        *slash = '\0';
        if (stat(*at ? at : "/", &st) == 0 && st.st_dev == h->dev && st.st_ino == h->ino)
            return true;
    }
    return false;
}

/* False, too, if it cannot be told. */
static bool
is_within(const struct qm_hands *h, const char *path, const struct qm_file *file, bool reads)
{
    QM_FREE char *real = real_path(path, file);
    QM_FREE char *dir_path = qm_dir_of(real ? real : path);
    const bool his = !is_trusted(h->uid);
    bool his_dir;
    struct stat st, dir;

    if ((file && !qm_file_is_local(file)) || !dir_path || stat(dir_path, &dir) < 0)
        return false;
    his_dir = (his && dir.st_uid == h->uid) || (h->everybody && (dir.st_mode & S_IWOTH)) ||
              (real ? lies_below(h, real) : dir.st_dev == h->dev && dir.st_ino == h->ino);
    if ((file && !file->shadow ? fstat(file->fd, &st) : stat(path, &st)) < 0)
        return his_dir; /* a name to be given */
    return S_ISREG(st.st_mode) &&
           (his_dir || (his && st.st_uid == h->uid) || (reads && (st.st_mode & S_IROTH)));
}

int
qm_hands_reach(const struct qm_hands *hands, const char *journal, const char *path,
               const struct qm_file *file, bool reads, struct qmeld_error *err)
{
    if (!hands->others || is_within(hands, path, file, reads))
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(path),
                   "others than you can put files beside the journal %.400s (its directory is user "
                   "%u's, or everybody may write to it), and could not change this one: such a "
                   "journal is not gone by: make that directory your own, or name one of yours "
                   "with --journal-dir",
                   journal, (unsigned)hands->uid);
}
