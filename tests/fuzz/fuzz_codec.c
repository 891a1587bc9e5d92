/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_codec.c - any bytes as a compressed cluster, and any cluster compressed and inflated again.
 */
#include "fuzz.h"

#include "image.h"

#include <stdlib.h>
#include <string.h>

#define CLUSTER 65536u

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static unsigned char plain[CLUSTER], packed[CLUSTER], back[CLUSTER];
    struct qm_codec *codec = qm_codec_new();
    enum qm_compression type;
    size_t packed_len, n;
    int level;

    qm_fuzz_must(codec, "memory");
    if (len >= 2) {
        type = data[0] & 1 ? QM_ZSTD : QM_ZLIB;
        level = data[1] % (qm_codec_level_max(type) + 1);
        (void)!qm_codec_inflate(codec, type, data + 2, len - 2, plain, CLUSTER);

        memset(plain, 0, sizeof plain);
        n = len - 2 < CLUSTER ? len - 2 : CLUSTER;
        memcpy(plain, data + 2, n);
        qm_fuzz_must(
            qm_codec_deflate(codec, type, level, plain, CLUSTER, packed, CLUSTER, &packed_len) == 0,
            "memory");
        if (packed_len > 0) {
            qm_fuzz_must(packed_len < CLUSTER, "it became shorter");
            qm_fuzz_must(qm_codec_inflate(codec, type, packed, packed_len, back, CLUSTER) == 0,
                         "what we packed inflates");
            qm_fuzz_must(memcmp(plain, back, CLUSTER) == 0, "to what it was");
        }
    }
    qm_codec_free(codec);
    return 0;
}
