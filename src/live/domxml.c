/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domxml.c - from libvirt's XML to disks and chains.
 *
 * The XML may come from a remote or hostile libvirt, and parts of it (descriptions, metadata) from
 * anybody: its length is bounded, its depth by libxml2 (256), a document type with its entities is
 * refused before libxml2 sees it, and nothing outside of the text is ever read.
 */
#include "domxml_int.h"

#include <libxml/parser.h>
#include <stdio.h>
#include <string.h>

/* ---- trees ---- */

/* Behind what may stand before the root or the document type. */
static const char *
skip_prolog(const char *p)
{
    for (;;) {
        const char *end;

        p += strspn(p, " \t\r\n");
        if (strncmp(p, "<?", 2) == 0)
            end = strstr(p, "?>");
        else if (strncmp(p, "<!--", 4) == 0)
            end = strstr(p, "-->");
        else
            return p;
        if (!end)
            return p;
        p = end + (end[0] == '?' ? 2 : 3);
    }
}

int
qm_xml_parse(const char *text, struct qm_xml *out, struct qmeld_error *err)
{
    const int options = XML_PARSE_NONET | XML_PARSE_NOERROR | XML_PARSE_NOWARNING
#if LIBXML_VERSION >= 21300
                        | XML_PARSE_NO_XXE
#endif
        ;
    const size_t len = strnlen(text, (size_t)QM_DOMXML_MAX_LEN + 1);

    *out = (struct qm_xml){.doc = NULL};
    if (len > QM_DOMXML_MAX_LEN)
        return qm_fail(err, QMELD_UNSUPPORTED, qm_nowhere(),
                       "XML of more than %u MiB: libvirt itself carries 4",
                       QM_DOMXML_MAX_LEN >> 20);
    if (strncmp(skip_prolog(text), "<!", 2) == 0)
        return qm_fail(err, QMELD_CORRUPT, qm_nowhere(),
                       "the XML has a document type, which libvirt's never has");
    out->doc = xmlReadMemory(text, (int)len, NULL, NULL, options);
    out->root = out->doc ? xmlDocGetRootElement(out->doc) : NULL;
    if (out->root)
        return 0;
    qm_xml_release(out);
    return qm_fail(err, QMELD_CORRUPT, qm_nowhere(),
                   "what libvirt sent is no XML that can be read");
}

void
qm_xml_release(struct qm_xml *x)
{
    xmlFreeDoc(x->doc);
    *x = (struct qm_xml){.doc = NULL};
}

bool
qm_xml_is(const xmlNode *node, const char *name)
{
    return node->type == XML_ELEMENT_NODE && strcmp((const char *)node->name, name) == 0;
}

static xmlNodePtr
next_of(xmlNodePtr node, const char *name)
{
    while (node && !qm_xml_is(node, name))
        node = node->next;
    return node;
}

xmlNodePtr
qm_xml_child(const xmlNode *node, const char *name)
{
    return node ? next_of(node->children, name) : NULL;
}

char *
qm_xml_attr(struct qm_xml *x, const xmlNode *node, const char *name)
{
    xmlChar *value;
    char *copy;

    if (!node || !xmlHasProp(node, (const xmlChar *)name))
        return NULL;
    value = xmlGetNoNsProp(node, (const xmlChar *)name);
    copy = value ? strdup((const char *)value) : NULL;
    xmlFree(value);
    if (!copy)
        x->nomem = true;
    return copy;
}

bool
qm_xml_attr_is(const xmlNode *node, const char *name, const char *value)
{
    xmlChar *have = node ? xmlGetNoNsProp(node, (const xmlChar *)name) : NULL;
    const bool is = have && strcmp((const char *)have, value) == 0;

    xmlFree(have);
    return is;
}

static char *
content(struct qm_xml *x, const xmlNode *node)
{
    xmlChar *value;
    char *copy;

    if (!node)
        return NULL;
    value = xmlNodeGetContent(node);
    copy = value ? strdup((const char *)value) : NULL;
    xmlFree(value);
    if (!copy)
        x->nomem = true;
    return copy;
}

