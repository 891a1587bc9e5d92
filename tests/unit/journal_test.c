/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * journal_test.c - what a merge finds when it comes back.
 *
 * A journal is believed because of its checksums, so each part is damaged here by itself; and it is
 * written while power may fail, so every state that a crash can leave is loaded.
 */
#include "journal.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#include <cmocka.h>

#include "ok.h"

#define PATH       ".base.raw.qmeld"
#define CURSOR_OFF 512
#define INTENT_OFF 4096

static void
add_layer(struct qm_intent *i, const char *path, const char *format)
{
    struct qm_journal_layer l = {.path = strdup(path),
                                 .format = strdup(format),
                                 .ino = UINT64_MAX,
                                 .size = 1ull << 62,
                                 .mtime_sec = -5,
                                 .mtime_nsec = 999999999,
                                 .born = {.sec = -7, .nsec = 1}};

    assert_true(qm_vec_push(&i->layers, &l));
}

static struct qm_intent
make_intent(void)
{
    struct qm_intent i = {.base_arg = strdup("[1]"),
                          .overlays = QMELD_OVERLAYS_DELETE,
                          .keep_relative = true,
                          .top = 1,
                          .base_size = 1000,
                          .new_size = UINT64_MAX / 2};
    char *bitmap = strdup("a \"b\"\n");

    assert_true(qm_vec_push(&i.bitmaps.list, &bitmap));
    add_layer(&i, "/d\xc3\xa9j\xc3\xa0/base.raw", "raw");
    add_layer(&i, "/x/\x01\"\\top.qcow2", "qcow2");
    return i;
}

static struct qm_journal *
make(void)
{
    struct qm_intent i = make_intent();
    struct qm_journal *j;

    OK(qm_journal_create(PATH, &i, &j, err));
    return j;
}

static struct qm_journal *
load(void)
{
    struct qm_journal *j;

    OK(qm_journal_load(PATH, &j, err));
    return j;
}

static void
advance(struct qm_journal *j, uint64_t done)
{
    const struct qm_cursor to = {.done = qm_guest(done)};

    OK(qm_journal_advance(j, to, err));
}

/* PATH cannot be loaded, for this reason. */
static void
check_refused(enum qmeld_code code)
{
    struct qmeld_error err = {0};
    struct qm_journal *j;

    assert_int_equal(qm_journal_load(PATH, &j, &err), -1);
    assert_null(j);
    assert_int_equal(err.code, code);
    assert_int_equal(err.disk, QMELD_DISK_OLD);
    assert_string_equal(err.file, PATH);
}

/* Somebody else was or is at work on it. */
static void
check_not_held(struct qm_journal *j, enum qmeld_code code)
{
    struct qmeld_error err = {0};

    assert_int_equal(qm_journal_hold(j, &err), -1);
    assert_int_equal(err.code, code);
}

