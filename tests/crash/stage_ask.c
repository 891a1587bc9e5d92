/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage_ask.c - questions to a chain during a merge, and after it.
 */
#include "stage_int.h"

#include "torn.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define BEHIND_END (4 << 20)
#define SECTOR     512

/* ---- questions --------------------------------------------------------------------------------
 */

static void
remember_aside(struct stage *s)
{
    if (s->opts.overlays != QMELD_OVERLAYS_QUARANTINE)
        return;
    s->aside = calloc(s->base - s->top, sizeof *s->aside);
    if (!s->aside)
        abort();
    for (size_t i = s->top; i < s->base; i++)
        s->aside[i - s->top].at = qm_torn_load(s->files[i], &s->aside[i - s->top].len);
}

bool
stage_before(struct stage *s)
{
    struct qmeld_error err;

    remember_aside(s);
    s->active_view = stage_expected(s, 0);
    s->top_view = stage_expected(s, s->top);
    if (s->beside)
        s->sibling_view = stage_expected(s, s->sibling);
    if (stage_read_snapshots(s, &s->snapshots, &err) < 0 ||
        stage_read_guarded(s, &s->guarded, &err) < 0)
        return stage_no_because(s, "snapshots", &err);
    if (stage_read_view(s, s->base, &s->base_view, &err) < 0)
        return stage_no_because(s, "the base before the merge", &err);
    s->base_file.at = qm_torn_load(s->files[s->base], &s->base_file.len);
    return stage_bitmaps_before(s) &&
           stage_view_is(s, 0, &s->active_view, "the active layer before the merge");
}

static bool
is_there(const struct stage *s, size_t layer)
{
    return access(s->files[layer], F_OK) == 0;
}

/* The merged layers lose their names. */
static bool
names_go(const struct stage *s)
{
    return s->opts.overlays == QMELD_OVERLAYS_DELETE ||
           s->opts.overlays == QMELD_OVERLAYS_QUARANTINE;
}

static bool
guarded_read(struct stage *s)
{
    struct stage_bytes now;
    struct qmeld_error err;
    bool ok;

    if (!s->opts.protect)
        return true;
    if (stage_read_guarded(s, &now, &err) < 0)
        ok = stage_no_because(s, "protected snapshots", &err);
    else
        ok = stage_same(s, "protected snapshots", &now, &s->guarded);
    free(now.at);
    return ok;
}

bool
stage_reads(struct stage *s)
{
    if (!guarded_read(s))
        return false;
    if (s->beside && !stage_view_is(s, s->sibling, &s->sibling_view, "the image beside the chain"))
        return false;
    if (!is_there(s, 0)) {
        if (!names_go(s) || s->top != 0)
            return stage_no(s, "the active layer is gone");
        return stage_view_is(s, s->base, &s->done_view,
                             "the base that the active layer was merged into");
    }
    return stage_view_is(s, 0, &s->active_view, "the active layer") &&
           (!s->qemu || stage_qemu_reads(s));
}

static void
note_finding(const char *sentence, void *opaque)
{
    char *first = opaque;

    if (!*first)
        snprintf(first, 512, "%s", sentence);
}

static void
copy_text(char *to, size_t room, const char *from)
{
    snprintf(to, room, "%s", from ? from : "");
}

/* *out_end is what the layer has now. */
static bool
check(struct stage *s, size_t layer, bool *out_dirty, struct stage_end *out_end)
{
    struct qmeld_open_options how = {.format = "qcow2", .single = true, .secrets = &stage_secrets};
    struct qmeld_check_result r;
    struct qmeld_layer_info info = {0};
    struct qmeld_chain *chain;
    struct qmeld_error err;
    char first[512] = "";
    int rc;

    *out_dirty = false;
    *out_end = (struct stage_end){0};
    if (!stage_is_qcow2(s, layer) || !is_there(s, layer))
        return true;
    if (qmeld_chain_open(s->files[layer], &how, &chain, &err) < 0)
        return stage_no_because(s, "open", &err);
    rc = qmeld_chain_layer(chain, 0, &info, &err);
    *out_dirty = info.dirty;
    copy_text(out_end->backing_name, sizeof out_end->backing_name, info.backing_name);
    copy_text(out_end->backing_format, sizeof out_end->backing_format, info.backing_format);
    qmeld_chain_close(chain);
    if (rc < 0 ||
        qmeld_check(s->files[layer], "qcow2", QMELD_REPAIR_NONE, note_finding, first, &r, &err) < 0)
        return stage_no_because(s, "check", &err);
    out_end->leaks = r.leaks;
    if (*out_dirty || (r.corruptions == 0 && r.check_errors == 0))
        return *out_dirty || !s->qemu || stage_qemu_checks(s, layer);
    return stage_no(s, "%s: %" PRIu64 " corruptions, first finding: %s", s->files[layer],
                    r.corruptions, first);
}

