/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * note.c - qmeld_note_*: a text beside an image that is there whole, or not at all.
 *
 * File       docs/format.md, "Notes": a head of 64 bytes, written last, with length and checksum;
 *            the text behind it.
 */
#include "bytes.h"
#include "journal.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define HEAD_LEN 64u
/* what is remembered of a virtual machine's disks: 1,000 layers with the longest paths take 5 MiB */
#define MAX_TEXT (8u << 20)
#define VERSION  1u
#define SUFFIX   "-domain"

static const char magic[16] = "qmeld note\n";
static const char nothing[16]; /* before the head is written */

/* docs/format.md, "Notes" */
struct disk_note {
    char magic[16];
    be32 version;
    be32 len;
    be32 text_crc;
    be32 step;
    be32 crc; /* of all before it */
    unsigned char zero[28];
};
static_assert(offsetof(struct disk_note, crc) == 32, "format");
static_assert(sizeof(struct disk_note) == HEAD_LEN, "format");

static uint32_t
crc_of(const void *p, size_t len)
{
    return (uint32_t)crc32_z(0, p, len);
}

int
qmeld_note_path(const char *base, const char *active, const char *journal_dir, char **out,
                struct qmeld_error *err)
{
    QM_FREE char *journal = NULL;
    struct stat st;

    *out = NULL;
    memset(err, 0, sizeof *err);
    if (stat(base, &st) < 0)
        return qm_fail_sys(err, qm_in(base), "cannot look at it");
    if (qm_journal_path(base, S_ISBLK(st.st_mode), active, journal_dir, &journal, err) < 0)
        return -1;
    if (asprintf(out, "%s" SUFFIX, journal) < 0) {
        *out = NULL;
        return qm_fail_nomem(err, "a path");
    }
    return 0;
}

/* ---- to the disk ---- */

static int
write_text(struct qm_file *file, const char *text, size_t len, struct qmeld_error *err)
{
    struct disk_note d = {.zero = {0}};

    memcpy(d.magic, magic, sizeof magic);
    be32_put(&d.version, VERSION);
    be32_put(&d.len, (uint32_t)len);
    be32_put(&d.text_crc, crc_of(text, len));
    be32_put(&d.crc, crc_of(&d, offsetof(struct disk_note, crc)));
    if (qm_pwrite(file, HEAD_LEN, text, len, err) < 0 || qm_sync(file, err) < 0)
        return -1;
    /* COMMIT POINT: with its head the note is valid */
    if (qm_pwrite(file, 0, &d, sizeof d, err) < 0 || qm_sync(file, err) < 0)
        return -1;
    return qm_sync_dir_of(file->path, err);
}

static int
refuse_old(const char *path, struct qmeld_error *err)
{
    QM_FREE char *old = NULL;
    struct stat st;

    if (qmeld_note_read(path, &old, NULL, err) < 0)
        return -1;
    if (old)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "something is noted here already, and not finished: `qmeld resume %s`",
                       path);
    return lstat(path, &st) == 0 ? qm_unlink(path, err) : 0;
}

int
qmeld_note_write(const char *path, const char *text, struct qmeld_error *err)
{
    struct qmeld_error unheard = {0};
    const size_t len = strlen(text);
    struct qm_file *file;
    int fd, rc;

    memset(err, 0, sizeof *err);
    if (len > MAX_TEXT)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                       "too much to be noted: merge fewer layers or disks at a time");
    if (refuse_old(path, err) < 0)
        return -1;
    fd = open(path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0644);
    if (fd < 0)
        return qm_fail_sys(err, qm_in(path),
                           "cannot make the note (--journal-dir names another "
                           "place for it)");
    close(fd);
    if (qm_file_create(path, &file, err) < 0)
        return -1;
    rc = write_text(file, text, len, err);
    qm_file_close(file);
    if (rc < 0 && qm_unlink(path, &unheard) < 0) /* never valid: it may stay */
        unheard.code = QMELD_OK;
    return rc;
}

int
qmeld_note_remove(const char *path, struct qmeld_error *err)
{
    memset(err, 0, sizeof *err);
    if (access(path, F_OK) < 0 && errno == ENOENT)
        return 0;
    return qm_unlink(path, err);
}

/* ---- from the disk ---- */

static int
damaged(const struct qm_file *file, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_in(file->path),
                   "the note of what is to be put right after a merge is damaged: see that the "
                   "virtual machine's definition names the right files, then remove it");
}

