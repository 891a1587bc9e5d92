/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_test.c - the forge and the readers, each the other's witness.
 *
 * Files are needed here, and nothing else: this is what is known about the readers on a machine
 * without QEMU.  Each layer of random chains is read through chain and map, and must be what the
 * forge painted.
 */
#include "forge.h"
#include "map.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define STEP 65536u

struct fixture {
    char dir[64];
    struct qm_forge *forge;
    struct qmeld_error err;
};

static void
path_of(const struct fixture *f, const char *file, char *out, size_t len)
{
    assert_true(snprintf(out, len, "%s/%s", f->dir, file) < (int)len);
}

static void
begin(struct fixture *f, const char *text)
{
    strcpy(f->dir, "/tmp/qmeld-forge.XXXXXX");
    memset(&f->err, 0, sizeof f->err);
    assert_non_null(mkdtemp(f->dir));
    if (qm_forge_parse(text, "recipe", &f->forge, &f->err) < 0)
        fail_msg("line %lu: %s", (unsigned long)f->err.off, f->err.what);
    if (qm_forge_write(f->forge, f->dir, &f->err) < 0)
        fail_msg("%s", f->err.what);
}

static void
end(struct fixture *f)
{
    char path[128];

    for (size_t i = 0; i < qm_forge_n_layers(f->forge); i++) {
        path_of(f, qm_forge_file(f->forge, i), path, sizeof path);
        unlink(path);
    }
    path_of(f, "want", path, sizeof path);
    unlink(path);
    rmdir(f->dir);
    qm_forge_free(f->forge);
}

/* The view of a layer through our chain and map, against what was painted. */
static void
check_layer(struct fixture *f, size_t layer, unsigned seed)
{
    static char got[STEP];
    static char want[STEP];
    const char *name = qm_forge_file(f->forge, layer);
    struct qm_chain_options opts = {.mode = QM_CHAIN_LOOK,
                                    .format = qm_forge_format(f->forge, layer)};
    struct qm_chain *chain;
    char path[128];
    uint64_t size;
    int fd;

    path_of(f, "want", path, sizeof path);
    assert_int_equal(qm_forge_expect(f->forge, layer, path, &f->err), 0);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    path_of(f, name, path, sizeof path);
    if (qm_chain_open(path, &opts, &chain, &f->err) < 0)
        fail_msg("seed %u, %s: %s", seed, name, f->err.what);
    size = chain->layers[chain->n - 1].img->size;
    assert_int_equal(size, lseek(fd, 0, SEEK_END));
    for (uint64_t at = 0; at < size; at += STEP) {
        const uint64_t n = qm_min(STEP, size - at);

        assert_int_equal(pread(fd, want, n, (off_t)at), n);
        if (qm_map_read(chain, 0, chain->n - 1, qm_guest(at), got, n, &f->err) < 0)
            fail_msg("seed %u, %s: %s", seed, name, f->err.what);
        if (memcmp(got, want, n) != 0)
            fail_msg("seed %u, %s: another view than painted, near %lu", seed, name,
                     (unsigned long)at);
    }
    qm_chain_close(chain);
    close(fd);
}

static void
forge__readers_see_what_was_painted(void **state)
{
    (void)state;
    for (unsigned seed = 1; seed <= 25; seed++) {
        struct fixture f;
        char *text;
        size_t len;
        FILE *out = open_memstream(&text, &len);

        assert_non_null(out);
        qm_forge_random(seed, out);
        assert_int_equal(fclose(out), 0);
        begin(&f, text);
        for (size_t i = 0; i < qm_forge_n_layers(f.forge); i++)
            check_layer(&f, i, seed);
        end(&f);
        free(text);
    }
}

/* What is outside a view - stale tails, unused subclusters, kept clusters of zeros - holds '!'
 * or letters past the end; none of it may show. */
static void
forge__rubbish_stays_hidden(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, "all cluster=16k extended_l2=1\n"
              "top.qcow2  | =#A size=41472\n"
              "  sub 1 A.0=~...........................\n"
              "base.qcow2 | ~.\n");
    check_layer(&f, 0, 0);
    check_layer(&f, 1, 0);
    end(&f);
}

static uint64_t
be_at(const struct fixture *f, const char *file, off_t off, size_t len)
{
    unsigned char b[8] = {0};
    char path[128];
    uint64_t v = 0;
    int fd;

    path_of(f, file, path, sizeof path);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_true(fd >= 0);
    assert_int_equal(pread(fd, b, len, off), len);
    close(fd);
    for (size_t i = 0; i < len; i++)
        v = v << 8 | b[i];
    return v;
}

/* Bytes of a small image, worked out by hand from the specification. */
static void
forge__bytes_are_those_of_the_specification(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, "a.qcow2 | A.0= cluster=4k\n"
              "  poke header.autoclear = 0x80\n");
    assert_int_equal(be_at(&f, "a.qcow2", 0, 4), 0x514649fb);
    assert_int_equal(be_at(&f, "a.qcow2", 20, 4), 12);
    assert_int_equal(be_at(&f, "a.qcow2", 24, 8), 16384);
    assert_int_equal(be_at(&f, "a.qcow2", 40, 8), 0x3000);                 /* L1 */
    assert_int_equal(be_at(&f, "a.qcow2", 88, 8), 0x80);                   /* poked */
    assert_int_equal(be_at(&f, "a.qcow2", 0x1000, 8), 0x2000);             /* reftable */
    assert_int_equal(be_at(&f, "a.qcow2", 0x2000 + 2 * 6, 2), 1);          /* last cluster */
    assert_int_equal(be_at(&f, "a.qcow2", 0x2000 + 2 * 7, 2), 0);          /* behind it */
    assert_int_equal(be_at(&f, "a.qcow2", 0x3000, 8), 0x8000000000005000); /* L2 table */
    assert_int_equal(be_at(&f, "a.qcow2", 0x5000, 8), 0x8000000000004000); /* A */
    assert_int_equal(be_at(&f, "a.qcow2", 0x5008, 8), 0);                  /* . */
    assert_int_equal(be_at(&f, "a.qcow2", 0x5010, 8), 1);                  /* 0 */
    assert_int_equal(be_at(&f, "a.qcow2", 0x5018, 8), 0x8000000000006001); /* = */
    end(&f);
}

static void
forge__a_wrong_recipe_names_its_line(void **state)
{
    static const struct {
        const char *text;
        uint64_t line;
    } wrong[] = {
        {"a.qcow2 | A?\n", 1},
        {"\na.qcow2 | A version=4\n", 2},
        {"a.qcow2 | 0 version=2\n", 1},
        {"a.qcow2 | A\n  sub 0 A\n", 2},
        {"a.qcow2 | A\n  dance\n", 2},
        {"  at 0 A\n", 1},
        {"a.raw | a\n", 1},
        {"a.qcow2 | A cluster=1000\n", 1},
        {"../a.qcow2 | A\n", 1},
    };

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        struct qmeld_error err = {0};
        struct qm_forge *forge;

        assert_int_equal(qm_forge_parse(wrong[i].text, "r", &forge, &err), -1);
        assert_int_equal(err.code, QMELD_USAGE);
        assert_int_equal(err.off, wrong[i].line);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(forge__readers_see_what_was_painted),
        cmocka_unit_test(forge__rubbish_stays_hidden),
        cmocka_unit_test(forge__bytes_are_those_of_the_specification),
        cmocka_unit_test(forge__a_wrong_recipe_names_its_line),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
