/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * leftover.h - files that a merge has made superfluous, and that are kept.
 *
 * Why.  A merged layer that nothing stands on any more still names its backing file.  Whoever looks for images that would
 * be spoilt by the next merge (dependants.h) would find it, and refuse, for ever.  So a merge notes in an extended
 * attribute of such a file that it is one, as it is at that moment; who writes to it later, or renames it, makes the note void.  Bytes, length
 * and times of the file stay what they are.
 *
 * Threads    Any.
 * Errors     None: where there are no attributes, or we may not set them, it is found as any other image.
 */
#ifndef QM_LEFTOVER_H
#define QM_LEFTOVER_H

#include "io.h"

/* Not in a dry run. */
void qm_leftover_mark(const char *path);

/* It is marked, and has not changed since. */
bool qm_leftover_is(const char *path);

/* Else the file system has no attributes. */
bool qm_leftover_can_tell(const char *path);

#endif
