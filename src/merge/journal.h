/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * journal.h - the record of a merge that is under way.
 *
 * Why.  Whatever interrupts a merge, somebody must be able to say what was meant and how far it
 * came.  A small file beside the target says both: the intent (what, with which layers, how they
 * looked) is written once, before the first byte of any image changes; a cursor is
 * advanced after each batch that is durable in the target.
 *
 * File       docs/format.md, "The journal": one head sector, written last; two cursor sectors
 *            written in turn, so that a torn one leaves the other; the intent as JSON.  All three
 *            carry a checksum.
 * Calls      create, or load and hold; advance; remove or close.
 * Threads    One thread.
 * Ownership  The journal owns its intent.
 * Errors     0 or -1 with *err: IO, NOSPACE, CORRUPT (a damaged journal), UNSUPPORTED (a
 *            later version), NOMEM.
 */
#ifndef QM_JOURNAL_H
#define QM_JOURNAL_H

#include "chain.h"
#include "intent.h"

enum qm_phase {
    QM_PHASE_COPY,   /* guest bytes below the cursor are in the target, durably */
    QM_PHASE_SETTLE, /* the target is complete; headers and overlays are being settled */
    QM_PHASE_HELD,   /* merged; it can be taken back until it is made final */
    QM_PHASE_FINAL,  /* what the way back needs is being given up, with the overlays if so asked */
    QM_PHASE_BACK,   /* it is being taken back */
    QM_PHASE_PROTECT, /* before COPY: others (protect.h) are given what they will need; no layer has changed */
};

struct qm_cursor {
    enum qm_phase phase;
    guest_off done;
};

/* What whoever goes on, or back, must know besides. */
struct qm_trail {
    struct qm_staged staged; /* SWITCH: the header that the target gets; l1_off 0: none yet */
    guest_off kept;          /* KEEP: of what the merge overwrites below it, all is kept */
    struct {                 /* the target as the finished merge left it; HELD */
        uint64_t size;
        int64_t mtime_sec;
        int64_t mtime_nsec;
    } left;
};

struct qm_journal;

/* Where the journal of a merge into the target of path base lies: dir/.NAME.qmeld, dir being
 * journal_dir, or the target's own directory, or for a block device that of the active layer.
 * malloc'd. */
int qm_journal_path(const char *base, bool blockdev, const char *active, const char *journal_dir,
                    char **out, struct qmeld_error *err) QM_CHECK;

/* May a new journal lie there?  USAGE: neither target nor active layer is a file in a directory of this machine that
 * outlives it (/dev does not), and no journal_dir says another place. */
int qm_journal_check_place(const struct qm_file *base, const struct qm_file *active,
                           const char *journal_dir, struct qmeld_error *err) QM_CHECK;

/* Takes over *intent, also on failure.  On success everything is durable, and the journal is held.
 * USAGE: the place is taken by another merge's journal, which stays; or the intent is out of reach of who can write there
 * (hands.h), so that nobody could go on by it. */
int qm_journal_create(const char *path, struct qm_intent *intent, struct qm_journal **out,
                      struct qmeld_error *err) QM_CHECK;

/* For looking.  *out is NULL if there is no journal at path, or one that never became valid (nothing
 * had been changed then).  USAGE: it is somebody's whom we had better not obey, or may be (hands.h). */
int qm_journal_load(const char *path, struct qm_journal **out, struct qmeld_error *err) QM_CHECK;

/* Before going on with a loaded one, when its layers are locked.  BUSY or STALE: another process is
 * at work on it, or has been since it was loaded. */
int qm_journal_hold(struct qm_journal *j, struct qmeld_error *err) QM_CHECK;

/* A process is at work on it. */
bool qm_journal_is_held(const struct qm_journal *j);

const struct qm_intent *qm_journal_intent(const struct qm_journal *j);
struct qm_cursor qm_journal_cursor(const struct qm_journal *j);
const char *qm_journal_file(const struct qm_journal *j);

/* Durable on return. */
int qm_journal_advance(struct qm_journal *j, struct qm_cursor to, struct qmeld_error *err) QM_CHECK;

/* As it is on disk; and changed there, durably. */
struct qm_trail qm_journal_trail(const struct qm_journal *j);
int qm_journal_set_trail(struct qm_journal *j, const struct qm_trail *trail,
                         struct qmeld_error *err) QM_CHECK;

/* Notes how the target looks, as *trail's `left`. */
int qm_journal_look(const struct qm_file *target, struct qm_trail *trail, struct qmeld_error *err)
    QM_CHECK;

/* The merge is over: removes the file, durably, and frees j in every case. */
int qm_journal_remove(struct qm_journal *j, struct qmeld_error *err) QM_CHECK;
void qm_journal_close(struct qm_journal *j); /* the file stays; NULL is fine */

/* The path that the layer's file has now: moved_to if it is there already. */
const char *qm_journal_path_now(const struct qm_journal_layer *l);

/* STALE, naming the file, unless img's file, and its data file, are the same ones (by inode) and, with untouched, still
 * looks as it did.  USAGE: it is out of reach (hands.h). */
int qm_journal_same(const struct qm_journal_layer *then, const struct qm_image *img, bool untouched,
                    struct qmeld_error *err) QM_CHECK;

/* The file at the layer's path is there, and is another or looks otherwise. */
bool qm_journal_changed(const struct qm_journal_layer *then);

/* A journal, or what is like one, makes us write to and remove the files it names: USAGE unless it is our
 * own, or root's. */
int qm_journal_is_ours(const struct qm_file *file, struct qmeld_error *err) QM_CHECK;

/* Fills *out from an open layer. */
int qm_journal_note(const struct qm_layer *layer, struct qm_journal_layer *out,
                    struct qmeld_error *err) QM_CHECK;

#endif
