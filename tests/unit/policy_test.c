/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Where names in images may lead.  The facts are docs/decisions/0026-path-policy.md's. */
#include "policy.h"
#include "scratch.h"

#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

/* A folder "here" with top and base, a folder "there" with images and others. */
static const char *
at(const char *name)
{
    static char path[64][PATH_MAX];
    static unsigned turn;
    char *p = path[turn++ % 64];

    snprintf(p, sizeof path[0], "%s/%s", qm_scratch_dir(), name);
    return p;
}

static void
put(const char *name, size_t len, const char *magic)
{
    FILE *f = fopen(at(name), "w");

    assert_non_null(f);
    if (magic)
        fwrite(magic, 1, 8, f);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(truncate(at(name), (off_t)len), 0);
}

static int
set_up(void **state)
{
    assert_int_equal(qm_scratch_enter(state), 0);
    assert_int_equal(mkdir(at("here"), 0700), 0);
    assert_int_equal(mkdir(at("there"), 0700), 0);
    assert_int_equal(mkdir(at("here/below"), 0700), 0);
    put("here/top", 512, NULL);
    put("here/below/odd", 1000, NULL);
    put("there/raw", 1024, NULL);
    put("there/odd", 1000, NULL);
    put("there/empty", 0, NULL);
    put("there/qcow2", 1001, "QFI\xfb\0\0\0\3");
    assert_int_equal(symlink(at("there/odd"), at("here/link")), 0);
    assert_int_equal(mkfifo(at("there/pipe"), 0600), 0);
    return 0;
}

/* Judged, opened, judged again: 0, or the code. */
static enum qmeld_code
follow(const char *const *allow, const char *path, const char *format)
{
    struct qmeld_error e = {0};
    struct qm_policy *p;
    struct qm_file *file = NULL;

    OK(qm_policy_new(allow, &p, err));
    OK(qm_policy_named(p, at("here/top"), err));
    if (qm_names_allowed(p, QM_NAME_BACKING, "top", path, &e) == 0 && access(path, F_OK) == 0 &&
        qm_file_open(path, &file, &e) == 0 &&
        qm_policy_opened(p, QM_NAME_BACKING, "top", path, file, format, &e) == 0)
        assert_int_equal(e.code, QMELD_OK);
    qm_file_close(file);
    qm_policy_free(p);
    return e.code;
}

static void
policy__the_tree_of_a_named_folder_is_free(void **state)
{
    const char *const strict[] = {at("here"), NULL};

    (void)state;
    assert_int_equal(follow(NULL, at("here/below/odd"), "raw"), QMELD_OK);
    assert_int_equal(follow(strict, at("here/below/odd"), "raw"), QMELD_OK);
    assert_int_equal(follow(strict, at("here/below/not there"), "raw"), QMELD_OK);
    assert_int_equal(follow(strict, at("there/../here/top"), "raw"), QMELD_OK);
}

/* One in no tree that has to do with the named one; its path is absolute. */
static const char *
far_file(size_t len, const char *first)
{
    static char path[64];
    FILE *f;

    snprintf(path, sizeof path, "/dev/shm/qmeld-far-%ld", (long)getpid());
    f = fopen(path, "wb");
    assert_non_null(f);
    assert_true(len < 8 || fwrite(first, 1, 8, f) == 8);
    assert_int_equal(fclose(f), 0);
    assert_int_equal(truncate(path, (off_t)len), 0);
    return path;
}

