/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_header_bitmaps.c - the header names another bitmap directory, or gets or loses the extension that does.
 *
 * The extension's 24 bytes and the autoclear bit by which they are believed lie in different sectors as a rule (QEMU's
 * table of feature names fills the first one).  While the bit is off nobody believes the extension
 * (specification, "Bitmaps extension"), so
 *   another directory   the 24 bytes lie in one sector: they are one write
 *   a first one         a new extension where the end marker is: what follows its type first, then the type,
 *                       then the bit.  A backing name that is in the way moves behind that before
 *   none any more       the bit; then the type becomes an end marker, if the extension is the last one
 * and each arrow is a sync.  Bytes behind the end marker are free, but for the backing name.
 */
#include "qcow2_header.h"
#include "qcow2_stage.h"

#include <string.h>

/* specification, "Bitmaps extension" */
struct disk_bitmaps_ext {
    be32 n;
    be32 reserved;
    be64 dir_len;
    be64 dir_off;
};

#define HEAD sizeof(struct qcow2_disk_ext)
#define DATA sizeof(struct disk_bitmaps_ext)
static_assert(HEAD + DATA + HEAD == QM_HEADER_PLACE, "an extension and an end marker");

/* ---- where it is ---- */

static const struct qcow2_ext *
find_ext(const struct qm_qcow2 *q)
{
    QM_VEC_EACH (x, &q->hdr.exts)
        if (x->type == QCOW2_EXT_BITMAPS)
            return x;
    return NULL;
}

static int
no_room(const struct qm_qcow2 *q, const char *why, struct qmeld_error *err)
{
    return qm_fail(
        err, QMELD_NOSPACE, qm_in(q->img.file->path),
        "%s: merge with --bitmaps=keep or --bitmaps=drop, or let `qemu-img bitmap --add` "
        "write the header anew first",
        why);
}

static bool
name_in_the_way(const struct qm_qcow2 *q, uint64_t at)
{
    const struct qcow2_header *h = &q->hdr;

    return h->backing_off && h->backing_len && h->backing_off < at + QM_HEADER_PLACE &&
           at < h->backing_off + h->backing_len;
}

/* Where the name goes if it is in the way. */
static uint64_t
place_of_name(const struct qm_qcow2 *q, uint64_t at)
{
    return qm_max(at + QM_HEADER_PLACE, q->hdr.backing_off + q->hdr.backing_len);
}

/* *out: of the extension, or of the end marker that it takes the place of. */
static int
find_place(const struct qm_qcow2 *q, uint64_t *out, struct qmeld_error *err)
{
    const struct qcow2_header *h = &q->hdr;
    const struct qcow2_ext *x = find_ext(q);
    const uint64_t cs = q->geo.cluster_size, area = h->backing_off ? h->backing_off : cs;
    be32 type;

    *out = x ? x->off : h->ext_end;
    if (x)
        return 0;
    if (*out % HEAD || !qm_inside(*out, HEAD, area))
        return no_room(q, "the header has no end marker that a bitmaps extension could replace",
                       err);
    if (qm_pread_padded(q->img.file, *out, &type, sizeof type, err) < 0)
        return -1;
    if (be32_get(&type) != QCOW2_EXT_END)
        return no_room(q, "the header has no end marker that a bitmaps extension could replace",
                       err);
    if (!qm_inside(*out, QM_HEADER_PLACE, cs) ||
        (name_in_the_way(q, *out) && !qm_inside(place_of_name(q, *out), h->backing_len, cs)))
        return no_room(q, "the header cluster has no room for a bitmaps extension", err);
    return 0;
}

static bool
in_one_sector(uint64_t off, uint64_t len)
{
    return off / QM_HEADER_SECTOR == (off + len - 1) / QM_HEADER_SECTOR;
}

int
qm_header_bitmaps_fit(const struct qm_qcow2 *q, struct qm_header_place *out,
                      struct qmeld_error *err)
{
    uint64_t at;

    if (find_place(q, &at, err) < 0)
        return -1;
    if (!out)
        return !q->hdr.has_bitmaps || in_one_sector(at + HEAD, DATA)
                   ? 0
                   : no_room(q,
                             "its bitmaps extension lies across two sectors, and cannot be changed "
                             "in one write",
                             err);
    if (!find_ext(q) && name_in_the_way(q, at))
        return no_room(q,
                       "its backing name lies where the bitmaps extension would go, and would have "
                       "to move before the switch",
                       err);
    *out = (struct qm_header_place){.off = at};
    out->len = (uint32_t)(find_ext(q) ? HEAD + DATA : QM_HEADER_PLACE);
    return qm_pread_padded(q->img.file, at, out->bytes, out->len, err);
}

/* ---- writing it ---- */

static int
put(const struct qm_qcow2 *q, uint64_t off, const void *bytes, size_t len, struct qmeld_error *err)
{
    if (qm_pwrite(q->img.file, off, bytes, len, err) < 0)
        return -1;
    return qm_sync(q->img.file, err);
}

