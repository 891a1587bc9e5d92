/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage.h - one merge of one small chain, and all that must hold of it at any time.
 *
 * Why.  The crash harness and the fault harness disturb the same merges and ask the same
 * questions afterwards.  What the chain must read as comes from the forge, which shares no code
 * with the merge; what the finished base must read as, from an undisturbed merge that was compared
 * with the forge.
 *
 * Calls      stage_open, stage_enter; then stage_write and the questions; stage_close.
 * Units      Layers are counted as recipes have them: 0 is the active layer.
 * Errors     A question is answered with false, and the answer's reason is in why.
 */
#ifndef STAGE_H
#define STAGE_H

#include "vec.h"
#include "forge.h"

/* Whatever opens an image, or goes on with a merge, has the passphrases "one" and "two": recipes have luks=one. */
extern const struct qmeld_secrets stage_secrets;
extern const struct qmeld_commit_options stage_resuming;

struct stage_bytes {
    unsigned char *at;
    size_t len;
};

struct stage_bitmap {
    char *name;
    uint32_t flags;
    uint32_t granularity_bits;
    bool before;             /* it was there, and valid, before the merge */
    struct stage_bytes bits; /* a byte each; empty if it is in_use */
};

struct stage_bitmaps {
    QM_VEC(struct stage_bitmap) list;
};

/* What an undisturbed merge makes of a layer. */
struct stage_end {
    uint64_t leaks;
    char backing_name[512];
    char backing_format[16];
};

/* What a layer was when it was looked at last. */
struct stage_seen {
    struct stage_end end;
    bool dirty;
};

struct stage {
    char name[512];
    char why[2048];
    struct qm_forge *forge;
    const char **files; /* one a layer, then the journal of the merge, then, for quarantine, the
                         * merged layers' new names, from top on, then the external data files, then, with
                         * a way back, undo, or, going up, moment */
    size_t n;           /* layers */
    bool
        encrypted; /* some layer is: qemu-img cannot be asked in passing (tests/oracle/luks.py does) */
    size_t n_files;
    size_t first_data; /* of files: these are external data files */
    size_t n_data;
    char journal[256];
    char undo[264];   /* what is kept of a raw base */
    char moment[264]; /* going up: the name that the target has for a moment */
    size_t base;
    size_t top;
    bool fold; /* by qmeld_fold: base and top follow from keep */
    size_t keep;
    bool rebase; /* no merge: the active layer, which is base and top, gets another backing file */
    const char *onto; /* its name; NULL: none */
    bool beside;      /* a row is no layer of the chain, but stands on one, and is protected */
    size_t sibling; /* which: the one over top's, so that what is asked of a child is asked of it */
    struct stage_bytes sibling_view;
    struct stage_bytes
        guarded; /* with opts.protect: internal snapshots of merged layers and of the sibling, with
                                 * all below them, one behind the other */
    bool dirty_base; /* its refcounts need not be true before the merge */
    struct qmeld_commit_options opts;
    struct stage_bytes active_view;
    struct stage_bytes top_view;
    struct stage_bytes done_view; /* of the base, after the merge */
    struct stage_bytes snapshots; /* of the base */
    struct stage_bytes base_view; /* of the base, before the merge */
    struct stage_bytes base_file; /* all of it, before the merge */
    struct stage_bitmaps
        old_bitmaps; /* of the base, before the merge, and after an undisturbed one */
    struct stage_bitmaps done_bitmaps;
    struct stage_end *ends;  /* of each layer that the merge may change, after an undisturbed one */
    struct stage_seen *seen; /* likewise, by the last question */
    struct stage_bytes *aside; /* quarantine: what the merged layers hold, from top on */
    bool qemu;                 /* qemu-img is asked, too */
    bool by_journal;           /* an unfinished merge is gone on with by qmeld_resume */
};

/* quarantine: the new name of a merged layer. */
const char *stage_aside(const struct stage *s, size_t layer);

/* The n-th "# commit ..." line of a recipe; false: it has no such line.  A recipe that cannot
 * be used ends the program. */
bool stage_open(struct stage *s, const char *name, const char *recipe, size_t nth);
void stage_close(struct stage *s);

/* Writes the chain into the working directory. */
void stage_write(struct stage *s);

/* Looks at the chain before the merge: the expected views. */
bool stage_before(struct stage *s);

/* Looks at it after an undisturbed merge. */
bool stage_after(struct stage *s);

/* A merge that can be taken back is made final at the end.  out_resumed may be NULL. */
int stage_commit(const struct stage *s, bool *out_resumed, struct qmeld_error *err) QM_CHECK;

/* Likewise, by qmeld_resume. */
int stage_resume(const struct stage *s, bool *out_resumed, struct qmeld_error *err) QM_CHECK;

/* There is the journal of an unfinished merge: without it, a merge begins anew. */
bool stage_has_journal(const struct stage *s);

/* It is a merge that can be taken back. */
bool stage_has_way_back(const struct stage *s);

/* Does the active layer read as before?  Gone, it must be replaced by a complete base. */
bool stage_reads(struct stage *s);

/* Are base, child and top free of corruption, the base's snapshots untouched, and its bitmaps
 * truthful or marked in_use? */
bool stage_sound(struct stage *s);

/* Does the base hold all of the merge? */
bool stage_done(struct stage *s);

/* Does the same commit again finish: by the journal if there is one, from the start if there is
 * none?  Finished: all is as an undisturbed merge leaves it. */
bool stage_again(struct stage *s);

/* Does revert bring back the old base, bit for bit, where the merge has a way back; and does the merge,
 * then or otherwise, finish as stage_again wants it? */
bool stage_back(struct stage *s);

#endif
