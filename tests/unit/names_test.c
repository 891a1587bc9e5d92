/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * names_test.c - where backing names lead, and how they are written.
 *
 * The rules are QEMU's (7.2.22), each tried with qemu-io: what is refused here with another reason
 * than QEMU's says so.
 */
#include "chain.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <limits.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static void
leads(const char *overlay, const char *name, const char *want, const char *want_format)
{
    struct qmeld_error err = {0};
    char *path, *format;

    if (qm_backing_path(overlay, name, &path, &format, &err) < 0)
        fail_msg("%s: %s", name, err.what);
    assert_string_equal(path, want);
    if (want_format)
        assert_string_equal(format, want_format);
    else
        assert_null(format);
    free(path);
    free(format);
}

static void
refused(const char *name, enum qmeld_code code, const char *part)
{
    struct qmeld_error err = {0};
    char *path, *format;

    assert_int_equal(qm_backing_path("dir/overlay", name, &path, &format, &err), -1);
    assert_null(path);
    assert_null(format);
    assert_int_equal(err.code, code);
    assert_string_equal(err.file, "dir/overlay");
    if (!strstr(err.what, part))
        fail_msg("\"%s\" does not say \"%s\"", err.what, part);
}

/* ---- plain names ------------------------------------------------------------------------- */

static void
names__relative_is_beside_the_overlay(void **state)
{
    (void)state;
    leads("t", "b", "b", NULL);
    leads("d/t", "b", "d/b", NULL);
    leads("/d/e/t", "../b", "/d/e/../b", NULL);
}

static void
names__absolute_stays(void **state)
{
    (void)state;
    leads("d/t", "/x/b", "/x/b", NULL);
}

static void
names__file_is_relative_to_the_working_directory(void **state)
{
    (void)state;
    leads("d/t", "file:b", "b", NULL);
    leads("d/t", "file:/x/b", "/x/b", NULL);
    leads("d/t", "file:a:b", "a:b", NULL);
}

static void
names__a_colon_before_a_slash_is_a_protocol(void **state)
{
    (void)state;
    refused("a:b.q", QMELD_UNSUPPORTED, "protocol \"a\"");
    refused("nbds://host/x", QMELD_UNSUPPORTED, "TLS");
    refused("fat:rw:/etc", QMELD_UNSUPPORTED, "protocol \"fat\"");
    leads("d/t", "./a:b.q", "d/./a:b.q", NULL);
    leads("d/t", "s/a:b", "d/s/a:b", NULL);
}

static void
names__an_empty_name_is_corrupt(void **state)
{
    (void)state;
    refused("", QMELD_CORRUPT, "names no file");
    refused("file:", QMELD_CORRUPT, "names no file");
}

static void
names__a_path_has_a_limit(void **state)
{
    char overlay[PATH_MAX], name[1024];
    struct qmeld_error err = {0};
    char *path, *format;

    (void)state;
    memset(overlay, 'o', sizeof overlay);
    memcpy(overlay + sizeof overlay - 3, "/t", 3);
    memset(name, 'n', sizeof name);
    name[1023] = '\0';
    assert_int_equal(qm_backing_path(overlay, name, &path, &format, &err), -1);
    assert_int_equal(err.code, QMELD_CORRUPT);
}

/* ---- json: -------------------------------------------------------------------------------- */

static void
names__json_finds_file_and_format(void **state)
{
    (void)state;
    leads("d/t", "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":\"/b\"}}",
          "/b", "qcow2");
    leads("d/t",
          "json:{\"driver\": \"raw\", \"file.driver\": \"host_device\", "
          "\"file.filename\": \"/dev/x\"}",
          "/dev/x", "raw");
}

static void
names__json_is_relative_to_the_working_directory(void **state)
{
    (void)state;
    leads("d/t", "json:{\"file.filename\":\"b\"}", "b", NULL);
}

static void
names__json_takes_single_quotes(void **state)
{
    (void)state;
    leads("d/t", "json:{'file':{'driver':'file','filename':'d/b'}}", "d/b", NULL);
}

