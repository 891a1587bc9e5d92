/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * image.c - which format a file has, and what all formats share.
 *
 * Why.  Probing must never be more trusting than QEMU's: what QEMU would open as some other
 * format is no raw disk, so it is refused by name and not read as one.
 */
#include "cipher.h"
#include "qcow2.h"
#include "raw.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Signatures at fixed places, as QEMU's probes know them (7.2, block/, the .bdrv_probe functions).
 */
static const struct signature {
    const char *name;
    const char *driver; /* QEMU's name for it */
    uint32_t off;
    uint32_t len;
    const char *bytes;
} signatures[] = {
    {"VMDK", "vmdk", 0, 4, "KDMV"},
    {"VMDK", "vmdk", 0, 4, "COWD"},
    {"VMDK", "vmdk", 0, 21, "# Disk DescriptorFile"},
    {"VDI", "vdi", 64, 4, "\x7f\x10\xda\xbe"},
    {"VHD", "vpc", 0, 8, "conectix"},
    {"VHDX", "vhdx", 0, 8, "vhdxfile"},
    {"QED", "qed", 0, 4, "QED\0"},
    {"qcow (version 1)", "qcow", 0, 8, "QFI\xfb\0\0\0\1"},
    {"Parallels", "parallels", 0, 16, "WithoutFreeSpace"},
    {"Parallels", "parallels", 0, 16, "WithouFreSpacExt"},
    {"Bochs", "bochs", 0, 22, "Bochs Virtual HD Image"},
    {"cloop", "cloop", 0, 23, "#!/bin/sh\n#V2.0 Format\n"},
    {"LUKS", "luks", 0, 6, "LUKS\xba\xbe"},
};

/* Of QEMU's drivers those that are formats, under their other names, too. */
static const struct {
    const char *format;
    const char *driver;
} foreign[] = {
    {"vmdk", "vmdk"},   {"vdi", "vdi"},     {"vpc", "vpc"},   {"vhd", "vpc"},
    {"vhdx", "vhdx"},   {"qed", "qed"},     {"qcow", "qcow"}, {"parallels", "parallels"},
    {"bochs", "bochs"}, {"cloop", "cloop"}, {"dmg", "dmg"},   {"luks", "luks"},
};

#define PROBE_LEN 512

static bool
is_qcow2(const unsigned char *first)
{
    struct qcow2_disk_header raw;

    memcpy(&raw, first, sizeof raw);
    return be32_get(&raw.magic) == QCOW2_MAGIC && be32_get(&raw.version) >= 2;
}

int
qm_image_looks_like_qcow2(const struct qm_file *file, bool *out, struct qmeld_error *err)
{
    unsigned char first[PROBE_LEN];

    if (qm_pread_padded(file, 0, first, sizeof first, err) < 0)
        return -1;
    *out = is_qcow2(first);
    return 0;
}

/* A VMDK descriptor may begin with other comments and blank lines (qemu 7.2, block/vmdk.c, vmdk_probe). */
static bool
is_vmdk_text(const unsigned char *first)
{
    const char *p = (const char *)first, *end = p + PROBE_LEN;

    while (p < end) {
        const char *line = memchr(p, '\n', (size_t)(end - p));

        if (*p != '#' && *p != '\n' && *p != '\r' && *p != ' ')
            return end - p > 9 && memcmp(p, "version=", 8) == 0 && p[8] >= '1' && p[8] <= '3' &&
                   (p[9] == '\n' || p[9] == '\r');
        if (!line)
            return false;
        p = line + 1;
    }
    return false;
}

static int
refuse_foreign(const struct qm_file *file, const char *name, const char *driver,
               struct qmeld_error *err)
{
    return qm_fail(
        err, QMELD_UNSUPPORTED, qm_in(file->path),
        "it looks like a %s image, which is not read here: convert it, `qemu-img convert "
        "-f %s -O qcow2 %.200s NEW.qcow2`, or give the format raw if it is a guest's disk",
        name, driver, file->path);
}

