/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sectors.h - sectors of 512 bytes under a key.
 *
 * Why.  LUKS and the old AES of qcow2 differ in where a key comes from and in which number a sector has; how a sector
 * with a number is encrypted is the same, and is here.  libcrypto does the work and is hidden.
 *
 * Calls      qm_sectors_new; decrypt and encrypt; qm_sectors_free.
 * Threads    decrypt and encrypt may run in many threads.
 * Ownership  The key is copied; the copy is wiped when it is freed.
 * Units      Bytes; a sector's number counts 512 bytes each.
 * Errors     0 or -1 with *err: UNSUPPORTED, NOMEM.
 */
#ifndef QM_SECTORS_H
#define QM_SECTORS_H

#include "err.h"

#define QM_CIPHER_SECTOR 512u
#define QM_MAX_KEY       64u /* two keys of 256 bits: XTS */

/* The values that QEMU can make and libcrypto has, all with AES (QEMU 7.2, crypto/block-luks.c, the maps of names). */
enum qm_block_mode { QM_MODE_ECB, QM_MODE_CBC, QM_MODE_CTR, QM_MODE_XTS };

/* Where a sector's initialization vector comes from: its number in 32 or 64 bits, little-endian; or those 64,
 * encrypted with a digest of the key. */
enum qm_ivgen { QM_IV_PLAIN, QM_IV_PLAIN64, QM_IV_ESSIV };

struct qm_sectors_kind {
    enum qm_block_mode mode;
    enum qm_ivgen ivgen;
    const char *essiv_hash; /* a name of libcrypto's; ESSIV only; static */
    size_t key_len;         /* XTS: of both keys, 32 or 64; else 16 or 32 */
};

struct qm_sectors;

/* file: for errors.  UNSUPPORTED: no such key length, or libcrypto has not that. */
int qm_sectors_new(const struct qm_sectors_kind *kind, const void *key, const char *file,
                   struct qm_sectors **out, struct qmeld_error *err) QM_CHECK;
void qm_sectors_free(struct qm_sectors *s); /* NULL is fine */

/* In place; the first of the bytes begin sector `sector`.  len is a multiple of 512, but the last sector may be
 * shorter, by whole blocks of 16 bytes (key material of LUKS). */
int qm_sectors_decrypt(const struct qm_sectors *s, uint64_t sector, void *buf, size_t len,
                       struct qmeld_error *err) QM_CHECK;
int qm_sectors_encrypt(const struct qm_sectors *s, uint64_t sector, void *buf, size_t len,
                       struct qmeld_error *err) QM_CHECK;

#endif