size_t
qm_xml_domains(const struct qm_xml *x, xmlNodePtr out[2])
{
    size_t n = 0;

    if (qm_xml_is(x->root, "domain"))
        out[n++] = x->root;
    if (qm_xml_is(x->root, "domainsnapshot")) {
        out[n] = qm_xml_child(x->root, "domain");
        n += out[n] != NULL;
        out[n] = qm_xml_child(x->root, "inactiveDomain");
        n += out[n] != NULL;
    }
    return n;
}

xmlNodePtr
qm_xml_next_disk(const xmlNode *domain, const xmlNode *after)
{
    const xmlNode *devices = qm_xml_child(domain, "devices");

    if (after)
        return next_of(after->next, "disk");
    return qm_xml_child(devices, "disk");
}

/* ---- sources ---- */

void
qm_domxml_source_release(struct qm_domxml_source *s)
{
    free(s->path);
    free(s->pool);
    free(s->volume);
    free(s->protocol);
    free(s->name);
    free(s->host);
    free(s->format);
    free(s->data_file);
    *s = (struct qm_domxml_source){.type = QM_SOURCE_NONE};
}

static enum qm_source_type
type_of(const xmlNode *node)
{
    static const struct {
        const char *name;
        enum qm_source_type type;
    } types[] = {{"file", QM_SOURCE_FILE},
                 {"block", QM_SOURCE_BLOCK},
                 {"volume", QM_SOURCE_VOLUME},
                 {"network", QM_SOURCE_NETWORK}};

    for (size_t i = 0; i < sizeof types / sizeof *types; i++)
        if (qm_xml_attr_is(node, "type", types[i].name))
            return types[i].type;
    /* libvirt's default is file (snapshots made by its oldest versions leave it out) */
    return xmlHasProp(node, (const xmlChar *)"type") ? QM_SOURCE_OTHER : QM_SOURCE_FILE;
}

static char *
read_host(struct qm_xml *x, const xmlNode *source)
{
    const xmlNode *host = qm_xml_child(source, "host");
    QM_FREE char *name = qm_xml_attr(x, host, "name");
    QM_FREE char *port = qm_xml_attr(x, host, "port");
    char *both = NULL;

    if (!name || !port)
        return name ? QM_TAKE(name) : qm_xml_attr(x, host, "socket");
    if (asprintf(&both, "%s:%s", name, port) < 0) {
        x->nomem = true;
        return NULL;
    }
    return both;
}

static unsigned
read_index(const xmlNode *node)
{
    xmlChar *text = node ? xmlGetNoNsProp(node, (const xmlChar *)"index") : NULL;
    unsigned long value = text ? strtoul((const char *)text, NULL, 10) : 0;

    xmlFree(text);
    return value <= UINT_MAX ? (unsigned)value : 0;
}

/* The format stands in <driver type> of a disk, in <format type> of everything else. */
static char *
read_format(struct qm_xml *x, const xmlNode *node)
{
    const xmlNode *format = qm_xml_child(node, "format");

    return qm_xml_attr(x, format ? format : qm_xml_child(node, "driver"), "type");
}

static char *
read_data_file(struct qm_xml *x, const xmlNode *source)
{
    const xmlNode *inner = qm_xml_child(qm_xml_child(source, "dataStore"), "source");
    char *path = qm_xml_attr(x, inner, "file");

    return path ? path : qm_xml_attr(x, inner, "dev");
}

void
qm_xml_read_source(struct qm_xml *x, const xmlNode *node, struct qm_domxml_source *out)
{
    const xmlNode *source = qm_xml_child(node, "source");

    *out = (struct qm_domxml_source){.type = type_of(node)};
    out->format = read_format(x, node);
    if (!source) {
        out->type = QM_SOURCE_NONE;
        return;
    }
    out->index = read_index(source);
    if (out->index == 0)
        out->index = read_index(node); /* <backingStore index=''> */
    out->slices = qm_xml_child(source, "slices") != NULL;
    out->encrypted =
        qm_xml_child(source, "encryption") != NULL || qm_xml_child(node, "encryption") != NULL;
    out->data_file = read_data_file(x, source);
    out->pool = qm_xml_attr(x, source, "pool");
    out->volume = qm_xml_attr(x, source, "volume");
    out->protocol = qm_xml_attr(x, source, "protocol");
    out->name = qm_xml_attr(x, source, "name");
    out->host = read_host(x, source);
    if (out->type == QM_SOURCE_FILE)
        out->path = qm_xml_attr(x, source, "file");
    else if (out->type == QM_SOURCE_BLOCK)
        out->path = qm_xml_attr(x, source, "dev");
    if ((out->type == QM_SOURCE_FILE || out->type == QM_SOURCE_BLOCK) && !out->path)
        out->type = QM_SOURCE_NONE; /* an empty drive has <source index/> while it runs */
}

