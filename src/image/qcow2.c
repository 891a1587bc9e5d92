/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qcow2.c - open a qcow2 image and walk its L1 and L2 tables into extents.
 *
 * Why.  The walk is the hot path of every sweep: images of 64 TiB, chains of 1,000 layers.  So an
 * image keeps only two small slices in memory, 4 KiB of its L1 table and 4 KiB of one L2 table,
 * which makes a scattered look-up one small read, and a sweep's reads sequential; runs
 * are found by comparing raw entries, which are decoded only where a run begins.  Of a table that
 * turns out to be sparse it also keeps which slices are zeros, one bit each, from a long read: they are
 * neither read again nor looked at, so that a sweep over such tables costs little more than having
 * them copied into memory once.
 *
 * An entry that makes no sense fails the walk only when its own cluster is asked for (QEMU:
 * same), so that what is healthy around it can still be saved.
 */
#include "qcow2.h"

#include "cipher.h"
#include "qcow2_salvage.h"

#include <inttypes.h>

#define SLICE    4096u
#define WIDE     64u         /* zeros are passed over so many words at once */
#define SCAN_LEN (64u << 10) /* of sparse tables so much is read at once; on the stack */

struct slice {
    uint64_t off; /* of the first byte, in the file */
    uint32_t n;   /* words in use; 0: nothing loaded */
    be64 word[SLICE / sizeof(be64)];
};

struct qm_qcow2_walk {
    struct slice l1;
    struct slice l2;
    /* a sparse L2 table, 0: none; the end of what was read of it; its slices in which no bit is set */
    uint64_t scanned;
    uint64_t scanned_to;
    uint64_t zero[(1u << QCOW2_MAX_CLUSTER_BITS) / SLICE / 64];
    /* guest range known to have no L2 tables; what the last scan of the L1 found */
    uint64_t absent_from;
    uint64_t absent_to;
};

/* A walk's question: the image, and where it stands. */
struct asking {
    struct qm_qcow2 *q;
    struct qm_qcow2_walk *w;
    uint64_t at;    /* guest offset */
    uint64_t end;   /* first guest offset nobody asks for */
    uint64_t table; /* the L2 table that answers for at */
};

/* ---- reading tables ---- */

/* Salvage: bytes behind the file's end are no zeros, they are lost. */
static bool
is_cut_off(const struct qm_qcow2 *q, const struct qm_file *file, uint64_t off, uint64_t len)
{
    return (q->flags & QCOW2_DECODE_SALVAGE) && !qm_inside(off, len, file->size);
}

/* The slice that holds the word at file offset off, of a table [table, table + len). */
static int
load_slice(const struct qm_qcow2 *q, struct slice *s, uint64_t table, uint64_t len, uint64_t off,
           struct qmeld_error *err)
{
    const uint64_t from = table + qm_align_down(off - table, SLICE);
    const uint64_t n = qm_min(SLICE, table + len - from);

    if (s->n && s->off == from)
        return 0;
    s->n = 0;
    if (is_cut_off(q, q->img.file, from, n))
        return qm_fail(err, QMELD_IO, qm_at(q->img.file->path, off),
                       "the file ends before this table does: it was cut off, copy it again, or "
                       "read what is left with `qmeld flatten --salvage`");
    if (qm_pread_padded(q->img.file, from, s->word, n, err) < 0)
        return -1;
    s->off = from;
    s->n = (uint32_t)(n / sizeof(be64));
    return 0;
}

static uint64_t
l1_bytes(const struct qm_qcow2 *q)
{
    return (uint64_t)q->hdr.l1_entries * sizeof(be64);
}

static uint64_t
l1_idx_of(const struct qm_qcow2 *q, uint64_t guest)
{
    return guest >> (q->geo.cluster_bits + q->geo.l2_bits);
}

static int
bad_l2_table(const struct qm_qcow2 *q, uint64_t l1_idx, uint64_t table, struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT,
                   qm_at(q->img.file->path, q->hdr.l1_off + l1_idx * sizeof(be64)),
                   "L1 entry %" PRIu64 " (guest offset 0x%" PRIx64 "): L2 table at 0x%" PRIx64
                   " is not cluster aligned: run check on the image",
                   l1_idx, l1_idx << (q->geo.cluster_bits + q->geo.l2_bits), table);
}

