/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "lab.h"

#include "qcow2.h"
#include "vec.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
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

struct qm_forge *
qm_lab_make(const char *recipe)
{
    struct qm_forge *f;

    OK(qm_forge_parse(recipe, "recipe", &f, err));
    OK(qm_forge_write(f, ".", err));
    return f;
}

/* ---- content ---- */

struct qm_bytes
qm_lab_file(const char *path)
{
    struct qm_bytes b = {0};
    struct stat st;
    const int fd = open(path, O_RDONLY);

    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &st), 0);
    b.len = (size_t)st.st_size;
    b.at = malloc(b.len + 1);
    assert_non_null(b.at);
    assert_int_equal(pread(fd, b.at, b.len, 0), b.len);
    close(fd);
    return b;
}

struct qm_bytes
qm_lab_read(const char *path)
{
    struct qmeld_chain *chain;
    struct qmeld_layer_info info;
    struct qm_bytes b = {0};

    OK(qmeld_chain_open(path, NULL, &chain, err));
    OK(qmeld_chain_layer(chain, qmeld_chain_depth(chain) - 1, &info, err));
    b.len = info.virtual_size;
    b.at = malloc(b.len + 1);
    assert_non_null(b.at);
    OK(qmeld_read(chain, 0, b.at, b.len, err));
    qmeld_chain_close(chain);
    return b;
}

struct qm_bytes
qm_lab_expect(const struct qm_forge *f, size_t layer)
{
    struct qm_bytes b;

    OK(qm_forge_expect(f, layer, ".expect", err));
    b = qm_lab_file(".expect");
    unlink(".expect");
    return b;
}

void
qm_lab_same(struct qm_bytes got, struct qm_bytes want, const char *what)
{
    if (got.len != want.len)
        fail_msg("%s: %zu bytes, not %zu", what, got.len, want.len);
    for (size_t i = 0; got.len > 0 && memcmp(got.at, want.at, got.len) != 0; i++) {
        if (got.at[i] == want.at[i])
            continue;
        fail_msg("%s: byte %#zx is %#x (%.24s), not %#x (%.24s)", what, i, got.at[i], got.at + i,
                 want.at[i], want.at + i);
    }
    free(got.at);
    free(want.at);
}

void
qm_lab_reads_as(const char *path, const struct qm_forge *f, size_t layer)
{
    qm_lab_same(qm_lab_read(path), qm_lab_expect(f, layer), path);
}

void
qm_lab_zeros(const char *path, uint64_t off, uint64_t len)
{
    const struct qm_bytes b = qm_lab_read(path);

    assert_true(off + len <= b.len);
    for (uint64_t i = off; i < off + len; i++)
        if (b.at[i] != 0)
            fail_msg("%s: byte %#" PRIx64 " is not zero", path, i);
    free(b.at);
}

void
qm_lab_clean(const char *path)
{
    struct qmeld_check_result r;

    OK(qmeld_check(path, "qcow2", QMELD_REPAIR_NONE, NULL, NULL, &r, err));
    if (r.corruptions || r.leaks || r.check_errors)
        fail_msg("%s: %" PRIu64 " corruptions, %" PRIu64 " leaks", path, r.corruptions, r.leaks);
}

/* ---- structure ---- */

static struct qm_image *
open_one(const char *path)
{
    struct qm_file *file;
    struct qm_image *img;

    OK(qm_file_open(path, &file, err));
    OK(qm_image_open(file, NULL, &img, err));
    return img;
}

static char
draw(const struct qm_extent *x)
{
    switch (x->kind) {
    case QM_ABSENT:
        return x->has_host ? '~' : '.';
    case QM_ZERO:
        return x->has_host ? '=' : '0';
    case QM_DATA:
        return 'D';
    case QM_COMPRESSED:
        break;
    }
    return 'c';
}

void
qm_lab_looks(const char *path, uint64_t cell, const char *picture)
{
    struct qm_image *img = open_one(path);
    const uint64_t n = qm_div_up(img->size, cell);
    char *got = calloc(1, n + 1);

    assert_non_null(got);
    for (uint64_t i = 0; i < n; i++) {
        struct qm_extent x;

        OK(qm_image_next(img, qm_guest(i * cell), qm_min(cell, img->size - i * cell), &x, err));
        got[i] = draw(&x);
    }
    assert_string_equal(got, picture);
    free(got);
    qm_image_close(img);
}

