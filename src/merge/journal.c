/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "journal.h"

#include "bytes.h"
#include "nbd_name.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define VERSION    2u
#define SECTOR     512u
#define CURSOR_OFF 512u /* two sectors */
#define INTENT_OFF 4096u
/* 1,000 layers with the longest paths take 5 MiB; a forged intent may cost 40 times its length */
#define MAX_INTENT   (8u << 20)
#define CURSOR_MAGIC 0x63757273u /* "curs" */

static const char magic[16] = "qmeld journal\n";
static const char nothing[16]; /* before the head is written */

/* docs/format.md, "The journal" */
struct disk_head {
    char magic[16];
    be32 version;
    be32 intent_len;
    be32 intent_crc;
    be32 crc; /* of all before it */
};

struct disk_cursor {
    be32 magic;
    be32 phase;
    be64 seq;
    be64 done;
    be64 kept;
    be64 size; /* from here to unused: struct qm_staged */
    be64 l1_off;
    be32 l1_entries;
    be32 reftable_clusters;
    be64 reftable_off;
    be64 autoclear;
    be64 bitmap_dir_off;
    be64 bitmap_dir_len;
    be32 n_bitmaps;
    be32 unused;
    be64 left_size;
    be64 left_sec;
    be64 left_nsec;
    be32 crc; /* of all before it */
};
static_assert(offsetof(struct disk_head, crc) == 28, "format");
static_assert(offsetof(struct disk_cursor, crc) == 120, "format");

struct qm_journal {
    struct qm_file *file;
    struct qm_intent intent;
    struct qm_cursor cursor;
    struct qm_trail trail;
    uint64_t seq; /* of the cursor on disk; its parity tells the sector */
};

static uint32_t
crc_of(const void *p, size_t len)
{
    return (uint32_t)crc32_z(0, p, len);
}

/* ---- where it lies ---- */

int
qm_journal_path(const char *base, bool blockdev, const char *active, const char *journal_dir,
                char **out, struct qmeld_error *err)
{
    QM_FREE char *export = qm_nbd_file_name(base);
    const char *slash = strrchr(base, '/'), *name = export ? export : slash ? slash + 1 : base;
    const char *beside = blockdev ? active : base;
    const char *end = strrchr(beside, '/');
    int rc;

    if (journal_dir)
        rc = asprintf(out, "%s/.%s.qmeld", journal_dir, name);
    else
        rc = asprintf(out, "%.*s.%s.qmeld", end ? (int)(end - beside + 1) : 0, beside, name);
    if (rc < 0) {
        *out = NULL;
        return qm_fail_nomem(err, "the journal's path");
    }
    return 0;
}

int
qm_journal_check_place(const struct qm_file *base, const struct qm_file *active,
                       const char *journal_dir, struct qmeld_error *err)
{
    if (journal_dir || !base->blockdev || !active->blockdev)
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(base->path),
                   "neither this %s nor the active layer lies in a directory where the journal "
                   "could be kept: say where with --journal-dir=DIR",
                   qm_file_kind(base));
}

/* ---- to the disk ---- */

static void
encode_trail(const struct qm_trail *t, struct disk_cursor *d)
{
    be64_put(&d->kept, t->kept.g);
    be64_put(&d->size, t->staged.size);
    be64_put(&d->l1_off, t->staged.l1_off);
    be32_put(&d->l1_entries, t->staged.l1_entries);
    be32_put(&d->reftable_clusters, t->staged.reftable_clusters);
    be64_put(&d->reftable_off, t->staged.reftable_off);
    be64_put(&d->autoclear, t->staged.autoclear);
    be64_put(&d->bitmap_dir_off, t->staged.bitmap_dir_off);
    be64_put(&d->bitmap_dir_len, t->staged.bitmap_dir_len);
    be32_put(&d->n_bitmaps, t->staged.n_bitmaps);
    be64_put(&d->left_size, t->left.size);
    be64_put(&d->left_sec, (uint64_t)t->left.mtime_sec);
    be64_put(&d->left_nsec, (uint64_t)t->left.mtime_nsec);
}