static void
poke(long off, const void *bytes, size_t n)
{
    FILE *f = fopen(PATH, "r+b");

    assert_non_null(f);
    assert_int_equal(fseek(f, off, SEEK_SET), 0);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static void
check_cursor(uint64_t done)
{
    struct qm_journal *j = load();

    assert_non_null(j);
    assert_int_equal(qm_journal_cursor(j).done.g, done);
    assert_int_equal(qm_journal_cursor(j).phase, QM_PHASE_COPY);
    qm_journal_close(j);
}

/* ---- a whole one ---- */

static void
journal__is_loaded_as_it_was_made(void **state)
{
    const struct qm_intent *i;
    struct qm_journal *j;

    (void)state;
    qm_journal_close(make());
    j = load();
    assert_non_null(j);
    i = qm_journal_intent(j);
    assert_string_equal(i->base_arg, "[1]");
    assert_null(i->top_arg);
    assert_null(i->backing_format);
    assert_false(i->shallow);
    assert_true(i->keep_relative);
    assert_int_equal(i->overlays, QMELD_OVERLAYS_DELETE);
    assert_int_equal(i->base, 0);
    assert_int_equal(i->top, 1);
    assert_int_equal(i->base_size, 1000);
    assert_int_equal(i->new_size, UINT64_MAX / 2);
    assert_int_equal(i->bitmaps.list.n, 1);
    assert_string_equal(i->bitmaps.list.at[0], "a \"b\"\n");
    assert_int_equal(i->layers.n, 2);
    assert_string_equal(i->layers.at[0].path, "/d\xc3\xa9j\xc3\xa0/base.raw");
    assert_string_equal(i->layers.at[1].path, "/x/\x01\"\\top.qcow2");
    assert_string_equal(i->layers.at[1].format, "qcow2");
    assert_int_equal(i->layers.at[1].ino, UINT64_MAX);
    assert_int_equal(i->layers.at[1].size, 1ull << 62);
    assert_int_equal(i->layers.at[1].mtime_sec, -5);
    assert_int_equal(i->layers.at[1].mtime_nsec, 999999999);
    assert_int_equal(i->layers.at[1].born.sec, -7);
    assert_int_equal(i->layers.at[1].born.nsec, 1);
    qm_journal_close(j);
}

static void
journal__cursor_is_where_it_was_advanced_to(void **state)
{
    const struct qm_cursor end = {.phase = QM_PHASE_SETTLE, .done = qm_guest(40)};
    struct qm_journal *j = make();

    (void)state;
    check_cursor(0);
    for (uint64_t done = 10; done <= 30; done += 10) {
        advance(j, done);
        check_cursor(done);
    }
    OK(qm_journal_advance(j, end, err));
    qm_journal_close(j);
    j = load();
    assert_int_equal(qm_journal_cursor(j).phase, QM_PHASE_SETTLE);
    qm_journal_close(j);
}

static void
journal__removed_is_none(void **state)
{
    (void)state;
    OK(qm_journal_remove(make(), err));
    assert_int_equal(access(PATH, F_OK), -1);
    assert_null(load());
}

static void
journal__of_another_merge_is_not_overwritten(void **state)
{
    struct qm_journal *first = make(), *second;
    struct qm_intent i = make_intent();
    struct qmeld_error err = {0};

    (void)state;
    advance(first, 7);
    qm_journal_close(first);
    assert_int_equal(qm_journal_create(PATH, &i, &second, &err), -1);
    assert_int_equal(err.code, QMELD_USAGE);
    assert_null(second);
    check_cursor(7);
}

static void
journal__path_is_beside_the_base_or_where_it_is_told(void **state)
{
    static const struct {
        const char *base, *active, *dir, *want;
        bool blockdev;
    } cases[] = {
        {"base.raw", "x/top", NULL, ".base.raw.qmeld", false},
        {"/a/b/base.raw", "x/top", NULL, "/a/b/.base.raw.qmeld", false},
        {"/dev/vg/lv", "x/top", NULL, "x/.lv.qmeld", true},
        {"/dev/vg/lv", "top", NULL, ".lv.qmeld", true},
        {"/a/base.raw", "x/top", "/j", "/j/.base.raw.qmeld", false},
    };

    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *path;

        OK(qm_journal_path(cases[i].base, cases[i].blockdev, cases[i].active, cases[i].dir, &path,
                           err));
        assert_string_equal(path, cases[i].want);
        free(path);
    }
}

/* ---- two processes ---- */

static void
journal__is_held_by_one_at_a_time(void **state)
{
    struct qm_journal *first = make(), *second = load();

    (void)state;
    assert_true(qm_journal_is_held(second));
    check_not_held(second, QMELD_BUSY);
    qm_journal_close(first);
    assert_false(qm_journal_is_held(second));
    OK(qm_journal_hold(second, err));
    first = load();
    assert_true(qm_journal_is_held(first));
    qm_journal_close(first);
    qm_journal_close(second);
}

