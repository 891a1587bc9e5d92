/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * evidence.h - SHA-256 of whole files, by threads beside the work.
 *
 * Why.  A manifest says what its inputs were, byte for byte, tables and all; the bytes are in the page cache while a
 * flatten reads them anyway.  A file's digest is one thread's work, so files are digested beside each other.
 *
 * Calls      begin; end, once, which waits; free.
 * Threads    One thread calls; workers are inside.  The files may be read by others meanwhile.
 * Ownership  The files are borrowed.
 * Errors     0 or -1 with *err: IO, NOMEM, CANCELED.
 */
#ifndef QM_EVIDENCE_H
#define QM_EVIDENCE_H

#include "digest.h"
#include "io.h"

struct qm_evidence;

struct qm_evidence_config {
    const struct qm_file *const *files;
    size_t n;
    bool go_on;                  /* a file that cannot be read is no error: it has no digest */
    unsigned threads;            /* 0: as many as processors, at most 16 */
    qmeld_progress_fn *progress; /* may be NULL; counts all files' bytes */
    void *opaque;
};

int qm_evidence_begin(const struct qm_evidence_config *config, struct qm_evidence **out,
                      struct qmeld_error *err) QM_CHECK;

/* out: one for each file; out_known: with go_on, false where there is none, otherwise it may be NULL. */
int qm_evidence_end(struct qm_evidence *e, struct qm_sha256 *out, bool *out_known,
                    struct qmeld_error *err) QM_CHECK;

/* What is not done yet is given up.  NULL is fine. */
void qm_evidence_free(struct qm_evidence *e);

#endif
