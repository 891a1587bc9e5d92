/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * verify_test.c - commit --verify: what the disk did not keep is found while every layer is there still.
 *
 * The disk that loses bytes is the hook of io.h: in front of a sync it looks into the base for bytes that the
 * merge has written, and spoils them behind its back.
 */
#include "bytes.h"
#include "image.h"
#include "lab.h"
#include "scratch.h"
#include "transfer.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define KIB    1024ull
#define NEEDLE 32 /* so many bytes are told from all others (docs/testing.md, "Recipes") */

struct spoiler {
    const char *path;             /* NULL: base */
    unsigned char needle[NEEDLE]; /* once this is in the base ... */
    size_t len;                   /* 0: any sync will do */
    off_t at;                     /* ... a byte is spoilt here; -1: in the needle itself, */
    off_t skip;                   /*     so far behind its begin */
    bool done;
};

static off_t
find(const struct qm_bytes *file, const unsigned char *needle, size_t len)
{
    const unsigned char *at = memmem(file->at, file->len, needle, len);

    return at ? at - file->at : -1;
}

static int
spoil(const struct qm_io_event *ev, void *opaque)
{
    struct spoiler *s = opaque;
    const char *path = s->path ? s->path : "base";
    struct qm_bytes file;
    unsigned char byte;
    off_t at;
    int fd;

    if (s->done || ev->op != QM_IO_SYNC || strcmp(ev->path, path) != 0)
        return 0;
    file = qm_lab_file(path);
    at = s->len ? find(&file, s->needle, s->len) : s->at;
    if (at >= 0) {
        at = s->at >= 0 ? s->at : at + s->skip;
        byte = (size_t)at < file.len ? file.at[at] : 0;
        byte ^= 0x81;
        fd = open(path, O_WRONLY);
        assert_true(fd >= 0);
        assert_int_equal(pwrite(fd, &byte, 1, at), 1);
        close(fd);
        s->done = true;
    }
    free(file.at);
    return 0;
}

/* What the guest is to read at `at`, of this row. */
static void
look_for(struct spoiler *s, const struct qm_forge *f, size_t row, uint64_t at)
{
    struct qm_bytes view = qm_lab_expect(f, row);

    assert_true(at + NEEDLE <= view.len);
    memcpy(s->needle, view.at + at, NEEDLE);
    s->len = NEEDLE;
    free(view.at);
}

static int
commit_spoilt(const struct qmeld_commit_options *o, struct spoiler *s,
              struct qmeld_commit_report *r, struct qmeld_error *err)
{
    int rc;

    qm_io_set_hook(spoil, s);
    rc = qmeld_commit("top", o, r, err);
    qm_io_set_hook(NULL, NULL);
    assert_true(s->done);
    return rc;
}

static int
note_complete(const struct qmeld_unfinished *u, void *opaque)
{
    *(int *)opaque = u->problem ? -1 : u->complete;
    return 0;
}

/* The merge must notice, keep the layers, and be done right by the same call again. */
static void
is_found(const char *recipe, size_t row, uint64_t guest, off_t at, uint64_t differs)
{
    const struct qmeld_commit_options o = {
        .base = "base", .overlays = QMELD_OVERLAYS_DELETE, .verify = true};
    struct qm_forge *f = qm_lab_make(recipe);
    struct qm_bytes top = qm_lab_file("top");
    struct spoiler s = {.at = at};
    struct qmeld_commit_report r;
    struct qmeld_error bad;
    char words[64];
    int complete = -1;

    look_for(&s, f, row, guest);
    assert_int_equal(commit_spoilt(&o, &s, &r, &bad), -1);
    qmeld_commit_report_free(&r);
    if (bad.code != QMELD_IO)
        fail_msg("%s: %s", bad.file, bad.what);
    assert_int_equal(bad.disk, QMELD_DISK_OPEN);
    assert_string_equal(bad.file, "base");
    snprintf(words, sizeof words, "guest offset %llu the disk gave back other bytes",
             (unsigned long long)differs);
    assert_non_null(strstr(bad.what, words));
    assert_false(r.verified);
    qm_lab_same(qm_lab_file("top"), top, "top");
    qm_lab_reads_as("top", f, 0);
    OK(qmeld_status(".", NULL, note_complete, &complete, err));
    assert_int_equal(complete, 0); /* so that going on writes again */

    OK(qmeld_commit("top", &o, &r, err));
    assert_true(r.resumed && r.verified && r.bytes_verified > 0);
    qmeld_commit_report_free(&r);
    qm_lab_reads_as("base", f, 0);
    assert_int_equal(access("top", F_OK), -1);
    qm_forge_free(f);
}

