/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_crash.c - a merge, cut short at every point, never costs a byte.
 *
 * Each merge of tests/crash/recipes, and some of random chains, is recorded; torn.h then says what
 * a power cut could have left.  For each such state: the active layer reads as before; base, child
 * and top hold no corruption (leaks may be); the base's internal snapshots are as they were; and
 * the same commit again, or qmeld_resume, goes on by the journal and ends where an undisturbed merge
 * does.  Some states are shown to qemu-img as well, as reader
 * and check of qmeld share code with its merge; from some, the second commit is cut short, too.
 *
 *     merge_crash [--full] [--seed N] [--states N] [--random N] [--first N] [--part K/N] [--only TEXT]
 *                 [--keep DIR]
 */
#include "harness.h"
#include "stage_files.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define QEMU_ONE_IN       50
#define BY_JOURNAL_ONE_IN 4
#define MAX_FAILED        3 /* of one merge */
#define TWICE_ONE_IN      20
#define TWICE_STATES      12

struct harness {
    uint64_t seed;
    uint64_t states; /* of each merge, about; 0: all */
    size_t random_sets;
    uint64_t n_random;
    const char *only;
    const char *keep;
    struct harness_part part;
    bool qemu;
    uint64_t first;
    /* by which turn, of this merge: going on or back, by the commit or the journal, asking qemu-img, twice */
    size_t turn, turn_twice;
    struct stage *stage;
    size_t n_states, n_twice, n_qemu, n_merges, n_refused, n_failed, failed_before;
};

/* ---- one state --------------------------------------------------------------------------------
 */

static void
keep_state(struct harness *h, const struct qm_torn_state *state)
{
    char dir[2048];

    if (!h->keep)
        return;
    snprintf(dir, sizeof dir, "%s/%zu", h->keep, h->n_failed);
    mkdir(h->keep, 0777);
    mkdir(dir, 0777);
    stage_files_put(h->stage, state, dir);
    printf("  files: %s\n", dir);
}

static void
complain(struct harness *h, const struct qm_torn_state *state, const char *when)
{
    printf("FAIL %s: %sstate %zu, after %zu syncs, %s: %s\n", h->stage->name, when, state->number,
           state->interval, state->choice, h->stage->why);
    keep_state(h, state);
    h->n_failed++;
}

/* A state that the second, interrupted commit, or the way back, leaves. */
static void
try_second_state(const struct qm_torn_state *state, void *opaque)
{
    struct harness *h = opaque;
    struct stage *s = h->stage;
    bool back;

    if (h->n_failed >= h->failed_before + MAX_FAILED)
        return;
    stage_files_put(s, state, ".");
    s->qemu = false;
    s->by_journal = h->turn_twice % BY_JOURNAL_ONE_IN == 0;
    h->turn_twice++;
    h->n_twice++;
    back = stage_has_way_back(s) && h->turn_twice % 2 == 0;
    if (!stage_reads(s) || !stage_sound(s) || !(back ? stage_back(s) : stage_again(s)))
        complain(h, state, back ? "second time, back, " : "second time, ");
}

static void
cut_short_again(struct harness *h, const struct qm_torn_state *state)
{
    const struct qm_torn_how how = {
        .seed = h->seed + state->number, .max = TWICE_STATES, .strict = true};
    struct stage *s = h->stage;
    const struct stage_bytes first_base = s->base_file;
    struct qmeld_error err;
    struct qm_torn *t;
    int rc;

    stage_files_put(s, state, ".");
    /* begun anew, of a base that may have been merged into before: that is what going back leads to */
    if (stage_has_way_back(s) && !stage_has_journal(s))
        s->base_file.at = qm_torn_load(s->files[s->base], &s->base_file.len);
    t = qm_torn_start_many(s->files, s->n_files);
    qm_torn_start_as(t, state);
    if (stage_has_way_back(s) && state->number % 2)
        rc = qmeld_revert(s->journal, &stage_resuming, NULL, &err) < 0 ? stage_commit(s, NULL, &err)
                                                                       : 0;
    else
        rc = stage_commit(s, NULL, &err); /* whether it may fail is asked by stage_again */
    qm_torn_stop(t);
    if (rc == 0)
        qm_torn_replay_files(t, &how, try_second_state, h);
    qm_torn_free(t);
    if (s->base_file.at != first_base.at)
        free(s->base_file.at);
    s->base_file = first_base;
}

static void
try_state(const struct qm_torn_state *state, void *opaque)
{
    struct harness *h = opaque;
    struct stage *s = h->stage;
    bool back;

    if (h->n_failed >= h->failed_before + MAX_FAILED)
        return;
    stage_files_put(s, state, ".");
    s->by_journal = h->turn % BY_JOURNAL_ONE_IN == 0;
    s->qemu = h->qemu && !s->encrypted && h->turn % QEMU_ONE_IN == 0;
    h->turn++;
    h->n_states++;
    h->n_qemu += s->qemu;
    back = stage_has_way_back(s) && h->turn % 2 == 0;
    if (!stage_reads(s) || !stage_sound(s) || !(back ? stage_back(s) : stage_again(s)))
        complain(h, state, back ? "back, " : "");
    else if (h->turn % TWICE_ONE_IN == 0)
        cut_short_again(h, state);
}

/* ---- one merge --------------------------------------------------------------------------------
 */

static bool
record(struct harness *h, struct qm_torn **out)
{
    struct stage *s = h->stage;
    struct qmeld_error err;
    int rc;

