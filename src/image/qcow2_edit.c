/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_edit.c - the decisions: what each guest cluster of the target becomes.
 *
 * The unit of a decision is the subcluster (the cluster itself without extended L2 entries).
 * For each unit the wants say: nothing, all zeros, or some bytes.  From that and from the old
 * entry follow the new entry, the moves, and what is free afterwards:
 *
 *   only zeros wanted    entries change, no byte moves where a zero flag can say it; version 2
 *                        has none: the entry is removed, or, over a backing file, zeros are written
 *   bytes wanted         into the old cluster if it is ours alone (refcount 1, not compressed),
 *                        else into a new one; units that become data are filled up with what
 *                        they read as before
 *
 * A compressed cluster that is wanted whole, and that the target may hold as it is, is not inflated
 * (qcow2_edit_pack.c).
 *
 * With an external data file a cluster's place is its guest offset, and nobody counts it: there is nothing to allocate
 * or to free.  If that file is to be the guest's disk byte for byte (raw), zeros are written there, too.
 *
 * What goes into a new cluster is only put down here; which one that is, is decided when the batch ends
 * (qcow2_edit_place.c).  Tables and their way to the disk are in qcow2_edit_tables.c.
 */
#include "qcow2_edit_int.h"

#include "qcow2_stage.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* One guest cluster under decision. */
struct slot {
    uint64_t idx;   /* guest cluster number */
    uint64_t guest; /* its first guest byte */
    uint64_t end;   /* of what the guest will see of it */
    struct qcow2_l2 old;
    bool table;      /* an L2 table stands for it already */
    bool owned;      /* the old host cluster is ours alone */
    uint32_t wanted; /* units with any want */
    uint32_t zeroed; /* units wanted as zeros, whole */
};

static bool
compressed(const struct slot *s)
{
    return s->old.kind == QCOW2_L2_COMPRESSED;
}

/* Unit u reads as bytes of this image (not zeros, not what is below). */
static bool
unit_is_data(const struct slot *s, uint32_t u)
{
    return compressed(s) || (s->old.has_host && (s->old.alloc >> u & 1));
}

static bool
unit_is_zero(const struct slot *s, uint32_t u)
{
    return !compressed(s) && (s->old.zero >> u & 1);
}

static uint64_t
unit_start(const struct qm_edit *e, const struct slot *s, uint32_t u)
{
    return s->guest + u * e->geo->subcluster_size;
}

/* End of the bytes of unit u that the guest can see. */
static uint64_t
unit_end(const struct qm_edit *e, const struct slot *s, uint32_t u)
{
    return qm_max(unit_start(e, s, u), qm_min(s->end, unit_start(e, s, u + 1)));
}

static uint32_t
visible_units(const struct qm_edit *e, const struct slot *s)
{
    uint32_t units = 0;

    for (uint32_t u = 0; u < e->geo->subclusters; u++)
        units |= unit_start(e, s, u) < s->end ? 1u << u : 0;
    return units;
}

/* What unit u reads as, if nothing is done, is zeros: it is flagged so, or absent with
 * nothing below. */
static bool
unit_reads_zero(const struct qm_edit *e, const struct slot *s, uint32_t u)
{
    if (unit_is_data(s, u))
        return false;
    return unit_is_zero(s, u) || unit_start(e, s, u) >= e->below_size;
}

/* ---- the wants of the cluster ---- */

/* Bytes of [from, to) that are wanted at all, and that are wanted as zeros. */
static void
coverage(const struct qm_edit *e, uint64_t from, uint64_t to, uint64_t *out_any, uint64_t *out_zero)
{
    *out_any = *out_zero = 0;
    QM_VEC_EACH (w, &e->pending) {
        const uint64_t a = qm_max(from, w->guest.g), b = qm_min(to, w->guest.g + w->len);

        if (a >= b)
            continue;
        *out_any += b - a;
        *out_zero += w->from ? 0 : b - a;
    }
}