/* Offset of the L2 table that answers for a guest offset; 0: none. */
static int
find_table(const struct qm_qcow2 *q, struct qm_qcow2_walk *w, uint64_t guest, uint64_t *out,
           struct qmeld_error *err)
{
    const uint64_t idx = l1_idx_of(q, guest);
    const uint64_t off = q->hdr.l1_off + idx * sizeof(be64);

    if (idx >=
        q->hdr
            .l1_entries) { /* decoding sees to it that there are enough, but of what is salvaged */
        assert(q->flags & QCOW2_DECODE_SALVAGE);
        return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, off),
                       "L1 entry %" PRIu64 " is not there: the table, or the file, ends before it",
                       idx);
    }
    if (load_slice(q, &w->l1, q->hdr.l1_off, l1_bytes(q), off, err) < 0)
        return -1;
    *out = be64_get(&w->l1.word[(off - w->l1.off) / sizeof(be64)]) & QCOW2_OFFSET_MASK;
    return *out & (q->geo.cluster_size - 1) ? bad_l2_table(q, idx, *out, err) : 0;
}

/* First word in [i, n) with a bit of mask; n if none has.  Most of a sparse image's tables is zero. */
static uint32_t
first_set(const be64 *word, uint32_t i, uint32_t n, uint64_t mask)
{
    for (;;) {
        uint32_t end;

        while (n - i >= WIDE && qm_is_zero(&word[i], WIDE * sizeof *word))
            i += WIDE;
        end = i + (uint32_t)qm_min(n - i, WIDE);
        for (; i < end; i++)
            if (be64_get(&word[i]) & mask)
                return i;
        if (i == n)
            return n;
    }
}

/* The first entry in [idx, stop) of the L1 that names a table; stop if none does.  What the slice at hand does
 * not show is read in passing, in long pieces. */
static int
next_table(const struct asking *a, uint64_t idx, uint64_t stop, uint64_t *out,
           struct qmeld_error *err)
{
    const struct qm_qcow2 *q = a->q;
    const struct slice *s = &a->w->l1;
    be64 piece[SCAN_LEN / sizeof(be64)];

    while (idx < stop) {
        const uint64_t off = q->hdr.l1_off + idx * sizeof(be64);
        const bool at_hand = off >= s->off && off - s->off < s->n * sizeof(be64);
        const uint32_t begin = at_hand ? (uint32_t)((off - s->off) / sizeof(be64)) : 0;
        const uint32_t n =
            at_hand ? s->n : (uint32_t)qm_min(stop - idx, sizeof piece / sizeof *piece);
        uint32_t found;

        if (!at_hand && qm_pread_padded(q->img.file, off, piece, n * sizeof *piece, err) < 0)
            return -1;
        found = first_set(at_hand ? s->word : piece, begin, n, QCOW2_OFFSET_MASK);
        idx += found - begin;
        if (found < n)
            break;
    }
    *out = idx;
    return 0;
}

/* Sets w->absent_*: from a->at, which has no L2 table, to the next guest offset that has one. */
static int
scan_absent(const struct asking *a, struct qmeld_error *err)
{
    const uint64_t span = qcow2_l2_span(&a->q->geo);
    const uint64_t stop = qm_min(qm_div_up(a->end, span), a->q->hdr.l1_entries);
    uint64_t idx;

    if (next_table(a, l1_idx_of(a->q, a->at), stop, &idx, err) < 0)
        return -1;
    a->w->absent_from = qm_align_down(a->at, span);
    a->w->absent_to = idx * span;
    return 0;
}

/* ---- runs ---- */

static int
bad_entry(const struct asking *a, uint64_t entry_off, enum qcow2_l2_verdict v,
          struct qmeld_error *err)
{
    return qm_fail(err, QMELD_CORRUPT, qm_at(a->q->img.file->path, entry_off),
                   "%s, for guest offset 0x%" PRIx64 ": run check on the image",
                   qcow2_l2_verdict_text(v), qm_align_down(a->at, a->q->geo.cluster_size));
}

