/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * look_test.c - the looking calls of qmeld.h over forged chains.
 *
 * The lists of extents are what qemu-img 7.2.22 prints for these chains (the oracle suite compares
 * many more); here they are written down, so that no QEMU is needed.
 */
#include "forge.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- chains --------------------------------------------------------------------------------- */

static void
forge(const char *recipe)
{
    struct qmeld_error err = {0};
    struct qm_forge *f;

    if (qm_forge_parse(recipe, "recipe", &f, &err) < 0 || qm_forge_write(f, ".", &err) < 0)
        fail_msg("%s: %s", err.file, err.what);
    qm_forge_free(f);
}

static struct qmeld_chain *
opens(const char *path, const char *format)
{
    const struct qmeld_open_options opts = {.format = format};
    struct qmeld_error err = {0};
    struct qmeld_chain *c;

    if (qmeld_chain_open(path, &opts, &c, &err) < 0)
        fail_msg("%s: %s", err.file, err.what);
    return c;
}

/* One line an extent: "START+LENGTH dDEPTH FLAGS", numbers in KiB unless "b" follows; flags: p
 * present, z zero, d data, c compressed, @ at an offset, @= at the offset that the guest sees. */
struct text {
    char at[4096];
    size_t used;
    size_t stop_after; /* extents; 0: never */
};

static size_t
print_size(char *buf, size_t room, uint64_t v)
{
    return (size_t)(v % 1024 ? snprintf(buf, room, "%" PRIu64 "b", v)
                             : snprintf(buf, room, "%" PRIu64, v / 1024));
}

static int
print_extent(const struct qmeld_extent *e, void *opaque)
{
    struct text *t = opaque;
    const char *at = !e->has_offset ? "" : e->offset == e->start ? "@=" : "@";
    char start[32], length[32];

    print_size(start, sizeof start, e->start);
    print_size(length, sizeof length, e->length);
    t->used += (size_t)snprintf(t->at + t->used, sizeof t->at - t->used, "%s+%s d%zu %s%s%s%s%s\n",
                                start, length, e->depth, e->present ? "p" : "", e->zero ? "z" : "",
                                e->data ? "d" : "", e->compressed ? "c" : "", at);
    assert_true(t->used < sizeof t->at);
    return t->stop_after && --t->stop_after == 0;
}

static void
check_map(const char *path, const char *format, uint64_t start, uint64_t length, const char *want)
{
    struct qmeld_chain *c = opens(path, format);
    struct qmeld_error err = {0};
    struct text t = {.used = 0};

    if (qmeld_map(c, start, length, print_extent, &t, &err) < 0)
        fail_msg("%s: %s", err.file, err.what);
    assert_string_equal(t.at, want);
    qmeld_chain_close(c);
}

static void
write_at(const char *path, uint64_t off, const void *bytes, size_t len, uint64_t size)
{
    const int fd = open(path, O_RDWR | O_CREAT, 0666);

    assert_true(fd >= 0);
    assert_int_equal(ftruncate(fd, (off_t)size), 0);
    assert_int_equal(pwrite(fd, bytes, len, (off_t)off), len);
    close(fd);
}

/* ---- map ----------------------------------------------------------------------------------------
 */

/* The first layer that is too short ends the search; the extent's depth is that of the layer
 * above it, which has nothing there. */
static void
look__past_the_end_of_a_layer_its_overlay_answers(void **state)
{
    (void)state;
    forge("t | .....A.. size=512k\n"
          "m | ... size=192k\n"
          "b | BBBBBBBB size=512k format=raw\n");
    check_map("t", "qcow2", 0, UINT64_MAX,
              "0+192 d2 pd@=\n"
              "192+128 d0 z\n"
              "320+64 d0 pd@\n"
              "384+128 d0 z\n");
}

static void
look__what_nobody_has_is_the_bases_zero(void **state)
{
    (void)state;
    forge("t | A... size=256k\n"
          "b | ..0. size=256k\n");
    check_map("t", "qcow2", 0, UINT64_MAX,
              "0+64 d0 pd@\n"
              "64+64 d1 z\n"
              "128+64 d1 pz\n"
              "192+64 d1 z\n");
}

static void
look__compressed_data_has_no_offset_and_joins(void **state)
{
    (void)state;
    forge("t | aab. size=256k\n");
    check_map("t", "qcow2", 0, UINT64_MAX,
              "0+192 d0 pdc\n"
              "192+64 d0 z\n");
}

static void
look__data_joins_only_where_its_place_goes_on(void **state)
{
    struct qmeld_error err = {0};
    struct text t = {.used = 0};
    struct qmeld_chain *c;
    size_t lines = 0;

    (void)state;
    forge("t | AAAAAAAA size=512k scatter=7\n");
    c = opens("t", "qcow2");
    assert_int_equal(qmeld_map(c, 0, UINT64_MAX, print_extent, &t, &err), 0);
    for (const char *p = t.at; *p; p++)
        lines += *p == '\n';
    assert_true(lines > 1);
    qmeld_chain_close(c);
}

