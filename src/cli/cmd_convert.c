/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_convert.c - `qmeld convert`: flatten, in the words of qemu-img convert.
 *
 * Why.  So that a script is switched by a word.  The words are translated into those of flatten, which
 * does all the work; what flatten cannot do as qemu-img does it is refused here, in a sentence.
 */
#include "qemu_words.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char help[] =
    "qmeld convert - flatten, in the words of qemu-img convert\n"
    "\n"
    "    qmeld convert -O qcow2 top.qcow2 disk.qcow2\n"
    "    qmeld convert -f qcow2 -O raw -l monday top.qcow2 monday.raw\n"
    "    qmeld convert -c -O qcow2 -o compression_type=zstd top.qcow2 small.qcow2\n"
    "\n"
    "usage: qmeld convert [OPTIONS] IMAGE OUT\n"
    "\n"
    "Writes what IMAGE reads as, through all its layers, to OUT, as qmeld flatten --force does.  "
    "An\n"
    "OUT that is there is replaced when the new one is complete, never before; interrupted, the\n"
    "same command again goes on.  Options that the table does not have are refused.\n"
    "\n"
    "    -f FMT                       format of IMAGE; found by content otherwise\n"
    "    -O FMT                       format of OUT: raw (default) or qcow2\n"
    "    -o KEY=VALUE[,KEY=VALUE...]  options of a qcow2 OUT\n"
    "    -c                           store data compressed, by -o compression_type\n"
    "    -l SNAPSHOT                  an internal snapshot, by name or ID, also as\n"
    "                                 snapshot.id=ID or snapshot.name=NAME\n"
    "    -S SIZE                      holes are found in units of 4 KiB, whatever SIZE is; 0: OUT\n"
    "                                 has none, all is written; refused with -c\n"
    "    -n                           OUT is a block device, and is there\n"
    "        --target-is-zero         goes with -n, and makes no difference\n"
    "        --salvage                go on past what cannot be read, which reads as zeros; exit "
    "4\n"
    "                                 if there was something\n"
    "        --bitmaps                OUT gets the persistent bitmaps of IMAGE\n"
    "        --skip-broken-bitmaps    but those that say nothing\n"
    "    -m N                         use N threads\n"
    "    -t MODE                      accepted, and makes no difference; so do these:\n"
    "    -T MODE\n"
    "    -C\n"
    "    -W\n"
    "    -U, --force-share            take no lock\n"
    "    -p                           a progress bar, unless -q\n"
    "    -q                           no report\n"
    "        --output=human|json      form of the report\n"
    "    -h, --help                   this text\n"
    "\n"
    "Exit codes: those of qmeld flatten.\n";

enum {
    OPT_TARGET_IS_ZERO = QM_OPT_FIRST,
    OPT_SALVAGE,
    OPT_BITMAPS,
    OPT_SKIP_BROKEN,
};

/* No option becomes more than two words, and there are few besides. */
#define MAX_EXTRA 16

struct request {
    char **words; /* of flatten, borrowed from argv or literals; NULL at the end */
    size_t n;
    bool compress;
    bool zstd;
    bool all_written; /* -S 0 */
    bool no_create;
    bool zero;
    bool quiet;
    bool bar;
    bool bitmaps;
    bool skip_broken;
    bool report; /* one of ours was asked for: qemu-img has none */
};

static bool
add(struct request *r, const char *option, char *value)
{
    r->words[r->n++] = (char *)(uintptr_t)option; /* getopt_long moves words, and changes none */
    if (value)
        r->words[r->n++] = value;
    return true;
}

static bool
refuse(const char *sentence)
{
    qm_cli_usage("convert", "%s", sentence);
    return false;
}

/* Is there key=value in a list of options? */
static bool
says(const char *list, const char *pair)
{
    const size_t len = strlen(pair);

    for (const char *at = list; at; at = strchr(at, ',')) {
        at += *at == ',';
        if (strncmp(at, pair, len) == 0 && (at[len] == '\0' || at[len] == ','))
            return true;
    }
    return false;
}

static bool
take_sparse(struct request *r)
{
    uint64_t size;

    if (!qm_cli_parse_size(optarg, &size))
        return refuse("-S is a size, such as 4k");
    r->all_written = size == 0;
    return true;
}

static bool
take_snapshot(struct request *r)
{
    static const char *const keys[] = {"snapshot.id=", "snapshot.name="};

    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const size_t len = strlen(keys[i]);

        if (strncmp(optarg, keys[i], len) != 0)
            continue;
        if (strchr(optarg, ','))
            return refuse("-l with both an ID and a name: give one of them");
        return add(r, "--snapshot", optarg + len);
    }
    return add(r, "--snapshot", optarg);
}

static bool
take_refused(int c)
{
    switch (c) {
    case 'B':
    case 'F':
        return refuse("-B makes an overlay, and flatten makes images that stand on nothing: "
                      "qmeld create -b makes one, qmeld rebase gives it another backing file");
    case 'r':
        return refuse("-r: what only reads its source is not slowed down: use ionice, or the "
                      "limits of the control group");
    default:
        return qm_cli_refuse_qemu_option("convert", c);
    }
}