static void
names__json_escapes_are_undone(void **state)
{
    (void)state;
    leads("t", "json:{\"file.filename\":\"a\\\"\\u00e9\\\\b\"}", "a\"\xc3\xa9\\b", NULL);
}

/* QEMU takes the file name of json:{} literally. */
static void
names__json_file_name_has_no_protocol(void **state)
{
    (void)state;
    leads("t", "json:{\"file.filename\":\"file:b\"}", "file:b", NULL);
}

/* A protocol node without a format on it is the file's bytes. */
static void
names__json_file_node_alone_is_raw(void **state)
{
    (void)state;
    leads("t", "json:{\"driver\":\"file\",\"filename\":\"b\"}", "b", "raw");
}

static void
names__json_options_that_change_no_bytes_are_taken(void **state)
{
    (void)state;
    leads("t",
          "json:{\"driver\":\"qcow2\",\"node-name\":\"n\",\"read-only\":true,\"file\":{\"driver\":"
          "\"file\",\"filename\":\"b\",\"cache\":{\"direct\":true},\"aio\":\"native\","
          "\"locking\":\"off\"}}",
          "b", "qcow2");
}

static void
names__json_options_that_change_bytes_are_refused_by_name(void **state)
{
    (void)state;
    refused("json:{\"driver\":\"raw\",\"offset\":512,\"file.filename\":\"b\"}", QMELD_UNSUPPORTED,
            "\"offset\"");
    refused("json:{\"driver\":\"raw\",\"size\":512,\"file.filename\":\"b\"}", QMELD_UNSUPPORTED,
            "\"size\"");
    refused("json:{\"driver\":\"qcow2\",\"backing\":{\"driver\":\"null-co\"},\"file.filename\":"
            "\"b\"}",
            QMELD_UNSUPPORTED, "\"backing.driver\"");
    refused("json:{\"driver\":\"qcow2\",\"backing\":null,\"file.filename\":\"b\"}",
            QMELD_UNSUPPORTED, "\"backing\"");
    refused("json:{\"driver\":\"qcow2\",\"file\":\"node0\"}", QMELD_UNSUPPORTED, "\"file\"");
    refused("json:{\"driver\":\"qcow2\",\"data-file.filename\":\"x\",\"file.filename\":\"b\"}",
            QMELD_UNSUPPORTED, "\"data-file.filename\"");
    refused("json:{\"driver\":\"qcow2\",\"encrypt.key-secret\":\"s\",\"file.filename\":\"b\"}",
            QMELD_UNSUPPORTED, "\"encrypt.key-secret\"");
}

/* What QEMU's own spelling of an export is, it is here. */
static void
names__exports_have_one_spelling(void **state)
{
    (void)state;
    leads("d/t", "nbd://h/x", "nbd://h:10809/x", NULL);
    leads("d/t", "nbd:h:99:exportname=x", "nbd://h:99/x", NULL);
    leads("d/t", "nbd:unix:/s:exportname=x y", "nbd+unix:///x%20y?socket=/s", NULL);
    leads("d/t", "json:{\"driver\":\"nbd\",\"host\":\"h\"}", "nbd://h:10809", "raw");
    leads("d/t",
          "json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"nbd\",\"server\":{\"type\":\"inet\","
          "\"host\":\"::1\",\"port\":99},\"export\":\"/x\"}}",
          "nbd://[::1]:99//x", "qcow2");
    leads("d/t",
          "json:{\"driver\":\"raw\",\"file.driver\":\"nbd\",\"file.server.type\":\"unix\","
          "\"file.server.path\":\"/s\"}",
          "nbd+unix:///?socket=/s", "raw");
}

