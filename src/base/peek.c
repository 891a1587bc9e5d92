/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "peek.h"

#include "cleanup.h"
#include "vec.h"
#include "work.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

#define MAX_THREADS 8u
#define QUEUE       256u

/* Folders in folders; a tree that is deeper was made to be. */
#define MAX_DEPTH 100u

/* ---- one file ---- */

int
qm_peek_open(const char *path, struct qm_peek *out)
{
    struct stat st;

    /* asked before it is opened: opening a FIFO or a device may block, or do something */
    if (stat(path, &st) < 0)
        return errno;
    if (!S_ISREG(st.st_mode))
        return EMEDIUMTYPE;
    out->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    if (out->fd < 0)
        return errno;
    if (fstat(out->fd, &st) < 0 || !S_ISREG(st.st_mode)) {
        qm_peek_close(out);
        return EMEDIUMTYPE; /* replaced in between */
    }
    out->dev = st.st_dev;
    out->ino = st.st_ino;
    out->size = (uint64_t)st.st_size;
    return 0;
}

int
qm_peek_read(const struct qm_peek *p, uint64_t off, void *buf, size_t len, size_t *out_len)
{
    *out_len = 0;
    if (off > INT64_MAX - len)
        return EOVERFLOW;
    while (*out_len < len) {
        const ssize_t n =
            pread(p->fd, (char *)buf + *out_len, len - *out_len, (off_t)(off + *out_len));

        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return errno;
        if (n == 0)
            break;
        *out_len += (size_t)n;
        if (off + *out_len >= p->size) /* the rest is not there: not asked for again */
            break;
    }
    return 0;
}

void
qm_peek_close(struct qm_peek *p)
{
    close(p->fd);
    p->fd = -1;
}

/* ---- all files ---- */

struct folder {
    char *path;
    unsigned depth; /* below the one that was named */
    bool deep;
};

struct seen {
    dev_t dev;
    ino_t ino;
};

struct walk {
    qm_peek_fn *fn;
    void *opaque;
    struct qm_pool *pool;
    QM_VEC(struct folder) waiting;
    QM_VEC(struct seen) seen; /* of those that were named */
    uint64_t files;
};

static int
look_at(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct walk *w = shared;
    char *const *path = item;

    (void)worker;
    (void)err;
    w->fn(*path, 0, w->opaque);
    free(*path);
    return 0;
}

