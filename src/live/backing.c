/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backing.h"

#include "cleanup.h"

#include <stdio.h>
#include <string.h>

/* A name as it stands in child's header leads to the base. */
static bool
leads_to_base(const struct qm_run *run, const char *child, const char *name)
{
    QM_FREE char *full = NULL;
    const char *slash = strrchr(child, '/');
    struct qm_file_id its;

    if (!name)
        return false;
    if (name[0] == '/')
        full = strdup(name);
    else if (asprintf(&full, "%.*s/%s", (int)(slash ? slash - child : 0), child, name) < 0)
        full = NULL;
    its = qm_file_id(full);
    return qm_file_id_same(&its, &run->ids[run->range.base]);
}

bool
qm_backing_names_are_stale(const struct qm_run *run)
{
    bool removed = false, elsewhere = false;

    for (size_t i = run->range.top - 1; i < run->range.base; i++) {
        const struct qm_domxml_source *above = &run->disk->layers.at[i], *below = above + 1;
        QM_FREE char *name = NULL;

        removed |= above->index + 1 != below->index && below->index + 1 != above->index;
        elsewhere |= !qm_run_backing_name(above->path, &name, NULL) || !name || strchr(name, '/');
    }
    return removed && elsewhere;
}

int
qm_backing_check(struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_domxml_source *base = qm_run_base(run);
    QM_FREE char *name = NULL;
    QM_FREE char *format = NULL;
    const char *child;

    if (run->range.top == 0 || !run->local || !base->path || !run->ids[run->range.base].known)
        return 0;
    child = run->disk->layers.at[run->range.top - 1].path;
    if (!child || !qm_run_backing_name(child, &name, &format))
        return 0; /* it may not be read by us: QEMU wrote it, and the machine's own start will tell */
    if (leads_to_base(run, child, name) &&
        (!base->format || !format || strcmp(base->format, format) == 0))
        return 0;
    (void)qm_fail(err, QMELD_IO, qm_in(child),
                  "the commit is done, but the backing name that libvirt left (%s, %s) is not that "
                  "of the base; "
                  "before the machine is started again, and when it is shut off, qemu-img rebase "
                  "-u -b %s -F %s "
                  "has to mend it",
                  name ? name : "none", format ? format : "no format", base->path,
                  base->format ? base->format : "FORMAT");
    qm_err_disk(err, QMELD_DISK_NEW);
    return -1;
}
