/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* qcow2_create_test.c - new images are what was asked for, or no images at all. */
#include "qcow2_check.h"
#include "qcow2_create.h"
#include "scratch.h"
#include "torn.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

static const char path[] = "x";
static const char base[] = "base";

static struct qm_qcow2_create
ordinary(void)
{
    return (struct qm_qcow2_create){
        .size = 10 << 20, .version = 3, .cluster_size = 65536, .refcount_bits = 16};
}

static struct qm_qcow2 *
open_image(void)
{
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_open(path, &file, err));
    OK(qm_qcow2_open(file, 0, &q, err));
    return q;
}

/* Makes it, opens it and lets every reference be counted. */
static struct qm_qcow2 *
make(const struct qm_qcow2_create *want)
{
    struct qmeld_check_result result;
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, want, err));
    OK(qm_file_finish(file, err));
    q = open_image();
    OK(qm_qcow2_check(q, QMELD_REPAIR_NONE, NULL, NULL, &result, err));
    assert_int_equal(result.corruptions + result.leaks + result.check_errors, 0);
    return q;
}

static void
qcow2_create__every_size_and_width_adds_up(void **state)
{
    static const uint64_t sizes[] = {0, 1, 1 << 20, 100000, 6ull << 30, 64ull << 40};

    (void)state;
    for (unsigned bits = 9; bits <= 21; bits += 3)
        for (unsigned order = 0; order <= 6; order += 2)
            for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
                struct qm_qcow2_create want = ordinary();
                struct qmeld_error bad = {0};
                struct qm_qcow2 *q;

                want.size = sizes[i];
                want.cluster_size = 1ull << bits;
                want.refcount_bits = 1u << order;
                if (i == 5 && bits < 15) { /* 64 TiB need a larger L1 table than there may be */
                    assert_int_equal(qm_qcow2_create_check("x", &want, &bad), -1);
                    assert_int_equal(bad.code, QMELD_USAGE);
                    continue;
                }
                q = make(&want);
                assert_int_equal(q->img.size, qm_align_up(sizes[i], 512));
                assert_int_equal(q->hdr.cluster_bits, bits);
                assert_int_equal(q->hdr.refcount_order, order);
                qm_image_close(&q->img);
            }
}

static void
qcow2_create__the_layout_is_the_usual_one(void **state)
{
    const struct qm_qcow2_create want = ordinary();
    struct qm_qcow2 *q = make(&want);

    (void)state;
    assert_int_equal(q->hdr.reftable_off, 1 << 16);
    assert_int_equal(q->hdr.l1_off, 3 << 16);
    assert_int_equal(q->img.file->size, (3 << 16) + 8);
    assert_int_equal(q->hdr.header_len, 112);
    assert_int_equal(q->hdr.ext_end, 504);
    qm_image_close(&q->img);
}

static void
qcow2_create__features_reach_the_header(void **state)
{
    struct qm_qcow2_create want = ordinary();
    struct qm_qcow2 *q;

    (void)state;
    want.compression = QM_ZSTD;
    want.extended_l2 = true;
    want.lazy_refcounts = true;
    want.backing_name = "b/ase.qcow2";
    want.backing_format = "qcow2";
    q = make(&want);
    assert_int_equal(q->hdr.compression, QM_ZSTD);
    assert_int_equal(q->hdr.incompatible, QCOW2_INCOMPAT_COMPRESSION | QCOW2_INCOMPAT_EXTENDED_L2);
    assert_int_equal(q->hdr.compatible, QCOW2_COMPAT_LAZY);
    assert_string_equal(q->img.backing_name, "b/ase.qcow2");
    assert_string_equal(q->img.backing_format, "qcow2");
    qm_image_close(&q->img);

    want = ordinary();
    want.version = 2;
    want.backing_name = "b";
    want.backing_format = "raw";
    q = make(&want);
    assert_int_equal(q->hdr.version, 2);
    assert_string_equal(q->img.backing_name, "b");
    assert_string_equal(q->img.backing_format, "raw");
    qm_image_close(&q->img);
}

static void
qcow2_create__preallocation_gives_every_cluster_a_place(void **state)
{
    (void)state;
    for (int mode = QM_PREALLOC_METADATA; mode <= QM_PREALLOC_FULL; mode++)
        for (int extended = 0; extended < 2; extended++) {
            struct qm_qcow2_create want = ordinary();
            struct qm_qcow2 *q;
            struct stat st;

            want.prealloc = (enum qm_prealloc)mode;
            want.extended_l2 = extended;
            want.size = (3 << 20) + 512;
            want.cluster_size = 16384;
            q = make(&want);
            for (uint64_t c = 0; c < 193; c++) {
                uint64_t word0, word1, table;

                OK(qm_qcow2_l2_entry(q, c, &word0, &word1, &table, err));
                assert_true(word0 & QCOW2_COPIED);
                assert_int_equal(word1, 0); /* extended: a place, but nothing in it */
            }
            assert_int_equal(stat(path, &st), 0);
            if (mode == QM_PREALLOC_METADATA)
                assert_true(st.st_blocks * 512 < 1 << 20);
            else
                assert_true(st.st_blocks * 512 >= 3 << 20);
            qm_image_close(&q->img);
        }
}

