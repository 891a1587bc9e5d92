/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_faults.c - the nth read or change of a disk fails, for n = 0, 1, ... until none is left to fail.
 *
 * A merge, one that goes on, a repair or a new image that meets EIO or ENOSPC must end with the truth: the
 * code of what went wrong, and in err->disk what the files are worth.  OLD: they are byte for byte as
 * before.  OPEN or NEW: the active layer reads as before, and the same call again finishes.  No
 * descriptor is left open (and, under ASan, no memory).
 *
 * A change fails once, or, as on a disk that is gone, with all that follow.  A read fails, also one through a mapping.
 * A read or a write that does a part only is no failure: the rest has to be done.
 *
 *     merge_faults [--full] [--part K/N] [--only TEXT]
 */
#include "harness.h"
#include "space.h"
#include "stage_files.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CLOSE_LOOK 40 /* so many first faults are all tried, then fewer and fewer */
#define SECTOR     512u
#define MAX_FAILED 5  /* of one job */
#define GLANCE     10 /* of those that are many, or are tried in many jobs */

/* What the nth of: a change; a call that reads; one that writes; one that reads through a mapping. */
enum victim { CHANGE, READ, WRITE, MAPPED, N_VICTIMS };

struct kind {
    const char *name;
    enum victim victim;
    int error;  /* 0: nothing fails */
    bool stays; /* all later changes fail, too */
    bool part;  /* half of the call is done, then, with an error, the next one fails */
};

static const struct kind changes[] = {{"EIO", CHANGE, EIO, false, false},
                                      {"ENOSPC", CHANGE, ENOSPC, false, false},
                                      {"EIO for good", CHANGE, EIO, true, false}};
static const struct kind reads[] = {{"EIO", READ, EIO, false, false},
                                    {"half of it", READ, 0, false, true}};
static const struct kind writes[] = {{"half of it", WRITE, 0, false, true},
                                     {"half of it, then ENOSPC", WRITE, ENOSPC, false, true}};

static const struct kind mapped[] = {{"EIO", MAPPED, EIO, false, false}};

static const struct {
    const struct kind *kinds;
    size_t n;
    size_t close_look;
} groups[] = {{changes, 3, CLOSE_LOOK}, {reads, 2, GLANCE}, {writes, 2, GLANCE}, {mapped, 1, 4}};

struct fault {
    const struct kind *kind;
    size_t after;
    size_t seen;
    bool hit;
    bool
        spared; /* it hit a range that is shared: that may be copied instead; or a hint, which may be missing */
    bool hint; /* the last change was one of a hint */
    bool next; /* half of a call was done; what comes now fails */
};

struct harness {
    bool full;
    const char *only;
    struct harness_part part;
    size_t turn; /* of what goes by turns, in this job */
    size_t n_faults, n_jobs, n_failed;
    size_t n_of[N_VICTIMS];
    char why[1024];
};

/* A signpost to the journal (signpost.h): nothing depends on it, so its errors are nobody's. */
static bool
is_hint(const char *path)
{
    static const char suffix[] = ".qmeld-journal";
    const size_t len = path ? strlen(path) : 0;

    return len >= sizeof suffix - 1 && strcmp(path + len - (sizeof suffix - 1), suffix) == 0;
}

static int
inject(const struct qm_io_event *ev, void *opaque)
{
    struct fault *f = opaque;
    const bool hint = is_hint(ev->path) || (f->hint && ev->op == QM_IO_SYNC); /* its directory's */
    size_t n;

    if (f->kind->victim != CHANGE)
        return 0;
    f->hint = is_hint(ev->path);
    n = f->seen++;
    if (n < f->after || (n > f->after && !f->kind->stays))
        return 0;
    f->hit = true;
    f->spared = ev->from != NULL || hint;
    return f->kind->error;
}

