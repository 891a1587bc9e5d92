/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * shadow.c - the dry run of a thread: its files, and the space that they take of their file systems.
 *
 * A shadow is known by device and inode, as a file may be opened twice.  Its bytes are those of the file,
 * up to where that was cut off, with pages laid over them.
 */
#include "shadow_int.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/vfs.h>
#include <unistd.h>

static _Thread_local struct qm_shadow *running;

/* ---- begin and end ---- */

int
qm_shadow_begin(bool notes, struct qm_shadow **out, struct qmeld_error *err)
{
    assert(!running);
    *out = running = calloc(1, sizeof *running);
    if (!running)
        return qm_fail_nomem(err, "a dry run");
    running->wants_notes = notes;
    return 0;
}

void
qm_shadow_be_frugal(struct qm_shadow *s)
{
    s->frugal = true;
}

bool
qm_shadow_wants_notes(const struct qm_shadow *s)
{
    return s->wants_notes;
}

struct qm_shadow *
qm_shadow_now(void)
{
    return running;
}

static void
free_file(struct qm_shadow_file *f)
{
    QM_DICT_EACH (e, &f->pages)
        if (e->value != qm_shadow_zeros)
            free(e->value);
    qm_dict_release(&f->pages);
    qm_vec_release(&f->holes);
    qm_blocks_free(f->blocks);
    free((char *)f->sum.path);
    free(f);
}

void
qm_shadow_end(struct qm_shadow *s)
{
    if (!s)
        return;
    assert(running == s);
    running = NULL;
    QM_VEC_EACH (f, &s->files) {
        assert((*f)->users == 0);
        free_file(*f);
    }
    qm_vec_release(&s->files);
    qm_vec_release(&s->purses);
    free(s);
}

void
qm_shadow_note(struct qm_shadow *s, const struct qmeld_error *obstacle)
{
    if (s->wants_notes && s->n_notes < QM_SHADOW_MAX_NOTES)
        s->notes[s->n_notes++] = *obstacle;
}

/* ---- files ---- */

static int
find_purse(struct qm_shadow *s, const struct qm_room *room, const char *path, size_t *out,
           struct qmeld_error *err)
{
    const struct qm_shadow_purse p = {.room = *room, .path = path};

    for (*out = 0; *out < s->purses.n; (*out)++) {
        const struct qm_room *r = &s->purses.at[*out].room;

        if (r->kind == room->kind && r->dev == room->dev && r->id == room->id)
            return 0;
    }
    return qm_vec_push(&s->purses, &p) ? 0 : qm_fail_nomem(err, "a dry run");
}

/* fd: of the file, or of the directory it will be in. */
static int
find_purses(struct qm_shadow_file *f, int fd, struct qmeld_error *err)
{
    struct qm_room rooms[QM_ROOM_KINDS];
    size_t n;

    if (qm_room_find(fd, f->sum.path, rooms, &n, err) < 0)
        return -1;
    for (f->n_purses = 0; f->n_purses < n; f->n_purses++)
        if (find_purse(f->s, &rooms[f->n_purses], f->sum.path, &f->purses[f->n_purses], err) < 0)
            return -1;
    return 0;
}

/* f_bsize is what ext4, XFS, btrfs and tmpfs allocate in; network file systems put there what they like to
 * send at once. */
static uint64_t
block_of(const struct statvfs *st)
{
    const uint64_t n = st->f_bsize;

    return n >= 512 && n <= 65536 && (n & (n - 1)) == 0 ? n : 4096;
}

static int
add_file(struct qm_shadow *s, const char *path, struct qm_shadow_file **out,
         struct qmeld_error *err)
{
    struct qm_shadow_file *f = calloc(1, sizeof *f);

    if (f)
        f->sum.path = strdup(path);
    if (f && f->sum.path && qm_vec_push(&s->files, &f)) {
        f->s = s;
        *out = f;
        return 0;
    }
    if (f)
        free_file(f);
    return qm_fail_nomem(err, "a dry run");
}

