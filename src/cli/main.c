/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * main.c - finds the command, makes the process fit to run it, tells the exit code.
 *
 * The two precautions before a command runs are about other people's data: descriptors 0 to 2
 * must be taken, or an image could be opened as number 2 and get our error messages written
 * into it; and a chain of a thousand layers needs more descriptors than a shell grants.
 */
#include "qemu_words.h"
#include "tell.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

static const struct qm_cli_command *const commands[] = {
    &qm_cli_commit,  &qm_cli_blockcommit, &qm_cli_status,  &qm_cli_resume,
    &qm_cli_recover, &qm_cli_info,        &qm_cli_map,     &qm_cli_check,
    &qm_cli_create,  &qm_cli_plan,        &qm_cli_measure, &qm_cli_snapshot_delete,
    &qm_cli_revert,  &qm_cli_finalize,    &qm_cli_compare, &qm_cli_flatten,
    &qm_cli_verify,  &qm_cli_rebase,      &qm_cli_fold,    &qm_cli_convert,
};

enum { N_COMMANDS = sizeof commands / sizeof *commands };

static const char overview[] =
    "qmeld - fold chains of qcow2 and raw disk images\n"
    "\n"
    "    qmeld COMMAND [OPTIONS] ...\n"
    "\n"
    "Look (takes no lock, writes nothing, may run beside a virtual machine):\n"
    "    info IMAGE|DOMAIN     the chain, layer by layer, and who uses it\n"
    "    map IMAGE             which layer answers which bytes; --format=strip draws it\n"
    "    check IMAGE           is the metadata of one image sound?\n"
    "    compare A B           do two images read the same?\n"
    "    plan IMAGE            what commit with the same options would do, and cost, to the byte\n"
    "    measure IMAGE         how large a file a new image, or a merge, will make\n"
    "    status [PATH]         what is unfinished, and what its files are worth\n"
    "    verify MANIFEST       is all still as a manifest of flatten says?\n"
    "\n"
    "Merge:\n"
    "    commit IMAGE          merge layers down; IMAGE reads the same at every instant\n"
    "    fold --keep=N IMAGE   merge the oldest increments of a backup chain into its full\n"
    "    blockcommit DOMAIN DISK\n"
    "                          merge layers of a virtual machine's disk, which may run meanwhile\n"
    "    snapshot-delete DOMAIN SNAPSHOT\n"
    "                          merge an external snapshot away\n"
    "\n"
    "What was begun:\n"
    "    resume PATH           finish an interrupted merge or flattening\n"
    "    recover DIR           finish all of a directory\n"
    "    revert PATH           take back a merge that was made with --atomic or --undo\n"
    "    finalize PATH         give up that possibility, and the space it takes\n"
    "\n"
    "Make and change images:\n"
    "    create FILE [SIZE]    make a new image\n"
    "    flatten IMAGE OUT     write what IMAGE reads as to a new image; IMAGE stays as it is\n"
    "    convert IMAGE OUT     the same, as qemu-img convert spells it\n"
    "    rebase IMAGE          give it another backing file, or none; IMAGE reads the same\n"
    "    check --repair=leaks|all IMAGE\n"
    "\n"
    "    qmeld help COMMAND    explains one with examples (so does qmeld COMMAND --help)\n"
    "    man qmeld-COMMAND     all of it\n"
    "    qmeld --version\n"
    "\n"
    "Exit codes: 0 done; 1 failed, images as they were; 2 refused or wrong usage, nothing\n"
    "touched; 3 stopped half-way, the same command again finishes; 75 stopped by a signal or at\n"
    "the deadline, the same command again finishes.  status: 3 if something is unfinished.\n"
    "check has those of qemu-img check: 1 not checked, 2 corrupt, 3 leaks, 63 not checkable;\n"
    "compare those of qemu-img compare: 1 different, 2 to 4 not compared.  man qmeld-exit.\n";

static const struct qm_cli_command *
find_command(const char *name)
{
    for (size_t i = 0; i < N_COMMANDS; i++)
        if (strcmp(commands[i]->name, name) == 0)
            return commands[i];
    return NULL;
}

