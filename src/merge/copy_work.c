/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * copy_work.c - the workers' half of the copy: the bytes of one piece get to their place.
 */
#include "copy_int.h"

#include "cipher.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* QEMU reads what a qcow2 file does not have as zeros; a raw file that lost its end failed. */
uint64_t
qm_piece_bytes_inside(const struct qm_piece *p)
{
    const uint64_t off = p->ext.host.h, size = p->from->data->size;

    if (!p->from->ops->pad_data)
        return p->len;
    return off < size ? qm_min(p->len, size - off) : 0;
}

/* Bytes that the file has; read through the worker's window if nobody else copies them. */
static int
write_inside(struct qm_copy *c, struct qm_copy_worker *w, const struct qm_piece *p, uint64_t inside,
             struct qmeld_error *err)
{
    const struct qm_file *file = p->from->data;
    uint64_t done = 0;

    if (qm_route_offloads(p->route)) {
        qm_share_offload(c->cfg.target, p->to, file, p->ext.host.h, inside, &done);
        atomic_fetch_add(&p->route->offloaded, done);
        if (done < inside)
            p->route->no_offload = true;
    }
    if (w->window.file != file) {
        qm_window_release(&w->window);
        qm_window_init(&w->window, file, QM_COPY_WINDOW);
    }
    atomic_fetch_add(&p->route->copied, inside - done);
    if (qm_window_write(&w->window, p->ext.host.h + done, c->cfg.target, p->to + done,
                        inside - done, err) < 0)
        return -1;
    qm_behind_read(c->behind, file, p->ext.host.h, p->len, p->from_there);
    return 0;
}

static int
read_past_cache(const struct qm_copy *c, const struct qm_piece *p, void *buf, bool *out_refused,
                struct qmeld_error *err)
{
    const uint64_t off = p->ext.host.h;

    *out_refused = false;
    if (p->cold)
        return qm_direct_read(p->route->direct, off, buf, p->len, out_refused, err);
    if (qm_pread(p->from->data, off, buf, p->len, err) < 0)
        return -1;
    qm_behind_read(c->behind, p->from->data, off, p->len, p->from_there);
    return 0;
}

/* *out_done false: it was refused, and is to go through the cache. */
static int
write_past_cache(struct qm_copy *c, struct qm_copy_worker *w, const struct qm_piece *p,
                 bool *out_done, struct qmeld_error *err)
{
    bool refused;

    *out_done = false;
    if (!p->direct || c->no_direct)
        return 0;
    if (!w->direct_buf && !(w->direct_buf = qm_direct_buffer(c->piece_bytes)))
        return qm_fail_nomem(err, "the copy");
    if (read_past_cache(c, p, w->direct_buf, &refused, err) < 0 ||
        (!refused && qm_direct_write(c->direct, p->to, w->direct_buf, p->len, &refused, err) < 0))
        return -1;
    if (refused) {
        c->no_direct = true;
        return 0;
    }
    *out_done = true;
    atomic_fetch_add(&p->route->copied, p->len);
    atomic_fetch_add(&p->route->past_cache, p->len);
    return 0;
}

/* *out_done as above. */
static int
write_cold(struct qm_copy *c, struct qm_copy_worker *w, const struct qm_piece *p, bool *out_done,
           struct qmeld_error *err)
{
    bool refused;

    *out_done = false;
    if (!p->cold || p->route->no_direct)
        return 0;
    if (!w->direct_buf && !(w->direct_buf = qm_direct_buffer(c->piece_bytes)))
        return qm_fail_nomem(err, "the copy");
    if (qm_direct_read(p->route->direct, p->ext.host.h, w->direct_buf, p->len, &refused, err) < 0)
        return -1;
    if (refused) {
        p->route->no_direct = true;
        return 0;
    }
    if (qm_pwrite(c->cfg.target, p->to, w->direct_buf, p->len, err) < 0)
        return -1;
    *out_done = true;
    atomic_fetch_add(&p->route->copied, p->len);
    return 0;
}

static int
write_data(struct qm_copy *c, struct qm_copy_worker *w, const struct qm_piece *p,
           struct qmeld_error *err)
{
    const uint64_t inside = qm_piece_bytes_inside(p);
    bool done;

    if (write_past_cache(c, w, p, &done, err) < 0)
        return -1;
    if (!done && write_cold(c, w, p, &done, err) < 0)
        return -1;
    if (done)
        return 0;

