/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * cmd_info_domain.c - `qmeld info DOMAIN`: a virtual machine's disks, and the chain of each.
 *
 * What `virsh domblklist` and `qemu-img info --force-share --backing-chain` tell together: the definition
 * says which layers the machine has and what they are called there, the headers what is in them.  Where
 * both disagree, both are shown.
 */
#include "info.h"
#include "loader.h"

#include <json-c/json.h>
#include <stdlib.h>
#include <string.h>

/* The chain by its headers, if the disk's active layer is a file that we may read. */
static struct qmeld_chain *
open_chain(const struct qm_live_disk *disk, struct qmeld_error *err)
{
    const struct qmeld_open_options options = {.format =
                                                   disk->n_layers ? disk->layers[0].format : NULL};
    struct qmeld_chain *chain = NULL;

    memset(err, 0, sizeof *err);
    if (disk->n_layers == 0 || !disk->layers[0].local ||
        qmeld_chain_open(disk->layers[0].name, &options, &chain, err) < 0)
        return NULL;
    return chain;
}

/* The definition's layer for one of the headers' chain, counted from the top. */
static const struct qm_live_layer *
defined_layer(const struct qm_live_disk *disk, size_t depth, const char *path)
{
    const struct qm_live_layer *layer = depth < disk->n_layers ? &disk->layers[depth] : NULL;
    char *one, *other;
    bool same;

    if (!layer || !layer->local)
        return NULL;
    one = realpath(layer->name, NULL);
    other = realpath(path, NULL);
    same = one && other && strcmp(one, other) == 0;
    free(one);
    free(other);
    return same ? layer : NULL;
}

/* The definition says more than its active layer, so that it can be compared. */
static bool
is_told_in_full(const struct qm_live_disk *disk)
{
    return disk->n_layers > 1 || disk->chain_ends;
}

/* ---- human ---- */

static void
print_disk_line(const struct qm_live_disk *disk)
{
    QM_CLI_FREE char *source = qm_cli_quote(disk->n_layers ? disk->layers[0].name : "-");
    QM_CLI_FREE char *target = qm_cli_quote(disk->target);

    printf("%-8s %s", target, source);
    if (disk->n_layers > 1)
        printf(" (%zu layers)", disk->n_layers);
    if (strcmp(disk->device, "disk") != 0)
        printf(", %s", disk->device);
    printf("%s%s%s", disk->readonly ? ", read-only" : "", disk->shareable ? ", shareable" : "",
           disk->transient ? ", transient" : "");
    if (disk->job)
        printf(", %s job%s", disk->job, disk->job_ready ? " that is ready" : "");
    putchar('\n');
}

/* What only the definition tells: layers of other machines, or that we may not read. */
static void
print_defined(const struct qm_live_disk *disk)
{
    for (size_t i = 0; i < disk->n_layers; i++) {
        const struct qm_live_layer *layer = &disk->layers[i];
        QM_CLI_FREE char *name = qm_cli_quote(layer->name);
        QM_CLI_FREE char *format = qm_cli_quote(layer->format ? layer->format : "unknown");

        if (layer->index)
            printf("%s[%u] %s\n", disk->target, layer->index, name);
        else
            printf("[%zu] %s\n", disk->n_layers - i, name);
        printf("    %-15s %s\n", "format", format);
    }
    if (disk->n_layers && !disk->chain_ends)
        puts("    the definition does not say what lies under this");
}

static int
print_chain(const struct qm_live_disk *disk, struct qmeld_chain *chain, struct qmeld_error *err)
{
    const size_t depth = qmeld_chain_depth(chain);
    bool differs = is_told_in_full(disk) && depth != disk->n_layers;

    for (size_t i = 0; i < depth; i++) {
        struct qmeld_layer_info layer;
        const struct qm_live_layer *defined;
        char label[80];

        if (qmeld_chain_layer(chain, depth - 1 - i, &layer, err) < 0)
            return -1;
        defined = defined_layer(disk, i, layer.path);
        differs |= is_told_in_full(disk) && !defined;
        if (defined && defined->index)
            snprintf(label, sizeof label, "%.60s[%u]", disk->target, defined->index);
        else
            snprintf(label, sizeof label, "[%zu]", depth - i);
        qm_cli_info_print(label, &layer, i == 0);
    }
    if (differs) {
        puts("    the definition has another chain:");
        print_defined(disk);
    }
    return 0;
}