static ssize_t
inject_call(enum qm_io_call call, const char *path, uint64_t off, size_t len, void *opaque)
{
    struct fault *f = opaque;
    const enum victim victim = call == QM_IO_CALL_WRITE    ? WRITE
                               : call == QM_IO_CALL_WINDOW ? MAPPED
                                                           : READ;
    uint64_t end;
    size_t half;

    if (victim != f->kind->victim)
        return (ssize_t)len;
    if (f->next) {
        f->next = false;
        return -f->kind->error;
    }
    if (f->seen++ != f->after)
        return (ssize_t)len;
    f->hit = true;
    f->spared = is_hint(path);
    if (!f->kind->part)
        return -f->kind->error;
    half = len / 2 ? len / 2 : 1;
    if (f->kind->error == 0)
        return (ssize_t)half;
    /* space ends between sectors: inside of one nothing is written */
    end = (off + half) / SECTOR * SECTOR;
    if (end <= off)
        return -f->kind->error;
    f->next = true;
    return (ssize_t)(end - off);
}

static size_t
open_files(void)
{
    struct dirent **names;
    const int n = scandir("/proc/self/fd", &names, NULL, NULL);

    for (int i = 0; i < n; i++)
        free(names[i]);
    if (n >= 0)
        free(names);
    return n < 0 ? 0 : (size_t)n;
}

/* ---- what is put at risk ----------------------------------------------------------------------
 */

/* A job: how it begins, what runs under the fault, and what must hold afterwards. */
struct job {
    const char *name;
    const char *const *files; /* what it may change */
    size_t n_files;
    int (*run)(void *subject, struct qmeld_error *err);
    bool (*holds)(void *subject, const struct qmeld_error *err, const char **why);
    void *subject;
    const char *journal;        /* among the files; NULL: there is none */
    bool glance;                /* it is much like one that was looked at closely */
    struct stage_bytes *before; /* of each file; at NULL: it was not there */
    size_t *leads;              /* each name: to the file that this one is the first name of */
};

static void
remember_files(struct job *j)
{
    j->before = calloc(j->n_files, sizeof *j->before);
    j->leads = calloc(j->n_files, sizeof *j->leads);
    if (!j->before || !j->leads)
        abort();
    for (size_t i = 0; i < j->n_files; i++)
        j->leads[i] = stage_files_which(j->files, j->n_files, i);
    for (size_t i = 0; i < j->n_files; i++)
        if (access(j->files[i], F_OK) == 0)
            j->before[i].at = qm_torn_load(j->files[i], &j->before[i].len);
}

static void
remove_journals(void)
{
    glob_t found;

    if (glob(".*.qmeld", 0, NULL, &found) == 0)
        for (size_t i = 0; i < found.gl_pathc; i++)
            unlink(found.gl_pathv[i]);
    globfree(&found);
}

static void
restore_files(const struct job *j)
{
    struct qm_torn_file *files = calloc(j->n_files, sizeof *files);
    const struct qm_torn_state state = {.files = files, .n_files = j->n_files};

    if (!files)
        abort();
    remove_journals(); /* of a run that was meant to go on with the files of before */
    for (size_t i = 0; i < j->n_files; i++)
        files[i] = (struct qm_torn_file){.path = j->files[i],
                                         .at = j->before[i].at,
                                         .len = j->before[i].len,
                                         .gone = !j->before[i].at,
                                         .file = j->leads[i],
                                         .changed = true};
    stage_files_put(NULL, &state, ".");
    free(files);
}

static bool
files_are_old(const struct job *j, const struct fault *f, const char **why)
{
    for (size_t i = 0; i < j->n_files; i++) {
        unsigned char *now = NULL;
        bool same;
        size_t len = 0;

        if (f->kind->stays && j->journal && !strcmp(j->files[i], j->journal))
            continue; /* on such a disk it cannot be removed; the same call again uses it */
        if (access(j->files[i], F_OK) == 0)
            now = qm_torn_load(j->files[i], &len);
        same = !now == !j->before[i].at && len == j->before[i].len &&
               (!len || memcmp(now, j->before[i].at, len) == 0);
        free(now);
        if (!same) {
            *why = j->files[i];
            return false;
        }
    }
    return true;
}