static void
append(struct qm_bytes *b, const struct qm_image *img, uint64_t off, uint64_t len)
{
    b->at = realloc(b->at, b->len + len);
    assert_non_null(b->at);
    OK(qm_pread_padded(img->file, off, b->at + b->len, len, err));
    b->len += len;
}

static void
append_table(struct qm_bytes *b, const struct qm_qcow2 *q, uint64_t l2)
{
    const struct qcow2_geo *g = &q->geo;
    const size_t start = b->len;

    append(b, &q->img, l2, g->cluster_size);
    for (uint64_t off = 0; off < g->cluster_size; off += g->l2_entry_len) {
        const uint64_t word = be64_get((be64 *)(b->at + start + off));
        struct qcow2_l2 x;

        if (word == 0)
            continue;
        (void)qcow2_l2_decode(g, word, 0, &x);
        append(b, &q->img, x.host.h,
               x.kind == QCOW2_L2_COMPRESSED ? x.payload_len
               : x.has_host                  ? g->cluster_size
                                             : 0);
    }
}

struct qm_bytes
qm_lab_snapshots(const char *path)
{
    struct qm_image *img = open_one(path);
    const struct qm_qcow2 *q = qm_qcow2_of(img);
    struct qm_snapshots list = {0};
    struct qm_bytes b = {0};

    OK(q ? qm_qcow2_read_snapshots(q, &list, err) : 0);
    QM_VEC_EACH (s, &list.list) {
        append(&b, img, s->l1_off, s->l1_entries * sizeof(be64));
        for (uint32_t i = 0; i < s->l1_entries; i++) {
            uint64_t entry;

            OK(qm_qcow2_read_l1(q, s->l1_off, i, 1, &entry, err));
            if (entry != 0)
                append_table(&b, q, entry & QCOW2_OFFSET_MASK);
        }
    }
    qm_snapshots_release(&list);
    qm_image_close(img);
    return b;
}

uint64_t
qm_lab_host(const char *path, uint64_t guest)
{
    struct qm_image *img = open_one(path);
    struct qm_extent x;

    OK(qm_image_next(img, qm_guest(guest), 1, &x, err));
    qm_image_close(img);
    return x.has_host ? x.host.h : 0;
}

struct qmeld_commit_report
qm_lab_commit(const char *path, const struct qmeld_commit_options *opts)
{
    struct qmeld_commit_options alone = *opts;
    struct qmeld_commit_report report;

    alone.no_scan = true; /* what other tests have left beside it is none of its business */
    OK(qmeld_commit(path, &alone, &report, err));
    qmeld_commit_report_free(&report);
    return report;
}

struct qm_qcow2 *
qm_lab_open(const char *path)
{
    struct qm_file *file;
    struct qm_qcow2 *q;

    OK(qm_file_open(path, &file, err));
    OK(qm_file_make_writable(file, err));
    OK(qm_qcow2_open(file, 0, &q, err));
    return q;
}

void
qm_lab_soil(const char *path, uint64_t host, size_t len)
{
    const int fd = open(path, O_RDWR);
    unsigned char *buf = malloc(len);

    assert_true(fd >= 0 && buf && host != 0);
    memset(buf, 0xee, len);
    assert_int_equal(pwrite(fd, buf, len, (off_t)host), len);
    close(fd);
    free(buf);
}

/* ---- what was done to the disk ---- */

struct event {
    enum qm_io_op op;
    char file[32]; /* last component of its path */
    uint64_t off;
    uint64_t len;
    bool shared;
};

static QM_VEC(struct event) events;

static int
note(const struct qm_io_event *ev, void *opaque)
{
    const char *slash = strrchr(ev->path, '/');
    struct event e = {.op = ev->op, .off = ev->off, .len = ev->len, .shared = ev->from != NULL};

    (void)opaque;
    snprintf(e.file, sizeof e.file, "%s", slash ? slash + 1 : ev->path);
    return qm_vec_push(&events, &e) ? 0 : ENOMEM;
}

void
qm_lab_watch(void)
{
    qm_vec_clear(&events);
    qm_io_set_hook(note, NULL);
}

