/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * harness.h - what the harnesses have in common around their work: options, a place, the recipes.
 *
 * Errors     End the program with 2.
 */
#ifndef HARNESS_H
#define HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct harness_option {
    const char *name; /* "--seed" */
    /* one of them */
    bool *flag;
    uint64_t *number;
    const char **text;
};

/* The last one has no name. */
void harness_parse(const struct harness_option *options, int argc, char **argv);

/* "2/5": every fifth of what comes, from the second on.  NULL: all of it. */
struct harness_part {
    const char *text;
    size_t seen;
};
bool harness_is_mine(struct harness_part *part);

/* Where a merge begins in what goes by turns.  By its name, so that it is the same alone, in a part, and among all. */
size_t harness_turn(const char *name);

/* Into an empty directory, in memory if there is one: a thousand small files, written and synced. */
void harness_enter(void);
void harness_leave(void);

/* Each file of tests/crash/recipes, by name. */
typedef void harness_recipe_fn(const char *name, const char *text, void *opaque);
void harness_recipes(harness_recipe_fn *fn, void *opaque);

#endif
