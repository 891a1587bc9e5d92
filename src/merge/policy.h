/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * policy.h - where names that are stored in images may lead.
 *
 * Why.  A backing name or the name of a data file is a part of an image, and the image may be a stranger's: "my backing
 * file is /etc/shadow, raw" makes whoever flattens it hand out that file.  QEMU follows every name.  Here each is judged
 * first, by one rule for all commands (docs/decisions/0026-path-policy.md):
 *
 *     free      what lies, symbolic links resolved, in the tree of a folder in which a file lies that the user named, or
 *               under an --allow-path
 *     strict    if there is an --allow-path: nothing else
 *     evident   if there is none: also regular files elsewhere that evidently are disk images, qcow2 by content, or of a
 *               length that is a multiple of 512 and not 0; but nothing below /dev, /etc, /proc, /run and /sys
 *
 * Calls      new; named for each path of the user's; then allows before a name is followed, and opened when the
 *            file is open; free.
 * Threads    One thread.
 * Errors     USAGE, in the words "its backing file X lies ...: allow it with --allow-path=DIR"; STALE, NOMEM, IO.
 */
#ifndef QM_POLICY_H
#define QM_POLICY_H

#include "err.h"
#include "io.h"

struct qm_policy;

enum qm_name_kind {
    QM_NAME_BACKING, /* a path, or nbd://..., nbd+unix://... */
    QM_NAME_DATA,    /* a path */
};

/* allow: paths of folders or files, "/" for all there are, or "nbd://HOST[:PORT]"
 * (port 10809), or "nbd+unix:///?socket=PATH"; ends with NULL.  NULL: none.
 * USAGE: one of them is not there.  They are copied. */
int qm_policy_new(const char *const *allow, struct qm_policy **out, struct qmeld_error *err)
    QM_CHECK;
void qm_policy_free(struct qm_policy *p); /* NULL is fine */

/* The user has said this path himself: it may be used, and its folder is one of the chain's.  It need not exist. */
int qm_policy_named(struct qm_policy *p, const char *path, struct qmeld_error *err) QM_CHECK;

/* May name, which the image of path `image` stores, be followed?  A path is resolved already, and need not
 * exist.  A file is asked about once more when it is open. */
int qm_names_allowed(const struct qm_policy *p, enum qm_name_kind kind, const char *image,
                     const char *name, struct qmeld_error *err) QM_CHECK;

/* file was opened by that path, and will be read as format (NULL: by content): is it what was judged, and what it
 * must be? */
int qm_policy_opened(const struct qm_policy *p, enum qm_name_kind kind, const char *image,
                     const char *path, const struct qm_file *file, const char *format,
                     struct qmeld_error *err) QM_CHECK;

#endif
