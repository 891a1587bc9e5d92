/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * flatten_test.c - a flattened image in every state that a power cut could leave.
 *
 * Of each state is asked: has nothing incomplete the image's name, and does the same call again end as an undisturbed
 * one does?
 */
#include "chain.h"
#include "map.h"
#include "qcow2_bitmap.h"
#include "share.h"
#include "scratch.h"
#include "torn.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

#define SIZE  (96u << 10)
#define DATA  (60u << 10) /* of it */
#define CHUNK "8192"      /* QMELD_TEST_BATCH: so much is a batch, and a chunk */

/* Bare names: the recorder of renames knows files so. */
static const char source[] = "source", out[] = "out", partial[] = ".out.qmeld-partial",
                  note[] = ".out.qmeld-flatten", record[] = "m", keep[] = "keep",
                  packed[] = "packed";
static unsigned char want[SIZE];
static const char old[] = "what had the name before";

struct crash {
    const char *from; /* NULL: source */
    struct qmeld_flatten_options opts;
    struct qmeld_flatten_report *report; /* of the undisturbed run; may be NULL */
    unsigned complete;                   /* states in which the image had its name */
    bool bitmap;                         /* it has the bitmap of what it is made from */
    unsigned resumed; /* that were gone on with from further than the beginning */
};

static int
make_dir(void **state)
{
    FILE *f;

    if (qm_scratch_enter(state) != 0 || setenv("QMELD_TEST_BATCH", CHUNK, 1) < 0)
        return -1;
    for (size_t at = 0; at < SIZE; at += 512) /* data, and zeros in every third part */
        if (at / 12288 % 3 != 1)
            for (size_t i = 0; i < 512; i++)
                want[at + i] = (unsigned char)(at / 512 * 7 + i % 251 * (at / 4096) + 1);
    f = fopen(source, "wb");
    return f && fwrite(want, 1, SIZE, f) == SIZE && fclose(f) == 0 ? 0 : -1;
}

/* ---- a bitmap ---- */

#define GRANULE 512u

static bool
is_dirty(uint64_t granule)
{
    return granule % 7 == 3 || granule / 40 == 2;
}

static struct qm_qcow2 *
open_image(const char *path, bool writable)
{
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_open(path, &file, err));
    if (writable)
        OK(qm_file_make_writable(file, err));
    OK(qm_qcow2_open(file, 0, &q, err));
    return q;
}

static void
add_bitmap(const char *path)
{
    struct qm_bitmap_order order = {.name = (char[]){"daily"},
                                    .deed = QM_BITMAP_CARRY,
                                    .created = true,
                                    .enabled = true,
                                    .granularity_bits = 9};
    const struct qm_bitmap_orders orders = {.list = {.at = &order, .n = 1}};
    struct qm_qcow2 *q = open_image(path, true);
    struct qm_refs *refs;
    struct qm_bitmaps *b;
    size_t idx;

    OK(qm_refs_open(q, &refs, err));
    OK(qm_bitmaps_begin(q, refs, SIZE, NULL, &orders, &b, err));
    assert_true(qm_bitmaps_find(b, 0, &idx));
    for (uint64_t g = 0; g < SIZE / GRANULE; g++)
        if (is_dirty(g))
            qm_bitmaps_mark_in(b, idx, qm_guest(g * GRANULE), GRANULE);
    OK(qm_bitmaps_end(b, err));
    qm_refs_close(refs);
    qm_image_close(&q->img);
}

static int
see_run(guest_off from, uint64_t len, void *opaque, struct qmeld_error *err_)
{
    uint64_t *next = opaque;

    (void)err_;
    for (; *next < from.g; *next += GRANULE)
        assert_false(is_dirty(*next / GRANULE));
    for (; *next < from.g + len; *next += GRANULE)
        assert_true(is_dirty(*next / GRANULE));
    return 0;
}

