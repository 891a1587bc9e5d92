/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * fuzz_names.c - any text as a backing name: where it leads, and the name that leads there from elsewhere.
 */
#include "fuzz.h"

#include "chain.h"

#include <stdlib.h>
#include <string.h>

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *name = malloc(len + 1), *path = NULL, *format = NULL, *again = NULL;
    struct qmeld_error err;

    qm_fuzz_must(name, "memory");
    if (len > 0)
        memcpy(name, data, len);
    name[len] = 0;
    if (qm_backing_path("/a/b/top.qcow2", name, &path, &format, &err) == 0) {
        qm_fuzz_must(path && path[0], "a path");
        if (qm_backing_name_for("/a/b/top.qcow2", name, path, false, &again, &err) == 0)
            qm_fuzz_must(again && again[0], "a name");
    } else {
        qm_fuzz_must(err.what[0], "a failure says why");
    }
    free(name);
    free(path);
    free(format);
    free(again);
    return 0;
}
