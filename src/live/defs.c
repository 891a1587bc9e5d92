/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "defs.h"

#include "cleanup.h"

#include <string.h>

/* Arguments of any of the calls, and their results: what a call has no use for stays empty.  They
 * belong to the call's thread, which may outlive the call (session.h). */
struct args {
    virConnectPtr connection; /* references of their own */
    virDomainPtr domain;
    char *text[2];
    bool flag;
    char *answer;
    bool yes;
    struct qm_defs_snapshots snapshots;
};

static void
release(void *opaque)
{
    struct args *args = opaque;

    qm_defs_snapshots_free(&args->snapshots);
    if (args->domain)
        (void)virDomainFree(args->domain);
    if (args->connection)
        (void)virConnectClose(args->connection);
    for (size_t i = 0; i < 2; i++)
        free(args->text[i]);
    free(args->answer);
}

/* NULL if memory is out, which qm_session_run tells. */
static struct args *
make(struct qm_session *session, virDomainPtr domain, const char *one, const char *two)
{
    const char *const text[2] = {one, two};
    struct args *args = calloc(1, sizeof *args);
    bool good = args != NULL;

    if (!args)
        return NULL;
    if (virConnectRef(qm_session_connection(session)) == 0)
        args->connection = qm_session_connection(session);
    if (domain && virDomainRef(domain) == 0)
        args->domain = domain;
    for (size_t i = 0; i < 2; i++) {
        args->text[i] = text[i] ? strdup(text[i]) : NULL;
        good = good && (args->text[i] || !text[i]);
    }
    if (good && args->connection && (args->domain || !domain))
        return args;
    release(args);
    free(args);
    return NULL;
}

static int
run(struct qm_session *session, const char *name, int (*fn)(void *), struct args *args,
    void (*take)(void *, void *), void *out, struct qm_fault *fault)
{
    const struct qm_session_call call = {
        .name = name, .run = fn, .release = release, .args = args, .take = take, .out = out};

    return qm_session_run(session, &call, fault);
}

static void
take_answer(void *opaque, void *out)
{
    struct args *args = opaque;

    *(char **)out = QM_TAKE(args->answer);
}

static void
take_yes(void *opaque, void *out)
{
    *(bool *)out = ((const struct args *)opaque)->yes;
}

/* ---- snapshots ---- */

void
qm_defs_snapshots_free(struct qm_defs_snapshots *snapshots)
{
    QM_VEC_EACH (s, &snapshots->list) {
        free(s->name);
        free(s->xml);
    }
    qm_vec_release(&snapshots->list);
}

static bool
add_snapshot(virDomainSnapshotPtr ptr, struct qm_defs_snapshots *out)
{
    struct qm_defs_snapshot s = {.name = strdup(virDomainSnapshotGetName(ptr))};
    const int current = virDomainSnapshotIsCurrent(ptr, 0);

    s.current = current == 1;
    s.xml = virDomainSnapshotGetXMLDesc(ptr, VIR_DOMAIN_SNAPSHOT_XML_SECURE);
    if (s.name && s.xml && current >= 0 && qm_vec_push(&out->list, &s))
        return true;
    free(s.name);
    free(s.xml);
    return false;
}

static int
snapshots_run(void *opaque)
{
    struct args *args = opaque;
    virDomainSnapshotPtr *found = NULL;
    const int n =
        virDomainListAllSnapshots(args->domain, &found, VIR_DOMAIN_SNAPSHOT_LIST_TOPOLOGICAL);
    int rc = n < 0 ? -1 : 0;

    for (int i = 0; i < n; i++) {
        if (rc == 0 && !add_snapshot(found[i], &args->snapshots))
            rc = -1;
        (void)virDomainSnapshotFree(found[i]);
    }
    free(found);
    return rc;
}

static void
snapshots_take(void *opaque, void *out)
{
    struct args *args = opaque;

    *(struct qm_defs_snapshots *)out = args->snapshots;
    args->snapshots = (struct qm_defs_snapshots){.list = {NULL, 0, 0}};
}

int
qm_defs_snapshots(struct qm_session *session, virDomainPtr domain, struct qm_defs_snapshots *out,
                  struct qm_fault *fault)
{
    *out = (struct qm_defs_snapshots){.list = {NULL, 0, 0}};
    return run(session, "virDomainListAllSnapshots", snapshots_run,
               make(session, domain, NULL, NULL), snapshots_take, out, fault);
}

