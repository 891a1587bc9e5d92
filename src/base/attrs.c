/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "attrs.h"

#include "io_int.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

/* xattr(7): the kernel's own limits */
#define MAX_LIST  65536u
#define MAX_VALUE 65536u

/* What is about the file's use, and not computed from its content (IMA, EVM) or about programs. */
static const char *const kinds[] = {"user.", "trusted.", "security.selinux", "security.SMACK64",
                                    "system.posix_acl_access"};

static bool
is_taken_over(const char *name)
{
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const size_t len = strlen(kinds[i]);

        if (kinds[i][len - 1] == '.' ? strncmp(name, kinds[i], len) == 0
                                     : strcmp(name, kinds[i]) == 0)
            return true;
    }
    return false;
}

static int
look(const struct qm_file *f, struct stat *out, struct qmeld_error *err)
{
    return fstat(f->fd, out) < 0 ? qm_fail_sys(err, qm_in(f->path), "cannot stat") : 0;
}

/* ---- before ---- */

static bool
is_in_group(gid_t gid)
{
    gid_t groups[65536 / sizeof(gid_t)];
    const int n = getgroups(sizeof groups / sizeof *groups, groups);

    for (int i = 0; i < n; i++)
        if (groups[i] == gid)
            return true;
    return gid == getegid();
}

int
qm_attrs_check(const struct qm_file *to, const struct qm_file *from, struct qmeld_error *err)
{
    struct stat t, f;

    if (look(to, &t, err) < 0 || look(from, &f, err) < 0)
        return -1;
    if (geteuid() == 0)
        return 0;
    if (t.st_uid != geteuid() || f.st_uid != geteuid())
        return qm_fail(
            err, QMELD_USAGE, qm_in(to->path),
            "it would have to get owner and mode of %.300s, and belongs to user %u, that one "
            "to user %u: only root can do that, or the owner of both",
            from->path, (unsigned)t.st_uid, (unsigned)f.st_uid);
    if (t.st_gid != f.st_gid && !is_in_group(f.st_gid))
        return qm_fail(err, QMELD_USAGE, qm_in(to->path),
                       "it would have to get the group of %.300s, %u, which you are not in: only "
                       "root can do that",
                       from->path, (unsigned)f.st_gid);
    return 0;
}

/* ---- extended attributes ---- */

struct names {
    char list[MAX_LIST];
    size_t len;
};

static int
list(const struct qm_file *f, struct names *out, struct qmeld_error *err)
{
    const ssize_t n = flistxattr(f->fd, out->list, sizeof out->list);

    out->len = n > 0 ? (size_t)n : 0;
    if (n < 0 && errno != ENOTSUP)
        return qm_fail_sys(err, qm_in(f->path), "cannot list its extended attributes");
    return 0;
}

#define NAMES_EACH(name, names)                                                                    \
    for (const char *name = (names)->list; name < (names)->list + (names)->len;                    \
         name += strlen(name) + 1)

/* *out_len: 0 if there is none. */
static int
get(const struct qm_file *f, const char *name, char *value, size_t *out_len,
    struct qmeld_error *err)
{
    const ssize_t n = fgetxattr(f->fd, name, value, MAX_VALUE);

    *out_len = n > 0 ? (size_t)n : 0;
    if (n < 0 && errno != ENODATA && errno != ENOTSUP)
        return qm_fail_sys(err, qm_in(f->path), "cannot read its attribute %.100s", name);
    return 0;
}

static int
copy_one(struct qm_file *to, const struct qm_file *from, const char *name, char *value,
         struct qmeld_error *err)
{
    char *now = value + MAX_VALUE;
    size_t len, now_len;

    if (get(from, name, value, &len, err) < 0 || get(to, name, now, &now_len, err) < 0)
        return -1;
    /* what is right already may be nothing that we could set: labels, mostly */
    if (len == now_len && len > 0 && memcmp(value, now, len) == 0)
        return 0;
    if (fsetxattr(to->fd, name, value, len, 0) < 0)
        return qm_fail_sys(err, qm_in(to->path),
                           "cannot set its attribute %.100s to that of %.300s", name, from->path);
    return 0;
}

static int
copy_attributes(struct qm_file *to, const struct qm_file *from, struct qmeld_error *err)
{
    QM_FREE struct names *names = malloc(sizeof *names);
    QM_FREE char *value = malloc(2 * MAX_VALUE);
    size_t len;

    if (!names || !value)
        return qm_fail_nomem(err, "extended attributes");
    if (list(to, names, err) < 0)
        return -1;
    NAMES_EACH(name, names)
    {
        if (!is_taken_over(name) || strncmp(name, "security.", 9) == 0)
            continue;
        if (get(from, name, value, &len, err) < 0)
            return -1;
        if (len == 0 && fremovexattr(to->fd, name) < 0 && errno != ENODATA)
            return qm_fail_sys(err, qm_in(to->path), "cannot remove its attribute %.100s", name);
    }
    if (list(from, names, err) < 0)
        return -1;
    NAMES_EACH(name, names)
    if (is_taken_over(name) && copy_one(to, from, name, value, err) < 0)
        return -1;
    return 0;
}

/* ---- all ---- */

/* The owner first, as that takes bits off the mode; the mode after the access list, which has a part of it. */
int
qm_attrs_copy(struct qm_file *to, const struct qm_file *from, struct qmeld_error *err)
{
    struct timespec times[2];
    struct stat t, f;

    if (to->shadow)
        return 0;
    if (look(to, &t, err) < 0 || look(from, &f, err) < 0)
        return -1;
    times[0] = f.st_atim;
    times[1] = f.st_mtim;
    if (QM_ANNOUNCE(.op = QM_IO_ATTRS, .path = to->path) < 0 ||
        ((t.st_uid != f.st_uid || t.st_gid != f.st_gid) && fchown(to->fd, f.st_uid, f.st_gid) < 0))
        return qm_fail_sys(err, qm_in(to->path), "cannot get the owner of %.300s", from->path);
    if (copy_attributes(to, from, err) < 0)
        return -1;
    if (fchmod(to->fd, f.st_mode & 07777) < 0 || futimens(to->fd, times) < 0)
        return qm_fail_sys(err, qm_in(to->path), "cannot get mode and times of %.300s", from->path);
    /* fdatasync need not write them */
    if (QM_ANNOUNCE(.op = QM_IO_SYNC, .path = to->path) < 0 ||
        (qm_io_waits_for_disks() && fsync(to->fd) < 0))
        return qm_fail_sys(err, qm_in(to->path),
                           "cannot make owner, mode and times durable (fsync)");
    return 0;
}
