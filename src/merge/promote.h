/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * promote.h - a layer takes its base's place: its backing file, its attributes, its name.
 *
 * Why.  A merge that moves the base up into a layer above it (plan.h) leaves the merged data in the wrong file.  Here
 * that file becomes the one which everybody knows by the base's name, in steps that each leave a chain
 * which reads right: the target names what lies below the base, as it needs the base no more; then
 * it gets the base's name in one rename, and keeps its own until the layer above goes by the new one.
 * docs/crash-safety.md has the steps.
 *
 *     may       can this layer take the base's place?  Asked before anything else
 *     check     likewise, about names and headers; before the first write
 *     run       the target is complete and durable
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err; from run on err->disk is the caller's business.
 */
#ifndef QM_PROMOTE_H
#define QM_PROMOTE_H

#include "chain.h"

/* USAGE, naming the reason: the base has something that the target could not have, or either file is not one whose
 * name can be given to another.  new_size: virtual size of the merged disk. */
int qm_promote_may(const struct qm_chain *chain, size_t base, size_t top, size_t target,
                   uint64_t new_size, struct qmeld_error *err) QM_CHECK;

struct qm_promote_config {
    struct qm_chain *chain;
    size_t base; /* its layer has no image if the target has its name already */
    size_t target;
    const char *base_path;      /* absolute */
    const char *backing_name;   /* of the base; NULL: none */
    const char *backing_format; /* NULL without a name */
};

struct qm_promote;

int qm_promote_check(const struct qm_promote_config *config, struct qm_promote **out,
                     struct qmeld_error *err) QM_CHECK;

/* After the journal was written and before all else: does the file system do what run will need? */
int qm_promote_try(const struct qm_promote *r, struct qmeld_error *err) QM_CHECK;

/* All of it durable; again and again, if it has to be. */
int qm_promote_run(struct qm_promote *r, struct qmeld_error *err) QM_CHECK;

void qm_promote_free(struct qm_promote *r); /* NULL is fine */

#ifdef QM_TESTING
/* So many names of each file are the test's own. */
extern unsigned qm_promote_held_names;
#endif

#endif
