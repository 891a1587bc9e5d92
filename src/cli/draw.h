/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * draw.h - a chain as a picture of letters.
 *
 * Why.  People explain chains to each other in rows of letters and dots.  This draws one from
 * the real images: a row for what each layer itself holds, and a row for which layer the top's
 * view takes its bytes from.
 *
 * Calls      qm_cli_draw_strip, once.
 * Ownership  Everything is borrowed.
 * Units      Bytes; width in terminal columns.
 * Errors     0, or -1 with *err filled; part of the picture may be printed by then.
 */
#ifndef QM_DRAW_H
#define QM_DRAW_H

#include "cli.h"

/* Draws [start, start + length) of chain on stdout, no wider than width columns.
 * Memory is a few bytes a column; every layer is opened once more, one at a time. */
int qm_cli_draw_strip(struct qmeld_chain *chain, uint64_t start, uint64_t length, size_t width,
                      struct qmeld_error *err) QMELD_CHECK;

#endif
