/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_io_test.c - what a merge does to the disk, and when.
 *
 * A story (lab.h) is the order of changes of a target: one letter a place, | a sync.  It is the
 * order of docs/crash-safety.md seen from outside; whether each moment of it is safe is asked by
 * the crash tests, here it is held so that no sync is lost or added unseen.
 */
#include "clock.h"
#include "lab.h"
#include "pagecache.h"
#include "qcow2_bitmap.h"
#include "scratch.h"
#include "transfer.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ok.h"

#define KIB 1024ull

static const struct qmeld_commit_options into_base = {.threads = 2};

/* ---- order ---- */

static void
tells(const char *recipe, const char *story)
{
    struct qm_forge *f = qm_lab_make(recipe);

    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    assert_string_equal(qm_lab_story("base"), story);
    qm_lab_written_once("base", "HBR1");
    qm_lab_reads_as("base", f, 0);
    qm_lab_clean("base");
    qm_forge_free(f);
}

static void
merge_io__data_in_place_needs_no_metadata(void **state)
{
    (void)state;
    tells("top  | .C. cluster=4k\n"
          "base | AB. cluster=4k\n",
          "D||");
}

static void
merge_io__a_new_cluster_is_durable_before_its_entry(void **state)
{
    (void)state;
    tells("top  | ..C cluster=4k\n"
          "base | AB. cluster=4k\n",
          "BDt|2||");
}

static void
merge_io__a_new_table_is_durable_before_its_l1_entry(void **state)
{
    (void)state;
    tells("top  | .C. cluster=4k\n"
          "base | ... cluster=4k\n",
          "2BDt|1||");
}

static void
merge_io__a_shared_table_is_copied_and_then_let_go(void **state)
{
    (void)state;
    tells("top  | .C. cluster=4k\n"
          "base | AB. cluster=4k\n"
          "  snapshot s ^^^\n",
          "2BDt|1|B|");
}

static void
merge_io__space_is_given_back_last(void **state)
{
    (void)state;
    tells("top  | 0.. cluster=4k\n"
          "base | AB. cluster=4k\n",
          "|2|B|x|");
}

static void
merge_io__the_size_grows_when_all_else_is_durable(void **state)
{
    (void)state;
    tells("top  | .C. cluster=4k\n"
          "base | A cluster=4k\n",
          "BDt|2|H||");
}

static void
merge_io__a_larger_l1_table_comes_first(void **state)
{
    (void)state;
    tells("top  | C size=4M cluster=4k\n"
          "base | A size=4k cluster=512\n",
          "1B|H|BDt|2|H|||");
}

static void
merge_io__a_refcount_block_is_linked_before_its_clusters_are(void **state)
{
    (void)state;
    tells("top  | - size=64k cluster=512\n"
          "  fill 0 100 C\n"
          "base | A size=64k cluster=512 refcount_bits=64\n",
          "2BDt|R|12||");
}

static void
merge_io__unknown_autoclear_bits_go_before_anything(void **state)
{
    (void)state;
    tells("top  | .C. cluster=4k\n"
          "base | AB. cluster=4k autoclear=0x100\n",
          "H|D||");
}

static void
merge_io__a_raw_target_is_synced_at_the_end(void **state)
{
    struct qm_forge *f = qm_lab_make("top      | .A. cluster=4k\n"
                                     "base.raw | XX cluster=4k\n");

    (void)state;
    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    qm_lab_reads_as("base.raw", f, 0);
    assert_int_equal(qm_lab_syncs("base.raw"), 2); /* of the batch, and of the length */
    assert_int_equal(qm_lab_written("base.raw"), 4 * KIB);
    qm_forge_free(f);
}

/* ---- size of writes ---- */

static void
merge_io__neighbours_in_source_and_target_become_one_write(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | ABCDEF cluster=4k\n"
                                     "base | ...... cluster=4k\n");
    uint64_t at;

    (void)state;
    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    at = qm_lab_host("base", 0);
    assert_int_equal(qm_lab_host("base", 20 * KIB), at + 20 * KIB);
    /* in the source, the table lies between the first two */
    assert_int_equal(qm_lab_write_at("base", at), 4 * KIB);
    assert_int_equal(qm_lab_write_at("base", at + 4 * KIB), 20 * KIB);
    qm_forge_free(f);
}

