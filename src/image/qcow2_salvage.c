/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_salvage.c - decode, see which field was wrong, put that right, decode again.
 *
 * The decoder names the offset of the field that it stumbles over; so each rule is in one place, there, and
 * what may be done about it is here.
 */
#include "qcow2_salvage.h"

#include "qcow2.h"

#include <inttypes.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#define FIELD(name) offsetof(struct qcow2_disk_header, name)
#define MAX_ROUNDS  64u /* there are fewer fields; each extension that is wrong ends their list */

struct mending {
    unsigned char *area;
    size_t len;
    bool below_lost;
};

static void
lose_backing(struct mending *m, struct qcow2_disk_header *raw)
{
    be64_put(&raw->backing_off, 0);
    be32_put(&raw->backing_len, 0);
    m->below_lost = true;
}

/* A table that is too long is read as far as one can be; one that lies nowhere has no entries. */
static void
mend_l1(struct qcow2_disk_header *raw)
{
    if (be32_get(&raw->l1_entries) > QCOW2_MAX_L1_BYTES / sizeof(be64)) {
        be32_put(&raw->l1_entries, QCOW2_MAX_L1_BYTES / sizeof(be64));
        return;
    }
    be32_put(&raw->l1_entries, 0);
    be64_put(&raw->l1_off, 0);
}

/* The field itself says which compression it is, whatever its feature bit says. */
static void
mend_compression(struct qcow2_disk_header *raw)
{
    uint64_t bits = be64_get(&raw->incompatible) & ~(uint64_t)QCOW2_INCOMPAT_COMPRESSION;

    be64_put(&raw->incompatible, bits | (raw->compression ? QCOW2_INCOMPAT_COMPRESSION : 0));
}

/* Extensions end where one is wrong. */
static bool
end_extensions(struct mending *m, uint64_t off)
{
    if (off < QCOW2_V2_HEADER_LEN || off > m->len - sizeof(struct qcow2_disk_ext))
        return false;
    memset(m->area + off, 0, sizeof(struct qcow2_disk_ext));
    return true;
}

/* False: nothing can be done without this field. */
static bool
mend(struct mending *m, uint64_t off)
{
    struct qcow2_disk_header *raw =
        (struct qcow2_disk_header *)m->area; /* bytes: any address will do */

    switch (off) {
    case FIELD(header_len): /* of version 2 nobody asks for it */
        be32_put(&raw->header_len, QCOW2_V3_HEADER_LEN);
        return true;
    case FIELD(backing_off):
    case FIELD(backing_len):
        lose_backing(m, raw);
        return true;
    case FIELD(compression):
        mend_compression(raw);
        return true;
    case FIELD(refcount_order):
        be32_put(&raw->refcount_order, 4);
        return true;
    case FIELD(reftable_off):
    case FIELD(reftable_clusters):
        be64_put(&raw->reftable_off, 0);
        be32_put(&raw->reftable_clusters, 1);
        return true;
    case FIELD(snapshots_off):
        be64_put(&raw->snapshots_off, 0);
        be32_put(&raw->n_snapshots, 0);
        return true;
    case FIELD(l1_off):
        mend_l1(raw);
        return true;
    case FIELD(autoclear):
        be64_put(&raw->autoclear, be64_get(&raw->autoclear) & ~(uint64_t)QCOW2_AUTOCLEAR_RAW_DATA);
        return true;
    default:
        return off != FIELD(magic) && off != FIELD(version) && off != FIELD(cluster_bits) &&
               off != FIELD(l1_entries) && off != FIELD(crypt_method) && end_extensions(m, off);
    }
}

static void
tell(const struct qmeld_error *why, qmeld_finding_fn *fn, void *opaque)
{
    char sentence[sizeof why->file + sizeof why->what + 64];

    if (!fn)
        return;
    snprintf(sentence, sizeof sentence, "%s: left out of account: %s", why->file, why->what);
    fn(sentence, opaque);
}

int
qcow2_header_salvage(const char *file, void *area, size_t len, qmeld_finding_fn *fn, void *opaque,
                     struct qcow2_header *out, bool *out_below_lost, struct qmeld_error *err)
{
    struct mending m = {.area = area, .len = len};
    const enum qmeld_disk disk = err->disk;

    for (unsigned round = 0;; round++) {
        if (qcow2_header_decode(file, area, len, QCOW2_DECODE_SALVAGE, out, err) == 0)
            break;
        if (err->code != QMELD_CORRUPT || !err->has_off || round == MAX_ROUNDS ||
            len < sizeof(struct qcow2_disk_header))
            return -1;
        if (!mend(&m, err->off))
            return -1;
        tell(err, fn, opaque);
        *err = (struct qmeld_error){.disk = disk};
    }
    *out_below_lost = m.below_lost;
    return 0;
}

/* ---- a file that ends early ---- */

int
qm_qcow2_cut_to_file(const struct qm_qcow2 *q, struct qm_extent *ext, struct qmeld_error *err)
{
    const struct qm_file *file = ext->kind == QM_DATA ? q->img.data : q->img.file;
    const uint64_t at = ext->host.h;

    if (!(q->flags & QCOW2_DECODE_SALVAGE) || (ext->kind != QM_DATA && ext->kind != QM_COMPRESSED))
        return 0;
    if (at >= file->size)
        return qm_fail(err, QMELD_CORRUPT, qm_in(file->path),
                       "the file ends before the data at 0x%" PRIx64, at);
    if (ext->kind == QM_DATA && file->size - at < ext->len)
        ext->len = qm_min(ext->len, qm_align_up(file->size - at, 512));
    return 0;
}
