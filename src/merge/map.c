/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * map.c - the sweep over a chain, window by window.
 *
 * Why this way.  In a window there is a list of gaps, at first one gap: all of it.  The layers are
 * asked from the top down, each only for the gaps that are left; what it answers becomes a
 * span, what it does not stays a gap for the next.  Each layer keeps its last answer, asked as
 * far as the layer can tell without reading another table: inside such a run nobody asks again.
 * So a layer with nothing in a window costs one comparison, and windows may be large;
 * their size follows how much was found, so that memory stays bounded.
 */
#include "map.h"

#include "qcow2.h"
#include "vec.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Spans and gaps of one window at most; a window with more is halved and done again.  Answers
 * come in sectors at the least, so a SMALL_WINDOW cannot reach the limit. */
#define MAX_PIECES   32768u
#define SMALL_WINDOW (4ull << 20)
#define FIRST_WINDOW (256ull << 20)

/* How far is given up at once where a file system cannot say what of a raw layer is a hole. */
#define RAW_STEP (1ull << 20)

struct gap {
    uint64_t off;
    uint64_t end;
};

struct qm_map {
    /* set at open */
    const struct qm_layer *layers; /* of the chain, from its base */
    size_t bottom;
    size_t top;
    uint64_t end;
    bool go_on;             /* past what layers have lost */
    bool bottomless;        /* and what is below all of them is lost, too */
    struct qm_extent *last; /* by layer - bottom: its last answer; len 0: none yet */
    /* the sweep */
    uint64_t pos; /* windows before this are done */
    uint64_t window;
    QM_VEC(struct gap) gaps, rest;
    bool sorted;
    /* the window's answers */
    QM_VEC(struct qm_map_span) spans;
    size_t next;
};

enum swept { SWEPT, TOO_MANY, FAILED };

/* ---- one window ---- */

static bool
covers(const struct qm_extent *e, uint64_t off)
{
    return off >= e->guest.g && off - e->guest.g < e->len;
}

static uint64_t
end_of(const struct qm_extent *e)
{
    return e->guest.g + e->len;
}

/* What the layer should have said cannot be known, and what is below it was not asked for. */
static int
give_up(struct qm_image *img, uint64_t off, struct qm_extent *out, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = qm_qcow2_of(img);
    const enum qmeld_disk disk = err->disk;

    if (err->code != QMELD_IO && err->code != QMELD_CORRUPT)
        return -1;
    *out = (struct qm_extent){.guest = qm_guest(off), .kind = QM_ZERO, .lost = QM_LOST_TABLE};
    out->len = qm_min(q ? qm_qcow2_lost_run(q, off, err) : RAW_STEP, img->size - off);
    *err = (struct qmeld_error){.disk = disk};
    return 0;
}

/* Makes the layer's last answer one that covers off, which lies inside the layer. */
static int
ask(struct qm_map *m, size_t layer, uint64_t off, const struct qm_extent **out,
    struct qmeld_error *err)
{
    struct qm_image *img = m->layers[layer].img;
    struct qm_extent *e = &m->last[layer - m->bottom];

    *out = e;
    if (covers(e, off))
        return 0;
    if (qm_image_next(img, qm_guest(off), img->size - off, e, err) < 0) {
        e->len = 0;
        return m->go_on ? give_up(img, off, e, err) : -1;
    }
    assert(e->guest.g == off && e->len >= 1 && e->len <= img->size - off);
    return 0;
}

static bool
add_span(struct qm_map *m, const struct qm_map_span *s)
{
    if (m->spans.n) {
        const struct qm_map_span *prev = qm_vec_last(&m->spans);

        m->sorted = m->sorted && prev->guest.g < s->guest.g;
    }
    return qm_vec_push(&m->spans, s);
}

/* A span that needs no bytes of a file. */
static bool
add_empty(struct qm_map *m, size_t layer, bool past_end, uint64_t off, uint64_t len)
{
    const struct qm_map_span s = {
        .guest = qm_guest(off),
        .len = len,
        .layer = layer,
        .past_end = past_end,
        .ext = {.guest = qm_guest(off), .len = len, .kind = past_end ? QM_ZERO : QM_ABSENT},
    };

    return add_span(m, &s);
}

