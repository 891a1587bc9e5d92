/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * chain_test.c - opening chains: formats, loops, missing files, locks; finding layers.
 */
#include "bytes.h"
#include "chain.h"
#include "lock.h"
#include "qcow2_disk.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <errno.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- images --------------------------------------------------------------------------------- */

#define CLUSTER 512u
#define SIZE    (64u << 10)

static void
write_file(const char *path, const void *bytes, size_t len)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, len, f), len);
    assert_int_equal(fclose(f), 0);
}

/* An empty qcow2 image: header, refcount table, one block, L1 table.  backing and format may be
 * NULL. */
static void
write_qcow2(const char *path, const char *backing, const char *format, uint32_t crypt)
{
    unsigned char image[4 * CLUSTER] = {0};
    struct qcow2_disk_header *h = (struct qcow2_disk_header *)image;
    size_t at = sizeof *h;

    be32_put(&h->magic, QCOW2_MAGIC);
    be32_put(&h->version, 3);
    be32_put(&h->cluster_bits, 9);
    be64_put(&h->size, SIZE);
    be32_put(&h->crypt_method, crypt);
    be32_put(&h->l1_entries, 2);
    be64_put(&h->l1_off, 3 * CLUSTER);
    be64_put(&h->reftable_off, 1 * CLUSTER);
    be32_put(&h->reftable_clusters, 1);
    be32_put(&h->refcount_order, 4);
    be32_put(&h->header_len, sizeof *h);
    if (format) {
        struct qcow2_disk_ext *e = (struct qcow2_disk_ext *)(image + at);

        be32_put(&e->type, QCOW2_EXT_BACKING_FORMAT);
        be32_put(&e->len, (uint32_t)strlen(format));
        memcpy(e + 1, format, strlen(format));
        at += sizeof *e + qm_align_up(strlen(format), 8);
    }
    at += sizeof(struct qcow2_disk_ext);
    if (backing) {
        assert_true(at + strlen(backing) <= CLUSTER);
        be64_put(&h->backing_off, at);
        be32_put(&h->backing_len, (uint32_t)strlen(backing));
        memcpy(image + at, backing, strlen(backing));
    }
    be64_put((be64 *)(image + CLUSTER), 2 * CLUSTER);
    for (size_t i = 0; i < 4; i++)
        be16_put((be16 *)(image + 2 * CLUSTER) + i, 1);
    write_file(path, image, sizeof image);
}

static void
overlay(const char *path, const char *backing)
{
    write_qcow2(path, backing, "qcow2", 0);
}

/* ---- opening ----------------------------------------------------------------------------------
 */

static const struct qm_chain_options look = {.mode = QM_CHAIN_LOOK};
static const struct qm_chain_options hold = {.mode = QM_CHAIN_HOLD};

static struct qm_chain *
opens(const char *path, const struct qm_chain_options *opts)
{
    struct qmeld_error err = {0};
    struct qm_chain *c;

    if (qm_chain_open(path, opts, &c, &err) < 0)
        fail_msg("%s: %s", err.file, err.what);
    return c;
}

/* part: NULL, or words that the sentence must have. */
static struct qmeld_error
refused(const char *path, const struct qm_chain_options *opts, enum qmeld_code code,
        const char *part)
{
    struct qmeld_error err = {0};
    struct qm_chain *c;

    assert_int_equal(qm_chain_open(path, opts, &c, &err), -1);
    assert_null(c);
    assert_string_equal(qmeld_code_name(err.code), qmeld_code_name(code));
    if (part && !strstr(err.what, part))
        fail_msg("\"%s\" does not say \"%s\"", err.what, part);
    return err;
}

static void
chain__layers_count_from_the_base(void **state)
{
    struct qm_chain *c;

    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    overlay("m", "b");
    overlay("t", "m");
    c = opens("t", &look);
    assert_int_equal(c->n, 3);
    assert_string_equal(c->layers[0].path, "b");
    assert_string_equal(c->layers[1].path, "m");
    assert_string_equal(c->layers[2].path, "t");
    assert_true(c->layers[2].format_probed);
    assert_false(c->layers[0].format_probed);
    qm_chain_close(c);
}

static void
chain__single_opens_the_top_alone(void **state)
{
    const struct qm_chain_options opts = {.mode = QM_CHAIN_LOOK, .single = true};
    struct qm_chain *c;

    (void)state;
    overlay("t", "nobody");
    c = opens("t", &opts);
    assert_int_equal(c->n, 1);
    qm_chain_close(c);
}

