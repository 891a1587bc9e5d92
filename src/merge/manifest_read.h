/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * manifest_read.h - a manifest, read leaf by leaf.
 *
 * Why.  A manifest of a large disk does not fit into memory, and may be anybody's.  It is one JSON text
 * (docs/manifest.md); of its members all but the leaves are small, and of the leaves each is.
 *
 * Calls      open; qm_manifest_next_leaf until there is none; close.
 * Threads    One.
 * Ownership  Objects that are returned are the reader's, until the next call; head lives until close.
 * Errors     0 or -1 with *err: USAGE (no manifest, or of a later version), IO, NOMEM.
 */
#ifndef QM_MANIFEST_READ_H
#define QM_MANIFEST_READ_H

#include "io.h"

struct json_object;
struct qm_manifest_reader;

/* Reads up to the first leaf. */
int qm_manifest_open(const char *path, struct qm_manifest_reader **out, struct qmeld_error *err)
    QM_CHECK;
void qm_manifest_close(struct qm_manifest_reader *r); /* NULL is fine */

/* All members but the leaves that were read so far: after the last leaf, all. */
struct json_object *qm_manifest_head(const struct qm_manifest_reader *r);

/* *out is NULL behind the last. */
int qm_manifest_next_leaf(struct qm_manifest_reader *r, struct json_object **out,
                          struct qmeld_error *err) QM_CHECK;

/* The manifest makes no sense here; -1. */
int qm_manifest_bad(const struct qm_manifest_reader *r, const char *what, struct qmeld_error *err);

/* ---- members ---- */

/* A name that was no UTF-8 is in KEY_hex; malloc'd, NULL: there is none, or no memory. */
char *qm_manifest_name(struct json_object *j, const char *key);

#endif
