/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2_census.c - counts every reference of a qcow2 image.
 *
 * The order: L1 tables first, of the active view and of all snapshots; what they name is sorted
 * and merged, so that each L2 table is read once, in the order of the file, however many L1 entries
 * name it.  Each finding is counted as often as QEMU, which walks every path, would meet it.
 *
 * Caps.  A file of a few kilobytes can name any number of tables.  What is bounded, and by what:
 * counters by the disk space the file takes (with room for sparse images), L1 and bitmap table
 * entries and L2 tables by numbers far above any real image, tables at unaligned places
 * (which may overlap without end) by a small number, tables in holes of a sparse file are not read.
 */
#include "qcow2_census.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>

#define MAX_CLUSTERS  ((uint64_t)INT32_MAX) /* QEMU's check gives up there (EFBIG) */
#define MAX_L2_TABLES (8ull << 20)          /* 4 TiB of guest data in clusters of 8 KiB */
#define MAX_OUTSIDE   (1u << 20)            /* spans */
#define MAX_UNALIGNED 1024u                 /* L2 tables */
#define MIN_BUDGET    (256ull << 20)        /* bytes of counters, always granted */
#define MAX_BUDGET    (2ull << 30)          /* 100 TiB in clusters of 64 KiB */
#define PREFETCH      (8u << 20)            /* bytes of L2 tables asked for in advance */
#define READ_AHEAD    (1u << 20)            /* adjacent L2 tables are read together up to this */

void
qm_census_say(const struct qm_census *c, const char *fmt, ...)
{
    char sentence[512];
    va_list ap;

    if (!c->fn)
        return;
    va_start(ap, fmt);
    vsnprintf(sentence, sizeof sentence, fmt, ap);
    va_end(ap);
    /* names come from a stranger's file: nothing a terminal could obey */
    for (char *p = sentence; *p; p++)
        if (!isprint((unsigned char)*p))
            *p = '?';
    c->fn(sentence, c->opaque);
}

int
qm_census_cap(const struct qm_census *c, const char *what, uint64_t most, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(c->q->img.file->path),
                   "the image names more than %" PRIu64
                   " %s, more than any real image: it was not checked, and should not be trusted",
                   most, what);
}

/* ---- spans ---- */

static int
by_span(const void *va, const void *vb)
{
    const struct qm_span *a = va, *b = vb;

    return (a->off > b->off) - (a->off < b->off);
}

/* Sorts the spans and joins those that touch, so that they can be searched. */
static void
join_spans(struct qm_spans *spans)
{
    size_t n = 0;

    if (spans->list.n)
        qsort(spans->list.at, spans->list.n, sizeof *spans->list.at, by_span);
    QM_VEC_EACH (s, &spans->list) {
        struct qm_span *last = n ? &spans->list.at[n - 1] : NULL;

        s->len = qm_min(s->len, UINT64_MAX - s->off);
        if (last && s->off <= last->off + last->len)
            last->len = qm_max(last->len, s->off + s->len - last->off);
        else
            spans->list.at[n++] = *s;
    }
    spans->list.n = n;
}

/* A repair must not make the file grow over what damaged entries, or those of a file that was cut
 * off, refer to. */
static int
note_outside(struct qm_census *c, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    const struct qm_span span = {off, len};

    if (c->outside.list.n >= MAX_OUTSIDE) {
        join_spans(&c->outside);
        c->outside_lost = c->outside.list.n > MAX_OUTSIDE / 2;
    }
    if (!c->outside_lost && !qm_vec_push(&c->outside.list, &span))
        return qm_fail_nomem(err, "the list of references behind the file's end");
    return 0;
}

/* ---- counting ---- */

