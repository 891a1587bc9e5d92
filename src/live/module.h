/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * module.h - the module's functions, for its table, and what the program lent it.
 */
#ifndef QM_MODULE_H
#define QM_MODULE_H

#include "domain.h"
#include "live.h"

/* libqmeld, as the program has it. */
extern const struct qm_live_host *qm_host;

#endif
