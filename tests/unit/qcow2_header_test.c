/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_header_test.c - after any power cut the header names the old or the new backing file.
 *
 * Headers are drawn at random (extensions of many kinds and lengths, with and without a format, an
 * end marker, room), changed, and looked at in each state a disk could be in.
 */
#include "lab.h"
#include "qcow2_create.h"
#include "qcow2_header.h"
#include "scratch.h"
#include "torn.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "ok.h"

static const char path[] = "x";

/* ---- headers ---- */

static void
make_image(unsigned version, uint64_t cluster_size, const char *name, const char *format)
{
    const struct qm_qcow2_create want = {
        .size = 1 << 20,
        .version = version,
        .cluster_size = cluster_size,
        .refcount_bits = 16,
        .backing_name = name,
        .backing_format = format,
    };
    struct qm_file *file;

    OK(qm_file_create(path, &file, err));
    OK(qm_qcow2_create(file, &want, err));
    OK(qm_file_finish(file, err));
}

/* Puts bytes into the header cluster. */
static void
poke(uint64_t off, const void *bytes, size_t len)
{
    struct qm_file *file;

    OK(qm_file_open(path, &file, err));
    OK(qm_file_make_writable(file, err));
    OK(qm_pwrite(file, off, bytes, len, err));
    OK(qm_file_finish(file, err));
}

static uint64_t seed;

static uint64_t
any(uint64_t below)
{
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (seed >> 33) % below;
}

#define MAX_EXTS 12

/* What a header holds beside its fixed fields. */
struct sketch {
    uint64_t cs;
    unsigned version;
    uint32_t header_len;
    char name[1024]; /* "": none */
    char format[16]; /* "": none */
    size_t n;
    struct {
        uint32_t type;
        uint32_t len;
        unsigned char data[600];
    } ext[MAX_EXTS];
    bool marker;
    uint32_t gap; /* between the extensions' end and the name */
};

static size_t
put_ext(unsigned char *buf, size_t at, uint32_t type, const void *data, uint32_t len)
{
    be32_put((be32 *)(buf + at), type);
    be32_put((be32 *)(buf + at + 4), len);
    memcpy(buf + at + 8, data, len);
    return at + 8 + (len + 7) / 8 * 8;
}

/* A name of exactly len bytes. */
static void
make_name(char *out, size_t len, char c)
{
    memset(out, c, len);
    out[len] = '\0';
    out[len / 2] = '/';
}

static void
draw(struct sketch *s)
{
    static const uint64_t sizes[] = {512, 1024, 4096, 65536};
    const char *formats[] = {"", "raw", "qcow2", "qcow2", "verylongfmt"};

    memset(s, 0, sizeof *s);
    s->cs = sizes[any(4)];
    s->version = any(4) ? 3 : 2;
    s->header_len = s->version == 2 ? 72 : any(3) ? 112 : 104;
    if (any(8))
        make_name(s->name, 1 + any(any(3) ? 40 : s->cs > 1024 ? 1000 : 300), 'o');
    strcpy(s->format, formats[any(5)]);
    s->n = any(5);
    for (size_t i = 0; i < s->n; i++) {
        s->ext[i].type = 0x10000000u + (uint32_t)any(1000);
        s->ext[i].len = (uint32_t)any(any(2) ? 20 : s->cs > 1024 ? 400 : 60);
        for (uint32_t k = 0; k < s->ext[i].len; k++)
            s->ext[i].data[k] = (unsigned char)any(256);
    }
    s->marker = any(4) || !*s->name;
    s->gap = s->marker ? (uint32_t)(any(2) ? 0 : any(200)) : 0;
}

