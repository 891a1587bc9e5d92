/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * measure.c - the public call measure for new images.
 *
 * The arithmetic is QEMU's (7.2, block/qcow2.c: qcow2_measure, qcow2_calc_prealloc_size; qcow2-refcount.c:
 * qcow2_refcount_metadata_size; qcow2-bitmap.c: qcow2_get_persistent_dirty_bitmap_size), as whoever asks has its
 * numbers in his scripts: the metadata of a full image, and the clusters that hold data now.
 */
#include "chain.h"
#include "create.h"
#include "qcow2_disk.h"

#include <inttypes.h>
#include <string.h>

#define L1_ENTRY       8u
#define REFTABLE_ENTRY 8u
#define DIR_ENTRY      24u /* specification, "Bitmap directory": the fixed part */

/* ---- a qcow2 image without data ---- */

/* Clusters of refcount table and blocks, which count themselves. */
static uint64_t
refcount_clusters(uint64_t clusters, uint64_t cluster_size, unsigned refcount_bits)
{
    const uint64_t per_block = cluster_size * 8 / refcount_bits;
    const uint64_t per_table = cluster_size / REFTABLE_ENTRY;
    uint64_t blocks = 0, table = 0, last;

    do {
        last = blocks + table;
        blocks = qm_div_up(clusters + table + blocks, per_block);
        table = qm_div_up(blocks, per_table);
    } while (blocks + table != last);
    return blocks + table;
}

/* size: in whole clusters. */
static uint64_t
full_length(const struct qm_qcow2_create *want, uint64_t size)
{
    const uint64_t cs = want->cluster_size, entry = want->extended_l2 ? 16 : 8;
    const uint64_t l2 = qm_div_up(size / cs, cs / entry); /* tables, a cluster each */
    const uint64_t l1 = qm_div_up(l2, cs / L1_ENTRY);     /* clusters of the table */
    const uint64_t clusters = 1 + l2 + l1 + size / cs;    /* the header's is the first */

    return (clusters + refcount_clusters(clusters, cs, want->refcount_bits)) * cs;
}

/* ---- what the source has ---- */

struct count {
    uint64_t cluster_size;
    uint64_t next; /* clusters below this one are counted */
    uint64_t clusters;
};

static int
count_extent(const struct qmeld_extent *e, void *opaque)
{
    struct count *c = opaque;
    const uint64_t first = qm_max(e->start / c->cluster_size, c->next);
    const uint64_t end = qm_div_up(e->start + e->length, c->cluster_size);

    if (!e->present || !e->data || e->zero || first >= end)
        return 0;
    c->clusters += end - first;
    c->next = end;
    return 0;
}

/* Each as if all of it were stored. */
static uint64_t
bitmaps_length(const struct qmeld_layer_info *info, uint64_t cs)
{
    uint64_t sum = 0, dir = 0;

    for (size_t i = 0; i < info->n_bitmaps; i++) {
        const struct qmeld_bitmap_info *b = &info->bitmaps[i];
        const uint64_t bits = qm_div_up(info->virtual_size, b->granularity);
        const uint64_t clusters = qm_div_up(qm_div_up(bits, 8), cs);

        sum += clusters * cs + qm_align_up(clusters * sizeof(uint64_t), cs);
        dir += qm_align_up(DIR_ENTRY + strlen(b->name), 8);
    }
    return sum + qm_align_up(dir, cs);
}

/* ---- the call ---- */

static int
check_options(const struct qmeld_create_options *o, struct qm_qcow2_create *out,
              struct qmeld_error *err)
{
    const bool raw = !o->format || strcmp(o->format, "raw") == 0;

