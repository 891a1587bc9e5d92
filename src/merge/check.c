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
#include "qcow2_report.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PORTION (1u << 20) /* of what is extracted, at once */

static int
check_format(const struct qm_file *file, const char *format, struct qmeld_error *err)
{
    if (!format && qm_image_probe(file, &format, err) < 0)
        return -1;
    if (strcmp(format, "qcow2") == 0)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file->path),
                   "format %s has no metadata that could be checked: only qcow2 has", format);
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

/* ---- what is odd ---- */

struct extract {
    const struct qm_file *file;
    const char *dir; /* NULL: nothing is saved */
    qmeld_anomaly_fn *fn;
    void *opaque;
    struct qmeld_error err; /* of saving; code OK: none */
};

static int
save_bytes(const struct qm_file *from, uint64_t off, uint64_t len, struct qm_file *to,
           struct qmeld_error *err)
{
    QM_FREE unsigned char *buf = malloc(PORTION);

    if (!buf)
        return qm_fail_nomem(err, "what is extracted");
    for (uint64_t done = 0; done < len;) {
        const uint64_t n = qm_min(PORTION, len - done);

        if (qm_pread(from, off + done, buf, n, err) < 0 || qm_pwrite(to, done, buf, n, err) < 0)
            return -1;
        done += n;
    }
    return qm_sync(to, err);
}

/* Never into a file that is there. */
static int
save(const struct extract *x, const struct qmeld_anomaly *a, char **out_path,
     struct qmeld_error *err)
{
    struct qm_file *to;

    if (asprintf(out_path, "%s/0x%012" PRIx64 ".bin", x->dir, a->offset) < 0) {
        *out_path = NULL;
        return qm_fail_nomem(err, "a path");
    }
    if (qm_file_create_new(*out_path, 0600, &to, err) < 0)
        return -1;
    if (save_bytes(x->file, a->offset, a->length, to, err) < 0) {
        qm_file_close(to);
        return -1;
    }
    return qm_file_finish(to, err);
}

static int
take_anomaly(const struct qmeld_anomaly *anomaly, void *opaque)
{
    struct extract *x = opaque;
    struct qmeld_anomaly a = *anomaly;
    QM_FREE char *path = NULL;

    if (x->dir && a.kind == QMELD_ANOMALY_UNREFERENCED && save(x, &a, &path, &x->err) < 0)
        return -1;
    a.saved = path;
    return x->fn ? x->fn(&a, x->opaque) : 0;
}

int
qmeld_report(const char *path, const char *format, const char *extract_dir, qmeld_anomaly_fn *fn,
             void *opaque, struct qmeld_error *err)
{
    struct extract x = {.dir = extract_dir, .fn = fn, .opaque = opaque};
    struct qm_file *file = NULL;
    struct qm_qcow2 *q = NULL;
    int rc;

    memset(err, 0, sizeof *err);
    if (qm_file_open(path, &file, err) < 0)
        return -1;
    if (check_format(file, format, err) < 0 ||
        qm_qcow2_open(file, QCOW2_DECODE_FOR_CHECK, &q, err) < 0) {
        qm_file_close(file);
        return -1;
    }
    x.file = file;
    rc = qm_qcow2_report(q, take_anomaly, &x, err);
    if (rc < 0 && x.err.code != QMELD_OK)
        *err = x.err;
    qm_image_close(&q->img);
    return rc;
}