    if (inside > 0 && write_inside(c, w, p, inside, err) < 0)
        return -1;
    return inside < p->len ? qm_zero(c->cfg.target, p->to + inside, p->len - inside, false, err)
                           : 0;
}

/* The share of a piece's n first bytes in what it is worth. */
static uint64_t
worth_of(const struct qm_piece *p, uint64_t n)
{
    return p->worth / p->len * n + p->worth % p->len * n / p->len;
}

struct qm_piece
qm_piece_part(const struct qm_piece *p, uint64_t skip, uint64_t len)
{
    struct qm_piece part = *p;

    part.worth = p->len ? worth_of(p, skip + len) - worth_of(p, skip) : 0;
    part.ext.guest.g += skip;
    part.ext.host.h += skip;
    part.to += skip;
    part.len = len;
    return part;
}

/* As a whole, that is. */
bool
qm_piece_is_direct(const struct qm_copy *c, const struct qm_piece *p)
{
    const uint64_t unit = qm_direct_unit();

    return c->direct && !c->no_direct && p->len > 0 && p->to % unit == 0 && p->len % unit == 0 &&
           (p->kind == QM_PIECE_COMPRESSED ||
            (p->kind != QM_PIECE_ZERO && p->ext.host.h % unit == 0 &&
             qm_piece_bytes_inside(p) == p->len));
}

/* *out_done false: not any more, with these two files. */
int
qm_piece_share(struct qm_copy *c, const struct qm_piece *p, bool *out_done, struct qmeld_error *err)
{
    *out_done = false;
    if (p->route->refused)
        return 0;
    if (qm_share_range(c->cfg.target, p->to, p->from->data, p->ext.host.h, p->len, out_done, err) <
        0)
        return -1;
    if (*out_done)
        atomic_fetch_add(&p->route->shared, p->len);
    else
        p->route->refused = true;
    return 0;
}

static int
share_or_copy(struct qm_copy *c, struct qm_copy_worker *w, const struct qm_piece *p,
              struct qmeld_error *err)
{
    bool done;

    if (qm_piece_share(c, p, &done, err) < 0)
        return -1;
    for (uint64_t at = 0, n; !done && at < p->len; at += n) {
        struct qm_piece part;

        n = qm_min(p->len - at, c->piece_bytes);
        part = qm_piece_part(p, at, n);
        part.direct = qm_piece_is_direct(c, &part);
        if (write_data(c, w, &part, err) < 0 ||
            qm_behind_wrote(c->behind, part.to, part.len, QM_CACHE_ALL, err) < 0)
            return -1;
    }
    return 0;
}

static int
inflate(struct qm_copy_worker *w, const struct qm_piece *p, struct qmeld_error *err)
{
    if (!w->codec)
        w->codec = qm_codec_new();
    if (w->buf_len < p->len) {
        free(w->buf);
        w->buf_len = 0;
        w->buf = qm_direct_buffer(p->len);
    }
    if (!w->codec || !w->buf)
        return qm_fail_nomem(err, "an inflated cluster");
    w->buf_len = qm_max(w->buf_len, p->len);
    return qm_extent_read(p->from, &p->ext, w->codec, w->buf, err);
}

/* What is to be there for the guest, from memory, which it is encrypted in. */
static int
write_memory(struct qm_copy *c, const struct qm_piece *p, void *buf, struct qmeld_error *err)
{
    const struct qm_copy_config *cfg = &c->cfg;
    bool refused = true;

    if (cfg->cipher && qm_cipher_encrypt(cfg->cipher, cfg->target->path, p->ext.guest,
                                         qm_host(p->to), buf, p->len, err) < 0)
        return -1;
    if (p->direct && !c->no_direct &&
        qm_direct_write(c->direct, p->to, buf, p->len, &refused, err) < 0)
        return -1;
    c->no_direct |= p->direct && refused;
    if (refused && qm_pwrite(cfg->target, p->to, buf, p->len, err) < 0)
        return -1;
    if (!p->route) /* zeros */
        return 0;
    atomic_fetch_add(&p->route->copied, p->len);
    atomic_fetch_add(&p->route->past_cache, refused ? 0 : p->len);
    return 0;
}

/* ---- encrypted ---- */

bool
qm_piece_is_coded(const struct qm_copy *c, const struct qm_piece *p)
{
    return c->cfg.cipher || (p->kind != QM_PIECE_ZERO && p->from->cipher);
}

