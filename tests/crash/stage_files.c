/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "stage_files.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define HELD "held"

static void
set_time(const char *path)
{
    const struct timespec then[2] = {{.tv_sec = 1000000000}, {.tv_sec = 1000000000}};

    utimensat(AT_FDCWD, path, then, 0);
}

void
stage_files_hold(const struct stage *s)
{
    char held[4096];

    mkdir(HELD, 0777);
    for (size_t i = 0; i < s->n_files; i++) {
        /* a layer that is put aside is the same file */
        const char *file = s->files[i > s->n ? s->top + (i - s->n - 1) : i];

        if (i == s->n) /* the journal: not there yet */
            continue;
        snprintf(held, sizeof held, HELD "/%s", s->files[i]);
        unlink(held);
        if (link(file, held) < 0) {
            perror(held);
            exit(2);
        }
        set_time(held);
    }
}

void
stage_files_drop(const struct stage *s)
{
    char held[4096];

    for (size_t i = 0; i < s->n_files; i++) {
        snprintf(held, sizeof held, HELD "/%s", s->files[i]);
        unlink(held);
        unlink(s->files[i]);
    }
}

void
stage_files_put(const struct qm_torn_state *state, const char *dir)
{
    const bool here = strcmp(dir, ".") == 0;

    for (size_t i = 0; i < state->n_files; i++) {
        const struct qm_torn_file *f = &state->files[i];
        char path[4096], held[4096];

        snprintf(path, sizeof path, "%s/%s", dir, f->path);
        snprintf(held, sizeof held, HELD "/%s", f->path);
        if (f->gone) {
            unlink(path);
            continue;
        }
        if (here && access(path, F_OK) != 0 && access(held, F_OK) == 0 && link(held, path) < 0)
            abort();
        if (f->changed || !here)
            qm_torn_save(path, f->at, f->len);
        set_time(path);
    }
}
