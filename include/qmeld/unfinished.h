/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/unfinished.h - what was interrupted: told, finished, taken back; and notes that outlive a crash.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Ownership  What callbacks are given lives during the call.  Strings that are returned through a pointer are the
 *            caller's, for free().
 */
#ifndef QMELD_UNFINISHED_H
#define QMELD_UNFINISHED_H

#include "merge.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A merge that was interrupted, as its journal tells it.  Strings live during the call of fn. */
struct qmeld_unfinished {
    const char *journal;
    const struct qmeld_error *problem; /* NULL, or why the journal cannot be gone by: it is damaged,
                                        * or not ours; then nothing below is set */

    bool rebase; /* no merge: active gets another backing file; base and top are active, too */
    const char *new_backing; /* its name; NULL: none */
    bool fold;               /* begun by qmeld_fold: the layers above top are what it was to keep */
    bool running;            /* a process is at work on it now */
    const char *active;      /* the chain's active layer: it reads as before, always */
    const char *base;        /* what is merged into */
    const char *top;         /* the uppermost layer that is merged */
    bool complete;           /* the base holds all of it; headers and overlays are being settled */
    bool
        base_intact; /* all layers, the base too, read as before by themselves until it is complete */
    bool protecting; /* other images are being given what they read through it (protect); so far no
                      * layer has changed */
    bool held; /* all is done; it can be taken back, or made final: this is no unfinished work */
    bool revertible; /* qmeld_revert can take it back */
    bool reverting;  /* it is being taken back; qmeld_resume goes on with that */
    uint64_t done;   /* guest bytes that are in the base, durably, counted from 0 */
    uint64_t size;   /* of the guest's disk when it is finished */
    enum qmeld_overlays overlays;
    bool reclaim; /* the merged layers have given up what is done */
    bool up; /* layer `target_layer`, above the base, is merged into, and gets the base's name */
    bool replaced; /* it has it */

    const char *const *layers;   /* of the chain before the merge; 0 = bottom */
    const char *const *moved_to; /* likewise: the name that a layer gets when the base is complete,
                                  * or has by now; NULL: none */
    size_t n_layers;
    size_t base_layer;
    size_t top_layer;
    size_t target_layer; /* the base, or as `up` says */
};

/* Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_unfinished_fn(const struct qmeld_unfinished *merge, void *opaque);

/* Tells of each unfinished merge that path has to do with: as a directory that holds journals, or
 * as a layer (then journal_dir is searched; if that is NULL the layer's directory, and the places
 * beside the layers under it), or as the journal itself.  Takes no lock and writes nothing. */
QMELD_API int qmeld_status(const char *path, const char *journal_dir, qmeld_unfinished_fn *fn,
                           void *opaque, struct qmeld_error *err) QMELD_CHECK;

/* Finishes the merge whose journal this is.  opts and report may be NULL, also of the next two; a report goes back with
 * qmeld_commit_report_free.  Of opts only secrets, threads, bandwidth, verify, direct, progress, guard
 * and their opaques count; the rest is in the journal.  STALE, with nothing done, if a layer changed. */
QMELD_API int qmeld_resume(const char *journal, const struct qmeld_commit_options *opts,
                           struct qmeld_commit_report *report, struct qmeld_error *err) QMELD_CHECK;

/* Takes back the merge whose journal this is: the base is again bit for bit what it was, the layer above
 * names its old backing file.  For merges begun with atomic or undo; USAGE for others, and once
 * overlays are given up.  STALE, with nothing done, if a layer changed since.  opts as for qmeld_resume. */
QMELD_API int qmeld_revert(const char *journal, const struct qmeld_commit_options *opts,
                           struct qmeld_commit_report *report, struct qmeld_error *err) QMELD_CHECK;

/* Makes a merge that is held final: the space that going back would need is given up.  The base may be in
 * use by readers. */
QMELD_API int qmeld_finalize(const char *journal, const struct qmeld_commit_options *opts,
                             struct qmeld_commit_report *report,
                             struct qmeld_error *err) QMELD_CHECK;

/* ---- notes ---- */

/* A note is a text beside an image that outlives a crash: what has to be put right, outside of the
 * images, when a merge is done - the definition of a virtual machine, say.  The library keeps it whole
 * or not at all, and gives it no meaning. */

/* Where the note of a merge into base lies: the journal's path (see qmeld_commit_options), and
 * "-domain" behind it.  malloc'd. */
QMELD_API int qmeld_note_path(const char *base, const char *active, const char *journal_dir,
                              char **out, struct qmeld_error *err) QMELD_CHECK;

/* Durable on return.  USAGE if there is a valid one already: it stays. */
QMELD_API int qmeld_note_write(const char *path, const char *text,
                               struct qmeld_error *err) QMELD_CHECK;

/* malloc'd; *out is NULL if there is none, or one that was never finished.  *step is 0 in a new note.
 * CORRUPT: damaged.  USAGE: somebody else's, whom we had better not obey. */
QMELD_API int qmeld_note_read(const char *path, char **out, unsigned *step,
                              struct qmeld_error *err) QMELD_CHECK;

/* Notes how far things came; the text stays.  Durable on return; after a crash the old step or the
 * new one is there. */
QMELD_API int qmeld_note_step(const char *path, unsigned step, struct qmeld_error *err) QMELD_CHECK;

/* Durable on return; that there is none is no failure. */
QMELD_API int qmeld_note_remove(const char *path, struct qmeld_error *err) QMELD_CHECK;

/* text is NULL if the note cannot be read, for *problem.  Not 0: the walk ends, QMELD_CANCELED. */
typedef int qmeld_note_fn(const char *path, const char *text, const struct qmeld_error *problem,
                          void *opaque);

/* Tells of each note in a directory. */
QMELD_API int qmeld_notes(const char *dir, qmeld_note_fn *fn, void *opaque,
                          struct qmeld_error *err) QMELD_CHECK;

#ifdef __cplusplus
}
#endif

#endif
