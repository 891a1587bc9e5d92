/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "evidence.h"

#include "work.h"

#include <stdatomic.h>
#include <stdlib.h>

#define READ_BYTES  (1u << 20)
#define MAX_THREADS 16u

struct job {
    bool *known;
    const struct qm_file *file;
    struct qm_sha256 *out;
};

struct qm_evidence {
    struct qm_evidence_config cfg;
    struct qm_pool *pool;
    struct qm_sha256 *digests;
    bool *known;
    uint64_t total;
    bool waiting; /* the caller does nothing else: progress is shown */
    _Atomic uint64_t done;
    atomic_bool stop;
};

/* One run of data or hole at off; *out_len of it were taken. */
static int
digest_run(struct qm_evidence *e, const struct qm_file *file, uint64_t off, unsigned char *buf,
           struct qm_digest *d, uint64_t *out_len, struct qmeld_error *err)
{
    uint64_t len;
    bool data;

    if (qm_data_or_hole(file, off, &data, &len, err) < 0)
        return -1;
    *out_len = len;
    while (len > 0) {
        const size_t n = (size_t)qm_min(len, READ_BYTES);

        if (atomic_load(&e->stop))
            return qm_fail(err, QMELD_CANCELED, qm_nowhere(), "stopped on request");
        if (data && qm_pread(file, off, buf, n, err) < 0)
            return -1;
        if (data)
            qm_digest_add(d, buf, n);
        else
            qm_digest_add_zeros(d, n);
        atomic_fetch_add(&e->done, n);
        off += n;
        len -= n;
    }
    return 0;
}

static int
digest_file(void *shared, unsigned worker, const void *item, struct qmeld_error *err)
{
    struct qm_evidence *e = shared;
    const struct job *job = item;
    const uint64_t size = job->file->size;
    struct qm_digest *d = qm_digest_new();
    QM_FREE unsigned char *buf = malloc(READ_BYTES);
    uint64_t n = 0;
    int rc = 0;

    (void)worker;
    if (!d || !buf)
        rc = qm_fail_nomem(err, "a digest");
    for (uint64_t at = 0; rc == 0 && at < size; at += n)
        rc = digest_run(e, job->file, at, buf, d, &n, err);
    *job->known = rc == 0;
    if (rc == 0)
        *job->out = qm_digest_end(d);
    else if (e->cfg.go_on && err->code == QMELD_IO)
        rc = 0;
    else
        atomic_store(&e->stop, true);
    qm_digest_free(d);
    return rc;
}

static int
tick(void *shared)
{
    struct qm_evidence *e = shared;
    const struct qmeld_progress now = {
        .done_bytes = e->done, .total_bytes = e->total, .phase = "inputs"};

    if (!e->waiting || !e->cfg.progress || e->cfg.progress(&now, e->cfg.opaque) == 0)
        return 0;
    atomic_store(&e->stop,
                 true); /* who waits for a file that is being read need not wait for its end */
    return 1;
}

int
qm_evidence_begin(const struct qm_evidence_config *config, struct qm_evidence **out,
                  struct qmeld_error *err)
{
    struct qm_evidence *e = calloc(1, sizeof *e);
    struct qm_pool_config pool = {.threads = config->threads ? config->threads : qm_processors(),
                                  .item_size = sizeof(struct job),
                                  .queue_len = config->n,
                                  .fn = digest_file,
                                  .tick = tick,
                                  .shared = e};

    *out = NULL;
    if (!e || !(e->digests = calloc(config->n, sizeof *e->digests)) ||
        !(e->known = calloc(config->n, sizeof *e->known))) {
        qm_evidence_free(e);
        return qm_fail_nomem(err, "digests");
    }
    e->cfg = *config;
    pool.threads = (unsigned)qm_min(qm_min(pool.threads, MAX_THREADS), config->n);
    if (qm_pool_new(&pool, &e->pool, err) < 0) {
        qm_evidence_free(e);
        return -1;
    }
    for (size_t i = 0; i < config->n; i++)
        e->total += config->files[i]->size;
    for (size_t i = 0; i < config->n; i++) {
        const struct job job = {&e->known[i], config->files[i], &e->digests[i]};

        if (qm_pool_put(e->pool, &job, err) < 0) {
            qm_evidence_free(e);
            return -1;
        }
    }
    *out = e;
    return 0;
}

int
qm_evidence_end(struct qm_evidence *e, struct qm_sha256 *out, bool *out_known,
                struct qmeld_error *err)
{
    e->waiting = true;
    if (qm_pool_drain(e->pool, err) < 0)
        return -1;
    for (size_t i = 0; i < e->cfg.n; i++)
        out[i] = e->digests[i];
    for (size_t i = 0; out_known && i < e->cfg.n; i++)
        out_known[i] = e->known[i];
    return 0;
}

void
qm_evidence_free(struct qm_evidence *e)
{
    if (!e)
        return;
    atomic_store(&e->stop, true);
    qm_pool_free(e->pool);
    free(e->digests);
    free(e->known);
    free(e);
}
