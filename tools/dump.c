/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * dump - the metadata of a qcow2 image in words, one fact a line.
 *
 * For looking at what a test, a crash or a stranger left behind, and for diffing two states.
 * It believes nothing: what it cannot make sense of it prints as numbers and goes on, and it
 * reads tables entry by entry, so a lying size costs time up to the format's limits, never memory.
 * Own code, as the forge: it must be able to contradict src/image.
 */
#include "addr.h"
#include "bytes.h"

#include <ctype.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define OFFSET_MASK ((uint64_t)0x00fffffffffffe00)

struct image {
    int fd;
    uint64_t file_size;
    unsigned version;
    unsigned cluster_bits;
    uint64_t cs;
    bool extended;
    unsigned refcount_bits;
};

/* What lies past the end of the file reads as zeros, as QEMU has it. */
static void
fetch(const struct image *im, uint64_t off, void *buf, size_t len)
{
    ssize_t n = off > QM_MAX_OFF ? 0 : pread(im->fd, buf, len, (off_t)off);

    if (n < 0)
        n = 0;
    memset((char *)buf + n, 0, len - (size_t)n);
}

static uint64_t
number(const struct image *im, uint64_t off, size_t len)
{
    unsigned char b[8];
    uint64_t v = 0;

    fetch(im, off, b, len);
    for (size_t i = 0; i < len; i++)
        v = v << 8 | b[i];
    return v;
}

static void
print_text(const struct image *im, uint64_t off, uint64_t len)
{
    unsigned char b[1024];

    len = qm_min(len, sizeof b);
    fetch(im, off, b, (size_t)len);
    putchar('"');
    for (uint64_t i = 0; i < len; i++) {
        if (isprint(b[i]) && b[i] != '"' && b[i] != '\\')
            putchar(b[i]);
        else
            printf("\\x%02x", b[i]);
    }
    putchar('"');
}

static void
print_bits(const char *what, uint64_t word, const char *const *names, unsigned n)
{
    printf("%s 0x%" PRIx64, what, word);
    for (unsigned i = 0; i < 64; i++)
        if (word >> i & 1) {
            if (i < n)
                printf(" %s", names[i]);
            else
                printf(" unknown-%u", i);
        }
    putchar('\n');
}

static void
dump_header(const struct image *im)
{
    static const struct {
        const char *name;
        unsigned off, len;
    } fields[] = {{"version", 4, 4},         {"backing_off", 8, 8},
                  {"backing_len", 16, 4},    {"cluster_bits", 20, 4},
                  {"size", 24, 8},           {"crypt", 32, 4},
                  {"l1_entries", 36, 4},     {"l1_off", 40, 8},
                  {"reftable_off", 48, 8},   {"reftable_clusters", 56, 4},
                  {"n_snapshots", 60, 4},    {"snapshots_off", 64, 8},
                  {"refcount_order", 96, 4}, {"header_len", 100, 4},
                  {"compression", 104, 1}};
    static const char *const incompatible[] = {"dirty", "corrupt", "data-file", "compression",
                                               "extended-l2"};
    static const char *const compatible[] = {"lazy-refcounts"};
    static const char *const autoclear[] = {"bitmaps", "raw-data"};

    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++) {
        if (fields[i].off >= 72 && im->version < 3)
            break;
        if (fields[i].off == 104 && number(im, 100, 4) <= 104)
            break;
        uint64_t v = number(im, fields[i].off, fields[i].len);

        printf("header %s %" PRIu64 " (0x%" PRIx64 ")\n", fields[i].name, v, v);
    }
    if (im->version >= 3) {
        print_bits("header incompatible", number(im, 72, 8), incompatible, 5);
        print_bits("header compatible", number(im, 80, 8), compatible, 1);
        print_bits("header autoclear", number(im, 88, 8), autoclear, 2);
    }
}

static const char *
extension_name(uint32_t type)
{
    switch (type) {
    case 0:
        return "end";
    case 0xe2792aca:
        return "backing-format";
    case 0x6803f857:
        return "feature-names";
    case 0x23852875:
        return "bitmaps";
    case 0x0537be77:
        return "crypto";
    case 0x44415441:
        return "data-file";
    default:
        return "unknown";
    }
}

