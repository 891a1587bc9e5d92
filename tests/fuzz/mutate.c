/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * mutate.c - libFuzzer's mutator for targets whose inputs have images in them.
 *
 * Every fourth mutation is libFuzzer's own, on all of the input: lengths and options change by that alone.
 */
#include "mutate.h"

#include <string.h>

size_t LLVMFuzzerMutate(uint8_t *data, size_t len, size_t max);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed);

struct image {
    uint8_t *at;
    size_t len, cluster;
    uint64_t dice;
};

static uint64_t
any(struct image *m, uint64_t below)
{
    m->dice = m->dice * 6364136223846793005u + 1442695040888963407u;
    return (m->dice >> 33) % below;
}

static uint64_t
get(const struct image *m, uint64_t off, size_t width)
{
    uint64_t v = 0;

    for (size_t i = 0; i < width && off + i < m->len; i++)
        v = v << 8 | m->at[off + i];
    return v;
}

static void
put(struct image *m, uint64_t off, size_t width, uint64_t v)
{
    for (size_t i = width; i-- > 0; v >>= 8)
        if (off + i < m->len)
            m->at[off + i] = (uint8_t)v;
}

/* A cluster's offset, mostly one that the file has. */
static uint64_t
place(struct image *m)
{
    return (any(m, m->len / m->cluster + 2)) * m->cluster;
}

/* What an entry of a table could be. */
static uint64_t
entry(struct image *m, uint64_t was)
{
    static const uint64_t flags[] = {0, 0, 1ull << 63, 1ull << 63, 1, 1ull << 63 | 1, 1ull << 61};

    switch (any(m, 8)) {
    case 0:
        return 0;
    case 1:
        return was ^ 1ull << any(m, 64);
    case 2: /* compressed: sectors, then the place */
        return 1ull << 62 | any(m, 4) << 54 | any(m, m->len);
    case 3:
        return get(m, any(m, m->len / 8) * 8, 8);
    default:
        return place(m) | flags[any(m, sizeof flags / sizeof *flags)];
    }
}

/* Fields of the header (specification, "Header"): offset and width. */
static void
change_header(struct image *m)
{
    static const struct {
        uint8_t off, width;
    } fields[] = {{4, 4},  {8, 8},  {16, 4}, {20, 4}, {24, 8},  {32, 4},
                  {36, 4}, {40, 8}, {48, 8}, {56, 4}, {60, 4},  {64, 8},
                  {72, 8}, {80, 8}, {88, 8}, {96, 4}, {100, 4}, {104, 1}};
    const size_t i = any(m, sizeof fields / sizeof *fields);
    const uint64_t was = get(m, fields[i].off, fields[i].width);
    uint64_t now;

    switch (any(m, 5)) {
    case 0:
        now = was + 1 + any(m, 4);
        break;
    case 1:
        now = was - 1 - any(m, 4);
        break;
    case 2:
        now = any(m, 20);
        break;
    case 3:
        now = was ^ 1ull << any(m, 8 * fields[i].width);
        break;
    default:
        now = fields[i].width == 8 ? place(m) : was << 1;
    }
    put(m, fields[i].off, fields[i].width, now);
}

/* One entry of a table, or of a table that it leads to; half of them are in what the header names. */
static void
change_table(struct image *m)
{
    static const uint8_t roots[] = {40, 40, 48, 64};
    uint64_t table = get(m, roots[any(m, sizeof roots)], 8), was;
    uint64_t in_use =
        any(m, 2) ? m->cluster / 8 : 4; /* the first entries are the ones that are set */

    for (uint64_t depth = any(m, 3); depth > 0; depth--) {
        const uint64_t down = get(m, table + any(m, 4) * 8, 8) & 0x00fffffffffffe00ull;

        if (down == 0 || down >= m->len)
            break;
        table = down;
        in_use = 16;
    }
    table += any(m, in_use) * 8;
    was = get(m, table, 8);
    put(m, table, 8, entry(m, was));
}

/* A refcount, a bit of a bitmap, an entry of any table: in any cluster. */
static void
change_cluster(struct image *m)
{
    const uint64_t at = any(m, m->len / m->cluster + 1) * m->cluster;

    switch (any(m, 4)) {
    case 0:
        put(m, at + any(m, 32) * 2, 2, any(m, 4));
        break;
    case 1:
        put(m, at + any(m, m->cluster / 8) * 8, 8, entry(m, 0));
        break;
    case 2: { /* as another is */
        const uint64_t from = any(m, m->len / m->cluster + 1) * m->cluster;

        if (from < m->len && at < m->len && from != at) {
            const uint64_t most = m->len - (from > at ? from : at);

            memmove(m->at + at, m->at + from, most < m->cluster ? most : m->cluster);
        }
        break;
    }
    default:
        put(m, at + any(m, m->cluster), 1, any(m, 256));
    }
}

/* Header extensions: type and length; their bytes are left to libFuzzer. */
static void
change_extension(struct image *m)
{
    static const uint32_t types[] = {0,           0xe2792aca,  0x6803f857, 0x0537be77,
                                     0x23852875u, 0x44415441u, 0x12345678};
    uint64_t at = get(m, 4, 4) < 3 ? 72 : get(m, 100, 4);

    for (uint64_t n = any(m, 4), len; n > 0; n--) {
        len = get(m, at + 4, 4);
        if (len > m->cluster || at + 8 + len > m->len)
            break;
        at += 8 + (len + 7) / 8 * 8;
    }
    if (any(m, 3) == 0)
        put(m, at, 4, types[any(m, sizeof types / sizeof *types)]);
    else if (any(m, 2))
        put(m, at + 4, 4, any(m, 64));
    else
        put(m, at + 8 + any(m, 4) * 8, 8, any(m, 2) ? place(m) : any(m, 100));
}

static void
change_image(uint8_t *at, size_t len, unsigned seed)
{
    struct image m = {.at = at, .len = len, .dice = seed};
    uint64_t bits;

    if (len < 512)
        return;
    bits = get(&m, 20, 4);
    m.cluster = bits >= 9 && bits <= 16 ? (size_t)1 << bits : 512;
    for (uint64_t n = 1 + any(&m, 3); n > 0; n--)
        switch (any(&m, 8)) {
        case 0:
            change_header(&m);
            break;
        case 1:
            change_extension(&m);
            break;
        case 2:
        case 3:
            change_cluster(&m);
            break;
        default:
            change_table(&m);
        }
}

size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t len, size_t max, unsigned seed)
{
    struct qm_fuzz_span spans[2];
    size_t n;

    if (seed % 4 == 0 || (n = qm_fuzz_images(data, len, spans)) == 0)
        return LLVMFuzzerMutate(data, len, max);
    n = seed / 4 % n;
    change_image(data + spans[n].off, spans[n].len, seed / 8);
    return len;
}
