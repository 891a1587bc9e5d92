/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_model_test.c - random chains, merged, against arrays of bytes.
 *
 * The model of a merge is three lines over what the forge drew: base reads as top did; behind
 * top's end it reads as before, except where that end hid it from the layer above; and the
 * active layer reads as ever.  What must not change (other layers, snapshots) is compared as
 * bytes of the files.  A failure prints its seed:  forge --random SEED shows the chain.
 *
 * The model knows no direction: a base that is moved up (--direction=up) has to come to the same.
 *
 *     merge_model_test [FIRST_SEED COUNT]
 */
#include "chain.h"
#include "lab.h"
#include "qcow2.h"
#include "scratch.h"
#include "transfer.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "ok.h"

static uint64_t first_seed = 1, n_seeds = 50;
static uint64_t seed; /* of the trial that runs */
static uint64_t n_up; /* merges that went up */

struct trial {
    uint64_t dice;
    struct qm_forge *forge;
    size_t n;    /* layers */
    size_t base; /* 0 = the lowest, as the library counts */
    size_t top;
    enum qmeld_overlays overlays;
    enum qmeld_direction direction;
    bool up;       /* it was done so */
    bool grows_v2; /* base is version 2, has snapshots, and would have to grow */
    bool snapshots_on_the_way;
    bool small_header; /* some rewritten header has little room */
};

static uint64_t
any(struct trial *t, uint64_t below)
{
    t->dice = t->dice * 6364136223846793005u + 1442695040888963407u;
    return (t->dice >> 33) % below;
}

/* The forge counts from the top. */
static size_t
row(const struct trial *t, size_t layer)
{
    return t->n - 1 - layer;
}

static const char *
file(const struct trial *t, size_t layer)
{
    return qm_forge_file(t->forge, row(t, layer));
}

/* ---- the model ---- */

static struct qm_bytes
model(const struct trial *t)
{
    struct qm_bytes base = qm_lab_expect(t->forge, row(t, t->base));
    const struct qm_bytes top = qm_lab_expect(t->forge, row(t, t->top));
    size_t hidden = top.len;

    if (t->top + 1 < t->n) {
        const struct qm_bytes child = qm_lab_expect(t->forge, row(t, t->top + 1));

        hidden = qm_min(child.len, base.len);
        free(child.at);
    }
    if (base.len < top.len)
        base.at = realloc(base.at, base.len = top.len);
    assert_non_null(base.at);
    memcpy(base.at, top.at, top.len);
    if (hidden > top.len)
        memset(base.at + top.len, 0, hidden - top.len);
    free(top.at);
    return base;
}

/* ---- one trial ---- */

static void
draw(struct trial *t)
{
    char *text = NULL;
    size_t len = 0;
    FILE *out = open_memstream(&text, &len);

    assert_non_null(out);
    qm_forge_random(seed, out);
    fclose(out);
    t->forge = qm_lab_make(text);
    free(text);
    t->n = qm_forge_n_layers(t->forge);
    if (t->n < 2)
        return;
    t->base = any(t, 3) ? 0 : any(t, t->n - 1);
    t->top = any(t, 2) ? t->n - 1 : t->base + 1 + any(t, t->n - 1 - t->base);
    t->overlays = any(t, 3) ? QMELD_OVERLAYS_KEEP : (enum qmeld_overlays)any(t, 4);
    if (any(t, 2))
        return;
    t->overlays = QMELD_OVERLAYS_DELETE;
    t->direction = any(t, 4) ? QMELD_DIRECTION_UP : QMELD_DIRECTION_AUTO;
}

/* Free space of base is full of rubbish: what is taken must be filled, or flagged, to the last
 * byte. */
static void
add_rubbish(struct trial *t)
{
    static unsigned char rubbish[256 << 10];
    struct qmeld_check_result r;
    struct qm_file *f;

    if (strcmp(qm_forge_format(t->forge, row(t, t->base)), "qcow2") != 0 || any(t, 2))
        return;
    memset(rubbish, 0xee, sizeof rubbish);
    OK(qmeld_check(file(t, t->base), "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    OK(qm_file_open(file(t, t->base), &f, err));
    OK(qm_file_make_writable(f, err));
    OK(qm_pwrite(f, qm_max(f->size, r.image_end_offset), rubbish, sizeof rubbish, err));
    OK(qm_file_finish(f, err));
}

/* Reasons that may make the library refuse. */
static void
look(struct trial *t)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK};
    struct qm_chain *c;

    OK(qm_chain_open(file(t, t->n - 1), &how, &c, err));
    assert_int_equal(c->n, t->n);
    for (size_t i = t->base; i < t->n && i <= t->top + 1; i++) {
        const struct qm_qcow2 *q = qm_qcow2_of(c->layers[i].img);

        if (!q)
            continue;
        t->snapshots_on_the_way |= i > t->base && i <= t->top && q->hdr.n_snapshots > 0;
        t->grows_v2 |= i == t->base && q->hdr.version == 2 && q->hdr.n_snapshots > 0 &&
                       c->layers[t->top].img->size > q->img.size;
        t->small_header |=
            (i >= t->top || t->direction != QMELD_DIRECTION_DOWN) && q->geo.cluster_size < 1024;
    }
    qm_chain_close(c);
}

/* Every other merge has tiny batches. */
static void
set_limits(struct trial *t, struct qm_transfer_limits *l)
{
    if (any(t, 2))
        return;
    l->batch = 1ull << any(t, 20);
    l->batch_weight = 1u << any(t, 14);
    l->step = 512ull << any(t, 12);
}

