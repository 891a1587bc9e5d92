/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_inflate.c - RFC 1951, read with 64 bits at hand.
 *
 * A code's table is looked up with its first bits; longer codewords lead to a second table behind it.
 * An entry says how many bits the codeword has, how many extra bits follow, and what they are added
 * to.  Away from the ends of both buffers one refill is enough for a length and its distance, and copies
 * may write a few bytes too many; near the ends each step is checked.
 */
#include "qcow2_inflate.h"

#include <endian.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define MAX_CODEWORD 15
#define LITLEN_BITS  11
#define DIST_BITS    8
#define PRE_BITS     7 /* no codeword of that code is longer */

#define LITLEN_SYMBOLS 288
#define DIST_SYMBOLS   32
#define PRE_SYMBOLS    19

/* More than complete codes of so many symbols need for both tables; what would not fit is refused. */
#define LITLEN_ROOM 4096
#define DIST_ROOM   1024

#define MAX_MATCH 258
#define SLOP      16 /* bytes that a copy may write behind its end, and a refill read */

/* An entry: value, kind, bits of the codeword (or of this table's part of it), and these with the
 * extra bits: a symbol is done with one shift, and the value found beside that. */
enum kind { VALUE, END, MORE, INVALID, LITERAL };

#define ENTRY(kind, extra, value)                                                                  \
    ((uint32_t)(value) << 16 | (uint32_t)(kind) << 12 | (uint32_t)(extra))
#define ENTRY_OF_LEN(e, len) ((e) + (len)*0x101)
#define ENTRY_ALL(e)         ((unsigned char)(e))
#define ENTRY_BITS(e)        ((e) >> 8 & 15)
#define ENTRY_EXTRA(e)       (ENTRY_ALL(e) - ENTRY_BITS(e))
#define ENTRY_KIND(e)        ((enum kind)((e) >> 12 & 15))
#define ENTRY_VALUE(e)       ((e) >> 16)

struct stream {
    const unsigned char *in, *in_end;
    unsigned char *out, *out_start, *out_end;
    uint64_t bits;   /* the next ones, lowest first; above n_bits is what in will say anyway */
    unsigned n_bits; /* 63 at most */
};

struct qm_inflate {
    uint32_t litlen[LITLEN_ROOM];
    uint32_t dist[DIST_ROOM];
    uint32_t pre[1 << PRE_BITS];
};

struct qm_inflate *
qm_inflate_new(void)
{
    return calloc(1, sizeof(struct qm_inflate));
}

void
qm_inflate_free(struct qm_inflate *z)
{
    free(z);
}

/* ---- codes ---- */

static uint32_t
litlen_entry(unsigned symbol)
{
    static const uint16_t base[] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                    31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};

    if (symbol < 256)
        return ENTRY(LITERAL, 0, symbol);
    if (symbol == 256)
        return ENTRY(END, 0, 0);
    symbol -= 257;
    if (symbol >= sizeof base / sizeof *base)
        return ENTRY(INVALID, 0, 0);
    return ENTRY(VALUE, symbol < 8 || symbol == 28 ? 0 : symbol / 4 - 1, base[symbol]);
}

static uint32_t
dist_entry(unsigned symbol)
{
    const unsigned extra = symbol < 4 ? 0 : symbol / 2 - 1;

    if (symbol >= 30)
        return ENTRY(INVALID, 0, 0);
    return ENTRY(VALUE, extra, symbol < 4 ? symbol + 1 : ((2 + symbol % 2) << extra) + 1);
}

static uint32_t
pre_entry(unsigned symbol)
{
    return ENTRY(VALUE, 0, symbol);
}

struct code {
    uint32_t *table;
    unsigned table_bits;
    unsigned room; /* entries in all */
    uint32_t (*entry)(unsigned symbol);
};

/* Symbols by length of codeword, in counts and sorted; false if the code is not complete. */
static bool
sort_symbols(const unsigned char *lens, unsigned n, unsigned *counts, uint16_t *sorted)
{
    unsigned at[MAX_CODEWORD + 2] = {0};
    int left = 1;

    for (unsigned i = 0; i < n; i++)
        counts[lens[i]]++;
    for (unsigned len = 1; len <= MAX_CODEWORD; len++) {
        left = 2 * left - (int)counts[len];
        if (left < 0)
            return false;
        at[len + 1] = at[len] + counts[len];
    }
    for (unsigned i = 0; i < n; i++)
        if (lens[i])
            sorted[at[lens[i]]++] = (uint16_t)i;
    return left == 0;
}

