/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * replay.c - runs a fuzz target over kept inputs, where there is no fuzzer.
 *
 *     fuzz_NAME FOLDER...      by absolute paths: targets leave the working directory
 *
 * Exit: 0 nothing was found (a finding aborts), 2 the folders have no inputs.
 */
#include "fuzz.h"

#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int
replay(const char *name)
{
    struct dirent **list;
    char *folder = realpath(name, NULL);
    int n = folder ? scandir(folder, &list, NULL, alphasort) : -1, ran = 0;

    for (int i = 0; i < n; i++) {
        char path[4096];
        unsigned char *data;
        size_t len;

        if (list[i]->d_name[0] != '.') {
            snprintf(path, sizeof path, "%s/%s", folder, list[i]->d_name);
            data = qm_fuzz_read(path, &len);
            fprintf(stderr, "%s\n", list[i]->d_name);
            (void)LLVMFuzzerTestOneInput(data, len);
            free(data);
            ran++;
        }
        free(list[i]);
    }
    if (n >= 0)
        free(list);
    free(folder);
    return ran;
}

int
main(int argc, char **argv)
{
    int ran = 0;

    for (int i = 1; i < argc; i++)
        ran += replay(argv[i]);
    printf("%d inputs\n", ran);
    return ran > 0 ? 0 : 2;
}
