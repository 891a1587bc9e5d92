/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * tables.h - a qcow2 image in memory, made entry by entry.
 *
 * Why.  How the tables are walked is best asked of tables that no writer would make.  The forge writes whole images; here
 * a test puts single words.  The L1 table is in cluster 1; L2 tables and data are where the test puts them, from
 * cluster 2 on; there are no refcounts.
 *
 * Calls      make, put and set, open, look, end.  What fails fails the test, but for the two that return an int.
 * Ownership  A struct qm_tables is the test's own; end closes what it holds.
 * Units      Bytes.
 */
#ifndef QM_TABLES_H
#define QM_TABLES_H

#include "qcow2.h"

struct qm_tables {
    int fd;
    char path[64];
    uint64_t cs;
    struct qcow2_geo geo;
    uint64_t l1_off;
    struct qm_qcow2 *q;
    struct qmeld_error err;
};

void qm_tables_make(struct qm_tables *f, uint32_t version, uint32_t cluster_bits, bool extended,
                    uint64_t size);
void qm_tables_end(struct qm_tables *f);

void qm_tables_put(struct qm_tables *f, uint64_t off, const void *bytes, size_t len);
void qm_tables_put64(struct qm_tables *f, uint64_t off, uint64_t value);
void qm_tables_set_l1(struct qm_tables *f, uint64_t idx, uint64_t entry);
/* word0 of entry idx of the L2 table at table */
void qm_tables_set_l2(struct qm_tables *f, uint64_t table, uint64_t idx, uint64_t word0);

/* 0, or -1 and f->err.  flags: qcow2_disk.h's. */
int qm_tables_open_flags(struct qm_tables *f, unsigned flags);
void qm_tables_open(struct qm_tables *f); /* strict */

/* The extent that begins at guest offset `from`; 0, or -1 and f->err. */
int qm_tables_try_next(struct qm_tables *f, uint64_t from, struct qm_extent *e);
struct qm_extent qm_tables_next(struct qm_tables *f, uint64_t from);

#endif
