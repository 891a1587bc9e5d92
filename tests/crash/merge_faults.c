/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merge_faults.c - the nth change of a disk fails, for n = 0, 1, ... until none is left to fail.
 *
 * A merge, a repair or a new image that meets EIO or ENOSPC must end with the truth: the code of
 * what went wrong, and in err->disk what the files are worth.  OLD: they are byte for byte as
 * before.  OPEN or NEW: the active layer reads as before, and the same call again finishes.  No
 * descriptor is left open (and, under ASan, no memory).  A fault hits one change, or, as a disk
 * that is gone, all that follow, too.
 *
 *     merge_faults [--full] [--only TEXT]
 */
#include "scratch.h"
#include "stage.h"
#include "torn.h"

#include <dirent.h>
#include <errno.h>
#include <glob.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define CLOSE_LOOK 40 /* so many first faults are all tried, then fewer and fewer */

struct fault {
    int error;
    bool stays; /* all later changes fail, too */
    size_t after;
    size_t seen;
    bool hit;
    enum qm_io_op op;
};

static const struct fault kinds[] = {
    {.error = EIO}, {.error = ENOSPC}, {.error = EIO, .stays = true}};

struct harness {
    bool full;
    const char *only;
    size_t n_faults, n_jobs, n_failed;
    char why[1024];
};

static int
inject(const struct qm_io_event *ev, void *opaque)
{
    struct fault *f = opaque;
    const size_t n = f->seen++;

    if (n < f->after || (n > f->after && !f->stays))
        return 0;
    if (!f->hit)
        f->op = ev->op;
    f->hit = true;
    return f->error;
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
    struct stage_bytes *before; /* of each file; at NULL: it was not there */
};

static void
remember_files(struct job *j)
{
    j->before = calloc(j->n_files, sizeof *j->before);
    if (!j->before)
        abort();
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
    remove_journals(); /* of a run that was meant to go on with the files of before */
    for (size_t i = 0; i < j->n_files; i++) {
        unlink(j->files[i]);
        if (j->before[i].at)
            qm_torn_save(j->files[i], j->before[i].at, j->before[i].len);
    }
}

static bool
files_are_old(const struct job *j, const struct fault *f, const char **why)
{
    for (size_t i = 0; i < j->n_files; i++) {
        unsigned char *now = NULL;
        bool same;
        size_t len = 0;

        if (f->stays && j->journal && !strcmp(j->files[i], j->journal))
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

static bool
judge(struct harness *h, const struct job *j, const struct fault *f, int rc,
      const struct qmeld_error *err)
{
    const enum qmeld_code code = f->error == ENOSPC ? QMELD_NOSPACE : QMELD_IO;
    const char *why = "";

    if (rc == 0)
        snprintf(h->why, sizeof h->why, "the fault was not noticed");
    else if (err->code != code || err->sys_errno != f->error)
        snprintf(h->why, sizeof h->why, "code %s, errno %d", qmeld_code_name(err->code),
                 err->sys_errno);
    else if (err->disk == QMELD_DISK_OLD && !files_are_old(j, f, &why))
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
    static const char *const ops[] = {"write", "zero",   "discard", "truncate",
                                      "sync",  "unlink", "rename"};
    const size_t fds = open_files();
    struct qmeld_error err;
    size_t left;
    int rc;

    restore_files(j);
    qm_io_set_hook(inject, f);
    rc = j->run(j->subject, &err);
    qm_io_set_hook(NULL, NULL);
    if (!f->hit)
        return false;
    h->n_faults++;
    left = open_files() - fds;
    if (left != 0)
        snprintf(h->why, sizeof h->why, "%zu descriptors are left open", left);
    else if (judge(h, j, f, rc, &err))
        return true;
    printf("FAIL %s: %s %zu, %s%s: %s (error: %s)\n", j->name, ops[f->op], f->after,
           strerror(f->error), f->stays ? " for good" : "", h->why, rc < 0 ? err.what : "none");
    h->n_failed++;
    return true;
}

static void
run_job(struct harness *h, struct job *j)
{
    const size_t n_kinds = sizeof kinds / sizeof *kinds, failed = h->n_failed;
    const size_t before = h->n_faults;

    remember_files(j);
    for (size_t k = 0; k < (h->full ? n_kinds : 1); k++) {
        for (size_t n = 0;; n += h->full || n < CLOSE_LOOK ? 1 : n / 8) {
            struct fault f = kinds[(k + n + h->n_jobs) % n_kinds];

            f.after = n;
            if (!run_once(h, j, &f))
                break;
        }
    }
    h->n_jobs++;
    for (size_t i = 0; i < j->n_files; i++) {
        unlink(j->files[i]);
        free(j->before[i].at);
    }
    free(j->before);
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

    (void)err;
    *why = s->why;
    return stage_reads(s) && stage_sound(s) && stage_again(s);
}

static void
try_recipe(struct harness *h, const char *name, const char *text)
{
    struct stage s;

    for (size_t i = 0; stage_open(&s, name, text, i); i++) {
        struct job j = {.name = s.name,
                        .files = s.files,
                        .n_files = s.n_files,
                        .run = run_merge,
                        .holds = merge_holds,
                        .subject = &s,
                        .journal = s.journal};
        struct qmeld_error err;

        if (!h->only || strstr(s.name, h->only)) {
            remove_journals();
            stage_write(&s);
            if (!stage_before(&s) || stage_commit(&s, NULL, &err) < 0 || !stage_after(&s)) {
                printf("FAIL %s: does not even merge undisturbed\n", s.name);
                h->n_failed++;
            } else {
                for (size_t k = 0; k < s.n_files; k++)
                    unlink(s.files[k]);
                stage_write(&s);
                run_job(h, &j);
            }
        }
        for (size_t k = 0; k < s.n_files; k++)
            unlink(s.files[k]);
        stage_close(&s);
    }
}

static void
try_merges(struct harness *h)
{
    struct dirent **names;
    const int n = scandir(CRASH_RECIPES, &names, NULL, alphasort);

    if (n < 0) {
        perror(CRASH_RECIPES);
        exit(2);
    }
    for (int i = 0; i < n; i++) {
        char path[4096];
        size_t len;
        char *text;

        if (strstr(names[i]->d_name, ".recipe")) {
            snprintf(path, sizeof path, "%s/%s", CRASH_RECIPES, names[i]->d_name);
            text = (char *)qm_torn_load(path, &len);
            text[len] = '\0';
            try_recipe(h, names[i]->d_name, text);
            free(text);
        }
        free(names[i]);
    }
    free(names);
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
        if (!h->only || strstr(j.name, h->only))
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

        if (h->only && !strstr(j.name, h->only))
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

    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--full")) {
            h.full = true;
        } else if (!strcmp(argv[i], "--only") && argv[i + 1]) {
            h.only = argv[++i];
        } else {
            fprintf(stderr, "usage: merge_faults [--full] [--only TEXT]\n");
            return 2;
        }
    }
    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    if (qm_scratch_enter(NULL) < 0) {
        perror("scratch directory");
        return 2;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    try_creates(&h);
    try_repairs(&h);
    try_merges(&h);
    qm_scratch_leave(NULL);
    printf("%zu faults in %zu jobs, %zu failed\n", h.n_faults, h.n_jobs, h.n_failed);
    return h.n_failed ? 1 : 0;
}
