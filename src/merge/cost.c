/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cost.c - qmeld_plan: a commit is done dry, and what it came to is told.
 *
 * Nothing here knows what a merge does; the same code that will do it has done it on shadows.
 */
#include "request.h"

#include "dependants.h"
#include "qcow2_fill.h"
#include "space.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Which file a layer was, to be found among the shadows when all files are closed. */
struct which {
    bool known;
    dev_t dev;
    ino_t ino;
    bool blockdev;
};

struct dry {
    bool frugal; /* in batches as small as can be */
    struct qm_shadow *shadow;
    struct qm_merge m;
    struct qmeld_commit_options opts;
    struct qmeld_commit_report commit;
    struct which *which; /* commit.n_layers of them */
    char *base;          /* its path */
    const char *format;
};

/* ---- a dry commit ---- */

static int
note_layers(struct dry *d, struct qmeld_error *err)
{
    const struct qm_chain *chain = d->m.chain;

    d->which = calloc(d->commit.n_layers + 1, sizeof *d->which);
    if (!d->which)
        return qm_fail_nomem(err, "the plan");
    /* a merge that is held is told from its journal, and one that is made final opens its target alone */
    if (!chain || chain->n < d->commit.n_layers)
        return 0;
    d->format = chain->layers[d->m.transfer.target].img->ops->format;
    d->base = strdup(chain->layers[d->m.transfer.base].path);
    if (!d->base)
        return qm_fail_nomem(err, "the plan");
    for (size_t i = 0; i < d->commit.n_layers; i++) {
        const struct qm_image *img = chain->layers[i].img;

        if (img)
            d->which[i] = (struct which){true, img->file->dev, img->file->ino, img->file->blockdev};
    }
    return 0;
}

/* looked: the dry run before told whether all is merged already. */
static int
run_dry(struct dry *d, const char *path, const struct qmeld_commit_options *opts, bool notes,
        bool looked, struct qmeld_error *err)
{
    int rc;

    d->opts = *opts;
    d->opts.guard = NULL; /* a guard changes things */
    d->m = (struct qm_merge){.opts = &d->opts, .report = &d->commit, .looked = looked};
    if (qm_shadow_begin(notes, &d->shadow, err) < 0)
        return -1;
    if (d->frugal)
        qm_shadow_be_frugal(d->shadow);
    rc = qm_request_commit(path, &d->m, err);
    err->disk = QMELD_DISK_OLD;
    if (rc == 0)
        rc = note_layers(d, err);
    qm_merge_release(&d->m);
    return rc == 0 ? qm_shadow_finish(d->shadow, err) : -1;
}

static void
end_dry(struct dry *d)
{
    qm_shadow_end(d->shadow);
    qmeld_commit_report_free(&d->commit);
    free(d->which);
    free(d->base);
    *d = (struct dry){.shadow = NULL};
}

static const struct qm_shadow_sum *
sum_of(const struct dry *d, size_t layer)
{
    const struct which *w = &d->which[layer];

    for (size_t i = 0; w->known && i < qm_shadow_n_files(d->shadow); i++) {
        const struct qm_shadow_sum *s = qm_shadow_sum(d->shadow, i);

        if (s->dev == w->dev && s->ino == w->ino && s->blockdev == w->blockdev)
            return s;
    }
    return NULL;
}

/* ---- the report ---- */

/* A file that was not even opened stays what it is. */
static void
look_at(struct qmeld_plan_layer *l)
{
    struct stat st;

    if (stat(l->path, &st) < 0 || !S_ISREG(st.st_mode))
        return;
    l->old_length = l->new_length = (uint64_t)st.st_size;
    l->old_allocated = l->new_allocated = (uint64_t)st.st_blocks * 512;
}

static int
tell_layers(const struct dry *d, struct qmeld_plan_report *r, struct qmeld_error *err)
{
    r->base_layer = d->m.transfer.base;
    r->top_layer = d->m.transfer.top;
    r->target_layer = d->m.transfer.target;
    r->layers = calloc(d->commit.n_layers + 1, sizeof *r->layers);
    if (!r->layers)
        return qm_fail_nomem(err, "the plan");
    for (size_t i = 0; i < d->commit.n_layers; i++) {
        struct qmeld_plan_layer *l = &r->layers[r->n_layers++];
        const struct qm_shadow_sum *s = sum_of(d, i);

        l->path = strdup(d->commit.layers[i].path);
        if (d->commit.layers[i].moved_to)
            l->moved_to = strdup(d->commit.layers[i].moved_to);
        if (!l->path || (d->commit.layers[i].moved_to && !l->moved_to))
            return qm_fail_nomem(err, "the plan");
        l->fate = d->commit.layers[i].fate;
        l->bytes_shared = d->commit.layers[i].bytes_shared;
        l->bytes_copied = d->commit.layers[i].bytes_copied;
        if (!s) {
            look_at(l);
            continue;
        }
        l->block_device = s->blockdev;
        l->nbd = s->remote;
        l->old_length = s->old_size;
        l->old_allocated = s->old_bytes;
        l->new_length = s->gone ? 0 : s->new_size;
        l->new_allocated = s->gone ? 0 : s->new_bytes;
    }
    return 0;
}