static unsigned
reverse(unsigned word, unsigned n)
{
    unsigned r = 0;

    for (unsigned i = 0; i < n; i++)
        r |= (word >> i & 1) << (n - 1 - i);
    return r;
}

/* How many bits the second table needs for codewords of len bits and more that begin alike. */
static unsigned
second_bits(const unsigned *left_of, unsigned len, unsigned table_bits)
{
    unsigned n = len - table_bits;
    int room = 1 << n;

    for (;; n++, room *= 2) {
        room -= (int)left_of[table_bits + n];
        if (room <= 0 || table_bits + n == MAX_CODEWORD)
            return n;
    }
}

static bool
build(const struct code *c, const unsigned char *lens, unsigned n)
{
    unsigned counts[MAX_CODEWORD + 1] = {0}, word = 0, len = 1, next = 1u << c->table_bits;
    unsigned prefix = UINT32_MAX, second = 0, second_len = 0, n_symbols = 0;
    uint16_t sorted[LITLEN_SYMBOLS];

    if (!sort_symbols(lens, n, counts, sorted))
        return false;
    counts[0] = 0;
    for (unsigned i = 1; i <= MAX_CODEWORD; i++)
        n_symbols += counts[i];
    for (unsigned i = 0; i < n_symbols; i++, word++) {
        unsigned rev;

        while (counts[len] == 0) {
            word <<= 1;
            len++;
        }
        rev = reverse(word, len);
        if (len <= c->table_bits) {
            for (unsigned k = rev; k < 1u << c->table_bits; k += 1u << len)
                c->table[k] = ENTRY_OF_LEN(c->entry(sorted[i]), len);
            counts[len]--;
            continue;
        }
        if ((rev & ((1u << c->table_bits) - 1)) != prefix) {
            prefix = rev & ((1u << c->table_bits) - 1);
            second = next;
            second_len = second_bits(counts, len, c->table_bits);
            next += 1u << second_len;
            if (next > c->room)
                return false;
            c->table[prefix] = ENTRY_OF_LEN(ENTRY(MORE, second_len, second), c->table_bits);
        }
        for (unsigned k = rev >> c->table_bits; k < 1u << second_len;
             k += 1u << (len - c->table_bits))
            c->table[second + k] = ENTRY_OF_LEN(c->entry(sorted[i]), len - c->table_bits);
        counts[len]--;
    }
    return true;
}

static bool
build_both(struct qm_inflate *z, const unsigned char *lens, unsigned n_litlen, unsigned n_dist)
{
    const struct code litlen = {z->litlen, LITLEN_BITS, LITLEN_ROOM, litlen_entry};
    const struct code dist = {z->dist, DIST_BITS, DIST_ROOM, dist_entry};

    return build(&litlen, lens, n_litlen) && build(&dist, lens + n_litlen, n_dist);
}

/* ---- bits ---- */

/* Wherever 8 bytes can be read: 56 bits at least. */
static inline void
refill_fast(struct stream *s)
{
    uint64_t word;

    memcpy(&word, s->in, sizeof word);
    s->bits |= le64toh(word) << s->n_bits;
    s->in += (63 - s->n_bits) >> 3;
    s->n_bits |= 56;
}

static void
refill(struct stream *s)
{
    while (s->n_bits < 56 && s->in < s->in_end) {
        s->bits |= (uint64_t)*s->in++ << s->n_bits;
        s->n_bits += 8;
    }
}

static inline unsigned
peek(const struct stream *s, unsigned n)
{
    return (unsigned)(s->bits & ((1ull << n) - 1));
}

static inline void
drop(struct stream *s, unsigned n)
{
    s->bits >>= n;
    s->n_bits -= n;
}

/* Checked; at most 32 bits. */
static bool
take(struct stream *s, unsigned n, unsigned *out)
{
    if (s->n_bits < n)
        refill(s);
    if (s->n_bits < n)
        return false;
    *out = peek(s, n);
    drop(s, n);
    return true;
}

/* A symbol of a code, with its extra bits added. */
static bool
take_symbol(struct stream *s, const uint32_t *table, unsigned table_bits, uint32_t *out_entry,
            unsigned *out)
{
    uint32_t e;
    unsigned extra;

    refill(s);
    e = table[peek(s, table_bits)];
    if (ENTRY_KIND(e) == MORE) {
        if (s->n_bits < table_bits)
            return false;
        drop(s, table_bits);
        e = table[ENTRY_VALUE(e) + peek(s, ENTRY_EXTRA(e))];
    }
    if (s->n_bits < ENTRY_BITS(e))
        return false;
    drop(s, ENTRY_BITS(e));
    if (ENTRY_KIND(e) == INVALID || !take(s, ENTRY_EXTRA(e), &extra))
        return false;
    *out_entry = e;
    *out = ENTRY_VALUE(e) + extra;
    return true;
}

