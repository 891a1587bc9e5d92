/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * texts.h - all that libvirt knows of domains, as XML.
 *
 * Ownership  What is filled in is given back with the matching free.
 * Threads    As session.h: each call is one bounded call.
 */
#ifndef QM_TEXTS_H
#define QM_TEXTS_H

#include "domain.h"
#include "vec.h"

struct qm_texts {
    bool active;
    int state;        /* virDomainState */
    char *live;       /* NULL: it does not run */
    char *persistent; /* NULL: it is transient */
    char *saved;      /* of a managed save; NULL: none */
    QM_VEC(char *) snapshots;
    char *current; /* name of the current snapshot; NULL: none */
};

/* A text that vanished meanwhile is left out. */
int qm_texts_get(struct qm_session *session, virDomainPtr domain, struct qm_texts *out,
                 struct qm_fault *fault) QM_CHECK;
void qm_texts_free(struct qm_texts *texts);

struct qm_domain_list {
    QM_VEC(struct qm_domain) domains;
};

int qm_texts_domains(struct qm_session *session, struct qm_domain_list *out, struct qm_fault *fault)
    QM_CHECK;
void qm_texts_domains_free(struct qm_domain_list *list);

#endif