/* Only a part was done, and the rest after it: no failure; nor is a read that was not needed, or a range that was
 * not shared, and then copied. */
static bool
may_succeed(const struct fault *f)
{
    return f->kind->error == 0 || f->kind->victim == READ || (f->spared && !f->kind->stays) ||
           f->next; /* what was to fail did not come */
}

static bool
judge(struct harness *h, const struct job *j, const struct fault *f, int rc,
      const struct qmeld_error *err)
{
    const enum qmeld_code code = f->kind->error == ENOSPC ? QMELD_NOSPACE : QMELD_IO;
    /* EFAULT says nothing to anybody */
    const int number = f->kind->victim == MAPPED ? 0 : f->kind->error;
    const char *why = "";

    if (rc == 0 && !may_succeed(f))
        snprintf(h->why, sizeof h->why, "the fault was not noticed");
    else if (rc < 0 && f->kind->error == 0)
        snprintf(h->why, sizeof h->why, "the rest was not done");
    else if (rc < 0 && (err->code != code || err->sys_errno != number))
        snprintf(h->why, sizeof h->why, "code %s, errno %d", qmeld_code_name(err->code),
                 err->sys_errno);
    else if (rc < 0 && err->disk == QMELD_DISK_OLD && !files_are_old(j, f, &why))
        snprintf(h->why, sizeof h->why, "the disk is said to be OLD, but %s has changed", why);
    else if (!j->holds(j->subject, err, &why))
        snprintf(h->why, sizeof h->why, "disk %d: %s", (int)err->disk, why);
    else
        return true;
    return false;
}

/* False: the fault was not reached. */
static bool
run_once(struct harness *h, const struct job *j, struct fault *f)
{
    static const char *const victims[] = {"change", "read", "write", "mapped read"};
    const size_t fds = open_files();
    struct qmeld_error err = {0};
    size_t left;
    int rc;

    restore_files(j);
    qm_io_set_hook(inject, f);
    qm_io_set_call_hook(inject_call, f);
    rc = j->run(j->subject, &err);
    qm_io_set_hook(NULL, NULL);
    qm_io_set_call_hook(NULL, NULL);
    if (!f->hit)
        return false;
    h->n_faults++;
    h->n_of[f->kind->victim]++;
    left = open_files() - fds;
    if (left != 0)
        snprintf(h->why, sizeof h->why, "%zu descriptors are left open", left);
    else if (judge(h, j, f, rc, &err))
        return true;
    printf("FAIL %s: %s %zu, %s: %s (error: %s)\n", j->name, victims[f->kind->victim], f->after,
           f->kind->name, h->why, rc < 0 ? err.what : "none");
    h->n_failed++;
    return true;
}

static void
run_job(struct harness *h, struct job *j)
{
    const size_t failed = h->n_failed, before = h->n_faults;

    remember_files(j);
    h->turn = harness_turn(j->name);
    qm_io_always_map = h->turn % 2 == 0;
    qm_space_never_ample = h->turn % 3 == 0;
    for (size_t g = 0; g < sizeof groups / sizeof *groups; g++) {
        const size_t n_kinds = groups[g].n;
        const size_t close_look = j->glance ? GLANCE : groups[g].close_look;

        for (size_t k = 0; k < (h->full ? n_kinds : 1); k++) {
            for (size_t n = 0;; n += h->full || n < close_look ? 1 : n / 4) {
                struct fault f = {.kind = &groups[g].kinds[(k + n + h->turn) % n_kinds],
                                  .after = n};

                if (h->n_failed >= failed + MAX_FAILED || !run_once(h, j, &f))
                    break;
            }
        }
    }
    h->n_jobs++;
    for (size_t i = 0; i < j->n_files; i++) {
        unlink(j->files[i]);
        free(j->before[i].at);
    }
    free(j->before);
    free(j->leads);
    printf("%6zu faults: %s%s\n", h->n_faults - before, j->name,
           h->n_failed > failed ? " FAILED" : "");
}

