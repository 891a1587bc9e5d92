/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "merging.h"

#include "others_report.h"
#include "outcome.h"
#include "qemu_words.h"

#include <errno.h>
#include <json-c/json.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

/* ---- options ---- */

static bool
take_threads(struct qm_cli_merging *merging, const char *arg)
{
    uint64_t threads;

    if (!qm_cli_parse_number(arg, 1024, &threads)) {
        qm_cli_usage(merging->command, "--threads is a number up to 1024, not \"%s\"", arg);
        return false;
    }
    merging->options.threads = (unsigned)threads;
    return true;
}

static bool
take_bandwidth(struct qm_cli_merging *merging, const char *arg)
{
    if (qm_cli_parse_size(arg, &merging->options.bandwidth))
        return true;
    qm_cli_usage(merging->command, "--bandwidth is a number of bytes a second, not \"%s\"", arg);
    return false;
}

static bool
take_progress(struct qm_cli_merging *merging, const char *arg)
{
    if (qm_cli_progress_parse(arg, &merging->mode))
        return true;
    qm_cli_usage(merging->command, "--progress is auto, bar, json or none, not \"%s\"", arg);
    return false;
}

static bool
take_cache(struct qm_cli_merging *merging, const char *arg)
{
    merging->options.direct = strcmp(arg, "none") == 0;
    if (merging->options.direct || strcmp(arg, "writeback") == 0)
        return true;
    qm_cli_usage(merging->command, "--cache is writeback or none, not \"%s\"", arg);
    return false;
}

static bool
take_deadline(struct qm_cli_merging *merging, const char *arg)
{
    merging->has_deadline = true;
    if (qm_cli_parse_seconds(arg, &merging->seconds))
        return true;
    qm_cli_usage(merging->command, "--deadline is a time such as 90, 30m, 2h or 1d, not \"%s\"",
                 arg);
    return false;
}

static bool
take_overlays(struct qm_cli_merging *merging, const char *arg)
{
    static const struct {
        const char *name;
        enum qmeld_overlays overlays;
    } words[] = {{"keep", QMELD_OVERLAYS_KEEP},
                 {"empty", QMELD_OVERLAYS_EMPTY},
                 {"delete", QMELD_OVERLAYS_DELETE},
                 {"quarantine", QMELD_OVERLAYS_QUARANTINE}};

    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (strcmp(arg, words[i].name) == 0) {
            merging->options.overlays = words[i].overlays;
            return true;
        }
    qm_cli_usage(merging->command, "--overlays is keep, empty, delete or quarantine, not \"%s\"",
                 arg);
    return false;
}

static bool
take_scan(struct qm_cli_merging *merging, const char *arg)
{
    if (merging->options.n_scan < QM_CLI_MAX_SCAN) {
        merging->scan[merging->options.n_scan++] = arg;
        return true;
    }
    qm_cli_usage(merging->command, "--scan can be given %u times: name a folder above those",
                 QM_CLI_MAX_SCAN);
    return false;
}

static bool
take_bitmaps(const char *command, struct qmeld_commit_options *options, const char *arg)
{
    static const char *const names[] = {"merge", "keep", "drop"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        if (strcmp(arg, names[i]) != 0)
            continue;
        options->bitmaps = (enum qmeld_bitmaps)i;
        return true;
    }
    qm_cli_usage(command, "--bitmaps is merge, keep or drop, not \"%s\"", arg);
    return false;
}

/* No image has that format; map calls its page so, too. */
static bool
is_page(const struct qm_cli_merging *merging, const char *format)
{
    return strcmp(merging->command, qm_cli_plan.name) == 0 && strcmp(format, "html") == 0;
}

/* False: it is none of these, or there was a complaint. */
static bool
take_kind(struct qm_cli_merging *merging, int c)
{
    struct qmeld_commit_options *options = &merging->options;

    switch (c) {
    case QM_OPT_OVERLAYS:
        return take_overlays(merging, optarg);
    case QM_OPT_RECLAIM:
        options->reclaim = true;
        return true;
    case QM_OPT_ATOMIC:
        options->atomic = true;
        return true;
    case QM_OPT_UNDO:
        options->undo = true;
        return true;
    case QM_OPT_SKIP_EQUAL:
        options->skip_equal = true;
        return true;
    case QM_OPT_DETECT_ZEROES:
        options->detect_zeroes = true;
        return true;
    case QM_OPT_BITMAPS:
        return take_bitmaps(merging->command, options, optarg);
    case QM_OPT_KEEP_RELATIVE:
        options->keep_relative = true;
        return true;
    case QM_OPT_FORCE:
        options->force = true;
        return true;
    case QM_OPT_PROTECT:
        options->protect = true;
        return true;
    case QM_OPT_SCAN:
        return take_scan(merging, optarg);
    case QM_OPT_NO_SCAN:
        options->no_scan = true;
        return true;
    case QM_OPT_BACKING_FORMAT:
        options->backing_format = optarg;
        return true;
    case 'f':
        if (is_page(merging, optarg))
            merging->page = true;
        else
            options->format = optarg;
        return true;
    default:
        return false;
    }
}