int
qm_census_count(struct qm_census *c, uint64_t off, uint64_t len, uint64_t weight,
                struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    uint64_t end, lost;

    if (len == 0)
        return 0;
    /* the last cluster of a file may be cut off, so less than a cluster past the end is fine */
    if (!qm_add(off, len, &end) || end >= c->file_len + g->cluster_size) {
        qm_census_say(c, "reference to %" PRIu64 " bytes at 0x%" PRIx64 ", behind the file's end",
                      len, off);
        c->damaged += weight;
        return note_outside(c, off, len, err);
    }
    for (uint64_t k = off >> g->cluster_bits; k <= (end - 1) >> g->cluster_bits; k++) {
        if (k >= c->n_clusters)
            c->n_clusters = k + 1;
        if (qm_count_bump(&c->count, k, weight))
            continue;
        if (qm_count_add(&c->count, k, weight, &lost, err) < 0)
            return -1;
        if (lost) {
            qm_census_say(c, "cluster %" PRIu64 " has more references than a refcount can hold", k);
            c->damaged += lost;
        }
    }
    return 0;
}

int
qm_census_count_metadata(struct qm_census *c, uint64_t off, uint64_t len, uint64_t weight,
                         struct qmeld_error *err)
{
    const struct qm_span span = {off, len};

    if (len && !qm_vec_push(&c->metadata.list, &span))
        return qm_fail_nomem(err, "the list of metadata");
    return qm_census_count(c, off, len, weight, err);
}

/* The COPIED flag of an active entry says whether the refcount is 1 (specification, "L1 table
 * entry").  Called where the noted bit and the flag disagree, or nothing was noted. */
static int
copied_odd(struct qm_census *c, uint64_t entry, uint64_t cluster, uint64_t times, const char *what,
           struct qmeld_error *err)
{
    const bool copied = entry & QCOW2_COPIED;
    uint64_t refcount;
    bool known;

    if (qm_census_disk_refcount(c, cluster, &known, &refcount, err) < 0)
        return -1;
    if (!known || copied == (refcount == 1))
        return 0;
    c->copied_wrong += times;
    qm_census_say(c, "%s entry 0x%016" PRIx64 " %s the COPIED flag, but the refcount is %" PRIu64,
                  what, entry, copied ? "has" : "lacks", refcount);
    return 0;
}

static int
check_copied(struct qm_census *c, uint64_t entry, uint64_t off, uint64_t times, const char *what,
             struct qmeld_error *err)
{
    const uint64_t cluster = off >> c->q->geo.cluster_bits;

    c->shared += entry & QCOW2_COPIED ? 0 : times;
    if (times == 0 || (cluster < c->file_clusters &&
                       qm_count_is_one(&c->count, cluster) == !!(entry & QCOW2_COPIED)))
        return 0;
    return copied_odd(c, entry, cluster, times, what, err);
}

/* ---- L2 tables ---- */

struct l2_walk {
    const struct qm_l2_ref *t;
    uint64_t weight;  /* active and inactive together */
    uint64_t flagged; /* times COPIED is looked at: not in a "table" at 0, which is the header */
    uint64_t next;    /* where the next cluster would not be fragmented; 0: nothing to follow yet */
};

static int
compressed_entry(struct qm_census *c, struct l2_walk *w, uint64_t word0, uint64_t word1,
                 struct qmeld_error *err)
{
    struct qcow2_l2 e;

    if (word0 & QCOW2_COPIED) {
        qm_census_say(c, "compressed L2 entry 0x%016" PRIx64 " has the COPIED flag", word0);
        c->damaged += w->weight;
    }
    if (c->q->geo.data_file) {
        qm_census_say(c, "compressed L2 entry 0x%016" PRIx64 " in an image with a data file",
                      word0);
        c->damaged += w->weight;
        return 0;
    }
    if (word1) {
        qm_census_say(c, "compressed L2 entry 0x%016" PRIx64 " has a subcluster bitmap", word0);
        c->damaged += w->weight;
        return 0;
    }
    if (qcow2_l2_decode(&c->q->geo, word0, word1, &e) != QCOW2_L2_OK)
        return 0; /* cannot be: all that decode refuses was looked at above */
    c->allocated += w->t->active;
    c->compressed += w->t->active;
    c->fragmented += w->t->active; /* QEMU: by nature, as they are no multiples of a sector */
    return qm_census_count(c, e.host.h, e.payload_len, w->weight, err);
}

