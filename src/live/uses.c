/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * uses.c - which domain has a file in the chain of a disk: from a path to "vda[3] of domain vm1".
 *
 * Beside scan.c, which finds every mention anywhere, this finds the one place that a command can be given
 * for: a layer of a disk.  Only the definitions count that run, or, of stopped domains, are kept.
 */
#include "scan.h"

#include "cleanup.h"
#include "defs.h"
#include "module.h"
#include "range.h"
#include "texts.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct search {
    struct qm_live_uses *out;
    struct qm_file_id id;
    struct qm_session *session;
    const char *uri;
    const struct qm_domain *domain;
    bool running;
};

static bool
add_use(struct search *search, const struct qm_domxml_disk *disk, unsigned depth,
        const struct qm_domxml_source *layer, bool by_job)
{
    struct qm_live_uses *out = search->out;
    struct qm_live_use use = {
        .uri = strdup(search->uri),
        .domain = strdup(search->domain->name),
        .uuid = strdup(search->domain->uuid),
        .running = search->running,
        .target = strdup(disk->target),
        .depth = depth,
        .index = layer->index,
        .by_job = by_job,
    };
    struct qm_live_use *at = reallocarray(out->at, out->n + 1, sizeof *at);

    if (at)
        out->at = at;
    if (at && use.uri && use.domain && use.uuid && use.target) {
        out->at[out->n++] = use;
        return true;
    }
    free(use.uri);
    free(use.domain);
    free(use.uuid);
    free(use.target);
    return false;
}

static bool
leads_there(const struct search *search, const struct qm_domxml_source *source)
{
    QM_FREE char *volume = NULL;
    struct qm_fault unheard;
    struct qm_file_id id;

    if (!source->path && source->pool && source->volume &&
        qm_defs_volume_path(search->session, source->pool, source->volume, &volume, &unheard) < 0)
        return false; /* a pool that is not started has no volume that runs */
    id = qm_file_id(volume ? volume : source->path);
    return qm_file_id_same(&id, &search->id);
}

static void
search_disk(struct search *search, const struct qm_domxml_disk *disk)
{
    for (size_t i = 0; i < disk->layers.n; i++)
        if (leads_there(search, &disk->layers.at[i])) {
            (void)add_use(search, disk, (unsigned)i, &disk->layers.at[i], false);
            return;
        }
    if (disk->mirror.present && leads_there(search, &disk->mirror.source))
        (void)add_use(search, disk, 0, &disk->mirror.source, true);
}

static void
search_uses(struct search *search, const struct qm_texts *texts)
{
    const char *text = texts->live ? texts->live : texts->persistent;
    struct qmeld_error err = {0};
    struct qm_domxml *xml = NULL;

    if (!text)
        return;
    search->running = texts->live != NULL;
    if (qm_domxml_parse(text, &xml, &err) < 0) {
        qm_note(&search->out->notes, "the definition of domain \"%s\" cannot be read: %s",
                search->domain->name, err.what);
        return;
    }
    QM_VEC_EACH (disk, &xml->disks)
        search_disk(search, disk);
    qm_domxml_free(xml);
}

static void
search_hypervisor(struct search *search, const char *uri)
{
    const struct qm_session_options options = {.uri = uri, .read_only = false};
    struct qm_session *session;
    struct qm_domain_list list;
    struct qmeld_error err = {0};
    struct qm_fault fault;

    if (qm_session_open(&options, &session, &err) < 0) {
        qm_note(&search->out->notes, "%s", err.what);
        return;
    }
    if (!qm_session_is_local(session)) {
        qm_note(&search->out->notes, "%s is another machine: its paths mean other files",
                qm_session_uri(session));
        qm_session_close(session);
        return;
    }
    search->session = session;
    search->uri = qm_session_uri(session);
    if (qm_texts_domains(session, &list, &fault) < 0) {
        qm_note(&search->out->notes, "%s cannot list its domains: %s", search->uri, fault.what);
        qm_session_close(session);
        return;
    }
    QM_VEC_EACH (domain, &list.domains) {
        struct qm_texts texts;

        search->domain = domain;
        if (qm_texts_get(session, domain->ptr, &texts, &fault) < 0) {
            qm_note(&search->out->notes, "domain \"%s\" of %s cannot be asked: %s", domain->name,
                    search->uri, fault.what);
            continue;
        }
        search_uses(search, &texts);
        qm_texts_free(&texts);
    }
    qm_texts_domains_free(&list);
    qm_session_close(session);
}

int
qm_scan_uses(const char *uri, const char *path, struct qm_live_uses *out, struct qmeld_error *err)
{
    QM_FREE char *full = realpath(path, NULL);
    struct search search = {.out = out};

    memset(out, 0, sizeof *out);
    memset(err, 0, sizeof *err);
    if (!full)
        return qm_fail_sys(err, qm_in(path), "cannot find the file");
    search.id = qm_file_id(full);
    /* a question must not leave a daemon behind that was not there (libvirt starts one for a session) */
    (void)setenv("LIBVIRT_AUTOSTART", "0", 0);
    if (uri || qm_session_default_is_set() || geteuid() == 0) {
        search_hypervisor(&search, uri);
        return 0;
    }
    search_hypervisor(&search, "qemu:///system");
    search_hypervisor(&search, "qemu:///session");
    return 0;
}

void
qm_scan_uses_free(struct qm_live_uses *uses)
{
    for (size_t i = 0; i < uses->n; i++) {
        free(uses->at[i].uri);
        free(uses->at[i].domain);
        free(uses->at[i].uuid);
        free(uses->at[i].target);
    }
    free(uses->at);
    qm_notes_free(&uses->notes);
    memset(uses, 0, sizeof *uses);
}
