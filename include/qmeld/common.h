/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qmeld/common.h - what calls of several subjects take: passphrases, progress, findings.
 *
 * What holds for all calls - units, errors, threads - stands in qmeld.h.
 *
 * Threads    Callbacks run on the thread that made the call.
 */
#ifndef QMELD_COMMON_H
#define QMELD_COMMON_H

#include "error.h"

#ifdef __cplusplus
extern "C" {
#endif

/* A passphrase of encrypted images (qcow2 with LUKS, or with the legacy AES). */
struct qmeld_secret {
    const char *layer; /* path of the image that it opens; NULL: any for which none is named */
    const void *
        data; /* its bytes, as they are: a newline at the end counts, as in files of QEMU's secret objects */
    size_t len; /* at most QMELD_MAX_SECRET */
};
#define QMELD_MAX_SECRET 65536u

/* Those that a call has.  The caller's; read during the call only (qmeld_chain_open: until it returns), never written
 * anywhere, and not kept.  Of several that may open an image each is tried; of the legacy AES, which any passphrase
 * opens, USAGE if there is more than one: name the image.  An image that is encrypted and for which there is none, or
 * none that is right: USAGE.  What a LUKS header asks for is bounded: about a minute for each image and passphrase,
 * UNSUPPORTED if it is more. */
struct qmeld_secrets {
    const struct qmeld_secret *list;
    size_t n;
};

struct qmeld_progress {
    uint64_t done_bytes;  /* of real work: guest bytes copied, compressed ones as inflated */
    uint64_t total_bytes; /* of real work, exact; 0 while it is being counted */
    const char *phase;    /* "count", "compare" (looking, nothing is written), "copy", "verify";
                           * "restore": done and total count the disk's bytes that are put back */
};

/* Called a few times a second on the calling thread.  A result other than 0 asks to stop:
 * the call ends at the next point where every file has a name for its state. */
typedef int qmeld_progress_fn(const struct qmeld_progress *progress, void *opaque);

/* One finding, one sentence, no newline. */
typedef void qmeld_finding_fn(const char *sentence, void *opaque);

#ifdef __cplusplus
}
#endif

#endif