static struct qm_trail
decode_trail(const struct disk_cursor *d)
{
    return (struct qm_trail){.kept = qm_guest(be64_get(&d->kept)),
                             .staged = {.size = be64_get(&d->size),
                                        .l1_off = be64_get(&d->l1_off),
                                        .l1_entries = be32_get(&d->l1_entries),
                                        .reftable_clusters = be32_get(&d->reftable_clusters),
                                        .reftable_off = be64_get(&d->reftable_off),
                                        .autoclear = be64_get(&d->autoclear),
                                        .bitmap_dir_off = be64_get(&d->bitmap_dir_off),
                                        .bitmap_dir_len = be64_get(&d->bitmap_dir_len),
                                        .n_bitmaps = be32_get(&d->n_bitmaps)},
                             .left = {.size = be64_get(&d->left_size),
                                      .mtime_sec = (int64_t)be64_get(&d->left_sec),
                                      .mtime_nsec = (int64_t)be64_get(&d->left_nsec)}};
}

static int
write_cursor(struct qm_journal *j, struct qm_cursor to, const struct qm_trail *trail,
             struct qmeld_error *err)
{
    unsigned char sector[SECTOR] = {0};
    struct disk_cursor *d = (struct disk_cursor *)sector;

    be32_put(&d->magic, CURSOR_MAGIC);
    be32_put(&d->phase, to.phase);
    be64_put(&d->seq, j->seq + 1);
    be64_put(&d->done, to.done.g);
    encode_trail(trail, d);
    be32_put(&d->crc, crc_of(d, offsetof(struct disk_cursor, crc)));
    if (qm_pwrite(j->file, CURSOR_OFF + (j->seq + 1) % 2 * SECTOR, sector, SECTOR, err) < 0)
        return -1;
    j->seq++;
    j->cursor = to;
    j->trail = *trail;
    return 0;
}

static int
write_intent(struct qm_journal *j, const char *text, struct qmeld_error *err)
{
    unsigned char sector[SECTOR] = {0};
    struct disk_head *h = (struct disk_head *)sector;
    const struct qm_cursor first = {.phase =
                                        j->intent.guarded.n > 0 ? QM_PHASE_PROTECT : QM_PHASE_COPY};
    const size_t len = strlen(text);

    if (len > MAX_INTENT)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(j->file->path),
                       "the merge is too large to be described: merge fewer layers at a time");
    memcpy(h->magic, magic, sizeof magic);
    be32_put(&h->version, VERSION);
    be32_put(&h->intent_len, (uint32_t)len);
    be32_put(&h->intent_crc, crc_of(text, len));
    be32_put(&h->crc, crc_of(h, offsetof(struct disk_head, crc)));
    if (qm_pwrite(j->file, INTENT_OFF, text, len, err) < 0 ||
        write_cursor(j, first, &j->trail, err) < 0 || qm_sync(j->file, err) < 0)
        return -1;
    /* COMMIT POINT: with its head the journal is valid */
    if (qm_pwrite(j->file, 0, sector, SECTOR, err) < 0 || qm_sync(j->file, err) < 0)
        return -1;
    return qm_sync_dir_of(j->file->path, err);
}

/* While a process works on a merge it holds this lock (byte 0, of the open file, so that it ends with
 * the process): two of them may not, and who asks about the merge can be told. */
static int
lock_it(const struct qm_journal *j, struct qmeld_error *err)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};

    if (j->file->shadow)
        return 0;
    if (fcntl(j->file->wfd, F_OFD_SETLK, &l) == 0 || (errno != EAGAIN && errno != EACCES))
        return 0; /* a file system without locks: those of the layers are taken, too */
    return qm_fail(err, QMELD_BUSY, qm_in(j->file->path),
                   "another process is at work on this merge: wait for it");
}

/* Another merge's journal at path is not overwritten: that merge could not be finished then.  One
 * that never became valid goes.  The new file is ours, not one that a symbolic link leads to. */