static void
look__raw_holes_are_present_zeros_with_an_offset(void **state)
{
    const char block[65536] = {'x'};

    (void)state;
    write_at("r", 65536, block, sizeof block, 1 << 20);
    check_map("r", "raw", 0, UINT64_MAX,
              "0+64 d0 pz@=\n"
              "64+64 d0 pd@=\n"
              "128+896 d0 pz@=\n");
}

static void
look__a_raw_tail_is_padded_to_a_sector(void **state)
{
    char bytes[1000];

    (void)state;
    memset(bytes, 'x', sizeof bytes);
    write_at("r", 0, bytes, sizeof bytes, sizeof bytes);
    check_map("r", "raw", 0, UINT64_MAX,
              "0+1000b d0 pd@=\n"
              "1000b+24b d0 pz@=\n");
}

/* Nothing is said about the subcluster, but its cluster has a place: QEMU prints it. */
static void
look__an_unallocated_subcluster_keeps_its_offset(void **state)
{
    (void)state;
    forge("t | #. size=128k extended_l2=1\n"
          "  sub 0 AA000...........................\n");
    check_map("t", "qcow2", 0, UINT64_MAX,
              "0+4 d0 pd@\n"
              "4+6 d0 pz@\n"
              "10+54 d0 z@\n"
              "64+64 d0 z\n");
    forge("u | . size=128k\n"
          "t | #. size=128k extended_l2=1\n"
          "  sub 0 AA..............................\n"
          "s | .. size=8k cluster=4k\n");
    check_map("u", "qcow2", 0, UINT64_MAX,
              "0+4 d1 pd@\n"
              "4+4 d2 z\n"
              "8+56 d1 z@\n"
              "64+64 d1 z\n");
}

static int
punch_data(const struct qmeld_extent *e, void *opaque)
{
    const int *fd = opaque;

    if (!e->data)
        return 0;
    return fallocate(*fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)e->offset,
                     (off_t)e->length);
}

/* More clusters in use than the file takes on disk: QEMU then looks for holes in the file. */
static void
look__preallocated_metadata_is_zero_and_data(void **state)
{
    struct qmeld_error err = {0};
    struct qmeld_chain *c;
    int fd;

    (void)state;
    forge("t | .A.B.C.D.E.F.G.H size=1M\n");
    c = opens("t", "qcow2");
    fd = open("t", O_RDWR);
    assert_true(fd >= 0);
    if (qmeld_map(c, 192 << 10, UINT64_MAX, punch_data, &fd, &err) < 0)
        skip();
    close(fd);
    qmeld_chain_close(c);
    check_map("t", "qcow2", 0, 256 << 10,
              "0+64 d0 z\n"
              "64+64 d0 pd@\n"
              "128+64 d0 z\n"
              "192+64 d0 pzd@\n");
}

static void
look__start_and_length_clip_the_map(void **state)
{
    (void)state;
    forge("t | AAAA size=256k format=raw\n");
    check_map("t", "raw", 96 << 10, 64 << 10, "96+64 d0 pd@=\n");
    check_map("t", "raw", 192 << 10, UINT64_MAX, "192+64 d0 pd@=\n");
    check_map("t", "raw", 256 << 10, UINT64_MAX, "");
    check_map("t", "raw", UINT64_MAX, 1, "");
    check_map("t", "raw", 0, 0, "");
}

static void
look__an_empty_disk_has_no_extents(void **state)
{
    (void)state;
    write_at("r", 0, "", 0, 0);
    check_map("r", "raw", 0, UINT64_MAX, "");
}

