/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * output.h - a new image that has its name when it is whole, and not before.
 *
 * Why.  Writing an image takes hours, and a half of one can look like all of it.  So until it is
 * complete and durable it has another name, .NAME.qmeld-partial, and beside it lies a note (note.c) with what
 * is being written and how far that is, durably: the same request goes on there.  A block device has the only name
 * it has; on it nothing is gone on with, and what makes it an image is written last.
 *
 * Calls      qm_output_begin; write to file; advance after each durable batch; finish, or fail; close.
 * Threads    One thread.
 * Ownership  file stays the output's.
 * Errors     0 or -1 with *err: USAGE (it is there already; another request is unfinished), STALE (the inputs are
 *            others), BUSY, IO, NOSPACE, NOMEM.
 */
#ifndef QM_OUTPUT_H
#define QM_OUTPUT_H

#include "chain.h"

#define QM_OUTPUT_PARTIAL ".qmeld-partial"
#define QM_OUTPUT_NOTE    ".qmeld-flatten"

struct qm_output_config {
    const char *path;
    const struct qm_chain *chain; /* what it is made of, and must not be; NULL: nothing */
    const char *request; /* what is written, in words that are the same for the same request */
    const char *inputs;  /* likewise what it is made from; NULL: nobody can go on later */
    uint64_t unit;       /* progress is noted in steps of so many bytes */
    uint64_t size;       /* of all of it; only for who asks how far it is */
    bool force;          /* what is there may be replaced */
    bool restart;        /* what an earlier run left is removed */
};

struct qm_output {
    struct qm_file *file; /* locked as a writer's */
    char *path;           /* what the image will be called; symbolic links followed */
    char *partial;        /* what it is called now */
    char *note;
    uint64_t unit;
    uint64_t done; /* bytes that an earlier run, or this one, has noted */
    bool owned;    /* the file is ours to write and to remove */
    bool noted;
    bool resumed;
    bool complete;       /* an earlier run has finished it; only what comes after was left to do */
    struct qm_file *old; /* what has the name now, locked; NULL: nothing */
};

/* *o is zeroed by the caller, and closed by him in every case. */
int qm_output_begin(struct qm_output *o, const struct qm_output_config *config,
                    struct qmeld_error *err) QM_CHECK;

/* The file has its form: from here on it may be gone on with. */
int qm_output_note(struct qm_output *o, const struct qm_output_config *config,
                   struct qmeld_error *err) QM_CHECK;

/* All before done is durable.  Rounded down to units. */
int qm_output_advance(struct qm_output *o, uint64_t done, struct qmeld_error *err) QM_CHECK;

/* All is durable: it gets its name.  The note stays until qm_output_forget. */
int qm_output_finish(struct qm_output *o, struct qmeld_error *err) QM_CHECK;
int qm_output_forget(struct qm_output *o, struct qmeld_error *err) QM_CHECK;

/* What an earlier run has completed under its other name, and had not named yet: it gets its name.  That there is none is
 * no failure. */
int qm_output_adopt(const char *path, struct qmeld_error *err) QM_CHECK;

/* After an error: what cannot be gone on with, or is not worth it, is removed.  Raises err->disk if it stays. */
void qm_output_fail(struct qm_output *o, struct qmeld_error *err);

void qm_output_close(struct qm_output *o);

/* DIR/.NAMEsuffix of DIR/NAME, malloc'd; NULL: no memory. */
char *qm_output_beside(const char *path, const char *suffix);

/* What an earlier run left of the output at path, if anything. */
struct qm_output_left {
    char *note;    /* its path */
    char *partial; /* likewise; NULL: there is no such file */
    char *request; /* NULL: there is no note, or it is bad; nobody goes on */
    bool bad;      /* there is one that cannot be gone by, for problem */
    struct qmeld_error problem;
    bool force;    /* what is at path may be replaced */
    bool running;  /* somebody is at it */
    bool complete; /* it has its name */
    uint64_t done;
    uint64_t size;
};

/* *out is released in any case; neither note nor partial: there is nothing. */
int qm_output_look(const char *path, struct qm_output_left *out, struct qmeld_error *err) QM_CHECK;
void qm_output_left_release(struct qm_output_left *left);

/* It is removed, unless it is complete (USAGE), or somebody is at it (BUSY). */
int qm_output_abandon(const char *path, struct qmeld_error *err) QM_CHECK;

/* DIR/NAME of the path of its note, or of the file under its other name; malloc'd.  *out is NULL if path is neither. */
int qm_output_named_by(const char *path, char **out, struct qmeld_error *err) QM_CHECK;

/* USAGE if what is at path now, if anything, is one of the chain's files. */
int qm_output_not_an_input(const char *path, const struct qm_chain *chain, struct qmeld_error *err)
    QM_CHECK;

#endif