static void
chain__names_lead_from_overlay_to_overlay(void **state)
{
    struct qm_chain *c;

    (void)state;
    assert_int_equal(mkdir("x", 0777) | mkdir("y", 0777), 0);
    write_file("x/base", "raw", 3);
    write_qcow2("y/mid", "../x/base", "raw", 0);
    overlay("x/top", "../y/mid");
    c = opens("x/top", &look);
    assert_int_equal(c->n, 3);
    assert_string_equal(c->layers[0].path, "x/../y/../x/base");
    assert_string_equal(c->layers[0].img->ops->format, "raw");
    assert_int_equal(c->layers[0].img->size, 512);
    qm_chain_close(c);
}

/* QEMU does not resolve the link either. */
static void
chain__an_overlay_reached_by_a_link_looks_beside_the_link(void **state)
{
    struct qmeld_error err;

    (void)state;
    assert_int_equal(mkdir("d", 0777) | mkdir("e", 0777), 0);
    write_qcow2("d/b", NULL, NULL, 0);
    overlay("d/t", "b");
    assert_int_equal(symlink("../d/t", "e/t"), 0);
    err = refused("e/t", &look, QMELD_IO, "backing file of e/t");
    assert_string_equal(err.file, "e/b");
}

static void
chain__a_missing_file_names_who_refers_to_it(void **state)
{
    struct qmeld_error err;

    (void)state;
    overlay("m", "gone");
    overlay("t", "m");
    err = refused("t", &look, QMELD_IO, "backing file of m");
    assert_string_equal(err.file, "gone");
    assert_int_equal(err.sys_errno, ENOENT);
    err = refused("nobody", &look, QMELD_IO, NULL);
    assert_string_equal(err.file, "nobody");
}

static void
chain__a_directory_is_no_layer(void **state)
{
    (void)state;
    assert_int_equal(mkdir("d", 0777), 0);
    overlay("t", "d");
    refused("t", &look, QMELD_USAGE, "backing file of t");
}

static void
chain__loops_are_corrupt_and_name_both(void **state)
{
    struct qmeld_error err;

    (void)state;
    overlay("s", "s");
    err = refused("s", &look, QMELD_CORRUPT, "loop");
    assert_string_equal(err.file, "s");
    overlay("t", "m");
    overlay("m", "n");
    overlay("n", "./m");
    for (int i = 0; i < 2; i++) {
        err = refused("t", i ? &hold : &look, QMELD_CORRUPT, "loop");
        assert_string_equal(err.file, "n");
        assert_non_null(strstr(err.what, "./m"));
    }
}

/* By inode, so that no other name of a file hides it. */
static void
chain__a_loop_through_links_is_seen(void **state)
{
    (void)state;
    overlay("t", "sym");
    assert_int_equal(symlink("t", "sym"), 0);
    refused("t", &look, QMELD_CORRUPT, "loop");
    overlay("u", "hard");
    assert_int_equal(link("u", "hard"), 0);
    refused("u", &hold, QMELD_CORRUPT, "loop");
}

/* ---- formats ----------------------------------------------------------------------------------
 */

static void
chain__a_missing_format_is_probed_for_looking_only(void **state)
{
    struct qm_chain *c;
    struct qmeld_error err;

    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    write_qcow2("t", "b", NULL, 0);
    c = opens("t", &look);
    assert_string_equal(c->layers[0].img->ops->format, "qcow2");
    assert_true(c->layers[0].format_probed);
    qm_chain_close(c);
    err = refused("t", &hold, QMELD_USAGE, "--backing-format");
    assert_string_equal(err.file, "t");
    assert_non_null(strstr(err.what, " b,"));
}

static void
chain__the_caller_may_say_a_missing_format(void **state)
{
    struct qm_chain_options opts = hold;
    struct qm_chain *c;

    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    write_qcow2("t", "b", NULL, 0);
    opts.backing_format = "qcow2";
    c = opens("t", &opts);
    assert_false(c->layers[0].format_probed);
    qm_chain_close(c);
    opts.backing_format = "raw";
    refused("t", &opts, QMELD_USAGE, "holds a qcow2 header");
}

static void
chain__a_stored_format_beats_the_callers(void **state)
{
    struct qm_chain_options opts = hold;
    struct qm_chain *c;

    (void)state;
    opts.backing_format = "raw";
    write_qcow2("b", NULL, NULL, 0);
    overlay("t", "b");
    c = opens("t", &opts);
    assert_string_equal(c->layers[0].img->ops->format, "qcow2");
    qm_chain_close(c);
}

/* QEMU would write guest data over the header. */
static void
chain__qcow2_that_is_said_to_be_raw_is_only_looked_at(void **state)
{
    struct qm_chain_options opts = hold;
    struct qm_chain *c;
    struct qmeld_error err;

    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    write_qcow2("t", "b", "raw", 0);
    c = opens("t", &look);
    assert_string_equal(c->layers[0].img->ops->format, "raw");
    qm_chain_close(c);
    err = refused("t", &hold, QMELD_USAGE, "holds a qcow2 header");
    assert_string_equal(err.file, "b");
    opts.format = "raw";
    refused("b", &opts, QMELD_USAGE, "holds a qcow2 header");
}

