/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_snapshot.c - the table of internal snapshots, and one of them as an image.
 *
 * Why.  Everybody who changes or checks an image must know which clusters its snapshots
 * still need.  Only the table is read here; a snapshot's L1 table is looked at by who uses it, as
 * QEMU does, so that one broken snapshot does not close the image.
 * Source     specification, "Snapshots"; limits: qemu 7.2, block/qcow2-snapshot.c
 *            (qcow2_do_read_snapshots).
 */
#include "cipher.h"
#include "qcow2.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* specification, "Snapshots": the extra data we know */
#define EXTRA_VM_STATE_END  8u
#define EXTRA_DISK_SIZE_END 16u
#define EXTRA_ICOUNT_END    24u

#define MAX_TAIL (QCOW2_MAX_SNAPSHOT_EXTRA + 2 * UINT16_MAX)

struct reading {
    const struct qm_qcow2 *q;
    uint64_t off;        /* of the next entry */
    unsigned char *tail; /* extra data, id and name of one entry */
};

static int
too_large(const struct reading *r, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_at(r->q->img.file->path, r->off),
                   "snapshot table exceeds %u bytes, more than QEMU takes: `qemu-img check -r all` "
                   "cuts it off, and loses the snapshots behind that; no repair here does",
                   QCOW2_MAX_SNAPSHOT_TABLE);
}

static int
load_entry(struct reading *r, struct qm_snapshot *s, struct qmeld_error *err)
{
    const struct qm_file *file = r->q->img.file;
    struct qcow2_disk_snapshot raw;
    uint32_t extra, id_len, name_len, tail_len;
    be64 word;

    if (qm_pread_padded(file, r->off, &raw, sizeof raw, err) < 0)
        return -1;
    extra = be32_get(&raw.extra_len);
    id_len = be16_get(&raw.id_len);
    name_len = be16_get(&raw.name_len);
    if (extra > QCOW2_MAX_SNAPSHOT_EXTRA)
        return qm_fail(err, QMELD_CORRUPT, qm_at(file->path, r->off),
                       "snapshot table: %" PRIu32
                       " bytes of extra data in an entry, %u is the most: repair it with check "
                       "--repair=all",
                       extra, QCOW2_MAX_SNAPSHOT_EXTRA);
    r->off += sizeof raw;
    tail_len = extra + id_len + name_len;
    if (qm_pread_padded(file, r->off, r->tail, tail_len, err) < 0)
        return -1;
    r->off += tail_len;

    s->l1_off = be64_get(&raw.l1_off);
    s->l1_entries = be32_get(&raw.l1_entries);
    s->date_sec = be32_get(&raw.date_sec);
    s->date_nsec = be32_get(&raw.date_nsec);
    s->vm_clock_nsec = be64_get(&raw.vm_clock);
    s->vm_state_size = be32_get(&raw.vm_state);
    if (extra >= EXTRA_VM_STATE_END) {
        memcpy(&word, r->tail, sizeof word);
        s->vm_state_size = be64_get(&word);
    }
    if (extra >= EXTRA_DISK_SIZE_END) {
        memcpy(&word, r->tail + EXTRA_VM_STATE_END, sizeof word);
        s->disk_size = be64_get(&word);
    }
    s->icount = UINT64_MAX;
    if (extra >= EXTRA_ICOUNT_END) {
        memcpy(&word, r->tail + EXTRA_DISK_SIZE_END, sizeof word);
        s->icount = be64_get(&word);
    }
    s->id = strndup((const char *)r->tail + extra, id_len);
    s->name = strndup((const char *)r->tail + extra + id_len, name_len);
    if (!s->id || !s->name)
        return qm_fail_nomem(err, "a snapshot's name");
    return 0;
}

