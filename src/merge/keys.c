/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "keys.h"

#include "cipher.h"

#include <string.h>
#include <sys/stat.h>

/* The secret names the layer's file, by whatever path. */
static bool
is_named(const struct qmeld_secret *s, const struct qm_layer *layer)
{
    const struct qm_file *f = layer->img->file;
    struct stat st;

    if (!s->layer)
        return false;
    if (strcmp(s->layer, layer->path) == 0)
        return true;
    if (stat(s->layer, &st) < 0)
        return false;
    return f->blockdev ? S_ISBLK(st.st_mode) && st.st_rdev == f->dev
                       : S_ISREG(st.st_mode) && st.st_dev == f->dev && st.st_ino == f->ino;
}

static bool
is_any_named(const struct qmeld_secrets *secrets, const struct qm_layer *layer)
{
    for (size_t i = 0; i < secrets->n; i++)
        if (is_named(&secrets->list[i], layer))
            return true;
    return false;
}

/* It is one that may open this layer. */
static bool
is_for(const struct qmeld_secret *s, const struct qm_layer *layer, bool by_name)
{
    return by_name ? is_named(s, layer) : !s->layer;
}

static size_t
count_for(const struct qmeld_secrets *secrets, const struct qm_layer *layer, bool by_name)
{
    size_t n = 0;

    for (size_t i = 0; i < secrets->n; i++)
        n += is_for(&secrets->list[i], layer, by_name);
    return n;
}

static int
try_all(struct qm_layer *layer, const struct qmeld_secrets *secrets, bool by_name,
        struct qmeld_error *err)
{
    struct qm_image *img = layer->img;

    for (size_t i = 0; i < secrets->n; i++) {
        const struct qmeld_secret *s = &secrets->list[i];
        bool open;

        if (!is_for(s, layer, by_name))
            continue;
        if (s->len > QMELD_MAX_SECRET)
            return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                           "a passphrase of %zu bytes, the limit is %u: give another file", s->len,
                           QMELD_MAX_SECRET);
        if (qm_cipher_unlock(img->cipher, img->file, s->data, s->len, &open, err) < 0)
            return -1;
        if (open) {
            layer->secret = s;
            return 0;
        }
    }
    return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                   "the passphrase does not open it (all bytes of its file count, a newline at the "
                   "end, too): give the right one, with --secret FILE or --secret %s=FILE",
                   layer->path);
}

/* The keys of the same file in a chain that is open. */
static bool
take_over(struct qm_layer *layer, const struct qm_chain *opened)
{
    for (size_t i = 0; opened && i < opened->n; i++) {
        const struct qm_image *img = opened->layers[i].img;

        if (!img || !img->cipher || !qm_cipher_is_open(img->cipher) ||
            !qm_file_same(img->file, layer->img->file))
            continue;
        qm_cipher_share(layer->img->cipher, img->cipher);
        layer->secret = opened->layers[i].secret;
        return true;
    }
    return false;
}

static int
refuse(const struct qm_layer *layer, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                   "the image is encrypted (%s): give its passphrase in a file, with --secret FILE",
                   qm_cipher_name(layer->img->cipher));
}

int
qm_keys_unlock(struct qm_layer *layer, const struct qm_chain_options *opts, struct qmeld_error *err)
{
    static const struct qmeld_secrets none;
    const struct qmeld_secrets *secrets = opts->secrets ? opts->secrets : &none;
    const struct qm_cipher *cipher = layer->img->cipher;
    bool by_name;
    size_t n;

    if (!cipher || opts->keys == QM_KEYS_NONE || take_over(layer, opts->opened))
        return 0;
    by_name = is_any_named(secrets, layer);
    n = count_for(secrets, layer, by_name);
    if (n == 0)
        return opts->keys == QM_KEYS_IF_GIVEN ? 0 : refuse(layer, err);
    if (n > 1 && !qm_cipher_knows_its_key(cipher))
        return qm_fail(err, QMELD_USAGE, qm_in(layer->path),
                       "any passphrase opens its legacy encryption (AES), also a wrong one: say "
                       "which is right, with --secret %s=FILE",
                       layer->path);
    return try_all(layer, secrets, by_name, err);
}
