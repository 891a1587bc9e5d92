/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_crypt.h - encryption of a forged image.
 *
 * Why.  luks=PASSPHRASE and aes=PASSPHRASE in a recipe make an image as QEMU would: its guest's bytes encrypted, with a LUKS
 * header of one key slot in front.  The keys follow from the passphrase, so that a recipe always gives the same file; who
 * wants a secret takes another tool.
 *
 * Errors     0 or -1 with im->err.
 */
#ifndef QM_FORGE_CRYPT_H
#define QM_FORGE_CRYPT_H

#include "forge_image.h"

/* Bytes that header and key material take; 0: there is none. */
uint64_t qm_forge_crypt_region(const struct qm_forge_layer *l);

/* Writes them at im->crypto_off. */
int qm_forge_write_luks(struct qm_forge_image *im) QM_CHECK;

/* In place: a cluster that is to lie at host; len is a multiple of 512.  Nothing if the image is not encrypted. */
int qm_forge_encrypt(struct qm_forge_image *im, uint64_t guest, uint64_t host, void *buf,
                     size_t len) QM_CHECK;

#endif