/* A dirty image: refcounts are void, but mending them must give a sound image.  On a copy. */
static bool
can_be_mended(struct stage *s, size_t layer)
{
    struct qmeld_check_result r;
    struct qmeld_error err;
    unsigned char *at;
    size_t len;

    at = qm_torn_load(s->files[layer], &len);
    qm_torn_save("mended", at, len);
    free(at);
    if (qmeld_check("mended", "qcow2", QMELD_REPAIR_ALL, NULL, NULL, &r, &err) < 0 ||
        qmeld_check("mended", "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &r, &err) < 0)
        return stage_no_because(s, "check --repair of a dirty image", &err);
    unlink("mended");
    if (r.corruptions || r.leaks || r.check_errors)
        return stage_no(s, "%s: dirty, and not sound after check --repair=all", s->files[layer]);
    return true;
}

/* The base, its leaks counted with those behind its end, which a check leaves out: clusters whose
 * refcounts reached the disk, but not the length of the file that has them. */
static bool
check_base(struct stage *s, bool *out_dirty, struct stage_end *out_end)
{
    const char *path = s->files[s->base];
    struct timespec times[2];
    struct stat st;
    bool ok;

    if (!check(s, s->base, out_dirty, out_end) || !stage_is_qcow2(s, s->base))
        return stage_is_qcow2(s, s->base) == false;
    if (stat(path, &st) < 0 || truncate(path, 2 * st.st_size + BEHIND_END) < 0)
        return stage_no(s, "cannot make the base longer");
    ok = check(s, s->base, out_dirty, out_end);
    if (truncate(path, st.st_size) < 0)
        return stage_no(s, "cannot make the base shorter again");
    times[0] = st.st_atim;
    times[1] = st.st_mtim; /* a merge that is held would think that somebody wrote to it */
    return utimensat(AT_FDCWD, path, times, 0) == 0 && ok;
}

/* All layers that a merge may change, each into s->seen. */
static bool
look_at_layers(struct stage *s)
{
    const size_t first = s->top > 0 ? s->top - 1 : 0; /* the child */

    for (size_t i = first; i <= s->base; i++) {
        struct stage_seen *seen = &s->seen[i];

        if (!(i == s->base ? check_base(s, &seen->dirty, &seen->end)
                           : check(s, i, &seen->dirty, &seen->end)))
            return false;
    }
    return true;
}

static bool
is_sound(struct stage *s)
{
    const size_t first = s->top > 0 ? s->top - 1 : 0;
    struct stage_bytes snaps;
    struct qmeld_error err;
    bool ok = true;

    if (!look_at_layers(s))
        return false;
    for (size_t i = first; i <= s->base; i++) {
        if (!s->seen[i].dirty)
            continue;
        if (i == s->base && !s->dirty_base)
            return stage_no(s, "the base has become dirty");
        if (!can_be_mended(s, i))
            return false;
    }
    if (stage_read_snapshots(s, &snaps, &err) < 0)
        ok = stage_no_because(s, "snapshots of the base", &err);
    else
        ok = stage_same(s, "snapshots of the base", &snaps, &s->snapshots);
    free(snaps.at);
    return ok && stage_bitmaps_tell(s);
}

/* A staged base is bit for bit the old one until its first sector switches. */
static bool
is_untouched(struct stage *s)
{
    struct stage_bytes now;
    bool ok = true;

    if (!stage_has_way_back(s) || !stage_is_qcow2(s, s->base))
        return true;
    now.at = qm_torn_load(s->files[s->base], &now.len);
    if (now.len < s->base_file.len)
        ok = stage_no(s, "the staged base has become shorter");
    else if (memcmp(now.at, s->base_file.at, SECTOR) == 0 &&
             memcmp(now.at, s->base_file.at, s->base_file.len) != 0)
        ok = stage_no(s, "the base has its old header, and other bytes");
    free(now.at);
    return ok;
}

bool
stage_sound(struct stage *s)
{
    return is_sound(s) && is_untouched(s);
}

/* ---- the end ----------------------------------------------------------------------------------
 */

bool
stage_after(struct stage *s)
{
    struct stage_bytes covered;
    struct qmeld_error err;

    if (stage_read_view(s, s->base, &s->done_view, &err) < 0)
        return stage_no_because(s, "the base after the merge", &err);
    covered = s->done_view;
    if (covered.len > s->top_view.len)
        covered.len = s->top_view.len;
    if (!stage_same(s, "the base after the merge", &covered, &s->top_view) || !look_at_layers(s))
        return false;
    for (size_t i = 0; i < s->n; i++)
        s->ends[i] = s->seen[i].end;
    return stage_bitmaps_after(s) && stage_bitmaps_tell(s);
}

static bool
ends_well(struct stage *s, size_t layer)
{
    const struct stage_end *got = &s->seen[layer].end, *want = &s->ends[layer];

    if (got->leaks > want->leaks)
        return stage_no(s, "%s has %" PRIu64 " leaks instead of %" PRIu64, s->files[layer],
                        got->leaks, want->leaks);
    if (strcmp(got->backing_name, want->backing_name) != 0 ||
        strcmp(got->backing_format, want->backing_format) != 0)
        return stage_no(s, "%s stands on \"%s\" (%s), wanted \"%s\" (%s)", s->files[layer],
                        got->backing_name, got->backing_format, want->backing_name,
                        want->backing_format);
    return true;
}

static int
is_absent(const struct qmeld_extent *extent, void *opaque)
{
    (void)opaque;
    return extent->present;
}

static bool
is_empty(struct stage *s, size_t layer)
{
    struct qmeld_open_options how = {.format = "qcow2", .single = true, .secrets = &stage_secrets};
    struct qmeld_chain *chain;
    struct qmeld_error err;
    int rc;

    if (qmeld_chain_open(s->files[layer], &how, &chain, &err) < 0)
        return stage_no_because(s, "open", &err);
    rc = qmeld_map(chain, 0, UINT64_MAX, is_absent, NULL, &err);
    qmeld_chain_close(chain);
    return rc == 0 || stage_no(s, "%s is not empty", s->files[layer]);
}

/* Put aside means: the same bytes under another name. */
static bool
is_aside(struct stage *s, size_t layer)
{
    const char *name = stage_aside(s, layer);
    struct stage_bytes got;
    bool ok;

    if (access(name, F_OK) != 0)
        return stage_no(s, "%s is not there", name);
    got.at = qm_torn_load(name, &got.len);
    ok = stage_same(s, name, &got, &s->aside[layer - s->top]);
    free(got.at);
    return ok;
}

static bool
has_no_leaks(struct stage *s, size_t layer)
{
    const struct stage_seen *seen = &s->seen[layer];

    return (seen->end.leaks == 0 && !seen->dirty) ||
           stage_no(s, "%s has %" PRIu64 " leaks", s->files[layer], seen->end.leaks);
}

/* After is_sound. */
static bool
is_settled(struct stage *s)
{
    for (size_t i = s->top; names_go(s) && i < s->base; i++) {
        if (is_there(s, i))
            return stage_no(s, "%s is still there", s->files[i]);
        if (s->opts.overlays == QMELD_OVERLAYS_QUARANTINE && !is_aside(s, i))
            return false;
    }
    if (access(s->journal, F_OK) == 0)
        return stage_no(s, "the journal is still there");
    if (*s->undo && access(s->undo, F_OK) == 0)
        return stage_no(s, "what was kept is still there");
    if (*s->moment && access(s->moment, F_OK) == 0)
        return stage_no(s, "the name for a moment is still there");
    if (s->opts.overlays == QMELD_OVERLAYS_DELETE)
        return true;
    for (size_t i = s->top; s->opts.reclaim && i < s->base; i++)
        if (!is_empty(s, i) || !has_no_leaks(s, i))
            return false;
    return s->opts.overlays != QMELD_OVERLAYS_EMPTY || is_empty(s, s->top);
}

static bool
is_finished(struct stage *s)
{
    if (!stage_view_is(s, s->base, &s->done_view, "the base, merged again") || !stage_reads(s) ||
        !is_sound(s) || !is_settled(s))
        return false;
    return stage_bitmaps_ended(s) && ends_well(s, s->base) && ends_well(s, s->top) &&
           (s->top == 0 || ends_well(s, s->top - 1));
}

bool
stage_done(struct stage *s)
{
    return stage_view_is(s, s->base, &s->done_view, "the base of a merge that is said to be done");
}

/* ---- the merge again -------------------------------------------------------------------------- */

/* Its head is one sector, so the first bytes tell. */
bool
stage_has_journal(const struct stage *s)
{
    static const char head[] = "qmeld journal\n";
    unsigned char *at;
    size_t len;
    bool yes;

    if (access(s->journal, F_OK) != 0)
        return false;
    at = qm_torn_load(s->journal, &len);
    yes = len >= sizeof head && memcmp(at, head, sizeof head) == 0;
    free(at);
    return yes;
}

/* The range is no part of the chain any more: then, without a journal, all must be over. */
static bool
is_over(const struct stage *s)
{
    struct qmeld_chain *chain;
    struct qmeld_error err;
    size_t depth;

    if (s->rebase) /* done once more, it changes nothing */
        return false;
    if (!is_there(s, 0))
        return true;
    if (qmeld_chain_open(s->files[0], NULL, &chain, &err) < 0)
        return false;
    depth = qmeld_chain_depth(chain);
    qmeld_chain_close(chain);
    return depth < s->n - s->beside;
}

static int
go_on(const struct stage *s, bool *out_resumed, struct qmeld_error *err)
{
    return s->by_journal ? stage_resume(s, out_resumed, err) : stage_commit(s, out_resumed, err);
}

/* ---- the way back ---- */

struct way {
    bool revertible;
    bool reverting;
};

static int
note_way(const struct qmeld_unfinished *merge, void *opaque)
{
    *(struct way *)opaque = (struct way){merge->revertible, merge->reverting};
    return 0;
}

static bool
is_old_again(struct stage *s)
{
    struct stage_bytes now;
    bool ok;

    now.at = qm_torn_load(s->files[s->base], &now.len);
    ok = stage_same(s, "the base after revert", &now, &s->base_file);
    free(now.at);
    if (ok && (access(s->journal, F_OK) == 0 || access(s->undo, F_OK) == 0))
        ok = stage_no(s, "revert left files behind");
    return ok && !is_over(s) && stage_reads(s) && stage_sound(s);
}

/* Was on its way back: resume goes on with that, and then it may begin anew. */
static bool
back_and_again(struct stage *s)
{
    struct qmeld_commit_report report;
    struct qmeld_error err;
    const int rc = qmeld_resume(s->journal, &stage_resuming, &report, &err);
    const bool reverted = report.reverted;

    qmeld_commit_report_free(&report);
    if (rc < 0)
        return stage_no_because(s, "going on with the way back", &err);
    if (!reverted)
        return stage_no(s, "it was on its way back, and went on");
    return is_old_again(s) && stage_again(s);
}

bool
stage_back(struct stage *s)
{
    struct qmeld_error err;
    struct way way = {0};

    if (!stage_has_journal(s))
        return stage_again(s);
    if (qmeld_status(s->journal, NULL, note_way, &way, &err) < 0)
        return stage_no_because(s, "status", &err);
    if (qmeld_revert(s->journal, &stage_resuming, NULL, &err) < 0) {
        if (way.revertible || err.code != QMELD_USAGE || err.disk != QMELD_DISK_OLD)
            return stage_no_because(s, "revert", &err);
        return stage_again(s);
    }
    if (!way.revertible)
        return stage_no(s, "revert did what status says it cannot");
    return is_old_again(s) && stage_again(s);
}

bool
stage_again(struct stage *s)
{
    const bool journal = stage_has_journal(s);
    struct qmeld_error err;
    struct way way = {0};
    bool resumed;

    if (journal && qmeld_status(s->journal, NULL, note_way, &way, &err) < 0)
        return stage_no_because(s, "status", &err);
    if (way.reverting)
        return back_and_again(s);

    if (!journal && is_over(s)) {
        (void)unlink(s->journal); /* one that never became valid means nothing */
        return is_finished(s);
    }
    if ((journal ? go_on(s, &resumed, &err) : stage_commit(s, &resumed, &err)) < 0)
        return stage_no_because(s, journal ? "going on" : "the same commit again", &err);
    if (resumed != journal)
        return stage_no(s, journal ? "the journal was not used" : "resumed, but by what?");
    return is_finished(s);
}
