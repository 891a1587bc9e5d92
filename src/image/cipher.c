/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "cipher.h"

#include "io.h"
#include "luks.h"

#include <openssl/crypto.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Keys, with as many ciphers as have them. */
struct keys {
    struct qm_sectors *sectors;
    _Atomic unsigned users;
};

struct qm_cipher {
    enum qm_cipher_method method;
    uint64_t region;
    uint64_t len;
    struct keys *keys; /* NULL: locked */
};

struct qm_cipher *
qm_cipher_new(enum qm_cipher_method method, uint64_t region, uint64_t len)
{
    struct qm_cipher *c = calloc(1, sizeof *c);

    if (c)
        *c = (struct qm_cipher){.method = method, .region = region, .len = len};
    return c;
}

static void
drop_keys(struct qm_cipher *c)
{
    if (c->keys && atomic_fetch_sub(&c->keys->users, 1) == 1) {
        qm_sectors_free(c->keys->sectors);
        free(c->keys);
    }
    c->keys = NULL;
}

void
qm_cipher_free(struct qm_cipher *c)
{
    if (!c)
        return;
    drop_keys(c);
    free(c);
}

const char *
qm_cipher_name(const struct qm_cipher *c)
{
    return c->method == QM_CIPHER_LUKS ? "LUKS" : "AES";
}

bool
qm_cipher_is_open(const struct qm_cipher *c)
{
    return c->keys != NULL;
}

bool
qm_cipher_may_write(const struct qm_cipher *c)
{
    return c->method == QM_CIPHER_LUKS;
}

bool
qm_cipher_knows_its_key(const struct qm_cipher *c)
{
    return c->method == QM_CIPHER_LUKS;
}

/* ---- keys ---- */

static int
take_key(struct qm_cipher *c, const struct qm_sectors_kind *kind, const void *key, const char *file,
         struct qmeld_error *err)
{
    struct keys *keys = calloc(1, sizeof *keys);

    if (!keys)
        return qm_fail_nomem(err, "the keys of an image");
    if (qm_sectors_new(kind, key, file, &keys->sectors, err) < 0) {
        free(keys);
        return -1;
    }
    keys->users = 1;
    drop_keys(c);
    c->keys = keys;
    return 0;
}

/* The passphrase is the key, cut or filled up with zeros (QEMU 7.2, crypto/block-qcow.c). */
static int
unlock_aes(struct qm_cipher *c, const char *file, const void *pass, size_t len,
           struct qmeld_error *err)
{
    const struct qm_sectors_kind kind = {
        .mode = QM_MODE_CBC, .ivgen = QM_IV_PLAIN64, .key_len = 16};
    unsigned char key[16] = {0};
    int rc;

    memcpy(key, pass, qm_min(len, sizeof key));
    rc = take_key(c, &kind, key, file, err);
    OPENSSL_cleanse(key, sizeof key);
    return rc;
}

static int
try_slots(struct qm_cipher *c, const struct qm_luks *l, const struct qm_file *file,
          const void *pass, size_t len, struct qm_luks_desk *desk, struct qmeld_error *err)
{
    for (unsigned i = 0; i < QM_LUKS_SLOTS; i++) {
        bool open;

        if (!l->slots[i].active)
            continue;
        if (qm_pread(file, c->region + l->slots[i].material, desk->material,
                     qm_luks_material_len(l), err) < 0 ||
            qm_luks_open(l, i, pass, len, desk, file->path, &open, err) < 0)
            return -1;
        if (open)
            return take_key(c, &l->kind, desk->key, file->path, err);
    }
    return 0;
}

static int
unlock_luks(struct qm_cipher *c, const struct qm_file *file, const void *pass, size_t len,
            struct qmeld_error *err)
{
    unsigned char raw[QM_LUKS_HEADER];
    struct qm_luks_desk *desk;
    struct qm_luks l;
    int rc;

    if (!qm_inside(c->region, c->len, QM_MAX_OFF) || c->len < sizeof raw)
        return qm_fail(err, QMELD_CORRUPT, qm_in(file->path),
                       "its encryption header is nowhere: restore the image from a copy");
    if (qm_pread(file, c->region, raw, sizeof raw, err) < 0 ||
        qm_luks_decode(file->path, c->region, raw, c->len, &l, err) < 0)
        return -1;
    desk = qm_luks_desk_new();
    if (!desk)
        return qm_fail_nomem(err, "the keys of an image");
    rc = try_slots(c, &l, file, pass, len, desk, err);
    qm_luks_desk_free(desk);
    return rc;
}

int
qm_cipher_unlock(struct qm_cipher *c, const struct qm_file *file, const void *pass, size_t len,
                 bool *out_open, struct qmeld_error *err)
{
    const int rc = c->method == QM_CIPHER_LUKS ? unlock_luks(c, file, pass, len, err)
                                               : unlock_aes(c, file->path, pass, len, err);

    *out_open = rc == 0 && c->keys;
    return rc;
}

void
qm_cipher_share(struct qm_cipher *c, const struct qm_cipher *open)
{
    if (c->keys == open->keys)
        return;
    drop_keys(c);
    c->keys = open->keys;
    if (c->keys)
        atomic_fetch_add(&c->keys->users, 1);
}

bool
qm_cipher_same(const struct qm_cipher *a, const struct qm_cipher *b)
{
    if (!a || !b)
        return a == b;
    /* a file has one LUKS header, and that one key */
    return a == b || (a->method == QM_CIPHER_LUKS && b->method == QM_CIPHER_LUKS);
}

/* ---- bytes ---- */

static uint64_t
sector_of(const struct qm_cipher *c, guest_off guest, host_off host)
{
    return (c->method == QM_CIPHER_LUKS ? host.h : guest.g) / QM_CIPHER_SECTOR;
}

static int
locked(const struct qm_cipher *c, const char *file, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_USAGE, qm_in(file),
                   "the image is encrypted (%s): give its passphrase in a file, with --secret FILE",
                   qm_cipher_name(c));
}

int
qm_cipher_decrypt(const struct qm_cipher *c, const char *file, guest_off guest, host_off host,
                  void *buf, size_t len, struct qmeld_error *err)
{
    if (!c->keys)
        return locked(c, file, err);
    return qm_sectors_decrypt(c->keys->sectors, sector_of(c, guest, host), buf, len, err);
}

int
qm_cipher_encrypt(const struct qm_cipher *c, const char *file, guest_off guest, host_off host,
                  void *buf, size_t len, struct qmeld_error *err)
{
    if (!c->keys)
        return locked(c, file, err);
    return qm_sectors_encrypt(c->keys->sectors, sector_of(c, guest, host), buf, len, err);
}