/* ---- merges -----------------------------------------------------------------------------------
 */

static int
run_merge(void *subject, struct qmeld_error *err)
{
    return stage_commit(subject, NULL, err);
}

static bool
merge_holds(void *subject, const struct qmeld_error *err, const char **why)
{
    struct stage *s = subject;

    *why = s->why;
    if (err->code != QMELD_OK && err->disk == QMELD_DISK_NEW && !stage_done(s))
        return false;
    return stage_reads(s) && stage_sound(s) && stage_again(s);
}

/* ---- merges that go on ----------------------------------------------------------------------- */

/* By its journal, or by the same command, in turn. */
static int
run_resume(void *subject, struct qmeld_error *err)
{
    const struct stage *s = subject;

    return s->by_journal ? stage_resume(s, NULL, err) : stage_commit(s, NULL, err);
}

struct found {
    char journal[4096];
    struct qmeld_error problem;
};

static int
note_unfinished(const struct qmeld_unfinished *u, void *opaque)
{
    struct found *found = opaque;

    snprintf(found->journal, sizeof found->journal, "%s", u->journal);
    if (u->problem)
        found->problem = *u->problem;
    return 0;
}

/* As `qmeld recover` does. */
static int
run_recover(void *subject, struct qmeld_error *err)
{
    struct found found = {.journal = ""};

    (void)subject;
    if (qmeld_status(".", NULL, note_unfinished, &found, err) < 0)
        return -1;
    if (found.problem.code != QMELD_OK) {
        *err = found.problem;
        return -1;
    }
    return *found.journal ? qmeld_resume(found.journal, &stage_resuming, NULL, err) : 0;
}

/* Cuts the merge off at half of its changes, or at their end, so that there is something to go on
 * with. */
static bool
interrupt(struct stage *s, bool late)
{
    static const struct kind gone = {"EIO for good", CHANGE, EIO, true, false};
    struct fault f = {.kind = &gone, .after = SIZE_MAX};
    struct qmeld_error err;

    stage_write(s);
    stage_files_hold(s);
    qm_io_set_hook(inject, &f);
    if (stage_commit(s, NULL, &err) < 0)
        f.seen = 0;
    qm_io_set_hook(NULL, NULL);
    f = (struct fault){.kind = &gone, .after = late ? f.seen - 2 : f.seen / 2};
    for (size_t k = 0; k < s->n_files; k++)
        unlink(s->files[k]);
    stage_write(s);
    stage_files_hold(s);
    qm_io_set_hook(inject, &f);
    if (stage_commit(s, NULL, &err) == 0)
        err.disk = QMELD_DISK_OLD;
    qm_io_set_hook(NULL, NULL);
    return err.disk == QMELD_DISK_OPEN && access(s->journal, F_OK) == 0;
}

static void
try_going_on(struct harness *h, struct stage *s)
{
    char name[600];
    const size_t turn = harness_turn(s->name) / 6;
    const bool recover = turn % 3 == 0, late = turn / 3 % 2;
    struct job j = {.name = name,
                    .files = s->files,
                    .n_files = s->n_files,
                    .run = recover ? run_recover : run_resume,
                    .holds = merge_holds,
                    .subject = s,
                    .journal = s->journal,
                    .glance = true};

    s->by_journal = turn % 3 == 1;
    snprintf(name, sizeof name, "%s, gone on with%s", s->name,
             recover         ? " by recover"
             : s->by_journal ? " by its journal"
                             : "");
    if (interrupt(s, late))
        run_job(h, &j);
}

/* ---- merges ---- */

static void
try_merge(struct harness *h, struct stage *s)
{
    struct job j = {.name = s->name,
                    .files = s->files,
                    .n_files = s->n_files,
                    .run = run_merge,
                    .holds = merge_holds,
                    .subject = s,
                    .journal = s->journal};
    struct qmeld_error err;

    remove_journals();
    stage_write(s);
    if (!stage_before(s) || stage_commit(s, NULL, &err) < 0 || !stage_after(s)) {
        printf("FAIL %s: does not even merge undisturbed\n", s->name);
        h->n_failed++;
        return;
    }
    for (size_t k = 0; k < s->n_files; k++)
        unlink(s->files[k]);
    stage_write(s);
    stage_files_hold(s);
    run_job(h, &j);
    try_going_on(h, s);
}