char *
qm_domxml_source_text(const struct qm_domxml_source *s)
{
    char *out = NULL;
    int rc;

    switch (s->type) {
    case QM_SOURCE_FILE:
    case QM_SOURCE_BLOCK:
        return strdup(s->path);
    case QM_SOURCE_VOLUME:
        rc = asprintf(&out, "%s/%s", s->pool ? s->pool : "?", s->volume ? s->volume : "?");
        return rc < 0 ? NULL : out;
    case QM_SOURCE_NETWORK:
        rc = asprintf(&out, "%s://%s/%s", s->protocol ? s->protocol : "?", s->host ? s->host : "",
                      s->name ? s->name : "");
        return rc < 0 ? NULL : out;
    case QM_SOURCE_NONE:
        return strdup("(none)");
    case QM_SOURCE_OTHER:
        break;
    }
    return strdup("(a source of another kind)");
}

/* ---- disks ---- */

/* A <disk> and what is nested in it; false: no memory. */
static bool
read_chain(struct qm_xml *x, const xmlNode *disk, struct qm_domxml_disk *out)
{
    for (const xmlNode *node = disk; node; node = qm_xml_child(node, "backingStore")) {
        struct qm_domxml_source layer;

        qm_xml_read_source(x, node, &layer);
        if (layer.type == QM_SOURCE_NONE) {
            qm_domxml_source_release(&layer);
            out->terminated = node != disk;
            break;
        }
        if (!qm_vec_push(&out->layers, &layer)) {
            qm_domxml_source_release(&layer);
            return false;
        }
    }
    return true;
}

static void
release_disk(struct qm_domxml_disk *d)
{
    free(d->target);
    free(d->bus);
    free(d->device);
    free(d->mirror.job);
    qm_domxml_source_release(&d->mirror.source);
    QM_VEC_EACH (layer, &d->layers)
        qm_domxml_source_release(layer);
    qm_vec_release(&d->layers);
}

static bool
read_disk(struct qm_xml *x, const xmlNode *node, struct qm_domxml_disk *out)
{
    const xmlNode *target = qm_xml_child(node, "target");
    const xmlNode *mirror = qm_xml_child(node, "mirror");

    out->target = qm_xml_attr(x, target, "dev");
    out->bus = qm_xml_attr(x, target, "bus");
    out->device = qm_xml_attr(x, node, "device");
    if (!out->device && !x->nomem)
        out->device = strdup("disk"); /* libvirt's default */
    out->readonly = qm_xml_child(node, "readonly") != NULL;
    out->shareable = qm_xml_child(node, "shareable") != NULL;
    out->transient = qm_xml_child(node, "transient") != NULL;
    out->no_ioeventfd = qm_xml_attr_is(qm_xml_child(node, "driver"), "ioeventfd", "off");
    for (const xmlNode *label = qm_xml_child(qm_xml_child(node, "source"), "seclabel"); label;
         label = next_of(label->next, "seclabel"))
        out->no_relabel = out->no_relabel || qm_xml_attr_is(label, "relabel", "no");
    if (mirror) {
        out->mirror.present = true;
        out->mirror.ready = qm_xml_attr_is(mirror, "ready", "yes");
        out->mirror.job = qm_xml_attr(x, mirror, "job");
        qm_xml_read_source(x, mirror, &out->mirror.source);
    }
    return read_chain(x, node, out) && out->device && !x->nomem;
}

/* A disk without a target is no disk of libvirt's. */
static int
read_disks(struct qm_xml *x, const xmlNode *domain, struct qm_domxml *out, struct qmeld_error *err)
{
    const xmlNode *node = NULL;

    while ((node = qm_xml_next_disk(domain, node))) {
        struct qm_domxml_disk disk = {.target = NULL};
        const bool read = read_disk(x, node, &disk);

        if (!read || !disk.target || !qm_vec_push(&out->disks, &disk)) {
            const bool nameless = read && !disk.target;

            release_disk(&disk);
            return nameless ? qm_fail(err, QMELD_CORRUPT, qm_nowhere(),
                                      "the domain's XML has a disk without a target")
                            : qm_fail_nomem(err, "the domain's disks");
        }
    }
    return 0;
}

