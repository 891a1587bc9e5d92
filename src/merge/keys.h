/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * keys.h - which secret opens which layer.
 *
 * Why.  A chain may have layers with passphrases of their own, and one passphrase for many.  Which are tried for a layer, and
 * what is said if none is right, is known here alone.
 *
 * Calls      qm_keys_unlock for each layer, when it is opened.
 * Threads    One.
 * Errors     0 or -1 with *err: USAGE, CORRUPT, UNSUPPORTED, IO, NOMEM.
 */
#ifndef QM_KEYS_H
#define QM_KEYS_H

#include "chain.h"

/* Opens the layer's cipher, if it has one, as opts say; layer->secret is what did it. */
int qm_keys_unlock(struct qm_layer *layer, const struct qm_chain_options *opts,
                   struct qmeld_error *err) QM_CHECK;

#endif