/* Fills kind and place of the subcluster at a->at, and returns how many subclusters from there on
 * are of the same kind within the cluster. */
static uint32_t
classify(const struct qcow2_geo *g, const struct qcow2_l2 *e, uint32_t sub, struct qm_extent *out)
{
    const uint32_t same_alloc = e->alloc >> sub & 1 ? e->alloc : ~e->alloc;
    const uint32_t same_zero = e->zero >> sub & 1 ? e->zero : ~e->zero;
    const uint32_t other = ~(same_alloc & same_zero) >> sub;
    const uint32_t left = g->subclusters - sub;

    out->kind = e->alloc >> sub & 1 ? QM_DATA : e->zero >> sub & 1 ? QM_ZERO : QM_ABSENT;
    out->has_host = e->has_host;
    return other ? (uint32_t)qm_min((uint64_t)__builtin_ctz(other), left) : left;
}

/* How many entries of the slice, from i on, continue the entry before i: the same kind, the host
 * clusters adjacent.  Only for tables of 8-byte entries. */
static uint32_t
count_alike(const struct slice *s, uint32_t i, uint64_t cluster_size, bool data_file)
{
    const uint64_t mask =
        QCOW2_COMPRESSED | QCOW2_OFFSET_MASK | QCOW2_ZERO | (data_file ? QCOW2_COPIED : 0);
    uint64_t expect = be64_get(&s->word[i - 1]) & mask;
    /* COPIED without an offset is a cluster of a data file, but not if it is zeros */
    const bool first = (expect & (QCOW2_COPIED | QCOW2_ZERO)) == QCOW2_COPIED;
    const uint64_t step = first || expect & QCOW2_OFFSET_MASK ? cluster_size : 0;
    const uint32_t begin = i;

    if (expect == 0)
        return first_set(s->word, i, s->n, mask) - begin;
    for (; i < s->n; i++) {
        expect += step;
        if ((be64_get(&s->word[i]) & mask) != expect)
            break;
    }
    return i - begin;
}

/* The run at a->at, as far as one slice of its L2 table shows it. */
static int
run_in_slice(const struct asking *a, struct qm_extent *out, struct qmeld_error *err)
{
    const struct qcow2_geo *g = &a->q->geo;
    const uint64_t in_cluster = a->at & (g->cluster_size - 1);
    const uint64_t idx = a->at >> g->cluster_bits & ((1ull << g->l2_bits) - 1);
    const uint64_t off = a->table + idx * g->l2_entry_len;
    const struct slice *s = &a->w->l2;
    enum qcow2_l2_verdict verdict;
    struct qcow2_l2 e;
    uint64_t to; /* end of the run, in bytes from the cluster's start */
    uint32_t i, sub;

    if (load_slice(a->q, &a->w->l2, a->table, g->cluster_size, off, err) < 0)
        return -1;
    i = (uint32_t)((off - s->off) / sizeof(be64));
    verdict = qcow2_l2_decode(g, be64_get(&s->word[i]),
                              g->extended_l2 ? be64_get(&s->word[i + 1]) : 0, &e);
    if (verdict == QCOW2_L2_OK)
        verdict = qcow2_l2_check_place(g, &e, a->at >> g->cluster_bits);
    if (verdict != QCOW2_L2_OK)
        return bad_entry(a, off, verdict, err);

    *out = (struct qm_extent){.guest = qm_guest(a->at), .has_host = true, .host = e.host};
    if (e.kind == QCOW2_L2_COMPRESSED) {
        out->kind = QM_COMPRESSED;
        out->payload_len = e.payload_len;
        out->skip = (uint32_t)in_cluster;
        to = g->cluster_size;
    } else {
        sub = (uint32_t)(in_cluster / g->subcluster_size);
        to = (sub + classify(g, &e, sub, out)) * g->subcluster_size;
        if (!g->extended_l2)
            to += (uint64_t)count_alike(s, i + 1, g->cluster_size, g->data_file) << g->cluster_bits;
        out->host = qm_host(out->has_host ? e.host.h + in_cluster : 0);
    }
    out->len = qm_min(to - in_cluster, a->end - a->at);
    return 0;
}

