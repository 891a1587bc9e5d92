/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "space.h"

#include "qcow2_refs.h"

#include <inttypes.h>

/* Bytes of the target's [from, to) that are stored in its file, as data or as a place for it. */
static int
stored(struct qm_image *img, uint64_t from, uint64_t to, uint64_t *out, struct qmeld_error *err)
{
    const uint64_t end = qm_min(to, img->size);

    *out = 0;
    while (from < end) {
        struct qm_extent ext;

        if (qm_image_next(img, qm_guest(from), end - from, &ext, err) < 0)
            return -1;
        if (ext.kind == QM_DATA || (img->cluster_size != 0 && ext.has_host))
            *out += ext.len; /* a compressed cluster is replaced by a whole one: nearly a gain */
        from += ext.len;
    }
    return 0;
}

int
qm_space_overlay(struct qm_space *s, const struct qm_image *overlay, struct qmeld_error *err)
{
    uint64_t allocated;

    if (overlay->file->blockdev || s->target->file->blockdev ||
        overlay->file->dev != s->target->file->dev)
        return 0;
    if (qm_file_allocated(overlay->file, &allocated, err) < 0)
        return -1;
    s->overlays += allocated;
    return 0;
}

int
qm_space_add(struct qm_space *s, const struct qm_want *want, struct qmeld_error *err)
{
    const uint64_t unit = s->target->cluster_size ? s->target->cluster_size : 1;
    uint64_t from = want->guest.g, to = want->guest.g + want->len, have;

    if (want->from) { /* every cluster it touches will be there */
        from = qm_max(s->next, qm_align_down(from, unit));
        to = qm_align_up(to, unit);
    } else { /* every cluster it covers may go */
        from = qm_align_up(from, unit);
        to = qm_align_down(to, unit);
    }
    if (from >= to)
        return 0;
    if (stored(s->target, from, to, &have, err) < 0)
        return -1;
    if (!want->from) {
        s->loss += have;
        return 0;
    }
    have = qm_min(qm_align_up(have, unit), to - from);
    s->gain += to - from - have;
    s->next = to;
    return 0;
}

/* What the target can take without asking the file system: free clusters inside its file. */
static int
room_inside(struct qm_qcow2 *q, uint64_t *out, struct qmeld_error *err)
{
    struct qm_refs *refs;
    uint64_t used;
    int rc;

    if (qm_refs_open(q, &refs, err) < 0)
        return -1;
    rc = qm_refs_used(refs, &used, err);
    qm_refs_close(refs);
    if (rc < 0)
        return -1;
    used <<= q->geo.cluster_bits;
    *out = q->img.file->size > used ? q->img.file->size - used : 0;
    return 0;
}

static uint64_t
need_of(const struct qm_space *s, bool reclaim)
{
    const uint64_t need = s->gain > s->loss ? s->gain - s->loss : 0;

    if (!reclaim)
        return need;
    return qm_max(qm_min(need, s->at_once), need - qm_min(need, s->overlays));
}

int
qm_space_check(const struct qm_space *s, struct qmeld_error *err)
{
    struct qm_qcow2 *q = qm_qcow2_of(s->target);
    struct qm_file *file = s->target->file;
    uint64_t room = 0, inside = 0;
    const uint64_t need = need_of(s, s->reclaim);
    const char *help = "";

    if (need == 0 || (file->blockdev && !q))
        return 0;
    if (q && room_inside(q, &inside, err) < 0)
        return -1;
    if (!file->blockdev && qm_file_room(file, &room, err) < 0)
        return -1;
    if (need <= inside || need - inside <= room)
        return 0;
    if (!s->reclaim && (need_of(s, true) <= inside || need_of(s, true) - inside <= room))
        help = ", or merge with --reclaim, which empties the overlays as it goes";
    return qm_fail(err, QMELD_NOSPACE, qm_in(file->path),
                   "the merge needs at least %" PRIu64 " bytes more here, and %" PRIu64
                   " are free: make room for %" PRIu64 " more%s",
                   need - inside, room, need - inside - room, help);
}