static void
journal__that_went_on_since_it_was_loaded_is_not_gone_on_with(void **state)
{
    struct qm_journal *first = make(), *second = load();

    (void)state;
    advance(first, 5);
    qm_journal_close(first);
    check_not_held(second, QMELD_BUSY);
    qm_journal_close(second);
}

static void
journal__finished_or_begun_anew_since_it_was_loaded_is_stale(void **state)
{
    struct qm_journal *first = make(), *second = load();

    (void)state;
    OK(qm_journal_remove(first, err));
    check_not_held(second, QMELD_STALE);
    qm_journal_close(make());
    check_not_held(second, QMELD_STALE);
    qm_journal_close(second);
}

/* ---- damage ---- */

static void
journal__damage_anywhere_is_found(void **state)
{
    static const unsigned char flip = 0xa5;
    size_t len;
    unsigned char *whole;

    (void)state;
    qm_journal_close(make());
    whole = qm_torn_load(PATH, &len);
    assert_true(len > INTENT_OFF);
    for (size_t at = 0; at < len; at++) {
        const unsigned char bad = whole[at] ^ flip;

        if (at == 32) /* behind the head, to the cursor */
            at = CURSOR_OFF + 512;
        if (at ==
            CURSOR_OFF + 512 + 28) /* to the intent; the first cursor lies in the second sector */
            at = INTENT_OFF;
        poke((long)at, at == INTENT_OFF ? "?" : (const char *)&bad, 1);
        if (bad != whole[at])
            check_refused(QMELD_CORRUPT);
        poke((long)at, &whole[at], 1);
    }
    check_cursor(0);
    free(whole);
}

static void
journal__torn_cursor_leaves_the_one_before(void **state)
{
    struct qm_journal *j = make();

    (void)state;
    advance(j, 10); /* in the first sector */
    poke(CURSOR_OFF + 8, "\xff", 1);
    check_cursor(0);
    advance(j, 20);
    check_cursor(20);
    poke(CURSOR_OFF + 512 + 16, "\xff", 1); /* the second; the first is torn, too */
    check_refused(QMELD_CORRUPT);
    qm_journal_close(j);
}

static void
put32(unsigned char *to, uint32_t value)
{
    for (int i = 0; i < 4; i++)
        to[i] = (unsigned char)(value >> (24 - 8 * i));
}

/* A head with right checksums, whatever it says. */
static void
forge_head(uint32_t version, uint32_t len, const char *text)
{
    unsigned char head[32] = "qmeld journal\n";

    put32(head + 16, version);
    put32(head + 20, len);
    put32(head + 24, (uint32_t)crc32_z(0, (const void *)text, strlen(text)));
    put32(head + 28, (uint32_t)crc32_z(0, head, 28));
    poke(0, head, sizeof head);
}

static void
journal__of_a_later_version_is_not_understood(void **state)
{
    (void)state;
    qm_journal_close(make());
    forge_head(3, 0, "");
    check_refused(QMELD_UNSUPPORTED);
}

static void
journal__length_of_gigabytes_is_not_believed(void **state)
{
    (void)state;
    qm_journal_close(make());
    forge_head(2, UINT32_MAX, "");
    check_refused(QMELD_CORRUPT);
}

#define LAYER(path)                                                                                \
    "{\"path\": \"" path "\", \"format\": \"raw\", \"block-device\": false, \"inode\": 1, "        \
    "\"size\": 1, \"mtime\": 1, \"mtime-nsec\": 1}"
#define WAY(way) "\"atomic\": false, \"undo\": true, \"way-back\": " way ", "
#define WORDS    "\"base-arg\": null, \"top-arg\": null, \"backing-format\": null, "
#define FLAGS    "\"shallow\": false, \"reclaim\": false, \"keep-relative\": false, "
#define NUMBERS  FLAGS "\"overlays\": 0, \"base\": 0, \"top\": 1, " SIZES
#define SIZES    "\"base-size\": 1, \"new-size\": 2, "
#define LAYERS   "\"layers\": [" LAYER("/a") ", " LAYER("/b") "], "
#define BITMAPS  "\"bitmaps\": []"
#define ORDER(name, deed, layer, bits)                                                             \
    "{\"name\": \"" name "\", \"deed\": " deed ", \"created\": true, \"enabled\": true, "          \
    "\"marks\": false, \"broken\": false, \"granularity-bits\": " bits ", \"layer\": " layer "}"