/* *out_valid: it has a head. */
static int
read_head(const struct qm_file *file, struct disk_note *d, bool *out_valid, struct qmeld_error *err)
{
    *out_valid = false;
    if (qm_pread_padded(file, 0, d, sizeof *d, err) < 0)
        return -1;
    if (memcmp(d->magic, nothing, sizeof nothing) == 0)
        return 0;
    if (memcmp(d->magic, magic, sizeof magic) != 0 ||
        be32_get(&d->crc) != crc_of(d, offsetof(struct disk_note, crc)))
        return damaged(file, err);
    if (be32_get(&d->version) != VERSION)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file->path),
                       "the note has version %u: finish with the qmeld that began",
                       (unsigned)be32_get(&d->version));
    *out_valid = true;
    return qm_journal_is_ours(file, err);
}

static int
read_text(const struct qm_file *file, char **out, unsigned *step, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;
    struct disk_note d;
    uint32_t len;
    bool valid;

    if (read_head(file, &d, &valid, err) < 0)
        return -1;
    if (!valid)
        return 0;
    len = be32_get(&d.len);
    if (len > MAX_TEXT)
        return damaged(file, err);
    text = calloc((size_t)len + 1, 1);
    if (!text)
        return qm_fail_nomem(err, "a note");
    if (qm_pread_padded(file, HEAD_LEN, text, len, err) < 0)
        return -1;
    if (be32_get(&d.text_crc) != crc_of(text, len))
        return damaged(file, err);
    *out = QM_TAKE(text);
    if (step)
        *step = be32_get(&d.step);
    return 0;
}

int
qmeld_note_read(const char *path, char **out, unsigned *step, struct qmeld_error *err)
{
    struct qm_file *file;
    int rc;

    *out = NULL;
    memset(err, 0, sizeof *err);
    if (qm_file_open(path, &file, err) < 0)
        return err->sys_errno == ENOENT || err->sys_errno == ENOTDIR ? 0 : -1;
    rc = read_text(file, out, step, err);
    qm_file_close(file);
    return rc;
}

/* The head lies in one sector, which is written whole or not at all. */
static int
write_step(struct qm_file *file, unsigned step, struct qmeld_error *err)
{
    struct disk_note d;
    bool valid;

    if (read_head(file, &d, &valid, err) < 0)
        return -1;
    if (!valid)
        return damaged(file, err);
    be32_put(&d.step, step);
    be32_put(&d.crc, crc_of(&d, offsetof(struct disk_note, crc)));
    if (qm_file_make_writable(file, err) < 0 || qm_pwrite(file, 0, &d, sizeof d, err) < 0)
        return -1;
    return qm_sync(file, err);
}

int
qmeld_note_step(const char *path, unsigned step, struct qmeld_error *err)
{
    struct qm_file *file;
    int rc;

    memset(err, 0, sizeof *err);
    if (qm_file_open(path, &file, err) < 0)
        return -1;
    rc = write_step(file, step, err);
    qm_file_close(file);
    return rc;
}

static bool
names_a_note(const char *name)
{
    static const char end[] = ".qmeld" SUFFIX;
    const size_t len = strlen(name);

    return name[0] == '.' && len > sizeof end && strcmp(name + len - sizeof end + 1, end) == 0;
}

int
qmeld_notes(const char *dir, qmeld_note_fn *fn, void *opaque, struct qmeld_error *err)
{
    DIR *d = opendir(dir);
    struct dirent *e;
    int rc = 0;

    memset(err, 0, sizeof *err);
    if (!d)
        return qm_fail_sys(err, qm_in(dir), "cannot list the directory");
    while (rc == 0 && (e = readdir(d))) {
        QM_FREE char *path = NULL, *text = NULL;
        struct qmeld_error problem;

        if (!names_a_note(e->d_name))
            continue;
        if (asprintf(&path, "%s%s%s", dir, dir[strlen(dir) - 1] == '/' ? "" : "/", e->d_name) < 0) {
            path = NULL;
            rc = qm_fail_nomem(err, "a path");
        } else if (qmeld_note_read(path, &text, NULL, &problem) < 0 || text) {
            if (fn(path, text, text ? NULL : &problem, opaque) != 0)
                rc = qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
        }
    }
    closedir(d);
    return rc;
}
