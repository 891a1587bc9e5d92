/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "qemu_words.h"

#include <string.h>

static bool called_qmeld_img;

void
qm_cli_set_name(const char *argv0)
{
    const char *slash = argv0 ? strrchr(argv0, '/') : NULL;

    called_qmeld_img = argv0 && strcmp(slash ? slash + 1 : argv0, "qmeld-img") == 0;
}

bool
qm_cli_is_qmeld_img(void)
{
    return called_qmeld_img;
}

int
qm_cli_code_of_qemu(const char *command, int code)
{
    static const char *const both[] = {"commit", "convert", "create", "info",
                                       "map",    "measure", "rebase"};

    /* check and compare have codes of their own that are qemu-img's whatever the name */
    for (size_t i = 0; called_qmeld_img && i < sizeof both / sizeof *both; i++)
        if (strcmp(command, both[i]) == 0 && code == QM_EXIT_REFUSED)
            return QM_EXIT_FAILED;
    return code;
}

bool
qm_cli_refuse_qemu_option(const char *command, int c)
{
    if (c == QM_OPT_IMAGE_OPTS)
        qm_cli_usage(command, "--image-opts describes block devices of QEMU: name the image by its "
                              "path, and its format with -f");
    else
        qm_cli_usage(command, "--object makes objects of QEMU, which nothing here could use: leave "
                              "it out; passphrases are given with --secret");
    return false;
}

bool
qm_cli_parse_cache(const char *command, int letter, const char *arg, bool *out_direct)
{
    /* bdrv_parse_cache_mode() of QEMU */
    static const struct {
        const char *name;
        bool direct;
    } modes[] = {{"none", true},       {"off", true},           {"directsync", true},
                 {"writeback", false}, {"writethrough", false}, {"unsafe", false}};

    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++)
        if (strcmp(arg, modes[i].name) == 0) {
            *out_direct = modes[i].direct;
            return true;
        }
    qm_cli_usage(command, "-%c is none, writeback, writethrough, directsync or unsafe, not \"%s\"",
                 letter, arg);
    return false;
}