/* ---- blocks ---- */

static bool
stored(struct stream *s)
{
    unsigned len, not_len;

    drop(s, s->n_bits & 7);
    if (!take(s, 16, &len) || !take(s, 16, &not_len) || len != (~not_len & 0xffff))
        return false;
    s->in -= s->n_bits / 8; /* what was read ahead */
    s->bits = s->n_bits = 0;
    if ((size_t)(s->in_end - s->in) < len || (size_t)(s->out_end - s->out) < len)
        return false;
    memcpy(s->out, s->in, len);
    s->in += len;
    s->out += len;
    return true;
}

static bool
fixed_codes(struct qm_inflate *z)
{
    unsigned char lens[LITLEN_SYMBOLS + DIST_SYMBOLS];

    memset(lens, 8, 144);
    memset(lens + 144, 9, 112);
    memset(lens + 256, 7, 24);
    memset(lens + 280, 8, 8);
    memset(lens + LITLEN_SYMBOLS, 5, DIST_SYMBOLS);
    return build_both(z, lens, LITLEN_SYMBOLS, DIST_SYMBOLS);
}

/* RFC 1951, 3.2.7.  The limits 286 and 30 are zlib's. */
static bool
dynamic_codes(struct qm_inflate *z, struct stream *s)
{
    static const unsigned char order[PRE_SYMBOLS] = {16, 17, 18, 0, 8,  7, 9,  6, 10, 5,
                                                     11, 4,  12, 3, 13, 2, 14, 1, 15};
    const struct code pre = {z->pre, PRE_BITS, 1 << PRE_BITS, pre_entry};
    unsigned char lens[LITLEN_SYMBOLS + DIST_SYMBOLS] = {0}, pre_lens[PRE_SYMBOLS] = {0};
    unsigned n_litlen, n_dist, n_pre, len;

    if (!take(s, 5, &n_litlen) || !take(s, 5, &n_dist) || !take(s, 4, &n_pre) ||
        n_litlen + 257 > 286 || n_dist + 1 > 30)
        return false;
    n_litlen += 257;
    n_dist += 1;
    for (unsigned i = 0; i < n_pre + 4; i++) {
        if (!take(s, 3, &len))
            return false;
        pre_lens[order[i]] = (unsigned char)len;
    }
    if (!build(&pre, pre_lens, PRE_SYMBOLS))
        return false;
    for (unsigned i = 0; i < n_litlen + n_dist;) {
        unsigned symbol, more, times = 1;
        uint32_t e;

        if (!take_symbol(s, z->pre, PRE_BITS, &e, &symbol))
            return false;
        if (symbol >= 16) {
            if (!take(s, symbol == 16 ? 2 : symbol == 17 ? 3 : 7, &more))
                return false;
            times = more + (symbol == 18 ? 11 : 3);
        }
        if ((symbol == 16 && i == 0) || times > n_litlen + n_dist - i)
            return false;
        memset(lens + i, (int)(symbol < 16 ? symbol : symbol == 16 ? lens[i - 1] : 0), times);
        i += times;
    }
    return lens[256] != 0 && build_both(z, lens, n_litlen, n_dist);
}

/* Near an end: to the next symbol.  *out_end: of the block. */
static bool
step(const struct qm_inflate *z, struct stream *s, bool *out_end)
{
    unsigned len, dist;
    uint32_t e;

    if (!take_symbol(s, z->litlen, LITLEN_BITS, &e, &len))
        return false;
    *out_end = ENTRY_KIND(e) == END;
    if (*out_end)
        return true;
    if (ENTRY_KIND(e) == LITERAL) {
        if (s->out == s->out_end)
            return false;
        *s->out++ = (unsigned char)len;
        return true;
    }
    if (!take_symbol(s, z->dist, DIST_BITS, &e, &dist) || dist > (size_t)(s->out - s->out_start) ||
        len > (size_t)(s->out_end - s->out))
        return false;
    for (; len > 0; len--, s->out++)
        *s->out = s->out[-(ptrdiff_t)dist];
    return true;
}