static void
names__exports_that_make_no_sense_are_refused(void **state)
{
    (void)state;
    refused("nbd:h", QMELD_CORRUPT, "no NBD export");
    refused("nbd:h:1:exportname=", QMELD_CORRUPT, "no NBD export");
    refused("nbd://", QMELD_CORRUPT, "no NBD export");
    refused("nbd://h/x?y=1", QMELD_CORRUPT, "no NBD export");
    refused("nbd+unix://h/x?socket=/s", QMELD_CORRUPT, "no NBD export");
    refused("json:{\"driver\":\"nbd\"}", QMELD_CORRUPT, "host or its socket");
    refused("json:{\"driver\":\"nbd\",\"host\":\"h\",\"path\":\"/s\"}", QMELD_CORRUPT,
            "host or its socket");
    refused("json:{\"driver\":\"nbd\",\"host\":\"h\",\"tls-creds\":\"t\"}", QMELD_UNSUPPORTED,
            "\"tls-creds\"");
    refused("json:{\"driver\":\"nbd\",\"host\":\"h\",\"file.host\":\"h\"}", QMELD_UNSUPPORTED,
            "no meaning");
    refused("json:{\"driver\":\"qcow2\",\"host\":\"h\",\"file.filename\":\"b\"}", QMELD_UNSUPPORTED,
            "no meaning");
}

/* A file may be called so, but says it as a path. */
static void
names__a_file_may_be_called_as_an_export(void **state)
{
    (void)state;
    leads("d/t", "file:nbd:h:1", "./nbd:h:1", NULL);
    leads("d/t", "json:{\"driver\":\"raw\",\"file.filename\":\"nbd:h:1\"}", "./nbd:h:1", "raw");
    leads("t", "./nbd:h:1", "./nbd:h:1", NULL);
}

static void
names__a_child_keeps_the_name_of_an_export(void **state)
{
    struct qmeld_error err = {0};
    char *name;

    (void)state;
    assert_int_equal(
        qm_backing_name_for("d/t", "m.qcow2", "nbd:h:99:exportname=x", false, &name, &err), 0);
    assert_string_equal(name, "nbd://h:99/x");
    free(name);
    assert_int_equal(qm_backing_name_for("d/t", "m.qcow2", "nbd://h/x", true, &name, &err), -1);
    assert_non_null(strstr(err.what, "no relative backing name"));
    assert_int_equal(qm_backing_name_for("d/t", "m.qcow2", "nbds://h/x", false, &name, &err), -1);
    assert_non_null(strstr(err.what, "QEMU knows no such names"));
}

static void
names__json_other_drivers_are_refused_by_name(void **state)
{
    (void)state;
    refused("json:{\"driver\":\"rbd\",\"pool\":\"p\",\"image\":\"i\"}", QMELD_UNSUPPORTED,
            "\"rbd\"");
    refused("json:{\"pool\":\"p\",\"driver\":\"rbd\"}", QMELD_UNSUPPORTED, "\"rbd\"");
    refused("json:{\"driver\":\"raw\",\"file\":{\"pool\":\"p\",\"driver\":\"rbd\"}}",
            QMELD_UNSUPPORTED, "\"rbd\"");
    refused("json:{\"driver\":\"vmdk\",\"file.filename\":\"b\"}", QMELD_UNSUPPORTED, "\"vmdk\"");
    refused("json:{\"driver\":\"qcow2\",\"file\":{\"driver\":\"ssh\"}}", QMELD_UNSUPPORTED,
            "\"ssh\"");
    refused(
        "json:{\"driver\":\"raw\",\"file\":{\"driver\":\"qcow2\",\"file\":{\"filename\":\"b\"}}}",
        QMELD_UNSUPPORTED, "\"qcow2\" under the format");
}

