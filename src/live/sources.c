/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* sources.c - from what XML calls a layer to the files of a change. */
#include "stopped.h"

#include "defs.h"

#include <string.h>

int
qm_stopped_path(struct qm_stopped *s, const struct qm_domxml_source *source, char **out,
                struct qmeld_error *err)
{
    struct qm_fault fault;

    *out = NULL;
    if (source->path) {
        *out = strdup(source->path);
        return *out ? 0 : qm_fail_nomem(err, "a path");
    }
    if (source->type != QM_SOURCE_VOLUME || !source->pool || !source->volume)
        return 0;
    if (qm_defs_volume_path(s->session, source->pool, source->volume, out, &fault) == 0)
        return 0;
    return qm_session_fail(err, &fault,
                           "ask for the path of a storage volume (is its pool active?)");
}

static enum qm_layer_role
role_of(const struct qm_domxml_source *source, void *opaque)
{
    struct qm_stopped_role *role = opaque;
    QM_FREE char *path = NULL;
    size_t layer;

    if (role->failed || qm_stopped_path(role->s, source, &path, &role->err) < 0) {
        role->failed = true;
        return QM_LAYER_OTHER;
    }
    layer = path ? qm_change_find(role->disk, path) : role->disk->layers.n;
    if (layer == role->disk->base)
        return QM_LAYER_BASE;
    return layer > role->disk->base && layer <= role->disk->top ? QM_LAYER_MERGED : QM_LAYER_OTHER;
}

struct qm_domxml_edit
qm_stopped_edit(struct qm_stopped_role *role)
{
    const struct qm_change_layer *base = qm_change_base(role->disk);

    return (struct qm_domxml_edit){.target = role->disk->target,
                                   .role = role_of,
                                   .opaque = role,
                                   .base = base->path,
                                   .base_format = base->format,
                                   .base_blockdev = base->blockdev};
}

int
qm_stopped_edit_disk(struct qm_stopped *s, const char *kept, const struct qm_change_disk *disk,
                     char **out, struct qmeld_error *err)
{
    struct qm_stopped_role role = {.s = s, .disk = disk};
    const struct qm_domxml_edit edit = qm_stopped_edit(&role);

    if (qm_domxml_edit_disk(kept, &edit, out, err) < 0)
        return -1;
    if (!role.failed)
        return 0;
    free(QM_TAKE(*out));
    *err = role.err;
    return -1;
}

int
qm_stopped_texts(struct qm_stopped *s, struct qm_texts *out, struct qmeld_error *err)
{
    struct qm_fault fault;

    if (qm_texts_get(s->session, s->domain->ptr, out, &fault) < 0)
        return qm_session_fail(err, &fault, "read the machine's definitions");
    if (out->persistent)
        return 0;
    qm_texts_free(out);
    return qm_fail(
        err, QMELD_USAGE, qm_nowhere(),
        "domain \"%s\" is transient: no definition of it is kept that could be put right",
        s->domain->name);
}
