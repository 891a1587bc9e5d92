/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * range.h - which layers of a running machine's disk are meant.
 *
 * Why.  The numbers in "vda[N]" are not depths: QEMU's nodes have them in the order in which they came
 * to be, with gaps (libvirt, docs/formatdomain.rst, "index").  So they are read from the definition, never
 * computed; and a mistake here would merge the wrong layers, so that all of it is one pure function.
 *
 * Threads    Any.  Ownership: all is borrowed.
 * Errors     USAGE, with what the chain has.
 */
#ifndef QM_RANGE_H
#define QM_RANGE_H

#include "domxml.h"
#include "live.h"

/* Positions in disk->layers, where 0 is the active layer: base > top. */
struct qm_range {
    size_t top;
    size_t base;
    bool empty; /* the disk has one layer: there is nothing to merge */
};

/* local: paths are this machine's, and names that lead to the same file mean the same layer. */
int qm_range_find(const struct qm_domxml_disk *disk, const struct qm_live_commit *request,
                  bool local, struct qm_range *out, struct qmeld_error *err) QM_CHECK;

/* Two sources are the same layer. */
bool qm_range_same(const struct qm_domxml_source *a, const struct qm_domxml_source *b, bool local);

/* The disk that was meant: by target, by the active layer's path, or, if local, by any name of its file.
 * NULL with USAGE if there is none. */
const struct qm_domxml_disk *qm_range_disk(const struct qm_domxml *domain, const char *name,
                                           bool local, struct qmeld_error *err);

#endif
