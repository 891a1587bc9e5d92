/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * check.c - the public face of checking and repairing one image.
 *
 * A check looks, takes no lock and may run beside a virtual machine; a repair locks first and
 * believes nothing it read before.
 */
#include "qmeld.h"

#include "lock.h"
#include "qcow2_check.h"

#include <string.h>

static int
check_format(const struct qm_file *file, const char *format, struct qmeld_error *err)
{
    bool qcow2;

    if (format && strcmp(format, "qcow2") == 0)
        return 0;
    if (qm_image_looks_like_qcow2(file, &qcow2, err) < 0)
        return -1;
    if (!format && qcow2)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file->path),
                   "format %s has no metadata that could be checked: only qcow2 has",
                   format ? format : "raw");
}

/* Takes the file over from here on. */
static int
check_file(struct qm_file *file, enum qmeld_repair repair, qmeld_finding_fn *fn, void *opaque,
           struct qmeld_check_result *out, struct qmeld_error *err)
{
    struct qm_qcow2 *q = NULL;
    int r;

    if (repair != QMELD_REPAIR_NONE &&
        (qm_file_make_writable(file, err) < 0 || qm_lock_take(file, QM_LOCK_WRITER, err) < 0)) {
        qm_file_close(file);
        return -1;
    }
    if (qm_qcow2_open(file, QCOW2_DECODE_FOR_CHECK, &q, err) < 0) {
        qm_file_close(file);
        return -1;
    }
    r = qm_qcow2_check(q, repair, fn, opaque, out, err);
    qm_image_close(&q->img); /* all that was written has been synced */
    return r;
}

int
qmeld_check(const char *path, const char *format, enum qmeld_repair repair, qmeld_finding_fn *fn,
            void *opaque, struct qmeld_check_result *out, struct qmeld_error *err)
{
    struct qm_file *file = NULL;

    memset(err, 0, sizeof *err);
    memset(out, 0, sizeof *out);
    if (qm_file_open(path, &file, err) < 0)
        return -1;
    if (check_format(file, format, err) < 0) {
        qm_file_close(file);
        return -1;
    }
    return check_file(file, repair, fn, opaque, out, err);
}