static void
look__the_callback_may_end_the_walk(void **state)
{
    struct qmeld_error err = {0};
    struct text t = {.stop_after = 2};
    struct qmeld_chain *c;

    (void)state;
    forge("t | A.A. size=256k\n");
    c = opens("t", NULL);
    assert_int_equal(qmeld_map(c, 0, UINT64_MAX, print_extent, &t, &err), -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    assert_string_equal(t.at, "0+64 d0 pd@\n"
                              "64+64 d0 z\n");
    qmeld_chain_close(c);
}

/* ---- read ---------------------------------------------------------------------------------------
 */

static void
look__reading_goes_through_all_layers(void **state)
{
    static const char recipe[] = "t | A..0..a. size=512k\n"
                                 "m | .b...... size=512k cluster=32k\n"
                                 "b | CCCCCCC size=448k cluster=4k\n";
    static unsigned char got[512 << 10], want[512 << 10];
    struct qmeld_error err = {0};
    struct qm_forge *f;
    struct qmeld_chain *c;
    FILE *file;

    (void)state;
    assert_int_equal(qm_forge_parse(recipe, "recipe", &f, &err), 0);
    assert_int_equal(qm_forge_write(f, ".", &err), 0);
    assert_int_equal(qm_forge_expect(f, 0, "want", &err), 0);
    qm_forge_free(f);
    file = fopen("want", "r");
    assert_non_null(file);
    assert_int_equal(fread(want, 1, sizeof want, file), sizeof want);
    fclose(file);
    c = opens("t", "qcow2");
    assert_int_equal(qmeld_read(c, 0, got, sizeof got, &err), 0);
    assert_memory_equal(got, want, sizeof want);
    for (uint64_t off = 0; off < sizeof want - 70000; off += 33333) {
        assert_int_equal(qmeld_read(c, off, got, 70000, &err), 0);
        assert_memory_equal(got, want + off, 70000);
    }
    qmeld_chain_close(c);
}

static void
look__reading_past_the_end_is_refused(void **state)
{
    struct qmeld_error err = {0};
    struct qmeld_chain *c;
    char buf[1024];

    (void)state;
    forge("t | A size=64k\n");
    c = opens("t", "qcow2");
    assert_int_equal(qmeld_read(c, (64 << 10) - 512, buf, 512, &err), 0);
    assert_int_equal(qmeld_read(c, (64 << 10) - 512, buf, 513, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_int_equal(qmeld_read(c, UINT64_MAX, buf, 2, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_int_equal(qmeld_read(c, 64 << 10, buf, 0, &err), 0);
    qmeld_chain_close(c);
}

/* ---- layers -------------------------------------------------------------------------------------
 */

static void
look__a_layer_is_described(void **state)
{
    struct qmeld_layer_info info;
    struct qmeld_error err = {0};
    struct qmeld_chain *c;

    (void)state;
    forge("t | A. size=128k version=3 refcount_bits=8 compression=zstd lazy=1 autoclear=0x100\n"
          "b | B. size=16k cluster=8k version=2\n");
    c = opens("t", NULL);
    assert_int_equal(qmeld_chain_depth(c), 2);
    assert_int_equal(qmeld_chain_layer(c, 1, &info, &err), 0);
    assert_string_equal(info.path, "t");
    assert_string_equal(info.format, "qcow2");
    assert_true(info.format_probed);
    assert_int_equal(info.virtual_size, 128 << 10);
    assert_int_equal(info.version, 3);
    assert_int_equal(info.cluster_size, 65536);
    assert_int_equal(info.refcount_bits, 8);
    assert_string_equal(info.compression, "zstd");
    assert_string_equal(info.backing_name, "b");
    assert_string_equal(info.backing_format, "qcow2");
    assert_true(info.lazy_refcounts);
    assert_int_equal(info.unknown_autoclear, 0x100);
    assert_null(info.holder);
    assert_null(info.encryption);
    assert_int_equal(qmeld_chain_layer(c, 0, &info, &err), 0);
    assert_false(info.format_probed);
    assert_int_equal(info.version, 2);
    assert_int_equal(info.cluster_size, 8192);
    assert_null(info.backing_name);
    assert_int_equal(qmeld_chain_layer(c, 2, &info, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    qmeld_chain_close(c);
}

/* An encrypted image can be described; its bytes are out of reach, in one clear sentence. */
static void
look__what_cannot_be_read_is_refused_when_read(void **state)
{
    struct qmeld_layer_info info;
    struct qmeld_error err = {0};
    struct qmeld_chain *c;
    const unsigned char aes = 1;
    struct text t = {.used = 0};
    char buf[512];
    int fd;

    (void)state;
    forge("t | A size=64k\n");
    fd = open("t", O_WRONLY);
    assert_int_equal(pwrite(fd, &aes, 1, 35), 1); /* low byte of the encryption method */
    close(fd);
    c = opens("t", "qcow2");
    assert_int_equal(qmeld_chain_layer(c, 0, &info, &err), 0);
    assert_string_equal(info.encryption, "aes");
    assert_int_equal(qmeld_map(c, 0, UINT64_MAX, print_extent, &t, &err), 0);
    assert_int_equal(qmeld_read(c, 0, buf, sizeof buf, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_non_null(strstr(err.what, "encrypted"));
    qmeld_chain_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, qm_scratch_enter, qm_scratch_leave)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(look__past_the_end_of_a_layer_its_overlay_answers),
        TEST(look__what_nobody_has_is_the_bases_zero),
        TEST(look__compressed_data_has_no_offset_and_joins),
        TEST(look__data_joins_only_where_its_place_goes_on),
        TEST(look__raw_holes_are_present_zeros_with_an_offset),
        TEST(look__a_raw_tail_is_padded_to_a_sector),
        TEST(look__an_unallocated_subcluster_keeps_its_offset),
        TEST(look__preallocated_metadata_is_zero_and_data),
        TEST(look__start_and_length_clip_the_map),
        TEST(look__an_empty_disk_has_no_extents),
        TEST(look__the_callback_may_end_the_walk),
        TEST(look__reading_goes_through_all_layers),
        TEST(look__reading_past_the_end_is_refused),
        TEST(look__a_layer_is_described),
        TEST(look__what_cannot_be_read_is_refused_when_read),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
