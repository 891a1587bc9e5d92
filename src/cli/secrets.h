/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * secrets.h - passphrases of encrypted images, from files and descriptors.
 *
 * Why.  A passphrase on a command line is everybody's who can list processes.  So an option names where it is, and what is read
 * there is in no core dump, and wiped at the end.
 *
 * Calls      qm_cli_secrets_take for each such option; qm_cli_secrets for the library; the end of the process does the rest.
 * Threads    One.
 */
#ifndef QM_CLI_SECRETS_H
#define QM_CLI_SECRETS_H

#include "cli.h"

#define QM_CLI_SECRET_OPTIONS                                                                      \
    {"secret", required_argument, NULL, QM_OPT_SECRET},                                            \
    {                                                                                              \
        "secret-fd", required_argument, NULL, QM_OPT_SECRET_FD                                     \
    }

#define QM_CLI_SECRET_HELP                                                                         \
    "        --secret=[IMAGE=]FILE  passphrase of encrypted layers, or of that one: all bytes "    \
    "of\n"                                                                                         \
    "                               FILE, as they are; may be given several times\n"               \
    "        --secret-fd=[IMAGE=]N  the same, read from descriptor N\n"

/* The option c with its optarg.  False after a complaint. */
bool qm_cli_secrets_take(const char *command, int c);

/* Those that were taken; NULL: none. */
const struct qmeld_secrets *qm_cli_secrets(void);

#endif
