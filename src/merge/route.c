/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "route.h"

#include <stdlib.h>

/* A shared range costs entries in the file system's trees and its log; so few blocks are copied sooner. */
#define LEAST_BLOCKS 4u

/* A chain may have a thousand layers, and each is open already. */
#define MAX_DIRECT 128u

void
qm_routes_init(struct qm_routes *r, struct qm_file *to)
{
    *r = (struct qm_routes){.to = to};
}

void
qm_routes_release(struct qm_routes *r)
{
    QM_DICT_EACH (e, &r->by_file) {
        qm_direct_close(((struct qm_route *)e->value)->direct);
        free(e->value);
    }
    qm_dict_release(&r->by_file);
}

struct qm_route *
qm_route_to(struct qm_routes *r, struct qm_file *from)
{
    struct qm_route *route = qm_dict_get(&r->by_file, (uintptr_t)from);

    if (route)
        return route;
    route = calloc(1, sizeof *route);
    if (!route || !qm_dict_put(&r->by_file, (uintptr_t)from, route)) {
        free(route);
        return NULL;
    }
    route->from = from;
    if (!r->to)
        return route;
    qm_share_look(r->to, from, &route->share);
    route->foreseen = route->share.clone == QM_SHARE_YES;
    if (!r->to->shadow)
        qm_share_ask(&route->share, r->to, from);
    return route;
}

bool
qm_route_reads_direct(struct qm_routes *r, struct qm_route *route)
{
    /* the target reads of itself through the cache, as it is written so in part */
    if (!route->tried_direct && route->from != r->to && r->n_direct < MAX_DIRECT) {
        route->tried_direct = true;
        route->direct = qm_direct_open(route->from);
        r->n_direct += route->direct != NULL;
    }
    return route->direct && !route->no_direct;
}

uint64_t
qm_route_shareable(const struct qm_route *route, uint64_t to, uint64_t off, uint64_t len,
                   uint64_t *out_head)
{
    const uint64_t block = route->share.block;
    const uint64_t start = qm_align_up(to, block), end = qm_align_down(to + len, block);

    if (to % block != off % block || end < start || end - start < LEAST_BLOCKS * block)
        return 0;
    *out_head = start - to;
    return end - start;
}

bool
qm_route_shares(const struct qm_route *route)
{
    return route->share.clone == QM_SHARE_YES && !route->refused;
}

bool
qm_route_offloads(const struct qm_route *route)
{
    return route->share.offload && !route->no_offload;
}

struct qm_route_sums
qm_route_sums(const struct qm_routes *r, const struct qm_file *from)
{
    const struct qm_route *route = qm_dict_get(&r->by_file, (uintptr_t)from);

    if (!route)
        return (struct qm_route_sums){.shared = 0};
    return (struct qm_route_sums){.shared = route->shared,
                                  .offloaded = route->offloaded,
                                  .copied = route->copied,
                                  .past_cache = route->past_cache};
}
