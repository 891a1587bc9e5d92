/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * progress.c - how far a long command is, on stderr.
 *
 * The rate is that of the last seconds, not of the whole run: a merge that reaches a slower disk
 * region, or a limit, must say so.  The time left is shown only once two seconds of one phase
 * have been seen, and is cut to two digits, for the third would be a lie.
 */
#include "progress.h"

#include "qemu_words.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

enum {
    BAR_CELLS = 24,
    BAR_LEAST_CELLS = 4, /* shorter ones tell nothing */
};

static const double record_seconds = 1.0;  /* between two records */
static const double bar_seconds = 0.1;     /* between two bars */
static const double sample_seconds = 0.25; /* between two samples: 64 of them see 16 seconds */
static const double trust_seconds = 2.0;   /* seen before a time left is told */

/* What can be said about the speed. */
struct pace {
    double elapsed; /* since begin */
    double rate;    /* bytes a second; 0: not known yet */
    double left;    /* seconds; < 0: not known yet */
};

double
qm_cli_progress_now(void)
{
    struct timespec now = {0};

    (void)clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

bool
qm_cli_progress_parse(const char *text, enum qm_cli_progress_mode *out)
{
    static const char *const names[] = {"auto", "bar", "json", "none"};

    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strcmp(names[i], text) == 0) {
            *out = (enum qm_cli_progress_mode)i;
            return true;
        }
    return false;
}

/* As qemu_progress_print() writes it, by steps of 1 % as qemu-img asks of it. */
static void
show_percent(struct qm_cli_progress *progress, double percent)
{
    printf("    (%.2f/100%%)\r", percent);
    fflush(stdout);
    progress->percent = percent;
    progress->bar_stands = true;
}

/* What goes before and after the bytes' way is not told: to those who read it, 100 % is the end. */
static void
tick_percent(struct qm_cli_progress *progress, const struct qmeld_progress *now)
{
    static const char *const ways[] = {"copy", "flatten", "compare"};
    const double percent =
        now->total_bytes ? (double)now->done_bytes / (double)now->total_bytes * 100 : 0.0;

    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        if (strcmp(now->phase, ways[i]) == 0 && percent <= 100 && percent >= progress->percent + 1)
            show_percent(progress, percent);
}

void
qm_cli_progress_full(struct qm_cli_progress *progress)
{
    if (progress->mode == QM_PROGRESS_PERCENT)
        show_percent(progress, 100);
}

void
qm_cli_progress_begin(struct qm_cli_progress *progress, enum qm_cli_progress_mode mode)
{
    memset(progress, 0, sizeof *progress);
    if (mode == QM_PROGRESS_AUTO)
        mode = isatty(STDERR_FILENO) && !qm_cli_is_qmeld_img() ? QM_PROGRESS_BAR : QM_PROGRESS_NONE;
    if (mode == QM_PROGRESS_BAR && qm_cli_is_qmeld_img())
        mode = QM_PROGRESS_PERCENT;
    progress->mode = mode;
    progress->began = qm_cli_progress_now();
    if (mode == QM_PROGRESS_PERCENT)
        show_percent(progress, 0);
}

static void
sample(struct qm_cli_progress *progress, double time, uint64_t done)
{
    const size_t newest = (progress->n_samples + QM_PROGRESS_SAMPLES - 1) % QM_PROGRESS_SAMPLES;

    if (progress->n_samples > 0 && time - progress->samples[newest].time < sample_seconds)
        return;
    progress->samples[progress->n_samples % QM_PROGRESS_SAMPLES].time = time;
    progress->samples[progress->n_samples % QM_PROGRESS_SAMPLES].done = done;
    progress->n_samples++;
}

static struct pace
measure(const struct qm_cli_progress *progress, double time, const struct qmeld_progress *now)
{
    const size_t oldest =
        progress->n_samples > QM_PROGRESS_SAMPLES ? progress->n_samples % QM_PROGRESS_SAMPLES : 0;
    struct pace pace = {.elapsed = time - progress->began, .left = -1};
    const double seen = progress->n_samples ? time - progress->samples[oldest].time : 0;

    if (seen < sample_seconds || now->done_bytes <= progress->samples[oldest].done)
        return pace;
    pace.rate = (double)(now->done_bytes - progress->samples[oldest].done) / seen;
    if (seen >= trust_seconds && now->total_bytes >= now->done_bytes)
        pace.left = (double)(now->total_bytes - now->done_bytes) / pace.rate;
    return pace;
}

/* "8 s", "42 s", "3 min", "1.5 h" */
static void
write_left(double left, char *out, size_t n_out)
{
    if (left < 0)
        out[0] = '\0';
    else if (left < 99.5)
        snprintf(out, n_out, "%.0f s left", left);
    else if (left < 99.5 * 60)
        snprintf(out, n_out, "%.0f min left", left / 60);
    else
        snprintf(out, n_out, "%.1f h left", left / 3600);
}

