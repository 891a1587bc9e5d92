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

/* What internal snapshots read that are protected, likewise; with what is below them. */
int stage_read_guarded(const struct stage *s, struct stage_bytes *out, struct qmeld_error *err)
    QM_CHECK;

/* The base's bitmaps, noted before the merge, and after an undisturbed one. */
bool stage_bitmaps_before(struct stage *s);
bool stage_bitmaps_after(struct stage *s);
void stage_bitmaps_release(struct stage_bitmaps *all);

/* Are they truthful now: those that are not in_use tell what changed, and what layers had recorded? */
bool stage_bitmaps_tell(struct stage *s);

/* Are they what an undisturbed merge leaves? */
bool stage_bitmaps_ended(struct stage *s);

/* qemu-img, a reader that shares nothing with us. */
bool stage_qemu_reads(struct stage *s);
bool stage_qemu_checks(struct stage *s, size_t layer);

#endif