/* The guest wrote from the back to the front; in that order it lies in top, and then in base. */
static void
merge_io__what_is_adjacent_in_the_source_alone_becomes_one_write(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | ABCDEFGHI cluster=4k\n"
                                     "  poke l2[1] = @data[5] + 12288 | copied\n"
                                     "  poke l2[2] = @data[5] + 8192 | copied\n"
                                     "  poke l2[3] = @data[5] + 4096 | copied\n"
                                     "  poke l2[4] = @data[5] + 0 | copied\n"
                                     "  poke l2[6] = @data[5] - 8192 | copied\n"
                                     "  poke l2[7] = @data[5] - 12288 | copied\n"
                                     "  poke l2[8] = @data[5] - 16384 | copied\n"
                                     "  poke l2[5] = @data[5] - 4096 | copied\n"
                                     "base | ......... cluster=4k\n");
    struct qm_bytes before = qm_lab_read("top");
    uint64_t at;

    (void)state;
    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    at = qm_lab_host("base", 32 * KIB);
    for (uint64_t i = 1; i < 9; i++)
        assert_int_equal(qm_lab_host("base", i * 4 * KIB), at + (8 - i) * 4 * KIB);
    assert_int_equal(qm_lab_write_at("base", at), 32 * KIB);
    qm_lab_same(qm_lab_read("base"), before, "base");
    qm_lab_clean("base");
    qm_forge_free(f);
}

/* Compressed clusters go over as they are: as long as they lie, in one piece, and not inflated. */
static void
merge_io__compressed_neighbours_become_one_write(void **state)
{
    const struct qmeld_commit_options flat = {.threads = 2, .decompress = true};
    static const char *const recipe = "all cluster=64k\n"
                                      "top  | abcdefghijklmnopqrstuvwxyzabcdefghij\n"
                                      "base | a..................................B\n";
    struct qm_forge *f = qm_lab_make(recipe);
    struct qmeld_commit_report r;
    uint64_t passed, first, last;

    (void)state;
    qm_lab_watch();
    r = qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    assert_int_equal(r.bytes_copied, 36 * 64 * KIB);
    passed = qm_lab_written("base");
    first = qm_lab_host("base", 0) / 512 * 512;
    last = qm_lab_host("base", 35 * 64 * KIB);
    /* in the source, the table lies behind the first cluster of payloads */
    assert_int_equal(qm_lab_write_at("base", first), 64 * KIB);
    assert_true(last > first + 65 * KIB);
    assert_true(qm_lab_write_at("base", first + 64 * KIB) > last - first - 64 * KIB);
    qm_lab_reads_as("base", f, 0);
    qm_lab_looks("base", 64 * KIB, "cccccccccccccccccccccccccccccccccccc");
    qm_lab_clean("base");
    assert_string_equal(qm_lab_story("base"), "BDt|2|B|x|");
    qm_forge_free(f);

    f = qm_lab_make(recipe);
    qm_lab_watch();
    qm_lab_commit("top", &flat);
    qm_lab_unwatch();
    qm_lab_looks("base", 64 * KIB, "DDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDDD");
    assert_true(qm_lab_written("base") > 4 * passed);
    qm_forge_free(f);
}

static uint64_t
first_table(const char *path)
{
    struct qm_file *file;
    struct qm_image *img;
    uint64_t word0, word1, table;

    OK(qm_file_open(path, &file, err));
    OK(qm_image_open(file, "qcow2", &img, err));
    OK(qm_qcow2_l2_entry(qm_qcow2_of(img), 0, &word0, &word1, &table, err));
    qm_image_close(img);
    return table;
}

static void
merge_io__entries_near_each_other_become_one_write(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | AB.CDE. cluster=4k\n"
                                     "base | ......F cluster=4k\n");
    const uint64_t table = first_table("base");

    (void)state;
    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    assert_int_equal(first_table("base"), table);
    assert_int_equal(qm_lab_write_at("base", table), 48); /* with the one between them */
    qm_lab_looks("base", 4096, "DD.DDDD");
    qm_forge_free(f);
}

static void
merge_io__adjacent_new_tables_become_one_write(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | - size=128k cluster=4k\n"
                                     "  fill 0 32 C\n"
                                     "base | - size=128k cluster=512\n");
    uint64_t table;

    (void)state;
    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    table = first_table("base");
    assert_int_equal(qm_lab_write_at("base", table), 4 * 512); /* 64 entries each */
    assert_string_equal(qm_lab_story("base"), "2BDt|R|1||");
    qm_lab_reads_as("base", f, 0);
    qm_lab_clean("base");
    qm_forge_free(f);
}