#define ASIDE(to)                                                                                  \
    "\"layers\": [" LAYER(                                                                         \
        "/a") ", {\"moved-to\": \"" to "\", \"path\": \"/b\", "                                    \
              "\"format\": \"raw\", \"block-device\": false, \"inode\": 1, \"size\": 1, "          \
              "\"mtime\": 1, \"mtime-nsec\": 1}], "

static void
forge_intent(const char *text)
{
    poke(INTENT_OFF, text, strlen(text) + 1);
    forge_head(2, (uint32_t)strlen(text), text);
}

/* The checksums are right: somebody means it. */
static void
journal__hostile_intent_is_refused(void **state)
{
    static const char *const intents[] = {
        "",
        "[]",
        "null",
        "7",
        "{}",
        "{" WORDS NUMBERS LAYERS,
        "{" NUMBERS LAYERS BITMAPS "}",
        "{" WORDS FLAGS SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": 0, \"base\": 0, \"top\": 1, " LAYERS BITMAPS "}",
        "{\"base-arg\": [1], \"top-arg\": null, \"backing-format\": null, " NUMBERS LAYERS BITMAPS
        "}",
        "{" WORDS NUMBERS LAYERS "\"bitmaps\": [null]}",
        "{" WORDS NUMBERS LAYERS "\"bitmaps\": 3}",
        "{" WORDS NUMBERS BITMAPS "}",
        "{" WORDS NUMBERS "\"layers\": [null, null], " BITMAPS "}",
        "{" WORDS NUMBERS "\"layers\": [" LAYER("/a") "], " BITMAPS "}",
        "{" WORDS NUMBERS "\"layers\": [" LAYER("/a") ", " LAYER("b") "], " BITMAPS "}",
        "{" WORDS NUMBERS "\"layers\": [" LAYER("/a") ", {\"path\": \"/b\"}], " BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": 4, \"base\": 0, \"top\": 1, " SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": 3, \"base\": 0, \"top\": 1, " SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": 3, \"base\": 0, \"top\": 1, " SIZES ASIDE("b.merged") BITMAPS
        "}",
        "{" WORDS FLAGS "\"overlays\": 2, \"base\": 0, \"top\": 1, " SIZES ASIDE("/b.merged")
            BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": -1, \"base\": 0, \"top\": 1, " SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": 0, \"base\": 1, \"top\": 1, " SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS "\"overlays\": 0, \"base\": 0, \"top\": 2, " SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS
        "\"overlays\": 0, \"base\": 0, \"top\": 18446744073709551615, " SIZES LAYERS BITMAPS "}",
        "{" WORDS FLAGS
        "\"overlays\": 0, \"base\": 0, \"top\": 1, \"base-size\": 2, \"new-size\": 1, " LAYERS
            BITMAPS "}",
        "{" WORDS WAY("{\"kind\": 3, \"file-size\": 1}") NUMBERS LAYERS BITMAPS "}",
        "{" WORDS WAY("{\"kind\": 2}") NUMBERS LAYERS BITMAPS "}",
        "{" WORDS WAY("7") NUMBERS LAYERS BITMAPS "}",
        "{" WORDS "\"way-back\": {\"kind\": 2, \"file-size\": 1}, " NUMBERS LAYERS BITMAPS "}",
        "{" WORDS WAY("{\"kind\": 1, \"file-size\": 1, \"floor\": 2, "
                      "\"sector-0\": \"00ff\"}") NUMBERS LAYERS BITMAPS "}",
        "{" WORDS NUMBERS LAYERS BITMAPS ", \"bitmaps-mode\": 3}",
        "{" WORDS NUMBERS LAYERS BITMAPS ", \"bitmap-orders\": [" ORDER("", "0", "0", "9") "]}",
        "{" WORDS NUMBERS LAYERS BITMAPS ", \"bitmap-orders\": [" ORDER("a", "4", "0", "9") "]}",
        "{" WORDS NUMBERS LAYERS BITMAPS ", \"bitmap-orders\": [" ORDER("a", "0", "2", "9") "]}",
        "{" WORDS NUMBERS LAYERS BITMAPS ", \"bitmap-orders\": [" ORDER("a", "0", "0", "8") "]}",
        "{" WORDS NUMBERS LAYERS BITMAPS
        ", \"bitmap-orders\": [" ORDER("b", "0", "0", "9") ", " ORDER("a", "0", "0", "9") "]}",
    };
    struct qm_journal *j;

    (void)state;
    qm_journal_close(make());
    forge_intent("{" WORDS NUMBERS LAYERS BITMAPS "}"); /* what all the others are changed from */
    j = load();
    assert_non_null(j);
    qm_journal_close(j);
    forge_intent("{" WORDS NUMBERS LAYERS BITMAPS
                 ", \"bitmaps-mode\": 2, \"bitmap-orders\": [" ORDER("a", "0", "1", "9") "]}");
    j = load();
    assert_int_equal(qm_journal_intent(j)->bitmaps_mode, QMELD_BITMAPS_DROP);
    assert_string_equal(qm_journal_intent(j)->orders.list.at[0].name, "a");
    qm_journal_close(j);
    forge_intent("{" WORDS WAY("{\"kind\": 2, \"file-size\": 1}") NUMBERS LAYERS BITMAPS "}");
    j = load();
    assert_int_equal(qm_journal_intent(j)->back.kind, QM_WAY_KEEP);
    qm_journal_close(j);
    forge_intent("{" WORDS FLAGS
                 "\"overlays\": 3, \"base\": 0, \"top\": 1, " SIZES ASIDE("/b.merged") BITMAPS "}");
    j = load();
    assert_non_null(j);
    assert_null(qm_journal_intent(j)->layers.at[0].moved_to);
    assert_string_equal(qm_journal_intent(j)->layers.at[1].moved_to, "/b.merged");
    qm_journal_close(j);
    for (size_t i = 0; i < sizeof intents / sizeof *intents; i++) {
        forge_intent(intents[i]);
        check_refused(QMELD_CORRUPT);
    }
}

