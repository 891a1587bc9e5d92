/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dependants.h - who else reads through the layers of a chain.
 *
 * Why.  An image knows what it stands on, and not who stands on it.  Whoever changes a layer that several images
 * stand on spoils all but one of them, and no check ever finds that.  So before a layer changes or goes, the
 * images around it are asked what they stand on.
 *
 * How.  All files in the folders that hold the chain's layers, and those that the caller names, cost one small
 * read each (image_peek.h).  Who has a backing name, or a data file, is followed down: to a layer of the chain,
 * or past images that were seen, or that the name alone leads to.  Files are told apart by device and inode,
 * never by name.
 *
 * Threads    One thread calls; workers are inside.
 * Ownership  The list owns what is in it.
 * Errors     0 or -1 with *err: USAGE (a folder that was named cannot be listed, or has too many files), NOMEM.
 *            Files that cannot be read are counted, and no error.
 */
#ifndef QM_DEPENDANTS_H
#define QM_DEPENDANTS_H

#include "chain.h"
#include "vec.h"

struct qm_dependants {
    QM_VEC(struct qmeld_dependant) list; /* sorted: by path */
    uint64_t files;                      /* that were looked at */
    uint64_t unread;                     /* of those, and of folders: so many could not be read */
    char *unread_path;                   /* one of them, and why; NULL: none */
    int unread_why;
};

struct qm_dependants_config {
    const struct qm_chain *chain;
    const bool *hurt; /* of each layer: who reads through it will read something else, or nothing */
    const char *const *scan; /* folders, looked through with all that is below them, and files */
    size_t n_scan;
    unsigned threads; /* 0: by the number of processors */
};

/* Release *out in every case.  All that is found is BROKEN; the chain's own layers are no dependants. */
int qm_dependants_find(const struct qm_dependants_config *config, struct qm_dependants *out,
                       struct qmeld_error *err) QM_CHECK;
void qm_dependants_release(struct qm_dependants *d);

/* Frees what is in one, or makes a copy of it (false: no memory, and *out holds nothing). */
void qm_dependant_release(struct qmeld_dependant *d);
bool qm_dependant_copy(const struct qmeld_dependant *from, struct qmeld_dependant *out);

#endif
