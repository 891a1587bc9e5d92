/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domxml_edit.c - libvirt's XML as a merge leaves it.
 *
 * The real element is changed, none is composed: whatever a disk has that we have never heard of stays.
 * <backingStore> nodes go one by one, for a chain that is spelled out in the XML overrides the images'
 * headers at the next start, and snapshots of libvirt 9 cannot be deleted any more without it.
 */
#include "domxml_int.h"

#include <string.h>

/* ---- one disk ---- */

struct editing {
    struct qm_xml *x;
    const struct qm_domxml_edit *edit;
    bool changed;
};

static enum qm_layer_role
role_of(const struct editing *e, const xmlNode *node)
{
    enum qm_layer_role role = QM_LAYER_OTHER;
    struct qm_domxml_source s;

    qm_xml_read_source(e->x, node, &s);
    if (s.type != QM_SOURCE_NONE && !e->x->nomem)
        role = e->edit->role(&s, e->edit->opaque);
    qm_domxml_source_release(&s);
    return role;
}

/* What lies under a merged layer is a merged one or the base, as far as the XML tells. */
static int
check_order(const struct editing *e, const xmlNode *disk, bool *out_any, struct qmeld_error *err)
{
    bool merged = false;

    *out_any = false;
    for (const xmlNode *node = disk; node; node = qm_xml_child(node, "backingStore")) {
        const enum qm_layer_role role = role_of(e, node);

        if (merged && role == QM_LAYER_OTHER)
            return qm_fail(
                err, QMELD_STALE, qm_nowhere(),
                "libvirt's XML of disk %s has another layer, or none, where %s should be: "
                "put the XML right with virsh first",
                e->edit->target, e->edit->base);
        merged = role == QM_LAYER_MERGED;
        *out_any = *out_any || merged;
    }
    return e->x->nomem ? qm_fail_nomem(err, "the disk's chain") : 0;
}

/* A <backingStore> goes, and what it has under it takes its place. */
static void
splice(struct editing *e, xmlNodePtr node)
{
    xmlNodePtr under = qm_xml_child(node, "backingStore");

    if (under) {
        xmlUnlinkNode(under);
        xmlReplaceNode(node, under);
    } else {
        xmlUnlinkNode(node);
    }
    xmlFreeNode(node);
    e->changed = true;
}

static void
drop_attr(xmlNodePtr node, const char *name)
{
    xmlAttrPtr attr = node ? xmlHasProp(node, (const xmlChar *)name) : NULL;

    if (attr)
        xmlRemoveProp(attr);
}

static void
set_attr(struct editing *e, xmlNodePtr node, const char *name, const char *value)
{
    if (!node || !xmlSetProp(node, (const xmlChar *)name, (const xmlChar *)value))
        e->x->nomem = true;
}

/* A new element as disk's first child. */
static xmlNodePtr
add_first(struct editing *e, xmlNodePtr disk, const char *name)
{
    xmlNodePtr node = xmlNewDocNode(e->x->doc, NULL, (const xmlChar *)name, NULL);

    if (!node) {
        e->x->nomem = true;
        return NULL;
    }
    if (disk->children)
        return xmlAddPrevSibling(disk->children, node);
    return xmlAddChild(disk, node);
}

/* The base is the active layer now.  Options that only qcow2 knows go with the format, for libvirt
 * refuses them for others (formatdomain.rst, <driver>: metadata_cache, discard_no_unref). */
static void
set_top(struct editing *e, xmlNodePtr disk)
{
    static const char *const old[] = {"file", "dev", "pool", "volume", "mode", "index"};
    xmlNodePtr source = qm_xml_child(disk, "source"), driver = qm_xml_child(disk, "driver");
    xmlNodePtr cache = qm_xml_child(driver, "metadata_cache");

    set_attr(e, disk, "type", e->edit->base_blockdev ? "block" : "file");
    for (size_t i = 0; i < sizeof old / sizeof *old; i++)
        drop_attr(source, old[i]);
    set_attr(e, source, e->edit->base_blockdev ? "dev" : "file", e->edit->base);
    if (!driver)
        driver = add_first(e, disk, "driver");
    set_attr(e, driver, "type", e->edit->base_format);
    if (strcmp(e->edit->base_format, "qcow2") != 0) {
        drop_attr(driver, "discard_no_unref");
        if (cache) {
            xmlUnlinkNode(cache);
            xmlFreeNode(cache);
        }
    }
    e->changed = true;
}

