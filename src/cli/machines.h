/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * machines.h - what libvirt knows of images, asked before a merge.
 *
 * Why.  Others who stand on a layer are found by looking into the folders of the chain.  The image of a stopped
 * machine, or one in a snapshot of it, may lie anywhere, and libvirt knows where; and a machine that runs without image
 * locks is known to nobody else.
 *
 * Calls      ask, once, before qm_cli_merging_begin.
 * Ownership  What was found stays until the end of the program.
 */
#ifndef QM_CLI_MACHINES_H
#define QM_CLI_MACHINES_H

#include "merging.h"

/* Adds the images that libvirt's domains name to what is scanned.  Who cannot be asked is told of with -v, and no failure.
 * Nothing is asked where --no-scan was said, or where no libvirt listens. */
void qm_cli_machines_ask(struct qm_cli_merging *merging);

/* Of what was found: a running machine that has a layer of the image's chain; NULL: none is known. */
const char *qm_cli_machines_running(const struct qm_cli_merging *merging, const char *path);

/* False, after a complaint: such a machine runs. */
bool qm_cli_machines_let(const struct qm_cli_merging *merging, const char *path);

#endif