static int
redefine_run(void *opaque)
{
    struct args *args = opaque;
    const unsigned current = args->flag ? VIR_DOMAIN_SNAPSHOT_CREATE_CURRENT : 0;
    virDomainSnapshotPtr made = virDomainSnapshotCreateXML(
        args->domain, args->text[0], VIR_DOMAIN_SNAPSHOT_CREATE_REDEFINE | current);

    if (!made)
        return -1;
    (void)virDomainSnapshotFree(made);
    return 0;
}

int
qm_defs_redefine(struct qm_session *session, virDomainPtr domain, const char *xml, bool current,
                 struct qm_fault *fault)
{
    struct args *args = make(session, domain, xml, NULL);

    if (args)
        args->flag = current;
    return run(session, "virDomainSnapshotCreateXML", redefine_run, args, NULL, NULL, fault);
}

static int
forget_run(void *opaque)
{
    const struct args *args = opaque;
    virDomainSnapshotPtr ptr = virDomainSnapshotLookupByName(args->domain, args->text[0], 0);
    int rc;

    if (!ptr)
        return -1;
    rc = virDomainSnapshotDelete(ptr, VIR_DOMAIN_SNAPSHOT_DELETE_METADATA_ONLY);
    (void)virDomainSnapshotFree(ptr);
    return rc;
}

int
qm_defs_forget(struct qm_session *session, virDomainPtr domain, const char *snapshot,
               struct qm_fault *fault)
{
    return run(session, "virDomainSnapshotDelete", forget_run,
               make(session, domain, snapshot, NULL), NULL, NULL, fault);
}

/* ---- managed save ---- */

static int
has_saved_run(void *opaque)
{
    struct args *args = opaque;
    const int has = virDomainHasManagedSaveImage(args->domain, 0);

    args->yes = has == 1;
    return has < 0 ? -1 : 0;
}

int
qm_defs_has_saved(struct qm_session *session, virDomainPtr domain, bool *out,
                  struct qm_fault *fault)
{
    return run(session, "virDomainHasManagedSaveImage", has_saved_run,
               make(session, domain, NULL, NULL), take_yes, out, fault);
}

static int
saved_run(void *opaque)
{
    struct args *args = opaque;

    args->answer = virDomainManagedSaveGetXMLDesc(args->domain, VIR_DOMAIN_SAVE_IMAGE_XML_SECURE);
    return args->answer ? 0 : -1;
}

int
qm_defs_saved_xml(struct qm_session *session, virDomainPtr domain, char **out,
                  struct qm_fault *fault)
{
    *out = NULL;
    return run(session, "virDomainManagedSaveGetXMLDesc", saved_run,
               make(session, domain, NULL, NULL), take_answer, out, fault);
}

static int
define_run(void *opaque)
{
    struct args *args = opaque;

    return virDomainManagedSaveDefineXML(args->domain, args->text[0], 0);
}

int
qm_defs_saved_define(struct qm_session *session, virDomainPtr domain, const char *xml,
                     struct qm_fault *fault)
{
    return run(session, "virDomainManagedSaveDefineXML", define_run,
               make(session, domain, xml, NULL), NULL, NULL, fault);
}

/* ---- storage ---- */

static int
volume_run(void *opaque)
{
    struct args *args = opaque;
    virStoragePoolPtr pool = virStoragePoolLookupByName(args->connection, args->text[0]);
    virStorageVolPtr volume = pool ? virStorageVolLookupByName(pool, args->text[1]) : NULL;

    args->answer = volume ? virStorageVolGetPath(volume) : NULL;
    if (volume)
        (void)virStorageVolFree(volume);
    if (pool)
        (void)virStoragePoolFree(pool);
    return args->answer ? 0 : -1;
}

int
qm_defs_volume_path(struct qm_session *session, const char *pool, const char *volume, char **out,
                    struct qm_fault *fault)
{
    *out = NULL;
    return run(session, "virStorageVolGetPath", volume_run, make(session, NULL, pool, volume),
               take_answer, out, fault);
}

/* That there is no such pool, or no storage driver, is an answer. */
static int
refresh_run(void *opaque)
{
    struct args *args = opaque;
    virStoragePoolPtr pool = virStoragePoolLookupByTargetPath(args->connection, args->text[0]);
    int rc = 0;

    if (!pool)
        return 0;
    if (virStoragePoolIsActive(pool) == 1) {
        args->yes = true;
        rc = virStoragePoolRefresh(pool, 0);
    }
    (void)virStoragePoolFree(pool);
    return rc;
}

int
qm_defs_refresh_pool(struct qm_session *session, const char *dir, bool *out, struct qm_fault *fault)
{
    *out = false;
    return run(session, "virStoragePoolRefresh", refresh_run, make(session, NULL, dir, NULL),
               take_yes, out, fault);
}
