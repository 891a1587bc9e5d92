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
        const bool data = i >= s->first_data && i - s->first_data < s->n_data;
        const char *file = s->files[i > s->n && !data ? s->top + (i - s->n - 1) : i];

        if (i == s->n || s->files[i] == s->undo || s->files[i] == s->moment) /* not there yet */
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

static uint64_t
be64_at(const unsigned char *p)
{
    uint64_t v = 0;

    for (int i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

/* A merge that is held remembers when its base was written to last (docs/format.md, "The journal"). */
static void
set_left_time(const struct stage *s, const struct qm_torn_state *state)
{
    const unsigned char *newest = NULL;
    struct timespec then[2];

    for (size_t i = 0; i < state->n_files; i++) {
        const struct qm_torn_file *f = &state->files[i];

        if (strcmp(f->path, s->journal) != 0 || f->gone || f->len < 1536)
            continue;
        for (size_t at = 512; at < 1536; at += 512)
            if (!newest || be64_at(f->at + at + 8) > be64_at(newest + 8))
                newest = f->at + at;
    }
    if (!newest || be64_at(newest + 104) == 0)
        return;
    then[0].tv_sec = then[1].tv_sec = (time_t)be64_at(newest + 104);
    then[0].tv_nsec = then[1].tv_nsec = (long)be64_at(newest + 112);
    utimensat(AT_FDCWD, s->files[s->base], then, 0);
}

static bool
is_same(const char *a, const char *b)
{
    struct stat x, y;

    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

size_t
stage_files_which(const char *const *paths, size_t n, size_t i)
{
    for (size_t k = 0; k < n; k++) {
        char held[4096];

        snprintf(held, sizeof held, HELD "/%s", paths[k]);
        if (is_same(paths[i], held))
            return k;
    }
    return i;
}

/* path, the i-th name, becomes one of the file that the state has there. */
static void
lead_to_its_file(const struct qm_torn_state *state, size_t i, const char *path)
{
    char held[4096];

    snprintf(held, sizeof held, HELD "/%s", state->files[state->files[i].file].path);
    if (access(held, F_OK) != 0 || is_same(path, held))
        return;
    unlink(path);
    if (link(held, path) < 0)
        abort();
}

void
stage_files_put(const struct stage *s, const struct qm_torn_state *state, const char *dir)
{
    const bool here = strcmp(dir, ".") == 0;

    for (size_t i = 0; i < state->n_files; i++) {
        const struct qm_torn_file *f = &state->files[i];
        char path[4096];

        snprintf(path, sizeof path, "%s/%s", dir, f->path);
        if (f->gone) {
            unlink(path);
            continue;
        }
        if (here)
            lead_to_its_file(state, i, path);
        if (f->changed || !here || (s && stage_has_way_back(s))) /* merges, and ways back */
            qm_torn_save(path, f->at, f->len);
        set_time(path);
    }
    if (here && s && stage_has_way_back(s))
        set_left_time(s, state);
}
