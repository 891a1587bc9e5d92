/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * backing.h - the backing name that libvirt has QEMU write into the layer above what is merged.
 *
 * Why.  libvirt computes a relative name from what it remembers of the chain, and does not refresh that after
 * a commit (seen with 9.0, unchanged in 11.3): the second commit in a machine's life may leave a name that leads
 * nowhere.  The machine goes on, and does not start again.  The file is QEMU's while the machine runs, and QEMU's
 * own command for it (change-backing-file, 7.2) stores the overlay's format as that of the base, so a wrong
 * name cannot be mended then: it must not come to be.
 */
#ifndef QM_BACKING_H
#define QM_BACKING_H

#include "run.h"

/* libvirt's memory of relative names may be wrong: a layer has gone from between those that are merged
 * since the machine was started (their indexes are no neighbours), and they are not all in one folder, where
 * every name is right.  A chain that grew by a snapshot since may be taken for one, too. */
bool qm_backing_names_are_stale(const struct qm_run *run);

/* Reads back what stands in the layer above the range.  NEW, with what to do, if it is not the base. */
int qm_backing_check(struct qm_run *run, struct qmeld_error *err) QM_CHECK;

#endif
