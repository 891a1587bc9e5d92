/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * merging.h - what the commands that merge have in common: commit, resume, recover.
 *
 * Why.  Whether a merge begins or goes on, one should be able to slow it down, stop it, ask how far it
 * is, and read its report in the same way.
 *
 * Calls      take for each option getopt found; begin once; run for each merge.
 * Threads    One.  Signals set flags, which the library's progress callback looks at.
 */
#ifndef QM_CLI_MERGING_H
#define QM_CLI_MERGING_H

#include "progress.h"
#include "sandbox.h"
#include "secrets.h"

/* Places to look for other images, beside the chain's own folders. */
#define QM_CLI_MAX_SCAN 64u

struct qm_cli_merging {
    const char *command; /* for complaints about options */
    struct qmeld_commit_options options;
    struct qm_cli_progress progress;
    enum qm_cli_progress_mode mode;
    enum qm_cli_output output;
    const char
        *nothing; /* said where there is nothing to do; NULL: that there is no backing file */
    bool quiet;
    bool verbose; /* how the bytes of each layer went is told, too */
    bool bar;     /* -p: a progress bar, unless -q */
    bool page;    /* of plan: a page is printed */
    bool rebase;  /* not a merge, but stopped and told of like one */
    bool
        never_live; /* of commit: a running machine's image is refused, not merged through libvirt */
    const char *scan[QM_CLI_MAX_SCAN]; /* options.n_scan of them */
    const char *const *scan_all;       /* those and what libvirt told (machines.h); NULL: those */
    bool has_deadline;
    uint64_t seconds; /* until the deadline, from begin on */
    double ends;      /* that, by the monotonic clock */
    bool opened;      /* the chain was, in the sandbox: no need to peek at it */
    bool began;       /* the library works, and does not only look at what is asked */
};

enum {
    QM_OPT_BANDWIDTH = QM_OPT_FIRST,
    QM_OPT_THREADS,
    QM_OPT_PROGRESS,
    QM_OPT_DEADLINE,
    QM_OPT_JOURNAL_DIR,
    QM_OPT_VERIFY,
    QM_OPT_CACHE,
    QM_OPT_OVERLAYS,
    QM_OPT_RECLAIM,
    QM_OPT_ATOMIC,
    QM_OPT_UNDO,
    QM_OPT_SKIP_EQUAL,
    QM_OPT_DETECT_ZEROES,
    QM_OPT_KEEP_RELATIVE,
    QM_OPT_FORCE,
    QM_OPT_PROTECT,
    QM_OPT_SCAN,
    QM_OPT_NO_SCAN,
    QM_OPT_BACKING_FORMAT,
    QM_OPT_BITMAPS,
    QM_OPT_MERGING_FIRST, /* a command's own begin here */
};

#define QM_CLI_MERGING_LETTERS "qv"
#define QM_CLI_MERGING_OPTIONS                                                                     \
    {"bandwidth", required_argument, NULL, QM_OPT_BANDWIDTH},                                      \
        {"threads", required_argument, NULL, QM_OPT_THREADS},                                      \
        {"progress", required_argument, NULL, QM_OPT_PROGRESS},                                    \
        {"deadline", required_argument, NULL, QM_OPT_DEADLINE},                                    \
        {"verify", no_argument, NULL, QM_OPT_VERIFY},                                              \
        {"cache", required_argument, NULL, QM_OPT_CACHE}, {"verbose", no_argument, NULL, 'v'},     \
    {                                                                                              \
        "quiet", no_argument, NULL, 'q'                                                            \
    }

/* Of other images that read the layers; explained by QM_CLI_OTHERS_HELP. */
#define QM_CLI_OTHERS_OPTIONS                                                                      \
    {"force", no_argument, NULL, QM_OPT_FORCE}, {"protect", no_argument, NULL, QM_OPT_PROTECT},    \
        {"scan", required_argument, NULL, QM_OPT_SCAN},                                            \
    {                                                                                              \
        "no-scan", no_argument, NULL, QM_OPT_NO_SCAN                                               \
    }

/* What commands that begin a merge have beside those: what kind of merge, of which formats. */
#define QM_CLI_MERGE_KIND_OPTIONS                                                                  \
    QM_CLI_SECRET_OPTIONS, {"overlays", required_argument, NULL, QM_OPT_OVERLAYS},                 \
        {"reclaim", no_argument, NULL, QM_OPT_RECLAIM},                                            \
        {"atomic", no_argument, NULL, QM_OPT_ATOMIC}, {"undo", no_argument, NULL, QM_OPT_UNDO},    \
        {"skip-equal", no_argument, NULL, QM_OPT_SKIP_EQUAL},                                      \
        {"detect-zeroes", no_argument, NULL, QM_OPT_DETECT_ZEROES},                                \
        {"keep-relative", no_argument, NULL, QM_OPT_KEEP_RELATIVE},                                \
        {"bitmaps", required_argument, NULL, QM_OPT_BITMAPS}, QM_CLI_OTHERS_OPTIONS,               \
        QM_CLI_ALLOW_PATH_OPTION, QM_CLI_SANDBOX_OPTION, {"format", required_argument, NULL, 'f'}, \
    {                                                                                              \
        "backing-format", required_argument, NULL, QM_OPT_BACKING_FORMAT                           \
    }