int
qm_qcow2_read_snapshots(const struct qm_qcow2 *q, struct qm_snapshots *out, struct qmeld_error *err)
{
    const uint64_t begin = q->hdr.snapshots_off;
    struct reading r = {.q = q, .off = begin};
    QM_FREE unsigned char *tail = NULL;

    *out = (struct qm_snapshots){0};
    if (q->hdr.n_snapshots == 0)
        return 0;
    if (q->hdr.n_snapshots > QCOW2_MAX_SNAPSHOTS || begin > QM_MAX_OFF - QCOW2_MAX_SNAPSHOT_TABLE)
        return too_large(&r, err);
    r.tail = tail = malloc(MAX_TAIL);
    if (!tail)
        return qm_fail_nomem(err, "the snapshot table");
    for (uint32_t i = 0; i < q->hdr.n_snapshots; i++) {
        struct qm_snapshot none = {0};

        if (!qm_vec_push(&out->list, &none))
            return qm_fail_nomem(err, "the snapshot table");
        r.off = qm_align_up(r.off, 8);
        if (load_entry(&r, qm_vec_last(&out->list), err) < 0)
            return -1;
        if (r.off - begin > QCOW2_MAX_SNAPSHOT_TABLE)
            return too_large(&r, err);
    }
    out->table_len = r.off - begin;
    return 0;
}

void
qm_snapshots_release(struct qm_snapshots *s)
{
    QM_VEC_EACH (e, &s->list) {
        free(e->id);
        free(e->name);
    }
    qm_vec_release(&s->list);
    s->table_len = 0;
}

/* ---- a snapshot as the image ---- */

/* Takes "key=value" off *words, the value malloc'd, a comma in it doubled (qemu 7.2, util/qemu-option.c). */
static char *
take_word(const char **words, const char *key)
{
    const size_t n = strlen(key);
    const char *at = *words + n;
    char *out;
    size_t len = 0;

    if (strncmp(*words, key, n) != 0 || !(out = malloc(strlen(at) + 1)))
        return NULL;
    while (*at && (*at != ',' || at[1] == ',')) {
        at += *at == ',';
        out[len++] = *at++;
    }
    out[len] = '\0';
    *words = *at ? at + 1 : at;
    return out;
}

/* As qemu-img -l has it: by ID, by name, or by both. */
static int
find_by_words(const struct qm_qcow2 *q, const struct qm_snapshots *all, const char *words,
              const struct qm_snapshot **out, struct qmeld_error *err)
{
    const char *rest = words;
    QM_FREE char *id = NULL;
    QM_FREE char *name = NULL;

    while (*rest) {
        char *is_id = id ? NULL : take_word(&rest, "snapshot.id=");

        if (is_id)
            id = is_id;
        else if (name || !(name = take_word(&rest, "snapshot.name=")))
            return qm_fail(err, QMELD_USAGE, qm_in(q->img.file->path),
                           "\"%.64s\" names no snapshot: say snapshot.id=ID,snapshot.name=NAME, or "
                           "one of them",
                           words);
    }
    QM_VEC_EACH (s, &all->list) {
        if ((id && strcmp(s->id, id) != 0) || (name && strcmp(s->name, name) != 0))
            continue;
        *out = s;
        return 0;
    }
    return qm_fail(err, QMELD_USAGE, qm_in(q->img.file->path),
                   "it has no internal snapshot \"%.64s\": qmeld info lists them", words);
}

/* QEMU looks for the ID first (qemu 7.2, block/qcow2-snapshot.c, find_snapshot_by_id_or_name). */
static int
find_snapshot(const struct qm_qcow2 *q, const struct qm_snapshots *all, const char *name,
              const struct qm_snapshot **out, struct qmeld_error *err)
{
    const struct qm_snapshot *found = NULL;

    if (strncmp(name, "snapshot.", 9) == 0)
        return find_by_words(q, all, name, out, err);
    QM_VEC_EACH (s, &all->list) {
        if (strcmp(s->id, name) == 0) {
            *out = s;
            return 0;
        }
        if (strcmp(s->name, name) != 0)
            continue;
        if (found)
            return qm_fail(
                err, QMELD_USAGE, qm_in(q->img.file->path),
                "several internal snapshots are called \"%.64s\": say which by its ID, which "
                "qmeld info shows",
                name);
        found = s;
    }
    if (!found)
        return qm_fail(err, QMELD_USAGE, qm_in(q->img.file->path),
                       "it has no internal snapshot \"%.64s\": qmeld info lists them", name);
    *out = found;
    return 0;
}

