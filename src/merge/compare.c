/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "compare.h"

#include "clock.h"
#include "pace.h"
#include "qcow2.h"

#include <stdlib.h>
#include <string.h>

#define BLOCK_BYTES (1u << 20)
#define LEAST_BLOCK (64u << 10)
#define TICK_SEC    0.2

struct compare {
    const struct qm_compare_config *cfg;
    struct qm_compare_result *out;
    struct qm_codec *codec;
    uint64_t block;      /* compared at once: BLOCK_BYTES, or less of a small image */
    unsigned char *want; /* so many bytes each */
    unsigned char *have;
    struct qm_pace pace;
    double ticked; /* when progress was told last */
    bool told;
};

/* Bytes of an image; from NULL: zeros. */
struct side {
    const struct qm_image *from;
    struct qm_extent ext;
};

/* True: the wish to stop. */
static bool
tell(struct compare *c, uint64_t at)
{
    const struct qm_compare_config *cfg = c->cfg;
    const struct qmeld_progress p = {.done_bytes = at,
                                     .total_bytes = qm_min(cfg->end.g, cfg->plan.new_size),
                                     .phase = cfg->phase};

    c->ticked = qm_clock_sec();
    c->told = true;
    return cfg->progress(&p, cfg->opaque) != 0;
}

/* Keeps to the bandwidth, and tells how far it is. */
static int
pause_and_tell(struct compare *c, guest_off at, struct qmeld_error *err)
{
    for (;;) {
        const bool ahead = qm_pace_is_ahead(&c->pace);

        if (c->cfg->progress && qm_clock_sec() - c->ticked >= TICK_SEC && tell(c, at.g))
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
        if (!ahead)
            return 0;
        qm_pace_nap();
    }
}

/* *out_lost: a compressed cluster that does not inflate.  It was moved unread, or it is what the disk made of
 * a good one: it is the same as nothing but itself. */
static int
read_side(struct compare *c, const struct side *s, uint64_t skip, uint64_t len, unsigned char *buf,
          bool *out_lost, struct qmeld_error *err)
{
    const enum qmeld_disk disk = err->disk;
    struct qm_extent part;

    if (!s->from) {
        memset(buf, 0, len);
        return 0;
    }
    part = qm_extent_part(&s->ext, skip, len);
    if (qm_extent_read(s->from, &part, c->codec, buf, err) == 0)
        return 0;
    if (part.kind != QM_COMPRESSED || err->code != QMELD_CORRUPT)
        return -1;
    *err = (struct qmeld_error){.disk = disk};
    *out_lost = true;
    return 0;
}

/* *out: both are the same part of compressed clusters that inflate to the same, as their payloads are the same
 * bytes.  So they need not inflate at all: a damaged one may have been passed on. */
static int
same_payload(struct compare *c, const struct side *a, const struct side *b, bool *out,
             struct qmeld_error *err)
{
    const struct qm_qcow2 *qa = a->from ? qm_qcow2_of((struct qm_image *)a->from) : NULL;
    const struct qm_qcow2 *qb = b->from ? qm_qcow2_of((struct qm_image *)b->from) : NULL;
    const uint64_t len = a->ext.payload_len;

    *out = qa && qb && a->ext.kind == QM_COMPRESSED && b->ext.kind == QM_COMPRESSED &&
           a->ext.payload_len == b->ext.payload_len && a->ext.skip == b->ext.skip &&
           qa->geo.cluster_size == qb->geo.cluster_size &&
           qa->hdr.compression == qb->hdr.compression;
    for (uint64_t at = 0, n; *out && at < len; at += n) {
        n = qm_min(len - at, c->block);
        if (qm_pread_padded(a->from->file, a->ext.host.h + at, c->want, n, err) < 0 ||
            qm_pread_padded(b->from->file, b->ext.host.h + at, c->have, n, err) < 0)
            return -1;
        *out = memcmp(c->want, c->have, n) == 0;
    }
    return 0;
}

/* The guest range [at, at + len) begins both sides. */
static int
compare_sides(struct compare *c, guest_off at, uint64_t len, const struct side *want,
              const struct side *have, struct qmeld_error *err)
{
    bool same;

    if (same_payload(c, want, have, &same, err) < 0)
        return -1;
    if (same || (!want->from && !have->from)) {
        c->out->bytes += len;
        c->pace.done += same ? want->ext.payload_len : 0;
        return pause_and_tell(c, at, err);
    }
    for (uint64_t done = 0; c->out->equal && done < len;) {
        const uint64_t n = qm_min(len - done, c->block);
        uint64_t equal = 0;
        bool lost = false;

        if (pause_and_tell(c, qm_guest(at.g + done), err) < 0 ||
            read_side(c, want, done, n, c->want, &lost, err) < 0 ||
            read_side(c, have, done, n, c->have, &lost, err) < 0)
            return -1;
        if (lost || memcmp(c->want, c->have, n) != 0) {
            while (!lost && c->want[equal] == c->have[equal])
                equal++;
            c->out->equal = false;
            c->out->differs = qm_guest(at.g + done + equal);
        }
        c->out->bytes += n;
        c->pace.done += have->from ? n : 0;
        done += n;
    }
    return 0;
}

