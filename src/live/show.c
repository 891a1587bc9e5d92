/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "show.h"

#include "calls.h"
#include "cleanup.h"
#include "domain.h"
#include "domxml.h"
#include "module.h"
#include "texts.h"

#include <string.h>

static const char *
state_name(int state)
{
    static const char *const names[] = {
        [VIR_DOMAIN_NOSTATE] = "no state",     [VIR_DOMAIN_RUNNING] = "running",
        [VIR_DOMAIN_BLOCKED] = "idle",         [VIR_DOMAIN_PAUSED] = "paused",
        [VIR_DOMAIN_SHUTDOWN] = "in shutdown", [VIR_DOMAIN_SHUTOFF] = "shut off",
        [VIR_DOMAIN_CRASHED] = "crashed",      [VIR_DOMAIN_PMSUSPENDED] = "pmsuspended",
    };

    return state >= 0 && (size_t)state < sizeof names / sizeof *names ? names[state] : names[0];
}

static const char *
type_name(enum qm_source_type type)
{
    static const char *const names[] = {
        [QM_SOURCE_NONE] = "none",     [QM_SOURCE_FILE] = "file",       [QM_SOURCE_BLOCK] = "block",
        [QM_SOURCE_VOLUME] = "volume", [QM_SOURCE_NETWORK] = "network", [QM_SOURCE_OTHER] = "other",
    };

    return names[type];
}

/* strdup, but NULL stays NULL; *fine becomes false if memory is out. */
static char *
copy(const char *text, bool *fine)
{
    char *made = text ? strdup(text) : NULL;

    if (text && !made)
        *fine = false;
    return made;
}

static bool
fill_layer(const struct qm_domxml_source *source, bool local, struct qm_live_layer *out)
{
    bool fine = true;

    out->index = source->index;
    out->format = copy(source->format, &fine);
    out->type = copy(type_name(source->type), &fine);
    out->local = local && source->path;
    out->name = source->path ? copy(source->path, &fine) : qm_domxml_source_text(source);
    return fine && out->name;
}

static bool
fill_disk(const struct qm_domxml_disk *disk, bool local, struct qm_live_disk *out)
{
    bool fine = true;

    out->target = copy(disk->target, &fine);
    out->device = copy(disk->device, &fine);
    out->readonly = disk->readonly;
    out->shareable = disk->shareable;
    out->transient = disk->transient;
    out->chain_ends = disk->terminated;
    out->job =
        disk->mirror.present ? copy(disk->mirror.job ? disk->mirror.job : "copy", &fine) : NULL;
    out->job_ready = disk->mirror.present && disk->mirror.ready;
    out->layers = calloc(disk->layers.n + 1, sizeof *out->layers);
    for (size_t i = 0; i < disk->layers.n && fine && out->layers; i++) {
        fine = fill_layer(&disk->layers.at[i], local, &out->layers[i]);
        out->n_layers++;
    }
    return fine && out->layers;
}

/* A commit into a layer below the active one is in no definition: only the job itself tells. */
static void
ask_for_job(struct qm_session *session, const struct qm_domain *domain, struct qm_live_disk *disk)
{
    struct qm_job_info info;
    struct qm_fault unheard;

    if (disk->job || qm_calls_job(session, domain->ptr, disk->target, &info, &unheard) < 0)
        return;
    if (info.present)
        disk->job = strdup(qm_calls_job_name(info.type));
}

static bool
fill(struct qm_session *session, const struct qm_domain *domain, const struct qm_texts *texts,
     const struct qm_domxml *xml, struct qm_live_domain *out)
{
    bool fine = true;

    out->uri = copy(qm_session_uri(session), &fine);
    out->name = copy(domain->name, &fine);
    out->uuid = copy(domain->uuid, &fine);
    out->state = copy(state_name(texts->state), &fine);
    out->running = texts->active;
    out->persistent = texts->persistent != NULL;
    out->managed_save = texts->saved != NULL;
    out->disks = calloc(xml->disks.n + 1, sizeof *out->disks);
    for (size_t i = 0; i < xml->disks.n && fine && out->disks; i++) {
        fine = fill_disk(&xml->disks.at[i], qm_session_is_local(session), &out->disks[i]);
        out->n_disks++;
        if (fine && texts->active)
            ask_for_job(session, domain, &out->disks[i]);
    }
    return fine && out->disks;
}

static int
show(struct qm_session *session, const struct qm_domain *domain, struct qm_live_domain *out,
     struct qmeld_error *err)
{
    struct qm_texts texts;
    struct qm_domxml *xml = NULL;
    struct qm_fault fault;
    bool fine = true;
    int result;

    if (qm_texts_get(session, domain->ptr, &texts, &fault) < 0)
        return qm_session_fail(err, &fault, "read the definition");
    result = qm_domxml_parse(texts.live         ? texts.live
                             : texts.persistent ? texts.persistent
                                                : "",
                             &xml, err);
    if (result == 0)
        fine = fill(session, domain, &texts, xml, out);
    qm_domxml_free(xml);
    qm_texts_free(&texts);
    return fine ? result : qm_fail_nomem(err, "reading the definition");
}

int
qm_show_domain(const char *uri, const char *name, struct qm_live_domain *out,
               struct qmeld_error *err)
{
    const struct qm_session_options options = {.uri = uri, .read_only = true};
    struct qm_domain domain = {0};
    struct qm_session *session;
    int result;

    memset(out, 0, sizeof *out);
    memset(err, 0, sizeof *err);
    if (qm_session_open(&options, &session, err) < 0)
        return -1;
    result = qm_domain_find(session, name, &domain, err);
    if (result == 0)
        result = show(session, &domain, out, err);
    qm_domain_free(&domain);
    qm_session_close(session);
    return result;
}

static void
free_disk(struct qm_live_disk *disk)
{
    for (size_t i = 0; i < disk->n_layers; i++) {
        free(disk->layers[i].format);
        free(disk->layers[i].type);
        free(disk->layers[i].name);
    }
    free(disk->layers);
    free(disk->target);
    free(disk->device);
    free(disk->job);
}

void
qm_show_domain_free(struct qm_live_domain *domain)
{
    for (size_t i = 0; i < domain->n_disks; i++)
        free_disk(&domain->disks[i]);
    free(domain->disks);
    free(domain->uri);
    free(domain->name);
    free(domain->uuid);
    free(domain->state);
    memset(domain, 0, sizeof *domain);
}
