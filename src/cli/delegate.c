/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "delegate.h"

#include "loader.h"
#include "machines.h"

#include <string.h>

/* A machine may have a lock on a layer: QEMU, or somebody whom we cannot see.  What cannot be opened is for
 * the merge to complain of. */
static bool
may_be_a_machines(struct qm_cli_merging *merging, const char *path)
{
    const struct qmeld_open_options options = {.format = merging->options.format,
                                               .backing_format = merging->options.backing_format,
                                               .allow_paths = merging->options.allow_paths};
    struct qmeld_chain *chain = NULL;
    struct qmeld_error unheard;
    bool held = false;

    if (qmeld_chain_open(path, &options, &chain, &unheard) < 0)
        return false;
    merging->opened = true;
    for (size_t i = qmeld_chain_depth(chain); !held && i-- > 0;) {
        struct qmeld_layer_info layer;

        held = qmeld_chain_layer(chain, i, &layer, &unheard) == 0 && layer.holder &&
               (strstr(layer.holder, "qemu") || strstr(layer.holder, "unknown"));
    }
    qmeld_chain_close(chain);
    return held;
}

/* The first thing asked for that libvirt's block commit has not got; NULL: none. */
static const char *
what_qemu_cannot(const struct qmeld_commit_options *o)
{
    const struct {
        bool asked;
        const char *what;
    } all[] = {{o->overlays == QMELD_OVERLAYS_EMPTY, "--overlays=empty"},
               {o->overlays == QMELD_OVERLAYS_QUARANTINE, "--overlays=quarantine"},
               {o->atomic, "--atomic"},
               {o->undo, "--undo"},
               {o->reclaim, "--reclaim"},
               {o->verify, "--verify"},
               {o->protect, "--protect"},
               {o->skip_equal, "--skip-equal"},
               {o->detect_zeroes, "--detect-zeroes"},
               {o->direct, "--cache=none"},
               {o->bitmaps != QMELD_BITMAPS_MERGE, "--bitmaps=keep and --bitmaps=drop"},
               {o->direction == QMELD_DIRECTION_UP, "--direction=up"}};

    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i].asked)
            return all[i].what;
    return NULL;
}

/* What the options of commit become.  False after a complaint. */
static bool
translate(const struct qm_cli_merging *merging, const char *path, const struct qm_live_use *use,
          struct qm_live_commit *out)
{
    const struct qmeld_commit_options *options = &merging->options;
    const char *cannot;

    *out = (struct qm_live_commit){
        .uri = use->uri,
        .domain = use->uuid,
        .disk = use->target,
        .base = options->base,
        .top = options->top ? options->top : path,
        .shallow = options->shallow,
        .active = true,
        .if_active = true,
        .finish = QM_LIVE_FINISH_PIVOT,
        .remove = options->overlays == QMELD_OVERLAYS_DELETE,
        .keep_relative = options->keep_relative,
        .wait = true,
        .bandwidth = options->bandwidth,
        .offline = {.force = options->force,
                    .no_scan = options->no_scan,
                    .scan = options->scan,
                    .n_scan = options->n_scan},
    };
    cannot = what_qemu_cannot(options);
    if (!cannot)
        return true;
    fprintf(
        stderr,
        "qmeld: a running machine has the image, and QEMU, which then merges, does not know %s: "
        "leave that out, or stop the machine\n",
        cannot);
    return false;
}

static void
print_command(const char *path, const struct qm_live_use *use, const struct qm_live_commit *request)
{
    QM_CLI_FREE char *file = qm_cli_quote(path);
    QM_CLI_FREE char *domain = qm_cli_quote(use->domain);
    QM_CLI_FREE char *uri = qm_cli_shell_word(use->uri);
    QM_CLI_FREE char *word = qm_cli_shell_word(use->domain[0] == '-' ? use->uuid : use->domain);
    QM_CLI_FREE char *base = request->base ? qm_cli_shell_word(request->base) : NULL;
    QM_CLI_FREE char *top = qm_cli_shell_word(request->top);
    const bool active = use->depth == 0 && strcmp(request->top, path) == 0;

    fprintf(stderr,
            "qmeld: %s: the running machine \"%s\" has it: qmeld blockcommit -c %s %s "
            "%s%s%s%s%s%s%s merges "
            "through libvirt, and so does --live=auto\n",
            file, domain, uri, word, use->target, base ? " --base=" : "", base ? base : "",
            active ? "" : " --top=", active ? "" : top, request->shallow ? " --shallow" : "",
            active ? " --pivot" : " --wait");
}

/* The one place in a chain; NULL: none, or several. */
static const struct qm_live_use *
the_use(const struct qm_live_uses *uses)
{
    const struct qm_live_use *found = NULL;

    for (size_t i = 0; i < uses->n; i++)
        if (uses->at[i].running && !uses->at[i].by_job) {
            if (found)
                return NULL;
            found = &uses->at[i];
        }
    return found;
}

int
qm_cli_delegate(struct qm_cli_merging *merging, const char *path)
{
    const struct qm_live_module *module;
    struct qm_live_uses uses = {0};
    struct qm_live_commit request;
    const struct qm_live_use *use;
    struct qmeld_error err = {0};
    int code = -1;

    if (!may_be_a_machines(merging, path) && !qm_cli_machines_running(merging, path))
        return -1;
    module = qm_cli_live(&err);
    if (!module || module->uses(NULL, path, &uses, &err) < 0) {
        qm_cli_complain(
            &err); /* why the owner cannot be found; who holds the image is told by the merge */
        return -1;
    }
    use = the_use(&uses);
    if (use && !translate(merging, path, use, &request))
        code = QM_EXIT_REFUSED;
    else if (use && merging->never_live) {
        print_command(path, use, &request);
        code = QM_EXIT_REFUSED;
    } else if (use) {
        code = qm_cli_blockcommit_run(&request, merging);
    }
    for (size_t i = 0; !use && i < uses.notes.n; i++) {
        QM_CLI_FREE char *note = qm_cli_quote(uses.notes.at[i]);

        fprintf(stderr, "qmeld: note: %s\n", note);
    }
    module->uses_free(&uses);
    return code;
}
