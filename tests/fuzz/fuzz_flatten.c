/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_flatten.c - any two images, one on the other, flattened, compared, mapped; encrypted ones, too.
 *
 * Input: options, one byte; length of the top, three bytes; the top, whose backing file is "b"; the base.
 *
 * A flattening that is done reads as the chain does, as qmeld_compare has it, too; one that fails leaves no image.  No
 * byte of the chain changes, and whatever can be salvaged of it can be told without a crash.
 */
#include "fuzz.h"
#include "mutate.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOP  "t"
#define BASE "b"
#define OUT  "o"
#define MOST                                                                                       \
    (16u << 20) /* guest bytes of data: a small file may have more than anybody waits for */

static const struct qmeld_secret secret = {.data = "x", .len = 1};
static const struct qmeld_secrets secrets = {&secret, 1};

static bool
parse(const uint8_t *data, size_t len, size_t *out_top)
{
    if (len < 4 || len > 1 << 20)
        return false;
    *out_top = (size_t)data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16;
    return *out_top <= len - 4;
}

size_t
qm_fuzz_images(const uint8_t *data, size_t len, struct qm_fuzz_span out[2])
{
    size_t top;

    if (!parse(data, len, &top))
        return 0;
    out[0] = (struct qm_fuzz_span){4, top};
    out[1] = (struct qm_fuzz_span){4 + top, len - 4 - top};
    return 2;
}

static int
count(const struct qmeld_extent *e, void *opaque)
{
    uint64_t *sum = opaque;

    if (!e->zero)
        *sum += e->length;
    return *sum > MOST;
}

/* It has little data, and all its layers are those two. */
static bool
is_small(bool salvage)
{
    const struct qmeld_open_options opts = {.format = "qcow2"};
    struct qmeld_chain *chain;
    struct qmeld_error err;
    struct qmeld_layer_info info;
    uint64_t sum = 0;
    bool small;

    if (qmeld_chain_open(TOP, &opts, &chain, &err) < 0)
        return salvage;
    small = (qmeld_map(chain, 0, UINT64_MAX, count, &sum, &err) == 0 || salvage) && sum <= MOST;
    if (qmeld_chain_layer(chain, qmeld_chain_depth(chain) - 1, &info, &err) < 0 ||
        info.virtual_size > 1ull << 40)
        small = false;
    qmeld_chain_close(chain);
    return small;
}

static int
stop_when_long(const struct qmeld_progress *p, void *opaque)
{
    (void)opaque;
    return p->total_bytes > 1ull << 40;
}

static void
ignore(const char *sentence, void *opaque)
{
    (void)opaque;
    qm_fuzz_must(sentence[0], "a finding says something");
}

static void
judge(unsigned options)
{
    const bool salvage = options & 1;
    const struct qmeld_create_options target = {.format = options & 2 ? "qcow2" : "raw",
                                                .cluster_size = options & 4 ? 512 : 0};
    struct qmeld_flatten_options opts = {.format = "qcow2",
                                         .secrets = &secrets,
                                         .share = true,
                                         .salvage = salvage,
                                         .finding = ignore,
                                         .target = options & 2 ? &target : NULL,
                                         .compress = options & 2 && options & 8 ? "zlib" : NULL,
                                         .keep_zeros = options & 16,
                                         .threads = 1,
                                         .progress = stop_when_long};
    const struct qmeld_compare_options how = {.format_a = "qcow2",
                                              .format_b = options & 2 ? "qcow2" : "raw",
                                              .secrets = &secrets,
                                              .threads = 1};
    struct qmeld_flatten_report report;
    struct qmeld_compare_report same;
    struct qmeld_error err;

    if (qmeld_flatten(TOP, OUT, &opts, &report, &err) < 0) {
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
        qm_fuzz_must(access(OUT, F_OK) < 0, "what failed is no image");
        return;
    }
    if (salvage && report.ranges_lost > 0)
        return;
    if (qmeld_compare(TOP, OUT, &how, NULL, NULL, &same, &err) == 0)
        qm_fuzz_must(same.difference == QMELD_SAME, "it reads as the chain does");
    else /* a compressed cluster that is passed on unread may be damaged */
        qm_fuzz_must(salvage || (opts.compress && !qm_fuzz_view(TOP, "qcow2", UINT64_MAX).reads),
                     err.what);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    size_t top;

    if (!parse(data, len, &top) || !qm_fuzz_keys_are_cheap(data, len))
        return 0;
    qm_fuzz_folder();
    qm_fuzz_write(TOP, data + 4, top);
    qm_fuzz_write(BASE, data + 4 + top, len - 4 - top);
    if (is_small(data[0] & 1)) {
        judge(data[0]);
        qm_fuzz_must(qm_fuzz_holds(TOP, data + 4, top), "the top is as it was");
        qm_fuzz_must(qm_fuzz_holds(BASE, data + 4 + top, len - 4 - top), "so is the base");
    }
    qm_fuzz_clean();
    return 0;
}
