/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * progress.h - how far a long command is, on stderr; as qmeld-img, in qemu-img's words, on stdout.
 *
 * Why.  A person wants one line that moves, a program wants records, a log wants nothing; and a
 * time left that jumps about is worse than none.
 *
 * Calls      begin, tick (by the library), end before anything else is printed.
 * Threads    One.
 * Units      Bytes, and seconds of the monotonic clock.
 */
#ifndef QM_CLI_PROGRESS_H
#define QM_CLI_PROGRESS_H

#include "cli.h"

enum qm_cli_progress_mode {
    QM_PROGRESS_AUTO = 0, /* a bar if stderr is a terminal, otherwise nothing */
    QM_PROGRESS_BAR,
    QM_PROGRESS_JSON, /* one object a line */
    QM_PROGRESS_NONE,
    QM_PROGRESS_PERCENT, /* qemu-img's, which programs read: what BAR is when called as qmeld-img */
};

enum { QM_PROGRESS_SAMPLES = 64 };

struct qm_cli_progress {
    enum qm_cli_progress_mode mode; /* AUTO is decided by begin */
    double began;
    double shown; /* when the last line went out */
    char phase[16];
    bool ended;      /* all of the phase's bytes were done at the last tick */
    bool bar_stands; /* a bar is on the terminal's last line */
    double percent;  /* the last that was shown: it never goes back */
    /* what was done when, newest at (n_samples - 1) % QM_PROGRESS_SAMPLES; of one phase */
    struct {
        double time;
        uint64_t done;
    } samples[QM_PROGRESS_SAMPLES];
    size_t n_samples;
};

/* Seconds on the clock that only goes forward; a signal's handler may ask, too. */
double qm_cli_progress_now(void);

/* "auto", "bar", "json", "none". */
bool qm_cli_progress_parse(const char *text, enum qm_cli_progress_mode *out);

void qm_cli_progress_begin(struct qm_cli_progress *progress, enum qm_cli_progress_mode mode);

/* Shows now, if it is time to: ten bars a second, or one record, and each phase's first and
 * last state. */
void qm_cli_progress_tick(struct qm_cli_progress *progress, const struct qmeld_progress *now);

/* Prints one line in words, whatever the mode.  Ticks must have gone before. */
void qm_cli_progress_tell(struct qm_cli_progress *progress, const struct qmeld_progress *now);

/* All is done: says 100 %, where percentages are shown.  Then comes end. */
void qm_cli_progress_full(struct qm_cli_progress *progress);

/* Wipes the bar. */
void qm_cli_progress_end(struct qm_cli_progress *progress);

#endif
