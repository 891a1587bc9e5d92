/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domxml_int.h - XML trees, for the two files of domxml: domxml.c looks, domxml_edit.c changes.
 *
 * Why.  Both must read a <source> in the same way, and both must parse text that may come from a
 * hostile peer under the same bounds.
 *
 * Ownership  The document belongs to the tree; qm_xml_release frees it.
 * Errors     Reading an attribute can fail for memory only: tree->nomem is set then, and looked at
 *            once, at the end.
 */
#ifndef QM_DOMXML_INT_H
#define QM_DOMXML_INT_H

#include "domxml.h"

#include <libxml/tree.h>

struct qm_xml {
    xmlDocPtr doc;
    xmlNodePtr root;
    bool nomem;
};

/* CORRUPT, UNSUPPORTED or NOMEM.  Nothing outside of text is looked at. */
int qm_xml_parse(const char *text, struct qm_xml *out, struct qmeld_error *err) QM_CHECK;
void qm_xml_release(struct qm_xml *x);

bool qm_xml_is(const xmlNode *node, const char *name);
/* The first child element of that name; NULL: none. */
xmlNodePtr qm_xml_child(const xmlNode *node, const char *name);
/* malloc'd; NULL: there is none. */
char *qm_xml_attr(struct qm_xml *x, const xmlNode *node, const char *name);
bool qm_xml_attr_is(const xmlNode *node, const char *name, const char *value);

/* A node that has type='' and <source>: a <disk>, <backingStore>, <mirror>, or a snapshot's <disk>. */
void qm_xml_read_source(struct qm_xml *x, const xmlNode *node, struct qm_domxml_source *out);
void qm_domxml_source_release(struct qm_domxml_source *s);

/* <domain>s of a document: of a domain's the root, of a snapshot's <domain> and <inactiveDomain>.
 * Returns their number, 2 at most. */
size_t qm_xml_domains(const struct qm_xml *x, xmlNodePtr out[2]);

/* The <disk> after `after` (NULL: the first) of a domain; NULL: no more. */
xmlNodePtr qm_xml_next_disk(const xmlNode *domain, const xmlNode *after);

#endif
