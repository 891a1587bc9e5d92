/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "direct.h"

#include "io_int.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct qm_direct {
    struct qm_file *file; /* borrowed */
    struct qm_file again; /* the same file, by a descriptor of its own; its path is borrowed */
};

struct qm_direct *
qm_direct_open(struct qm_file *file)
{
    const int mode = (file->wfd >= 0 ? O_RDWR : O_RDONLY) | O_DIRECT | O_CLOEXEC | O_NONBLOCK;
    struct qm_direct *d;
    struct stat st;
    int fd;

    if (file->shadow || !qm_file_is_local(file))
        return NULL;
    fd = open(file->path, mode);
    if (fd < 0)
        return NULL;
    d = calloc(1, sizeof *d);
    if (!d || fstat(fd, &st) < 0 || (file->blockdev ? st.st_rdev : st.st_dev) != file->dev ||
        (!file->blockdev && st.st_ino != file->ino)) {
        close(fd);
        free(d);
        return NULL;
    }
    d->file = file;
    d->again = (struct qm_file){.path = file->path,
                                .fd = fd,
                                .wfd = file->wfd >= 0 ? fd : -1,
                                .blockdev = file->blockdev,
                                .dev = file->dev,
                                .ino = file->ino};
    return d;
}

void
qm_direct_close(struct qm_direct *d)
{
    if (!d)
        return;
    close(d->again.fd);
    free(d);
}

uint64_t
qm_direct_unit(void)
{
    return qm_max(4096, (uint64_t)sysconf(_SC_PAGESIZE));
}

void *
qm_direct_buffer(size_t len)
{
    void *p;

    return posix_memalign(&p, qm_direct_unit(), len) == 0 ? p : NULL;
}

/* EINVAL is how file systems and drivers say that they will not, now or ever (open(2), "O_DIRECT"); also to the rest of
 * what was done in part. */
static int
refuse(int rc, bool *out_refused, struct qmeld_error *err)
{
    *out_refused = rc < 0 && err->sys_errno == EINVAL;
    if (!*out_refused)
        return rc;
    *err = (struct qmeld_error){.disk = err->disk};
    return 0;
}

int
qm_direct_read(struct qm_direct *d, uint64_t off, void *buf, size_t len, bool *out_refused,
               struct qmeld_error *err)
{
    return refuse(qm_pread(&d->again, off, buf, len, err), out_refused, err);
}

int
qm_direct_write(struct qm_direct *d, uint64_t off, const void *buf, size_t len, bool *out_refused,
                struct qmeld_error *err)
{
    if (refuse(qm_pwrite(&d->again, off, buf, len, err), out_refused, err) < 0)
        return -1;
    if (!*out_refused)
        qm_io_note_end(d->file, off + len);
    return 0;
}
