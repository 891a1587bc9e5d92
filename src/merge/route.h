/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * route.h - how bytes of each source file get into the target: shared, copied by the file system, or by us.
 *
 * Why.  The choice is made once for each pair of files, and kept: by what is known of them (share.h), and by what
 * the file system answers when it is tried.  What is known beforehand also decides where batches end, so that
 * a dry run ends them at the same places.
 *
 * Calls      qm_routes_init; qm_route_to as files come up; qm_routes_release.
 * Threads    One thread looks up; `refused`, `no_offload` and the sums are any thread's.
 * Ownership  Files are borrowed.
 */
#ifndef QM_ROUTE_H
#define QM_ROUTE_H

#include "dict.h"
#include "direct.h"
#include "share.h"

/* Bytes that came into the target. */
struct qm_route_sums {
    uint64_t shared;
    uint64_t offloaded;  /* copied by the file system */
    uint64_t copied;     /* by us; compressed clusters as inflated */
    uint64_t past_cache; /* of those: past the page cache, as far as writing goes */
};

struct qm_route {
    /* set when it is made */
    struct qm_file *from;
    struct qm_share share;
    bool foreseen; /* sharing is counted on, in dry runs, too */
    /* one thread's */
    bool proven;       /* it was shared once */
    bool tried_direct; /* to open it */
    /* set before workers hear of it */
    struct qm_direct *direct; /* to read past the page cache; NULL: through it */
    /* any thread's */
    _Atomic bool refused;    /* not shared any more */
    _Atomic bool no_direct;  /* not read past the page cache any more */
    _Atomic bool no_offload; /* likewise */
    _Atomic uint64_t shared, offloaded, copied, past_cache;
};

struct qm_routes {
    struct qm_file *to; /* NULL: nothing is written */
    unsigned n_direct;  /* sources that are open to be read past the page cache */
    struct qm_dict by_file;
};

void qm_routes_init(struct qm_routes *r, struct qm_file *to);
void qm_routes_release(struct qm_routes *r);

/* NULL: out of memory. */
struct qm_route *qm_route_to(struct qm_routes *r, struct qm_file *from);

/* Can the route's file be read past the page cache?  Opens it once more when it is asked first: so many files, that
 * descriptors do not run out. */
bool qm_route_reads_direct(struct qm_routes *r, struct qm_route *route);

/* How much of [off, + len), which goes to `to`, can be shared; *out_head: what lies in front of that.  0 if it is
 * not worth it. */
uint64_t qm_route_shareable(const struct qm_route *route, uint64_t to, uint64_t off, uint64_t len,
                            uint64_t *out_head);

bool qm_route_shares(const struct qm_route *route); /* as far as is known by now */
bool qm_route_offloads(const struct qm_route *route);

/* What the files did until now. */
struct qm_route_sums qm_route_sums(const struct qm_routes *r, const struct qm_file *from);

#endif