static int
terminal_width(void)
{
    struct winsize size;

    return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

/* What stands behind the bar, in at most room bytes: bytes, rate and time left; where that is too much without the bytes,
 * then without the rate, then nothing.  Its length. */
static int
write_tail(const struct pace *pace, const struct qmeld_progress *now, int room, char *out,
           size_t n_out)
{
    char bytes[96], rate[48] = "", left[40], *parts[] = {bytes, rate, left};

    snprintf(bytes, sizeof bytes, "  %s of %s", qm_cli_size(now->done_bytes).text,
             qm_cli_size(now->total_bytes).text);
    if (pace->rate >= 1)
        snprintf(rate, sizeof rate, "  %s/s", qm_cli_size((uint64_t)pace->rate).text);
    write_left(pace->left, left, sizeof left);
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const int n = snprintf(out, n_out, "%s%s%s%s", bytes, rate, *left ? "  " : "", left);

        if (n <= room)
            return n;
        parts[i][0] = '\0';
    }
    out[0] = '\0';
    return 0;
}

static void
show_bar(struct qm_cli_progress *progress, const struct pace *pace,
         const struct qmeld_progress *now)
{
    const double share =
        now->total_bytes ? (double)now->done_bytes / (double)now->total_bytes : 0.0;
    /* never into the last column: there the line would wrap, and \r would not find its start */
    const int room = terminal_width() - 1;
    char bar[BAR_CELLS + 4] = "", line[256], tail[160];

    if (now->total_bytes == 0) {
        snprintf(line, sizeof line, "%s ...", now->phase);
    } else {
        const int fixed = snprintf(line, sizeof line, "%-6s %3d%%", now->phase, (int)(share * 100));
        const int n = write_tail(pace, now, room - fixed, tail, sizeof tail);
        int cells = room - fixed - n - 3; /* brackets, and the blank behind them */

        cells = cells < BAR_CELLS ? cells : BAR_CELLS;
        if (cells >= BAR_LEAST_CELLS) {
            const int filled = (int)((share < 1.0 ? share : 1.0) * cells);

            bar[0] = '[';
            for (int i = 0; i < cells; i++)
                bar[1 + i] = i < filled ? '=' : i == filled ? '>' : ' ';
            memcpy(bar + 1 + cells, "] ", sizeof "] ");
        }
        snprintf(line, sizeof line, "%-6s %s%3d%%%s", now->phase, bar, (int)(share * 100), tail);
    }
    fprintf(stderr, "\r%.*s\033[K", room, line);
    fflush(stderr);
    progress->bar_stands = true;
}

static void
show_record(const struct pace *pace, const struct qmeld_progress *now)
{
    fprintf(stderr,
            "{\"phase\": \"%s\", \"done\": %" PRIu64 ", \"total\": %" PRIu64
            ", \"elapsed\": %.3f, \"rate\": %.0f",
            now->phase, now->done_bytes, now->total_bytes, pace->elapsed, pace->rate);
    if (pace->left >= 0)
        fprintf(stderr, ", \"left\": %.1f", pace->left);
    fputs("}\n", stderr);
}

void
qm_cli_progress_tick(struct qm_cli_progress *progress, const struct qmeld_progress *now)
{
    const double time = qm_cli_progress_now();
    const char *phase = now->phase ? now->phase : "";
    const bool new_phase = strncmp(phase, progress->phase, sizeof progress->phase - 1) != 0;
    const bool end = now->total_bytes > 0 && now->done_bytes == now->total_bytes;
    bool turn = false; /* of a phase: to be shown whatever the time */
    const double least = progress->mode == QM_PROGRESS_JSON ? record_seconds : bar_seconds;
    struct pace pace;

    if (progress->mode == QM_PROGRESS_PERCENT) {
        tick_percent(progress, now);
        return;
    }
    if (new_phase) { /* what was measured of another phase says nothing about this one */
        snprintf(progress->phase, sizeof progress->phase, "%s", phase);
        progress->n_samples = 0;
        turn = true;
    }
    if (end && !progress->ended)
        turn = true;
    progress->ended = end;
    sample(progress, time, now->done_bytes);
    if (progress->mode == QM_PROGRESS_NONE)
        return;
    if (!turn && time - progress->shown < least)
        return;
    progress->shown = time;
    pace = measure(progress, time, now);
    if (progress->mode == QM_PROGRESS_JSON)
        show_record(&pace, now);
    else
        show_bar(progress, &pace, now);
}

void
qm_cli_progress_tell(struct qm_cli_progress *progress, const struct qmeld_progress *now)
{
    const struct pace pace = measure(progress, qm_cli_progress_now(), now);
    char left[32];

    qm_cli_progress_end(progress);
    fprintf(stderr, "qmeld: %s: %s", now->phase, qm_cli_size(now->done_bytes).text);
    if (now->total_bytes)
        fprintf(stderr, " of %s (%.0f %%)", qm_cli_size(now->total_bytes).text,
                (double)now->done_bytes / (double)now->total_bytes * 100);
    if (pace.rate >= 1)
        fprintf(stderr, ", %s/s", qm_cli_size((uint64_t)pace.rate).text);
    write_left(pace.left, left, sizeof left);
    fprintf(stderr, "%s%s\n", *left ? ", " : "", left);
}

void
qm_cli_progress_end(struct qm_cli_progress *progress)
{
    if (!progress->bar_stands)
        return;
    if (progress->mode == QM_PROGRESS_PERCENT)
        putchar('\n');
    else
        fputs("\r\033[K", stderr);
    progress->bar_stands = false;
}
