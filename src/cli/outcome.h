/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * outcome.h - how the end of a merge reads.
 *
 * Why.  The most expensive mistake after a merge is to open a layer that has silently become wrong.
 * So whichever command ran it, its report says for every file what that is worth now, and a
 * failure says what is on the disk and which command goes on.
 *
 * Threads    One.
 * Ownership  All is borrowed.
 */
#ifndef QM_CLI_OUTCOME_H
#define QM_CLI_OUTCOME_H

#include "cli.h"

/* A line of sums, and one for each layer. */
void qm_cli_outcome_print(const struct qmeld_commit_report *report, bool verbose);

/* How the bytes of each layer got into the base. */
void qm_cli_outcome_print_routes(const struct qmeld_commit_report *report);

/* One line of how the bytes of layer i (1 = base) got into the base; nothing if none did. */
void qm_cli_outcome_print_route(size_t i, const char *path, uint64_t shared, uint64_t offloaded,
                                uint64_t copied, uint64_t past_cache);

/* The same as an object; err is NULL after success. */
struct json_object *qm_cli_outcome_json(const struct qmeld_commit_report *report,
                                        const struct qmeld_error *err);

/* "merged-into", ... */
const char *qm_cli_outcome_fate(enum qmeld_fate fate);

/* What a plan says is to become of layer i, 0 = base: names in it are as they are.  The caller's. */
char *qm_cli_outcome_future(const struct qmeld_plan_report *report, size_t i);

/* "up" or "down" */
const char *qm_cli_outcome_direction(enum qmeld_direction direction);

/* A line for each, to `out`; only_lost: of those whose history ends here. */
void qm_cli_outcome_print_bitmaps(FILE *out, const char *into,
                                  const struct qmeld_merged_bitmap *bitmaps, size_t n,
                                  bool only_lost);
struct json_object *qm_cli_outcome_bitmaps_json(const struct qmeld_merged_bitmap *bitmaps,
                                                size_t n);

/* A line that says what going down, and up, comes to; nothing if only one was thought of. */
void qm_cli_outcome_print_ways(enum qmeld_direction taken, uint64_t down, uint64_t up);

struct qm_cli_failure {
    bool rebase; /* it was no merge */
    const struct qmeld_error *err;
    const char *path;    /* as named on the command line */
    const char *journal; /* of the merge, NULL: there is none, or it is not known */
    bool began;          /* work had begun, not only a look at what is asked */
    bool deadline;       /* it was stopped because its time was over */
};

/* What failed, and what the files are worth now, on stderr. */
void qm_cli_outcome_explain(const struct qm_cli_failure *failure);

#endif