static void
classify(const struct qm_edit *e, struct slot *s)
{
    for (uint32_t u = 0; u < e->geo->subclusters; u++) {
        const uint64_t from = unit_start(e, s, u), to = unit_end(e, s, u);
        uint64_t any, zero;

        if (from >= to)
            continue;
        coverage(e, from, to, &any, &zero);
        if (any == 0)
            continue;
        s->wanted |= 1u << u;
        /* zeros over a part of what reads as zeros anyway: the whole unit may say zero */
        if (zero == to - from || (any == zero && unit_reads_zero(e, s, u)))
            s->zeroed |= 1u << u;
    }
}

/* ---- moves ---- */

/* True if b continues a: one move can do both. */
static bool
continues(const struct qm_move *a, const struct qm_move *b)
{
    if (a->kind != b->kind || a->to.h + a->len != b->to.h || a->guest.g + a->len != b->guest.g)
        return false;
    if (a->kind != QM_MOVE_COPY)
        return true;
    return a->from == b->from && a->ext.kind == QM_DATA && b->ext.kind == QM_DATA &&
           a->ext.host.h + a->ext.len == b->ext.host.h;
}

int
qm_edit_add_move(struct qm_moves *moves, const struct qm_move *m, struct qmeld_error *err)
{
    struct qm_move *last = moves->list.n > 0 ? qm_vec_last(&moves->list) : NULL;

    if (m->len == 0)
        return 0;
    if (last && continues(last, m)) {
        last->len += m->len;
        last->ext.len += m->len;
        last->worth += m->worth;
        return 0;
    }
    return qm_vec_push(&moves->list, m) ? 0 : qm_fail_nomem(err, "the list of moves");
}

/* What [from, to) read as before goes to its place in the host cluster. */
static int
keep_old(const struct qm_edit *e, const struct slot *s, uint32_t u, host_off host, uint64_t from,
         uint64_t to, struct qm_moves *moves, struct qmeld_error *err)
{
    const uint64_t cut = qm_min(to, e->q->img.size); /* behind the old size all is stale */
    struct qm_move m = {.guest = qm_guest(from), .to = qm_host(host.h + (from - s->guest))};

    if (from < cut) {
        m.kind = unit_reads_zero(e, s, u) ? QM_MOVE_ZERO : QM_MOVE_OLD;
        m.len = cut - from;
        if (qm_edit_add_move(moves, &m, err) < 0)
            return -1;
        from = cut;
    }
    if (from >= to)
        return 0;
    m = (struct qm_move){.kind = QM_MOVE_ZERO,
                         .guest = qm_guest(from),
                         .len = to - from,
                         .to = qm_host(host.h + (from - s->guest))};
    return qm_edit_add_move(moves, &m, err);
}

/* The wanted bytes of unit u; with `fill` also what lies between them. */
static int
move_unit(const struct qm_edit *e, const struct slot *s, uint32_t u, host_off host, bool fill,
          struct qm_moves *moves, struct qmeld_error *err)
{
    const uint64_t end = s->guest + (u + 1) * e->geo->subcluster_size;
    uint64_t at = unit_start(e, s, u);

    QM_VEC_EACH (w, &e->pending) {
        const uint64_t a = qm_max(at, w->guest.g), b = qm_min(end, w->guest.g + w->len);
        struct qm_move m;

        if (a >= b)
            continue;
        if (fill && keep_old(e, s, u, host, at, a, moves, err) < 0)
            return -1;
        m = (struct qm_move){.kind = w->from ? QM_MOVE_COPY : QM_MOVE_ZERO,
                             .guest = qm_guest(a),
                             .len = b - a,
                             .to = qm_host(host.h + (a - s->guest)),
                             .from = w->from,
                             .worth = w->from ? b - a : 0};
        if (w->from)
            m.ext = qm_extent_part(&w->ext, a - w->guest.g, b - a);
        if (qm_edit_add_move(moves, &m, err) < 0)
            return -1;
        at = b;
    }
    return fill ? keep_old(e, s, u, host, at, end, moves, err) : 0;
}

