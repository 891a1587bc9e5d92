/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "tell.h"

#include <string.h>

/* What a value is; a row with a command stands before those for all.  An option that has none is told as
 * `text`.  tests/completion_test holds the words against what the parser takes. */
static const struct {
    const char *command;
    const char *option;
    const char *takes;
    const char *what; /* NULL: help says it in the first clause */
} values[] = {
    {"plan", "format", "words:qcow2,raw,html",
     "format of IMAGE; or html, a page that shows before and after"},
    {"map", "format", "words:table,strip,svg,html", "a list, or a picture"},
    {NULL, "allow-path", "file", NULL},
    {NULL, "backing", "file", NULL},
    {NULL, "backing-format", "words:qcow2,raw", NULL},
    {NULL, "bandwidth", "size", NULL},
    {NULL, "base", "layer", NULL},
    {"flatten", "bitmaps", "words:merge,keep,drop", "which persistent bitmaps the new image gets"},
    {NULL, "bitmaps", "words:merge,keep,drop",
     "what becomes of persistent bitmaps of merged layers"},
    {NULL, "cache", "words:writeback,none", "through the page cache, or past it"},
    {NULL, "cluster-size", "size", NULL},
    {NULL, "compat", "words:1.1,0.10,v3,v2", NULL},
    {NULL, "compress", "words:zlib,zstd", NULL},
    {NULL, "compression-type", "words:zlib,zstd", NULL},
    {NULL, "deadline", "time", NULL},
    {NULL, "direction", "words:down,up,auto", "which file becomes the merged one"},
    {NULL, "extended-l2", "words:on,off", NULL},
    {NULL, "extract-unreferenced", "directory", NULL},
    {NULL, "format", "words:qcow2,raw", NULL},
    {NULL, "image", "file", NULL},
    {NULL, "image-format", "words:qcow2,raw", NULL},
    {NULL, "journal-dir", "directory", NULL},
    {NULL, "keep", "number", NULL},
    {NULL, "lazy-refcounts", "words:on,off", NULL},
    {NULL, "leaf", "size", NULL},
    {NULL, "live", "words:auto,never", NULL},
    {NULL, "managed-save", "words:refuse,update", "what to do if the machine has a saved state"},
    {NULL, "manifest", "file", NULL},
    {NULL, "max-length", "size", NULL},
    {NULL, "onto", "layer", NULL},
    {NULL, "output", "words:human,json", NULL},
    {NULL, "overlays", "words:keep,empty,delete,quarantine", "what becomes of merged layers"},
    {NULL, "preallocation", "words:off,metadata,falloc,full", NULL},
    {NULL, "progress", "words:auto,bar,json,none", "on standard error"},
    {NULL, "refcount-bits", "words:1,2,4,8,16,32,64", NULL},
    {NULL, "repair", "words:leaks,all", NULL},
    {NULL, "salvage-map", "file", NULL},
    {NULL, "scan", "file", NULL},
    {NULL, "secret", "file", NULL},
    {NULL, "secret-fd", "number", NULL},
    {NULL, "size", "size", NULL},
    {NULL, "start-offset", "size", NULL},
    {NULL, "threads", "number", NULL},
    {NULL, "timeout", "number", NULL},
    {NULL, "to", "words:raw,qcow2", NULL},
    {NULL, "top", "layer", NULL},
    /* letters that have no long name */
    {"check", "T", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"compare", "T", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"compare", "f", "words:qcow2,raw", NULL},
    {"compare", "F", "words:qcow2,raw", NULL},
    {"commit", "b", "layer", NULL},
    {"commit", "r", "size", NULL},
    {"commit", "t", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"convert", "f", "words:qcow2,raw", NULL},
    {"convert", "m", "number", NULL},
    {"convert", "O", "words:raw,qcow2", NULL},
    {"convert", "S", "size", NULL},
    {"convert", "t", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"convert", "T", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"measure", "O", "words:raw,qcow2", NULL},
    {"plan", "b", "layer", NULL},
    {"plan", "r", "size", NULL},
    {"plan", "t", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"rebase", "b", "file", NULL},
    {"rebase", "F", "words:qcow2,raw", NULL},
    {"rebase", "t", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
    {"rebase", "T", "words:none,writeback,writethrough,directsync,unsafe", "a cache mode"},
};

enum { N_VALUES = sizeof values / sizeof *values };

/* Whom to tell of; NULL: of nobody. */
static const struct qm_cli_command *asked;

/* The row of an option; -1: none. */
static int
row_of(const char *option)
{
    for (size_t i = 0; i < N_VALUES; i++)
        if (strcmp(values[i].option, option) == 0 &&
            (!values[i].command || strcmp(values[i].command, asked->name) == 0))
            return (int)i;
    return -1;
}

/* Is the option explained here?  line: from its first character that is no blank. */
static bool
explains(const char *line, const char *option)
{
    const size_t len = strlen(option);

    while (*line == '-') { /* "-f, --format=FMT": two names */
        const size_t name = strcspn(line, "=, \n");

        if (name == len && strncmp(line, option, len) == 0)
            return true;
        line += name;
        if (strncmp(line, ", ", 2) != 0)
            return false;
        line += 2;
    }
    return false;
}

/* Where a help text says what an option is for; "": it only lists it; NULL: not even that. */
static const char *
sentence_of(const char *help, const char *option)
{
    const char *line = strstr(help, "usage:");

    while (line && (line = strchr(line, '\n'))) {
        const char *text, *gap;

        line++;
        text = line + strspn(line, " ");
        if (text == line || !explains(text, option))
            continue;
        gap = strstr(text, "  "); /* behind it; or it begins on the next line */
        if (!gap || gap > text + strcspn(text, "\n"))
            gap = text + strcspn(text, "\n");
        gap += strspn(gap, " ");
        if (*gap == '\n') {
            text = gap + 1 + strspn(gap + 1, " ");
            gap = text == gap + 1 || *text == '-' ? "" : text;
        }
        return gap;
    }
    return NULL;
}

/* The first clause of it, in one line; an option or an empty line ends it, too. */
static void
print_clause(const char *text)
{
    while (*text && *text != ';' && strncmp(text, ". ", 2) != 0) {
        const size_t blanks = strspn(text, " \n");

        if (*text == '\n' && (text[blanks] == '-' || text[1] == '\n'))
            break;
        putchar(blanks ? ' ' : *text);
        text += blanks ? blanks : 1;
    }
    putchar('\n');
}

/* What is behind the names of an option; name: as one types it. */
static void
print_rest(const char *name, bool has_value)
{
    const int row = row_of(name + strspn(name, "-"));
    const char *text = sentence_of(asked->help, name);

    if (!text) { /* it is only known so that a better sentence than "unknown" can be said */
        puts("\trefused\t");
        return;
    }
    if (!*text) /* plan and others say: as in commit */
        text = sentence_of(qm_cli_commit.help, name);
    if (row >= 0 && values[row].what)
        text = values[row].what;
    printf("\t%s\t", !has_value ? "none" : row >= 0 ? values[row].takes : "text");
    print_clause(text ? text : "");
}

void
qm_cli_tell_command(const struct qm_cli_command *command)
{
    const char *sentence = strstr(command->help, " - ") + 3;

    printf("%s\t%.*s\n", command->name, (int)strcspn(sentence, "\n"), sentence);
}

void
qm_cli_tell_options(const struct qm_cli_command *command)
{
    char name[64], program[] = "qmeld";
    char *argv[] = {program, name, NULL};

    snprintf(name, sizeof name, "%s", command->name);
    asked = command;
    (void)command->run(1, argv + 1); /* which ends when it has shown its tables */
    asked = NULL;
    printf("operands\t%s\n", command->operands);
}

/* The parser takes the first of two of one name. */
static bool
is_first(const struct option *options, const struct option *option)
{
    while (strcmp(options->name, option->name) != 0)
        options++;
    return options == option;
}

/* With the letter that means the same. */
static void
print_long(const char *letters, const struct option *option)
{
    char name[64];

    if (option->val < 256 && strchr(letters, option->val))
        printf("-%c,", option->val);
    snprintf(name, sizeof name, "--%s", option->name);
    fputs(name, stdout);
    print_rest(name, option->has_arg != no_argument);
}

static void
print_letter(const char *letter)
{
    const char name[] = {'-', *letter, '\0'};

    fputs(name, stdout);
    print_rest(name, letter[1] == ':');
}

bool
qm_cli_tell_tables(const char *letters, const struct option *options)
{
    if (!asked)
        return false;
    for (const struct option *o = options; o->name; o++)
        if (is_first(options, o))
            print_long(letters, o);
    for (const char *c = letters; *c; c++) {
        const struct option *o = options;

        while (o->name && o->val != *c)
            o++;
        if (*c != ':' && !o->name)
            print_letter(c);
    }
    return true;
}
