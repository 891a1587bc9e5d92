/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_damage.c - "poke PLACE = VALUE" and "truncate VALUE" on a finished file.
 *
 * Places have names (header.size, l2[3], refcount[@data[3]]), so that a recipe says what it
 * breaks, and keeps breaking it when the layout of the forge changes.
 */
#include "forge_image.h"
#include "bytes.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <unistd.h>

struct reader {
    struct qm_forge_image *im;
    const struct qm_forge_damage *damage;
    const char *recipe;
    const char *s;
};

/* A number on disk: big-endian, or some bits of a byte. */
struct spot {
    uint64_t off;
    unsigned len;
    unsigned shift; /* for bits < 8 */
    unsigned bits;
};

struct field {
    const char *name;
    unsigned off;
    unsigned len;
};

static const struct field header_fields[] = {{"magic", 0, 4},
                                             {"version", 4, 4},
                                             {"backing_off", 8, 8},
                                             {"backing_len", 16, 4},
                                             {"cluster_bits", 20, 4},
                                             {"size", 24, 8},
                                             {"crypt", 32, 4},
                                             {"l1_entries", 36, 4},
                                             {"l1_off", 40, 8},
                                             {"reftable_off", 48, 8},
                                             {"reftable_clusters", 56, 4},
                                             {"n_snapshots", 60, 4},
                                             {"snapshots_off", 64, 8},
                                             {"incompatible", 72, 8},
                                             {"compatible", 80, 8},
                                             {"autoclear", 88, 8},
                                             {"refcount_order", 96, 4},
                                             {"header_len", 100, 4},
                                             {"compression", 104, 1},
                                             {NULL, 0, 0}};

static const struct field snapshot_fields[] = {
    {"l1_off", 0, 8},   {"l1_entries", 8, 4}, {"id_len", 12, 2},    {"name_len", 14, 2},
    {"vm_size", 32, 4}, {"extra_len", 36, 4}, {"disk_size", 48, 8}, {NULL, 0, 0}};

static const struct field bitmap_fields[] = {
    {"table_off", 0, 8},    {"entries", 8, 4},   {"flags", 12, 4},     {"type", 16, 1},
    {"granularity", 17, 1}, {"name_len", 18, 2}, {"extra_len", 20, 4}, {NULL, 0, 0}};

static const struct field ext_fields[] = {{"type", 0, 4}, {"len", 4, 4}, {NULL, 0, 0}};

static int expression(struct reader *r, uint64_t *out);
static int read_spot(struct reader *r, const struct spot *spot, uint64_t *out);

static int
wrong(struct reader *r, const char *what)
{
    return qm_fail(r->im->err, QMELD_USAGE, qm_at(r->recipe, r->damage->line), "%s at '%s'", what,
                   r->s);
}

static void
skip_blanks(struct reader *r)
{
    r->s += strspn(r->s, " \t");
}

static bool
eat(struct reader *r, const char *word)
{
    size_t n = strlen(word);

    skip_blanks(r);
    if (strncmp(r->s, word, n))
        return false;
    if (isalnum((unsigned char)word[n - 1]) && (isalnum((unsigned char)r->s[n]) || r->s[n] == '_'))
        return false;
    r->s += n;
    return true;
}

/* [N] or [@PLACE], which counts in clusters */
static int
subscript(struct reader *r, uint64_t *out)
{
    bool by_place;

    if (!eat(r, "["))
        return wrong(r, "expected [");
    by_place = *r->s == '@';
    if (expression(r, out) < 0)
        return -1;
    if (by_place)
        *out /= r->im->cs;
    return eat(r, "]") ? 0 : wrong(r, "expected ]");
}

static int
checked_subscript(struct reader *r, uint64_t bound, uint64_t *out)
{
    if (subscript(r, out) < 0)
        return -1;
    return *out < bound ? 0 : wrong(r, "the image has no such entry, before");
}

