/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * intent_reach.c - no file that a journal names is out of reach of who could have put the journal there (hands.h).
 *
 * By path, before any of them is opened; the journal asks again about each one that is open.
 */
#include "intent.h"

static int
reach_layer(const struct qm_journal_layer *l, struct qmeld_error *err)
{
    if (qm_hands_reach(&l->hands, l->journal, l->path, NULL, l->reads, err) < 0 ||
        (l->moved_to && qm_hands_reach(&l->hands, l->journal, l->moved_to, NULL, false, err) < 0) ||
        (l->data.path &&
         qm_hands_reach(&l->hands, l->journal, l->data.path, NULL, l->reads, err) < 0))
        return -1;
    return 0;
}

/* Written to, renamed, removed, or emptied: not what lies outside of the range and its child, and of the range not what stays as it is. */
static bool
changes(const struct qm_intent *i, size_t layer)
{
    if (layer == i->target || layer == i->base || layer == i->top + 1)
        return true;
    if (layer < i->base || layer > i->top)
        return false;
    return i->overlays != QMELD_OVERLAYS_KEEP || i->reclaim;
}

int
qm_intent_reach(struct qm_intent *i, const struct qm_file *journal, struct qmeld_error *err)
{
    struct qm_hands hands;

    if (qm_hands_of(journal->path, journal, &hands, err) < 0)
        return -1;
    for (size_t k = 0; k < i->layers.n; k++) {
        struct qm_journal_layer *l = &i->layers.at[k];

        l->hands = hands;
        l->journal = journal->path;
        l->reads = !changes(i, k);
        if (reach_layer(l, err) < 0)
            return -1;
    }
    QM_VEC_EACH (g, &i->guarded) {
        g->file.hands = hands;
        g->file.journal = journal->path;
        if (reach_layer(&g->file, err) < 0)
            return -1;
    }
    return 0;
}