/* Brings a sketch to the disk; false: it does not fit. */
static bool
realise(const struct sketch *s)
{
    QM_FREE unsigned char *buf = calloc(1, 65536 + 16384);
    const size_t where = any(s->n + 1);
    size_t at = s->header_len;

    for (size_t i = 0; i <= s->n; i++) {
        if (i == where && *s->format)
            at = put_ext(buf, at, QCOW2_EXT_BACKING_FORMAT, s->format, (uint32_t)strlen(s->format));
        if (i < s->n)
            at = put_ext(buf, at, s->ext[i].type, s->ext[i].data, s->ext[i].len);
    }
    if (s->marker)
        at += 8;
    at += s->gap;
    memcpy(buf + at, s->name, strlen(s->name));
    if (at + strlen(s->name) > s->cs)
        return false;
    make_image(s->version, s->cs, NULL, NULL);
    poke(s->header_len, buf + s->header_len, s->cs - s->header_len);
    if (*s->name) {
        be64_put((be64 *)buf, at);
        be32_put((be32 *)(buf + 8), (uint32_t)strlen(s->name));
        poke(8, buf, 12);
    }
    if (s->version == 3) {
        be32_put((be32 *)buf, s->header_len);
        poke(100, buf, 4);
    }
    return true;
}

/* ---- the states ---- */

struct expect {
    const struct sketch *s;
    const char *name;
    const char *format;
    bool may_be_bare; /* the new name without a format, for a moment */
    bool seen_new;
};

static bool
is(const char *a, const char *b)
{
    return strcmp(a ? a : "", b) == 0;
}

/* All foreign extensions are there, in their order, with their content. */
static void
check_exts(const struct sketch *s, const struct qcow2_header *h, const unsigned char *file)
{
    size_t found = 0;

    QM_VEC_EACH (x, &h->exts) {
        if (x->type == QCOW2_EXT_BACKING_FORMAT)
            continue;
        assert_true(found < s->n);
        assert_int_equal(x->type, s->ext[found].type);
        assert_int_equal(x->len, s->ext[found].len);
        assert_memory_equal(file + x->off + 8, s->ext[found].data, x->len);
        found++;
    }
    assert_int_equal(found, s->n);
}

static void
check_state(const unsigned char *file, size_t len, void *opaque)
{
    struct expect *e = opaque;
    struct qcow2_header h;
    bool old, new, bare;

    OK(qcow2_header_decode("state", file, len, 0, &h, err));
    check_exts(e->s, &h, file);
    assert_int_equal(h.size, 1 << 20);
    assert_int_equal(h.header_len, e->s->header_len);
    old = is(h.backing_name, e->s->name) && (is(h.backing_format, e->s->format) || !*e->s->name);
    new = is(h.backing_name, e->name) && (is(h.backing_format, e->format) || !*e->name);
    bare = e->may_be_bare && is(h.backing_name, e->name) && !h.backing_format;
    if (!old && !new && !bare)
        fail_msg("seed %llu: name %.20s format %s", (unsigned long long)seed, h.backing_name,
                 h.backing_format);
    e->seen_new = e->seen_new || new;
    qcow2_header_release(&h);
}

/* Changes the backing file of the image at path and looks at all states; false: NOSPACE. */
static bool
change(const struct sketch *s, const char *name, const char *format, bool may_be_bare)
{
    struct expect e = {.s = s,
                       .name = name ? name : "",
                       .format = format ? format : "",
                       .may_be_bare = may_be_bare};
    struct qm_qcow2 *q = qm_lab_open(path);
    struct qmeld_error err = {0};
    const int fits = qm_header_backing_fits(q, name, format, &err);
    struct qm_torn *t = qm_torn_start(path);
    const int rc = qm_header_set_backing(q, name, format, &err);

    qm_torn_stop(t);
    assert_int_equal(rc, fits);
    qm_torn_replay(t, check_state, &e);
    if (rc == 0) {
        assert_true(e.seen_new);
        assert_true(is(q->img.backing_name, e.name));
        assert_true(!name || is(q->img.backing_format, e.format));
    } else {
        assert_int_equal(err.code, QMELD_NOSPACE);
        assert_int_equal(qm_torn_syncs(t), 0);
    }
    qm_torn_free(t);
    qm_image_close(&q->img);
    return rc == 0;
}

static void
qcow2_header__any_state_names_old_or_new(void **state)
{
    unsigned done = 0, refused = 0;

    (void)state;
    for (uint64_t round = 0; round < 500; round++) {
        static const char *const formats[] = {"raw", "qcow2"};
        struct sketch s;
        char name[1024];
        bool ok;

        seed = round + 1;
        draw(&s);
        if (!realise(&s))
            continue;
        if (any(5) || !*s.name)
            make_name(name, 1 + any(any(3) ? 50 : 1000), 'n');
        else /* only the format changes */
            strcpy(name, s.name);
        ok =
            any(10) ? change(&s, name, formats[any(2)], !*s.format) : change(&s, NULL, NULL, false);
        done += ok;
        refused += !ok;
    }
    assert_true(done > 150);
    assert_true(refused > 10);
}