static struct disk_bitmaps_ext
encode(const struct qm_header_bitmaps *to)
{
    struct disk_bitmaps_ext raw;

    memset(&raw, 0, sizeof raw);
    be32_put(&raw.n, to->n);
    be64_put(&raw.dir_len, to->dir_len);
    be64_put(&raw.dir_off, to->dir_off);
    return raw;
}

int
qm_header_put_bitmaps(const struct qm_qcow2 *q, const struct qm_header_bitmaps *to,
                      struct qmeld_error *err)
{
    const struct disk_bitmaps_ext raw = encode(to);
    unsigned char tail[DATA + HEAD] = {0};
    struct qcow2_disk_ext head;
    uint64_t at;

    if (find_place(q, &at, err) < 0)
        return -1;
    if (find_ext(q))
        return put(q, at + HEAD, &raw, sizeof raw, err);
    memcpy(tail, &raw, sizeof raw);
    be32_put(&head.type, QCOW2_EXT_BITMAPS);
    be32_put(&head.len, sizeof raw);
    if (put(q, at + HEAD, tail, sizeof tail, err) < 0)
        return -1;
    return put(q, at, &head, sizeof head, err);
}

int
qm_header_place_bitmaps(const struct qm_qcow2 *q, const struct qm_header_bitmaps *to,
                        unsigned char sector[QM_HEADER_SECTOR], bool *out, struct qmeld_error *err)
{
    const struct disk_bitmaps_ext raw = encode(to);
    const struct qcow2_ext *x = find_ext(q);
    struct disk_bitmaps_ext now;

    *out = to->n == 0;
    if (*out || !x)
        return 0;
    if (x->off + HEAD + DATA <= QM_HEADER_SECTOR) {
        memcpy(sector + x->off + HEAD, &raw, sizeof raw);
        *out = true;
        return 0;
    }
    if (qm_pread_padded(q->img.file, x->off + HEAD, &now, sizeof now, err) < 0)
        return -1;
    *out = memcmp(&now, &raw, sizeof now) == 0;
    return 0;
}

int
qm_header_drop_ext(struct qm_qcow2 *q, struct qmeld_error *err)
{
    static const unsigned char marker[HEAD];
    const struct qcow2_ext *x = find_ext(q);

    if (!x || x != qm_vec_last(&q->hdr.exts))
        return 0;
    if (put(q, x->off, marker, sizeof marker, err) < 0)
        return -1;
    return qm_qcow2_reload(q, err);
}

int
qm_header_put_back(const struct qm_qcow2 *q, const struct qm_header_place *was,
                   struct qmeld_error *err)
{
    be32 now;

    if (qm_pread_padded(q->img.file, was->off, &now, sizeof now, err) < 0)
        return -1;
    /* whichever of the two has the extension, its type is there only while what follows is its */
    if (be32_get(&now) != QCOW2_EXT_END && put(q, was->off, was->bytes, HEAD, err) < 0)
        return -1;
    if (put(q, was->off + HEAD, was->bytes + HEAD, was->len - HEAD, err) < 0)
        return -1;
    return put(q, was->off, was->bytes, HEAD, err);
}

/* ---- all of it ---- */

static int
move_name(struct qm_qcow2 *q, struct qmeld_error *err)
{
    unsigned char name[QCOW2_MAX_BACKING_NAME];
    uint64_t at;

    if (find_place(q, &at, err) < 0)
        return -1;
    if (find_ext(q) || !name_in_the_way(q, at))
        return 0;
    if (qm_pread(q->img.file, q->hdr.backing_off, name, q->hdr.backing_len, err) < 0 ||
        put(q, place_of_name(q, at), name, q->hdr.backing_len, err) < 0)
        return -1;
    q->hdr.backing_off = place_of_name(q, at);
    return qm_header_store(q, err);
}

static void
take(struct qcow2_header *h, const struct qm_header_bitmaps *to)
{
    h->has_bitmaps = to->n > 0;
    h->n_bitmaps = to->n;
    h->bitmap_dir_off = to->dir_off;
    h->bitmap_dir_len = to->dir_len;
    h->autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
    h->autoclear |= h->has_bitmaps ? QCOW2_AUTOCLEAR_BITMAPS : 0;
}

int
qm_header_set_bitmaps(struct qm_qcow2 *q, const struct qm_header_bitmaps *to,
                      struct qmeld_error *err)
{
    const bool had = q->hdr.has_bitmaps;
    const struct disk_bitmaps_ext raw = encode(to);

    if (!q->stage && to->n && qm_header_bitmaps_fit(q, NULL, err) < 0)
        return -1;
    if (!q->stage && to->n && had) {
        /* COMMIT POINT: one sector names the new directory */
        if (put(q, find_ext(q)->off + HEAD, &raw, sizeof raw, err) < 0)
            return -1;
        return qm_qcow2_reload(q, err);
    }
    if (!q->stage && to->n && (move_name(q, err) < 0 || qm_header_put_bitmaps(q, to, err) < 0))
        return -1;
    take(&q->hdr, to);
    /* COMMIT POINT: the extension is believed, or not any more */
    if (qm_header_store(q, err) < 0 || qm_qcow2_reload(q, err) < 0)
        return -1;
    return to->n || q->stage ? 0 : qm_header_drop_ext(q, err);
}
