/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz.h - what the fuzz targets have in common.
 *
 * Why.  A target is one function over some bytes.  With clang's libFuzzer it is driven by coverage (preset
 * "fuzz"); everywhere else replay.c runs it over the inputs that are kept in testdata/fuzz, of which each was a
 * finding, or leads to a part of the code (docs/testing.md).
 *
 * Errors     A finding aborts, with a sentence.
 */
#ifndef QM_FUZZ_H
#define QM_FUZZ_H

#include "qmeld.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

/* A folder of this process in memory, made when it is asked for first and removed at exit; then the working
 * directory.  Everything in it is removed by qm_fuzz_clean. */
void qm_fuzz_folder(void);
void qm_fuzz_clean(void);

void qm_fuzz_write(const char *name, const void *data, size_t len);

/* The file's bytes, malloc'd; NULL: there is none. */
unsigned char *qm_fuzz_read(const char *name, size_t *out_len);

/* Has the file these bytes? */
bool qm_fuzz_holds(const char *name, const void *data, size_t len);

/* What an image's view reads as. */
struct qm_fuzz_view {
    bool reads; /* else the rest means nothing */
    uint64_t size;
    uint64_t sum; /* over the bytes that are not zeros, and their places */
};

/* format: NULL: by content.  Bytes from `end` on do not count; holes of any length cost nothing. */
struct qm_fuzz_view qm_fuzz_view(const char *name, const char *format, uint64_t end);
bool qm_fuzz_same(const struct qm_fuzz_view *a, const struct qm_fuzz_view *b);

/* What looks like a LUKS header in there asks for no more than a few milliseconds of key derivation: the bound of luks.h
 * is a minute, and no fuzzer waits for that. */
bool qm_fuzz_keys_are_cheap(const uint8_t *data, size_t len);

/* What must be true is not. */
#define qm_fuzz_must(cond, what)                                                                   \
    do {                                                                                           \
        if (!(cond))                                                                               \
            qm_fuzz_fail(#cond, what);                                                             \
    } while (0)
_Noreturn void qm_fuzz_fail(const char *cond, const char *what);

#endif
