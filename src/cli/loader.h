/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * loader.h - finds and loads qmeld-live.so, for the commands that need libvirt.
 *
 * Why.  The program runs where libvirt is not installed (docs/decisions/0011-live-module.md).
 *
 * Ownership  The module stays until the process ends.
 */
#ifndef QM_CLI_LOADER_H
#define QM_CLI_LOADER_H

#include "cli.h"
#include "live.h"

/* The module's functions; NULL, with *err saying what to install, if there is none.  Searched in this
 * order: what $QMELD_LIVE_MODULE names, beside the program, in the library folder that belongs to the
 * program's, in the one it was built for. */
const struct qm_live_module *qm_cli_live(struct qmeld_error *err);

#endif
