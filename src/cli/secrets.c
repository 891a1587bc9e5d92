/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "secrets.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define MAX_SECRETS                                                                                \
    1024u /* a chain has no more layers that are encrypted by people who want to merge it */

static struct qmeld_secret list[MAX_SECRETS];
static struct qmeld_secrets all = {.list = list};

static void
wipe(void)
{
    for (size_t i = 0; i < all.n; i++) {
        explicit_bzero((void *)list[i].data, QMELD_MAX_SECRET + 1);
        free((void *)list[i].data);
        free((void *)list[i].layer);
    }
    all.n = 0;
}

/* What is in memory from here on is not for a core dump.  1 and not 0: a program that dumps are piped to gets none
 * either (core(5)). */
static void
forbid_dumps(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_CORE, &limit) == 0 && limit.rlim_max > 0) {
        limit.rlim_cur = 1;
        (void)setrlimit(RLIMIT_CORE, &limit);
    }
}

/* All that there is, one byte more than allowed at most; -1: errno. */
static ssize_t
read_all(int fd, char *buf)
{
    size_t n = 0;

    while (n <= QMELD_MAX_SECRET) {
        const ssize_t got = read(fd, buf + n, QMELD_MAX_SECRET + 1 - n);

        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return -1;
        if (got == 0)
            break;
        n += (size_t)got;
    }
    return (ssize_t)n;
}

static bool
add(const char *command, const char *where, int fd, const char *layer, size_t layer_len)
{
    char *buf = malloc(QMELD_MAX_SECRET + 1);
    char *name = layer_len ? strndup(layer, layer_len) : NULL;
    ssize_t n;

    if (!buf || (layer_len && !name)) {
        free(buf);
        free(name);
        qm_cli_usage(command, "out of memory for a passphrase");
        return false;
    }
    n = read_all(fd, buf);
    if (n < 0)
        qm_cli_usage(command, "cannot read the passphrase from %s: %s", where, strerror(errno));
    else if (n == 0)
        qm_cli_usage(command, "the passphrase from %s is empty", where);
    else if ((size_t)n > QMELD_MAX_SECRET)
        qm_cli_usage(command, "%s is too long for a passphrase: the limit is %u bytes", where,
                     QMELD_MAX_SECRET);
    list[all.n++] = (struct qmeld_secret){.layer = name, .data = buf, .len = n > 0 ? (size_t)n : 0};
    return n > 0 && (size_t)n <= QMELD_MAX_SECRET;
}

static bool
take_fd(const char *command, const char *text, const char *layer, size_t layer_len)
{
    uint64_t fd;

    if (!qm_cli_parse_number(text, 1u << 20, &fd)) {
        qm_cli_usage(command, "--secret-fd is the number of a descriptor, not \"%s\"", text);
        return false;
    }
    return add(command, "that descriptor", (int)fd, layer, layer_len);
}

static bool
take_file(const char *command, const char *path, const char *layer, size_t layer_len)
{
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    bool done;

    if (fd < 0) {
        qm_cli_usage(command, "cannot open %s, which is to hold a passphrase: %s", path,
                     strerror(errno));
        return false;
    }
    done = add(command, path, fd, layer, layer_len);
    close(fd);
    return done;
}

bool
qm_cli_secrets_take(const char *command, int c)
{
    const char *equals = strchr(optarg, '=');
    const char *where = equals ? equals + 1 : optarg;
    const size_t layer_len = equals ? (size_t)(equals - optarg) : 0;

    if (all.n == 0) {
        forbid_dumps();
        (void)atexit(wipe);
    }
    if (all.n == MAX_SECRETS) {
        qm_cli_usage(command, "more than %u passphrases", MAX_SECRETS);
        return false;
    }
    return c == QM_OPT_SECRET_FD ? take_fd(command, where, optarg, layer_len)
                                 : take_file(command, where, optarg, layer_len);
}

const struct qmeld_secrets *
qm_cli_secrets(void)
{
    return all.n > 0 ? &all : NULL;
}
