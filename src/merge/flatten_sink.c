/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten_sink.c - where the chunks of a disk go: a raw file or device, a qcow2 image, a function.
 *
 * Why.  A raw target needs no decision, so the stream's workers write to it by themselves; a cluster's place in a
 * qcow2 image is decided here, in the guest's order, and workers write there.  On a block device, which keeps
 * its name whatever is on it, what makes an image of it is withheld until the end: the header's
 * right to be read (an encryption that nobody knows), or the first chunk of a raw disk.
 */
#include "flatten_int.h"

#include "qcow2_header.h"

#include <stdlib.h>
#include <string.h>

#define BATCH_WEIGHT (16u << 20)
#define ZERO_BYTES   (1u << 20)

#define QM_FLATTEN_SHARED_WEIGHT                                                                   \
    16u /* so many bytes that are shared make a batch as long as one that is written */

/* An encryption that nobody knows: whoever finds the header does not take the image for a whole one. */
#define UNFINISHED UINT32_MAX

/* ---- begin ---- */

static int
open_qcow2(struct qm_flatten *f, struct qmeld_error *err)
{
    struct qm_file *file = f->output.file;

    if (!f->output.resumed && qm_qcow2_create(file, &f->create, err) < 0)
        return -1;
    if (qm_qcow2_open(file, QCOW2_DECODE_STRICT, &f->q, err) < 0)
        return -1;
    if (!f->output.resumed && qm_flatten_bitmaps_make(f, err) < 0)
        return -1;
    if (file->blockdev) {
        f->q->hdr.crypt_method = UNFINISHED;
        if (qm_header_store(f->q, err) < 0)
            return -1;
    }
    return qm_append_open(f->q, f->output.resumed, f->output.done / f->q->geo.cluster_size,
                          &f->append, err);
}

/* Whatever an interrupted run wrote behind what it has noted may be there or not, and goes. */
static int
open_raw(struct qm_flatten *f, struct qmeld_error *err)
{
    struct qm_file *file = f->output.file;

    if (f->output.resumed && qm_truncate(file, qm_min(f->output.done, f->size), err) < 0)
        return -1;
    if (file->blockdev &&
        qm_zero(file, 0, qm_min(f->chunk, qm_min(f->size, file->size)), false, err) < 0)
        return -1;
    return qm_truncate(file, f->size, err);
}

int
qm_flatten_sink_open(struct qm_flatten *f, struct qmeld_error *err)
{
    if (f->opts->sink)
        return 0;
    return f->is_qcow2 ? open_qcow2(f, err) : open_raw(f, err);
}

/* ---- chunks ---- */

static int
give_bytes(struct qm_flatten *f, const void *bytes, uint64_t len, struct qmeld_error *err)
{
    if (f->opts->sink(bytes, (size_t)len, f->opts->sink_opaque) == 0)
        return 0;
    return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "whoever takes the bytes asked to stop");
}

static int
put_bytes(struct qm_flatten *f, const struct qm_chunk *c, struct qmeld_error *err)
{
    static const unsigned char zeros[ZERO_BYTES];

    if (!c->zero)
        return give_bytes(f, c->bytes, c->len, err);
    for (uint64_t done = 0, n; done < c->len; done += n) {
        n = qm_min(c->len - done, sizeof zeros);
        if (give_bytes(f, zeros, n, err) < 0 || qm_stream_tick(f->stream, err) < 0)
            return -1;
        if (qm_stream_stopped(f->stream))
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
    }
    return 0;
}

/* A part of a raw disk that nobody writes to. */
static int
put_gap(struct qm_flatten *f, uint64_t at, uint64_t len, struct qmeld_error *err)
{
    const bool full = f->prealloc == QM_PREALLOC_FULL;

    /* a block device is not zeros where nothing is written; a new file is */
    if (f->output.file->blockdev && !full && qm_zero(f->output.file, at, len, false, err) < 0)
        return -1;
    return f->prealloc == QM_PREALLOC_OFF ? 0 : qm_preallocate(f->output.file, at, len, full, err);
}

/* Where the workers write nothing; and what a block device begins with is withheld. */
static int
put_gaps(struct qm_flatten *f, const struct qm_chunk *c, struct qmeld_error *err)
{
    const uint64_t step = 256ull << 20; /* so that progress is told */
    uint64_t at = 0;

    if (f->output.file->blockdev && c->guest.g == 0 && !c->zero) {
        f->first = malloc(f->chunk);
        if (!f->first)
            return qm_fail_nomem(err, "a chunk");
        memcpy(f->first, c->bytes, c->len);
    }
    for (size_t i = 0; i <= c->runs.n; i++) {
        const uint64_t end = i < c->runs.n ? c->runs.at[i].off : c->len;

        while (at < end) {
            const uint64_t n = qm_min(end - at, step);

            if (put_gap(f, c->guest.g + at, n, err) < 0 || qm_stream_tick(f->stream, err) < 0)
                return -1;
            at += n;
        }
        at = i < c->runs.n ? end + c->runs.at[i].len : end;
    }
    return 0;
}

