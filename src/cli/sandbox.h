/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sandbox.h - a process that reads images of strangers gives up what that does not need.
 *
 * Why.  Parsers of hostile bytes have had bugs, and will have.  A command that only looks needs to open files for
 * reading, memory, threads, and its standard output; so before the first byte of an image is read the kernel is told
 * to refuse the rest: to open anything for writing, to make, remove or rename files, to run a program, to trace a
 * process, and, once it is known that no layer is behind a server, to connect to anything.  A command that writes keeps
 * files, and gives up all else (docs/decisions/0031-sandbox.md).
 *
 * Calls      enter, before images are opened; then peek at each chain that the command will open by itself, or open it;
 *            then opened.  All do nothing after --no-sandbox, and where there is no sandbox.
 * Threads    All of the process are held, those of libvirt, too, which are there already.  To start them goes on.
 * libvirt    Its client may run a program (ssh, a daemon of this user): that is over after enter.  To connect goes on
 *            until opened.
 * Errors     None: a kernel without seccomp, or one that does not let us, is no failure.  qm_cli_sandbox_state tells.
 */
#ifndef QM_CLI_SANDBOX_H
#define QM_CLI_SANDBOX_H

#include "cli.h"

enum qm_cli_sandbox_needs {
    QM_SANDBOX_READS = 0,
    QM_SANDBOX_WRITES = 1, /* files are written; no program is run all the same */
};

/* From here on nothing but what is needed.  Connections may still be made. */
void qm_cli_sandbox_enter(enum qm_cli_sandbox_needs needs);

/* Opens the chain of path, headers only, and closes it: then it is known whether a server is needed.  False: it cannot be
 * opened, which is for the command to say; who could go on all the same (a merge half-way, whose layers are gone in part)
 * does not call opened then. */
bool qm_cli_sandbox_peek(const char *path, const struct qmeld_open_options *opts);

/* What is still to be opened; one, or an or. */
enum qm_cli_sandbox_opens {
    QM_SANDBOX_OPENS_FILES = 0,
    QM_SANDBOX_OPENS_NOTHING = 1,
    QM_SANDBOX_OPENS_CODE = 2, /* libcrypto may load a provider: there are keys, or digests */
};

/* All chains have been opened, or peeked at.  If none of their layers is behind a server nothing can be connected to from
 * here on, and what writes can load no code either, unless CODE says that it may have to; after NOTHING no file can be
 * opened.  Those who only read keep that: they could map only what is there. */
void qm_cli_sandbox_opened(unsigned opens);

/* For --no-sandbox, before enter. */
void qm_cli_sandbox_disable(void);

/* "on", or "off: " and why. */
const char *qm_cli_sandbox_state(void);

#endif