static int
make_file(const char *path, struct qm_file **out, struct qmeld_error *err)
{
    struct qm_journal *old;
    struct stat st;

    if (qm_journal_load(path, &old, err) < 0)
        return -1;
    qm_journal_close(old);
    if (old)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "it is the journal of another unfinished merge: finish that first with "
                       "`qmeld resume %s`",
                       path);
    if (lstat(path, &st) == 0 && qm_unlink(path, err) < 0)
        return -1;
    if (qm_file_create_new(path, 0644, out, err) == 0)
        return 0;
    if (err->sys_errno == 0)
        return -1;
    errno = err->sys_errno;
    return qm_fail_sys(err, qm_in(path),
                       "cannot make the journal (--journal-dir names another place for it)");
}

static int
create(struct qm_journal *j, const char *path, struct qmeld_error *err)
{
    QM_FREE char *text = NULL;
    int rc;

    free(j->intent.journal);
    j->intent.journal = qm_absolute_path(path);
    if (j->intent.journal)
        text = qm_intent_text(&j->intent);
    if (!text)
        return qm_fail_nomem(err, "the journal");
    rc = make_file(path, &j->file, err);
    if (rc == 0)
        rc = lock_it(j, err);
    if (rc == 0 && !j->file->shadow) /* nobody could go on with it otherwise */
        rc = qm_journal_is_ours(j->file, err);
    if (rc == 0)
        rc = qm_intent_reach(&j->intent, j->file, err);
    return rc == 0 ? write_intent(j, text, err) : -1;
}

int
qm_journal_create(const char *path, struct qm_intent *intent, struct qm_journal **out,
                  struct qmeld_error *err)
{
    struct qm_journal *j = calloc(1, sizeof *j);

    *out = NULL;
    if (!j) {
        qm_intent_release(intent);
        return qm_fail_nomem(err, "the journal");
    }
    j->intent = *intent;
    *intent = (struct qm_intent){.base_arg = NULL};
    if (create(j, path, err) < 0) {
        if (j->file) { /* never valid: nothing is lost if it stays */
            struct qmeld_error unheard = {0};

            if (qm_unlink(path, &unheard) < 0)
                unheard.code = QMELD_OK;
        }
        qm_journal_close(j);
        return -1;
    }
    *out = j;
    return 0;
}

int
qm_journal_advance(struct qm_journal *j, struct qm_cursor to, struct qmeld_error *err)
{
    assert(to.phase >= j->cursor.phase || j->cursor.phase == QM_PHASE_PROTECT);
    const struct qm_trail trail = j->trail;

    return write_cursor(j, to, &trail, err) < 0 ? -1 : qm_sync(j->file, err);
}

struct qm_trail
qm_journal_trail(const struct qm_journal *j)
{
    return j->trail;
}

int
qm_journal_set_trail(struct qm_journal *j, const struct qm_trail *trail, struct qmeld_error *err)
{
    return write_cursor(j, j->cursor, trail, err) < 0 ? -1 : qm_sync(j->file, err);
}

int
qm_journal_remove(struct qm_journal *j, struct qmeld_error *err)
{
    const int rc = qm_unlink(j->file->path, err);

    qm_journal_close(j);
    return rc;
}

void
qm_journal_close(struct qm_journal *j)
{
    if (!j)
        return;
    qm_intent_release(&j->intent);
    qm_file_close(j->file);
    free(j);
}

/* ---- from the disk ---- */

static int
damaged(const struct qm_journal *j, const char *what, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_in(j->file->path),
                   "the journal of an unfinished merge is damaged (%s): the chain's active layer "
                   "reads as before; move the journal away and give the merge command again",
                   what);
}

