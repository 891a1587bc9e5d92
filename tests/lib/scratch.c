/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * scratch.c - an empty directory for tests that need files.
 */
#include "scratch.h"

#include <ftw.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char dir[PATH_MAX];

int
qm_scratch_enter(void **state)
{
    const char *tmp = getenv("TMPDIR");
    char template[PATH_MAX];

    (void)state;
    snprintf(template, sizeof template, "%s/qmeld-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    return mkdtemp(template) && chdir(template) == 0 && getcwd(dir, sizeof dir) ? 0 : -1;
}

static int
remove_one(const char *path, const struct stat *st, int type, struct FTW *where)
{
    (void)st;
    (void)type;
    (void)where;
    return remove(path);
}

int
qm_scratch_leave(void **state)
{
    (void)state;
    return chdir("/") == 0 && nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS) == 0 ? 0 : -1;
}

const char *
qm_scratch_dir(void)
{
    return dir;
}
