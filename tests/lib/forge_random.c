/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_random.c - recipes at random, over every feature the format has.
 *
 * Prints text rather than structures: a chain that broke something can be kept, read, cut down
 * by hand, and named.
 */
#include "forge_recipe.h"

#include <inttypes.h>

struct dice {
    uint64_t state;
    FILE *out;
};

struct shape {
    uint64_t cluster;
    uint64_t size;
    unsigned version;
    unsigned refcount_bits;
    bool raw;
    bool extended_l2;
    bool data; /* pictures have a data cluster */
};

static uint64_t
roll(struct dice *d, uint64_t n)
{
    return qm_forge_below(&d->state, n);
}

static bool
one_in(struct dice *d, uint64_t n)
{
    return roll(d, n) == 0;
}

/* A mark that this kind of layer may have; density in percent of what is not absent. */
static char
mark(struct dice *d, const struct shape *s, unsigned density)
{
    uint64_t kind;

    if (roll(d, 100) >= density)
        return '.';
    kind = roll(d, 20);
    if (s->raw)
        return kind < 3 ? '0' : (char)('A' + roll(d, 26));
    if (kind < 3 && s->version == 3)
        return kind < 2 ? '0' : '=';
    if (kind == 3)
        return '~';
    if (kind < 8)
        return (char)('a' + roll(d, 26));
    if (s->extended_l2 && kind < 14)
        return '#';
    return (char)('A' + roll(d, 26));
}

static char
sub_mark(struct dice *d)
{
    uint64_t kind = roll(d, 10);

    if (kind < 4)
        return '.';
    if (kind < 6)
        return '0';
    if (kind == 6)
        return one_in(d, 2) ? '=' : '~';
    return (char)('A' + roll(d, 26));
}

/* Runs are likelier than single clusters, as on real disks. */
static uint64_t
picture(struct dice *d, const struct shape *s, uint64_t n, unsigned density, char *out)
{
    uint64_t subs = 0;

    for (uint64_t i = 0; i < n;) {
        char m = mark(d, s, density);
        uint64_t run = one_in(d, 2) ? 1 : 1 + roll(d, 6);

        for (; run && i < n; run--, i++) {
            out[i] = m;
            subs += m == '#';
        }
    }
    out[n] = '\0';
    return subs;
}

static void
print_subs(struct dice *d, const char *pic)
{
    for (size_t i = 0; pic[i]; i++) {
        char sub[33] = "";

        if (pic[i] != '#')
            continue;
        for (int k = 0; k < 32;) {
            char m = sub_mark(d);
            uint64_t run = 1 + roll(d, 8);

            for (; run && k < 32; run--)
                sub[k++] = m;
        }
        fprintf(d->out, "  sub %zu %s\n", i, sub);
    }
}

static void
print_features(struct dice *d, const struct shape *s)
{
    static const char *const styles[] = {"relative", "absolute", "file", "json"};

    const bool zstd = s->version == 3 && one_in(d, 3);

    fprintf(d->out, " version=%u", s->version);
    if (s->extended_l2)
        fputs(" extended_l2=1", d->out);
    if (s->version == 3) {
        if (s->refcount_bits != 16)
            fprintf(d->out, " refcount_bits=%u", s->refcount_bits);
        if (zstd)
            fputs(" compression=zstd", d->out);
        if (one_in(d, 6))
            fputs(" lazy=1", d->out);
        if (one_in(d, 12))
            fputs(" lazy=1 dirty=1", d->out);
        if (one_in(d, 8))
            fputs(" autoclear=0x100", d->out);
        if (one_in(d, 8))
            fputs(" compatible=0x8000", d->out);
        if (one_in(d, 6) && s->cluster > 512)
            fprintf(d->out, " header_len=%u", !zstd && one_in(d, 2) ? 104 : 120);
        if (one_in(d, 4) && s->cluster >= 4096)
            fputs(" feature_table=1", d->out);
    }
    if (one_in(d, 3))
        fprintf(d->out, " scatter=%" PRIu64, 1 + roll(d, 1000));
    if (one_in(d, 6))
        fprintf(d->out, " l1_extra=%" PRIu64, 1 + roll(d, 3));
    if (one_in(d, 4))
        fprintf(d->out, " ext=0x1234%04x:kept", (unsigned)roll(d, 65536));
    if (s->cluster >= 1024) /* a long directory name must fit the header, too */
        fprintf(d->out, " style=%s", styles[one_in(d, 2) ? 0 : roll(d, 4)]);
}