static void
merge_io__of_a_new_table_only_what_is_not_zeros_is_written(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | - size=512M cluster=64k\n"
                                     "  fill 256M 2 C\n"
                                     "base | - size=512M cluster=64k\n");
    uint64_t table;

    (void)state;
    qm_lab_watch();
    qm_lab_commit("top", &into_base);
    qm_lab_unwatch();
    table = first_table("base");
    assert_int_equal(qm_lab_write_at("base", table), 0);
    assert_int_equal(qm_lab_write_at("base", table + 32 * KIB), 4 * KIB);
    assert_true(qm_lab_host("base", 256 << 20) != 0);
    qm_lab_clean("base");
    qm_forge_free(f);
}

/* ---- progress, threads, bandwidth ---- */

struct watcher {
    const char *stop_in; /* phase; NULL: never */
    uint64_t counted;    /* total in phase copy */
    uint64_t last;
    bool backwards;
};

static int
watch(const struct qmeld_progress *p, void *opaque)
{
    struct watcher *w = opaque;

    if (strcmp(p->phase, "copy") == 0) {
        w->backwards |= p->done_bytes < w->last || p->done_bytes > p->total_bytes;
        w->last = p->done_bytes;
        w->counted = p->total_bytes;
    }
    return w->stop_in && strcmp(p->phase, w->stop_in) == 0;
}

static const char *const mixed = "top  | ABc0.D..EEEEEE00dd cluster=4k\n"
                                 "mid  | ...A.A.A.A.A.A.AAA cluster=4k\n"
                                 "base | ab.C. size=72k cluster=16k\n";

static void
merge_io__progress_ends_at_its_total(void **state)
{
    struct watcher w = {0};
    const struct qmeld_commit_options o = {.progress = watch, .opaque = &w};
    struct qm_forge *f = qm_lab_make(mixed);
    const struct qmeld_commit_report r = qm_lab_commit("top", &o);

    (void)state;
    assert_int_equal(w.counted, r.bytes_copied);
    assert_int_equal(w.counted, 13 * 4 * KIB);
    assert_false(w.backwards);
    qm_lab_reads_as("base", f, 0);
    qm_forge_free(f);
}

static void
merge_io__a_merge_stopped_while_counting_has_touched_nothing(void **state)
{
    struct watcher w = {.stop_in = "count"};
    const struct qmeld_commit_options o = {.progress = watch, .opaque = &w};
    struct qm_forge *f = qm_lab_make(mixed);
    struct qm_bytes base = qm_lab_file("base");
    struct qmeld_error err;

    (void)state;
    assert_int_equal(qmeld_commit("top", &o, NULL, &err), -1);
    assert_int_equal(err.code, QMELD_CANCELED);
    assert_int_equal(err.disk, QMELD_DISK_OLD);
    qm_lab_same(qm_lab_file("base"), base, "base");
    qm_forge_free(f);
}

static void
merge_io__a_stopped_merge_can_be_finished(void **state)
{
    const struct qm_transfer_limits limits = qm_transfer_limits;
    struct watcher w = {.stop_in = "copy"};
    const struct qmeld_commit_options o = {.progress = watch, .opaque = &w};
    struct qm_forge *f = qm_lab_make(mixed);
    struct qmeld_error err;

    (void)state;
    qm_transfer_limits.batch = 1;
    qm_transfer_limits.step = 4096;
    assert_int_equal(qmeld_commit("top", &o, NULL, &err), -1);
    qm_transfer_limits = limits;
    assert_int_equal(err.code, QMELD_CANCELED);
    assert_int_equal(err.disk, QMELD_DISK_OPEN);
    qm_lab_reads_as("top", f, 0);
    qm_lab_commit("top", &into_base);
    qm_lab_reads_as("top", f, 0);
    qm_lab_reads_as("base", f, 0);
    qm_forge_free(f);
}

static void
merge_io__any_number_of_threads_makes_the_same_file(void **state)
{
    static const unsigned threads[] = {1, 2, 16, 0};
    struct qm_bytes first = {0};

    (void)state;
    for (size_t i = 0; i < 4; i++) {
        const struct qmeld_commit_options o = {.threads = threads[i]};
        struct qm_forge *f = qm_lab_make(mixed);

        qm_lab_commit("top", &o);
        if (i == 0)
            first = qm_lab_file("base");
        else {
            struct qm_bytes copy = {malloc(first.len), first.len};

            assert_non_null(copy.at);
            memcpy(copy.at, first.at, first.len);
            qm_lab_same(qm_lab_file("base"), copy, "base");
        }
        qm_lab_reads_as("base", f, 0);
        qm_forge_free(f);
    }
    free(first.at);
}

