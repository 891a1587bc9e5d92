/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_census.h - one pass over all metadata of a qcow2 image: who refers to what.
 *
 * Why.  Checking and mending need the same knowledge: every reference counted, every refcount
 * compared, every odd entry noted.  A census gathers it, writes nothing, and trusts nothing:
 * tables that many L1 entries or snapshots name are walked once and counted with a weight, so a
 * small hostile file cannot ask for a large amount of work, and an image with a hundred snapshots
 * costs hardly more than one with none.
 * Source     qemu 7.2, block/qcow2-refcount.c (what is counted as what); qcow2 specification.
 *
 * Calls      qm_census_take, then read the fields; qm_census_release.
 * Threads    One thread.
 * Ownership  The image is borrowed.
 * Errors     0 or -1 with *err: IO, NOMEM, UNSUPPORTED (a cap was hit).  Findings are no errors.
 */
#ifndef QM_QCOW2_CENSUS_H
#define QM_QCOW2_CENSUS_H

#include "qcow2.h"
#include "qcow2_count.h"

#define QCOW2_L1_RESERVED       0x7f000000000001ffull /* specification, "L1 table entry" */
#define QCOW2_REFTABLE_RESERVED 0x1ffull              /* "Refcount table entry" */
#define QCOW2_L2_ALL_ALLOC      0xffffffffull         /* "Extended L2 Entries", second word */

/* An L2 table, and how many entries of the active and of the snapshots' L1 tables name it. */
struct qm_l2_ref {
    uint64_t off;
    uint64_t active;
    uint64_t inactive;
};

struct qm_span {
    uint64_t off;
    uint64_t len;
};

struct qm_spans {
    QM_VEC(struct qm_span) list;
};

/* What check needs of a snapshot table entry. */
struct qm_census_snapshot {
    uint64_t l1_off;
    uint32_t l1_entries;
    uint32_t extra_len;
    uint64_t off; /* of the entry, in the table */
    uint64_t len; /* of the entry with id and name, before the padding */
};

struct qm_census {
    /* set at the beginning */
    struct qm_qcow2 *q;
    qmeld_finding_fn *fn; /* may be NULL */
    void *opaque;
    bool drop_extra;        /* snapshot extra data that is too long is a finding, not an obstacle */
    uint64_t file_len;      /* rounded up to a sector, as QEMU sees it */
    uint64_t file_clusters; /* clusters of the file, the last one may be cut off */
    uint64_t disk_bytes;    /* the file takes so much of the disk */
    uint64_t *reftable;     /* host order */
    uint64_t reftable_entries;
    /* gathered */
    struct qm_count count;
    uint64_t n_clusters; /* clusters that are compared: those of the file, at times one more */
    QM_VEC(struct qm_l2_ref) l2; /* ascending, no offset twice */
    struct qm_spans metadata;    /* header, L1 tables, refcounts...; not L2 tables; joined */
    struct qm_spans outside;     /* what is referred to behind the file's end; joined */
    bool outside_lost;           /* and more than can be listed */
    QM_VEC(struct qm_census_snapshot) snapshots;
    uint64_t snapshots_len; /* bytes of their table */
    size_t l2_merged;       /* part of l2 that is sorted while it is gathered */
    uint64_t table_bytes;   /* of L2 tables read so far */
    unsigned n_unaligned;   /* L2 tables at odd places walked so far */
    /* what was found; their sum is QEMU's "corruptions" */
    uint64_t damaged;         /* entries that cannot be right: what they stood for may be lost */
    uint64_t damaged_blocks;  /* refcount table entries that cannot be right */
    uint64_t outside_blocks;  /* those among them that point behind the file's end */
    uint64_t too_low;         /* refcounts below the count */
    uint64_t copied_wrong;    /* COPIED flags that disagree with the refcount */
    uint64_t short_snapshots; /* snapshot entries without the extra data version 3 demands */
    uint64_t long_snapshots;  /* with more than QEMU takes (only with drop_extra) */
    /* and beside that */
    uint64_t shared;      /* active entries without COPIED flag: something else counts, too */
    uint64_t zeroable;    /* damaged entries without data, which can become plain zeros */
    uint64_t leaks;       /* refcounts above the count */
    uint64_t unreadable;  /* QEMU's "check-errors" */
    bool incomplete;      /* not everything could be counted: the counts must not be written */
    bool needs_rebuild;   /* a used cluster has refcount 0, or the refcount structure is broken */
    uint64_t end_cluster; /* the last one with a refcount or a reference */
    uint64_t allocated;
    uint64_t fragmented;
    uint64_t compressed;
};