static int
field_of(struct reader *r, const struct field *fields, uint64_t base, struct spot *out)
{
    if (!eat(r, "."))
        return wrong(r, "expected a field");
    for (; fields->name; fields++)
        if (eat(r, fields->name)) {
            *out = (struct spot){.off = base + fields->off, .len = fields->len};
            return 0;
        }
    return wrong(r, "no such field");
}

static int
get(struct reader *r, uint64_t off, unsigned len, uint64_t *out)
{
    return read_spot(r, &(struct spot){.off = off, .len = len}, out);
}

/* Offset of the i-th header extension; the end marker counts. */
static int
extension_at(struct reader *r, uint64_t i, uint64_t *out)
{
    uint64_t off = r->im->l->version < 3 ? 72 : r->im->l->header_len;
    uint64_t len = 0;

    for (; i; i--) {
        if (get(r, off + 4, 4, &len) < 0)
            return -1;
        off += 8 + (len + 7) / 8 * 8;
    }
    *out = off;
    return 0;
}

/* Offset of the i-th entry of a table whose entries differ in length. */
static int
snapshot_at(struct reader *r, uint64_t i, uint64_t *out)
{
    uint64_t off = r->im->snapshots_off;
    uint64_t id = 0;
    uint64_t name = 0;
    uint64_t extra = 0;

    for (; i; i--) {
        if (get(r, off + 12, 2, &id) < 0 || get(r, off + 14, 2, &name) < 0 ||
            get(r, off + 36, 4, &extra) < 0)
            return -1;
        off += (40 + extra + id + name + 7) / 8 * 8;
    }
    *out = off;
    return 0;
}

static int
bitmap_at(struct reader *r, uint64_t i, uint64_t *out)
{
    uint64_t off = r->im->bitmap_dir_off;
    uint64_t name;

    for (; i; i--) {
        if (get(r, off + 18, 2, &name) < 0)
            return -1;
        off += (24 + name + 7) / 8 * 8;
    }
    *out = off;
    return 0;
}

static int
l2_spot(struct reader *r, struct spot *out)
{
    struct qm_forge_image *im = r->im;
    uint64_t i;

    if (checked_subscript(r, im->active.l1_entries * im->l2_entries, &i) < 0)
        return -1;
    if (!im->active.l2_offs[i / im->l2_entries])
        return wrong(r, "there is no L2 table for it, before");
    *out = (struct spot){.off = im->active.l2_offs[i / im->l2_entries] +
                                i % im->l2_entries * im->l2_entry_len,
                         .len = 8};
    if (im->l2_entry_len == 16 && eat(r, ".bitmap"))
        out->off += 8;
    return 0;
}

static int
refcount_spot(struct reader *r, struct spot *out)
{
    struct qm_forge_image *im = r->im;
    const unsigned bits = im->l->refcount_bits;
    const uint64_t per_block = im->cs * 8 / bits;
    uint64_t i;

    if (checked_subscript(r, im->refblocks.n * per_block, &i) < 0)
        return -1;
    *out = (struct spot){.off = im->refblocks.at[i / per_block] + i % per_block * bits / 8,
                         .len = bits < 8 ? 1 : bits / 8,
                         .shift = bits < 8 ? (unsigned)(i % per_block * bits % 8) : 0,
                         .bits = bits < 8 ? bits : 0};
    return 0;
}

/* One step into the snapshot table: a field, or an entry of that snapshot's L1 table. */
static int
snapshot_spot(struct reader *r, struct spot *out)
{
    uint64_t i;
    uint64_t k;
    uint64_t off;

    if (checked_subscript(r, r->im->l->snapshots.n, &i) < 0 || snapshot_at(r, i, &off) < 0)
        return -1;
    if (!eat(r, ".l1["))
        return field_of(r, snapshot_fields, off, out);
    r->s--;
    if (checked_subscript(r, r->im->snaps[i].l1_entries, &k) < 0)
        return -1;
    *out = (struct spot){.off = r->im->snaps[i].l1_off + 8 * k, .len = 8};
    return 0;
}

