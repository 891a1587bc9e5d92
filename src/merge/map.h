/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * map.h - which layer answers which guest bytes.
 *
 * Why.  The one place where a chain is resolved: from the top down, a layer is asked only for
 * what nobody above has answered; a layer that ends early hides what is below its end.  The
 * sweep goes window by window, so memory is bounded, and asks layers only where they have tables,
 * so that neither virtual size nor depth costs anything by itself.
 *
 * Calls      qm_map_open, qm_map_next until it says done, qm_map_close.
 * Threads    One thread; it uses the images' caches, so one map over a layer at a time.
 * Ownership  The chain is borrowed.
 * Errors     0 or -1 with *err: what qm_image_next says.
 */
#ifndef QM_MAP_H
#define QM_MAP_H

#include "chain.h"

#define QM_NO_LAYER SIZE_MAX

struct qm_map_span {
    guest_off guest;
    uint64_t len;
    size_t layer;  /* who answers; QM_NO_LAYER: nobody between bottom and top */
    bool past_end; /* the layer answers because the guest bytes lie past its end: ZERO */
    struct qm_extent
        ext; /* the answer, of exactly these guest bytes; for QM_NO_LAYER kind ABSENT */
};

struct qm_map;

/* Resolves layers bottom..top (both included) over [from, from + len), clipped to the size of
 * layer top.  A layer (but not top) answers ZERO with past_end for what lies past its own end:
 * bytes nobody above answered read as zeros there, and nothing below is asked. */
int qm_map_open(const struct qm_chain *chain, size_t bottom, size_t top, guest_off from,
                uint64_t len, struct qm_map **out, struct qmeld_error *err) QM_CHECK;

/* From here on a layer that cannot tell what it has (CORRUPT, IO) is no error: its answer is ZERO, and lost. */
void qm_map_go_on(struct qm_map *map);

/* The next span, ascending, without gaps.  *out_done: there was none left. */
int qm_map_next(struct qm_map *map, struct qm_map_span *out, bool *out_done,
                struct qmeld_error *err) QM_CHECK;

void qm_map_close(struct qm_map *map); /* NULL is fine */

/* Reads [from, from + len) of the view of layer top, over layers bottom..top; what nobody answers
 * reads as zeros.  len must be inside the size of layer top. */
int qm_map_read(const struct qm_chain *chain, size_t bottom, size_t top, guest_off from, void *buf,
                uint64_t len, struct qmeld_error *err) QM_CHECK;

#endif
