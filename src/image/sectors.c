/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * sectors.c - the key is set up once; each call works on a copy of that, as libcrypto's contexts are one thread's.
 */
#include "sectors.h"

#include "addr.h"

#include <assert.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <stdlib.h>
#include <string.h>

#define BLOCK 16u /* of AES */

struct qm_sectors {
    struct qm_sectors_kind kind;
    EVP_CIPHER_CTX *way[2]; /* decrypting, encrypting; key set */
    EVP_CIPHER_CTX *iv;     /* ESSIV, else NULL */
};

static const char *
name_of(const struct qm_sectors_kind *k)
{
    const bool is_long = k->key_len == (k->mode == QM_MODE_XTS ? 64 : 32);

    if (!is_long && k->key_len != (k->mode == QM_MODE_XTS ? 32 : 16))
        return NULL;
    switch (k->mode) {
    case QM_MODE_ECB:
        return is_long ? "AES-256-ECB" : "AES-128-ECB";
    case QM_MODE_CBC:
        return is_long ? "AES-256-CBC" : "AES-128-CBC";
    case QM_MODE_CTR:
        return is_long ? "AES-256-CTR" : "AES-128-CTR";
    case QM_MODE_XTS:
        return is_long ? "AES-256-XTS" : "AES-128-XTS";
    }
    return NULL;
}

static int
no_such(const char *file, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file),
                   "its cipher is not done by this system's libcrypto: convert the image with "
                   "qemu-img");
}

/* A context with this key; NULL: libcrypto will not. */
static EVP_CIPHER_CTX *
new_context(const char *name, const void *key, int encrypt)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    EVP_CIPHER *cipher = EVP_CIPHER_fetch(NULL, name, NULL);
    bool done = ctx && cipher && EVP_CipherInit_ex(ctx, cipher, NULL, key, NULL, encrypt) == 1 &&
                EVP_CIPHER_CTX_set_padding(ctx, 0) == 1;

    EVP_CIPHER_free(cipher);
    if (done)
        return ctx;
    EVP_CIPHER_CTX_free(ctx);
    return NULL;
}

/* ESSIV: AES with a key that is a digest of the key (QEMU takes the AES whose keys are as long as the digest). */
static EVP_CIPHER_CTX *
new_essiv(const struct qm_sectors_kind *kind, const void *key)
{
    unsigned char salt[EVP_MAX_MD_SIZE];
    EVP_CIPHER_CTX *ctx = NULL;
    unsigned len = 0;
    EVP_MD *md = EVP_MD_fetch(NULL, kind->essiv_hash, NULL);

    if (md && EVP_Digest(key, kind->key_len, salt, &len, md, NULL) == 1 && (len == 16 || len == 32))
        ctx = new_context(len == 32 ? "AES-256-ECB" : "AES-128-ECB", salt, 1);
    EVP_MD_free(md);
    OPENSSL_cleanse(salt, sizeof salt);
    return ctx;
}

int
qm_sectors_new(const struct qm_sectors_kind *kind, const void *key, const char *file,
               struct qm_sectors **out, struct qmeld_error *err)
{
    const char *name = name_of(kind);
    struct qm_sectors *s;

    *out = NULL;
    if (!name)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file),
                       "its keys of %zu bits are not supported: convert the image with qemu-img",
                       kind->key_len * 8);
    s = calloc(1, sizeof *s);
    if (!s)
        return qm_fail_nomem(err, "the keys of an image");
    s->kind = *kind;
    for (int encrypt = 0; encrypt < 2; encrypt++)
        s->way[encrypt] = new_context(name, key, encrypt);
    if (kind->ivgen == QM_IV_ESSIV)
        s->iv = new_essiv(kind, key);
    if (!s->way[0] || !s->way[1] || (kind->ivgen == QM_IV_ESSIV && !s->iv)) {
        qm_sectors_free(s);
        return no_such(file, err);
    }
    *out = s;
    return 0;
}

void
qm_sectors_free(struct qm_sectors *s)
{
    if (!s)
        return;
    EVP_CIPHER_CTX_free(s->way[0]); /* which wipes the key */
    EVP_CIPHER_CTX_free(s->way[1]);
    EVP_CIPHER_CTX_free(s->iv);
    free(s);
}

static bool
make_iv(const struct qm_sectors *s, EVP_CIPHER_CTX *essiv, uint64_t sector, unsigned char *out)
{
    const unsigned n = s->kind.ivgen == QM_IV_PLAIN ? 4 : 8;
    int len = 0;

    memset(out, 0, BLOCK);
    for (unsigned i = 0; i < n; i++)
        out[i] = (unsigned char)(sector >> 8 * i);
    return !essiv || (EVP_CipherUpdate(essiv, out, &len, out, BLOCK) == 1 && len == BLOCK);
}

/* A copy for this call. */
static EVP_CIPHER_CTX *
copy_of(const EVP_CIPHER_CTX *ctx)
{
    EVP_CIPHER_CTX *copy = EVP_CIPHER_CTX_new();

    if (copy && EVP_CIPHER_CTX_copy(copy, ctx) == 1)
        return copy;
    EVP_CIPHER_CTX_free(copy);
    return NULL;
}

static int
run(const struct qm_sectors *s, int encrypt, uint64_t sector, unsigned char *buf, size_t len,
    struct qmeld_error *err)
{
    EVP_CIPHER_CTX *ctx = copy_of(s->way[encrypt]);
    EVP_CIPHER_CTX *essiv = s->iv ? copy_of(s->iv) : NULL;
    bool good = ctx && (essiv || !s->iv);

    assert(len % BLOCK == 0);
    for (size_t at = 0; good && at < len; at += QM_CIPHER_SECTOR, sector++) {
        const int n = (int)qm_min(len - at, QM_CIPHER_SECTOR);
        unsigned char iv[BLOCK];
        int done = 0;

        good = make_iv(s, essiv, sector, iv) &&
               EVP_CipherInit_ex(ctx, NULL, NULL, NULL, iv, -1) == 1 &&
               EVP_CipherUpdate(ctx, buf + at, &done, buf + at, n) == 1 && done == n;
    }
    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER_CTX_free(essiv);
    return good ? 0 : qm_fail_nomem(err, "encrypting");
}

int
qm_sectors_decrypt(const struct qm_sectors *s, uint64_t sector, void *buf, size_t len,
                   struct qmeld_error *err)
{
    return run(s, 0, sector, buf, len, err);
}

int
qm_sectors_encrypt(const struct qm_sectors *s, uint64_t sector, void *buf, size_t len,
                   struct qmeld_error *err)
{
    return run(s, 1, sector, buf, len, err);
}