/* Nobody else's is there, it is valid, and has these bits and no others. */
static void
check_bitmap(const char *path)
{
    struct qm_qcow2 *q = open_image(path, false);
    struct qm_bitmap_list list;
    uint64_t next = 0;

    OK(qm_bitmap_list_read(q, &list, err));
    assert_int_equal(list.list.n, 1);
    assert_string_equal(list.list.at[0].name, "daily");
    assert_int_equal(list.list.at[0].flags, QCOW2_BITMAP_AUTO);
    assert_int_equal(list.list.at[0].granularity_bits, 9);
    OK(qm_bitmap_each_run(q, &list.list.at[0], see_run, &next, err));
    for (; next < SIZE; next += GRANULE)
        assert_false(is_dirty(next / GRANULE));
    qm_bitmap_list_release(&list);
    qm_image_close(&q->img);
}

/* out is complete and reads as it should. */
static void
check_out(const struct crash *c)
{
    const bool qcow2 = c->opts.target->format != NULL;
    const struct qmeld_open_options as = {.format = qcow2 ? "qcow2" : "raw", .single = true};
    struct qmeld_check_result found;
    struct qmeld_chain *chain;
    unsigned char *got = malloc(SIZE);

    assert_non_null(got);
    OK(qmeld_chain_open(out, &as, &chain, err));
    OK(qmeld_read(chain, 0, got, SIZE, err));
    qmeld_chain_close(chain);
    assert_memory_equal(got, want, SIZE);
    free(got);
    if (!qcow2)
        return;
    if (c->bitmap)
        check_bitmap(out);
    OK(qmeld_check(out, "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &found, err));
    assert_int_equal(found.corruptions + found.leaks + found.check_errors, 0);
}

static const char *
from_of(const struct crash *c)
{
    return c->from ? c->from : source;
}

/* With force: what had the name has it still, byte for byte. */
static bool
is_old(const struct qm_torn_file *o)
{
    return !o->gone && o->len == sizeof old && memcmp(o->at, old, sizeof old) == 0;
}

/* The note knows the image by its inode, which another name keeps while states come and go. */
static void
restore(const struct qm_torn_state *s)
{
    const struct qm_torn_file *p = &s->files[0], *n = &s->files[1], *o = &s->files[2];
    const struct qm_torn_file *image = !o->gone && !is_old(o) ? o : p;

    assert_true(p->gone || image == p); /* a rename is one step */
    unlink(partial);
    unlink(out);
    unlink(note);
    if (is_old(o))
        qm_torn_save(out, o->at, o->len);
    if (!image->gone) {
        assert_int_equal(link(keep, image == o ? out : partial), 0);
        qm_torn_save(keep, image->at, image->len);
    }
    if (!n->gone)
        qm_torn_save(note, n->at, n->len);
}

static void
ask_state(const struct qm_torn_state *s, void *opaque)
{
    struct crash *c = opaque;
    struct qmeld_flatten_report report;
    struct qmeld_error err;

    restore(s);
    assert_true(!c->opts.force || !s->files[2].gone); /* one of them has the name */
    if (!s->files[2].gone && !is_old(&s->files[2])) {
        c->complete++;
        check_out(c);
        if (s->files[1].gone) /* all is done */
            return;
    }
    if (qmeld_flatten(from_of(c), out, &c->opts, &report, &err) < 0) {
        /* the name is there, and the note was never valid, or is gone: nothing is left to be done */
        if (!s->files[2].gone && err.code == QMELD_USAGE)
            return;
        fail_msg("state %zu, %s: %s", s->number, s->choice, err.what);
    }
    c->resumed += report.resumed && report.resumed_at > 0;
    qmeld_flatten_report_free(&report);
    check_out(c);
    assert_int_not_equal(access(partial, F_OK), 0);
    assert_int_not_equal(access(note, F_OK), 0);
}

static void
try_all(struct crash *c, size_t max)
{
    const char *const files[] = {partial, note, out};
    const struct qm_torn_how how = {.seed = 4711, .max = max, .random = 4};
    struct qm_torn *t;
    size_t n;

    if (c->opts.force)
        qm_torn_save(out, (const unsigned char *)old, sizeof old);
    t = qm_torn_start_many(files, 3);
    OK(qmeld_flatten(from_of(c), out, &c->opts, c->report, err));
    qm_torn_stop(t);
    check_out(c);
    assert_int_equal(link(out, keep), 0);
    n = qm_torn_replay_files(t, &how, ask_state, c);
    qm_torn_free(t);
    print_message("%zu states, %u with the name, %u gone on with\n", n, c->complete, c->resumed);
    assert_true(n > 50);
    assert_true(c->complete > 0 && c->resumed > n / 4);
    unlink(out);
    unlink(note);
    unlink(keep);
}

static void
flatten__a_raw_image_survives_power_cuts(void **state)
{
    static const struct qmeld_create_options raw;
    struct crash c = {.opts = {.target = &raw, .format = "raw", .threads = 1}};

    (void)state;
    try_all(&c, 300);
}

static void
flatten__a_qcow2_image_survives_power_cuts(void **state)
{
    /* refcount blocks and L2 tables of 512 bytes: many of each */
    static const struct qmeld_create_options small = {
        .format = "qcow2", .cluster_size = 512, .refcount_bits = 64};
    struct crash c = {.opts = {.target = &small, .format = "raw", .threads = 1}};

    (void)state;
    try_all(&c, 500);
}

static void
flatten__a_compressed_image_survives_power_cuts(void **state)
{
    static const struct qmeld_create_options deflated = {.format = "qcow2", .cluster_size = 4096};
    struct crash c = {
        .opts = {.target = &deflated, .format = "raw", .compress = "zlib", .threads = 1}};

    (void)state;
    try_all(&c, 300);
}

static uint64_t
taken_by(const char *path)
{
    struct stat st;

    assert_int_equal(stat(path, &st), 0);
    return (uint64_t)st.st_blocks * 512;
}

static void
flatten__what_is_preallocated_survives_power_cuts(void **state)
{
    static const struct qmeld_create_options wishes[] = {
        {.preallocation = "falloc"},
        {.preallocation = "full"},
        {.format = "qcow2", .cluster_size = 512, .refcount_bits = 64, .preallocation = "metadata"},
        {.format = "qcow2", .cluster_size = 4096, .preallocation = "falloc"},
        {.format = "qcow2", .cluster_size = 16384, .extended_l2 = true, .preallocation = "full"},
    };

    (void)state;
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
        struct crash c = {.opts = {.target = &wishes[i], .format = "raw", .threads = 1}};

        try_all(&c, 100);
        OK(qmeld_flatten(source, out, &c.opts, NULL, err));
        assert_true(i == 2 || taken_by(out) >= SIZE);
        unlink(out);
    }
}

/* A cluster for every guest cluster: the same image as one made without preallocation has only those with data. */
static void
flatten__preallocated_metadata_has_all_clusters(void **state)
{
    static const struct qmeld_create_options metadata = {
        .format = "qcow2", .cluster_size = 512, .preallocation = "metadata"};
    const struct qmeld_flatten_options opts = {.target = &metadata, .format = "raw"};
    struct qm_qcow2 *q;

    (void)state;
    OK(qmeld_flatten(source, out, &opts, NULL, err));
    q = open_image(out, false);
    for (uint64_t at = 0; at < SIZE;) {
        struct qm_extent e;

        OK(qm_image_next(&q->img, qm_guest(at), SIZE - at, &e, err));
        assert_int_equal(e.kind, QM_DATA);
        at += e.len;
    }
    qm_image_close(&q->img);
    unlink(out);
}

/* What says nothing of preallocation in its refusal would be a promise. */
static void
flatten__preallocation_is_refused_where_it_means_nothing(void **state)
{
    static const struct qmeld_create_options wrong[] = {
        {.preallocation = "metadata"},
        {.preallocation = "some"},
        {.format = "qcow2", .preallocation = "some"},
        {.format = "qcow2", .preallocation = "full"}, /* compressed */
    };
    struct qmeld_error bad;

    (void)state;
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        const struct qmeld_flatten_options opts = {
            .target = &wrong[i], .format = "raw", .compress = i == 3 ? "zlib" : NULL};

        assert_int_equal(qmeld_flatten(source, out, &opts, NULL, &bad), -1);
        assert_int_equal(bad.code, QMELD_USAGE);
        assert_int_not_equal(access(out, F_OK), 0);
        assert_int_not_equal(access(partial, F_OK), 0);
    }
}

