/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * picture.c - images that are a row of characters, behind the operations table of image.h.
 */
#include "picture.h"
#include "map.h"

#include <ctype.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

struct drawn {
    struct qm_image img; /* first */
    char *row;
    size_t asked;
};

static enum qm_kind
kind_of(char mark)
{
    if (mark == '.')
        return QM_ABSENT;
    if (mark == '0' || mark == '=')
        return QM_ZERO;
    return islower((unsigned char)mark) ? QM_COMPRESSED : QM_DATA;
}

/* A compressed cluster is an extent of its own; the others join their equals. */
static int
drawn_next(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
           struct qmeld_error *err)
{
    struct drawn *d = (struct drawn *)img;
    const size_t first = from.g / QM_PICTURE_CELL;
    const char mark = d->row[first];
    size_t last = first + 1;

    (void)err;
    assert_true(len > 0 && from.g + len <= img->size);
    d->asked++;
    while (kind_of(mark) != QM_COMPRESSED && last < img->size / QM_PICTURE_CELL &&
           kind_of(d->row[last]) == kind_of(mark) && (d->row[last] == '=') == (mark == '='))
        last++;
    *out = (struct qm_extent){.guest = from, .kind = kind_of(mark), .host = {from.g}};
    out->len = qm_min(last * QM_PICTURE_CELL - from.g, len);
    out->has_host = mark == '=' || out->kind == QM_DATA || out->kind == QM_COMPRESSED;
    if (out->kind == QM_COMPRESSED) {
        out->host.h = first * QM_PICTURE_CELL;
        out->skip = (uint32_t)(from.g % QM_PICTURE_CELL);
        out->payload_len = 512;
    }
    return 0;
}

static void
drawn_free(struct qm_image *img)
{
    free(((struct drawn *)img)->row);
    free(img);
}

static const struct qm_image_ops drawn_ops = {
    .format = "picture", .next = drawn_next, .free = drawn_free};

static struct qm_image *
draw(const char *row, size_t width)
{
    struct drawn *d = calloc(1, sizeof *d);

    assert_non_null(d);
    d->row = strndup(row, width);
    assert_non_null(d->row);
    while (width && row[width - 1] == ' ')
        width--;
    d->img.ops = &drawn_ops;
    d->img.size = width * (uint64_t)QM_PICTURE_CELL;
    d->img.cluster_size = QM_PICTURE_CELL;
    return &d->img;
}

struct qm_chain *
qm_picture_chain(const char *rows, size_t width)
{
    struct qm_chain *chain = calloc(1, sizeof *chain);

    assert_non_null(chain);
    assert_true(width && strlen(rows) % width == 0);
    chain->n = strlen(rows) / width;
    chain->layers = calloc(chain->n, sizeof *chain->layers);
    assert_non_null(chain->layers);
    for (size_t i = 0; i < chain->n; i++) {
        chain->layers[i].img = draw(rows + (chain->n - 1 - i) * width, width);
        chain->layers[i].path = strdup("picture");
        assert_non_null(chain->layers[i].path);
    }
    return chain;
}

void
qm_picture_free(struct qm_chain *chain)
{
    for (size_t i = 0; i < chain->n; i++) {
        drawn_free(chain->layers[i].img);
        free(chain->layers[i].path);
    }
    free(chain->layers);
    free(chain);
}

size_t
qm_picture_asked(const struct qm_chain *chain, size_t layer)
{
    return ((const struct drawn *)chain->layers[layer].img)->asked;
}

/* What a span looks like at one of its cells: the mark of the layer that answers, where the
 * answer has that mark's kind and place; '?' if not. */
static char
mark_of(const struct qm_chain *chain, const struct qm_map_span *span, uint64_t at)
{
    const struct drawn *d;
    char mark;

    if (span->layer == QM_NO_LAYER)
        return span->ext.kind == QM_ABSENT ? '.' : '?';
    if (span->layer >= chain->n)
        return '?';
    d = (const struct drawn *)chain->layers[span->layer].img;
    if (span->past_end)
        return at >= d->img.size && span->ext.kind == QM_ZERO ? '0' : '?';
    if (at >= d->img.size)
        return '?';
    mark = d->row[at / QM_PICTURE_CELL];
    if (kind_of(mark) != span->ext.kind || mark == '.')
        return '?';
    if (span->ext.kind == QM_DATA && span->ext.host.h != span->guest.g)
        return '?';
    if (span->ext.kind == QM_COMPRESSED && span->ext.host.h + span->ext.skip != span->guest.g)
        return '?';
    return mark;
}

/* The whole view as a picture of n cells.  Every byte must be answered once, in order. */
static void
view_of(const struct qm_chain *chain, size_t bottom, size_t top, char *out, size_t n)
{
    struct qmeld_error err = {0};
    struct qm_map *map;
    struct qm_map_span span;
    uint64_t at = 0;
    bool done = false;

    memset(out, ' ', n);
    if (qm_map_open(chain, bottom, top, qm_guest(0), chain->layers[top].img->size, &map, &err) < 0)
        fail_msg("qm_map_open: %s", err.what);
    for (;;) {
        if (qm_map_next(map, &span, &done, &err) < 0)
            fail_msg("qm_map_next: %s", err.what);
        if (done)
            break;
        assert_int_equal(span.guest.g, at);
        assert_int_equal(span.ext.guest.g, at);
        assert_int_equal(span.ext.len, span.len);
        assert_true(span.len > 0);
        for (; at < span.guest.g + span.len; at += QM_PICTURE_CELL) {
            assert_true(at / QM_PICTURE_CELL < n);
            out[at / QM_PICTURE_CELL] = mark_of(chain, &span, at);
        }
    }
    assert_int_equal(at, chain->layers[top].img->size);
    qm_map_close(map);
}

void
qm_picture_check(const char *rows, const char *view, size_t bottom, size_t top, const char *file,
                 int line)
{
    const size_t width = strlen(view);
    struct qm_chain *chain = qm_picture_chain(rows, width);
    char got[256] = "";

    assert_true(width < sizeof got);
    view_of(chain, bottom, top == SIZE_MAX ? chain->n - 1 : top, got, width);
    qm_picture_free(chain);
    if (strncmp(got, view, width) != 0)
        fail_msg("%s:%d: reads as \"%s\", not as \"%s\"", file, line, got, view);
}
