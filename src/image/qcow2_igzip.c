/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qcow2_igzip.h"

#include <limits.h>
#include <stdint.h>
#include <stdlib.h>

#ifdef QM_ISAL
#include <isa-l/igzip_lib.h>

struct qm_igzip {
    struct isal_zstream deflater;
    uint8_t *level_buf; /* NULL until the first deflate */
};

struct qm_igzip *
qm_igzip_new(void)
{
    return calloc(1, sizeof(struct qm_igzip));
}

void
qm_igzip_free(struct qm_igzip *g)
{
    if (!g)
        return;
    free(g->level_buf);
    free(g);
}

int
qm_igzip_deflate(struct qm_igzip *g, int level, const void *src, size_t src_len, void *out,
                 size_t out_cap, size_t *out_len)
{
    struct isal_zstream *z = &g->deflater;
    int rc;

    *out_len = 0;
    if (!g->level_buf)
        g->level_buf = malloc(ISAL_DEF_LVL3_DEFAULT);
    if (!g->level_buf || src_len > INT_MAX || out_cap > INT_MAX)
        return -1;
    isal_deflate_stateless_init(z);
    z->level = (uint32_t)level;
    z->level_buf = g->level_buf;
    z->level_buf_size = ISAL_DEF_LVL3_DEFAULT;
    z->hist_bits = QM_DEFLATE_WINDOW_BITS;
    z->end_of_stream = 1;
    z->next_in = (uint8_t *)(uintptr_t)src; /* ISA-L reads only, but its type does not say so */
    z->avail_in = (uint32_t)src_len;
    z->next_out = out;
    z->avail_out = (uint32_t)out_cap;
    rc = isal_deflate_stateless(z);
    if (rc == STATELESS_OVERFLOW)
        return 0;
    if (rc != COMP_OK || z->avail_in != 0)
        return -1;
    *out_len = out_cap - z->avail_out;
    return 0;
}

#else /* zlib does it all */

struct qm_igzip *
qm_igzip_new(void)
{
    return NULL;
}

void
qm_igzip_free(struct qm_igzip *g)
{
    (void)g;
}

int
qm_igzip_deflate(struct qm_igzip *g, int level, const void *src, size_t src_len, void *out,
                 size_t out_cap, size_t *out_len)
{
    (void)g, (void)level, (void)src, (void)src_len, (void)out, (void)out_cap, (void)out_len;
    return -1;
}
#endif
