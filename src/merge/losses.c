/* SPDX-License-Identifier: LGPL-2.1-or-later */
#include "losses.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#define BUFFER (64u << 10)
#define LINE   64u /* more than a line takes */

struct qm_losses {
    struct qm_file *file;
    char buf[BUFFER];
    size_t n;
    uint64_t off;  /* in the file, where buf goes */
    uint64_t from; /* the range that is not written yet */
    uint64_t to;
    bool lost;      /* it is lost */
    uint64_t bytes; /* that are lost */
    uint64_t ranges;
};

static int
flush(struct qm_losses *l, struct qmeld_error *err)
{
    const size_t n = l->n;

    l->n = 0;
    if (l->file && n > 0 && qm_pwrite(l->file, l->off, l->buf, n, err) < 0)
        return -1;
    l->off += n;
    return 0;
}

static int
put_range(struct qm_losses *l, struct qmeld_error *err)
{
    if (l->from == l->to)
        return 0;
    l->ranges += l->lost;
    l->bytes += l->lost ? l->to - l->from : 0;
    if (l->n + LINE > BUFFER && flush(l, err) < 0)
        return -1;
    l->n += (size_t)snprintf(l->buf + l->n, LINE, "0x%08" PRIX64 "  0x%08" PRIX64 "  %c\n", l->from,
                             l->to - l->from, l->lost ? '-' : '+');
    l->from = l->to;
    return 0;
}

int
qm_losses_begin(struct qm_file *file, struct qm_losses **out, struct qmeld_error *err)
{
    struct qm_losses *l = calloc(1, sizeof *l);

    *out = l;
    if (!l)
        return qm_fail_nomem(err, "the list of losses");
    l->file = file;
    /* status of the rescue: '+', finished, in pass 1 */
    l->n = (size_t)snprintf(
        l->buf, sizeof l->buf,
        "# Mapfile. Created by qmeld %s\n# current_pos  current_status  current_pass\n"
        "0x00000000     +               1\n#      pos        size  status\n",
        qmeld_version());
    return 0;
}

int
qm_losses_add(struct qm_losses *l, const struct qm_chunk *chunk, struct qmeld_error *err)
{
    QM_VEC_EACH (span, &chunk->spans) {
        const bool lost = span->ext.lost != QM_LOST_NOTHING;

        if (lost != l->lost && put_range(l, err) < 0)
            return -1;
        l->lost = lost;
        l->to = span->guest.g + span->len;
    }
    return 0;
}

int
qm_losses_end(struct qm_losses *l, uint64_t *out_bytes, uint64_t *out_ranges,
              struct qmeld_error *err)
{
    if (put_range(l, err) < 0 || flush(l, err) < 0)
        return -1;
    *out_bytes = l->bytes;
    *out_ranges = l->ranges;
    return l->file ? qm_sync(l->file, err) : 0;
}

void
qm_losses_free(struct qm_losses *l)
{
    free(l);
}