/* ---- headers one meets ---- */

/* The extensions that make_image writes are foreign to check_exts: note them. */
static struct sketch
sketch_of(unsigned version, uint64_t cs, const char *name, const char *format)
{
    struct sketch s = {.cs = cs, .version = version, .header_len = version == 2 ? 72 : 112};
    struct qm_qcow2 *q;

    make_image(version, cs, name, format);
    strcpy(s.name, name ? name : "");
    strcpy(s.format, name && format ? format : "");
    q = qm_lab_open(path);
    QM_VEC_EACH (x, &q->hdr.exts) {
        if (x->type == QCOW2_EXT_BACKING_FORMAT)
            continue;
        s.ext[s.n].type = x->type;
        s.ext[s.n].len = x->len;
        OK(qm_pread(q->img.file, x->off + 8, s.ext[s.n].data, x->len, err));
        s.n++;
    }
    qm_image_close(&q->img);
    return s;
}

static void
qcow2_header__ordinary_overlays_always_fit(void **state)
{
    char name[1024];

    (void)state;
    for (unsigned version = 2; version <= 3; version++)
        for (unsigned bits = 12; bits <= 16; bits += 2)
            for (size_t len = 3; len <= 1023; len += 340) {
                const char *const formats[] = {NULL, "raw", "qcow2"};
                for (unsigned f = 0; f < 9; f++) {
                    struct sketch s =
                        sketch_of(version, 1ull << bits, "../pool/mid.qcow2", formats[f / 3]);

                    make_name(name, len, 'n');
                    assert_true(change(&s, name, f % 3 == 1 ? "raw" : "qcow2", false));
                }
            }
}

static void
qcow2_header__a_format_can_be_added_behind_sector_0(void **state)
{
    struct sketch s = {.cs = 4096, .version = 3, .header_len = 112, .name = "old", .n = 2};

    (void)state;
    s.ext[0].type = s.ext[1].type = 0x12345678;
    s.ext[0].len = 300;
    s.ext[1].len = 333;
    memset(s.ext[0].data, 'd', sizeof s.ext[0].data);
    memset(s.ext[1].data, 'e', sizeof s.ext[1].data);
    s.marker = true;
    assert_true(realise(&s));
    assert_true(change(&s, "a/longer/name", "qcow2", true));
}

static void
qcow2_header__a_format_can_be_added_where_extensions_fill_sector_0(void **state)
{
    struct sketch s = {.cs = 4096, .version = 3, .header_len = 112, .name = "old", .n = 1};

    (void)state;
    s.ext[0].type = 0x12345678;
    s.ext[0].len = 384;
    memset(s.ext[0].data, 'd', sizeof s.ext[0].data);
    s.marker = true;
    for (s.gap = 0; s.gap <= 64; s.gap += 64) {
        assert_true(realise(&s));
        assert_true(change(&s, "old", "qcow2", false));
        assert_true(realise(&s));
        assert_true(change(&s, "new", "qcow2", false));
    }
}

static void
qcow2_header__a_wrong_format_behind_sector_0_is_refused(void **state)
{
    struct sketch s = {.cs = 4096, .version = 3, .header_len = 600, .name = "old"};

    (void)state;
    strcpy(s.format, "qcow2");
    s.marker = true;
    assert_true(realise(&s));
    assert_true(change(&s, "new", "qcow2", false));
    assert_true(realise(&s));
    assert_false(change(&s, "new", "raw", false));
}

static void
qcow2_header__clusters_of_512_hold_what_qemu_puts_there(void **state)
{
    char name[1024];
    struct sketch s;

    (void)state;
    make_name(name, 376, 'n');
    s = sketch_of(3, 512, "mid", "qcow2");
    assert_true(change(&s, name, "qcow2", false));
    make_name(name, 377, 'n');
    s = sketch_of(3, 512, "mid", "qcow2");
    assert_false(change(&s, name, "qcow2", false));
}

