/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * scratch.h - an empty directory for tests that need files.
 *
 * Calls      qm_scratch_enter and qm_scratch_leave are set-up and tear-down functions for cmocka:
 * of a test or a group.  In between it is the working directory, so that relative paths may be
 * used; at the end it is removed with all that is in it.
 */
#ifndef QM_SCRATCH_H
#define QM_SCRATCH_H

int qm_scratch_enter(void **state);
int qm_scratch_leave(void **state);

/* Its absolute path, without symbolic links. */
const char *qm_scratch_dir(void);

#endif
