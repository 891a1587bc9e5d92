/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * request.h - a commit as it was asked for.
 *
 * Why.  Whoever wants to know what a commit would do, asks for the very same one, dry.
 *
 * Threads    One thread.
 * Ownership  m is the caller's: qm_merge_release.
 * Errors     0 or -1 with *err; err->disk tells what is on disk.
 */
#ifndef QM_REQUEST_H
#define QM_REQUEST_H

#include "merge.h"

/* Finds out what m->opts mean for the chain whose active layer is path, or which interrupted merge,
 * and does it. */
int qm_request_commit(const char *path, struct qm_merge *m, struct qmeld_error *err) QM_CHECK;

#endif