void
qm_lab_unwatch(void)
{
    qm_io_set_hook(NULL, NULL);
}

uint64_t
qm_lab_written(const char *path)
{
    uint64_t n = 0;

    QM_VEC_EACH (e, &events)
        n += e->op == QM_IO_WRITE && strcmp(e->file, path) == 0 ? e->len : 0;
    return n;
}

struct qm_lab_io
qm_lab_io(const char *path)
{
    struct qm_lab_io io = {.writes = 0};

    QM_VEC_EACH (e, &events) {
        if (strcmp(e->file, path) != 0)
            continue;
        io.syncs += e->op == QM_IO_SYNC;
        if (e->op != QM_IO_WRITE)
            continue;
        io.shares += e->shared;
        io.writes += !e->shared;
        io.bytes_shared += e->shared ? e->len : 0;
        io.bytes_written += e->shared ? 0 : e->len;
    }
    return io;
}

size_t
qm_lab_syncs(const char *path)
{
    size_t n = 0;

    QM_VEC_EACH (e, &events)
        n += e->op == QM_IO_SYNC && strcmp(e->file, path) == 0;
    return n;
}

uint64_t
qm_lab_write_at(const char *path, uint64_t off)
{
    uint64_t len = 0;

    QM_VEC_EACH (e, &events) {
        if (e->op != QM_IO_WRITE || strcmp(e->file, path) != 0 || e->off != off)
            continue;
        assert_int_equal(len, 0);
        len = e->len;
    }
    return len;
}

/* ---- the story ---- */

/* What each cluster of a file is, as a letter. */
struct plan {
    uint32_t bits;
    QM_VEC(char) kinds;
};

static void
mark(struct plan *p, uint64_t off, uint64_t len, char kind)
{
    for (uint64_t c = off >> p->bits; len > 0 && c <= (off + len - 1) >> p->bits; c++) {
        while (p->kinds.n <= c)
            assert_true(qm_vec_push(&p->kinds, &(char){'?'}));
        p->kinds.at[c] = kind;
    }
}

static void
mark_table(struct plan *p, const struct qm_qcow2 *q, uint64_t l2)
{
    const struct qcow2_geo *g = &q->geo;
    unsigned char *buf = malloc(g->cluster_size);

    assert_non_null(buf);
    OK(qm_qcow2_read_cluster(q, qm_host(l2), buf, err));
    for (uint64_t off = 0; off < g->cluster_size; off += g->l2_entry_len) {
        struct qcow2_l2 x;

        assert_int_equal(qcow2_l2_decode(g, be64_get((be64 *)(buf + off)),
                                         g->extended_l2 ? be64_get((be64 *)(buf + off) + 1) : 0,
                                         &x),
                         QCOW2_L2_OK);
        if (x.kind == QCOW2_L2_COMPRESSED || x.has_host)
            mark(p, x.host.h, x.has_host ? g->cluster_size : x.payload_len, 'D');
    }
    mark(p, l2, g->cluster_size, '2');
    free(buf);
}

static void
make_plan(struct plan *p, const char *path)
{
    struct qm_image *img = open_one(path);
    const struct qm_qcow2 *q = qm_qcow2_of(img);
    const uint64_t rt_len = (uint64_t)q->hdr.reftable_clusters << q->geo.cluster_bits;
    be64 *rt = malloc(rt_len);
    uint64_t *l1 = malloc((q->hdr.l1_entries + 1) * sizeof *l1);

    assert_true(rt && l1);
    p->bits = q->geo.cluster_bits;
    OK(qm_qcow2_read_l1(q, q->hdr.l1_off, 0, q->hdr.l1_entries, l1, err));
    for (uint32_t i = 0; i < q->hdr.l1_entries; i++)
        if (l1[i] != 0)
            mark_table(p, q, l1[i] & QCOW2_OFFSET_MASK);
    OK(qm_pread_padded(img->file, q->hdr.reftable_off, rt, rt_len, err));
    for (uint64_t i = 0; i < rt_len / sizeof *rt; i++)
        if (be64_get(&rt[i]) != 0)
            mark(p, be64_get(&rt[i]), q->geo.cluster_size, 'B');
    mark(p, q->hdr.reftable_off, rt_len, 'R');
    mark(p, q->hdr.l1_off, q->hdr.l1_entries * sizeof(be64), '1');
    mark(p, 0, 1, 'H');
    free(rt);
    free(l1);
    qm_image_close(img);
}

