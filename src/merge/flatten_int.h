/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten_int.h - what the files that serve qmeld_flatten share: flatten.c, flatten_bitmaps.c, flatten_sink.c and flatten_record.c.  Nobody else includes it.
 */
#ifndef QM_FLATTEN_INT_H
#define QM_FLATTEN_INT_H

#include "carry.h"
#include "create.h"
#include "evidence.h"
#include "losses.h"
#include "manifest.h"
#include "output.h"
#include "qcow2_append.h"
#include "route.h"
#include "stream.h"

/* So many bytes that are shared count, in a batch, as one that is written. */
#define QM_FLATTEN_SHARED_WEIGHT 16u

struct qm_flatten {
    const char *path;
    const struct qmeld_flatten_options *opts;
    struct qmeld_flatten_report *report;
    struct qm_chain *chain;
    uint64_t size;
    uint64_t chunk;
    struct qm_output output;
    struct qm_stream *stream;
    struct qm_routes routes; /* from the layers' files to the output's */
    /* with a manifest */
    uint64_t leaf;
    struct qm_output record; /* its file */
    struct qm_manifest *manifest;
    struct qm_evidence *evidence;
    /* with salvage */
    struct qm_salvage salvage;
    struct qm_losses *losses;
    struct qm_output map; /* their file, if it is asked for */
    /* qcow2 */
    bool is_qcow2;             /* and not to a sink */
    enum qm_prealloc prealloc; /* raw, too; create's is off */
    struct qm_qcow2_create create;
    struct qm_qcow2 *q; /* the new image; output.file is not its own */
    struct qm_append *append;
    struct qm_moves moves;
    struct qm_bitmap_orders orders; /* what becomes of the layers' bitmaps */
    uint64_t batch;                 /* bytes written since the last publish */
    uint64_t batch_bytes;           /* when it is full */
    unsigned char
        *first; /* raw, on a block device: the first chunk, which is written last; NULL: zeros */
};

/* The file gets its form, or, if it is gone on with, has it; from there on qm_flatten_put. */
int qm_flatten_sink_open(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;

/* A chunk goes to its place, and back to the stream. */
int qm_flatten_put(struct qm_flatten *f, struct qm_chunk *chunk, struct qmeld_error *err) QM_CHECK;

/* All that was put is durable, and noted: everything in front of guest byte `done`. */
int qm_flatten_publish(struct qm_flatten *f, uint64_t done, struct qmeld_error *err) QM_CHECK;
bool qm_flatten_is_full(const struct qm_flatten *f);

/* After the last publish. */
int qm_flatten_complete(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;
void qm_flatten_sink_close(struct qm_flatten *f);

/* ---- flatten_bitmaps.c ---- */

/* What becomes of each bitmap of the chain, which is open; before anything is written.  USAGE: the new image cannot have
 * them. */
int qm_flatten_bitmaps_plan(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;

/* f->q, which was made just now, gets them without bits, and in_use. */
int qm_flatten_bitmaps_make(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;

/* All else of f->q is durable, and nobody else has its refcounts in hand: bits, then in_use off, durable.  In every run
 * that gets so far. */
int qm_flatten_bitmaps_fill(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;

/* For the report. */
int qm_flatten_bitmaps_tell(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;

/* ---- flatten_request.c ---- */

/* What is asked for, as JSON, malloc'd: the same text for the same request.  NULL: no memory. */
char *qm_flatten_request(const struct qm_flatten *f);

/* ---- flatten_record.c ---- */

/* The manifest is begun, and its inputs' digests; without one nothing is done here and below. */
int qm_flatten_record_begin(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;

/* It is complete and durable, and may get its name when the image has its own. */
int qm_flatten_record_end(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;
int qm_flatten_record_name(struct qm_flatten *f, struct qmeld_error *err) QM_CHECK;
void qm_flatten_record_close(struct qm_flatten *f, bool failed);

#endif