static void
names__json_that_is_broken_is_corrupt(void **state)
{
    (void)state;
    refused("json:", QMELD_CORRUPT, "not a JSON object");
    refused("json:{", QMELD_CORRUPT, "not a JSON object");
    refused("json:[]", QMELD_CORRUPT, "not a JSON object");
    refused("json:null", QMELD_CORRUPT, "not a JSON object");
    refused("json:\"b\"", QMELD_CORRUPT, "not a JSON object");
    refused("json:{\"file.filename\":\"b\"} x", QMELD_CORRUPT, "not a JSON object");
    refused("json:{}", QMELD_CORRUPT, "names no file");
    refused("json:{\"driver\":\"qcow2\"}", QMELD_CORRUPT, "names no file");
    refused("json:{\"file.filename\":\"\"}", QMELD_CORRUPT, "names no file");
    refused("json:{\"file.filename\":7}", QMELD_CORRUPT, "not a string");
    refused("json:{\"driver\":\"qcow2\",\"filename\":\"b\"}", QMELD_CORRUPT, "contradict");
    refused("json:{\"driver\":\"file\",\"filename\":\"b\",\"file.filename\":\"c\"}", QMELD_CORRUPT,
            "contradict");
    refused("json:{\"file.filename\":\"a\\u0000b\"}", QMELD_CORRUPT, "NUL");
    refused("json:{\"file\":{\"filename\":\"b\"},\"file.filename\":\"c\"}", QMELD_CORRUPT,
            "given twice");
}

static void
names__json_of_any_depth_ends(void **state)
{
    char name[1024] = "json:";

    (void)state;
    for (size_t i = strlen(name); i + 6 < sizeof name; i += 5)
        memcpy(name + i, "{\"a\":", 6);
    refused(name, QMELD_CORRUPT, "not a JSON object");
}

/* ---- writing names ------------------------------------------------------------------------ */

static int
make_folders(void **state)
{
    if (qm_scratch_enter(state) < 0)
        return -1;
    return mkdir("d", 0777) || mkdir("d/images", 0777) || mkdir("e", 0777) || mkdir("e/f", 0777) ||
           symlink("e/f", "link") || symlink("../e", "d/up");
}

static void
touch(const char *path)
{
    FILE *f = fopen(path, "w");

    assert_non_null(f);
    fclose(f);
}

static void
writes(const char *child, const char *old, const char *target, const char *want)
{
    struct qmeld_error err = {0};
    char *name;

    touch(target);
    if (qm_backing_name_for(child, old, target, false, &name, &err) < 0)
        fail_msg("%s: %s", target, err.what);
    assert_string_equal(name, want);
    free(name);
}

static void
names__a_relative_name_stays_relative(void **state)
{
    (void)state;
    writes("t", "m", "b", "b");
    writes("d/t", "m", "d/b", "b");
    writes("d/t", "../m", "b", "../b");
    writes("d/images/t", "m", "e/f/b", "../../e/f/b");
    writes("t", "m", "d/images/b", "d/images/b");
}

static void
names__an_absolute_name_stays_absolute(void **state)
{
    char want[PATH_MAX + 8];

    (void)state;
    snprintf(want, sizeof want, "%s/d/b", qm_scratch_dir());
    writes("d/t", "/old/m", "d/b", want);
    writes("d/t", "/old/m", want, want);
}

static void
names__file_and_json_names_become_absolute(void **state)
{
    char want[PATH_MAX + 8];

    (void)state;
    snprintf(want, sizeof want, "%s/d/b", qm_scratch_dir());
    writes("d/t", "file:d/m", "d/b", want);
    writes("d/t", "json:{\"file.filename\":\"d/m\"}", "d/b", want);
    writes("d/t", NULL, "d/b", want);
}

static void
names__mixed_absolute_and_relative_paths_meet(void **state)
{
    char absolute[PATH_MAX + 8];

    (void)state;
    snprintf(absolute, sizeof absolute, "%s/e/b", qm_scratch_dir());
    writes("d/t", "m", absolute, "../e/b");
    snprintf(absolute, sizeof absolute, "%s/d/t", qm_scratch_dir());
    writes(absolute, "m", "e/b", "../e/b");
}

/* "..", after a symbolic link, is the parent of where the link leads: names are computed on the
 * real directories. */
static void
names__symbolic_links_on_the_way_are_followed(void **state)
{
    (void)state;
    writes("link/t", "m", "e/b", "../b");
    writes("link/t", "m", "b", "../../b");
    writes("d/t", "m", "link/b", "../e/f/b");
}

