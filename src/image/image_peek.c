/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "image_peek.h"

#include "bytes.h"
#include "qcow2_disk.h"

#include <errno.h>
#include <limits.h>

/* One page: QEMU's own headers, names included, take less than 2 KiB. */
#define FIRST_READ 4096u

/* QED: all numbers are little endian (QEMU, docs/interop/qed_spec.rst). */
#define QED_MAGIC      "QED\0"
#define QED_NAME_OFF   56u
#define QED_NAME_LEN   60u
#define QED_HEADER_LEN 64u

struct head {
    unsigned char bytes[FIRST_READ];
    size_t len;
};

static uint32_t
le32(const unsigned char *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* A name of len bytes at off of the file.  What cannot be one is none. */
static int
take_name(const struct qm_peek *file, const struct head *h, uint64_t off, uint64_t len, char **out)
{
    size_t got = 0;
    char *name;
    int rc = 0;

    if (off == 0 || len == 0 || len > PATH_MAX || off >= file->size)
        return 0;
    name = calloc(len + 1, 1);
    if (!name)
        return ENOMEM;
    if (off <= h->len && len <= h->len - off)
        memcpy(name, h->bytes + off, len);
    else
        rc = qm_peek_read(file, off, name, len, &got);
    if (rc == 0 && name[0]) {
        *out = name;
        return 0;
    }
    free(name);
    return rc;
}

/* specification, "Header extensions": the one that names the data file, if it lies in what was read. */
static int
take_data_file(const struct qm_peek *file, const struct head *h, uint32_t from,
               struct qm_stand *out)
{
    uint64_t at = from;

    while (at + sizeof(struct qcow2_disk_ext) <= h->len) {
        const struct qcow2_disk_ext *e = (const struct qcow2_disk_ext *)(h->bytes + at);
        const uint32_t type = be32_get(&e->type), len = be32_get(&e->len);

        at += sizeof *e;
        if (type == QCOW2_EXT_END)
            return 0;
        if (type == QCOW2_EXT_DATA_FILE)
            return take_name(file, h, at, len, &out->data_file);
        at = qm_align_up(at + len, 8);
    }
    return 0;
}

/* qcow (version 1) has the name's place where qcow2 has it. */
static int
look_at_qcow(const struct qm_peek *file, const struct head *h, struct qm_stand *out)
{
    const struct qcow2_disk_header *d = (const struct qcow2_disk_header *)h->bytes;
    int rc = take_name(file, h, be64_get(&d->backing_off), be32_get(&d->backing_len),
                       &out->backing_name);

    if (rc == 0 && be32_get(&d->version) >= 3 &&
        (be64_get(&d->incompatible) & QCOW2_INCOMPAT_DATA_FILE))
        rc = take_data_file(file, h, be32_get(&d->header_len), out);
    return rc;
}

int
qm_image_stands_on(const struct qm_peek *file, struct qm_stand *out)
{
    const struct qcow2_disk_header *d;
    struct head h;
    int rc;

    *out = (struct qm_stand){.backing_name = NULL};
    if (file->size < QED_HEADER_LEN) /* the smallest of the headers that have a name */
        return 0;
    rc = qm_peek_read(file, 0, h.bytes, sizeof h.bytes, &h.len);
    if (rc != 0 || h.len < QCOW2_V2_HEADER_LEN)
        return rc;
    memset(h.bytes + h.len, 0, sizeof h.bytes - h.len);
    d = (const struct qcow2_disk_header *)h.bytes;
    if (be32_get(&d->magic) == QCOW2_MAGIC)
        return look_at_qcow(file, &h, out);
    if (memcmp(h.bytes, QED_MAGIC, 4) == 0)
        return take_name(file, &h, le32(h.bytes + QED_NAME_OFF), le32(h.bytes + QED_NAME_LEN),
                         &out->backing_name);
    return 0;
}

void
qm_stand_release(struct qm_stand *s)
{
    free(s->backing_name);
    free(s->data_file);
    *s = (struct qm_stand){.backing_name = NULL};
}
