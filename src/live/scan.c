/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "scan.h"

#include "cleanup.h"
#include "clock.h"
#include "defs.h"
#include "module.h"
#include "range.h"
#include "texts.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { HEADERS_S = 20 }; /* of searching through headers, in all; what is left then is noted */

/* The search through one text. */
struct walk {
    struct qm_scan *scan;
    struct qm_scan_mention mention; /* what is the same for all hits of the text */
    const struct qm_file_id *ids;   /* of the files, where they are this machine's */
    bool local;
};

const char *
qm_scan_where_name(enum qm_scan_where where)
{
    switch (where) {
    case QM_SCAN_LIVE:
        return "runs with it";
    case QM_SCAN_PERSISTENT:
        return "has it in its kept definition";
    case QM_SCAN_SNAPSHOT:
        return "has it in the snapshot";
    case QM_SCAN_SAVED:
        return "has it in its saved state";
    case QM_SCAN_HEADER:
        return "has it under its image";
    }
    return "has it";
}

/* Both may name another file by its path, so a data file is as good as an image. */
static bool
is_file(const struct walk *walk, size_t i, const struct qm_domxml_source *s,
        const struct qm_file_id *id, const struct qm_file_id *data)
{
    return qm_range_same(s, walk->scan->files[i], false) || qm_file_id_same(id, &walk->ids[i]) ||
           qm_file_id_same(data, &walk->ids[i]);
}

/* A volume's path is in no definition: the storage driver is asked.  NULL: it is none, or is not known. */
static char *
volume_path(const struct walk *walk, const struct qm_domxml_source *s)
{
    struct qm_fault unheard;
    char *path = NULL;

    if (s->path || !s->pool || !s->volume ||
        qm_defs_volume_path(walk->scan->session, s->pool, s->volume, &path, &unheard) < 0)
        return NULL;
    return path;
}

static int
check_source(const struct qm_domxml_source *s, const char *target, void *opaque)
{
    struct walk *walk = opaque;
    const struct qm_file_id none = {0};
    QM_FREE char *volume = walk->local ? volume_path(walk, s) : NULL;
    const struct qm_file_id id = walk->local ? qm_file_id(volume ? volume : s->path) : none;
    const struct qm_file_id data = walk->local ? qm_file_id(s->data_file) : none;

    for (size_t i = 0; i < walk->scan->n_files; i++) {
        int stop;

        if (!is_file(walk, i, s, &id, &data))
            continue;
        walk->mention.file = i;
        walk->mention.target = target;
        stop = walk->scan->fn(&walk->mention, walk->scan->opaque);
        if (stop != 0)
            return stop;
    }
    return 0;
}

static int
search_text(struct walk *walk, const char *text, enum qm_scan_where where)
{
    struct qmeld_error err = {0};
    int stop;

    if (!text)
        return 0;
    walk->mention.where = where;
    stop = qm_domxml_each_source(text, check_source, walk, &err);
    if (stop < 0) {
        walk->scan->incomplete = true;
        qm_note(walk->scan->notes, "a definition of domain \"%s\" cannot be read: %s",
                walk->mention.domain, err.what);
        return 0;
    }
    return stop;
}

/* ---- what headers tell ---- */

/* Where an image of a definition leads to, by the headers under it. */
static int
search_chain(struct walk *walk, const struct qm_domxml_source *head, const char *target)
{
    const struct qmeld_open_options options = {.format = head->format};
    QM_FREE char *volume = volume_path(walk, head);
    const char *path = volume ? volume : head->path;
    struct qmeld_chain *chain = NULL;
    struct qmeld_error err = {0};
    int stop = 0;

    if (!path || (head->format && strcmp(head->format, "raw") == 0) ||
        qm_lib->chain_open(path, &options, &chain, &err) < 0)
        return 0; /* what cannot be opened by us: its machine could not start either, or we may not look */
    walk->mention.where = QM_SCAN_HEADER;
    walk->mention.head = path;
    for (size_t i = qm_lib->chain_depth(chain); stop == 0 && i-- > 0;) {
        struct qmeld_layer_info layer;
        struct qm_domxml_source below = {.type = QM_SOURCE_FILE};

        if (qm_lib->chain_layer(chain, i, &layer, &err) < 0)
            break;
        below.path = (char *)layer.path;
        if (strcmp(layer.path, path) != 0)
            stop = check_source(&below, target, walk);
    }
    qm_lib->chain_close(chain);
    walk->mention.head = NULL;
    return stop;
}

