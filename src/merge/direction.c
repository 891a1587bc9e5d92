/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "direction.h"

#include "map.h"
#include "promote.h"

#include <stdlib.h>

/* What options stand against going up. */
static int
refuse_options(const struct qmeld_commit_options *o, const char *base, struct qmeld_error *err)
{
    if (o->overlays != QMELD_OVERLAYS_DELETE)
        return qm_fail(
            err, QMELD_USAGE, qm_in(base),
            "going up, one of the merged layers becomes the base, and the others would read "
            "through a base that is not theirs: use --overlays=delete, or merge down");
    if (o->reclaim)
        return qm_fail(err, QMELD_USAGE, qm_in(base),
                       "--reclaim empties layers as a merge down goes: leave out that or "
                       "--direction=up");
    if (o->atomic || o->undo)
        return qm_fail(
            err, QMELD_USAGE, qm_in(base),
            "going up, the base's old file is given up: leave out either --direction=up or "
            "--atomic and --undo");
    return 0;
}

/* visible[i]: bytes of data of layer base + i that top shows. */
static int
weigh(const struct qm_chain *chain, size_t base, size_t top, uint64_t *visible,
      struct qmeld_error *err)
{
    struct qm_map *map;
    int rc = qm_map_open(chain, base, top, qm_guest(0), UINT64_MAX, &map, err);

    while (rc == 0) {
        struct qm_map_span s;
        bool done;

        rc = qm_map_next(map, &s, &done, err);
        if (rc < 0 || done)
            break;
        if (s.ext.kind == QM_DATA || s.ext.kind == QM_COMPRESSED)
            visible[s.layer - base] += s.len;
    }
    qm_map_close(map);
    return rc;
}

/* The heaviest layer that may take the base's place; of two alike the lower one.  *out is base, and *because why, of the
 * heaviest one, if none may. */
static int
find_target(const struct qm_chain *chain, size_t base, size_t top, const uint64_t *visible,
            size_t *out, struct qmeld_error *because, struct qmeld_error *err)
{
    const uint64_t new_size = qm_max(chain->layers[base].img->size, chain->layers[top].img->size);
    size_t refused = base;

    *out = base;
    for (size_t i = base + 1; i <= top; i++) {
        struct qmeld_error why = *err;

        if (qm_promote_may(chain, base, top, i, new_size, &why) == 0) {
            if (*out == base || visible[i - base] > visible[*out - base])
                *out = i;
        } else if (why.code != QMELD_USAGE) {
            *err = why;
            return -1;
        } else if (refused == base || visible[i - base] > visible[refused - base]) {
            refused = i;
            *because = why;
        }
    }
    return 0;
}

int
qm_direction_find(const struct qm_chain *chain, size_t base, size_t top,
                  const struct qmeld_commit_options *opts, struct qm_direction *out,
                  struct qmeld_error *err)
{
    const bool up = opts->direction == QMELD_DIRECTION_UP;
    QM_FREE uint64_t *visible = NULL;
    struct qmeld_error because = *err;
    uint64_t all = 0;
    size_t target = base;

    *out = (struct qm_direction){.target = base};
    if (opts->direction == QMELD_DIRECTION_DOWN)
        return 0;
    if (refuse_options(opts, chain->layers[base].path, &because) < 0) {
        *err = up ? because : *err;
        return up ? -1 : 0;
    }
    visible = calloc(top - base + 1, sizeof *visible);
    if (!visible)
        return qm_fail_nomem(err, "the layers' weights");
    if (weigh(chain, base, top, visible, err) < 0 ||
        find_target(chain, base, top, visible, &target, &because, err) < 0)
        return -1;
    if (up && target == base) {
        *err = because;
        return -1;
    }
    for (size_t i = base; i <= top; i++)
        all += visible[i - base];
    out->bytes_down = all - visible[0];
    out->bytes_up = all - visible[target - base];
    if (up || out->bytes_up < out->bytes_down)
        out->target = target;
    return 0;
}