static bool
has_no_relabel(const xmlNode *domain)
{
    const xmlNode *label = qm_xml_child(domain, "seclabel");

    for (; label; label = next_of(label->next, "seclabel"))
        if (qm_xml_attr_is(label, "relabel", "no") || qm_xml_attr_is(label, "type", "none"))
            return true;
    return false;
}

/* libvirt's running definitions tell the model of each. */
static bool
has_virtio_scsi_only(const xmlNode *domain)
{
    const xmlNode *node = qm_xml_child(qm_xml_child(domain, "devices"), "controller");
    static const char *const models[] = {"virtio-scsi", "virtio-transitional",
                                         "virtio-non-transitional"};

    for (; node; node = next_of(node->next, "controller")) {
        bool known = !qm_xml_attr_is(node, "type", "scsi");

        for (size_t i = 0; i < sizeof models / sizeof *models; i++)
            known = known || qm_xml_attr_is(node, "model", models[i]);
        if (!known || qm_xml_attr_is(qm_xml_child(node, "driver"), "ioeventfd", "off"))
            return false;
    }
    return true;
}

/* ---- snapshots ---- */

static int
read_snap_disks(struct qm_xml *x, struct qm_domxml *out, struct qmeld_error *err)
{
    const xmlNode *node = qm_xml_child(qm_xml_child(x->root, "disks"), "disk");

    for (; node; node = next_of(node->next, "disk")) {
        struct qm_domxml_snap_disk d = {.target = qm_xml_attr(x, node, "name")};

        d.external = qm_xml_attr_is(node, "snapshot", "external");
        d.internal = qm_xml_attr_is(node, "snapshot", "internal");
        out->internal = out->internal || d.internal;
        qm_xml_read_source(x, node, &d.source);
        if (!d.target || x->nomem || !qm_vec_push(&out->snap_disks, &d)) {
            free(d.target);
            qm_domxml_source_release(&d.source);
            return x->nomem || d.target ? qm_fail_nomem(err, "the snapshot's disks")
                                        : qm_fail(err, QMELD_CORRUPT, qm_nowhere(),
                                                  "the snapshot's XML has a disk without a name");
        }
    }
    return 0;
}

static int
read_snapshot(struct qm_xml *x, struct qm_domxml *out, struct qmeld_error *err)
{
    const xmlNode *memory = qm_xml_child(x->root, "memory");

    out->kind = QM_DOMXML_SNAPSHOT;
    out->parent = content(x, qm_xml_child(qm_xml_child(x->root, "parent"), "name"));
    if (qm_xml_attr_is(memory, "snapshot", "external"))
        out->memory = qm_xml_attr(x, memory, "file");
    out->internal = qm_xml_attr_is(memory, "snapshot", "internal");
    return read_snap_disks(x, out, err);
}

/* ---- documents ---- */

static int
read_document(struct qm_xml *x, struct qm_domxml *out, struct qmeld_error *err)
{
    xmlNodePtr domains[2] = {NULL, NULL};
    const size_t n = qm_xml_domains(x, domains);

    out->name = content(x, qm_xml_child(x->root, "name"));
    if (qm_xml_is(x->root, "domainsnapshot")) {
        if (read_snapshot(x, out, err) < 0)
            return -1;
    } else if (n == 0) {
        return qm_fail(err, QMELD_CORRUPT, qm_nowhere(),
                       "what libvirt sent is XML, but of no domain and no snapshot");
    }
    if (n > 0) {
        out->uuid = content(x, qm_xml_child(domains[0], "uuid"));
        out->no_relabel = has_no_relabel(domains[0]);
        out->virtio_scsi = has_virtio_scsi_only(domains[0]);
        if (read_disks(x, domains[0], out, err) < 0)
            return -1;
    }
    if (x->nomem)
        return qm_fail_nomem(err, "the domain's XML");
    return out->name ? 0 : qm_fail(err, QMELD_CORRUPT, qm_nowhere(), "libvirt's XML has no <name>");
}

