/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge_write.c - the bytes of a recipe: the pattern, raw files, and the view a guest must get.
 *
 * The view is painted: from the lowest layer up, the raw file is cut or extended to each
 * layer's size (what lies past the end of a layer reads as zeros above it, whatever is below),
 * and the layer's own clusters are laid over it.  No table is involved.
 */
#include "forge_recipe.h"
#include "cleanup.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <unistd.h>

int
qm_forge_pwrite(int fd, const char *path, const void *buf, size_t len, uint64_t off,
                struct qmeld_error *err)
{
    const char *from = buf;

    while (len) {
        ssize_t n = pwrite(fd, from, len, (off_t)off);

        if (n <= 0) {
            if (n < 0 && errno == EINTR)
                continue;
            return qm_fail_sys(err, qm_at(path, off), "cannot write");
        }
        from += n;
        off += (uint64_t)n;
        len -= (size_t)n;
    }
    return 0;
}

/* A line of 32 bytes, "A 0002 0000 0000000000012220\n   ": letter, layer, snapshot, guest offset.
 * Any two places, letters or layers differ within each line, and text compresses. */
static void
pattern_line(char letter, size_t who, uint64_t off, char line[32])
{
    static const char hex[] = "0123456789abcdef";
    size_t layer = who % QM_FORGE_MAX_LAYERS;
    size_t snap = who / QM_FORGE_MAX_LAYERS;

    memset(line, ' ', 32);
    line[0] = letter;
    for (int i = 0; i < 4; i++) {
        line[5 - i] = (char)('0' + layer % 10);
        line[10 - i] = (char)('0' + snap % 10);
        layer /= 10;
        snap /= 10;
    }
    for (int i = 0; i < 16; i++)
        line[27 - i] = hex[(off >> (4 * i)) & 15];
    line[31] = '\n';
}

void
qm_forge_pattern(char letter, size_t who, uint64_t off, void *buf, size_t len)
{
    char *to = buf;

    for (size_t at = 0; at < len; at += 32) { /* off and len are multiples of 512 in use */
        char line[32];

        pattern_line(letter, who, off + at, line);
        memcpy(to + at, line, len - at < 32 ? len - at : 32);
    }
}

const char *
qm_forge_file(const struct qm_forge *forge, size_t layer)
{
    return forge->layers.at[layer].file;
}

const char *
qm_forge_data_file(const struct qm_forge *forge, size_t layer)
{
    return forge->layers.at[layer].data_file;
}

const char *
qm_forge_format(const struct qm_forge *forge, size_t layer)
{
    return forge->layers.at[layer].raw ? "raw" : "qcow2";
}

size_t
qm_forge_n_layers(const struct qm_forge *forge)
{
    return forge->layers.n;
}

int
qm_forge_load(const char *path, struct qm_forge **out, struct qmeld_error *err)
{
    FILE *f = strcmp(path, "-") ? fopen(path, "r") : stdin;
    QM_VEC(char) text = {0};
    int c;
    int r = 0;

    if (!f)
        return qm_fail_sys(err, qm_in(path), "cannot open the recipe");
    while (r == 0 && (c = getc(f)) != EOF) {
        char byte = (char)c;

        if (text.n > (64u << 20))
            r = qm_fail(err, QMELD_USAGE, qm_in(path), "a recipe of more than 64 MiB");
        else if (!qm_vec_push(&text, &byte))
            r = qm_fail_nomem(err, "a recipe");
    }
    if (r == 0 && ferror(f))
        r = qm_fail_sys(err, qm_in(path), "cannot read the recipe");
    if (f != stdin)
        fclose(f);
    if (r == 0 && !qm_vec_push(&text, &(char){0}))
        r = qm_fail_nomem(err, "a recipe");
    if (r == 0)
        r = qm_forge_parse(text.at, path, out, err);
    qm_vec_release(&text);
    return r;
}

static int
write_zeros(int fd, const char *path, uint64_t off, uint64_t len, struct qmeld_error *err)
{
    static const char zeros[65536];

    while (len) {
        size_t n = len < sizeof zeros ? (size_t)len : sizeof zeros;

        if (qm_forge_pwrite(fd, path, zeros, n, off, err) < 0)
            return -1;
        off += n;
        len -= n;
    }
    return 0;
}

