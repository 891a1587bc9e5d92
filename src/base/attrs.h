/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * attrs.h - a file gets what another one has beside its bytes: owner, mode, access list, labels, times.
 *
 * Why.  Where one file takes another's name, whoever used that name must find the same door: the same user
 * may open it, the same label lets a virtual machine at it.  What can be foreseen to fail is asked
 * first, so that nothing is half done then.
 *
 * Threads    One thread.
 * Errors     0 or -1 with *err: USAGE (we are not who may), IO.
 */
#ifndef QM_ATTRS_H
#define QM_ATTRS_H

#include "io.h"

/* USAGE: `to` cannot get them from us, as far as that can be known. */
int qm_attrs_check(const struct qm_file *to, const struct qm_file *from, struct qmeld_error *err)
    QM_CHECK;

/* `to` gets owner, group, access list, extended attributes in user.* and trusted.*, the security label, mode and, last,
 * times of `from`, and loses attributes of these kinds that `from` has not.  Durable.  In a dry run: nothing. */
int qm_attrs_copy(struct qm_file *to, const struct qm_file *from, struct qmeld_error *err) QM_CHECK;

#endif
