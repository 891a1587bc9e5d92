/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * raw_test.c - raw images, and which format a file is taken for.  The files are in memory.
 */
#include "image.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#define BLOCK (64u << 10) /* more than a page: what a hole in memory is made of */

/* A file in memory, and the image opened over it. */
struct fixture {
    int fd;
    char path[64];
    struct qm_image *img;
    struct qmeld_error err;
};

static void
make_file(struct fixture *f, uint64_t size)
{
    memset(f, 0, sizeof *f);
    f->fd = memfd_create("raw_test", MFD_CLOEXEC);
    assert_true(f->fd >= 0);
    assert_int_equal(ftruncate(f->fd, (off_t)size), 0);
    snprintf(f->path, sizeof f->path, "/proc/self/fd/%d", f->fd);
}

static void
put(struct fixture *f, uint64_t off, const void *bytes, size_t len)
{
    assert_int_equal(pwrite(f->fd, bytes, len, (off_t)off), len);
}

static int
open_as(struct fixture *f, const char *format)
{
    struct qm_file *file;

    assert_int_equal(qm_file_open(f->path, &file, &f->err), 0);
    if (qm_image_open(file, format, &f->img, &f->err) == 0)
        return 0;
    qm_file_close(file);
    return -1;
}

static void
end(struct fixture *f)
{
    qm_image_close(f->img);
    close(f->fd);
}

static struct qm_extent
next(struct fixture *f, uint64_t from)
{
    struct qm_extent e;

    assert_int_equal(qm_image_next(f->img, qm_guest(from), f->img->size - from, &e, &f->err), 0);
    assert_int_equal(e.guest.g, from);
    assert_true(e.has_host && e.host.h == from);
    return e;
}

static void
raw__data_and_holes(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make_file(&f, 8 * BLOCK);
    put(&f, 2 * BLOCK, "x", 1);
    assert_int_equal(open_as(&f, "raw"), 0);
    e = next(&f, 0);
    assert_true(e.kind == QM_ZERO && e.len == 2 * BLOCK);
    e = next(&f, 2 * BLOCK);
    assert_int_equal(e.kind, QM_DATA);
    e = next(&f, 2 * BLOCK + e.len);
    assert_int_equal(e.kind, QM_ZERO);
    assert_int_equal(e.guest.g + e.len, 8 * BLOCK);
    end(&f);
}

static void
raw__answers_are_clipped_and_kept(void **state)
{
    struct fixture f;
    struct qm_extent e;

    (void)state;
    make_file(&f, 8 * BLOCK);
    assert_int_equal(open_as(&f, "raw"), 0);
    assert_int_equal(qm_image_next(f.img, qm_guest(0), 1, &e, &f.err), 0);
    assert_true(e.kind == QM_ZERO && e.len == 1 && e.host.h == 0);

    put(&f, 0, "x", 1);
    e = next(&f, 0); /* from the run that is known */
    assert_int_equal(e.kind, QM_ZERO);
    qm_image_forget(f.img);
    e = next(&f, 0);
    assert_int_equal(e.kind, QM_DATA);
    end(&f);
}

static void
raw__size_is_rounded_up_and_the_rest_is_zero(void **state)
{
    struct fixture f;
    struct qm_extent e;
    unsigned char buf[24];

    (void)state;
    make_file(&f, 0);
    for (unsigned i = 0; i < 1000; i++)
        put(&f, i, "\xff", 1);
    assert_int_equal(open_as(&f, "raw"), 0);
    assert_int_equal(f.img->size, 1024);
    e = next(&f, 0);
    assert_true(e.kind == QM_DATA && e.len == 1000);
    e = next(&f, 1000);
    assert_true(e.kind == QM_ZERO && e.len == 24);
    memset(buf, 1, sizeof buf);
    assert_int_equal(qm_extent_read(f.img, &e, NULL, buf, &f.err), 0);
    assert_int_equal(buf[0] | buf[23], 0);
    end(&f);
}

static void
raw__a_part_reads_its_own_bytes(void **state)
{
    struct fixture f;
    struct qm_extent e, part;
    char buf[4] = "";

    (void)state;
    make_file(&f, 0);
    put(&f, 0, "0123456789abcdef", 16);
    assert_int_equal(open_as(&f, "raw"), 0);
    e = next(&f, 0);
    assert_int_equal(e.len, 16);
    part = qm_extent_part(&e, 10, 3);
    assert_int_equal(part.guest.g, 10);
    assert_int_equal(qm_extent_read(f.img, &part, NULL, buf, &f.err), 0);
    assert_string_equal(buf, "abc");
    end(&f);
}