bool
qm_cli_merging_take(struct qm_cli_merging *merging, int c)
{
    switch (c) {
    case QM_OPT_BANDWIDTH:
        return take_bandwidth(merging, optarg);
    case QM_OPT_THREADS:
        return take_threads(merging, optarg);
    case QM_OPT_PROGRESS:
        return take_progress(merging, optarg);
    case QM_OPT_DEADLINE:
        return take_deadline(merging, optarg);
    case QM_OPT_JOURNAL_DIR:
        merging->options.journal_dir = optarg;
        return true;
    case QM_OPT_SECRET:
    case QM_OPT_SECRET_FD:
        if (!qm_cli_secrets_take(merging->command, c))
            return false;
        merging->options.secrets = qm_cli_secrets();
        return true;
    case QM_OPT_CACHE:
        return take_cache(merging, optarg);
    case QM_OPT_VERIFY:
        merging->options.verify = true;
        return true;
    case 'q':
        merging->quiet = true;
        return true;
    case 'v':
        merging->verbose = true;
        return true;
    case QM_OPT_OUTPUT:
        return qm_cli_parse_output(merging->command, optarg, &merging->output);
    default:
        return take_kind(merging, c);
    }
}

/* ---- stopping, and asking ---- */

static volatile sig_atomic_t stop_asked;
static volatile sig_atomic_t line_asked;
static double stop_time; /* written before stop_asked, by the first signal alone */

/* The second one kills.  But who stops a job often signals its whole group and its leader, which hands it on: what
 * arrives within a quarter of a second is one request. */
static void
ask_to_stop(int number)
{
    const int before = errno;
    const double now = qm_cli_progress_now(); /* async-signal-safe, as the other two: POSIX */

    if (!stop_asked) {
        stop_time = now;
        stop_asked = 1;
    } else if (now - stop_time >= 0.25) {
        (void)signal(number, SIG_DFL);
        (void)raise(number);
    }
    errno = before;
}

static void
ask_for_a_line(int number)
{
    (void)number;
    line_asked = 1;
}

