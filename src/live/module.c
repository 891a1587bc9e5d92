/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* module.c - the one symbol of qmeld-live.so, and what its parts share. */
#include "module.h"

#include <stdarg.h>
#include <stdio.h>

const struct qm_live_host *qm_host;

static const struct qm_live_module table = {
    .abi = QM_LIVE_ABI,
};

QMELD_API qm_live_module_fn qm_live_module;

const struct qm_live_module *
qm_live_module(const struct qm_live_host *host)
{
    if (!host || host->abi != QM_LIVE_ABI)
        return NULL;
    qm_host = host;
    return &table;
}
