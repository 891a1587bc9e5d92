/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage_files.h - the files of a stage, put back again and again.
 *
 * Why.  A journal knows layers by inode and time of change.  So that it can be gone on with in any state that is
 * made of it, the files of all states are the same ones: a directory has second names of them, and
 * their time is always the same.
 */
#ifndef STAGE_FILES_H
#define STAGE_FILES_H

#include "stage.h"
#include "torn.h"

/* Those that are there now, from here on. */
void stage_files_hold(const struct stage *s);

/* Which of those held the i-th path leads to now; i: its own, or one that is not held. */
size_t stage_files_which(const char *const *paths, size_t n, size_t i);

/* They are what the state says; in another directory than ".": copies of them.  s may be
 * NULL if no merge of it can be taken back. */
void stage_files_put(const struct stage *s, const struct qm_torn_state *state, const char *dir);

/* Removes them, and their second names. */
void stage_files_drop(const struct stage *s);

#endif