enum qm_census_flags {
    QM_CENSUS_DROP_EXTRA = 1, /* see drop_extra */
};

/* Release *c in every case. */
int qm_census_take(struct qm_qcow2 *q, unsigned flags, qmeld_finding_fn *fn, void *opaque,
                   struct qm_census *c, struct qmeld_error *err) QM_CHECK;
void qm_census_release(struct qm_census *c);

static inline uint64_t
qm_census_corruptions(const struct qm_census *c)
{
    return c->damaged + c->damaged_blocks + c->too_low + c->copied_wrong + c->short_snapshots +
           c->long_snapshots;
}

/* True if [off, off + len) touches header, L1 tables, refcounts, snapshots or bitmaps. */
bool qm_census_is_metadata(const struct qm_census *c, uint64_t off, uint64_t len);

/* True if a cluster has exactly `weight` references.  A counter at the limit of the refcount
 * width may have lost some, which is damage. */
static inline bool
qm_census_counted(const struct qm_census *c, uint64_t cluster, uint64_t weight)
{
    const uint64_t n = qm_count_get(&c->count, cluster);

    return n == weight && (n < c->count.max || c->damaged == 0);
}

/* The refcount on disk.  *out_known is false if nobody can tell where it is. */
int qm_census_disk_refcount(const struct qm_census *c, uint64_t cluster, bool *out_known,
                            uint64_t *out, struct qmeld_error *err) QM_CHECK;

/* ---- between the files of the census ---- */

void qm_census_say(const struct qm_census *c, const char *fmt, ...)
    __attribute__((format(printf, 2, 3)));

/* Snapshot table, bitmaps and encryption header: read, and count what they refer to. */
int qm_census_read_snapshots(struct qm_census *c, struct qmeld_error *err) QM_CHECK;
int qm_census_count_snapshots(struct qm_census *c, struct qmeld_error *err) QM_CHECK;
int qm_census_count_bitmaps(struct qm_census *c, struct qmeld_error *err) QM_CHECK;
int qm_census_count_crypto(struct qm_census *c, struct qmeld_error *err) QM_CHECK;

/* Counts an L1 table as `active` and `inactive` references, and gathers what it names. */
int qm_census_count_l1(struct qm_census *c, uint64_t l1_off, uint64_t entries, uint64_t active,
                       uint64_t inactive, struct qmeld_error *err) QM_CHECK;

/* Something could not be counted. */
static inline void
qm_census_unreadable(struct qm_census *c)
{
    c->unreadable++;
    c->incomplete = true;
}

/* The image names more of something than any real one; returns -1. */
int qm_census_cap(const struct qm_census *c, const char *what, uint64_t most,
                  struct qmeld_error *err);

#define QM_CENSUS_SLICE      8192u        /* entries of an L1 or bitmap table read at once */
#define QM_CENSUS_MAX_TABLES (1ull << 26) /* entries of all L1 tables; of all bitmap tables */

/* Counts `weight` references to every cluster of [off, off + len). */
int qm_census_count(struct qm_census *c, uint64_t off, uint64_t len, uint64_t weight,
                    struct qmeld_error *err) QM_CHECK;

/* The same for a piece of metadata that must never be taken for something else. */
int qm_census_count_metadata(struct qm_census *c, uint64_t off, uint64_t len, uint64_t weight,
                             struct qmeld_error *err) QM_CHECK;

/* Reads the refcount table, and notes which clusters have refcount 1. */
int qm_census_load_refcounts(struct qm_census *c, struct qmeld_error *err) QM_CHECK;

/* Counts the refcount blocks themselves: after everything else. */
int qm_census_count_blocks(struct qm_census *c, struct qmeld_error *err) QM_CHECK;

/* Compares counts and refcounts: the very last step. */
int qm_census_compare(struct qm_census *c, struct qmeld_error *err) QM_CHECK;

/* One refcount block as it is on disk. */
struct qm_refblock {
    uint64_t first;      /* cluster of its first entry */
    uint64_t n;          /* entries that matter: those of clusters that are compared */
    unsigned char *data; /* NULL: no block, all refcounts are 0 */
};

/* Reads the entries for clusters below n_clusters into buf, a cluster in size. */
int qm_census_read_block(const struct qm_census *c, uint64_t idx, uint64_t n_clusters,
                         unsigned char *buf, struct qm_refblock *out, bool *out_known,
                         struct qmeld_error *err) QM_CHECK;

/* Where the refcount block with index idx is: 0 if there is none.  false: the table entry is
 * broken, nobody knows. */
bool qm_census_block(const struct qm_census *c, uint64_t idx, uint64_t *out_off);

#endif