/* The run at a->at: one of the L1, or one of a slice; a->table is set. */
static int
run_at(struct asking *a, struct qm_extent *out, struct qmeld_error *err)
{
    if (find_table(a->q, a->w, a->at, &a->table, err) < 0)
        return -1;
    if (a->table)
        return run_in_slice(a, out, err);
    if (scan_absent(a, err) < 0)
        return -1;
    *out = (struct qm_extent){.guest = qm_guest(a->at),
                              .kind = QM_ABSENT,
                              .len = qm_min(a->w->absent_to, a->end) - a->at};
    return 0;
}

/* Reads the next piece of the table that answers for a->at, from byte `from` on, a multiple of SLICE, and notes
 * which slices are zero in every bit.  What cannot be read is not zero: it is left to run_at, which can tell. */
static void
scan_piece(const struct asking *a, uint64_t from)
{
    struct qm_qcow2_walk *w = a->w;
    struct qmeld_error later = {.disk = QMELD_DISK_OLD};
    unsigned char buf[SCAN_LEN];
    const uint64_t len = qm_min(a->q->geo.cluster_size - from, sizeof buf);
    bool kept = false; /* the first slice with something in it: the next one to be looked at */

    if (w->scanned != a->table)
        memset(w->zero, 0, sizeof w->zero);
    w->scanned = a->table;
    w->scanned_to = from + len;
    if (is_cut_off(a->q, a->q->img.file, a->table + from, len))
        return;
    if (qm_pread_padded(a->q->img.file, a->table + from, buf, len, &later) < 0)
        return;
    for (uint64_t at = 0; at < len; at += SLICE) {
        const uint64_t k = (from + at) / SLICE;

        if (qm_is_zero(buf + at, SLICE)) {
            w->zero[k / 64] |= 1ull << (k % 64);
        } else if (!kept) {
            kept = true;
            w->l2.off = a->table + from + at;
            w->l2.n = SLICE / sizeof(be64);
            memcpy(w->l2.word, buf + at, SLICE);
        }
    }
}

/* Extends out, if it is absent and a->at begins a new slice of its table, over the slices that
 * are zero: this is what a sweep over the tables of a sparse image mostly does. */
static void
skip_zero_slices(struct asking *a, struct qm_extent *out)
{
    const struct qcow2_geo *g = &a->q->geo;
    const uint64_t in_table = (a->at & (qcow2_l2_span(g) - 1)) >> g->cluster_bits;
    uint64_t off = in_table * g->l2_entry_len;

    if (!a->table || out->kind != QM_ABSENT || out->has_host || off == 0 || off % SLICE)
        return;
    for (; a->at < a->end && off < g->cluster_size; off += SLICE) {
        const uint64_t k = off / SLICE;

        if (a->w->scanned != a->table || off >= a->w->scanned_to)
            scan_piece(a, off);
        if (!(a->w->zero[k / 64] >> (k % 64) & 1))
            break;
        a->at += (uint64_t)(SLICE / g->l2_entry_len) << g->cluster_bits;
    }
    a->at = qm_min(a->at, a->end);
    out->len = a->at - out->guest.g;
}

/* A bad L1 entry takes all of its table's clusters with it; a slice that cannot be read, the clusters of its entries (of
 * the longer kind, in the smallest table: so this never reaches over one that is sound). */
uint64_t
qm_qcow2_lost_run(const struct qm_qcow2 *q, uint64_t from, const struct qmeld_error *err)
{
    const uint64_t cs = q->geo.cluster_size;
    uint64_t unit = cs;

    if (l1_idx_of(q, from) >= q->hdr.l1_entries)
        return UINT64_MAX;
    if (err->has_off && err->off >= q->hdr.l1_off && err->off - q->hdr.l1_off < l1_bytes(q))
        unit = qcow2_l2_span(&q->geo);
    else if (err->code == QMELD_IO)
        unit = cs * qm_min(SLICE / 16, cs / 16);
    return unit - (from & (unit - 1));
}