static bool
add_answer(struct qm_map *m, size_t layer, const struct qm_extent *e, uint64_t off, uint64_t len)
{
    const struct qm_map_span s = {
        .guest = qm_guest(off),
        .len = len,
        .layer = layer,
        .ext = qm_extent_part(e, off - e->guest.g, len),
    };

    return add_span(m, &s);
}

static bool
add_rest(struct qm_map *m, uint64_t off, uint64_t end)
{
    const struct gap g = {off, end};

    if (m->rest.n && qm_vec_last(&m->rest)->end == off) {
        qm_vec_last(&m->rest)->end = end;
        return true;
    }
    return qm_vec_push(&m->rest, &g);
}

/* Asks a layer for one gap. */
static enum swept
fill_gap(struct qm_map *m, size_t layer, struct gap g, size_t limit, struct qmeld_error *err)
{
    const uint64_t size = m->layers[layer].img->size;
    const uint64_t hidden = m->layers[layer].hides_to ? m->layers[layer].hides_to : UINT64_MAX;

    while (g.off < g.end && m->spans.n + m->rest.n <= limit) {
        const struct qm_extent *e;
        uint64_t stop = g.end;
        bool ok;

        if (g.off >= hidden) {
            ok = add_rest(m, g.off, g.end);
        } else if (g.off >= size) { /* the end of a layer hides what is below it, as zeros */
            stop = qm_min(g.end, hidden);
            ok = add_empty(m, layer, true, g.off, stop - g.off);
        } else if (m->layers[layer].given_up) {
            stop = qm_min(qm_min(g.end, hidden), size);
            ok = add_rest(m, g.off, stop);
        } else {
            if (ask(m, layer, g.off, &e, err) < 0)
                return FAILED;
            stop = qm_min(end_of(e), qm_min(g.end, hidden));
            if (e->kind == QM_ABSENT)
                ok = add_rest(m, g.off, stop);
            else
                ok = add_answer(m, layer, e, g.off, stop - g.off);
        }
        if (!ok) {
            qm_fail_nomem(err, "the map of a chain");
            return FAILED;
        }
        g.off = stop;
    }
    return g.off < g.end ? TOO_MANY : SWEPT;
}

/* True if the layer is known to have nothing in any gap. */
static bool
is_silent(const struct qm_map *m, size_t layer)
{
    const struct qm_extent *e = &m->last[layer - m->bottom];

    return e->kind == QM_ABSENT && covers(e, m->gaps.at[0].off) &&
           end_of(e) >= qm_vec_last(&m->gaps)->end;
}

static enum swept
fill_gaps(struct qm_map *m, size_t layer, size_t limit, struct qmeld_error *err)
{
    __typeof__(m->gaps) swap;

    if (is_silent(m, layer))
        return SWEPT;
    qm_vec_clear(&m->rest);
    QM_VEC_EACH (g, &m->gaps) {
        const enum swept r = fill_gap(m, layer, *g, limit, err);

        if (r != SWEPT)
            return r;
    }
    swap = m->gaps;
    m->gaps = m->rest;
    m->rest = swap;
    return SWEPT;
}

static enum swept
sweep_window(struct qm_map *m, uint64_t end, struct qmeld_error *err)
{
    const size_t limit = end - m->pos <= SMALL_WINDOW ? SIZE_MAX : MAX_PIECES;
    const struct gap all = {m->pos, end};

    qm_vec_clear(&m->spans);
    qm_vec_clear(&m->gaps);
    m->sorted = true;
    if (!qm_vec_push(&m->gaps, &all))
        goto no_memory;
    for (size_t layer = m->top + 1; layer-- > m->bottom && m->gaps.n;) {
        const enum swept r = fill_gaps(m, layer, limit, err);

        if (r != SWEPT)
            return r;
    }
    QM_VEC_EACH (g, &m->gaps) {
        if (!add_empty(m, QM_NO_LAYER, false, g->off, g->end - g->off))
            goto no_memory;
        if (m->go_on && m->bottomless) {
            qm_vec_last(&m->spans)->ext.kind = QM_ZERO;
            qm_vec_last(&m->spans)->ext.lost = QM_LOST_BELOW;
        }
    }
    return SWEPT;
no_memory:
    qm_fail_nomem(err, "the map of a chain");
    return FAILED;
}

/* ---- windows ---- */

static int
by_guest(const void *a, const void *b)
{
    const struct qm_map_span *x = a, *y = b;

    return (x->guest.g > y->guest.g) - (x->guest.g < y->guest.g);
}

