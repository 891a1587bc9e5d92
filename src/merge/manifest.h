/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * manifest.h - the record of a flattened image: which byte came from where, and what it was.
 *
 * Why.  An examiner must be able to say of every byte of an image which file it came from, and that neither has
 * changed since.  docs/manifest.md is the form, for whoever checks it without us.  It is written while the
 * image is, leaf by leaf, in memory that does not grow with the disk.
 *
 * Calls      begin; add each chunk, in order, from the disk's first to its last; end; free.
 * Threads    One thread.
 * Ownership  The file is borrowed.
 * Errors     0 or -1 with *err: IO, NOSPACE, NOMEM.
 */
#ifndef QM_MANIFEST_H
#define QM_MANIFEST_H

#include "stream.h"

#define QM_MANIFEST_VERSION  1
#define QM_MANIFEST_MIN_LEAF 4096u
#define QM_MANIFEST_MAX_LEAF (64u << 20)
#define QM_MANIFEST_LEAF     (1u << 20)

struct qm_manifest_head {
    const struct qm_chain *chain;
    const char *image; /* as the request has them; NULL where it does not */
    const char *format;
    const char *backing_format;
    const char *snapshot;
    const char *out; /* NULL: it went to somebody's function */
    const char *out_format;
    const char *const *command; /* NULL-terminated; NULL: unknown */
    uint64_t size;
    uint64_t leaf;
};

struct qm_manifest;

int qm_manifest_begin(struct qm_file *file, const struct qm_manifest_head *head,
                      struct qm_manifest **out, struct qmeld_error *err) QM_CHECK;
int qm_manifest_add(struct qm_manifest *m, const struct qm_chunk *chunk, struct qmeld_error *err)
    QM_CHECK;

/* inputs: the digest of each file, in the order of qm_chain_files; known: there is one.  *out_view and *out_root: of all of the disk. */
int qm_manifest_end(struct qm_manifest *m, const struct qm_sha256 *inputs, const bool *known,
                    struct qm_sha256 *out_view, struct qm_sha256 *out_root, struct qmeld_error *err)
    QM_CHECK;
void qm_manifest_free(struct qm_manifest *m); /* NULL is fine */

/* ---- for who writes and who checks ---- */

/* How a span is called: "data", "compressed", "zero", "hole", "lost". */
const char *qm_manifest_kind(const struct qm_map_span *span);

#endif
