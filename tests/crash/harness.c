/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "harness.h"

#include "scratch.h"
#include "torn.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#ifdef __SANITIZE_ADDRESS__
__attribute__((visibility("default"))) const char *__asan_default_options(void);

/* Thousands of merges in one program: 256 MiB of freed memory that waits to be used again, and thirty frames noted
 * with each allocation, are a sixth of their time.  The last 16 MiB that were freed are watched here, 256 MiB in unit and
 * oracle tests; ASAN_OPTIONS=malloc_context_size=30 shows more of who allocated what a report is about. */
const char *
__asan_default_options(void)
{
    return "quarantine_size_mb=16:malloc_context_size=3";
}
#endif

static void __attribute__((noreturn))
usage(const struct harness_option *options, const char *program)
{
    const char *slash = strrchr(program, '/');

    fprintf(stderr, "usage: %s", slash ? slash + 1 : program);
    for (; options->name; options++)
        fprintf(stderr, " [%s%s]", options->name,
                options->flag     ? ""
                : options->number ? " N"
                                  : " TEXT");
    fputc('\n', stderr);
    exit(2);
}

void
harness_parse(const struct harness_option *options, int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const struct harness_option *o = options;
        char *end = NULL;

        while (o->name && strcmp(o->name, argv[i]) != 0)
            o++;
        if (!o->name || (!o->flag && !argv[i + 1]))
            usage(options, argv[0]);
        if (o->flag)
            *o->flag = true;
        else if (o->text)
            *o->text = argv[++i];
        else
            *o->number = strtoull(argv[++i], &end, 0);
        if (o->number && (end == argv[i] || *end))
            usage(options, argv[0]);
    }
}

bool
harness_is_mine(struct harness_part *part)
{
    unsigned mine, of;
    char rest;

    if (!part->text)
        return true;
    if (sscanf(part->text, "%u/%u%c", &mine, &of, &rest) != 2 || mine < 1 || mine > of) {
        fprintf(stderr, "--part %s: not a part as 2/5 is one\n", part->text);
        harness_leave();
        exit(2);
    }
    return part->seen++ % of == mine - 1;
}

size_t
harness_turn(const char *name)
{
    uint32_t h = 2166136261u; /* FNV-1a */

    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    return h >> 8;
}

void
harness_enter(void)
{
    if (!getenv("TMPDIR") && access("/dev/shm", W_OK) == 0)
        setenv("TMPDIR", "/dev/shm", 1);
    if (qm_scratch_enter(NULL) < 0) {
        perror("scratch directory");
        exit(2);
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
}

void
harness_leave(void)
{
    qm_scratch_leave(NULL);
}

void
harness_recipes(harness_recipe_fn *fn, void *opaque)
{
    struct dirent **names;
    const int n = scandir(CRASH_RECIPES, &names, NULL, alphasort);

    if (n < 0) {
        perror(CRASH_RECIPES);
        exit(2);
    }
    for (int i = 0; i < n; i++) {
        char path[4096];
        size_t len;
        char *text;

        if (strstr(names[i]->d_name, ".recipe")) {
            snprintf(path, sizeof path, "%s/%s", CRASH_RECIPES, names[i]->d_name);
            text = (char *)qm_torn_load(path, &len);
            text[len] = '\0';
            fn(names[i]->d_name, text, opaque);
            free(text);
        }
        free(names[i]);
    }
    free(names);
}
