/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "secret.h"

#include <openssl/crypto.h>
#include <sys/mman.h>

void *
qm_secret_new(size_t len)
{
    void *p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (p == MAP_FAILED)
        return NULL;
    (void)madvise(p, len, MADV_DONTDUMP);
    return p;
}

void
qm_secret_free(void *p, size_t len)
{
    if (!p)
        return;
    OPENSSL_cleanse(p, len);
    (void)munmap(p, len);
}