static void
verify__a_byte_of_a_raw_base(void **state)
{
    (void)state;
    is_found("all cluster=4k\ntop | A.B.\nbase | CCCC format=raw\n", 0, 8 * KIB + 64, -1,
             8 * KIB + 64);
}

static void
verify__a_byte_of_a_new_cluster(void **state)
{
    (void)state;
    is_found("all cluster=4k\ntop | A.BB\nbase | C...\n", 0, 12 * KIB + 32, -1, 12 * KIB + 32);
}

/* It does not inflate any more, or to other bytes. */
static void
verify__a_byte_of_a_compressed_cluster_that_was_passed_on(void **state)
{
    const struct qmeld_commit_options o = {.verify = true};
    struct qm_forge *f = qm_lab_make("all cluster=4k\ntop | A.b.\nbase | C.C.\n");
    struct qm_bytes top = qm_lab_file("top");
    struct spoiler s = {.at = -1, .skip = 2, .len = NEEDLE};
    struct qmeld_commit_report r;
    struct qmeld_error bad;
    struct qm_file *file;
    struct qm_image *img;
    struct qm_extent x;

    (void)state;
    OK(qm_file_open("top", &file, err));
    OK(qm_image_open(file, "qcow2", &img, err));
    OK(qm_image_next(img, qm_guest(8 * KIB), 4 * KIB, &x, err));
    assert_int_equal(x.kind, QM_COMPRESSED);
    memcpy(s.needle, top.at + x.host.h, NEEDLE);
    qm_image_close(img);
    assert_int_equal(commit_spoilt(&o, &s, &r, &bad), -1);
    qmeld_commit_report_free(&r);
    assert_int_equal(bad.code, QMELD_IO);
    assert_non_null(strstr(bad.what, "the disk gave back other bytes"));
    OK(qmeld_commit("top", &o, &r, err));
    assert_true(r.resumed && r.verified);
    qmeld_commit_report_free(&r);
    qm_lab_reads_as("base", f, 0);
    qm_lab_looks("base", 4 * KIB, "D.c.");
    free(top.at);
    qm_forge_free(f);
}

/* The whole of a hole, and not only data. */
static void
verify__a_zero(void **state)
{
    (void)state;
    is_found("all cluster=4k\ntop | A00.\nbase | CCCC format=raw\n", 0, 0, 10000, 10000);
}

/* The rest of a cluster, copied along when a part of it was new: 4 KiB of old content, compressed
 * before, around 512 new bytes. */
static void
verify__what_a_cluster_was_filled_up_with(void **state)
{
    const char *recipe = "top | - cluster=512 size=8k\n"
                         "  fill 512 1 A\n"
                         "base | ab cluster=4k\n";

    (void)state;
    is_found(recipe, 1, 2048, -1, 2048);
}

/* What a layer below the base had: the cluster is new in the base. */
static void
verify__what_comes_from_below_the_base(void **state)
{
    (void)state;
    is_found("top | - cluster=512 size=8k\n"
             "  fill 512 1 A\n"
             "base | .. cluster=4k\n"
             "low | AB cluster=4k\n",
             1, 2048, -1, 2048);
}

/* An entry of the base's tables: the data is there, but nobody finds it. */
static void
verify__a_table(void **state)
{
    const char *recipe = "all cluster=4k\ntop | A.B.\nbase | C...\n";
    const struct qmeld_commit_options plain = {.threads = 1}, o = {.verify = true, .threads = 1};
    struct qm_forge *f = qm_lab_make(recipe);
    struct spoiler s = {.at = -1, .skip = 5, .len = 8};
    struct qmeld_error bad;
    be64 entry;

    (void)state;
    qm_lab_commit("top", &plain);
    be64_put(&entry, 1ull << 63 | qm_lab_host("base", 8 * KIB));
    memcpy(s.needle, &entry, 8);
    qm_forge_free(f);
    f = qm_lab_make(recipe);
    assert_int_equal(commit_spoilt(&o, &s, NULL, &bad), -1);
    assert_int_equal(bad.disk, QMELD_DISK_OPEN);
    qm_lab_reads_as("top", f, 0);
    qm_forge_free(f);
    unlink(".base.qmeld");
}

