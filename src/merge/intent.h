/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * intent.h - what a merge is to do, as its journal keeps it.
 *
 * Why.  What was asked for, what that came to, and how the layers looked is written once, before the first
 * byte of an image changes, and obeyed by whoever goes on with the merge.  docs/format.md, "The
 * journal", has its form.
 *
 * Ownership  An intent owns its strings: qm_intent_release.
 */
#ifndef QM_INTENT_H
#define QM_INTENT_H

#include "err.h"
#include "hands.h"
#include "qcow2_bitmap.h"
#include "qcow2_stage.h"
#include "vec.h"

/* When a file was made; all 0: its file system does not tell.  The number of an inode is given to another file as soon as
 * its own is gone; with this it is told apart. */
struct qm_birth {
    int64_t sec;
    int64_t nsec;
};

/* How a layer looked when the merge began; what it looks like now tells whether it changed. */
struct qm_journal_layer {
    char *path; /* absolute */
    char *format;
    char *backing_name; /* as its header had them; NULL: none */
    char *backing_format;
    char *
        moved_to; /* QUARANTINE, and the target above its base: the absolute path it is to have in the end;
                     * NULL: it stays */
    bool blockdev;
    uint64_t ino;
    uint64_t size;
    int64_t mtime_sec;
    int64_t mtime_nsec;
    struct qm_birth born;
    struct qm_journal_data { /* its external data file; path NULL: none */
        char *path;          /* as its header has it, made absolute */
        uint64_t ino;
        uint64_t size;
        int64_t mtime_sec;
        int64_t mtime_nsec;
        struct qm_birth born;
    } data;
    /* not in the JSON: what the journal that it was read from may have us do to it (hands.h) */
    struct qm_hands hands;
    const char *journal; /* borrowed */
    bool reads;
};

/* How a merge can be taken back. */
enum qm_way {
    QM_WAY_NONE,
    QM_WAY_SWITCH, /* qcow2: the target is staged (qcow2_stage.h), and its old header kept here */
    QM_WAY_KEEP,   /* raw: what is overwritten is kept in a file (kept.h) */
};

struct qm_way_back {
    enum qm_way kind;
    uint64_t file_size; /* of the target before the merge */
    /* SWITCH */
    uint64_t floor;
    unsigned char sector[QM_HEADER_SECTOR];
    struct qm_header_place ext; /* of the bitmaps extension, or where one goes; len 0: none */
};

/* Somebody else who reads through a layer that changes or goes, and shall not notice (protect.h). */
struct qm_guarded {
    struct qm_journal_layer file; /* as above: the image */
    size_t layer;                 /* of the chain: what it stands on */
    bool
        own; /* it is the next layer of the chain itself: its internal snapshots shall not notice */
};

struct qm_intent {
    /* the request, word for word: the same words again mean "go on" */
    char *base_arg; /* NULL: not given; so the other two */
    char *top_arg;
    char *backing_format;
    QM_VEC(char *) allow; /* absolute; ends with NULL, or has nothing at all */
    bool shallow;
    bool keep_relative;
    bool verify; /* not one of the words that tell one merge from another */
    bool reclaim;
    bool decompress;
    bool skip_equal; /* nor are these: who gives the words again goes on as it was begun */
    bool detect_zeroes;
    bool atomic;
    bool undo;
    enum qmeld_overlays overlays;
    enum qmeld_direction direction;
    enum qmeld_bitmaps bitmaps_mode;
    bool fold; /* base and top follow from how many increments are to stay above: */
    uint64_t keep;
    bool rebase; /* no merge: base, top and target are the active layer, which gets another backing
                        * file, of this name and format; NULL: none */
    char *new_backing;
    char *new_format;
    /* what it came to */
    char *journal; /* absolute: the place it was made for; NULL: of an older version */
    size_t base;
    size_t top;
    size_t target;      /* as in plan.h */
    uint64_t base_size; /* virtual sizes before: of base, of target; and after */
    uint64_t old_size;
    uint64_t new_size;
    struct qm_way_back back;
    QM_VEC(struct qm_journal_layer) layers; /* [0] = bottom of the chain */
    struct qm_bitmap_names bitmaps;         /* of the target: valid when the merge began */
    struct qm_bitmap_orders orders;         /* and what becomes of them, and of the layers' */
    bool already;                           /* the target held all data before the merge */
    QM_VEC(struct qm_guarded) guarded;      /* by path */
};

/* In whose directory the journal lies is noted with each file that the intent names; USAGE if one of them is out of their reach.
 * journal lives as long as the intent does. */
int qm_intent_reach(struct qm_intent *i, const struct qm_file *journal, struct qmeld_error *err)
    QM_CHECK;

/* allow: as in struct qmeld_commit_options.  False: no memory. */
bool qm_intent_allow(struct qm_intent *i, const char *const *allow);

void qm_intent_release(struct qm_intent *i);
void qm_journal_layer_release(struct qm_journal_layer *l);
void qm_guarded_release(struct qm_guarded *g);

/* The layer's file changes before the merge does, for the sake of its internal snapshots. */
bool qm_intent_guards_layer(const struct qm_intent *i, size_t layer);

/* As JSON, NUL-terminated, malloc'd; NULL: no memory. */
char *qm_intent_text(const struct qm_intent *i);

int qm_intent_copy(const struct qm_intent *from, struct qm_intent *out, struct qmeld_error *err)
    QM_CHECK;

/* False: text is no intent, or one that contradicts itself.  Release *out in every case. */
bool qm_intent_parse(const char *text, struct qm_intent *out);

#endif
