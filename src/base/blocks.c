/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * blocks.c - the picture of a file's blocks, in pieces.
 *
 * A piece is CHUNK blocks.  It is read when it is first touched; one whose blocks are all alike, which most
 * are, costs no bitmap.  So a file of any length costs what is changed in it: at most 1 KiB for 16 MiB.
 */
#include "blocks.h"

#include "dict.h"

#include <errno.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHUNK   4096u
#define WORDS   (CHUNK / 64)
#define EXTENTS 64u /* asked for at once */
#define LOOKS                                                                                      \
    (1u << 20) /* extents looked at for what SEEK_DATA does not show; then it counts as seen */

/* A set of the blocks of a chunk. */
struct set {
    unsigned n;     /* how many are in it */
    uint64_t *word; /* WORDS; NULL: all, or none */
};

struct chunk {
    uint64_t no;
    struct set has;
    struct set shared; /* of those */
};

struct qm_blocks {
    const char *path; /* borrowed */
    int fd;
    uint64_t block;
    uint64_t end; /* what the file had from here on is cut off */
    bool seek;    /* no FIEMAP */
    uint64_t unseen;
    struct qm_dict chunks;
};

/* ---- sets ---- */

static bool
give_words(struct set *s)
{
    if (s->word)
        return true;
    s->word = malloc(WORDS * sizeof *s->word);
    if (s->word)
        memset(s->word, s->n == CHUNK ? 0xff : 0, WORDS * sizeof *s->word);
    return s->word != NULL;
}

/* Puts [from, to) into the set or takes it out; *out: how many changed.  False: out of memory. */
static bool
put(struct set *s, unsigned from, unsigned to, bool in, unsigned *out)
{
    *out = 0;
    if (from >= to || s->n == (in ? CHUNK : 0))
        return true;
    if (!give_words(s))
        return false;
    for (unsigned w = from / 64; w <= (to - 1) / 64; w++) {
        const unsigned a = w == from / 64 ? from % 64 : 0;
        const unsigned b = w == (to - 1) / 64 ? (to - 1) % 64 + 1 : 64;
        const uint64_t mask = (UINT64_MAX >> (64 - (b - a))) << a;
        const uint64_t change = in ? mask & ~s->word[w] : mask & s->word[w];

        s->word[w] ^= change;
        *out += (unsigned)__builtin_popcountll(change);
    }
    s->n = in ? s->n + *out : s->n - *out;
    if (s->n == 0 || s->n == CHUNK) {
        free(s->word);
        s->word = NULL;
    }
    return true;
}

/* ---- what the file has ---- */

/* [from, to) is allocated.  False ends the walk: out of memory. */
typedef bool extent_fn(struct qm_blocks *b, uint64_t from, uint64_t to, bool shared, void *opaque);

/* *out_end: where the answer ends.  1: told, 0: no more, -1: errno. */
static int
look_by_fiemap(struct qm_blocks *b, uint64_t from, uint64_t to, extent_fn *fn, void *opaque,
               uint64_t *out_end)
{
    union {
        struct fiemap map;
        unsigned char room[sizeof(struct fiemap) + EXTENTS * sizeof(struct fiemap_extent)];
    } u = {.map = {.fm_start = from, .fm_length = to - from, .fm_extent_count = EXTENTS}};
    bool last = false;

    if (ioctl(b->fd, FS_IOC_FIEMAP, &u.map) < 0)
        return errno == EFBIG ? 0 : -1; /* behind all that a file can have here */
    for (uint32_t i = 0; i < u.map.fm_mapped_extents; i++) {
        const struct fiemap_extent *e = &u.map.fm_extents[i];
        const uint64_t end = qm_min(to, e->fe_logical + e->fe_length);

        last = last || e->fe_flags & FIEMAP_EXTENT_LAST;
        *out_end = e->fe_logical + e->fe_length;
        if (e->fe_flags & FIEMAP_EXTENT_DATA_INLINE || qm_max(from, e->fe_logical) >= end)
            continue;
        if (!fn(b, qm_max(from, e->fe_logical), end, e->fe_flags & FIEMAP_EXTENT_SHARED, opaque)) {
            errno = ENOMEM;
            return -1;
        }
    }
    return u.map.fm_mapped_extents == EXTENTS && !last;
}

