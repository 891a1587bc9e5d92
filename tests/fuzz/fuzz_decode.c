/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_decode.c - any bytes as a header cluster, and as entries of the tables of such an image; no files.
 *
 * What is decoded is written as itself: a header's fixed fields, an L2 entry, a refcount.
 */
#include "fuzz.h"
#include "mutate.h"

#include "qcow2_disk.h"

#include <stdlib.h>
#include <string.h>

size_t
qm_fuzz_images(const uint8_t *data, size_t len, struct qm_fuzz_span out[2])
{
    (void)data;
    out[0] = (struct qm_fuzz_span){0, len};
    return 1;
}

static void
same_l2(const struct qcow2_geo *g, uint64_t word0, uint64_t word1)
{
    struct qcow2_l2 e, again;
    uint64_t w0, w1;

    if (qcow2_l2_decode(g, word0, word1, &e) != QCOW2_L2_OK)
        return;
    if (e.kind == QCOW2_L2_COMPRESSED && !qcow2_l2_fits(g, &e))
        return;
    qcow2_l2_encode(g, &e, &w0, &w1);
    qm_fuzz_must(qcow2_l2_decode(g, w0, w1, &again) == QCOW2_L2_OK, "what we write can be read");
    qm_fuzz_must(e.kind == again.kind && e.copied == again.copied && e.has_host == again.has_host &&
                     e.host.h == again.host.h && e.alloc == again.alloc && e.zero == again.zero &&
                     e.payload_len == again.payload_len,
                 "an entry is written as itself");
}

/* One count changes, and no other. */
static void
same_refcount(uint32_t order, const uint8_t *data, size_t len)
{
    unsigned char block[512];
    const uint64_t n = sizeof block * 8 >> order, max = qcow2_refcount_max(order);
    uint64_t idx, value, was, next;

    if (len < sizeof block + 16)
        return;
    memcpy(block, data, sizeof block);
    idx = be64_get((const be64 *)(data + sizeof block)) % n;
    value = be64_get((const be64 *)(data + sizeof block + 8)) & max;
    was = qcow2_refcount_get(block, order, idx);
    next = qcow2_refcount_get(block, order, (idx + 1) % n);
    qcow2_refcount_put(block, order, idx, value);
    qm_fuzz_must(qcow2_refcount_get(block, order, idx) == value, "a count is what was set");
    qm_fuzz_must(n == 1 || qcow2_refcount_get(block, order, (idx + 1) % n) == next, "no other");
    qcow2_refcount_put(block, order, idx, was);
    qm_fuzz_must(memcmp(block, data, sizeof block) == 0, "and can be set back");
}

static void
header(const uint8_t *data, size_t len, unsigned flags)
{
    unsigned char area[4096], *zeros;
    const size_t room = qcow2_header_area(data, len);
    struct qcow2_header h;
    struct qmeld_error err;

    qm_fuzz_must(room >= 512 && room <= 2u << 20, "the area is bounded");
    zeros = calloc(room, 1);
    qm_fuzz_must(zeros, "memory");
    memcpy(zeros, data, len < room ? len : room);
    if (qcow2_header_decode("f", zeros, room, flags, &h, &err) < 0) {
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
        free(zeros);
        return;
    }
    if (h.size == be64_get(&((struct qcow2_disk_header *)zeros)->size)) { /* it is rounded */
        memcpy(area, zeros, sizeof(struct qcow2_disk_header));
        qcow2_header_encode(&h, (struct qcow2_disk_header *)area);
        qm_fuzz_must(memcmp(area, zeros, h.header_len < 105 ? h.header_len : 105) == 0,
                     "a header is written as itself");
    }
    if (len > 512) {
        const struct qcow2_geo g = qcow2_geo_of(&h);

        for (size_t i = 512; i + 16 <= len && i < 1536; i += 16)
            same_l2(&g, be64_get((const be64 *)(data + i)), be64_get((const be64 *)(data + i + 8)));
        same_refcount(h.refcount_order, data + 512, len - 512);
    }
    qcow2_header_release(&h);
    free(zeros);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    if (len < 24)
        return 0;
    header(data, len, QCOW2_DECODE_STRICT);
    header(data, len, QCOW2_DECODE_FOR_CHECK);
    header(data, len, QCOW2_DECODE_FOR_CHECK | QCOW2_DECODE_SALVAGE);
    return 0;
}
