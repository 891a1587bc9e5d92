/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_resume.c - what is done with a merge that a journal tells of: `qmeld resume` finishes it, `qmeld
 * revert` takes it back, `qmeld finalize` gives up the way back, `qmeld recover` finishes all of a
 * directory.
 *
 * recover is what runs before virtual machines are started: it may be given any number of times,
 * one failure does not keep it from the others, and its exit code says whether all is well.
 */
#include "changes.h"
#include "outcome.h"
#include "partials.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static const char resume_help[] =
    "qmeld resume - finish an interrupted merge, or flattening\n"
    "\n"
    "    qmeld resume disk.qcow2                  that of the chain disk.qcow2 belongs to\n"
    "    qmeld resume .base.raw.qmeld             that of this journal\n"
    "    qmeld resume flat.raw                    what qmeld flatten has not completed\n"
    "\n"
    "usage: qmeld resume [OPTIONS] PATH\n"
    "\n"
    "PATH is a layer, which one unfinished merge has to do with, or a journal; qmeld status shows\n"
    "both.  The merge goes on where its journal says; what was asked for stands there, too.  If\n"
    "another layer than the base has changed meanwhile it is refused, and nothing is done.\n"
    "Or it is an image that qmeld flatten has not completed, by its own name or that of its note\n"
    "(.NAME.qmeld-flatten): as if the same command were given again.\n"
    "\n"
    "        --journal-dir=DIR      look for the layer's journal there\n" QM_CLI_SECRET_HELP
        QM_CLI_MERGING_SANDBOX_HELP QM_CLI_MERGING_HELP "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done; 1 failed, images as they were; 2 refused or wrong usage, nothing\n"
    "touched; 3 still half-way, and 75 stopped by a signal or at the deadline: the same command\n"
    "again finishes.\n";

static const char revert_help[] =
    "qmeld revert - take back a merge that was begun with --atomic or --undo\n"
    "\n"
    "    qmeld revert disk.qcow2                  that of the chain disk.qcow2 belongs to\n"
    "    qmeld revert .base.qcow2.qmeld           that of this journal\n"
    "\n"
    "usage: qmeld revert [OPTIONS] PATH\n"
    "\n"
    "The base becomes bit for bit what it was before the merge, and the layer above the merged "
    "ones\n"
    "stands on them again.  Whether the merge was interrupted or is done makes no difference, "
    "until\n"
    "qmeld finalize, or the end of a merge that gives up its overlays.  If a merged layer, or the\n"
    "base after the merge, was written to meanwhile, it is refused, and nothing is done.\n"
    "What qmeld flatten has not completed is given up: the file and its note are removed.\n"
    "\n"
    "        --journal-dir=DIR      look for the layer's journal there\n" QM_CLI_SECRET_HELP
        QM_CLI_MERGING_SANDBOX_HELP QM_CLI_MERGING_HELP "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 taken back; 1 failed, images as they were; 2 refused or wrong usage, nothing\n"
    "touched; 3 half-way back: the same command again, or qmeld resume, goes on.\n";

static const char finalize_help[] =
    "qmeld finalize - make a merge final that could still be taken back\n"
    "\n"
    "    qmeld finalize disk.qcow2\n"
    "\n"
    "usage: qmeld finalize [OPTIONS] PATH\n"
    "\n"
    "PATH is a layer or a journal of a merge that was made with --atomic or --undo and is done.\n"
    "The space that qmeld revert would need goes back to the file system.  A virtual machine\n"
    "that only reads the base may be running.\n"
    "\n"
    "        --journal-dir=DIR      look for the layer's journal there\n" QM_CLI_SECRET_HELP
        QM_CLI_MERGING_SANDBOX_HELP QM_CLI_MERGING_HELP "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 done; 1 failed, images as they were; 2 refused or wrong usage, nothing\n"
    "touched; 3 half-way: the same command again finishes.\n";

