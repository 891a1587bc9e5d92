/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * hands.h - who could have put a journal where it lies, and what it may therefore make us change.
 *
 * Why.  That a journal's file is root's does not say that root wrote it as a journal.  Who can write to a directory can rename every
 * file in it, and a raw image that root made there has the bytes that a guest wished for.  So what a journal, or a note, in somebody
 * else's directory has us change must be what he could have changed himself; otherwise `qmeld recover` over the folders of strangers
 * would write to any file that one of them names (docs/decisions/0036-whose-directory.md).
 *
 * Threads    Any.
 * Errors     NOMEM; USAGE: it is out of reach.
 */
#ifndef QM_HANDS_H
#define QM_HANDS_H

#include "err.h"
#include "io.h"

#include <sys/types.h>

/* All zero: ours, whatever it names. */
struct qm_hands {
    bool
        others; /* the directory is another user's, who is not root, or everybody may write to it */
    bool everybody; /* the latter */
    dev_t dev;      /* the directory, and its owner */
    ino_t ino;
    uid_t uid;
};

/* Of the directory in which the file of this path lies, links followed.  file (NULL: none is open yet) was opened by it, and is where
 * it is, whatever the path leads to by now. */
int qm_hands_of(const char *path, const struct qm_file *file, struct qm_hands *out,
                struct qmeld_error *err) QM_CHECK;

/* Could whoever has the hands change the file of this path himself, or give its name to another one: in the same directory or below it, in
 * another one that is in his hands likewise, or as its owner?
 * file: as above.  A block device or an export of a server is in nobody's directory.  reads: it is only read, so it will do if everybody may.
 * USAGE names the file at fault, and the journal. */
int qm_hands_reach(const struct qm_hands *hands, const char *journal, const char *path,
                   const struct qm_file *file, bool reads, struct qmeld_error *err) QM_CHECK;

#endif
