/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * forge - make disk images from a recipe; see docs/testing.md, "Recipes".
 *
 * The command around tests/lib/forge.h, for the quickstart, the test scripts and whoever needs
 * a qcow2 chain, whole or broken, on a machine without QEMU.
 */
#include "forge.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static int
usage(void)
{
    fputs("usage: forge RECIPE DIR               write the files of a recipe into DIR\n"
          "       forge --expect RECIPE FILE OUT  write what a guest reads from layer FILE, raw\n"
          "       forge --list RECIPE             print name and format of each layer, top first\n"
          "       forge --random SEED             print a recipe of a whole chain\n"
          "RECIPE may be - for standard input.\n",
          stderr);
    return 2;
}

static int
complain(const struct qmeld_error *err)
{
    if (err->has_off && err->code == QMELD_USAGE)
        fprintf(stderr, "forge: %s:%" PRIu64 ": %s\n", err->file, err->off, err->what);
    else
        fprintf(stderr, "forge: %s: %s\n", err->file, err->what);
    return err->code == QMELD_USAGE ? 2 : 1;
}

static int
expect(const struct qm_forge *forge, const char *file, const char *out, struct qmeld_error *err)
{
    for (size_t i = 0; i < qm_forge_n_layers(forge); i++)
        if (!strcmp(qm_forge_file(forge, i), file))
            return qm_forge_expect(forge, i, out, err);
    return qm_fail(err, QMELD_USAGE, qm_in(file), "the recipe has no such layer");
}

static int
run(int argc, char **argv, const struct qm_forge *forge, struct qmeld_error *err)
{
    if (argc == 5)
        return expect(forge, argv[3], argv[4], err);
    if (strcmp(argv[1], "--list"))
        return qm_forge_write(forge, argv[2], err);
    for (size_t i = 0; i < qm_forge_n_layers(forge); i++)
        printf("%s %s\n", qm_forge_file(forge, i), qm_forge_format(forge, i));
    return 0;
}

int
main(int argc, char **argv)
{
    struct qm_forge *forge = NULL;
    struct qmeld_error err = {0};
    bool list = argc == 3 && !strcmp(argv[1], "--list");
    bool view = argc == 5 && !strcmp(argv[1], "--expect");
    int r;

    if (argc == 3 && !strcmp(argv[1], "--random")) {
        char *end;
        uint64_t seed = strtoull(argv[2], &end, 0);

        if (*end || end == argv[2])
            return usage();
        qm_forge_random(seed, stdout);
        return fflush(stdout) ? 1 : 0;
    }
    if (!list && !view && (argc != 3 || !strncmp(argv[1], "--", 2)))
        return usage();
    r = qm_forge_load(list || view ? argv[2] : argv[1], &forge, &err);
    if (r == 0)
        r = run(argc, argv, forge, &err);
    qm_forge_free(forge);
    return r == 0 ? 0 : complain(&err);
}