/* The next window into m->spans; m->pos < m->end. */
static int
sweep(struct qm_map *m, struct qmeld_error *err)
{
    for (;;) {
        const uint64_t len = qm_min(m->window, m->end - m->pos);
        const enum swept r = sweep_window(m, m->pos + len, err);

        if (r == FAILED)
            return -1;
        if (r == SWEPT) {
            m->pos += len;
            break;
        }
        m->window = qm_max(len / 2, SMALL_WINDOW);
    }
    if (!m->sorted)
        qsort(m->spans.at, m->spans.n, sizeof *m->spans.at, by_guest);
    if (m->spans.n < MAX_PIECES / 8 && m->window < m->end)
        m->window *= 2;
    m->next = 0;
    return 0;
}

/* ---- calls ---- */

/* What a reader of layer top sees ends with that, unless what is below it shows behind its end. */
static uint64_t
view_size(const struct qm_chain *chain, size_t bottom, size_t top)
{
    uint64_t size = chain->layers[top].img->size;

    for (size_t i = top; i > bottom && chain->layers[i].hides_to; i--)
        size = qm_max(size, chain->layers[i - 1].img->size);
    return size;
}

int
qm_map_open(const struct qm_chain *chain, size_t bottom, size_t top, guest_off from, uint64_t len,
            struct qm_map **out, struct qmeld_error *err)
{
    const uint64_t size = view_size(chain, bottom, top);
    struct qm_map *m;

    assert(bottom <= top && top < chain->n && size <= QM_MAX_OFF);
    *out = NULL;
    m = calloc(1, sizeof *m);
    if (!m || !(m->last = calloc(top - bottom + 1, sizeof *m->last))) {
        free(m);
        return qm_fail_nomem(err, "the map of a chain");
    }
    m->layers = chain->layers;
    m->bottomless = chain->bottomless && bottom == 0;
    m->bottom = bottom;
    m->top = top;
    m->pos = qm_min(from.g, size);
    m->end = m->pos + qm_min(len, size - m->pos);
    m->window = FIRST_WINDOW;
    *out = m;
    return 0;
}

void
qm_map_go_on(struct qm_map *map)
{
    map->go_on = true;
}

int
qm_map_next(struct qm_map *map, struct qm_map_span *out, bool *out_done, struct qmeld_error *err)
{
    *out_done = false;
    if (map->next == map->spans.n) {
        if (map->pos == map->end) {
            *out_done = true;
            return 0;
        }
        if (sweep(map, err) < 0)
            return -1;
    }
    *out = map->spans.at[map->next++];
    return 0;
}

void
qm_map_close(struct qm_map *map)
{
    if (!map)
        return;
    qm_vec_release(&map->gaps);
    qm_vec_release(&map->rest);
    qm_vec_release(&map->spans);
    free(map->last);
    free(map);
}

/* The bytes of one span to buf. */
static int
read_span(const struct qm_chain *chain, const struct qm_map_span *s, struct qm_codec **codec,
          void *buf, struct qmeld_error *err)
{
    if (s->ext.kind == QM_ABSENT || s->ext.kind == QM_ZERO) {
        memset(buf, 0, s->len);
        return 0;
    }
    if (s->ext.kind == QM_COMPRESSED && !*codec && !(*codec = qm_codec_new()))
        return qm_fail_nomem(err, "a decompressor");
    return qm_extent_read(chain->layers[s->layer].img, &s->ext, *codec, buf, err);
}

int
qm_map_read(const struct qm_chain *chain, size_t bottom, size_t top, guest_off from, void *buf,
            uint64_t len, struct qmeld_error *err)
{
    struct qm_codec *codec = NULL;
    struct qm_map_span s;
    struct qm_map *m;
    bool done = false;
    int r;

    if (!qm_inside(from.g, len, chain->layers[top].img->size))
        return qm_fail(err, QMELD_USAGE, qm_at(chain->layers[top].path, from.g),
                       "reading past the end of the disk");
    if (qm_map_open(chain, bottom, top, from, len, &m, err) < 0)
        return -1;
    while ((r = qm_map_next(m, &s, &done, err)) == 0 && !done)
        if ((r = read_span(chain, &s, &codec, (unsigned char *)buf + (s.guest.g - from.g), err)) <
            0)
            break;
    qm_codec_free(codec);
    qm_map_close(m);
    return r;
}