static struct shape
shape_of(struct dice *d, bool is_base, uint64_t around)
{
    static const unsigned bits[] = {9, 10, 12, 12, 14, 15, 16, 16, 16, 17, 21};
    struct shape s = {.version = one_in(d, 4) ? 2 : 3, .refcount_bits = 16};
    uint64_t sizes = 1 + roll(d, 2 * around);

    s.raw = is_base && one_in(d, 3);
    s.cluster = 1ull << bits[roll(d, sizeof bits / sizeof *bits)];
    while (around / s.cluster > 3000) /* pictures that still can be looked at */
        s.cluster *= 2;
    if (s.version == 3 && !s.raw) {
        s.extended_l2 = s.cluster >= 16384 && one_in(d, 3);
        if (one_in(d, 3))
            s.refcount_bits = 1u << roll(d, 7);
    }
    s.size = one_in(d, 2) ? around : sizes;
    if (!s.raw || one_in(d, 2))
        s.size = (s.size + 511) / 512 * 512;
    return s;
}

static void
print_snapshots(struct dice *d, const struct shape *s, const char *pic)
{
    static char old[8192];
    uint64_t n = roll(d, 3);

    for (uint64_t i = 0; i < n; i++) {
        bool same = one_in(d, 3);
        size_t k;

        for (k = 0; pic[k]; k++)
            old[k] = same || one_in(d, 2) ? '^' : mark(d, s, 50);
        for (k = 0; pic[k]; k++)
            if (old[k] == '#')
                old[k] = 'S';
        old[k] = '\0';
        fprintf(d->out, "  snapshot snap%" PRIu64 " %s\n", i, *old ? old : "-");
    }
}

static void
print_layer(struct dice *d, const char *file, bool is_base, uint64_t around)
{
    static char pic[8192];
    struct shape s = shape_of(d, is_base, around);
    uint64_t cells = (s.size + s.cluster - 1) / s.cluster;
    uint64_t subs = picture(d, &s, cells < 8000 ? cells : 8000, (unsigned)(10 + roll(d, 80)), pic);

    fprintf(d->out, "%s | %s size=%" PRIu64 " cluster=%" PRIu64, file, *pic ? pic : "-", s.size,
            s.cluster);
    if (s.raw)
        fputs(" format=raw", d->out);
    else
        print_features(d, &s);
    fputc('\n', d->out);
    if (subs)
        print_subs(d, pic);
    if (!s.raw && s.refcount_bits > 1 && one_in(d, 6))
        print_snapshots(d, &s, pic);
}

void
qm_forge_random(uint64_t seed, FILE *out)
{
    static const uint64_t sizes[] = {4096, 65536, 300000, 1u << 20, 3u << 20, 6u << 20};
    struct dice d = {.state = seed, .out = out};
    uint64_t n = one_in(&d, 10) ? 1 : 2 + roll(&d, 5);
    uint64_t around = sizes[roll(&d, sizeof sizes / sizeof *sizes)];

    fprintf(out, "# forge --random %" PRIu64 "\n", seed);
    for (uint64_t i = n; i--;) {
        char file[16];

        snprintf(file, sizeof file, "%c", (int)('a' + i)); /* a is the base */
        print_layer(&d, file, i == 0, around);
    }
}