static void
qcow2_header__the_same_name_again_writes_nothing(void **state)
{
    struct sketch s = sketch_of(3, 65536, "mid", "qcow2");
    struct qm_qcow2 *q;
    struct qm_torn *t;

    (void)state;
    assert_true(change(&s, "base", "raw", false));
    q = qm_lab_open(path);
    t = qm_torn_start(path);
    OK(qm_header_set_backing(q, "base", "raw", err));
    qm_torn_stop(t);
    assert_int_equal(qm_torn_syncs(t), 0);
    assert_string_equal(q->img.backing_name, "base");
    qm_torn_free(t);
    qm_image_close(&q->img);
}

static void
qcow2_header__a_usual_change_takes_two_syncs_at_most(void **state)
{
    struct sketch s = sketch_of(3, 65536, "mid.qcow2", "qcow2");
    struct qm_qcow2 *q = qm_lab_open(path);
    struct qm_torn *t = qm_torn_start(path);

    (void)state;
    (void)s;
    OK(qm_header_set_backing(q, "base.raw", "raw", err));
    qm_torn_stop(t);
    assert_in_range(qm_torn_syncs(t), 1, 2);
    qm_torn_free(t);
    qm_image_close(&q->img);
}

/* ---- fixed fields ---- */

static void
qcow2_header__store_keeps_foreign_bytes(void **state)
{
    unsigned char before[1024], after[1024];
    struct qm_qcow2 *q;

    (void)state;
    for (int shortened = 0; shortened < 2; shortened++) {
        struct sketch s;

        seed = 3;
        do
            draw(&s);
        while (s.version != 3 || s.n < 2 || s.header_len != (shortened ? 104 : 112) ||
               s.cs < 4096 || !realise(&s));
        q = qm_lab_open(path);
        OK(qm_pread(q->img.file, 0, before, sizeof before, err));
        q->hdr.size = 512;
        q->hdr.compatible |= QCOW2_COMPAT_LAZY;
        OK(qm_header_store(q, err));
        OK(qm_pread(q->img.file, 0, after, sizeof after, err));
        assert_memory_equal(before, after, 24);
        assert_memory_equal(before + 32, after + 32, 48);
        assert_memory_equal(before + 88, after + 88, sizeof before - 88);
        OK(qm_qcow2_reload(q, err));
        assert_int_equal(q->hdr.size, 512);
        assert_int_equal(q->hdr.compatible, QCOW2_COMPAT_LAZY);
        qm_image_close(&q->img);
    }
}

static void
qcow2_header__autoclear_bits_go_before_the_first_write(void **state)
{
    be64 bits;
    struct qm_qcow2 *q;
    struct qm_torn *t;

    (void)state;
    make_image(3, 65536, NULL, NULL);
    be64_put(&bits, 1ull << 63 | QCOW2_AUTOCLEAR_BITMAPS); /* unknown; bitmaps, but no extension */
    poke(88, &bits, sizeof bits);
    q = qm_lab_open(path);
    OK(qm_header_before_write(q, err));
    OK(qm_qcow2_reload(q, err));
    assert_int_equal(q->hdr.autoclear, 0);
    t = qm_torn_start(path);
    OK(qm_header_before_write(q, err));
    qm_torn_stop(t);
    assert_int_equal(qm_torn_syncs(t), 0);
    qm_torn_free(t);
    qm_image_close(&q->img);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(qcow2_header__any_state_names_old_or_new),
        cmocka_unit_test(qcow2_header__ordinary_overlays_always_fit),
        cmocka_unit_test(qcow2_header__a_format_can_be_added_behind_sector_0),
        cmocka_unit_test(qcow2_header__a_format_can_be_added_where_extensions_fill_sector_0),
        cmocka_unit_test(qcow2_header__a_wrong_format_behind_sector_0_is_refused),
        cmocka_unit_test(qcow2_header__clusters_of_512_hold_what_qemu_puts_there),
        cmocka_unit_test(qcow2_header__the_same_name_again_writes_nothing),
        cmocka_unit_test(qcow2_header__a_usual_change_takes_two_syncs_at_most),
        cmocka_unit_test(qcow2_header__store_keeps_foreign_bytes),
        cmocka_unit_test(qcow2_header__autoclear_bits_go_before_the_first_write),
    };

    return cmocka_run_group_tests(tests, qm_scratch_enter, qm_scratch_leave);
}
