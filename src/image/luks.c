/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "luks.h"

#include "addr.h"
#include "bytes.h"
#include "secret.h"

#include <assert.h>
#include <inttypes.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <string.h>

#define ADVICE "restore the image from a copy"

#define SLOT_ON  0x00ac71f3u
#define SLOT_OFF 0x0000deadu

/* LUKS1 On-Disk Format Specification, figures 1 and 3. */
struct luks_disk_slot {
    be32 state;             /*  0 */
    be32 iterations;        /*  4 */
    unsigned char salt[32]; /*  8 */
    be32 material;          /* 40, in sectors */
    be32 stripes;           /* 44 */
};
struct luks_disk_header {
    unsigned char magic[6];                     /*   0 */
    unsigned char version[2];                   /*   6 */
    char cipher[32];                            /*   8 */
    char mode[32];                              /*  40 */
    char hash[32];                              /*  72 */
    be32 payload;                               /* 104, in sectors; in qcow2 of no use */
    be32 key_len;                               /* 108 */
    unsigned char digest[20];                   /* 112 */
    unsigned char digest_salt[32];              /* 132 */
    be32 digest_iterations;                     /* 164 */
    char uuid[40];                              /* 168 */
    struct luks_disk_slot slots[QM_LUKS_SLOTS]; /* 208 */
};
static_assert(sizeof(struct luks_disk_slot) == 48, "spec size");
static_assert(offsetof(struct luks_disk_header, key_len) == 108, "spec offset");
static_assert(offsetof(struct luks_disk_header, slots) == 208, "spec offset");
static_assert(sizeof(struct luks_disk_header) == QM_LUKS_HEADER, "spec size");

/* One decoding. */
struct decoding {
    const char *file;
    uint64_t at;
    uint64_t region;
    struct luks_disk_header raw;
    struct qm_luks *out;
    struct qmeld_error *err;
};

#define PLACE(d, field)                                                                            \
    qm_at((d)->file, (d)->at + (uint64_t)((const char *)&(field) - (const char *)&(d)->raw))
#define CORRUPT(d, field, ...) qm_fail((d)->err, QMELD_CORRUPT, PLACE(d, field), __VA_ARGS__)
#define UNSUPPORTED(d, field, ...)                                                                 \
    qm_fail((d)->err, QMELD_UNSUPPORTED, PLACE(d, field), __VA_ARGS__)

/* ---- names ---- */

/* The hashes that QEMU knows: its name, libcrypto's, and how long a digest is. */
static const struct hash {
    const char *name;
    const char *libcrypto;
    uint32_t len;
} hashes[] = {
    {"md5", "MD5", 16},
    {"sha1", "SHA1", 20},
    {"sha224", "SHA224", 28},
    {"sha256", "SHA256", 32},
    {"sha384", "SHA384", 48},
    {"sha512", "SHA512", 64},
    {"ripemd160", "RIPEMD160", 20},
};

static const struct hash *
find_hash(const char *name)
{
    for (size_t i = 0; i < sizeof hashes / sizeof *hashes; i++)
        if (strcmp(hashes[i].name, name) == 0)
            return &hashes[i];
    return NULL;
}

static uint32_t
digest_len(const struct qm_luks *l)
{
    for (size_t i = 0; i < sizeof hashes / sizeof *hashes; i++)
        if (hashes[i].libcrypto == l->hash)
            return hashes[i].len;
    return 1;
}

/* A field that a NUL must end, and that is shown in errors: no more than that it is text. */
static int
check_text(const struct decoding *d, const char *field, size_t len, const char *what)
{
    if (!memchr(field, '\0', len))
        return CORRUPT(d, *field, "LUKS header: the name of its %s does not end: " ADVICE, what);
    for (size_t i = 0; field[i]; i++)
        if (field[i] <= ' ' || field[i] > '~')
            return CORRUPT(d, *field, "LUKS header: the name of its %s is no text: " ADVICE, what);
    return 0;
}