static void
flatten__an_image_that_is_replaced_is_there_until_the_new_one_is(void **state)
{
    static const struct qmeld_create_options small = {.format = "qcow2", .cluster_size = 4096};
    struct crash c = {.opts = {.target = &small, .format = "raw", .force = true, .threads = 1}};

    (void)state;
    try_all(&c, 200);
}

/* Places are those of another file, by sectors; nobody looks into them. */
static void
flatten__clusters_that_are_passed_on_survive_power_cuts(void **state)
{
    static const struct qmeld_create_options small = {.format = "qcow2", .cluster_size = 4096};
    struct qmeld_flatten_options make = {.target = &small, .format = "raw", .compress = "zlib"};
    struct qmeld_flatten_report report;
    struct crash c = {
        .from = packed,
        .report = &report,
        .opts = {.target = &small, .format = "qcow2", .compress = "zlib", .threads = 1}};

    (void)state;
    OK(qmeld_flatten(source, packed, &make, NULL, err));
    try_all(&c, 300);
    assert_true(report.bytes_passed >= SIZE / 2); /* not what is hardly shorter than a cluster */
    assert_int_equal(report.bytes_data, DATA);
    c.opts.compress_level = 2; /* said: all are made anew */
    OK(qmeld_flatten(packed, out, &c.opts, &report, err));
    assert_int_equal(report.bytes_passed, 0);
    check_out(&c);
    unlink(out);
    c.opts.compress = "zstd"; /* other than theirs */
    c.opts.compress_level = 0;
    OK(qmeld_flatten(packed, out, &c.opts, &report, err));
    assert_int_equal(report.bytes_passed, 0);
    check_out(&c);
    unlink(out);
    unlink(packed);
}

