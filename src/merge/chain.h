/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * chain.h - a chain of images, opened layer by layer under one policy.
 *
 * Why.  Backing names come from files that a stranger may have written; formats may be missing;
 * chains may loop.  Here names become open layers, once, under rules that can be read in one
 * place.  Knows nothing of merging.
 *
 * Calls      qm_chain_open, then the layers; qm_chain_close.
 * Threads    One thread at a time.
 * Ownership  The chain owns its layers.
 * Units      Layer 0 is the base, n - 1 the active layer.
 * Errors     0 or -1 with *err: CORRUPT (loop), IO (missing file), UNSUPPORTED, USAGE (no
 *            stored format, no or a wrong secret; a name that the path policy forbids, policy.h), BUSY.
 */
#ifndef QM_CHAIN_H
#define QM_CHAIN_H

#include "image.h"
#include "policy.h"

struct qm_layer {
    struct qm_image *img;
    char *path;         /* as opened: the command line's for the top, resolved for the others */
    bool format_probed; /* no format was given or stored for it */
    const struct qmeld_secret *secret; /* that opened its cipher; NULL: none did.  The caller's */
    /* of views that are not there yet (protect.c): */
    uint64_t
        hides_to; /* from this guest offset on it has nothing, and hides nothing: what is below it shows.
                        * 0: its end hides all that is below, as QEMU has it */
    bool given_up; /* it has nothing but its end */
};

struct qm_chain {
    struct qm_layer *layers; /* [0] = base */
    size_t n;
    bool bottomless;          /* salvage: below layer 0 there was something, which is lost */
    struct qm_policy *policy; /* by which it was opened */
};

enum qm_chain_mode {
    QM_CHAIN_LOOK, /* no locks; missing formats are probed */
    QM_CHAIN_READ, /* every layer locked as READER before its content is believed; a missing format is
                    * USAGE unless backing_format is given: what is read becomes somebody's disk */
    QM_CHAIN_HOLD, /* for who writes to layers: as READ, and a layer said to be raw that starts with a
                    * qcow2 header is refused (USAGE) */
};

/* What is to be done about layers that are encrypted. */
enum qm_chain_keys {
    QM_KEYS_NEEDED = 0, /* each is opened with one of the secrets, or the chain is not */
    QM_KEYS_IF_GIVEN, /* for who may not come to read any bytes: those that have a secret are opened */
    QM_KEYS_NONE,     /* no byte is read: all stay locked */
};

struct qm_chain_options {
    enum qm_chain_mode mode;
    const char *format;         /* of the top; NULL: by content */
    const char *backing_format; /* where an overlay stores none; NULL: see mode */
    bool single;                /* the top only */
    bool
        salvage; /* what can be read is to be saved: layers are opened by qm_image_open_damaged, and
                                 * a backing file that is not there, or nothing that could be read, leaves the chain
                                 * bottomless */
    qmeld_finding_fn *finding; /* of that, a sentence each; may be NULL */
    void *finding_opaque;
    bool resumed; /* a raw layer may hold a qcow2 header by now, as guest data that the
                                 * interrupted merge has put there */
    bool
        describe; /* for info: layers whose features we cannot read are let through, and external data
                    * files left alone: qm_chain_make_readable */
    const char *const *allow; /* as in struct qmeld_open_options; NULL: none */
    const char *named;        /* one more path that the user has said; NULL: none */
    enum qm_chain_keys keys;
    const struct qmeld_secrets *secrets; /* NULL: none; not needed when the chain is open */
    const struct qm_chain
        *opened; /* NULL, or a chain whose keys are taken for the same files; may have layers that
                                    * are not open */
};

int qm_chain_open(const char *path, const struct qm_chain_options *opts, struct qm_chain **out,
                  struct qmeld_error *err) QM_CHECK;
void qm_chain_close(struct qm_chain *chain); /* NULL is fine */

/* After `describe`: whatever stands between us and the bytes is UNSUPPORTED now; data files are opened. */
int qm_chain_make_readable(struct qm_chain *chain, struct qmeld_error *err) QM_CHECK;

/* All files of the chain: those of the layers, 0 first, then the external data files, in the same order.  out: room
 * for 2 * n of them, or NULL.  How many there are. */
size_t qm_chain_files(const struct qm_chain *chain, const struct qm_file **out);

/* The layer a user means by "[N]" (1 = base) or by a path: relative to the working directory,
 * or as the chain's headers have it (relative to an overlay's directory, qemu-img's rule).
 * USAGE if it names no layer, or two different ones. */
int qm_chain_find(const struct qm_chain *chain, const char *name, size_t *out,
                  struct qmeld_error *err) QM_CHECK;

/* Where a backing name leads: malloc'd path in *out, and the format that a json: name
 * gives in *out_format (malloc'd, NULL if none).  overlay_path is the path the overlay was opened
 * by.  Rules (qemu 7.2, block.c): "proto:..." if a ':' comes before the first '/': file: is
 * relative to the working directory, json:{} likewise for its file name, NBD becomes qm_nbd_uri's spelling, every other
 * protocol is refused by name; absolute stays; else relative to the overlay's directory. */
int qm_backing_path(const char *overlay_path, const char *name, char **out, char **out_format,
                    struct qmeld_error *err) QM_CHECK;

/* The name that `child` (a path as opened, with old_name in its header) should store to
 * reach target, in the style it had: relative names become relative to the child's directory,
 * everything else absolute.  must_be_relative: USAGE rather than an absolute name.  malloc'd. */
int qm_backing_name_for(const char *child_path, const char *old_name, const char *target_path,
                        bool must_be_relative, char **out, struct qmeld_error *err) QM_CHECK;

/* The n-th name for a merged layer that is put aside: path.merged, path.merged.1, ...; malloc'd, NULL: no memory. */
char *qm_aside_name(const char *path, unsigned n);

/* Is it one of those? */
bool qm_aside_is(const char *path);

#endif
