/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "backing.h"

#include "calls.h"
#include "cleanup.h"

#include <json-c/json.h>
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

/* "../images/base.raw": from child's folder to base's, both as real paths.  NULL: no memory. */
static char *
relative_name(const char *child, const char *base)
{
    size_t same = 0, room, ups = 0;
    char *name, *out;

    for (size_t i = 0; child[i] && child[i] == base[i]; i++)
        if (child[i] == '/')
            same = i + 1;
    for (const char *s = child + same; *s; s++)
        ups += *s == '/';
    room = ups * 3 + strlen(base + same) + 1;
    name = out = malloc(room);
    for (size_t i = 0; name && i < ups; i++)
        out = mempcpy(out, "../", 3);
    if (name)
        memcpy(out, base + same, strlen(base + same) + 1);
    return name;
}

/* ---- QEMU's monitor ---- */

/* The value of "return" of an answer, NULL if there is none.  *whole is the caller's to put. */
static struct json_object *
ask(const struct qm_run *run, struct json_object *command, struct json_object **whole)
{
    QM_FREE char *answer = NULL;
    struct json_object *value = NULL;
    struct qm_fault unheard;

    *whole = NULL;
    if (qm_calls_monitor(qm_run_session(run), run->domain->ptr, json_object_to_json_string(command),
                         &answer, &unheard) == 0)
        *whole = json_tokener_parse(answer);
    json_object_put(command);
    return json_object_object_get_ex(*whole, "return", &value) ? value : NULL;
}

static struct json_object *
command(const char *name, struct json_object *arguments)
{
    struct json_object *object = json_object_new_object();

    json_object_object_add(object, "execute", json_object_new_string(name));
    json_object_object_add(object, "arguments", arguments);
    return object;
}

static const char *
member(struct json_object *object, const char *key)
{
    struct json_object *value = NULL;

    return json_object_object_get_ex(object, key, &value) ? json_object_get_string(value) : "";
}

/* Name of the qcow2 node whose file is path; NULL: there is none.  malloc'd. */
static char *
node_of(struct json_object *nodes, const char *path)
{
    const size_t n =
        json_object_is_type(nodes, json_type_array) ? json_object_array_length(nodes) : 0;

    for (size_t i = 0; i < n; i++) {
        struct json_object *node = json_object_array_get_idx(nodes, i);

        if (strcmp(member(node, "drv"), "qcow2") == 0 && strcmp(member(node, "file"), path) == 0)
            return strdup(member(node, "node-name"));
    }
    return NULL;
}

static bool
tell_qemu(const struct qm_run *run, const char *child, const char *name)
{
    struct json_object *arguments = json_object_new_object(), *whole = NULL, *nodes;
    QM_FREE char *root = NULL;
    QM_FREE char *image = NULL;
    bool told;

    json_object_object_add(arguments, "flat", json_object_new_boolean(true));
    nodes = ask(run, command("query-named-block-nodes", arguments), &whole);
    root = node_of(nodes, run->disk->layers.at[0].path);
    image = node_of(nodes, child);
    json_object_put(whole);
    if (!root || !image)
        return false;
    arguments = json_object_new_object();
    json_object_object_add(arguments, "device", json_object_new_string(root));
    json_object_object_add(arguments, "image-node-name", json_object_new_string(image));
    json_object_object_add(arguments, "backing-file", json_object_new_string(name));
    told = ask(run, command("change-backing-file", arguments), &whole) != NULL;
    json_object_put(whole);
    return told;
}

static bool
mend(const struct qm_run *run, const char *child)
{
    QM_FREE char *from = realpath(child, NULL);
    QM_FREE char *to = realpath(qm_run_base(run)->path, NULL);
    QM_FREE char *name = from && to ? relative_name(from, to) : NULL;
    QM_FREE char *now = NULL;

    return name && tell_qemu(run, child, name) && qm_run_backing_name(child, &now) &&
           leads_to_base(run, child, now);
}

int
qm_backing_check(struct qm_run *run, struct qmeld_error *err)
{
    const struct qm_domxml_source *base = qm_run_base(run);
    QM_FREE char *name = NULL;
    const char *child;

    if (run->range.top == 0 || !run->local || !base->path || !run->ids[run->range.base].known)
        return 0;
    child = run->disk->layers.at[run->range.top - 1].path;
    if (!child || !qm_run_backing_name(child, &name) || leads_to_base(run, child, name))
        return 0; /* or it may not be read by us: QEMU wrote it, and the machine's own start will tell */
    if (mend(run, child)) {
        qm_note(&run->report->notes,
                "libvirt left a wrong backing name in %s (%s); QEMU was told the right one", child,
                name ? name : "none");
        return 0;
    }
    (void)qm_fail(
        err, QMELD_IO, qm_in(child),
        "the commit is done, but libvirt left a wrong backing name (%s), which must be mended "
        "before "
        "the machine is started again: when it is shut off, qemu-img rebase -u -b %s -F %s does it",
        name ? name : "none", base->path, base->format ? base->format : "FORMAT");
    qm_err_disk(err, QMELD_DISK_NEW);
    return -1;
}
