/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sandbox.h - a process that reads images of strangers gives up what that does not need.
 *
 * Why.  Parsers of hostile bytes have had bugs, and will have.  A command that only looks needs to open files for
 * reading, memory, threads, and its standard output; so before the first byte of an image is read the kernel is told
 * to refuse the rest: to open anything for writing, to make, remove or rename files, to run a program, to trace a
 * process, and, once it is known that no layer is behind a server, to connect to anything
 * (docs/decisions/0031-sandbox.md).
 *
 * Calls      enter, before images are opened; then peek at each chain that the command will open by itself, or open it;
 *            then opened.  All do nothing after --no-sandbox, and where there is no sandbox.
 * Threads    Before any is started: those that exist are not held.
 * Errors     None: a kernel without seccomp, or one that does not let us, is no failure.  qm_cli_sandbox_state tells.
 */
#ifndef QM_CLI_SANDBOX_H
#define QM_CLI_SANDBOX_H

#include "cli.h"

enum qm_cli_sandbox_needs {
    QM_SANDBOX_READS = 0,
    QM_SANDBOX_WRITES = 1, /* files are written: an output; no program is run all the same */
};

/* From here on nothing but what is needed.  Connections may still be made. */
void qm_cli_sandbox_enter(enum qm_cli_sandbox_needs needs);

/* Opens the chain of path, headers only, and closes it: then it is known whether a server is needed.  That it cannot be
 * opened is for the command to say. */
void qm_cli_sandbox_peek(const char *path, const struct qmeld_open_options *opts);

/* What is still to be opened. */
enum qm_cli_sandbox_opens {
    QM_SANDBOX_OPENS_FILES = 0,
    QM_SANDBOX_OPENS_NOTHING,
};

/* All chains have been opened, or peeked at.  If none of their layers is behind a server nothing can be connected to from
 * here on; after NOTHING no file can be opened either. */
void qm_cli_sandbox_opened(enum qm_cli_sandbox_opens opens);

/* For --no-sandbox, before enter. */
void qm_cli_sandbox_disable(void);

/* "on", or "off: " and why. */
const char *qm_cli_sandbox_state(void);

#endif
