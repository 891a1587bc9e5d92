/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "forge_crypt.h"

#include "bytes.h"
#include "cleanup.h"

#include <openssl/evp.h>
#include <string.h>

/* LUKS1 On-Disk Format Specification; aes-128-xts-plain64 with SHA-256, as qemu-img makes it. */
#define KEY        32u
#define STRIPES    4000u
#define DIGEST     32u
#define ITERATIONS 10u     /* tests open many images */
#define MATERIAL   4096u   /* where key slot 0 has it */
#define SLOT       131072u /* from one slot's to the next: 4 KiB aligned, as QEMU wants it */
#define SECTOR     512u

uint64_t
qm_forge_crypt_region(const struct qm_forge_layer *l)
{
    return l->luks ? MATERIAL + SLOT * (l->luks_slots ? l->luks_slots : 8u) : 0;
}

static int
broken(struct qm_forge_image *im)
{
    return qm_fail(im->err, QMELD_UNSUPPORTED, qm_in(im->path), "libcrypto does not encrypt");
}

/* Bytes that follow from the passphrase, and look like nothing. */
static bool
noise(const char *pass, const char *what, unsigned char *out, size_t len)
{
    for (size_t at = 0, i = 0; at < len; at += DIGEST, i++) {
        unsigned char digest[DIGEST];
        char text[256];
        const int n = snprintf(text, sizeof text, "%s %zu %s", what, i, pass);

        if (n < 0 || (size_t)n >= sizeof text ||
            EVP_Digest(text, (size_t)n, digest, NULL, EVP_sha256(), NULL) != 1)
            return false;
        memcpy(out + at, digest, len - at < DIGEST ? len - at : DIGEST);
    }
    return true;
}

static bool
sectors(const EVP_CIPHER *cipher, const unsigned char *key, uint64_t sector, unsigned char *buf,
        size_t len)
{
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    bool good = ctx && EVP_EncryptInit_ex(ctx, cipher, NULL, key, NULL) == 1 &&
                EVP_CIPHER_CTX_set_padding(ctx, 0) == 1;

    for (size_t at = 0; good && at < len; at += SECTOR, sector++) {
        unsigned char iv[16] = {0};
        int n = 0;

        for (unsigned i = 0; i < 8; i++)
            iv[i] = (unsigned char)(sector >> 8 * i);
        good = EVP_EncryptInit_ex(ctx, NULL, NULL, NULL, iv) == 1 &&
               EVP_EncryptUpdate(ctx, buf + at, &n, buf + at, SECTOR) == 1 && n == SECTOR;
    }
    EVP_CIPHER_CTX_free(ctx);
    return good;
}

int
qm_forge_encrypt(struct qm_forge_image *im, uint64_t guest, uint64_t host, void *buf, size_t len)
{
    unsigned char key[KEY] = {0};

    if (im->l->luks)
        return noise(im->l->luks, "key", key, KEY) &&
                       sectors(EVP_aes_128_xts(), key, host / SECTOR, buf, len)
                   ? 0
                   : broken(im);
    if (!im->l->aes)
        return 0;
    memcpy(key, im->l->aes, strnlen(im->l->aes, 16));
    return sectors(EVP_aes_128_cbc(), key, guest / SECTOR, buf, len) ? 0 : broken(im);
}

/* The key, split: all stripes but the last are noise (figure 4, AFsplit). */
static bool
split(const char *pass, const unsigned char *key, unsigned char *out)
{
    unsigned char d[KEY] = {0};

    if (!noise(pass, "stripes", out, KEY * (STRIPES - 1)))
        return false;
    for (unsigned i = 0; i < STRIPES - 1; i++) {
        for (unsigned k = 0; k < KEY; k++)
            d[k] ^= out[i * KEY + k];
        for (unsigned k = 0; k < KEY / DIGEST; k++) {
            unsigned char in[4 + DIGEST] = {0, 0, 0, (unsigned char)k};

            memcpy(in + 4, d + k * DIGEST, DIGEST);
            if (EVP_Digest(in, sizeof in, d + k * DIGEST, NULL, EVP_sha256(), NULL) != 1)
                return false;
        }
    }
    for (unsigned k = 0; k < KEY; k++)
        out[(STRIPES - 1) * KEY + k] = d[k] ^ key[k];
    return true;
}

/* Figures 1 and 3; slots 1 to 7 are free. */
static bool
fill_header(const char *pass, const unsigned char *key, unsigned char *h)
{
    memcpy(h, "LUKS\xba\xbe\0\1", 8);
    memcpy(h + 8, "aes", 3);
    memcpy(h + 40, "xts-plain64", 11);
    memcpy(h + 72, "sha256", 6);
    be32_put((be32 *)(h + 104), (MATERIAL + 8 * SLOT) / SECTOR);
    be32_put((be32 *)(h + 108), KEY);
    be32_put((be32 *)(h + 164), ITERATIONS);
    memcpy(h + 168, "00000000-0000-0000-0000-000000000000", 36);
    for (unsigned i = 0; i < 8; i++) {
        unsigned char *s = h + 208 + 48 * i;

        be32_put((be32 *)s, i ? 0xdead : 0xac71f3);
        be32_put((be32 *)(s + 4), i ? 0 : ITERATIONS);
        be32_put((be32 *)(s + 40), (MATERIAL + i * SLOT) / SECTOR);
        be32_put((be32 *)(s + 44), STRIPES);
    }
    return noise(pass, "digest salt", h + 132, 32) && noise(pass, "salt", h + 208 + 8, 32) &&
           PKCS5_PBKDF2_HMAC((const char *)key, KEY, h + 132, 32, ITERATIONS, EVP_sha256(), 20,
                             h + 112) == 1;
}

int
qm_forge_write_luks(struct qm_forge_image *im)
{
    const char *pass = im->l->luks;
    const size_t len = (size_t)qm_forge_crypt_region(im->l);
    QM_FREE unsigned char *region = calloc(1, len + 1);
    unsigned char key[KEY], derived[KEY];

    if (len == 0)
        return 0;
    if (!region)
        return qm_fail_nomem(im->err, "a LUKS header");
    if (!noise(pass, "key", key, KEY) || !fill_header(pass, key, region) ||
        PKCS5_PBKDF2_HMAC(pass, (int)strlen(pass), region + 208 + 8, 32, ITERATIONS, EVP_sha256(),
                          KEY, derived) != 1 ||
        !split(pass, key, region + MATERIAL) ||
        !sectors(EVP_aes_128_xts(), derived, 0, region + MATERIAL, KEY * STRIPES))
        return broken(im);
    return qm_forge_pwrite(im->fd, im->path, region, len, im->crypto_off, im->err);
}