/* With the name it has all bits, and says so; not before. */
static void
flatten__bitmaps_survive_power_cuts(void **state)
{
    static const struct qmeld_create_options small = {.format = "qcow2", .cluster_size = 512};
    const struct qmeld_flatten_options make = {.target = &small, .format = "raw"};
    const enum qmeld_flatten_bitmaps modes[] = {QMELD_FLATTEN_BITMAPS_MERGE,
                                                QMELD_FLATTEN_BITMAPS_KEEP};

    (void)state;
    OK(qmeld_flatten(source, packed, &make, NULL, err));
    add_bitmap(packed);
    for (size_t i = 0; i < 2; i++) {
        struct qmeld_flatten_report report;
        struct crash c = {
            .from = packed,
            .report = &report,
            .bitmap = true,
            .opts = {.target = &small, .format = "qcow2", .bitmaps = modes[i], .threads = 1}};

        try_all(&c, 400);
        assert_int_equal(report.n_bitmaps, 1);
        assert_int_equal(report.bitmaps[0].fate, QMELD_BITMAP_CREATED);
        qmeld_flatten_report_free(&report);
    }
    unlink(packed);
}

/* A manifest's digests are of what the cluster inflates to; the payload is passed on all the same. */
static void
flatten__a_manifest_looks_into_what_is_passed_on(void **state)
{
    static const struct qmeld_create_options small = {.format = "qcow2", .cluster_size = 4096};
    struct qmeld_flatten_options opts = {.target = &small, .format = "raw", .compress = "zlib"};
    struct qmeld_flatten_report plain, told;
    struct qmeld_verify_result found;

    (void)state;
    OK(qmeld_flatten(source, packed, &opts, NULL, err));
    opts.format = "qcow2";
    opts.manifest = record;
    OK(qmeld_flatten(packed, out, &opts, &told, err));
    assert_true(told.bytes_passed >= SIZE / 2);
    OK(qmeld_verify(record, NULL, &found, err));
    assert_int_equal(found.leaves_differ + found.spans_differ + found.digests_differ, 0);
    unlink(out);
    unlink(record);
    opts.format = "raw"; /* the same disk, read as it was */
    OK(qmeld_flatten(source, out, &opts, &plain, err));
    assert_string_equal(plain.sha256, told.sha256);
    unlink(out);
    unlink(record);
    unlink(packed);
}

