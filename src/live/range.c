/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "range.h"

#include "cleanup.h"
#include "module.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>

static bool
same_text(const char *a, const char *b)
{
    return a == b || (a && b && strcmp(a, b) == 0);
}

bool
qm_range_same(const struct qm_domxml_source *a, const struct qm_domxml_source *b, bool local)
{
    struct qm_file_id one, other;

    if (a->path && b->path) {
        if (strcmp(a->path, b->path) == 0)
            return true;
        if (!local)
            return false;
        one = qm_file_id(a->path);
        other = qm_file_id(b->path);
        return qm_file_id_same(&one, &other);
    }
    /* of one the path may have been asked for, and of the other not */
    if (a->volume && b->volume)
        return same_text(a->pool, b->pool) && same_text(a->volume, b->volume);
    return !a->path && !b->path && a->type == b->type && same_text(a->pool, b->pool) &&
           same_text(a->volume, b->volume) && same_text(a->protocol, b->protocol) &&
           same_text(a->name, b->name) && same_text(a->host, b->host);
}

const struct qm_domxml_disk *
qm_range_disk(const struct qm_domxml *domain, const char *name, bool local, struct qmeld_error *err)
{
    const struct qm_domxml_disk *found = qm_domxml_find(domain, name);
    QM_FREE char *full = NULL;
    struct qm_file_id wanted, its;

    if (found)
        return found;
    if (local && strchr(name, '/')) {
        full = realpath(name, NULL);
        wanted = qm_file_id(full);
        QM_VEC_EACH (disk, &domain->disks) {
            its = qm_file_id(disk->layers.n ? disk->layers.at[0].path : NULL);
            if (qm_file_id_same(&wanted, &its))
                return disk;
        }
    }
    (void)qm_fail(
        err, QMELD_USAGE, qm_nowhere(),
        "domain \"%s\" has no disk \"%s\": name one by its target, such as vda, or by the "
        "path of its active layer; qmeld info %s shows them",
        domain->name, name, domain->name);
    return NULL;
}

/* "[3]" or "vda[3]": true, with the number, which is 0 if it is none. */
static bool
is_bracketed(const char *name, const char *target, size_t *number, bool *by_index)
{
    const char *open = strchr(name, '[');
    char *end;
    unsigned long value;

    if (!open || (open != name && (strlen(target) != (size_t)(open - name) ||
                                   strncmp(name, target, (size_t)(open - name)) != 0)))
        return false;
    *by_index = open != name;
    *number = 0;
    if (!isdigit((unsigned char)open[1]))
        return true;
    value = strtoul(open + 1, &end, 10);
    if (strcmp(end, "]") == 0 && value <= UINT32_MAX)
        *number = value;
    return true;
}

/* What the chain has, for a complaint: "vda[4] /x/top.qcow2, vda[1] /x/base.raw". */
static void
describe(const struct qm_domxml_disk *disk, char *out, size_t room)
{
    size_t used = 0;

    out[0] = '\0';
    QM_VEC_EACH (layer, &disk->layers) {
        QM_FREE char *name = qm_domxml_source_text(layer);
        const int n = snprintf(out + used, room - used, "%s%s[%u] %s", used ? ", " : "",
                               disk->target, layer->index, name ? name : "");

        if (n < 0 || (size_t)n >= room - used)
            return; /* cut off: a hint, no more */
        used += (size_t)n;
    }
}

static int
unknown_layer(const struct qm_domxml_disk *disk, const char *what, const char *name,
              struct qmeld_error *err)
{
    char chain[500];

    describe(disk, chain, sizeof chain);
    return qm_fail(
        err, QMELD_USAGE, qm_nowhere(),
        "%s \"%s\" is no layer of disk %s: name one by path or index; the chain is, active "
        "layer first: %s",
        what, name, disk->target, chain);
}

static int
find_layer(const struct qm_domxml_disk *disk, const char *what, const char *name, bool local,
           size_t *out, struct qmeld_error *err)
{
    const size_t depth = disk->layers.n;
    struct qm_file_id wanted;
    QM_FREE char *full = NULL;
    size_t number;
    bool by_index;

    if (is_bracketed(name, disk->target, &number, &by_index)) {
        for (size_t i = 0; i < depth && number > 0; i++)
            if ((by_index ? disk->layers.at[i].index : depth - i) == number) {
                *out = i;
                return 0;
            }
        return unknown_layer(disk, what, name, err);
    }
    for (size_t i = 0; i < depth; i++)
        if (same_text(disk->layers.at[i].path, name)) {
            *out = i;
            return 0;
        }
    full = local ? realpath(name, NULL) : NULL;
    wanted = qm_file_id(full);
    for (size_t i = 0; i < depth; i++) {
        const struct qm_file_id its = qm_file_id(wanted.known ? disk->layers.at[i].path : NULL);

        if (qm_file_id_same(&wanted, &its)) {
            *out = i;
            return 0;
        }
    }
    return unknown_layer(disk, what, name, err);
}

/* virsh demands --active to merge the active layer, for the job then has a second phase. */
static int
check_active(const struct qm_domxml_disk *disk, const struct qm_live_commit *request,
             const struct qm_range *range, struct qmeld_error *err)
{
    if (range->top == 0 && !request->active)
        return qm_fail(
            err, QMELD_USAGE, qm_nowhere(),
            "the top of the range is the active layer of %s: add --pivot, so that the machine "
            "then goes on on the base, --keep-overlay, or --active",
            disk->target);
    if (range->top != 0 && request->active && !request->if_active)
        return qm_fail(
            err, QMELD_USAGE, qm_nowhere(),
            "--top=%s is not the active layer of %s: --active, --pivot and --keep-overlay are "
            "for that one; leave them out",
            request->top, disk->target);
    return 0;
}

int
qm_range_find(const struct qm_domxml_disk *disk, const struct qm_live_commit *request, bool local,
              struct qm_range *out, struct qmeld_error *err)
{
    const size_t depth = disk->layers.n;

    memset(out, 0, sizeof *out);
    if (depth == 0)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "disk %s is empty: there is nothing to merge", disk->target);
    if (request->top && find_layer(disk, "--top", request->top, local, &out->top, err) < 0)
        return -1;
    if (request->base && find_layer(disk, "--base", request->base, local, &out->base, err) < 0)
        return -1;
    if (depth == 1) {
        out->empty = true;
        return 0;
    }
    if (out->top == depth - 1)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "--top=%s is the bottom of the chain of %s: there is nothing under it",
                       request->top, disk->target);
    if (!request->base)
        out->base = request->shallow ? out->top + 1 : depth - 1;
    if (out->base <= out->top)
        return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                       "--base=%s does not lie under the top of the range: swap them?",
                       request->base);
    if (request->shallow && out->base != out->top + 1)
        return qm_fail(
            err, QMELD_USAGE, qm_nowhere(),
            "--shallow merges into the layer directly under the top, and --base=%s is another: "
            "leave one of them out",
            request->base);
    return check_active(disk, request, out, err);
}
