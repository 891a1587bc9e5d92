/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_image.c - any bytes as one qcow2 image: headers, extensions, tables, refcounts, snapshots, bitmaps.
 *
 * Looking changes nothing.  What a repair says is whole is whole when it is looked at again, and reads as before,
 * unless entries had to be given up.
 */
#include "fuzz.h"
#include "mutate.h"

#include <stdlib.h>

#define IMAGE "i"

static void
look(void)
{
    const struct qmeld_open_options opts = {.format = "qcow2", .single = true};
    struct qmeld_chain *chain;
    struct qmeld_layer_info info;
    struct qmeld_error err;

    if (qmeld_chain_open(IMAGE, &opts, &chain, &err) < 0) {
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
        return;
    }
    (void)!qmeld_chain_layer(chain, 0, &info, &err);
    qmeld_chain_close(chain);
}

size_t
qm_fuzz_images(const uint8_t *data, size_t len, struct qm_fuzz_span out[2])
{
    (void)data;
    out[0] = (struct qm_fuzz_span){0, len};
    return 1;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct qmeld_check_result r, again;
    struct qm_fuzz_view before, after;
    struct qmeld_error err;

    if (len > 1 << 20)
        return 0;
    qm_fuzz_folder();
    qm_fuzz_write(IMAGE, data, len);
    look();
    before = qm_fuzz_view(IMAGE, "qcow2", UINT64_MAX);
    if (qmeld_check(IMAGE, "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &r, &err) == 0) {
        qm_fuzz_must(qm_fuzz_holds(IMAGE, data, len), "looking changed the file");
        if (qmeld_check(IMAGE, "qcow2", QMELD_REPAIR_ALL, NULL, NULL, &r, &err) == 0) {
            qm_fuzz_must(qmeld_check(IMAGE, "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &again, &err) ==
                             0,
                         err.what);
            if (r.corruptions == 0 && r.check_errors == 0)
                qm_fuzz_must(again.corruptions == 0 && again.check_errors == 0 &&
                                 again.leaks == r.leaks,
                             "what a repair calls whole is whole");
            after = qm_fuzz_view(IMAGE, "qcow2", UINT64_MAX);
            if (before.reads && r.corruptions_fixed == 0)
                qm_fuzz_must(qm_fuzz_same(&before, &after),
                             "mended leaks changed what it reads as");
        }
    }
    qm_fuzz_clean();
    return 0;
}
