/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_domxml.c - any text as libvirt's XML of a domain or a snapshot: what it says of disks, and as a merge leaves it.
 *
 * What an edit makes can be read, and the same edit finds nothing more to do in it.
 */
#include "fuzz.h"

#include "domxml.h"

#include <stdlib.h>
#include <string.h>

static int
look(const struct qm_domxml_source *s, const char *target, void *opaque)
{
    char *text = qm_domxml_source_text(s);

    (void)opaque;
    qm_fuzz_must(target && text, "a source has words");
    free(text);
    return 0;
}

static enum qm_layer_role
role(const struct qm_domxml_source *s, void *opaque)
{
    (void)opaque;
    if (!s->path)
        return QM_LAYER_OTHER;
    return strcmp(s->path, "/b") == 0                                 ? QM_LAYER_BASE
           : strcmp(s->path, "/t") == 0 || strcmp(s->path, "/m") == 0 ? QM_LAYER_MERGED
                                                                      : QM_LAYER_OTHER;
}

static const struct qm_domxml_edit edit = {
    .target = "vda", .role = role, .base = "/b", .base_format = "qcow2"};

static void
edit_all(const char *text)
{
    struct qm_domxml *x;
    struct qmeld_error err;
    char *once, *twice;

    if (qm_domxml_edit_all(text, &edit, 1, &once, &err) < 0) {
        qm_fuzz_must(err.what[0], "a failure says why");
        return;
    }
    if (!once)
        return;
    if (qm_domxml_parse(text, &x, &err) == 0) {
        qm_domxml_free(x);
        qm_fuzz_must(qm_domxml_parse(once, &x, &err) == 0, "what we write can be read");
        qm_domxml_free(x);
    }
    qm_fuzz_must(qm_domxml_edit_all(once, &edit, 1, &twice, &err) == 0, err.what);
    qm_fuzz_must(!twice, "it is done");
    free(twice);
    free(once);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *text = malloc(len + 1), *disk = NULL;
    struct qm_domxml *x;
    struct qmeld_error err;

    qm_fuzz_must(text, "memory");
    if (len > 0)
        memcpy(text, data, len);
    text[len] = 0;
    if (qm_domxml_parse(text, &x, &err) == 0) {
        (void)qm_domxml_find(x, "vda");
        qm_domxml_free(x);
    } else {
        qm_fuzz_must(err.what[0] && err.code != QMELD_OK, "a failure says why");
    }
    (void)!qm_domxml_each_source(text, look, NULL, &err);
    if (qm_domxml_edit_disk(text, &edit, &disk, &err) < 0)
        qm_fuzz_must(err.what[0], "a failure says why");
    free(disk);
    edit_all(text);
    free(text);
    return 0;
}
