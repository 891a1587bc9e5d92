/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* usage.c - what is said to somebody who typed a command wrongly, and which word may have been meant. */
#include "cli.h"

#include <stdarg.h>
#include <string.h>

void
qm_cli_usage(const char *command, const char *format, ...)
{
    char sentence[512];
    QM_CLI_FREE char *shown = NULL;
    va_list args;

    va_start(args, format);
    vsnprintf(sentence, sizeof sentence, format, args);
    va_end(args);
    shown = qm_cli_quote(sentence);
    fprintf(stderr, "qmeld: %s: %s: see qmeld help %s\n", command, shown, command);
}

void
qm_cli_expected(const char *command, const char *what, int n)
{
    if (n == 0)
        qm_cli_usage(command, "%s, none was named", what);
    else
        qm_cli_usage(command, "%s, %d %s named", what, n, n == 1 ? "was" : "were");
}

enum { LONGEST_WORD = 32 };

static unsigned
least(unsigned a, unsigned b, unsigned c)
{
    a = a < b ? a : b;
    return a < c ? a : c;
}

/* How many letters are to be put in, left out, changed, or swapped with the next one ("optimal string alignment"). */
static unsigned
count_slips(const char *a, size_t n_a, const char *b, size_t n_b)
{
    unsigned slips[LONGEST_WORD + 1][LONGEST_WORD + 1];

    for (size_t i = 0; i <= n_a; i++)
        for (size_t k = 0; k <= n_b; k++) {
            if (i == 0 || k == 0) {
                slips[i][k] = (unsigned)(i + k);
                continue;
            }
            slips[i][k] = least(slips[i - 1][k] + 1, slips[i][k - 1] + 1,
                                slips[i - 1][k - 1] + (a[i - 1] != b[k - 1]));
            if (i > 1 && k > 1 && a[i - 1] == b[k - 2] && a[i - 2] == b[k - 1] &&
                slips[i - 2][k - 2] + 1 < slips[i][k])
                slips[i][k] = slips[i - 2][k - 2] + 1;
        }
    return slips[n_a][n_b];
}

void
qm_cli_nearer(const char *typed, const char *word, const char **near, unsigned *best)
{
    const size_t n_typed = strlen(typed), n_word = strlen(word);
    unsigned slips;

    if (n_typed < 2 || n_typed > LONGEST_WORD || n_word > LONGEST_WORD)
        return;
    slips = count_slips(typed, n_typed, word, n_word);
    if (slips >= *best || slips > (n_word + 2) / 4) /* more than a slip or two is another word */
        return;
    *best = slips;
    *near = word;
}
