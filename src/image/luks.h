/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * luks.h - a LUKS header of version 1: what it says, and what a passphrase makes of it.
 *
 * Why.  The header comes from strangers, and opening it costs what it asks for: iterations of a key derivation that
 * is meant to be slow.  All of that is judged here, before a single one is done.  Pure: bytes in, keys out.
 *
 * The format is "LUKS1 On-Disk Format Specification", version 1.2.3 (cryptsetup); what of it QEMU makes and takes is
 * in QEMU 7.2, crypto/block-luks.c.  In qcow2 the header and its key material lie in a region of the file that a
 * header extension names (specification, "Full disk encryption header pointer").
 *
 * Calls      qm_luks_decode; for each active slot: its key material read, qm_luks_open.
 * Threads    Any.
 * Units      Bytes; offsets count from the header's first byte.
 * Errors     0 or -1 with *err: CORRUPT, UNSUPPORTED, NOMEM.
 */
#ifndef QM_LUKS_H
#define QM_LUKS_H

#include "sectors.h"

#define QM_LUKS_HEADER  592u
#define QM_LUKS_SLOTS   8u
#define QM_LUKS_STRIPES 4000u /* QEMU and cryptsetup know no other number */
#define QM_LUKS_MATERIAL                                                                           \
    ((size_t)QM_MAX_KEY *                                                                          \
     QM_LUKS_STRIPES) /* of a slot, at most: 250 KiB                          \
                                            */

/* All slots together may ask for so many digests.  2 s on a fast machine, the time that is aimed at when an image is
 * made, are 10 million at most; eight such slots, and half as much again.  A minute here. */
#define QM_LUKS_MAX_WORK (128u << 20)

struct qm_luks_slot {
    bool active;
    uint32_t iterations;
    unsigned char salt[32];
    uint64_t material; /* where its key material is */
};

struct qm_luks {
    struct qm_sectors_kind kind;
    const char *hash; /* a name of libcrypto's; static */
    unsigned char digest[20];
    unsigned char digest_salt[32];
    uint32_t digest_iterations;
    struct qm_luks_slot slots[QM_LUKS_SLOTS];
};

/* raw: QM_LUKS_HEADER bytes, from offset at of file; region: the bytes that there are for header and key material. */
int qm_luks_decode(const char *file, uint64_t at, const void *raw, uint64_t region,
                   struct qm_luks *out, struct qmeld_error *err) QM_CHECK;

/* Bytes of a slot's key material. */
size_t qm_luks_material_len(const struct qm_luks *l);

/* Memory for keys that are about to be found, and for the material: it is not in core dumps, and wiped when freed. */
struct qm_luks_desk {
    unsigned char key[QM_MAX_KEY]; /* the image's, when it is open */
    unsigned char derived[QM_MAX_KEY];
    unsigned char material[QM_LUKS_MATERIAL];
};
struct qm_luks_desk *qm_luks_desk_new(void); /* NULL: out of memory */
void qm_luks_desk_free(struct qm_luks_desk *desk);

/* desk->material holds what the slot has, and is used up.  *out_open: the passphrase opens the slot, and desk->key is
 * the key. */
int qm_luks_open(const struct qm_luks *l, unsigned slot, const void *pass, size_t len,
                 struct qm_luks_desk *desk, const char *file, bool *out_open,
                 struct qmeld_error *err) QM_CHECK;

#endif