/* What DATA reads as, all of it; past the page cache if it can be. */
static int
read_decrypted(struct qm_copy *c, const struct qm_piece *p, void *buf, struct qmeld_error *err)
{
    struct qm_extent ext = p->ext;
    bool refused = true;

    ext.kind = QM_DATA;
    ext.len = p->len;
    if (p->direct && !c->no_direct && p->route->direct) {
        if (qm_direct_read(p->route->direct, ext.host.h, buf, p->len, &refused, err) < 0)
            return -1;
        c->no_direct |= refused;
    }
    if (!refused)
        return qm_extent_decrypt(p->from, &ext, buf, err);
    if (qm_extent_read(p->from, &ext, NULL, buf, err) < 0)
        return -1;
    qm_behind_read(c->behind, p->from->data, ext.host.h, p->len, p->from_there);
    return 0;
}

/* DATA, or zeros. */
static int
write_coded(struct qm_copy *c, struct qm_copy_worker *w, const struct qm_piece *p,
            struct qmeld_error *err)
{
    assert(p->len <= c->piece_bytes);
    if (!w->direct_buf && !(w->direct_buf = qm_direct_buffer(c->piece_bytes)))
        return qm_fail_nomem(err, "the copy");
    if (p->kind == QM_PIECE_ZERO)
        memset(w->direct_buf, 0, p->len);
    else if (read_decrypted(c, p, w->direct_buf, err) < 0)
        return -1;
    return write_memory(c, p, w->direct_buf, err);
}

int
qm_piece_patch(struct qm_copy *c, const struct qm_piece *p, struct qmeld_error *err)
{
    const struct qm_copy_config *cfg = &c->cfg;
    const uint64_t skip = p->to % QM_CIPHER_SECTOR;
    const host_off host = qm_host(p->to - skip);
    const guest_off guest = qm_guest(p->ext.guest.g - skip);
    const struct qm_extent zero = {.len = p->len, .kind = QM_ZERO};
    struct qm_extent ext = p->kind == QM_PIECE_ZERO ? zero : p->ext;
    unsigned char sector[QM_CIPHER_SECTOR];
    struct qm_codec *codec;
    int rc;

    assert(skip + p->len <= sizeof sector);
    ext.len = p->len;
    if (qm_pread_padded(cfg->target, host.h, sector, sizeof sector, err) < 0 ||
        qm_cipher_decrypt(cfg->cipher, cfg->target->path, guest, host, sector, sizeof sector, err) <
            0)
        return -1;
    codec = qm_codec_new();
    if (!codec)
        return qm_fail_nomem(err, "the copy");
    rc = qm_extent_read(p->from, &ext, codec, sector + skip, err);
    qm_codec_free(codec);
    if (rc < 0 || qm_cipher_encrypt(cfg->cipher, cfg->target->path, guest, host, sector,
                                    sizeof sector, err) < 0)
        return -1;
    return qm_pwrite(cfg->target, host.h, sector, sizeof sector, err);
}

int
qm_copy_work(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_copy *c = shared;
    struct qm_copy_worker *w = &c->workers[worker];
    const struct qm_piece *p = item;
    int rc = -1;

    switch (p->kind) {
    case QM_PIECE_DATA:
        rc = qm_piece_is_coded(c, p) ? write_coded(c, w, p, err) : write_data(c, w, p, err);
        break;
    case QM_PIECE_SHARE:
        rc = share_or_copy(c, w, p, err);
        break;
    case QM_PIECE_COMPRESSED:
        rc = inflate(w, p, err);
        if (rc == 0)
            rc = write_memory(c, p, w->buf, err);
        break;
    case QM_PIECE_VERIFY:
        rc = inflate(w, p, err);
        break;
    case QM_PIECE_ZERO: /* worth nothing */
        if (!c->cfg.cipher)
            return qm_zero(c->cfg.target, p->to, p->len, false, err);
        rc = write_coded(c, w, p, err);
        break;
    }
    if (rc < 0)
        return -1;
    if (p->kind != QM_PIECE_SHARE && p->kind != QM_PIECE_VERIFY && (!p->direct || c->no_direct) &&
        qm_behind_wrote(c->behind, p->to, p->len, p->to_there, err) < 0)
        return -1;
    atomic_fetch_add(&c->done, p->worth);
    return 0;
}
