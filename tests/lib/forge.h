/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge.h - images made from a text that a person can read.
 *
 * Why.  Tests need images with every feature and every defect of the format, and they need to
 * know what a guest reads from them without asking the code under test, nor QEMU.  A recipe is
 * a picture of a chain; from it the forge writes the files, and, by painting the same picture
 * on an empty raw file, what each layer must read as.  It shares no code with src/image: what
 * one of the two misunderstands, the other shows.
 *
 * Calls      qm_forge_load or qm_forge_parse; then qm_forge_write, qm_forge_expect in any
 *            order and number; qm_forge_free.
 * Ownership  The recipe owns all strings it hands out.
 * Units      Layers are counted as the recipe has them, from the top: 0 is the first row.
 * Errors     0 or -1 with *err: USAGE (the recipe is wrong; the sentence names the line), IO.
 * Language   docs/testing.md, "Recipes".
 */
#ifndef QM_FORGE_H
#define QM_FORGE_H

#include "err.h"

#include <stdio.h>

struct qm_forge;

/* text is copied; name is what messages call it. */
int qm_forge_parse(const char *text, const char *name, struct qm_forge **out,
                   struct qmeld_error *err) QM_CHECK;

/* From a file; "-" is standard input. */
int qm_forge_load(const char *path, struct qm_forge **out, struct qmeld_error *err) QM_CHECK;
void qm_forge_free(struct qm_forge *forge); /* NULL is fine */

size_t qm_forge_n_layers(const struct qm_forge *forge);
const char *qm_forge_file(const struct qm_forge *forge, size_t layer);
const char *qm_forge_format(const struct qm_forge *forge, size_t layer);

/* The name of its external data file; NULL: none. */
const char *qm_forge_data_file(const struct qm_forge *forge, size_t layer);

/* Writes all files of the recipe into dir, which must exist. */
int qm_forge_write(const struct qm_forge *forge, const char *dir, struct qmeld_error *err) QM_CHECK;

/* Writes what a guest reads from a layer, through all below it, as a sparse raw file. */
int qm_forge_expect(const struct qm_forge *forge, size_t layer, const char *path,
                    struct qmeld_error *err) QM_CHECK;

/* Prints a recipe of an undamaged chain, any feature of the format in it; the same seed
 * gives the same text. */
void qm_forge_random(uint64_t seed, FILE *out);

#endif