static void
follow(struct qm_census *c, struct l2_walk *w, uint64_t off)
{
    c->allocated += w->t->active;
    if (w->next && off != w->next)
        c->fragmented += w->t->active;
    w->next = off + c->q->geo.cluster_size;
}

static void
unaligned_entry(struct qm_census *c, const struct l2_walk *w, uint64_t word0, bool data)
{
    qm_census_say(c, "L2 entry 0x%016" PRIx64 " of the table at 0x%" PRIx64 ": %s is not aligned",
                  word0, w->t->off, data ? "data cluster" : "preallocated cluster");
    c->damaged += w->weight;
    c->zeroable += !data;
}

/* All entries that the fast path does not know. */
static int
any_entry(struct qm_census *c, struct l2_walk *w, uint64_t word0, uint64_t word1,
          struct qmeld_error *err)
{
    const struct qcow2_geo *g = &c->q->geo;
    const uint64_t off = word0 & QCOW2_OFFSET_MASK;
    const bool zero = !g->extended_l2 && (word0 & QCOW2_ZERO);

    if (word0 & QCOW2_COMPRESSED)
        return compressed_entry(c, w, word0, word1, err);
    if (word0 & QCOW2_L2_STD_RESERVED) {
        qm_census_say(c, "L2 entry 0x%016" PRIx64 " has reserved bits set", word0);
        c->damaged += w->weight;
    }
    /* the first cluster of an external data file has offset 0: COPIED says that it is one */
    if (off == 0 && (zero || !g->data_file || !(word0 & QCOW2_COPIED))) {
        if (!zero && (word1 & QCOW2_L2_ALL_ALLOC)) {
            qm_census_say(c, "L2 entry without a cluster has allocated subclusters");
            c->damaged += w->weight;
        }
        return 0;
    }
    if (word1 >> 32 & word1) {
        qm_census_say(c, "L2 entry 0x%016" PRIx64 " has subclusters both allocated and zero",
                      word0);
        c->damaged += w->weight;
    }
    if (off % g->cluster_size)
        unaligned_entry(c, w, word0, g->extended_l2 ? (word1 & QCOW2_L2_ALL_ALLOC) != 0 : !zero);
    if (w->t->active)
        follow(c, w, off);
    if (!g->data_file) {
        if (qm_census_count(c, off, g->cluster_size, w->weight, err) < 0)
            return -1;
        return check_copied(c, word0, off, w->flagged, "L2", err);
    }
    if (w->flagged && !(word0 & QCOW2_COPIED)) {
        /* nothing else can own a cluster of a data file */
        qm_census_say(c, "L2 entry 0x%016" PRIx64 " lacks the COPIED flag", word0);
        c->copied_wrong += w->flagged;
    }
    return 0;
}

/* A plain data cluster inside the file that nothing is wrong with: true if it is counted. */
static inline bool
usual_entry(struct qm_census *c, struct l2_walk *w, uint64_t word0, uint64_t word1)
{
    const uint64_t off = word0 & ~QCOW2_COPIED;

    if (off & (~QCOW2_OFFSET_MASK | (c->q->geo.cluster_size - 1)) || off == 0 ||
        off >= c->file_len || (word1 >> 32 & word1) || c->q->geo.data_file)
        return false;
    if (w->flagged &&
        qm_count_is_one(&c->count, off >> c->q->geo.cluster_bits) != (bool)(word0 >> 63))
        return false;
    if (!qm_count_bump(&c->count, off >> c->q->geo.cluster_bits, w->weight))
        return false;
    if (w->t->active)
        follow(c, w, off);
    return true;
}