/* A folder that is linked into the child's directory may move with the link. */
static void
names__a_link_below_the_child_is_kept(void **state)
{
    (void)state;
    writes("d/t", "up/m", "d/up/b", "up/b");
    writes("d/t", "up/m", "d/up/../b", "../b");
}

static void
names__a_colon_gets_a_directory(void **state)
{
    (void)state;
    writes("t", "m", "a:b", "./a:b");
    writes("d/t", "m", "d/a:b", "./a:b");
    writes("d/up/t", "m", "e/a:b", "./a:b");
}

static void
names__keep_relative_refuses_what_cannot_be(void **state)
{
    struct qmeld_error err = {0};
    char *name;

    (void)state;
    touch("b");
    assert_int_equal(qm_backing_name_for("t", "/old/m", "b", true, &name, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_null(name);
    assert_int_equal(qm_backing_name_for("t", "file:m", "b", true, &name, &err), -1);
    assert_int_equal(qm_backing_name_for("t", NULL, "b", true, &name, &err), -1);
    assert_int_equal(qm_backing_name_for("t", "m", "b", true, &name, &err), 0);
    assert_string_equal(name, "b");
    free(name);
}

static void
names__a_target_that_is_gone_is_no_name(void **state)
{
    struct qmeld_error err = {0};
    char *name;

    (void)state;
    assert_int_equal(qm_backing_name_for("t", "m", "nothing/b", false, &name, &err), -1);
    assert_null(name);
    assert_int_equal(qm_backing_name_for("t", "m", "nobody", false, &name, &err), -1);
    assert_null(name);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names__relative_is_beside_the_overlay),
        cmocka_unit_test(names__absolute_stays),
        cmocka_unit_test(names__file_is_relative_to_the_working_directory),
        cmocka_unit_test(names__a_colon_before_a_slash_is_a_protocol),
        cmocka_unit_test(names__an_empty_name_is_corrupt),
        cmocka_unit_test(names__a_path_has_a_limit),
        cmocka_unit_test(names__json_finds_file_and_format),
        cmocka_unit_test(names__json_is_relative_to_the_working_directory),
        cmocka_unit_test(names__json_takes_single_quotes),
        cmocka_unit_test(names__json_escapes_are_undone),
        cmocka_unit_test(names__json_file_name_has_no_protocol),
        cmocka_unit_test(names__json_file_node_alone_is_raw),
        cmocka_unit_test(names__json_options_that_change_no_bytes_are_taken),
        cmocka_unit_test(names__json_options_that_change_bytes_are_refused_by_name),
        cmocka_unit_test(names__json_other_drivers_are_refused_by_name),
        cmocka_unit_test(names__exports_have_one_spelling),
        cmocka_unit_test(names__exports_that_make_no_sense_are_refused),
        cmocka_unit_test(names__a_file_may_be_called_as_an_export),
        cmocka_unit_test(names__a_child_keeps_the_name_of_an_export),
        cmocka_unit_test(names__json_that_is_broken_is_corrupt),
        cmocka_unit_test(names__json_of_any_depth_ends),
        cmocka_unit_test(names__a_relative_name_stays_relative),
        cmocka_unit_test(names__an_absolute_name_stays_absolute),
        cmocka_unit_test(names__file_and_json_names_become_absolute),
        cmocka_unit_test(names__mixed_absolute_and_relative_paths_meet),
        cmocka_unit_test(names__symbolic_links_on_the_way_are_followed),
        cmocka_unit_test(names__a_link_below_the_child_is_kept),
        cmocka_unit_test(names__a_colon_gets_a_directory),
        cmocka_unit_test(names__keep_relative_refuses_what_cannot_be),
        cmocka_unit_test(names__a_target_that_is_gone_is_no_name),
    };

    return cmocka_run_group_tests(tests, make_folders, qm_scratch_leave);
}