static int
read_cursor(struct qm_journal *j, struct qmeld_error *err)
{
    bool found = false;

    for (unsigned i = 0; i < 2; i++) {
        struct disk_cursor d;

        if (qm_pread_padded(j->file, CURSOR_OFF + i * SECTOR, &d, sizeof d, err) < 0)
            return -1;
        if (be32_get(&d.magic) != CURSOR_MAGIC || be32_get(&d.phase) > QM_PHASE_PROTECT ||
            be32_get(&d.crc) != crc_of(&d, offsetof(struct disk_cursor, crc)) ||
            (found && be64_get(&d.seq) < j->seq))
            continue;
        found = true;
        j->seq = be64_get(&d.seq);
        j->cursor = (struct qm_cursor){.phase = (enum qm_phase)be32_get(&d.phase),
                                       .done = qm_guest(be64_get(&d.done))};
        j->trail = decode_trail(&d);
    }
    if (!found)
        return damaged(j, "no cursor", err);
    return j->cursor.done.g <= j->intent.new_size ? 0 : damaged(j, "cursor", err);
}

static int
read_intent(struct qm_journal *j, const struct disk_head *h, struct qmeld_error *err)
{
    const size_t len = be32_get(&h->intent_len);
    QM_FREE char *text = NULL;

    if (len > MAX_INTENT)
        return damaged(j, "length", err);
    text = calloc(len + 1, 1);
    if (!text)
        return qm_fail_nomem(err, "the journal");
    if (qm_pread_padded(j->file, INTENT_OFF, text, len, err) < 0)
        return -1;
    if (be32_get(&h->intent_crc) != crc_of(text, len))
        return damaged(j, "checksum", err);
    return qm_intent_parse(text, &j->intent) ? 0 : damaged(j, "content", err);
}

int
qm_journal_is_ours(const struct qm_file *file, struct qmeld_error *err)
{
    struct stat st;

    if (fstat(file->fd, &st) < 0)
        return qm_fail_sys(err, qm_in(file->path), "cannot stat");
    if ((st.st_uid == geteuid() || st.st_uid == 0) && !(st.st_mode & S_IWOTH))
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(file->path),
                   "the journal belongs to user %u, or everybody may write to it, so it is not "
                   "gone by: let its owner finish the merge",
                   (unsigned)st.st_uid);
}

/* It names its layers by absolute paths: gone by where it was copied to, with a backup of the folder, say, or seen in a
 * snapshot of the file system, it would have the original images merged once more, over what their users wrote since. */
static int
in_its_place(const struct qm_journal *j, struct qmeld_error *err)
{
    if (!j->intent.journal || qm_file_is_at(j->file, j->intent.journal))
        return 0;
    return qm_fail(err, QMELD_USAGE, qm_in(j->file->path),
                   "this journal was made as %s and is a copy of it, or was moved, so it is not "
                   "gone by: finish that merge there, by that journal; if these images are copies, "
                   "too, their active layer reads as before: move the journal away and give the "
                   "merge command again",
                   j->intent.journal);
}

/* *out_valid: it has a head. */
static int
load(struct qm_journal *j, bool *out_valid, struct qmeld_error *err)
{
    struct disk_head h;

    *out_valid = false;
    if (qm_pread_padded(j->file, 0, &h, sizeof h, err) < 0)
        return -1;
    if (memcmp(h.magic, nothing, sizeof nothing) == 0)
        return 0;
    if (memcmp(h.magic, magic, sizeof magic) != 0)
        return damaged(j, "no head", err);
    if (be32_get(&h.crc) != crc_of(&h, offsetof(struct disk_head, crc)))
        return damaged(j, "head", err);
    if (be32_get(&h.version) != VERSION)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(j->file->path),
                       "the journal has version %" PRIu32
                       ": finish the merge with the qmeld that began it",
                       be32_get(&h.version));
    if (qm_journal_is_ours(j->file, err) < 0 || read_intent(j, &h, err) < 0 ||
        read_cursor(j, err) < 0 || in_its_place(j, err) < 0 ||
        qm_intent_reach(&j->intent, j->file, err) < 0)
        return -1;
    *out_valid = true;
    return 0;
}