static int
tell_rooms(const struct dry *d, struct qmeld_plan_report *r, struct qmeld_error *err)
{
    const size_t n = qm_shadow_n_purses(d->shadow);

    r->peak = qm_shadow_peak(d->shadow);
    r->rooms = calloc(n + 1, sizeof *r->rooms);
    if (!r->rooms)
        return qm_fail_nomem(err, "the plan");
    for (size_t i = 0; i < n; i++) {
        const struct qm_shadow_purse *p = qm_shadow_purse(d->shadow, i);
        struct qmeld_plan_room *room = &r->rooms[r->n_rooms++];

        *room = (struct qmeld_plan_room){.path = strdup(p->path),
                                         .what = qm_room_name(p->room.kind),
                                         .room = p->room.bytes,
                                         .peak = p->peak,
                                         .need = p->sure,
                                         .change = p->change - (int64_t)p->replaced};
        if (!room->path)
            return qm_fail_nomem(err, "the plan");
    }
    return 0;
}

static int
tell_obstacles(const struct dry *d, struct qmeld_plan_report *r, struct qmeld_error *err)
{
    const size_t n = qm_shadow_n_notes(d->shadow);

    r->obstacles = calloc(n + 1, sizeof *r->obstacles);
    if (!r->obstacles)
        return qm_fail_nomem(err, "the plan");
    for (size_t i = 0; i < n; i++)
        r->obstacles[r->n_obstacles++] = *qm_shadow_notes(d->shadow, i);
    return 0;
}

static void
tell_work(const struct dry *d, struct qmeld_plan_report *r)
{
    const struct qm_copy_costs *c = &d->m.transfer.costs;

    r->nothing_to_do = d->commit.nothing_to_do;
    r->already_merged = d->commit.already_merged;
    r->resumed = d->commit.resumed;
    r->direction = d->commit.direction;
    r->bytes_down = d->commit.bytes_down;
    r->bytes_up = d->commit.bytes_up;
    r->base_old_size = d->commit.base_old_size;
    r->base_new_size = d->commit.base_new_size;
    r->bytes_copied = d->commit.bytes_copied;
    r->bytes_filled = d->commit.bytes_filled;
    r->bytes_protected = d->commit.bytes_protected;
    r->bytes_zeroed = d->commit.bytes_zeroed;
    r->bytes_shared = d->commit.bytes_shared;
    r->bytes_zero_found = d->commit.bytes_zero_found;
    r->bytes_skipped = d->commit.bytes_skipped;
    r->bytes_read = c->bytes_read;
    r->bytes_written = c->bytes_written;
    r->clusters_inflated = c->inflated;
    for (size_t i = 0; i < qm_shadow_n_files(d->shadow); i++)
        r->metadata_written += qm_shadow_sum(d->shadow, i)->metadata;
}

static int
tell_others(const struct dry *d, struct qmeld_plan_report *r, struct qmeld_error *err)
{
    r->files_scanned = d->commit.files_scanned;
    r->files_unread = d->commit.files_unread;
    r->dependants = calloc(d->commit.n_dependants + 1, sizeof *r->dependants);
    if (!r->dependants)
        return qm_fail_nomem(err, "the plan");
    for (; r->n_dependants < d->commit.n_dependants; r->n_dependants++)
        if (!qm_dependant_copy(&d->commit.dependants[r->n_dependants],
                               &r->dependants[r->n_dependants]))
            return qm_fail_nomem(err, "the plan");
    return 0;
}

static int
tell(struct dry *d, struct qmeld_plan_report *r, struct qmeld_error *err)
{
    tell_work(d, r);
    r->bitmaps = QM_TAKE(d->commit.bitmaps);
    r->n_bitmaps = d->commit.n_bitmaps;
    d->commit.n_bitmaps = 0;
    if (tell_layers(d, r, err) < 0 || tell_rooms(d, r, err) < 0 || tell_obstacles(d, r, err) < 0 ||
        tell_others(d, r, err) < 0)
        return -1;
    r->complete = true;
    return 0;
}