static void
flatten__no_options_are_the_defaults_and_an_image_has_one_place(void **state)
{
    static const struct qmeld_create_options raw;
    struct crash c = {.opts = {.target = &raw, .format = "raw"}};
    struct qmeld_error told;

    (void)state;
    OK(qmeld_flatten(source, out, NULL, NULL, err));
    check_out(&c);
    unlink(out);
    assert_int_equal(qmeld_flatten(source, NULL, NULL, NULL, &told), -1);
    assert_int_equal(told.code, QMELD_USAGE);
}

static void
flatten__what_is_shared_survives_power_cuts(void **state)
{
    static const struct qmeld_create_options raw, small = {.format = "qcow2", .cluster_size = 4096};
    const struct qmeld_create_options *const targets[] = {&raw, &small};

    (void)state;
    qm_share_pretended_block = 512;
    setenv("QMELD_TEST_BATCH", "1024", 1); /* sixteen times that is shared in one */
    for (size_t i = 0; i < 2; i++) {
        struct qmeld_flatten_report report;
        struct crash c = {.report = &report,
                          .opts = {.target = targets[i], .format = "raw", .threads = 1}};

        try_all(&c, 200);
        assert_int_equal(report.bytes_shared, SIZE); /* zeros that are stored, too */
    }
    qm_share_pretended_block = 0;
    setenv("QMELD_TEST_BATCH", CHUNK, 1);
}

/* ---- faults ---- */

struct fault {
    unsigned after; /* so many changes or reads go well */
    int error;
    bool stays; /* all changes that follow fail, too */
    bool reads; /* reads, not changes */
    unsigned seen;
    bool hit;
};

static bool
fails(struct fault *f)
{
    const unsigned n = f->seen++;

    if (n != f->after && !(n > f->after && f->stays))
        return false;
    f->hit = true;
    return true;
}

static int
fail_change(const struct qm_io_event *ev, void *opaque)
{
    struct fault *f = opaque;

    (void)ev;
    return !f->reads && fails(f) ? f->error : 0;
}

static ssize_t
fail_read(enum qm_io_call call, const char *path, uint64_t off, size_t len, void *opaque)
{
    struct fault *f = opaque;

    (void)path;
    (void)off;
    return f->reads && call == QM_IO_CALL_READ && fails(f) ? -f->error : (ssize_t)len;
}

static void
check_input(const char *path, const unsigned char *was, size_t was_len)
{
    size_t len;
    unsigned char *now = qm_torn_load(path, &len);

    assert_int_equal(len, was_len);
    assert_memory_equal(now, was, len);
    free(now);
}

/* False: the fault was not reached. */
static bool
run_with_fault(struct crash *c, struct fault *f)
{
    struct qmeld_error err = {0}, again = {0};
    size_t len;
    unsigned char *was = qm_torn_load(from_of(c), &len);
    int rc;

    if (c->opts.force)
        qm_torn_save(out, (const unsigned char *)old, sizeof old);
    qm_io_set_hook(fail_change, f);
    qm_io_set_call_hook(fail_read, f);
    rc = qmeld_flatten(from_of(c), out, &c->opts, NULL, &err);
    qm_io_set_hook(NULL, NULL);
    qm_io_set_call_hook(NULL, NULL);
    check_input(from_of(c), was, len);
    free(was);
    if (f->hit && rc < 0) {
        const bool named = access(out, F_OK) == 0;

        assert_int_equal(err.code, f->error == ENOSPC ? QMELD_NOSPACE : QMELD_IO);
        if (err.disk == QMELD_DISK_OLD && !c->opts.force)
            assert_false(named);
        if (err.disk == QMELD_DISK_OLD && !f->stays)
            assert_true(access(partial, F_OK) != 0 && access(note, F_OK) != 0);
        if (c->opts.force)
            assert_true(named); /* the old one, or the new one */
        if (named && !c->opts.force)
            check_out(c);
        /* what is complete already, its note gone or not: nothing to be done */
        if (qmeld_flatten(from_of(c), out, &c->opts, NULL, &again) < 0)
            assert_true(again.code == QMELD_USAGE && named);
    }
    check_out(c);
    assert_int_not_equal(access(partial, F_OK), 0);
    unlink(out);
    unlink(note);
    return f->hit;
}