/* Tables are mostly empty or mostly full: entries are looked at in eights. */
static inline bool
all_empty(const be64 *e)
{
    uint64_t any = 0, word;

    for (unsigned k = 0; k < 8; k++) {
        memcpy(&word, &e[k], sizeof word);
        any |= word;
    }
    return any == 0;
}

static int
walk_l2(struct qm_census *c, const struct qm_l2_ref *t, const be64 *table, struct qmeld_error *err)
{
    const uint64_t step = c->q->geo.extended_l2 ? 2 : 1;
    const uint64_t n = c->q->geo.cluster_size / sizeof *table;
    struct l2_walk w = {
        .t = t, .weight = t->active + t->inactive, .flagged = t->off ? t->active : 0};

    for (uint64_t i = 0; i < n; i += 8) {
        if (all_empty(&table[i]))
            continue;
        for (uint64_t k = i; k < i + 8; k += step) {
            const uint64_t word0 = be64_get(&table[k]);
            const uint64_t word1 = step == 2 ? be64_get(&table[k + 1]) : 0;

            if (!(word0 | word1) || usual_entry(c, &w, word0, word1))
                continue;
            if (any_entry(c, &w, word0, word1, err) < 0)
                return -1;
        }
    }
    return 0;
}

/* Counts the table itself; *out_skip: there is nothing in it. */
static int
count_l2_table(struct qm_census *c, const struct qm_l2_ref *t, bool *out_skip,
               struct qmeld_error *err)
{
    const uint64_t size = c->q->geo.cluster_size;
    const uint64_t weight = t->active + t->inactive;
    uint64_t len;
    bool data;

    *out_skip = false;
    if (qm_census_count(c, t->off, size, weight, err) < 0)
        return -1;
    if (t->off % size) {
        qm_census_say(c, "L2 table at 0x%" PRIx64 " is not aligned: the L1 entry is damaged",
                      t->off);
        c->damaged += weight;
        if (++c->n_unaligned > MAX_UNALIGNED)
            return qm_census_cap(c, "L2 tables at impossible places", MAX_UNALIGNED, err);
    }
    if (t->off >= c->file_len) {
        *out_skip = true; /* reads as zeros */
        return 0;
    }
    /* No real image has more tables than disk space.  One that claims to is sparse: holes
     * need not be read. */
    c->table_bytes += size;
    if (c->table_bytes > c->disk_bytes && t->off < c->q->img.file->size) {
        if (qm_data_or_hole(c->q->img.file, t->off, &data, &len, err) < 0)
            return -1;
        *out_skip = !data && (len >= size || t->off + len >= c->q->img.file->size);
    }
    return 0;
}

/* Tables are scattered over the file: the disk shall be busy with the next ones meanwhile. */
static void
prefetch_tables(const struct qm_census *c, size_t i, size_t *ahead)
{
    const uint64_t size = c->q->geo.cluster_size;
    const size_t depth = (size_t)qm_max(2, PREFETCH / size);

    if (*ahead < i)
        *ahead = i;
    for (; *ahead < c->l2.n && *ahead - i < depth; (*ahead)++)
        if (c->l2.at[*ahead].off < c->file_len)
            qm_prefetch(c->q->img.file, c->l2.at[*ahead].off, size);
}

static int
walk_l2_tables(struct qm_census *c, struct qmeld_error *err)
{
    const uint64_t size = c->q->geo.cluster_size;
    const uint64_t batch = qm_max(1, qm_min(READ_AHEAD / size, c->l2.n));
    QM_FREE unsigned char *buf = malloc(batch * size);
    uint64_t have_off = 0, have_len = 0;
    size_t ahead = 0;

    if (!buf)
        return qm_fail_nomem(err, "L2 tables");
    for (size_t i = 0; i < c->l2.n; i++) {
        const struct qm_l2_ref *t = &c->l2.at[i];
        bool skip;

        if (count_l2_table(c, t, &skip, err) < 0)
            return -1;
        if (skip)
            continue;
        if (t->off < have_off || !qm_inside(t->off - have_off, size, have_len)) {
            uint64_t n = 1;

            prefetch_tables(c, i, &ahead);
            while (n < batch && i + n < c->l2.n && c->l2.at[i + n].off == t->off + n * size)
                n++;
            have_off = t->off;
            have_len = n * size;
            if (qm_pread_padded(c->q->img.file, have_off, buf, have_len, err) < 0)
                return -1;
        }
        if (walk_l2(c, t, (const be64 *)(buf + (t->off - have_off)), err) < 0)
            return -1;
    }
    return 0;
}

