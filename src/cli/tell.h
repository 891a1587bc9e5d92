/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * tell.h - `qmeld help --options`: commands, options and operands in a form for programs.
 *
 * Why.  Shells complete what people type.  What they offer must be what the parser takes, so it is
 * printed from the parser's own tables, by the program that will be run, and not from a copy.
 *
 * Calls      options runs the command just far enough that it shows its tables to qm_cli_getopt,
 *            which shows them to tables.
 * Threads    One.
 * Output     Lines of fields, with tabs between them: docs/man/qmeld.1.
 */
#ifndef QM_CLI_TELL_H
#define QM_CLI_TELL_H

#include "cli.h"

/* "NAME  SENTENCE" of a command. */
void qm_cli_tell_command(const struct qm_cli_command *command);

/* "-f,--format  TAKES  SENTENCE" of each of its options; "operands  KIND..." at last. */
void qm_cli_tell_options(const struct qm_cli_command *command);

/* For qm_cli_getopt.  False: nobody wants to know, parse. */
bool qm_cli_tell_tables(const char *letters, const struct option *options);

#endif