int
qm_journal_load(const char *path, struct qm_journal **out, struct qmeld_error *err)
{
    struct qm_journal *j = calloc(1, sizeof *j);
    bool valid = false;
    int rc = 0;

    *out = NULL;
    if (!j)
        return qm_fail_nomem(err, "the journal");
    if (qm_nbd_is_name(path)) { /* "beside" an export: there is none */
        qm_journal_close(j);
        return 0;
    }
    if (qm_file_open(path, &j->file, err) < 0) {
        rc = err->sys_errno == ENOENT || err->sys_errno == ENOTDIR || err->sys_errno == ENAMETOOLONG
                 ? 0
                 : -1;
    } else {
        rc = load(j, &valid, err);
    }
    if (!valid) {
        qm_journal_close(j);
        return rc;
    }
    *out = j;
    return rc;
}

int
qm_journal_hold(struct qm_journal *j, struct qmeld_error *err)
{
    const uint64_t seq = j->seq;

    if (qm_file_make_writable(j->file, err) < 0) {
        if (err->sys_errno == ENOENT || err->code == QMELD_STALE)
            qm_fail(err, QMELD_STALE, qm_in(j->file->path),
                    "another process has just finished this merge");
        return -1;
    }
    if (lock_it(j, err) < 0 || read_cursor(j, err) < 0)
        return -1;
    if (j->seq == seq)
        return 0;
    return qm_fail(err, QMELD_BUSY, qm_in(j->file->path),
                   "another process has just been at work on this merge: run the command again");
}

bool
qm_journal_is_held(const struct qm_journal *j)
{
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_len = 1};

    return fcntl(j->file->fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

const struct qm_intent *
qm_journal_intent(const struct qm_journal *j)
{
    return &j->intent;
}

struct qm_cursor
qm_journal_cursor(const struct qm_journal *j)
{
    return j->cursor;
}

const char *
qm_journal_file(const struct qm_journal *j)
{
    return j->file->path;
}

/* ---- identities ---- */

/* An export has a length, and no times. */
static int
stat_of(const struct qm_file *f, struct stat *out, struct qmeld_error *err)
{
    if (!qm_file_is_local(f)) {
        *out = (struct stat){.st_size = (off_t)f->size};
        return 0;
    }
    return fstat(f->fd, out) < 0 ? qm_fail_sys(err, qm_in(f->path), "cannot stat") : 0;
}

int
qm_journal_look(const struct qm_file *target, struct qm_trail *trail, struct qmeld_error *err)
{
    struct stat st;

    if (stat_of(target, &st, err) < 0)
        return -1;
    trail->left.size = (uint64_t)st.st_size;
    trail->left.mtime_sec = st.st_mtim.tv_sec;
    trail->left.mtime_nsec = st.st_mtim.tv_nsec;
    return 0;
}

static bool
copy_text(const char *from, char **to)
{
    *to = from ? strdup(from) : NULL;
    return *to || !from;
}

static struct qm_birth
birth_of(const struct qm_file *f)
{
    struct qm_birth born = {.sec = 0};
    struct statx st;

    if (qm_file_is_local(f) && !f->blockdev &&
        statx(f->fd, "", AT_EMPTY_PATH, STATX_BTIME, &st) == 0 && st.stx_mask & STATX_BTIME) {
        born.sec = st.stx_btime.tv_sec;
        born.nsec = st.stx_btime.tv_nsec;
    }
    return born;
}

/* The same number of an inode is not enough. */
static bool
is_born_then(const struct qm_birth *then, const struct qm_file *f)
{
    const struct qm_birth now = birth_of(f);

    if ((then->sec == 0 && then->nsec == 0) || (now.sec == 0 && now.nsec == 0))
        return true;
    return then->sec == now.sec && then->nsec == now.nsec;
}

static int
note_data(const struct qm_image *img, struct qm_journal_data *out, struct qmeld_error *err)
{
    const struct qm_file *f = img->data;
    struct stat st;

    if (f == img->file)
        return 0;
    if (stat_of(f, &st, err) < 0)
        return -1;
    *out = (struct qm_journal_data){.path = qm_absolute_path(f->path),
                                    .ino = f->ino,
                                    .size = (uint64_t)st.st_size,
                                    .mtime_sec = st.st_mtim.tv_sec,
                                    .mtime_nsec = st.st_mtim.tv_nsec,
                                    .born = birth_of(f)};
    return out->path ? 0 : qm_fail_nomem(err, "the journal");
}

int
qm_journal_note(const struct qm_layer *layer, struct qm_journal_layer *out, struct qmeld_error *err)
{
    const struct qm_file *f = layer->img->file;
    struct stat st;

    *out = (struct qm_journal_layer){.blockdev = f->blockdev, .ino = f->ino, .size = f->size};
    if (stat_of(f, &st, err) < 0)
        return -1;
    out->mtime_sec = st.st_mtim.tv_sec;
    out->mtime_nsec = st.st_mtim.tv_nsec;
    out->born = birth_of(f);
    out->path = qm_absolute_path(layer->path);
    out->format = strdup(layer->img->ops->format);
    if (out->path && out->format && copy_text(layer->img->backing_name, &out->backing_name) &&
        copy_text(layer->img->backing_format, &out->backing_format)) {
        if (note_data(layer->img, &out->data, err) == 0)
            return 0;
        qm_journal_layer_release(out);
        return -1;
    }
    qm_journal_layer_release(out);
    return qm_fail_nomem(err, "the journal");
}

const char *
qm_journal_path_now(const struct qm_journal_layer *l)
{
    struct stat st;

    return l->moved_to && stat(l->moved_to, &st) == 0 && st.st_ino == l->ino ? l->moved_to
                                                                             : l->path;
}

static bool
looks_so(const struct qm_journal_layer *then, const struct stat *st)
{
    return then->size == (uint64_t)st->st_size && then->mtime_sec == st->st_mtim.tv_sec &&
           then->mtime_nsec == st->st_mtim.tv_nsec;
}

bool
qm_journal_changed(const struct qm_journal_layer *then)
{
    struct stat st;

    return !then->blockdev && stat(then->path, &st) == 0 &&
           (st.st_ino != then->ino || !looks_so(then, &st));
}

static int
stale(const struct qm_file *file, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_STALE, qm_in(file->path),
                   "it has changed since the unfinished merge began, so the merge cannot go on: "
                   "put the old file back");
}