static int
look_by_seek(struct qm_blocks *b, uint64_t from, uint64_t to, extent_fn *fn, void *opaque,
             uint64_t *out_end)
{
    const off_t data = lseek(b->fd, (off_t)from, SEEK_DATA);
    const off_t hole = data < 0 ? -1 : lseek(b->fd, data, SEEK_HOLE);

    if (data < 0 && (errno == EINVAL || errno == EOPNOTSUPP)) { /* it cannot tell: all is data */
        struct stat st;

        if (fstat(b->fd, &st) < 0)
            return -1;
        if (from < (uint64_t)st.st_size &&
            !fn(b, from, qm_min(to, (uint64_t)st.st_size), false, opaque))
            goto nomem;
        return 0;
    }
    if (data < 0 || hole < 0)
        return errno == ENXIO ? 0 : -1;
    *out_end = (uint64_t)hole;
    if ((uint64_t)data < to && !fn(b, (uint64_t)data, qm_min(to, (uint64_t)hole), false, opaque))
        goto nomem;
    return (uint64_t)hole < to;
nomem:
    errno = ENOMEM;
    return -1;
}

/* Tells fn of what the file has in [from, to), at most `most` times. */
static int
look(struct qm_blocks *b, uint64_t from, uint64_t to, unsigned most, extent_fn *fn, void *opaque,
     struct qmeld_error *err)
{
    to = qm_min(to, b->end);
    while (b->fd >= 0 && from < to && most-- > 0) {
        uint64_t end = to;
        const int r = b->seek ? look_by_seek(b, from, to, fn, opaque, &end)
                              : look_by_fiemap(b, from, to, fn, opaque, &end);

        if (r < 0 && errno == ENOMEM)
            return qm_fail_nomem(err, "the blocks of a file");
        if (r < 0)
            return qm_fail_sys(err, qm_in(b->path), "cannot see which blocks it has");
        if (r == 0 || end <= from)
            return 0;
        from = end;
    }
    return 0;
}

static bool
add_up(struct qm_blocks *b, uint64_t from, uint64_t to, bool shared, void *opaque)
{
    uint64_t *sum = opaque;

    (void)shared;
    *sum += qm_align_up(to, b->block) - qm_align_down(from, b->block);
    return true;
}

static int
find_unseen(struct qm_blocks *b, struct qmeld_error *err)
{
    uint64_t seen = 0;
    struct stat st;

    if (fstat(b->fd, &st) < 0)
        return qm_fail_sys(err, qm_in(b->path), "cannot stat");
    if (look(b, 0, QM_MAX_OFF, LOOKS, add_up, &seen, err) < 0)
        return -1;
    b->unseen = (uint64_t)st.st_blocks * 512 > seen ? (uint64_t)st.st_blocks * 512 - seen : 0;
    return 0;
}

/* ---- chunks ---- */

static bool
fill(struct qm_blocks *b, uint64_t from, uint64_t to, bool shared, void *opaque)
{
    struct chunk *c = opaque;
    const uint64_t first = c->no * CHUNK;
    const unsigned lo = (unsigned)(from / b->block - first);
    const unsigned hi = (unsigned)(qm_min(qm_div_up(to, b->block), first + CHUNK) - first);
    unsigned n;

    return put(&c->has, lo, hi, true, &n) && (!shared || put(&c->shared, lo, hi, true, &n));
}

static void
free_chunk(struct chunk *c)
{
    free(c->has.word);
    free(c->shared.word);
    free(c);
}

static uint64_t
chunk_bytes(const struct qm_blocks *b)
{
    return CHUNK * b->block;
}

static int
get_chunk(struct qm_blocks *b, uint64_t no, struct chunk **out, struct qmeld_error *err)
{
    struct chunk *c = qm_dict_get(&b->chunks, no);

    *out = c;
    if (c)
        return 0;
    c = calloc(1, sizeof *c);
    if (!c)
        return qm_fail_nomem(err, "the blocks of a file");
    c->no = no;
    if (look(b, no * chunk_bytes(b), (no + 1) * chunk_bytes(b), UINT32_MAX, fill, c, err) < 0) {
        free_chunk(c);
        return -1;
    }
    if (!qm_dict_put(&b->chunks, no, c)) {
        free_chunk(c);
        return qm_fail_nomem(err, "the blocks of a file");
    }
    *out = c;
    return 0;
}

/* Blocks of [first, end) that lie in the chunk, counted from its first. */
static void
part_of(const struct chunk *c, uint64_t first, uint64_t end, unsigned *out_lo, unsigned *out_hi)
{
    const uint64_t from = c->no * CHUNK;

    *out_lo = (unsigned)(qm_min(qm_max(first, from), from + CHUNK) - from);
    *out_hi = (unsigned)(qm_min(qm_max(end, from), from + CHUNK) - from);
}

