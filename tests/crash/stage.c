/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage.c - questions to a chain during and after a merge.
 */
#include "stage.h"

#include "forge_recipe.h"
#include "qcow2_bitmap_int.h"
#include "transfer.h"
#include "torn.h"

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define BEHIND_END  (4 << 20)
#define ABSENT_MARK 0xa5 /* what the base has not: distinct from zeros */

static bool __attribute__((format(printf, 2, 3))) no(struct stage *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(s->why, sizeof s->why, fmt, ap);
    va_end(ap);
    return false;
}

static bool
no_because(struct stage *s, const char *what, const struct qmeld_error *err)
{
    return no(s, "%s: %s: %s: %s", what, qmeld_code_name(err->code), err->file, err->what);
}

static void
die(const char *name, const struct qmeld_error *err)
{
    fprintf(stderr, "%s: %s: %s\n", name, err->file, err->what);
    exit(2);
}

/* ---- the recipe -------------------------------------------------------------------------------
 */

static size_t
layer_named(const struct stage *s, const char *file)
{
    for (size_t i = 0; i < s->n; i++)
        if (!strcmp(s->files[i], file))
            return i;
    fprintf(stderr, "%s: there is no layer %s\n", s->name, file);
    exit(2);
}

static void
set_option(struct stage *s, const char *key, const char *value, struct qm_transfer_limits *limits)
{
    uint64_t v = 0;

    if (!strcmp(key, "base")) {
        s->base = layer_named(s, value);
        s->opts.base = s->files[s->base];
    } else if (!strcmp(key, "top")) {
        s->top = layer_named(s, value);
        s->opts.top = s->files[s->top];
    } else if (!strcmp(key, "overlays")) {
        s->opts.overlays = !strcmp(value, "empty")        ? QMELD_OVERLAYS_EMPTY
                           : !strcmp(value, "delete")     ? QMELD_OVERLAYS_DELETE
                           : !strcmp(value, "quarantine") ? QMELD_OVERLAYS_QUARANTINE
                                                          : QMELD_OVERLAYS_KEEP;
    } else if (!strcmp(key, "backing_format")) {
        s->opts.backing_format = !strcmp(value, "raw") ? "raw" : "qcow2";
    } else if (!strcmp(key, "verify")) {
        s->opts.verify = true;
    } else if (!strcmp(key, "reclaim")) {
        s->opts.reclaim = true;
    } else if (!strcmp(key, "dirty")) {
        s->dirty_base = true;
    } else if (!strcmp(key, "batch") && qm_forge_number(value, 0, &v)) {
        limits->batch = v;
    } else if (!strcmp(key, "weight") && qm_forge_number(value, 0, &v)) {
        limits->batch_weight = v;
    } else if (!strcmp(key, "sec") && qm_forge_number(value, 0, &v)) {
        limits->batch_sec = (unsigned)v;
    } else {
        fprintf(stderr, "%s: commit line: %s=%s\n", s->name, key, value);
        exit(2);
    }
}

