/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_recipe.h - a parsed recipe, shared by the files of the forge; of others, only
 * the crash harness includes it, for its numbers.
 *
 * Units      Bytes.  A cell is one cluster of a picture, numbered from guest offset 0.
 */
#ifndef QM_FORGE_RECIPE_H
#define QM_FORGE_RECIPE_H

#include "forge.h"
#include "vec.h"

#define QM_FORGE_NONE       SIZE_MAX
#define QM_FORGE_MAX_LAYERS 4096u
#define QM_FORGE_MAX_CELLS  (8u << 20) /* of one layer: a slip of the pen must not fill memory */

/* How a compressed cluster departs from what QEMU writes. */
enum qm_forge_stream {
    QM_FORGE_STREAM_PLAIN,
    QM_FORGE_STREAM_SHORT,    /* inflates to half a cluster */
    QM_FORGE_STREAM_LONG,     /* inflates to two clusters */
    QM_FORGE_STREAM_TRAILING, /* rubbish after its end */
    QM_FORGE_STREAM_GARBAGE,  /* no stream at all */
    QM_FORGE_STREAM_WRAPPED,  /* zlib only: with the zlib header that qcow2 does not have */
    QM_FORGE_STREAM_NOEND,    /* zlib only: never says that it ends */
    QM_FORGE_STREAM_WIDE,     /* zlib only: 32 KiB window where QEMU writes 4 KiB */
    QM_FORGE_STREAM_FRAMES,   /* zstd only: a skippable frame, then two frames */
};

struct qm_forge_cell {
    uint64_t index;
    char mark;       /* as in the picture; '^' (snapshots): shared with the active layer */
    const char *sub; /* for '#': 32 marks */
    enum qm_forge_stream stream;
};

/* Sorted by index, no two of one index; grows by qm_vec_push. */
struct qm_forge_cells {
    struct qm_forge_cell *at;
    size_t n;
    size_t room;
};

struct qm_forge_ext {
    uint32_t type;
    const char *bytes;
    size_t len;
};

struct qm_forge_snapshot {
    const char *name;
    const char *id;
    uint64_t size; /* virtual size when it was made */
    struct qm_forge_cells cells;
};

struct qm_forge_bitmap {
    const char *name;
    uint64_t granularity;
    uint32_t flags;
    const char *bits; /* '1' and anything else, from bit 0 */
};

/* A line that damages the finished file. */
struct qm_forge_damage {
    unsigned line;
    const char *text;
};

enum qm_forge_style {
    QM_FORGE_RELATIVE,
    QM_FORGE_ABSOLUTE,
    QM_FORGE_FILE, /* file:/absolute */
    QM_FORGE_JSON, /* json:{...} with an absolute file name */
};

struct qm_forge_layer {
    unsigned line;
    const char *file;
    bool raw;
    uint64_t cluster;
    uint64_t size;
    bool has_size;
    unsigned version;
    unsigned refcount_bits;
    bool extended_l2;
    unsigned compression;  /* the header's value: 0 zlib, 1 zstd */
    uint64_t incompatible; /* bits added to what the features need */
    uint64_t compatible;
    uint64_t autoclear;
    unsigned header_len; /* version 3: 104 or more */
    bool feature_table;  /* with the extension that names the features */
    const char *backing; /* the name to store; NULL: the file below, in this style */
    enum qm_forge_style style;
    const char *backing_format; /* NULL: the format below; "none": not stored */
    const char *over;           /* as written; NULL: the next row */
    size_t below;               /* the layer this one stands on, or QM_FORGE_NONE */
    uint64_t scatter;           /* not 0: clusters in random places, gaps between them */
    unsigned l1_extra;          /* L1 entries beyond those the size needs */
    const char *data_file;      /* external data file, or NULL */
    const char *luks;           /* passphrase of an encrypted image, or NULL */
    unsigned luks_slots;        /* with key material; QEMU wants all 8 */
    const char *aes;            /* the same, with the legacy encryption */
    struct qm_forge_cells cells;
    QM_VEC(struct qm_forge_ext) exts;
    QM_VEC(struct qm_forge_snapshot) snapshots;
    QM_VEC(struct qm_forge_bitmap) bitmaps;
    QM_VEC(struct qm_forge_damage) damages;
};

struct qm_forge {
    char *name;
    char *text;
    QM_VEC(char *) strings; /* everything the layers point to */
    QM_VEC(struct qm_forge_layer) layers;
};

/* The cell of a layer or snapshot at a cluster; NULL: absent. */
const struct qm_forge_cell *qm_forge_cell_at(const struct qm_forge_cells *cells, uint64_t index);

/* "12", "0x40", "64k", "3c" (clusters): false if it is no number. */
bool qm_forge_number(const char *word, uint64_t cluster, uint64_t *out);

/* One unit of the pattern: a letter's bytes at guest offset `off`, which a reader can tell from
 * any other place's, letter's and layer's.  who: layer, or 1000 * (snapshot + 1) + layer. */
void qm_forge_pattern(char letter, size_t who, uint64_t off, void *buf, size_t len);

/* Writes one qcow2 layer at path; dir is where all layers are. */
int qm_forge_write_qcow2(const struct qm_forge *forge, size_t layer, const char *dir,
                         const char *path, struct qmeld_error *err) QM_CHECK;

int qm_forge_pwrite(int fd, const char *path, const void *buf, size_t len, uint64_t off,
                    struct qmeld_error *err) QM_CHECK;

/* splitmix64: small, good enough, the same everywhere */
static inline uint64_t
qm_forge_rand(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ull);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

static inline uint64_t
qm_forge_below(uint64_t *state, uint64_t bound)
{
    return qm_forge_rand(state) % bound;
}

#endif
