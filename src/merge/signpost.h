/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * signpost.h - from where the active layer was to where the journal is.
 *
 * Why.  The same command again goes on with an interrupted merge, and it names the active layer.  A journal lies beside the
 * base; as long as the active layer is there, its chain leads to it.  Where the active layer itself is merged and
 * removed or renamed, and lay in another folder, nothing does: so, before it goes, a small file .NAME.qmeld-journal takes
 * its place, which says the journal's path.  It is a hint: nothing that is written depends on it, and what it leads to is
 * judged as any journal is.
 *
 * Calls      plant before the active layer's name goes; remove when the journal is gone.  find by whoever searches.
 * Threads    One thread.
 * Errors     None: what cannot be planted leaves `qmeld resume JOURNAL`.
 */
#ifndef QM_SIGNPOST_H
#define QM_SIGNPOST_H

#include "intent.h"

/* Durable on return.  Does nothing unless the active layer is to lose its name, and the journal lies elsewhere. */
void qm_signpost_plant(const struct qm_intent *intent, const char *journal);

/* Where plant has put it, malloc'd; NULL: nowhere.  Then, when intent and journal are gone, it goes (NULL is fine). */
char *qm_signpost_place(const struct qm_intent *intent, const char *journal);
void qm_signpost_remove(const char *path);

/* "x/.NAME.qmeld-journal" without "x/". */
bool qm_signpost_is_name(const char *name);

/* The path that the file at path says, malloc'd; NULL: there is none, or it is nobody's whom we would follow. */
char *qm_signpost_read(const char *path);

#endif
