/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "machines.h"

#include "loader.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* A question before a merge, not the merge: who is slower is told of. */
enum { PATIENCE_S = 10 };

static struct qm_live_images known;
static const char **scan; /* what was to be scanned, and those */

/* ---- is anybody there ---- */

static bool
is_socket(const char *folder, const char *name)
{
    char path[PATH_MAX];
    struct stat st;
    const int n = snprintf(path, sizeof path, "%s/libvirt/%s", folder, name);

    return n > 0 && (size_t)n < sizeof path && stat(path, &st) == 0 && S_ISSOCK(st.st_mode);
}

/* A look at a name costs nothing; the module, and libvirt's library with it, costs more than a small merge. */
static bool
may_answer(void)
{
    static const char *const names[] = {"libvirt-sock", "virtqemud-sock"};
    const char *uri = getenv("LIBVIRT_DEFAULT_URI"), *virsh = getenv("VIRSH_DEFAULT_CONNECT_URI");
    const char *const folders[] = {"/run", "/var/run", getenv("XDG_RUNTIME_DIR")};

    if ((uri && *uri) || (virsh && *virsh))
        return true;
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++)
        for (size_t k = 0; folders[i] && k < sizeof names / sizeof *names; k++)
            if (is_socket(folders[i], names[k]))
                return true;
    return false;
}

/* ---- asking ---- */

static void
tell(const struct qm_cli_merging *merging, const char *what)
{
    QM_CLI_FREE char *shown = merging->verbose && !merging->quiet ? qm_cli_quote(what) : NULL;

    if (shown)
        fprintf(stderr, "qmeld: note: libvirt was not asked for all other images: %s\n", shown);
}

void
qm_cli_machines_ask(struct qm_cli_merging *merging)
{
    struct qmeld_commit_options *o = &merging->options;
    const struct qm_live_module *module;
    struct qmeld_error err = {0};

    if (o->no_scan || !may_answer())
        return;
    module = qm_cli_live(&err);
    if (!module || module->images(NULL, PATIENCE_S, &known, &err) < 0) {
        tell(merging, err.what);
        return;
    }
    for (size_t i = 0; i < known.notes.n; i++)
        tell(merging, known.notes.at[i]);
    scan = calloc(o->n_scan + known.n + 1, sizeof *scan);
    if (!scan) {
        tell(merging, "out of memory");
        return;
    }
    for (size_t i = 0; i < o->n_scan; i++)
        scan[i] = merging->scan[i];
    for (size_t i = 0; i < known.n; i++)
        scan[o->n_scan + i] = known.at[i].path;
    merging->scan_all = scan;
    o->n_scan += known.n;
}

/* ---- who runs ---- */

static const char *
runs_with(const char *layer)
{
    struct stat a, b;

    if (stat(layer, &a) < 0)
        return NULL;
    for (size_t i = 0; i < known.n; i++)
        if (known.at[i].running && stat(known.at[i].path, &b) == 0 && a.st_dev == b.st_dev &&
            a.st_ino == b.st_ino)
            return known.at[i].domain;
    return NULL;
}

const char *
qm_cli_machines_running(const struct qm_cli_merging *merging, const char *path)
{
    const struct qmeld_open_options options = {.format = merging->options.format,
                                               .backing_format = merging->options.backing_format,
                                               .allow_paths = merging->options.allow_paths};
    struct qmeld_chain *chain = NULL;
    struct qmeld_error unheard;
    const char *domain = NULL;

    if (known.n == 0 || qmeld_chain_open(path, &options, &chain, &unheard) < 0)
        return NULL;
    for (size_t i = qmeld_chain_depth(chain); !domain && i-- > 0;) {
        struct qmeld_layer_info layer;

        if (qmeld_chain_layer(chain, i, &layer, &unheard) == 0)
            domain = runs_with(layer.path);
    }
    qmeld_chain_close(chain);
    return domain;
}

bool
qm_cli_machines_let(const struct qm_cli_merging *merging, const char *path)
{
    const char *running = qm_cli_machines_running(merging, path);
    QM_CLI_FREE char *domain = running ? qm_cli_quote(running) : NULL;
    QM_CLI_FREE char *file = running ? qm_cli_quote(path) : NULL;

    if (!running)
        return true;
    fprintf(stderr,
            "qmeld: %s: the running machine \"%s\" has a layer of it, and nobody but its QEMU may "
            "write there: merge with `qmeld blockcommit`, or stop the machine\n",
            file, domain);
    return false;
}
