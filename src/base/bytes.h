/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * bytes.h - integers as a disk holds them: big-endian, at any alignment.
 *
 * Why.  An on-disk integer is an array of bytes here, not a number: it has
 * alignment 1, needs no packing attribute, and `h->version & 1` does not
 * compile, so no conversion can be forgotten.  gcc and clang turn each getter
 * into one load and one byte swap.
 */
#ifndef QM_BYTES_H
#define QM_BYTES_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    unsigned char b[2];
} be16;
typedef struct {
    unsigned char b[4];
} be32;
typedef struct {
    unsigned char b[8];
} be64;

static inline uint16_t
be16_get(const be16 *p)
{
    uint16_t v;

    memcpy(&v, p, sizeof v);
    return be16toh(v);
}

static inline uint32_t
be32_get(const be32 *p)
{
    uint32_t v;

    memcpy(&v, p, sizeof v);
    return be32toh(v);
}

static inline uint64_t
be64_get(const be64 *p)
{
    uint64_t v;

    memcpy(&v, p, sizeof v);
    return be64toh(v);
}

static inline void
be16_put(be16 *p, uint16_t v)
{
    v = htobe16(v);
    memcpy(p, &v, sizeof v);
}

static inline void
be32_put(be32 *p, uint32_t v)
{
    v = htobe32(v);
    memcpy(p, &v, sizeof v);
}

static inline void
be64_put(be64 *p, uint64_t v)
{
    v = htobe64(v);
    memcpy(p, &v, sizeof v);
}

/* True if all bytes are zero; len > 0.  The C library compares as widely as the processor can. */
static inline bool
qm_is_zero(const void *p, size_t len)
{
    const unsigned char *byte = p;

    return byte[0] == 0 && memcmp(byte, byte + 1, len - 1) == 0;
}

#endif
