/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * remote.h - what stands behind a struct qm_file that is no file of this machine.
 *
 * Why.  Below io.h a file is a descriptor, or one of these: its calls keep their meaning, and nobody above
 * knows the difference but who needs a real descriptor (to map, to share blocks, to lock, to look for room), who asks
 * qm_file_is_local().  A descriptor costs one comparison more than before, and no call.
 *
 * Like a block device such a file has the length it has; it has no name in a directory, and no locks.
 *
 * Threads    read, write, zero and status may be called from many threads at once.  After a call that changed bytes has
 *            returned, every later read sees them.  What flush makes durable is what returned before it.
 * Ranges     The caller sees to it that they lie inside the size, and that they are not empty.
 * Errors     0, or -1 with errno; ENOTSUP: it cannot do such a thing at all.
 */
#ifndef QM_REMOTE_H
#define QM_REMOTE_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qm_remote;

struct qm_remote_ops {
    const char *kind; /* for people: "NBD export" */
    int (*read)(struct qm_remote *r, uint64_t off, void *buf, size_t len);
    int (*write)(struct qm_remote *r, uint64_t off, const void *buf, size_t len);
    int (*zero)(struct qm_remote *r, uint64_t off, uint64_t len);    /* with holes or without */
    int (*discard)(struct qm_remote *r, uint64_t off, uint64_t len); /* as much of it as it likes */
    int (*flush)(struct qm_remote *r);
    /* *out_len: at least 1; *out_data false: it reads as zeros */
    int (*status)(struct qm_remote *r, uint64_t off, bool *out_data, uint64_t *out_len);
    void (*close)(struct qm_remote *r); /* one user less */
};

struct qm_remote {
    const struct qm_remote_ops *ops;
    /* set at open */
    const char *name; /* its canonical spelling: equal for one and the same */
    uint64_t id;      /* of the name */
    uint64_t size;
    bool read_only;
    bool can_flush;
};

/* path is the name of an NBD export (nbd_name.h).  One that this process has open already is that one: a server may let
 * in one client only, and what one of two connections has written the other need not see.
 * *err: USAGE, IO, UNSUPPORTED (this build has no libnbd), NOMEM. */
int qm_nbd_open(const char *path, struct qm_remote **out, struct qmeld_error *err) QM_CHECK;

#endif