    stage_files_hold(s);
    *out = qm_torn_start_many(s->files, s->n_files);
    rc = stage_commit(s, NULL, &err);
    qm_torn_stop(*out);
    if (rc == 0)
        return stage_after(s);
    h->n_refused++;
    if (err.disk == QMELD_DISK_OLD && (err.code == QMELD_USAGE || err.code == QMELD_UNSUPPORTED))
        snprintf(s->why, sizeof s->why, "refused: %s: %s", err.file, err.what);
    else
        snprintf(s->why, sizeof s->why, "%s: %s: %s", qmeld_code_name(err.code), err.file,
                 err.what);
    return false;
}

/* may_refuse: the chain is a random one, and may be one that no merge takes. */
static void
run_stage(struct harness *h, struct stage *s, bool may_refuse)
{
    const struct qm_torn_how how = {.seed = h->seed, .max = h->states, .random = h->random_sets};
    struct qm_torn *t = NULL;
    size_t n = 0;

    h->stage = s;
    h->failed_before = h->n_failed;
    h->turn = h->turn_twice = harness_turn(s->name) + h->first;
    stage_files_drop(s);
    stage_write(s);
    h->n_merges++;
    if (!stage_before(s) || !record(h, &t)) {
        const bool refused = may_refuse && strncmp(s->why, "refused", 7) == 0;

        printf("%s %s: %s\n", refused ? "  --" : "FAIL", s->name, s->why);
        h->n_failed += !refused;
        if (t)
            qm_torn_free(t);
        return;
    }
    n = qm_torn_replay_files(t, &how, try_state, h);
    printf("%6zu states of %zu changes and %zu syncs: %s%s\n", n, qm_torn_changes(t),
           qm_torn_syncs(t), s->name, h->n_failed > h->failed_before ? " FAILED" : "");
    qm_torn_free(t);
}

static void
run_recipe(struct harness *h, const char *name, const char *text, bool random)
{
    struct stage s;

    for (size_t i = 0; stage_open(&s, name, text, i); i++) {
        if (harness_is_mine(&h->part) && (!h->only || strstr(s.name, h->only)))
            run_stage(h, &s, random);
        stage_files_drop(&s);
        stage_close(&s);
    }
}

/* ---- all merges -------------------------------------------------------------------------------
 */

static void
run_fixed_recipe(const char *name, const char *text, void *opaque)
{
    run_recipe(opaque, name, text, false);
}

/* Some merges go into a middle layer, or leave layers above: the last lines of a recipe are the
 * lowest layers, and layers are named a, b, c, ... from the base. */
static void
print_commit(FILE *f, const char *recipe, uint64_t seed)
{
    static const char *const overlays[] = {"keep", "empty", "delete", "quarantine"};
    unsigned layers = 0;

    for (const char *line = recipe; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        layers += line[0] >= 'a' && line[0] <= 'z' && line[1] == ' ' && line[2] == '|';
    }
    fprintf(f, "# commit overlays=%s batch=64k weight=1k dirty=maybe%s", overlays[seed % 4],
            seed % 3 ? "" : " sec=0");
    if (seed % 4 == 2 && seed / 4 % 2) /* with delete */
        fputs(" direction=up", f);
    else if (seed % 4 != 3 && seed / 3 % 2) /* not with quarantine */
        fputs(" reclaim=yes", f);
    if (seed % 5 == 0)
        fputs(" share=512", f);
    if (seed / 6 % 2)
        fputs(" skip-equal=yes", f);
    if (seed / 12 % 2)
        fputs(" detect-zeroes=yes", f);
    if (layers >= 3 && seed % 2) {
        const unsigned base = (unsigned)(seed / 2 % (layers - 2));

        fprintf(f, " base=%c top=%c", 'a' + (int)base,
                'a' + (int)(base + 1 + seed / 4 % (layers - 2 - base)));
    }
    fputc('\n', f);
}

static void
run_random(struct harness *h)
{
    for (uint64_t i = 0; i < h->n_random; i++) {
        const uint64_t seed = h->seed + i;
        char *text, name[32];
        size_t len;
        FILE *f = open_memstream(&text, &len);

        if (!f)
            abort();
        qm_forge_random(seed, f);
        if (fflush(f) != 0)
            abort();
        print_commit(f, text, seed);
        if (fclose(f) != 0)
            abort();
        snprintf(name, sizeof name, "random-%" PRIu64, seed);
        run_recipe(h, name, text, true);
        free(text);
    }
}

int
main(int argc, char **argv)
{
    struct harness h = {.seed = 1, .states = 60, .n_random = 8};
    bool full = false;
    const struct harness_option options[] = {
        {"--full", .flag = &full},
        {"--seed", .number = &h.seed},
        {"--states", .number = &h.states},
        {"--random", .number = &h.n_random},
        {"--first", .number = &h.first},
        {"--part", .text = &h.part.text},
        {"--only", .text = &h.only},
        {"--keep", .text = &h.keep},
        {.name = NULL},
    };

    harness_parse(options, argc, argv);
    if (full) {
        h.states = 2000;
        h.random_sets = 80;
        h.n_random = 40;
    }
    harness_enter();
    h.qemu = system("qemu-img --version >/dev/null 2>&1") == 0;
    if (!h.qemu)
        puts("skip: qemu-img is not installed, and shown no state");
    printf("seed %" PRIu64 "\n", h.seed);
    harness_recipes(run_fixed_recipe, &h);
    run_random(&h);
    harness_leave();
    printf(
        "%zu states of %zu merges, %zu of merges cut short twice, %zu seen by qemu-img, %zu merges "
        "refused, %zu states failed\n",
        h.n_states, h.n_merges, h.n_twice, h.n_qemu, h.n_refused, h.n_failed);
    if (h.n_merges == 0) {
        puts("FAIL: no merge is meant");
        return 1;
    }
    return h.n_failed ? 1 : 0;
}