static void
policy__elsewhere_only_what_is_evidently_an_image(void **state)
{
    (void)state;
    assert_int_equal(follow(NULL, at("there/raw"), "raw"), QMELD_OK);
    assert_int_equal(follow(NULL, at("there/raw"), NULL), QMELD_OK);
    assert_int_equal(follow(NULL, at("there/qcow2"), "qcow2"), QMELD_OK);
    assert_int_equal(follow(NULL, at("there/qcow2"), NULL), QMELD_OK);
    assert_int_equal(follow(NULL, at("there/odd"), "raw"), QMELD_OK); /* near */
    assert_int_equal(follow(NULL, at("there/pipe"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(NULL, far_file(1000, "rawrawraw"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(NULL, far_file(1000, "odd odd odd"), "qcow2"), QMELD_USAGE);
    assert_int_equal(follow(NULL, far_file(0, ""), "raw"), QMELD_USAGE);
    assert_int_equal(follow(NULL, far_file(1024, "rawrawraw"), "raw"), QMELD_OK);
    assert_int_equal(follow(NULL, far_file(1001, "QFI\xfb\0\0\0\3"), "qcow2"), QMELD_OK);
    assert_int_equal(follow(NULL, far_file(1001, "QFI\xfb\0\0\0\3"), "raw"), QMELD_USAGE);
    assert_int_equal(unlink(far_file(1, "")), 0);
    assert_int_equal(follow(NULL, "/dev/zero", "raw"), QMELD_USAGE);
    assert_int_equal(follow(NULL, "/dev/shm/no such file", "raw"), QMELD_OK);
    assert_int_equal(follow(NULL, "/etc/passwd", "raw"), QMELD_USAGE);
    assert_int_equal(follow(NULL, "/proc/self/maps", "raw"), QMELD_USAGE);
}

static void
policy__strict_is_strict(void **state)
{
    const char *const strict[] = {at("here"), NULL}, *const other[] = {at("there/raw"), NULL};
    const char *const all[] = {"/", NULL};

    (void)state;
    assert_int_equal(follow(strict, at("there/raw"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(strict, at("there/qcow2"), "qcow2"), QMELD_USAGE);
    assert_int_equal(follow(strict, at("here/link"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(strict, at("there/not there"), "raw"), QMELD_USAGE);
    assert_int_equal(symlink(at("there/nothing"), at("here/dangles")), 0);
    assert_int_equal(follow(strict, at("here/dangles"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(strict, at("here/../hereafter"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(other, at("there/raw"), "raw"), QMELD_OK);
    assert_int_equal(follow(other, at("there/odd"), "raw"), QMELD_USAGE);
    assert_int_equal(follow(all, at("there/odd"), "raw"), QMELD_OK);
    assert_int_equal(follow(all, "/etc/passwd", "raw"), QMELD_OK);
}

static const char *
uri_of(const char *socket)
{
    static char uri[PATH_MAX + 32];

    snprintf(uri, sizeof uri, "nbd+unix:///?socket=%s", at(socket));
    return uri;
}

static void
policy__servers_are_allowed_by_name(void **state)
{
    const char *const strict[] = {at("here"), NULL}, *const host[] = {"nbd://good", NULL};
    const char *const port[] = {"nbd://good:1", NULL}, *const all[] = {"/", NULL};

    (void)state;
    assert_int_equal(follow(NULL, "nbd://any/disk", NULL), QMELD_OK);
    assert_int_equal(follow(strict, "nbd://any/disk", NULL), QMELD_USAGE);
    assert_int_equal(follow(host, "nbd://good/disk", NULL), QMELD_OK);
    assert_int_equal(follow(host, "nbd://good:10809/disk", NULL), QMELD_OK);
    assert_int_equal(follow(host, "nbd:good:10809:exportname=x", NULL), QMELD_OK);
    assert_int_equal(follow(host, "nbd://good:7/disk", NULL), QMELD_USAGE);
    assert_int_equal(follow(strict, uri_of("here/socket"), NULL), QMELD_OK);
    assert_int_equal(follow(strict, uri_of("there/socket"), NULL), QMELD_USAGE);
    assert_int_equal(follow(host, "nbd://goodness/disk", NULL), QMELD_USAGE);
    assert_int_equal(follow(host, "nbd://good:x@evil/disk", NULL), QMELD_USAGE);
    assert_int_equal(follow(host, "nbd://good@evil/disk", NULL), QMELD_USAGE);
    assert_int_equal(follow(port, "nbd://good:1/disk", NULL), QMELD_OK);
    assert_int_equal(follow(port, "nbd://good:12/disk", NULL), QMELD_USAGE);
    assert_int_equal(follow(all, "nbd://any/disk", NULL), QMELD_OK);
}

/* The name is judged, and then leads to another file. */
static void
policy__a_link_that_moves_is_noticed(void **state)
{
    struct qmeld_error e = {0};
    struct qm_policy *p;
    struct qm_file *file;

    (void)state;
    assert_int_equal(symlink("top", at("here/moves")), 0);
    OK(qm_policy_new(NULL, &p, err));
    OK(qm_policy_named(p, at("here/top"), err));
    OK(qm_names_allowed(p, QM_NAME_BACKING, "top", at("here/moves"), err));
    OK(qm_file_open(at("there/odd"), &file, err)); /* as if it led there for a moment */
    assert_int_equal(qm_policy_opened(p, QM_NAME_BACKING, "top", at("here/moves"), file, "raw", &e),
                     -1);
    assert_int_equal(e.code, QMELD_STALE);
    qm_file_close(file);
    qm_policy_free(p);
}

static void
policy__what_is_allowed_must_be_there(void **state)
{
    const char *const missing[] = {at("nowhere"), NULL};
    struct qmeld_error e = {0};
    struct qm_policy *p;

    (void)state;
    assert_int_equal(qm_policy_new(missing, &p, &e), -1);
    assert_int_equal(e.code, QMELD_USAGE);
    assert_null(p);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(policy__the_tree_of_a_named_folder_is_free, set_up,
                                        qm_scratch_leave),
        cmocka_unit_test_setup_teardown(policy__elsewhere_only_what_is_evidently_an_image, set_up,
                                        qm_scratch_leave),
        cmocka_unit_test_setup_teardown(policy__strict_is_strict, set_up, qm_scratch_leave),
        cmocka_unit_test_setup_teardown(policy__servers_are_allowed_by_name, set_up,
                                        qm_scratch_leave),
        cmocka_unit_test_setup_teardown(policy__a_link_that_moves_is_noticed, set_up,
                                        qm_scratch_leave),
        cmocka_unit_test_setup_teardown(policy__what_is_allowed_must_be_there, set_up,
                                        qm_scratch_leave),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