static void
flatten__every_failure_tells_the_truth_and_is_gone_on_from(void **state)
{
    static const struct qmeld_create_options raw, small = {.format = "qcow2", .cluster_size = 4096};
    const struct crash list[] = {
        {.opts = {.target = &raw, .format = "raw", .threads = 1}},
        {.opts = {.target = &small, .format = "raw", .threads = 2, .force = true}},
        {.opts = {.target = &small, .format = "raw", .threads = 1, .compress = "zlib"}},
    };
    const struct fault kinds[] = {{.error = EIO},
                                  {.error = ENOSPC},
                                  {.error = EIO, .stays = true},
                                  {.error = EIO, .reads = true}};
    unsigned n = 0;

    (void)state;
    for (size_t i = 0; i < 3; i++) {
        for (size_t k = 0; k < 4; k++) {
            struct crash c = list[i];
            struct fault f;

            do {
                f = kinds[k];
                f.after = n++;
            } while (run_with_fault(&c, &f));
            assert_true(f.after > 5);
            n = 0;
        }
    }
}

static void
flatten__a_failure_with_bitmaps_is_gone_on_from(void **state)
{
    static const struct qmeld_create_options small = {.format = "qcow2", .cluster_size = 4096};
    const struct qmeld_flatten_options make = {.target = &small, .format = "raw"};
    const struct fault kinds[] = {
        {.error = EIO}, {.error = ENOSPC, .stays = true}, {.error = EIO, .reads = true}};

    (void)state;
    OK(qmeld_flatten(source, packed, &make, NULL, err));
    add_bitmap(packed);
    for (size_t k = 0; k < 3; k++) {
        struct crash c = {.from = packed,
                          .bitmap = true,
                          .opts = {.target = &small,
                                   .format = "qcow2",
                                   .bitmaps = QMELD_FLATTEN_BITMAPS_MERGE,
                                   .threads = 1}};
        struct fault f;
        unsigned n = 0;

        do {
            f = kinds[k];
            f.after = n++;
        } while (run_with_fault(&c, &f));
        assert_true(f.after > 5);
    }
    unlink(packed);
}

/* A file system that shares, and then does not any more: the same image, copied. */
static int
refuse_shares(const struct qm_io_event *ev, void *opaque)
{
    unsigned *left = opaque;

    if (!ev->from)
        return 0;
    return *left > 0 && (*left)-- > 0 ? 0 : EOPNOTSUPP;
}

static void
flatten__what_is_refused_is_copied(void **state)
{
    static const struct qmeld_create_options small = {.format = "qcow2", .cluster_size = 4096};
    struct qmeld_flatten_options opts = {
        .target = &small, .format = "raw", .manifest = record, .leaf = 4096, .threads = 1};
    struct crash c = {.opts = opts};
    struct qmeld_flatten_report report;
    unsigned left = 2;

    (void)state;
    qm_share_pretended_block = 512;
    qm_io_set_hook(refuse_shares, &left);
    OK(qmeld_flatten(source, out, &opts, &report, err));
    qm_io_set_hook(NULL, NULL);
    qm_share_pretended_block = 0;
    assert_true(report.bytes_shared > 0 && report.bytes_shared < SIZE);
    check_out(&c);
    unlink(out);
    unlink(record);
}