static void
dump_extensions(const struct image *im)
{
    const uint64_t backing_off = number(im, 8, 8);
    const uint64_t backing_len = number(im, 16, 4);
    const uint64_t end = backing_off ? qm_min(backing_off, im->cs) : im->cs;
    uint64_t off = im->version < 3 ? 72 : number(im, 100, 4);

    while (off + 8 <= end) {
        const uint32_t type = (uint32_t)number(im, off, 4);
        const uint64_t len = number(im, off + 4, 4);

        printf("extension at %" PRIu64 ": 0x%08x %s, %" PRIu64 " bytes ", off, type,
               extension_name(type), len);
        if (len > end - off - 8) {
            printf("(runs past the end at %" PRIu64 ")\n", end);
            break;
        }
        print_text(im, off + 8, qm_min(len, 64));
        putchar('\n');
        if (!type)
            break;
        off += 8 + qm_align_up(len, 8);
    }
    if (backing_off) {
        printf("backing ");
        print_text(im, backing_off, backing_len);
        putchar('\n');
    }
}

static void
print_entry(const struct image *im, uint64_t guest, uint64_t entry, uint64_t bitmap)
{
    const unsigned x = 70 - im->cluster_bits;
    const uint64_t off = entry & OFFSET_MASK;

    printf("  guest %" PRIu64 ": ", guest);
    if (entry >> 62 & 1)
        printf("compressed at %" PRIu64 ", %" PRIu64 " more sectors",
               entry & (((uint64_t)1 << x) - 1), (entry & ~((uint64_t)3 << 62)) >> x);
    else if (im->extended)
        printf("at %" PRIu64 ", data %08x, zero %08x", off, (unsigned)bitmap,
               (unsigned)(bitmap >> 32));
    else if (entry & 1 && !off)
        printf("zero");
    else if (entry & 1)
        printf("zero at %" PRIu64, off);
    else
        printf("data at %" PRIu64, off);
    if (entry >> 63)
        printf(" copied");
    if (!(entry >> 62 & 1) && entry & 0x3f000000000001feull)
        printf(" reserved bits 0x%" PRIx64, (uint64_t)(entry & 0x3f000000000001feull));
    putchar('\n');
}

static void
dump_l2(const struct image *im, uint64_t table, uint64_t guest)
{
    const uint64_t len = im->extended ? 16 : 8;

    for (uint64_t i = 0; i < im->cs / len; i++) {
        const uint64_t entry = number(im, table + i * len, 8);
        const uint64_t bitmap = im->extended ? number(im, table + i * len + 8, 8) : 0;

        if (entry || bitmap)
            print_entry(im, guest + i * im->cs, entry, bitmap);
    }
}

static void
dump_l1(const struct image *im, uint64_t off, uint64_t n, bool deep)
{
    const uint64_t span = im->cs / (im->extended ? 16 : 8) * im->cs;

    for (uint64_t i = 0; i < n && i < (4u << 20) && qm_inside(off, 8 * (i + 1), im->file_size);
         i++) {
        const uint64_t entry = number(im, off + 8 * i, 8);

        if (!entry)
            continue;
        printf("l1[%" PRIu64 "] table at %" PRIu64 "%s%s\n", i, entry & OFFSET_MASK,
               entry >> 63 ? " copied" : "",
               entry & ~(OFFSET_MASK | 1ull << 63) ? " reserved bits" : "");
        if (deep && entry & OFFSET_MASK)
            dump_l2(im, entry & OFFSET_MASK, i * span);
    }
}

