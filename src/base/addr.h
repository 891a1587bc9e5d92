/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * addr.h - where a byte is, and arithmetic on numbers that came from a disk.
 *
 * Why.  A guest offset (where the virtual machine sees a byte) and a host offset
 * (where that byte lies in one image file) are both 64-bit numbers, and mixing
 * them up destroys data in silence.  Here they are different types, and their
 * members have different names (.g and .h), so that a mix-up does not compile
 * and a reader sees at each use which one is meant.
 *
 * Units      Bytes.  Ranges are half-open: [off, off + len).
 * Errors     The checked helpers return false where the result would not fit,
 *            and leave *out alone.
 */
#ifndef QM_ADDR_H
#define QM_ADDR_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t g;
} guest_off; /* an offset the guest sees */

typedef struct {
    uint64_t h;
} host_off; /* an offset inside one image file; means nothing without its file */

/* The largest file offset Linux can address (off_t is signed). */
#define QM_MAX_OFF ((uint64_t)INT64_MAX)

static inline guest_off
qm_guest(uint64_t off)
{
    return (guest_off){off};
}

static inline host_off
qm_host(uint64_t off)
{
    return (host_off){off};
}

static inline bool
qm_add(uint64_t a, uint64_t b, uint64_t *out)
{
    uint64_t r;

    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

/* True if [off, off + len) lies inside [0, size). */
static inline bool
qm_inside(uint64_t off, uint64_t len, uint64_t size)
{
    return off <= size && len <= size - off;
}

static inline uint64_t
qm_min(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t
qm_max(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* unit must not be zero */
static inline uint64_t
qm_div_up(uint64_t a, uint64_t unit)
{
    return a / unit + (a % unit != 0);
}

/* unit is a power of two */
static inline uint64_t
qm_align_down(uint64_t a, uint64_t unit)
{
    return a & ~(unit - 1);
}

/* unit is a power of two; a <= QM_MAX_OFF, which leaves room for every unit we have */
static inline uint64_t
qm_align_up(uint64_t a, uint64_t unit)
{
    return (a + unit - 1) & ~(unit - 1);
}

#endif
