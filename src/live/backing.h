/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * backing.h - the backing name that libvirt had QEMU write, read back and mended.
 *
 * Why.  libvirt computes a relative name from what it remembers of the chain, and does not refresh that after
 * a commit (seen with 9.0, unchanged in 11.3): the second commit in a machine's life may leave a name that leads
 * nowhere.  The machine goes on, and does not start again.  So the header is read, and if its name is
 * not that of the base QEMU is told the right one; the file is QEMU's while the machine runs, so we never write it.
 */
#ifndef QM_BACKING_H
#define QM_BACKING_H

#include "run.h"

/* Of the layer above the range.  NEW with a sentence if its name is wrong and could not be mended. */
int qm_backing_check(struct qm_run *run, struct qmeld_error *err) QM_CHECK;

#endif
