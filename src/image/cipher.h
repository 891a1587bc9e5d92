/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cipher.h - the encryption of one image.
 *
 * Why.  An encrypted image has its tables in clear and the guest's bytes encrypted, sector by sector, where they lie
 * in the file.  Whoever reads or writes such bytes asks here, and asks nothing else: not which method, not whose number
 * a sector has.  That is the guest's for the old AES, and the file's for LUKS (specification, header "crypt_method";
 * QEMU 7.2, block/qcow2.c, crypt_physical_offset).  Compressed clusters are never encrypted (QEMU 7.2, block/qcow2.c,
 * qcow2_co_preadv_task).
 *
 * Calls      An image that is encrypted has a cipher, locked.  qm_cipher_unlock, or qm_cipher_share; then decrypt and
 *            encrypt.
 * Threads    decrypt and encrypt may run in many threads once it is open.
 * Ownership  The image owns its cipher.  Keys are wiped with the last cipher that has them.
 * Units      Bytes; offsets and lengths are multiples of 512.
 * Errors     0 or -1 with *err: CORRUPT, UNSUPPORTED, USAGE, IO, NOMEM.
 */
#ifndef QM_CIPHER_H
#define QM_CIPHER_H

#include "addr.h"
#include "sectors.h"

struct qm_file;

enum qm_cipher_method {
    QM_CIPHER_AES = 1,
    QM_CIPHER_LUKS = 2
}; /* the values of the qcow2 header */

struct qm_cipher;

/* Locked.  region, len: LUKS only: where in the file its header and key material are.  NULL: out of memory. */
struct qm_cipher *qm_cipher_new(enum qm_cipher_method method, uint64_t region, uint64_t len);
void qm_cipher_free(struct qm_cipher *c); /* NULL is fine */

const char *qm_cipher_name(const struct qm_cipher *c); /* "AES", "LUKS" */
bool qm_cipher_is_open(const struct qm_cipher *c);

/* The old AES has keys that nothing confirms: QEMU warns of it, and we write none of it. */
bool qm_cipher_may_write(const struct qm_cipher *c);

/* True if a passphrase can be told from a wrong one. */
bool qm_cipher_knows_its_key(const struct qm_cipher *c);

/* *out_open: the passphrase opened it.  Costs what the header asks for, up to a minute (luks.h). */
int qm_cipher_unlock(struct qm_cipher *c, const struct qm_file *file, const void *pass, size_t len,
                     bool *out_open, struct qmeld_error *err) QM_CHECK;

/* c, of the same file, gets the keys of one that is open. */
void qm_cipher_share(struct qm_cipher *c, const struct qm_cipher *open);

/* Two images of one file: what one place of it reads as for one it reads as for the other, whatever the guest
 * offset.  Either may be NULL. */
bool qm_cipher_same(const struct qm_cipher *a, const struct qm_cipher *b);

/* In place, what lies at host in the file and is at guest for the guest.  USAGE: locked. */
int qm_cipher_decrypt(const struct qm_cipher *c, const char *file, guest_off guest, host_off host,
                      void *buf, size_t len, struct qmeld_error *err) QM_CHECK;
int qm_cipher_encrypt(const struct qm_cipher *c, const char *file, guest_off guest, host_off host,
                      void *buf, size_t len, struct qmeld_error *err) QM_CHECK;

#endif