static int
write_chunk(struct qm_blocks *b, struct chunk *c, uint64_t first, uint64_t end,
            struct qm_blocks_change *change, struct qmeld_error *err)
{
    unsigned lo, hi, taken, unshared;

    part_of(c, first, end, &lo, &hi);
    if (!put(&c->has, lo, hi, true, &taken) || !put(&c->shared, lo, hi, false, &unshared))
        return qm_fail_nomem(err, "the blocks of a file");
    change->allocated += (int64_t)(taken * b->block);
    change->space += (int64_t)((taken + unshared) * b->block);
    return 0;
}

static int
clear_chunk(struct qm_blocks *b, struct chunk *c, uint64_t first, uint64_t end,
            struct qm_blocks_change *change, struct qmeld_error *err)
{
    unsigned lo, hi, freed, shared;

    part_of(c, first, end, &lo, &hi);
    if (!put(&c->has, lo, hi, false, &freed) || !put(&c->shared, lo, hi, false, &shared))
        return qm_fail_nomem(err, "the blocks of a file");
    change->allocated -= (int64_t)(freed * b->block);
    change->space -= (int64_t)((freed - shared) * b->block);
    return 0;
}

struct loading {
    struct qmeld_error err;
    bool failed;
};

static bool
load_chunks(struct qm_blocks *b, uint64_t from, uint64_t to, bool shared, void *opaque)
{
    struct loading *l = opaque;
    struct chunk *c;

    (void)shared;
    for (uint64_t no = from / chunk_bytes(b); no <= (to - 1) / chunk_bytes(b); no++)
        if (get_chunk(b, no, &c, &l->err) < 0) {
            l->failed = true;
            return false;
        }
    return true;
}

/* Blocks [first, end) are freed.  Costs what the file has there, not how long that is. */
static int
clear(struct qm_blocks *b, uint64_t first, uint64_t end, struct qm_blocks_change *change,
      struct qmeld_error *err)
{
    struct loading loading = {.failed = false};
    const uint64_t from = first / CHUNK, to = qm_div_up(end, CHUNK);
    struct chunk *c;

    if (first >= end)
        return 0;
    if (to - from == 1)
        return get_chunk(b, from, &c, err) < 0 ? -1 : clear_chunk(b, c, first, end, change, err);
    if (look(b, first * b->block, end * b->block, UINT32_MAX, load_chunks, &loading, err) < 0) {
        *err = loading.failed ? loading.err : *err;
        return -1;
    }
    if (to - from > b->chunks.room) {
        QM_DICT_EACH (e, &b->chunks)
            if (clear_chunk(b, e->value, first, end, change, err) < 0)
                return -1;
        return 0;
    }
    for (uint64_t no = from; no < to; no++)
        if ((c = qm_dict_get(&b->chunks, no)) && clear_chunk(b, c, first, end, change, err) < 0)
            return -1;
    return 0;
}

/* ---- calls ---- */

int
qm_blocks_new(int fd, uint64_t block, const char *path, struct qm_blocks **out,
              struct qmeld_error *err)
{
    struct qm_blocks *b = calloc(1, sizeof *b);
    struct fiemap probe = {.fm_length = 1};

    *out = NULL;
    if (!b) {
        if (fd >= 0)
            close(fd);
        return qm_fail_nomem(err, "the blocks of a file");
    }
    *b = (struct qm_blocks){.path = path, .fd = fd, .block = block};
    b->end = QM_MAX_OFF - QM_MAX_OFF % block;
    b->seek = fd >= 0 && ioctl(fd, FS_IOC_FIEMAP, &probe) < 0;
    if (b->seek && find_unseen(b, err) < 0) {
        qm_blocks_free(b);
        return -1;
    }
    *out = b;
    return 0;
}

void
qm_blocks_free(struct qm_blocks *b)
{
    if (!b)
        return;
    QM_DICT_EACH (e, &b->chunks)
        free_chunk(e->value);
    qm_dict_release(&b->chunks);
    if (b->fd >= 0)
        close(b->fd);
    free(b);
}

int
qm_blocks_write(struct qm_blocks *b, uint64_t off, uint64_t len, struct qm_blocks_change *change,
                struct qmeld_error *err)
{
    const uint64_t first = off / b->block, end = qm_div_up(off + len, b->block);

    for (uint64_t no = first / CHUNK; len > 0 && no <= (end - 1) / CHUNK; no++) {
        struct chunk *c;

        if (get_chunk(b, no, &c, err) < 0 || write_chunk(b, c, first, end, change, err) < 0)
            return -1;
    }
    return 0;
}