/* -1 with an error, 1 if there is no place here */
static int
place(struct reader *r, struct spot *out)
{
    struct qm_forge_image *im = r->im;
    uint64_t i;
    uint64_t off;

    if (eat(r, "header"))
        return field_of(r, header_fields, 0, out);
    if (eat(r, "l2"))
        return l2_spot(r, out);
    if (eat(r, "refcount"))
        return refcount_spot(r, out);
    if (eat(r, "snapshot"))
        return snapshot_spot(r, out);
    if (eat(r, "l1")) {
        if (checked_subscript(r, im->active.l1_entries, &i) < 0)
            return -1;
        *out = (struct spot){.off = im->active.l1_off + 8 * i, .len = 8};
        return 0;
    }
    if (eat(r, "reftable")) {
        if (checked_subscript(r, im->reftable_clusters * im->cs / 8, &i) < 0)
            return -1;
        *out = (struct spot){.off = im->reftable_off + 8 * i, .len = 8};
        return 0;
    }
    if (eat(r, "bitmap")) {
        if (checked_subscript(r, im->l->bitmaps.n, &i) < 0 || bitmap_at(r, i, &off) < 0)
            return -1;
        return field_of(r, bitmap_fields, off, out);
    }
    if (eat(r, "ext")) {
        if (subscript(r, &i) < 0 || extension_at(r, i, &off) < 0)
            return -1;
        return field_of(r, ext_fields, off, out);
    }
    return 1;
}

/* "@l1", "@data[3]": where in the file something lies */
static int
address(struct reader *r, uint64_t *out)
{
    struct qm_forge_image *im = r->im;
    struct spot spot;
    uint64_t i;

    if (eat(r, "l1"))
        *out = im->active.l1_off;
    else if (eat(r, "reftable"))
        *out = im->reftable_off;
    else if (eat(r, "snapshots"))
        *out = im->snapshots_off;
    else if (eat(r, "bitmapdir"))
        *out = im->bitmap_dir_off;
    else if (eat(r, "luks"))
        *out = im->crypto_off;
    else if (eat(r, "eof"))
        *out = (uint64_t)lseek(im->fd, 0, SEEK_END);
    else if (eat(r, "cluster"))
        *out = im->cs;
    else if (eat(r, "refblock")) {
        if (checked_subscript(r, im->refblocks.n, &i) < 0)
            return -1;
        *out = im->refblocks.at[i];
    } else if (eat(r, "l2table")) {
        if (checked_subscript(r, im->active.l1_entries, &i) < 0)
            return -1;
        *out = im->active.l2_offs[i];
    } else if (eat(r, "snapl1")) {
        if (checked_subscript(r, im->l->snapshots.n, &i) < 0)
            return -1;
        *out = im->snaps[i].l1_off;
    } else if (eat(r, "ext")) {
        return subscript(r, &i) < 0 ? -1 : extension_at(r, i, out);
    } else if (eat(r, "data")) {
        if (l2_spot(r, &spot) < 0 || read_spot(r, &spot, out) < 0)
            return -1;
        /* specification: compressed entries have a byte address, fewer bits of it */
        if (*out >> 62 & 1)
            *out &= (1ull << (62 - ((unsigned)__builtin_ctzll(im->cs) - 8))) - 1;
        else
            *out &= 0x00fffffffffffe00ull;
    } else {
        return wrong(r, "no such address");
    }
    return 0;
}

static int
term(struct reader *r, uint64_t *out)
{
    struct spot spot;
    char word[40];
    size_t n;
    int is;

    skip_blanks(r);
    if (eat(r, "@"))
        return address(r, out);
    if (eat(r, "copied")) {
        *out = 1ull << 63;
        return 0;
    }
    if (eat(r, "compressed")) {
        *out = 1ull << 62;
        return 0;
    }
    if (isdigit((unsigned char)*r->s)) {
        n = strspn(r->s, "0123456789abcdefABCDEFxkMGTPE");
        if (n >= sizeof word)
            return wrong(r, "a long number");
        memcpy(word, r->s, n);
        word[n] = '\0';
        r->s += n;
        return qm_forge_number(word, r->im->cs, out) ? 0 : wrong(r, "no number before");
    }
    is = place(r, &spot);
    if (is < 0)
        return -1;
    return is == 0 ? read_spot(r, &spot, out) : wrong(r, "no value");
}

