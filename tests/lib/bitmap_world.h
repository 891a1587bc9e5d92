/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bitmap_world.h - images with persistent bitmaps, and a plain array that says what they hold.
 *
 * Why.  What a bitmap must hold after marks, growth and crashes is said most simply by one bool
 * for each bit.  A world is such a model; make turns it into an image, check compares the two.
 *
 * Calls      draw or plain, make, then the code under test beside qm_world_mark, check.
 * Units      Clusters are as small as they may be, so that tables, bits and directory all have
 *            several.
 * Errors     Failed cmocka assertions.
 */
#ifndef QM_BITMAP_WORLD_H
#define QM_BITMAP_WORLD_H

#include "qcow2_bitmap.h"

#define QM_WORLD_BITS    524288
#define QM_WORLD_BITMAPS 5
#define QM_WORLD_CLUSTER ((uint64_t)512)

struct qm_model {
    uint32_t flags;
    uint32_t g;        /* granularity_bits */
    uint16_t name_len; /* 0: at random */
    bool bits[QM_WORLD_BITS];
};

struct qm_world {
    uint64_t old_size, new_size;
    size_t n;
    struct qm_model m[QM_WORLD_BITMAPS];
};

/* Numbers at random, always the same ones after a world's. */
uint64_t qm_world_any(uint64_t below);

/* A world at random from a seed; the image shall grow or keep its size. */
void qm_world_draw(struct qm_world *w, uint64_t seed, bool grow);

/* One enabled bitmap of 512-byte granularity over 1 MiB, a disabled one beside it. */
void qm_world_plain(struct qm_world *w, uint64_t new_size);

/* Makes the image, at the old size, and opens it for writing. */
struct qm_qcow2 *qm_world_make(const char *path, const struct qm_world *w);

/* Marks in b (NULL: not), and in the model's enabled and valid bitmaps. */
void qm_world_mark(struct qm_world *w, struct qm_bitmaps *b, uint64_t from, uint64_t len);

/* All bitmaps that claim to be valid hold the model's bits; none that was in_use claims so. */
void qm_world_check(struct qm_qcow2 *q, const struct qm_world *w);

bool qm_world_stored_bit(struct qm_qcow2 *q, const struct qm_bitmap *m, uint64_t bit);
uint32_t qm_world_flags(struct qm_qcow2 *q, size_t i);

#endif