/* Those that make no difference here, or a difference only to others. */
static bool
take_flag(struct request *r, int c)
{
    bool past_cache;

    switch (c) {
    case 'n':
        r->no_create = true;
        return true;
    case OPT_TARGET_IS_ZERO:
        r->zero = true;
        return true;
    case OPT_BITMAPS:
        r->bitmaps = true;
        return true;
    case OPT_SKIP_BROKEN:
        r->skip_broken = true;
        return true;
    case 'p':
        r->bar = true;
        return true;
    case 'q':
        r->quiet = true;
        return true;
    case 't':
    case 'T':
        return qm_cli_parse_cache("convert", c, optarg, &past_cache);
    case 'C':
    case 'W':
        return true;
    default:
        return take_refused(c);
    }
}

static bool
take_option(struct request *r, int c)
{
    switch (c) {
    case 'f':
        return add(r, "-f", optarg);
    case 'O':
        return add(r, "-O", optarg);
    case 'o':
        r->zstd |= says(optarg, "compression_type=zstd");
        return add(r, "-o", optarg);
    case 'c':
        r->compress = true;
        return true;
    case 'l':
        return take_snapshot(r);
    case 'S':
        return take_sparse(r);
    case 'm':
        return add(r, "--threads", optarg);
    case 'U':
        return add(r, "-U", NULL);
    case OPT_SALVAGE:
        return add(r, "--salvage", NULL);
    case QM_OPT_OUTPUT:
        r->report = true;
        return add(r, "--output", optarg);
    default:
        return take_flag(r, c);
    }
}

static bool
take_operands(struct request *r, int n, char **operands)
{
    struct stat st;

    if (n > 2)
        return refuse(
            "several images would be joined to one: flatten each, and join them yourself");
    if (n != 2) {
        qm_cli_expected("convert", "an image and a name for the new one are expected", n);
        return false;
    }
    if (r->zero && !r->no_create)
        return refuse("--target-is-zero goes with -n");
    if (r->skip_broken && !r->bitmaps)
        return refuse("--skip-broken-bitmaps goes with --bitmaps");
    if (r->no_create && (stat(operands[1], &st) != 0 || !S_ISBLK(st.st_mode)))
        return refuse("-n writes into an OUT that is there, and here that is for block devices "
                      "only: leave it out, and OUT is replaced");
    /* flatten's -: standard output.  qemu-img knows it as a name only. */
    if (strcmp(operands[1], "-") == 0)
        return refuse("qemu-img would make a file of the name -: write ./- for that, or use qmeld "
                      "flatten for standard output");
    if (r->all_written && r->compress)
        return refuse("-S 0 with -c would store zeros in compressed form: leave one of them out");
    if (r->all_written)
        add(r, "--preallocation=full", NULL);
    if (r->compress)
        add(r, r->zstd ? "--compress=zstd" : "--compress=zlib", NULL);
    if (r->bitmaps)
        add(r, "--bitmaps=keep", NULL);
    if (r->skip_broken)
        add(r, "--skip-broken-bitmaps", NULL);
    if (r->quiet || (qm_cli_is_qmeld_img() && !r->report))
        add(r, "--quiet", NULL);
    if (r->bar && !r->quiet)
        add(r, "--progress=bar", NULL);
    add(r, "--force", NULL);
    add(r, "--", NULL);
    add(r, operands[0], operands[1]);
    r->words[r->n] = NULL;
    return true;
}

/* -1, or an exit code. */
static int
take_options(struct request *r, int argc, char **argv)
{
    static const struct option options[] = {
        {"target-is-zero", no_argument, NULL, OPT_TARGET_IS_ZERO},
        {"salvage", no_argument, NULL, OPT_SALVAGE},
        {"force-share", no_argument, NULL, 'U'},
        {"bitmaps", no_argument, NULL, OPT_BITMAPS},
        {"skip-broken-bitmaps", no_argument, NULL, OPT_SKIP_BROKEN},
        {"target-image-opts", no_argument, NULL, QM_OPT_IMAGE_OPTS},
        QM_CLI_QEMU_OPTIONS,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    int c;

    while ((c = qm_cli_getopt(argc, argv, ":f:O:o:l:S:m:B:F:r:t:T:CWUcnpqh", options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            return QM_EXIT_DONE;
        }
        if (c == '?' || !take_option(r, c))
            return QM_EXIT_REFUSED;
    }
    return take_operands(r, argc - optind, argv + optind) ? -1 : QM_EXIT_REFUSED;
}

static int
run(int argc, char **argv)
{
    struct request r = {.n = 0};
    int code = QM_EXIT_FAILED;

    r.words = calloc((size_t)argc * 2 + MAX_EXTRA, sizeof *r.words);
    if (!r.words) {
        fputs("qmeld: out of memory\n", stderr);
        return code;
    }
    add(&r, "qmeld", NULL); /* the manifest tells of the command from the program's name on */
    add(&r, qm_cli_flatten.name, NULL);
    code = take_options(&r, argc, argv);
    if (code < 0) {
        optind = 0; /* getopt_long begins anew */
        code = qm_cli_flatten.run((int)r.n - 1, r.words + 1);
    }
    free(r.words);
    return code;
}

const struct qm_cli_command qm_cli_convert = {"convert", help, "image file", run, true};
