/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * lock_test.c - QEMU's lock bytes as a second open file sees them.
 *
 * An OFD lock belongs to an open file, so two of them in one process exclude each other as two
 * processes do.
 */
#include "lock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

struct setup {
    char path[64];
    struct qm_file *a;
    struct qm_file *b;
    int other; /* a plain descriptor, for looking at bytes */
};

static struct qm_file *
open_again(const struct setup *s)
{
    struct qmeld_error err = {0};
    struct qm_file *f;

    assert_int_equal(qm_file_open(s->path, &f, &err), 0);
    return f;
}

static int
prepare(void **state)
{
    struct setup *s = calloc(1, sizeof *s);
    int fd;

    assert_non_null(s);
    strcpy(s->path, "/tmp/qmeld-lock-XXXXXX");
    fd = mkstemp(s->path);
    assert_true(fd >= 0);
    close(fd);
    s->a = open_again(s);
    s->b = open_again(s);
    s->other = open(s->path, O_RDWR | O_CLOEXEC);
    assert_true(s->other >= 0);
    *state = s;
    return 0;
}

static int
clean(void **state)
{
    struct setup *s = *state;

    qm_file_close(s->a);
    qm_file_close(s->b);
    close(s->other);
    unlink(s->path);
    free(s);
    return 0;
}

/* Bytes of [0, 300) that somebody but `other` holds, as "100 201 203". */
static const char *
held_bytes(const struct setup *s)
{
    static char text[400];
    size_t used = 0;

    text[0] = '\0';
    for (int i = 0; i < 300; i++) {
        struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = i, .l_len = 1};

        assert_int_equal(fcntl(s->other, F_OFD_GETLK, &l), 0);
        if (l.l_type != F_UNLCK)
            used += (size_t)snprintf(text + used, sizeof text - used, "%s%d", used ? " " : "", i);
    }
    return text;
}

static void
take(struct qm_file *f, enum qm_lock_role role)
{
    struct qmeld_error err = {0};

    if (qm_lock_take(f, role, &err) < 0)
        fail_msg("%s", err.what);
}

static void
refuse(struct qm_file *f, enum qm_lock_role role)
{
    struct qmeld_error err = {0};

    assert_int_equal(qm_lock_take(f, role, &err), -1);
    assert_int_equal(err.code, QMELD_BUSY);
}

static char *
holder_of(const struct qm_file *f)
{
    struct qmeld_error err = {0};
    char *who;

    assert_int_equal(qm_lock_holders(&f, 1, &who, &err), 0);
    return who;
}

/* ---- roles ------------------------------------------------------------------------------ */

static void
lock__roles_hold_the_bytes_of_qemu(void **state)
{
    struct setup *s = *state;

    assert_string_equal(held_bytes(s), "");
    take(s->a, QM_LOCK_READER);
    assert_string_equal(held_bytes(s), "100 201 203");
    take(s->a, QM_LOCK_WRITER);
    assert_string_equal(held_bytes(s), "100 101 103 201 203");
    take(s->a, QM_LOCK_EXCLUSIVE);
    assert_string_equal(held_bytes(s), "100 101 103 200 201 203");
}

static void
lock__a_lower_role_changes_nothing(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_WRITER);
    take(s->a, QM_LOCK_READER);
    assert_string_equal(held_bytes(s), "100 101 103 201 203");
}

static void
lock__locks_are_shared_so_that_qemu_can_test_them(void **state)
{
    struct setup *s = *state;
    struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 300};

    take(s->a, QM_LOCK_EXCLUSIVE);
    assert_int_equal(fcntl(s->other, F_OFD_SETLK, &l), 0);
}

static void
lock__locks_end_with_the_file(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_EXCLUSIVE);
    qm_file_close(s->a);
    s->a = NULL;
    assert_string_equal(held_bytes(s), "");
}

static void
lock__readers_share(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_READER);
    take(s->b, QM_LOCK_READER);
}

static void
lock__a_reader_keeps_writers_out(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_READER);
    refuse(s->b, QM_LOCK_WRITER);
    refuse(s->b, QM_LOCK_EXCLUSIVE);
}

