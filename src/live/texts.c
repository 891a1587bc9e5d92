/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "texts.h"

#include "cleanup.h"

#include <string.h>

enum { LIMIT_S = 10 }; /* one domain that hangs must not hold up the search through all others */

struct get_args {
    virDomainPtr domain; /* a reference of its own */
    struct qm_texts texts;
};

static void
get_release(void *opaque)
{
    struct get_args *args = opaque;

    if (args->domain)
        (void)virDomainFree(args->domain);
    qm_texts_free(&args->texts);
}

static int
get_snapshots(virDomainPtr domain, struct qm_texts *texts)
{
    virDomainSnapshotPtr *list = NULL;
    const int n = virDomainListAllSnapshots(domain, &list, 0);
    int result = 0;

    if (n < 0) { /* a driver without snapshots has none */
        const int code = virGetLastErrorCode();

        return code == VIR_ERR_NO_SUPPORT || code == VIR_ERR_OPERATION_UNSUPPORTED ? 0 : -1;
    }
    for (int i = 0; i < n; i++) {
        char *text = result == 0 ? virDomainSnapshotGetXMLDesc(list[i], 0) : NULL;

        if (text && !qm_vec_push(&texts->snapshots, &text)) {
            free(text);
            result = -1;
        }
        if (!text && virGetLastErrorCode() != VIR_ERR_NO_DOMAIN_SNAPSHOT)
            result = -1;
        (void)virDomainSnapshotFree(list[i]);
    }
    free(list);
    return result;
}

static void
get_current(virDomainPtr domain, struct qm_texts *texts)
{
    virDomainSnapshotPtr current = virDomainSnapshotCurrent(domain, 0);

    if (!current)
        return;
    texts->current = strdup(virDomainSnapshotGetName(current));
    (void)virDomainSnapshotFree(current);
}

static int
get_run(void *opaque)
{
    struct get_args *args = opaque;
    struct qm_texts *texts = &args->texts;
    const int active = virDomainIsActive(args->domain);
    const int persistent = virDomainIsPersistent(args->domain);
    const int saved = virDomainHasManagedSaveImage(args->domain, 0);

    if (active < 0 || persistent < 0 || virDomainGetState(args->domain, &texts->state, NULL, 0) < 0)
        return -1;
    texts->active = active == 1;
    if (active == 1 && !(texts->live = virDomainGetXMLDesc(args->domain, 0)))
        return -1;
    if (persistent == 1 &&
        !(texts->persistent = virDomainGetXMLDesc(args->domain, VIR_DOMAIN_XML_INACTIVE)))
        return -1;
    if (saved == 1)
        texts->saved = virDomainManagedSaveGetXMLDesc(args->domain, 0);
    get_current(args->domain, texts);
    return get_snapshots(args->domain, texts);
}

static void
get_take(void *opaque, void *out)
{
    struct get_args *args = opaque;

    *(struct qm_texts *)out = args->texts;
    memset(&args->texts, 0, sizeof args->texts);
}

int
qm_texts_get(struct qm_session *session, virDomainPtr domain, struct qm_texts *out,
             struct qm_fault *fault)
{
    struct get_args *args = calloc(1, sizeof *args);
    const struct qm_session_call call = {
        .name = "virDomainGetXMLDesc",
        .run = get_run,
        .release = get_release,
        .args = args,
        .take = get_take,
        .out = out,
        .limit = LIMIT_S,
    };

    memset(out, 0, sizeof *out);
    if (args && virDomainRef(domain) == 0)
        args->domain = domain;
    return qm_session_run(session, &call, fault);
}

void
qm_texts_free(struct qm_texts *texts)
{
    QM_VEC_EACH (text, &texts->snapshots)
        free(*text);
    qm_vec_release(&texts->snapshots);
    free(texts->live);
    free(texts->persistent);
    free(texts->saved);
    free(texts->current);
    memset(texts, 0, sizeof *texts);
}

/* ---- all domains ---- */

struct list_args {
    virConnectPtr connection; /* a reference of its own */
    virDomainPtr *domains;
    int n;
};

static void
list_release(void *opaque)
{
    struct list_args *args = opaque;

    for (int i = 0; i < args->n; i++)
        (void)virDomainFree(args->domains[i]);
    free(args->domains);
    if (args->connection)
        (void)virConnectClose(args->connection);
}

static int
list_run(void *opaque)
{
    struct list_args *args = opaque;
    const int n = virConnectListAllDomains(args->connection, &args->domains, 0);

    args->n = n < 0 ? 0 : n;
    return n < 0 ? -1 : 0;
}

static void
list_take(void *opaque, void *out)
{
    struct list_args *args = opaque;
    struct qm_domain_list *list = out;

    for (int i = 0; i < args->n; i++) {
        struct qm_domain domain = {.ptr = args->domains[i],
                                   .name = strdup(virDomainGetName(args->domains[i]))};

        if (!domain.name || virDomainGetUUIDString(domain.ptr, domain.uuid) < 0 ||
            !qm_vec_push(&list->domains, &domain)) {
            free(domain.name);
            (void)virDomainFree(args->domains[i]);
        }
    }
    args->n = 0;
}

int
qm_texts_domains(struct qm_session *session, struct qm_domain_list *out, struct qm_fault *fault)
{
    struct list_args *args = calloc(1, sizeof *args);
    const struct qm_session_call call = {
        .name = "virConnectListAllDomains",
        .run = list_run,
        .release = list_release,
        .args = args,
        .take = list_take,
        .out = out,
    };

    memset(out, 0, sizeof *out);
    if (args && virConnectRef(qm_session_connection(session)) == 0)
        args->connection = qm_session_connection(session);
    return qm_session_run(session, &call, fault);
}

void
qm_texts_domains_free(struct qm_domain_list *list)
{
    QM_VEC_EACH (domain, &list->domains)
        qm_domain_free(domain);
    qm_vec_release(&list->domains);
}