/* ---- measuring ---- */

/* The base as the dry merge has left it. */
static int
measure_base(const struct dry *d, struct qmeld_measure *out, struct qmeld_error *err)
{
    struct qm_file *file;
    struct qm_image *img;
    struct qm_qcow2 *q;
    int rc = 0;

    if (qm_file_open(d->base, &file, err) < 0)
        return -1;
    if (qm_image_open(file, d->format, &img, err) < 0) {
        qm_file_close(file);
        return -1;
    }
    out->required = out->fully_allocated = file->size;
    q = qm_qcow2_of(img);
    if (q)
        rc = qm_qcow2_full_length(q, &out->fully_allocated, err);
    qm_image_close(img);
    return rc;
}

int
qmeld_measure_onto(const char *path, const struct qmeld_commit_options *opts,
                   struct qmeld_measure *out, struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct qmeld_commit_options alone = opts ? *opts : defaults;
    struct dry d = {.shadow = NULL};
    int rc;

    memset(out, 0, sizeof *out);
    memset(err, 0, sizeof *err);
    if (alone.direction != QMELD_DIRECTION_DOWN)
        return qm_fail(err, QMELD_USAGE, qm_in(path),
                       "only merges down into the base are measured: leave the direction out");
    alone.no_scan = true; /* how long a file will be depends on nobody else */
    alone.force = true;
    alone.protect = false;
    rc = run_dry(&d, path, &alone, false, false, err);
    if (rc == 0)
        rc = measure_base(&d, out, err);
    end_dry(&d);
    return rc;
}

/* ---- other ways ---- */

/* Ways to merge that have another price. */
static const struct way {
    const char *name;
    bool reclaim, atomic, undo, up;
} ways[] = {
    {"in place", false, false, false, false},
    {"--reclaim", true, false, false, false},
    {"--atomic", false, true, false, false},
    {"--undo", false, false, true, false},
    {"--direction=up --overlays=delete", false, false, false, true},
};

static void
price(const struct dry *d, struct qmeld_plan_mode *mode)
{
    const struct qm_shadow_sum *target = sum_of(d, d->m.transfer.target);
    struct qmeld_error why = {0};

    mode->possible = true;
    mode->fits = qm_space_judge(d->shadow, &why) == 0;
    mode->peak = qm_shadow_peak(d->shadow);
    mode->new_length = target ? target->new_size : 0;
    mode->bytes_read = d->m.transfer.costs.bytes_read;
    mode->bytes_written = d->m.transfer.costs.bytes_written;
}

/* The options of that way; false: it is the one that was asked for. */
static bool
take_way(const struct way *way, const struct qmeld_plan_report *r,
         const struct qmeld_commit_options *opts, struct qmeld_commit_options *out)
{
    const bool up = r->direction == QMELD_DIRECTION_UP;

    if (way->reclaim == opts->reclaim && way->atomic == opts->atomic && way->undo == opts->undo &&
        way->up == up)
        return false;
    *out = *opts;
    if (!opts->protect)
        out->no_scan = out->force = true; /* who else is concerned was told by the first */
    out->reclaim = way->reclaim;
    out->atomic = way->atomic;
    out->undo = way->undo;
    out->direction = way->up ? QMELD_DIRECTION_UP : QMELD_DIRECTION_DOWN;
    if (way->up)
        out->overlays = QMELD_OVERLAYS_DELETE;
    return true;
}

/* Bytes of data that the whole chain shows. */
static int
add_visible(const struct qm_chain *chain, uint64_t *out, struct qmeld_error *err)
{
    struct qm_map *map;
    bool done = false;
    int rc = qm_map_open(chain, 0, chain->n - 1, qm_guest(0), UINT64_MAX, &map, err);

    *out = 0;
    while (rc == 0) {
        struct qm_map_span s;

        rc = qm_map_next(map, &s, &done, err);
        if (rc < 0 || done)
            break;
        *out += s.ext.kind == QM_DATA || s.ext.kind == QM_COMPRESSED ? s.len : 0;
    }
    qm_map_close(map);
    return rc;
}