static void
chain__name_and_header_must_agree_on_the_format(void **state)
{
    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    write_qcow2("t", "json:{\"driver\":\"qcow2\",\"file.filename\":\"b\"}", "raw", 0);
    refused("t", &look, QMELD_USAGE, "\"raw\"");
    refused("t", &hold, QMELD_USAGE, "\"qcow2\"");
    write_qcow2("t", "json:{\"driver\":\"qcow2\",\"file.filename\":\"b\"}", NULL, 0);
    qm_chain_close(opens("t", &hold));
}

static void
chain__unknown_formats_are_refused_by_name(void **state)
{
    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    write_qcow2("t", "b", "vmdk", 0);
    refused("t", &look, QMELD_UNSUPPORTED, "vmdk");
}

static void
chain__what_cannot_be_read_can_be_described(void **state)
{
    struct qm_chain_options opts = look;

    (void)state;
    write_qcow2("b", NULL, NULL, 1);
    overlay("t", "b");
    refused("t", &look, QMELD_USAGE, "--secret");
    opts.keys = QM_KEYS_NONE;
    qm_chain_close(opens("t", &opts));
}

/* ---- many layers ------------------------------------------------------------------------------
 */

static void
write_tower(size_t n)
{
    char path[32], below[32];

    for (size_t i = 0; i < n; i++) {
        snprintf(path, sizeof path, "l%zu", i);
        snprintf(below, sizeof below, "l%zu", i - 1);
        write_qcow2(path, i ? below : NULL, i ? "qcow2" : NULL, 0);
    }
}

static void
chain__a_thousand_layers_are_ordinary(void **state)
{
    struct rlimit old, more;
    struct qm_chain *c;

    (void)state;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    more = old;
    more.rlim_cur = old.rlim_max;
    if (more.rlim_max < 1100) /* only root may have more */
        more.rlim_cur = more.rlim_max = 4096;
    if (setrlimit(RLIMIT_NOFILE, &more) < 0)
        skip();
    write_tower(1000);
    c = opens("l999", &hold);
    assert_int_equal(c->n, 1000);
    assert_string_equal(c->layers[0].path, "l0");
    qm_chain_close(c);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
}

static void
chain__too_many_files_say_how_to_raise_the_limit(void **state)
{
    struct rlimit old, less;
    const int next = dup(0);

    (void)state;
    assert_true(next >= 0);
    close(next);
    write_tower(30);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    less = old;
    less.rlim_cur = (rlim_t)next + 20;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &less), 0);
    refused("l29", &look, QMELD_IO, "layers: raise the limit (ulimit -n)");
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    qm_chain_close(opens("l29", &look)); /* and nothing leaked */
}

/* ---- locks ------------------------------------------------------------------------------------
 */

static enum qmeld_code
lock_again(const char *path, enum qm_lock_role role)
{
    struct qmeld_error err = {0};
    struct qm_file *f;

    assert_int_equal(qm_file_open(path, &f, &err), 0);
    if (qm_lock_take(f, role, &err) == 0)
        err.code = QMELD_OK;
    qm_file_close(f);
    return err.code;
}

static void
chain__holding_locks_every_layer_looking_none(void **state)
{
    struct qm_chain *c;

    (void)state;
    write_file("b", "raw", 3);
    write_qcow2("m", "b", "raw", 0);
    overlay("t", "m");
    c = opens("t", &look);
    assert_int_equal(lock_again("b", QM_LOCK_EXCLUSIVE), QMELD_OK);
    assert_int_equal(lock_again("m", QM_LOCK_EXCLUSIVE), QMELD_OK);
    assert_int_equal(lock_again("t", QM_LOCK_EXCLUSIVE), QMELD_OK);
    qm_chain_close(c);
    c = opens("t", &hold);
    assert_int_equal(lock_again("b", QM_LOCK_WRITER), QMELD_BUSY);
    assert_int_equal(lock_again("m", QM_LOCK_WRITER), QMELD_BUSY);
    assert_int_equal(lock_again("t", QM_LOCK_WRITER), QMELD_BUSY);
    qm_chain_close(c);
    assert_int_equal(lock_again("t", QM_LOCK_WRITER), QMELD_OK);
}