struct heads {
    struct walk *walk;
    double ends;
};

static int
search_head(const struct qm_domxml_source *s, const char *target, void *opaque)
{
    struct heads *heads = opaque;

    if (qm_clock_sec() < heads->ends)
        return search_chain(heads->walk, s, target);
    if (!heads->walk->scan->incomplete)
        qm_note(heads->walk->scan->notes, "there are too many images to look at all headers: "
                                          "whether others stand on the same base is not "
                                          "known");
    heads->walk->scan->incomplete = true;
    return 0;
}

/* Kept definitions, also of machines that run on something else, saved states and snapshots name heads of chains; the
 * running one has its chain in full. */
static int
search_headers(struct walk *walk, const struct qm_texts *texts, double ends)
{
    struct heads heads = {.walk = walk, .ends = ends};
    struct qmeld_error err = {0};
    int stop = 0;

    if (texts->persistent)
        stop = qm_domxml_each_source(texts->persistent, search_head, &heads, &err);
    if (stop <= 0 && texts->saved)
        stop = qm_domxml_each_source(texts->saved, search_head, &heads, &err);
    for (size_t i = 0; stop <= 0 && i < texts->snapshots.n; i++)
        stop = qm_domxml_each_source(texts->snapshots.at[i], search_head, &heads, &err);
    return stop > 0 ? stop : 0;
}

/* ---- domains ---- */

static char *
snapshot_name(const char *text)
{
    struct qmeld_error err = {0};
    struct qm_domxml *xml;
    char *name;

    if (qm_domxml_parse(text, &xml, &err) < 0)
        return NULL;
    name = QM_TAKE(xml->name);
    qm_domxml_free(xml);
    return name;
}

static int
search_texts(struct walk *walk, const struct qm_texts *texts, double ends)
{
    int stop = search_text(walk, texts->live, QM_SCAN_LIVE);

    if (stop == 0)
        stop = search_text(walk, texts->persistent, QM_SCAN_PERSISTENT);
    if (stop == 0)
        stop = search_text(walk, texts->saved, QM_SCAN_SAVED);
    for (size_t i = 0; stop == 0 && i < texts->snapshots.n; i++) {
        QM_FREE char *name = snapshot_name(texts->snapshots.at[i]);

        walk->mention.snapshot = name ? name : "";
        stop = search_text(walk, texts->snapshots.at[i], QM_SCAN_SNAPSHOT);
        walk->mention.snapshot = NULL;
    }
    if (stop == 0 && walk->local)
        stop = search_headers(walk, texts, ends);
    return stop;
}

static int
search_domain(struct walk *walk, const struct qm_domain *domain, double ends)
{
    struct qm_texts texts;
    struct qm_fault fault;
    int stop;

    if (qm_texts_get(walk->scan->session, domain->ptr, &texts, &fault) < 0) {
        if (fault.code == VIR_ERR_NO_DOMAIN)
            return 0;
        walk->scan->incomplete = true;
        qm_note(walk->scan->notes, "domain \"%s\" cannot be asked what it uses: %s", domain->name,
                fault.what);
        return 0;
    }
    walk->mention.domain = domain->name;
    walk->mention.uuid = domain->uuid;
    stop = search_texts(walk, &texts, ends);
    qm_texts_free(&texts);
    return stop;
}

int
qm_scan_mentions(struct qm_scan *scan, struct qmeld_error *err)
{
    QM_FREE struct qm_file_id *ids = calloc(scan->n_files + 1, sizeof *ids);
    struct walk walk = {.scan = scan, .ids = ids, .local = qm_session_is_local(scan->session)};
    const double ends = qm_clock_sec() + HEADERS_S;
    struct qm_domain_list list;
    struct qm_fault fault;
    int stop = 0;

    if (!ids)
        return qm_fail_nomem(err, "looking for who uses the files");
    for (size_t i = 0; i < scan->n_files && walk.local; i++)
        ids[i] = qm_file_id(scan->files[i]->path);
    if (qm_texts_domains(scan->session, &list, &fault) < 0)
        return qm_session_fail(err, &fault, "list the domains");
    for (size_t i = 0; stop == 0 && i < list.domains.n; i++) {
        if (qm_session_stopped(scan->session)) {
            qm_texts_domains_free(&list);
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(),
                           "stopped while looking for who uses the files");
        }
        stop = search_domain(&walk, &list.domains.at[i], ends);
    }
    qm_texts_domains_free(&list);
    return 0;
}