static void
try_recipe(const char *name, const char *text, void *opaque)
{
    struct harness *h = opaque;
    struct stage s;

    for (size_t i = 0; stage_open(&s, name, text, i); i++) {
        if (harness_is_mine(&h->part) && (!h->only || strstr(s.name, h->only)))
            try_merge(h, &s);
        stage_files_drop(&s);
        stage_close(&s);
    }
}

/* ---- new images -------------------------------------------------------------------------------
 */

static int
run_create(void *subject, struct qmeld_error *err)
{
    return qmeld_create("new", subject, err);
}

static bool
create_holds(void *subject, const struct qmeld_error *err, const char **why)
{
    const struct qmeld_create_options *o = subject;
    const struct qmeld_open_options how = {.format = o->format};
    struct qmeld_check_result r;
    struct qmeld_chain *chain;
    struct qmeld_error bad;

    if (err->disk == QMELD_DISK_NEW && qmeld_chain_open("new", &how, &chain, &bad) < 0) {
        *why = "the new image cannot be opened";
        return false;
    }
    if (err->disk == QMELD_DISK_NEW)
        qmeld_chain_close(chain);
    *why = "it cannot be made afterwards";
    if (qmeld_create("new", o, &bad) < 0)
        return false;
    *why = "made afterwards, it is not sound";
    return strcmp(o->format, "raw") == 0 ||
           (qmeld_check("new", "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &r, &bad) == 0 &&
            r.corruptions + r.leaks + r.check_errors == 0);
}

static void
try_creates(struct harness *h)
{
    static const char *const files[] = {"new"};
    static const struct {
        const char *name;
        bool over;
        struct qmeld_create_options o;
    } list[] = {
        {"create raw", false, {.format = "raw", .size = 70000, .preallocation = "full"}},
        {"create raw over another image", true, {.format = "raw", .size = 70000}},
        {"create qcow2", false, {.format = "qcow2", .size = 1 << 20}},
        {"create qcow2 over another image", true, {.format = "qcow2", .size = 1 << 20}},
        {"create qcow2 with all its metadata",
         false,
         {.format = "qcow2", .size = 1 << 20, .preallocation = "metadata"}},
        {"create qcow2 with all its clusters",
         true,
         {.format = "qcow2", .size = 1 << 20, .cluster_size = 4096, .preallocation = "full"}},
    };

    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct qmeld_create_options o = list[i].o;
        struct job j = {.name = list[i].name,
                        .files = files,
                        .n_files = 1,
                        .run = run_create,
                        .holds = create_holds,
                        .subject = &o};

        o.has_size = true;
        if (list[i].over)
            qm_torn_save("new", (const unsigned char *)"what was here", 13);
        if (harness_is_mine(&h->part) && (!h->only || strstr(j.name, h->only)))
            run_job(h, &j);
        unlink("new");
    }
}

/* ---- repairs ----------------------------------------------------------------------------------
 */

struct repair {
    enum qmeld_repair how;
    struct stage_bytes view;
};

static int
run_repair(void *subject, struct qmeld_error *err)
{
    const struct repair *r = subject;
    struct qmeld_check_result out;

    return qmeld_check("image", "qcow2", r->how, NULL, NULL, &out, err);
}

static bool
view_of(const char *path, struct stage_bytes *out)
{
    struct qmeld_layer_info info;
    struct qmeld_error err;
    struct qmeld_chain *chain;
    bool ok;

    *out = (struct stage_bytes){0};
    if (qmeld_chain_open(path, NULL, &chain, &err) < 0)
        return false;
    ok = qmeld_chain_layer(chain, 0, &info, &err) == 0;
    if (ok) {
        out->len = (size_t)info.virtual_size;
        out->at = malloc(out->len + 1);
        ok = out->at && qmeld_read(chain, 0, out->at, out->len, &err) == 0;
    }
    qmeld_chain_close(chain);
    return ok;
}

