/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw.h - opening raw images; for image.c, everybody else calls qm_image_open.
 *
 * Errors     0 or -1 with *err: UNSUPPORTED (longer than a disk can be), NOMEM.  On failure the
 *            file still belongs to the caller.
 */
#ifndef QM_RAW_H
#define QM_RAW_H

#include "image.h"

int qm_raw_open(struct qm_file *file, struct qm_image **out, struct qmeld_error *err) QM_CHECK;

#endif