/* A guest range of side against what layer have_top reads there. */
static int
compare_range(struct compare *c, guest_off at, uint64_t len, const struct side *side,
              struct qmeld_error *err)
{
    struct qm_map *map;
    int rc = qm_map_open(c->cfg->have, 0, c->cfg->have_top, at, len, &map, err);

    while (rc == 0 && c->out->equal) {
        struct qm_map_span span;
        struct side part = *side, reads = {0};
        bool done;

        rc = qm_map_next(map, &span, &done, err);
        if (rc < 0 || done)
            break;
        if (part.from)
            part.ext = qm_extent_part(&side->ext, span.guest.g - at.g, span.len);
        if (span.ext.kind == QM_DATA || span.ext.kind == QM_COMPRESSED)
            reads = (struct side){c->cfg->have->layers[span.layer].img, span.ext};
        rc = compare_sides(c, span.guest, span.len, &part, &reads, err);
    }
    qm_map_close(map);
    return rc;
}

/* The part of a want that lies before end. */
static void
clip(struct qm_want *want, uint64_t end)
{
    if (want->len <= end - want->guest.g)
        return;
    want->len = end - want->guest.g;
    if (want->from)
        want->ext = qm_extent_part(&want->ext, 0, want->len);
}

static int
compare_plan(struct compare *c, struct qm_plan *plan, struct qmeld_error *err)
{
    while (c->out->equal) {
        struct qm_want want;
        bool asked, done;

        if (qm_plan_next(plan, &want, &asked, &done, err) < 0 ||
            (!done && pause_and_tell(c, want.guest, err) < 0))
            return -1;
        if (done || want.guest.g >= c->cfg->end.g)
            break;
        clip(&want, c->cfg->end.g);
        if (compare_range(c, want.guest, want.len, &(struct side){want.from, want.ext}, err) < 0)
            return -1;
    }
    return 0;
}

static int
compare_move(struct compare *c, const struct qm_move *m, struct qmeld_error *err)
{
    const struct side lies = {
        c->cfg->have->layers[c->cfg->have_top].img,
        {.guest = m->guest, .len = m->len, .kind = QM_DATA, .has_host = true, .host = m->to}};

    if (m->kind == QM_MOVE_OLD)
        return compare_range(c, m->guest, m->len, &lies, err);
    return compare_sides(c, m->guest, m->len,
                         &(struct side){m->kind == QM_MOVE_COPY ? m->from : NULL, m->ext}, &lies,
                         err);
}

static int
begin(struct compare *c, const struct qm_compare_config *config, struct qm_compare_result *out,
      struct qmeld_error *err)
{
    const uint64_t size = config->have->layers[config->have_top].img->size;
    const uint64_t block = qm_max(qm_min(size, BLOCK_BYTES), LEAST_BLOCK);

    *out = (struct qm_compare_result){.equal = true};
    *c = (struct compare){.cfg = config,
                          .out = out,
                          .codec = qm_codec_new(),
                          .block = block,
                          .want = malloc(block),
                          .have = malloc(block),
                          .ticked = config->tell_all ? 0 : qm_clock_sec()};
    qm_pace_begin(&c->pace, config->bandwidth);
    return c->codec && c->want && c->have ? 0 : qm_fail_nomem(err, "comparing");
}

static void
end(struct compare *c)
{
    qm_codec_free(c->codec);
    free(c->want);
    free(c->have);
}

int
qm_compare(const struct qm_compare_config *config, struct qm_compare_result *out,
           struct qmeld_error *err)
{
    struct qm_plan *plan = NULL;
    struct compare c;
    int rc = begin(&c, config, out, err);

    if (rc == 0)
        rc = qm_plan_open(&config->plan, &plan, err);
    if (rc == 0)
        rc = compare_plan(&c, plan, err);
    if (rc == 0 && c.told && out->equal)
        (void)tell(&c, qm_min(config->end.g, config->plan.new_size)); /* too late to stop */
    qm_plan_close(plan);
    end(&c);
    return rc;
}

int
qm_compare_wants(const struct qm_compare_config *config, const struct qm_wants *wants,
                 struct qm_compare_result *out, struct qmeld_error *err)
{
    struct compare c;
    int rc = begin(&c, config, out, err);

    QM_VEC_EACH (w, &wants->list) {
        if (rc == 0 && out->equal)
            rc = compare_range(&c, w->guest, w->len, &(struct side){w->from, w->ext}, err);
    }
    end(&c);
    return rc;
}

int
qm_compare_moves(const struct qm_compare_config *config, const struct qm_moves *moves,
                 struct qm_compare_result *out, struct qmeld_error *err)
{
    struct compare c;
    int rc = begin(&c, config, out, err);

    QM_VEC_EACH (m, &moves->list) {
        if (rc == 0 && out->equal)
            rc = compare_move(&c, m, err);
    }
    end(&c);
    return rc;
}