/* Copies in words: up to SLOP bytes too many. */
static inline void
copy_match(unsigned char *to, size_t dist, size_t len)
{
    const unsigned char *from = to - dist, *end = to + len;

    if (dist == 1) {
        memset(to, *from, len);
    } else if (dist >= 8) {
        for (; to < end; to += 8, from += 8)
            memcpy(to, from, 8); /* the eight do not overlap */
    } else {
        while (to < end)
            *to++ = *from++;
    }
}

/* The second table's entry; drops the first table's bits. */
static inline uint32_t
look_further(struct stream *s, const uint32_t *table, uint32_t e)
{
    drop(s, ENTRY_BITS(e));
    return table[ENTRY_VALUE(e) + peek(s, ENTRY_EXTRA(e))];
}

static inline unsigned
value_of(struct stream *s, uint32_t e)
{
    const uint64_t bits = s->bits & ((1ull << ENTRY_ALL(e)) - 1);

    drop(s, ENTRY_ALL(e));
    return ENTRY_VALUE(e) + (unsigned)(bits >> ENTRY_BITS(e));
}

static inline uint32_t
put_literal(const struct qm_inflate *z, struct stream *s, uint32_t e)
{
    drop(s, ENTRY_BITS(e));
    *s->out++ = (unsigned char)ENTRY_VALUE(e);
    return z->litlen[peek(s, LITLEN_BITS)];
}

enum outcome { NEAR, BLOCK_END, BAD };

/* Far from both ends. */
static inline enum outcome
run_far(const struct qm_inflate *z, struct stream *at)
{
    struct stream s = *at; /* in registers: nothing that is written to can be a part of it */
    enum outcome o = NEAR;

    while (o == NEAR && s.in_end - s.in >= SLOP && s.out_end - s.out >= MAX_MATCH + SLOP) {
        unsigned len, dist;
        uint32_t e;

        refill_fast(&s);
        e = z->litlen[peek(&s, LITLEN_BITS)];
        if (ENTRY_KIND(e) == LITERAL) { /* 22 bits, and 15 for the next */
            e = put_literal(z, &s, e);
            if (ENTRY_KIND(e) == LITERAL)
                e = put_literal(z, &s, e);
        }
        if (ENTRY_KIND(e) == MORE)
            e = look_further(&s, z->litlen, e);
        if (ENTRY_KIND(e) == LITERAL) {
            (void)put_literal(z, &s, e);
            continue;
        }
        if (ENTRY_KIND(e) != VALUE) {
            drop(&s, ENTRY_BITS(e));
            o = ENTRY_KIND(e) == END ? BLOCK_END : BAD;
            break;
        }
        refill_fast(&s); /* 15 + 5 and 15 + 13 bits */
        len = value_of(&s, e);
        e = z->dist[peek(&s, DIST_BITS)];
        if (ENTRY_KIND(e) == MORE)
            e = look_further(&s, z->dist, e);
        dist = value_of(&s, e);
        if (ENTRY_KIND(e) != VALUE || dist > (size_t)(s.out - s.out_start)) {
            o = BAD;
            break;
        }
        copy_match(s.out, dist, len);
        s.out += len;
    }
    *at = s;
    return o;
}

#if defined(__x86_64__) && defined(__GNUC__)
/* With shifts that leave the flags alone: a tenth faster. */
__attribute__((target("bmi2"))) static enum outcome
run_far_bmi2(const struct qm_inflate *z, struct stream *at)
{
    return run_far(z, at);
}

static enum outcome
run_far_here(const struct qm_inflate *z, struct stream *at)
{
    return __builtin_cpu_supports("bmi2") ? run_far_bmi2(z, at) : run_far(z, at);
}
#else
#define run_far_here run_far
#endif

static bool
coded(const struct qm_inflate *z, struct stream *s)
{
    const enum outcome o = run_far_here(z, s);
    bool end = o == BLOCK_END;

    if (o == BAD)
        return false;
    while (!end)
        if (!step(z, s, &end))
            return false;
    return true;
}

bool
qm_inflate(struct qm_inflate *z, const void *src, size_t src_len, void *out, size_t out_len)
{
    struct stream s = {.in = src, .out = out, .out_start = out};
    unsigned last = 0, type;

    s.in_end = s.in + src_len;
    s.out_end = s.out + out_len;
    while (!last) {
        if (!take(&s, 1, &last) || !take(&s, 2, &type) || type == 3)
            return false;
        if (type == 0 ? !stored(&s)
                      : !(type == 1 ? fixed_codes(z) : dynamic_codes(z, &s)) || !coded(z, &s))
            return false;
    }
    return s.out == s.out_end;
}
