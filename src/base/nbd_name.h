/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd_name.h - names of images behind NBD servers.
 *
 * Why.  QEMU has three spellings of such a name, and one of them is kept in headers of overlays.  Each must lead where
 * QEMU goes, and two spellings of one export must be known as one (loops, journals).  No connection is
 * made here.
 *
 *     nbd://HOST[:PORT][/EXPORT]             nbd+tcp:// likewise, and nbds:// with TLS
 *     nbd+unix:///[EXPORT]?socket=PATH       nbds+unix:// likewise
 *     nbd:HOST:PORT[:exportname=EXPORT]      nbd:unix:PATH[:exportname=EXPORT]
 *
 * Source     qemu 7.2, block/nbd.c (nbd_parse_uri, nbd_parse_filename); the NBD URI specification, for nbds.
 * Ownership  A parsed name owns its strings.
 * Errors     0 or -1 with *err: USAGE (no such name), NOMEM.
 */
#ifndef QM_NBD_NAME_H
#define QM_NBD_NAME_H

#include "err.h"

#include <stdbool.h>
#include <stdint.h>

#define QM_NBD_PORT "10809"

struct qm_nbd_name {
    char *host;   /* NULL: a unix socket */
    char *port;   /* NULL: a unix socket; a number, or a service's name */
    char *socket; /* NULL: TCP */
    char *export; /* "": the server's default */
    bool tls;
    /* TLS only, from the command line */
    char *user;         /* NULL: none */
    char *certificates; /* a directory; NULL: the system's */
    char *psk_file;     /* NULL: none */
};

/* It is one of the spellings, whatever follows.  A local file of such a name is "./nbd:x". */
bool qm_nbd_is_name(const char *path);

int qm_nbd_parse(const char *path, struct qm_nbd_name *out, struct qmeld_error *err) QM_CHECK;
void qm_nbd_name_release(struct qm_nbd_name *name);

/* The one spelling that stands for all, which QEMU can read but for nbds; malloc'd, NULL: no memory. */
char *qm_nbd_uri(const struct qm_nbd_name *name);

/* path in that spelling; malloc'd, NULL: it is no NBD name, or no memory. */
char *qm_nbd_canonical(const char *path);

/* A number for a canonical spelling. */
uint64_t qm_nbd_id(const char *uri);

/* Both are NBD names, of one export. */
bool qm_nbd_same(const char *a, const char *b);

/* A file name for what goes with the export, as it is for a journal: "nbd-" and 16 digits; malloc'd, NULL: it is no
 * NBD name, or no memory. */
char *qm_nbd_file_name(const char *path);

#endif
