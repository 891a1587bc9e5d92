/* SPDX-License-Identifier: LGPL-2.1-or-later */
#ifdef QM_NBD

#define QM_NBD_NO_NAMES
#include "nbd_lib.h"

#include <dlfcn.h>
#include <pthread.h>
#include <string.h>

#define SONAME "libnbd.so.0"

struct qm_nbd_lib qm_nbd_lib; /* set once, and only read from then on */

static pthread_once_t once = PTHREAD_ONCE_INIT;
static bool is_there;

static bool
take(void *from, const char *name, void *to)
{
    void *call = dlsym(from, name);

    memcpy(to, &call, sizeof call); /* a pointer to a function, as POSIX has it */
    return call != NULL;
}

#define TAKE(call) good = take(from, #call, &qm_nbd_lib.p_##call) && good;

static void
load(void)
{
    void *from = dlopen(SONAME, RTLD_NOW | RTLD_LOCAL);
    bool good = from != NULL;

    if (!from)
        return;
    QM_NBD_CALLS(TAKE)
    is_there = good;
}

int
qm_nbd_load(const char *path, struct qmeld_error *err)
{
    pthread_once(&once, load);
    if (is_there)
        return 0;
    return qm_fail(err, QMELD_UNSUPPORTED, qm_in(path),
                   "it is an NBD export, and " SONAME " cannot be loaded: install libnbd");
}

#endif