/* The file as it is. */
static int
look_at(struct qm_shadow_file *f, const struct qm_file *file, struct qmeld_error *err)
{
    struct statvfs vfs = {.f_bsize = 4096};
    struct stat st = {.st_nlink = 1};

    if (qm_file_is_local(file) && (fstat(file->fd, &st) < 0 || fstatvfs(file->fd, &vfs) < 0))
        return qm_fail_sys(err, qm_in(file->path), "cannot stat");
    f->sum.remote = !qm_file_is_local(file);
    f->sum.kind = qm_file_kind(file);
    f->sum.dev = file->dev;
    f->sum.ino = file->ino;
    f->sum.blockdev = file->blockdev;
    f->sum.old_size = f->sum.new_size = f->size = f->end = file->size;
    f->sum.old_bytes = f->sum.new_bytes =
        file->blockdev ? file->size : (uint64_t)st.st_blocks * 512;
    f->linked_elsewhere = st.st_nlink > 1;
    f->block = block_of(&vfs);
    return file->blockdev ? 0 : find_purses(f, file->fd, err);
}

int
qm_shadow_attach(struct qm_shadow *s, struct qm_file *file, struct qmeld_error *err)
{
    struct qm_shadow_file *f = NULL;

    QM_VEC_EACH (x, &s->files) {
        const struct qm_shadow_sum *sum = &(*x)->sum;

        if (sum->dev == file->dev && sum->ino == file->ino && sum->blockdev == file->blockdev)
            f = *x;
    }
    if (!f && (add_file(s, file->path, &f, err) < 0 || look_at(f, file, err) < 0))
        return -1;
    f->users++;
    file->shadow = f;
    file->size = f->size;
    return 0;
}

static struct qm_shadow_file *
find_made(const struct qm_shadow *s, const char *path)
{
    QM_VEC_EACH (f, &s->files)
        if ((*f)->sum.made && !(*f)->sum.gone && strcmp((*f)->sum.path, path) == 0)
            return *f;
    return NULL;
}

static int
look_into(struct qm_shadow_file *f, int dir, struct qmeld_error *err)
{
    struct statvfs vfs;
    struct stat st;

    if (fstat(dir, &st) < 0 || fstatvfs(dir, &vfs) < 0)
        return qm_fail_sys(err, qm_in(f->sum.path), "cannot look at its directory");
    if (faccessat(dir, ".", W_OK | X_OK, AT_EACCESS) < 0) {
        struct qmeld_error obstacle = {0};

        qm_fail_sys(&obstacle, qm_in(f->sum.path), "cannot be made");
        qm_shadow_note(f->s, &obstacle);
    }
    f->sum.made = true;
    f->sum.dev = st.st_dev;
    f->sum.ino = UINT64_MAX - f->s->n_made++;
    f->block = block_of(&vfs);
    return find_purses(f, dir, err);
}

/* Where a new file will lie. */
static int
look_at_directory(struct qm_shadow_file *f, struct qmeld_error *err)
{
    const char *slash = strrchr(f->sum.path, '/');
    QM_FREE char *dir =
        slash ? strndup(f->sum.path, (size_t)(slash - f->sum.path) + 1) : strdup(".");
    int fd, rc;

    if (!dir)
        return qm_fail_nomem(err, "a path");
    fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return qm_fail_sys(err, qm_in(dir), "cannot open the directory");
    rc = look_into(f, fd, err);
    close(fd);
    return rc;
}

int
qm_shadow_make(struct qm_shadow *s, struct qm_file *file, struct qmeld_error *err)
{
    struct qm_shadow_file *f = find_made(s, file->path);

    if (!f && (add_file(s, file->path, &f, err) < 0 || look_at_directory(f, err) < 0))
        return -1;
    f->users++;
    file->shadow = f;
    file->size = f->size;
    file->dev = f->sum.dev;
    file->ino = f->sum.ino;
    return 0;
}

bool
qm_shadow_is_made(const struct qm_shadow *s, const char *path)
{
    return find_made(s, path) != NULL;
}

static struct qm_shadow_file *
find_by_path(const struct qm_shadow *s, const char *path)
{
    struct qm_shadow_file *f = find_made(s, path);
    struct stat st;

    if (f || stat(path, &st) < 0)
        return f;
    QM_VEC_EACH (x, &s->files)
        if (!(*x)->sum.blockdev && (*x)->sum.dev == st.st_dev && (*x)->sum.ino == st.st_ino)
            return *x;
    return NULL;
}

bool
qm_shadow_is_gone(const struct qm_shadow *s, const char *path)
{
    const struct qm_shadow_file *f = find_by_path(s, path);

    return f && f->sum.gone;
}