static void
lock__a_writer_keeps_everybody_out(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_WRITER);
    refuse(s->b, QM_LOCK_READER);
    refuse(s->b, QM_LOCK_WRITER);
    refuse(s->b, QM_LOCK_EXCLUSIVE);
}

/* qemu -U holds byte 100 alone: it may watch a writer, but not a file between states. */
static void
lock__exclusive_minds_a_reader_that_shares_all(void **state)
{
    struct setup *s = *state;
    struct flock l = {.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 1};

    assert_int_equal(fcntl(s->other, F_OFD_SETLK, &l), 0);
    take(s->a, QM_LOCK_WRITER);
    refuse(s->a, QM_LOCK_EXCLUSIVE);
}

static void
lock__a_refusal_leaves_the_role_it_had(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_READER);
    take(s->b, QM_LOCK_READER);
    refuse(s->a, QM_LOCK_WRITER);
    assert_string_equal(held_bytes(s), "100 201 203");
    qm_file_close(s->b);
    s->b = NULL;
    assert_string_equal(held_bytes(s), "100 201 203");
    take(s->a, QM_LOCK_WRITER);
}

static void
lock__a_first_refusal_leaves_nothing(void **state)
{
    struct setup *s = *state;

    take(s->a, QM_LOCK_WRITER);
    refuse(s->b, QM_LOCK_READER);
    qm_file_close(s->a);
    s->a = NULL;
    assert_string_equal(held_bytes(s), "");
}

static void
lock__a_foreign_exclusive_lock_is_busy(void **state)
{
    struct setup *s = *state;
    struct flock l = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 0};

    assert_int_equal(fcntl(s->other, F_OFD_SETLK, &l), 0);
    refuse(s->a, QM_LOCK_READER);
}

/* ---- holders ---------------------------------------------------------------------------- */

static void
lock__nobody_is_seen_where_nobody_is(void **state)
{
    struct setup *s = *state;

    assert_null(holder_of(s->a));
    take(s->a, QM_LOCK_READER);
    assert_null(holder_of(s->a)); /* not even ourselves */
}

static void
lock__looking_takes_no_lock(void **state)
{
    struct setup *s = *state;
    char *who;

    take(s->a, QM_LOCK_READER);
    who = holder_of(s->b);
    assert_non_null(who);
    assert_string_equal(held_bytes(s), "100 201 203");
    qm_file_close(s->a);
    s->a = NULL;
    assert_string_equal(held_bytes(s), "");
    free(who);
}

/* What the kernel calls this program: under a debugger it may not be its name. */
static const char *
own_name(void)
{
    static char name[17];

    assert_int_equal(prctl(PR_GET_NAME, name), 0);
    return name;
}

/* A child that holds the role until its end of the pipe says so. */
static pid_t
hold_in_child(const struct setup *s, enum qm_lock_role role)
{
    int ready[2];
    char c;
    pid_t pid;

    assert_int_equal(pipe(ready), 0);
    pid = fork();
    assert_true(pid >= 0);
    if (pid == 0) {
        struct qmeld_error err = {0};
        struct qm_file *f;

        if (qm_file_open(s->path, &f, &err) < 0 || qm_lock_take(f, role, &err) < 0 ||
            write(ready[1], "r", 1) != 1)
            _exit(1);
        for (;;)
            pause();
    }
    close(ready[1]);
    assert_int_equal(read(ready[0], &c, 1), 1);
    close(ready[0]);
    return pid;
}

static void
lock__the_holder_is_named(void **state)
{
    struct setup *s = *state;
    const pid_t pid = hold_in_child(s, QM_LOCK_WRITER);
    struct qmeld_error err = {0};
    char want[128];
    char *who = holder_of(s->a);

    snprintf(want, sizeof want, "pid %ld (%s): read, write, resize", (long)pid, own_name());
    assert_non_null(who);
    assert_string_equal(who, want);
    free(who);
    assert_int_equal(qm_lock_take(s->a, QM_LOCK_READER, &err), -1);
    assert_int_equal(err.code, QMELD_BUSY);
    assert_string_equal(err.file, s->path);
    assert_non_null(strstr(err.what, want));
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
    take(s->a, QM_LOCK_READER);
}

