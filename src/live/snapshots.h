/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * snapshots.h - libvirt's snapshots after layers were merged.
 *
 * Why.  An external snapshot is a layer with a name: it says which file it put on the chain, and, in the
 * definition of the domain that it keeps, which file holds the state to go back to.  A merge makes some of
 * that untrue, and libvirt does not look.  A snapshot whose files were merged has nothing to go back to any
 * more and is forgotten; one that has other disks, too, forgets this disk; and in all others merged files
 * are replaced by the base.
 *
 * Source     libvirt 9.0, src/qemu/qemu_snapshot.c: what its own deletion of an external snapshot leaves.
 * Threads    As session.h.
 * Errors     0 or -1 with *err.
 */
#ifndef QM_SNAPSHOTS_H
#define QM_SNAPSHOTS_H

#include "stopped.h"

/* Refuses, USAGE, if a snapshot keeps its state in a file of the range and puts another file than the
 * chain's on it: a branch, which the merge would spoil. */
int qm_snapshots_check(struct qm_stopped *s, struct qmeld_error *err) QM_CHECK;

/* Makes them right.  May be done twice. */
int qm_snapshots_settle(struct qm_stopped *s, struct qmeld_error *err) QM_CHECK;

#endif
