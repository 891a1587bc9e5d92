/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * nbd_name_test.c - names of NBD exports lead where QEMU 7.2 goes, each tried with qemu-img against a server that tells which
 * export it was asked for.
 */
#include "nbd_name.h"

#include "cleanup.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void
is_spelled(const char *path, const char *want)
{
    QM_FREE char *uri = qm_nbd_canonical(path);

    assert_true(qm_nbd_is_name(path));
    assert_non_null(uri);
    assert_string_equal(uri, want);
    assert_true(qm_nbd_same(path, want));
}

static void
is_refused(const char *path, const char *part)
{
    struct qmeld_error err = {0};
    struct qm_nbd_name name;

    assert_int_equal(qm_nbd_parse(path, &name, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    if (!strstr(err.what, part))
        fail_msg("%s: \"%s\" does not say \"%s\"", path, err.what, part);
}

static void
nbd_name__tcp_has_a_port(void **state)
{
    (void)state;
    is_spelled("nbd://h", "nbd://h:10809");
    is_spelled("nbd://h/", "nbd://h:10809");
    is_spelled("nbd+tcp://h:1/x", "nbd://h:1/x");
    is_spelled("nbd://[::1]:1/x", "nbd://[::1]:1/x");
    is_spelled("nbd:[::1]:1", "nbd://[::1]:1");
}

static void
nbd_name__an_export_has_any_bytes(void **state)
{
    (void)state;
    is_spelled("nbd://h//x", "nbd://h:10809//x");
    is_spelled("nbd://h/a%20b%3F", "nbd://h:10809/a%20b%3F");
    is_spelled("nbd:h:1:exportname=/q %", "nbd://h:1//q%20%25");
    is_spelled("nbd:h:1:exportname=a:exportname=b", "nbd://h:1/a%3Aexportname%3Db");
}

static void
nbd_name__a_socket_is_known_from_everywhere(void **state)
{
    QM_FREE char *cwd = getcwd(NULL, 0);
    char want[4096];

    (void)state;
    is_spelled("nbd+unix:///?socket=/s", "nbd+unix:///?socket=/s");
    is_spelled("nbd+unix://?socket=/s", "nbd+unix:///?socket=/s");
    is_spelled("nbd+unix:////x?socket=/s", "nbd+unix:////x?socket=/s");
    is_spelled("nbd:unix:/s:exportname=u", "nbd+unix:///u?socket=/s");
    snprintf(want, sizeof want, "nbd+unix:///?socket=%s/s", cwd);
    is_spelled("nbd:unix:s", want);
    is_spelled("nbd+unix:///?socket=s", want);
}

static void
nbd_name__tls_is_another_export(void **state)
{
    (void)state;
    is_spelled("nbds://u@h/x?tls-psk-file=/k", "nbds://u@h:10809/x?tls-psk-file=/k");
    is_spelled("nbds+unix:///x?socket=/s&tls-certificates=/c",
               "nbds+unix:///x?socket=/s&tls-certificates=/c");
    assert_false(qm_nbd_same("nbds://h/x", "nbd://h/x"));
    is_refused("nbd://h/x?tls-psk-file=/k", "parameter");
}

static void
nbd_name__nonsense_is_refused(void **state)
{
    (void)state;
    is_refused("nbd:", "no port");
    is_refused("nbd:h", "no port");
    is_refused("nbd:h:1:exportname=", "missing");
    is_refused("nbd:::1:1", "port makes no sense");
    is_refused("nbd:h:1,to=2", "port makes no sense");
    is_refused("nbd://", "no server");
    is_refused("nbd:///x", "no server");
    is_refused("nbd://[::1", "bracket");
    is_refused("nbd://[::1]x", "bracket");
    is_refused("nbd://h:/x", "port");
    is_refused("nbd://h/x?socket=/s", "parameter");
    is_refused("nbd://h/x#y", "fragment");
    is_refused("nbd://h/%", "%");
    is_refused("nbd://h/%2", "%");
    is_refused("nbd://h/%zz", "%");
    is_refused("nbd://h/%00", "%");
    is_refused("nbd+unix:///x", "no socket");
    is_refused("nbd+unix:///x?socket=", "parameter");
    is_refused("nbd+unix:///x?socket=/a&socket=/b", "twice");
    is_refused("nbd+unix://h/x?socket=/a", "server and a socket");
    is_refused("nbd:unix:", "no socket");
}

static void
nbd_name__lengths_have_limits(void **state)
{
    char long_name[8192], path[9000];

    (void)state;
    memset(long_name, 'x', sizeof long_name);
    long_name[4097] = '\0';
    snprintf(path, sizeof path, "nbd://h/%s", long_name);
    is_refused(path, "longer than the protocol");
    long_name[300] = '\0';
    snprintf(path, sizeof path, "nbd://%s/x", long_name);
    is_refused(path, "no server");
    snprintf(path, sizeof path, "nbd+unix:///x?socket=/%s", long_name);
    is_refused(path, "path of its socket");
}

static void
nbd_name__files_are_no_exports(void **state)
{
    (void)state;
    assert_false(qm_nbd_is_name("./nbd:x"));
    assert_false(qm_nbd_is_name("nbd"));
    assert_false(qm_nbd_is_name("nbds"));
    assert_false(qm_nbd_is_name("nbd+ssh://h/x"));
    assert_false(qm_nbd_same("/x", "/x"));
    assert_null(qm_nbd_file_name("/x"));
}

static void
nbd_name__a_journal_is_named_after_the_export(void **state)
{
    QM_FREE char *a = qm_nbd_file_name("nbd://h/x");
    QM_FREE char *b = qm_nbd_file_name("nbd:h:10809:exportname=x");
    QM_FREE char *c = qm_nbd_file_name("nbd://h/y");

    (void)state;
    assert_string_equal(a, b);
    assert_string_not_equal(a, c);
    assert_null(strchr(a, '/'));
}

int
main(void)
{
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(nbd_name__tcp_has_a_port),
        cmocka_unit_test(nbd_name__an_export_has_any_bytes),
        cmocka_unit_test(nbd_name__a_socket_is_known_from_everywhere),
        cmocka_unit_test(nbd_name__tls_is_another_export),
        cmocka_unit_test(nbd_name__nonsense_is_refused),
        cmocka_unit_test(nbd_name__lengths_have_limits),
        cmocka_unit_test(nbd_name__files_are_no_exports),
        cmocka_unit_test(nbd_name__a_journal_is_named_after_the_export),
    };

    return cmocka_run_group_tests_name("nbd_name", tests, NULL, NULL);
}