#define QM_CLI_OTHERS_HELP                                                                         \
    "        --scan=PATH            look there, too, for other images that read these layers: in " \
    "a\n"                                                                                          \
    "                               folder and all below it, or in a file; may be given again.\n"  \
    "                               The folders of the chain's own files are always looked at\n"   \
    "        --no-scan              do not look for other images at all\n"                         \
    "        --protect              give such images first what they would read otherwise, so "    \
    "that\n"                                                                                       \
    "                               they and all above them read as before\n"                      \
    "        --force                merge though others, who are named, will read wrong data:\n"   \
    "                               without one of the two such a merge is refused\n"

/* All options of commit, for the commands that take the same; the image is argv[optind].  -1, or an exit
 * code: text was printed because help was asked for, or a complaint. */
int qm_cli_commit_options(int argc, char **argv, const char *text, struct qm_cli_merging *merging);

/* Their help; --journal-dir, which means something else in each command, is not among them. */
#define QM_CLI_MERGING_HELP                                                                        \
    "        --bandwidth=RATE       bytes a second at most; suffixes k, M, G; 0: no limit\n"       \
    "        --threads=N            copy with N threads (as many as processors, at most 16)\n"     \
    "        --cache=writeback|none through the page cache, which is left as it was found\n"       \
    "                               (default), or past it (O_DIRECT) where that can be\n"          \
    "        --deadline=TIME        stop after so long, as a signal would do; seconds, or 30m,\n"  \
    "                               2h, 1d\n"                                                      \
    "        --verify               read back from the disk what was written, and compare it,\n"   \
    "                               before a merged layer is touched\n"                            \
    "        --progress=auto|bar|json|none\n"                                                      \
    "                               on stderr; auto: a bar if that is a terminal\n"                \
    "    -v, --verbose              tell, too, how the bytes of each layer got into the base\n"    \
    "    -q, --quiet                no report, no bar; errors only\n"                              \
    "        --output=human|json    form of the report\n"                                          \
    "    -h, --help                 this text\n"

#define QM_CLI_MERGING_SANDBOX_HELP                                                                \
    "        --no-sandbox           keep what the command does not need, to debug it\n"

#define QM_CLI_MERGING_SIGNALS                                                                     \
    "SIGINT, SIGTERM and SIGHUP stop at the next point where every file is in order; a second\n"   \
    "one stops at once, which is safe too.  SIGUSR1 prints a line that says how far it is.\n"

/* An option that qm_cli_getopt found, --output and --journal-dir included.  False after a complaint. */
bool qm_cli_merging_take(struct qm_cli_merging *merging, int c);

/* After the options: signals are caught from now on, and the deadline's time runs. */
void qm_cli_merging_begin(struct qm_cli_merging *merging);

/* Enters the sandbox, if that has not been done, and gives up what the chain of path does not need: its headers are read
 * for that.  Behind the last question to libvirt. */
void qm_cli_merging_confine(const struct qm_cli_merging *merging, const char *path,
                            enum qm_cli_sandbox_needs needs);

/* Why it failed, and what can be done, on stderr.  path: the image, or the journal. */
void qm_cli_merging_explain(const struct qm_cli_merging *merging, const char *path, bool is_journal,
                            const struct qmeld_error *err);

/* A signal or the deadline asked to stop. */
bool qm_cli_merging_stopped(const struct qm_cli_merging *merging);

/* qmeld_commit, or one of those that take a journal. */
typedef int qm_cli_merge_call(const char *path, const struct qmeld_commit_options *options,
                              struct qmeld_commit_report *report, struct qmeld_error *err);

/* call(path), with progress and, on stderr, the explanation of a failure.  Returns the exit code; the
 * report is the caller's to free, *err too. */
int qm_cli_merging_run(struct qm_cli_merging *merging, const char *path, qm_cli_merge_call *call,
                       struct qmeld_commit_report *report, struct qmeld_error *err);

/* The same, with the report printed as asked. */
int qm_cli_merging_run_and_report(struct qm_cli_merging *merging, const char *path,
                                  qm_cli_merge_call *call);

#endif
