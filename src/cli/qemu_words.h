/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * qemu_words.h - options that scripts written for qemu-img give, and qmeld has no use of its own for.
 *
 * Why.  A script is to be switched from qemu-img to qmeld by changing one word.  So its letters are
 * accepted where what they ask for is what happens here, too, and refused in a sentence where it
 * is not: never ignored when that would mean something else (docs/from-qemu-img.md).
 *
 * Threads    One.
 */
#ifndef QM_CLI_QEMU_WORDS_H
#define QM_CLI_QEMU_WORDS_H

#include "cli.h"

/* Every command of qemu-img has these two, and none of ours. */
#define QM_CLI_QEMU_OPTIONS                                                                        \
    {"object", required_argument, NULL, QM_OPT_OBJECT},                                            \
    {                                                                                              \
        "image-opts", no_argument, NULL, QM_OPT_IMAGE_OPTS                                         \
    }

/* The program was called as qmeld-img: what is given means what it means to qemu-img, also what is left out. */
bool qm_cli_is_qmeld_img(void);
void qm_cli_set_name(const char *argv0);

/* So called, a command that both programs have ends with the code that qemu-img would have: it knows no code of
 * its own for what is refused.  What is half done, or was stopped, keeps ours, as there is no such thing there. */
int qm_cli_code_of_qemu(const char *command, int code);

/* QM_OPT_OBJECT or QM_OPT_IMAGE_OPTS was found: always false, after the complaint. */
bool qm_cli_refuse_qemu_option(const char *command, int c);

/* The value of -t or -T, one of QEMU's cache modes.  *out_direct: data is to go past the page cache.  All
 * that is written is durable at the end in any mode, so no more than that is left to tell them apart.
 * False after the complaint. */
bool qm_cli_parse_cache(const char *command, int letter, const char *arg, bool *out_direct);

#endif
