/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* Names in images are a stranger's text: no newline, nothing that a terminal obeys. */
static void
clean(char *text)
{
    for (; *text; text++)
        if ((unsigned char)*text < 0x20 || *text == 0x7f)
            *text = '?';
}

static void
fill(struct qmeld_error *err, enum qmeld_code code, struct qm_place place, const char *fmt,
     va_list ap)
{
    const char *file = place.file ? place.file : "";
    const size_t len = strlen(file);
    enum qmeld_disk disk = err->disk;

    memset(err, 0, sizeof *err);
    err->code = code;
    err->disk = disk;
    err->has_off = place.has_off;
    err->off = place.off;
    if (len < sizeof err->file)
        memcpy(err->file, file, len + 1);
    else /* the end of a path says more than its beginning */
        snprintf(err->file, sizeof err->file, "...%s", file + len - (sizeof err->file - 4));
    vsnprintf(err->what, sizeof err->what, fmt, ap);
    clean(err->file);
    clean(err->what);
}

void
qm_err_fill(struct qmeld_error *err, enum qmeld_code code, struct qm_place place, const char *fmt,
            ...)
{
    va_list ap;

    va_start(ap, fmt);
    fill(err, code, place, fmt, ap);
    va_end(ap);
}

static enum qmeld_code
code_of_errno(int e)
{
    switch (e) {
    case ENOMEM:
        return QMELD_NOMEM;
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
        return QMELD_NOSPACE;
    default:
        return QMELD_IO;
    }
}

void
qm_err_fill_sys(struct qmeld_error *err, struct qm_place place, const char *fmt, ...)
{
    const int e = errno;
    size_t used;
    va_list ap;

    va_start(ap, fmt);
    fill(err, code_of_errno(e), place, fmt, ap);
    va_end(ap);
    err->sys_errno = e;
    used = strlen(err->what);
    snprintf(err->what + used, sizeof err->what - used, ": %s", strerrordesc_np(e));
}

void
qm_err_disk(struct qmeld_error *err, enum qmeld_disk disk)
{
    if (disk > err->disk)
        err->disk = disk;
}

const char *
qmeld_code_name(enum qmeld_code code)
{
    switch (code) {
    case QMELD_OK:
        return "ok";
    case QMELD_USAGE:
        return "refused";
    case QMELD_IO:
        return "input/output error";
    case QMELD_CORRUPT:
        return "corrupt image";
    case QMELD_UNSUPPORTED:
        return "unsupported feature";
    case QMELD_BUSY:
        return "image in use";
    case QMELD_STALE:
        return "file changed";
    case QMELD_NOMEM:
        return "out of memory";
    case QMELD_NOSPACE:
        return "no space";
    case QMELD_CANCELED:
        return "stopped";
    }
    return "unknown error";
}

const char *
qmeld_version(void)
{
    return QM_VERSION;
}