static void
catch_signals(void)
{
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    /* RESTART: none of the library's calls has to end early. */
    struct sigaction action = {.sa_handler = ask_to_stop};
    struct sigaction ask = {.sa_handler = ask_for_a_line, .sa_flags = SA_RESTART};
    struct sigaction before;

    action.sa_flags = SA_RESTART;
    sigemptyset(&action.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaddset(&action.sa_mask, numbers[i]); /* one at a time */
    sigemptyset(&ask.sa_mask);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        /* nohup is obeyed.  An ignored SIGINT is only how shells start jobs in the background:
         * who sends one all the same, means it. */
        if (numbers[i] != SIGHUP ||
            (sigaction(numbers[i], NULL, &before) == 0 && before.sa_handler != SIG_IGN))
            (void)sigaction(numbers[i], &action, NULL);
    (void)sigaction(SIGUSR1, &ask, NULL);
    /* a reader of our progress that goes away is no reason to die in the middle */
    (void)signal(SIGPIPE, SIG_IGN);
}

static bool
is_late(const struct qm_cli_merging *merging)
{
    return merging->has_deadline && qm_cli_progress_now() >= merging->ends;
}

bool
qm_cli_merging_stopped(const struct qm_cli_merging *merging)
{
    return stop_asked || is_late(merging);
}

static int
show_progress(const struct qmeld_progress *now, void *opaque)
{
    struct qm_cli_merging *merging = opaque;

    merging->began = true;
    qm_cli_progress_tick(&merging->progress, now);
    if (line_asked) {
        line_asked = 0;
        qm_cli_progress_tell(&merging->progress, now);
    }
    return qm_cli_merging_stopped(merging);
}

/* ---- the work ---- */

void
qm_cli_merging_begin(struct qm_cli_merging *merging)
{
    if (merging->mode == QM_PROGRESS_AUTO && (merging->quiet || merging->bar)) /* -q overrides -p */
        merging->mode = merging->quiet ? QM_PROGRESS_NONE : QM_PROGRESS_BAR;
    merging->options.scan = merging->scan_all ? merging->scan_all : merging->scan;
    merging->options.progress = show_progress;
    merging->options.opaque = merging;
    merging->ends = qm_cli_progress_now() + (double)merging->seconds;
    catch_signals();
}

void
qm_cli_merging_confine(const struct qm_cli_merging *merging, const char *path,
                       enum qm_cli_sandbox_needs needs)
{
    const struct qmeld_commit_options *o = &merging->options;
    const struct qmeld_open_options open = {
        .format = o->format, .backing_format = o->backing_format, .allow_paths = o->allow_paths};

    qm_cli_sandbox_enter(needs);
    if ((merging->opened || qm_cli_sandbox_peek(path, &open)) &&
        !o->protect) /* who is protected may stand on a server's export, too */
        qm_cli_sandbox_opened(o->secrets ? QM_SANDBOX_OPENS_CODE : QM_SANDBOX_OPENS_FILES);
}

static int
take_journal(const struct qmeld_unfinished *merge, void *opaque)
{
    char **journal = opaque;

    if (merge->problem)
        return 0;
    *journal = strdup(merge->journal);
    return 1;
}

void
qm_cli_merging_explain(const struct qm_cli_merging *merging, const char *path, bool is_journal,
                       const struct qmeld_error *err)
{
    QM_CLI_FREE char *found = NULL;
    struct qmeld_error unheard;
    struct qm_cli_failure failure = {.rebase = merging->rebase,
                                     .err = err,
                                     .path = path,
                                     .journal = is_journal ? path : NULL,
                                     .began = merging->began,
                                     .deadline = !stop_asked && is_late(merging)};

    if (err->disk == QMELD_DISK_OPEN && !is_journal) {
        if (qmeld_status(path, merging->options.journal_dir, take_journal, &found, &unheard) < 0)
            unheard.code = QMELD_OK; /* found or not: *found tells */
        failure.journal = found;
    }
    qm_cli_outcome_explain(&failure);
}

static void
explain_unverified(const char *path)
{
    QM_CLI_FREE char *shown = qm_cli_quote(path);

    fprintf(
        stderr,
        "qmeld: %s: not read back: an earlier run had begun to give up what it would be compared "
        "with\n",
        shown);
}

int
qm_cli_merging_run(struct qm_cli_merging *merging, const char *path, qm_cli_merge_call *call,
                   struct qmeld_commit_report *report, struct qmeld_error *err)
{
    int rc;

    memset(report, 0, sizeof *report);
    memset(err, 0, sizeof *err);
    merging->began = false;
    qm_cli_progress_begin(&merging->progress, merging->mode);
    rc = call(path, &merging->options, report, err);
    if (rc == 0)
        qm_cli_progress_full(&merging->progress);
    qm_cli_progress_end(&merging->progress);
    if (!merging->quiet)
        qm_cli_others_print_unread(report->files_unread, report->unread, report->unread_errno);
    if (rc == 0 && merging->options.verify && !report->verified && !report->nothing_to_do)
        explain_unverified(path);
    if (rc == 0)
        return QM_EXIT_DONE;
    if (err->code == QMELD_USAGE)
        qm_cli_others_print(stderr, report->dependants, report->n_dependants, true);
    qm_cli_merging_explain(
        merging, path, call == qmeld_resume || call == qmeld_revert || call == qmeld_finalize, err);
    return qm_cli_exit_code(err);
}

/* The report of `qmeld-img commit`, unless one of ours was asked for. */
static bool
speaks_as_qemu(const struct qm_cli_merging *merging)
{
    return qm_cli_is_qmeld_img() && strcmp(merging->command, qm_cli_commit.name) == 0 &&
           merging->output == QM_OUTPUT_HUMAN && !merging->verbose;
}

int
qm_cli_merging_run_and_report(struct qm_cli_merging *merging, const char *path,
                              qm_cli_merge_call *call)
{
    struct qmeld_commit_report report;
    struct qmeld_error err;
    const int code = qm_cli_merging_run(merging, path, call, &report, &err);

    if (merging->output == QM_OUTPUT_JSON)
        qm_cli_json_print(qm_cli_outcome_json(&report, code == QM_EXIT_DONE ? NULL : &err));
    else if (code == QM_EXIT_DONE && !merging->quiet && report.nothing_to_do && merging->nothing)
        puts(merging->nothing);
    else if (code == QM_EXIT_DONE && !merging->quiet && !speaks_as_qemu(merging))
        qm_cli_outcome_print(&report, merging->verbose);
    else if (code == QM_EXIT_DONE)
        qm_cli_outcome_print_bitmaps(stderr, "the base", report.bitmaps, report.n_bitmaps, true);
    if (code == QM_EXIT_DONE && !merging->quiet && speaks_as_qemu(merging))
        puts("Image committed."); /* scripts wait for it */
    qmeld_commit_report_free(&report);
    return code;
}