static char
letter(const struct plan *p, const struct event *e)
{
    const uint64_t c = e->off >> p->bits;

    switch (e->op) {
    case QM_IO_WRITE:
        return c < p->kinds.n ? p->kinds.at[c] : '?';
    case QM_IO_ZERO:
        return 'o';
    case QM_IO_DISCARD:
        return 'x';
    case QM_IO_TRUNCATE:
        return 't';
    case QM_IO_SYNC:
        return '|';
    case QM_IO_UNLINK:
    case QM_IO_RENAME:
    case QM_IO_LINK:
    case QM_IO_ATTRS:
        break;
    }
    return 'U';
}

const char *
qm_lab_story(const char *path)
{
    static char story[1024];
    static const char order[] = "HR12BDoxtU?"; /* within one epoch */
    struct plan p = {0};
    bool seen[sizeof order] = {0};
    size_t n = 0;

    make_plan(&p, path);
    QM_VEC_EACH (e, &events) {
        char c;

        if (strcmp(e->file, path) != 0)
            continue;
        c = letter(&p, e);
        if (c != '|') {
            seen[strchr(order, c) - order] = true;
            continue;
        }
        for (size_t i = 0; order[i] && n + 2 < sizeof story; i++)
            if (seen[i])
                story[n++] = order[i];
        memset(seen, 0, sizeof seen);
        assert_true(n + 2 < sizeof story);
        story[n++] = '|';
    }
    for (size_t i = 0; order[i] && n + 2 < sizeof story; i++)
        if (seen[i])
            story[n++] = order[i];
    story[n] = '\0';
    qm_vec_release(&p.kinds);
    return story;
}

void
qm_lab_written_once(const char *path, const char *but)
{
    struct plan p = {0};

    make_plan(&p, path);
    for (struct event *a = events.at; a < events.at + events.n; a++) {
        if (a->op != QM_IO_WRITE || strcmp(a->file, path) != 0 || strchr(but, letter(&p, a)))
            continue;
        for (struct event *b = a + 1; b < events.at + events.n; b++)
            if ((b->op == QM_IO_WRITE || b->op == QM_IO_ZERO) && strcmp(b->file, path) == 0 &&
                b->off < a->off + a->len && a->off < b->off + b->len)
                fail_msg("%s: %#" PRIx64 " (%c) is written twice", path, b->off, letter(&p, b));
    }
    qm_vec_release(&p.kinds);
}

void
qm_lab_durable_before(const char *a, const char *b)
{
    bool dirty = true, b_changed = false;

    QM_VEC_EACH (e, &events) {
        if (strcmp(e->file, a) == 0) {
            if (b_changed)
                fail_msg("%s is changed after %s", a, b);
            dirty = e->op != QM_IO_SYNC;
        } else if (strcmp(e->file, b) == 0) {
            b_changed = true;
            if (dirty)
                fail_msg("%s is changed before %s is durable", b, a);
        }
    }
    assert_true(b_changed);
}

const char *
qm_lab_files(void)
{
    static char names[1024];
    const char *last = "";
    size_t n = 0;

    names[0] = '\0';
    QM_VEC_EACH (e, &events) {
        if (strcmp(last, e->file) == 0 || e->file[0] == '.')
            continue;
        last = e->file;
        n += (size_t)snprintf(names + n, sizeof names - n, "%s%s", n ? " " : "", e->file);
        assert_true(n < sizeof names);
    }
    return names;
}

/* ---- all in one ---- */

struct qmeld_commit_report
qm_lab_merge(const struct qm_forge *f, const char *top, const char *base,
             const struct qmeld_commit_options *opts)
{
    struct qmeld_commit_report r;

    qm_lab_watch();
    r = qm_lab_commit(top, opts);
    qm_lab_unwatch();
    qm_lab_reads_as(base, f, 0);
    qm_lab_reads_as(top, f, 0);
    if (!strstr(base, ".raw"))
        qm_lab_clean(base);
    return r;
}