/* A new file with all that is visible has no more data than this, whatever its format. */
static int
bound_flatten(const char *path, const struct qmeld_commit_options *opts,
              struct qmeld_plan_report *r, struct qmeld_error *err)
{
    const struct qm_chain_options how = {.mode = QM_CHAIN_LOOK,
                                         .format = opts->format,
                                         .backing_format = opts->backing_format,
                                         .allow = opts->allow_paths,
                                         .named = opts->base,
                                         .keys = QM_KEYS_NONE};
    struct qm_chain *chain;
    uint64_t data;
    int rc;

    if (qm_chain_open(path, &how, &chain, err) < 0)
        return -1;
    rc = add_visible(chain, &data, err);
    qm_chain_close(chain);
    if (rc == 0)
        r->modes[r->n_modes++] =
            (struct qmeld_plan_mode){.name = "flatten",
                                     .possible = true,
                                     .bound = true,
                                     .fits = r->n_rooms == 0 || r->rooms[0].room >= data,
                                     .bytes_read = data,
                                     .bytes_written = data,
                                     .peak = data,
                                     .new_length = data};
    return rc;
}

/* Each is done dry as well; what the first found out is not looked for again. */
static int
tell_ways(const char *path, const struct qmeld_commit_options *opts, struct qmeld_plan_report *r,
          struct qmeld_error *err)
{
    r->modes = calloc(sizeof ways / sizeof *ways + 1, sizeof *r->modes);
    if (!r->modes)
        return qm_fail_nomem(err, "the plan");
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++) {
        struct qmeld_commit_options other;
        struct dry d = {.frugal = ways[i].reclaim};
        struct qmeld_error why = {0};
        struct qmeld_plan_mode *mode;

        if (!take_way(&ways[i], r, opts, &other))
            continue;
        mode = &r->modes[r->n_modes++];
        mode->name = ways[i].name;
        /* whether all is merged already is another question for another target */
        if (run_dry(&d, path, &other, false, !ways[i].up && r->direction == QMELD_DIRECTION_DOWN,
                    &why) == 0)
            price(&d, mode);
        else
            snprintf(mode->refused, sizeof mode->refused, "%.250s", why.what);
        end_dry(&d);
        if (why.code == QMELD_CANCELED) {
            *err = why;
            return -1;
        }
    }
    return bound_flatten(path, opts, r, err);
}

static bool
would_fit(const struct qmeld_plan_report *r, const char *name)
{
    for (size_t i = 0; i < r->n_modes; i++)
        if (strcmp(r->modes[i].name, name) == 0)
            return r->modes[i].fits;
    return false;
}

/* ---- planning ---- */

static int
plan(struct dry *d, const char *path, const struct qmeld_commit_options *opts,
     struct qmeld_plan_report *report, struct qmeld_error *err)
{
    int fits;

    if (run_dry(d, path, opts, true, false, err) < 0 || tell(d, report, err) < 0)
        return -1;
    if (d->m.refused.code != QMELD_OK) {
        *err = d->m.refused;
        return -1;
    }
    fits = qm_space_judge(d->shadow, err);
    end_dry(d);
    if (report->nothing_to_do || report->already_merged || report->resumed)
        return fits;
    /* where bytes are looked at, each way reads them all once more: for who needs one only */
    if (fits == 0 && (opts->skip_equal || opts->detect_zeroes))
        return 0;
    if (fits == 0)
        return tell_ways(path, opts, report, err);
    if (tell_ways(path, opts, report, &(struct qmeld_error){0}) == 0 &&
        would_fit(report, "--reclaim"))
        qm_space_recommend_reclaim(err);
    return -1;
}

int
qmeld_plan(const char *path, const struct qmeld_commit_options *opts,
           struct qmeld_plan_report *report, struct qmeld_error *err)
{
    static const struct qmeld_commit_options defaults;
    struct dry d = {.shadow = NULL};
    int rc;

    memset(report, 0, sizeof *report);
    memset(err, 0, sizeof *err);
    rc = plan(&d, path, opts ? opts : &defaults, report, err);
    end_dry(&d);
    return rc;
}

void
qmeld_plan_report_free(struct qmeld_plan_report *report)
{
    for (size_t i = 0; i < report->n_layers; i++) {
        free(report->layers[i].path);
        free(report->layers[i].moved_to);
    }
    for (size_t i = 0; i < report->n_rooms; i++)
        free(report->rooms[i].path);
    for (size_t i = 0; i < report->n_dependants; i++)
        qm_dependant_release(&report->dependants[i]);
    free(report->dependants);
    qm_carry_told_free(report->bitmaps, report->n_bitmaps);
    free(report->layers);
    free(report->rooms);
    free(report->modes);
    free(report->obstacles);
    memset(report, 0, sizeof *report);
}
