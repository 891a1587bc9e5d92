/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * change_test.c - what is noted of a stopped machine comes back as it was, rubbish does not; and a file
 * is known again, but not another one that took its name.
 */
#include "change.h"
#include "scratch.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

/* ---- notes, in memory ---- */

static char *noted[2];
static unsigned step[2];

static size_t
slot_of(const char *path)
{
    return strcmp(path, "/n2") == 0;
}

static int
write_note(const char *path, const char *text, struct qmeld_error *err)
{
    if (strcmp(path, "/full") == 0)
        return qm_fail(err, QMELD_NOSPACE, qm_in(path), "full");
    noted[slot_of(path)] = strdup(text);
    step[slot_of(path)] = 0;
    return 0;
}

static int
read_note(const char *path, char **out, unsigned *out_step, struct qmeld_error *err)
{
    const size_t i = slot_of(path);

    (void)err;
    *out = noted[i] ? strdup(noted[i]) : NULL;
    if (out_step)
        *out_step = step[i];
    return 0;
}

static int
step_note(const char *path, unsigned to, struct qmeld_error *err)
{
    (void)err;
    step[slot_of(path)] = to;
    return 0;
}

static int
remove_note(const char *path, struct qmeld_error *err)
{
    (void)err;
    free(noted[slot_of(path)]);
    noted[slot_of(path)] = NULL;
    return 0;
}

static const struct qm_live_host host = {.note_write = write_note,
                                         .note_read = read_note,
                                         .note_step = step_note,
                                         .note_remove = remove_note};

/* ---- the changes ---- */

static void
make_file(const char *name)
{
    FILE *f = fopen(name, "w");

    assert_non_null(f);
    fclose(f);
}

static char *
path_of(const char *name)
{
    char *out;

    assert_true(asprintf(&out, "%s/%s", qm_scratch_dir(), name) > 0);
    return out;
}

static void
add_disk(struct qm_change *c, const char *target, const char *note)
{
    struct qm_change_disk d = {.target = strdup(target), .note = strdup(note), .base = 0, .top = 1};
    QM_FREE char *base = path_of("base"), *top = path_of("t\xc3\xb6p \"x\"");

    make_file(base);
    make_file(top);
    OK(qm_change_add_layer(&d, base, "raw", err));
    OK(qm_change_add_layer(&d, top, "qcow2", err));
    assert_true(qm_vec_push(&c->disks, &d));
}

static struct qm_change
make_change(void)
{
    struct qm_change c = {.uri = strdup("qemu:///system"),
                          .domain = strdup("vm \"1\"\n"),
                          .uuid = strdup("u"),
                          .words = strdup("disk=vda"),
                          .journal_dir = strdup("/jd"),
                          .remove = true,
                          .live = true};

    add_disk(&c, "vda", "/n1");
    add_disk(&c, "vdb", "/n2");
    return c;
}

static void
change__comes_back_as_it_was(void **state)
{
    struct qm_change a = make_change(), b;

    (void)state;
    OK(qm_change_note(&a, err));
    assert_string_equal(noted[0], noted[1]);
    OK(qm_change_read("/n1", noted[0], &b, err));
    assert_string_equal(b.domain, a.domain);
    assert_string_equal(b.journal_dir, "/jd");
    assert_null(b.snapshot);
    assert_true(b.remove && b.live && !b.keep_relative && !b.update_saved);
    assert_int_equal(b.disks.n, 2);
    assert_string_equal(b.disks.at[1].layers.at[1].path, a.disks.at[1].layers.at[1].path);
    assert_int_equal(b.disks.at[0].layers.at[1].ino, a.disks.at[0].layers.at[1].ino);
    assert_int_equal(b.disks.at[0].layers.at[1].born_nsec, a.disks.at[0].layers.at[1].born_nsec);
    free(noted[1]); /* the crash came before it was written */
    noted[1] = NULL;
    step[0] = 5;
    OK(qm_change_note_again(&b, err));
    assert_string_equal(noted[0], noted[1]);
    assert_int_equal(step[0], 5);
    OK(qm_change_unnote(&a, err));
    assert_null(noted[0]);
    assert_null(noted[1]);
    qm_change_release(&a);
    qm_change_release(&b);
}

