/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * room.h - how far a file may grow: free space, quotas, the longest file.
 *
 * Why.  Whoever will not fit should be told before the first byte is written, and whoever will, not
 * be turned away.  So only limits are told that the kernel will enforce, on us, on this file.
 *
 * Units      Bytes.
 * Errors     0 or -1 with *err: IO.  What the kernel does not tell is no limit.
 */
#ifndef QM_ROOM_H
#define QM_ROOM_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum qm_room_kind { QM_ROOM_DISK, QM_ROOM_USER, QM_ROOM_GROUP, QM_ROOM_PROJECT };
#define QM_ROOM_KINDS 4

/* What limits the allocation of a file; two files with the same kind, device and id share it. */
struct qm_room {
    enum qm_room_kind kind;
    dev_t dev;
    uint32_t id;    /* of the user, group or project whose quota it is */
    uint64_t bytes; /* that are left */
    bool soft;      /* data may take less there than it is long: it is compressed */
};

/* fd: of a regular file or a directory; path is for errors. */
int qm_room_find(int fd, const char *path, struct qm_room out[QM_ROOM_KINDS], size_t *out_n,
                 struct qmeld_error *err) QM_CHECK;

/* "the file system", "the quota of user", ... */
const char *qm_room_name(enum qm_room_kind kind);

/* NULL if a file of this length can be; else what forbids it.  fd: -1 if there is none yet. */
const char *qm_room_forbids(int fd, uint64_t length, uint64_t *out_limit);

#endif