    if (!raw && strcmp(o->format, "qcow2") != 0)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_nowhere(),
                       "image format \"%.64s\" is not supported: only qcow2 and raw are",
                       o->format);
    if (qm_create_parse(NULL, o, out, err) < 0)
        return -1;
    if (!raw) {
        struct qm_qcow2_create alone = *out;

        alone.backing_name = alone.backing_format = NULL; /* where it is does not matter */
        return qm_qcow2_create_check(NULL, &alone, err);
    }
    if (o->version || o->cluster_size || o->refcount_bits || o->compression || o->extended_l2 ||
        o->lazy_refcounts || o->backing_name)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "these options are for qcow2 images: use format qcow2");
    return 0;
}

/* The length is that of chain, the data that of view: a snapshot, or the chain itself.  QEMU leaves the disk its
 * present size when it looks at a snapshot (block/qcow2-snapshot.c, qcow2_snapshot_load_tmp). */
static int
measure_chain(struct qmeld_chain *chain, struct qmeld_chain *view,
              const struct qmeld_create_options *o, const struct qm_qcow2_create *want,
              struct qmeld_measure *out, struct qmeld_error *err)
{
    const uint64_t cs = want->cluster_size;
    struct count c = {.cluster_size = cs};
    struct qmeld_layer_info info;
    uint64_t size;

    if (qmeld_chain_layer(chain, qmeld_chain_depth(chain) - 1, &info, err) < 0)
        return -1;
    out->required = out->fully_allocated = info.virtual_size;
    if (!o->format || strcmp(o->format, "raw") == 0)
        return 0;
    size = qm_align_up(info.virtual_size, cs);
    if (!o->backing_name && qmeld_map(view, 0, info.virtual_size, count_extent, &c, err) < 0)
        return -1;
    out->fully_allocated = full_length(want, size);
    out->required = out->fully_allocated - size;
    /* over a backing file nobody knows how much of it is shared; preallocated is all of it */
    out->required +=
        o->backing_name || want->prealloc >= QM_PREALLOC_FALLOC ? size : c.clusters * cs;
    out->has_bitmaps = want->version >= 3 && info.version >= 3;
    if (out->has_bitmaps)
        out->bitmaps = bitmaps_length(&info, cs);
    return 0;
}

static int
measure_path(const char *path, const struct qmeld_open_options *open,
             const struct qmeld_create_options *o, const struct qm_qcow2_create *want,
             struct qmeld_measure *out, struct qmeld_error *err)
{
    struct qmeld_open_options now = open ? *open : (struct qmeld_open_options){.format = NULL};
    struct qmeld_chain *chain, *snapshot = NULL;
    int rc;

    now.snapshot = NULL;
    if (qmeld_chain_open(path, &now, &chain, err) < 0)
        return -1;
    rc = open && open->snapshot ? qmeld_chain_open(path, open, &snapshot, err) : 0;
    if (rc == 0)
        rc = measure_chain(chain, snapshot ? snapshot : chain, o, want, out, err);
    qmeld_chain_close(snapshot);
    qmeld_chain_close(chain);
    return rc;
}

int
qmeld_measure_new(const char *path, const struct qmeld_open_options *open,
                  const struct qmeld_create_options *opts, struct qmeld_measure *out,
                  struct qmeld_error *err)
{
    static const struct qmeld_create_options defaults;
    const struct qmeld_create_options *o = opts ? opts : &defaults;
    struct qmeld_create_options checked = *o;
    struct qm_qcow2_create want;
    uint64_t size;

    memset(err, 0, sizeof *err);
    memset(out, 0, sizeof *out);
    if (path)
        checked.size = 0;
    if (check_options(&checked, &want, err) < 0)
        return -1;
    if (path)
        return measure_path(path, open, o, &want, out, err);
    if (o->size > QM_MAX_OFF - 511)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(), "%" PRIu64 " bytes is no size of a disk",
                       o->size);
    out->required = out->fully_allocated = qm_align_up(o->size, 512);
    if (!o->format || strcmp(o->format, "raw") == 0)
        return 0;
    size = qm_align_up(o->size, want.cluster_size);
    out->fully_allocated = full_length(&want, size);
    out->required = out->fully_allocated - (want.prealloc >= QM_PREALLOC_FALLOC ? 0 : size);
    return 0;
}