static const char recover_help[] =
    "qmeld recover - finish every interrupted merge and flattening that is noted in a directory\n"
    "\n"
    "    qmeld recover /var/lib/libvirt/images\n"
    "\n"
    "usage: qmeld recover [OPTIONS] DIR\n"
    "\n"
    "A line tells of each merge.  What fails is left for the next time, and the others are gone\n"
    "on with.  If nothing is unfinished, nothing is done.\n"
    "\n" QM_CLI_SECRET_HELP QM_CLI_MERGING_SANDBOX_HELP QM_CLI_MERGING_HELP
    "\n" QM_CLI_MERGING_SIGNALS "\n"
    "Exit codes: 0 all are finished, or there were none; otherwise 2 if one was refused, for that\n"
    "needs somebody who looks at it, 3 if one is still half-way, 1 if one failed before it did\n"
    "anything, 75 if one was stopped; of these the first that applies.\n";

/* ---- what is unfinished ---- */

struct found {
    char *journal;
    struct qmeld_error problem;
    bool usable;
    bool held;  /* done, and can be taken back */
    bool local; /* nothing that it opens is behind a server */
};

struct search {
    struct found *list;
    size_t n;
};

/* Every name of an export has "nbd" in it; that a file's may, too, leaves a door open, no more.  Who is protected, and
 * what a new backing file stands on, is not told here. */
static bool
is_local(const struct qmeld_unfinished *merge)
{
    for (size_t i = 0; i < merge->n_layers; i++)
        if (strstr(merge->layers[i], "nbd"))
            return false;
    return !merge->protecting && !merge->new_backing;
}

static int
note(const struct qmeld_unfinished *merge, void *opaque)
{
    struct search *search = opaque;
    struct found *list = reallocarray(search->list, search->n + 1, sizeof *list);
    char *journal = strdup(merge->journal);

    if (list)
        search->list = list;
    if (!list || !journal) {
        free(journal);
        return 1;
    }
    list[search->n] = (struct found){.journal = journal,
                                     .usable = !merge->problem,
                                     .held = !merge->problem && merge->held,
                                     .local = merge->problem || is_local(merge)};
    if (merge->problem)
        list[search->n].problem = *merge->problem;
    search->n++;
    return 0;
}

static void
release(struct search *search)
{
    for (size_t i = 0; i < search->n; i++)
        free(search->list[i].journal);
    free(search->list);
}

static int
by_name(const void *a, const void *b)
{
    return strcmp(((const struct found *)a)->journal, ((const struct found *)b)->journal);
}

/* Journals say what will be opened. */
static void
confine(const struct qm_cli_merging *merging, const struct search *search)
{
    for (size_t i = 0; i < search->n; i++)
        if (!search->list[i].local)
            return;
    if (search->n > 0)
        qm_cli_sandbox_opened(merging->options.secrets ? QM_SANDBOX_OPENS_CODE
                                                       : QM_SANDBOX_OPENS_FILES);
}

/* 0, or an exit code after the complaint. */
static int
look(const struct qm_cli_merging *merging, const char *path, struct search *search)
{
    struct qmeld_error err;

    if (qmeld_status(path, merging->options.journal_dir, note, search, &err) == 0) {
        confine(merging, search);
        if (search->n > 0)
            qsort(search->list, search->n, sizeof *search->list, by_name);
        return 0;
    }
    if (err.code != QMELD_CANCELED)
        return qm_cli_fail(&err);
    fputs("qmeld: out of memory\n", stderr);
    return QM_EXIT_FAILED;
}