static void
raw__a_file_that_shrinks_is_an_error_not_zeros(void **state)
{
    struct fixture f;
    struct qm_extent e;
    char buf[512];

    (void)state;
    make_file(&f, 0);
    memset(buf, 'x', sizeof buf);
    put(&f, 0, buf, sizeof buf);
    assert_int_equal(open_as(&f, "raw"), 0);
    e = next(&f, 0);
    assert_int_equal(e.kind, QM_DATA);
    assert_int_equal(ftruncate(f.fd, 100), 0);
    assert_int_equal(qm_extent_read(f.img, &e, NULL, buf, &f.err), -1);
    assert_int_equal(f.err.code, QMELD_IO);
    assert_int_equal(f.err.off, 100);
    end(&f);
}

static void
raw__empty_file_is_an_empty_disk(void **state)
{
    struct fixture f;

    (void)state;
    make_file(&f, 0);
    assert_int_equal(open_as(&f, NULL), 0);
    assert_int_equal(f.img->size, 0);
    assert_string_equal(f.img->ops->format, "raw");
    end(&f);
}

struct sample {
    const char *name;
    uint64_t off;
    const char *bytes;
    size_t len;
};

static void
probe__other_formats_are_refused_by_name(void **state)
{
    static const struct sample samples[] = {
        {"VMDK", 0, "KDMV", 4},
        {"VMDK", 0, "COWD", 4},
        {"VMDK", 0, "# Disk DescriptorFile\nversion=1", 31},
        {"VDI", 64, "\x7f\x10\xda\xbe", 4},
        {"VHD", 0, "conectix", 8},
        {"VHDX", 0, "vhdxfile", 8},
        {"QED", 0, "QED\0", 4},
        {"qcow (version 1)", 0, "QFI\xfb\0\0\0\1", 8},
        {"LUKS", 0, "LUKS\xba\xbe\0\1", 8},
    };

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        const struct sample *s = &samples[i];
        struct fixture f;

        make_file(&f, 4096);
        put(&f, s->off, s->bytes, s->len);
        assert_int_equal(open_as(&f, NULL), -1);
        assert_int_equal(f.err.code, QMELD_UNSUPPORTED);
        if (!strstr(f.err.what, s->name))
            fail_msg("%s: %s", s->name, f.err.what);
        assert_int_equal(open_as(&f, "raw"), 0); /* if somebody says so, it is raw */
        end(&f);
    }
}

static void
probe__qcow2_needs_magic_and_version(void **state)
{
    static const struct {
        const char *bytes;
        bool want;
    } samples[] = {
        {"QFI\xfb\0\0\0\2", true},         {"QFI\xfb\0\0\0\3", true},
        {"QFI\xfb\xff\xff\xff\xff", true}, /* QEMU probes so; opening tells */
        {"QFI\xfb\0\0\0\0", false},        {"QFI\xfa\0\0\0\3", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof samples / sizeof *samples; i++) {
        struct qm_file *file;
        struct fixture f;
        bool is;

        make_file(&f, 0);
        put(&f, 0, samples[i].bytes, 8); /* shorter than a header: padded */
        assert_int_equal(qm_file_open(f.path, &file, &f.err), 0);
        assert_int_equal(qm_image_looks_like_qcow2(file, &is, &f.err), 0);
        assert_int_equal(is, samples[i].want);
        qm_file_close(file);
        close(f.fd);
    }
}

static void
open__unknown_format_is_refused(void **state)
{
    struct fixture f;

    (void)state;
    make_file(&f, 512);
    assert_int_equal(open_as(&f, "vmdk"), -1);
    assert_int_equal(f.err.code, QMELD_UNSUPPORTED);
    assert_non_null(strstr(f.err.what, "\"vmdk\""));
    assert_int_equal(open_as(&f, "qcow2"), -1);
    assert_int_equal(f.err.code, QMELD_CORRUPT);
    close(f.fd);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(raw__data_and_holes),
        cmocka_unit_test(raw__answers_are_clipped_and_kept),
        cmocka_unit_test(raw__size_is_rounded_up_and_the_rest_is_zero),
        cmocka_unit_test(raw__a_part_reads_its_own_bytes),
        cmocka_unit_test(raw__a_file_that_shrinks_is_an_error_not_zeros),
        cmocka_unit_test(raw__empty_file_is_an_empty_disk),
        cmocka_unit_test(probe__other_formats_are_refused_by_name),
        cmocka_unit_test(probe__qcow2_needs_magic_and_version),
        cmocka_unit_test(open__unknown_format_is_refused),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