static bool
continues(const struct qm_extent *a, const struct qm_extent *b)
{
    return a->kind == b->kind && a->has_host == b->has_host &&
           (!a->has_host || a->host.h + a->len == b->host.h);
}

/* True if looking behind out costs no further table: a->at lies inside the table that answered
 * last, or out is absent and the L1, which is at hand, says that the next table is, too. */
static bool
may_look_on(struct asking *a, const struct qm_extent *out)
{
    struct qmeld_error ignored = {.disk = QMELD_DISK_OLD};
    uint64_t table;

    if (a->at >= a->end || out->kind == QM_COMPRESSED)
        return false;
    if (a->at & (qcow2_l2_span(&a->q->geo) - 1)) /* only runs of a table end here */
        return true;
    return out->kind == QM_ABSENT && !out->has_host &&
           find_table(a->q, a->w, a->at, &table, &ignored) == 0 && table == 0;
}

static int
walk(struct qm_qcow2 *q, guest_off from, uint64_t len, struct qm_extent *out,
     struct qmeld_error *err)
{
    struct asking a = {.q = q, .at = from.g, .end = from.g + len};
    struct qmeld_error later; /* behind the first run: told when that very place is asked for */

    if (!q->walk)
        q->walk = calloc(1, sizeof *q->walk);
    if (!q->walk)
        return qm_fail_nomem(err, "the tables of an image");
    a.w = q->walk;
    if (from.g >= a.w->absent_from && from.g < a.w->absent_to) {
        *out = (struct qm_extent){
            .guest = from, .kind = QM_ABSENT, .len = qm_min(len, a.w->absent_to - from.g)};
    } else if (run_at(&a, out, err) < 0) {
        return -1;
    }
    later.disk = QMELD_DISK_OLD;
    for (;;) {
        struct qm_extent more;

        a.at = from.g + out->len;
        skip_zero_slices(&a, out);
        if (!may_look_on(&a, out) || run_at(&a, &more, &later) < 0 || !continues(out, &more))
            return 0;
        out->len += more.len;
    }
}

static int
next(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
     struct qmeld_error *err)
{
    struct qm_qcow2 *q = (struct qm_qcow2 *)img;

    return walk(q, from, len, out, err) < 0 ? -1 : qm_qcow2_cut_to_file(q, out, err);
}

static void
forget(struct qm_image *img)
{
    struct qm_qcow2 *q = (struct qm_qcow2 *)img;

    free(q->walk);
    q->walk = NULL;
}

static int
inflate_extent(const struct qm_image *img, const struct qm_extent *ext, struct qm_codec *codec,
               void *cluster, struct qmeld_error *err)
{
    const struct qm_qcow2 *q = (const struct qm_qcow2 *)img;
    void *payload = qm_codec_scratch(codec, ext->payload_len);

    if (!payload)
        return qm_fail_nomem(err, "a compressed cluster");
    if (qm_pread_padded(img->file, ext->host.h, payload, ext->payload_len, err) < 0)
        return -1;
    if (qm_codec_inflate(codec, (enum qm_compression)q->hdr.compression, payload, ext->payload_len,
                         cluster, img->cluster_size) < 0)
        return qm_fail(err, QMELD_CORRUPT, qm_at(img->file->path, ext->host.h),
                       "compressed cluster for guest offset 0x%" PRIx64
                       " does not inflate: its data is lost, restore it from a copy",
                       ext->guest.g - ext->skip);
    return 0;
}

/* ---- open, reload, close ---- */

static void
free_qcow2(struct qm_image *img)
{
    struct qm_qcow2 *q = (struct qm_qcow2 *)img;

    qcow2_header_release(&q->hdr);
    qm_cipher_free(q->img.cipher);
    free(q->walk);
    free(q);
}

static const struct qm_image_ops qcow2_ops = {
    .format = "qcow2",
    .pad_data = true,
    .next = next,
    .inflate = inflate_extent,
    .forget = forget,
    .free = free_qcow2,
};