/* ---- L1 tables ---- */

static int
by_offset(const void *va, const void *vb)
{
    const struct qm_l2_ref *a = va, *b = vb;

    return (a->off > b->off) - (a->off < b->off);
}

/* Sorts the references to L2 tables, and adds up those to the same table. */
static void
merge_l2_refs(struct qm_census *c)
{
    size_t n = 0;

    if (c->l2.n)
        qsort(c->l2.at, c->l2.n, sizeof *c->l2.at, by_offset);
    for (size_t i = 0; i < c->l2.n; i++) {
        if (n && c->l2.at[n - 1].off == c->l2.at[i].off) {
            c->l2.at[n - 1].active += c->l2.at[i].active;
            c->l2.at[n - 1].inactive += c->l2.at[i].inactive;
        } else {
            c->l2.at[n++] = c->l2.at[i];
        }
    }
    c->l2.n = n;
    c->l2_merged = n;
}

static int
add_l2_ref(struct qm_census *c, const struct qm_l2_ref *ref, struct qmeld_error *err)
{
    if (c->l2.n > c->l2_merged && qm_vec_last(&c->l2)->off == ref->off) {
        qm_vec_last(&c->l2)->active += ref->active;
        qm_vec_last(&c->l2)->inactive += ref->inactive;
        return 0;
    }
    /* merge when the list has doubled: many snapshots name the same tables */
    if (c->l2.n >= 2 * qm_max(c->l2_merged, 1u << 19))
        merge_l2_refs(c);
    if (c->l2_merged > MAX_L2_TABLES)
        return qm_census_cap(c, "L2 tables", MAX_L2_TABLES, err);
    if (!qm_vec_push(&c->l2, ref))
        return qm_fail_nomem(err, "the list of L2 tables");
    return 0;
}

static int
l1_entry(struct qm_census *c, uint64_t entry, uint64_t active, uint64_t inactive,
         struct qmeld_error *err)
{
    const struct qm_l2_ref ref = {entry & QCOW2_OFFSET_MASK, active, inactive};

    if (entry & QCOW2_L1_RESERVED) {
        qm_census_say(c, "L1 entry 0x%016" PRIx64 " has reserved bits set", entry);
        c->damaged += active + inactive;
    }
    if (ref.off && check_copied(c, entry, ref.off, active, "L1", err) < 0)
        return -1;
    /* an entry that is not zero but has no offset counts as a table at 0, as QEMU has it */
    return add_l2_ref(c, &ref, err);
}

int
qm_census_count_l1(struct qm_census *c, uint64_t l1_off, uint64_t entries, uint64_t active,
                   uint64_t inactive, struct qmeld_error *err)
{
    QM_FREE be64 *slice = NULL;

    if (qm_census_count_metadata(c, l1_off, entries * sizeof *slice, active + inactive, err) < 0)
        return -1;
    slice = malloc(QM_CENSUS_SLICE * sizeof *slice);
    if (!slice)
        return qm_fail_nomem(err, "an L1 table");
    for (uint64_t i = 0; i < entries; i += QM_CENSUS_SLICE) {
        const uint64_t n = qm_min(QM_CENSUS_SLICE, entries - i);
        const uint64_t off = l1_off + i * sizeof *slice;

        if (off >= c->file_len)
            break; /* zeros, and counted as damage above */
        if (qm_pread_padded(c->q->img.file, off, slice, n * sizeof *slice, err) < 0)
            return -1;
        for (uint64_t k = 0; k < n; k++) {
            const uint64_t entry = be64_get(&slice[k]);

            if (entry && l1_entry(c, entry, active, inactive, err) < 0)
                return -1;
        }
    }
    return 0;
}

