/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mutate.h - changes to images that leave them plausible.
 *
 * Why.  A fuzzer that changes any byte spends its time in front of the header's first checks: most of its images are
 * refused there, and tables, refcounts and bitmaps are never looked at.  Here a structure of the image is chosen and
 * one field of it changed to what could stand there: an aligned place in the file, what stands elsewhere, a flag.
 *
 * Calls      A target says where in its input images lie: qm_fuzz_images.  With libFuzzer, mutate.c then mutates them.
 */
#ifndef QM_MUTATE_H
#define QM_MUTATE_H

#include <stddef.h>
#include <stdint.h>

struct qm_fuzz_span {
    size_t off, len;
};

/* Of a target: the images in an input; how many, 0 to 2. */
size_t qm_fuzz_images(const uint8_t *data, size_t len, struct qm_fuzz_span out[2]);

#endif