static int
take_hash(struct decoding *d)
{
    const struct hash *h;

    if (check_text(d, d->raw.hash, sizeof d->raw.hash, "hash") < 0)
        return -1;
    h = find_hash(d->raw.hash);
    if (!h)
        return UNSUPPORTED(d, d->raw.hash,
                           "LUKS with hash \"%s\" is not supported: convert the image with "
                           "qemu-img",
                           d->raw.hash);
    d->out->hash = h->libcrypto;
    return 0;
}

/* "plain", "plain64", "essiv:HASH" */
static bool
parse_ivgen(const char *text, struct qm_sectors_kind *out)
{
    const struct hash *h;

    if (strcmp(text, "plain") == 0 || strcmp(text, "plain64") == 0) {
        out->ivgen = text[5] ? QM_IV_PLAIN64 : QM_IV_PLAIN;
        return true;
    }
    if (strncmp(text, "essiv:", 6) != 0 || !(h = find_hash(text + 6)))
        return false;
    out->ivgen = QM_IV_ESSIV;
    out->essiv_hash = h->libcrypto;
    return h->len == 16 || h->len == 32; /* there are AES keys so long */
}

static bool
parse_mode(const char *text, struct qm_sectors_kind *out)
{
    static const char *const names[] = {[QM_MODE_ECB] = "ecb-",
                                        [QM_MODE_CBC] = "cbc-",
                                        [QM_MODE_CTR] = "ctr-",
                                        [QM_MODE_XTS] = "xts-"};

    for (unsigned i = 0; i < sizeof names / sizeof *names; i++)
        if (strncmp(text, names[i], 4) == 0) {
            out->mode = (enum qm_block_mode)i;
            return parse_ivgen(text + 4, out);
        }
    return false;
}

static int
take_cipher(struct decoding *d)
{
    const uint32_t key_len = be32_get(&d->raw.key_len);
    struct qm_sectors_kind *kind = &d->out->kind;

    if (check_text(d, d->raw.cipher, sizeof d->raw.cipher, "cipher") < 0 ||
        check_text(d, d->raw.mode, sizeof d->raw.mode, "mode") < 0)
        return -1;
    if (strcmp(d->raw.cipher, "aes") != 0)
        return UNSUPPORTED(d, d->raw.cipher,
                           "LUKS with cipher \"%s\" is not supported, only with aes: convert the "
                           "image with qemu-img",
                           d->raw.cipher);
    if (!parse_mode(d->raw.mode, kind))
        return UNSUPPORTED(d, d->raw.mode,
                           "LUKS with mode \"%s\" is not supported: convert the image with "
                           "qemu-img",
                           d->raw.mode);
    if (key_len != 32 && key_len != (kind->mode == QM_MODE_XTS ? 64 : 16))
        return UNSUPPORTED(d, d->raw.key_len,
                           "LUKS with keys of %" PRIu32
                           " bytes for mode \"%s\" is not supported: convert the image with "
                           "qemu-img",
                           key_len, d->raw.mode);
    kind->key_len = key_len;
    return 0;
}

/* ---- slots ---- */

/* Digests that a derivation of key bytes takes. */
static uint64_t
work_of(const struct qm_luks *l, uint32_t iterations, size_t bytes)
{
    return iterations * qm_div_up(bytes, digest_len(l));
}