static void
dump_snapshots(const struct image *im)
{
    uint64_t off = number(im, 64, 8);

    for (uint64_t i = 0, n = number(im, 60, 4); i < n && i < 65536 && off < im->file_size; i++) {
        const uint64_t id = number(im, off + 12, 2);
        const uint64_t name = number(im, off + 14, 2);
        const uint64_t extra = number(im, off + 36, 4);

        printf("snapshot %" PRIu64 ": id ", i);
        print_text(im, off + 40 + extra, id);
        printf(" name ");
        print_text(im, off + 40 + extra + id, name);
        printf(", %" PRIu64 " L1 entries at %" PRIu64 ", extra %" PRIu64 " bytes",
               number(im, off + 8, 4), number(im, off, 8), extra);
        if (extra >= 16)
            printf(", disk size %" PRIu64, number(im, off + 48, 8));
        putchar('\n');
        dump_l1(im, number(im, off, 8), number(im, off + 8, 4), false);
        off = qm_align_up(off + 40 + extra + id + name, 8);
    }
}

static uint64_t
refcount(const struct image *im, uint64_t block, uint64_t i)
{
    const unsigned bits = im->refcount_bits;

    if (bits >= 8)
        return number(im, block + i * bits / 8, bits / 8);
    return number(im, block + i * bits / 8, 1) >> (i * bits % 8) & ((1u << bits) - 1);
}

/* Runs of one refcount, a line each; zeros are left out. */
static void
dump_refcounts(const struct image *im)
{
    const uint64_t table = number(im, 48, 8);
    const uint64_t n = qm_min(number(im, 56, 4) * im->cs, 8u << 20) / 8;
    const uint64_t per_block = im->cs * 8 / im->refcount_bits;
    uint64_t start = 0;
    uint64_t value = 0;
    uint64_t at = 0;

    for (uint64_t i = 0; i < n && qm_inside(table, 8 * (i + 1), im->file_size); i++) {
        const uint64_t block = number(im, table + 8 * i, 8) & ~0x1ffull;

        if (!block)
            continue;
        printf("reftable[%" PRIu64 "] block at %" PRIu64 "\n", i, block);
        for (uint64_t k = 0; k <= per_block; k++) { /* the last round ends a run */
            uint64_t v = k < per_block ? refcount(im, block, k) : 0;

            at = i * per_block + k;
            if (v == value && k < per_block)
                continue;
            if (value)
                printf("  clusters %" PRIu64 "..%" PRIu64 ": refcount %" PRIu64 "\n", start, at - 1,
                       value);
            start = at;
            value = v;
        }
    }
}

static int
dump(struct image *im)
{
    im->version = (unsigned)number(im, 4, 4);
    im->cluster_bits = (unsigned)number(im, 20, 4);
    if (number(im, 0, 4) != 0x514649fb || im->version < 2) {
        printf("not qcow2 version 2 or later; file of %" PRIu64 " bytes\n", im->file_size);
        return 1;
    }
    im->cs = im->cluster_bits < 9 || im->cluster_bits > 21 ? 512 : 1ull << im->cluster_bits;
    im->extended = im->version >= 3 && number(im, 72, 8) >> 4 & 1;
    im->refcount_bits = 16;
    printf("file of %" PRIu64 " bytes\n", im->file_size);
    dump_header(im);
    dump_extensions(im);
    if (im->cluster_bits < 9 || im->cluster_bits > 21 ||
        (im->version >= 3 && number(im, 96, 4) > 6)) {
        printf("tables make no sense with these widths\n");
        return 1;
    }
    if (im->version >= 3)
        im->refcount_bits = 1u << number(im, 96, 4);
    dump_l1(im, number(im, 40, 8), number(im, 36, 4), true);
    dump_snapshots(im);
    dump_refcounts(im);
    return 0;
}

int
main(int argc, char **argv)
{
    struct image im = {.fd = -1};
    off_t end;
    int r;

    if (argc != 2 || argv[1][0] == '-') {
        fputs("usage: dump IMAGE    print the metadata of a qcow2 image\n", stderr);
        return 2;
    }
    im.fd = open(argv[1], O_RDONLY | O_CLOEXEC);
    end = im.fd < 0 ? -1 : lseek(im.fd, 0, SEEK_END);
    if (end < 0) {
        perror(argv[1]);
        return 1;
    }
    im.file_size = (uint64_t)end;
    r = dump(&im);
    close(im.fd);
    return r;
}
