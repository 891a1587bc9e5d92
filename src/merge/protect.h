/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * protect.h - others that read through layers of a merge, and read the same afterwards.
 *
 * Why.  An image that stands on a layer which is about to change holds by itself, from here on, what will read
 * otherwise below it (onto.h): what it would be given if it were rebased onto the view that the merge will leave.
 * That view needs no file, as it can be told by layers that are there: those up to top, and behind top's end what
 * the base has there.  All of it is durable before the first byte of a layer changes (docs/crash-safety.md).
 *
 * Where the layer's file goes, too, the image is pointed at the base before that.
 *
 * An internal snapshot stands on what its image stands on.  Those of such images, and those of layers of the merge
 * itself, get the same, each as if it were an image (qm_qcow2_open_snapshot).  Nobody reads anything else afterwards, so
 * bitmaps stay as they are.
 *
 * Calls      qm_protect_note for each image, qm_protect_note_own for each layer with snapshots, before the journal is
 *            written; qm_protect_run when it is; qm_protect_repoint when all is merged; qm_protect_tidy when it is taken
 *            back before.  All but note may be repeated, from the beginning, as often as need be.
 * Threads    One thread; copying and comparing have workers inside.
 * Ownership  All is borrowed; images are opened and locked by each call for itself.
 * Errors     0 or -1 with *err: what rebase.h says; BUSY: somebody uses such an image.
 */
#ifndef QM_PROTECT_H
#define QM_PROTECT_H

#include "journal.h"
#include "transfer.h"

struct qm_protect {
    const struct qm_intent *intent; /* with all that qm_protect_note has given, but for note */
    const struct qm_chain *chain;   /* the merge's; no layer has changed */
    size_t base;
    size_t top;
    uint64_t hidden_end; /* as in plan.h */
    bool gone;           /* the files of merged layers will be */
    bool emptied;        /* they will have nothing of their own */
    bool up;             /* the base moves up */
    bool top_moves;      /* top stands on the base in the end, whatever lies between */
    const struct qmeld_commit_options *opts;
    uint64_t bytes; /* of data that were copied; added up here */
};

/* *out: the image at path, which stands on this layer.  USAGE, UNSUPPORTED, CORRUPT: it cannot be protected, and why. */
int qm_protect_note(const struct qm_protect *p, const char *path, size_t layer,
                    struct qm_guarded *out, struct qmeld_error *err) QM_CHECK;

/* Likewise: the internal snapshots of this layer of the chain, which is locked for writing.  BUSY: somebody reads it. */
int qm_protect_note_own(const struct qm_protect *p, size_t layer, struct qm_guarded *out,
                        struct qmeld_error *err) QM_CHECK;

/* All that the intent lists get what they need, durably.  USAGE: one of them is not there. */
int qm_protect_run(struct qm_protect *p, struct qmeld_error *err) QM_CHECK;

/* What was begun for them and is not needed leaves no leaks.  Those that are not there any more need nothing, nor
 * below. */
int qm_protect_tidy(struct qm_protect *p, struct qmeld_error *err) QM_CHECK;

/* Those that stand on a layer above the base stand on the base now, durably. */
int qm_protect_repoint(const struct qm_intent *intent, struct qmeld_error *err) QM_CHECK;

#endif