static int
bad_snapshot(const struct qm_qcow2 *q, const struct qm_snapshot *s, const char *what,
             struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, s->l1_off),
                   "internal snapshot \"%.64s\": its L1 table %s: run check on the image", s->name,
                   what);
}

/* Old images do not store the size.  They could not change it while there were snapshots, and their L1
 * table reached as far as the disk (qemu 7.2, block/qcow2.c, qcow2_co_truncate). */
static int
adopt_snapshot(struct qm_qcow2 *q, const struct qm_snapshot *s, struct qmeld_error *err)
{
    const uint64_t span = qcow2_l2_span(&q->geo);
    uint64_t size = s->disk_size ? s->disk_size : q->hdr.size, reach;

    if (s->l1_off & (q->geo.cluster_size - 1))
        return bad_snapshot(q, s, "is not cluster aligned", err);
    if ((uint64_t)s->l1_entries * sizeof(be64) > QCOW2_MAX_L1_BYTES)
        return bad_snapshot(q, s, "is larger than 32 MiB", err);
    if (s->l1_off > QM_MAX_OFF - QCOW2_MAX_L1_BYTES)
        return bad_snapshot(q, s, "lies beyond what a file can have", err);
    if (__builtin_mul_overflow(s->l1_entries, span, &reach))
        reach = UINT64_MAX;
    if (!s->disk_size)
        size = qm_min(size, reach);
    size = qm_align_down(size, 512);
    if (size > QM_MAX_OFF - 511 || size > reach)
        return bad_snapshot(q, s, "is too small for its disk", err);
    qm_image_forget(&q->img);
    q->hdr.l1_off = s->l1_off;
    q->hdr.l1_entries = s->l1_entries;
    q->hdr.size = q->img.size = size;
    return 0;
}

int
qm_qcow2_view_snapshot(struct qm_qcow2 *q, const char *name, struct qmeld_error *err)
{
    const struct qm_snapshot *found = NULL;
    struct qm_snapshots all;
    int rc = qm_qcow2_read_snapshots(q, &all, err);

    if (rc == 0)
        rc = find_snapshot(q, &all, name, &found, err);
    if (rc == 0)
        rc = adopt_snapshot(q, found, err);
    qm_snapshots_release(&all);
    return rc;
}

int
qm_qcow2_open_snapshot(const struct qm_qcow2 *q, const struct qm_snapshot *s, struct qm_qcow2 **out,
                       struct qmeld_error *err)
{
    struct qm_qcow2 *view;
    uint64_t size;

    *out = NULL;
    if (q->geo
            .data_file) /* qemu 7.2, block/qcow2-snapshot.c, qcow2_snapshot_create: none can be made */
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(q->img.file->path),
                       "it has internal snapshots, and an external data file, which QEMU does not "
                       "make: delete the snapshots first");
    /* so that the snapshot table, which q has read, is not read again for each of its entries */
    if (qm_qcow2_open(q->img.file, q->flags | QCOW2_DECODE_FOR_CHECK, &view, err) < 0)
        return -1;
    qm_cipher_free(view->img.cipher);
    view->img.cipher = q->img.cipher;
    if (adopt_snapshot(view, s, err) < 0) {
        qm_qcow2_close_snapshot(view);
        return -1;
    }
    /* qemu-img reads a snapshot as far as the active view goes (qemu 7.2, block/qcow2-snapshot.c,
     * qcow2_snapshot_load_tmp); only one that is reverted to has its own end */
    size = qm_min(q->hdr.size, (uint64_t)s->l1_entries * qcow2_l2_span(&q->geo));
    view->hdr.size = view->img.size = qm_max(view->hdr.size, size);
    *out = view;
    return 0;
}

void
qm_qcow2_close_snapshot(struct qm_qcow2 *view)
{
    if (!view)
        return;
    view->img.cipher = NULL;
    view->img.ops->free(&view->img);
}
