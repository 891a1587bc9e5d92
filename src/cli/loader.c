/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "loader.h"

#include <dlfcn.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void __attribute__((format(printf, 2, 3)))
fail(struct qmeld_error *err, const char *format, ...)
{
    va_list ap;

    memset(err, 0, sizeof *err);
    err->code = QMELD_UNSUPPORTED;
    va_start(ap, format);
    vsnprintf(err->what, sizeof err->what, format, ap);
    va_end(ap);
}

#ifndef QM_STATIC
static const struct qm_live_host host = {
    .abi = QM_LIVE_ABI,
    .chain_open = qmeld_chain_open,
    .chain_close = qmeld_chain_close,
    .chain_depth = qmeld_chain_depth,
    .chain_layer = qmeld_chain_layer,
    .dependants = qmeld_dependants,
    .commit = qmeld_commit,
    .commit_report_free = qmeld_commit_report_free,
    .status = qmeld_status,
    .resume = qmeld_resume,
    .note_path = qmeld_note_path,
    .note_write = qmeld_note_write,
    .note_read = qmeld_note_read,
    .note_step = qmeld_note_step,
    .note_remove = qmeld_note_remove,
    .notes = qmeld_notes,
};

/* NULL with *err filled: it is there, and is of no use. */
static const struct qm_live_module *
load(const char *path, struct qmeld_error *err)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    const struct qm_live_module *module;
    qm_live_module_fn *get;

    if (!library) {
        fail(err, "live mode cannot be loaded: %s: install qmeld-live and libvirt's client library",
             dlerror());
        return NULL;
    }
    *(void **)&get = dlsym(library, QM_LIVE_SYMBOL); /* as POSIX has it: a function in a void * */
    module = get ? get(&host) : NULL;
    if (module && module->abi == QM_LIVE_ABI)
        return module;
    fail(err, "%s belongs to another version of qmeld: install both from the same place", path);
    return NULL;
}

static bool
is_there(const char *path)
{
    return access(path, F_OK) == 0;
}

/* Beside the program, or where it is installed beside the program; false: nowhere. */
static bool
find(char *out, size_t room)
{
    static const char *const beside[] = {"", "../" QM_LIVE_FROM_BIN "/"};
    char program[PATH_MAX];
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    char *slash;

    program[length < 0 ? 0 : length] = '\0';
    slash = strrchr(program, '/');
    for (size_t i = 0; slash && i < sizeof beside / sizeof *beside; i++) {
        const int n =
            snprintf(out, room, "%.*s/%sqmeld-live.so", (int)(slash - program), program, beside[i]);

        if (n > 0 && (size_t)n < room && is_there(out))
            return true;
    }
    snprintf(out, room, "%s/qmeld-live.so", QM_LIVE_DIR);
    return is_there(out);
}

const struct qm_live_module *
qm_cli_live(struct qmeld_error *err)
{
    static const struct qm_live_module *module;
    const char *named = getenv("QMELD_LIVE_MODULE");
    char path[PATH_MAX];

    if (module)
        return module;
    if (named && *named)
        module = load(named, err);
    else if (find(path, sizeof path))
        module = load(path, err);
    else
        fail(err, "live mode is not installed: install qmeld-live, or build qmeld with %s",
             "libvirt-dev and libxml2-dev");
    return module;
}

#else /* no libvirt is part of it, and a static program can load none */

const struct qm_live_module *
qm_cli_live(struct qmeld_error *err)
{
    fail(err, "live mode is no part of this static qmeld: install %s",
         "the packages qmeld and qmeld-live");
    return NULL;
}

#endif
