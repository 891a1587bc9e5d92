/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * uses.c - which domain has a file in the chain of a disk: from a path to "vda[3] of domain vm1".
 *
 * Beside scan.c, which finds every mention anywhere, this finds the one place that a command can be given
 * for: a layer of a disk.  Only the definitions count that run, or, of stopped domains, are kept.  And the other way
 * round: all files that any definition names, for whoever looks for images that stand on others.
 */
#include "clock.h"
#include "scan.h"

#include "cleanup.h"
#include "defs.h"
#include "module.h"
#include "range.h"
#include "texts.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct search;

/* Looks at what one domain has. */
typedef void look_fn(struct search *search, const struct qm_texts *texts);

struct search {
    look_fn *look;
    struct qm_live_notes *notes;
    double ends; /* 0: no limit but those of the calls */
    /* uses */
    struct qm_live_uses *out;
    struct qm_file_id id;
    /* images */
    struct qm_live_images *images;
    size_t first; /* of this domain's */
    bool no_memory;
    /* the one that is asked */
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

/* Its path, malloc'd; NULL: it has none, or a pool that is not started, and so has no volume that runs. */
static char *
path_of(const struct search *search, const struct qm_domxml_source *source)
{
    char *volume = NULL;
    struct qm_fault unheard;

    if (source->path)
        return strdup(source->path);
    if (!source->pool || !source->volume ||
        qm_defs_volume_path(search->session, source->pool, source->volume, &volume, &unheard) < 0)
        return NULL;
    return volume;
}

static bool
leads_there(const struct search *search, const struct qm_domxml_source *source)
{
    QM_FREE char *path = path_of(search, source);
    const struct qm_file_id id = qm_file_id(path);

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
        qm_note(search->notes, "the definition of domain \"%s\" cannot be read: %s",
                search->domain->name, err.what);
        return;
    }
    QM_VEC_EACH (disk, &xml->disks)
        search_disk(search, disk);
    qm_domxml_free(xml);
}

/* ---- images ---- */

static bool
add_image(struct search *search, char *path)
{
    struct qm_live_images *out = search->images;
    struct qm_live_image *at;
    char *domain;

    for (size_t i = search->first; i < out->n; i++)
        if (strcmp(out->at[i].path, path) == 0) { /* the running definition comes first */
            free(path);
            return true;
        }
    at = reallocarray(out->at, out->n + 1, sizeof *at);
    out->at = at ? at : out->at;
    domain = at ? strdup(search->domain->name) : NULL;
    if (!domain) {
        free(path);
        return false;
    }
    out->at[out->n++] =
        (struct qm_live_image){.path = path, .domain = domain, .running = search->running};
    return true;
}

static int
take_source(const struct qm_domxml_source *source, const char *target, void *opaque)
{
    struct search *search = opaque;
    char *const paths[] = {path_of(search, source),
                           source->data_file ? strdup(source->data_file) : NULL};

    (void)target;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        if (!qm_file_id(paths[i]).regular)
            free(paths[i]);
        else if (!add_image(search, paths[i]))
            search->no_memory = true;
    }
    return search->no_memory;
}

static void
collect(struct search *search, const char *text)
{
    struct qmeld_error err = {0};

    if (text && qm_domxml_each_source(text, take_source, search, &err) < 0)
        qm_note(search->notes, "a definition of domain \"%s\" cannot be read: %s",
                search->domain->name, err.what);
}

static void
collect_images(struct search *search, const struct qm_texts *texts)
{
    search->first = search->images->n;
    search->running = true;
    collect(search, texts->live);
    search->running = false;
    collect(search, texts->persistent);
    collect(search, texts->saved);
    for (size_t i = 0; i < texts->snapshots.n; i++)
        collect(search, texts->snapshots.at[i]);
}

/* ---- hypervisors ---- */

static bool
is_late(void *opaque)
{
    const struct search *search = opaque;

    return search->ends > 0 && qm_clock_sec() >= search->ends;
}

static void
search_domains(struct search *search)
{
    struct qm_domain_list list;
    struct qm_fault fault;

    if (qm_texts_domains(search->session, &list, &fault) < 0) {
        qm_note(search->notes, "%s cannot list its domains: %s", search->uri, fault.what);
        return;
    }
    QM_VEC_EACH (domain, &list.domains) {
        struct qm_texts texts;

        search->domain = domain;
        if (is_late(search)) {
            qm_note(search->notes, "%s takes too long: not all of its domains were asked",
                    search->uri);
            break;
        }
        if (qm_texts_get(search->session, domain->ptr, &texts, &fault) < 0) {
            qm_note(search->notes, "domain \"%s\" of %s cannot be asked: %s", domain->name,
                    search->uri, fault.what);
            continue;
        }
        search->look(search, &texts);
        qm_texts_free(&texts);
    }
    qm_texts_domains_free(&list);
}

static void
search_hypervisor(struct search *search, const char *uri)
{
    const struct qm_session_options options = {
        .uri = uri, .read_only = false, .stop = is_late, .opaque = search};
    struct qmeld_error err = {0};

    if (qm_session_open(&options, &search->session, &err) < 0) {
        qm_note(search->notes, "%s", err.what);
        return;
    }
    search->uri = qm_session_uri(search->session);
    if (qm_session_is_local(search->session))
        search_domains(search);
    else
        qm_note(search->notes, "%s is another machine: its paths mean other files", search->uri);
    qm_session_close(search->session);
}

static void
search_hypervisors(struct search *search, const char *uri)
{
    /* a question must not leave a daemon behind that was not there (libvirt starts one for a session) */
    (void)setenv("LIBVIRT_AUTOSTART", "0", 0);
    if (uri || qm_session_default_is_set() || geteuid() == 0) {
        search_hypervisor(search, uri);
        return;
    }
    search_hypervisor(search, "qemu:///system");
    search_hypervisor(search, "qemu:///session");
}

int
qm_scan_uses(const char *uri, const char *path, struct qm_live_uses *out, struct qmeld_error *err)
{
    QM_FREE char *full = realpath(path, NULL);
    struct search search = {.look = search_uses, .notes = &out->notes, .out = out};

    memset(out, 0, sizeof *out);
    memset(err, 0, sizeof *err);
    if (!full)
        return qm_fail_sys(err, qm_in(path), "cannot find the file");
    search.id = qm_file_id(full);
    search_hypervisors(&search, uri);
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

int
qm_scan_images(const char *uri, unsigned seconds, struct qm_live_images *out,
               struct qmeld_error *err)
{
    struct search search = {.look = collect_images,
                            .notes = &out->notes,
                            .ends = qm_clock_sec() + seconds,
                            .images = out};

    memset(out, 0, sizeof *out);
    memset(err, 0, sizeof *err);
    search_hypervisors(&search, uri);
    return search.no_memory ? qm_fail_nomem(err, "asking for other images") : 0;
}

void
qm_scan_images_free(struct qm_live_images *images)
{
    for (size_t i = 0; i < images->n; i++) {
        free(images->at[i].path);
        free(images->at[i].domain);
    }
    free(images->at);
    qm_notes_free(&images->notes);
    memset(images, 0, sizeof *images);
}