/* True if merged; false: refused, for a reason we knew. */
static bool
merge(struct trial *t)
{
    char base[16], top[16];
    const struct qmeld_commit_options opts = {.base = base,
                                              .top = top,
                                              .overlays = t->overlays,
                                              .direction = t->direction,
                                              .threads = (unsigned)any(t, 4)};
    struct qmeld_commit_report report;
    const struct qm_transfer_limits limits = qm_transfer_limits;
    struct qmeld_error err;
    bool was_there;
    int rc;

    set_limits(t, &qm_transfer_limits);
    snprintf(base, sizeof base, "[%zu]", t->base + 1);
    snprintf(top, sizeof top, "[%zu]", t->top + 1);
    rc = qmeld_commit(file(t, t->n - 1), &opts, &report, &err);
    was_there = report.already_merged; /* nothing changed beneath anybody */
    qmeld_commit_report_free(&report);
    qm_transfer_limits = limits;
    if (rc == 0) {
        t->up = report.direction == QMELD_DIRECTION_UP;
        assert_true(t->up || t->direction != QMELD_DIRECTION_UP);
        assert_false((t->snapshots_on_the_way && !was_there) || (t->grows_v2 && !t->up));
        return true;
    }
    assert_int_equal(err.disk, QMELD_DISK_OLD);
    if (err.code == QMELD_USAGE && t->direction == QMELD_DIRECTION_UP &&
        strstr(err.what, "merge down (--direction=down)")) {
        t->direction = QMELD_DIRECTION_DOWN; /* as we are told */
        return merge(t);
    }
    if (!(err.code == QMELD_USAGE && t->snapshots_on_the_way) &&
        !(err.code == QMELD_UNSUPPORTED && t->grows_v2) &&
        !(err.code == QMELD_NOSPACE && t->small_header))
        fail_msg("%s: %s", err.file, err.what);
    return false;
}

static bool
may_change(const struct trial *t, size_t layer)
{
    return layer == t->base || layer == t->top + 1 ||
           (layer == t->top && t->overlays == QMELD_OVERLAYS_EMPTY);
}

static bool
is_gone(const struct trial *t, size_t layer)
{
    return (t->overlays == QMELD_OVERLAYS_DELETE || t->overlays == QMELD_OVERLAYS_QUARANTINE) &&
           layer > t->base && layer <= t->top;
}

/* Frees before. */
static void
check_gone(const struct trial *t, size_t layer, struct qm_bytes before)
{
    char name[4096];

    assert_int_equal(access(file(t, layer), F_OK), -1);
    snprintf(name, sizeof name, "%s.merged", file(t, layer));
    if (t->overlays == QMELD_OVERLAYS_QUARANTINE)
        qm_lab_same(qm_lab_file(name), before, name);
    else
        free(before.at);
    unlink(name);
}

static void
check_others(const struct trial *t, struct qm_bytes *before, bool merged)
{
    for (size_t i = 0; i < t->n; i++) {
        if (merged && is_gone(t, i))
            check_gone(t, i, before[i]);
        else if (!merged || !may_change(t, i))
            qm_lab_same(qm_lab_file(file(t, i)), before[i], file(t, i));
        else
            before[i].at = (free(before[i].at), NULL);
    }
}

static void
check_merged(const struct trial *t, struct qm_bytes snapshots)
{
    qm_lab_same(qm_lab_read(file(t, t->base)), model(t), "base");
    qm_lab_same(qm_lab_snapshots(file(t, t->base)), snapshots, "snapshots of base");
    if (!is_gone(t, t->n - 1))
        qm_lab_reads_as(file(t, t->n - 1), t->forge, 0);
    if (strcmp(qm_forge_format(t->forge, row(t, t->base)), "qcow2") == 0)
        qm_lab_clean(file(t, t->base));
    if (t->top + 1 < t->n)
        qm_lab_clean(file(t, t->top + 1));
    n_up += t->up;
}

/* 1: merged, 0: refused, -1: nothing to merge */
static int
try(void)
{
    struct trial t = {.dice = seed};
    struct qm_bytes *before, snapshots;
    bool merged;

    draw(&t);
    if (t.n < 2) {
        qm_forge_free(t.forge);
        return -1;
    }
    look(&t);
    add_rubbish(&t);
    before = calloc(t.n, sizeof *before);
    assert_non_null(before);
    for (size_t i = 0; i < t.n; i++)
        before[i] = qm_lab_file(file(&t, i));
    snapshots = qm_lab_snapshots(file(&t, t.base));
    merged = merge(&t);
    check_others(&t, before, merged);
    if (merged)
        check_merged(&t, snapshots);
    else
        free(snapshots.at);
    free(before);
    for (size_t i = 0; i < t.n; i++)
        unlink(file(&t, i));
    qm_forge_free(t.forge);
    return merged;
}

static void
merge_model__base_reads_as_the_model_says(void **state)
{
    uint64_t merged = 0, refused = 0;

    (void)state;
    for (seed = first_seed; seed < first_seed + n_seeds; seed++) {
        const int rc = try();

        merged += rc == 1;
        refused += rc == 0;
    }
    printf("%" PRIu64 " merged, %" PRIu64 " of them up, %" PRIu64 " refused\n", merged, n_up,
           refused);
    assert_true(merged * 2 >= n_seeds || n_seeds < 20);
    assert_true(n_up > 0 || n_seeds < 50);
}

static int
leave(void **state)
{
    if (seed != first_seed + n_seeds)
        fprintf(stderr, "merge_model_test: it was seed %" PRIu64 "\n", seed);
    return qm_scratch_leave(state);
}

int
main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(merge_model__base_reads_as_the_model_says, qm_scratch_enter,
                                        leave),
    };

    if (argc == 3) {
        first_seed = strtoull(argv[1], NULL, 0);
        n_seeds = strtoull(argv[2], NULL, 0);
    }
    return cmocka_run_group_tests(tests, NULL, NULL);
}