int
qm_image_probe(const struct qm_file *file, const char **out, struct qmeld_error *err)
{
    const size_t len = strlen(file->path);
    unsigned char first[PROBE_LEN];

    if (qm_pread_padded(file, 0, first, sizeof first, err) < 0)
        return -1;
    *out = is_qcow2(first) ? "qcow2" : "raw";
    for (size_t i = 0; i < sizeof signatures / sizeof *signatures; i++) {
        const struct signature *s = &signatures[i];

        if (!memcmp(first + s->off, s->bytes, s->len))
            return refuse_foreign(file, s->name, s->driver, err);
    }
    if (is_vmdk_text(first))
        return refuse_foreign(file, "VMDK", "vmdk", err);
    /* QEMU goes by the name (7.2, block/dmg.c, dmg_probe) */
    if (strcmp(*out, "raw") == 0 && len > 4 && strcmp(file->path + len - 4, ".dmg") == 0)
        return refuse_foreign(file, "DMG", "dmg", err);
    return 0;
}

static int
refuse_format(const struct qm_file *file, const char *format, struct qmeld_error *err)
{
    for (size_t i = 0; i < sizeof foreign / sizeof *foreign; i++)
        if (strcmp(format, foreign[i].format) == 0)
            return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file->path),
                           "image format \"%s\" is not read here: convert it, `qemu-img convert -f "
                           "%s -O qcow2 %.200s NEW.qcow2`, and rebase what stands on it",
                           format, foreign[i].driver, file->path);
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(file->path),
                   "image format \"%.64s\" is not supported: only qcow2 and raw are", format);
}

static int
open_as(struct qm_file *file, const char *format, const struct qm_qcow2_damage *damage,
        struct qm_image **out, struct qmeld_error *err)
{
    struct qm_qcow2 *q;

    *out = NULL;
    if (!format && qm_image_probe(file, &format, err) < 0)
        return -1;
    if (!strcmp(format, "raw"))
        return qm_raw_open(file, out, err);
    if (strcmp(format, "qcow2") != 0)
        return refuse_format(file, format, err);
    if ((damage ? qm_qcow2_open_damaged(file, damage, &q, err)
                : qm_qcow2_open(file, QCOW2_DECODE_STRICT, &q, err)) < 0)
        return -1;
    *out = &q->img;
    return 0;
}

int
qm_image_open(struct qm_file *file, const char *format, struct qm_image **out,
              struct qmeld_error *err)
{
    return open_as(file, format, NULL, out, err);
}

int
qm_image_open_damaged(struct qm_file *file, const char *format, qmeld_finding_fn *fn, void *opaque,
                      struct qm_image **out, struct qmeld_error *err)
{
    const struct qm_qcow2_damage damage = {fn, opaque};

    return open_as(file, format, &damage, out, err);
}

void
qm_image_close(struct qm_image *img)
{
    struct qm_file *file, *data;

    if (!img)
        return;
    file = img->file;
    data = img->data;
    img->ops->free(img);
    if (data != file)
        qm_file_close(data);
    qm_file_close(file);
}

bool
qm_image_is_in(const struct qm_image *img, const struct qm_file *file)
{
    return qm_file_same(img->file, file) || qm_file_same(img->data, file);
}

int
qm_image_lock(struct qm_image *img, enum qm_lock_role role, struct qmeld_error *err)
{
    if (qm_lock_take(img->file, role, err) < 0)
        return -1;
    return img->data == img->file ? 0 : qm_lock_take(img->data, role, err);
}

int
qm_image_make_writable(struct qm_image *img, struct qmeld_error *err)
{
    if (img->data != img->file && qm_file_make_writable(img->data, err) < 0)
        return -1;
    return qm_file_make_writable(img->file, err);
}

int
qm_image_sync(struct qm_image *img, struct qmeld_error *err)
{
    if (img->data != img->file && qm_sync(img->data, err) < 0)
        return -1;
    return qm_sync(img->file, err);
}

