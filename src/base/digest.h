/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * digest.h - SHA-256, and a Merkle tree over the leaves of a disk.
 *
 * Why.  A manifest (docs/manifest.md) says what every leaf of an image is, and one number over all of
 * them.  A disk of 64 TiB has 64 million leaves, nearly all of them the same zeros: so the
 * tree takes runs of equal leaves at once, in time that grows with the logarithm of the run.
 *
 * The tree   node of a leaf: SHA-256(00 || SHA-256 of the leaf's bytes); inner node: SHA-256(01 || left || right),
 *            split as RFC 6962, section 2.1, splits: the left side has the largest power of two below the number of
 *            leaves.  Root: SHA-256(02 || size || leaf size || top node), numbers as 8 bytes, big-endian; so neither a
 *            node nor another size can pass for it.  Without leaves the top node is SHA-256 of nothing.
 *
 * Threads    A digest and a tree belong to one thread at a time.
 * Ownership  free gives all back; NULL is fine.
 * Errors     new returns NULL without memory (or without SHA-256 in libcrypto).  The others cannot fail.
 */
#ifndef QM_DIGEST_H
#define QM_DIGEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qm_sha256 {
    unsigned char b[32];
};

struct qm_digest;

struct qm_digest *qm_digest_new(void);
void qm_digest_free(struct qm_digest *d);
void qm_digest_add(struct qm_digest *d, const void *bytes, size_t len);

/* len zeros; cost as of len bytes, but none are read. */
void qm_digest_add_zeros(struct qm_digest *d, uint64_t len);

/* The digest begins anew. */
struct qm_sha256 qm_digest_end(struct qm_digest *d);

/* All at once. */
struct qm_sha256 qm_digest_of(struct qm_digest *d, const void *bytes, size_t len);

bool qm_sha256_same(const struct qm_sha256 *a, const struct qm_sha256 *b);

struct qm_hex {
    char text[65];
};
struct qm_hex qm_sha256_hex(const struct qm_sha256 *s);

/* False: text is not 64 hexadecimal digits. */
bool qm_sha256_parse(const char *text, struct qm_sha256 *out);

/* ---- the tree ---- */

struct qm_tree {
    struct qm_digest *digest;  /* borrowed */
    uint64_t n;                /* leaves so far */
    struct qm_sha256 node[64]; /* of the whole subtrees of 1 << i leaves, where bit i of n is set */
};

void qm_tree_init(struct qm_tree *t, struct qm_digest *digest);

/* n leaves whose bytes have this SHA-256. */
void qm_tree_add(struct qm_tree *t, const struct qm_sha256 *leaf, uint64_t n);

struct qm_sha256 qm_tree_root(const struct qm_tree *t, uint64_t size, uint64_t leaf_size);

#endif
