/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_header.c - header changes that survive a power cut at any sector.
 *
 * Model.  A 512-byte sector is written whole or not at all; the sectors written since the last
 * sync reach the disk in any order, or not.  So between two syncs we write either bytes that
 * no reader looks at, or one single sector.  (A write shorter than a sector counts as the
 * sector with its other bytes unchanged.)
 *
 * Who reads what.  Sector 0 holds all fixed fields, among them the place of the backing name.
 * Extensions begin at header_len and end at an end marker, or, without one, at the backing
 * name, or at the end of the cluster (specification, "Header extensions"; qemu 7.2,
 * block/qcow2.c, qcow2_read_extensions).  Behind the marker only the backing name is read;
 * everything else there, up to the end of the cluster, is free.
 *
 * Changing the backing file.  Three layouts of the extensions are tried, cheapest first:
 *   keep      the stored format is right already
 *   in place  the format's extension takes as many bytes as before
 *   rebuild   the format first (as QEMU has it), then all others in their order, then the marker
 * A layout is good if all bytes from 512 on that change are free now.  Then the states are
 *   1. free bytes: the tail of the extensions, the new name       sync   reads as before
 *   2. sector 0: format, head of the extensions, place of the name sync  reads old or new
 * and each subset of step 1 reads as before, since nothing free is looked at.  A name that fits
 * behind the marker inside sector 0 is part of step 2, even over the old name.
 * If the old name stands in the way, it is first moved to the end of the cluster by the same two
 * steps (old name, same format), and the layouts are tried again.
 *
 * An image without a format whose marker lies behind sector 0 gets its name first and then its
 * format (a new end behind the marker, sync, then the eight bytes of the marker become the
 * extension's head: one sector).  Between the two the new name has no format, which is what the
 * old name had, too.  A wrong format that lies behind sector 0, in contrast, is NOSPACE: no order
 * of writes keeps name and format fitting.  So is a layout without room for both names.
 */
#include "qcow2_header.h"

#include "qcow2_stage.h"

#include <assert.h>
#include <string.h>

#define SECTOR ((uint64_t)QM_HEADER_SECTOR)
static_assert(sizeof(struct qcow2_disk_header) <= SECTOR, "S5: one sector holds all fixed fields");

/* ---- the fixed fields ---- */

int
qm_header_sector(const struct qm_qcow2 *q, unsigned char out[QM_HEADER_SECTOR],
                 struct qmeld_error *err)
{
    struct qcow2_disk_header disk;
    size_t len = sizeof disk;

    if (q->hdr.header_len < len) /* what follows is the first extension's already */
        len = q->hdr.header_len;
    if (qm_pread_padded(q->img.file, 0, out, SECTOR, err) < 0)
        return -1;
    memset(&disk, 0, sizeof disk);
    qcow2_header_encode(&q->hdr, &disk);
    memcpy(out, &disk, len);
    return 0;
}

int
qm_header_store(struct qm_qcow2 *q, struct qmeld_error *err)
{
    unsigned char sector[SECTOR];

    if (q->stage) {
        const struct qm_staged fields = qm_stage_fields(q);

        return q->stage->store(&fields, q->stage->opaque, err);
    }
    if (qm_header_sector(q, sector, err) < 0)
        return -1;
    if (qm_pwrite(q->img.file, 0, sector, sizeof sector, err) < 0)
        return -1;
    return qm_sync(q->img.file, err);
}

int
qm_header_before_write(struct qm_qcow2 *q, struct qmeld_error *err)
{
    uint64_t keep = QCOW2_AUTOCLEAR_KNOWN;

    if (!q->hdr.has_bitmaps)
        keep &= ~QCOW2_AUTOCLEAR_BITMAPS;
    if (q->hdr.backing_name) /* what it has not got itself, no data file can show */
        keep &= ~QCOW2_AUTOCLEAR_RAW_DATA;
    if (q->hdr.version < 3 || !(q->hdr.autoclear & ~keep))
        return 0;
    q->hdr.autoclear &= keep;
    return qm_header_store(q, err);
}

/* ---- a change of the header cluster, worked out in memory ---- */

/* One write; with `sync`, everything up to and with it must be durable before the next. */
struct patch {
    uint64_t off;
    size_t len;
    unsigned char *bytes;
    bool sync;
};

struct edit {
    const struct qm_qcow2 *q;
    unsigned char *now;  /* the header cluster after the patches so far */
    unsigned char *want; /* the layout being tried */
    uint64_t cs;
    uint64_t ext_end; /* where the marker is, or belongs */
    bool marker;
    uint64_t name_off; /* the live name; len 0: none */
    uint64_t name_len;
    QM_VEC(struct patch) patches;
};

enum layout { KEEP, IN_PLACE, REBUILD, BARE /* the extensions as they are, format or not */ };

static uint64_t
pad8(uint64_t len)
{
    return (len + 7) & ~(uint64_t)7;
}

static void
edit_release(struct edit *e)
{
    QM_VEC_EACH (p, &e->patches)
        free(p->bytes);
    qm_vec_release(&e->patches);
    free(e->now);
    free(e->want);
}

static int
edit_init(struct edit *e, const struct qm_qcow2 *q, struct qmeld_error *err)
{
    const struct qcow2_header *h = &q->hdr;
    const uint64_t area_end = h->backing_off ? h->backing_off : q->geo.cluster_size;

    memset(e, 0, sizeof *e);
    e->q = q;
    e->cs = q->geo.cluster_size;
    e->now = malloc(e->cs);
    e->want = malloc(e->cs);
    if (!e->now || !e->want)
        return qm_fail_nomem(err, "the header cluster");
    if (qm_pread_padded(q->img.file, 0, e->now, e->cs, err) < 0)
        return -1;
    e->ext_end = h->ext_end;
    if (qm_inside(e->ext_end, sizeof(struct qcow2_disk_ext), area_end))
        e->marker = be32_get((const be32 *)(e->now + e->ext_end)) == QCOW2_EXT_END;
    if (!e->marker) { /* then it belongs behind the last extension, padding and all */
        e->ext_end = h->header_len;
        if (h->exts.n) {
            const struct qcow2_ext *last = &h->exts.at[h->exts.n - 1];

            e->ext_end = last->off + sizeof(struct qcow2_disk_ext) + pad8(last->len);
        }
    }
    if (h->backing_off && h->backing_len && h->backing_off < e->cs) {
        e->name_off = h->backing_off;
        e->name_len = qm_min(h->backing_len, e->cs - h->backing_off);
    }
    return 0;
}

/* Bytes from here on are read by nobody, the live name aside. */
static uint64_t
used_end(const struct edit *e)
{
    return e->ext_end + (e->marker ? sizeof(struct qcow2_disk_ext) : 0);
}

static bool
is_free(const struct edit *e, uint64_t off)
{
    return off >= used_end(e) && !(off >= e->name_off && off - e->name_off < e->name_len);
}

/* Adds a write of [off, off + len) and applies it to e->now. */
static int
add_patch(struct edit *e, uint64_t off, const void *bytes, uint64_t len, bool sync,
          struct qmeld_error *err)
{
    struct patch p = {.off = off, .len = (size_t)len, .sync = sync};

    assert(qm_inside(off, len, e->cs));
    p.bytes = malloc(p.len + 1); /* a change may be its sync alone */
    if (!p.bytes)
        return qm_fail_nomem(err, "a header change");
    memcpy(p.bytes, bytes, p.len);
    if (!qm_vec_push(&e->patches, &p)) {
        free(p.bytes);
        return qm_fail_nomem(err, "a header change");
    }
    memcpy(e->now + off, p.bytes, p.len);
    return 0;
}

/* ---- layouts ---- */

/* Appends one extension to e->want at *at; false: no room. */
static bool
put_ext(struct edit *e, uint64_t *at, uint32_t type, const void *data, uint32_t len)
{
    struct qcow2_disk_ext head;
    const uint64_t room = sizeof head + pad8(len);

    if (!qm_inside(*at, room, e->cs))
        return false;
    be32_put(&head.type, type);
    be32_put(&head.len, len);
    memcpy(e->want + *at, &head, sizeof head);
    memset(e->want + *at + sizeof head, 0, pad8(len));
    if (len)
        memcpy(e->want + *at + sizeof head, data, len);
    *at += room;
    return true;
}

/* The only backing format extension; NULL: there is none, or there are several. */
static const struct qcow2_ext *
sole_format(const struct edit *e, size_t *out_n)
{
    const struct qcow2_ext *found = NULL;

    *out_n = 0;
    QM_VEC_EACH (x, &e->q->hdr.exts) {
        if (x->type != QCOW2_EXT_BACKING_FORMAT)
            continue;
        found = x;
        ++*out_n;
    }
    return *out_n == 1 ? found : NULL;
}

static bool
rebuild(struct edit *e, const char *format, uint64_t *at)
{
    *at = e->q->hdr.header_len;
    if (format && !put_ext(e, at, QCOW2_EXT_BACKING_FORMAT, format, (uint32_t)strlen(format)))
        return false;
    QM_VEC_EACH (x, &e->q->hdr.exts) {
        if (x->type == QCOW2_EXT_BACKING_FORMAT)
            continue;
        if (!put_ext(e, at, x->type, e->now + x->off + sizeof(struct qcow2_disk_ext), x->len))
            return false;
    }
    return true;
}

/* Lays the extensions out in e->want; *out_end is the byte behind the marker.  False: this layout
 * does not apply, or does not fit. */
static bool
lay_out(struct edit *e, enum layout how, const char *format, uint64_t *out_end)
{
    size_t n;
    const struct qcow2_ext *stored = sole_format(e, &n);
    uint64_t at = e->ext_end;

    memcpy(e->want, e->now, e->cs);
    if (how == KEEP || how == IN_PLACE) {
        uint64_t in = stored ? stored->off : 0;
        const uint32_t len = format ? (uint32_t)strlen(format) : 0;

        if (!format || !stored || pad8(stored->len) != pad8(len))
            return false;
        if (how == KEEP && (stored->len != len ||
                            memcmp(e->now + in + sizeof(struct qcow2_disk_ext), format, len) != 0))
            return false;
        if (how == IN_PLACE && !put_ext(e, &in, QCOW2_EXT_BACKING_FORMAT, format, len))
            return false;
    } else if (how == REBUILD && !rebuild(e, format, &at)) {
        return false;
    }
    if (how != REBUILD && e->marker) { /* as it stands; its length field may be anything */
        *out_end = at + sizeof(struct qcow2_disk_ext);
        return true;
    }
    if (!put_ext(e, &at, QCOW2_EXT_END, NULL, 0))
        return false;
    *out_end = at;
    return true;
}

/* The bytes of e->want from 512 to end that differ from now; false: one of them is in use. */
static bool
tail_is_free(const struct edit *e, uint64_t end, uint64_t *out_lo, uint64_t *out_hi)
{
    *out_lo = *out_hi = 0;
    for (uint64_t i = SECTOR; i < end; i++) {
        if (e->want[i] == e->now[i])
            continue;
        if (!is_free(e, i))
            return false;
        if (!*out_hi)
            *out_lo = i;
        *out_hi = i + 1;
    }
    return true;
}

/* Where a name of len bytes can go behind `end` without touching anything in use now. */
static bool
find_gap(const struct edit *e, uint64_t end, uint64_t len, uint64_t *out)
{
    uint64_t at = qm_max(end, used_end(e));

    if (e->name_len && at < e->name_off + e->name_len && e->name_off < at + len)
        at = e->name_off + e->name_len;
    *out = at;
    return qm_inside(at, len, e->cs);
}

/* Brings sector 0 of e->want to the disk, with the name's place in it.  COMMIT POINT. */
static int
switch_sector(struct edit *e, uint64_t name_off, uint64_t name_len, struct qmeld_error *err)
{
    struct qcow2_disk_header h;

    memcpy(&h, e->want, QCOW2_V2_HEADER_LEN);
    be64_put(&h.backing_off, name_off);
    be32_put(&h.backing_len, (uint32_t)name_len);
    memcpy(e->want, &h, QCOW2_V2_HEADER_LEN);
    e->name_off = name_off;
    e->name_len = name_len;
    if (memcmp(e->want, e->now, SECTOR) == 0)
        return 0;
    return add_patch(e, 0, e->want, SECTOR, true, err);
}

/* Tries one layout; 1: planned, 0: it is not possible, -1: error.  reserve: bytes kept free between
 * the marker and the name.  name NULL: no backing file. */
static int
try_layout(struct edit *e, enum layout how, const char *name, const char *format, uint64_t reserve,
           struct qmeld_error *err)
{
    const uint64_t len = name ? strlen(name) : 0;
    uint64_t end, lo, hi, at = 0;
    bool ahead = false;

    if (!lay_out(e, how, format, &end) || !tail_is_free(e, end, &lo, &hi))
        return 0;
    if (!name) {
        at = 0;
    } else if (len == e->name_len && e->name_off >= end + reserve &&
               memcmp(e->now + e->name_off, name, len) == 0) {
        at = e->name_off;
    } else if (end + reserve + len <= SECTOR) {
        at = end + reserve;
        memcpy(e->want + at, name, len);
    } else if (find_gap(e, end + reserve, len, &at)) {
        ahead = true;
        memcpy(e->want + at, name, len); /* part of it may lie in sector 0 */
    } else {
        return 0;
    }
    if (hi && add_patch(e, lo, e->want + lo, hi - lo, !ahead, err) < 0)
        return -1;
    if (ahead && add_patch(e, at, name, len, true, err) < 0)
        return -1;
    if (switch_sector(e, at, len, err) < 0)
        return -1;
    e->marker = true;
    if (how == REBUILD)
        e->ext_end = end - sizeof(struct qcow2_disk_ext);
    return 1;
}

/* Moves the live name to the end of the cluster, so that what is behind the marker is free; 1, 0 or
 * -1 as above. */
static int
move_name_away(struct edit *e, struct qmeld_error *err)
{
    const uint64_t end = e->ext_end + sizeof(struct qcow2_disk_ext);
    const uint64_t len = e->name_len;
    uint64_t at;

    if (!len || (!e->marker && end > SECTOR))
        return 0;
    at = e->cs - len;
    if (at < end || at < e->name_off + len)
        return 0;
    memcpy(e->want, e->now, e->cs);
    memcpy(e->want + at, e->now + e->name_off, len);
    if (!e->marker)
        memset(e->want + e->ext_end, 0, sizeof(struct qcow2_disk_ext));
    if (add_patch(e, at, e->want + at, len, true, err) < 0 || switch_sector(e, at, len, err) < 0)
        return -1;
    e->marker = true;
    return 1;
}

/* The name first, then a format behind the extensions; 1, 0 or -1 as above. */
static int
name_then_format(struct edit *e, const char *name, const char *format, struct qmeld_error *err)
{
    const size_t head = sizeof(struct qcow2_disk_ext);
    const uint64_t more = head + pad8(strlen(format));
    uint64_t at = e->ext_end;
    size_t n;
    int r;

    sole_format(e, &n);
    if (n || !e->marker || at % SECTOR + head > SECTOR || !qm_inside(at, head + more, e->cs))
        return 0;
    r = try_layout(e, BARE, name, NULL, more, err);
    if (r <= 0)
        return r;
    memcpy(e->want, e->now, e->cs);
    if (!put_ext(e, &at, QCOW2_EXT_BACKING_FORMAT, format, (uint32_t)strlen(format)) ||
        !put_ext(e, &at, QCOW2_EXT_END, NULL, 0))
        return 0;
    at = e->ext_end;
    if (add_patch(e, at + head, e->want + at + head, more, true, err) < 0 ||
        add_patch(e, at, e->want + at, head, true, err) < 0)
        return -1;
    return 1;
}

static int
try_layouts(struct edit *e, const char *name, const char *format, struct qmeld_error *err)
{
    static const enum layout order[] = {KEEP, IN_PLACE, REBUILD};

    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        const int r = try_layout(e, order[i], name, format, 0, err);

        if (r)
            return r;
    }
    /* A format without a name means nothing: it may stay where it cannot be taken out. */
    return name ? 0 : try_layout(e, BARE, NULL, NULL, 0, err);
}

