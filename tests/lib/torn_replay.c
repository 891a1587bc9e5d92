/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * torn_replay.c - what a power cut could make of changes that were recorded.
 *
 * A change has one piece for each sector it touches (a truncation, a removed name: one).  A state
 * is a choice of pieces; chosen pieces are applied in the order in which they were made.  That is
 * a little stricter than a disk with whole sectors: of two small writes into one sector the later
 * one may be there without the earlier one.
 */
#include "torn_int.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define SECTOR     ((uint64_t)512)
#define FEW        6  /* pieces in an interval, up to which all subsets are tried */
#define AT_RANDOM  24 /* subsets beyond, of changes and of pieces each */
#define EACH_LIMIT 64 /* "each one" goes up to so many changes, evenly spread */

/* ---- contents ---------------------------------------------------------------------------------
 */

static void
resize(struct qm_torn_content *c, size_t len)
{
    if (len > c->room || !c->at) {
        c->room = len + len / 8 + 1;
        c->at = realloc(c->at, c->room);
        assert_non_null(c->at);
    }
    if (len > c->len)
        memset(c->at + c->len, 0, len - c->len);
    c->len = len;
}

static void
copy_content(struct qm_torn_content *to, const struct qm_torn_content *from)
{
    resize(to, from->len);
    if (from->len)
        memcpy(to->at, from->at, from->len);
    to->hash = from->hash;
}

static uint64_t
mix(uint64_t h, uint64_t v)
{
    h = (h ^ v) * 0x9e3779b97f4a7c15ull;
    return h ^ h >> 29;
}

static void
hash_content(struct qm_torn_content *c)
{
    const size_t len = c->len;
    uint64_t h = mix(0, len), word;
    size_t i;

    for (i = 0; i + sizeof word <= len; i += sizeof word) {
        memcpy(&word, c->at + i, sizeof word);
        h = mix(h, word);
    }
    for (; i < len; i++)
        h = mix(h, c->at[i]);
    c->hash = h;
}

static bool
concerns_names(const struct qm_torn_change *c)
{
    return c->appears || c->op == QM_IO_UNLINK || c->op == QM_IO_RENAME || c->op == QM_IO_LINK;
}

static size_t
n_pieces(const struct qm_torn_change *c)
{
    if (concerns_names(c) || c->op == QM_IO_TRUNCATE)
        return 1;
    return c->len ? (size_t)((c->off + c->len - 1) / SECTOR - c->off / SECTOR + 1) : 0;
}

static void
apply(struct qm_torn_content *f, const struct qm_torn_change *c, size_t piece)
{
    const uint64_t sector = (c->off / SECTOR + piece) * SECTOR;
    const uint64_t from = qm_max(c->off, sector), to = qm_min(c->off + c->len, sector + SECTOR);
    const uint64_t inside = from < f->len ? qm_min(to, f->len) - from : 0;

    switch (c->op) {
    case QM_IO_WRITE:
        if (to > f->len)
            resize(f, to);
        memcpy(f->at + from, c->bytes + (from - c->off), to - from);
        break;
    case QM_IO_ZERO:
        memset(f->at + from, 0, inside);
        break;
    case QM_IO_DISCARD: /* "not defined": what hurts most */
        memset(f->at + from, 0xdd, inside);
        break;
    case QM_IO_TRUNCATE:
        resize(f, c->off);
        break;
    case QM_IO_UNLINK: /* names: apply_to_names */
    case QM_IO_RENAME:
    case QM_IO_LINK:
    case QM_IO_SYNC:
    case QM_IO_ATTRS:
        break;
    }
}

/* ---- replay -----------------------------------------------------------------------------------
 */

struct pending {
    const struct qm_torn_change *change;
    size_t first; /* of its pieces in keep[] */
    size_t n;
};

struct replay {
    struct qm_torn *t;
    qm_torn_files_fn *fn; /* NULL: only count */
    void *opaque;
    uint64_t random;
    size_t n_random;
    size_t one_in;
    bool strict;
    size_t interval;
    size_t n_candidates;
    size_t n_states;
    QM_VEC(struct pending) pending;
    bool *keep;
    size_t n_keep;
    uint64_t *seen; /* hashes of states, open addressing, 0: free */
    size_t n_seen, room_seen;
};

