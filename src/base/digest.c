/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "digest.h"

#include "addr.h"
#include "bytes.h"

#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

struct qm_digest {
    EVP_MD *sha256;
    EVP_MD_CTX *ctx;
};

struct qm_digest *
qm_digest_new(void)
{
    struct qm_digest *d = calloc(1, sizeof *d);

    if (!d)
        return NULL;
    d->sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
    d->ctx = EVP_MD_CTX_new();
    if (d->sha256 && d->ctx && EVP_DigestInit_ex2(d->ctx, d->sha256, NULL) == 1)
        return d;
    qm_digest_free(d);
    return NULL;
}

void
qm_digest_free(struct qm_digest *d)
{
    if (!d)
        return;
    EVP_MD_CTX_free(d->ctx);
    EVP_MD_free(d->sha256);
    free(d);
}

/* Once a context is set up, SHA-256 computes and has nothing that could fail; a wrong number would pass for a
 * right one, so it is not gone on with. */
static void
must(int ok)
{
    if (ok != 1)
        abort();
}

void
qm_digest_add(struct qm_digest *d, const void *bytes, size_t len)
{
    must(EVP_DigestUpdate(d->ctx, bytes, len));
}

void
qm_digest_add_zeros(struct qm_digest *d, uint64_t len)
{
    static const unsigned char zeros[64u << 10]; /* stays in the nearest cache */

    while (len > 0) {
        const size_t n = (size_t)qm_min(len, sizeof zeros);

        must(EVP_DigestUpdate(d->ctx, zeros, n));
        len -= n;
    }
}

struct qm_sha256
qm_digest_end(struct qm_digest *d)
{
    struct qm_sha256 s;
    unsigned int len = sizeof s.b;

    must(EVP_DigestFinal_ex(d->ctx, s.b, &len));
    must(EVP_DigestInit_ex2(d->ctx, NULL, NULL));
    return s;
}

struct qm_sha256
qm_digest_of(struct qm_digest *d, const void *bytes, size_t len)
{
    qm_digest_add(d, bytes, len);
    return qm_digest_end(d);
}

bool
qm_sha256_same(const struct qm_sha256 *a, const struct qm_sha256 *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

struct qm_hex
qm_sha256_hex(const struct qm_sha256 *s)
{
    static const char digits[] = "0123456789abcdef";
    struct qm_hex hex;

    for (size_t i = 0; i < sizeof s->b; i++) {
        hex.text[2 * i] = digits[s->b[i] >> 4];
        hex.text[2 * i + 1] = digits[s->b[i] & 15];
    }
    hex.text[64] = '\0';
    return hex;
}

static int
digit(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool
qm_sha256_parse(const char *text, struct qm_sha256 *out)
{
    if (strlen(text) != 2 * sizeof out->b)
        return false;
    for (size_t i = 0; i < sizeof out->b; i++) {
        const int high = digit(text[2 * i]), low = digit(text[2 * i + 1]);

        if (high < 0 || low < 0)
            return false;
        out->b[i] = (unsigned char)(high << 4 | low);
    }
    return true;
}

/* ---- the tree ---- */

void
qm_tree_init(struct qm_tree *t, struct qm_digest *digest)
{
    *t = (struct qm_tree){.digest = digest};
}

static struct qm_sha256
inner(struct qm_digest *d, const struct qm_sha256 *left, const struct qm_sha256 *right)
{
    static const unsigned char mark = 1;

    qm_digest_add(d, &mark, 1);
    qm_digest_add(d, left->b, sizeof left->b);
    qm_digest_add(d, right->b, sizeof right->b);
    return qm_digest_end(d);
}

/* A whole subtree of 1 << height leaves, at a place where it belongs: t->n is a multiple of that. */
static void
push(struct qm_tree *t, struct qm_sha256 node, unsigned height)
{
    const uint64_t n = t->n + (1ull << height);

    for (; t->n >> height & 1; height++)
        node = inner(t->digest, &t->node[height], &node);
    t->node[height] = node;
    t->n = n;
}

void
qm_tree_add(struct qm_tree *t, const struct qm_sha256 *leaf, uint64_t n)
{
    static const unsigned char mark = 0;
    struct qm_sha256 whole[64]; /* of 1 << i such leaves */
    unsigned have = 0, height;

    if (n == 0)
        return;
    qm_digest_add(t->digest, &mark, 1);
    whole[0] = qm_digest_of(t->digest, leaf->b, sizeof leaf->b);
    while (n > 0) {
        height = 63u - (unsigned)__builtin_clzll(n);
        if (t->n > 0 && (unsigned)__builtin_ctzll(t->n) < height)
            height = (unsigned)__builtin_ctzll(t->n);
        for (; have < height; have++)
            whole[have + 1] = inner(t->digest, &whole[have], &whole[have]);
        push(t, whole[height], height);
        n -= 1ull << height;
    }
}

struct qm_sha256
qm_tree_root(const struct qm_tree *t, uint64_t size, uint64_t leaf_size)
{
    struct qm_sha256 top;
    bool has_top = false;
    unsigned char head[17] = {2};

    for (unsigned i = 0; i < 64; i++) {
        if (!(t->n >> i & 1))
            continue;
        top = has_top ? inner(t->digest, &t->node[i], &top) : t->node[i];
        has_top = true;
    }
    if (!has_top)
        top = qm_digest_of(t->digest, "", 0);
    be64_put((be64 *)(head + 1), size);
    be64_put((be64 *)(head + 9), leaf_size);
    qm_digest_add(t->digest, head, sizeof head);
    return qm_digest_of(t->digest, top.b, sizeof top.b);
}
