/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cli.h - what the commands of `qmeld` share.
 *
 * Why.  Every command parses, calls the library, prints.  The rules that must be the same
 * everywhere stand here once: exit codes, how an error reads, how a size is written, how
 * names that came out of an image reach a terminal or a JSON reader.
 *
 * Calls      main() finds a struct qm_cli_command and runs it; what run returns is the exit
 *            code of the process.
 * Threads    One.
 * Ownership  Strings from argv are borrowed; what qm_cli_quote returns is the caller's.
 * Units      Bytes, unless a name says otherwise.
 */
#ifndef QM_CLI_H
#define QM_CLI_H

#include "qmeld.h"

#include <getopt.h>
#include <stdio.h>

struct json_object;

/* Exit codes.  `check` keeps those of `qemu-img check` instead: 0, 1, 2, 3, 63. */
enum {
    QM_EXIT_DONE = 0,
    QM_EXIT_FAILED = 1,   /* the system failed; the images are as they were */
    QM_EXIT_REFUSED = 2,  /* refused, or wrong usage; nothing was touched */
    QM_EXIT_OPEN = 3,     /* stopped half-way: the same command again finishes */
    QM_EXIT_STOPPED = 75, /* a signal or the deadline; EX_TEMPFAIL: try again later */
};

enum qm_cli_output {
    QM_OUTPUT_HUMAN = 0,
    QM_OUTPUT_JSON,
};

struct qm_cli_command {
    const char *name;
    const char *help; /* the whole text of --help, newlines included */
    const char *
        operands; /* what stands behind the options, for tell.h: image, file, directory, path, manifest, size,
                           * domain, disk, snapshot; "..." behind one that may be repeated */
    int (*run)(int argc, char **argv);
    bool changes; /* it is run for what it does, not for what it prints */
};

extern const struct qm_cli_command qm_cli_info, qm_cli_map, qm_cli_check, qm_cli_create,
    qm_cli_commit, qm_cli_plan, qm_cli_measure, qm_cli_blockcommit, qm_cli_snapshot_delete,
    qm_cli_status, qm_cli_resume, qm_cli_revert, qm_cli_finalize, qm_cli_recover, qm_cli_compare,
    qm_cli_flatten, qm_cli_convert, qm_cli_verify, qm_cli_rebase, qm_cli_fold;

/* ---- options ---- */

/* Codes of options that have no letter. */
enum {
    QM_OPT_OUTPUT = 256,
    QM_OPT_ALLOW_PATH, /* never returned: qm_cli_getopt keeps its values */
    QM_OPT_NO_SANDBOX, /* likewise: qm_cli_getopt does what it says */
    QM_OPT_SECRET,
    QM_OPT_SECRET_FD,
    QM_OPT_OBJECT, /* of qemu-img: qemu_words.h */
    QM_OPT_IMAGE_OPTS,
    QM_OPT_FIRST, /* a command's own begin here */
};

#define QM_CLI_COMMON_OPTIONS                                                                      \
    {"output", required_argument, NULL, QM_OPT_OUTPUT},                                            \
    {                                                                                              \
        "help", no_argument, NULL, 'h'                                                             \
    }

/* Of every command that follows names out of images; any number of times. */
#define QM_CLI_ALLOW_PATH_OPTION                                                                   \
    {                                                                                              \
        "allow-path", required_argument, NULL, QM_OPT_ALLOW_PATH                                   \
    }

/* Of every command that enters the sandbox (sandbox.h). */
#define QM_CLI_SANDBOX_OPTION                                                                      \
    {                                                                                              \
        "no-sandbox", no_argument, NULL, QM_OPT_NO_SANDBOX                                         \
    }

/* The values of --allow-path, ended by NULL; NULL if there were none. */
const char *const *qm_cli_allow_paths(void);

/* getopt_long with our words for its complaints.  Returns the option, -1 at the end, or '?'
 * after the complaint was printed. */
int qm_cli_getopt(int argc, char **argv, const char *letters, const struct option *options);

/* Prints "qmeld: COMMAND: sentence" and where help is. */
void qm_cli_usage(const char *command, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* The same for a wrong number of operands: WHAT ("one image is expected"), n were named. */
void qm_cli_expected(const char *command, const char *what, int n);

/* Is word what was meant by typed?  *near becomes word if so, and if it is nearer than the word in *near, which is
 * *best slips of the finger away: at first NULL and UINT_MAX. */
void qm_cli_nearer(const char *typed, const char *word, const char **near, unsigned *best);

/* The value of --output.  False after the complaint. */
bool qm_cli_parse_output(const char *command, const char *arg, enum qm_cli_output *out);

/* "65536", "0x10000", "64k", "1.5G": k M G T P E are powers of 1024, in either case; b is one
 * byte.  False, and nothing written, if it is anything else or does not fit. */
bool qm_cli_parse_size(const char *text, uint64_t *out);

/* A plain decimal number up to max. */
bool qm_cli_parse_number(const char *text, uint64_t max, uint64_t *out);

/* "90", "90s", "30m", "2h", "1d".  False, and nothing written, if it is anything else. */
bool qm_cli_parse_seconds(const char *text, uint64_t *out);

/* "on", "off".  False if it is neither. */
bool qm_cli_parse_switch(const char *text, bool *out);

/* ---- printing ---- */

struct qm_cli_size {
    char text[32];
};

/* "64 KiB", "1.5 GiB", "512 B": at most four digits. */
struct qm_cli_size qm_cli_size(uint64_t bytes);

/* A name as it may be shown on a terminal: control characters, which could drive it, and bytes
 * that are no UTF-8 become \xNN.  Never NULL: ends the process if there is no memory. */
char *qm_cli_quote(const char *name);

/* The same, and as a word of a shell's command line. */
char *qm_cli_shell_word(const char *name);

/* Says that there is none, and ends the process: for what only prints. */
void qm_cli_no_memory(void) __attribute__((noreturn));

/* Frees what these two returned at the end of the scope. */
#define QM_CLI_FREE __attribute__((cleanup(qm_cli_free)))
void qm_cli_free(char **text);

/* "qmeld: FILE: what is wrong: what to do" on stderr. */
void qm_cli_complain(const struct qmeld_error *err);

/* The exit code that err stands for. */
int qm_cli_exit_code(const struct qmeld_error *err);

/* How a report calls the end of a work: "done" (err is NULL), "stopped" or "failed". */
const char *qm_cli_result_word(const struct qmeld_error *err);

/* Complains, and is the exit code: `return qm_cli_fail(&err);` */
int qm_cli_fail(const struct qmeld_error *err);

/* ---- JSON ---- */

/* A JSON string; bytes that are no UTF-8 become U+FFFD, for a reader must be able to parse
 * what we print, whatever an image calls itself.  NULL gives JSON's null. */
struct json_object *qm_cli_json_string(const char *text);
void qm_cli_json_add(struct json_object *object, const char *key, struct json_object *value);
void qm_cli_json_add_u64(struct json_object *object, const char *key, uint64_t value);
void qm_cli_json_add_bool(struct json_object *object, const char *key, bool value);

/* The error as an object: code, disk, filename, message, offset. */
struct json_object *qm_cli_json_error(const struct qmeld_error *err);

/* Prints value on stdout, indented, and frees it. */
void qm_cli_json_print(struct json_object *value);

#endif