int
qm_image_next(struct qm_image *img, guest_off from, uint64_t len, struct qm_extent *out,
              struct qmeld_error *err)
{
    assert(len > 0 && qm_inside(from.g, len, img->size));
    return img->ops->next(img, from, len, out, err);
}

void
qm_image_forget(struct qm_image *img)
{
    img->ops->forget(img);
}

struct qm_extent
qm_extent_part(const struct qm_extent *ext, uint64_t skip, uint64_t len)
{
    struct qm_extent part = *ext;

    assert(qm_inside(skip, len, ext->len));
    part.guest.g += skip;
    part.len = len;
    if (ext->kind == QM_COMPRESSED)
        part.skip += (uint32_t)skip;
    else if (ext->has_host)
        part.host.h += skip;
    return part;
}

static int
read_compressed(const struct qm_image *img, const struct qm_extent *ext, struct qm_codec *codec,
                void *buf, struct qmeld_error *err)
{
    unsigned char *cluster;

    if (ext->skip == 0 && ext->len == img->cluster_size)
        return img->ops->inflate(img, ext, codec, buf, err);
    cluster = qm_codec_cluster(codec, img->cluster_size);
    if (!cluster)
        return qm_fail_nomem(err, "a compressed cluster");
    if (img->ops->inflate(img, ext, codec, cluster, err) < 0)
        return -1;
    assert(qm_inside(ext->skip, ext->len, img->cluster_size));
    memcpy(buf, cluster + ext->skip, ext->len);
    return 0;
}

static int
read_plain(const struct qm_image *img, const struct qm_extent *ext, void *buf,
           struct qmeld_error *err)
{
    return img->ops->pad_data ? qm_pread_padded(img->data, ext->host.h, buf, ext->len, err)
                              : qm_pread(img->data, ext->host.h, buf, ext->len, err);
}

int
qm_extent_decrypt(const struct qm_image *img, const struct qm_extent *ext, void *buf,
                  struct qmeld_error *err)
{
    return img->cipher ? qm_cipher_decrypt(img->cipher, img->file->path, ext->guest, ext->host, buf,
                                           ext->len, err)
                       : 0;
}

/* Zeros that the file does not have, behind its end, are decrypted like others (QEMU, too). */
static int
read_encrypted(const struct qm_image *img, const struct qm_extent *ext, void *buf,
               struct qmeld_error *err)
{
    const uint64_t skip = ext->guest.g % QM_CIPHER_SECTOR;
    QM_FREE unsigned char *whole = NULL;
    struct qm_extent sectors = *ext;

    if (skip == 0 && ext->len % QM_CIPHER_SECTOR == 0)
        return read_plain(img, ext, buf, err) < 0 ? -1 : qm_extent_decrypt(img, ext, buf, err);
    /* cut where a layer of another length ends, or by a caller: sectors are whole in the file */
    sectors.guest.g -= skip;
    sectors.host.h -= skip;
    sectors.len = qm_align_up(skip + ext->len, QM_CIPHER_SECTOR);
    whole = malloc(sectors.len);
    if (!whole)
        return qm_fail_nomem(err, "encrypted sectors");
    if (read_plain(img, &sectors, whole, err) < 0 ||
        qm_extent_decrypt(img, &sectors, whole, err) < 0)
        return -1;
    memcpy(buf, whole + skip, ext->len);
    return 0;
}

int
qm_extent_read(const struct qm_image *img, const struct qm_extent *ext, struct qm_codec *codec,
               void *buf, struct qmeld_error *err)
{
    assert(ext->kind != QM_ABSENT);
    switch (ext->kind) {
    case QM_ZERO:
    case QM_ABSENT:
        memset(buf, 0, ext->len);
        return 0;
    case QM_DATA:
        return img->cipher ? read_encrypted(img, ext, buf, err) : read_plain(img, ext, buf, err);
    case QM_COMPRESSED:
        return read_compressed(img, ext, codec, buf, err);
    }
    return qm_fail(err, QMELD_USAGE, qm_in(img->file->path), "extent of no known kind");
}
