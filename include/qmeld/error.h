/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/error.h - errors, versions, and what every declaration is marked with.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Ownership  Strings that are returned are constants.
 */
#ifndef QMELD_ERROR_H
#define QMELD_ERROR_H

#include <stddef.h>
#include <stdbool.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define QMELD_API   __attribute__((visibility("default")))
#define QMELD_CHECK __attribute__((warn_unused_result))

/* Whose fault it was. */
enum qmeld_code {
    QMELD_OK = 0,
    QMELD_USAGE,       /* the request makes no sense, or is refused as dangerous */
    QMELD_IO,          /* the operating system said no */
    QMELD_CORRUPT,     /* an image contradicts itself */
    QMELD_UNSUPPORTED, /* a valid image, with a feature this version does not handle */
    QMELD_BUSY,        /* somebody else uses the image */
    QMELD_STALE,       /* a file changed after it was looked at */
    QMELD_NOMEM,
    QMELD_NOSPACE,  /* the file system, a header or a format's limit is full */
    QMELD_CANCELED, /* the progress callback asked to stop */
};

/* What is on disk after a call that failed. */
enum qmeld_disk {
    QMELD_DISK_OLD = 0, /* every image is as it was */
    QMELD_DISK_OPEN,    /* a merge is half done: the chain's top reads as before, and the
                         * same call again finishes */
    QMELD_DISK_NEW,     /* the work is done; only what came after it failed */
};

struct qmeld_error {
    enum qmeld_code code;
    enum qmeld_disk disk;
    int sys_errno;  /* errno of the call that failed, or 0 */
    bool has_off;   /* off is meaningful */
    uint64_t off;   /* bytes into the file */
    char file[256]; /* the image concerned; "" if none; long paths keep their end */
    char what[768]; /* "what is wrong: what to do", no newline, no file name in front */
};

/* "corrupt image", "busy", ...: the code in a word or two.  Never NULL. */
QMELD_API const char *qmeld_code_name(enum qmeld_code code);

/* "0.1.0" */
QMELD_API const char *qmeld_version(void);

#ifdef __cplusplus
}
#endif

#endif
