/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * delegate.h - `qmeld commit` on an image that a running machine uses.
 *
 * Why.  Nobody but QEMU may write to what a running QEMU has open.  Its locks tell that somebody has it,
 * libvirt which machine, which disk and which place in the chain that is; then the merge is libvirt's.
 *
 * Ownership  All is borrowed.
 */
#ifndef QM_CLI_DELEGATE_H
#define QM_CLI_DELEGATE_H

#include "live.h"
#include "merging.h"

/* Before a merge.  The exit code if a running machine has the image, done or refused; -1 if none has it,
 * and the merge is ours, or cannot be anybody's: then the image's locks refuse it, with the holder's pid. */
int qm_cli_delegate(struct qm_cli_merging *merging, const char *path);

/* cmd_blockcommit.c: the same as the command, from a request. */
int qm_cli_blockcommit_run(const struct qm_live_commit *request,
                           const struct qm_cli_merging *merging);

#endif