static int
take_slot(struct decoding *d, unsigned i, uint64_t *work)
{
    const struct luks_disk_slot *raw = &d->raw.slots[i];
    struct qm_luks_slot *s = &d->out->slots[i];
    const uint32_t state = be32_get(&raw->state);

    if (state != SLOT_ON && state != SLOT_OFF)
        return CORRUPT(d, raw->state,
                       "LUKS header: key slot %u is neither in use nor free: " ADVICE, i);
    s->active = state == SLOT_ON;
    if (!s->active)
        return 0;
    s->iterations = be32_get(&raw->iterations);
    s->material = (uint64_t)be32_get(&raw->material) * QM_CIPHER_SECTOR;
    memcpy(s->salt, raw->salt, sizeof s->salt);
    if (s->iterations == 0)
        return CORRUPT(d, raw->iterations, "LUKS header: key slot %u has no iterations: " ADVICE,
                       i);
    if (be32_get(&raw->stripes) != QM_LUKS_STRIPES)
        return CORRUPT(d, raw->stripes,
                       "LUKS header: key slot %u has %" PRIu32 " stripes, not %u: " ADVICE, i,
                       be32_get(&raw->stripes), QM_LUKS_STRIPES);
    if (s->material < QM_LUKS_HEADER ||
        !qm_inside(s->material, qm_luks_material_len(d->out), d->region))
        return CORRUPT(d, raw->material,
                       "LUKS header: the key material of slot %u is not in the %" PRIu64
                       " bytes of its region: " ADVICE,
                       i, d->region);
    *work += work_of(d->out, s->iterations, d->out->kind.key_len) +
             work_of(d->out, d->out->digest_iterations, sizeof d->out->digest);
    return 0;
}

static int
check_overlaps(const struct decoding *d)
{
    const uint64_t len = qm_luks_material_len(d->out);

    for (unsigned i = 0; i < QM_LUKS_SLOTS; i++)
        for (unsigned k = 0; k < i; k++) {
            const struct qm_luks_slot *a = &d->out->slots[i], *b = &d->out->slots[k];

            if (a->active && b->active && a->material < b->material + len &&
                b->material < a->material + len)
                return CORRUPT(d, d->raw.slots[i].material,
                               "LUKS header: the key material of slots %u and %u overlaps: " ADVICE,
                               k, i);
        }
    return 0;
}

static int
take_slots(struct decoding *d)
{
    uint64_t work = 0;

    for (unsigned i = 0; i < QM_LUKS_SLOTS; i++)
        if (take_slot(d, i, &work) < 0)
            return -1;
    if (check_overlaps(d) < 0)
        return -1;
    if (work > QM_LUKS_MAX_WORK)
        return UNSUPPORTED(d, d->raw.slots[0].iterations,
                           "LUKS header: trying its key slots would take %" PRIu64
                           " digests, the limit is %u: give it slots with fewer iterations "
                           "(qemu-img amend)",
                           work, QM_LUKS_MAX_WORK);
    return 0;
}

int
qm_luks_decode(const char *file, uint64_t at, const void *raw, uint64_t region, struct qm_luks *out,
               struct qmeld_error *err)
{
    static const unsigned char magic[] = {'L', 'U', 'K', 'S', 0xba, 0xbe};
    struct decoding d = {.file = file, .at = at, .region = region, .out = out, .err = err};

    memset(out, 0, sizeof *out);
    memcpy(&d.raw, raw, sizeof d.raw);
    if (region < QM_LUKS_HEADER || memcmp(d.raw.magic, magic, sizeof magic) != 0)
        return CORRUPT(&d, d.raw.magic, "there is no LUKS header: " ADVICE);
    if (d.raw.version[0] != 0 || d.raw.version[1] != 1)
        return UNSUPPORTED(&d, d.raw.version,
                           "LUKS version %u is not supported, as QEMU does not know it in qcow2: "
                           "use the program that made it",
                           d.raw.version[0] << 8 | d.raw.version[1]);
    memcpy(out->digest, d.raw.digest, sizeof out->digest);
    memcpy(out->digest_salt, d.raw.digest_salt, sizeof out->digest_salt);
    out->digest_iterations = be32_get(&d.raw.digest_iterations);
    if (out->digest_iterations == 0)
        return CORRUPT(&d, d.raw.digest_iterations,
                       "LUKS header: the key's digest has no iterations: " ADVICE);
    return take_hash(&d) < 0 || take_cipher(&d) < 0 ? -1 : take_slots(&d);
}

size_t
qm_luks_material_len(const struct qm_luks *l)
{
    return l->kind.key_len * QM_LUKS_STRIPES;
}

/* ---- keys ---- */

struct qm_luks_desk *
qm_luks_desk_new(void)
{
    return qm_secret_new(sizeof(struct qm_luks_desk));
}