/* ---- all ---- */

static int
count_all(struct qm_census *c, struct qmeld_error *err)
{
    const struct qcow2_header *h = &c->q->hdr;
    const uint64_t cluster = c->q->geo.cluster_size;

    if (qm_census_load_refcounts(c, err) < 0 || qm_census_read_snapshots(c, err) < 0)
        return -1;
    if (qm_census_count_metadata(c, 0, cluster, 1, err) < 0 ||
        qm_census_count_l1(c, h->l1_off, h->l1_entries, 1, 0, err) < 0 ||
        qm_census_count_snapshots(c, err) < 0)
        return -1;
    merge_l2_refs(c);
    if (c->l2.n > MAX_L2_TABLES)
        return qm_census_cap(c, "L2 tables", MAX_L2_TABLES, err);
    if (walk_l2_tables(c, err) < 0)
        return -1;
    if (qm_census_count_metadata(c, h->snapshots_off, c->snapshots_len, 1, err) < 0 ||
        qm_census_count_metadata(c, h->reftable_off, h->reftable_clusters * cluster, 1, err) < 0)
        return -1;
    if (qm_census_count_crypto(c, err) < 0 || qm_census_count_bitmaps(c, err) < 0)
        return -1;
    if (qm_census_count_blocks(c, err) < 0)
        return -1;
    return qm_census_compare(c, err);
}

int
qm_census_take(struct qm_qcow2 *q, unsigned flags, qmeld_finding_fn *fn, void *opaque,
               struct qm_census *c, struct qmeld_error *err)
{
    uint64_t budget;

    *c = (struct qm_census){.q = q, .fn = fn, .opaque = opaque};
    c->drop_extra = flags & QM_CENSUS_DROP_EXTRA;
    if (qm_file_refresh(q->img.file, err) < 0 ||
        qm_file_allocated(q->img.file, &c->disk_bytes, err) < 0)
        return -1;
    c->file_len = qm_align_up(q->img.file->size, 512);
    c->file_clusters = qm_div_up(c->file_len, q->geo.cluster_size);
    c->n_clusters = c->file_clusters;
    if (c->file_clusters > MAX_CLUSTERS) {
        qm_census_say(c, "the file has more than %" PRIu64 " clusters: it cannot be checked",
                      MAX_CLUSTERS);
        qm_census_unreadable(c);
        return 0;
    }
    /* A reference in a real image stands in 8 bytes of table, and points at space. */
    budget = qm_min(MAX_BUDGET, MIN_BUDGET + qm_min(c->disk_bytes, MAX_BUDGET));
    if (qm_count_init(&c->count, c->file_clusters + 1, qcow2_refcount_max(q->geo.refcount_order),
                      budget, err) < 0)
        return -1;
    if (count_all(c, err) < 0)
        return -1;
    join_spans(&c->metadata);
    join_spans(&c->outside);
    return 0;
}

void
qm_census_release(struct qm_census *c)
{
    free(c->reftable);
    qm_count_release(&c->count);
    qm_vec_release(&c->l2);
    qm_vec_release(&c->metadata.list);
    qm_vec_release(&c->outside.list);
    qm_vec_release(&c->snapshots);
    memset(c, 0, sizeof *c);
}

bool
qm_census_is_metadata(const struct qm_census *c, uint64_t off, uint64_t len)
{
    size_t lo = 0, hi = c->metadata.list.n;

    while (lo < hi) { /* the first span that ends behind off */
        const size_t mid = lo + (hi - lo) / 2;

        if (c->metadata.list.at[mid].off + c->metadata.list.at[mid].len <= off)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < c->metadata.list.n && c->metadata.list.at[lo].off < off + len;
}