int
qm_blocks_punch(struct qm_blocks *b, uint64_t off, uint64_t len, struct qm_blocks_change *change,
                struct qmeld_error *err)
{
    return clear(b, qm_div_up(off, b->block), (off + len) / b->block, change, err);
}

int
qm_blocks_cut(struct qm_blocks *b, uint64_t size, struct qm_blocks_change *change,
              struct qmeld_error *err)
{
    const uint64_t first = qm_div_up(size, b->block), end = QM_MAX_OFF / b->block;

    if (clear(b, first, end, change, err) < 0)
        return -1;
    b->end = qm_min(b->end, first * b->block);
    return 0;
}

/* Blocks [lo, hi) of a chunk, all of one kind from lo on: what kind, and how far. */
static unsigned
run_of(const struct chunk *c, unsigned lo, unsigned hi, bool *out_has)
{
    const uint64_t *word = c->has.word;
    unsigned i = lo;

    *out_has = word ? word[lo / 64] >> lo % 64 & 1 : c->has.n == CHUNK;
    if (!word)
        return hi;
    while (i < hi && (word[i / 64] >> i % 64 & 1) == *out_has)
        i++;
    return i;
}

/* Blocks [first, first + n), which are in one chunk. */
static int
give_shared(struct qm_blocks *b, uint64_t first, unsigned n, bool has,
            struct qm_blocks_change *change, uint64_t *freed, struct qmeld_error *err)
{
    const unsigned lo = (unsigned)(first % CHUNK);
    unsigned changed, unshared, kept;
    struct chunk *c;

    if (get_chunk(b, first / CHUNK, &c, err) < 0)
        return -1;
    if (!put(&c->shared, lo, lo + n, false, &unshared) ||
        !put(&c->has, lo, lo + n, has, &changed) ||
        (has && !put(&c->shared, lo, lo + n, true, &kept)))
        return qm_fail_nomem(err, "the blocks of a file");
    kept = has ? n - changed : changed; /* blocks that it had */
    change->allocated += has ? (int64_t)(changed * b->block) : -(int64_t)(changed * b->block);
    *freed += (kept - unshared) * b->block;
    return 0;
}

static int
share_run(struct qm_blocks *to, uint64_t to_first, struct qm_blocks *from, uint64_t first,
          uint64_t most, struct qm_blocks_change *change, uint64_t *freed, uint64_t *out_n,
          struct qmeld_error *err)
{
    const unsigned lo = (unsigned)(first % CHUNK), room = CHUNK - (unsigned)(to_first % CHUNK);
    unsigned hi = (unsigned)qm_min(CHUNK, lo + qm_min(most, room)), lent;
    struct chunk *c;
    bool has;

    if (get_chunk(from, first / CHUNK, &c, err) < 0)
        return -1;
    hi = run_of(c, lo, hi, &has);
    if (has && !put(&c->shared, lo, hi, true, &lent))
        return qm_fail_nomem(err, "the blocks of a file");
    *out_n = hi - lo;
    return give_shared(to, to_first, hi - lo, has, change, freed, err);
}

int
qm_blocks_share(struct qm_blocks *to, uint64_t to_off, struct qm_blocks *from, uint64_t off,
                uint64_t len, struct qm_blocks_change *change, uint64_t *out_freed,
                struct qmeld_error *err)
{
    *out_freed = 0;
    for (uint64_t done = 0, n = 0; done < len / to->block; done += n)
        if (share_run(to, to_off / to->block + done, from, off / to->block + done,
                      len / to->block - done, change, out_freed, &n, err) < 0)
            return -1;
    return 0;
}

void
qm_blocks_ask(const struct qm_blocks *b, uint64_t off, bool *out_touched, bool *out_has,
              uint64_t *out_len)
{
    const struct chunk *c = qm_dict_get(&b->chunks, off / chunk_bytes(b));
    const uint64_t start = off / chunk_bytes(b) * chunk_bytes(b);
    unsigned i = (unsigned)((off - start) / b->block);

    *out_touched = c != NULL;
    *out_len = start + chunk_bytes(b) - off;
    if (!c)
        return;
    *out_has = c->has.word ? c->has.word[i / 64] >> i % 64 & 1 : c->has.n == CHUNK;
    if (!c->has.word)
        return;
    while (i < CHUNK && (c->has.word[i / 64] >> i % 64 & 1) == *out_has)
        i++;
    *out_len = start + i * b->block - off;
}

uint64_t
qm_blocks_unseen(const struct qm_blocks *b)
{
    return b->unseen;
}