static void
lock__several_holders_are_all_named(void **state)
{
    struct setup *s = *state;
    const pid_t first = hold_in_child(s, QM_LOCK_READER);
    const pid_t second = hold_in_child(s, QM_LOCK_READER);
    char *who = holder_of(s->a);
    char part[64];

    assert_non_null(who);
    snprintf(part, sizeof part, "pid %ld (%s): read", (long)first, own_name());
    assert_non_null(strstr(who, part));
    snprintf(part, sizeof part, "pid %ld (%s): read", (long)second, own_name());
    assert_non_null(strstr(who, part));
    assert_non_null(strstr(who, "; "));
    free(who);
    kill(first, SIGKILL);
    kill(second, SIGKILL);
    waitpid(first, NULL, 0);
    waitpid(second, NULL, 0);
}

/* An open file on its way through a socket is in no process. */
static void
lock__an_invisible_holder_is_unknown_not_absent(void **state)
{
    struct setup *s = *state;
    int pair[2];
    char data = 'x', room[CMSG_SPACE(sizeof(int))] = {0};
    struct iovec iov = {&data, 1};
    struct msghdr msg = {
        .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof room};
    struct cmsghdr *c = CMSG_FIRSTHDR(&msg);
    char *who;

    assert_int_equal(socketpair(AF_UNIX, SOCK_DGRAM, 0, pair), 0);
    take(s->b, QM_LOCK_READER);
    c->cmsg_level = SOL_SOCKET;
    c->cmsg_type = SCM_RIGHTS;
    c->cmsg_len = CMSG_LEN(sizeof(int));
    memcpy(CMSG_DATA(c), &s->b->fd, sizeof(int));
    assert_int_equal(sendmsg(pair[0], &msg, 0), 1);
    qm_file_close(s->b);
    s->b = NULL;
    who = holder_of(s->a);
    assert_non_null(who);
    assert_string_equal(who, "an unknown process: read");
    free(who);
    refuse(s->a, QM_LOCK_WRITER);
    close(pair[0]);
    close(pair[1]);
}

static void
lock__many_files_are_told_apart(void **state)
{
    struct setup *s = *state;
    const struct qm_file *files[3];
    struct qm_file *tmp;
    struct qmeld_error err = {0};
    char path[] = "/tmp/qmeld-lock-XXXXXX";
    char *who[3];
    const int fd = mkstemp(path);

    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(qm_file_open(path, &tmp, &err), 0);
    take(s->b, QM_LOCK_READER);
    files[0] = tmp;
    files[1] = s->a;
    files[2] = tmp;
    assert_int_equal(qm_lock_holders(files, 3, who, &err), 0);
    assert_null(who[0]);
    assert_non_null(who[1]);
    assert_null(who[2]);
    free(who[1]);
    qm_file_close(tmp);
    unlink(path);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lock__roles_hold_the_bytes_of_qemu, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__a_lower_role_changes_nothing, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__locks_are_shared_so_that_qemu_can_test_them, prepare,
                                        clean),
        cmocka_unit_test_setup_teardown(lock__locks_end_with_the_file, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__readers_share, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__a_reader_keeps_writers_out, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__a_writer_keeps_everybody_out, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__exclusive_minds_a_reader_that_shares_all, prepare,
                                        clean),
        cmocka_unit_test_setup_teardown(lock__a_refusal_leaves_the_role_it_had, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__a_first_refusal_leaves_nothing, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__a_foreign_exclusive_lock_is_busy, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__nobody_is_seen_where_nobody_is, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__looking_takes_no_lock, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__the_holder_is_named, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__several_holders_are_all_named, prepare, clean),
        cmocka_unit_test_setup_teardown(lock__an_invisible_holder_is_unknown_not_absent, prepare,
                                        clean),
        cmocka_unit_test_setup_teardown(lock__many_files_are_told_apart, prepare, clean),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