static int
same_data(const struct qm_journal_data *then, const struct qm_image *img, bool untouched,
          struct qmeld_error *err)
{
    const struct qm_file *file = img->data;
    struct stat st;

    if (file == img->file)
        return then->path ? stale(file, err) : 0;
    if (stat_of(file, &st, err) < 0)
        return -1;
    if (then->path && then->ino == file->ino && is_born_then(&then->born, file) &&
        (!untouched || file->blockdev ||
         (then->size == (uint64_t)st.st_size && then->mtime_sec == st.st_mtim.tv_sec &&
          then->mtime_nsec == st.st_mtim.tv_nsec)))
        return 0;
    return stale(file, err);
}

int
qm_journal_same(const struct qm_journal_layer *then, const struct qm_image *img, bool untouched,
                struct qmeld_error *err)
{
    const struct qm_file *file = img->file;
    struct stat st;

    if (qm_hands_reach(&then->hands, then->journal, then->path, file, then->reads, err) < 0 ||
        (img->data != file && qm_hands_reach(&then->hands, then->journal, img->data->path,
                                             img->data, then->reads, err) < 0) ||
        stat_of(file, &st, err) < 0)
        return -1;
    if (then->blockdev != file->blockdev || then->ino != file->ino ||
        !is_born_then(&then->born, file))
        return qm_fail(err, QMELD_STALE, qm_in(file->path),
                       "it is another file than when the unfinished merge began: move it away, and "
                       "put the old one back, unless the merge has removed that already");
    if (untouched && !file->blockdev && !looks_so(then, &st))
        return stale(file, err);
    return same_data(&then->data, img, untouched, err);
}