static void
change__is_noted_for_all_disks_or_none(void **state)
{
    struct qm_change c = make_change();
    struct qmeld_error err = {0};

    (void)state;
    free(c.disks.at[1].note);
    c.disks.at[1].note = strdup("/full");
    assert_int_equal(qm_change_note(&c, &err), -1);
    assert_int_equal(err.code, QMELD_NOSPACE);
    assert_null(noted[0]);
    qm_change_release(&c);
}

static void
change__is_settled_by_any_note(void **state)
{
    struct qm_change c = make_change();
    bool settled;

    (void)state;
    OK(qm_change_note(&c, err));
    OK(qm_change_is_settled(&c, &settled, err));
    assert_false(settled);
    step[1] = 1;
    OK(qm_change_is_settled(&c, &settled, err));
    assert_true(settled);
    step[1] = 0;
    OK(qm_change_note_settled(&c, err));
    assert_int_equal(step[0], 1);
    assert_int_equal(step[1], 1);
    OK(qm_change_unnote(&c, err));
    qm_change_release(&c);
}

static void
change__that_contradicts_itself_is_refused(void **state)
{
    static const char *const edits[][2] = {
        {"\"top\":1", "\"top\":2"},
        {"\"base\":0", "\"base\":1"},
        {"\"vda\"", "7"},
        {"\"path\":\"\\/", "\"path\":\"x"},
        {"\"disks\":[", "\"disks\":7,\"x\":["},
        {"\"uuid\":\"u\"", "\"uuid\":null"},
        {"\"remove\":true", "\"remove\":1"},
        {"\"base\":0", "\"base\":-1"},
        {"{", "["},
        {"\"inode\":", "\"inode\":\"x\",\"y\":"},
    };
    struct qm_change a = make_change(), b;

    (void)state;
    OK(qm_change_note(&a, err));
    for (size_t i = 0; i < sizeof edits / sizeof *edits; i++) {
        struct qmeld_error err = {0};
        QM_FREE char *plain = malloc(strlen(noted[0]) + 1), *bad = malloc(strlen(noted[0]) + 100);
        size_t n = 0;
        const char *at;

        for (const char *p = noted[0]; *p; p++) /* as it would be without white space */
            if (*p != ' ' && *p != '\n')
                plain[n++] = *p;
        plain[n] = '\0';
        at = strstr(plain, edits[i][0]);
        assert_non_null(at);
        sprintf(bad, "%.*s%s%s", (int)(at - plain), plain, edits[i][1], at + strlen(edits[i][0]));
        assert_int_equal(qm_change_read("/n1", bad, &b, &err), -1);
        assert_int_equal(err.code, QMELD_CORRUPT);
    }
    OK(qm_change_unnote(&a, err));
    qm_change_release(&a);
}

static void
change__a_file_is_known_by_more_than_its_name(void **state)
{
    struct qm_change c = make_change();
    const struct qm_change_disk *d = c.disks.at;
    QM_FREE char *link = path_of("link"), *other = path_of("other");
    bool gone;

    (void)state;
    assert_int_equal(symlink("base", "link"), 0);
    make_file("other");
    assert_int_equal(qm_change_find(d, d->layers.at[1].path), 1);
    assert_int_equal(qm_change_find(d, link), 0);
    assert_int_equal(qm_change_find(d, other), 2);
    assert_true(qm_change_is_still(&d->layers.at[1], &gone));
    assert_int_equal(unlink(d->layers.at[1].path), 0);
    assert_int_equal(qm_change_find(d, d->layers.at[1].path), 1);
    assert_false(qm_change_is_still(&d->layers.at[1], &gone));
    assert_true(gone);
    /* another file of that name, be it with the same number; a file system without times of birth cannot
     * tell them apart */
    if (d->layers.at[1].born_sec == 0)
        skip();
    make_file(d->layers.at[1].path);
    assert_int_equal(qm_change_find(d, d->layers.at[1].path), 2);
    assert_false(qm_change_is_still(&d->layers.at[1], &gone));
    assert_false(gone);
    qm_change_release(&c);
}

#define FACT(name)                                                                                 \
    cmocka_unit_test_setup_teardown(change__##name, qm_scratch_enter, qm_scratch_leave)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        FACT(comes_back_as_it_was),
        FACT(is_noted_for_all_disks_or_none),
        FACT(is_settled_by_any_note),
        FACT(that_contradicts_itself_is_refused),
        FACT(a_file_is_known_by_more_than_its_name),
    };

    qm_lib = &host;
    return cmocka_run_group_tests(tests, NULL, NULL);
}