static void
chain__a_layer_in_use_is_busy_by_its_name(void **state)
{
    struct qmeld_error err = {0};
    struct qm_chain *c;
    struct qm_file *f;

    (void)state;
    write_qcow2("b", NULL, NULL, 0);
    overlay("m", "b");
    overlay("t", "m");
    assert_int_equal(qm_file_open("m", &f, &err), 0);
    assert_int_equal(qm_lock_take(f, QM_LOCK_WRITER, &err), 0);
    err = refused("t", &hold, QMELD_BUSY, "in use by pid ");
    assert_string_equal(err.file, "m");
    c = opens("t", &look);
    qm_chain_close(c);
    qm_file_close(f);
    qm_chain_close(opens("t", &hold));
}

/* ---- finding layers -----------------------------------------------------------------------------
 */

static void
finds(const struct qm_chain *c, const char *name, size_t want)
{
    struct qmeld_error err = {0};
    size_t got;

    if (qm_chain_find(c, name, &got, &err) < 0)
        fail_msg("%s: %s", name, err.what);
    assert_int_equal(got, want);
}

static void
finds_not(const struct qm_chain *c, const char *name)
{
    struct qmeld_error err = {0};
    size_t got;

    assert_int_equal(qm_chain_find(c, name, &got, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
}

static struct qm_chain *
open_three_folders(void)
{
    assert_int_equal(mkdir("x", 0777) | mkdir("y", 0777), 0);
    write_qcow2("x/b", NULL, NULL, 0);
    overlay("y/m", "../x/b");
    overlay("x/t", "../y/m");
    assert_int_equal(symlink("b", "x/l"), 0);
    return opens("x/t", &look);
}

static void
chain__find_by_number_counts_from_one(void **state)
{
    struct qm_chain *c = open_three_folders();

    (void)state;
    finds(c, "[1]", 0);
    finds(c, "[3]", 2);
    finds_not(c, "[0]");
    finds_not(c, "[4]");
    finds_not(c, "[1");
    finds_not(c, "[1]x");
    finds_not(c, "[-1]");
    finds_not(c, "[4294967297]");
    qm_chain_close(c);
}

static void
chain__find_by_path_from_here_or_from_the_chain(void **state)
{
    struct qm_chain *c = open_three_folders();
    char absolute[4200];

    (void)state;
    snprintf(absolute, sizeof absolute, "%s/y/m", qm_scratch_dir());
    finds(c, "x/b", 0);
    finds(c, "x/../y/m", 1);
    finds(c, absolute, 1);
    finds(c, "x/t", 2);
    finds(c, "../x/b", 0); /* as y/m has it */
    finds(c, "../y/m", 1);
    finds(c, "../x/l", 0); /* a link beside it */
    finds(c, "x/l", 0);
    finds_not(c, "m");
    finds_not(c, "../t");
    finds_not(c, "nobody");
    qm_chain_close(c);
}

static void
chain__find_refuses_a_name_of_two_layers(void **state)
{
    struct qm_chain *c;

    (void)state;
    assert_int_equal(mkdir("x", 0777), 0);
    write_qcow2("x/b", NULL, NULL, 0);
    overlay("b", "x/b");
    overlay("x/t", "../b");
    c = opens("x/t", &look);
    finds(c, "x/b", 0);
    finds(c, "../b", 1);
    finds(c, "b", 1);
    qm_chain_close(c);
    overlay("x/m", "b");
    overlay("b", "x/m");
    c = opens("b", &look);
    assert_int_equal(c->n, 3);
    finds_not(c, "b"); /* here it is the top, beside x/m the base */
    qm_chain_close(c);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, qm_scratch_enter, qm_scratch_leave)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(chain__layers_count_from_the_base),
        TEST(chain__single_opens_the_top_alone),
        TEST(chain__names_lead_from_overlay_to_overlay),
        TEST(chain__an_overlay_reached_by_a_link_looks_beside_the_link),
        TEST(chain__a_missing_file_names_who_refers_to_it),
        TEST(chain__a_directory_is_no_layer),
        TEST(chain__loops_are_corrupt_and_name_both),
        TEST(chain__a_loop_through_links_is_seen),
        TEST(chain__a_missing_format_is_probed_for_looking_only),
        TEST(chain__the_caller_may_say_a_missing_format),
        TEST(chain__a_stored_format_beats_the_callers),
        TEST(chain__qcow2_that_is_said_to_be_raw_is_only_looked_at),
        TEST(chain__name_and_header_must_agree_on_the_format),
        TEST(chain__unknown_formats_are_refused_by_name),
        TEST(chain__what_cannot_be_read_can_be_described),
        TEST(chain__a_thousand_layers_are_ordinary),
        TEST(chain__too_many_files_say_how_to_raise_the_limit),
        TEST(chain__holding_locks_every_layer_looking_none),
        TEST(chain__a_layer_in_use_is_busy_by_its_name),
        TEST(chain__find_by_number_counts_from_one),
        TEST(chain__find_by_path_from_here_or_from_the_chain),
        TEST(chain__find_refuses_a_name_of_two_layers),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
