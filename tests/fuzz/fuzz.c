/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "fuzz.h"

#include "luks.h"

#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEP      65536u
#define MOST_READ (64u << 20) /* of one extent: data of a sparse file may have no end */

static char folder[] = "/dev/shm/qmeld-fuzz-XXXXXX";
static bool made;

void
qm_fuzz_fail(const char *cond, const char *what)
{
    fprintf(stderr, "finding: not so: %s: %s\n", cond, what);
    abort();
}

static void
leave(void)
{
    qm_fuzz_clean();
    (void)rmdir(folder);
}

void
qm_fuzz_folder(void)
{
    if (made)
        return;
    made = true;
    if (!mkdtemp(folder) || chdir(folder) != 0)
        qm_fuzz_fail("a folder", "cannot make one in /dev/shm");
    atexit(leave);
}

void
qm_fuzz_clean(void)
{
    DIR *d = made ? opendir(folder) : NULL;

    for (const struct dirent *e; d && (e = readdir(d));)
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            (void)unlinkat(dirfd(d), e->d_name, 0);
    if (d)
        closedir(d);
}

void
qm_fuzz_write(const char *name, const void *data, size_t len)
{
    FILE *f = fopen(name, "wb");

    qm_fuzz_must(f && fwrite(data, 1, len, f) == len && fclose(f) == 0, name);
}

unsigned char *
qm_fuzz_read(const char *name, size_t *out_len)
{
    FILE *f = fopen(name, "rb");
    unsigned char *data = NULL;
    struct stat st;

    *out_len = 0;
    if (!f)
        return NULL;
    if (fstat(fileno(f), &st) == 0 && (data = malloc((size_t)st.st_size + 1)))
        *out_len = fread(data, 1, (size_t)st.st_size, f);
    fclose(f);
    qm_fuzz_must(data, name);
    return data;
}

bool
qm_fuzz_holds(const char *name, const void *data, size_t len)
{
    size_t n;
    unsigned char *now = qm_fuzz_read(name, &n);
    const bool same = now && n == len && memcmp(now, data, len) == 0;

    free(now);
    return same;
}

/* ---- what an image reads as ---- */

struct walk {
    struct qmeld_chain *chain;
    struct qm_fuzz_view view;
};

static void
add(struct qm_fuzz_view *v, uint64_t at, const unsigned char *data, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (data[i])
            v->sum += ((at + i) * 0x9e3779b97f4a7c15u ^ data[i]) * 0x100000001b3u;
}

static int
read_extent(const struct qmeld_extent *e, void *opaque)
{
    static unsigned char buf[STEP];
    struct walk *w = opaque;
    struct qmeld_error err;

    for (uint64_t at = 0, n; !e->zero && at < e->length; at += n) {
        n = e->length - at < STEP ? e->length - at : STEP;
        if (at >= MOST_READ)
            break;
        if (qmeld_read(w->chain, e->start + at, buf, n, &err) < 0) {
            w->view.reads = false;
            return 1;
        }
        add(&w->view, e->start + at, buf, n);
    }
    return 0;
}

struct qm_fuzz_view
qm_fuzz_view(const char *name, const char *format, uint64_t end)
{
    const struct qmeld_open_options opts = {.format = format};
    struct walk w = {.view.reads = true};
    struct qmeld_layer_info info;
    struct qmeld_error err;

    if (qmeld_chain_open(name, &opts, &w.chain, &err) < 0)
        return (struct qm_fuzz_view){.reads = false};
    if (qmeld_chain_layer(w.chain, qmeld_chain_depth(w.chain) - 1, &info, &err) < 0 ||
        qmeld_map(w.chain, 0, end, read_extent, &w, &err) < 0)
        w.view.reads = false;
    else
        w.view.size = info.virtual_size;
    qmeld_chain_close(w.chain);
    return w.view;
}

bool
qm_fuzz_same(const struct qm_fuzz_view *a, const struct qm_fuzz_view *b)
{
    return a->reads && b->reads && a->size == b->size && a->sum == b->sum;
}

bool
qm_fuzz_keys_are_cheap(const uint8_t *data, size_t len)
{
    const uint8_t *at = data, *end = data + len;

    while ((at = memmem(at, (size_t)(end - at), "LUKS\xba\xbe", 6))) {
        struct qmeld_error err;
        struct qm_luks l;
        uint64_t sum = 0;

        if (end - at < (long)QM_LUKS_HEADER)
            return true;
        if (qm_luks_decode("f", 0, at, 1 << 30, &l, &err) == 0) {
            for (unsigned i = 0; i < QM_LUKS_SLOTS; i++)
                sum += l.slots[i].active ? l.slots[i].iterations : 0;
            if (sum + l.digest_iterations > 20000)
                return false;
        }
        at++;
    }
    return true;
}
