/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * scan.h - who else has to do with a file.
 *
 * Why.  QEMU's locks keep running machines apart, and nothing else: a stopped machine whose overlay
 * stands on a file that is merged, or written to, is silently spoilt.  So before a merge, and again
 * before a file is removed, everything that libvirt knows is searched: definitions as they run and as they
 * are kept, snapshots, managed saves, and, since kept definitions often name only the active layer, the
 * chains that the headers of those images tell.
 *
 * Threads    As session.h.  Cost: a few calls a domain; headers of stopped machines' images, for a bounded time.
 * Ownership  What the callback gets lives during the call.
 * Errors     -1 if the list of domains cannot be had.  A domain that does not answer is noted, and no error.
 */
#ifndef QM_SCAN_H
#define QM_SCAN_H

#include "domain.h"
#include "domxml.h"
#include "live.h"

enum qm_scan_where {
    QM_SCAN_LIVE,       /* the definition that runs */
    QM_SCAN_PERSISTENT, /* the one that is kept */
    QM_SCAN_SNAPSHOT,
    QM_SCAN_SAVED, /* a managed save */
    QM_SCAN_HEADER, /* no definition names it, but the header of an image that one names leads to it */
};

struct qm_scan_mention {
    size_t file; /* which of the files that were asked for */
    enum qm_scan_where where;
    const char *domain;
    const char *uuid;
    const char *target;   /* of the disk; "" if it is none */
    const char *snapshot; /* NULL: none */
    const char *head;     /* HEADER: the image whose chain leads there */
};

/* Not 0 ends the search. */
typedef int qm_scan_fn(const struct qm_scan_mention *mention, void *opaque);

struct qm_scan {
    struct qm_session *session;
    const struct qm_domxml_source *const *files;
    size_t n_files;
    qm_scan_fn *fn;
    void *opaque;
    struct qm_live_notes *notes; /* what could not be asked */
    bool incomplete;             /* set if something could not be asked */
};

int qm_scan_mentions(struct qm_scan *scan, struct qmeld_error *err) QM_CHECK;

/* "the definition", "its kept definition", "snapshot s1 of": for sentences. */
const char *qm_scan_where_name(enum qm_scan_where where);

/* For the module's table: which domains have the file in a disk's chain. */
int qm_scan_uses(const char *uri, const char *path, struct qm_live_uses *out,
                 struct qmeld_error *err) QM_CHECK;
void qm_scan_uses_free(struct qm_live_uses *uses);

/* Likewise: which files any definition names (uses.c). */
int qm_scan_images(const char *uri, unsigned seconds, struct qm_live_images *out,
                   struct qmeld_error *err) QM_CHECK;
void qm_scan_images_free(struct qm_live_images *images);

#endif