static int
plan(struct edit *e, const char *name, const char *format, struct qmeld_error *err)
{
    const char *file = e->q->img.file->path;
    int r;

    if (!name)
        format = NULL;
    if (name && (!*name || strlen(name) > QCOW2_MAX_BACKING_NAME))
        return qm_fail(err, QMELD_NOSPACE, qm_in(file),
                       "a backing file name of %zu bytes cannot be stored, the limit is %u: use a "
                       "shorter path",
                       strlen(name), QCOW2_MAX_BACKING_NAME);
    if (format && (!*format || strlen(format) > QCOW2_MAX_BACKING_FORMAT))
        return qm_fail(err, QMELD_NOSPACE, qm_in(file),
                       "a backing format of %zu bytes cannot be stored, the limit is %u",
                       strlen(format), QCOW2_MAX_BACKING_FORMAT);
    r = try_layouts(e, name, format, err);
    if (r == 0) {
        r = move_name_away(e, err);
        if (r > 0)
            r = try_layouts(e, name, format, err);
    }
    if (r == 0 && name)
        r = name_then_format(e, name, format, err);
    if (r == 0)
        return qm_fail(err, QMELD_NOSPACE, qm_in(file),
                       "the header cluster has no room to change the backing file safely: use a "
                       "shorter name, or let `qemu-img rebase -u` write the header anew first");
    return r < 0 ? -1 : 0;
}

int
qm_header_backing_fits(const struct qm_qcow2 *q, const char *name, const char *format,
                       struct qmeld_error *err)
{
    struct edit e;
    int r;

    assert(!name || format);
    r = edit_init(&e, q, err);
    if (r == 0)
        r = plan(&e, name, format, err);
    edit_release(&e);
    return r;
}

static int
run(struct qm_qcow2 *q, const struct edit *e, struct qmeld_error *err)
{
    QM_VEC_EACH (p, &e->patches) {
        if (qm_pwrite(q->img.file, p->off, p->bytes, p->len, err) < 0)
            return -1;
        if (p->sync && qm_sync(q->img.file, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_header_set_backing(struct qm_qcow2 *q, const char *name, const char *format,
                      struct qmeld_error *err)
{
    struct edit e;
    int r;

    assert(!name || format);
    r = edit_init(&e, q, err);
    if (r == 0)
        r = plan(&e, name, format, err);
    if (r == 0)
        r = run(q, &e, err);
    edit_release(&e);
    return r < 0 ? -1 : qm_qcow2_reload(q, err);
}