/* ---- the decision ---- */

/* The old entry's clusters are not needed once the new entry is on disk. */
static int
free_old(struct qm_edit *e, const struct slot *s, struct qmeld_error *err)
{
    struct qm_edit_free f = {.off = s->old.host, .len = e->geo->cluster_size};

    if (compressed(s))
        f.len = s->old.payload_len;
    else if (!s->old.has_host || e->geo->data_file)
        return 0;
    if (e->holder && qm_edit_may_leave(e, s->idx, s->old.host, err) < 0)
        return -1;
    return qm_vec_push(&e->frees, &f) ? 0 : qm_fail_nomem(err, "clusters to free");
}

static int
set_entry(struct qm_edit *e, const struct slot *s, const struct qcow2_l2 *new,
          struct qmeld_error *err)
{
    struct qm_edit_entry x = {.idx = s->idx};

    qcow2_l2_encode(e->geo, new, &x.word0, &x.word1);
    return qm_edit_set(e, &x, err);
}

/* The entry, all but its place, and the moves from `first` on wait for the end of the batch. */
static int
put_down(struct qm_edit *e, const struct slot *s, const struct qcow2_l2 *new, size_t first,
         struct qmeld_error *err)
{
    struct qm_edit_slot x = {.entry = e->entries.n,
                             .first = first,
                             .n = (uint32_t)(e->moves.list.n - first),
                             .layer = QM_EDIT_NO_LAYER,
                             .source = s->guest};

    QM_VEC_EACH (w, &e->pending) {
        if (!w->from)
            continue;
        x.layer = w->layer;
        x.source = w->ext.host.h;
        break;
    }
    /* moves are held twice while they are handed on */
    e->weight += sizeof x + 2 * x.n * sizeof *e->moves.list.at;
    if (!qm_vec_push(&e->slots, &x))
        return qm_fail_nomem(err, "new clusters");
    return free_old(e, s, err) < 0 ? -1 : set_entry(e, s, new, err);
}

/* Some unit gets bytes: they go to a cluster that is ours alone. */
static int
decide_data(struct qm_edit *e, const struct slot *s, uint32_t data_units, struct qm_moves *moves,
            struct qmeld_error *err)
{
    const bool in_place = s->owned && !compressed(s), fixed = e->geo->data_file;
    const size_t first = e->moves.list.n;
    struct qcow2_l2 new = {.kind = QCOW2_L2_STANDARD, .copied = true, .has_host = true};

    if (!compressed(s)) {
        new.alloc = s->old.alloc;
        new.zero = s->old.zero;
    }
    if (in_place || fixed)
        new.host = fixed ? qm_host(s->guest) : s->old.host;
    else
        moves = &e->moves;
    for (uint32_t u = 0; u < e->geo->subclusters; u++) {
        const uint32_t bit = 1u << u;
        const bool was_data = unit_is_data(s, u);

        if (s->zeroed & bit & ~data_units) {
            new.zero |= bit;
            new.alloc &= ~bit;
        } else if (data_units & bit) {
            if (move_unit(e, s, u, new.host, !(in_place && was_data), moves, err) < 0)
                return -1;
            new.alloc |= bit;
            new.zero &= ~bit;
        } else if (was_data && !in_place) {
            if (keep_old(e, s, u, new.host, unit_start(e, s, u), unit_start(e, s, u + 1), moves,
                         err) < 0)
                return -1;
            new.alloc |= bit;
        }
    }
    if (!in_place && !fixed)
        return put_down(e, s, &new, first, err);
    if (in_place && new.alloc == s->old.alloc &&new.zero == s->old.zero)
        return 0;
    return set_entry(e, s, &new, err);
}

