/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * domain.h - the domain that was named.
 *
 * Ownership  A domain found here is given back with qm_domain_free.
 * Threads    As session.h.
 */
#ifndef QM_DOMAIN_H
#define QM_DOMAIN_H

#include "session.h"

struct qm_domain {
    virDomainPtr ptr;
    char *name;
    char uuid[VIR_UUID_STRING_BUFLEN];
};

/* By id if it is a number of a running domain, otherwise by UUID, otherwise by name: as virsh does. */
int qm_domain_find(struct qm_session *session, const char *name, struct qm_domain *out,
                   struct qmeld_error *err) QM_CHECK;

/* How a command line names it: its name or, where a shell or an option parser would make something else of that,
 * its UUID.  Lives as long as the domain. */
const char *qm_domain_word(const struct qm_domain *domain);

/* An empty one is fine. */
void qm_domain_free(struct qm_domain *domain);

#endif