static void
journal__cursor_behind_the_end_is_refused(void **state)
{
    struct qm_journal *j = make();

    (void)state;
    advance(j, 3);
    qm_journal_close(j);
    forge_intent("{" WORDS NUMBERS LAYERS BITMAPS "}"); /* a disk of 2 bytes */
    check_refused(QMELD_CORRUPT);
}

static void
journal__that_everybody_may_write_is_not_obeyed(void **state)
{
    (void)state;
    qm_journal_close(make());
    assert_int_equal(chmod(PATH, 0666), 0);
    check_refused(QMELD_USAGE);
}

static void
journal__that_is_something_else_stays(void **state)
{
    struct qm_intent i = make_intent();
    struct qmeld_error err = {0};
    struct qm_journal *j;
    FILE *f = fopen(PATH, "w");

    (void)state;
    assert_non_null(f);
    fputs("a letter to somebody", f);
    assert_int_equal(fclose(f), 0);
    check_refused(QMELD_CORRUPT);
    assert_int_equal(qm_journal_create(PATH, &i, &j, &err), -1);
    check_refused(QMELD_CORRUPT);
}

/* ---- power cuts ---- */

struct loads {
    uint64_t low; /* cursors that may be found */
    uint64_t high;
    size_t none;
    size_t found;
};