static int
add_move(struct qm_flatten *f, const struct qm_move *m, struct qmeld_error *err)
{
    struct qm_move *last = f->moves.list.n ? qm_vec_last(&f->moves.list) : NULL;

    if (m->len == 0)
        return 0;
    if (last && last->kind == m->kind && last->from == m->from &&
        last->guest.g + last->len == m->guest.g && last->to.h + last->len == m->to.h &&
        (!m->from || last->ext.host.h + last->len == m->ext.host.h)) {
        last->len += m->len;
        return 0;
    }
    return qm_vec_push(&f->moves.list, m) ? 0 : qm_fail_nomem(err, "the list of moves");
}

/* One guest cluster, at from in the chunk, of which runs [*run, ...) have bytes; *run becomes the first that reaches further. */
static int
put_cluster(struct qm_flatten *f, const struct qm_chunk *c, uint64_t from, size_t *run,
            struct qmeld_error *err)
{
    const struct qcow2_geo *g = &f->q->geo;
    const uint64_t end = from + g->cluster_size;
    struct qm_move m = {.len = 0};
    uint32_t units = f->prealloc == QM_PREALLOC_OFF ? 0 : g->extended_l2 ? UINT32_MAX : 1;
    uint64_t at = from;
    host_off host;

    for (size_t i = *run; i < c->runs.n && c->runs.at[i].off < end; i++) {
        const uint64_t a = qm_max(c->runs.at[i].off, from),
                       b = qm_min(c->runs.at[i].off + c->runs.at[i].len, end);

        for (uint64_t u = (a - from) / g->subcluster_size; u <= (b - 1 - from) / g->subcluster_size;
             u++)
            units |= 1u << u;
    }
    if (qm_append_cluster(f->append, (c->guest.g + from) >> g->cluster_bits, units, &host, err) < 0)
        return -1;
    while (at < end) {
        const struct qm_run *r = *run < c->runs.n ? &c->runs.at[*run] : NULL;
        const bool data = r && r->off <= at;

        m.kind = data ? QM_MOVE_COPY : QM_MOVE_ZERO;
        m.from = data && r->route ? f->chain->layers[r->layer].img : NULL;
        m.ext.host = qm_host(m.from ? r->host + (at - r->off) : 0);
        m.guest = qm_guest(c->guest.g + at);
        m.to = qm_host(host.h + (at - from));
        m.len = (data ? qm_min(end, r->off + r->len) : r ? qm_min(end, r->off) : end) - at;
        if (add_move(f, &m, err) < 0)
            return -1;
        at += m.len;
        if (r && at >= r->off + r->len)
            ++*run;
    }
    return 0;
}

/* Payloads that follow each other in the chunk and in the file. */
struct payloads {
    const unsigned char *from;
    uint64_t to;
    uint64_t len;
};

static int
write_payloads(struct qm_flatten *f, struct payloads *p, struct qmeld_error *err)
{
    const uint64_t len = p->len;

    if (len == 0)
        return 0;
    p->len = 0;
    f->report->bytes_compressed += len;
    if (qm_pwrite(f->output.file, p->to, p->from, len, err) < 0)
        return -1;
    qm_writeback(f->output.file, p->to, len);
    return 0;
}

static int
hold(struct qm_flatten *f, struct payloads *held, const unsigned char *from, uint64_t to,
     uint64_t len, struct qmeld_error *err)
{
    if (held->len > 0 && (held->to + held->len != to || held->from + held->len != from) &&
        write_payloads(f, held, err) < 0)
        return -1;
    if (held->len == 0)
        *held = (struct payloads){.from = from, .to = to};
    held->len += len;
    return 0;
}

/* The sectors of a layer's compressed cluster, but those that are there by an earlier one. */
static int
pass_on(struct qm_flatten *f, const struct qm_chunk *c, const struct qm_payload *p, uint64_t idx,
        struct payloads *held, struct qmeld_error *err)
{
    struct qm_passed to;

    if (qm_append_passed(f->append, idx, p->from, &p->ext, &to, err) < 0)
        return -1;
    f->report->bytes_passed += p->ext.len;
    return hold(f, held, c->packed + p->off + (p->len - to.len), to.to, to.len, err);
}

