/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * window.c - the mapped half of io.h: a source file is written out of its own page cache.
 *
 * A file that is mapped and then shrinks, or whose device fails, would raise SIGBUS at a touch by
 * the program.  Nothing here touches a mapping except pwrite, which says EFAULT instead.
 */
#include "io.h"

#include "shadow.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#define READ_BYTES (256u << 10)

void
qm_window_init(struct qm_window *w, const struct qm_file *file, uint64_t max_len)
{
    *w = (struct qm_window){.file = file, .max_len = max_len};
}

void
qm_window_release(struct qm_window *w)
{
    if (w->base)
        munmap(w->base, w->len);
    w->base = NULL;
    w->off = w->len = 0;
}

static int
move_to(struct qm_window *w, uint64_t off, struct qmeld_error *err)
{
    const uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    const uint64_t start = qm_align_down(off, page);
    const uint64_t len = qm_min(w->max_len + (off - start), w->file->size - start);
    void *p;

    qm_window_release(w);
    p = mmap(NULL, len, PROT_READ, MAP_SHARED, w->file->fd, (off_t)start);
    if (p == MAP_FAILED)
        return qm_fail_sys(err, qm_at(w->file->path, off), "cannot map %" PRIu64 " bytes", len);
    (void)madvise(p, len, MADV_SEQUENTIAL);
    w->base = p;
    w->off = start;
    w->len = len;
    return 0;
}

static bool
has(const struct qm_window *w, uint64_t off)
{
    return w->base && off >= w->off && off < w->off + w->len;
}

bool
qm_window_covers(struct qm_window *w, uint64_t off)
{
    struct qmeld_error unheard = {0};

    return has(w, off) || (off < w->file->size && move_to(w, off, &unheard) == 0);
}

/* A hole of a tmpfs file that is read through a mapping takes a page for good (mm/shmem.c,
 * shmem_fault): space that a merge has no right to, and may not find.  So those are read. */
static int
write_by_reading(struct qm_window *w, uint64_t off, struct qm_file *to, uint64_t to_off,
                 uint64_t len, struct qmeld_error *err)
{
    QM_FREE unsigned char *buf = malloc(qm_max(1, qm_min(len, READ_BYTES)));

    if (!buf)
        return qm_fail_nomem(err, "copying");
    while (len > 0) {
        const size_t n = (size_t)qm_min(len, READ_BYTES);

        if (qm_pread(w->file, off, buf, n, err) < 0 || qm_pwrite(to, to_off, buf, n, err) < 0)
            return -1;
        off += n;
        to_off += n;
        len -= n;
    }
    return 0;
}

/* Out of the mapping, which is at least so long. */
static int
write_mapped(const struct qm_window *w, uint64_t off, struct qm_file *to, uint64_t to_off,
             uint64_t len, struct qmeld_error *err)
{
    const unsigned char *from = w->base + (off - w->off);
#ifdef QM_TESTING
    const ssize_t can = qm_io_ask(QM_IO_CALL_WINDOW, w->file->path, off, len);

    if (can < 0) { /* as if the second half could not be read */
        if (qm_pwrite(to, to_off, from, len / 2, err) < 0)
            return -1;
        errno = EFAULT;
        return qm_fail_sys(err, qm_at(to->path, to_off + len / 2), "cannot write");
    }
#endif
    return qm_pwrite(to, to_off, from, len, err);
}

int
qm_window_write(struct qm_window *w, uint64_t off, struct qm_file *to, uint64_t to_off,
                uint64_t len, struct qmeld_error *err)
{
    if (to->shadow) /* a dry run: neither read nor written */
        return qm_shadow_data(to, to_off, len, err);
    if (w->file->no_map)
        return write_by_reading(w, off, to, to_off, len, err);
    while (len > 0) {
        uint64_t n;

        if (off >= w->file->size)
            return qm_fail(err, QMELD_IO, qm_at(w->file->path, off),
                           "offset %" PRIu64 " is past the end of the file", off);
        if (!has(w, off) && move_to(w, off, err) < 0)
            return -1;
        n = qm_min(len, w->off + w->len - off);
        if (write_mapped(w, off, to, to_off, n, err) < 0) {
            if (err->sys_errno != EFAULT)
                return -1;
            off += err->off - to_off; /* how far the write came */
            return qm_fail(
                err, QMELD_IO, qm_at(w->file->path, off),
                "cannot read at offset %" PRIu64 ": the file has shrunk or its device fails", off);
        }
        off += n;
        to_off += n;
        len -= n;
    }
    return 0;
}