static void
set_options(struct stage *s, const char *line)
{
    struct qm_transfer_limits limits = {
        .batch = 8192, .batch_weight = 2048, .batch_sec = 1000, .step = 512};
    char words[1024], *save = NULL;

    snprintf(words, sizeof words, "%.*s", (int)strcspn(line, "\n"), line);
    for (char *w = strtok_r(words, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        char *equals = strchr(w, '=');

        if (!equals) {
            fprintf(stderr, "%s: commit line: %s\n", s->name, w);
            exit(2);
        }
        *equals = '\0';
        set_option(s, w, equals + 1, &limits);
    }
    while (limits.step < limits.batch)
        limits.step *= 2;
    qm_transfer_limits = limits;
}

const char *
stage_aside(const struct stage *s, size_t layer)
{
    return s->files[s->n + 1 + (layer - s->top)];
}

/* Their new names, as this directory has nothing that could be in the way. */
static void
name_aside(struct stage *s)
{
    if (s->opts.overlays != QMELD_OVERLAYS_QUARANTINE)
        return;
    for (size_t i = s->top; i < s->base; i++) {
        char *name;

        if (asprintf(&name, "%s.merged", s->files[i]) < 0)
            abort();
        s->files[s->n_files++] = name;
    }
}

bool
stage_open(struct stage *s, const char *name, const char *recipe, size_t nth)
{
    static const char mark[] = "# commit";
    const char *line = recipe;
    struct qmeld_error err = {0};

    for (;;) {
        line = strstr(line, mark);
        if (!line)
            return false;
        line += strlen(mark);
        if (nth-- == 0)
            break;
    }
    memset(s, 0, sizeof *s);
    snprintf(s->name, sizeof s->name, "%s:%.*s", name, (int)strcspn(line, "\n"), line);
    if (qm_forge_parse(recipe, name, &s->forge, &err) < 0)
        die(name, &err);
    s->n = qm_forge_n_layers(s->forge);
    s->base = s->n - 1;
    s->n_files = s->n + 1;
    s->files = calloc(2 * s->n + 1, sizeof *s->files);
    if (!s->files)
        abort();
    for (size_t i = 0; i < s->n; i++)
        s->files[i] = qm_forge_file(s->forge, i);
    s->opts.threads = 1;
    set_options(s, line);
    snprintf(s->journal, sizeof s->journal, ".%s.qmeld", s->files[s->base]);
    s->files[s->n] = s->journal;
    name_aside(s);
    return true;
}

void
stage_close(struct stage *s)
{
    qm_forge_free(s->forge);
    for (size_t i = s->n + 1; i < s->n_files; i++)
        free((void *)s->files[i]);
    for (size_t i = 0; s->aside && i < s->base - s->top; i++)
        free(s->aside[i].at);
    free(s->aside);
    free(s->files);
    free(s->active_view.at);
    free(s->top_view.at);
    free(s->done_view.at);
    free(s->snapshots.at);
    free(s->base_view.at);
}

void
stage_write(struct stage *s)
{
    struct qmeld_error err = {0};

    if (qm_forge_write(s->forge, ".", &err) < 0)
        die(s->name, &err);
}

static struct stage_bytes
expected(struct stage *s, size_t layer)
{
    struct qmeld_error err = {0};
    struct stage_bytes b;

    if (qm_forge_expect(s->forge, layer, "expected.view", &err) < 0)
        die(s->name, &err);
    b.at = qm_torn_load("expected.view", &b.len);
    unlink("expected.view");
    return b;
}

/* ---- reading ----------------------------------------------------------------------------------
 */

static bool
is_qcow2(const struct stage *s, size_t layer)
{
    return !strcmp(qm_forge_format(s->forge, layer), "qcow2");
}

/* The guest's view of a layer, through all below it. */
static int
read_view(const struct stage *s, size_t layer, struct stage_bytes *out, struct qmeld_error *err)
{
    const struct qmeld_open_options how = {.format = qm_forge_format(s->forge, layer)};
    struct qmeld_layer_info info;
    struct qmeld_chain *chain;
    int rc;

    *out = (struct stage_bytes){0};
    if (qmeld_chain_open(s->files[layer], &how, &chain, err) < 0)
        return -1;
    rc = qmeld_chain_layer(chain, qmeld_chain_depth(chain) - 1, &info, err);
    if (rc == 0) {
        out->len = (size_t)info.virtual_size;
        out->at = malloc(out->len + 1);
        if (!out->at)
            abort();
        rc = qmeld_read(chain, 0, out->at, out->len, err);
    }
    qmeld_chain_close(chain);
    return rc;
}

static bool
same(struct stage *s, const char *what, const struct stage_bytes *got,
     const struct stage_bytes *want)
{
    const size_t n = got->len < want->len ? got->len : want->len;
    size_t i = 0;

    if (got->len == want->len && (n == 0 || memcmp(got->at, want->at, n) == 0))
        return true;
    while (i < n && got->at[i] == want->at[i])
        i++;
    return no(s, "%s: %zu bytes, wanted %zu, first difference at %zu", what, got->len, want->len,
              i);
}

static bool
view_is(struct stage *s, size_t layer, const struct stage_bytes *want, const char *what)
{
    struct qmeld_error err;
    struct stage_bytes got;
    bool ok;

    if (read_view(s, layer, &got, &err) < 0)
        ok = no_because(s, what, &err);
    else
        ok = same(s, what, &got, want);
    free(got.at);
    return ok;
}

/* Appends what a snapshot of q has, byte for byte. */
static int
read_snapshot(struct qm_qcow2 *q, const struct qm_snapshot *snap, struct stage_bytes *out,
              struct qmeld_error *err)
{
    struct qm_codec *codec = qm_codec_new();
    const uint64_t reach = (uint64_t)snap->l1_entries << (q->geo.l2_bits + q->geo.cluster_bits);
    int rc = 0;

    q->hdr.l1_off = snap->l1_off;
    q->hdr.l1_entries = snap->l1_entries;
    q->img.size = qm_min(reach, snap->disk_size ? snap->disk_size : q->hdr.size);
    qm_image_forget(&q->img);
    out->at = realloc(out->at, out->len + q->img.size + 1);
    if (!out->at || !codec)
        abort();
    for (uint64_t at = 0; rc == 0 && at < q->img.size;) {
        struct qm_extent ext;

        rc = qm_image_next(&q->img, qm_guest(at), q->img.size - at, &ext, err);
        if (rc < 0)
            break;
        memset(out->at + out->len, ext.kind == QM_ABSENT ? ABSENT_MARK : 0, ext.len);
        if (ext.kind == QM_DATA || ext.kind == QM_COMPRESSED)
            rc = qm_extent_read(&q->img, &ext, codec, out->at + out->len, err);
        out->len += ext.len;
        at += ext.len;
    }
    qm_codec_free(codec);
    return rc;
}

static int
read_snapshots(const struct stage *s, struct stage_bytes *out, struct qmeld_error *err)
{
    struct qm_snapshots snaps = {0};
    struct qm_qcow2 *q;
    struct qm_file *file;
    int rc;

    *out = (struct stage_bytes){0};
    memset(err, 0, sizeof *err);
    if (!is_qcow2(s, s->base))
        return 0;
    if (qm_file_open(s->files[s->base], &file, err) < 0)
        return -1;
    if (qm_qcow2_open(file, 0, &q, err) < 0) {
        qm_file_close(file);
        return -1;
    }
    rc = qm_qcow2_read_snapshots(q, &snaps, err);
    QM_VEC_EACH (snap, &snaps.list) {
        if (rc == 0)
            rc = read_snapshot(q, snap, out, err);
    }
    qm_snapshots_release(&snaps);
    qm_image_close(&q->img);
    return rc;
}

/* ---- qemu-img, a reader that shares nothing with us --------------------------------------------
 */

static int
shell(const char *fmt, const char *a, const char *b)
{
    char line[1024];
    int rc;

    snprintf(line, sizeof line, fmt, a, b);
    rc = system(line);
    return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

static bool
qemu_reads(struct stage *s)
{
    struct stage_bytes got;
    bool ok;

    if (shell("qemu-img convert -f %s -O raw %s qemu.view >qemu.out 2>&1",
              qm_forge_format(s->forge, 0), s->files[0]) != 0)
        return no(s, "qemu-img cannot read the active layer: see qemu.out");
    got.at = qm_torn_load("qemu.view", &got.len);
    ok = same(s, "the active layer, read by qemu-img", &got, &s->active_view);
    free(got.at);
    unlink("qemu.view");
    return ok;
}

static bool
qemu_checks(struct stage *s, size_t layer)
{
    const int rc = shell("qemu-img check -f %s %s >qemu.out 2>&1", "qcow2", s->files[layer]);

    return rc == 0 || rc == 3 ||
           no(s, "qemu-img check %s: exit %d: see qemu.out", s->files[layer], rc);
}

/* ---- bitmaps --------------------------------------------------------------------------------- */

/* Do the guest bytes [from, from + len) read otherwise?  Behind a view's end: zeros. */
static bool
differs(const struct stage_bytes *a, const struct stage_bytes *b, size_t from, size_t len)
{
    const size_t common = a->len < b->len ? a->len : b->len;
    const size_t both = from < common ? (len < common - from ? len : common - from) : 0;
    const struct stage_bytes *longer = a->len > b->len ? a : b;

    if (both > 0 && memcmp(a->at + from, b->at + from, both) != 0)
        return true;
    for (size_t i = from + both; i < from + len && i < longer->len; i++)
        if (longer->at[i] != 0)
            return true;
    return false;
}

/* The stored bits of m, a byte each. */
static int
read_bits(struct qm_qcow2 *q, const struct qm_bitmap *m, struct stage_bytes *out,
          struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;
    QM_FREE unsigned char *bits = malloc(cs);
    QM_FREE uint64_t *table = calloc(m->table_entries, sizeof *table);

    out->len = (size_t)qm_bitmap_bits(m, q->hdr.size);
    out->at = calloc(out->len + 1, 1);
    if (!table || !bits || !out->at)
        abort();
    if (qm_bitmap_read_table(q, m, table, err) < 0)
        return -1;
    for (size_t i = 0; i < out->len; i++) {
        const uint64_t entry = table[i / (cs * 8)];

        if (i % (cs * 8) == 0 && entry > BITMAP_ALL_ONES &&
            qm_qcow2_read_cluster(q, qm_host(entry), bits, err) < 0)
            return -1;
        out->at[i] =
            entry <= BITMAP_ALL_ONES ? entry == BITMAP_ALL_ONES : bits[i / 8 % cs] >> i % 8 & 1;
    }
    return 0;
}

/* Who trusts this bitmap finds everything that changed. */
static bool
bitmap_tells(struct stage *s, struct qm_qcow2 *q, const struct qm_bitmap *m,
             const struct stage_bytes *now)
{
    struct stage_bytes bits = {0};
    struct qmeld_error err = {0};
    bool ok = true;

    if (m->flags & QCOW2_BITMAP_IN_USE)
        return true;
    if (read_bits(q, m, &bits, &err) < 0)
        ok = no_because(s, "bitmap", &err);
    for (size_t i = 0; ok && (m->flags & QCOW2_BITMAP_AUTO) && i < bits.len; i++)
        if (!bits.at[i] &&
            differs(now, &s->base_view, i << m->granularity_bits, (size_t)1 << m->granularity_bits))
            ok = no(s, "bitmap %s: bit %zu is 0, and guest bytes have changed", m->name, i);
    free(bits.at);
    return ok;
}

/* *out_valid: how many are not in_use. */
static bool
bitmaps_tell(struct stage *s, size_t *out_valid)
{
    struct qm_bitmap_list list = {0};
    struct qmeld_error err = {0};
    struct stage_bytes now = {0};
    struct qm_qcow2 *q;
    struct qm_file *file;
    bool ok;

    *out_valid = 0;
    if (!is_qcow2(s, s->base))
        return true;
    if (qm_file_open(s->files[s->base], &file, &err) < 0)
        return no_because(s, "bitmaps", &err);
    if (qm_qcow2_open(file, 0, &q, &err) < 0) {
        qm_file_close(file);
        return no_because(s, "bitmaps", &err);
    }
    ok = qm_bitmap_list_read(q, &list, &err) == 0 &&
         (list.list.n == 0 || read_view(s, s->base, &now, &err) == 0);
    if (!ok)
        no_because(s, "bitmaps", &err);
    QM_VEC_EACH (m, &list.list) {
        ok = ok && bitmap_tells(s, q, m, &now);
        *out_valid += !(m->flags & QCOW2_BITMAP_IN_USE);
    }
    free(now.at);
    qm_bitmap_list_release(&list);
    qm_image_close(&q->img);
    return ok;
}

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
    s->active_view = expected(s, 0);
    s->top_view = expected(s, s->top);
    if (read_snapshots(s, &s->snapshots, &err) < 0)
        return no_because(s, "snapshots", &err);
    if (read_view(s, s->base, &s->base_view, &err) < 0)
        return no_because(s, "the base before the merge", &err);
    return bitmaps_tell(s, &s->valid_bitmaps) &&
           view_is(s, 0, &s->active_view, "the active layer before the merge");
}

int
stage_commit(const struct stage *s, bool *out_resumed, struct qmeld_error *err)
{
    struct qmeld_commit_report report;
    const int rc = qmeld_commit(s->files[0], &s->opts, &report, err);

    if (out_resumed)
        *out_resumed = report.resumed;
    qmeld_commit_report_free(&report);
    return rc;
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

bool
stage_reads(struct stage *s)
{
    if (!is_there(s, 0)) {
        if (!names_go(s) || s->top != 0)
            return no(s, "the active layer is gone");
        return view_is(s, s->base, &s->done_view, "the base that the active layer was merged into");
    }
    return view_is(s, 0, &s->active_view, "the active layer") && (!s->qemu || qemu_reads(s));
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
    struct qmeld_open_options how = {.format = "qcow2", .single = true};
    struct qmeld_check_result r;
    struct qmeld_layer_info info = {0};
    struct qmeld_chain *chain;
    struct qmeld_error err;
    char first[512] = "";
    int rc;

    *out_dirty = false;
    *out_end = (struct stage_end){0};
    if (!is_qcow2(s, layer) || !is_there(s, layer))
        return true;
    if (qmeld_chain_open(s->files[layer], &how, &chain, &err) < 0)
        return no_because(s, "open", &err);
    rc = qmeld_chain_layer(chain, 0, &info, &err);
    *out_dirty = info.dirty;
    copy_text(out_end->backing_name, sizeof out_end->backing_name, info.backing_name);
    copy_text(out_end->backing_format, sizeof out_end->backing_format, info.backing_format);
    qmeld_chain_close(chain);
    if (rc < 0 ||
        qmeld_check(s->files[layer], "qcow2", QMELD_REPAIR_NONE, note_finding, first, &r, &err) < 0)
        return no_because(s, "check", &err);
    out_end->leaks = r.leaks;
    if (*out_dirty || (r.corruptions == 0 && r.check_errors == 0))
        return *out_dirty || !s->qemu || qemu_checks(s, layer);
    return no(s, "%s: %" PRIu64 " corruptions, first finding: %s", s->files[layer], r.corruptions,
              first);
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
        return no_because(s, "check --repair of a dirty image", &err);
    unlink("mended");
    if (r.corruptions || r.leaks || r.check_errors)
        return no(s, "%s: dirty, and not sound after check --repair=all", s->files[layer]);
    return true;
}

/* The base, its leaks counted with those behind its end, which a check leaves out: clusters whose
 * refcounts reached the disk, but not the length of the file that has them. */
static bool
check_base(struct stage *s, bool *out_dirty, struct stage_end *out_end)
{
    const char *path = s->files[s->base];
    struct stat st;
    bool ok;

    if (!check(s, s->base, out_dirty, out_end) || !is_qcow2(s, s->base))
        return is_qcow2(s, s->base) == false;
    if (stat(path, &st) < 0 || truncate(path, 2 * st.st_size + BEHIND_END) < 0)
        return no(s, "cannot make the base longer");
    ok = check(s, s->base, out_dirty, out_end);
    return truncate(path, st.st_size) == 0 && ok;
}

static bool
is_sound(struct stage *s, size_t *out_valid_bitmaps)
{
    const size_t first =
        s->top > 0 ? s->top - 1 : 0; /* what is changed lies from here to the base */
    struct stage_bytes snaps;
    struct stage_end end;
    struct qmeld_error err;
    bool dirty, ok = true;

    for (size_t i = first; i <= s->base; i++) {
        const bool base = i == s->base;

        if (!(base ? check_base(s, &dirty, &end) : check(s, i, &dirty, &end)))
            return false;
        if (!dirty)
            continue;
        if (base && !s->dirty_base)
            return no(s, "the base has become dirty");
        if (!can_be_mended(s, i))
            return false;
    }
    if (read_snapshots(s, &snaps, &err) < 0)
        ok = no_because(s, "snapshots of the base", &err);
    else
        ok = same(s, "snapshots of the base", &snaps, &s->snapshots);
    free(snaps.at);
    return ok && bitmaps_tell(s, out_valid_bitmaps);
}

bool
stage_sound(struct stage *s)
{
    size_t valid;

    return is_sound(s, &valid);
}

/* ---- the end ----------------------------------------------------------------------------------
 */

static bool
look_at_end(struct stage *s, struct stage_end *base, struct stage_end *top, struct stage_end *child)
{
    bool dirty;

    *child = (struct stage_end){0};
    return check_base(s, &dirty, base) && check(s, s->top, &dirty, top) &&
           (s->top == 0 || check(s, s->top - 1, &dirty, child));
}

bool
stage_after(struct stage *s)
{
    struct stage_bytes covered;
    struct qmeld_error err;

    if (read_view(s, s->base, &s->done_view, &err) < 0)
        return no_because(s, "the base after the merge", &err);
    covered = s->done_view;
    if (covered.len > s->top_view.len)
        covered.len = s->top_view.len;
    return same(s, "the base after the merge", &covered, &s->top_view) &&
           look_at_end(s, &s->base_end, &s->top_end, &s->child_end);
}

static bool
ends_as(struct stage *s, size_t layer, const struct stage_end *got, const struct stage_end *want)
{
    if (got->leaks > want->leaks)
        return no(s, "%s has %" PRIu64 " leaks instead of %" PRIu64, s->files[layer], got->leaks,
                  want->leaks);
    if (strcmp(got->backing_name, want->backing_name) != 0 ||
        strcmp(got->backing_format, want->backing_format) != 0)
        return no(s, "%s stands on \"%s\" (%s), wanted \"%s\" (%s)", s->files[layer],
                  got->backing_name, got->backing_format, want->backing_name, want->backing_format);
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
    struct qmeld_open_options how = {.format = "qcow2", .single = true};
    struct qmeld_chain *chain;
    struct qmeld_error err;
    int rc;

    if (qmeld_chain_open(s->files[layer], &how, &chain, &err) < 0)
        return no_because(s, "open", &err);
    rc = qmeld_map(chain, 0, UINT64_MAX, is_absent, NULL, &err);
    qmeld_chain_close(chain);
    return rc == 0 || no(s, "%s is not empty", s->files[layer]);
}

/* Put aside means: the same bytes under another name. */
static bool
is_aside(struct stage *s, size_t layer)
{
    const char *name = stage_aside(s, layer);
    struct stage_bytes got;
    bool ok;

    if (access(name, F_OK) != 0)
        return no(s, "%s is not there", name);
    got.at = qm_torn_load(name, &got.len);
    ok = same(s, name, &got, &s->aside[layer - s->top]);
    free(got.at);
    return ok;
}

static bool
has_no_leaks(struct stage *s, size_t layer)
{
    struct stage_end end;
    bool dirty;

    if (!check(s, layer, &dirty, &end))
        return false;
    return (end.leaks == 0 && !dirty) ||
           no(s, "%s has %" PRIu64 " leaks", s->files[layer], end.leaks);
}

static bool
is_settled(struct stage *s)
{
    for (size_t i = s->top; names_go(s) && i < s->base; i++) {
        if (is_there(s, i))
            return no(s, "%s is still there", s->files[i]);
        if (s->opts.overlays == QMELD_OVERLAYS_QUARANTINE && !is_aside(s, i))
            return false;
    }
    if (access(s->journal, F_OK) == 0)
        return no(s, "the journal is still there");
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
    struct stage_end base, top, child;
    size_t valid;

    if (!view_is(s, s->base, &s->done_view, "the base, merged again") || !stage_reads(s) ||
        !is_sound(s, &valid) || !is_settled(s) || !look_at_end(s, &base, &top, &child))
        return false;
    if (valid != s->valid_bitmaps)
        return no(s, "%zu bitmaps are valid, %zu were", valid, s->valid_bitmaps);
    return ends_as(s, s->base, &base, &s->base_end) && ends_as(s, s->top, &top, &s->top_end) &&
           (s->top == 0 || ends_as(s, s->top - 1, &child, &s->child_end));
}

/* ---- the merge again -------------------------------------------------------------------------- */

/* Its head is one sector, so the first bytes tell. */
static bool
has_journal(const struct stage *s)
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

    if (!is_there(s, 0))
        return true;
    if (qmeld_chain_open(s->files[0], NULL, &chain, &err) < 0)
        return false;
    depth = qmeld_chain_depth(chain);
    qmeld_chain_close(chain);
    return depth < s->n;
}

static int
go_on(const struct stage *s, bool *out_resumed, struct qmeld_error *err)
{
    struct qmeld_commit_report report;
    int rc;

    if (!s->by_journal)
        return stage_commit(s, out_resumed, err);
    rc = qmeld_resume(s->journal, NULL, &report, err);
    *out_resumed = report.resumed;
    qmeld_commit_report_free(&report);
    return rc;
}

bool
stage_again(struct stage *s)
{
    const bool journal = has_journal(s);
    struct qmeld_error err;
    bool resumed;

    if (!journal && is_over(s)) {
        (void)unlink(s->journal); /* one that never became valid means nothing */
        return is_finished(s);
    }
    if ((journal ? go_on(s, &resumed, &err) : stage_commit(s, &resumed, &err)) < 0)
        return no_because(s, journal ? "going on" : "the same commit again", &err);
    if (resumed != journal)
        return no(s, journal ? "the journal was not used" : "resumed, but by what?");
    return is_finished(s);
}