struct qm_qcow2 *
qm_qcow2_of(struct qm_image *img)
{
    return img->ops == &qcow2_ops ? (struct qm_qcow2 *)img : NULL;
}

/* damage: NULL, or what is wrong is mended where that can be. */
static int
read_header(const struct qm_file *file, unsigned flags, const struct qm_qcow2_damage *damage,
            struct qcow2_header *out, bool *out_below_lost, struct qmeld_error *err)
{
    struct qcow2_disk_header first;
    QM_FREE unsigned char *area = NULL;
    size_t len;

    if (qm_pread_padded(file, 0, &first, sizeof first, err) < 0)
        return -1;
    len = qcow2_header_area(&first, sizeof first);
    area = malloc(len);
    if (!area)
        return qm_fail_nomem(err, "a qcow2 header");
    if (qm_pread_padded(file, 0, area, len, err) < 0)
        return -1;
    if (!damage)
        return qcow2_header_decode(file->path, area, len, flags, out, err);
    if (qcow2_header_salvage(file->path, area, len, damage->fn, damage->opaque, out, out_below_lost,
                             err) < 0)
        return -1;
    /* entries that the file, which was cut off, has not got */
    if (!qm_inside(out->l1_off, (uint64_t)out->l1_entries * sizeof(be64), file->size))
        out->l1_entries = (uint32_t)((file->size - qm_min(out->l1_off, file->size)) / sizeof(be64));
    return 0;
}

/* The header becomes q's, and what the image shows of it follows. */
static void
adopt_header(struct qm_qcow2 *q, const struct qcow2_header *h)
{
    qcow2_header_release(&q->hdr);
    q->hdr = *h;
    q->geo = qcow2_geo_of(h);
    q->img.size = h->size;
    q->img.cluster_size = q->geo.cluster_size;
    q->img.backing_name = h->backing_name;
    q->img.backing_format = h->backing_format;
}

/* QEMU reads the snapshot table at open, and a bad one closes the image. */
static int
check_snapshots(const struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct qm_snapshots snapshots;
    const int rc = qm_qcow2_read_snapshots(q, &snapshots, err);

    qm_snapshots_release(&snapshots);
    return rc;
}

static int
open_with(struct qm_file *file, unsigned flags, const struct qm_qcow2_damage *damage,
          struct qm_qcow2 **out, struct qmeld_error *err)
{
    struct qcow2_header hdr;
    struct qm_qcow2 *q;
    bool below_lost = false;

    *out = NULL;
    if (read_header(file, flags, damage, &hdr, &below_lost, err) < 0)
        return -1;
    q = calloc(1, sizeof *q);
    if (!q) {
        qcow2_header_release(&hdr);
        return qm_fail_nomem(err, "a qcow2 image");
    }
    q->img.ops = &qcow2_ops;
    q->img.file = q->img.data = file;
    q->flags = flags;
    adopt_header(q, &hdr);
    q->img.below_lost = below_lost;
    if (q->hdr.crypt_method) {
        q->img.cipher = qm_cipher_new((enum qm_cipher_method)q->hdr.crypt_method, q->hdr.crypto_off,
                                      q->hdr.crypto_len);
        if (!q->img.cipher) {
            free_qcow2(&q->img);
            return qm_fail_nomem(err, "a qcow2 image");
        }
    }
    if (flags == QCOW2_DECODE_STRICT && check_snapshots(q, err) < 0) {
        free_qcow2(&q->img);
        return -1;
    }
    *out = q;
    return 0;
}

int
qm_qcow2_open(struct qm_file *file, unsigned flags, struct qm_qcow2 **out, struct qmeld_error *err)
{
    return open_with(file, flags, NULL, out, err);
}

int
qm_qcow2_open_damaged(struct qm_file *file, const struct qm_qcow2_damage *damage,
                      struct qm_qcow2 **out, struct qmeld_error *err)
{
    return open_with(file, QCOW2_DECODE_SALVAGE, damage, out, err);
}