/* What the other tests would not see without --verify. */
static void
verify__is_what_finds_it(void **state)
{
    const struct qmeld_commit_options o = {.threads = 1};
    struct qm_forge *f = qm_lab_make("all cluster=4k\ntop | A.Bb\nbase | C...\n");
    struct spoiler s = {.at = -1};
    struct qmeld_commit_report r;
    struct qmeld_error bad;

    (void)state;
    look_for(&s, f, 0, 8 * KIB);
    assert_int_equal(commit_spoilt(&o, &s, &r, &bad), 0);
    assert_false(r.verified);
    assert_int_equal(r.bytes_verified, 0);
    qmeld_commit_report_free(&r);
    qm_forge_free(f);
}

static void
verify__a_merge_that_was_done_before(void **state)
{
    const struct qmeld_commit_options plain = {0}, o = {.verify = true};
    struct qm_forge *f = qm_lab_make("all cluster=4k\ntop | A.Bb\nbase | CC..\n");
    struct spoiler s = {.at = -1};
    struct qmeld_commit_report r;
    struct qmeld_error bad;

    (void)state;
    qm_lab_commit("top", &plain);
    OK(qmeld_commit("top", &o, &r, err));
    assert_true(r.already_merged && r.verified);
    assert_int_equal(r.bytes_verified, 12 * KIB);
    qmeld_commit_report_free(&r);
    look_for(&s, f, 0, 0);
    assert_int_equal(commit_spoilt(&o, &s, NULL, &bad), -1);
    assert_int_equal(bad.code, QMELD_IO);
    assert_int_equal(bad.disk, QMELD_DISK_OLD); /* nothing was done now */
    assert_int_equal(access(".base.qmeld", F_OK), -1);
    OK(qmeld_commit("top", &o, &r, err));
    assert_true(!r.already_merged && r.verified);
    qmeld_commit_report_free(&r);
    qm_lab_reads_as("base", f, 0);
    qm_forge_free(f);
}

static int
stop_in(const struct qmeld_progress *p, void *opaque)
{
    return strcmp(p->phase, opaque) == 0;
}

/* What was asked for stands in the journal. */
static void
verify__goes_on_with_the_merge(void **state)
{
    static const char *const phases[] = {"copy", "verify"};

    (void)state;
    for (size_t i = 0; i < 2; i++) {
        char phase[16];
        const struct qmeld_commit_options o = {
            .verify = true, .threads = 1, .progress = stop_in, .opaque = phase};
        struct qm_forge *f = qm_lab_make("all cluster=4k\ntop | A.BbCD\nbase | CC....\n");
        const struct qm_transfer_limits limits = qm_transfer_limits;
        struct qmeld_commit_report r;
        struct qmeld_error bad;

        snprintf(phase, sizeof phase, "%s", phases[i]);
        qm_transfer_limits.batch = 1;
        qm_transfer_limits.step = 4096;
        assert_int_equal(qmeld_commit("top", &o, NULL, &bad), -1);
        qm_transfer_limits = limits;
        assert_int_equal(bad.code, QMELD_CANCELED);
        assert_int_equal(bad.disk, QMELD_DISK_OPEN);
        OK(qmeld_resume(".base.qmeld", NULL, &r, err));
        assert_true(r.resumed && r.verified);
        assert_int_equal(r.bytes_verified, 20 * KIB); /* also what the first run wrote */
        qmeld_commit_report_free(&r);
        qm_lab_reads_as("base", f, 0);
        qm_forge_free(f);
    }
}

/* ---- rebase ---- */

#define REBASE                                                                                     \
    "all cluster=4k\n"                                                                             \
    "top | A...\n"                                                                                 \
    "old | CCCC over=none\n"                                                                       \
    "new | CDEC over=none\n"

static int
rebase_spoilt(bool verify, struct spoiler *s, struct qmeld_rebase_report *r,
              struct qmeld_error *err)
{
    const struct qmeld_rebase_options o = {
        .backing = "new", .backing_format = "qcow2", .verify = verify, .threads = 1};
    int rc;