/* Zeros only, and an image that can say so in the entry. */
static int
decide_zero_flag(struct qm_edit *e, const struct slot *s, struct qmeld_error *err)
{
    struct qcow2_l2 new = s->old;
    uint32_t units = s->zeroed;

    if (compressed(s))
        new = (struct qcow2_l2){.kind = QCOW2_L2_STANDARD};
    for (uint32_t u = 0; u < e->geo->subclusters; u++) {
        const bool absent = !unit_is_data(s, u) && !unit_is_zero(s, u);

        /* Absent over nothing reads as zeros already.  The flag costs nothing where there is a
         * table, and keeps the zeros if the image ever gets a backing file. */
        if (absent && unit_start(e, s, u) >= e->below_size && !s->table)
            units &= ~(1u << u);
    }
    new.zero |= units;
    new.alloc &= ~units;
    if (!compressed(s) && new.zero == s->old.zero &&new.alloc == s->old.alloc)
        return 0;
    if (!compressed(s) && new.has_host && (new.alloc != 0 || s->old.alloc == 0))
        return set_entry(e, s, &new, err); /* the cluster stays for its other units */
    new.has_host = new.copied = false;
    new.host = qm_host(0);
    if (free_old(e, s, err) < 0)
        return -1;
    return set_entry(e, s, &new, err);
}

/* Zeros only, in version 2, which has no flag: *out_data if zeros must be written. */
static int
decide_zero_v2(struct qm_edit *e, const struct slot *s, bool *out_data, struct qmeld_error *err)
{
    const struct qcow2_l2 none = {.kind = QCOW2_L2_STANDARD};

    *out_data = false;
    if (unit_reads_zero(e, s, 0))
        return 0;
    if (s->guest < e->below_size) {
        *out_data = true;
        return 0;
    }
    if (free_old(e, s, err) < 0)
        return -1;
    return set_entry(e, s, &none, err);
}

static int
look_up(struct qm_edit *e, struct slot *s, struct qmeld_error *err)
{
    uint64_t word0, word1, count;
    enum qcow2_l2_verdict verdict;

    s->guest = s->idx << e->geo->cluster_bits;
    s->end = qm_min(e->new_size, s->guest + e->geo->cluster_size);
    if (qm_edit_get(e, s->idx, &word0, &word1, &s->table, err) < 0)
        return -1;
    verdict = qcow2_l2_decode(e->geo, word0, word1, &s->old);
    if (verdict == QCOW2_L2_OK)
        verdict = qcow2_l2_check_place(e->geo, &s->old, s->idx);
    if (verdict != QCOW2_L2_OK)
        return qm_fail(err, QMELD_CORRUPT, qm_in(e->q->img.file->path),
                       "guest offset %#" PRIx64 ": %s: run `qmeld check --repair=all` on it",
                       s->guest, qcow2_l2_verdict_text(verdict));
    if (compressed(s) || !s->old.has_host)
        return 0;
    s->owned = e->geo->data_file;
    if (s->owned)
        return 0;
    if (qm_refs_get(e->refs, s->old.host.h >> e->geo->cluster_bits, &count, err) < 0)
        return -1;
    s->owned = count == 1 && qm_stage_may_write(e->q, s->old.host.h);
    return 0;
}

static bool
is_raw_data(const struct qm_edit *e)
{
    return e->geo->data_file && e->q->hdr.autoclear & QCOW2_AUTOCLEAR_RAW_DATA;
}

/* [from, to) of a raw data file; behind its end zeros are nothing. */
static int
zero_raw_data(uint64_t from, uint64_t to, struct qm_moves *moves, struct qmeld_error *err)
{
    const struct qm_move m = {
        .kind = QM_MOVE_ZERO, .guest = qm_guest(from), .len = to - from, .to = qm_host(from)};

    return qm_edit_add_move(moves, &m, err);
}

/* The units that are wanted as zeros, and become a flag. */
static int
zero_raw_units(const struct qm_edit *e, const struct slot *s, struct qm_moves *moves,
               struct qmeld_error *err)
{
    for (uint32_t u = 0; is_raw_data(e) && u < e->geo->subclusters; u++)
        if ((s->zeroed >> u & 1) &&
            zero_raw_data(unit_start(e, s, u), unit_end(e, s, u), moves, err) < 0)
            return -1;
    return 0;
}