static bool
is_dir(const char *path)
{
    struct stat st;

    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

/* ---- resume ---- */

static int
refuse_number(const char *command, const char *path, const struct search *search)
{
    QM_CLI_FREE char *shown = qm_cli_quote(path);

    if (search->n == 0) {
        fprintf(stderr,
                "qmeld: %s: no unfinished merge has to do with it: `qmeld status DIR` lists "
                "those of a directory\n",
                shown);
        return QM_EXIT_REFUSED;
    }
    fprintf(stderr, "qmeld: %s: %zu unfinished merges have to do with it: name the journal\n",
            shown, search->n);
    for (size_t i = 0; i < search->n; i++) {
        QM_CLI_FREE char *journal = qm_cli_shell_word(search->list[i].journal);

        fprintf(stderr, "    qmeld %s %s\n", command, journal);
    }
    return QM_EXIT_REFUSED;
}

/* A merge for a stopped machine is ended by libvirt's help, images and definition together.
 * *out_found false: path has to do with none. */
static int
resume_change(struct qm_cli_merging *merging, const char *path, bool *out_found)
{
    struct qm_cli_changes changes;
    struct qmeld_error err;
    int code = QM_EXIT_DONE;

    *out_found = true;
    if (qm_cli_changes_find(path, merging->options.journal_dir, &changes, &err) < 0)
        code = qm_cli_fail(&err);
    else if (changes.n == 1)
        code = qm_cli_change_finish(merging, &changes.list[0], NULL);
    else
        *out_found = changes.n > 1;
    if (changes.n > 1) {
        qm_cli_usage("resume",
                     "%zu unfinished changes of machines have to do with %s: name the note",
                     changes.n, path);
        code = QM_EXIT_REFUSED;
    }
    qm_cli_changes_release(&changes);
    return code;
}

/* The image that a flatten has not completed, if path has to do with one; *out_found false: it has not. */
static int
end_partial(struct qm_cli_merging *merging, const char *path, qm_cli_merge_call *call,
            bool *out_found)
{
    struct qm_cli_partials partials;
    struct qmeld_error err;
    int code;

    *out_found = true;
    if (qm_cli_partials_find(path, &partials, &err) < 0) {
        code = qm_cli_fail(&err);
    } else if (partials.n + partials.n_left == 0) {
        *out_found = false;
        code = QM_EXIT_DONE;
    } else {
        qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
        code =
            call == qmeld_revert
                ? qm_cli_partial_abandon(merging, path)
                : qm_cli_partial_finish(merging, path, NULL); /* without a note: refused by name */
    }
    qm_cli_partials_release(&partials);
    return code;
}

/* For the merge that path, a layer or a journal, has to do with.  Only a note of a machine's change needs libvirt, which
 * may run a program: it is looked for first, and by name (changes.h). */
static int
call_for(struct qm_cli_merging *merging, const char *path, qm_cli_merge_call *call)
{
    struct search search = {0};
    bool found = false;
    int code = QM_EXIT_DONE;

    if (is_dir(path)) {
        qm_cli_usage(
            merging->command,
            "%s is a directory: name a layer or a journal (qmeld recover finishes all that is "
            "in one)",
            path);
        return QM_EXIT_REFUSED;
    }
    if (call != qmeld_resume)
        qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    if (qm_cli_partials_own(path) && call != qmeld_finalize)
        code = end_partial(merging, path, call, &found);
    if (!found && call == qmeld_resume)
        code = resume_change(merging, path, &found);
    if (found)
        return code;
    qm_cli_sandbox_enter(QM_SANDBOX_WRITES);
    code = look(merging, path, &search);
    if (code != 0)
        return code;
    if (search.n == 0 && call != qmeld_finalize)
        code = end_partial(merging, path, call, &found);
    if (found)
        ;
    else if (search.n != 1)
        code = refuse_number(merging->command, path, &search);
    else if (!search.list[0].usable)
        code = qm_cli_fail(&search.list[0].problem);
    else
        code = qm_cli_merging_run_and_report(merging, search.list[0].journal, call);
    release(&search);
    return code;
}

/* ---- recover ---- */

/* Of two exit codes the one that needs more care. */
static int
worse(int a, int b)
{
    static const int order[] = {QM_EXIT_REFUSED, QM_EXIT_OPEN, QM_EXIT_FAILED, QM_EXIT_STOPPED};

    for (size_t i = 0; i < sizeof order / sizeof *order; i++)
        if (a == order[i] || b == order[i])
            return order[i];
    return QM_EXIT_DONE;
}

static void
print_done(const struct qmeld_commit_report *report, const char *journal)
{
    QM_CLI_FREE char *shown = qm_cli_quote(journal);

    if (report->rebased)
        printf("%s: finished: the image has its new backing file\n", shown);
    for (size_t i = 0; i < report->n_layers; i++)
        if (report->layers[i].fate == QMELD_FATE_MERGED_INTO) {
            QM_CLI_FREE char *base = qm_cli_quote(report->layers[i].path);

            printf("%s: finished: %s holds the merged data now\n", shown, base);
            return;
        }
}

/* Finishes one; adds what became of it to array, or prints it. */
static int
recover_one(struct qm_cli_merging *merging, const struct found *found, struct json_object *array)
{
    struct qmeld_commit_report report = {0};
    struct qmeld_error err = found->problem;
    int code;

    if (found->usable)
        code = qm_cli_merging_run(merging, found->journal, qmeld_resume, &report, &err);
    else
        code = qm_cli_fail(&err);
    if (array) {
        struct json_object *object =
            qm_cli_outcome_json(&report, code == QM_EXIT_DONE ? NULL : &err);

        qm_cli_json_add(object, "journal", qm_cli_json_string(found->journal));
        json_object_array_add(array, object);
    } else if (code == QM_EXIT_DONE && !merging->quiet) {
        print_done(&report, found->journal);
    }
    qmeld_commit_report_free(&report);
    return code;
}

/* Before the merges by themselves: what is a part of a machine's change is ended as a whole.  Where libvirt
 * cannot be asked it stays as it is, for who knows what the machine has done meanwhile: it may have been
 * moved to the base, and the layers above be old. */
static int
recover_changes(struct qm_cli_merging *merging, const char *dir, struct json_object *array,
                size_t *out_n)
{
    struct qm_cli_changes changes;
    struct qmeld_error err;
    int code = QM_EXIT_DONE;

    if (qm_cli_changes_find(dir, NULL, &changes, &err) < 0)
        code = qm_cli_fail(&err);
    *out_n = changes.n;
    for (size_t i = 0; i < changes.n && !qm_cli_merging_stopped(merging); i++)
        code = worse(code, qm_cli_change_finish(merging, &changes.list[i], array));
    qm_cli_changes_release(&changes);
    return code;
}

/* Images that are not complete; what one of them lost was said then, and is no reason to look at it again. */
static int
recover_partials(struct qm_cli_merging *merging, const char *dir, struct json_object *array,
                 size_t *out_n)
{
    struct qm_cli_partials partials;
    struct qmeld_error err;
    int code = QM_EXIT_DONE;

    if (qm_cli_partials_find(dir, &partials, &err) < 0)
        code = qm_cli_fail(&err);
    *out_n = partials.n;
    for (size_t i = 0; i < partials.n && !qm_cli_merging_stopped(merging); i++)
        code = worse(code, qm_cli_partial_finish(merging, partials.outs[i], array));
    qm_cli_partials_release(&partials);
    return code;
}

static int
recover(struct qm_cli_merging *merging, const char *dir)
{
    struct json_object *array = merging->output == QM_OUTPUT_JSON ? json_object_new_array() : NULL;
    struct search search = {0};
    size_t n_changes, n_partials;
    int code, looked;
    size_t n_unfinished = 0;

    if (!is_dir(dir)) {
        qm_cli_usage("recover", "%s is no directory: qmeld resume finishes the merge of one chain",
                     dir);
        return QM_EXIT_REFUSED;
    }
    code = recover_changes(merging, dir, array, &n_changes);
    qm_cli_sandbox_enter(QM_SANDBOX_WRITES); /* libvirt has been asked all */
    code = worse(code, recover_partials(merging, dir, array, &n_partials));
    looked = look(merging, dir, &search);
    if (looked != 0)
        return looked;
    for (size_t i = 0; i < search.n; i++) {
        if (qm_cli_merging_stopped(merging)) { /* before it is begun; what is left is for later */
            fprintf(stderr, "qmeld: stopped: %zu merges are left unfinished\n", search.n - i);
            code = worse(code, QM_EXIT_STOPPED);
            break;
        }
        if (search.list[i].held) /* nothing is unfinished there */
            continue;
        n_unfinished++;
        if (!qm_cli_change_has(search.list[i].journal))
            code = worse(code, recover_one(merging, &search.list[i], array));
    }
    if (array)
        qm_cli_json_print(array);
    else if (n_unfinished + n_changes + n_partials == 0 && !merging->quiet)
        puts("nothing is unfinished");
    release(&search);
    return code;
}

/* ---- the commands ---- */

/* The path is argv[optind] then; -1 and the exit code after the help or a complaint. */
static int
parse(int argc, char **argv, const struct option *options, const char *help,
      struct qm_cli_merging *merging, int *out_code)
{
    int c;

    *out_code = QM_EXIT_REFUSED;
    while ((c = qm_cli_getopt(argc, argv, ":h" QM_CLI_MERGING_LETTERS, options)) != -1) {
        if (c == 'h') {
            fputs(help, stdout);
            *out_code = QM_EXIT_DONE;
            return -1;
        }
        if (!qm_cli_merging_take(merging, c))
            return -1;
    }
    if (argc - optind == 1)
        return 0;
    qm_cli_expected(argv[0], "one path is expected", argc - optind);
    return -1;
}

static int
run_with_path(int argc, char **argv, const char *help, qm_cli_merge_call *call)
{
    static const struct option options[] = {
        {"journal-dir", required_argument, NULL, QM_OPT_JOURNAL_DIR},
        QM_CLI_MERGING_OPTIONS,
        QM_CLI_SECRET_OPTIONS,
        QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,
        {NULL, 0, NULL, 0},
    };
    struct qm_cli_merging merging = {.command = argv[0]};
    int code;

    if (parse(argc, argv, options, help, &merging, &code) < 0)
        return code;
    qm_cli_merging_begin(&merging);
    return call_for(&merging, argv[optind], call);
}

static int
run_resume(int argc, char **argv)
{
    return run_with_path(argc, argv, resume_help, qmeld_resume);
}

static int
run_revert(int argc, char **argv)
{
    return run_with_path(argc, argv, revert_help, qmeld_revert);
}

static int
run_finalize(int argc, char **argv)
{
    return run_with_path(argc, argv, finalize_help, qmeld_finalize);
}

static int
run_recover(int argc, char **argv)
{
    static const struct option options[] = {
        QM_CLI_MERGING_OPTIONS, QM_CLI_SECRET_OPTIONS, QM_CLI_SANDBOX_OPTION,
        QM_CLI_COMMON_OPTIONS,  {NULL, 0, NULL, 0},
    };
    struct qm_cli_merging merging = {.command = argv[0]};
    int code;

    if (parse(argc, argv, options, recover_help, &merging, &code) < 0)
        return code;
    qm_cli_merging_begin(&merging);
    return recover(&merging, argv[optind]);
}

const struct qm_cli_command qm_cli_resume = {"resume", resume_help, "path", run_resume, true};
const struct qm_cli_command qm_cli_revert = {"revert", revert_help, "path", run_revert, true};
const struct qm_cli_command qm_cli_finalize = {"finalize", finalize_help, "path", run_finalize,
                                               true};
const struct qm_cli_command qm_cli_recover = {"recover", recover_help, "directory", run_recover,
                                              true};
