/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * image_peek.h - what an image stands on, by one small read.
 *
 * Why.  Among many thousands of files those are looked for that lead to a certain other one.  Opening each as an
 * image would read tables, and refuse whoever has a fault somewhere else; here only the few fields
 * count that name other files.  Nothing in them is believed beyond that: a damaged image may still be somebody's.
 *
 * Threads    Any.
 * Ownership  Release *out in every case.
 */
#ifndef QM_IMAGE_PEEK_H
#define QM_IMAGE_PEEK_H

#include "err.h"
#include "peek.h"

struct qm_stand {
    char *backing_name; /* NULL: none */
    char *data_file;    /* NULL: none */
};

/* Formats that can stand on an image of ours: qcow2, qcow (version 1) and QED; whatever else is there has no
 * names.  Returns an errno, or 0. */
int qm_image_stands_on(const struct qm_peek *file, struct qm_stand *out);
void qm_stand_release(struct qm_stand *s);

#endif