/* Either there is no journal yet, or it is whole, with one of two cursors. */
static void
check_state(const unsigned char *file, size_t len, void *opaque)
{
    struct loads *l = opaque;
    struct qm_journal *j;

    unlink(PATH);
    qm_torn_save(PATH, file, len);
    j = load();
    if (!j) {
        l->none++;
        return;
    }
    l->found++;
    assert_int_equal(qm_journal_intent(j)->layers.n, 2);
    assert_in_range(qm_journal_cursor(j).done.g, l->low, l->high);
    qm_journal_close(j);
}

static void
journal__power_cut_while_it_is_made_leaves_none_or_all(void **state)
{
    struct loads l = {0};
    struct qm_torn *t;

    (void)state;
    t = qm_torn_start(PATH);
    qm_journal_close(make());
    qm_torn_stop(t);
    assert_in_range(qm_torn_replay(t, check_state, &l), 4, 10000);
    qm_torn_free(t);
    assert_true(l.none > 0 && l.found > 0);
}

static void
journal__power_cut_while_it_advances_leaves_one_of_two_cursors(void **state)
{
    struct qm_journal *j = make();

    (void)state;
    for (uint64_t done = 1; done <= 4; done++) {
        struct loads l = {.low = done - 1, .high = done};
        struct qm_torn *t = qm_torn_start(PATH);

        advance(j, done);
        qm_torn_stop(t);
        assert_in_range(qm_torn_replay(t, check_state, &l), 2, 1000);
        assert_int_equal(l.none, 0);
        qm_torn_free(t);
    }
    qm_journal_close(j);
}

/* An inode's number is given away again as soon as its file is gone. */
static void
journal__another_file_with_the_number_of_a_layer_is_not_that_layer(void **state)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK, .format = "raw"};
    struct qmeld_error why = {0};
    struct qm_journal_layer l;
    struct qm_chain *c;

    (void)state;
    qm_torn_save("x.raw", (const unsigned char *)"a layer", 7);
    OK(qm_chain_open("x.raw", &how, &c, err));
    OK(qm_journal_note(&c->layers[0], &l, err));
    OK(qm_journal_same(&l, c->layers[0].img, false, err));
    if (l.born.sec == 0)
        fail_msg("the file system of the scratch folder tells no time of birth: set TMPDIR");
    l.born.nsec ^= 1;
    assert_int_equal(qm_journal_same(&l, c->layers[0].img, false, &why), -1);
    assert_int_equal(why.code, QMELD_STALE);
    l.born = (struct qm_birth){.sec = 0}; /* it did not tell then: the number has to do */
    OK(qm_journal_same(&l, c->layers[0].img, false, err));
    l.ino ^= 1;
    assert_int_equal(qm_journal_same(&l, c->layers[0].img, false, &why), -1);
    qm_journal_layer_release(&l);
    qm_chain_close(c);
}

int
main(void)
{
#define FACT(f) cmocka_unit_test_setup_teardown(journal__##f, qm_scratch_enter, qm_scratch_leave)
    const struct CMUnitTest tests[] = {
        FACT(is_loaded_as_it_was_made),
        FACT(cursor_is_where_it_was_advanced_to),
        FACT(removed_is_none),
        FACT(of_another_merge_is_not_overwritten),
        FACT(path_is_beside_the_base_or_where_it_is_told),
        FACT(is_held_by_one_at_a_time),
        FACT(that_went_on_since_it_was_loaded_is_not_gone_on_with),
        FACT(finished_or_begun_anew_since_it_was_loaded_is_stale),
        FACT(damage_anywhere_is_found),
        FACT(torn_cursor_leaves_the_one_before),
        FACT(of_a_later_version_is_not_understood),
        FACT(length_of_gigabytes_is_not_believed),
        FACT(hostile_intent_is_refused),
        FACT(cursor_behind_the_end_is_refused),
        FACT(that_everybody_may_write_is_not_obeyed),
        FACT(that_is_something_else_stays),
        FACT(power_cut_while_it_is_made_leaves_none_or_all),
        FACT(another_file_with_the_number_of_a_layer_is_not_that_layer),
        FACT(power_cut_while_it_advances_leaves_one_of_two_cursors),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
