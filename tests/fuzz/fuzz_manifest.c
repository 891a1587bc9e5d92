/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_manifest.c - any text as a manifest, verified against a small image.
 *
 * Names in it may be anything; only what lies in the folder is read, as a service would say it.  Looking changes
 * nothing.
 */
#include "fuzz.h"

#include <stdlib.h>
#include <string.h>

static void
ignore(const char *sentence, void *opaque)
{
    (void)opaque;
    qm_fuzz_must(sentence[0], "a finding says something");
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    static const char *const here[] = {".", NULL};
    static uint8_t disk[65536];
    const struct qmeld_verify_options opts = {
        .output = "o", .allow_paths = here, .threads = 1, .finding = ignore};
    struct qmeld_verify_result r;
    struct qmeld_error err;

    memset(disk, 7, sizeof disk / 2); /* as the seeds have it */
    qm_fuzz_folder();
    qm_fuzz_write("m", data, len);
    qm_fuzz_write("o", disk, sizeof disk);
    qm_fuzz_write("i", disk, sizeof disk);
    if (qmeld_verify("m", &opts, &r, &err) < 0)
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
    else
        qm_fuzz_must(r.leaves_differ <= r.leaves && r.inputs_differ <= r.inputs, "a part is less");
    qm_fuzz_must(qm_fuzz_holds("m", data, len), "looking changed the manifest");
    qm_fuzz_must(qm_fuzz_holds("o", disk, sizeof disk), "or the image");
    qm_fuzz_must(qm_fuzz_holds("i", disk, sizeof disk), "or an input");
    qm_fuzz_clean();
    return 0;
}