void
qm_luks_desk_free(struct qm_luks_desk *desk)
{
    qm_secret_free(desk, sizeof *desk);
}

static bool
derive(const EVP_MD *md, const void *pass, size_t len, const unsigned char *salt,
       uint32_t iterations, unsigned char *out, size_t out_len)
{
    return PKCS5_PBKDF2_HMAC(pass, (int)len, salt, 32, (int)iterations, md, (int)out_len, out) == 1;
}

/* Each piece of the block, as long as a digest, becomes the digest of its number and itself. */
static bool
diffuse(const EVP_MD *md, EVP_MD_CTX *ctx, unsigned char *block, size_t len)
{
    const size_t n = (size_t)EVP_MD_get_size(md);
    unsigned char digest[EVP_MAX_MD_SIZE];
    bool good = true;

    for (size_t at = 0; good && at < len; at += n) {
        be32 number;

        be32_put(&number, (uint32_t)(at / n));
        good = EVP_DigestInit_ex(ctx, md, NULL) == 1 &&
               EVP_DigestUpdate(ctx, &number, sizeof number) == 1 &&
               EVP_DigestUpdate(ctx, block + at, qm_min(n, len - at)) == 1 &&
               EVP_DigestFinal_ex(ctx, digest, NULL) == 1;
        if (good)
            memcpy(block + at, digest, qm_min(n, len - at));
    }
    OPENSSL_cleanse(digest, sizeof digest);
    return good;
}

/* The stripes become the key (the specification's AFmerge). */
static bool
merge_stripes(const EVP_MD *md, const unsigned char *stripes, unsigned char *key, size_t len)
{
    EVP_MD_CTX *ctx = EVP_MD_CTX_new();
    bool good = ctx != NULL;

    memset(key, 0, len);
    for (unsigned i = 0; good && i < QM_LUKS_STRIPES; i++) {
        for (size_t k = 0; k < len; k++)
            key[k] ^= stripes[i * len + k];
        good = i + 1 == QM_LUKS_STRIPES || diffuse(md, ctx, key, len);
    }
    EVP_MD_CTX_free(ctx);
    return good;
}

/* *out_good: libcrypto did it all. */
static int
try_key(const struct qm_luks *l, unsigned slot, const EVP_MD *md, const void *pass, size_t len,
        struct qm_luks_desk *desk, const char *file, bool *out_good, struct qmeld_error *err)
{
    const struct qm_luks_slot *s = &l->slots[slot];
    const size_t key_len = l->kind.key_len;
    struct qm_sectors *sectors;
    int rc;

    *out_good = derive(md, pass, len, s->salt, s->iterations, desk->derived, key_len);
    if (!*out_good)
        return 0;
    if (qm_sectors_new(&l->kind, desk->derived, file, &sectors, err) < 0)
        return -1;
    rc = qm_sectors_decrypt(sectors, 0, desk->material, qm_luks_material_len(l), err);
    qm_sectors_free(sectors);
    if (rc == 0)
        *out_good = merge_stripes(md, desk->material, desk->key, key_len);
    return rc;
}

int
qm_luks_open(const struct qm_luks *l, unsigned slot, const void *pass, size_t len,
             struct qm_luks_desk *desk, const char *file, bool *out_open, struct qmeld_error *err)
{
    unsigned char digest[sizeof l->digest];
    EVP_MD *md = EVP_MD_fetch(NULL, l->hash, NULL);
    bool good = md != NULL;
    int rc = 0;

    assert(l->slots[slot].active);
    *out_open = false;
    if (good)
        rc = try_key(l, slot, md, pass, len, desk, file, &good, err);
    if (rc == 0 && good) {
        good = derive(md, desk->key, l->kind.key_len, l->digest_salt, l->digest_iterations, digest,
                      sizeof digest);
        *out_open = good && CRYPTO_memcmp(digest, l->digest, sizeof digest) == 0;
    }
    EVP_MD_free(md);
    if (rc < 0 || good)
        return rc;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file),
                   "its hash is not done by this system's libcrypto: convert the image with "
                   "qemu-img");
}