static void
refused(const struct qm_qcow2_create *want)
{
    struct qmeld_error bad = {0};

    assert_int_equal(qm_qcow2_create_check("x", want, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
    assert_true(bad.what[0]);
}

#define REFUSED(...)                                                                               \
    do {                                                                                           \
        struct qm_qcow2_create w = ordinary();                                                     \
        __VA_ARGS__;                                                                               \
        refused(&w);                                                                               \
    } while (0)

static void
qcow2_create__what_cannot_be_is_refused(void **state)
{
    char name[1025] = {0};

    (void)state;
    memset(name, 'x', 1024);
    REFUSED(w.cluster_size = 256);
    REFUSED(w.cluster_size = 3000);
    REFUSED(w.cluster_size = 4 << 20);
    REFUSED(w.refcount_bits = 0);
    REFUSED(w.refcount_bits = 3);
    REFUSED(w.refcount_bits = 128);
    REFUSED(w.version = 1);
    REFUSED(w.version = 2; w.refcount_bits = 8);
    REFUSED(w.version = 2; w.lazy_refcounts = true);
    REFUSED(w.version = 2; w.extended_l2 = true);
    REFUSED(w.version = 2; w.compression = QM_ZSTD);
    REFUSED(w.extended_l2 = true; w.cluster_size = 8192);
    REFUSED(w.size = UINT64_MAX);
    REFUSED(w.size = QM_MAX_OFF);
    REFUSED(w.cluster_size = 512; w.size = 1ull << 40);
    REFUSED(w.backing_name = name; w.backing_format = "raw");
    REFUSED(w.backing_name = "b"; w.backing_format = "sixteen_letters_");
    REFUSED(w.backing_name = "b"; w.prealloc = QM_PREALLOC_METADATA);
    name[400] = '\0';
    REFUSED(w.backing_name = name; w.cluster_size = 512);
}

static void
none_or_whole(const unsigned char *file, size_t len, void *opaque)
{
    struct qcow2_header h;
    struct qmeld_error bad = {0};
    unsigned *whole = opaque;

    if (len < 4 || memcmp(file, "QFI\xfb", 4) != 0)
        return;
    assert_int_equal(qcow2_header_decode("state", file, len, 0, &h, &bad), 0);
    assert_string_equal(h.backing_name, "some/base");
    assert_int_equal(h.ext_end, 520); /* behind sector 0 */
    assert_true(len >= h.l1_off + h.l1_entries * 8);
    assert_int_equal(file[h.reftable_off + 5], 2);     /* block at 0x20000 */
    assert_int_equal(file[h.reftable_off * 2 + 7], 1); /* cluster 3 counted */
    for (uint64_t i = 0; i < h.l1_entries * 8; i++)
        assert_int_equal(file[h.l1_off + i], 0);
    qcow2_header_release(&h);
    ++*whole;
}

static void
qcow2_create__a_crash_leaves_none_or_a_whole_image(void **state)
{
    struct qm_qcow2_create want = ordinary();
    struct qm_file *file;
    struct qm_torn *t;
    unsigned whole = 0;
    size_t n;

    (void)state;
    want.prealloc = QM_PREALLOC_FULL; /* an image with much inside is there before */
    qm_image_close(&make(&want)->img);
    want.prealloc = QM_PREALLOC_OFF;
    want.backing_name = "some/base";
    want.backing_format = "raw";
    OK(qm_file_create(path, &file, err));
    /* what was there before may be left whole, too: not of interest here */
    OK(qm_truncate(file, 0, err));
    t = qm_torn_start(path);
    OK(qm_qcow2_create(file, &want, err));
    qm_torn_stop(t);
    OK(qm_file_finish(file, err));
    n = qm_torn_replay(t, none_or_whole, &whole);
    qm_torn_free(t);
    assert_true(n > 20); /* all different */
    assert_in_range(whole, 1, 4);
}

/* ---- the public call ---- */

static void
qcow2_create__the_backing_file_gives_the_size(void **state)
{
    struct qmeld_create_options o = {.format = "raw", .size = 12345, .has_size = true};
    struct qmeld_error bad = {0};
    struct qm_qcow2 *q;
    struct stat st;

    (void)state;
    OK(qmeld_create(base, &o, err));
    assert_int_equal(stat(base, &st), 0);
    assert_int_equal(st.st_size, 12800);
    o = (struct qmeld_create_options){
        .format = "qcow2", .backing_name = "base", .backing_format = "raw"};
    OK(qmeld_create(path, &o, err));
    q = open_image();
    assert_int_equal(q->img.size, 12800);
    qm_image_close(&q->img);

    o.backing_name = "missing";
    assert_int_equal(qmeld_create(path, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_IO);
    o.unsafe_backing = true;
    assert_int_equal(qmeld_create(path, &o, &bad), -1); /* no size */
    assert_int_equal(bad.code, QMELD_USAGE);
    o.has_size = true;
    OK(qmeld_create(path, &o, err));
    o.backing_format = NULL;
    assert_int_equal(qmeld_create(path, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
}

static void
qcow2_create__an_image_never_overwrites_its_own_backing_file(void **state)
{
    struct qmeld_create_options o = {.format = "raw", .size = 4096, .has_size = true};
    struct qmeld_error bad = {0};
    struct stat before, after;

    (void)state;
    OK(qmeld_create(base, &o, err));
    assert_int_equal(stat(base, &before), 0);
    o = (struct qmeld_create_options){
        .format = "qcow2", .backing_name = "base", .backing_format = "raw"};
    assert_int_equal(qmeld_create(base, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
    OK(qmeld_create(path, &o, err)); /* base <- x; and x must not go over base either */
    o.backing_name = "x";
    o.backing_format = "qcow2";
    assert_int_equal(qmeld_create(base, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
    assert_int_equal(stat(base, &after), 0);
    assert_int_equal(before.st_size, after.st_size);
}

static void
qcow2_create__an_image_in_use_stays_as_it_is(void **state)
{
    struct qmeld_create_options o = {.format = "raw", .size = 4096, .has_size = true};
    struct flock lock = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 201, .l_len = 1};
    struct qmeld_error bad = {0};
    struct stat st;
    int fd;

    (void)state;
    OK(qmeld_create(path, &o, err));
    fd = open(path, O_RDONLY); /* as a QEMU that reads it and lets nobody write */
    assert_true(fd >= 0);
    assert_int_equal(fcntl(fd, F_OFD_SETLK, &lock), 0);
    o.size = 1 << 20;
    assert_int_equal(qmeld_create(path, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_BUSY);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 4096);
    close(fd);
    OK(qmeld_create(path, &o, err));
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_size, 1 << 20);
}

static int
fail_at(const struct qm_io_event *ev, void *opaque)
{
    unsigned *left = opaque;

    return ev->op == QM_IO_UNLINK || (*left)-- > 0 ? 0 : 28 /* ENOSPC */;
}

static void
qcow2_create__a_new_file_that_failed_is_removed(void **state)
{
    struct qmeld_create_options o = {.format = "qcow2", .size = 4096, .has_size = true};
    struct qmeld_error bad = {0}, now;
    unsigned failures = 0;

    (void)state;
    for (unsigned n = 0; n < 100; n++) {
        unsigned left = n;
        int rc;

        unlink(path);
        qm_io_set_hook(fail_at, &left);
        rc = qmeld_create(path, &o, &now);
        qm_io_set_hook(NULL, NULL);
        if (rc == 0)
            break;
        bad = now;
        assert_int_equal(bad.code, QMELD_NOSPACE);
        assert_int_equal(access(path, F_OK), bad.disk == QMELD_DISK_NEW ? 0 : -1);
        failures++;
    }
    assert_in_range(failures, 5, 20);
    assert_int_equal(bad.disk, QMELD_DISK_NEW); /* the last to fail: the directory's sync */
}

static void
qcow2_create__raw_takes_no_qcow2_options(void **state)
{
    struct qmeld_create_options o = {.format = "raw", .has_size = true, .cluster_size = 65536};
    struct qmeld_error bad = {0};

    (void)state;
    assert_int_equal(qmeld_create(path, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
    o = (struct qmeld_create_options){.has_size = true, .preallocation = "metadata"};
    assert_int_equal(qmeld_create(path, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
    o = (struct qmeld_create_options){.format = "vmdk", .has_size = true};
    assert_int_equal(qmeld_create(path, &o, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qcow2_create__every_size_and_width_adds_up),
        cmocka_unit_test(qcow2_create__the_layout_is_the_usual_one),
        cmocka_unit_test(qcow2_create__features_reach_the_header),
        cmocka_unit_test(qcow2_create__preallocation_gives_every_cluster_a_place),
        cmocka_unit_test(qcow2_create__what_cannot_be_is_refused),
        cmocka_unit_test(qcow2_create__a_crash_leaves_none_or_a_whole_image),
        cmocka_unit_test(qcow2_create__the_backing_file_gives_the_size),
        cmocka_unit_test(qcow2_create__an_image_never_overwrites_its_own_backing_file),
        cmocka_unit_test(qcow2_create__an_image_in_use_stays_as_it_is),
        cmocka_unit_test(qcow2_create__a_new_file_that_failed_is_removed),
        cmocka_unit_test(qcow2_create__raw_takes_no_qcow2_options),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