int
qm_qcow2_reload(struct qm_qcow2 *q, struct qmeld_error *err)
{
    struct qcow2_header hdr;

    if (q->stage) {
        q->img.size = q->hdr.size;
        forget(&q->img);
        return 0;
    }
    if (read_header(q->img.file, q->flags, NULL, &hdr, NULL, err) < 0)
        return -1;
    adopt_header(q, &hdr);
    forget(&q->img);
    return 0;
}

int
qm_qcow2_can_read(const struct qm_qcow2 *q, struct qmeld_error *err)
{
    const char *file = q->img.file->path;

    if (q->geo.data_file && q->img.data == q->img.file)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file),
                       "the guest's data is in an external data file (%.256s), which is not "
                       "supported: convert it into one file first",
                       q->hdr.data_file ? q->hdr.data_file : "its name is not stored");
    return 0;
}

/* ---- single look-ups, for who changes or checks tables ---- */

int
qm_qcow2_read_l1(const struct qm_qcow2 *q, uint64_t l1_off, uint32_t idx, uint32_t n, uint64_t *out,
                 struct qmeld_error *err)
{
    const uint64_t len = (uint64_t)n * sizeof *out;
    uint64_t off;

    if (!qm_add(l1_off, (uint64_t)idx * sizeof *out, &off) || !qm_inside(off, len, QM_MAX_OFF))
        return qm_fail(err, QMELD_CORRUPT, qm_at(q->img.file->path, l1_off),
                       "L1 table at 0x%" PRIx64 " is not at a valid place: run check on the image",
                       l1_off);
    if (qm_pread_padded(q->img.file, off, out, len, err) < 0)
        return -1;
    for (uint32_t i = 0; i < n; i++) {
        be64 raw;

        memcpy(&raw, &out[i], sizeof raw);
        out[i] = be64_get(&raw);
    }
    return 0;
}

int
qm_qcow2_read_cluster(const struct qm_qcow2 *q, host_off off, void *out, struct qmeld_error *err)
{
    return qm_pread_padded(q->img.file, off.h, out, q->geo.cluster_size, err);
}

int
qm_qcow2_l2_entry(const struct qm_qcow2 *q, uint64_t guest_cluster, uint64_t *out_word0,
                  uint64_t *out_word1, uint64_t *out_l2_off, struct qmeld_error *err)
{
    const uint64_t l1_idx = guest_cluster >> q->geo.l2_bits;
    const uint64_t idx = guest_cluster & ((1ull << q->geo.l2_bits) - 1);
    uint64_t table;
    be64 words[2] = {0};

    *out_word0 = *out_word1 = *out_l2_off = 0;
    if (l1_idx >= q->hdr.l1_entries)
        return 0;
    if (qm_qcow2_read_l1(q, q->hdr.l1_off, (uint32_t)l1_idx, 1, &table, err) < 0)
        return -1;
    table &= QCOW2_OFFSET_MASK;
    if (table & (q->geo.cluster_size - 1))
        return bad_l2_table(q, l1_idx, table, err);
    if (!table)
        return 0;
    if (qm_pread_padded(q->img.file, table + idx * q->geo.l2_entry_len, words, q->geo.l2_entry_len,
                        err) < 0)
        return -1;
    *out_word0 = be64_get(&words[0]);
    *out_word1 = be64_get(&words[1]);
    *out_l2_off = table;
    return 0;
}

const char *
qcow2_l2_verdict_text(enum qcow2_l2_verdict v)
{
    switch (v) {
    case QCOW2_L2_OK:
        return "L2 entry: well formed";
    case QCOW2_L2_UNALIGNED:
        return "L2 entry: host offset is not cluster aligned";
    case QCOW2_L2_ZERO_IN_V2:
        return "L2 entry: zero flag in a version 2 image";
    case QCOW2_L2_BAD_BITMAP:
        return "L2 entry: subcluster bitmap contradicts itself";
    case QCOW2_L2_MISPLACED:
        return "L2 entry: in an external data file a cluster lies at its guest offset, and is not "
               "compressed";
    }
    return "L2 entry: unknown defect";
}
