/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld.h - libqmeld: fold chains of disk images.
 *
 * Why.  A virtual machine's disk is often a chain: a base (raw or qcow2) under
 * qcow2 overlays.  This library reads such chains natively, says which layer
 * answers which byte, merges layers down into a base so that the chain's top
 * never changes what it reads, checks and creates images.  It links no QEMU code.
 *
 * Calls      Look:   qmeld_chain_open, then qmeld_chain_layer / qmeld_map / qmeld_read,
 *                    then qmeld_chain_close.
 *            Change: qmeld_commit, qmeld_check (with a repair), qmeld_create; each
 *                    opens, locks, works, makes durable and closes by itself.
 *            Options are set to zeros, then to what is wanted; where they may be NULL, all is as by default.
 * Threads    The library has no global state and installs no signal handler.  Different
 *            chains may be used from different threads; one chain by one thread at a
 *            time.  Progress callbacks run on the thread that made the call.
 * Ownership  What a call returns through a pointer to a pointer belongs to the caller
 *            and goes back through the matching close.  Strings inside structs belong
 *            to the object that filled them and live as long as it does.
 * Units      Bytes, unless a name says otherwise.  Layers count from the base: 0 is
 *            the base here; the command line, as libvirt's indexes, shows it as 1.
 * Errors     0, or -1 with *err filled.  The library never prints, exits, or aborts on
 *            input.  err->disk says what the files on disk are worth after the failure.
 */
#ifndef QMELD_H
#define QMELD_H

#include "qmeld/error.h"
#include "qmeld/common.h"
#include "qmeld/chain.h"
#include "qmeld/compare.h"
#include "qmeld/merge.h"
#include "qmeld/plan.h"
#include "qmeld/rebase.h"
#include "qmeld/unfinished.h"
#include "qmeld/check.h"
#include "qmeld/create.h"
#include "qmeld/measure.h"
#include "qmeld/flatten.h"
#include "qmeld/verify.h"

#endif
