/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torn_int.h - what torn.c records, for torn_replay.c: the files as they were, and their changes in order.
 *
 * Names are apart from files: the i-th name leads to the i-th file as long as nothing says otherwise; a second
 * name of a file leads to that one.
 */
#ifndef QM_TORN_INT_H
#define QM_TORN_INT_H

#include "torn.h"
#include "vec.h"

#define ALL_FILES SIZE_MAX /* a sync of the directory */

struct qm_torn_change {
    enum qm_io_op op; /* QM_IO_SYNC ends an interval */
    size_t file;      /* QM_IO_UNLINK: the name */
    size_t to;        /* QM_IO_LINK, RENAME: the name that leads to file */
    size_t gone;      /* QM_IO_RENAME: the name that it had */
    bool appears;     /* the file gets its name; op means nothing */
    uint64_t off;
    uint64_t len;
    unsigned char *bytes; /* QM_IO_WRITE */
};

struct qm_torn_content {
    unsigned char *at;
    size_t len;
    size_t room;
    uint64_t hash;
};

struct qm_torn_name {
    bool gone;
    size_t file; /* it leads to */
};

struct qm_torn_known {
    char *path;
    bool there;       /* while it is recorded: it has its name */
    size_t leads_now; /* likewise: that name leads to this file */
    bool changed;
    struct qm_torn_name start_name, durable_name, state_name;
    struct qm_torn_content start;
    struct qm_torn_content durable;
    struct qm_torn_content state; /* being built */
    bool state_is_durable;
};

struct qm_torn {
    struct qm_torn_known *files;
    size_t n_files;
    size_t n_syncs;
    QM_VEC(struct qm_torn_change) changes;
};

#endif