static int
expression(struct reader *r, uint64_t *out)
{
    uint64_t v;

    if (term(r, out) < 0)
        return -1;
    for (;;) {
        char op;

        skip_blanks(r);
        op = *r->s;
        if (!op || !strchr("+-|&", op))
            return 0;
        r->s++;
        if (term(r, &v) < 0)
            return -1;
        if (op == '+')
            *out += v;
        else if (op == '-')
            *out -= v;
        else if (op == '&')
            *out &= v;
        else
            *out |= v;
    }
}

static int
read_spot(struct reader *r, const struct spot *spot, uint64_t *out)
{
    unsigned char bytes[8] = {0};
    uint64_t v = 0;

    if (pread(r->im->fd, bytes, spot->len, (off_t)spot->off) < 0)
        return qm_fail_sys(r->im->err, qm_at(r->im->path, spot->off), "cannot read");
    for (unsigned i = 0; i < spot->len; i++)
        v = v << 8 | bytes[i];
    if (spot->bits)
        v = v >> spot->shift & ((1u << spot->bits) - 1);
    *out = v;
    return 0;
}

static int
write_spot(struct reader *r, const struct spot *spot, uint64_t v)
{
    unsigned char bytes[8];

    if (spot->bits) {
        const uint64_t mask = ((1u << spot->bits) - 1) << spot->shift;
        uint64_t old;

        if (get(r, spot->off, 1, &old) < 0)
            return -1;
        v = (old & ~mask) | (v << spot->shift & mask);
    }
    for (unsigned i = 0; i < spot->len; i++)
        bytes[i] = (unsigned char)(v >> (8 * (spot->len - 1 - i)));
    return qm_forge_pwrite(r->im->fd, r->im->path, bytes, spot->len, spot->off, r->im->err);
}

/* bytes OFFSET HEX */
static int
poke_bytes(struct reader *r)
{
    uint64_t off;
    unsigned byte;
    int used;

    if (expression(r, &off) < 0)
        return -1;
    for (skip_blanks(r); *r->s; r->s += used, off++) {
        unsigned char b;

        if (sscanf(r->s, "%2x%n", &byte, &used) != 1)
            return wrong(r, "no hexadecimal digits");
        b = (unsigned char)byte;
        if (qm_forge_pwrite(r->im->fd, r->im->path, &b, 1, off, r->im->err) < 0)
            return -1;
    }
    return 0;
}

static int
poke(struct reader *r)
{
    static const struct field widths[] = {
        {"u8", 0, 1}, {"u16", 0, 2}, {"u32", 0, 4}, {"u64", 0, 8}, {NULL, 0, 0}};
    struct spot spot = {0};
    uint64_t v;
    int is = 1;

    if (eat(r, "bytes"))
        return poke_bytes(r);
    for (const struct field *w = widths; w->name; w++)
        if (eat(r, w->name)) {
            spot.len = w->len;
            if (expression(r, &spot.off) < 0)
                return -1;
            is = 0;
        }
    if (is != 0)
        is = place(r, &spot);
    if (is < 0)
        return -1;
    if (is > 0 || !eat(r, "="))
        return wrong(r, "write: poke PLACE = VALUE");
    if (expression(r, &v) < 0)
        return -1;
    return *r->s ? wrong(r, "text after the value") : write_spot(r, &spot, v);
}

int
qm_forge_damage(struct qm_forge_image *im, const struct qm_forge_damage *damage, const char *recipe)
{
    struct reader r = {.im = im, .damage = damage, .recipe = recipe, .s = damage->text};
    uint64_t len;

    if (eat(&r, "poke"))
        return poke(&r);
    if (!eat(&r, "truncate") || expression(&r, &len) < 0)
        return wrong(&r, "write: truncate LENGTH");
    if (ftruncate(im->fd, (off_t)len) < 0)
        return qm_fail_sys(im->err, qm_in(im->path), "cannot set the length");
    return 0;
}