/* *out_done false: it is to be stored as it is. */
static int
put_compressed(struct qm_flatten *f, const struct qm_chunk *c, uint64_t from, struct payloads *held,
               bool *out_done, struct qmeld_error *err)
{
    const struct qm_payload *p = &c->payloads.at[from >> f->q->geo.cluster_bits];
    const uint64_t idx = (c->guest.g + from) >> f->q->geo.cluster_bits;
    host_off host;

    *out_done = p->from != NULL;
    if (p->len == 0)
        return 0;
    if (p->from)
        return pass_on(f, c, p, idx, held, err);
    if (qm_append_compressed(f->append, idx, p->len, &host, out_done, err) < 0)
        return -1;
    return *out_done ? hold(f, held, c->packed + p->off, host.h, p->len, err) : 0;
}

static int
put_qcow2(struct qm_flatten *f, struct qm_chunk *c, struct qmeld_error *err)
{
    const uint64_t cs = f->q->geo.cluster_size;
    const bool all = f->prealloc != QM_PREALLOC_OFF; /* clusters get their place */
    struct payloads held = {.len = 0};
    uint64_t at = 0;

    for (size_t run = 0; all ? at < c->len : run < c->runs.n; at += cs) {
        bool done = false;

        if (!all)
            at = qm_max(at, qm_align_down(c->runs.at[run].off, cs));
        if (f->opts->compress && put_compressed(f, c, at, &held, &done, err) < 0)
            return -1;
        if (!done && put_cluster(f, c, at, &run, err) < 0)
            return -1;
        while (done && run < c->runs.n && c->runs.at[run].off + c->runs.at[run].len <= at + cs)
            run++;
    }
    if (write_payloads(f, &held, err) < 0)
        return -1;
    return qm_stream_write(f->stream, c, f->output.file, &f->moves, err);
}

int
qm_flatten_put(struct qm_flatten *f, struct qm_chunk *c, struct qmeld_error *err)
{
    int rc = 0;

    QM_VEC_EACH (run, &c->runs) {
        f->batch += run->route ? run->len / QM_FLATTEN_SHARED_WEIGHT : run->len;
        f->report->bytes_data += run->len;
    }
    if (f->prealloc != QM_PREALLOC_OFF)
        f->batch += c->len; /* and so is what is preallocated */
    if (f->is_qcow2 && (c->runs.n > 0 || f->prealloc != QM_PREALLOC_OFF))
        return put_qcow2(f, c, err);
    if (f->opts->sink)
        rc = put_bytes(f, c, err);
    else if (!f->is_qcow2 && (f->output.file->blockdev || f->prealloc != QM_PREALLOC_OFF))
        rc = put_gaps(f, c, err);
    qm_stream_give_back(f->stream, c);
    return rc;
}

/* ---- batches, and the end ---- */

bool
qm_flatten_is_full(const struct qm_flatten *f)
{
    return f->batch >= f->batch_bytes || (f->append && qm_append_weight(f->append) >= BATCH_WEIGHT);
}

int
qm_flatten_publish(struct qm_flatten *f, uint64_t done, struct qmeld_error *err)
{
    f->batch = 0;
    if (f->opts->sink)
        return 0;
    if (f->append && qm_append_prepare(f->append, err) < 0)
        return -1;
    if (qm_stream_drain(f->stream, err) < 0 || qm_sync(f->output.file, err) < 0)
        return -1;
    if (f->append && qm_append_publish(f->append, err) < 0)
        return -1;
    return qm_output_advance(&f->output, done, err);
}

static int
complete_qcow2(struct qm_flatten *f, struct qmeld_error *err)
{
    if (qm_append_finish(f->append, err) < 0 || qm_flatten_bitmaps_fill(f, err) < 0)
        return -1;
    if (!f->output.file->blockdev)
        return 0;
    f->q->hdr.crypt_method = 0;
    return qm_header_store(f->q, err); /* COMMIT POINT: now it may be read */
}

int
qm_flatten_complete(struct qm_flatten *f, struct qmeld_error *err)
{
    if (f->opts->sink)
        return 0;
    if (f->append)
        return complete_qcow2(f, err);
    if (!f->first)
        return 0;
    /* COMMIT POINT: the disk's first bytes, without which nobody takes it for one */
    if (qm_pwrite(f->output.file, 0, f->first, qm_min(f->chunk, f->size), err) < 0)
        return -1;
    return qm_sync(f->output.file, err);
}

void
qm_flatten_sink_close(struct qm_flatten *f)
{
    qm_append_close(f->append);
    if (f->q)
        f->q->img.ops->free(&f->q->img); /* the file is the output's */
    qm_vec_release(&f->moves.list);
    free(f->first);
}