static int
print_domain(const struct qm_live_domain *domain, struct qmeld_error *err)
{
    QM_CLI_FREE char *name = qm_cli_quote(domain->name);

    printf("%s: %s%s%s, %s, %s\n", name, domain->state, domain->persistent ? "" : ", transient",
           domain->managed_save ? ", with a saved state" : "", domain->uuid, domain->uri);
    for (size_t i = 0; i < domain->n_disks; i++)
        print_disk_line(&domain->disks[i]);
    for (size_t i = 0; i < domain->n_disks; i++) {
        const struct qm_live_disk *disk = &domain->disks[i];
        struct qmeld_chain *chain = open_chain(disk, err);

        if (disk->n_layers == 0)
            continue;
        putchar('\n');
        print_disk_line(disk);
        if (chain && print_chain(disk, chain, err) < 0) {
            qmeld_chain_close(chain);
            return -1;
        }
        if (!chain) {
            print_defined(disk);
            if (err->what[0]) {
                QM_CLI_FREE char *what = qm_cli_quote(err->what);

                printf("    (%s)\n", what);
            }
        }
        qmeld_chain_close(chain);
    }
    memset(err, 0, sizeof *err);
    return 0;
}

/* ---- JSON ---- */

static struct json_object *
defined_json(const struct qm_live_disk *disk)
{
    struct json_object *list = json_object_new_array();

    for (size_t i = 0; i < disk->n_layers; i++) {
        const struct qm_live_layer *layer = &disk->layers[i];
        struct json_object *object = json_object_new_object();

        if (layer->index) {
            char name[80];

            snprintf(name, sizeof name, "%.60s[%u]", disk->target, layer->index);
            qm_cli_json_add(object, "name", qm_cli_json_string(name));
        }
        qm_cli_json_add(object, "type", qm_cli_json_string(layer->type));
        qm_cli_json_add(object, "filename", qm_cli_json_string(layer->name));
        qm_cli_json_add(object, "format", qm_cli_json_string(layer->format));
        json_object_array_add(list, object);
    }
    return list;
}

/* NULL where the images cannot be read. */
static struct json_object *
images_json(const struct qm_live_disk *disk, struct qmeld_error *err)
{
    struct qmeld_chain *chain = open_chain(disk, err);
    struct json_object *list = chain ? json_object_new_array() : NULL;
    struct qmeld_layer_info layer, below = {0};
    size_t i = chain ? qmeld_chain_depth(chain) : 0;
    bool fine = chain && qmeld_chain_layer(chain, i - 1, &layer, err) == 0;

    while (fine && i-- > 0) {
        if (i > 0 && qmeld_chain_layer(chain, i - 1, &below, err) < 0)
            break;
        json_object_array_add(list, qm_cli_info_json(i + 1, &layer, i > 0 ? below.path : NULL));
        layer = below;
    }
    qmeld_chain_close(chain);
    return list;
}

static void
print_domain_json(const struct qm_live_domain *domain, struct qmeld_error *err)
{
    struct json_object *object = json_object_new_object(), *disks = json_object_new_array();

    qm_cli_json_add(object, "domain", qm_cli_json_string(domain->name));
    qm_cli_json_add(object, "uuid", qm_cli_json_string(domain->uuid));
    qm_cli_json_add(object, "uri", qm_cli_json_string(domain->uri));
    qm_cli_json_add(object, "state", qm_cli_json_string(domain->state));
    qm_cli_json_add_bool(object, "running", domain->running);
    qm_cli_json_add_bool(object, "persistent", domain->persistent);
    qm_cli_json_add_bool(object, "managed-save", domain->managed_save);
    for (size_t i = 0; i < domain->n_disks; i++) {
        const struct qm_live_disk *disk = &domain->disks[i];
        struct json_object *item = json_object_new_object();

        qm_cli_json_add(item, "target", qm_cli_json_string(disk->target));
        qm_cli_json_add(item, "device", qm_cli_json_string(disk->device));
        qm_cli_json_add_bool(item, "readonly", disk->readonly);
        qm_cli_json_add_bool(item, "shareable", disk->shareable);
        qm_cli_json_add_bool(item, "transient", disk->transient);
        qm_cli_json_add(item, "job", qm_cli_json_string(disk->job));
        qm_cli_json_add_bool(item, "job-ready", disk->job_ready);
        qm_cli_json_add_bool(item, "chain-ends", disk->chain_ends);
        qm_cli_json_add(item, "chain", defined_json(disk));
        qm_cli_json_add(item, "images", images_json(disk, err));
        json_object_array_add(disks, item);
    }
    qm_cli_json_add(object, "disks", disks);
    qm_cli_json_print(object);
}

/* ---- the command ---- */

int
qm_cli_info_domain(const char *uri, const char *name, enum qm_cli_output output,
                   struct qmeld_error *err)
{
    const struct qm_live_module *live = qm_cli_live(err);
    struct qm_live_domain domain = {0};
    int result;

    if (!live)
        return -1;
    if (live->domain(uri, name, &domain, err) < 0) {
        live->domain_free(&domain);
        return -1;
    }
    if (output == QM_OUTPUT_JSON)
        print_domain_json(&domain, err);
    result = output == QM_OUTPUT_JSON ? 0 : print_domain(&domain, err);
    live->domain_free(&domain);
    return result < 0 ? qm_cli_fail(err) : QM_EXIT_DONE;
}