void
qm_shadow_detach(struct qm_file *file)
{
    struct qm_shadow_file *f = file->shadow;
    struct qm_shadow *s = f->s;
    struct qmeld_error err = {0};

    if (qm_shadow_apply_holes(file, &err) < 0 ||
        (--f->users == 0 && f->sum.gone && qm_shadow_release(f, &err) < 0)) {
        s->late = s->failed ? s->late : err;
        s->failed = true;
    }
    file->shadow = NULL;
}

/* ---- names ---- */

/* A file that nobody has opened: to count what it gives back. */
static int
open_shadow(struct qm_shadow *s, const char *path, struct qm_shadow_file **out,
            struct qmeld_error *err)
{
    struct qm_file *file;
    int rc;

    (void)s;
    if (qm_file_open(path, &file, err) < 0)
        return -1;
    *out = file->shadow;
    rc = qm_shadow_need_blocks(file, err);
    qm_file_close(file);
    return rc;
}

int
qm_shadow_unlink(struct qm_shadow *s, const char *path, struct qmeld_error *err)
{
    struct qm_shadow_file *f = find_by_path(s, path);

    if ((!f || (!f->blocks && !f->sum.made)) && open_shadow(s, path, &f, err) < 0)
        return -1;
    if (f->names > 0) {
        f->names--;
        return 0;
    }
    f->sum.gone = true;
    return f->users == 0 ? qm_shadow_release(f, err) : 0;
}

/* Nobody opens it again by either name: the merge is over then. */
int
qm_shadow_rename(struct qm_shadow *s, const char *path, const char *to, struct qmeld_error *err)
{
    struct stat st;

    (void)s;
    if (lstat(path, &st) < 0)
        return qm_fail_sys(err, qm_in(path), "cannot rename to %.400s", to);
    if (lstat(to, &st) == 0)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "it cannot be renamed, as there is a %.400s by now: move that away and give "
                       "the same command again",
                       to);
    return 0;
}

/* Nobody opens it by that name: it is for a moment. */
int
qm_shadow_link(struct qm_shadow *s, const char *path, const char *to, struct qmeld_error *err)
{
    struct qm_shadow_file *f = find_by_path(s, path);

    (void)to;
    if (!f && open_shadow(s, path, &f, err) < 0)
        return -1;
    f->names++;
    return 0;
}

/* The file that is to have the name has the one for a moment already; nobody opens it again by either. */
int
qm_shadow_replace(struct qm_shadow *s, const char *path, const char *to, struct qmeld_error *err)
{
    (void)path;
    return qm_shadow_unlink(s, to, err);
}

void
qm_shadow_check_access(struct qm_file *file)
{
    struct qmeld_error obstacle = {0};

    if (file->fd < 0 || faccessat(AT_FDCWD, file->path, W_OK, AT_EACCESS) == 0)
        return;
    qm_fail_sys(&obstacle, qm_in(file->path), "cannot open for writing");
    qm_shadow_note(file->shadow->s, &obstacle);
}

/* ---- sums ---- */

int
qm_shadow_finish(struct qm_shadow *s, struct qmeld_error *err)
{
    if (!s->failed)
        return 0;
    *err = s->late;
    return -1;
}

size_t
qm_shadow_n_purses(const struct qm_shadow *s)
{
    return s->purses.n;
}

const struct qm_shadow_purse *
qm_shadow_purse(const struct qm_shadow *s, size_t i)
{
    return &s->purses.at[i];
}

uint64_t
qm_shadow_peak(const struct qm_shadow *s)
{
    uint64_t sum = 0;

    QM_VEC_EACH (p, &s->purses)
        sum += p->room.kind == QM_ROOM_DISK ? p->peak : 0;
    return sum;
}

size_t
qm_shadow_n_files(const struct qm_shadow *s)
{
    return s->files.n;
}

const struct qm_shadow_sum *
qm_shadow_sum(const struct qm_shadow *s, size_t i)
{
    return &s->files.at[i]->sum;
}

size_t
qm_shadow_n_notes(const struct qm_shadow *s)
{
    return s->n_notes;
}

const struct qmeld_error *
qm_shadow_notes(const struct qm_shadow *s, size_t i)
{
    return &s->notes[i];
}