static int
decide(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err)
{
    struct slot s = {.idx = e->pending_idx};
    bool data;

    if (look_up(e, &s, err) < 0)
        return -1;
    /* one want at most, as parts were joined; decided by nobody else, so that what is counted before holds */
    if (!e->decompress && e->pending.n == 1 && qm_edit_passes(e->q, &e->pending.at[0]))
        return free_old(e, &s, err) < 0 ? -1 : qm_edit_pass_on(e, s.idx, &e->pending.at[0], err);
    classify(e, &s);
    if (zero_raw_units(e, &s, moves, err) < 0)
        return -1;
    /* A compressed cluster that is to be zero only in part must be inflated for the rest. */
    if ((s.wanted & ~s.zeroed) || (compressed(&s) && s.zeroed != visible_units(e, &s)))
        return decide_data(e, &s, s.wanted & ~s.zeroed, moves, err);
    if (e->geo->version >= 3)
        return decide_zero_flag(e, &s, err);
    if (decide_zero_v2(e, &s, &data, err) < 0)
        return -1;
    return data ? decide_data(e, &s, s.wanted, moves, err) : 0;
}

static int
decide_pending(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err)
{
    int rc = 0;

    if (e->pending.n > 0)
        rc = decide(e, moves, err);
    qm_vec_clear(&e->pending);
    return rc;
}

int
qm_edit_want_end(struct qm_edit *e, struct qm_moves *moves, struct qmeld_error *err)
{
    return decide_pending(e, moves, err) < 0 ? -1 : qm_edit_place(e, moves, err);
}

int
qm_edit_is_bare(struct qm_edit *e, struct qm_moves *moves, bool *out, struct qmeld_error *err)
{
    if (decide_pending(e, moves, err) < 0)
        return -1;
    *out = e->entries.n == 0;
    return 0;
}

/* Parts of one compressed cluster become one want again. */
static bool
collect(struct qm_edit *e, const struct qm_want *part)
{
    struct qm_want *last = e->pending.n > 0 ? qm_vec_last(&e->pending) : NULL;

    if (last && last->from && last->from == part->from && last->ext.kind == QM_COMPRESSED &&
        part->ext.kind == QM_COMPRESSED && last->ext.host.h == part->ext.host.h &&
        last->ext.payload_len == part->ext.payload_len &&
        last->ext.skip + last->len == part->ext.skip &&
        last->guest.g + last->len == part->guest.g) {
        last->len += part->len;
        last->ext.len += part->len;
        return true;
    }
    return qm_vec_push(&e->pending, part);
}

int
qm_edit_want(struct qm_edit *e, const struct qm_want *want, struct qm_moves *moves,
             struct qmeld_error *err)
{
    uint64_t done = 0;

    assert(qm_inside(want->guest.g, want->len, e->new_size));
    while (done < want->len) {
        const uint64_t at = want->guest.g + done, idx = at >> e->geo->cluster_bits;
        const uint64_t n = qm_min(want->len - done, ((idx + 1) << e->geo->cluster_bits) - at);
        struct qm_want part = *want;
        const uint64_t end = qm_div_up(want->guest.g + want->len, e->geo->cluster_size);
        const uint64_t bare = want->from ? 0 : qm_edit_zero_run(e, idx, end);

        if (bare > 0) { /* zeros over a run that reads as zeros and has no tables */
            done = qm_min(want->len, (bare << e->geo->cluster_bits) - want->guest.g);
            if (is_raw_data(e) && zero_raw_data(at, want->guest.g + done, moves, err) < 0)
                return -1;
            continue;
        }
        part.guest = qm_guest(at);
        part.len = n;
        if (want->from)
            part.ext = qm_extent_part(&want->ext, done, n);
        if (e->pending.n > 0 && idx != e->pending_idx && decide_pending(e, moves, err) < 0)
            return -1;
        e->pending_idx = idx;
        if (!collect(e, &part))
            return qm_fail_nomem(err, "wanted ranges");
        done += n;
    }
    return 0;
}
