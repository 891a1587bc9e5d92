/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * picture.c - an image format whose file is a string.
 */
#include "picture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct painted {
    struct qm_image img; /* first */
    const char *row;
    uint64_t cell;
    size_t asked;
    size_t broken; /* this cell cannot be read; SIZE_MAX: all can */
};

static enum qm_kind
kind_of(char c)
{
    if (c == '.')
        return QM_ABSENT;
    if (c == '0')
        return QM_ZERO;
    return c >= 'a' && c <= 'z' ? QM_COMPRESSED : QM_DATA;
}

static int
next(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
     struct qmeld_error *err)
{
    struct painted *p = (struct painted *)img;
    const size_t first = (size_t)(from.g / p->cell);
    const enum qm_kind kind = kind_of(p->row[first]);
    size_t end = first + 1;

    p->asked++;
    if (first == p->broken)
        return qm_fail(err, QMELD_CORRUPT, qm_nowhere(), "a broken cell");
    while (kind != QM_COMPRESSED && end != p->broken && p->row[end] && kind_of(p->row[end]) == kind)
        end++;
    *out =
        (struct qm_extent){.guest = from, .len = qm_min(len, end * p->cell - from.g), .kind = kind};
    if (kind == QM_DATA) {
        out->has_host = true;
        out->host = qm_host(from.g);
    }
    if (kind == QM_COMPRESSED) {
        out->has_host = true;
        out->host = qm_host(first * p->cell);
        out->payload_len = 512;
        out->skip = (uint32_t)(from.g % p->cell);
    }
    return 0;
}

static void
forget(struct qm_image *img)
{
    (void)img;
}

static void
painted_free(struct qm_image *img)
{
    free(img);
}

static const struct qm_image_ops painted_ops = {
    .format = "picture",
    .next = next,
    .forget = forget,
    .free = painted_free,
};

static void *
must_calloc(size_t n, size_t size)
{
    void *p = calloc(n, size);

    if (!p)
        abort();
    return p;
}

struct qm_chain *
qm_picture_open(const char *const *rows, size_t n_rows, uint64_t cell)
{
    struct qm_chain *chain = must_calloc(1, sizeof *chain);

    chain->layers = must_calloc(n_rows, sizeof *chain->layers);
    chain->n = n_rows;
    for (size_t i = 0; i < n_rows; i++) {
        struct painted *p = must_calloc(1, sizeof *p);

        p->img.ops = &painted_ops;
        p->row = rows[n_rows - 1 - i];
        p->cell = cell;
        p->broken = SIZE_MAX;
        p->img.size = strlen(p->row) * cell;
        p->img.cluster_size = cell;
        chain->layers[i].img = &p->img;
    }
    return chain;
}

void
qm_picture_close(struct qm_chain *chain)
{
    qm_chain_close(chain);
}

static struct painted *
layer_of(const struct qm_chain *chain, size_t layer)
{
    return (struct painted *)chain->layers[layer].img;
}

size_t
qm_picture_asked(const struct qm_chain *chain, size_t layer)
{
    return layer_of(chain, layer)->asked;
}

void
qm_picture_break(struct qm_chain *chain, size_t layer, size_t cell)
{
    layer_of(chain, layer)->broken = cell;
}

char
qm_picture_answer(const struct qm_chain *chain, const struct qm_map_span *span)
{
    const struct painted *p;
    size_t cell;

    assert_int_equal(span->ext.guest.g, span->guest.g);
    assert_int_equal(span->ext.len, span->len);
    if (span->layer == QM_NO_LAYER) {
        assert_int_equal(span->ext.kind, QM_ABSENT);
        return '.';
    }
    p = layer_of(chain, span->layer);
    if (span->past_end) {
        assert_true(span->guest.g >= p->img.size);
        assert_int_equal(span->ext.kind, QM_ZERO);
        return '0';
    }
    assert_true(qm_inside(span->guest.g, span->len, p->img.size));
    cell = (size_t)(span->guest.g / p->cell);
    assert_int_equal(span->ext.kind, kind_of(p->row[cell]));
    if (span->ext.kind == QM_DATA)
        assert_int_equal(span->ext.host.h, span->guest.g);
    if (span->ext.kind == QM_COMPRESSED)
        assert_int_equal(span->ext.host.h + span->ext.skip, span->guest.g);
    return p->row[cell];
}