static int
edit_disk(struct editing *e, xmlNodePtr disk, struct qmeld_error *err)
{
    xmlNodePtr parent = disk, node;
    bool any, top;

    if (check_order(e, disk, &any, err) < 0)
        return -1;
    if (!any)
        return 0;
    top = role_of(e, disk) == QM_LAYER_MERGED;
    while ((node = qm_xml_child(parent, "backingStore")))
        if (role_of(e, node) == QM_LAYER_MERGED)
            splice(e, node);
        else
            parent = node;
    if (top) {
        node = qm_xml_child(disk, "backingStore");
        if (node) /* the base: check_order saw to it */
            splice(e, node);
        set_top(e, disk);
    }
    return e->x->nomem ? qm_fail_nomem(err, "the disk's XML") : 0;
}

static int
edit_domain(struct editing *e, const xmlNode *domain, struct qmeld_error *err)
{
    xmlNodePtr disk = NULL;

    while ((disk = qm_xml_next_disk(domain, disk)))
        if (qm_xml_attr_is(qm_xml_child(disk, "target"), "dev", e->edit->target) &&
            edit_disk(e, disk, err) < 0)
            return -1;
    return 0;
}

/* ---- a snapshot's own list ---- */

/* Its file is no more: the snapshot has nothing to say of this disk any longer. */
static void
forget_disk(struct editing *e, xmlNodePtr disk)
{
    while (disk->children) {
        xmlNodePtr child = disk->children;

        xmlUnlinkNode(child);
        xmlFreeNode(child);
    }
    drop_attr(disk, "type");
    set_attr(e, disk, "snapshot", "no");
    e->changed = true;
}

static void
edit_list(struct editing *e)
{
    xmlNodePtr disk;

    if (!qm_xml_is(e->x->root, "domainsnapshot"))
        return;
    disk = qm_xml_child(qm_xml_child(e->x->root, "disks"), "disk");
    for (; disk; disk = disk->next)
        if (qm_xml_is(disk, "disk") && qm_xml_attr_is(disk, "name", e->edit->target) &&
            role_of(e, disk) == QM_LAYER_MERGED)
            forget_disk(e, disk);
}

/* ---- texts ---- */

static int
dump(struct qm_xml *x, xmlNodePtr node, char **out, struct qmeld_error *err)
{
    xmlBufferPtr buffer = xmlBufferCreate();

    if (buffer && xmlNodeDump(buffer, x->doc, node, 0, 0) >= 0)
        *out = strdup((const char *)xmlBufferContent(buffer));
    if (buffer)
        xmlBufferFree(buffer);
    return *out ? 0 : qm_fail_nomem(err, "the XML");
}

int
qm_domxml_edit_disk(const char *domain, const struct qm_domxml_edit *edit, char **out,
                    struct qmeld_error *err)
{
    struct qm_xml x;
    struct editing e = {.x = &x, .edit = edit};
    xmlNodePtr disk = NULL;
    int rc;

    *out = NULL;
    if (qm_xml_parse(domain, &x, err) < 0)
        return -1;
    while ((disk = qm_xml_next_disk(x.root, disk)))
        if (qm_xml_attr_is(qm_xml_child(disk, "target"), "dev", edit->target))
            break;
    if (!disk || !qm_xml_is(x.root, "domain"))
        rc = qm_fail(err, QMELD_USAGE, qm_nowhere(),
                     "the domain has no disk %s: `virsh domblklist` names them", edit->target);
    else
        rc = edit_disk(&e, disk, err);
    if (rc == 0 && e.changed)
        rc = dump(&x, disk, out, err);
    qm_xml_release(&x);
    return rc;
}

int
qm_domxml_edit_all(const char *text, const struct qm_domxml_edit *edits, size_t n, char **out,
                   struct qmeld_error *err)
{
    xmlNodePtr domains[2] = {NULL, NULL};
    struct qm_xml x;
    bool changed = false;
    size_t n_domains;
    int rc = 0;

    *out = NULL;
    if (qm_xml_parse(text, &x, err) < 0)
        return -1;
    n_domains = qm_xml_domains(&x, domains);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        struct editing e = {.x = &x, .edit = &edits[i]};

        for (size_t k = 0; rc == 0 && k < n_domains; k++)
            rc = edit_domain(&e, domains[k], err);
        edit_list(&e);
        changed = changed || e.changed;
    }
    if (rc == 0 && x.nomem)
        rc = qm_fail_nomem(err, "the XML");
    if (rc == 0 && changed)
        rc = dump(&x, x.root, out, err);
    qm_xml_release(&x);
    return rc;
}
