/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* options.c - the words and numbers people type after a command. */
#include "sandbox.h"
#include "tell.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* As many as argv can have, and NULL; for the life of the process. */
static const char **allow_paths;
static size_t n_allow_paths;

const char *const *
qm_cli_allow_paths(void)
{
    return allow_paths;
}

static void
keep_allow_path(const char *path)
{
    const char **more = realloc(allow_paths, (n_allow_paths + 2) * sizeof *more);

    if (!more) {
        fputs("qmeld: out of memory\n", stderr);
        exit(QM_EXIT_FAILED);
    }
    allow_paths = more;
    allow_paths[n_allow_paths++] = path;
    allow_paths[n_allow_paths] = NULL;
}

/* --overlayz=keep: no option, or the beginning of more than one. */
static void
complain_of_long_option(const char *command, const char *given, const struct option *options)
{
    char word[64] = "";
    const char *near = NULL;
    unsigned best = UINT_MAX;
    size_t len;

    given += strspn(given, "-");
    len = strcspn(given, "=");
    snprintf(word, sizeof word, "%.*s", (int)(len < sizeof word ? len : sizeof word - 1), given);
    for (const struct option *o = options; o->name; o++) {
        if (strncmp(o->name, word, strlen(word)) ==
            0) { /* so there is another one, or it would have been taken */
            qm_cli_usage(command, "--%s is the beginning of more than one option", word);
            return;
        }
        qm_cli_nearer(word, o->name, &near, &best);
    }
    if (near)
        qm_cli_usage(command, "unknown option --%s: is --%s meant?", word, near);
    else
        qm_cli_usage(command, "unknown option --%s", word);
}

int
qm_cli_getopt(int argc, char **argv, const char *letters, const struct option *options)
{
    int c;

    if (qm_cli_tell_tables(letters, options))
        return '?';
    opterr = 0;
    while ((c = getopt_long(argc, argv, letters, options, NULL)) == QM_OPT_ALLOW_PATH ||
           c == QM_OPT_NO_SANDBOX) {
        if (c == QM_OPT_ALLOW_PATH)
            keep_allow_path(optarg);
        else
            qm_cli_sandbox_disable();
    }
    if (c != '?' && c != ':')
        return c;
    if (c == ':') /* letters begins with a colon: a value is missing */
        qm_cli_usage(argv[0], "option %s needs a value", argv[optind - 1]);
    else if (optopt > 0 && optopt < 256 && !strchr(letters, optopt))
        qm_cli_usage(argv[0], "unknown option -%c", optopt);
    else if (optopt != 0) /* known, so it is a switch written as --switch=value */
        qm_cli_usage(argv[0], "option %s takes no value", argv[optind - 1]);
    else
        complain_of_long_option(argv[0], argv[optind - 1], options);
    return '?';
}

bool
qm_cli_parse_output(const char *command, const char *arg, enum qm_cli_output *out)
{
    if (strcmp(arg, "human") == 0)
        *out = QM_OUTPUT_HUMAN;
    else if (strcmp(arg, "json") == 0)
        *out = QM_OUTPUT_JSON;
    else {
        qm_cli_usage(command, "--output is human or json, not \"%s\"", arg);
        return false;
    }
    return true;
}

/* The factor a suffix stands for; 0 if it is none. */
static uint64_t
unit_of(char suffix)
{
    static const char units[] = "BKMGTPE";
    const char *found = suffix ? strchr(units, toupper((unsigned char)suffix)) : NULL;

    return found ? UINT64_C(1) << (10 * (found - units)) : 0;
}

/* ".5G": adds the part behind the point, truncated to a byte, to *value. */
static bool
add_fraction(const char *digits, size_t n_digits, uint64_t unit, uint64_t *value)
{
    uint64_t numerator = 0, denominator = 1;

    for (size_t i = 0; i < n_digits && i < 18; i++) { /* 18 digits fit, more say nothing */
        numerator = numerator * 10 + (uint64_t)(digits[i] - '0');
        denominator *= 10;
    }
    return !__builtin_add_overflow(
        *value, (uint64_t)((unsigned __int128)numerator * unit / denominator), value);
}

bool
qm_cli_parse_size(const char *text, uint64_t *out)
{
    const bool hex = text[0] == '0' && (text[1] == 'x' || text[1] == 'X');
    const char *fraction = NULL;
    size_t n_fraction = 0;
    uint64_t value, unit = 1;
    char *end;

    if (!isdigit((unsigned char)text[0]) || (hex && !isxdigit((unsigned char)text[2])))
        return false; /* strtoull would take a sign, blanks, or nothing at all */
    errno = 0;
    value = strtoull(text, &end, hex ? 16 : 10);
    if (errno != 0)
        return false;
    if (*end == '.' && !hex) {
        fraction = end + 1;
        n_fraction = strspn(fraction, "0123456789");
        end += 1 + n_fraction;
        if (n_fraction == 0)
            return false;
    }
    if (*end && (hex || (unit = unit_of(*end++)) == 0 || *end))
        return false;
    if (fraction && unit == 1)
        return false; /* half a byte */
    if (__builtin_mul_overflow(value, unit, &value))
        return false;
    if (fraction && !add_fraction(fraction, n_fraction, unit, &value))
        return false;
    *out = value;
    return true;
}

bool
qm_cli_parse_number(const char *text, uint64_t max, uint64_t *out)
{
    unsigned long long value;
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0 || *end || value > max)
        return false;
    *out = value;
    return true;
}

bool
qm_cli_parse_seconds(const char *text, uint64_t *out)
{
    uint64_t value, unit = 1;
    char *end;

    if (!isdigit((unsigned char)text[0]))
        return false;
    errno = 0;
    value = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    switch (*end) {
    case 'd':
        unit = 24 * 3600;
        break;
    case 'h':
        unit = 3600;
        break;
    case 'm':
        unit = 60;
        break;
    case 's':
    case '\0':
        break;
    default:
        return false;
    }
    if ((*end && end[1]) || __builtin_mul_overflow(value, unit, &value))
        return false;
    *out = value;
    return true;
}

bool
qm_cli_parse_switch(const char *text, bool *out)
{
    if (strcmp(text, "on") != 0 && strcmp(text, "off") != 0)
        return false;
    *out = text[1] == 'n';
    return true;
}
