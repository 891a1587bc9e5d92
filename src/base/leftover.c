/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "leftover.h"

#include "shadow.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>

#define NAME "user.qmeld.merged"

struct look {
    char text[NAME_MAX + 96];
};

/* Device and inode are not in it, so that a copy with attributes and times is what it is a copy of.  The name is: who gives a
 * file another one has a use for it. */
static bool
look_at(const char *path, struct look *out)
{
    const char *slash = strrchr(path, '/');
    struct stat st;

    if (stat(path, &st) < 0 || !S_ISREG(st.st_mode))
        return false;
    snprintf(out->text, sizeof out->text, "%" PRIu64 " %" PRId64 ".%09ld %s", (uint64_t)st.st_size,
             (int64_t)st.st_mtim.tv_sec, st.st_mtim.tv_nsec, slash ? slash + 1 : path);
    return true;
}

void
qm_leftover_mark(const char *path)
{
    struct look now;

    if (!qm_shadow_now() && look_at(path, &now))
        (void)!setxattr(path, NAME, now.text, strlen(now.text), 0);
}

bool
qm_leftover_is(const char *path)
{
    char noted[sizeof(struct look)];
    const ssize_t n = getxattr(path, NAME, noted, sizeof noted);
    struct look now;

    return n > 0 && look_at(path, &now) && (size_t)n == strlen(now.text) &&
           memcmp(noted, now.text, (size_t)n) == 0;
}

bool
qm_leftover_can_tell(const char *path)
{
    return getxattr(path, NAME, NULL, 0) >= 0 || errno != ENOTSUP;
}
