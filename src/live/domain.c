/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "domain.h"

#include "cleanup.h"

#include <ctype.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

struct find_args {
    virConnectPtr connection; /* a reference of its own */
    char *name;
    virDomainPtr domain;
};

static bool
is_number(const char *text, int *out)
{
    char *end;
    long value;

    if (!isdigit((unsigned char)text[0]))
        return false;
    value = strtol(text, &end, 10);
    if (*end || value > INT_MAX)
        return false;
    *out = (int)value;
    return true;
}

static int
find_run(void *opaque)
{
    struct find_args *args = opaque;
    int id;

    if (is_number(args->name, &id))
        args->domain = virDomainLookupByID(args->connection, id);
    if (!args->domain && strlen(args->name) == VIR_UUID_STRING_BUFLEN - 1)
        args->domain = virDomainLookupByUUIDString(args->connection, args->name);
    if (!args->domain)
        args->domain = virDomainLookupByName(args->connection, args->name);
    return args->domain ? 0 : -1;
}

static void
find_take(void *opaque, void *out)
{
    struct find_args *args = opaque;

    *(virDomainPtr *)out = QM_TAKE(args->domain);
}

static void
find_release(void *opaque)
{
    struct find_args *args = opaque;

    if (args->domain)
        (void)virDomainFree(args->domain);
    if (args->connection)
        (void)virConnectClose(args->connection); /* drops the reference */
    free(args->name);
}

static struct find_args *
find_args(virConnectPtr connection, const char *name)
{
    struct find_args *args = calloc(1, sizeof *args);

    if (!args)
        return NULL;
    args->name = strdup(name);
    if (virConnectRef(connection) == 0)
        args->connection = connection;
    if (args->name && args->connection)
        return args;
    find_release(args);
    free(args);
    return NULL;
}

int
qm_domain_find(struct qm_session *session, const char *name, struct qm_domain *out,
               struct qmeld_error *err)
{
    const struct qm_session_call call = {
        .name = "virDomainLookup",
        .run = find_run,
        .release = find_release,
        .args = find_args(qm_session_connection(session), name),
        .take = find_take,
        .out = &out->ptr,
    };
    struct qm_fault fault;

    memset(out, 0, sizeof *out);
    if (qm_session_run(session, &call, &fault) < 0) {
        char doing[300];

        if (fault.code == VIR_ERR_NO_DOMAIN)
            return qm_fail(err, QMELD_USAGE, qm_nowhere(),
                           "%s has no domain \"%s\": virsh -c %s list --all shows what it has",
                           qm_session_uri(session), name, qm_session_uri(session));
        snprintf(doing, sizeof doing, "find the domain \"%s\"", name);
        return qm_session_fail(err, &fault, doing);
    }
    out->name = strdup(virDomainGetName(out->ptr));
    if (!out->name || virDomainGetUUIDString(out->ptr, out->uuid) < 0) {
        qm_domain_free(out);
        return qm_fail_nomem(err, "looking for the domain");
    }
    return 0;
}

const char *
qm_domain_word(const struct qm_domain *domain)
{
    static const char plain[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-+@%:";
    const char *name = domain->name;
    int id;

    return name[0] == '-' || name[strspn(name, plain)] || is_number(name, &id) ? domain->uuid
                                                                               : name;
}

void
qm_domain_free(struct qm_domain *domain)
{
    if (domain->ptr)
        (void)virDomainFree(domain->ptr);
    free(domain->name);
    memset(domain, 0, sizeof *domain);
}
