/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* module.c - the one symbol of qmeld-live.so, and what its parts share. */
#include "module.h"

#include "blockcommit.h"
#include "scan.h"
#include "show.h"
#include "stopped.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

const struct qm_live_host *qm_lib;

static const struct qm_live_module table = {
    .abi = QM_LIVE_ABI,
    .blockcommit = qm_blockcommit,
    .report_free = qm_blockcommit_report_free,
    .snapshot_delete = qm_snapshot_delete,
    .resume = qm_stopped_resume,
    .domain = qm_show_domain,
    .domain_free = qm_show_domain_free,
    .uses = qm_scan_uses,
    .uses_free = qm_scan_uses_free,
    .images = qm_scan_images,
    .images_free = qm_scan_images_free,
};

QMELD_API qm_live_module_fn qm_live_module;

const struct qm_live_module *
qm_live_module(const struct qm_live_host *host)
{
    if (!host || host->abi != QM_LIVE_ABI)
        return NULL;
    qm_lib = host;
    return &table;
}

/* ---- notes ---- */

void
qm_note(struct qm_live_notes *notes, const char *format, ...)
{
    char **at;
    char *text = NULL;
    va_list args;
    int length;

    va_start(args, format);
    length = vasprintf(&text, format, args);
    va_end(args);
    if (length < 0)
        return;
    at = reallocarray(notes->at, notes->n + 1, sizeof *at);
    if (!at) {
        free(text);
        return;
    }
    notes->at = at;
    notes->at[notes->n++] = text;
}

void
qm_notes_free(struct qm_live_notes *notes)
{
    for (size_t i = 0; i < notes->n; i++)
        free(notes->at[i]);
    free(notes->at);
    memset(notes, 0, sizeof *notes);
}

/* ---- files ---- */

struct qm_file_id
qm_file_id(const char *path)
{
    struct qm_file_id id = {0};
    struct stat st;

    if (!path || path[0] != '/' || stat(path, &st) < 0)
        return id; /* libvirt knows absolute paths only; a relative one would be found by accident */
    id.known = true;
    id.block = S_ISBLK(st.st_mode);
    id.regular = S_ISREG(st.st_mode);
    id.dev = id.block ? 0 : st.st_dev;
    id.ino = id.block ? st.st_rdev : st.st_ino;
    id.size = (uint64_t)st.st_blocks * 512;
    return id;
}

bool
qm_file_id_same(const struct qm_file_id *a, const struct qm_file_id *b)
{
    return a->known && b->known && a->block == b->block && a->dev == b->dev && a->ino == b->ino;
}

char *
qm_data_file_of(const char *path, const char *format)
{
    const struct qmeld_open_options options = {.format = format, .single = true};
    struct qmeld_chain *chain = NULL;
    struct qmeld_layer_info info;
    struct qmeld_error unheard;
    char *name = NULL;

    if (qm_lib->chain_open(path, &options, &chain, &unheard) < 0)
        return NULL;
    if (qm_lib->chain_layer(chain, qm_lib->chain_depth(chain) - 1, &info, &unheard) == 0 &&
        info.data_file)
        name = strdup(info.data_file);
    qm_lib->chain_close(chain);
    return name;
}
