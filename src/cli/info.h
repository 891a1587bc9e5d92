/* SPDX-License-Identifier: LGPL-2.1-or-later */
/*
 * info.h - how a layer is shown, be it of an image or of a domain's disk.
 */
#ifndef QM_CLI_INFO_H
#define QM_CLI_INFO_H

#include "cli.h"

/* label: how the layer is named in brackets or by libvirt: "[3]", "vda[3]". */
void qm_cli_info_print(const char *label, const struct qmeld_layer_info *layer, bool is_top);

/* The same in the lines of qemu-img info. */
void qm_cli_info_print_as_qemu(const struct qmeld_layer_info *layer);

/* number counts from the base, which is 1; below: the path of the layer this one stands on, NULL: none
 * was opened. */
struct json_object *qm_cli_info_json(size_t number, const struct qmeld_layer_info *layer,
                                     const char *below);

/* `qmeld info DOMAIN`.  Returns the exit code; -1, with *err filled and nothing printed: there is no such
 * domain, or none can be asked for. */
int qm_cli_info_domain(const char *uri, const char *domain, enum qm_cli_output output,
                       struct qmeld_error *err);

#endif