int
qm_domxml_parse(const char *text, struct qm_domxml **out, struct qmeld_error *err)
{
    struct qm_domxml *d = calloc(1, sizeof *d);
    struct qm_xml x;
    int rc;

    *out = NULL;
    if (!d)
        return qm_fail_nomem(err, "the domain's XML");
    rc = qm_xml_parse(text, &x, err);
    if (rc == 0) {
        rc = read_document(&x, d, err);
        qm_xml_release(&x);
    }
    if (rc < 0) {
        qm_domxml_free(d);
        return -1;
    }
    *out = d;
    return 0;
}

void
qm_domxml_free(struct qm_domxml *x)
{
    if (!x)
        return;
    free(x->name);
    free(x->uuid);
    free(x->parent);
    free(x->memory);
    QM_VEC_EACH (d, &x->disks)
        release_disk(d);
    qm_vec_release(&x->disks);
    QM_VEC_EACH (d, &x->snap_disks) {
        free(d->target);
        qm_domxml_source_release(&d->source);
    }
    qm_vec_release(&x->snap_disks);
    free(x);
}

const struct qm_domxml_disk *
qm_domxml_find(const struct qm_domxml *x, const char *disk)
{
    QM_VEC_EACH (d, &x->disks)
        if (strcmp(d->target, disk) == 0)
            return d;
    QM_VEC_EACH (d, &x->disks)
        if (d->layers.n > 0 && d->layers.at[0].path && strcmp(d->layers.at[0].path, disk) == 0)
            return d;
    return NULL;
}

/* ---- every source ---- */

/* What is no disk: <filesystem>, <hostdev>, and what later versions may bring. */
static void
read_stray_source(struct qm_xml *x, const xmlNode *source, struct qm_domxml_source *out)
{
    *out = (struct qm_domxml_source){.type = QM_SOURCE_FILE};
    out->path = qm_xml_attr(x, source, "file");
    if (!out->path) {
        out->type = QM_SOURCE_BLOCK;
        out->path = qm_xml_attr(x, source, "dev");
    }
    if (!out->path || out->path[0] != '/')
        out->type = QM_SOURCE_NONE;
}

/* The target that sources in node belong to: that of the disk which node is, or is inside of. */
static char *
target_of(struct qm_xml *x, const xmlNode *node)
{
    for (; node && node->type == XML_ELEMENT_NODE; node = node->parent)
        if (qm_xml_is(node, "disk")) {
            char *target = qm_xml_attr(x, qm_xml_child(node, "target"), "dev");

            return target ? target : qm_xml_attr(x, node, "name");
        }
    return NULL;
}

/* In document order, without recursion. */
static const xmlNode *
following(const xmlNode *node)
{
    if (node->children && node->type == XML_ELEMENT_NODE)
        return node->children;
    while (node && !node->next)
        node = node->parent;
    return node ? node->next : NULL;
}

int
qm_domxml_each_source(const char *text, qm_domxml_source_fn *fn, void *opaque,
                      struct qmeld_error *err)
{
    struct qm_xml x;
    int rc = 0;

    if (qm_xml_parse(text, &x, err) < 0)
        return -1;
    for (const xmlNode *node = x.root; rc == 0 && node; node = following(node)) {
        struct qm_domxml_source s;
        QM_FREE char *target = NULL;

        if (!qm_xml_is(node, "source") || !node->parent)
            continue;
        target = target_of(&x, node->parent);
        if (xmlHasProp(node->parent, (const xmlChar *)"type") || qm_xml_is(node->parent, "disk"))
            qm_xml_read_source(&x, node->parent, &s);
        else
            read_stray_source(&x, node, &s);
        if (s.type == QM_SOURCE_OTHER || s.type == QM_SOURCE_NONE) {
            qm_domxml_source_release(&s);
            read_stray_source(&x, node, &s);
        }
        if (s.type != QM_SOURCE_NONE && !x.nomem)
            rc = fn(&s, target ? target : "", opaque);
        qm_domxml_source_release(&s);
    }
    if (x.nomem)
        rc = qm_fail_nomem(err, "the sources in the XML");
    qm_xml_release(&x);
    return rc;
}