/* Lays the guest's bytes [off, off + len) of one mark over the file; '.' leaves it alone. */
static int
paint(int fd, const char *path, char mark, size_t who, uint64_t off, uint64_t len, void *buf,
      struct qmeld_error *err)
{
    if (mark == '.')
        return 0;
    if (!isalpha((unsigned char)mark))
        return write_zeros(fd, path, off, len, err);
    qm_forge_pattern(mark, who, off, buf, (size_t)len);
    return qm_forge_pwrite(fd, path, buf, (size_t)len, off, err);
}

/* The cells of one layer over the file, which ends at `size`. */
static int
paint_layer(int fd, const char *path, const struct qm_forge_layer *l, size_t who, uint64_t size,
            struct qmeld_error *err)
{
    QM_FREE char *buf = malloc(l->cluster);

    if (!buf)
        return qm_fail_nomem(err, "a cluster");
    QM_VEC_EACH (cell, &l->cells) {
        const uint64_t unit = cell->mark == '#' ? l->cluster / 32 : l->cluster;

        for (uint64_t i = 0; i < l->cluster / unit; i++) {
            uint64_t off = cell->index * l->cluster + i * unit;
            uint64_t len = off < size ? size - off : 0;
            char mark = cell->mark == '#' ? cell->sub[i] : cell->mark;

            if (mark == '~' && l->extended_l2)
                mark = '.'; /* a place without content: what is below shows */
            if (paint(fd, path, mark, who, off, len < unit ? len : unit, buf, err) < 0)
                return -1;
        }
    }
    return 0;
}

/* QEMU: raw lengths are rounded up to a sector, virtual sizes down. */
static uint64_t
view_size(const struct qm_forge_layer *l)
{
    return l->raw ? (l->size + 511) / 512 * 512 : l->size / 512 * 512;
}

int
qm_forge_expect(const struct qm_forge *forge, size_t layer, const char *path,
                struct qmeld_error *err)
{
    size_t order[QM_FORGE_MAX_LAYERS];
    size_t n = 0;
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int r = 0;

    if (fd < 0)
        return qm_fail_sys(err, qm_in(path), "cannot create");
    for (size_t i = layer; i != QM_FORGE_NONE; i = forge->layers.at[i].below)
        order[n++] = i; /* below is always a later row: this ends */
    while (r == 0 && n--) {
        const struct qm_forge_layer *l = &forge->layers.at[order[n]];

        if (ftruncate(fd, (off_t)view_size(l)) < 0)
            r = qm_fail_sys(err, qm_in(path), "cannot set the length");
        else
            r = paint_layer(fd, path, l, order[n], l->raw ? l->size : view_size(l), err);
    }
    if (close(fd) < 0 && r == 0)
        r = qm_fail_sys(err, qm_in(path), "cannot close");
    return r;
}

static int
write_raw(const struct qm_forge *forge, size_t layer, const char *path, struct qmeld_error *err)
{
    const struct qm_forge_layer *l = &forge->layers.at[layer];
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    int r = 0;

    if (fd < 0)
        return qm_fail_sys(err, qm_in(path), "cannot create");
    if (ftruncate(fd, (off_t)l->size) < 0)
        r = qm_fail_sys(err, qm_in(path), "cannot set the length");
    else
        r = paint_layer(fd, path, l, layer, l->size, err);
    if (close(fd) < 0 && r == 0)
        r = qm_fail_sys(err, qm_in(path), "cannot close");
    return r;
}

int
qm_forge_write(const struct qm_forge *forge, const char *dir, struct qmeld_error *err)
{
    for (size_t i = 0; i < forge->layers.n; i++) {
        QM_FREE char *path = NULL;

        if (asprintf(&path, "%s/%s", dir, forge->layers.at[i].file) < 0) {
            path = NULL;
            return qm_fail_nomem(err, "a path");
        }
        if ((forge->layers.at[i].raw ? write_raw(forge, i, path, err)
                                     : qm_forge_write_qcow2(forge, i, dir, path, err)) < 0)
            return -1;
    }
    return 0;
}