static uint64_t
roll(struct replay *r)
{
    uint64_t z = (r->random += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

/* False if it was there already. */
static bool
remember(struct replay *r, uint64_t hash)
{
    size_t i;

    if (2 * r->n_seen >= r->room_seen) {
        const uint64_t *old = r->seen;
        const size_t n_old = r->room_seen;

        r->room_seen = n_old ? 2 * n_old : 1024;
        r->seen = calloc(r->room_seen, sizeof *r->seen);
        assert_non_null(r->seen);
        r->n_seen = 0;
        for (size_t k = 0; k < n_old; k++)
            if (old[k])
                remember(r, old[k]);
        free((void *)old);
    }
    hash += hash == 0;
    for (i = hash % r->room_seen; r->seen[i]; i = (i + 1) % r->room_seen)
        if (r->seen[i] == hash)
            return false;
    r->seen[i] = hash;
    r->n_seen++;
    return true;
}

static struct qm_torn_content *
state_of(struct qm_torn_known *f)
{
    if (f->state_is_durable)
        copy_content(&f->state, &f->durable);
    f->state_is_durable = false;
    return &f->state;
}

/* Of what is durable, or of the state that is being built. */
static struct qm_torn_content *
content_of(struct qm_torn *t, size_t file, bool durable)
{
    return durable ? &t->files[file].durable : state_of(&t->files[file]);
}

static struct qm_torn_name *
name_at(struct qm_torn *t, size_t i, bool durable)
{
    return durable ? &t->files[i].durable_name : &t->files[i].state_name;
}

static void
take_name(struct qm_torn *t, size_t i, bool durable)
{
    struct qm_torn_name *n = name_at(t, i, durable);
    bool last = true;

    n->gone = true;
    for (size_t k = 0; k < t->n_files; k++)
        last = last && (name_at(t, k, durable)->gone || name_at(t, k, durable)->file != n->file);
    if (last) /* a file that gets this name again is another one */
        resize(content_of(t, n->file, durable), 0);
    n->file = i;
}

static void
apply_to_names(struct qm_torn *t, const struct qm_torn_change *c, bool durable)
{
    if (c->appears) {
        name_at(t, c->file, durable)->gone = false;
        return;
    }
    if (c->op == QM_IO_UNLINK) {
        take_name(t, c->file, durable);
        return;
    }
    *name_at(t, c->to, durable) = (struct qm_torn_name){.file = c->file};
    if (c->op == QM_IO_RENAME)
        take_name(t, c->gone, durable);
}

/* Applies the pieces in keep[] to what is durable. */
static uint64_t
build(struct replay *r)
{
    struct qm_torn *t = r->t;
    uint64_t hash = 1;

    for (size_t i = 0; i < t->n_files; i++)
        t->files[i].state_name = t->files[i].durable_name;
    QM_VEC_EACH (p, &r->pending) {
        struct qm_torn_known *f = &t->files[p->change->file];

        for (size_t k = 0; k < p->n; k++) {
            if (!r->keep[p->first + k])
                continue;
            if (concerns_names(p->change))
                apply_to_names(t, p->change, false);
            else
                apply(state_of(f), p->change, k);
        }
    }
    for (size_t i = 0; i < t->n_files; i++)
        if (!t->files[i].state_is_durable)
            hash_content(&t->files[i].state);
    for (size_t i = 0; i < t->n_files; i++) { /* what a file without a name holds, nobody sees */
        const struct qm_torn_name *n = &t->files[i].state_name;
        const struct qm_torn_known *f = &t->files[n->file];

        hash = mix(hash, n->gone ? SIZE_MAX : n->file);
        if (!n->gone)
            hash = mix(hash, f->state_is_durable ? f->durable.hash : f->state.hash);
    }
    return hash;
}

static void
show(struct replay *r, const char *choice)
{
    struct qm_torn *t = r->t;
    struct qm_torn_file *files = calloc(t->n_files, sizeof *files);
    const struct qm_torn_state state = {.files = files,
                                        .n_files = t->n_files,
                                        .interval = r->interval,
                                        .number = r->n_states,
                                        .choice = choice};

    assert_non_null(files);
    for (size_t i = 0; i < t->n_files; i++) {
        const struct qm_torn_name *n = &t->files[i].state_name;
        const struct qm_torn_known *f = &t->files[n->file];
        const struct qm_torn_content *c = f->state_is_durable ? &f->durable : &f->state;

        files[i] = (struct qm_torn_file){.path = t->files[i].path,
                                         .at = c->at,
                                         .len = c->len,
                                         .gone = n->gone,
                                         .file = n->file,
                                         .changed = f->changed};
    }
    r->fn(&state, r->opaque);
    r->n_states++;
    free(files);
}

/* One candidate: the pieces in keep[]. */
static void
candidate(struct replay *r, bool always, const char *choice, size_t which)
{
    char words[64];

    r->n_candidates++;
    if (!r->fn || ((!always || r->strict) && r->one_in > 1 && roll(r) % r->one_in != 0))
        return;
    for (size_t i = 0; i < r->t->n_files; i++)
        r->t->files[i].state_is_durable = true;
    if (!remember(r, build(r)))
        return;
    snprintf(words, sizeof words, "%s %zu of %zu", choice, which, r->pending.n);
    show(r, words);
}

static void
keep_all(struct replay *r, bool value)
{
    memset(r->keep, value, r->n_keep);
}

static void
keep_change(struct replay *r, const struct pending *p, bool value)
{
    memset(r->keep + p->first, value, p->n);
}

static void
every_subset(struct replay *r)
{
    for (size_t bits = 0; bits < (size_t)1 << r->n_keep; bits++) {
        for (size_t i = 0; i < r->n_keep; i++)
            r->keep[i] = bits >> i & 1;
        candidate(r, bits == 0 || bits + 1 == (size_t)1 << r->n_keep, "subset", bits);
    }
}

/* One change goes the other way than all others, whole or in part. */
static void
each_change(struct replay *r, bool others)
{
    const size_t step = r->pending.n / EACH_LIMIT + 1;

    keep_all(r, others);
    candidate(r, true, others ? "all" : "none", 0);
    for (size_t i = 0; i < r->pending.n; i += step) {
        const struct pending *p = &r->pending.at[i];

        keep_change(r, p, !others);
        candidate(r, false, others ? "missing" : "alone", i);
        for (int how = 0; p->n > 1 && how < 3; how++) {
            for (size_t k = 0; k < p->n; k++)
                r->keep[p->first + k] = how == 2 ? k & 1 : (k < (p->n + 1) / 2) == (how == 0);
            candidate(r, false, others ? "torn" : "torn alone", i);
        }
        keep_change(r, p, others);
    }
}

static void
at_random(struct replay *r)
{
    for (size_t i = 0; i < r->n_random; i++) {
        const uint64_t likely = 1 + roll(r) % 7; /* eighths */

        QM_VEC_EACH (p, &r->pending)
            keep_change(r, p, roll(r) % 8 < likely);
        candidate(r, false, "random changes", i);
        for (size_t k = 0; k < r->n_keep; k++)
            r->keep[k] = roll(r) % 8 < likely;
        candidate(r, false, "random sectors", i);
    }
}

static void
try_interval(struct replay *r)
{
    r->n_keep = 0;
    QM_VEC_EACH (p, &r->pending) {
        p->first = r->n_keep;
        r->n_keep += p->n;
    }
    r->keep = calloc(r->n_keep + 1, sizeof *r->keep);
    assert_non_null(r->keep);
    if (r->n_keep <= FEW) {
        every_subset(r);
    } else {
        each_change(r, false);
        each_change(r, true);
        at_random(r);
    }
    free(r->keep);
}

/* What waited for this sync is durable now. */
static void
settle(struct replay *r, const struct qm_torn_change *sync)
{
    size_t left = 0;

    QM_VEC_EACH (p, &r->pending) {
        struct qm_torn_known *f = &r->t->files[p->change->file];
        const bool name = concerns_names(p->change);

        if (sync->file == ALL_FILES ? !name : name || sync->file != p->change->file) {
            r->pending.at[left++] = *p;
            continue;
        }
        if (name)
            apply_to_names(r->t, p->change, true);
        for (size_t k = 0; k < p->n && !name; k++)
            apply(&f->durable, p->change, k);
    }
    if (left != r->pending.n)
        for (size_t i = 0; i < r->t->n_files; i++)
            hash_content(&r->t->files[i].durable);
    r->pending.n = left;
    r->interval++;
}

static void
walk(struct replay *r)
{
    for (size_t i = 0; i < r->t->n_files; i++) {
        struct qm_torn_known *f = &r->t->files[i];

        f->durable_name = f->start_name;
        copy_content(&f->durable, &f->start);
        hash_content(&f->durable);
    }
    r->interval = 0;
    qm_vec_clear(&r->pending);
    QM_VEC_EACH (c, &r->t->changes) {
        const struct pending p = {.change = c, .n = n_pieces(c)};

        if (c->op == QM_IO_SYNC) {
            try_interval(r);
            settle(r, c);
        } else if (p.n > 0) {
            assert_true(qm_vec_push(&r->pending, &p));
        }
    }
    try_interval(r);
}

size_t
qm_torn_replay_files(struct qm_torn *t, const struct qm_torn_how *how, qm_torn_files_fn *fn,
                     void *opaque)
{
    struct replay r = {.t = t,
                       .opaque = opaque,
                       .random = how ? how->seed : 0,
                       .n_random = how && how->random ? how->random : AT_RANDOM,
                       .strict = how && how->strict,
                       .one_in = 1};

    walk(&r);
    if (how && how->max && r.n_candidates > how->max)
        r.one_in = r.n_candidates / how->max;
    r.fn = fn;
    walk(&r);
    qm_vec_release(&r.pending);
    free(r.seen);
    return r.n_states;
}

struct first_file {
    qm_torn_fn *fn;
    void *opaque;
};

static void
give_first(const struct qm_torn_state *state, void *opaque)
{
    const struct first_file *f = opaque;

    f->fn(state->files[0].at, state->files[0].len, f->opaque);
}

size_t
qm_torn_replay(struct qm_torn *t, qm_torn_fn *fn, void *opaque)
{
    struct first_file f = {fn, opaque};

    return qm_torn_replay_files(t, NULL, give_first, &f);
}