    s->path = "top";
    qm_io_set_hook(spoil, s);
    rc = qmeld_rebase("top", &o, r, err);
    qm_io_set_hook(NULL, NULL);
    return rc;
}

/* Everybody reads the image: a byte that the disk spoils never becomes a part of it. */
static void
verify__of_a_rebase_keeps_out_what_is_spoilt(void **state)
{
    struct qm_forge *f = qm_lab_make(REBASE);
    struct spoiler s = {.at = -1};
    struct qmeld_rebase_report r;
    struct qmeld_error bad;

    (void)state;
    look_for(&s, f, 0, 8 * KIB);
    assert_int_equal(rebase_spoilt(true, &s, &r, &bad), -1);
    assert_true(s.done);
    assert_int_equal(bad.code, QMELD_IO);
    assert_int_equal(bad.disk, QMELD_DISK_OPEN);
    assert_non_null(strstr(bad.what, "guest offset 8192 the disk gave back other bytes"));
    assert_false(r.verified);
    qmeld_rebase_report_free(&r);
    qm_lab_reads_as("top", f, 0);
    qm_lab_looks("top", 4 * KIB, "D...");
    OK(rebase_spoilt(false, &s, &r, err)); /* the journal says that it is to be verified */
    assert_true(r.resumed && r.verified);
    assert_int_equal(r.bytes_verified, 12 * KIB);
    qmeld_rebase_report_free(&r);
    qm_lab_reads_as("top", f, 0);
    qm_lab_looks("top", 4 * KIB, "DDDD");
    qm_forge_free(f);
}

/* An entry that leads elsewhere: then the image reads wrong already, and at least its header stays. */
static void
verify__of_a_rebase_reads_the_tables(void **state)
{
    struct qm_forge *f = qm_lab_make(REBASE);
    struct spoiler s = {.at = -1, .skip = 5, .len = 8}, none = {.done = true};
    struct qmeld_layer_info info;
    struct qmeld_rebase_report r;
    struct qmeld_chain *chain;
    struct qmeld_error bad;
    be64 entry;

    (void)state;
    OK(rebase_spoilt(true, &none, &r, err));
    assert_true(r.verified);
    qmeld_rebase_report_free(&r);
    be64_put(&entry, 1ull << 63 | qm_lab_host("top", 8 * KIB));
    memcpy(s.needle, &entry, 8);
    qm_forge_free(f);
    f = qm_lab_make(REBASE);
    assert_int_equal(rebase_spoilt(true, &s, &r, &bad), -1);
    assert_true(s.done);
    assert_int_equal(bad.disk, QMELD_DISK_OPEN);
    qmeld_rebase_report_free(&r);
    OK(qmeld_chain_open("top", NULL, &chain, err));
    OK(qmeld_chain_layer(chain, 1, &info, err));
    assert_string_equal(info.backing_name, "old");
    qmeld_chain_close(chain);
    unlink(".top.qmeld");
    qm_forge_free(f);
}

static void
verify__of_a_rebase_is_what_finds_it(void **state)
{
    struct qm_forge *f = qm_lab_make(REBASE);
    struct spoiler s = {.at = -1};
    struct qmeld_rebase_report r;

    (void)state;
    look_for(&s, f, 0, 8 * KIB);
    OK(rebase_spoilt(false, &s, &r, err));
    assert_true(s.done && !r.verified && r.bytes_verified == 0);
    qmeld_rebase_report_free(&r);
    qm_forge_free(f);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verify__a_byte_of_a_raw_base),
        cmocka_unit_test(verify__a_byte_of_a_new_cluster),
        cmocka_unit_test(verify__a_byte_of_a_compressed_cluster_that_was_passed_on),
        cmocka_unit_test(verify__a_zero),
        cmocka_unit_test(verify__what_a_cluster_was_filled_up_with),
        cmocka_unit_test(verify__what_comes_from_below_the_base),
        cmocka_unit_test(verify__a_table),
        cmocka_unit_test(verify__is_what_finds_it),
        cmocka_unit_test(verify__a_merge_that_was_done_before),
        cmocka_unit_test(verify__goes_on_with_the_merge),
        cmocka_unit_test(verify__of_a_rebase_keeps_out_what_is_spoilt),
        cmocka_unit_test(verify__of_a_rebase_reads_the_tables),
        cmocka_unit_test(verify__of_a_rebase_is_what_finds_it),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
