/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_luks.c - any bytes as a LUKS header with its key material.
 *
 * Every active slot is tried with one passphrase, if that is soon done.  Whatever the material is, no byte outside of it
 * is touched, and a key that is found opens the slot again.
 */
#include "fuzz.h"

#include "luks.h"

#include <stdlib.h>
#include <string.h>

static void
try_slot(const struct qm_luks *l, unsigned slot, const uint8_t *data, size_t len)
{
    struct qm_luks_desk *desk = qm_luks_desk_new();
    const size_t n = qm_luks_material_len(l);
    unsigned char key[QM_MAX_KEY];
    struct qmeld_error err;
    bool open = false;

    qm_fuzz_must(desk, "memory");
    qm_fuzz_must(n <= QM_LUKS_MATERIAL, "what is decoded has room");
    for (unsigned i = 0; i < 2; i++) {
        const uint64_t at = l->slots[slot].material;

        qm_fuzz_must(at <= len && n <= len - at, "the material lies in the region");
        memcpy(desk->material, data + at, n);
        if (qm_luks_open(l, slot, "x", 1, desk, "f", &open, &err) < 0)
            qm_fuzz_must(err.what[0], "a failure says why");
        else if (open && i == 0)
            memcpy(key, desk->key, sizeof key);
        else if (open)
            qm_fuzz_must(memcmp(key, desk->key, l->kind.key_len) == 0, "a slot has one key");
        if (!open)
            break;
    }
    qm_luks_desk_free(desk);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct qmeld_error err;
    struct qm_luks l;

    if (len < QM_LUKS_HEADER || !qm_fuzz_keys_are_cheap(data, len))
        return 0;
    if (qm_luks_decode("f", 4096, data, len, &l, &err) < 0) {
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
        return 0;
    }
    for (unsigned i = 0; i < QM_LUKS_SLOTS; i++)
        if (l.slots[i].active)
            try_slot(&l, i, data, len);
    return 0;
}
