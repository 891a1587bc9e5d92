/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_resume.c - a merge is interrupted, its journal is changed, and it is gone on with, or taken back.
 *
 * Input: options, one byte; where it is stopped, one byte; then changes of the journal: place, two bytes, and a byte
 * to be put there.  Checksums are put right.  Without a change the merge must come to its end: the base reads as
 * the top did.  With changes it may do what they say, which is why a journal of somebody else is not obeyed
 * (docs/crash-safety.md), but neither crash nor run for ever, nor leave the folder: names that could lead out of it
 * are not tried.
 */
#include "fuzz.h"

#include "forge.h"
#include "transfer.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define JOURNAL ".b.qmeld"
#define INTENT  4096u

static const char recipe[] = "all cluster=512\n"
                             "t | A.0.B..C0..a..D.A.0.B..C0..a..D.\n"
                             "m | .E..F..B0.0...D.A.0.B..C0..a..D. size=20000\n"
                             "b | .bB.CC.0D....EE.\n"
                             "  bitmap m 512 2 0101\n";

static unsigned calls;

static int
stop(const struct qmeld_progress *p, void *opaque)
{
    (void)p;
    return ++calls > *(const unsigned *)opaque;
}

static void
put32(uint8_t *at, uint32_t v)
{
    for (unsigned i = 0; i < 4; i++)
        at[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* The text ends where its head says, which may be longer than it was. */
static void
mend(uint8_t *at, size_t len)
{
    const uint32_t n = (uint32_t)(len - INTENT);

    put32(at + 20, n);
    put32(at + 24, (uint32_t)crc32(0, at + INTENT, n));
    put32(at + 28, (uint32_t)crc32(0, at, 28));
    for (unsigned i = 0; i < 2; i++)
        put32(at + 512 + 512 * (size_t)i + 120,
              (uint32_t)crc32(0, at + 512 + 512 * (size_t)i, 120));
}

/* False: it is not to be tried. */
static bool
change(const uint8_t *data, size_t len, size_t *n_changes)
{
    size_t n;
    uint8_t *j = qm_fuzz_read(JOURNAL, &n);
    bool leads_out;

    *n_changes = 0;
    if (!j || n <= INTENT) {
        free(j);
        return false;
    }
    for (; len >= 3; data += 3, len -= 3, ++*n_changes)
        j[((size_t)data[0] << 8 | data[1]) % n] = data[2];
    if (*n_changes > 0) {
        mend(j, n);
        qm_fuzz_write(JOURNAL, j, n);
    }
    leads_out = memchr(j + INTENT, '/', n - INTENT) || memmem(j + INTENT, n - INTENT, "\\u", 2);
    free(j);
    return !leads_out;
}

static void
make(void)
{
    struct qm_forge *f;
    struct qmeld_error err;

    qm_fuzz_must(qm_forge_parse(recipe, "recipe", &f, &err) == 0, err.what);
    qm_fuzz_must(qm_forge_write(f, ".", &err) == 0, err.what);
    qm_forge_free(f);
}

static void
go_on(unsigned options, bool changed, const struct qm_fuzz_view *before)
{
    const struct qmeld_commit_options how = {.threads = 1};
    struct qmeld_commit_report report;
    struct qmeld_error err;
    struct qm_fuzz_view after;
    int rc;

    rc = options & 128 ? qmeld_revert(JOURNAL, &how, &report, &err)
                       : qmeld_resume(JOURNAL, &how, &report, &err);
    qmeld_commit_report_free(&report);
    if (rc < 0)
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
    if (changed)
        return;
    after = qm_fuzz_view("t", "qcow2", UINT64_MAX);
    qm_fuzz_must(qm_fuzz_same(&after, before), "the top reads as it did");
    if (!(options & 128))
        qm_fuzz_must(rc == 0, err.what);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct qmeld_commit_options opts = {.format = "qcow2", .threads = 1, .progress = stop};
    struct qmeld_commit_report report;
    struct qmeld_error err;
    struct qm_fuzz_view before;
    unsigned stop_at;
    size_t n;

    if (len < 2 || len > 2 + 3 * 64)
        return 0;
    stop_at = data[1] % 32;
    opts.opaque = &stop_at;
    opts.atomic = data[0] & 1;
    opts.reclaim = !opts.atomic && (data[0] & 2);
    opts.verify = data[0] & 4;
    opts.overlays = opts.reclaim ? QMELD_OVERLAYS_EMPTY : (enum qmeld_overlays)(data[0] >> 3 & 3);
    opts.top = data[0] & 32 ? "[2]" : NULL;
    qm_transfer_limits.batch = 1024;
    calls = 0;
    qm_fuzz_folder();
    make();
    before = qm_fuzz_view("t", "qcow2", UINT64_MAX);
    qm_fuzz_must(before.reads, "what the forge makes reads");
    (void)!qmeld_commit("t", &opts, &report, &err);
    qmeld_commit_report_free(&report);
    if (change(data + 2, len - 2, &n) && (opts.overlays == QMELD_OVERLAYS_KEEP || n > 0))
        go_on(data[0], n > 0, &before);
    qm_fuzz_clean();
    return 0;
}
