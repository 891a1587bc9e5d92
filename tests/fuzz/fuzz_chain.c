/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_chain.c - any two images, one on the other, merged.
 *
 * Input: options, one byte; length of the top, three bytes; the top, whose backing file is "b"; the base.
 *
 * The model needs no knowledge of formats: the top reads as it did, whatever comes of the merge; after one that
 * succeeds the base reads so, too; one that is refused leaves every byte of both files.
 */
#include "fuzz.h"
#include "mutate.h"

#include <stdlib.h>
#include <string.h>

#define TOP  "t"
#define BASE "b"

struct input {
    unsigned options;
    const uint8_t *top, *base;
    size_t top_len, base_len;
};

static bool
parse(const uint8_t *data, size_t len, struct input *in)
{
    if (len < 4 || len > 1 << 20)
        return false;
    in->options = data[0];
    in->top = data + 4;
    in->top_len = (size_t)data[1] | (size_t)data[2] << 8 | (size_t)data[3] << 16;
    if (in->top_len > len - 4)
        return false;
    in->base = in->top + in->top_len;
    in->base_len = len - 4 - in->top_len;
    return true;
}

size_t
qm_fuzz_images(const uint8_t *data, size_t len, struct qm_fuzz_span out[2])
{
    struct input in;

    if (!parse(data, len, &in))
        return 0;
    out[0] = (struct qm_fuzz_span){4, in.top_len};
    out[1] = (struct qm_fuzz_span){4 + in.top_len, in.base_len};
    return 2;
}

/* Names may be anything by now, and what they lead to would be written. */
static bool
is_our_chain(bool *out_raw)
{
    const struct qmeld_open_options opts = {.format = "qcow2"};
    struct qmeld_chain *chain;
    struct qmeld_layer_info info;
    struct qmeld_error err;
    bool ours;

    if (qmeld_chain_open(TOP, &opts, &chain, &err) < 0)
        return false;
    ours = qmeld_chain_depth(chain) == 2 && qmeld_chain_layer(chain, 0, &info, &err) == 0 &&
           strcmp(info.path, BASE) == 0;
    *out_raw = ours && strcmp(info.format, "raw") == 0;
    qmeld_chain_close(chain);
    return ours;
}

/* Nothing in its metadata is wrong; leaks may be. */
static bool
is_sound(const char *name)
{
    struct qmeld_check_result r;
    struct qmeld_error err;

    return qmeld_check(name, "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &r, &err) == 0 &&
           r.corruptions == 0 && r.check_errors == 0;
}

static void
judge(const struct input *in, const struct qm_fuzz_view *before, bool raw, int rc,
      const struct qmeld_error *err)
{
    struct qm_fuzz_view after;

    if (rc < 0)
        qm_fuzz_must(err->what[0] && err->code != QMELD_OK, "a failure says why");
    if (rc < 0 && err->disk == QMELD_DISK_OLD) {
        qm_fuzz_must(qm_fuzz_holds(TOP, in->top, in->top_len), err->what);
        qm_fuzz_must(qm_fuzz_holds(BASE, in->base, in->base_len), err->what);
    }
    if (!before->reads)
        return;
    after = qm_fuzz_view(TOP, "qcow2", UINT64_MAX);
    qm_fuzz_must(qm_fuzz_same(&after, before), "the top reads as it did");
    if (rc == 0) {
        after = qm_fuzz_view(BASE, raw ? "raw" : "qcow2", before->size);
        qm_fuzz_must(after.reads && after.size >= before->size, "the base is as long");
        qm_fuzz_must(after.sum == before->sum, "and reads so, too");
    }
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct qmeld_commit_options opts = {.format = "qcow2", .threads = 1};
    struct qmeld_commit_report report;
    struct qmeld_error err;
    struct qm_fuzz_view before;
    struct input in;
    bool raw, sound;
    int rc;

    if (!parse(data, len, &in))
        return 0;
    opts.atomic = in.options & 1;
    opts.reclaim = !opts.atomic && (in.options & 2);
    opts.skip_equal = in.options & 4;
    opts.detect_zeroes = in.options & 8;
    opts.decompress = in.options & 16;
    opts.verify = in.options & 32;
    opts.overlays = in.options & 64 ? QMELD_OVERLAYS_EMPTY : QMELD_OVERLAYS_KEEP;
    qm_fuzz_folder();
    qm_fuzz_write(TOP, in.top, in.top_len);
    qm_fuzz_write(BASE, in.base, in.base_len);
    if (is_our_chain(&raw)) {
        before = qm_fuzz_view(TOP, "qcow2", UINT64_MAX);
        sound = !raw && is_sound(BASE);
        rc = qmeld_commit(TOP, &opts, &report, &err);
        judge(&in, &before, raw, rc, &err);
        if (sound)
            qm_fuzz_must(is_sound(BASE), "a base that was whole is whole");
        qmeld_commit_report_free(&report);
    }
    qm_fuzz_clean();
    return 0;
}
