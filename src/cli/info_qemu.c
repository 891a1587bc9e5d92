/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * info_qemu.c - `qmeld-img info`: a layer in the lines of qemu-img info.
 *
 * Why.  Scripts look for "virtual size: " and "backing file: ".  What QEMU prints of a format is its
 * ImageInfoSpecificQCow2, in an order of its own (bdrv_image_info_dump() of block/qapi.c).
 */
#include "info.h"

#include <inttypes.h>
#include <string.h>
#include <time.h>

/* Three digits, in the first unit of which there are less than 1000, as all of QEMU's tools print sizes. */
static const char *
qemu_size(uint64_t bytes, char *out, size_t n_out)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
    double amount = (double)bytes;
    size_t unit = 0;

    while (amount >= 1000 && unit + 1 < sizeof units / sizeof *units) {
        amount /= 1024;
        unit++;
    }
    snprintf(out, n_out, "%.3g %s", amount, units[unit]);
    return out;
}

static const char *
yes_or_no(bool b)
{
    return b ? "true" : "false";
}

static void
print_text(const char *key, const char *text)
{
    QM_CLI_FREE char *shown = qm_cli_quote(text);

    printf("%s: %s\n", key, shown);
}

/* bdrv_snapshot_dump() */
static void
print_snapshots(const struct qmeld_layer_info *layer)
{
    if (layer->n_snapshots == 0)
        return;
    printf("Snapshot list:\n%-10s%-17s%8s%20s%13s%11s\n", "ID", "TAG", "VM SIZE", "DATE",
           "VM CLOCK", "ICOUNT");
    for (size_t i = 0; i < layer->n_snapshots; i++) {
        const struct qmeld_snapshot_info *s = &layer->snapshots[i];
        QM_CLI_FREE char *id = qm_cli_quote(s->id);
        QM_CLI_FREE char *name = qm_cli_quote(s->name);
        const uint64_t seconds = s->vm_clock_nsec / 1000000000;
        const time_t when = (time_t)s->date_sec;
        char size[32], date[32], clock[64], icount[32] = "";
        struct tm tm;

        if (!localtime_r(&when, &tm) || strftime(date, sizeof date, "%Y-%m-%d %H:%M:%S", &tm) == 0)
            snprintf(date, sizeof date, "-");
        snprintf(clock, sizeof clock, "%02d:%02d:%02d.%03d", (int)(seconds / 3600),
                 (int)(seconds / 60 % 60), (int)(seconds % 60),
                 (int)(s->vm_clock_nsec / 1000000 % 1000));
        if (s->icount != UINT64_MAX)
            snprintf(icount, sizeof icount, "%" PRIu64, s->icount);
        printf("%-9s %-16s %8s%20s%13s%11s\n", id, name,
               qemu_size(s->vm_state_size, size, sizeof size), date, clock, icount);
    }
}

static void
print_bitmaps(const struct qmeld_layer_info *layer)
{
    if (layer->n_bitmaps == 0)
        return;
    puts("    bitmaps:");
    for (size_t i = 0; i < layer->n_bitmaps; i++) {
        const struct qmeld_bitmap_info *b = &layer->bitmaps[i];
        QM_CLI_FREE char *name = qm_cli_quote(b->name);
        int n = 0;

        printf("        [%zu]:\n            flags:\n", i);
        if (b->in_use)
            printf("                [%d]: in-use\n", n++);
        if (b->enabled)
            printf("                [%d]: auto\n", n++);
        printf("            name: %s\n            granularity: %" PRIu64 "\n", name,
               b->granularity);
    }
}

static void
print_qcow2(const struct qmeld_layer_info *layer)
{
    printf("Format specific information:\n    compat: %s\n    compression type: %s\n",
           layer->version < 3 ? "0.10" : "1.1", layer->compression ? layer->compression : "zlib");
    if (layer->version >= 3)
        printf("    lazy refcounts: %s\n", yes_or_no(layer->lazy_refcounts));
    print_bitmaps(layer);
    printf("    refcount bits: %u\n", layer->refcount_bits);
    if (layer->data_file) {
        print_text("    data file", layer->data_file);
        printf("    data file raw: %s\n", yes_or_no(layer->data_file_raw));
    }
    if (layer->encryption)
        printf("    encrypt:\n        format: %s\n", layer->encryption);
    if (layer->version >= 3)
        printf("    corrupt: %s\n    extended l2: %s\n", yes_or_no(layer->corrupt),
               yes_or_no(layer->extended_l2));
}

/* path_combine() of QEMU's block.c: a name without a protocol counts from the folder that the image was named in. */
static void
print_backing(const struct qmeld_layer_info *layer)
{
    QM_CLI_FREE char *path = qm_cli_quote(layer->path);
    QM_CLI_FREE char *name = qm_cli_quote(layer->backing_name);
    const char *slash = strrchr(path, '/');
    const bool relative = *name != '/' && name[strcspn(name, ":/")] != ':';

    printf("backing file: %s", name);
    if (slash && relative)
        printf(" (actual path: %.*s%s)", (int)(slash + 1 - path), path, name);
    putchar('\n');
}

void
qm_cli_info_print_as_qemu(const struct qmeld_layer_info *layer)
{
    char size[32];

    print_text("image", layer->path);
    printf("file format: %s\n", layer->format);
    printf("virtual size: %s (%" PRIu64 " bytes)\n",
           qemu_size(layer->virtual_size, size, sizeof size), layer->virtual_size);
    printf("disk size: %s\n", qemu_size(layer->allocated, size, sizeof size));
    if (layer->encryption)
        puts("encrypted: yes");
    if (layer->version)
        printf("cluster_size: %" PRIu64 "\n", layer->cluster_size);
    if (layer->dirty)
        puts("cleanly shut down: no");
    if (layer->backing_name)
        print_backing(layer);
    if (layer->backing_format)
        print_text("backing file format", layer->backing_format);
    print_snapshots(layer);
    if (layer->version)
        print_qcow2(layer);
}