static int
unknown_command(const char *name)
{
    /* what other tools, and people, call it */
    static const char *const others[][2] = {
        {"merge", "commit"},      {"blockpull", "rebase --standalone"},
        {"stream", "commit"},     {"diff", "compare"},
        {"undo", "revert"},       {"repair", "check --repair"},
        {"version", "--version"}, {"snapshot", "snapshot-delete"},
        {"list", "status"},       {"dd", "convert"},
    };
    QM_CLI_FREE char *shown = qm_cli_quote(name);
    const char *meant = NULL;
    unsigned best = UINT_MAX;

    for (size_t i = 0; i < N_COMMANDS; i++)
        qm_cli_nearer(name, commands[i]->name, &meant, &best);
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (strcmp(name, others[i][0]) == 0)
            meant = others[i][1];
    if (meant)
        fprintf(stderr,
                "qmeld: there is no command \"%s\": is `qmeld %s` meant?  qmeld help lists all\n",
                shown, meant);
    else
        fprintf(stderr, "qmeld: there is no command \"%s\": qmeld help lists them\n", shown);
    return QM_EXIT_REFUSED;
}

static int
print_help(int argc, char **argv)
{
    const struct qm_cli_command *command;
    const bool options = argc > 1 && strcmp(argv[1], "--options") == 0;

    if (argc < 2) {
        fputs(overview, stdout);
        return QM_EXIT_DONE;
    }
    if (options && argc < 3) {
        for (size_t i = 0; i < N_COMMANDS; i++)
            qm_cli_tell_command(commands[i]);
        return QM_EXIT_DONE;
    }
    command = find_command(argv[options ? 2 : 1]);
    if (!command)
        return unknown_command(argv[options ? 2 : 1]);
    if (argc > (options ? 3 : 2)) {
        fprintf(stderr,
                "qmeld: help: one command is expected, %d were named: qmeld help lists all\n",
                argc - (options ? 2 : 1));
        return QM_EXIT_REFUSED;
    }
    if (options)
        qm_cli_tell_options(command);
    else
        fputs(command->help, stdout);
    return QM_EXIT_DONE;
}

/* *changes: a command ran that is run for what it does. */
static int
run(int argc, char **argv, bool *changes)
{
    const struct qm_cli_command *command;

    qm_cli_set_name(argv[0]);
    *changes = false;
    if (argc < 2) {
        fputs(overview, stderr);
        return QM_EXIT_REFUSED;
    }
    if (strcmp(argv[1], "help") == 0 || strcmp(argv[1], "--help") == 0 ||
        strcmp(argv[1], "-h") == 0)
        return print_help(argc - 1, argv + 1);
    if (strcmp(argv[1], "--version") == 0 || strcmp(argv[1], "-V") == 0) {
        printf("qmeld %s\n", qmeld_version());
        return QM_EXIT_DONE;
    }
    command = find_command(argv[1]);
    if (!command)
        return unknown_command(argv[1]);
    *changes = command->changes;
    return qm_cli_code_of_qemu(command->name, command->run(argc - 1, argv + 1));
}

/* A descriptor of 0 to 2 that is closed would be an image's.  Where there is no /dev, a folder is as dead an end. */
static bool
take_standard_descriptors(void)
{
    for (int wanted = STDIN_FILENO; wanted <= STDERR_FILENO; wanted++) {
        int fd;

        if (fcntl(wanted, F_GETFD) >= 0)
            continue;
        fd = open("/dev/null", O_RDWR); /* gets the lowest number that is free */
        if (fd < 0)
            fd = open("/", O_RDONLY | O_DIRECTORY);
        if (fd != wanted)
            return false;
    }
    return true;
}

static void
raise_descriptor_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur < limit.rlim_max) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit); /* a short chain works without, too */
    }
}

int
main(int argc, char **argv)
{
    bool changes;
    int code;

    if (!take_standard_descriptors())
        return QM_EXIT_FAILED;
    raise_descriptor_limit();
    (void)signal(SIGXFSZ, SIG_IGN); /* a file size limit is an error to report, not a death */
    code = run(argc, argv, &changes);
    if (fflush(stdout) == 0 && !ferror(stdout))
        return code;
    /* Nobody may take a cut-off answer for the whole; but a merge whose report is lost has not
     * failed, and 1 would say that the images are as they were. */
    fputs("qmeld: standard output could not be written: what was printed is cut off\n", stderr);
    return code == QM_EXIT_DONE && !changes ? QM_EXIT_FAILED : code;
}
