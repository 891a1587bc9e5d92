/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * stage_read.c - what the files of a stage say: guests' views, snapshots; and what qemu-img says.
 */
#include "stage_int.h"

#include "cipher.h"
#include "forge_recipe.h"
#include "qcow2.h"
#include "torn.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define ABSENT_MARK 0xa5 /* what the base has not: distinct from zeros */

bool
stage_no(struct stage *s, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(s->why, sizeof s->why, fmt, ap);
    va_end(ap);
    return false;
}

bool
stage_no_because(struct stage *s, const char *what, const struct qmeld_error *err)
{
    return stage_no(s, "%s: %s: %s: %s", what, qmeld_code_name(err->code), err->file, err->what);
}

/* ---- reading ----------------------------------------------------------------------------------
 */

bool
stage_is_qcow2(const struct stage *s, size_t layer)
{
    return !strcmp(qm_forge_format(s->forge, layer), "qcow2");
}

/* Appends what a layer reads as, through all below it, or, if its ID is given, an internal snapshot. */
static int
append_view(const struct stage *s, size_t layer, const char *snapshot, struct stage_bytes *out,
            struct qmeld_error *err)
{
    const struct qmeld_open_options how = {.format = qm_forge_format(s->forge, layer),
                                           .secrets = &stage_secrets,
                                           .snapshot = snapshot};
    struct qmeld_layer_info info;
    struct qmeld_chain *chain;
    int rc;

    if (qmeld_chain_open(s->files[layer], &how, &chain, err) < 0)
        return -1;
    rc = qmeld_chain_layer(chain, qmeld_chain_depth(chain) - 1, &info, err);
    if (rc == 0) {
        out->at = realloc(out->at, out->len + (size_t)info.virtual_size + 1);
        if (!out->at)
            abort();
        rc = qmeld_read(chain, 0, out->at + out->len, (size_t)info.virtual_size, err);
        out->len += (size_t)info.virtual_size;
    }
    qmeld_chain_close(chain);
    return rc;
}

int
stage_read_view(const struct stage *s, size_t layer, struct stage_bytes *out,
                struct qmeld_error *err)
{
    *out = (struct stage_bytes){0};
    return append_view(s, layer, NULL, out, err);
}

bool
stage_same(struct stage *s, const char *what, const struct stage_bytes *got,
           const struct stage_bytes *want)
{
    const size_t n = got->len < want->len ? got->len : want->len;
    size_t i = 0;

    if (got->len == want->len && (n == 0 || memcmp(got->at, want->at, n) == 0))
        return true;
    while (i < n && got->at[i] == want->at[i])
        i++;
    return stage_no(s, "%s: %zu bytes, wanted %zu, first difference at %zu", what, got->len,
                    want->len, i);
}

bool
stage_view_is(struct stage *s, size_t layer, const struct stage_bytes *want, const char *what)
{
    struct qmeld_error err;
    struct stage_bytes got;
    bool ok;

    if (stage_read_view(s, layer, &got, &err) < 0)
        ok = stage_no_because(s, what, &err);
    else
        ok = stage_same(s, what, &got, want);
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
unlock(struct qm_qcow2 *q, struct qmeld_error *err)
{
    bool open = !q->img.cipher;

    for (size_t i = 0; !open && i < stage_secrets.n; i++)
        if (qm_cipher_unlock(q->img.cipher, q->img.file, stage_secrets.list[i].data,
                             stage_secrets.list[i].len, &open, err) < 0)
            return -1;
    return 0;
}

int
stage_read_snapshots(const struct stage *s, struct stage_bytes *out, struct qmeld_error *err)
{
    struct qm_snapshots snaps = {0};
    struct qm_qcow2 *q;
    struct qm_file *file;
    int rc;

    *out = (struct stage_bytes){0};
    memset(err, 0, sizeof *err);
    if (!stage_is_qcow2(s, s->base))
        return 0;
    if (qm_file_open(s->files[s->base], &file, err) < 0)
        return -1;
    if (qm_qcow2_open(file, 0, &q, err) < 0) {
        qm_file_close(file);
        return -1;
    }
    rc = unlock(q, err);
    if (rc == 0)
        rc = qm_qcow2_read_snapshots(q, &snaps, err);
    QM_VEC_EACH (snap, &snaps.list) {
        if (rc == 0)
            rc = read_snapshot(q, snap, out, err);
    }
    qm_snapshots_release(&snaps);
    qm_image_close(&q->img);
    return rc;
}

int
stage_read_guarded(const struct stage *s, struct stage_bytes *out, struct qmeld_error *err)
{
    int rc = 0;

    *out = (struct stage_bytes){0};
    for (size_t i = s->beside ? s->sibling : s->top; rc == 0 && s->opts.protect && i < s->base;
         i++) {
        char id[24];

        for (size_t k = 0; rc == 0 && k < s->forge->layers.at[i].snapshots.n; k++) {
            snprintf(id, sizeof id, "%zu", k + 1);
            rc = append_view(s, i, id, out, err);
        }
    }
    return rc;
}

/* ---- qemu-img, a reader that shares nothing with us --------------------------------------------
 */

static int __attribute__((format(printf, 1, 2))) shell(const char *fmt, ...)
{
    char line[1024];
    va_list ap;
    int rc;

    va_start(ap, fmt);
    vsnprintf(line, sizeof line, fmt, ap);
    va_end(ap);
    rc = system(line);
    return WIFEXITED(rc) ? WEXITSTATUS(rc) : -1;
}

bool
stage_qemu_reads(struct stage *s)
{
    struct stage_bytes got;
    bool ok;

    if (shell("qemu-img convert -f %s -O raw %s qemu.view >qemu.out 2>&1",
              qm_forge_format(s->forge, 0), s->files[0]) != 0)
        return stage_no(s, "qemu-img cannot read the active layer: see qemu.out");
    got.at = qm_torn_load("qemu.view", &got.len);
    ok = stage_same(s, "the active layer, read by qemu-img", &got, &s->active_view);
    free(got.at);
    unlink("qemu.view");
    return ok;
}

bool
stage_qemu_checks(struct stage *s, size_t layer)
{
    const int rc = shell("qemu-img check -f %s %s >qemu.out 2>&1", "qcow2", s->files[layer]);

    return rc == 0 || rc == 3 ||
           stage_no(s, "qemu-img check %s: exit %d: see qemu.out", s->files[layer], rc);
}