struct meter {
    uint64_t start_nsec;
    uint64_t bytes;
    bool too_fast;
};

#define RATE (2ull << 20)

static int
measure(const struct qm_io_event *ev, void *opaque)
{
    struct meter *m = opaque;
    double passed;

    if (ev->op != QM_IO_WRITE || strstr(ev->path, ".qmeld")) /* the journal */
        return 0;
    passed = (double)(qm_clock_nsec() - m->start_nsec) / QM_NSEC_PER_SEC;
    m->bytes += ev->len;
    /* one piece, a quarter of a second long, ahead at most */
    m->too_fast |= (double)m->bytes > (passed + 0.25) * (double)RATE;
    return 0;
}

static void
merge_io__bandwidth_is_a_limit_and_not_much_less(void **state)
{
    struct meter m = {0};
    const struct qmeld_commit_options o = {.bandwidth = RATE};
    struct qmeld_commit_report r;
    struct qm_forge *f;

    (void)state;
    f = qm_lab_make("top      | AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA cluster=64k\n"
                    "base.raw | - size=2M\n");
    m.start_nsec = qm_clock_nsec();
    qm_io_set_hook(measure, &m);
    r = qm_lab_commit("top", &o);
    qm_io_set_hook(NULL, NULL);
    assert_int_equal(m.bytes, 2 << 20);
    qm_lab_reads_as("base.raw", f, 0); /* in pieces, each in its place */
    qm_forge_free(f);
    assert_false(m.too_fast);
    assert_in_range(r.seconds_x1000, 700, 20000);
}

/* What a crash would have repeated is seconds of work, at whatever rate. */
static void
merge_io__a_slow_merge_ends_batches_early(void **state)
{
    const struct qmeld_commit_options slow = {.bandwidth = RATE};
    const struct qm_transfer_limits limits = qm_transfer_limits;
    size_t batches[2];

    (void)state;
    qm_transfer_limits.batch_sec = 1;
    qm_transfer_limits.step = 4096;
    for (int i = 0; i < 2; i++) {
        const char *story;

        qm_forge_free(qm_lab_make("top  | AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA cluster=64k\n"
                                  "base | - cluster=64k\n"));
        qm_lab_watch();
        qm_lab_commit("top", i ? &slow : &into_base);
        qm_lab_unwatch();
        story = qm_lab_story("base");
        batches[i] = 0;
        while ((story = strchr(story, 'D'))) {
            batches[i]++;
            story += strspn(story, "D");
        }
    }
    qm_transfer_limits = limits;
    assert_int_equal(batches[0], 1);
    assert_int_equal(batches[1], 2); /* RATE bytes, and what is left */
}

/* Of three layers: a write is a MiB, or what is left of a run. */
static void
merge_io__long_runs_are_few_writes(void **state)
{
    struct qm_forge *f = qm_lab_make("top      | AA......AA. cluster=2M\n"
                                     "mid      | ..BBBB..... cluster=2M\n"
                                     "low      | ....CCCCCC. cluster=2M\n"
                                     "base.raw | - size=22M\n");
    struct qmeld_commit_report r;
    struct qm_lab_io io;

    (void)state;
    r = qm_lab_merge(f, "top", "base.raw", &into_base);
    io = qm_lab_io("base.raw");
    assert_int_equal(io.bytes_written, r.bytes_copied);
    assert_in_range(io.writes, 1, r.bytes_copied / (1 << 20) + 6);
    assert_int_equal(io.syncs, 2);
    qm_forge_free(f);
}

/* ---- behind the writers ---- */

static ssize_t
fail_the_wait(enum qm_io_call call, const char *path, uint64_t off, size_t len, void *opaque)
{
    size_t *left = opaque;

    (void)path;
    (void)off;
    return call == QM_IO_CALL_WAIT && (*left)-- == 0 ? -EIO : (ssize_t)len;
}

/* The kernel tells an error of the disk once: who hears it there must not go on. */
static void
merge_io__an_error_while_written_pages_are_waited_for_is_final(void **state)
{
    (void)state;
    for (size_t nth = 0; nth < 3; nth++) {
        size_t left = nth;
        struct qm_forge *f = qm_lab_make("top      | AAAA.AAAA cluster=64k\n"
                                         "base.raw | BBBBBBBBB cluster=64k\n");
        struct qmeld_error err;

        qm_behind_bytes = 1;
        qm_io_set_call_hook(fail_the_wait, &left);
        assert_int_equal(qmeld_commit("top", &into_base, NULL, &err), -1);
        qm_io_set_call_hook(NULL, NULL);
        qm_behind_bytes = 0;
        assert_int_equal(err.code, QMELD_IO);
        assert_int_equal(err.sys_errno, EIO);
        assert_int_equal(err.disk, QMELD_DISK_OPEN);
        qm_lab_reads_as("top", f, 0);
        qm_lab_commit("top", &into_base);
        qm_lab_reads_as("base.raw", f, 0);
        qm_forge_free(f);
    }
}