static bool
repair_holds(void *subject, const struct qmeld_error *err, const char **why)
{
    const struct repair *r = subject;
    struct qmeld_check_result out;
    struct qmeld_error bad;
    struct stage_bytes now;
    bool ok;

    (void)err;
    *why = "the image does not read as before";
    ok = view_of("image", &now) && now.len == r->view.len &&
         memcmp(now.at, r->view.at, now.len) == 0;
    free(now.at);
    if (!ok)
        return false;
    *why = "the same repair again does not mend it";
    return qmeld_check("image", "qcow2", r->how, NULL, NULL, &out, &bad) == 0 &&
           qmeld_check("image", "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &out, &bad) == 0 &&
           out.corruptions + out.leaks + out.check_errors == 0;
}

static void
try_repairs(struct harness *h)
{
    static const char *const files[] = {"image"};
    static const struct {
        const char *name;
        enum qmeld_repair how;
        const char *recipe;
    } list[] = {
        {"check --repair=leaks", QMELD_REPAIR_LEAKS,
         "image | AB.Cd0.. cluster=4k\n  poke refcount[12] = 1\n  poke refcount[5] = 7\n"},
        {"check --repair=all of a dirty image", QMELD_REPAIR_ALL,
         "image | AB.Cd0.. cluster=4k lazy=1 dirty=1\n"},
        {"check --repair=all of wrong refcounts", QMELD_REPAIR_ALL,
         "image | AB.Cd0.. cluster=4k\n  poke refcount[4] = 0\n  poke refcount[5] = 0\n"},
        {"check --repair=all without a refcount block", QMELD_REPAIR_ALL,
         "image | AB.Cd0.. cluster=4k\n  poke reftable[0] = 0\n"},
    };

    for (size_t i = 0; i < sizeof list / sizeof *list; i++) {
        struct repair r = {.how = list[i].how};
        struct job j = {.name = list[i].name,
                        .files = files,
                        .n_files = 1,
                        .run = run_repair,
                        .holds = repair_holds,
                        .subject = &r};
        struct qmeld_error err = {0};
        struct qm_forge *forge;

        if (!harness_is_mine(&h->part) || (h->only && !strstr(j.name, h->only)))
            continue;
        if (qm_forge_parse(list[i].recipe, j.name, &forge, &err) < 0 ||
            qm_forge_write(forge, ".", &err) < 0 || !view_of("image", &r.view)) {
            printf("FAIL %s: %s\n", j.name, err.what);
            h->n_failed++;
            continue;
        }
        run_job(h, &j);
        free(r.view.at);
        qm_forge_free(forge);
    }
}

int
main(int argc, char **argv)
{
    struct harness h = {0};
    const struct harness_option options[] = {{"--full", .flag = &h.full},
                                             {"--part", .text = &h.part.text},
                                             {"--only", .text = &h.only},
                                             {.name = NULL}};

    harness_parse(options, argc, argv);
    harness_enter();
    try_creates(&h);
    try_repairs(&h);
    harness_recipes(try_recipe, &h);
    harness_leave();
    printf("%zu faults in %zu jobs: of %zu changes, %zu reads, %zu mapped reads, %zu writes; %zu "
           "failed\n",
           h.n_faults, h.n_jobs, h.n_of[CHANGE], h.n_of[READ], h.n_of[MAPPED], h.n_of[WRITE],
           h.n_failed);
    if (h.n_jobs == 0) {
        puts("FAIL: no job is meant");
        return 1;
    }
    if (!h.only && (!h.n_of[CHANGE] || !h.n_of[READ] || !h.n_of[MAPPED] || !h.n_of[WRITE])) {
        puts("FAIL: a kind of fault was never met");
        return 1;
    }
    return h.n_failed ? 1 : 0;
}