static char *
join(const char *dir, const char *name)
{
    char *out;

    if (asprintf(&out, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", name) < 0)
        return NULL;
    return out;
}

static int
add_folder(struct walk *w, char *path, unsigned depth, bool deep, struct qmeld_error *err)
{
    const struct folder f = {.path = path, .depth = depth, .deep = deep};

    if (path && qm_vec_push(&w->waiting, &f))
        return 0;
    free(path);
    return qm_fail_nomem(err, "the list of folders");
}

static int
add_file(struct walk *w, char *path, struct qmeld_error *err)
{
    if (!path)
        return qm_fail_nomem(err, "the list of files");
    if (++w->files > QM_PEEK_MAX_FILES) {
        qm_fail(err, QMELD_USAGE, qm_in(path),
                "more than %u files would have to be looked at to find other images that read "
                "these layers: say --no-scan if there are none, or name fewer folders",
                QM_PEEK_MAX_FILES);
        free(path);
        return -1;
    }
    if (qm_pool_put(w->pool, &path, err) == 0)
        return 0;
    free(path);
    return -1;
}

/* DT_UNKNOWN: a file system that does not tell. */
static unsigned char
type_of(const char *path, unsigned char told)
{
    struct stat st;

    if (told != DT_UNKNOWN)
        return told;
    if (lstat(path, &st) < 0)
        return DT_UNKNOWN;
    return S_ISDIR(st.st_mode)   ? DT_DIR
           : S_ISREG(st.st_mode) ? DT_REG
           : S_ISLNK(st.st_mode) ? DT_LNK
                                 : DT_UNKNOWN;
}

static int
take_entry(struct walk *w, const struct folder *f, const struct dirent *e, struct qmeld_error *err)
{
    char *path;

    if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
        return 0;
    if (e->d_type != DT_UNKNOWN && e->d_type != DT_REG && e->d_type != DT_LNK &&
        !(e->d_type == DT_DIR && f->deep))
        return 0;
    path = join(f->path, e->d_name);
    if (!path)
        return qm_fail_nomem(err, "the list of files");
    switch (type_of(path, e->d_type)) {
    case DT_DIR:
        if (f->deep && f->depth < MAX_DEPTH)
            return add_folder(w, path, f->depth + 1, true, err);
        if (f->deep)
            w->fn(path, ELOOP, w->opaque);
        break;
    case DT_REG:
    case DT_LNK:
        return add_file(w, path, err);
    default:
        break;
    }
    free(path);
    return 0;
}

/* Files there are no images, and reading some of them does things. */
static bool
is_the_kernels(int fd)
{
    static const unsigned long magics[] = {
        PROC_SUPER_MAGIC, SYSFS_MAGIC,        DEBUGFS_MAGIC,       TRACEFS_MAGIC,
        SECURITYFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEVPTS_SUPER_MAGIC,
        BINFMTFS_MAGIC,   PSTOREFS_MAGIC,     SELINUX_MAGIC,       BPF_FS_MAGIC};
    struct statfs fs;

    if (fstatfs(fd, &fs) < 0)
        return false;
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
        if ((unsigned long)fs.f_type == magics[i])
            return true;
    return false;
}

/* One that was named twice, or lies in another that was, is listed once, if it is named itself. */
static bool
is_known(struct walk *w, int fd, unsigned depth)
{
    struct stat st;
    struct seen s;

    if (fstat(fd, &st) < 0)
        return false;
    QM_VEC_EACH (k, &w->seen)
        if (k->dev == st.st_dev && k->ino == st.st_ino)
            return true;
    s = (struct seen){st.st_dev, st.st_ino};
    return depth == 0 && !qm_vec_push(&w->seen, &s);
}

static int
list(struct walk *w, const struct folder *f, struct qmeld_error *err)
{
    const int fd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NONBLOCK |
                                     (f->depth > 0 ? O_NOFOLLOW : 0));
    struct dirent *e;
    DIR *d;
    int rc = 0;

    if (fd < 0 && errno == ENOTDIR && f->deep && f->depth == 0) {
        char *copy = strdup(f->path);

        return add_file(w, copy, err);
    }
    if (fd < 0 && f->deep && f->depth == 0)
        return qm_fail_sys(err, qm_in(f->path), "cannot look for images there");
    if (fd < 0) {
        w->fn(f->path, errno, w->opaque);
        return 0;
    }
    if (is_the_kernels(fd) || is_known(w, fd, f->depth) || !(d = fdopendir(fd))) {
        close(fd);
        return 0;
    }
    while (rc == 0) {
        errno = 0;
        e = readdir(d);
        if (!e) {
            if (errno != 0)
                w->fn(f->path, errno, w->opaque);
            break;
        }
        rc = take_entry(w, f, e, err);
    }
    closedir(d);
    return rc;
}

/* Those that are looked through come first: what they have is not listed again. */
static int
add_named(struct walk *w, const struct qm_peek_folder *folders, size_t n, struct qmeld_error *err)
{
    for (unsigned pass = 0; pass < 2; pass++)
        for (size_t i = 0; i < n; i++)
            if (folders[i].deep == (pass == 1) &&
                add_folder(w, strdup(folders[i].path), 0, folders[i].deep, err) < 0)
                return -1;
    return 0;
}

static int
walk(struct walk *w, struct qmeld_error *err)
{
    while (w->waiting.n > 0) {
        const struct folder f = w->waiting.at[--w->waiting.n];
        const int rc = list(w, &f, err);

        free(f.path);
        if (rc < 0)
            return -1;
    }
    return qm_pool_drain(w->pool, err);
}

int
qm_peek_each(const struct qm_peek_folder *folders, size_t n, unsigned threads, qm_peek_fn *fn,
             void *opaque, uint64_t *out_files, struct qmeld_error *err)
{
    struct walk w = {.fn = fn, .opaque = opaque};
    const unsigned most = threads ? threads : qm_processors() * 2;
    const struct qm_pool_config config = {.threads = most < MAX_THREADS ? most : MAX_THREADS,
                                          .item_size = sizeof(char *),
                                          .queue_len = QUEUE,
                                          .fn = look_at,
                                          .shared = &w};
    struct qmeld_error unheard = {0};
    int rc = qm_pool_new(&config, &w.pool, err);

    *out_files = 0;
    if (rc == 0)
        rc = add_named(&w, folders, n, err);
    if (rc == 0)
        rc = walk(&w, err);
    if (rc < 0 && w.pool && qm_pool_drain(w.pool, &unheard) < 0)
        unheard.code = QMELD_OK; /* what waits in the queue is ours to free: that is all */
    qm_pool_free(w.pool);
    QM_VEC_EACH (f, &w.waiting)
        free(f->path);
    qm_vec_release(&w.waiting);
    qm_vec_release(&w.seen);
    *out_files = w.files;
    return rc;
}