static void
flatten__a_manifest_verifies(void **state)
{
    static const struct qmeld_create_options raw;
    struct qmeld_flatten_options opts = {
        .target = &raw, .format = "raw", .manifest = record, .leaf = 4096};
    struct qmeld_flatten_report report;
    struct qmeld_verify_result found;

    (void)state;
    OK(qmeld_flatten(source, out, &opts, &report, err));
    assert_int_equal(strlen(report.merkle_root), 64);
    OK(qmeld_verify(record, NULL, &found, err));
    assert_int_equal(found.leaves, SIZE / 4096);
    assert_int_equal(found.leaves_differ + found.inputs_differ + found.spans_differ +
                         found.digests_differ + found.unreadable,
                     0);
    unlink(out);
    unlink(record);
}

/* An interrupted run, made by hand: what it was about is what the note of a whole run says. */
static void
keep_note(const struct qm_torn_state *s, void *opaque)
{
    bool *kept = opaque;

    if (!*kept && !s->files[0].gone && !s->files[1].gone && s->files[1].len > 64 &&
        s->interval > 4) {
        restore(s);
        *kept = true;
    }
}

static void
flatten__changed_inputs_are_not_gone_on_with(void **state)
{
    static const struct qmeld_create_options raw;
    const char *const files[] = {partial, note, out};
    struct qmeld_flatten_options opts = {.target = &raw, .format = "raw", .threads = 1};
    struct qm_torn *t = qm_torn_start_many(files, 3);
    struct qmeld_error bad = {0};
    struct qm_file *file;
    bool kept = false;

    (void)state;
    OK(qmeld_flatten(source, out, &opts, NULL, err));
    qm_torn_stop(t);
    assert_int_equal(link(out, keep), 0);
    (void)qm_torn_replay_files(t, NULL, keep_note, &kept);
    qm_torn_free(t);
    assert_true(kept);
    opts.keep_zeros = true; /* another request */
    assert_int_equal(qmeld_flatten(source, out, &opts, NULL, &bad), -1);
    assert_int_equal(bad.code, QMELD_USAGE);
    opts.keep_zeros = false;
    OK(qm_file_create(source, &file, err));
    OK(qm_pwrite(file, 0, want, 512, err)); /* its time changes */
    OK(qm_file_finish(file, err));
    assert_int_equal(qmeld_flatten(source, out, &opts, NULL, &bad), -1);
    assert_int_equal(bad.code, QMELD_STALE);
    assert_int_equal(access(partial, F_OK), 0); /* whoever wants it may look at it */
    opts.restart = true;
    OK(qmeld_flatten(source, out, &opts, NULL, err));
    unlink(out);
    unlink(keep);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(flatten__a_raw_image_survives_power_cuts),
        cmocka_unit_test(flatten__a_qcow2_image_survives_power_cuts),
        cmocka_unit_test(flatten__a_compressed_image_survives_power_cuts),
        cmocka_unit_test(flatten__what_is_preallocated_survives_power_cuts),
        cmocka_unit_test(flatten__preallocated_metadata_has_all_clusters),
        cmocka_unit_test(flatten__preallocation_is_refused_where_it_means_nothing),
        cmocka_unit_test(flatten__an_image_that_is_replaced_is_there_until_the_new_one_is),
        cmocka_unit_test(flatten__clusters_that_are_passed_on_survive_power_cuts),
        cmocka_unit_test(flatten__bitmaps_survive_power_cuts),
        cmocka_unit_test(flatten__a_failure_with_bitmaps_is_gone_on_from),
        cmocka_unit_test(flatten__a_manifest_looks_into_what_is_passed_on),
        cmocka_unit_test(flatten__no_options_are_the_defaults_and_an_image_has_one_place),
        cmocka_unit_test(flatten__what_is_shared_survives_power_cuts),
        cmocka_unit_test(flatten__every_failure_tells_the_truth_and_is_gone_on_from),
        cmocka_unit_test(flatten__what_is_refused_is_copied),
        cmocka_unit_test(flatten__a_manifest_verifies),
        cmocka_unit_test(flatten__changed_inputs_are_not_gone_on_with),
    };

    return cmocka_run_group_tests(tests, make_dir, qm_scratch_leave);
}
