/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage_int.h - what the halves of a stage share: stage.c makes it, stage_read.c looks into its files,
 * stage_ask.c asks.
 */
#ifndef STAGE_INT_H
#define STAGE_INT_H

#include "stage.h"

/* False, and why. */
bool stage_no(struct stage *s, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
bool stage_no_because(struct stage *s, const char *what, const struct qmeld_error *err);

/* What the forge says that a layer reads as. */
struct stage_bytes stage_expected(struct stage *s, size_t layer);

bool stage_is_qcow2(const struct stage *s, size_t layer);

/* The guest's view of a layer, through all below it. */
int stage_read_view(const struct stage *s, size_t layer, struct stage_bytes *out,
                    struct qmeld_error *err) QM_CHECK;
bool stage_same(struct stage *s, const char *what, const struct stage_bytes *got,
                const struct stage_bytes *want);
bool stage_view_is(struct stage *s, size_t layer, const struct stage_bytes *want, const char *what);

/* What the base's internal snapshots hold, one behind the other. */
int stage_read_snapshots(const struct stage *s, struct stage_bytes *out, struct qmeld_error *err)
    QM_CHECK;

/* Are the base's bitmaps truthful?  *out_valid: how many are not in_use. */
bool stage_bitmaps_tell(struct stage *s, size_t *out_valid);

/* qemu-img, a reader that shares nothing with us. */
bool stage_qemu_reads(struct stage *s);
bool stage_qemu_checks(struct stage *s, size_t layer);

#endif
