/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd_lib.h - libnbd, loaded when the first export is opened.
 *
 * Why.  libnbd brings a dozen libraries along (TLS, XML), and to link them costs more than a map of a deep chain; most who
 * run us have no export.  So its calls go through a table that is filled once; in nbd.c and nbd_conn.c they
 * are written as they always are.  For them only.
 *
 * Threads    Any, after qm_nbd_load.
 */
#ifndef QM_NBD_LIB_H
#define QM_NBD_LIB_H

#include "err.h"

#include <libnbd.h>

#define QM_NBD_CALLS(X)                                                                            \
    X(nbd_add_meta_context)                                                                        \
    X(nbd_aio_block_status)                                                                        \
    X(nbd_aio_connect_tcp)                                                                         \
    X(nbd_aio_connect_unix)                                                                        \
    X(nbd_aio_disconnect)                                                                          \
    X(nbd_aio_flush)                                                                               \
    X(nbd_aio_get_direction)                                                                       \
    X(nbd_aio_get_fd)                                                                              \
    X(nbd_aio_is_closed)                                                                           \
    X(nbd_aio_is_connecting)                                                                       \
    X(nbd_aio_is_dead)                                                                             \
    X(nbd_aio_is_negotiating)                                                                      \
    X(nbd_aio_is_ready)                                                                            \
    X(nbd_aio_notify_read)                                                                         \
    X(nbd_aio_notify_write)                                                                        \
    X(nbd_aio_pread)                                                                               \
    X(nbd_aio_pwrite)                                                                              \
    X(nbd_aio_trim)                                                                                \
    X(nbd_aio_zero)                                                                                \
    X(nbd_can_flush)                                                                               \
    X(nbd_can_meta_context)                                                                        \
    X(nbd_can_trim)                                                                                \
    X(nbd_can_zero)                                                                                \
    X(nbd_close)                                                                                   \
    X(nbd_create)                                                                                  \
    X(nbd_get_block_size)                                                                          \
    X(nbd_get_errno)                                                                               \
    X(nbd_get_error)                                                                               \
    X(nbd_get_size)                                                                                \
    X(nbd_get_strict_mode)                                                                         \
    X(nbd_is_read_only)                                                                            \
    X(nbd_set_export_name)                                                                         \
    X(nbd_set_strict_mode)                                                                         \
    X(nbd_set_tls)                                                                                 \
    X(nbd_set_tls_certificates)                                                                    \
    X(nbd_set_tls_psk_file)                                                                        \
    X(nbd_set_tls_username)

#define QM_NBD_MEMBER(call) __typeof__(call) *p_##call;
struct qm_nbd_lib {
    QM_NBD_CALLS(QM_NBD_MEMBER)
};

extern struct qm_nbd_lib qm_nbd_lib;

/* Before any call.  UNSUPPORTED: it is not installed, or lacks a call. */
int qm_nbd_load(const char *path, struct qmeld_error *err) QM_CHECK;

#ifndef QM_NBD_NO_NAMES
#define nbd_add_meta_context     qm_nbd_lib.p_nbd_add_meta_context
#define nbd_aio_block_status     qm_nbd_lib.p_nbd_aio_block_status
#define nbd_aio_connect_tcp      qm_nbd_lib.p_nbd_aio_connect_tcp
#define nbd_aio_connect_unix     qm_nbd_lib.p_nbd_aio_connect_unix
#define nbd_aio_disconnect       qm_nbd_lib.p_nbd_aio_disconnect
#define nbd_aio_flush            qm_nbd_lib.p_nbd_aio_flush
#define nbd_aio_get_direction    qm_nbd_lib.p_nbd_aio_get_direction
#define nbd_aio_get_fd           qm_nbd_lib.p_nbd_aio_get_fd
#define nbd_aio_is_closed        qm_nbd_lib.p_nbd_aio_is_closed
#define nbd_aio_is_connecting    qm_nbd_lib.p_nbd_aio_is_connecting
#define nbd_aio_is_dead          qm_nbd_lib.p_nbd_aio_is_dead
#define nbd_aio_is_negotiating   qm_nbd_lib.p_nbd_aio_is_negotiating
#define nbd_aio_is_ready         qm_nbd_lib.p_nbd_aio_is_ready
#define nbd_aio_notify_read      qm_nbd_lib.p_nbd_aio_notify_read
#define nbd_aio_notify_write     qm_nbd_lib.p_nbd_aio_notify_write
#define nbd_aio_pread            qm_nbd_lib.p_nbd_aio_pread
#define nbd_aio_pwrite           qm_nbd_lib.p_nbd_aio_pwrite
#define nbd_aio_trim             qm_nbd_lib.p_nbd_aio_trim
#define nbd_aio_zero             qm_nbd_lib.p_nbd_aio_zero
#define nbd_can_flush            qm_nbd_lib.p_nbd_can_flush
#define nbd_can_meta_context     qm_nbd_lib.p_nbd_can_meta_context
#define nbd_can_trim             qm_nbd_lib.p_nbd_can_trim
#define nbd_can_zero             qm_nbd_lib.p_nbd_can_zero
#define nbd_close                qm_nbd_lib.p_nbd_close
#define nbd_create               qm_nbd_lib.p_nbd_create
#define nbd_get_block_size       qm_nbd_lib.p_nbd_get_block_size
#define nbd_get_errno            qm_nbd_lib.p_nbd_get_errno
#define nbd_get_error            qm_nbd_lib.p_nbd_get_error
#define nbd_get_size             qm_nbd_lib.p_nbd_get_size
#define nbd_get_strict_mode      qm_nbd_lib.p_nbd_get_strict_mode
#define nbd_is_read_only         qm_nbd_lib.p_nbd_is_read_only
#define nbd_set_export_name      qm_nbd_lib.p_nbd_set_export_name
#define nbd_set_strict_mode      qm_nbd_lib.p_nbd_set_strict_mode
#define nbd_set_tls              qm_nbd_lib.p_nbd_set_tls
#define nbd_set_tls_certificates qm_nbd_lib.p_nbd_set_tls_certificates
#define nbd_set_tls_psk_file     qm_nbd_lib.p_nbd_set_tls_psk_file
#define nbd_set_tls_username     qm_nbd_lib.p_nbd_set_tls_username
#endif

#endif
