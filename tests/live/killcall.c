/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * killcall.c - preloaded into qmeld: it dies at a call to libvirt, or when it removes a file.
 *
 * Why.  A machine's merge is right only when images, definition, snapshots and files all are; it may die
 * between any two of them.  SIGKILL cannot be caught, so what is there then is what a crash leaves.
 *
 * Environment
 *   KILL_CALL=NAME   of the function: virDomainUpdateDeviceFlags, virDomainSnapshotDelete,
 *                    virDomainSnapshotCreateXML, virDomainManagedSaveDefineXML, virDomainBlockCommit,
 *                    virDomainBlockJobAbort, virDomainResume, unlink
 *   KILL_AFTER=1     when the call has returned; otherwise in front of it
 *   KILL_NTH=N       the N-th such call (1)
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static atomic_int calls;

static void
maybe_die(const char *name, int after)
{
    const char *wanted = getenv("KILL_CALL"), *nth = getenv("KILL_NTH");

    if (!wanted || strcmp(wanted, name) != 0 || (getenv("KILL_AFTER") != NULL) != after)
        return;
    if (atomic_fetch_add(&calls, 1) + 1 == (nth ? atoi(nth) : 1))
        kill(getpid(), SIGKILL);
}

/* The module that needs libvirt is loaded late and by itself, so that RTLD_NEXT does not see it. */
static void *
real(const char *library, const char *name)
{
    void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    void *function = handle ? dlsym(handle, name) : NULL;

    if (!function)
        abort();
    return function;
}

#define STAND_IN(result, name, parameters, arguments)                                              \
    result name parameters;                                                                        \
    result name parameters                                                                         \
    {                                                                                              \
        result(*next) parameters;                                                                  \
        result r;                                                                                  \
                                                                                                   \
        *(void **)&next = real("libvirt.so.0", #name);                                             \
        maybe_die(#name, 0);                                                                       \
        r = next arguments;                                                                        \
        maybe_die(#name, 1);                                                                       \
        return r;                                                                                  \
    }

STAND_IN(int, virDomainUpdateDeviceFlags, (void *dom, const char *xml, unsigned flags),
         (dom, xml, flags))
STAND_IN(int, virDomainSnapshotDelete, (void *snapshot, unsigned flags), (snapshot, flags))
STAND_IN(void *, virDomainSnapshotCreateXML, (void *dom, const char *xml, unsigned flags),
         (dom, xml, flags))
STAND_IN(int, virDomainManagedSaveDefineXML, (void *dom, const char *xml, unsigned flags),
         (dom, xml, flags))
STAND_IN(int, virDomainBlockCommit,
         (void *dom, const char *disk, const char *base, const char *top, unsigned long bandwidth,
          unsigned flags),
         (dom, disk, base, top, bandwidth, flags))
STAND_IN(int, virDomainResume, (void *dom), (dom))
STAND_IN(int, virDomainBlockJobAbort, (void *dom, const char *disk, unsigned flags),
         (dom, disk, flags))

int
unlink(const char *path)
{
    int (*next)(const char *);
    int r;

    *(void **)&next = dlsym(RTLD_NEXT, "unlink");
    maybe_die("unlink", 0);
    r = next(path);
    maybe_die("unlink", 1);
    return r;
}
