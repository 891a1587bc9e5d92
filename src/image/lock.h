/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lock.h - QEMU's image lock bytes: hold them, test them, name who holds them.
 *
 * Why.  While a merge runs no QEMU may start on the chain, and an image that a QEMU uses must be
 * refused.  QEMU takes shared OFD locks on single bytes: 100 + k says "I use permission k",
 * 200 + k says "I do not let others have permission k" (k: 0 consistent read, 1 write,
 * 2 write unchanged, 3 resize), then looks whether the others' bytes are free.  This module
 * speaks that protocol, so that both sides see each other.
 * Source     qemu 7.2, block/file-posix.c (raw_check_lock_bytes and its neighbours).
 *
 * Calls      qm_lock_take, any number of times with growing roles.  Locks end with the file.
 * Threads    One thread.
 * Exports    Behind an NBD server there are no such locks: nothing is taken, nobody is found.
 * Errors     BUSY, with the holder's pid and command where the kernel tells.  A file system
 *            without OFD locks: no lock, no error (QEMU's locking=auto does the same).
 */
#ifndef QM_LOCK_H
#define QM_LOCK_H

#include "io.h"

enum qm_lock_role {
    QM_LOCK_READER,    /* 100, 201, 203: we read, nobody may write or resize */
    QM_LOCK_WRITER,    /* and 101, 103: we write, so no overlay of it may be opened either */
    QM_LOCK_EXCLUSIVE, /* and 200: the content is between states, nobody may even read */
};

/* Takes the role's bytes on file's read-only descriptor, then tests the others'.  On BUSY
 * the bytes of this call are given back and the file keeps the role it had. */
int qm_lock_take(struct qm_file *file, enum qm_lock_role role, struct qmeld_error *err) QM_CHECK;

/* Who holds lock bytes of each file, other than we: "pid 4711 (qemu-system-x86): read, write" in a
 * malloc'd string, several holders joined by "; ", a holder that cannot be seen as "an unknown
 * process".  out[i] is NULL if nobody holds files[i].  Takes no lock itself.  Cost: one search
 * through /proc for all files together, two seconds at most. */
int qm_lock_holders(const struct qm_file *const *files, size_t n, char **out,
                    struct qmeld_error *err) QM_CHECK;

#endif