/* ---- bitmaps ---- */

/* The bits of path's bitmap number i, as text; all are within one cluster. */
static const char *
bits(const char *path, size_t i, size_t n)
{
    static char text[256];
    struct qm_bitmap_list l;
    struct qm_file *file;
    struct qm_image *img;
    unsigned char bytes[32] = {0};
    be64 entry;

    assert_true(n < sizeof text && n <= 8 * sizeof bytes);
    OK(qm_file_open(path, &file, err));
    OK(qm_image_open(file, "qcow2", &img, err));
    OK(qm_bitmap_list_read(qm_qcow2_of(img), &l, err));
    assert_true(i < l.list.n);
    assert_int_equal(l.list.at[i].flags & 1, 0); /* in_use: the content would mean nothing */
    OK(qm_pread(file, l.list.at[i].table.h, &entry, sizeof entry, err));
    if (be64_get(&entry) > 1)
        OK(qm_pread_padded(file, be64_get(&entry), bytes, sizeof bytes, err));
    else
        memset(bytes, be64_get(&entry) ? 0xff : 0, sizeof bytes);
    for (size_t k = 0; k < n; k++)
        text[k] = bytes[k / 8] >> k % 8 & 1 ? '1' : '0';
    text[n] = '\0';
    qm_bitmap_list_release(&l);
    qm_image_close(img);
    return text;
}

static void
merge_io__bitmaps_are_told_what_was_asked_and_no_more(void **state)
{
    struct qm_forge *f = qm_lab_make("top  | .A.0....b...... size=60k cluster=4k\n"
                                     "base | ABCDEFGH size=32k cluster=4k\n"
                                     "  bitmap enabled 4k 2 00001\n"
                                     "  bitmap disabled 4k 0 00001\n");

    (void)state;
    qm_lab_commit("top", &into_base);
    assert_string_equal(bits("base", 0, 15), "010110001000000");
    assert_string_equal(bits("base", 1, 15), "000010000000000");
    qm_lab_reads_as("base", f, 0);
    qm_lab_clean("base");
    qm_forge_free(f);
}

int
main(void)
{
#define T(name) cmocka_unit_test_setup_teardown(name, qm_scratch_enter, qm_scratch_leave)
    const struct CMUnitTest tests[] = {
        T(merge_io__data_in_place_needs_no_metadata),
        T(merge_io__a_new_cluster_is_durable_before_its_entry),
        T(merge_io__a_new_table_is_durable_before_its_l1_entry),
        T(merge_io__a_shared_table_is_copied_and_then_let_go),
        T(merge_io__space_is_given_back_last),
        T(merge_io__the_size_grows_when_all_else_is_durable),
        T(merge_io__a_larger_l1_table_comes_first),
        T(merge_io__a_refcount_block_is_linked_before_its_clusters_are),
        T(merge_io__unknown_autoclear_bits_go_before_anything),
        T(merge_io__a_raw_target_is_synced_at_the_end),
        T(merge_io__neighbours_in_source_and_target_become_one_write),
        T(merge_io__what_is_adjacent_in_the_source_alone_becomes_one_write),
        T(merge_io__compressed_neighbours_become_one_write),
        T(merge_io__entries_near_each_other_become_one_write),
        T(merge_io__adjacent_new_tables_become_one_write),
        T(merge_io__of_a_new_table_only_what_is_not_zeros_is_written),
        T(merge_io__progress_ends_at_its_total),
        T(merge_io__a_merge_stopped_while_counting_has_touched_nothing),
        T(merge_io__a_stopped_merge_can_be_finished),
        T(merge_io__any_number_of_threads_makes_the_same_file),
        T(merge_io__bandwidth_is_a_limit_and_not_much_less),
        T(merge_io__a_slow_merge_ends_batches_early),
        T(merge_io__long_runs_are_few_writes),
        T(merge_io__an_error_while_written_pages_are_waited_for_is_final),
        T(merge_io__bitmaps_are_told_what_was_asked_and_no_more),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
